//! Starts a process. As a rule by posix_spawn (vfork): measured in gVisor 4.3 ms to the first byte of a static binary,
//! against 5.6 to 7.9 with fork. std takes that way when nothing must run between the two; a user or a terminal needs
//! the other one.

use hearth::guest::v1::FailureKind;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::{Pid, setgid, setgroups, setuid},
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
    /// Whether there will be input; without it stdin is at its end (a terminal's stays silent).
    pub stdin: bool,
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
    let failed = |error: &io::Error| explain(&name.to_string_lossy(), error);
    match recipe.tty {
        Some(size) => with_terminal(command, recipe, size).map_err(|error| failed(&error)),
        None => with_pipes(command, recipe).map_err(|error| failed(&error)),
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

fn explain(name: &str, error: &io::Error) -> Refusal {
    match error.raw_os_error().map(Errno::from_raw) {
        // The file may be there: a script whose interpreter is missing, a binary whose loader is.
        Some(Errno::ENOENT) => Refusal::new(
            FailureKind::NotFound,
            format!("{name}: it or its interpreter does not exist"),
        ),
        _ => Refusal::io(name, error),
    }
}

fn with_pipes(mut command: Command, recipe: &Recipe<'_>) -> io::Result<Spawned> {
    command.stdin(if recipe.stdin {
        Stdio::piped()
    } else {
        Stdio::null()
    });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0);
    if let Some(user) = recipe.user {
        before_exec(&mut command, Some(user.clone()), false);
    }
    let mut child = command.spawn()?;
    let pid = child.id();
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(Errno::EBADF.into());
    };
    Ok(Spawned {
        pid: pid_of(pid),
        stdin: child
            .stdin
            .take()
            .map(OwnedFd::from)
            .map(quick)
            .transpose()?,
        stdout: quick(stdout.into())?,
        stderr: Some(quick(stderr.into())?),
    })
}

fn with_terminal(
    mut command: Command,
    recipe: &Recipe<'_>,
    (rows, columns): (u32, u32),
) -> io::Result<Spawned> {
    let Pty { master, slave } = open_pty(rows, columns, recipe.user)?;
    command.stdin(slave.try_clone()?);
    command.stdout(slave.try_clone()?).stderr(slave);
    before_exec(&mut command, recipe.user.cloned(), true);
    let input = master.try_clone()?;
    let pid = command.spawn()?.id();
    Ok(Spawned {
        pid: pid_of(pid),
        stdin: recipe.stdin.then_some(input),
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

fn pid_of(pid: u32) -> Pid {
    // A pid of Linux is at most 2^22.
    Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX))
}

/// Makes a descriptor answer at once.
pub fn quick(fd: OwnedFd) -> io::Result<OwnedFd> {
    never_block(&fd)?;
    Ok(fd)
}

/// Sets O_NONBLOCK.
pub fn never_block(fd: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
