//! What one turn of the loop waits for. Derived from the state anew each turn, so nothing is ever registered that
//! nobody wants any more.

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use std::{os::fd::AsFd, time::Duration};

use crate::clock::{LONGEST_WAIT, Moment};

/// Who is served when it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    Signals,
    HostIn,
    HostOut,
    Call(u64, Part),
    /// A context of the interpreter, by its place.
    Code(usize, Part),
    /// A worker of the interpreter, by its place.
    Worker(usize),
    /// A pipe of the template's command.
    Command(usize),
    Drain(u64),
}

/// Which side of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Stdout,
    Stderr,
    /// What the host sent can be handed on.
    Input,
    /// There is something to say without waiting for anybody.
    Say,
}

#[derive(Debug, Default)]
pub struct Wants<'a> {
    fds: Vec<PollFd<'a>>,
    tags: Vec<Tag>,
    at_once: Vec<Tag>,
    deadline: Option<Moment>,
}

impl<'a> Wants<'a> {
    pub fn read(&mut self, fd: &'a impl AsFd, tag: Tag) {
        self.fd(fd, PollFlags::POLLIN, tag);
    }

    pub fn write(&mut self, fd: &'a impl AsFd, tag: Tag) {
        self.fd(fd, PollFlags::POLLOUT, tag);
    }

    fn fd(&mut self, fd: &'a impl AsFd, flags: PollFlags, tag: Tag) {
        self.fds.push(PollFd::new(fd.as_fd(), flags));
        self.tags.push(tag);
    }

    /// Without waiting.
    pub fn at_once(&mut self, tag: Tag) {
        self.at_once.push(tag);
    }

    /// Not later than `moment`.
    pub fn until(&mut self, moment: Moment) {
        self.deadline = Some(self.deadline.map_or(moment, |known| known.min(moment)));
    }

    /// Waits. What is ready, in the order it was wanted. An error or a hang-up counts as ready: the operation tells.
    pub fn wait(mut self, now: Moment) -> Vec<Tag> {
        let timeout = if self.at_once.is_empty() {
            self.deadline.map(|at| at.saturating_sub(now))
        } else {
            Some(Duration::ZERO)
        };
        match poll(&mut self.fds, poll_timeout(timeout)) {
            Ok(_) => {}
            Err(Errno::EINTR) => return self.at_once,
            Err(_) => {
                // No memory, or more descriptors than the limit allows: nothing blocks, so serve everybody, slowly.
                std::thread::sleep(Duration::from_millis(10));
                self.tags.append(&mut self.at_once);
                return self.tags;
            }
        }
        let ready = |fd: &PollFd<'_>| fd.revents().is_none_or(|events| !events.is_empty());
        let mut found: Vec<Tag> = std::iter::zip(&self.fds, &self.tags)
            .filter(|(fd, _)| ready(fd))
            .map(|(_, tag)| *tag)
            .collect();
        found.append(&mut self.at_once);
        found
    }
}

/// Rounded up, so that a deadline has passed when the wait is over.
fn poll_timeout(timeout: Option<Duration>) -> PollTimeout {
    let Some(timeout) = timeout else {
        return PollTimeout::NONE;
    };
    let millis = timeout.min(LONGEST_WAIT).as_micros().div_ceil(1000);
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::ZERO)
}
