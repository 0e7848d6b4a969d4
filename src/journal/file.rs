//! journal.redb as redb's storage: plain positioned I/O that never tells redb of a full disk as long as the reserve can
//! help.
//!
//! On a file system that overwrites in place (ext4, xfs without reflink, tmpfs) the disk can fill up under a journal only
//! where the file grows, because growth is filled with zeros at once and everything later stays within. One growth
//! doubles the file; while only releases go on, the data in it does not. So one release of the reserve suffices. On
//! other file systems (btrfs, zfs, overlays of them) any write may need space: it gets the same treatment.

use super::reserve::{Reserve, is_full};
use nix::fcntl::{Flock, FlockArg, PosixFadviseAdvice, posix_fadvise};
use redb::StorageBackend;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// Zeros are written this many bytes at a time.
const FILL_BYTES: usize = 1 << 20;

/// The file, locked.
#[derive(Debug)]
pub(super) struct JournalFile {
    file: Flock<File>,
    reserve: Arc<Reserve>,
}

impl JournalFile {
    /// Makes an empty file. `WouldBlock`: someone else has it open.
    pub fn create(path: &Path, reserve: Arc<Reserve>) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        Self::lock(options.open(path)?, reserve)
    }

    /// Opens the file as the disk has it. After a failed fsync (which ended the last hearthd) the page cache may show
    /// content that never reached the disk, marked clean: what is clean is dropped, so that it is read again.
    pub fn open(path: &Path, reserve: Arc<Reserve>) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let this = Self::lock(file, reserve)?;
        this.file.sync_data()?;
        posix_fadvise(&*this.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        Ok(this)
    }

    /// The lock on the file itself: the one on `lock` is gone when someone removes that file "because it is stale".
    fn lock(file: File, reserve: Arc<Reserve>) -> io::Result<Self> {
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e)?;
        Ok(Self { file, reserve })
    }

    /// Runs `attempt`; when the disk is full, gives the reserve back and runs it once more.
    fn with_reserve(&self, attempt: impl Fn() -> io::Result<()>) -> io::Result<()> {
        match attempt() {
            Err(error) if is_full(&error) && self.reserve.release() => attempt(),
            other => other,
        }
    }

    fn fill(&self, from: u64, to: u64) -> io::Result<()> {
        let zeros = vec![0; FILL_BYTES];
        let mut at = from;
        while at < to {
            let rest = usize::try_from(to - at).unwrap_or(FILL_BYTES);
            let piece = &zeros[..rest.min(FILL_BYTES)];
            self.file.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}

impl StorageBackend for JournalFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    /// The length changes in one step, because redb takes a file of a length between two layouts for damaged; then the
    /// new part is filled. If not even the reserve has room for all of it, the rest stays a hole: the pages really used
    /// may still fit.
    fn set_len(&self, len: u64) -> io::Result<()> {
        let before = self.len()?;
        self.file.set_len(len)?;
        match self.with_reserve(|| self.fill(before, len)) {
            Err(error) if is_full(&error) => Ok(()),
            other => other,
        }
    }

    /// Never tried again: after a failed fsync the page cache proves nothing. Where a full disk shows only here (NFS,
    /// btrfs), the reserve goes back all the same, for the next start.
    fn sync_data(&self) -> io::Result<()> {
        let synced = self.file.sync_data();
        if synced.as_ref().is_err_and(is_full) {
            self.reserve.release();
        }
        synced
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with_reserve(|| self.file.write_all_at(data, offset))
    }
}
