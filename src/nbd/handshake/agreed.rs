//! What a client and we agree on beside the export: how replies look, and metadata contexts.

use super::super::wire::meta::{BASE_ALLOCATION, Context, Question};
use super::super::wire::{option, reply};
use super::super::{ALLOCATION_CONTEXT, Export, ExportFlags, Headers, MAX_NAME, Settled};
use super::{Handshake, find};

/// What was agreed on so far. STARTTLS forgets it.
#[derive(Debug, Default)]
pub(super) struct Agreed {
    headers: Headers,
    /// The export whose `base:allocation` was chosen last.
    allocation_of: Option<String>,
}

impl Agreed {
    /// Whether headers are extended.
    pub(super) fn are_extended(&self) -> bool {
        self.headers == Headers::Extended
    }
}

impl Handshake {
    /// What was settled, for transmission with `export`. A context that was chosen for another one does not count.
    pub fn settled(&self, export: &Export) -> Settled {
        let headers = self.agreed.headers;
        let chosen = self.agreed.allocation_of.as_ref() == Some(&export.name);
        Settled { headers, allocation: chosen && headers != Headers::Simple }
    }

    /// The flags of an export, as far as they mean something with what was agreed on.
    pub(super) fn flags_of(&self, export: &Export) -> ExportFlags {
        let mut flags = export.flags;
        if self.agreed.headers < Headers::Structured {
            flags -= ExportFlags::SEND_DF;
        }
        if self.agreed.headers < Headers::Extended {
            flags -= ExportFlags::BLOCK_STATUS_PAYLOAD;
        }
        flags
    }

    /// STRUCTURED_REPLY and EXTENDED_HEADERS.
    pub(super) fn agree_on_headers(&mut self, option: u32, data: &[u8]) {
        let wanted = match option {
            option::STRUCTURED_REPLY => Headers::Structured,
            _ => Headers::Extended,
        };
        if !data.is_empty() {
            self.refuse(option, reply::INVALID, "the option has no data");
        } else if self.agreed.headers == wanted {
            self.refuse(option, reply::INVALID, "that was agreed on before");
        } else if self.agreed.headers > wanted {
            self.refuse(option, reply::EXTENDED_HEADERS_REQUIRED, "extended headers were agreed on before");
        } else {
            self.agreed.headers = wanted;
            self.reply(option, reply::ACK, &[]);
        }
    }

    /// LIST_META_CONTEXT and SET_META_CONTEXT.
    pub(super) fn contexts(&mut self, option: u32, data: &[u8], exports: &[Export]) {
        let sets = option == option::SET_META_CONTEXT;
        if sets {
            // Whatever comes of it, it takes the place of what was set before.
            self.agreed.allocation_of = None;
        }
        if self.agreed.headers == Headers::Simple {
            return self.refuse(option, reply::INVALID, "structured replies have to be agreed on first");
        }
        let Some(question) = Question::decode(data) else {
            return self.refuse(option, reply::INVALID, "the lengths inside the option do not fit together");
        };
        let is_too_long = |string: &[u8]| string.len() > MAX_NAME;
        if is_too_long(question.export) || question.queries().any(is_too_long) {
            return self.refuse(option, reply::TOO_BIG, "a string is too long");
        }
        if !question.queries().all(|query| query.contains(&b':')) {
            return self.refuse(option, reply::INVALID, "a query has no namespace and colon");
        }
        let found = std::str::from_utf8(question.export).ok().and_then(|name| find(exports, name));
        let Some((_, export)) = found else {
            return self.refuse(option, reply::UNKNOWN, "there is no export of this name");
        };
        // A list may ask for all of a namespace, or for all that there is.
        let asks_for_it = |query: &[u8]| query == BASE_ALLOCATION.as_bytes() || (!sets && query == b"base:");
        let is_wanted = question.queries().any(asks_for_it) || (!sets && question.count == 0);
        if is_wanted {
            let id = if sets { ALLOCATION_CONTEXT } else { 0 };
            let context = Context { id, name: BASE_ALLOCATION.as_bytes() };
            self.reply(option, reply::META_CONTEXT, &context.encode());
            if sets {
                self.agreed.allocation_of = Some(export.name.clone());
            }
        }
        self.reply(option, reply::ACK, &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{begun, export, exports, info_data, option, replies};
    use super::super::{Progress, info};
    use super::*;
    use crate::nbd::Broken;
    use crate::nbd::wire::{u16_at, u32_at};

    fn ask(handshake: &mut Handshake, number: u32, data: &[u8]) -> Vec<u32> {
        replies(handshake, &option(number, data)).0
    }

    fn context(handshake: &mut Handshake, number: u32, name: &str, queries: &[&str]) -> Vec<u32> {
        ask(handshake, number, &Question::encode(name, queries))
    }

    const LIST: u32 = option::LIST_META_CONTEXT;
    const SET: u32 = option::SET_META_CONTEXT;
    const FOUND: [u32; 2] = [reply::META_CONTEXT, reply::ACK];

    #[test]
    fn headers_only_ever_grow() {
        let mut handshake = begun(3);
        let settled = |handshake: &Handshake| handshake.settled(&exports()[0]).headers;
        assert_eq!(ask(&mut handshake, option::STRUCTURED_REPLY, b"x"), [reply::INVALID]);
        assert_eq!(settled(&handshake), Headers::Simple);
        assert_eq!(ask(&mut handshake, option::STRUCTURED_REPLY, &[]), [reply::ACK]);
        assert_eq!(ask(&mut handshake, option::STRUCTURED_REPLY, &[]), [reply::INVALID]);
        assert_eq!(settled(&handshake), Headers::Structured);
        assert_eq!(ask(&mut handshake, option::EXTENDED_HEADERS, b"x"), [reply::INVALID]);
        assert_eq!(ask(&mut handshake, option::EXTENDED_HEADERS, &[]), [reply::ACK]);
        assert_eq!(ask(&mut handshake, option::EXTENDED_HEADERS, &[]), [reply::INVALID]);
        assert_eq!(ask(&mut handshake, option::STRUCTURED_REPLY, &[]), [reply::EXTENDED_HEADERS_REQUIRED]);
        assert_eq!(settled(&handshake), Headers::Extended);
    }

    /// The old way in goes with every header but the one that it must not.
    #[test]
    fn behind_extended_headers_an_export_is_chosen_by_go_alone() {
        let name = option(option::EXPORT_NAME, b"disk");
        for (options, is_let_in) in [
            (&[][..], true),
            (&[option::STRUCTURED_REPLY], true),
            (&[option::EXTENDED_HEADERS], false),
            (&[option::STRUCTURED_REPLY, option::EXTENDED_HEADERS], false),
        ] {
            let mut handshake = begun(3);
            options.iter().for_each(|&number| assert_eq!(ask(&mut handshake, number, &[]), [reply::ACK]));
            let progress = handshake.receive(&name, &exports()).map(|(_, progress)| progress);
            let wanted = if is_let_in { Ok(Progress::Transmission(0)) } else { Err(Broken::ExtendedHeaders) };
            assert_eq!(progress, wanted, "{options:?}");
        }
    }

    #[test]
    fn a_context_is_for_the_export_it_was_set_for_and_until_the_next() {
        let mut handshake = begun(3);
        let allocation = |handshake: &Handshake, at: usize| handshake.settled(&exports()[at]).allocation;
        assert_eq!(context(&mut handshake, SET, "disk", &[BASE_ALLOCATION]), [reply::INVALID]);
        ask(&mut handshake, option::STRUCTURED_REPLY, &[]);
        assert!(!allocation(&handshake, 0));
        assert_eq!(
            context(&mut handshake, SET, "disk", &["qemu:x", BASE_ALLOCATION, BASE_ALLOCATION]),
            FOUND
        );
        assert!(allocation(&handshake, 0) && !allocation(&handshake, 1));
        // The default export is the first one, whatever it is called by.
        assert_eq!(context(&mut handshake, SET, "", &[BASE_ALLOCATION]), FOUND);
        assert!(allocation(&handshake, 0));
        for (name, queries, kind) in [
            ("disk", &[][..], reply::ACK),
            ("disk", &["base:"], reply::ACK),
            ("disk", &["qemu:dirty-bitmap"], reply::ACK),
            ("disk", &["base"], reply::INVALID),
            ("nowhere", &[BASE_ALLOCATION], reply::UNKNOWN),
            (&"n".repeat(5000), &[], reply::TOO_BIG),
        ] {
            assert_eq!(context(&mut handshake, SET, "disk", &[BASE_ALLOCATION]), FOUND);
            assert_eq!(context(&mut handshake, SET, name, queries), [kind], "{name} {queries:?}");
            assert!(!allocation(&handshake, 0), "{name} {queries:?}");
        }
        assert_eq!(ask(&mut handshake, SET, &[1, 2, 3]), [reply::INVALID]);
    }

    #[test]
    fn what_is_listed_is_what_could_be_set() {
        let mut handshake = begun(3);
        ask(&mut handshake, option::EXTENDED_HEADERS, &[]);
        for queries in [&[][..], &["base:"], &[BASE_ALLOCATION], &["other:", "base:"]] {
            assert_eq!(context(&mut handshake, LIST, "other", queries), FOUND, "{queries:?}");
        }
        assert_eq!(context(&mut handshake, LIST, "other", &["other:"]), [reply::ACK]);
        assert_eq!(context(&mut handshake, LIST, "nowhere", &[]), [reply::UNKNOWN]);
        assert!(!handshake.settled(&exports()[1]).allocation, "to list is not to set");
    }

    #[test]
    fn flags_that_mean_nothing_are_not_told() {
        let all = ExportFlags::all();
        let exports = [Export { flags: all, ..export("disk", 1 << 20) }];
        let told = |options: &[u32]| {
            let mut handshake = begun(3);
            for &number in options {
                ask(&mut handshake, number, &[]);
            }
            let bytes = option(option::INFO, &info_data("disk", &[]));
            let (_, progress) = handshake.receive(&bytes, &exports).unwrap();
            assert_eq!(progress, Progress::Answered);
            let said = handshake.to_send().split_off(0);
            assert_eq!((u32_at(&said, 12), u16_at(&said, 20)), (reply::INFO, info::EXPORT));
            ExportFlags::from_bits_retain(u16_at(&said, 30))
        };
        let payload = ExportFlags::BLOCK_STATUS_PAYLOAD;
        assert_eq!(told(&[]), all - ExportFlags::SEND_DF - payload);
        assert_eq!(told(&[option::STRUCTURED_REPLY]), all - payload);
        assert_eq!(told(&[option::EXTENDED_HEADERS]), all);
    }
}
