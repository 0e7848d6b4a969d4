//! The disk reserve: space in the data directory that belongs to nobody until the disk is full.
//!
//! Two lines of defence. First, the free space is watched: below the reserve's size the node refuses new claims, while
//! everything else goes on in what is left. Second, a file `reserve` of that size holds blocks: when the disk is full all
//! the same, they are given back at once, below redb (`file.rs`), so that releases can be committed and containerd can
//! delete. The file is made anew when the disk has room for it twice, so that making it does not reach the limit again.

use nix::errno::Errno;
use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::fstatvfs;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Is this the error of a full disk? A quota is a disk, too.
pub(super) fn is_full(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOSPC | Errno::EDQUOT))
}

/// What a look at the disk shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    /// What unprivileged processes may still use of the file system, bytes.
    pub free_bytes: u64,
    /// New claims must be refused.
    pub reached: bool,
}

#[derive(Debug)]
pub(super) struct Reserve {
    file: File,
    size_bytes: u64,
    /// The file holds all its blocks.
    whole: AtomicBool,
    /// The last look's result, for hysteresis.
    reached: AtomicBool,
}

impl Reserve {
    /// Opens or makes the file. No room for it is no error: the reserve is then reached from the start.
    pub fn open(data_dir: &Path, size_bytes: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(0o600).open(data_dir.join("reserve"))?;
        // A file of another size is of another configuration, or was given back.
        let whole = file.metadata()?.len() == size_bytes && size_bytes > 0;
        if !whole {
            file.set_len(0)?;
        }
        let this = Self {
            file,
            size_bytes,
            whole: AtomicBool::new(whole),
            reached: AtomicBool::new(false),
        };
        this.refill()?;
        Ok(this)
    }

    /// Gives the blocks back. `true`: there were some, a second attempt at what failed makes sense.
    pub fn release(&self) -> bool {
        if !self.whole.swap(false, Ordering::AcqRel) {
            return false;
        }
        // ext4 gives freed blocks out again only after its own commit: the sync makes one.
        let given = self.file.set_len(0).and_then(|()| self.file.sync_all());
        match &given {
            Ok(()) => tracing::warn!(
                bytes = self.size_bytes,
                "the disk is full: the journal's reserve was given back"
            ),
            Err(error) => tracing::error!(%error, "the journal's reserve can't be given back"),
        }
        given.is_ok()
    }

    /// Makes the file whole again if there is ample room. Takes long on file systems without fallocate: not called on
    /// the way of a commit.
    pub fn refill(&self) -> io::Result<()> {
        if self.whole.load(Ordering::Acquire) || self.free_bytes()? / 2 < self.size_bytes {
            return Ok(());
        }
        let len = i64::try_from(self.size_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        match posix_fallocate(&self.file, 0, len).map_err(io::Error::from) {
            Ok(()) => {
                self.file.sync_all()?;
                self.whole.store(true, Ordering::Release);
                Ok(())
            }
            // Someone else was faster: what was got goes back.
            Err(error) if is_full(&error) => self.file.set_len(0),
            Err(error) => Err(error),
        }
    }

    /// Looks at the disk: one statvfs, microseconds. Leaving the limit takes a quarter more than reaching it.
    pub fn look(&self) -> io::Result<Look> {
        let free_bytes = self.free_bytes()?;
        let was_reached = self.reached.load(Ordering::Acquire);
        let margin = if was_reached { self.size_bytes / 4 } else { 0 };
        let low = free_bytes < self.size_bytes.saturating_add(margin);
        let reached = low || !self.whole.load(Ordering::Acquire);
        self.reached.store(reached, Ordering::Release);
        Ok(Look {
            free_bytes,
            reached,
        })
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = fstatvfs(&self.file)?;
        Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }
}
