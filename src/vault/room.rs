//! How much room images have: a quota of their own, and never the disk's reserve.

use super::VaultError;
use crate::machine::ids::SandboxId;
use nix::errno::Errno;
use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

/// What each image has, or is to have.
#[derive(Debug, Default)]
pub(super) struct Room {
    taken: BTreeMap<SandboxId, u64>,
}

impl Room {
    pub(super) fn put(&mut self, id: SandboxId, bytes: u64) {
        self.taken.insert(id, bytes);
    }

    pub(super) fn take(&mut self, id: SandboxId) {
        self.taken.remove(&id);
    }

    pub(super) fn used(&self) -> u64 {
        self.taken
            .values()
            .fold(0, |sum, it| sum.saturating_add(*it))
    }

    pub(super) fn admit(&self, bytes: u64, quota: u64) -> Result<(), VaultError> {
        let used = self.used();
        if used.saturating_add(bytes) <= quota {
            return Ok(());
        }
        Err(VaultError::NoRoom(format!(
            "it takes about {} MiB; images have {} MiB of hibernation.quota_bytes, which is {} MiB",
            bytes >> 20,
            used >> 20,
            quota >> 20
        )))
    }
}

/// Whether the disk has that much beyond its reserve.
pub(super) fn disk(dir: &Path, bytes: u64, reserve: u64) -> Result<(), VaultError> {
    let about = statvfs(dir).map_err(|errno| VaultError::io(dir)(errno.into()))?;
    let free = about
        .blocks_available()
        .saturating_mul(about.fragment_size());
    if free >= bytes.saturating_add(reserve) {
        return Ok(());
    }
    Err(VaultError::NoRoom(format!(
        "it takes about {} MiB; {} has {} MiB free, of which {} MiB are hearth's reserve",
        bytes >> 20,
        dir.display(),
        free >> 20,
        reserve >> 20
    )))
}

/// Takes a file's blocks before it is written; a file system that can't is written as it is.
pub(super) fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    let bytes = i64::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    match posix_fallocate(file, 0, bytes) {
        Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
