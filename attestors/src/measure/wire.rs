//! What the hash helper is asked and answers, as fixed bytes over a SEQPACKET socket. Both ends are one binary, so
//! there are no versions; yet the parent decodes with care, because a helper that was broken by what it read must
//! not be able to break its parent.

use super::file::FileId;
use crate::launch::Code;

/// What to do with the descriptor that travels beside it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Request {
    /// Hash that file, of at most so many bytes.
    Hash { max_bytes: u64 },
    /// Look at the code of the process with that `/proc` directory: its address space may be locked for as long as
    /// one of its threads waits for a file system.
    Code,
}

/// One answer.
#[expect(clippy::large_enum_variant, reason = "one at a time, never stored")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reply {
    Hashed {
        before: FileId,
        after: FileId,
        sha256: [u8; 32],
    },
    /// The file system, by magic number, is not on the list.
    Shut(u64),
    TooLarge(u64),
    NotRegular,
    /// errno
    Unreadable(i32),
    /// About a process.
    Code(Code),
}

impl Request {
    pub(super) fn encode(self) -> [u8; 9] {
        let (tag, number) = match self {
            Self::Hash { max_bytes } => (0, max_bytes),
            Self::Code => (1, 0),
        };
        let mut out = [tag; 9];
        if let Some(rest) = out.last_chunk_mut() {
            *rest = number.to_ne_bytes();
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        let request = match (rest.take()?, rest.number()?) {
            ([0], max_bytes) => Self::Hash { max_bytes },
            ([1], 0) => Self::Code,
            _ => return None,
        };
        rest.0.is_empty().then_some(request)
    }
}

impl Reply {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MAX_REPLY);
        match self {
            Self::Hashed { before, after, sha256 } => {
                out.push(0);
                put_file(&mut out, before);
                put_file(&mut out, after);
                out.extend(sha256);
            }
            Self::Shut(magic) => put_number(&mut out, 1, *magic),
            Self::TooLarge(size) => put_number(&mut out, 2, *size),
            Self::NotRegular => put_number(&mut out, 3, 0),
            Self::Unreadable(errno) => put_number(&mut out, 4, u64::from(errno.cast_unsigned())),
            Self::Code(code) => put_number(&mut out, 5, code.number()),
        }
        out
    }

    /// `None` for anything this crate does not write.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        let reply = match rest.take::<1>()? {
            [0] => Self::Hashed { before: rest.file()?, after: rest.file()?, sha256: rest.take()? },
            [1] => Self::Shut(rest.number()?),
            [2] => Self::TooLarge(rest.number()?),
            [3] => (rest.number()? == 0).then_some(Self::NotRegular)?,
            [4] => Self::Unreadable(u32::try_from(rest.number()?).ok()?.cast_signed()),
            [5] => Self::Code(Code::of_number(rest.number()?)?),
            _ => return None,
        };
        rest.0.is_empty().then_some(reply)
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    fn file(&mut self) -> Option<FileId> {
        Some(FileId {
            mount: self.number()?,
            device: (self.take().map(u32::from_ne_bytes)?, self.take().map(u32::from_ne_bytes)?),
            inode: self.number()?,
            size: self.number()?,
            modified: self.take().map(i128::from_ne_bytes)?,
            changed: self.take().map(i128::from_ne_bytes)?,
            born: match (self.take()?, self.take().map(i128::from_ne_bytes)?) {
                ([1], born) => Some(born),
                ([0], 0) => None,
                _ => return None,
            },
        })
    }
}

fn put_number(out: &mut Vec<u8>, tag: u8, number: u64) {
    out.push(tag);
    out.extend(number.to_ne_bytes());
}

fn put_file(out: &mut Vec<u8>, id: &FileId) {
    out.extend(id.mount.to_ne_bytes());
    out.extend(id.device.0.to_ne_bytes());
    out.extend(id.device.1.to_ne_bytes());
    out.extend(id.inode.to_ne_bytes());
    out.extend(id.size.to_ne_bytes());
    out.extend(id.modified.to_ne_bytes());
    out.extend(id.changed.to_ne_bytes());
    out.push(u8::from(id.born.is_some()));
    out.extend(id.born.unwrap_or_default().to_ne_bytes());
}

/// Tag, two files of 81 bytes, hash.
pub(super) const MAX_REPLY: usize = 1 + 2 * 81 + 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id() -> impl Strategy<Value = FileId> {
        (any::<(u64, u32, u32, u64, u64)>(), any::<i128>(), any::<i128>(), any::<Option<i128>>()).prop_map(
            |((mount, major, minor, inode, size), modified, changed, born)| FileId {
                mount,
                device: (major, minor),
                inode,
                size,
                modified,
                changed,
                born,
            },
        )
    }

    proptest! {
        #[test]
        fn an_answer_survives_the_wire(before in id(), after in id(), sha256 in any::<[u8; 32]>(), n in any::<u64>(), e in any::<i32>()) {
            for reply in [Reply::Hashed { before, after, sha256 }, Reply::Shut(n), Reply::TooLarge(n), Reply::NotRegular, Reply::Unreadable(e)] {
                let bytes = reply.encode();
                prop_assert!(bytes.len() <= MAX_REPLY);
                prop_assert_eq!(Reply::decode(&bytes), Some(reply));
                prop_assert_eq!(Reply::decode(&bytes[..bytes.len() - 1]), None);
            }
            for request in [Request::Hash { max_bytes: n }, Request::Code] {
                prop_assert_eq!(Request::decode(&request.encode()), Some(request));
                prop_assert_eq!(Request::decode(&request.encode()[..8]), None);
            }
        }

        #[test]
        fn a_verdict_survives_the_wire(number in 0_u64..5) {
            let reply = Reply::Code(Code::of_number(number).unwrap());
            prop_assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..220)) {
            Reply::decode(&bytes);
            Request::decode(&bytes);
        }
    }
}
