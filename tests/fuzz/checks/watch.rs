//! The body of a watch: whatever a server sends and however it is cut, reading it ends, and in the same way.

use mayfly_attestors::kubernetes::events_in;

pub(crate) fn check(data: &[u8]) {
    let whole = events_in([data]);
    assert_eq!(events_in(data.chunks(1)), whole);
    assert_eq!(events_in(data.chunks(7)), whole);
    let (first, second) = data.split_at(data.len() / 2);
    assert_eq!(events_in([first, second]), whole);
}
