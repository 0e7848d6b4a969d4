//! Signals in and out. They come in through a handler that notes the number and wakes the loop through a pipe. A
//! signalfd would need them blocked, and a child started by posix_spawn would inherit that.

use nix::{
    errno::Errno,
    fcntl::OFlag,
    libc,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
    unistd::{self, Pid},
};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicI32, AtomicU64, Ordering::SeqCst},
};

/// What is listened to. SIGCHLD means: look for the dead. SIGTERM and SIGINT end hearth-init. The others are handed on
/// to the template's command.
pub const HEARD: [Signal; 8] = [
    Signal::SIGCHLD,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// Bit n: signal n came.
static CAME: AtomicU64 = AtomicU64::new(0);
static BELL: AtomicI32 = AtomicI32::new(-1);
static OWNER: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: libc::c_int) {
    let errno = Errno::last_raw();
    // Between fork and exec a child still has this handler, and the same pipe.
    if OWNER.load(SeqCst) == unistd::getpid().as_raw() {
        CAME.fetch_or(
            1_u64.checked_shl(signal.unsigned_abs()).unwrap_or(0),
            SeqCst,
        );
        ring();
    }
    Errno::set_raw(errno);
}

/// Wakes the loop. A full pipe wakes it as well.
#[allow(unsafe_code)]
fn ring() {
    // SAFETY: write(2) is async-signal-safe, the byte lives in the program's text, and a wrong descriptor is an error.
    unsafe { libc::write(BELL.load(SeqCst), b"!".as_ptr().cast(), 1) };
}

/// The loop's end of the pipe.
#[derive(Debug)]
pub struct Signals {
    woken: OwnedFd,
    _bell: OwnedFd,
}

impl Signals {
    /// Begins to listen. Once a process.
    #[allow(unsafe_code)]
    pub fn listen() -> io::Result<Self> {
        let (woken, bell) = unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        BELL.store(bell.as_raw_fd(), SeqCst);
        OWNER.store(unistd::getpid().as_raw(), SeqCst);
        let action = SigAction::new(
            SigHandler::Handler(note),
            SaFlags::SA_RESTART,
            SigSet::empty(),
        );
        for signal in HEARD {
            // SAFETY: the handler only touches atomics, calls getpid(2) and write(2), and restores errno.
            unsafe { sigaction(signal, &action) }?;
        }
        Ok(Self { woken, _bell: bell })
    }

    /// Whether the loop is woken by a signal.
    pub fn woken(&self) -> &OwnedFd {
        &self.woken
    }

    /// Which came since the last look.
    pub fn take(&self) -> impl Iterator<Item = Signal> + use<> {
        let woken: BorrowedFd<'_> = self.woken.as_fd();
        let mut bytes = [0; 256];
        while matches!(unistd::read(woken, &mut bytes), Ok(count) if count == bytes.len()) {}
        let came = CAME.swap(0, SeqCst);
        HEARD
            .into_iter()
            .filter(move |signal| came >> (*signal as u64) & 1 == 1)
    }
}

/// Sends a signal to a process group. Any number: nix knows no real-time signals.
///
/// # Errors
/// As kill(2).
pub fn to_group(group: Pid, number: i32) -> io::Result<()> {
    // 0 and 1 mean "my own group" and "everybody" to kill(2).
    if group.as_raw() <= 1 {
        return Err(Errno::EINVAL.into());
    }
    send(-group.as_raw(), number)
}

/// Sends a signal to every process inside. Only PID 1 may: anywhere else that is the whole machine.
pub fn to_all(number: i32) {
    if unistd::getpid().as_raw() == 1 {
        // Nobody left is no error.
        let _ = send(-1, number);
    }
}

#[allow(unsafe_code)]
fn send(whom: i32, number: i32) -> io::Result<()> {
    // SAFETY: kill(2) touches no memory of ours.
    Errno::result(unsafe { libc::kill(whom, number) })?;
    Ok(())
}
