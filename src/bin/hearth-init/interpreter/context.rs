//! A named state: a process of the interpreter, the run that is at work in it, and those that wait.
//!
//! Order: what the code wrote to stdout and stderr before it said something on the channel is told before that. (What it
//! wrote soon after may be told before that too: three streams have no order among them.)
//! While the run at work has no credit, or the outbox no room, nothing is read and the process waits. Nobody listens:
//! everything is read and dropped.

use hearth::guest::v1::RunState;
use nix::libc;
use std::{collections::VecDeque, process::ExitStatus};

use super::{
    frames::Frame,
    process::Process,
    run::{Run, Stop},
};
use crate::{
    calls::Desk,
    limits::OUTPUT_ROUNDS,
    wants::{Part, Tag, Wants},
};

#[derive(Debug)]
pub struct Context {
    pub name: String,
    process: Option<Process>,
    /// The first may have begun.
    runs: VecDeque<Run>,
    /// What the next run finds.
    state: RunState,
    /// Runs that made the state.
    made: u32,
    /// Runs that ended after their session since the last that was heard.
    unheard: u32,
    /// It was told to end: what comes after is no loss.
    is_ending: bool,
    /// A frame that waits for the output before it, or for credit; and how often that output was read.
    pending: Option<(Frame, [usize; 2])>,
}

impl Context {
    pub fn new(name: String) -> Self {
        Self {
            name,
            process: None,
            runs: VecDeque::new(),
            state: RunState::New,
            made: 0,
            unheard: 0,
            is_ending: false,
            pending: None,
        }
    }

    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// Gives it a process; it has none.
    pub fn inhabit(&mut self, process: Process) {
        self.process = Some(process);
    }

    /// Nothing of it is worth keeping.
    pub fn is_empty(&self) -> bool {
        self.process.is_none() && self.runs.is_empty()
    }

    pub fn waiting(&self) -> usize {
        self.runs.len()
    }

    /// Bytes of code that wait.
    pub fn code_bytes(&self) -> usize {
        self.runs.iter().map(Run::code_bytes).sum()
    }

    pub fn push(&mut self, run: Run) {
        self.runs.push_back(run);
    }

    fn at_work(&self) -> Option<&Run> {
        self.runs.front().filter(|run| run.has_begun())
    }

    /// Begins the next run, if none is at work.
    pub fn advance(&mut self, desk: &mut Desk) {
        let (Some(process), Some(run)) = (&mut self.process, self.runs.front_mut()) else {
            return;
        };
        if run.has_begun() || process.ended.is_some() {
            return;
        }
        let unheard = std::mem::take(&mut self.unheard);
        run.begin(process, self.state, unheard, desk);
        self.state = RunState::Kept;
    }

    pub fn wants<'a>(&'a self, slot: usize, desk: &Desk, wants: &mut Wants<'a>) {
        let Some(process) = &self.process else {
            return;
        };
        let run = self.at_work();
        if let Some(deadline) = run.and_then(Run::next_deadline) {
            wants.until(deadline);
        }
        let tag = |part| Tag::Code(slot, part);
        if let Some((channel, true)) = process.channel() {
            wants.write(channel, tag(Part::Input));
        }
        if run.is_some_and(|run| run.is_held(desk)) {
            return;
        }
        let affords = |(frame, _): &(Frame, _)| run.is_none_or(|run| run.affords(frame));
        match &self.pending {
            Some(pending) if affords(pending) => wants.at_once(tag(Part::Say)),
            Some(_) => return,
            None if process.ended.is_some() => wants.at_once(tag(Part::Say)),
            None => {}
        }
        if let Some((channel, _)) = process.channel() {
            wants.read(channel, tag(Part::Say));
        }
        for (at, part) in [(0, Part::Stdout), (1, Part::Stderr)] {
            if let Some(pipe) = process.pipe(at) {
                wants.read(pipe, tag(part));
            }
        }
    }

    /// Moves everything on that can be.
    pub fn pump(&mut self, desk: &mut Desk) {
        if let Some(process) = &mut self.process {
            process.pump();
        }
        while self.step(desk) {}
        if self.process.as_ref().is_some_and(|p| p.ended.is_some()) {
            self.bury(desk);
        }
        self.advance(desk);
    }

    /// One frame and all output before it. `false`: no more now.
    fn step(&mut self, desk: &mut Desk) -> bool {
        let Some(process) = &mut self.process else {
            return false;
        };
        let mut run = self.runs.front_mut().filter(|run| run.has_begun());
        if run.as_ref().is_some_and(|run| run.is_held(desk)) {
            return false;
        }
        let most = |run: &Option<&mut Run>| run.as_ref().map_or(usize::MAX, |run| run.most());
        if self.pending.is_none() {
            let frame = process.frame(most(&run), desk);
            self.pending = frame.map(|frame| (frame, [0; 2]));
        }
        // Output first, each stream to its end; a stream that never ends holds a frame up only so long.
        for at in [0, 1] {
            let mut rounds = self.pending.as_ref().map_or(0, |(_, rounds)| rounds[at]);
            while rounds < OUTPUT_ROUNDS {
                if run.as_ref().is_some_and(|run| run.is_held(desk)) {
                    return false;
                }
                let Some(data) = process.output(at, most(&run), desk) else {
                    break;
                };
                if let Some(run) = &mut run {
                    run.output(at, data, desk);
                }
                rounds += 1;
                if let Some((_, read)) = &mut self.pending {
                    read[at] = rounds;
                }
            }
        }
        let Some((frame, rounds)) = self.pending.take() else {
            return false;
        };
        let Some(run) = run else {
            // Between two runs nobody asked.
            return true;
        };
        if !run.affords(&frame) {
            self.pending = Some((frame, rounds));
            return false;
        }
        if frame != Frame::Done {
            run.tell(frame, desk);
            return true;
        }
        if let Some(run) = self.runs.pop_front() {
            self.made = self.made.saturating_add(1);
            self.unheard += u32::from(run.is_cut);
            run.done(desk);
        }
        // The next one begins, and its output is its own.
        self.advance(desk);
        true
    }

    /// The process has ended, and all that it had said is told, unless that waits for credit.
    fn bury(&mut self, desk: &mut Desk) {
        let held = self.at_work().is_some_and(|run| run.is_held(desk));
        if held || self.pending.is_some() {
            return;
        }
        let Some(process) = self.process.take() else {
            return;
        };
        let status = process.ended.unwrap_or_default();
        let name = &self.name;
        desk.log.say(format_args!(
            "interpreter of context {name} has ended: {status}"
        ));
        process.into_pipes().for_each(|pipe| desk.drains.push(pipe));
        let begun = u32::from(self.at_work().is_some());
        let lost = std::mem::take(&mut self.made).saturating_add(begun);
        for run in self.runs.drain(..) {
            self.unheard += u32::from(run.is_cut);
            run.lost(status, lost, desk);
        }
        self.state = match std::mem::take(&mut self.is_ending) {
            true => RunState::New,
            false => RunState::Lost,
        };
    }

    /// Its process was buried.
    pub fn ended(&mut self, status: ExitStatus, desk: &mut Desk) {
        if let Some(process) = &mut self.process {
            process.ended = Some(status);
        }
        self.pump(desk);
    }

    /// Interrupts the run at work; whether there was one.
    pub fn interrupt(&mut self, desk: &Desk) -> bool {
        let run = self.runs.front_mut().filter(|run| run.has_begun());
        let (Some(process), Some(run)) = (&self.process, run) else {
            return false;
        };
        run.interrupt(Stop::Asked, process, desk.now);
        true
    }

    /// Ends it: the process is killed.
    pub fn kill(&mut self) {
        self.is_ending = true;
        if let Some(process) = &self.process {
            process.signal(libc::SIGKILL);
        }
    }

    pub fn due(&mut self, desk: &Desk) {
        let run = self.runs.front_mut().filter(|run| run.has_begun());
        if let (Some(process), Some(run)) = (&self.process, run) {
            run.due(process, desk.now);
        }
    }

    /// A run's call, if it is one of these: let `act` have it.
    pub fn with(&mut self, call: u64, act: impl FnOnce(&mut Run)) -> bool {
        let found = self
            .runs
            .iter_mut()
            .find(|run| run.is_heard && run.call == call);
        found.map(act).is_some()
    }

    /// The host wants nothing more of a run: it is interrupted, or never begins. Whether it was one of these.
    pub fn cancel(&mut self, call: u64, desk: &mut Desk) -> bool {
        let found = |run: &Run| run.is_heard && run.call == call;
        let Some(at) = self.runs.iter().position(found) else {
            return false;
        };
        match self.runs.get_mut(at) {
            Some(run) if run.has_begun() => {
                run.is_heard = false;
                self.interrupt(desk);
                self.pump(desk);
            }
            _ => drop(self.runs.remove(at)),
        }
        true
    }

    /// The session has ended: what runs goes on unheard, what waits does not begin.
    pub fn outlive_session(&mut self, desk: &mut Desk) {
        self.runs.retain(Run::has_begun);
        for run in &mut self.runs {
            run.is_cut |= run.is_heard;
            run.is_heard = false;
        }
        self.pump(desk);
    }
}
