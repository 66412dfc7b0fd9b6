//! Which `:authority` values `h2` refuses, and what to put in their place. The replacement has as many
//! octets decoded *and* encoded as the original: the first keeps the sizes of both HPACK tables equal (so
//! that they evict the same entries), the second lets it be written over the original.

use http::uri::Authority;

use super::huffman;

/// Whether `h2` would reset the stream over this value.
pub(crate) fn refused(value: &[u8]) -> bool {
    Authority::try_from(value).is_err()
}

/// Replaces each octet that has no business in a host name by a hyphen. False, and nothing changed, when
/// that does not help (the empty value).
pub(crate) fn replace_raw(value: &mut [u8]) -> bool {
    let cleaned: Vec<u8> = value.iter().map(|octet| if is_plain(*octet) { *octet } else { b'-' }).collect();
    if refused(&cleaned) {
        return false;
    }
    value.copy_from_slice(&cleaned);
    true
}

/// The same for a Huffman-coded value of so many symbols: overwrites `code`. Not every length has an
/// acceptable symbol, so the value is made anew: from letters of 5 to 8 bits, and tildes (13 bits) where
/// those are too short. False, and nothing changed, when the symbols average more than 13 bits.
pub(crate) fn replace_huffman(symbols: usize, code: &mut [u8]) -> bool {
    let longest = code.len() * 8;
    // The padding may be 0 to 7 bits, so eight sums of code lengths fill the same octets.
    let Some(text) = (longest.saturating_sub(7)..=longest).rev().find_map(|bits| compose(symbols, bits))
    else {
        return false;
    };
    let fresh = huffman::encode(&text);
    if fresh.len() != code.len() || refused(&text) {
        return false;
    }
    code.copy_from_slice(&fresh);
    true
}

/// So many symbols whose codes are so many bits together.
fn compose(symbols: usize, bits: usize) -> Option<Vec<u8>> {
    let long = bits.saturating_sub(8 * symbols).div_ceil(LONG.1 - 8);
    let short = symbols.checked_sub(long)?;
    let mut spare = bits.checked_sub(LONG.1 * long)?.checked_sub(5 * short)?;
    let mut text = Vec::with_capacity(symbols);
    for _ in 0..short {
        let more = spare.min(SHORT.len() - 1);
        spare -= more;
        text.push(*SHORT.get(more)?);
    }
    text.resize(symbols, LONG.0);
    (spare == 0).then_some(text)
}

fn is_plain(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || matches!(octet, b'.' | b'-' | b'_' | b'~')
}

/// Symbols of 5, 6, 7 and 8 bits.
const SHORT: [u8; 4] = *b"abkX";
/// The longest code an acceptable symbol has, and its bits.
const LONG: (u8, usize) = (b'~', 13);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn socket_paths_are_refused_and_host_names_are_not() {
        for bad in
            [&b"tmp%2Fa%2Fwl.sock"[..], b"/run/a.sock", b"my dir", b"a/b", b"", b"caf\xc3\xa9", b"\xff"]
        {
            assert!(refused(bad), "{}", bad.escape_ascii());
        }
        for good in [&b"localhost"[..], b"wl.sock", b"[::1]:80", b"a-b_c.d:1234"] {
            assert!(!refused(good), "{}", good.escape_ascii());
        }
    }

    #[test]
    fn a_raw_value_keeps_what_it_can() {
        let mut value = *b"tmp%2Fa%2Fwl.sock";
        assert!(replace_raw(&mut value));
        assert_eq!(&value, b"tmp-2Fa-2Fwl.sock");
        assert!(!replace_raw(&mut []));
    }

    #[test]
    fn the_chosen_symbols_have_the_lengths_counted_on() {
        assert_eq!(SHORT.map(huffman::length), [5, 6, 7, 8]);
        assert_eq!(huffman::length(LONG.0), LONG.1);
    }

    fn huffman_value(symbols: impl Strategy<Value = u8>) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(symbols, 1..120)
    }

    proptest! {
        #[test]
        fn every_printable_value_finds_a_replacement_of_both_lengths(text in huffman_value(0x20..0x7f_u8)) {
            let before = huffman::encode(&text);
            let mut after = before.clone();
            let average_fits = text.iter().map(|s| huffman::length(*s)).sum::<usize>() <= LONG.1 * text.len();
            let replaced = replace_huffman(text.len(), &mut after);
            prop_assert!(replaced || !average_fits);
            prop_assert_eq!(after.len(), before.len());
            if replaced {
                let mut back = Vec::new();
                prop_assert_eq!(huffman::decode(&after, &mut back), Some(()));
                prop_assert_eq!(back.len(), text.len());
                prop_assert!(!refused(&back));
            } else {
                prop_assert_eq!(after, before);
            }
        }

        #[test]
        fn a_raw_replacement_is_accepted(mut value in prop::collection::vec(any::<u8>(), 1..200)) {
            prop_assert!(replace_raw(&mut value));
            prop_assert!(!refused(&value));
        }
    }
}
