//! The stdio FIFOs of a sandbox: `<run_dir>/sandboxes/<id>/{stdin,stdout,stderr}`, 0600 in a directory of 0700.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{fcntl::OFlag, sys::stat::Mode, unistd::mkfifo};

use crate::{
    machine::ids::SandboxId,
    runtime::{RuntimeConfig, StdioPaths},
};

/// The host's ends, held open for reading and writing: the shim opens its ends of stdout and stderr only when somebody
/// reads (`copyPipes` in containerd's runc shim), and by opening both directions nobody ever sees an end of file.
#[derive(Debug)]
pub(super) struct Fifos {
    _ends: [OwnedFd; 3],
}

/// The directory of all sandboxes.
pub(super) fn directory(config: &RuntimeConfig) -> PathBuf {
    config.run_dir.join("sandboxes")
}

/// Where the FIFOs of a sandbox are.
pub(super) fn paths(config: &RuntimeConfig, id: SandboxId) -> StdioPaths {
    let dir = directory(config).join(id.to_string());
    StdioPaths {
        stdin: dir.join("stdin"),
        stdout: dir.join("stdout"),
        stderr: dir.join("stderr"),
    }
}

impl StdioPaths {
    fn all(&self) -> [&Path; 3] {
        [&self.stdin, &self.stdout, &self.stderr]
    }
}

/// Makes and opens them; ones that are there already are opened.
pub(super) fn make(paths: &StdioPaths) -> io::Result<Fifos> {
    if let Some(dir) = paths.stdin.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
    }
    for path in paths.all() {
        match mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    open(paths)
}

/// Opens those of a sandbox that was made before.
pub(super) fn open(paths: &StdioPaths) -> io::Result<Fifos> {
    let [stdin, stdout, stderr] = paths.all().map(open_one);
    Ok(Fifos {
        _ends: [stdin?, stdout?, stderr?],
    })
}

fn open_one(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut options = fs::OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .custom_flags(flags.bits())
        .open(path)?;
    if !file.metadata()?.file_type().is_fifo() {
        let text = format!("{} is not a FIFO", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(file.into())
}

/// Removes the directory of a sandbox with all that is in it.
pub(super) fn remove(paths: &StdioPaths) -> io::Result<()> {
    let Some(dir) = paths.stdin.parent() else {
        return Ok(());
    };
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Ids of all sandboxes that have a directory.
pub(super) fn list(config: &RuntimeConfig) -> io::Result<Vec<SandboxId>> {
    let entries = match fs::read_dir(directory(config)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| SandboxId::parse(name).ok()));
    }
    Ok(found)
}
