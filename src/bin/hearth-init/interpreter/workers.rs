//! Workers of the interpreter: processes that have started, wait, and become what an exec starts of the same interpreter.
//! A worker serves once; then another is started, beside what it does. Where none fits, the exec starts its own as ever.
//!
//! What an interpreter reads only when it starts (its file, some variables) must be the same for the command as it was for
//! the worker; of the rest the worker's text takes care, and declines what it can't be.

use nix::unistd::Pid;
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    process::ExitStatus,
};

use super::process::{Driver, Process};
use crate::{
    calls::Desk,
    clock::Moment,
    limits::{JOB_BYTES, PIECE_BYTES, REPLACE_AFTER, WORKER_FAILURES},
    spawn::{Program, Theirs},
    user::User,
    wants::{Tag, Wants},
};

/// Variables that an interpreter, its C library or its loader reads when it starts, or rather: those that begin so.
const READ_AT_START: [&[u8]; 10] = [
    b"PYTHON",
    b"LD_",
    b"LC_",
    b"LANG",
    b"LOCPATH",
    b"GCONV_PATH",
    b"GLIBC_",
    b"MALLOC_",
    // Where a user's own packages lie.
    b"HOME",
    b"__PYVENV",
];

type Env = BTreeMap<OsString, OsString>;

/// One that waits, and what it was when it started.
#[derive(Debug)]
struct Waiting {
    process: Process,
    file: PathBuf,
    mark: Mark,
    env: Env,
    /// It said that it is ready, and it is what it was started as.
    is_checked: bool,
}

impl Waiting {
    fn is_ready(&self) -> bool {
        self.is_checked && self.process.channel().is_some()
    }

    fn fits(&self, program: &Program) -> bool {
        self.is_ready()
            && self.file == program.file
            && self.env == read_at_start(&program.env)
            && self.mark == Mark::of(&self.file)
    }
}

/// Tells a file from another one in its place.
#[derive(Debug, PartialEq, Eq)]
struct Mark(Option<(u64, i64, i64)>);

impl Mark {
    fn of(file: &Path) -> Self {
        let info = fs::metadata(file).ok();
        Self(info.map(|info| (info.size(), info.mtime(), info.mtime_nsec())))
    }
}

fn read_at_start(env: &Env) -> Env {
    let read = |name: &OsStr| {
        let name = name.as_bytes();
        READ_AT_START.iter().any(|begin| name.starts_with(begin))
    };
    let entries = env.iter().filter(|(name, _)| read(name));
    entries
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

#[derive(Debug, Default)]
pub struct Workers {
    driver: Option<&'static Driver>,
    user: Option<User>,
    wanted: usize,
    waiting: Vec<Waiting>,
    /// When one that is missing is started.
    next: Option<Moment>,
}

impl Workers {
    /// Starts as many.
    pub fn start(
        driver: Option<&'static Driver>,
        wanted: usize,
        user: Option<&User>,
        desk: &mut Desk,
    ) -> Self {
        let mut workers = Self {
            driver,
            user: user.cloned(),
            wanted,
            ..Self::default()
        };
        for _ in 0..wanted {
            workers.start_one(desk);
        }
        workers
    }

    fn start_one(&mut self, desk: &mut Desk) {
        let Some(driver) = self.driver else {
            return;
        };
        match Process::start_worker(driver, self.user.as_ref()) {
            None => self.wanted = 0,
            Some(Ok((process, program))) => self.waiting.push(Waiting {
                process,
                mark: Mark::of(&program.file),
                env: read_at_start(&program.env),
                file: program.file,
                is_checked: false,
            }),
            Some(Err(refusal)) => {
                desk.log.say(format_args!("{}", refusal.text()));
                self.failed(desk);
            }
        }
    }

    fn failed(&mut self, desk: &mut Desk) {
        desk.worker_failed();
        self.want_one(desk);
    }

    fn want_one(&mut self, desk: &Desk) {
        self.next = self.next.or(Some(desk.now + REPLACE_AFTER));
    }

    fn gave_up(&self, desk: &Desk) -> bool {
        desk.failed_workers >= WORKER_FAILURES
    }

    /// As many wait as were asked for, or that will never be.
    pub fn is_settled(&self, desk: &Desk) -> bool {
        let ready = self.waiting.iter().filter(|one| one.is_ready()).count();
        ready >= self.wanted || self.gave_up(desk)
    }

    pub fn wants<'a>(&'a self, desk: &Desk, wants: &mut Wants<'a>) {
        if let Some(next) = self.next.filter(|_| !self.gave_up(desk)) {
            wants.until(next);
        }
        for (at, one) in self.waiting.iter().enumerate() {
            let channel = one.process.channel().map(|(channel, _)| channel);
            let pipes = [0, 1].map(|pipe| one.process.pipe(pipe));
            for fd in pipes.into_iter().chain([channel]).flatten() {
                wants.read(fd, Tag::Worker(at));
            }
        }
    }

    /// One of them may have said something: that it is ready, or what fails while it starts.
    pub fn ready(&mut self, at: usize, desk: &mut Desk) {
        let Some(one) = self.waiting.get_mut(at) else {
            return;
        };
        for pipe in [0, 1] {
            let _told = one.process.output(pipe, PIECE_BYTES, desk);
        }
        // It has nothing else to say.
        if one.process.frame(PIECE_BYTES, desk).is_some() {
            one.process.hang_up();
        }
        if !one.process.is_ready || one.is_checked {
            return;
        }
        one.is_checked = true;
        if !runs(one.process.pid, &one.file) {
            let file = one.file.display();
            desk.log.say(format_args!(
                "{file} is a wrapper: what it would start another time is not known, so there are no workers"
            ));
            self.wanted = 0;
            one.process.hang_up();
        }
    }

    /// A worker that is now this program: its word on that is to come. `None`: none can be.
    pub fn take(&mut self, program: &Program, theirs: &Theirs, desk: &mut Desk) -> Option<Process> {
        if !can_be(&program.command) {
            return None;
        }
        let at = self.waiting.iter().position(|one| one.fits(program))?;
        let job = job(program)?;
        let mut process = self.waiting.swap_remove(at).process;
        self.want_one(desk);
        if process.hand(&job, theirs) {
            return Some(process);
        }
        process.hang_up();
        self.failed(desk);
        None
    }

    /// Starts one that is missing.
    pub fn due(&mut self, desk: &mut Desk) {
        if self.next.is_none_or(|next| next > desk.now) || self.gave_up(desk) {
            return;
        }
        self.next = None;
        if self.waiting.len() < self.wanted {
            self.start_one(desk);
        }
        if self.waiting.len() < self.wanted {
            self.want_one(desk);
        }
    }

    /// A child was buried; whether it was one of these.
    pub fn buried(&mut self, pid: Pid, status: ExitStatus, desk: &mut Desk) -> bool {
        let Some(at) = self.waiting.iter().position(|one| one.process.pid == pid) else {
            return false;
        };
        self.ready(at, desk);
        let process = self.waiting.swap_remove(at).process;
        let told = process.told();
        desk.log
            .say(format_args!("a worker has ended ({status}): {told}"));
        self.failed(desk);
        true
    }

    pub fn processes(&self) -> impl Iterator<Item = Pid> {
        self.waiting.iter().map(|one| one.process.pid)
    }
}

/// Whether the process is of that file itself.
fn runs(pid: Pid, file: &Path) -> bool {
    let exe = fs::read_link(format!("/proc/{pid}/exe"));
    exe.is_ok_and(|exe| fs::canonicalize(file).is_ok_and(|file| file == exe))
}

/// `python3 -c CODE …`, `python3 -m MODULE …`, `python3 SCRIPT …`: no other option.
fn can_be(command: &[OsString]) -> bool {
    match command.get(1).map(|word| word.as_bytes()) {
        Some(b"-c" | b"-m") => command.len() > 2,
        Some(script) => script.first().is_some_and(|byte| *byte != b'-'),
        None => false,
    }
}

/// What the worker is told, its parts with a NUL between: "1" with a terminal, the directory, how many arguments, those, and
/// the environment. `None`: more than goes through the channel at once.
fn job(program: &Program) -> Option<Vec<u8>> {
    let tty: &[u8] = if program.tty { b"1" } else { b"0" };
    let mut job = tty.to_vec();
    let mut add = |parts: &[&[u8]]| {
        job.push(0);
        parts.iter().for_each(|part| job.extend_from_slice(part));
    };
    add(&[program.dir.as_bytes()]);
    add(&[program.command.len().to_string().as_bytes()]);
    for word in &program.command {
        add(&[word.as_bytes()]);
    }
    for (name, value) in &program.env {
        add(&[name.as_bytes(), b"=", value.as_bytes()]);
    }
    (job.len() <= JOB_BYTES).then_some(job)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_command_lines_are_a_workers() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        for fits in ["p -c 1", "p -m http.server -x", "p script -v", "p -c 1 -c"] {
            assert!(can_be(&words(fits)), "{fits}");
        }
        for not in [
            "p",
            "p -",
            "p -c",
            "p -m",
            "p -u -c 1",
            "p -c1",
            "p --",
            "p ",
        ] {
            assert!(!can_be(&words(not)), "{not}");
        }
    }

    #[test]
    fn what_is_read_at_the_start_is_told_from_the_rest() {
        let env = ["PYTHONPATH", "LC_ALL", "LANG", "HOME", "PATH", "TZ", "A"];
        let env = env.map(|name| (OsString::from(name), OsString::new()));
        let read = read_at_start(&env.into());
        let names: Vec<_> = read.keys().map(|name| name.to_str()).collect();
        assert_eq!(
            names,
            [
                Some("HOME"),
                Some("LANG"),
                Some("LC_ALL"),
                Some("PYTHONPATH")
            ]
        );
    }
}
