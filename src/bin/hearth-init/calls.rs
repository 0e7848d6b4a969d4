//! The calls in flight, and what all of them share. A call is a small machine that never waits: it says what it wants,
//! is told when that is ready, and answers through its line. Nothing of it is buffered here: while the outbox has no
//! room or the host gave no credit, its process or file is simply not read.

use bytes::{Bytes, BytesMut};
use hearth::guest::v1::{self, Attach, Chunk, FailureKind, guest_message::Body};
use nix::{errno::Errno, unistd, unistd::Pid};
use std::{collections::BTreeMap, io, os::fd::AsFd, process::ExitStatus};

use crate::{
    clock::Moment,
    drains::Drains,
    kept::{self, Kept},
    limits::{CALLS, KEPT, PIECE_BYTES, WORKER_FAILURES},
    log::Log,
    outbox::Outbox,
    refusal::Refusal,
    signals::to_group,
    strays::Strays,
    wants::{Part, Tag, Wants},
};

/// What every call works with.
#[derive(Debug, Default)]
pub struct Desk {
    pub outbox: Outbox,
    pub log: Log,
    pub drains: Drains,
    pub strays: Strays,
    pub now: Moment,
    /// Workers of the interpreter that failed in a row.
    pub failed_workers: u32,
    scratch: BytesMut,
    /// Sources that had as much as was asked for: they may have more.
    hot: Vec<(u64, Part)>,
}

/// What one read came to.
pub enum Piece {
    Data(Bytes),
    /// Nothing now.
    Empty,
    End,
    Failed(io::Error),
}

impl Desk {
    /// Reads at most one piece and at most `most` bytes.
    pub fn read(&mut self, from: &impl AsFd, most: usize) -> Piece {
        self.scratch.resize(most.min(PIECE_BYTES), 0);
        match unistd::read(from, &mut self.scratch) {
            Ok(0) => Piece::End,
            Ok(count) => Piece::Data(self.scratch.split_to(count).freeze()),
            Err(Errno::EAGAIN | Errno::EINTR) => Piece::Empty,
            Err(error) => Piece::Failed(error.into()),
        }
    }

    /// Sources to read from once more in this turn.
    pub fn take_hot(&mut self) -> Vec<(u64, Part)> {
        std::mem::take(&mut self.hot)
    }

    /// A worker of the interpreter was of no use.
    pub fn worker_failed(&mut self) {
        self.failed_workers += 1;
        if self.failed_workers == WORKER_FAILURES {
            let what = "workers of the interpreter keep failing: no more are started";
            self.log.say(format_args!("{what}"));
        }
    }

    /// Gives back what a busy time has gathered.
    pub fn rest(&mut self) {
        self.scratch = BytesMut::new();
        self.outbox.rest();
    }
}

/// A call's way to the host.
pub struct Line<'a> {
    pub id: u64,
    pub desk: &'a mut Desk,
}

impl Line<'_> {
    /// Ahead of stream data.
    pub fn answer(&mut self, body: Body) {
        self.desk.outbox.answer(self.id, body);
    }

    /// In its place among the stream data.
    pub fn stream(&mut self, body: Body) {
        self.desk.outbox.stream(self.id, body);
    }

    pub fn has_room(&self) -> bool {
        self.desk.outbox.has_room()
    }

    /// Reads at most one piece and at most `most` bytes for one part of the call.
    pub fn read(&mut self, from: &impl AsFd, most: usize, part: Part) -> Piece {
        let piece = self.desk.read(from, most);
        if matches!(&piece, Piece::Data(data) if data.len() == PIECE_BYTES) {
            self.desk.hot.push((self.id, part));
        }
        piece
    }
}

/// A call's part of what the loop waits for.
pub struct CallWants<'w, 'a> {
    id: u64,
    /// Whether the outbox takes stream data.
    pub has_room: bool,
    wants: &'w mut Wants<'a>,
}

impl<'a> CallWants<'_, 'a> {
    pub fn read(&mut self, fd: &'a impl AsFd, part: Part) {
        self.wants.read(fd, Tag::Call(self.id, part));
    }

    pub fn write(&mut self, fd: &'a impl AsFd, part: Part) {
        self.wants.write(fd, Tag::Call(self.id, part));
    }

    pub fn at_once(&mut self, part: Part) {
        self.wants.at_once(Tag::Call(self.id, part));
    }
}

/// Whether a call goes on. After `Over` and after a refusal (which is told to the host) it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    On,
    Over,
}

pub type Outcome = Result<Step, Refusal>;

/// One call in flight.
pub trait Call: std::fmt::Debug {
    /// What it waits for.
    fn wants<'a>(&'a self, wants: &mut CallWants<'_, 'a>);

    /// A part may be ready. It may also not be: look again, never wait.
    fn ready(&mut self, part: Part, line: &mut Line<'_>) -> Outcome;

    /// The host sent input.
    fn input(&mut self, chunk: Chunk, line: &mut Line<'_>) -> Outcome;

    /// The host takes more.
    fn credit(&mut self, _bytes: usize) {}

    /// When [`Self::due`] is to be called.
    fn deadline(&self) -> Option<Moment> {
        None
    }

    /// The deadline has come.
    fn due(&mut self, _line: &mut Line<'_>) -> Outcome {
        Ok(Step::On)
    }

    /// Takes a signal to pass it on later; whether it did.
    fn hold(&mut self, _signal: i32) -> bool {
        false
    }

    /// The process behind it, until it has been buried.
    fn process(&self) -> Option<Pid> {
        None
    }

    /// Whether it is about a process, also once that has been buried.
    fn is_of_process(&self) -> bool {
        false
    }

    /// That process has ended.
    fn ended(&mut self, _status: ExitStatus, _line: &mut Line<'_>) -> Outcome {
        Ok(Step::On)
    }

    /// A new size of its terminal.
    fn resize(&mut self, _rows: u32, _columns: u32) {}

    /// What outlives its stream.
    fn kept(&self) -> Option<&Kept> {
        None
    }

    /// Its stream has ended; whether it stays without one.
    fn park(&mut self, _now: Moment) -> bool {
        false
    }

    /// Another stream takes it up, unless it refuses: then it is as it was.
    fn attach(&mut self, _attach: &Attach, _line: &mut Line<'_>) -> Outcome {
        Ok(Step::Over)
    }

    /// The host wants nothing more of it: Cancel, or a new session. Not called after an end of its own.
    fn abandon(&mut self, _desk: &mut Desk) {}
}

#[derive(Debug, Default)]
pub struct Calls {
    /// Those without a stream under numbers from the end, which no host comes to.
    calls: BTreeMap<u64, Box<dyn Call>>,
    parked: u64,
    /// Who had the last turn: the next ones come first, so that a busy call starves nobody.
    served: u64,
}

impl Calls {
    /// Whether one more may be opened under `id`.
    ///
    /// # Errors
    /// LIMIT.
    pub fn check_room(&self) -> Result<(), Refusal> {
        if self.calls.len() < CALLS {
            return Ok(());
        }
        Err(Refusal::limit(format!("{CALLS} calls are in flight")))
    }

    pub fn contains(&self, id: u64) -> bool {
        self.calls.contains_key(&id)
    }

    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    pub fn open(&mut self, id: u64, call: Box<dyn Call>) {
        self.calls.insert(id, call);
    }

    pub fn wants<'a>(&'a self, desk: &Desk, wants: &mut Wants<'a>) {
        let after = self.served.saturating_add(1);
        let rotated = self.calls.range(after..).chain(self.calls.range(..after));
        for (id, call) in rotated {
            if let Some(deadline) = call.deadline() {
                wants.until(deadline);
            }
            call.wants(&mut CallWants {
                id: *id,
                has_room: desk.outbox.has_room(),
                wants,
            });
        }
    }

    pub fn ready(&mut self, id: u64, part: Part, desk: &mut Desk) {
        if desk.outbox.has_room() {
            self.served = id;
        }
        self.with(id, desk, |call, line| call.ready(part, line));
    }

    /// Lets `act` have a call, if it is still there, and ends it if that was its end.
    pub fn with(
        &mut self,
        id: u64,
        desk: &mut Desk,
        act: impl FnOnce(&mut dyn Call, &mut Line<'_>) -> Outcome,
    ) {
        let Some(call) = self.calls.get_mut(&id) else {
            // It ended while the host was still talking to it.
            return;
        };
        let over = match act(call.as_mut(), &mut Line { id, desk }) {
            Ok(Step::On) => return,
            Ok(Step::Over) => true,
            Err(refusal) => {
                call.abandon(desk);
                desk.outbox.stream(id, Body::Failure(refusal.into()));
                false
            }
        };
        let ended = self.calls.remove(&id).filter(|_| over);
        // Its last words may not have arrived.
        if let Some(call) = ended {
            self.park(call, desk);
        }
    }

    /// Gives it back unless it stays.
    fn park(&mut self, mut call: Box<dyn Call>, desk: &Desk) -> Option<Box<dyn Call>> {
        if !call.park(desk.now) {
            return Some(call);
        }
        self.calls.insert(u64::MAX - self.parked, call);
        self.parked += 1;
        None
    }

    fn find(&self, key: &str) -> Option<u64> {
        let mut calls = self.calls.iter();
        let found = calls.find(|(_, call)| call.kept().is_some_and(|kept| kept.key() == key));
        found.map(|(id, _)| *id)
    }

    /// Whether another may be kept under this key. One that has ended makes room.
    ///
    /// # Errors
    /// INVALID, LIMIT.
    pub fn check_kept(&mut self, key: &str) -> Result<(), Refusal> {
        if key.is_empty() {
            return Ok(());
        }
        if self.find(key).is_some() {
            return Err(Refusal::invalid(
                "an execution of that id is kept: attach to it",
            ));
        }
        let kept = self.calls.iter().filter(|(_, call)| call.kept().is_some());
        if kept.clone().count() < KEPT {
            return Ok(());
        }
        let mut ended = kept.filter(|(_, it)| it.process().is_none() && !it.is_of_process());
        let oldest = ended.next_back().map(|(id, _)| *id);
        match oldest.and_then(|id| self.calls.remove(&id)) {
            Some(_) => Ok(()),
            None => Err(Refusal::limit(format!("{KEPT} executions are kept"))),
        }
    }

    /// Takes one up under another number. Who had it hears that somebody else has it now.
    ///
    /// # Errors
    /// NOT_FOUND, and as the call refuses.
    pub fn attach(&mut self, id: u64, attach: &Attach, desk: &mut Desk) -> Result<(), Refusal> {
        let found = self.find(&attach.key);
        let found = found.and_then(|old| Some((old, self.calls.remove(&old)?)));
        let Some((old, mut call)) = found else {
            return Err(kept::unknown(&attach.key));
        };
        let had = call.kept().is_some_and(|kept| !kept.is_parked());
        match call.attach(attach, &mut Line { id, desk }) {
            Ok(step) => {
                if had {
                    let refusal = Refusal::new(FailureKind::Refused, "attached to elsewhere");
                    desk.outbox.stream(old, Body::Failure(refusal.into()));
                }
                match step {
                    Step::On => drop(self.calls.insert(id, call)),
                    Step::Over => drop(self.park(call, desk)),
                }
                Ok(())
            }
            Err(refusal) => {
                self.calls.insert(old, call);
                Err(refusal)
            }
        }
    }

    /// Deadlines that have come.
    pub fn due(&mut self, desk: &mut Desk) {
        let now = desk.now;
        let late = |call: &dyn Call| call.deadline().is_some_and(|at| at <= now);
        let due: Vec<u64> = self
            .calls
            .iter()
            .filter(|(_, call)| late(call.as_ref()))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.with(id, desk, |call, line| call.due(line));
        }
    }

    /// A child was buried; whether it was one of these.
    pub fn buried(&mut self, pid: Pid, status: ExitStatus, desk: &mut Desk) -> bool {
        let mut calls = self.calls.iter();
        let found = calls.find(|(_, call)| call.process() == Some(pid));
        let Some(id) = found.map(|(id, _)| *id) else {
            return false;
        };
        self.with(id, desk, |call, line| call.ended(status, line));
        true
    }

    /// Whether the host has still to hear of a process.
    pub fn has_processes(&self) -> bool {
        self.calls.values().any(|call| call.is_of_process())
    }

    /// The processes that are calls.
    pub fn processes(&self) -> impl Iterator<Item = Pid> {
        self.calls.values().filter_map(|call| call.process())
    }

    /// The host wants nothing more of one.
    pub fn cancel(&mut self, id: u64, desk: &mut Desk) {
        let call = self.calls.remove(&id);
        if let Some(mut call) = call.and_then(|call| self.park(call, desk)) {
            call.abandon(desk);
        }
    }

    /// The host wants nothing more of any: a new session.
    pub fn abandon(&mut self, desk: &mut Desk) {
        for (_, call) in std::mem::take(&mut self.calls) {
            if let Some(mut call) = self.park(call, desk) {
                call.abandon(desk);
            }
        }
        self.served = 0;
    }
}

/// A number that no signal has is ignored: Signal has no answer.
pub fn signalled(call: &mut dyn Call, signal: v1::Signal) -> Outcome {
    let number = i32::try_from(signal.number)
        .ok()
        .filter(|n| (1..=64).contains(n));
    if let (Some(pid), Some(number)) = (call.process(), number)
        && !call.hold(number)
    {
        // It may be dead and not yet buried.
        let _ = to_group(pid, number);
    }
    Ok(Step::On)
}
