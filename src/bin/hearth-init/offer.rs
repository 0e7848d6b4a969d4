//! A command that a worker of the interpreter was given, until its word that it is that command now. It may decline, die,
//! hang or babble: then the command is started as any other, on the same streams.

use nix::unistd::Pid;
use std::os::fd::OwnedFd;

use crate::{
    calls::Desk,
    clock::Moment,
    interpreter::{Frame, Process},
    limits::{PIECE_BYTES, WORKER_WORD},
    refusal::Refusal,
    spawn::{Program, Theirs},
};

#[derive(Debug)]
pub struct Offer {
    worker: Process,
    program: Program,
    theirs: Theirs,
    /// It is waited for until then.
    pub until: Moment,
    /// A signal for the command, which leads no group before it is that.
    pub signal: Option<i32>,
}

/// What the worker says to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    None,
    Taken,
    /// It can't be that.
    Declined,
    /// It is of no use.
    Broken,
}

impl Offer {
    pub fn new(worker: Process, program: Program, theirs: Theirs, now: Moment) -> Self {
        Self {
            worker,
            program,
            theirs,
            until: now + WORKER_WORD,
            signal: None,
        }
    }

    /// Where its word comes; `None`: none will.
    pub fn channel(&self) -> Option<&OwnedFd> {
        self.worker.channel().map(|(channel, _)| channel)
    }

    /// Ends the worker. What then dies is the command.
    pub fn kill(&self) {
        self.worker.kill();
    }

    /// Listens without waiting.
    pub fn word(&mut self, desk: &mut Desk) -> Word {
        match self.worker.frame(PIECE_BYTES, desk) {
            Some(Frame::Done) => Word::Taken,
            Some(Frame::Error(_)) => Word::Declined,
            None if self.channel().is_some() => Word::None,
            Some(_) | None => Word::Broken,
        }
    }

    /// The worker is the command. What its own children may still write to is read on.
    pub fn settle(self, desk: &mut Desk) {
        desk.failed_workers = 0;
        let pipes = self.worker.into_pipes();
        pipes.for_each(|pipe| desk.drains.push(pipe));
    }

    /// The worker is not: it ends, and the command is started.
    ///
    /// # Errors
    /// As a start.
    pub fn start(self, declined: bool, desk: &mut Desk) -> Result<Pid, Refusal> {
        if !declined {
            let pid = self.worker.pid;
            desk.log.say(format_args!(
                "worker {pid} did not take its command and is killed"
            ));
            desk.worker_failed();
        }
        self.worker.kill();
        self.program.start(self.theirs)
    }
}
