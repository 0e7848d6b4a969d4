//! A host of the test's own for a real hearth-init over real FIFOs: synchronous, one thread, every wait bounded.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hearth::guest::{
    v1::{
        Chunk, Credit, Exec, Exited, Failure, GuestMessage, HostMessage, Ping, Stream,
        guest_message::Body as Answer, host_message::Body as Ask,
    },
    wire::{self, Assembler, Decoder},
};
use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::Mode,
    unistd::mkfifo,
};
use prost::Message;

/// For everything that must come. Never reached unless something hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The three FIFOs of one sandbox, held open as the shim and hearthd hold them.
pub struct Fifos {
    pub dir: tempfile::TempDir,
    _held: [File; 3],
}

impl Fifos {
    pub fn make() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("hi")
            .tempdir_in("/tmp")
            .unwrap();
        let make = |name: &str| {
            let path = dir.path().join(name);
            mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
            open(&path)
        };
        let _held = [make("stdin"), make("stdout"), make("stderr")];
        Self { dir, _held }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// As the guest gets them.
    pub fn give(&self, command: &mut Command) {
        let write = |name| {
            let path = self.path(name);
            OpenOptions::new().write(true).open(path).unwrap()
        };
        command.stdin(File::open(self.path("stdin")).unwrap());
        command.stdout(write("stdout")).stderr(write("stderr"));
    }
}

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .unwrap()
}

/// A hearth-init that runs.
pub struct Guest {
    pub fifos: Fifos,
    pub child: Child,
}

impl Guest {
    /// As an ordinary process of the host.
    pub fn plain(args: &[&str]) -> Self {
        Self::launch(Command::new(env!("CARGO_BIN_EXE_hearth-init")), args)
    }

    /// As PID 1 of namespaces of its own, with a tmpfs on /run, and on /etc a layer of its own.
    pub fn first(args: &[&str]) -> Self {
        Self::first_with(args, &[])
    }

    /// The same with variables of its own.
    pub fn first_with(args: &[&str], env: &[(&str, &str)]) -> Self {
        let setup = "mount -t tmpfs none /run && mkdir -p /run/hearth/secrets /run/.etc/up /run/.etc/work && \
             mount -t overlay -o lowerdir=/etc,upperdir=/run/.etc/up,workdir=/run/.etc/work none /etc && \
             echo '127.0.0.1 localhost' >/etc/hosts && echo before >/etc/hostname && exec \"$0\" \"$@\"";
        let mut command = Command::new("unshare");
        command.envs(env.iter().copied()).args([
            "--uts",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]);
        command.args(["sh", "-c", setup, env!("CARGO_BIN_EXE_hearth-init")]);
        Self::launch(command, args)
    }

    pub fn launch(mut command: Command, args: &[&str]) -> Self {
        let fifos = Fifos::make();
        fifos.give(&mut command);
        let child = command.args(args).spawn().unwrap();
        Self { fifos, child }
    }

    /// Mounts a file system in the namespaces of [`Self::first`]: programs inside may not.
    pub fn mount(&self, words: &[&str]) {
        let unshare = self.child.id();
        let path = format!("/proc/{unshare}/task/{unshare}/children");
        let inside = std::fs::read_to_string(path).unwrap();
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", inside.trim(), "mount"]);
        assert!(command.args(words).status().unwrap().success(), "{words:?}");
    }

    /// A host that begins a session.
    pub fn host(&self) -> Host {
        Host::attach(&self.fifos)
    }

    /// What it logged since the last look.
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        let mut from = open(&self.fifos.path("stderr"));
        let mut buffer = [0; 65536];
        while let Ok(count) = from.read(&mut buffer) {
            text.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until the log has said it; all that it said until then.
    pub fn log_until(&self, what: &str) -> String {
        let mut text = String::new();
        eventually(what, || {
            text.push_str(&self.log());
            text.contains(what)
        });
        text
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("hearth-init ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the guest's log:\n{}", self.log());
        }
    }
}

/// Waits for something that must come.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(
            began.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What an exec came to.
#[derive(Debug, Default)]
pub struct Ran {
    pub pid: u32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exited: Option<Exited>,
    pub failure: Option<Failure>,
}

impl Ran {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn code(&self) -> i32 {
        self.exited
            .as_ref()
            .unwrap_or_else(|| panic!("{self:?}"))
            .code
    }
}

/// A command as an exec.
pub fn command(words: &[&str]) -> Exec {
    Exec {
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        ..Exec::default()
    }
}

/// A line of shell as an exec.
pub fn shell(line: &str) -> Exec {
    command(&["/bin/sh", "-c", line])
}

/// Variables.
pub fn vars(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let pairs = pairs.iter();
    pairs
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// What a word of code costs of the credit.
fn code_cost(answer: &Answer) -> usize {
    match answer {
        Answer::ResultPiece(piece) => {
            wire::RESULT_CREDIT + piece.mime_type.len() + piece.data.len()
        }
        Answer::RunError(error) => {
            wire::RESULT_CREDIT + error.name.len() + error.value.len() + error.traceback.len()
        }
        _ => 0,
    }
}

/// One session.
pub struct Host {
    pub to: File,
    pub from: File,
    pub session: u64,
    decoder: Decoder,
    assembler: Assembler,
    calls: u64,
    /// Read, and not asked for yet.
    inbox: VecDeque<GuestMessage>,
    /// Credit left in the guest's direction, by call.
    granted: BTreeMap<u64, usize>,
    /// Whether credit is granted as output is taken.
    pub generous: bool,
    /// How long the alignment took, and how many stale bytes came before it.
    pub aligned: (Duration, usize),
}

impl Host {
    pub fn attach(fifos: &Fifos) -> Self {
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).unwrap();
        Self::attach_as(fifos, u64::from_le_bytes(nonce))
    }

    /// HELLO, and away with everything until its ACK.
    pub fn attach_as(fifos: &Fifos, session: u64) -> Self {
        let mut host = Self {
            to: open(&fifos.path("stdin")),
            from: open(&fifos.path("stdout")),
            session,
            decoder: Decoder::default(),
            assembler: Assembler::new(wire::GUEST_MESSAGE_BYTES),
            calls: 0,
            inbox: VecDeque::new(),
            granted: BTreeMap::new(),
            generous: true,
            aligned: (Duration::ZERO, 0),
        };
        let (hello, ack) = (wire::hello(session), wire::ack(session));
        let began = Instant::now();
        let (mut said, mut stale) = (false, Vec::new());
        let mut buffer = vec![0; 65536];
        loop {
            assert!(
                began.elapsed() < PATIENCE,
                "no ACK among {} bytes",
                stale.len()
            );
            said = said
                || host
                    .to
                    .write(&hello)
                    .is_ok_and(|count| count == hello.len());
            match host.from.read(&mut buffer) {
                Ok(count) => stale.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_micros(50));
                }
                Err(error) => panic!("{error}"),
            }
            if let Some(at) = stale.windows(ack.len()).position(|part| part == &ack[..]) {
                host.aligned = (began.elapsed(), at);
                host.decoder.feed(&stale[at + ack.len()..]);
                host.gather();
                return host;
            }
        }
    }

    fn gather(&mut self) {
        while let Some(record) = self.decoder.next_record() {
            assert_eq!(record.session, self.session, "a record of another session");
            if record.kind == wire::Kind::Ack {
                continue;
            }
            if let Some(message) = self.assembler.take(record).unwrap() {
                let message = GuestMessage::decode(message).unwrap();
                self.check_credit(&message);
                self.inbox.push_back(message);
            }
        }
        assert_eq!(self.decoder.junk(), 0, "junk after the alignment");
    }

    /// The guest keeps to its credit.
    fn check_credit(&mut self, message: &GuestMessage) {
        let cost = match &message.body {
            Some(Answer::Output(output)) => output.data.len(),
            Some(Answer::Entries(page)) => {
                let costs = page
                    .entries
                    .iter()
                    .map(|entry| entry.name.len() + wire::ENTRY_CREDIT);
                costs.sum()
            }
            Some(answer) => code_cost(answer),
            None => 0,
        };
        let left = self
            .granted
            .entry(message.call)
            .or_insert(wire::FIRST_CREDIT);
        *left = left.checked_sub(cost).expect("output beyond the credit");
    }

    /// Reads once without waiting; whether there was anything.
    pub fn read(&mut self) -> bool {
        let mut buffer = vec![0; 65536];
        match self.from.read(&mut buffer) {
            Ok(count) => {
                self.decoder.feed(&buffer[..count]);
                self.gather();
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Writes; while the FIFO is full it goes on reading.
    pub fn write(&mut self, bytes: &[u8]) {
        let began = Instant::now();
        for record in bytes.chunks(wire::RECORD_BYTES) {
            while self.to.write(record).is_err() {
                assert!(began.elapsed() < PATIENCE, "the guest does not read");
                self.wait(PATIENCE, true);
            }
        }
    }

    pub fn say(&mut self, call: u64, body: Ask) {
        let body = Some(body);
        let message = HostMessage { call, body }.encode_to_vec();
        for record in wire::records(self.session, &message) {
            self.write(&record);
        }
    }

    /// Begins a call; its number.
    pub fn ask(&mut self, body: Ask) -> u64 {
        self.calls += 1;
        self.say(self.calls, body);
        self.calls
    }

    pub fn input(&mut self, call: u64, data: &[u8], eof: bool) {
        let data = Bytes::copy_from_slice(data);
        self.say(call, Ask::Input(Chunk { data, eof }));
    }

    pub fn grant(&mut self, call: u64, bytes: usize) {
        *self.granted.entry(call).or_insert(wire::FIRST_CREDIT) += bytes;
        let bytes = u32::try_from(bytes).unwrap();
        self.say(call, Ask::Credit(Credit { bytes }));
    }

    /// The next message of a call that comes within `time`.
    pub fn next_within(&mut self, call: u64, time: Duration) -> Option<Answer> {
        let began = Instant::now();
        loop {
            let at = self.inbox.iter().position(|message| message.call == call);
            if let Some(message) = at.and_then(|at| self.inbox.remove(at)) {
                let cost = match &message.body {
                    Some(Answer::Output(output)) => output.data.len(),
                    Some(answer) => code_cost(answer),
                    None => 0,
                };
                if self.generous && cost > 0 {
                    self.grant(call, cost);
                }
                return Some(message.body.unwrap());
            }
            let left = time.saturating_sub(began.elapsed());
            if !self.wait(left, false) && left.is_zero() {
                return None;
            }
        }
    }

    /// Waits until there is something to read (it is read) or, if so wished, room to write. Whether there was.
    fn wait(&mut self, time: Duration, room: bool) -> bool {
        let timeout = PollTimeout::try_from(time.as_micros().div_ceil(1000)).unwrap();
        let mut fds = vec![PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
        if room {
            fds.push(PollFd::new(self.to.as_fd(), PollFlags::POLLOUT));
        }
        poll(&mut fds, timeout).unwrap() > 0 && (self.read() || room)
    }

    /// The next message of a call.
    pub fn next(&mut self, call: u64) -> Answer {
        self.next_within(call, PATIENCE)
            .unwrap_or_else(|| panic!("no word of call {call}"))
    }

    /// A call with one answer.
    pub fn call(&mut self, body: Ask) -> Answer {
        let id = self.ask(body);
        self.next(id)
    }

    /// A round trip; how long it took.
    pub fn ping(&mut self) -> Duration {
        let began = Instant::now();
        let answer = self.call(Ask::Ping(Ping::default()));
        assert!(
            matches!(&answer, Answer::Pong(pong) if !pong.version.is_empty()),
            "{answer:?}"
        );
        began.elapsed()
    }

    pub fn failure(&mut self, body: Ask) -> Failure {
        match self.call(body) {
            Answer::Failure(failure) => failure,
            other => panic!("not a failure: {other:?}"),
        }
    }

    /// Starts an exec; its call and its pid.
    pub fn start(&mut self, exec: Exec) -> (u64, u32) {
        let id = self.ask(Ask::Exec(exec));
        match self.next(id) {
            Answer::Started(started) => (id, started.pid),
            other => panic!("not started: {other:?}"),
        }
    }

    /// Reads an exec to its end, checking the order.
    pub fn finish(&mut self, id: u64) -> Ran {
        let mut ran = Ran::default();
        let mut eofs = Vec::new();
        loop {
            match self.next(id) {
                Answer::Started(started) => ran.pid = started.pid,
                Answer::Output(output) => {
                    assert!(!eofs.contains(&output.stream), "output after eof");
                    assert!(output.eof || !output.data.is_empty(), "an empty output");
                    if output.stream() == Stream::Stderr {
                        ran.stderr.extend_from_slice(&output.data);
                    } else {
                        ran.stdout.extend_from_slice(&output.data);
                    }
                    if output.eof {
                        eofs.push(output.stream);
                    }
                }
                Answer::Exited(exited) => {
                    assert!(!eofs.is_empty(), "exited before eof");
                    ran.exited = Some(exited);
                    return ran;
                }
                Answer::Failure(failure) => {
                    ran.failure = Some(failure);
                    return ran;
                }
                Answer::Credit(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub fn run(&mut self, exec: Exec) -> Ran {
        let id = self.ask(Ask::Exec(exec));
        self.finish(id)
    }

    /// All data of a connection to its end.
    pub fn finish_data(&mut self, id: u64) -> String {
        let mut data = Vec::new();
        loop {
            match self.next(id) {
                Answer::Output(output) => {
                    data.extend_from_slice(&output.data);
                    if output.eof {
                        return String::from_utf8_lossy(&data).into_owned();
                    }
                }
                Answer::Credit(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// What one line of shell prints.
    pub fn sh(&mut self, line: &str) -> String {
        let ran = self.run(shell(line));
        assert_eq!(ran.code(), 0, "{line}: {ran:?}");
        ran.text()
    }

    /// Reads a terminal's output until it contains something; all of it.
    pub fn output_until(&mut self, id: u64, what: &str) -> String {
        let mut text = String::new();
        while !text.contains(what) {
            match self.next_within(id, PATIENCE) {
                Some(Answer::Output(output)) => {
                    text.push_str(&String::from_utf8_lossy(&output.data));
                    assert!(!output.eof, "ended without {what:?}: {text:?}");
                }
                other => panic!("no {what:?} in {text:?}, then {other:?}"),
            }
        }
        text
    }
}

/// Nothing on stdin, everything dropped.
pub fn quiet(command: &mut Command) -> &mut Command {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
}
