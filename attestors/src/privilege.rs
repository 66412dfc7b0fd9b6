//! What the agent may look at: the two capabilities that attestation uses, where it was given them.

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// Makes effective what was permitted, of the two that attestation uses: to look at other users' programs
/// (`CAP_SYS_PTRACE`) and to read those that only their users may (`CAP_DAC_READ_SEARCH`). In a container they come
/// from the file's capabilities, which permit and do not set: a program whose bounding set lacks one could not even be
/// started otherwise. Counts for the calling thread and those that it starts.
///
/// # Errors
/// When the kernel does not say what we have, or does not let us have what it permitted.
pub fn raise_permitted() -> std::io::Result<()> {
    let mut sets = capabilities(None)?;
    let wanted = sets.permitted & (CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH);
    if !sets.effective.contains(wanted) {
        sets.effective |= wanted;
        set_capabilities(None, sets)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_permitted_becomes_effective_and_nothing_else() {
        let theirs = std::thread::spawn(|| {
            let mut sets = capabilities(None).unwrap();
            sets.permitted = CapabilitySet::SYS_PTRACE | CapabilitySet::CHOWN;
            (sets.effective, sets.inheritable) = (CapabilitySet::empty(), CapabilitySet::empty());
            set_capabilities(None, sets).unwrap();
            raise_permitted().unwrap();
            capabilities(None).unwrap()
        });
        assert_eq!(theirs.join().unwrap().effective, CapabilitySet::SYS_PTRACE);
    }
}
