//! The static Huffman code of HPACK (RFC 7541 Appendix B), both ways. The code is canonical (codes of one
//! length are consecutive, in the order of their symbols), so the table of lengths says everything.

use std::sync::LazyLock;

/// Decodes a whole string into `out`, which the caller has emptied. `None` unless the bytes are exactly
/// symbols followed by at most seven one bits.
pub(crate) fn decode(bytes: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (mut code, mut length) = (0_u32, 0_usize);
    for byte in bytes {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(byte >> shift & 1);
            length += 1;
            // 30 bits without a symbol is the EOS code, which must not appear.
            let row = CODE.rows.get(length)?;
            if let Some(symbol) = code.checked_sub(row.first).and_then(|nth| row.symbols.get(nth as usize)) {
                out.push(*symbol);
                (code, length) = (0, 0);
            }
        }
    }
    (length < 8 && code == (1 << length) - 1).then_some(())
}

/// Encodes a string, padded with ones to a whole byte.
pub(crate) fn encode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let (mut bits, mut have) = (0_u64, 0_u32);
    for symbol in text {
        let Some((code, length)) = CODE.of.get(usize::from(*symbol)) else { continue };
        bits = bits << length | u64::from(*code);
        have += length;
        while have >= 8 {
            have -= 8;
            out.push(low_byte(bits >> have));
        }
    }
    if have > 0 {
        out.push(low_byte(bits << (8 - have) | ((1 << (8 - have)) - 1)));
    }
    out
}

/// Bits of one symbol's code.
#[cfg(test)]
pub(crate) fn length(symbol: u8) -> usize {
    LENGTHS.get(usize::from(symbol)).map_or(0, |length| usize::from(*length))
}

struct Code {
    rows: Vec<Row>,
    of: Vec<(u32, u32)>,
}

/// The codes of one length: numbered from `first`, in the order of `symbols`.
#[derive(Clone, Default)]
struct Row {
    first: u32,
    symbols: Vec<u8>,
}

static CODE: LazyLock<Code> = LazyLock::new(|| {
    let mut rows = vec![Row { first: u32::MAX, symbols: Vec::new() }];
    let mut of = vec![(0, 0); LENGTHS.len()];
    let mut next = 0_u32;
    for length in 1..=30_u32 {
        next <<= 1;
        let mut row = Row { first: next, symbols: Vec::new() };
        for (symbol, (entry, own)) in (0..=u8::MAX).zip(of.iter_mut().zip(LENGTHS)) {
            if u32::from(own) == length {
                *entry = (next, length);
                row.symbols.push(symbol);
                next += 1;
            }
        }
        rows.push(row);
    }
    Code { rows, of }
});

fn low_byte(bits: u64) -> u8 {
    bits.to_le_bytes()[0]
}

#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn codes_are_those_of_the_rfc() {
        // RFC 7541 C.4.1, C.4.2 and C.6.1 (which has a long symbol), and the EOS code refused.
        let examples: [(&[u8], &[u8]); 3] = [
            (b"www.example.com", &[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff]),
            (b"no-cache", &[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]),
            (b"\n", &[0xff, 0xff, 0xff, 0xf3]),
        ];
        for (text, code) in examples {
            assert_eq!(encode(text), code);
            let mut back = Vec::new();
            assert_eq!(decode(code, &mut back), Some(()));
            assert_eq!(back, text);
        }
        for bad in [&[0xff, 0xff, 0xff, 0xff][..], &[0x00], &[0xff]] {
            assert_eq!(decode(bad, &mut Vec::new()), None, "{bad:x?}");
        }
    }

    proptest! {
        #[test]
        fn every_string_comes_back_and_has_the_sum_of_its_lengths(text: Vec<u8>) {
            let code = encode(&text);
            let mut back = Vec::new();
            prop_assert_eq!(decode(&code, &mut back), Some(()));
            prop_assert_eq!(&back, &text);
            prop_assert_eq!(code.len(), text.iter().map(|s| length(*s)).sum::<usize>().div_ceil(8));
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes, &mut Vec::new());
        }
    }
}
