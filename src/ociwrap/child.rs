//! Running runsc: a deadline, signals forwarded, nothing left behind.

use std::{
    fs::File,
    io::{self, Read, Seek},
    os::{
        fd::AsFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        memfd::{MFdFlags, memfd_create},
        prctl,
        signal::{self, SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::{Pid, getppid},
};

/// The most that is read of what runsc printed.
const OUTPUT_BYTES: u64 = 1 << 20;
/// A killed child is a zombie within this, unless it hangs in the kernel.
const REAP: Duration = Duration::from_millis(500);

/// How runsc ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// By itself, or by a signal of someone else's.
    Exited {
        /// As a shell would put it.
        code: u8,
        /// What it printed, when captured.
        stdout: Vec<u8>,
        /// What it complained, when captured.
        stderr: String,
    },
    /// By us, at the deadline.
    Overdue,
}

/// Runs `program` until it ends or `limit` has passed; then it and its process group are killed. `inherit`: stdout and
/// stderr are the caller's; else they are captured. SIGTERM, SIGINT, SIGHUP and SIGQUIT are forwarded. Once per
/// process at a time: it takes the signals of the whole process.
pub(super) fn run(
    program: &Path,
    args: &[String],
    inherit: bool,
    limit: Duration,
) -> io::Result<Ended> {
    let deadline = Instant::now() + limit;
    let mut mask = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        mask.add(signal);
    }
    let before = mask.thread_swap_mask(signal::SigmaskHow::SIG_BLOCK)?;
    let ended = run_masked(program, args, inherit, deadline, &mask, before);
    before.thread_set_mask()?;
    ended
}

fn run_masked(
    program: &Path,
    args: &[String],
    inherit: bool,
    deadline: Instant,
    mask: &SigSet,
    before: SigSet,
) -> io::Result<Ended> {
    let signals = SignalFd::with_flags(mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let mut command = Command::new(program);
    command.args(args).process_group(0);
    // A memory file, not a pipe: nobody has to read while runsc runs, and a grandchild that keeps it open delays nothing.
    let mut capture = None;
    if !inherit {
        let files = (memory("stdout")?, memory("stderr")?);
        command.stdout(Stdio::from(files.0.try_clone()?));
        command.stderr(Stdio::from(files.1.try_clone()?));
        capture = Some(files);
    }
    die_with_parent(&mut command, before);
    let mut child = command.spawn()?;
    let Some(status) = watch(&mut child, &signals, deadline)? else {
        return Ok(Ended::Overdue);
    };
    let (stdout, stderr) = match capture {
        Some((stdout, stderr)) => (content(stdout)?, content(stderr)?),
        None => (Vec::new(), Vec::new()),
    };
    Ok(Ended::Exited {
        code: code(status),
        stdout,
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    })
}

fn memory(name: &str) -> io::Result<File> {
    Ok(File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?))
}

fn content(mut file: File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.rewind()?;
    file.take(OUTPUT_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

/// A shim that is killed takes its runc with it (PDEATHSIG); what we put between must not outlive it either.
#[allow(unsafe_code)]
fn die_with_parent(command: &mut Command, mask: SigSet) {
    let parent = Pid::this();
    let before_exec = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != parent {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        mask.thread_set_mask()?;
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec; prctl, getppid and pthread_sigmask are async-signal-safe system
    // calls, and it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(before_exec);
    }
}

/// Waits for the end; `None` when the deadline came first and the child was killed.
fn watch(
    child: &mut Child,
    signals: &SignalFd,
    deadline: Instant,
) -> io::Result<Option<ExitStatus>> {
    let group = Pid::from_raw(-i32::try_from(child.id()).map_err(io::Error::other)?);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        sleep_until_signal(signals, left)?;
        while let Some(info) = signals.read_signal()? {
            let number = i32::try_from(info.ssi_signo).map_err(io::Error::other)?;
            let signal = Signal::try_from(number)?;
            if signal != Signal::SIGCHLD {
                // It may just have ended: then there is nobody to forward to.
                let _ended = signal::kill(group, signal);
            }
        }
    }
    let _ended = signal::kill(group, Signal::SIGKILL);
    let patience = Instant::now() + REAP;
    while child.try_wait()?.is_none() && Instant::now() < patience {
        sleep_until_signal(signals, Duration::from_millis(5))?;
        while signals.read_signal()?.is_some() {}
    }
    Ok(None)
}

fn sleep_until_signal(signals: &SignalFd, limit: Duration) -> io::Result<()> {
    // Rounded up: a deadline below a millisecond must not spin.
    let millis = limit.as_millis().saturating_add(1).min(60_000);
    let timeout = PollTimeout::try_from(millis).map_err(io::Error::other)?;
    let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The exit status as a shell puts it: 128 + signal.
fn code(status: ExitStatus) -> u8 {
    let signal = || status.signal().map(|signal| 128 + signal);
    let code = status.code().or_else(signal).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}
