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
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, Stdio},
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
    pub stdin: Option<OwnedFd>,
    pub stdout: OwnedFd,
    /// None with a terminal.
    pub stderr: Option<OwnedFd>,
}

/// # Errors
/// NOT_FOUND, PERMISSION, INVALID (no program, a wrong directory), LIMIT (no descriptors, processes or memory left).
pub fn spawn(recipe: &Recipe<'_>) -> Result<Spawned, Refusal> {
    let name = recipe.command.first().map(OsString::as_os_str);
    let name = name.unwrap_or_default();
    let env = environment(recipe);
    if !recipe.dir.is_empty() {
        check_directory(recipe.dir)?;
    }
    let path = env.get(OsStr::new("PATH")).map(OsString::as_os_str);
    let file = which::find(name, path, recipe.dir)?;
    let mut command = Command::new(&file);
    command.arg0(name).args(recipe.command.iter().skip(1));
    command.env_clear().envs(&env);
    if !recipe.dir.is_empty() {
        command.current_dir(recipe.dir);
    }
    match recipe.tty {
        Some(size) => with_terminal(command, recipe, size),
        None => with_pipes(command, recipe),
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

fn with_pipes(mut command: Command, recipe: &Recipe<'_>) -> Result<Spawned, Refusal> {
    let failed = |error: io::Error| Refusal::io("pipe", &error);
    let pipe = || pipe_for(recipe.user).map_err(failed);
    let (stdout, theirs) = pipe()?;
    command.stdout(theirs);
    let (stderr, theirs) = pipe()?;
    command.stderr(theirs);
    let stdin = match recipe.stdin {
        Input::Nothing => {
            command.stdin(Stdio::null());
            None
        }
        Input::Pipe => {
            let (theirs, stdin) = pipe()?;
            command.stdin(theirs);
            Some(stdin)
        }
        Input::Channel => {
            let flags = SockFlag::SOCK_CLOEXEC;
            let pair = socketpair(AddressFamily::Unix, SockType::Stream, None, flags);
            let (theirs, stdin) = pair.map_err(|errno| failed(errno.into()))?;
            command.stdin(theirs);
            Some(stdin)
        }
    };
    for ours in [Some(&stdout), Some(&stderr), stdin.as_ref()]
        .into_iter()
        .flatten()
    {
        never_block(ours).map_err(failed)?;
    }
    command.process_group(0);
    if let Some(user) = recipe.user {
        before_exec(&mut command, Some(user.clone()), false);
    }
    Ok(Spawned {
        pid: start(command)?,
        stdin,
        stdout,
        stderr: Some(stderr),
    })
}

/// The end to read from, the end to write to. The user's own, so that it may open `/dev/stdout`.
fn pipe_for(user: Option<&User>) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    if let Some(user) = user {
        fchown(&read, Some(user.uid), Some(user.gid))?;
    }
    Ok((read, write))
}

fn with_terminal(
    mut command: Command,
    recipe: &Recipe<'_>,
    (rows, columns): (u32, u32),
) -> Result<Spawned, Refusal> {
    let failed = |error: io::Error| Refusal::io("terminal", &error);
    let Pty { master, slave } = open_pty(rows, columns, recipe.user).map_err(failed)?;
    command.stdin(slave.try_clone().map_err(failed)?);
    command.stdout(slave.try_clone().map_err(failed)?);
    command.stderr(slave);
    before_exec(&mut command, recipe.user.cloned(), true);
    let input = master.try_clone().map_err(failed)?;
    Ok(Spawned {
        pid: start(command)?,
        stdin: (recipe.stdin != Input::Nothing).then_some(input),
        stdout: master,
        stderr: None,
    })
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
