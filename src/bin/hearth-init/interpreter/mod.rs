//! The resident interpreter: a process that waits for code, started before the claim; and the contexts in which code
//! runs, each a process of its own. See docs/interpreters.md for the words between us and a driver.
//!
//! ```text
//!  start ─▶ spare ──first run──▶ context "default" ─▶ run, run, run (one after the other)
//!                  later ones: a new process ─▶ context "other" ─▶ run
//! ```
//! A context whose process ended gets a new one with its next run, which is told so.

mod context;
mod frames;
mod process;
mod run;
mod workers;

use hearth::guest::v1::{
    FailureKind, InterpreterReady, Interrupt, Interrupted, RunAccepted, RunCode,
    guest_message::Body, host_message::Body as Ask,
};
use nix::unistd::Pid;
use std::{collections::BTreeMap, process::ExitStatus};

pub use frames::Frame;
pub use process::{DRIVERS, Driver, Process};
pub use workers::Workers;

use crate::{
    calls::Desk,
    limits::{CALLS, CODE_BYTES, CONTEXT_NAME_BYTES, CONTEXTS, PIECE_BYTES, RUNS, WAITING_BYTES},
    refusal::Refusal,
    user::User,
    wants::{Part, Tag, Wants},
};
use context::Context;
use run::Run;

/// The slot of the spare in tags.
const SPARE: usize = usize::MAX;

#[derive(Debug)]
enum Spare {
    /// Not wanted: it has become a context.
    Taken,
    Waits(Box<Process>),
    Failed(FailureKind, String),
}

#[derive(Debug)]
pub struct Interpreter {
    driver: Option<&'static Driver>,
    spare: Spare,
    /// Calls that ask whether the spare is ready.
    asking: Vec<u64>,
    contexts: Vec<Context>,
    pub workers: Workers,
}

impl Interpreter {
    /// Starts the one that waits for code, and as many workers.
    pub fn start(
        driver: Option<&'static Driver>,
        workers: usize,
        user: Option<&User>,
        desk: &mut Desk,
    ) -> Self {
        let spare = match driver {
            None => Spare::Taken,
            Some(driver) => match Process::start(driver, &BTreeMap::new(), user) {
                Ok(process) => Spare::Waits(Box::new(process)),
                Err(refusal) => {
                    desk.log.say(format_args!("{}", refusal.text()));
                    Spare::Failed(refusal.kind(), refusal.text().to_owned())
                }
            },
        };
        Self {
            driver,
            spare,
            asking: Vec::new(),
            contexts: Vec::new(),
            workers: Workers::start(driver, workers, user, desk),
        }
    }

    pub fn wants<'a>(&'a self, desk: &Desk, wants: &mut Wants<'a>) {
        if let Spare::Waits(spare) = &self.spare {
            if let Some((channel, _)) = spare.channel() {
                wants.read(channel, Tag::Code(SPARE, Part::Say));
            }
            for (at, part) in [(0, Part::Stdout), (1, Part::Stderr)] {
                if let Some(pipe) = spare.pipe(at) {
                    wants.read(pipe, Tag::Code(SPARE, part));
                }
            }
        }
        for (slot, context) in self.contexts.iter().enumerate() {
            context.wants(slot, desk, wants);
        }
        self.workers.wants(desk, wants);
    }

    /// Something of a slot may be ready. (The slot may have another tenant since; nothing waits.)
    pub fn ready(&mut self, slot: usize, desk: &mut Desk) {
        if slot != SPARE {
            if let Some(context) = self.contexts.get_mut(slot) {
                context.pump(desk);
            }
            return;
        }
        let Spare::Waits(spare) = &mut self.spare else {
            return;
        };
        // It prints what fails while it starts; then nothing, and says nothing but that it is ready.
        for at in [0, 1] {
            let _told = spare.output(at, PIECE_BYTES, desk);
        }
        let _nothing = spare.frame(PIECE_BYTES, desk);
        self.tell_ready(desk);
    }

    /// A worker may have said something.
    pub fn worker_ready(&mut self, at: usize, desk: &mut Desk) {
        self.workers.ready(at, desk);
        self.tell_ready(desk);
    }

    fn is_ready(&self, desk: &Desk) -> bool {
        match &self.spare {
            Spare::Waits(spare) => spare.is_ready && self.workers.is_settled(desk),
            Spare::Taken => true,
            Spare::Failed(..) => false,
        }
    }

    fn tell_ready(&mut self, desk: &mut Desk) {
        if self.is_ready(desk) {
            for call in self.asking.drain(..) {
                desk.outbox
                    .answer(call, Body::InterpreterReady(InterpreterReady {}));
            }
        }
    }

    /// Does what the host asks of an interpreter; `env` is the claim's.
    ///
    /// # Errors
    /// INVALID without an interpreter and for what makes no sense; NOT_FOUND, LIMIT; why a process was not started.
    pub fn obey(
        &mut self,
        call: u64,
        ask: Ask,
        env: Option<&BTreeMap<String, String>>,
        user: Option<&User>,
        desk: &mut Desk,
    ) -> Result<(), Refusal> {
        match ask {
            Ask::Interpreter(_) => self.ask(call, desk)?,
            Ask::RunCode(asked) => {
                let none = BTreeMap::new();
                self.run(call, asked, env.unwrap_or(&none), user, desk)?;
            }
            Ask::Interrupt(asked) => {
                let interrupted = self.interrupt(&asked, desk)?;
                desk.outbox.answer(call, Body::Interrupted(interrupted));
            }
            _ => {}
        }
        Ok(())
    }

    /// Answers once the spare is ready.
    fn ask(&mut self, call: u64, desk: &mut Desk) -> Result<(), Refusal> {
        self.driver()?;
        if let Spare::Failed(kind, what) = &self.spare {
            return Err(Refusal::new(*kind, what.clone()));
        }
        if self.asking.len() >= CALLS {
            return Err(Refusal::limit("too many ask for the interpreter"));
        }
        self.asking.push(call);
        self.tell_ready(desk);
        Ok(())
    }

    fn driver(&self) -> Result<&'static Driver, Refusal> {
        self.driver
            .ok_or_else(|| Refusal::invalid("the template names no interpreter"))
    }

    /// Takes code into its context's queue; begins it if the context is idle.
    fn run(
        &mut self,
        call: u64,
        asked: RunCode,
        env: &BTreeMap<String, String>,
        user: Option<&User>,
        desk: &mut Desk,
    ) -> Result<(), Refusal> {
        let driver = self.driver()?;
        check(&asked)?;
        let waiting: usize = self.contexts.iter().map(Context::code_bytes).sum();
        if waiting + asked.code.len() > WAITING_BYTES {
            return Err(Refusal::limit("too much code waits"));
        }
        let slot = self.slot(&asked.context)?;
        let spare = &mut self.spare;
        let Some(context) = self.contexts.get_mut(slot) else {
            return Ok(());
        };
        if context.waiting() >= RUNS {
            return Err(Refusal::limit(format!("{RUNS} runs wait in this context")));
        }
        if context.process().is_none() {
            let mut process = match std::mem::replace(spare, Spare::Taken) {
                Spare::Waits(process) => *process,
                Spare::Taken | Spare::Failed(..) => Process::start(driver, env, user)?,
            };
            // The waiting one was started before there was a claim.
            let entries = env.iter().map(|(name, value)| format!("{name}={value}\0"));
            process.tell("env", entries.collect::<String>().as_bytes());
            context.inhabit(process);
        }
        let ahead = u32::try_from(context.waiting()).unwrap_or(u32::MAX);
        desk.outbox
            .answer(call, Body::RunAccepted(RunAccepted { ahead }));
        context.push(Run::new(call, asked));
        context.advance(desk);
        Ok(())
    }

    /// The place of a context; a new one if there is none of that name.
    fn slot(&mut self, name: &str) -> Result<usize, Refusal> {
        if let Some(slot) = self.find(name) {
            return Ok(slot);
        }
        if self.contexts.len() >= CONTEXTS {
            let empty = self.contexts.iter().position(Context::is_empty);
            let full = || Refusal::limit(format!("{CONTEXTS} contexts exist: end one"));
            self.contexts.remove(empty.ok_or_else(full)?);
        }
        self.contexts.push(Context::new(name.to_owned()));
        Ok(self.contexts.len() - 1)
    }

    fn find(&self, name: &str) -> Option<usize> {
        let mut contexts = self.contexts.iter();
        contexts.position(|context| context.name == name)
    }

    /// Interrupts a context's code, or ends the context.
    fn interrupt(&mut self, asked: &Interrupt, desk: &mut Desk) -> Result<Interrupted, Refusal> {
        let missing = || {
            let message = format!("no context {:?}", asked.context);
            Refusal::new(FailureKind::NotFound, message)
        };
        let slot = self.find(&asked.context).ok_or_else(missing)?;
        let context = self.contexts.get_mut(slot).ok_or_else(missing)?;
        let ran = context.interrupt(desk);
        if asked.end {
            if context.process().is_none() {
                self.contexts.remove(slot);
            } else {
                context.kill();
            }
        }
        Ok(Interrupted { ran })
    }

    pub fn credit(&mut self, call: u64, bytes: usize, desk: &mut Desk) {
        for context in &mut self.contexts {
            if context.with(call, |run| run.credit(bytes)) {
                context.pump(desk);
            }
        }
    }

    /// The host wants nothing more of a call.
    pub fn cancel(&mut self, call: u64, desk: &mut Desk) {
        self.asking.retain(|asking| *asking != call);
        for context in &mut self.contexts {
            if context.cancel(call, desk) {
                return;
            }
        }
    }

    /// A new session.
    pub fn outlive_session(&mut self, desk: &mut Desk) {
        self.asking.clear();
        for context in &mut self.contexts {
            context.outlive_session(desk);
        }
    }

    /// Deadlines that have come.
    pub fn due(&mut self, desk: &mut Desk) {
        for context in &mut self.contexts {
            context.due(desk);
        }
        self.workers.due(desk);
    }

    /// A child was buried; whether it was one of these.
    pub fn buried(&mut self, pid: Pid, status: ExitStatus, desk: &mut Desk) -> bool {
        if matches!(&self.spare, Spare::Waits(spare) if spare.pid == pid) {
            self.spare_ended(status, desk);
            return true;
        }
        if self.workers.buried(pid, status, desk) {
            self.tell_ready(desk);
            return true;
        }
        let is_it = |context: &&mut Context| context.process().is_some_and(|p| p.pid == pid);
        match self.contexts.iter_mut().find(is_it) {
            Some(context) => context.ended(status, desk),
            None => return false,
        }
        true
    }

    fn spare_ended(&mut self, status: ExitStatus, desk: &mut Desk) {
        self.ready(SPARE, desk);
        let Spare::Waits(spare) = std::mem::replace(&mut self.spare, Spare::Taken) else {
            return;
        };
        let what = format!("the interpreter has ended ({status}): {}", spare.told());
        desk.log.say(format_args!("{what}"));
        for call in self.asking.drain(..) {
            let refusal = Refusal::new(FailureKind::Io, what.clone());
            desk.outbox.answer(call, Body::Failure(refusal.into()));
        }
        self.spare = Spare::Failed(FailureKind::Io, what);
    }

    pub fn processes(&self) -> impl Iterator<Item = Pid> {
        let spare = match &self.spare {
            Spare::Waits(spare) => Some(spare.pid),
            Spare::Taken | Spare::Failed(..) => None,
        };
        let contexts = self.contexts.iter();
        let pids = contexts.filter_map(|context| context.process().map(|process| process.pid));
        spare
            .into_iter()
            .chain(pids)
            .chain(self.workers.processes())
    }

    /// No code runs or waits.
    pub fn is_idle(&self) -> bool {
        self.contexts.iter().all(|context| context.waiting() == 0)
    }
}

fn check(asked: &RunCode) -> Result<(), Refusal> {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let name = &asked.context;
    if !(1..=CONTEXT_NAME_BYTES).contains(&name.len()) || !name.bytes().all(letter) {
        return Err(Refusal::invalid("that is not the name of a context"));
    }
    if asked.code.len() > CODE_BYTES {
        return Err(Refusal::limit(format!(
            "code of more than {CODE_BYTES} bytes"
        )));
    }
    Ok(())
}
