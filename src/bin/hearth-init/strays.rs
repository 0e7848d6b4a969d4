//! Detached processes whose stream has ended: they run on, their output goes nowhere (nobody can ask for it again), and
//! their timeout still holds.

use nix::{libc, unistd::Pid};

use crate::{clock::Moment, limits::STRAYS, signals::to_group, wants::Wants};

#[derive(Debug)]
struct Stray {
    pid: Pid,
    deadline: Option<Moment>,
    /// The host began another session since.
    earlier: bool,
}

#[derive(Debug, Default)]
pub struct Strays(Vec<Stray>);

impl Strays {
    /// One more. [`Self::has_room`] was asked when it was started, so there are at most `STRAYS` and all of one
    /// session's calls.
    pub fn add(&mut self, pid: Pid, deadline: Option<Moment>) {
        self.0.push(Stray {
            pid,
            deadline,
            earlier: false,
        });
    }

    pub fn has_room(&self) -> bool {
        self.0.len() < STRAYS
    }

    pub fn wants(&self, wants: &mut Wants<'_>) {
        for deadline in self.0.iter().filter_map(|stray| stray.deadline) {
            wants.until(deadline);
        }
    }

    /// Kills those whose time is up.
    pub fn due(&mut self, now: Moment) {
        for stray in &mut self.0 {
            if stray.deadline.is_some_and(|at| at <= now) {
                stray.deadline = None;
                // Gone already: it will be buried in this turn or the next.
                let _ = to_group(stray.pid, libc::SIGKILL);
            }
        }
    }

    /// A child was buried; whether it was one of these.
    pub fn buried(&mut self, pid: Pid) -> bool {
        let before = self.0.len();
        self.0.retain(|stray| stray.pid != pid);
        self.0.len() < before
    }

    /// A new session.
    pub fn outlive_session(&mut self) {
        for stray in &mut self.0 {
            stray.earlier = true;
        }
    }

    pub fn processes(&self) -> impl Iterator<Item = Pid> {
        self.0.iter().map(|stray| stray.pid)
    }

    /// How many of earlier sessions still run.
    pub fn earlier(&self) -> usize {
        self.0.iter().filter(|stray| stray.earlier).count()
    }
}
