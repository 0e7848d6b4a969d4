//! One process of the managed containerd: started, or found running.

use std::{
    fs, io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::setsid,
};
use serde::{Deserialize, Serialize};

use super::{ManagedConfig, ManagedError, file, io_error, log};
use crate::runtime::process::{self, Process};

/// What a later hearthd needs to know it again.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Record {
    pid: i32,
    started_at_ticks: u64,
}

/// A running containerd, proved to be ours.
#[derive(Debug)]
pub(super) struct Instance {
    process: Process,
    /// Ours to reap, when this hearthd started it.
    child: Mutex<Option<Child>>,
}

impl Instance {
    pub(super) fn pid(&self) -> i32 {
        self.process.pid()
    }

    pub(super) fn is_running(&self) -> bool {
        self.process.is_running()
    }

    pub(super) fn terminate(&self) -> io::Result<()> {
        self.process.terminate()
    }

    pub(super) fn kill(&self) -> io::Result<()> {
        self.process.kill()
    }

    /// Returns when it has ended (and was reaped).
    pub(super) async fn ended(&self) -> io::Result<()> {
        self.process.ended().await?;
        self.reap();
        Ok(())
    }

    /// Whether it ended within `limit`.
    pub(super) async fn ends_within(&self, limit: Duration) -> io::Result<bool> {
        let ended = self.process.ends_within(limit).await?;
        if ended {
            self.reap();
        }
        Ok(ended)
    }

    /// Takes the status of one that has ended, so that it does not stay a zombie.
    pub(super) fn reap(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(child) = child.as_mut()
            && let Err(error) = child.try_wait()
        {
            tracing::debug!(%error, "containerd was reaped by someone else");
        }
    }

    /// Whether it runs this program, as it is on disk now.
    pub(super) fn runs(&self, program: &Path) -> bool {
        let running = fs::read_link(format!("/proc/{}/exe", self.pid()));
        let wanted = fs::canonicalize(program);
        matches!((running, wanted), (Ok(running), Ok(wanted)) if running == wanted)
    }
}

fn record_path(config: &ManagedConfig) -> std::path::PathBuf {
    config.state().join("pid.json")
}

/// A containerd with our configuration file: nobody else has it on the command line.
fn is_ours(config: &ManagedConfig, pid: i32) -> bool {
    let file = file::path(config).display().to_string();
    process::command_line(pid).get(1..) == Some(&["--config".to_owned(), file])
}

/// Finds the one that runs: by its record, which also names its start, or (when hearthd died between starting and
/// recording it) by its command line.
pub(super) fn adopt(config: &ManagedConfig) -> Result<Option<Instance>, ManagedError> {
    let path = record_path(config);
    let proc_error = |source| ManagedError::Io {
        path: "/proc".into(),
        source,
    };
    let recorded = fs::read(&path).ok();
    let recorded = recorded.and_then(|text| serde_json::from_slice::<Record>(&text).ok());
    if let Some(record) = recorded {
        let is_it = |pid| {
            process::started_at_ticks(pid) == Some(record.started_at_ticks) && is_ours(config, pid)
        };
        if let Some(found) = Process::find(record.pid, is_it).map_err(proc_error)? {
            return Ok(Some(adopted(found)));
        }
    }
    for pid in process::pids() {
        if is_ours(config, pid)
            && let Some(found) =
                Process::find(pid, |pid| is_ours(config, pid)).map_err(proc_error)?
        {
            record(config, &found)?;
            return Ok(Some(adopted(found)));
        }
    }
    Ok(None)
}

fn adopted(process: Process) -> Instance {
    Instance {
        process,
        child: Mutex::new(None),
    }
}

fn record(config: &ManagedConfig, process: &Process) -> Result<(), ManagedError> {
    let path = record_path(config);
    let record = Record {
        pid: process.pid(),
        started_at_ticks: process::started_at_ticks(process.pid()).unwrap_or_default(),
    };
    let text = serde_json::to_vec(&record).map_err(|error| io_error(&path)(error.into()))?;
    let fresh = path.with_extension("json.fresh");
    fs::write(&fresh, text).map_err(io_error(&fresh))?;
    fs::rename(&fresh, &path).map_err(io_error(&path))
}

/// Starts one: a session of its own, so that no signal meant for hearthd's reaches it and it outlives hearthd; as many
/// open files as the hard limit allows; its output in the log.
pub(super) fn spawn(config: &ManagedConfig) -> Result<Instance, ManagedError> {
    let program = &config.containerd;
    log::bound(&config.log());
    let output = log::open(&config.log()).map_err(io_error(&config.log()))?;
    let errors = output.try_clone().map_err(io_error(&config.log()))?;
    let mut path = std::ffi::OsString::from(config.shim.parent().unwrap_or(Path::new("/")));
    if let Some(inherited) = std::env::var_os("PATH") {
        path.push(":");
        path.push(inherited);
    }
    let mut command = Command::new(program);
    command
        .arg("--config")
        .arg(file::path(config))
        .env("PATH", path)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors);
    detach(&mut command).map_err(io_error(program))?;
    let child = command.spawn().map_err(io_error(program))?;
    let pid =
        i32::try_from(child.id()).map_err(|error| io_error(program)(io::Error::other(error)))?;
    // A child that has not been waited for keeps its pid: it can't be another.
    let process = Process::find(pid, |_| true).map_err(io_error(program))?;
    let Some(process) = process else {
        let log = config.log();
        let tail = log::tail(&log);
        return Err(ManagedError::Ended { log, tail });
    };
    record(config, &process)?;
    tracing::info!(pid, "started containerd");
    Ok(Instance {
        process,
        child: Mutex::new(Some(child)),
    })
}

#[allow(unsafe_code)]
fn detach(command: &mut Command) -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let before_exec = move || {
        setsid()?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec; setsid and setrlimit are async-signal-safe system calls, and it
    // neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(before_exec);
    }
    Ok(())
}
