//! The two things about DER that no parser here tells: the bytes an algorithm identifier stands in, and where
//! a signed part begins and ends.

/// One element: its tag, itself with header, its content, and what follows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) whole: &'a [u8],
    pub(super) content: &'a [u8],
    pub(super) rest: &'a [u8],
}

/// Takes the first element off; `None` where there is none, or its length is not DER.
pub(super) fn element(input: &[u8]) -> Option<Element<'_>> {
    let (&[tag, first], after) = input.split_first_chunk::<2>()?;
    let (length, after) = match first {
        0..=0x7f => (usize::from(first), after),
        0x81..=0x84 => {
            let (bytes, after) = after.split_at_checked(usize::from(first & 0x7f))?;
            let length = bytes.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
            (length, after)
        }
        _ => return None,
    };
    let (content, rest) = after.split_at_checked(length)?;
    let whole = input.get(..input.len() - rest.len())?;
    Some(Element { tag, whole, content, rest })
}

/// A signed object of X.509 (`SEQUENCE { signed, algorithm, BIT STRING }`): what was signed, the content of the
/// algorithm identifier, the signature.
pub(super) fn signed(der: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let outer = sequence(der)?;
    let body = element(outer.content)?;
    let algorithm = sequence(body.rest)?;
    let signature = bits(algorithm.rest)?;
    (outer.rest.is_empty()).then_some((body.whole, algorithm.content, signature))
}

/// A public key (`SEQUENCE { algorithm, BIT STRING }`): content of the algorithm identifier, the key.
pub(super) fn public_key(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let algorithm = sequence(sequence(der)?.content)?;
    Some((algorithm.content, bits(algorithm.rest)?))
}

/// The context tags (`[0]`, `[1]`, …) at the top of a SEQUENCE.
pub(super) fn context_tags(der: &[u8]) -> Option<Vec<u8>> {
    let mut rest = sequence(der)?.content;
    let mut tags = Vec::new();
    while !rest.is_empty() {
        let next = element(rest)?;
        tags.push(next.tag & 0x1f);
        rest = next.rest;
    }
    Some(tags)
}

fn sequence(input: &[u8]) -> Option<Element<'_>> {
    element(input).filter(|found| found.tag == 0x30)
}

/// A BIT STRING of whole bytes.
fn bits(input: &[u8]) -> Option<&[u8]> {
    let found = element(input).filter(|found| found.tag == 0x03)?;
    match found.content.split_first() {
        Some((0, bytes)) => Some(bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_of_every_form_are_read() {
        for length in [0_usize, 1, 0x7f, 0x80, 0xff, 0x100, 0x1_0000] {
            let header: Vec<u8> = match length {
                0..=0x7f => vec![0x30, u8::try_from(length).expect("small")],
                _ => [&[0x30, 0x84][..], &u32::try_from(length).expect("small").to_be_bytes()].concat(),
            };
            let input = [&header[..], &vec![7; length], b"rest"].concat();
            let found = element(&input).expect("an element");
            assert_eq!((found.content.len(), found.rest), (length, &b"rest"[..]));
            assert_eq!(found.whole.len() + 4, input.len());
        }
        for wrong in [&[][..], &[0x30], &[0x30, 0x80], &[0x30, 0x85, 0, 0, 0, 0, 0], &[0x30, 2, 0]] {
            assert!(element(wrong).is_none(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            element(&bytes);
            signed(&bytes);
            public_key(&bytes);
            context_tags(&bytes);
        }
    }
}
