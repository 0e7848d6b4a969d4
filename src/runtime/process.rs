//! Processes of the host that hearth may have to signal: held by pidfd, so that a signal never reaches a stranger who
//! got the same pid.

use std::{fs, io, os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::io::{Interest, unix::AsyncFd};

/// A process that was looked at while it was held: what `/proc` said of the pid was said of it.
#[derive(Debug)]
pub(super) struct Process {
    pid: i32,
    pidfd: OwnedFd,
}

impl Process {
    /// Takes hold of `pid` if `is_it`, which looks at `/proc`, says that it is the one meant. `None`: it is not, or it
    /// is gone.
    pub(super) fn find(pid: i32, is_it: impl FnOnce(i32) -> bool) -> io::Result<Option<Self>> {
        let Some(raw) = Pid::from_raw(pid) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // A number that no process has, or not any more: it may still name the session or the group of those it left (EINVAL
            // from kernels such as 6.12), or a thread.
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let held = Self { pid, pidfd };
        // In this order: a process that still runs after the look is the one that was looked at.
        let it_is = is_it(pid);
        Ok((it_is && held.is_running()).then_some(held))
    }

    /// Its pid, for logs and records.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it has not ended. A zombie has.
    pub(super) fn is_running(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // A poll that fails tells nothing: then it counts as running.
        !matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1..))
    }

    /// Sends SIGKILL; one that has ended is no error.
    pub(super) fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    /// Sends SIGTERM; one that has ended is no error.
    pub(super) fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns when it has ended.
    #[allow(unsafe_code)]
    pub(super) async fn ended(&self) -> io::Result<()> {
        let pidfd = self.pidfd.try_clone()?;
        // SAFETY: an OwnedFd is the same open descriptor for as long as it lives, and the AsyncFd owns it.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        let _ended = pidfd.readable().await?;
        Ok(())
    }

    /// Whether it ended within `limit`.
    pub(super) async fn ends_within(&self, limit: Duration) -> io::Result<bool> {
        match tokio::time::timeout(limit, self.ended()).await {
            Ok(ended) => ended.map(|()| true),
            Err(_) => Ok(false),
        }
    }
}

/// Its command line; empty for a kernel thread, a zombie, or none.
pub(super) fn command_line(pid: i32) -> Vec<String> {
    let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = text.split(|byte| *byte == 0);
    let mut words: Vec<_> = words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    // Every argument ends with a NUL.
    words.pop();
    words
}

/// Field `number` (as proc(5) counts, from 3 on) of `/proc/<pid>/stat`.
fn stat_field(pid: i32, number: usize) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may hold anything.
    let rest = text.rsplit_once(')')?.1;
    rest.split_whitespace().nth(number - 3)?.parse().ok()
}

/// Its parent.
pub(super) fn parent(pid: i32) -> Option<i32> {
    stat_field(pid, 4).and_then(|parent| i32::try_from(parent).ok())
}

/// When it started, in clock ticks since boot: with the pid it names a process for ever (until a reboot).
pub(super) fn started_at_ticks(pid: i32) -> Option<u64> {
    stat_field(pid, 22)
}

/// Every pid there is at the moment. Some milliseconds for some thousand processes: not for the hot path.
pub(super) fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Never outlives a failed test.
    struct Sleeper(std::process::Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ended = self.0.kill();
            let _reaped = self.0.wait();
        }
    }

    #[tokio::test]
    async fn a_process_is_held_as_long_as_it_is_the_one_meant() {
        let mut sleep = std::process::Command::new("sleep");
        let mut child = Sleeper(sleep.arg("100").spawn().unwrap());
        let pid = i32::try_from(child.0.id()).unwrap();
        assert_eq!(
            parent(pid),
            Some(i32::try_from(std::process::id()).unwrap())
        );
        assert!(pids().contains(&pid));
        assert!(Process::find(pid, |_| false).unwrap().is_none());
        // The number of a thread is no process's.
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let (end, ends) = std::sync::mpsc::sync_channel::<()>(1);
        let thread = std::thread::spawn(move || {
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            let _ended = ends.recv();
        });
        let number = told.recv().unwrap();
        assert!(Process::find(number, |_| true).unwrap().is_none());
        drop(end);
        thread.join().unwrap();
        let started = started_at_ticks(pid);
        assert!(started.is_some());
        let is_it = |pid| started_at_ticks(pid) == started;
        let held = Process::find(pid, is_it).unwrap().unwrap();
        assert!(held.is_running());
        // A fresh process has none yet: spawn returns before its exec has come so far.
        while command_line(pid).is_empty() && held.is_running() {
            std::thread::yield_now();
        }
        assert_eq!(command_line(pid), ["sleep", "100"]);
        assert!(!held.ends_within(Duration::from_millis(1)).await.unwrap());
        held.kill().unwrap();
        assert!(held.ends_within(Duration::from_secs(5)).await.unwrap());
        assert!(command_line(pid).is_empty(), "a zombie has no command line");
        assert!(Process::find(pid, |_| true).unwrap().is_none());
        child.0.wait().unwrap();
        held.terminate().unwrap();
        assert!(Process::find(pid, is_it).unwrap().is_none());
    }
}
