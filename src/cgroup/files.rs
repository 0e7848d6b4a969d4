//! Reading and writing single cgroup files. A group that vanished is `NotFound`, not an I/O error.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::errno::Errno;

use super::CgroupError;

/// Between two looks while waiting; a freeze takes 0.2-0.9 ms.
const LOOK_EVERY: Duration = Duration::from_micros(200);
/// Depth of the tree below a sandbox that is followed: runsc makes none, a guest can't.
const DEPTH: usize = 8;

/// ENODEV is what an open file of a removed group answers; ENOENT what its path does.
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENODEV as i32)
}

pub(super) fn wrap(path: &Path, source: io::Error) -> CgroupError {
    if gone(&source) {
        CgroupError::NotFound(path.parent().unwrap_or(path).to_owned())
    } else {
        CgroupError::Io {
            path: path.to_owned(),
            source,
        }
    }
}

pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| wrap(path, source))
}

pub(super) fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    // Not fs::write: that would create a plain file where the group's tree is no cgroup mount.
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .open(path)
        .map_err(|source| wrap(path, source))?;
    io::Write::write_all(&mut file, text.as_bytes()).map_err(|source| wrap(path, source))
}

/// A file with one number; `max`, an absent file (controller off) or v1's "no limit" are `None`.
pub(super) fn number(path: &Path) -> Result<Option<u64>, CgroupError> {
    /// v1 writes "no limit" as the largest multiple of a page.
    const UNLIMITED: u64 = 1 << 62;
    match read(path) {
        Ok(text) => Ok(text.trim().parse().ok().filter(|n| *n < UNLIMITED)),
        Err(CgroupError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The value of `key` in a flat-keyed file (`key value` lines); absent file or key: `None`.
pub(super) fn keyed(path: &Path, key: &str) -> Result<Option<u64>, CgroupError> {
    match read(path) {
        Ok(text) => Ok(text.lines().find_map(|line| {
            let (name, value) = line.split_once(' ')?;
            (name == key).then(|| value.trim().parse().ok())?
        })),
        Err(CgroupError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Directories right below `path`, sorted; none if it does not exist.
pub(super) fn children(path: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(Vec::new()),
        Err(source) => return Err(wrap(path, source)),
    };
    let mut found: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    Ok(found)
}

/// `path` and every group below it, children before parents.
pub(super) fn subtree(path: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    fn walk(path: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), CgroupError> {
        if depth > 0 {
            for child in children(path)? {
                walk(&child, depth - 1, found)?;
            }
        }
        found.push(path.to_owned());
        Ok(())
    }
    let mut found = Vec::new();
    if path.is_dir() {
        walk(path, DEPTH, &mut found)?;
    }
    Ok(found)
}

/// Removes an empty group; `false` while it is busy or has children.
pub(super) fn remove_dir(path: &Path) -> Result<bool, CgroupError> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if gone(&error) => Ok(true),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EBUSY | Errno::ENOTEMPTY) => Ok(false),
            Some(_) | None => Err(wrap(path, error)),
        },
    }
}

/// Looks until `done` says yes.
///
/// # Errors
/// Whatever `done` fails with; `Deadline` after `limit`.
pub(super) fn wait(
    path: &Path,
    wanted: &'static str,
    limit: Duration,
    mut done: impl FnMut() -> Result<bool, CgroupError>,
) -> Result<(), CgroupError> {
    let began = Instant::now();
    loop {
        if done()? {
            return Ok(());
        }
        if began.elapsed() >= limit {
            return Err(CgroupError::Deadline {
                path: path.to_owned(),
                wanted,
                after: limit,
            });
        }
        thread::sleep(LOOK_EVERY);
    }
}
