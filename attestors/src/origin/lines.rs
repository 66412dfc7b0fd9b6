//! The lines of `/proc/PID/cgroup`, held to what a kernel writes: one that is odd refuses the whole.

use super::Refusal;

/// One line: a hierarchy and the path in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    pub(super) controllers: &'a [u8],
    pub(super) path: &'a [u8],
}

/// At least one line, each hierarchy once. A path may hold colons, never a newline: only the first two colons
/// separate.
pub(super) fn lines(raw: &[u8]) -> Result<Vec<Line<'_>>, Refusal> {
    if raw.len() > MOST_BYTES {
        return Err(Refusal::TooLarge);
    }
    let mut seen = Vec::new();
    let mut lines = Vec::new();
    for text in raw.split(|byte| *byte == b'\n').filter(|text| !text.is_empty()) {
        let (number, line) = parse(text).ok_or(Refusal::Malformed)?;
        if seen.contains(&number) {
            return Err(Refusal::Malformed);
        }
        if line.path.ends_with(DELETED) {
            return Err(Refusal::Deleted);
        }
        seen.push(number);
        lines.push(line);
    }
    if lines.is_empty() { Err(Refusal::Malformed) } else { Ok(lines) }
}

fn parse(text: &[u8]) -> Option<(u32, Line<'_>)> {
    let mut parts = text.splitn(3, |byte| *byte == b':');
    let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let plain = !number.is_empty()
        && number.iter().all(u8::is_ascii_digit)
        && (number == b"0" || number.first() != Some(&b'0'));
    let number: u32 = std::str::from_utf8(number).ok().filter(|_| plain)?.parse().ok()?;
    let v2 = number == 0;
    (v2 == controllers.is_empty() && path.starts_with(b"/")).then_some((number, Line { controllers, path }))
}

/// More than any kernel writes for the few hierarchies there can be.
pub(crate) const MOST_BYTES: usize = 64 * 1024;

/// What the kernel puts after the path of a cgroup that is gone. A live one may be *named* so: it is refused as well.
const DELETED: &[u8] = b" (deleted)";
