//! Finds a program in the PATH of the process that is to be.

use hearth::guest::v1::FailureKind;
use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
};

use crate::refusal::Refusal;

/// What a shell uses when PATH is not set.
const DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program's file. `name` with a slash is taken as it is (relative to the process's working directory); a relative
/// directory of PATH counts from `dir` ("" is our own).
///
/// # Errors
/// NOT_FOUND, or PERMISSION if all that was found can't be executed.
pub fn find(name: &OsStr, path: Option<&OsStr>, dir: &str) -> Result<PathBuf, Refusal> {
    if name.is_empty() {
        return Err(Refusal::invalid("no command"));
    }
    if name.as_bytes().contains(&b'/') {
        return Ok(name.into());
    }
    let mut found = false;
    let path = path.unwrap_or_else(|| OsStr::new(DEFAULT));
    for part in path.as_bytes().split(|byte| *byte == b':') {
        let file = Path::new(dir).join(OsStr::from_bytes(part)).join(name);
        let Ok(info) = fs::metadata(&file) else {
            continue;
        };
        if info.is_file() && info.permissions().mode() & 0o111 != 0 {
            // Without a slash exec would look it up once more.
            return Ok(if file.as_os_str().as_bytes().contains(&b'/') {
                file
            } else {
                Path::new(".").join(file)
            });
        }
        found = true;
    }
    let name = name.display();
    Err(if found {
        Refusal::new(FailureKind::Permission, format!("{name}: not executable"))
    } else {
        Refusal::new(FailureKind::NotFound, format!("{name}: not found in PATH"))
    })
}
