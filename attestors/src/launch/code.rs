//! Whose code is in a process: the executable mappings that the kernel shows, compared with those of a process that
//! runs the same program. Pure over the text of `smaps`.
//!
//! Only numbers, permissions and the kernel's own names are looked at. A path in that text is chosen by strangers,
//! but its line always begins with what the kernel says.

use std::collections::BTreeSet;

/// What a look at a process's code found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Code {
    /// Nothing but our own program and libraries, as they are on the disk.
    Ours,
    /// A file is mapped that our program does not map: `LD_PRELOAD`, `LD_LIBRARY_PATH`, another version.
    Foreign,
    /// Code without a file, or code that can be written.
    Loose,
    /// Code of ours that was changed after it was loaded: a breakpoint, a patch.
    Patched,
    /// Too much, or not to be read as expected.
    Unreadable,
}

/// The executable mappings of one process.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct CodeMap {
    files: BTreeSet<(Vec<u8>, u64)>,
    loose: bool,
    patched: bool,
}

impl CodeMap {
    /// `None` for text that is not `smaps`, or is cut off.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let mut map = Self::default();
        // Of the mapping that the following lines are about.
        let mut is_our_file = false;
        let mut complete = false;
        for line in text.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
            if let Some(header) = Header::parse(line) {
                is_our_file = map.take(&header);
                complete = false;
            } else if let Some(size) = size_of(line, b"Anonymous:").or_else(|| size_of(line, b"Swap:")) {
                map.patched |= is_our_file && size? != 0;
            } else {
                complete |= line.starts_with(b"VmFlags:");
            }
        }
        (complete && text.ends_with(b"\n")).then_some(map)
    }

    /// The verdict on `self`, when `ours` is known to be good.
    pub(crate) fn judge(&self, ours: &Self) -> Code {
        if !self.files.is_subset(&ours.files) || self.files.is_empty() {
            Code::Foreign
        } else if self.loose {
            Code::Loose
        } else if self.patched {
            Code::Patched
        } else {
            Code::Ours
        }
    }

    /// True when the mapping is executable and of a file.
    fn take(&mut self, header: &Header<'_>) -> bool {
        if !header.executable {
            return false;
        }
        self.loose |= header.writable;
        let is_file = header.inode != 0;
        if is_file {
            self.files.insert((header.device.to_vec(), header.inode));
        } else {
            self.loose |= !KERNELS_OWN.contains(&header.name);
        }
        is_file
    }
}

impl Code {
    pub(crate) fn number(self) -> u64 {
        match self {
            Self::Ours => 0,
            Self::Foreign => 1,
            Self::Loose => 2,
            Self::Patched => 3,
            Self::Unreadable => 4,
        }
    }

    pub(crate) fn of_number(number: u64) -> Option<Self> {
        let all = [Self::Ours, Self::Foreign, Self::Loose, Self::Patched, Self::Unreadable];
        all.into_iter().find(|code| code.number() == number)
    }
}

/// `start-end perms offset device inode name`
struct Header<'a> {
    writable: bool,
    executable: bool,
    device: &'a [u8],
    inode: u64,
    name: &'a [u8],
}

impl<'a> Header<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut words = line.split(|&b| b == b' ').filter(|word| !word.is_empty());
        let range = words.next()?;
        let &[_, writable, executable, _] = words.next()? else { return None };
        let is_range = |b: &u8| b.is_ascii_hexdigit() || *b == b'-';
        if !range.contains(&b'-') || !range.iter().all(is_range) {
            return None;
        }
        let _offset = words.next()?;
        let device = words.next()?;
        let inode = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
        let name = words.next().unwrap_or_default();
        Some(Self { writable: writable == b'w', executable: executable == b'x', device, inode, name })
    }
}

/// The number of kilobytes of a line with that key; the inner `None` when it has none.
fn size_of(line: &[u8], key: &[u8]) -> Option<Option<u64>> {
    let rest = line.strip_prefix(key)?.trim_ascii().strip_suffix(b" kB");
    Some(rest.and_then(|number| std::str::from_utf8(number).ok()?.parse().ok()))
}

/// Nobody else can have these names: what a process may choose itself is shown as `[anon:…]`.
const KERNELS_OWN: [&[u8]; 2] = [b"[vdso]", b"[vsyscall]"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mapping(perms: &str, place: &str, anonymous: u64, swap: u64) -> String {
        format!(
            "7f00-7f01 {perms} 00000000 {place}\nSize: 4 kB\nAnonymous:    {anonymous} kB\nSwap:  {swap} kB\nSwapPss: 0 kB\nVmFlags: rd ex mr\n"
        )
    }

    fn map(parts: &[String]) -> CodeMap {
        CodeMap::parse(parts.concat().as_bytes()).unwrap()
    }

    fn ours() -> Vec<String> {
        vec![
            mapping("r-xp", "fe:00 7     /usr/bin/mayfly", 0, 0),
            mapping("rw-p", "fe:00 7     /usr/bin/mayfly", 8, 4),
            mapping("r-xp", "fe:00 9     /lib/libc.so.6", 0, 0),
            mapping("rw-p", "00:00 0", 4, 0),
            mapping("r-xp", "00:00 0     [vdso]", 0, 0),
        ]
    }

    fn verdict(strange: String) -> Code {
        map(&[ours(), vec![strange]].concat()).judge(&map(&ours()))
    }

    #[test]
    fn the_same_program_is_ours_and_data_does_not_count() {
        assert_eq!(map(&ours()).judge(&map(&ours())), Code::Ours);
        assert_eq!(verdict(mapping("rw-p", "fe:00 66   /tmp/data", 4, 0)), Code::Ours);
        assert_eq!(verdict(mapping("r--p", "fe:00 66   /tmp/data", 0, 0)), Code::Ours);
    }

    #[test]
    fn another_file_is_foreign_whatever_it_is_called() {
        assert_eq!(verdict(mapping("r-xp", "fe:00 66   /usr/bin/mayfly", 0, 0)), Code::Foreign);
        assert_eq!(verdict(mapping("r-xp", "fe:01 9    /lib/libc.so.6", 0, 0)), Code::Foreign);
        let no_code = map(&[mapping("rw-p", "00:00 0", 4, 0)]);
        assert_eq!(no_code.judge(&map(&ours())), Code::Foreign, "no code at all is not ours either");
    }

    #[test]
    fn code_without_a_file_and_code_that_can_be_written_is_loose() {
        for strange in [
            mapping("r-xp", "00:00 0", 0, 0),
            mapping("r-xp", "00:00 0    [anon:[vdso]]", 0, 0),
            mapping("rwxp", "fe:00 9    /lib/libc.so.6", 0, 0),
            mapping("r-xp", "00:00 0    [stack]", 0, 0),
        ] {
            assert_eq!(verdict(strange.clone()), Code::Loose, "{strange}");
        }
    }

    #[test]
    fn code_that_was_changed_in_memory_or_is_swapped_out_changed_is_patched() {
        assert_eq!(verdict(mapping("r-xp", "fe:00 9   /lib/libc.so.6", 4, 0)), Code::Patched);
        assert_eq!(verdict(mapping("r-xp", "fe:00 9   /lib/libc.so.6", 0, 4)), Code::Patched);
    }

    #[test]
    fn text_that_is_cut_off_or_strange_is_nothing() {
        let whole = ours().concat();
        let (whole, rest) = (whole.as_bytes(), [&b""[..], b"x\n", b"Anonymous: x kB\n"]);
        for bytes in [&whole[..whole.len() - 1], &whole[..whole.len() - 20]].into_iter().chain(rest) {
            assert_eq!(CodeMap::parse(bytes), None);
        }
    }

    #[test]
    fn our_own_text_parses_and_two_processes_of_one_program_agree() {
        let read = || CodeMap::parse(&std::fs::read("/proc/self/smaps").unwrap()).unwrap();
        assert_eq!(read().judge(&read()), Code::Ours);
        let mut other = std::process::Command::new("/bin/sleep").arg("30").spawn().unwrap();
        let path = format!("/proc/{}/exe", other.id());
        while !std::fs::read_link(&path).unwrap().ends_with("sleep") {}
        let sleep = std::fs::read(format!("/proc/{}/smaps", other.id())).unwrap();
        assert_eq!(CodeMap::parse(&sleep).unwrap().judge(&read()), Code::Foreign);
        other.kill().unwrap();
        other.wait().unwrap();
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            CodeMap::parse(&bytes);
        }

        #[test]
        fn no_name_of_a_file_changes_what_is_seen(name in "[ -~]{0,40}") {
            let strange = mapping("r-xp", &format!("fe:00 66 /{name}"), 0, 0);
            prop_assert_eq!(verdict(strange), Code::Foreign);
        }
    }
}
