//! STARTTLS: which options there are before it, and what is left of them behind it.

use super::{Broken, Handshake, Progress, State};
use crate::nbd::wire::{option, reply};

/// What a server says to STARTTLS, and to whoever does not send it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsPolicy {
    /// It has no TLS.
    #[default]
    Off,
    /// Who wants it has it.
    Offered,
    /// Nobody hears or gets anything without it.
    Required,
}

impl TlsPolicy {
    /// As a person writes it.
    pub fn name(self) -> &'static str {
        match self {
            TlsPolicy::Off => "off",
            TlsPolicy::Offered => "on",
            TlsPolicy::Required => "required",
        }
    }
}

/// Whether the connection is in the clear, and may stay so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Security {
    policy: TlsPolicy,
    is_encrypted: bool,
}

impl Security {
    pub(super) const OFF: Security = Security { policy: TlsPolicy::Off, is_encrypted: false };

    /// Whether this option has to wait until the connection is encrypted.
    pub(super) fn keeps_back(self, number: u32) -> bool {
        self.policy == TlsPolicy::Required
            && !self.is_encrypted
            && !matches!(number, option::STARTTLS | option::ABORT)
    }
}

impl Handshake {
    /// Begins one with a server that has TLS, or insists on it.
    pub fn with_tls(policy: TlsPolicy) -> Handshake {
        Handshake { security: Security { policy, is_encrypted: false }, ..Handshake::new() }
    }

    /// Whether what is said is encrypted: STARTTLS was acknowledged.
    pub fn is_encrypted(&self) -> bool {
        self.security.is_encrypted
    }

    /// Deals with what TLS decides about an option, if it does; `behind` is the number of bytes that have
    /// come behind it.
    pub(super) fn secure(
        &mut self,
        number: u32,
        data: &[u8],
        behind: usize,
    ) -> Result<Option<Progress>, Broken> {
        if self.security.keeps_back(number) {
            // It has no reply that says so.
            if number == option::EXPORT_NAME {
                return Err(Broken::TlsRequired);
            }
            self.refuse_for_tls(number);
            return Ok(Some(Progress::Answered));
        }
        if number != option::STARTTLS || self.security.policy == TlsPolicy::Off || !data.is_empty() {
            return Ok(None);
        }
        if self.security.is_encrypted {
            self.refuse(number, reply::INVALID, "the connection is encrypted already");
            return Ok(Some(Progress::Answered));
        }
        // A client waits for the acknowledgement. These bytes are somebody else's, who wants them to be taken
        // for something that was said under TLS.
        if behind > 0 {
            return Err(Broken::BehindStartTls);
        }
        self.forget();
        self.security.is_encrypted = true;
        self.reply(number, reply::ACK, &[]);
        Ok(Some(Progress::StartTls))
    }

    pub(super) fn refuse_for_tls(&mut self, number: u32) {
        self.refuse(number, reply::TLS_REQUIRED, "this server talks about nothing before STARTTLS");
    }

    /// Anybody on the way could have put in what was negotiated in the clear. What stays are the flags that a
    /// client sends once, the count of options and what is still to be said; the rest is as at the start,
    /// whatever there will ever be of it.
    fn forget(&mut self) {
        let begun = std::mem::take(self);
        self.state = State::Option;
        (self.fixed, self.zeroes, self.options) = (begun.fixed, begun.zeroes, begun.options);
        (self.to_send, self.security) = (begun.to_send, begun.security);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{exports, info_data, option, replies};
    use super::*;

    fn begun(policy: TlsPolicy) -> Handshake {
        let mut handshake = Handshake::with_tls(policy);
        handshake.to_send().clear();
        assert_eq!(handshake.receive(&[0, 0, 0, 3], &exports()), Ok((4, Progress::Answered)));
        handshake
    }

    /// Every option there is, and some that there are not, with data that make sense and none.
    fn options() -> Vec<(u32, Vec<u8>)> {
        let numbers = [3, 4, 6, 7, 8, 9, 10, 11, 12, 99, u32::MAX];
        let data = [vec![], info_data("disk", &[]), vec![0; 12], vec![0; 20_000]];
        let with = |number: u32| data.clone().into_iter().map(move |data| (number, data));
        numbers.into_iter().flat_map(with).collect()
    }

    #[test]
    fn where_tls_is_required_nothing_is_heard_without_it() {
        for (number, data) in options() {
            let mut handshake = begun(TlsPolicy::Required);
            let said = replies(&mut handshake, &option(number, &data));
            assert_eq!(said, (vec![reply::TLS_REQUIRED], Progress::Answered), "{number} {}", data.len());
        }
        let name = option(option::EXPORT_NAME, b"disk");
        let broken = begun(TlsPolicy::Required).receive(&name, &exports());
        assert_eq!(broken, Err(Broken::TlsRequired));
        let abort = option(option::ABORT, &[]);
        assert_eq!(replies(&mut begun(TlsPolicy::Required), &abort), (vec![reply::ACK], Progress::Ended));
    }

    #[test]
    fn starttls_is_taken_once_and_only_where_there_is_tls() {
        let starttls = option(option::STARTTLS, &[]);
        let off = replies(&mut begun(TlsPolicy::Off), &starttls);
        assert_eq!(off, (vec![reply::UNSUPPORTED], Progress::Answered));
        for policy in [TlsPolicy::Offered, TlsPolicy::Required] {
            let mut handshake = begun(policy);
            let with_data = option(option::STARTTLS, b"x");
            assert_eq!(replies(&mut handshake, &with_data), (vec![reply::INVALID], Progress::Answered));
            assert_eq!(replies(&mut handshake, &starttls), (vec![reply::ACK], Progress::StartTls));
            assert!(handshake.is_encrypted());
            assert_eq!(replies(&mut handshake, &starttls), (vec![reply::INVALID], Progress::Answered));
            let go = option(option::GO, &info_data("other", &[]));
            assert_eq!(replies(&mut handshake, &go).1, Progress::Transmission(1));
        }
    }

    #[test]
    fn what_stands_behind_starttls_in_the_clear_ends_the_connection() {
        let mut bytes = option(option::STARTTLS, &[]);
        for behind in [&b"x"[..], &option(option::LIST, &[]), &[0x16, 3, 1, 0, 100]] {
            bytes.truncate(16);
            bytes.extend(behind);
            let broken = begun(TlsPolicy::Offered).receive(&bytes, &exports());
            assert_eq!(broken, Err(Broken::BehindStartTls));
        }
    }

    proptest! {
        /// Whatever was negotiated in the clear, behind STARTTLS it is as if it had not been.
        #[test]
        fn what_was_negotiated_before_is_forgotten(
            before in prop::collection::vec(prop::sample::select(options()), 0..6),
            flags in prop::sample::select(vec![1u8, 3]),
        ) {
            let mut handshake = Handshake::with_tls(TlsPolicy::Offered);
            handshake.to_send().clear();
            handshake.receive(&[0, 0, 0, flags], &exports()).unwrap();
            let mut count = 0;
            for (number, data) in before {
                let (_, progress) = handshake.receive(&option(number, &data), &exports()).unwrap();
                handshake.to_send().clear();
                count += 1;
                if matches!(progress, Progress::Transmission(_)) {
                    return Ok(());
                }
            }
            handshake.receive(&option(option::STARTTLS, &[]), &exports()).unwrap();
            handshake.to_send().clear();
            let mut fresh = Handshake::with_tls(TlsPolicy::Offered);
            fresh.receive(&[0, 0, 0, flags], &exports()).unwrap();
            fresh.receive(&option(option::STARTTLS, &[]), &exports()).unwrap();
            fresh.to_send().clear();
            fresh.options = count + 1;
            prop_assert_eq!(format!("{handshake:?}"), format!("{fresh:?}"));
        }
    }
}
