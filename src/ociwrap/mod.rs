//! hearth-runsc: the layer between containerd-shim-runc-v2, which speaks runc's command line, and runsc.
//!
//! Owns: the mapping of the command line, the answers for frozen sandboxes, a deadline for every subcommand, and the
//! texts the shim matches on. Never: keeps state of its own, talks to hearthd or containerd, writes anything to stdout
//! but what the shim asked for. Synchronous: it lives for the time of one runsc call.
//!
//! ```text
//! shim ── hearth-runsc --root R --log L kill ID 9
//!           │ command::parse            what is asked
//!           │ WrapperConfig::find(R)    how this node runs runsc
//!           │ target::Target            what runsc recorded about ID, its cgroup, frozen or not
//!           ├─ frozen: act::frozen      answer, kill through the cgroup, or refuse
//!           └─ else:   act::running     child::run(runsc …, deadline), then the failure in the shim's words
//! ```

mod act;
mod bundle;
mod child;
mod command;
mod config;
mod failure;
mod plain_waits;
mod target;

#[cfg(test)]
mod tests;

use std::{
    ffi::OsString,
    io::Write,
    process::ExitCode,
    time::{Duration, Instant},
};

pub use bundle::{DISK_ANNOTATION, NETWORK_ANNOTATION, NETWORK_SANDBOX};
pub use config::{Deadlines, WrapperConfig};
pub use failure::{OVERDUE, WrapError};

use act::Outcome;
use command::Invocation;

/// Name of the mount (of an empty network namespace, for its gofers) that runsc leaves in its `--root`
/// (`<Options.root>/<namespace>`). Whoever owns that directory unmounts it when the last sandbox is gone.
pub const NULL_NETNS: &str = "null-netns";

/// Runs one command line (without the program's name) and returns its exit status. Called by the binary only.
#[must_use]
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let began = Instant::now();
    let args: Result<Vec<String>, OsString> = args.into_iter().map(OsString::into_string).collect();
    let invocation = match args {
        Ok(args) => command::parse(&args),
        Err(wrong) => Err(WrapError::Usage(format!("{wrong:?} is not UTF-8"))),
    };
    match invocation {
        Ok(invocation) => report(&invocation, perform(&invocation, began)),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(failure::EXIT_FAILURE)
        }
    }
}

fn perform(invocation: &Invocation, began: Instant) -> Result<Outcome, WrapError> {
    let config = WrapperConfig::find(invocation.root.as_deref())?;
    let limit = config.deadlines.of(invocation.verb);
    let call = act::Call {
        invocation,
        config: &config,
        clock: Clock { began, limit },
    };
    call.perform()
}

/// The time this invocation has.
#[derive(Debug, Clone, Copy)]
struct Clock {
    began: Instant,
    limit: Duration,
}

impl Clock {
    /// What is left of it.
    fn left(&self) -> Duration {
        self.limit.saturating_sub(self.began.elapsed())
    }
}

fn report(invocation: &Invocation, result: Result<Outcome, WrapError>) -> ExitCode {
    let (code, message) = match result {
        Ok(Outcome {
            code,
            stdout,
            message,
        }) => {
            let mut out = std::io::stdout().lock();
            // A shim that no longer reads has died: nobody is left to tell.
            let _unread = out.write_all(&stdout).and_then(|()| out.flush());
            (code, message)
        }
        Err(error) => (failure::EXIT_FAILURE, Some(error.to_string())),
    };
    if let Some(message) = message {
        // Where stderr is the sandbox's own, a complaint of ours would look like its output; the log has it.
        if invocation.log.is_none() || !invocation.verb.carries_stdio() {
            eprintln!("{message}");
        }
        failure::append(invocation.log.as_deref(), invocation.log_json, &message);
    }
    ExitCode::from(code)
}
