//! Silence before a freeze. gVisor (systrap, runsc of 2026-09) loses a process whose memory mapping is being changed when
//! its cgroup is frozen or thawed, and the process dies of SIGSEGV; one that is stopped has none in progress. So every
//! process inside is stopped before, and goes on at the host's next word, or by itself when no freeze comes.
//!
//! Parents are stopped before their children and go on after them: no shell ever sees a child of its stopped.

use hearth::guest::v1::host_message::Body as Ask;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};
use std::fs;
use std::time::{Duration, Instant};

/// For so long everybody waits for a freeze. Time spent frozen counts, so after a thaw nobody waits longer.
const FREEZE: Duration = Duration::from_secs(3);
/// For so long at most, whatever the host asks for: it may die, and then nobody inside waits for ever.
const LONGEST: Duration = Duration::from_secs(180);
/// Looks at who is there: a process that was about to fork may have done so meanwhile.
const LOOKS: usize = 4;

/// Who is stopped.
#[derive(Debug, Default)]
pub struct Quiet {
    stopped: Vec<Pid>,
    until: Option<Instant>,
}

impl Quiet {
    /// The host's word ends the silence, unless it asks for it, or is what an open stream sends by itself.
    pub fn heed(&mut self, ask: &Ask, known: impl Iterator<Item = Pid>) {
        match ask {
            Ask::Credit(_) => {}
            // Also when there is silence: it lasts on, and nobody goes on between.
            Ask::Ping(ping) if ping.quiesce => self.begin(longest(ping.quiesce_seconds), known),
            _ => self.end(),
        }
    }

    /// No freeze has come, or it is over.
    pub fn due(&mut self) {
        if self.lasts().is_some_and(|left| left.is_zero()) {
            self.end();
        }
    }

    /// Stops everybody who runs. `known`: who there is, where this is not PID 1 and /proc shows others' processes.
    fn begin(&mut self, longest: Duration, known: impl Iterator<Item = Pid>) {
        self.until = Some(Instant::now() + longest);
        if getpid().as_raw() != 1 {
            let known: Vec<_> = known.collect();
            return self.stop(known);
        }
        for _ in 0..LOOKS {
            let before = self.stopped.len();
            self.stop(everybody());
            if self.stopped.len() == before {
                return;
            }
        }
    }

    fn stop(&mut self, mut pids: Vec<Pid>) {
        pids.sort_unstable();
        for pid in pids {
            // One that somebody else has stopped is left so at the end.
            if is_running(pid) && kill(pid, Signal::SIGSTOP).is_ok() {
                self.stopped.push(pid);
            }
        }
    }

    /// Everybody goes on. Called for every word of the host: nothing happens when nobody is stopped.
    pub fn end(&mut self) {
        self.until = None;
        let mut stopped = std::mem::take(&mut self.stopped);
        stopped.sort_unstable();
        for pid in stopped.into_iter().rev() {
            // Gone already: it was killed.
            let _gone = kill(pid, Signal::SIGCONT);
        }
    }

    /// How long the silence still lasts; `None`: there is none.
    pub fn lasts(&self) -> Option<Duration> {
        let until = self.until?;
        Some(until.saturating_duration_since(Instant::now()))
    }
}

/// How long a silence lasts that the host has asked for.
fn longest(seconds: u32) -> Duration {
    match seconds {
        0 => FREEZE,
        asked => Duration::from_secs(asked.into()).min(LONGEST),
    }
}

/// Every process inside but this one.
fn everybody() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid > 1).map(Pid::from_raw).collect()
}

/// Neither stopped nor dead.
fn is_running(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // "pid (name) S …"; a name may hold anything.
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'T' | 't' | 'Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_has_an_end_whatever_the_host_asks_for() {
        assert_eq!(longest(0), FREEZE);
        assert_eq!(longest(150), Duration::from_secs(150));
        assert_eq!(longest(u32::MAX), LONGEST);
    }
}
