//! Every message of the wire: no bytes make a decoder panic, and what it understood it writes again as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::nbd::chunk::{Chunk, Failure, Hole, kind, offset_data};
use protocol::nbd::meta::{Context, Question};
use protocol::nbd::replies::run;
use protocol::nbd::status::{Filter, Status};
use protocol::nbd::{Headers, Request, SimpleReply};

fn heads(data: &[u8]) {
    if let Some(request) = data.first_chunk().and_then(Request::decode) {
        assert_eq!(request.encode(), data[..Request::SIZE]);
    }
    if let Some(request) = data.first_chunk().and_then(Request::decode_extended) {
        assert_eq!(request.encode_extended(), data[..Request::EXTENDED_SIZE]);
    }
    if let Some(reply) = data.first_chunk().and_then(SimpleReply::decode) {
        assert_eq!(reply.encode(), data[..SimpleReply::SIZE]);
    }
    if let Some(chunk) = data.first_chunk().and_then(Chunk::decode) {
        assert_eq!(
            chunk.encode(Headers::Structured)[..Chunk::STRUCTURED_SIZE],
            data[..Chunk::STRUCTURED_SIZE]
        );
    }
    if let Some(chunk) = data.first_chunk().and_then(Chunk::decode_extended) {
        assert_eq!(chunk.encode(Headers::Extended), data[..Chunk::EXTENDED_SIZE]);
    }
}

fn bodies(data: &[u8]) {
    let _ = offset_data(data);
    if let Some(hole) = Hole::decode(data) {
        assert_eq!(hole.encode(), data);
    }
    for kind in [kind::ERROR, kind::ERROR_OFFSET] {
        if let Some(failure) = Failure::decode(kind, data)
            && failure.message.len() <= 4096
        {
            assert_eq!(failure.encode_in_full(), (kind, data.to_vec()));
        }
    }
    for headers in [Headers::Structured, Headers::Extended] {
        if let Some(status) = Status::decode(headers, data) {
            let mut again = Status::encode_head(headers, status.context, status.runs().count())
                [..Status::head_size(headers)]
                .to_vec();
            for run in status.runs() {
                again.extend(&run.encode(headers)[..protocol::nbd::status::Run::size(headers)]);
            }
            assert_eq!(again[8..], data[8..]);
        }
    }
    if let Some(filter) = Filter::decode(data) {
        assert_eq!(Filter::encode(filter.len, &filter.ids().collect::<Vec<_>>()), data);
    }
    if let Some(question) = Question::decode(data) {
        assert_eq!(question.queries().count(), question.count as usize);
    }
    if let Some(context) = Context::decode(data) {
        assert_eq!(context.encode(), data);
    }
}

/// The runs of what was read are all of it, and holes are zeros.
fn holes(data: &[u8]) {
    let Some((&[shift, least, offset], bytes)) = data.split_first_chunk::<3>() else { return };
    let mut at = 0;
    while at < bytes.len() {
        let (len, is_hole) =
            run(&bytes[at..], u64::from(offset) + at as u64, 1 << (shift % 10), usize::from(least).max(1));
        assert!(len > 0);
        assert!(!is_hole || bytes[at..at + len].iter().all(|&byte| byte == 0));
        at += len;
    }
    assert_eq!(at, bytes.len());
}

fuzz_target!(|data: &[u8]| {
    heads(data);
    bodies(data);
    holes(data);
});
