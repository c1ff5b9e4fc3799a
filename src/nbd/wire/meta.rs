//! Metadata contexts in the handshake: what a client asks for by LIST_META_CONTEXT and SET_META_CONTEXT, and
//! how each context that there is gets its number.

use super::u32_at;

/// The one context that this house has: which parts of the disk are allocated, and which read as zeros.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// The data of LIST_META_CONTEXT and of SET_META_CONTEXT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question<'a> {
    /// Name of the export.
    pub export: &'a [u8],
    /// How many queries follow.
    pub count: u32,
    queries: &'a [u8],
}

impl<'a> Question<'a> {
    /// Reads it; `None` where its lengths do not fit together.
    pub fn decode(data: &'a [u8]) -> Option<Question<'a>> {
        let (export, rest) = string(data)?;
        let (count, queries) = rest.split_first_chunk::<4>()?;
        let question = Question { export, count: u32::from_be_bytes(*count), queries };
        // Each query has four bytes at least, so that this ends however large the number is.
        let mut rest = queries;
        for _ in 0..question.count {
            rest = string(rest)?.1;
        }
        rest.is_empty().then_some(question)
    }

    /// The queries, in their order.
    pub fn queries(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = self.queries;
        std::iter::from_fn(move || {
            let (query, behind) = string(rest)?;
            rest = behind;
            Some(query)
        })
    }

    /// The bytes on the wire of one that asks an export for these.
    pub fn encode(export: &str, queries: &[&str]) -> Vec<u8> {
        let mut data = Vec::new();
        add_string(&mut data, export);
        data.extend((queries.len() as u32).to_be_bytes());
        queries.iter().for_each(|query| add_string(&mut data, query));
        data
    }
}

fn add_string(data: &mut Vec<u8>, string: &str) {
    data.extend((string.len() as u32).to_be_bytes());
    data.extend(string.as_bytes());
}

/// A string behind its length, and what follows.
fn string(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = data.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*len) as usize)
}

/// The data of a reply NBD_REP_META_CONTEXT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context<'a> {
    /// What replies to BLOCK_STATUS call it; means nothing in an answer to LIST_META_CONTEXT.
    pub id: u32,
    /// Its name, such as [`BASE_ALLOCATION`].
    pub name: &'a [u8],
}

impl<'a> Context<'a> {
    /// The bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut data = self.id.to_be_bytes().to_vec();
        data.extend(self.name);
        data
    }

    /// Reads it; `None` where it is too short.
    pub fn decode(data: &'a [u8]) -> Option<Context<'a>> {
        (data.len() > 4).then(|| Context { id: u32_at(data, 0), name: &data[4..] })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_question_reads_back_as_it_was_asked(export: String, queries: Vec<String>) {
            let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
            let data = Question::encode(&export, &queries);
            let question = Question::decode(&data).unwrap();
            prop_assert_eq!(question.export, export.as_bytes());
            let bytes: Vec<&[u8]> = queries.iter().map(|query| query.as_bytes()).collect();
            prop_assert_eq!(question.queries().collect::<Vec<_>>(), bytes);
            for len in 0..data.len() {
                prop_assert_eq!(Question::decode(&data[..len]), None);
            }
        }

        #[test]
        fn a_context_reads_back_as_it_was_told(id: u32, name in "[a-z:]{1,30}") {
            let context = Context { id, name: name.as_bytes() };
            let bytes = context.encode();
            prop_assert_eq!(Context::decode(&bytes), Some(context));
        }

        #[test]
        fn no_bytes_make_a_question_panic(data in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(question) = Question::decode(&data) {
                prop_assert_eq!(question.queries().count(), question.count as usize);
            }
        }
    }

    #[test]
    fn more_queries_than_there_are_bytes_is_no_question() {
        let mut data = Question::encode("disk", &[]);
        let end = data.len();
        data[end - 4..].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(Question::decode(&data), None);
        assert_eq!(Context::decode(&[0; 4]), None);
    }
}
