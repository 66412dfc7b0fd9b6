//! The `:authority` rewriter: any octets pass in full and in bounded memory wherever the reads end, and a
//! header block that an independent decoder understands says the same after as before, but for authorities.

use mayfly::api::wire::frame::{HOLD_LIMIT, Scanner};

const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// One input.
pub(crate) fn check(data: &[u8]) {
    let Some((&mode, data)) = data.split_first() else { return };
    if mode & 1 == 0 { any_stream(mode, data) } else { same_headers(mode, data) }
}

fn any_stream(mode: u8, data: &[u8]) {
    let stream = [GREETING, data].concat();
    let whole = scan(&stream, stream.len());
    assert_eq!(whole, scan(&stream, usize::from(mode >> 1) + 1));
    assert!(whole.len() <= stream.len() && stream.len() - whole.len() <= HOLD_LIMIT + 9);
}

/// The data, cut at 0xff 0xfe, as the blocks of successive requests.
fn same_headers(mode: u8, data: &[u8]) {
    let mut blocks: Vec<Vec<u8>> = vec![Vec::new()];
    for octet in data {
        match (blocks.last_mut(), octet) {
            (Some(last), 0xfe) if last.last() == Some(&0xff) => {
                last.pop();
                blocks.push(Vec::new());
            }
            (Some(last), octet) => last.push(*octet),
            (None, _) => panic!("there always is one"),
        }
    }
    let (mut before, mut after, mut scanner) =
        (fluke_hpack::Decoder::new(), fluke_hpack::Decoder::new(), Scanner::default());
    scanner.push(GREETING, &mut Vec::new());
    for (nth, block) in blocks.iter().enumerate() {
        let (first, second) = block.split_at(block.len().min(usize::from(mode >> 1)));
        let stream = u32::try_from(2 * nth + 1).expect("few");
        let sent = [frame(1, 0, stream, first), frame(9, 4, stream, second)].concat();
        let mut out = Vec::new();
        scanner.push(&sent, &mut out);
        assert_eq!(out.len(), sent.len());
        let rewritten = [&out[9..9 + first.len()], &out[18 + first.len()..]].concat();
        if !scanner.is_certain() {
            assert_eq!(out, sent);
            return;
        }
        // What the independent decoder cannot read proves nothing.
        let Ok(old) = before.decode(block) else { return };
        let new = after.decode(&rewritten).expect("the rewritten block is as good as the original");
        assert_eq!(old.len(), new.len());
        for ((old_name, old_value), (new_name, new_value)) in old.iter().zip(&new) {
            assert_eq!(old_name, new_name);
            if old_value != new_value {
                assert_eq!(old_name, b":authority");
                assert_eq!(old_value.len(), new_value.len());
                assert!(http::uri::Authority::try_from(old_value.as_slice()).is_err());
                assert!(http::uri::Authority::try_from(new_value.as_slice()).is_ok());
            }
        }
    }
}

fn scan(stream: &[u8], step: usize) -> Vec<u8> {
    let (mut scanner, mut out) = (Scanner::default(), Vec::new());
    for part in stream.chunks(step.max(1)) {
        scanner.push(part, &mut out);
    }
    out
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}
