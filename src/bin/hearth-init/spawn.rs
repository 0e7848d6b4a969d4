//! Starts a process. As a rule by posix_spawn (vfork): measured in gVisor 4.3 ms to the first byte of a static binary,
//! against 5.6 to 7.9 with fork. std takes that way when nothing must run between the two; a user or a terminal needs
//! the other one.

use hearth::guest::v1::FailureKind;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::{AddressFamily, SockFlag, SockType, socketpair},
    unistd::{Pid, fchown, pipe2, setgid, setgroups, setuid},
};
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::Command,
};

use crate::{
    pty::{Pty, open_pty, take_control},
    refusal::Refusal,
    user::{User, home_for},
    which,
};

/// What to start.
#[derive(Debug)]
pub struct Recipe<'a> {
    /// Not empty.
    pub command: &'a [OsString],
    /// On top of our own environment, the later ones on top of the earlier.
    pub env: &'a [&'a BTreeMap<String, String>],
    /// Empty: our own.
    pub dir: &'a str,
    pub user: Option<&'a User>,
    /// Rows and columns of its terminal.
    pub tty: Option<(u32, u32)>,
    pub stdin: Input,
}

/// What a process's stdin is. A terminal's is the terminal; without input it stays silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// At its end.
    Nothing,
    /// A pipe.
    Pipe,
    /// A socket, both ways.
    Channel,
}

/// What was started. Its process group is its pid; no descriptor blocks.
#[derive(Debug)]
pub struct Spawned {
    pub pid: Pid,
    pub stdout: OwnedFd,
    /// None with a terminal.
    pub stderr: Option<OwnedFd>,
}

/// Our ends of a process's streams.
#[derive(Debug)]
pub struct Streams {
    pub stdin: Option<OwnedFd>,
    pub stdout: OwnedFd,
    /// None with a terminal.
    pub stderr: Option<OwnedFd>,
}

/// The process's own ends: stdin, stdout, stderr.
pub type Theirs = [OwnedFd; 3];

/// A program that was found, with what its start needs.
#[derive(Debug)]
pub struct Program {
    pub file: PathBuf,
    /// Not empty.
    pub command: Vec<OsString>,
    /// All of it.
    pub env: BTreeMap<OsString, OsString>,
    /// Empty: our own.
    pub dir: String,
    pub tty: bool,
    /// Its process group is its own. With a terminal it is anyway.
    pub leads: bool,
    user: Option<User>,
}

/// # Errors
/// NOT_FOUND, PERMISSION, INVALID (no program, a wrong directory), LIMIT (no descriptors, processes or memory left).
pub fn spawn(recipe: &Recipe<'_>) -> Result<Spawned, Refusal> {
    let program = find(recipe)?;
    let (streams, theirs) = open(recipe)?;
    Ok(Spawned {
        pid: program.start(theirs)?,
        stdout: streams.stdout,
        stderr: streams.stderr,
    })
}

/// Looks a program up.
///
/// # Errors
/// As [`spawn`].
pub fn find(recipe: &Recipe<'_>) -> Result<Program, Refusal> {
    let name = recipe.command.first().map(OsString::as_os_str);
    let env = environment(recipe);
    if !recipe.dir.is_empty() {
        check_directory(recipe.dir)?;
    }
    let path = env.get(OsStr::new("PATH")).map(OsString::as_os_str);
    Ok(Program {
        file: which::find(name.unwrap_or_default(), path, recipe.dir)?,
        command: recipe.command.to_vec(),
        env,
        dir: recipe.dir.to_owned(),
        tty: recipe.tty.is_some(),
        leads: true,
        user: recipe.user.cloned(),
    })
}

/// Makes the streams.
///
/// # Errors
/// LIMIT.
pub fn open(recipe: &Recipe<'_>) -> Result<(Streams, Theirs), Refusal> {
    match recipe.tty {
        Some(size) => terminal(recipe, size).map_err(|error| Refusal::io("terminal", &error)),
        None => pipes(recipe).map_err(|error| Refusal::io("pipe", &error)),
    }
}

impl Program {
    /// Starts it.
    ///
    /// # Errors
    /// As [`spawn`].
    pub fn start(&self, theirs: Theirs) -> Result<Pid, Refusal> {
        let [stdin, stdout, stderr] = theirs;
        let mut command = Command::new(&self.file);
        let mut words = self.command.iter();
        if let Some(name) = words.next() {
            command.arg0(name);
        }
        command.args(words).env_clear().envs(&self.env);
        if !self.dir.is_empty() {
            command.current_dir(&self.dir);
        }
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        if self.leads && !self.tty {
            command.process_group(0);
        }
        if self.tty || self.user.is_some() {
            before_exec(&mut command, self.user.clone(), self.tty);
        }
        start(command)
    }
}

fn environment(recipe: &Recipe<'_>) -> BTreeMap<OsString, OsString> {
    let mut env: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    if let Some(home) = recipe
        .user
        .and_then(|user| home_for(user, env.get(OsStr::new("HOME"))))
    {
        env.insert("HOME".into(), home);
    }
    for layer in recipe.env {
        env.extend(
            layer
                .iter()
                .map(|(name, value)| (name.into(), value.into())),
        );
    }
    if recipe.tty.is_some() {
        env.entry("TERM".into()).or_insert_with(|| "xterm".into());
    }
    env
}

fn check_directory(dir: &str) -> Result<(), Refusal> {
    let what = format!("working directory {dir}");
    let info = fs::metadata(dir).map_err(|error| Refusal::io(&what, &error))?;
    if !info.is_dir() {
        return Err(Refusal::invalid(format!("{what}: not a directory")));
    }
    Ok(())
}

fn start(mut command: Command) -> Result<Pid, Refusal> {
    let started = command.spawn();
    let pid = started.map(|child| child.id()).map_err(|error| {
        let name = command.get_program().display();
        match error.raw_os_error().map(Errno::from_raw) {
            // The file may be there: a script whose interpreter is missing, a binary whose loader is.
            Some(Errno::ENOENT) => Refusal::new(
                FailureKind::NotFound,
                format!("{name}: it or its interpreter does not exist"),
            ),
            _ => Refusal::io(name.to_string(), &error),
        }
    })?;
    // A pid of Linux is at most 2^22.
    Ok(Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX)))
}

fn pipes(recipe: &Recipe<'_>) -> io::Result<(Streams, Theirs)> {
    let (stdout, their_stdout) = pipe_for(recipe.user)?;
    let (stderr, their_stderr) = pipe_for(recipe.user)?;
    let (stdin, their_stdin) = match recipe.stdin {
        Input::Nothing => (None, File::open("/dev/null")?.into()),
        Input::Pipe => {
            let (theirs, stdin) = pipe_for(recipe.user)?;
            (Some(stdin), theirs)
        }
        Input::Channel => {
            let flags = SockFlag::SOCK_CLOEXEC;
            let (theirs, stdin) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?;
            (Some(stdin), theirs)
        }
    };
    for ours in [Some(&stdout), Some(&stderr), stdin.as_ref()]
        .into_iter()
        .flatten()
    {
        never_block(ours)?;
    }
    let streams = Streams {
        stdin,
        stdout,
        stderr: Some(stderr),
    };
    Ok((streams, [their_stdin, their_stdout, their_stderr]))
}

/// The end to read from, the end to write to. The user's own, so that it may open `/dev/stdout`.
fn pipe_for(user: Option<&User>) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    if let Some(user) = user {
        fchown(&read, Some(user.uid), Some(user.gid))?;
    }
    Ok((read, write))
}

fn terminal(recipe: &Recipe<'_>, (rows, columns): (u32, u32)) -> io::Result<(Streams, Theirs)> {
    let Pty { master, slave } = open_pty(rows, columns, recipe.user)?;
    let theirs = [slave.try_clone()?, slave.try_clone()?, slave];
    let input = master.try_clone()?;
    let streams = Streams {
        stdin: (recipe.stdin != Input::Nothing).then_some(input),
        stdout: master,
        stderr: None,
    };
    Ok((streams, theirs))
}

/// What the child does between fork and exec.
#[allow(unsafe_code)]
fn before_exec(command: &mut Command, user: Option<User>, tty: bool) {
    let steps = move || {
        if tty {
            take_control()?;
        }
        if let Some(user) = &user {
            setgroups(&user.groups)?;
            setgid(user.gid)?;
            setuid(user.uid)?;
        }
        Ok(())
    };
    // SAFETY: system calls only, no allocation, and hearth-init has a single thread anyway.
    unsafe { command.pre_exec(steps) };
}

/// Sets O_NONBLOCK.
pub fn never_block(fd: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
