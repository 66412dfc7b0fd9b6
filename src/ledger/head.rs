//! How far the ledger has come, kept beside it: the number of its last transaction.
//!
//! The store keeps two roots and falls back to the older when the newer does not add up, which is right for
//! a write that a power cut tore, and wrong for one that was finished, acknowledged, and damaged later: that
//! would silently bring back the leases, and drop the newest. So the number of each finished transaction
//! is noted here, and a ledger that knows less is damaged. The note itself is not synced: it has to survive
//! the agent, not the power, and a finished transaction never depends on it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::codec;

/// `ledger.head`: two slots written in turn, so that one is always whole.
#[derive(Debug)]
pub(super) struct Head(File);

impl Head {
    /// Makes the file, durable and at zero.
    pub(super) fn create(options: &OpenOptions, path: &Path) -> io::Result<Self> {
        let head = Self(options.clone().create_new(true).open(path)?);
        for slot in 0..SLOTS {
            head.write(slot, 0)?;
        }
        head.0.sync_all()?;
        Ok(head)
    }

    /// Opens the file and reads the number; none: neither slot is whole.
    pub(super) fn open(options: &OpenOptions, path: &Path) -> io::Result<(Self, Option<u64>)> {
        let file = options.open(path)?;
        let newest = (0..SLOTS).filter_map(|slot| read(&file, slot)).max();
        Ok((Self(file), newest))
    }

    /// Notes that transaction `number` is finished.
    pub(super) fn note(&self, number: u64) -> io::Result<()> {
        self.write(number % SLOTS, number)
    }

    fn write(&self, slot: u64, number: u64) -> io::Result<()> {
        let number = number.to_be_bytes();
        let sum = codec::sum(NAME, &[], &number);
        self.0.write_all_at(&[number, sum].concat(), slot * SLOT_BYTES)
    }
}

fn read(file: &File, slot: u64) -> Option<u64> {
    let mut record = [0; 16];
    file.read_exact_at(&mut record, slot * SLOT_BYTES).ok()?;
    let (number, sum) = record.split_first_chunk()?;
    (codec::sum(NAME, &[], number) == *sum).then(|| u64::from_be_bytes(*number))
}

/// The file's name in the data directory.
pub(super) const NAME: &str = "ledger.head";
const SLOTS: u64 = 2;
/// One sector each: a torn write spoils one slot only.
const SLOT_BYTES: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spoiled_slot_costs_one_number_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let head = Head::create(&options, &path).unwrap();
        let now = || Head::open(&options, &path).unwrap().1;
        assert_eq!(now(), Some(0));
        for number in 1..5 {
            head.note(number).unwrap();
            assert_eq!(now(), Some(number));
        }
        head.0.write_all_at(&[9], 0).unwrap();
        assert_eq!(now(), Some(3));
        head.0.write_all_at(&[9], SLOT_BYTES).unwrap();
        assert_eq!(now(), None);
    }
}
