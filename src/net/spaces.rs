//! Network namespaces kept alive by a bind mount. Entering one is for a thread of this room only: the thread that goes in
//! comes out again, or ends the process's use of it.

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::sys::statfs::{FsType, fstatfs};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";
/// `NSFS_MAGIC`: a file of this filesystem is a namespace.
const NSFS: FsType = FsType(0x6e73_6673);

/// Moves the calling thread for good to another mount namespace: what it binds, writes and removes from here on is seen there.
/// Also for `app`, when it takes hearth off a node. Takes CAP_SYS_ADMIN, CAP_SYS_CHROOT and CAP_SYS_PTRACE.
///
/// # Errors
/// The kernel's: EPERM without one of these.
pub fn mount_there(mounts: &Path) -> Result<(), Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let space = open(mounts, flags, Mode::empty())?;
    // Root and working directory are shared by a process's threads until one wants its own.
    unshare(CloneFlags::CLONE_FS)?;
    setns(&space, CloneFlags::CLONE_NEWNS)
}

/// Makes the directory of namespaces; nobody else looks into it.
pub(super) fn directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Opens the namespace bound at `path`. `None`: there is none.
pub(super) fn find(path: &Path) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = match open(path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let is_namespace = fstatfs(&file)?.filesystem_type() == NSFS;
    Ok(is_namespace.then_some(file))
}

/// Makes a namespace, binds it to `path` and runs `inside` there.
///
/// # Errors
/// Of the making; nothing is left then. `inside`'s own result is the value.
pub(super) fn make<T>(path: &Path, inside: impl FnOnce() -> T) -> Result<T, Errno> {
    remove(path)?;
    let home = own()?;
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    file.map_err(|error| errno(&error))?;
    let made = unshare(CloneFlags::CLONE_NEWNET).and_then(|()| {
        let bound = bind_own(path);
        let done = bound.map(|()| inside());
        go_home(&home);
        done
    });
    if made.is_err() {
        let _ = remove(path);
    }
    made
}

/// Runs `inside` in a namespace.
pub(super) fn enter<T>(namespace: &OwnedFd, inside: impl FnOnce() -> T) -> Result<T, Errno> {
    let home = own()?;
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let done = inside();
    go_home(&home);
    Ok(done)
}

/// Gives the namespace bound at `from` the place `to`. May be repeated.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), Errno> {
    remove(to)?;
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to);
    file.map_err(|error| errno(&error))?;
    bind(from, to)?;
    remove(from)
}

/// Unbinds what is bound at `path` and removes the file. Nothing there: fine.
pub(super) fn remove(path: &Path) -> Result<(), Errno> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Once more: it may have been bound twice.
            Ok(()) => {}
            Err(Errno::EINVAL) => break,
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(errno(&error)),
        _ => Ok(()),
    }
}

/// Writes a setting of the namespace in which the thread is. One that this kernel does not have: fine, if it may be missing.
pub(super) fn sysctl(name: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new("/proc/sys/net").join(name), value)
}

fn own() -> Result<OwnedFd, Errno> {
    open(OWN, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

fn bind_own(path: &Path) -> Result<(), Errno> {
    bind(Path::new(OWN), path)
}

fn bind(from: &Path, to: &Path) -> Result<(), Errno> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
}

/// Back to where the thread belongs. A thread that cannot would from now on do its work in a wrong place: better none.
fn go_home(home: &OwnedFd) {
    if let Err(errno) = setns(home, CloneFlags::CLONE_NEWNET) {
        tracing::error!(%errno, "a network namespace cannot be left");
        std::process::abort();
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
