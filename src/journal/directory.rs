//! The data directory itself: made private, locked, with the node's key.

use super::OpenError;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The node's key: claims' access tokens and content digests are HMACs under it. Does not show itself in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeKey([u8; NodeKey::LEN]);

impl NodeKey {
    /// Bytes.
    pub const LEN: usize = 32;

    /// The secret itself, for `app`, which makes rpc's own key of it.
    #[must_use]
    pub fn expose(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKey(..)")
    }
}

/// A data directory that belongs to this process as long as this value lives.
#[derive(Debug)]
pub(super) struct DataDirectory {
    path: PathBuf,
    _lock: Flock<File>,
}

impl DataDirectory {
    /// Makes the directory if need be, makes it private, locks it.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        make_private(path)?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock(path)?,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes renames and new names of this directory durable.
    pub fn sync(&self) -> io::Result<()> {
        sync_directory(&self.path)
    }

    /// Reads the key; makes it if `may_make`, which holds only before the first journal: later a new key would turn every
    /// token and digest that was given out into another one's.
    pub fn key(&self, may_make: bool) -> Result<NodeKey, OpenError> {
        let path = self.path.join("node.key");
        // O_NONBLOCK: a FIFO in its place must not hang the start.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let mut options = OpenOptions::new();
        let opened = options.read(true).custom_flags(flags.bits()).open(&path);
        match opened {
            Ok(file) => read_key(&file, &path),
            Err(error) if error.kind() == io::ErrorKind::NotFound && may_make => {
                self.make_key(&path).map_err(OpenError::io(&path))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(untrusted(
                &path,
                "is missing although there is a journal: put it back, or move the journal away to start anew",
            )),
            Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
                Err(untrusted(&path, "is a symbolic link: a key must be a file"))
            }
            Err(error) => Err(OpenError::io(&path)(error)),
        }
    }

    fn make_key(&self, path: &Path) -> io::Result<NodeKey> {
        let bytes = random::<{ NodeKey::LEN }>()?;
        let unfinished = path.with_extension("key.new");
        remove_if_there(&unfinished)?;
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, path)?;
        self.sync()?;
        Ok(NodeKey(bytes))
    }
}

/// Bytes of the kernel's random generator.
pub(super) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}

/// Removes what an interrupted start left under a name that only unfinished files have.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn untrusted(path: &Path, detail: impl Into<String>) -> OpenError {
    OpenError::Untrusted {
        path: path.display().to_string(),
        detail: detail.into(),
    }
}

/// The directory as 0700. One that is there and open to others is closed to them only if nothing else is in it: nobody
/// should lose access to /var/lib because it was given as the data directory.
fn make_private(path: &Path) -> Result<(), OpenError> {
    let io = OpenError::io;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io(path))?;
    let found = std::fs::metadata(path).map_err(io(path))?;
    if found.mode() & 0o077 == 0 {
        return Ok(());
    }
    let mut ours = path.join("lock").exists();
    if !ours {
        let entries = std::fs::read_dir(path).map_err(io(path))?;
        let names = entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(io(path))?;
        // A file system of its own has a lost+found.
        ours = names.iter().all(|name| name == "lost+found");
    }
    if !ours {
        let mode = found.mode() & 0o7777;
        return Err(untrusted(
            path,
            format!(
                "is open to others (mode {mode:04o}) and holds other things: give hearth a directory of its own, \
                 or close it with chmod 0700"
            ),
        ));
    }
    std::fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(io(path))
}

/// Takes the lock, or says who holds it. The lock goes with the process, however it ends; the pid is for people.
fn lock(dir: &Path) -> Result<Flock<File>, OpenError> {
    let path = dir.join("lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options
        .mode(0o600)
        .open(&path)
        .map_err(OpenError::io(&path))?;
    let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((file, Errno::EWOULDBLOCK)) => {
            return Err(OpenError::InUse {
                dir: dir.display().to_string(),
                pid: holder(&file),
            });
        }
        Err((_, errno)) => return Err(OpenError::io(&path)(errno.into())),
    };
    // Always as long, so that no block is needed on a full disk. For people only: no reason not to start.
    let pid = format!("{:<15}\n", std::process::id());
    if let Err(error) = lock.write_all_at(pid.as_bytes(), 0) {
        tracing::warn!(%error, path = %path.display(), "the pid can't be written");
    }
    Ok(lock)
}

fn holder(lock: &File) -> u32 {
    let mut bytes = [0; 16];
    let read = lock.read_at(&mut bytes, 0).unwrap_or(0);
    let text = std::str::from_utf8(&bytes[..read]).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

fn read_key(file: &File, path: &Path) -> Result<NodeKey, OpenError> {
    let found = file.metadata().map_err(OpenError::io(path))?;
    let mode = found.mode() & 0o7777;
    if !found.is_file() {
        return Err(untrusted(path, "is not a regular file"));
    }
    if mode & 0o077 != 0 {
        return Err(untrusted(
            path,
            format!(
                "is open to others (mode {mode:04o}): treat it as known to them; if that is no matter, chmod 0600"
            ),
        ));
    }
    if found.len() != NodeKey::LEN as u64 {
        return Err(untrusted(
            path,
            format!("has {} bytes instead of {}", found.len(), NodeKey::LEN),
        ));
    }
    let mut bytes = [0; NodeKey::LEN];
    let mut reader = file;
    reader.read_exact(&mut bytes).map_err(OpenError::io(path))?;
    Ok(NodeKey(bytes))
}

/// Makes names in a directory durable.
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
