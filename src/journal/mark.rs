//! Evidence of the newest durable commit, kept beside the journal.
//!
//! After a crash redb can't tell a newest commit that was cut short from one that was whole and got damaged later: both
//! fail their checksums, and both are rolled back. The second had been acknowledged: rolled back in silence, its warm
//! member would be handed out twice. So after every commit its number is written here, without a sync: the number is
//! written only after the commit's fsync, so whatever of it survives a power loss names a commit that was durable, and a
//! journal that then holds less has lost something. Not synced, it costs microseconds; it may lag, it never runs ahead.

use crate::machine::ids::NodeTag;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Node tag, commit number, CRC-32 of both, all big-endian: far below a sector, so never half written.
const LEN: usize = 16;

#[derive(Debug)]
pub(super) struct Mark {
    path: PathBuf,
    file: File,
}

impl Mark {
    /// Opens or makes the mark in a data directory.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join("journal.mark");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(0o600).open(&path)?;
        Ok(Self { path, file })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The newest commit of this identity known to have been durable; 0: nothing is known. A mark of another identity, or
    /// one that does not read, says nothing.
    pub fn newest(&self, tag: NodeTag) -> u64 {
        let mut bytes = [0; LEN];
        if self.file.read_exact_at(&mut bytes, 0).is_err() {
            return 0;
        }
        let [_, _, _, _, a, b, c, d, e, f, g, h, ..] = bytes;
        let commit = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        if bytes == Self::bytes(tag, commit) {
            commit
        } else {
            0
        }
    }

    /// Notes a commit after its fsync.
    pub fn note(&self, tag: NodeTag, commit: u64) -> io::Result<()> {
        self.file.write_all_at(&Self::bytes(tag, commit), 0)
    }

    fn bytes(tag: NodeTag, commit: u64) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..4].copy_from_slice(&tag.0.to_be_bytes());
        bytes[4..12].copy_from_slice(&commit.to_be_bytes());
        let crc = crc32fast::hash(&bytes[..12]);
        bytes[12..].copy_from_slice(&crc.to_be_bytes());
        bytes
    }
}
