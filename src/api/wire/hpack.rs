//! Just enough HPACK (RFC 7541) to find `:authority` values in a header block: the shape of every field,
//! and of each dynamic table entry its size and whether it is named `:authority`. No header is kept.
//!
//! Contract: either the whole block was understood (and the table moved on), or `Doubt` and the caller uses
//! neither the block nor this table again. Memory: at most 128 table entries and one decoded string.

use std::collections::VecDeque;

use super::{authority, huffman};

/// Something `h2` refuses or that this reader does not understand.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Doubt;

/// What the dynamic table of the receiving decoder looks like.
#[derive(Debug)]
pub(crate) struct Table {
    /// Newest first.
    entries: VecDeque<Entry>,
    size: usize,
    limit: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, limit: TABLE_LIMIT }
    }
}

impl Table {
    /// Reads one complete header block and replaces, in place, every `:authority` value that `h2` would
    /// refuse. Answers how many were replaced.
    pub(crate) fn rewrite(&mut self, block: &mut [u8]) -> Result<usize, Doubt> {
        let (mut at, mut replaced, mut resizable) = (0, 0, true);
        while let Some(first) = block.get(at).copied() {
            let mut cursor = Cursor { block, at };
            match first {
                0x80.. => self.check_index(cursor.integer(7)?)?,
                0x20..0x40 if resizable => self.resize(cursor.integer(5)?)?,
                0x20..0x40 => return Err(Doubt),
                _ => replaced += usize::from(self.literal(&mut cursor, first >= 0x40)?),
            }
            resizable &= (0x20..0x40).contains(&first);
            at = cursor.at;
        }
        Ok(replaced)
    }

    fn literal(&mut self, cursor: &mut Cursor<'_>, indexed: bool) -> Result<bool, Doubt> {
        let name = match cursor.integer(if indexed { 6 } else { 4 })? {
            0 => {
                let name = cursor.string()?;
                Name { length: name.text.len(), is_authority: name.text == b":authority" }
            }
            index => self.name(index)?,
        };
        let value = cursor.string()?;
        if indexed {
            self.insert(Entry { name, size: name.length + value.text.len() + ENTRY_OVERHEAD });
        }
        if !name.is_authority || !authority::refused(&value.text) {
            return Ok(false);
        }
        let encoded = cursor.block.get_mut(value.place).ok_or(Doubt)?;
        Ok(match value.huffman {
            true => authority::replace_huffman(value.text.len(), encoded),
            false => authority::replace_raw(encoded),
        })
    }

    fn name(&self, index: usize) -> Result<Name, Doubt> {
        match (index.checked_sub(1).and_then(|at| STATIC_NAME_LENGTHS.get(at)), index) {
            (Some(length), _) => Ok(Name { length: usize::from(*length), is_authority: index == 1 }),
            (None, 0) => Err(Doubt),
            (None, _) => self.dynamic(index).map(|entry| entry.name),
        }
    }

    fn dynamic(&self, index: usize) -> Result<Entry, Doubt> {
        let at = index.checked_sub(STATIC_NAME_LENGTHS.len() + 1).ok_or(Doubt)?;
        self.entries.get(at).copied().ok_or(Doubt)
    }

    fn check_index(&self, index: usize) -> Result<(), Doubt> {
        self.name(index).map(drop)
    }

    fn resize(&mut self, limit: usize) -> Result<(), Doubt> {
        if limit > TABLE_LIMIT {
            return Err(Doubt);
        }
        self.limit = limit;
        self.evict(0);
        Ok(())
    }

    fn insert(&mut self, entry: Entry) {
        self.evict(entry.size);
        // An entry larger than the whole table empties it and is not kept (RFC 7541 4.4).
        if entry.size <= self.limit {
            self.size += entry.size;
            self.entries.push_front(entry);
        }
    }

    fn evict(&mut self, room: usize) {
        while self.size + room > self.limit {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.size -= oldest.size;
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Name,
    size: usize,
}

#[derive(Clone, Copy, Debug)]
struct Name {
    length: usize,
    is_authority: bool,
}

struct Literal {
    text: Vec<u8>,
    place: std::ops::Range<usize>,
    huffman: bool,
}

struct Cursor<'a> {
    block: &'a mut [u8],
    at: usize,
}

impl Cursor<'_> {
    fn octet(&mut self) -> Result<u8, Doubt> {
        let octet = self.block.get(self.at).copied().ok_or(Doubt)?;
        self.at += 1;
        Ok(octet)
    }

    /// An integer with an N-bit prefix (RFC 7541 5.1), of at most five octets as in `h2`.
    fn integer(&mut self, prefix: u32) -> Result<usize, Doubt> {
        let mask = (1_usize << prefix) - 1;
        let mut value = usize::from(self.octet()?) & mask;
        if value < mask {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21] {
            let octet = self.octet()?;
            value += usize::from(octet & 0x7f) << shift;
            if octet & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Doubt)
    }

    fn string(&mut self) -> Result<Literal, Doubt> {
        let huffman = self.block.get(self.at).ok_or(Doubt)? & 0x80 != 0;
        let length = self.integer(7)?;
        let place = self.at..self.at.checked_add(length).ok_or(Doubt)?;
        let encoded = self.block.get(place.clone()).ok_or(Doubt)?;
        let mut text = Vec::new();
        match huffman {
            true => huffman::decode(encoded, &mut text).ok_or(Doubt)?,
            false => text.extend_from_slice(encoded),
        }
        self.at = place.end;
        Ok(Literal { text, place, huffman })
    }
}

/// What we advertise by silence, and therefore the most a client may use (RFC 9113 6.5.2).
const TABLE_LIMIT: usize = 4096;
const ENTRY_OVERHEAD: usize = 32;

/// Lengths of the names in the static table (RFC 7541 Appendix A), entry 1 first.
const STATIC_NAME_LENGTHS: [u8; 61] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14, 16, 13,
    12, 6, 4, 4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10, 25, 17, 10, 4, 3,
    16,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn literal(first: u8, strings: &[&[u8]]) -> Vec<u8> {
        let mut out = vec![first];
        for string in strings {
            out.push(u8::try_from(string.len()).unwrap());
            out.extend_from_slice(string);
        }
        out
    }

    #[test]
    fn every_literal_form_is_rewritten_and_nothing_else_is() {
        let path = b"tmp%2Fa".as_slice();
        for (first, strings) in [
            (0x41, vec![path]),
            (0x01, vec![path]),
            (0x11, vec![path]),
            (0x40, vec![b":authority", path]),
            (0x00, vec![b":authority", path]),
            (0x10, vec![b":authority", path]),
        ] {
            let mut block = literal(first, &strings);
            let before = block.clone();
            assert_eq!(Table::default().rewrite(&mut block), Ok(1), "{first:#x}");
            assert_eq!(block.len(), before.len());
            assert!(block.ends_with(b"tmp-2Fa"));
        }
        for (first, strings) in [
            (0x41, vec![b"localhost".as_slice()]),
            (0x44, vec![path]),
            (0x40, vec![b":authoritx", path]),
            (0x41, vec![b""]),
        ] {
            let mut block = literal(first, &strings);
            let before = block.clone();
            assert_eq!(Table::default().rewrite(&mut block), Ok(0), "{first:#x}");
            assert_eq!(block, before);
        }
    }

    #[test]
    fn a_name_taken_from_the_dynamic_table_is_recognised_until_it_is_evicted() {
        let mut table = Table::default();
        let mut first = literal(0x40, &[b":authority", b"fine"]);
        assert_eq!(table.rewrite(&mut first), Ok(0));
        let mut second = literal(0x40 | 62, &[b"a/b"]);
        // 62 is the largest index that fits the 6-bit prefix.
        assert_eq!(table.rewrite(&mut second), Ok(1));
        assert!(second.ends_with(b"a-b"));
        let mut shrunk = vec![0x20];
        shrunk.extend(literal(0x40 | 62, &[b"a/b"]));
        assert_eq!(table.rewrite(&mut shrunk), Err(Doubt));
    }

    #[test]
    fn the_table_never_outgrows_its_limit_and_forgets_the_oldest_first() {
        let mut table = Table::default();
        for _ in 0..200 {
            // 32 + 1 + 1 octets each: 120 fit.
            assert_eq!(table.rewrite(&mut literal(0x40, &[b"x", b"y"])), Ok(0));
            assert!(table.size <= TABLE_LIMIT);
        }
        assert_eq!((table.entries.len(), table.size), (120, 120 * 34));
        assert_eq!(table.rewrite(&mut [0xff, 61 + 120 - 127]), Ok(0));
        assert_eq!(table.rewrite(&mut [0xff, 61 + 121 - 127]), Err(Doubt));
        let huge = [vec![0x40, 0x01, b'x', 0x7f, 0x81, 0x1f], vec![b'v'; 4096]].concat();
        assert_eq!(Table::default().rewrite(&mut huge.clone()), Ok(0));
        let mut table = Table::default();
        assert_eq!(table.rewrite(&mut literal(0x40, &[b"x", b"y"])), Ok(0));
        assert_eq!(table.rewrite(&mut huge.clone()), Ok(0));
        assert!(table.entries.is_empty(), "an entry that does not fit empties the table");
    }

    #[test]
    fn nonsense_is_doubt() {
        for bad in [
            &[0x80][..],                           // index 0
            &[0xbe],                               // entry 62 of an empty table
            &[0x3f, 0xe2, 0x1f],                   // resize above 4096
            &[0x82, 0x20],                         // resize after a field
            &[0x41],                               // no value
            &[0x41, 0x05, b'a'],                   // value cut short
            &[0x41, 0x81, 0x00],                   // Huffman padding of zeros
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], // endless integer
            &[0x40, 0x0a],                         // name cut short
        ] {
            assert_eq!(Table::default().rewrite(&mut bad.to_vec()), Err(Doubt), "{bad:x?}");
        }
    }
}
