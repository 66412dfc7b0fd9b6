//! Follows what a client writes on an HTTP/2 connection (RFC 9113) and passes every octet on, in order,
//! with the `:authority` values that `h2` would refuse replaced in place.
//!
//! Contract: what comes out is as long as what went in; only octets inside a header block differ, and only
//! those of `:authority` values. A header block is held back until it is complete, because a value may be
//! split anywhere; at most [`HOLD_LIMIT`] octets are held. At the first doubt (a block longer than that,
//! HPACK that does not parse, frames out of order) everything passes unchanged from there on, and `h2`,
//! which refuses the same things, ends the connection. Frames are counted either way.

use std::ops::Range;

use super::hpack::Table;

/// Octets held back at most: twice the header list that is advertised.
pub const HOLD_LIMIT: usize = 16 * 1024;

/// What a client has sent so far, in frames.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Frames begun.
    pub frames: u64,
    /// The preface was right and the first frame was SETTINGS.
    pub greeted: bool,
    /// Streams opened: HEADERS with a stream number above all before.
    pub streams: u64,
    /// Frames that are neither the first HEADERS of a stream nor DATA with content: RST_STREAM, PING,
    /// SETTINGS, WINDOW_UPDATE, PRIORITY, CONTINUATION, trailers, empty DATA and unknown ones.
    pub control: u64,
    /// Octets of header blocks, as sent.
    pub header_octets: u64,
    /// `:authority` values replaced.
    pub rewritten: u64,
}

/// One direction of one connection.
#[derive(Debug)]
pub struct Scanner {
    stage: Stage,
    head: [u8; HEAD],
    /// Frames of the unfinished header block, heads included.
    held: Vec<u8>,
    /// Where the fragments of that block are within `held`.
    fragments: Vec<Range<usize>>,
    block_stream: u32,
    /// `None` once in doubt.
    table: Option<Table>,
    highest_stream: u32,
    tally: Tally,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            stage: Stage::Preface { seen: 0 },
            head: [0; HEAD],
            held: Vec::new(),
            fragments: Vec::new(),
            block_stream: 0,
            table: Some(Table::default()),
            highest_stream: 0,
            tally: Tally::default(),
        }
    }
}

impl Scanner {
    /// Takes the next octets of the connection and appends to `out` all that may go on.
    pub fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            let taken = match self.stage {
                Stage::Preface { seen } => self.preface(seen, input, out),
                Stage::Head { have } => self.head(have, input, out),
                Stage::Pass { left } => {
                    let (now, left) = split(left, input);
                    out.extend_from_slice(now);
                    self.stage = if left == 0 { Stage::Head { have: 0 } } else { Stage::Pass { left } };
                    now.len()
                }
                Stage::Hold { left } => {
                    let (now, left) = split(left, input);
                    self.held.extend_from_slice(now);
                    match left {
                        0 => self.fragment_complete(out),
                        _ => self.stage = Stage::Hold { left },
                    }
                    now.len()
                }
                Stage::Foreign => {
                    out.extend_from_slice(input);
                    input.len()
                }
            };
            input = input.get(taken..).unwrap_or_default();
        }
    }

    /// What has been seen so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Whether header blocks are still understood; once in doubt, nothing is replaced any more.
    pub fn is_certain(&self) -> bool {
        self.table.is_some()
    }

    fn preface(&mut self, seen: usize, input: &[u8], out: &mut Vec<u8>) -> usize {
        let expected = PREFACE.get(seen..).unwrap_or_default();
        let (now, left) = split(expected.len(), input);
        if !expected.starts_with(now) {
            self.stage = Stage::Foreign;
            return 0;
        }
        out.extend_from_slice(now);
        self.stage = match left {
            0 => Stage::Head { have: 0 },
            _ => Stage::Preface { seen: seen + now.len() },
        };
        now.len()
    }

    fn head(&mut self, have: usize, input: &[u8], out: &mut Vec<u8>) -> usize {
        let rest = self.head.get_mut(have..).unwrap_or_default();
        let taken = rest.len().min(input.len());
        for (to, from) in rest.iter_mut().zip(input) {
            *to = *from;
        }
        match have + taken {
            HEAD => self.frame(out),
            have => self.stage = Stage::Head { have },
        }
        taken
    }

    fn frame(&mut self, out: &mut Vec<u8>) {
        let head = Head::of(self.head);
        self.count(&head);
        let continues = !self.held.is_empty();
        let fits = self.held.len() + HEAD + head.length <= HOLD_LIMIT;
        let in_order = match head.kind {
            HEADERS => !continues && head.stream != 0,
            CONTINUATION => continues && head.stream == self.block_stream,
            _ => !continues,
        };
        if !in_order || head.kind == PUSH_PROMISE || (head.carries_block() && !fits) {
            self.doubt(out);
        }
        if self.table.is_none() || !head.carries_block() {
            out.extend_from_slice(&self.head);
            self.stage = Stage::Pass { left: head.length };
        } else {
            self.block_stream = head.stream;
            self.held.extend_from_slice(&self.head);
            self.stage = Stage::Hold { left: head.length };
        }
        if head.length == 0 {
            match self.stage {
                Stage::Hold { .. } => self.fragment_complete(out),
                _ => self.stage = Stage::Head { have: 0 },
            }
        }
    }

    fn count(&mut self, head: &Head) {
        if self.tally.frames == 0 {
            self.tally.greeted = head.kind == SETTINGS;
        }
        self.tally.frames += 1;
        if head.carries_block() {
            self.tally.header_octets += head.length as u64;
        }
        match head.kind {
            HEADERS if head.stream > self.highest_stream => {
                self.highest_stream = head.stream;
                self.tally.streams += 1;
            }
            DATA if head.length > 0 => {}
            _ => self.tally.control += 1,
        }
    }

    /// One HEADERS or CONTINUATION frame is in `held` whole; its head is still in `self.head`.
    fn fragment_complete(&mut self, out: &mut Vec<u8>) {
        self.stage = Stage::Head { have: 0 };
        let head = Head::of(self.head);
        let end = self.held.len();
        let start = end - head.length.min(end);
        let payload = self.held.get(start..end).unwrap_or_default();
        let Some(fragment) = head.fragment(payload) else { return self.doubt(out) };
        self.fragments.push(start + fragment.start..start + fragment.end);
        if head.flags & END_HEADERS != 0 {
            self.block_complete(out);
        }
    }

    fn block_complete(&mut self, out: &mut Vec<u8>) {
        let mut block: Vec<u8> = self
            .fragments
            .iter()
            .filter_map(|place| self.held.get(place.clone()))
            .flatten()
            .copied()
            .collect();
        match self.table.as_mut().map(|table| table.rewrite(&mut block)) {
            Some(Ok(0)) => self.release(out),
            Some(Ok(replaced)) => {
                let mut rewritten = block.into_iter();
                for place in &self.fragments {
                    for octet in self.held.get_mut(place.clone()).unwrap_or_default() {
                        *octet = rewritten.next().unwrap_or(*octet);
                    }
                }
                self.tally.rewritten += replaced as u64;
                self.release(out);
            }
            Some(Err(_)) | None => self.doubt(out),
        }
    }

    fn doubt(&mut self, out: &mut Vec<u8>) {
        self.table = None;
        self.release(out);
    }

    /// Lets what was held go, and the memory with it: a connection that only listens holds nothing.
    fn release(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
        self.held = Vec::new();
        self.fragments = Vec::new();
    }
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Preface {
        seen: usize,
    },
    /// Within the nine octets before a frame.
    Head {
        have: usize,
    },
    /// Within a frame that goes on as it comes.
    Pass {
        left: usize,
    },
    /// Within a frame of a header block.
    Hold {
        left: usize,
    },
    /// Not HTTP/2.
    Foreign,
}

struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Head {
    fn of([a, b, c, kind, flags, stream @ ..]: [u8; HEAD]) -> Self {
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        Self { length, kind, flags, stream: u32::from_be_bytes(stream) & 0x7fff_ffff }
    }

    fn carries_block(&self) -> bool {
        matches!(self.kind, HEADERS | CONTINUATION)
    }

    /// Where the header block fragment is within the payload; `None` if padding leaves no room for it.
    fn fragment(&self, payload: &[u8]) -> Option<Range<usize>> {
        let (mut start, mut end) = (0, payload.len());
        if self.kind == HEADERS && self.flags & PADDED != 0 {
            end = end.checked_sub(usize::from(*payload.first()?))?;
            start += 1;
        }
        if self.kind == HEADERS && self.flags & PRIORITY != 0 {
            start += 5;
        }
        (start <= end).then_some(start..end)
    }
}

/// The first `left` octets of `input`, and how many are left after them.
fn split(left: usize, input: &[u8]) -> (&[u8], usize) {
    let now = input.get(..left).unwrap_or(input);
    (now, left - now.len())
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
