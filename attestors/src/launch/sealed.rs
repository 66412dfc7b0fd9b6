//! The copies that are measured: memory files sealed against every change, so that what was hashed is what is read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aws_lc_rs::digest;
use rustix::fs::{MemfdFlags, OFlags, SealFlags};
use rustix::io::Errno;

/// Why a file cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// It is not a memory file, or can still be changed.
    #[error("it is not a memory file that is sealed against writing, shrinking and growing")]
    NotSealed,
    /// Larger than [`MAX_BYTES`].
    #[error("it has {0} bytes, and {MAX_BYTES} is the most")]
    TooLarge(u64),
    /// The kernel refuses.
    #[error("it cannot be read or sealed: {0}")]
    System(#[from] io::Error),
}

/// The most bytes of one measured file.
pub const MAX_BYTES: u64 = 64 << 20;

/// Copies what is in `from`, from where it stands to its end, into a sealed memory file. The copy survives exec.
///
/// # Errors
/// [`SealError::TooLarge`] or [`SealError::System`].
pub fn sealed_copy(from: BorrowedFd<'_>) -> Result<OwnedFd, SealError> {
    let copy = rustix::fs::memfd_create("measured", MemfdFlags::ALLOW_SEALING).map_err(io::Error::from)?;
    let mut buffer = vec![0; READ_BYTES];
    let mut total = 0_u64;
    loop {
        let got = match rustix::io::read(from, &mut *buffer) {
            Err(Errno::INTR) => continue,
            result => result.map_err(io::Error::from)?,
        };
        let Some(mut rest) = buffer.get(..got).filter(|bytes| !bytes.is_empty()) else { break };
        total = total.saturating_add(u64::try_from(got).unwrap_or(u64::MAX));
        if total > MAX_BYTES {
            return Err(SealError::TooLarge(total));
        }
        while !rest.is_empty() {
            let written = rustix::io::write(&copy, rest).map_err(io::Error::from)?;
            rest = rest.get(written..).unwrap_or_default();
        }
    }
    rustix::fs::fcntl_add_seals(&copy, seals()).map_err(io::Error::from)?;
    Ok(copy)
}

/// The SHA-256 of a sealed memory file.
///
/// # Errors
/// See [`SealError`].
pub fn sealed_digest(file: BorrowedFd<'_>) -> Result<[u8; 32], SealError> {
    if !is_memory(file) || !rustix::fs::fcntl_get_seals(file).is_ok_and(|found| found.contains(seals())) {
        return Err(SealError::NotSealed);
    }
    let size = u64::try_from(rustix::fs::fstat(file).map_err(io::Error::from)?.st_size).unwrap_or(u64::MAX);
    if size > MAX_BYTES {
        return Err(SealError::TooLarge(size));
    }
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0_u64;
    // Not from where the descriptor stands: its place belongs to everybody who has it.
    while at < size {
        let got = match rustix::io::pread(file, &mut *buffer, at) {
            Err(Errno::INTR) => continue,
            result => result.map_err(io::Error::from)?,
        };
        let Some(bytes) = buffer.get(..got).filter(|bytes| !bytes.is_empty()) else {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        };
        context.update(bytes);
        at = at.saturating_add(u64::try_from(got).unwrap_or(u64::MAX));
    }
    let sha256 = context.finish().as_ref().try_into();
    sha256.map_err(|_length| io::Error::from(io::ErrorKind::InvalidData).into())
}

/// Whether closing it can never wait for anybody: memory files, which alone know of seals, and handles that were
/// never opened.
pub(crate) fn closes_at_once(file: impl AsFd) -> bool {
    let file = file.as_fd();
    is_memory(file) || rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags.contains(OFlags::PATH))
}

fn is_memory(file: BorrowedFd<'_>) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok()
}

fn seals() -> SealFlags {
    SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE
}

const READ_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek as _, SeekFrom, Write as _};

    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file
    }

    fn hex(sha256: [u8; 32]) -> String {
        crate::text::hex(&sha256)
    }

    #[test]
    fn a_copy_has_the_digest_of_its_file_and_cannot_be_changed() {
        let copy = sealed_copy(file(b"abc").as_fd()).unwrap();
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(sealed_digest(copy.as_fd()).unwrap()), known);
        assert_eq!(rustix::io::pwrite(&copy, b"x", 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&copy, 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&copy, 10), Err(Errno::PERM));
        assert_eq!(hex(sealed_digest(copy.as_fd()).unwrap()), known, "wherever the descriptor stands");
        let flags = rustix::io::fcntl_getfd(&copy).unwrap();
        assert!(!flags.contains(rustix::io::FdFlags::CLOEXEC), "it is there for the program");
    }

    #[test]
    fn an_empty_file_has_a_digest_too() {
        let copy = sealed_copy(file(b"").as_fd()).unwrap();
        assert!(hex(sealed_digest(copy.as_fd()).unwrap()).starts_with("e3b0c442"));
    }

    #[test]
    fn what_can_still_change_is_not_measured() {
        let refused = |file: BorrowedFd<'_>| matches!(sealed_digest(file), Err(SealError::NotSealed));
        assert!(refused(file(b"abc").as_fd()));
        let open = rustix::fs::memfd_create("x", MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(refused(open.as_fd()));
        for missing in [SealFlags::SEAL, SealFlags::SHRINK, SealFlags::GROW, SealFlags::WRITE] {
            let open = rustix::fs::memfd_create("x", MemfdFlags::ALLOW_SEALING).unwrap();
            let others = seals() - missing;
            // The seal against seals comes last, or no other could.
            rustix::fs::fcntl_add_seals(&open, others - SealFlags::SEAL).unwrap();
            rustix::fs::fcntl_add_seals(&open, others & SealFlags::SEAL).unwrap();
            assert!(refused(open.as_fd()), "{missing:?}");
        }
        let handle =
            rustix::fs::openat(rustix::fs::CWD, "/", OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        assert!(closes_at_once(&handle) && closes_at_once(&open));
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(refused(socket.as_fd()) && !closes_at_once(&socket));
    }
}
