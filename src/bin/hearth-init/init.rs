//! The loop. One turn: wait for what anybody wants, serve it, bury the dead, write what is to be written.

mod waiting;

use hearth::guest::v1::{
    self, GuestStats, Pong, guest_message::Body as Answer, host_message::Body as Ask,
};
use nix::{
    libc,
    sys::signal::Signal,
    unistd::{Pid, getpid},
};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    process::{ExitCode, ExitStatus},
};

use crate::{
    calls::{Call, Calls, Desk, Line, Step, signalled},
    claim::{Held, RandomDevice, personalize},
    clock::{Clock, Moment},
    entrypoint::Entrypoint,
    exec,
    files::{Listing, Reading, Writing},
    host::{Heard, Host},
    interpreter::{Driver, Interpreter},
    limits::{ABSENT_PAUSE, BURIALS, ROUNDS, SHUTDOWN_GRACE, STARTS},
    outbox::Flush,
    port::Port,
    quiet::Quiet,
    reaper::{Found, bury},
    refusal::Refusal,
    rehearsal::rehearse,
    signals::{Signals, to_all, to_group},
    user::User,
    wants::Tag,
};

pub struct Init {
    user: Option<User>,
    signals: Signals,
    clock: Clock,
    host: Host,
    desk: Desk,
    calls: Calls,
    entrypoint: Entrypoint,
    interpreter: Interpreter,
    held: Option<Held>,
    /// A claim was played through before the first answer.
    rehearsed: bool,
    random: RandomDevice,
    /// Everybody is stopped for a freeze.
    quiet: Quiet,
    /// More was read than has been heard.
    unheard: bool,
    /// Nobody has stdout open: write again then.
    deaf_until: Option<Moment>,
    /// Children may be dead.
    mourning: bool,
    /// There are no children.
    alone: bool,
    /// SIGTERM came: the end comes at the latest then.
    ending: Option<Moment>,
}

impl Init {
    /// Begins to listen to signals and starts the template's interpreter and command.
    ///
    /// # Errors
    /// No pipe, or no signal handler.
    pub fn start(
        user: Option<User>,
        driver: Option<&'static Driver>,
        workers: usize,
        command: &[OsString],
    ) -> io::Result<Self> {
        let signals = Signals::listen()?;
        let mut desk = Desk::default();
        let interpreter = Interpreter::start(driver, workers, user.as_ref(), &mut desk);
        let entrypoint = Entrypoint::start(command, user.as_ref(), &mut desk.log);
        Ok(Self {
            user,
            signals,
            clock: Clock::start(),
            host: Host::new(),
            desk,
            calls: Calls::default(),
            entrypoint,
            interpreter,
            held: None,
            rehearsed: false,
            random: RandomDevice::default(),
            quiet: Quiet::default(),
            unheard: false,
            deaf_until: None,
            mourning: true,
            alone: false,
            ending: None,
        })
    }

    /// Runs until SIGTERM.
    pub fn run(mut self) -> ExitCode {
        loop {
            let tags = self.wait();
            self.desk.now = self.clock.tick();
            for tag in tags {
                self.serve(tag);
            }
            self.serve_hot();
            self.calls.due(&mut self.desk);
            self.desk.strays.due(self.desk.now);
            self.quiet.due();
            self.interpreter.due(&mut self.desk);
            if self.mourning {
                self.bury();
            }
            self.flush();
            if self.is_over() {
                return ExitCode::SUCCESS;
            }
            self.rest();
        }
    }

    fn serve(&mut self, tag: Tag) {
        match tag {
            Tag::Signals => self.hear_signals(),
            Tag::HostIn => self.hear_host(),
            Tag::HostOut => self.desk.outbox.retry(),
            Tag::Call(id, part) => self.calls.ready(id, part, &mut self.desk),
            Tag::Code(slot, _) => self.interpreter.ready(slot, &mut self.desk),
            Tag::Worker(at) => self.interpreter.worker_ready(at, &mut self.desk),
            Tag::Command(at) => self.entrypoint.read(at, &mut self.desk),
            Tag::Drain(id) => self.desk.drains.read(id),
        }
    }

    /// Those that have more, as long as there is room.
    fn serve_hot(&mut self) {
        for _ in 1..ROUNDS {
            for (id, part) in self.desk.take_hot() {
                self.calls.ready(id, part, &mut self.desk);
            }
        }
        self.desk.take_hot();
    }

    fn flush(&mut self) {
        if self.deaf_until.is_some_and(|until| until > self.desk.now) {
            return;
        }
        self.deaf_until = match self.desk.outbox.flush() {
            Flush::Waits => None,
            Flush::Absent => Some(self.desk.now + ABSENT_PAUSE.1),
        };
    }

    fn hear_signals(&mut self) {
        for signal in self.signals.take() {
            match signal {
                Signal::SIGCHLD => self.mourning = true,
                Signal::SIGTERM | Signal::SIGINT => self.end(),
                other => self.entrypoint.signal(other as i32),
            }
        }
    }

    /// Everybody gets SIGTERM, and a short grace.
    fn end(&mut self) {
        if self.ending.is_some() {
            return;
        }
        self.desk.log.say(format_args!("ending"));
        self.quiet.end();
        self.ending = Some(self.desk.now + SHUTDOWN_GRACE);
        self.mourning = true;
        self.signal_everybody(libc::SIGTERM);
    }

    fn signal_everybody(&self, number: i32) {
        if getpid().as_raw() == 1 {
            to_all(number);
            return;
        }
        self.entrypoint.signal(number);
        for pid in self.processes() {
            // Gone already: it is about to be buried.
            let _ = to_group(pid, number);
        }
    }

    fn execs(&self) -> impl Iterator<Item = Pid> {
        self.calls.processes().chain(self.desk.strays.processes())
    }

    fn processes(&self) -> impl Iterator<Item = Pid> {
        self.execs().chain(self.interpreter.processes())
    }

    /// Everybody is gone and the host knows how, or the grace is over.
    fn is_over(&self) -> bool {
        let Some(ending) = self.ending else {
            return false;
        };
        if self.alone && !self.calls.has_processes() && self.desk.outbox.is_empty() {
            return true;
        }
        if self.desk.now < ending {
            return false;
        }
        // The kernel does the same when a PID 1 ends.
        self.signal_everybody(libc::SIGKILL);
        true
    }

    /// Buries some of the dead.
    fn bury(&mut self) {
        self.mourning = false;
        for _ in 0..BURIALS {
            match bury() {
                Found::Dead(pid, status) => self.buried(pid, status),
                Found::Alive => return,
                Found::Nobody => {
                    self.alone = true;
                    return;
                }
            }
        }
        self.mourning = true;
    }

    fn buried(&mut self, pid: Pid, status: ExitStatus) {
        let _known = self.calls.buried(pid, status, &mut self.desk)
            || self.desk.strays.buried(pid)
            || self.interpreter.buried(pid, status, &mut self.desk)
            || self.entrypoint.buried(pid, status, &mut self.desk.log);
    }

    fn hear_host(&mut self) {
        if !self.unheard {
            self.host.read(self.desk.now);
        }
        self.unheard = false;
        let mut begun = 0;
        while let Some(heard) = self.host.next(&mut self.desk.log) {
            match heard {
                Heard::Hello { session, new: true } => {
                    // It ends no silence: in a sandbox that came back from its image nobody goes on before the host
                    // says so.
                    self.calls.abandon(&mut self.desk);
                    self.desk.strays.outlive_session();
                    self.interpreter.outlive_session(&mut self.desk);
                    self.desk.outbox.begin(session);
                }
                Heard::Hello { .. } => self.desk.outbox.acknowledge(),
                Heard::Said { call, body } => {
                    begun += usize::from(matches!(body, Ask::Exec(_) | Ask::RunCode(_)));
                    self.obey(call, body);
                }
            }
            // Each start takes milliseconds; the others have a turn in between.
            if begun >= STARTS || self.desk.outbox.is_crowded() {
                self.unheard = true;
                return;
            }
        }
    }

    fn obey(&mut self, id: u64, ask: Ask) {
        let mut quiet = std::mem::take(&mut self.quiet);
        quiet.heed(&ask, self.processes());
        self.quiet = quiet;
        let desk = &mut self.desk;
        match ask {
            // About a call that is open, or was until a moment ago.
            Ask::Input(chunk) => self
                .calls
                .with(id, desk, |call, line| call.input(chunk, line)),
            Ask::Credit(credit) => {
                let bytes = usize::try_from(credit.bytes).unwrap_or(usize::MAX);
                self.interpreter.credit(id, bytes, desk);
                self.calls.with(id, desk, |call, _| {
                    call.credit(bytes);
                    Ok(Step::On)
                });
            }
            Ask::Resize(size) => self.calls.with(id, desk, |call, _| {
                call.resize(size.rows, size.columns);
                Ok(Step::On)
            }),
            Ask::Signal(signal) => self.calls.with(id, desk, |call, _| signalled(call, signal)),
            Ask::Cancel(_) => {
                self.calls.cancel(id, desk);
                self.interpreter.cancel(id, desk);
            }
            // Answered at once.
            Ask::Ping(_) => {
                if !std::mem::replace(&mut self.rehearsed, true) && self.held.is_none() {
                    rehearse(self.user.as_ref(), &mut self.random, &mut desk.log);
                }
                let version = env!("CARGO_PKG_VERSION").into();
                desk.outbox.answer(id, Answer::Pong(Pong { version }));
            }
            Ask::Claim(claim) => self.claim(id, claim),
            Ask::Witness(_) => {
                let claim_id = self.held.as_ref().map(|held| held.claim_id.clone());
                let running = u32::try_from(desk.strays.earlier()).unwrap_or(u32::MAX);
                let claim_id = claim_id.unwrap_or_default();
                desk.outbox
                    .answer(id, Answer::Held(v1::Held { claim_id, running }));
            }
            Ask::Stats(_) => {
                let stats = self.stats();
                self.desk.outbox.answer(id, Answer::Stats(stats));
            }
            ask @ (Ask::Interpreter(_) | Ask::RunCode(_) | Ask::Interrupt(_)) => {
                let env = self.held.as_ref().map(|held| &held.env);
                let user = self.user.as_ref();
                self.alone = false;
                if let Err(refusal) = self.interpreter.obey(id, ask, env, user, desk) {
                    desk.outbox.answer(id, Answer::Failure(refusal.into()));
                }
            }
            // New streams.
            ask => self.open(id, ask),
        }
    }

    fn claim(&mut self, id: u64, claim: v1::Claim) {
        let log = &mut self.desk.log;
        let (held, user) = (&mut self.held, self.user.as_ref());
        let answer = match personalize(claim, held, user, &mut self.random, log) {
            Ok(ack) => Answer::ClaimAck(ack),
            Err(refusal) => {
                log.say(format_args!("the claim failed: {}", refusal.text()));
                Answer::Failure(refusal.into())
            }
        };
        self.desk.outbox.answer(id, answer);
        self.host.forget();
    }

    fn stats(&self) -> GuestStats {
        let is_pid = |name: OsString| {
            name.as_encoded_bytes()
                .first()
                .is_some_and(u8::is_ascii_digit)
        };
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let processes = entries.filter(|entry| is_pid(entry.file_name())).count();
        GuestStats {
            processes: u32::try_from(processes).unwrap_or(u32::MAX),
            execs: u32::try_from(self.execs().count()).unwrap_or(u32::MAX),
        }
    }

    fn open(&mut self, id: u64, ask: Ask) {
        if self.calls.contains(id) {
            self.desk.log.say(format_args!(
                "call {id} is in use: another of that number was ignored"
            ));
            return;
        }
        let room = self.calls.check_room();
        let opened = room.and_then(|()| match &ask {
            Ask::Attach(attach) => {
                self.calls.attach(id, attach, &mut self.desk)?;
                Ok(None)
            }
            Ask::Exec(exec) => {
                self.calls.check_kept(&exec.key)?;
                self.opened(id, ask)
            }
            _ => self.opened(id, ask),
        });
        match opened {
            Ok(Some(call)) => self.calls.open(id, call),
            Ok(None) => {}
            Err(refusal) => {
                let failure = Answer::Failure(refusal.into());
                self.desk.outbox.answer(id, failure);
            }
        }
    }

    fn opened(&mut self, id: u64, ask: Ask) -> Result<Option<Box<dyn Call>>, Refusal> {
        let user = self.user.as_ref();
        let line = &mut Line {
            id,
            desk: &mut self.desk,
        };
        Ok(Some(match ask {
            Ask::Exec(exec) => {
                let none = BTreeMap::new();
                let held = self.held.as_ref();
                let env = held.map_or(&none, |held| &held.env);
                // They are the claim's: what proves a member ready starts its own.
                let workers = held.is_some().then_some(&mut self.interpreter.workers);
                self.alone = false;
                Box::new(exec::start(exec, env, user, workers, line)?)
            }
            Ask::ReadFile(request) => Box::new(Reading::open(request, line)?),
            Ask::WriteFile(request) => Box::new(Writing::open(&request, user)?),
            Ask::ListFiles(request) => Box::new(Listing::open(request)?),
            Ask::Connect(request) => Box::new(Port::open(request, line)?),
            _ => return Ok(None),
        }))
    }
}
