//! hearth-init: PID 1 of every sandbox, and hearthd's agent inside it.
//!
//! ```text
//!  stdin ─▶ host ─▶ init ─▶ claim                         what is answered at once
//!                    │  └──▶ calls: exec, files, port      machines that never wait
//!                    │            │ └─▶ strays, drains      what outlives its stream
//!                    ├──▶ interpreter: contexts, runs         code in processes that are there already
//!                    │            └─▶ workers ─▶ offer         or that become an exec of it
//!  stdout ◀─ outbox ◀┴────────────┘
//!  stderr ◀─ log ◀── entrypoint (the template's command)
//! ```
//!
//! One thread, one loop, one poll(2). It owns: the channel's guest side, every child, the sandbox's personalization.
//! It never waits for anybody but that poll: not for the host, not for a process, not for a FIFO. Two kinds of system
//! call wait for the kernel: starting a process until its exec, and the file system. Who serves a file system from
//! inside (FUSE), or stops a process between its fork and its exec, can hold them up: that harms nobody but the
//! sandbox's owner, and hearthd's deadlines notice. It never panics on what it is sent: a panic of PID 1 is the end of
//! the sandbox.

mod args;
mod bounding;
mod calls;
mod check;
mod claim;
mod clock;
mod credit;
mod drains;
mod entrypoint;
mod exec;
mod files;
mod host;
mod init;
mod intake;
mod interpreter;
mod kept;
mod limits;
mod log;
mod memory;
mod offer;
mod outbox;
mod place;
mod port;
mod pty;
mod quiet;
mod reaper;
mod refusal;
mod rehearsal;
mod signals;
mod spawn;
mod strays;
mod user;
mod wants;
mod which;

use std::{io, process::ExitCode};

use args::Asked;

#[global_allocator]
static MEMORY: memory::Memory = memory::Memory::new();

/// Exit code of a wrong command line (`EX_USAGE`).
const WRONG_USAGE: u8 = 64;

fn main() -> ExitCode {
    match args::parse(std::env::args_os().skip(1)) {
        Asked::Run {
            user,
            interpreter,
            prefork,
            command,
        } => match start(user, interpreter, prefork, &command) {
            Ok(init) => init.run(),
            Err(error) => {
                eprintln!("hearth-init: cannot start: {error}");
                ExitCode::FAILURE
            }
        },
        Asked::Version => {
            println!("hearth-init {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Asked::Help => {
            print!("{}", args::USAGE);
            ExitCode::SUCCESS
        }
        Asked::Wrong(what) => {
            eprintln!("hearth-init: {what}\n\n{}", args::USAGE);
            ExitCode::from(WRONG_USAGE)
        }
    }
}

fn start(
    user: Option<user::User>,
    interpreter: Option<&'static interpreter::Driver>,
    prefork: usize,
    command: &[std::ffi::OsString],
) -> io::Result<init::Init> {
    spawn::never_block(&io::stdin())?;
    spawn::never_block(&io::stdout())?;
    spawn::never_block(&io::stderr())?;
    bounding::keep_admin_to_ourselves();
    // Orphans come to us, also where we are not PID 1.
    nix::sys::prctl::set_child_subreaper(true)?;
    init::Init::start(user, interpreter, prefork, command)
}
