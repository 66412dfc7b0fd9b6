//! Tests of the frame scanner: every split, recorded clients, and a codec that is not ours.

use proptest::prelude::*;

use super::super::{authority, huffman};
use super::*;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = length[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

fn greeting() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

fn scan(stream: &[u8]) -> (Vec<u8>, Scanner) {
    let (mut scanner, mut out) = (Scanner::default(), Vec::new());
    scanner.push(stream, &mut out);
    (out, scanner)
}

/// Whether octets are being held back.
fn is_holding(scanner: &Scanner) -> bool {
    !scanner.held.is_empty() || matches!(scanner.stage, Stage::Head { have: 1.. })
}

/// What h2's own server makes of the octets: the authority of each request it hands out, or its error.
async fn served(stream: Vec<u8>) -> Vec<Result<String, String>> {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    tokio::io::AsyncWriteExt::write_all(&mut client, &stream).await.unwrap();
    let mut connection = h2::server::handshake(server).await.unwrap();
    let (mut seen, mut open) = (Vec::new(), Vec::new());
    // Time is paused: the wait ends as soon as there is nothing left to do.
    let patience = std::time::Duration::from_secs(1);
    while let Ok(Some(request)) = tokio::time::timeout(patience, connection.accept()).await {
        seen.push(match request {
            Ok((request, respond)) => {
                open.push(respond);
                Ok(request.uri().authority().unwrap().to_string())
            }
            Err(error) => Err(error.to_string()),
        });
    }
    seen
}

const RECORDED: [(&str, &[u8], &str); 7] = [
    ("plain", include_bytes!("../../../tests/vectors/h2/grpcio-plain.bin"), "w.sock"),
    ("slashes", include_bytes!("../../../tests/vectors/h2/grpcio-slashes.bin"), "-2Fa-2Fb-2Fwl.sock"),
    ("percent", include_bytes!("../../../tests/vectors/h2/grpcio-percent.bin"), "-2Fa-25b-2F100-25.sock"),
    ("spaces", include_bytes!("../../../tests/vectors/h2/grpcio-spaces.bin"), "-2Fmy-20dir-2Fw-20l.sock"),
    ("long", include_bytes!("../../../tests/vectors/h2/grpcio-long.bin"), "eeeeeeeeee-2Fs"),
    (
        "unicode",
        include_bytes!("../../../tests/vectors/h2/grpcio-unicode.bin"),
        "-2Fcaf-C3-A9-2F-E4-B8-96.sock",
    ),
    (
        "java",
        include_bytes!("../../../tests/vectors/h2/java-raw-path.bin"),
        "-run-mayfly-public-dir-api.sock",
    ),
];

#[tokio::test(start_paused = true)]
async fn every_recorded_client_is_served_and_none_was_without_the_rewrite() {
    for (name, recorded, authority) in RECORDED {
        assert_eq!(served(recorded.to_vec()).await, [], "{name}: h2 has learned to take it");
        let (out, scanner) = scan(recorded);
        assert_eq!(out.len(), recorded.len());
        // Two calls: the second refers to the entry that the first put into the table.
        let answers = served(out).await;
        assert_eq!(answers.len(), 2, "{name}: {answers:?}");
        for answer in answers {
            assert!(answer.as_ref().is_ok_and(|got| got.ends_with(authority)), "{name}: {answer:?}");
        }
        let tally = scanner.tally();
        assert_eq!((tally.greeted, tally.streams, tally.rewritten), (true, 2, 1), "{name}");
        assert!(!is_holding(&scanner));
    }
}

#[test]
fn where_the_reads_end_makes_no_difference() {
    for (_, recorded, _) in RECORDED {
        let (whole, _) = scan(recorded);
        for step in [1, 2, 7, 64] {
            let (mut scanner, mut out) = (Scanner::default(), Vec::new());
            for part in recorded.chunks(step) {
                scanner.push(part, &mut out);
            }
            assert_eq!(out, whole);
        }
    }
}

#[test]
fn a_value_split_by_continuation_padding_and_priority_is_replaced() {
    let block = [&b"\x83\x41\x09"[..], b"run/a/b/c", b"\x86"].concat();
    for cut in 0..=block.len() {
        let (first, second) = block.split_at(cut);
        let padded = [&[3, 0, 0, 0, 0, 9][..], first, &[0; 3]].concat();
        let mut stream = greeting();
        stream.extend(frame(HEADERS, PADDED | PRIORITY, 1, &padded));
        stream.extend(frame(CONTINUATION, 0, 1, &[]));
        stream.extend(frame(CONTINUATION, END_HEADERS, 1, second));
        let (out, scanner) = scan(&stream);
        assert_eq!(scanner.tally().rewritten, 1, "cut at {cut}");
        assert_eq!(out.len(), stream.len());
        let changed: Vec<u8> = stream.iter().zip(&out).filter(|(a, b)| a != b).map(|(_, new)| *new).collect();
        assert_eq!(changed, b"---", "cut at {cut}");
    }
}

#[test]
fn at_a_doubt_everything_passes_from_there_on() {
    let good = [&b"\x83\x86\x41\x03"[..], b"a/b"].concat();
    let doubts: [Vec<u8>; 7] = [
        frame(HEADERS, END_HEADERS, 1, b"\x80"),
        frame(HEADERS, END_HEADERS | PADDED, 1, b"\x09"),
        frame(HEADERS, END_HEADERS, 0, &good),
        frame(CONTINUATION, END_HEADERS, 1, &good),
        frame(PUSH_PROMISE, END_HEADERS, 1, &good),
        frame(HEADERS, END_HEADERS, 1, &vec![0; HOLD_LIMIT]),
        [frame(HEADERS, 0, 1, &good), frame(SETTINGS, 0, 0, &[])].concat(),
    ];
    for doubt in doubts {
        let mut stream = [greeting(), doubt].concat();
        stream.extend(frame(HEADERS, END_HEADERS, 3, &good));
        let (out, scanner) = scan(&stream);
        assert_eq!(out, stream);
        assert_eq!(scanner.tally().rewritten, 0);
        assert!(!is_holding(&scanner));
    }
}

#[test]
fn what_is_held_back_is_bounded_and_freed() {
    let (mut scanner, mut out) = (Scanner::default(), Vec::new());
    scanner.push(&greeting(), &mut out);
    scanner.push(&frame(HEADERS, 0, 1, b"\x83"), &mut out);
    for _ in 0..10_000 {
        scanner.push(&frame(CONTINUATION, 0, 1, &[]), &mut out);
        assert!(scanner.held.len() <= HOLD_LIMIT);
    }
    assert_eq!((scanner.held.capacity(), scanner.fragments.capacity()), (0, 0));
    assert_eq!(scanner.tally().control, 10_001);
}

#[test]
fn floods_are_counted_by_what_they_are() {
    let mut stream = greeting();
    for nth in 0..50_u32 {
        stream.extend(frame(HEADERS, END_HEADERS, 2 * nth + 1, b"\x83"));
        stream.extend(frame(3, 0, 2 * nth + 1, &[0, 0, 0, 8]));
        stream.extend(frame(6, 0, 0, &[0; 8]));
        stream.extend(frame(DATA, 0, 1, b"content"));
        stream.extend(frame(DATA, 0, 1, &[]));
    }
    let (_, scanner) = scan(&stream);
    let tally = scanner.tally();
    assert_eq!((tally.streams, tally.control, tally.header_octets), (50, 151, 50));
    let (out, scanner) = scan(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!((out.as_slice(), scanner.tally()), (&b"GET / HTTP/1.1\r\n\r\n"[..], Tally::default()));
}

/// One header field as an encoder may write it.
#[derive(Clone, Debug)]
struct Field {
    name: usize,
    value: Vec<u8>,
    /// 0x40 with indexing, 0x00 without, 0x10 never.
    form: u8,
    name_by_index: bool,
    repeat_by_index: bool,
    huffman: (bool, bool),
    resize: Option<usize>,
}

const NAMES: [(&[u8], usize); 6] =
    [(b":authority", 1), (b":path", 4), (b"content-type", 31), (b"te", 0), (b"x-a", 0), (b":authorit", 0)];

fn fields() -> impl Strategy<Value = Vec<Field>> {
    let value = prop_oneof![
        4 => "[a-z/%. ]{0,30}".prop_map(String::into_bytes),
        2 => "[ -~]{0,60}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..20),
        1 => "[a-z]{200,400}".prop_map(String::into_bytes),
    ];
    let form = prop_oneof![Just(0x40_u8), Just(0x40), Just(0), Just(0x10)];
    let resize = prop_oneof![20 => Just(None), 1 => (0..=4096_usize).prop_map(Some)];
    let field = (0..NAMES.len(), value, form, any::<(bool, bool, bool, bool)>(), resize).prop_map(
        |(name, value, form, (by, repeat, a, b), resize)| Field {
            name,
            value,
            form,
            name_by_index: by,
            repeat_by_index: repeat,
            huffman: (a, b),
            resize,
        },
    );
    prop::collection::vec(field, 1..12)
}

/// An encoder that really keeps a table, so that what it writes by index is valid.
struct Encoder {
    table: Vec<(Vec<u8>, Vec<u8>)>,
    limit: usize,
}

impl Encoder {
    fn integer(out: &mut Vec<u8>, first: u8, prefix: u32, mut value: usize) {
        let mask = (1 << prefix) - 1;
        if value < mask {
            return out.push(first | u8::try_from(value).unwrap());
        }
        out.push(first | u8::try_from(mask).unwrap());
        value -= mask;
        while value >= 128 {
            out.push(u8::try_from(value % 128).unwrap() | 0x80);
            value /= 128;
        }
        out.push(u8::try_from(value).unwrap());
    }

    fn string(out: &mut Vec<u8>, text: &[u8], huffman: bool) {
        let code = if huffman { huffman::encode(text) } else { text.to_vec() };
        Self::integer(out, if huffman { 0x80 } else { 0 }, 7, code.len());
        out.extend(code);
    }

    fn evict(&mut self, room: usize) {
        let size =
            |table: &[(Vec<u8>, Vec<u8>)]| table.iter().map(|(n, v)| n.len() + v.len() + 32).sum::<usize>();
        while !self.table.is_empty() && size(&self.table) + room > self.limit {
            self.table.pop();
        }
    }

    fn encode(&mut self, fields: &[Field]) -> Vec<u8> {
        let mut out = Vec::new();
        for (nth, field) in fields.iter().enumerate() {
            if let Some(limit) = field.resize.filter(|_| nth == 0) {
                Self::integer(&mut out, 0x20, 5, limit);
                self.limit = limit;
                self.evict(0);
            }
            let (name, fixed) = NAMES[field.name];
            let whole = self.table.iter().position(|(n, v)| n == name && v == &field.value);
            if let Some(at) = whole.filter(|_| field.repeat_by_index) {
                Self::integer(&mut out, 0x80, 7, 62 + at);
                continue;
            }
            let known = self.table.iter().position(|(n, _)| n == name).map(|at| 62 + at);
            let prefix = if field.form == 0x40 { 6 } else { 4 };
            match known.or_else(|| (fixed > 0).then_some(fixed)).filter(|_| field.name_by_index) {
                Some(index) => Self::integer(&mut out, field.form, prefix, index),
                None => {
                    out.push(field.form);
                    Self::string(&mut out, name, field.huffman.0);
                }
            }
            Self::string(&mut out, &field.value, field.huffman.1);
            if field.form == 0x40 {
                let size = name.len() + field.value.len() + 32;
                self.evict(size);
                if size <= self.limit {
                    self.table.insert(0, (name.to_vec(), field.value.clone()));
                }
            }
        }
        out
    }
}

/// How a block is cut into frames: sizes of the fragments, padding, and the priority flag.
type Framing = (Vec<usize>, Option<u8>, bool);

fn framing() -> impl Strategy<Value = Framing> {
    (prop::collection::vec(0..40_usize, 0..4), prop::option::of(any::<u8>()), any::<bool>())
}

/// Frames of one block, and where in them its octets are.
fn frames(stream: u32, block: &[u8], (cuts, padding, priority): &Framing) -> (Vec<u8>, Vec<Range<usize>>) {
    let (mut out, mut places, mut rest) = (Vec::new(), Vec::new(), block);
    for nth in 0..=cuts.len() {
        let take = cuts.get(nth).map_or(rest.len(), |cut| (*cut).min(rest.len()));
        let (now, later) = rest.split_at(take);
        rest = later;
        let (mut flags, mut before, mut after) = (0, Vec::new(), Vec::new());
        if nth == 0 {
            if let Some(length) = padding {
                flags |= PADDED;
                before.push(*length);
                after = vec![0; usize::from(*length)];
            }
            if *priority {
                flags |= PRIORITY;
                before.extend([0, 0, 0, 0, 7]);
            }
        }
        if nth == cuts.len() {
            flags |= END_HEADERS;
        }
        let start = out.len() + HEAD + before.len();
        let kind = if nth == 0 { HEADERS } else { CONTINUATION };
        out.extend(frame(kind, flags, stream, &[&before, now, &after].concat()));
        places.push(start..start + now.len());
    }
    (out, places)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// An independent decoder (fluke-hpack) reads the same headers from the original and the rewritten
    /// blocks, table references and evictions included; only refused authorities differ.
    #[test]
    fn another_decoder_reads_the_same_headers_but_for_the_authority(
        requests in prop::collection::vec((fields(), framing()), 1..12),
        chunks in prop::collection::vec(1..200_usize, 1..8),
    ) {
        let (mut stream, mut blocks) = (greeting(), Vec::new());
        let mut encoder = Encoder { table: Vec::new(), limit: 4096 };
        for (nth, (fields, framing)) in requests.iter().enumerate() {
            let block = encoder.encode(fields);
            let (bytes, places) = frames(2 * u32::try_from(nth).unwrap() + 1, &block, framing);
            let base = stream.len();
            blocks.push(places.into_iter().map(|p| base + p.start..base + p.end).collect::<Vec<_>>());
            stream.extend(bytes);
            stream.extend(frame(DATA, 1, 1, b"\0\0\0\0\0"));
        }
        let (mut scanner, mut out, mut rest) = (Scanner::default(), Vec::new(), stream.as_slice());
        for size in chunks.iter().cycle() {
            let (now, later) = rest.split_at((*size).min(rest.len()));
            scanner.push(now, &mut out);
            rest = later;
            if rest.is_empty() { break }
        }
        prop_assert_eq!(out.len(), stream.len());
        prop_assert!(scanner.is_certain(), "valid blocks cause no doubt");

        let mut outside = vec![true; stream.len()];
        let (mut before, mut after) = (fluke_hpack::Decoder::new(), fluke_hpack::Decoder::new());
        for places in &blocks {
            let collect = |from: &[u8]| places.iter().flat_map(|p| from[p.clone()].to_vec()).collect::<Vec<u8>>();
            places.iter().for_each(|p| outside[p.clone()].fill(false));
            let old = before.decode(&collect(&stream)).unwrap();
            let new = after.decode(&collect(&out)).unwrap();
            prop_assert_eq!(old.len(), new.len());
            for ((old_name, old_value), (new_name, new_value)) in old.iter().zip(&new) {
                prop_assert_eq!(old_name, new_name);
                if old_value == new_value { continue }
                prop_assert_eq!(old_name, b":authority");
                prop_assert!(authority::refused(old_value) && !authority::refused(new_value));
                prop_assert_eq!(old_value.len(), new_value.len());
            }
            for (name, value) in &new {
                let usual = value.iter().all(|octet| (0x20..0x7f).contains(octet) && huffman::length(*octet) <= 13);
                prop_assert!(name != b":authority" || value.is_empty() || !usual || !authority::refused(value));
            }
        }
        for (at, outside) in outside.into_iter().enumerate() {
            prop_assert!(!outside || stream[at] == out[at]);
        }
    }

    #[test]
    fn any_octets_pass_in_full_and_never_panic(
        noise in prop::collection::vec(prop_oneof![
            (any::<u8>(), any::<u8>(), 0..4_u32, prop::collection::vec(any::<u8>(), 0..80))
                .prop_map(|(kind, flags, stream, payload)| frame(kind % 11, flags, stream, &payload)),
            prop::collection::vec(any::<u8>(), 0..40),
        ], 0..20),
        step in 1..100_usize,
    ) {
        let stream = [greeting(), noise.concat()].concat();
        let (mut scanner, mut out) = (Scanner::default(), Vec::new());
        for part in stream.chunks(step) {
            scanner.push(part, &mut out);
            prop_assert!(scanner.held.len() <= HOLD_LIMIT);
        }
        prop_assert!(out.len() <= stream.len());
        prop_assert!(stream.len() - out.len() <= HOLD_LIMIT + HEAD);
    }
}
