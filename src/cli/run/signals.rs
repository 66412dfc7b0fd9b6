//! The signals that `mayfly run` passes on, with who sent them.
//!
//! The program is in our own process group, which has the terminal: what the terminal sends (Ctrl-C, a hang-up, a new
//! size) reaches both of us, and must not be sent twice. So signals are read with their sender: only the kernel sends
//! for a terminal. Stopping (Ctrl-Z) is left alone, and stops both.

use std::io;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::sync::mpsc;

const PASSED_ON: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// One that was sent to us alone.
pub(super) type Signals = mpsc::UnboundedReceiver<Signal>;

/// The other way round, in the process that becomes the program: what is blocked stays blocked over an exec.
pub(super) fn give_back() -> io::Result<()> {
    Ok(passed_on().thread_unblock()?)
}

fn passed_on() -> SigSet {
    PASSED_ON.into_iter().collect()
}

/// From now on those signals do nothing to us. Must be called before there are other threads.
pub(super) fn take_over() -> io::Result<Signals> {
    let set = passed_on();
    set.thread_block()?;
    let source = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?;
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while let Ok(Some(signal)) = source.read_signal() {
            let from_terminal = signal.ssi_code == nix::libc::SI_KERNEL;
            let known = PASSED_ON.into_iter().find(|known| *known as i32 == signal.ssi_signo.cast_signed());
            let Some(known) = known.filter(|_| !from_terminal) else { continue };
            if sender.send(known).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}
