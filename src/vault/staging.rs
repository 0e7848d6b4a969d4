//! The tmpfs in which images are in plain for the moment that runsc writes or reads them.

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

/// Mounts it anew, or empties what is there: what was in it is gone.
pub(super) fn prepare(dir: &Path, bytes: u64, may_mount: bool) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir)?;
    let mounted = || {
        if !may_mount {
            let why = "it is in no tmpfs, and what is mounted in here runsc would not see";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        if is_mounted(dir)? {
            // A runsc that hearthd left behind may still write: what it writes goes with it.
            umount2(dir, MntFlags::MNT_DETACH)?;
        }
        mount_new(dir, bytes)
    };
    match mounted() {
        // Without CAP_SYS_ADMIN what is there must do: a tmpfs that the operator has mounted, or that of /run.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_in_memory(dir)? => {
            tracing::info!(dir = %dir.display(), "images are staged in the tmpfs that is there");
            empty(dir)
        }
        done => done,
    }
}

fn is_in_memory(dir: &Path) -> io::Result<bool> {
    Ok(statfs(dir)?.filesystem_type() == TMPFS_MAGIC)
}

fn empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.is_dir() {
            true => fs::remove_dir_all(path)?,
            false => fs::remove_file(path)?,
        }
    }
    Ok(())
}

/// A tmpfs of its own is mounted there.
fn is_mounted(dir: &Path) -> io::Result<bool> {
    let above = dir.parent().unwrap_or(dir);
    let own = fs::metadata(dir)?.dev() != fs::metadata(above)?.dev();
    Ok(own && is_in_memory(dir)?)
}

fn options(bytes: u64) -> String {
    format!("size={bytes},mode=0700")
}

fn flags() -> MsFlags {
    MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC
}

/// `noswap` where the kernel knows it (6.4).
fn mount_new(dir: &Path, bytes: u64) -> io::Result<()> {
    let try_with = |options: &str| {
        mount(
            Some("hearth-staging"),
            dir,
            Some("tmpfs"),
            flags(),
            Some(options),
        )
    };
    match try_with(&format!("{},noswap", options(bytes))) {
        Err(Errno::EINVAL) => {
            tracing::warn!(
                "this kernel has no tmpfs that is never swapped out (Linux 6.4): images in the making may get to swap"
            );
            Ok(try_with(&options(bytes))?)
        }
        done => Ok(done?),
    }
}

/// Unmounts it; nothing there is fine.
pub(super) fn take_down(dir: &Path) -> io::Result<()> {
    if dir.exists() && is_mounted(dir)? {
        umount2(dir, MntFlags::empty())?;
    }
    Ok(())
}
