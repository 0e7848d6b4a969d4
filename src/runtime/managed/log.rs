//! The managed containerd's log: appended to by containerd, bounded by us.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Beyond this the log is moved to `<log>.1` and begins anew. So there are never much more than twice as many.
const LOG_BYTES: u64 = 8 << 20;
/// Of the last words.
const TAIL_BYTES: u64 = 2000;

pub(super) fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.create(true).append(true).mode(0o600).open(path)
}

/// Bounds the log. containerd keeps its open file: the content is copied away and the file cut; because it appends, it
/// goes on at the start. Best effort: a log that can't be copied is cut all the same.
pub(super) fn bound(path: &Path) {
    let long = fs::metadata(path).is_ok_and(|about| about.len() > LOG_BYTES);
    if !long {
        return;
    }
    let mut old = path.as_os_str().to_owned();
    old.push(".1");
    if let Err(error) = fs::copy(path, &old) {
        tracing::warn!(%error, "containerd's log cannot be kept");
    }
    let cut = File::options().write(true).open(path);
    if let Err(error) = cut.and_then(|file| file.set_len(0)) {
        tracing::warn!(%error, "containerd's log cannot be bounded");
    }
}

/// Its last words, for an error.
pub(super) fn tail(path: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut text = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).trim().replace('\n', " | "))
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    #[test]
    fn a_long_log_is_cut_under_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = open(&path).unwrap();
        writer.write_all(b"first words\nlast words\n").unwrap();
        bound(&path);
        assert_eq!(tail(&path), "first words | last words");
        writer.write_all(&vec![b'x'; 8 << 20]).unwrap();
        bound(&path);
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        writer.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let old = fs::read(dir.path().join("log.1")).unwrap();
        assert!(old.starts_with(b"first words") && old.len() > 8 << 20);
        assert_eq!(tail(&dir.path().join("none")), "");
    }
}
