//! `hearthd install`: puts on the node what must live there because containerd's shim runs it there, and takes away the
//! versions that nothing uses any more.
//!
//! ```text
//! <dir>/0.1.0-3f9c0a51d2e7/{hearth-init,hearth-runsc[,runsc]}   one directory a version, never changed once it is whole
//! <dir>/current -> 0.1.0-3f9c0a51d2e7                           swapped at the end: whoever looks sees all of one version
//! <dir>/.lock                                                   held while something is installed or removed
//! ```
//! A sandbox has the paths of its version in its container's record for as long as it lives, so versions stand side by side.

use super::host;
use crate::app::AppError;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What every node needs.
const ALWAYS: [&str; 2] = ["hearth-init", "hearth-runsc"];
/// gVisor's runsc, where the node has none of its own.
const RUNSC: &str = "runsc";
/// The link to the version that new sandboxes get.
const CURRENT: &str = "current";
const LOCK: &str = ".lock";
/// How long another one may hold the lock: it writes a hundred megabytes at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// Installs what lies beside this program below `to` and makes it the current version. Called by `hearthd install`, the
/// init container of the DaemonSet; doing it again changes nothing.
///
/// # Errors
/// A file that is missing beside this program, or those of the file system, with what was tried.
pub fn install(to: &Path, with_runsc: bool) -> Result<PathBuf, AppError> {
    let own = std::env::current_exe().map_err(host("finding this program"))?;
    let from = own.parent().unwrap_or(Path::new("/"));
    let mut names = ALWAYS.to_vec();
    names.extend(with_runsc.then_some(RUNSC));
    install_from(from, to, &names)
}

fn install_from(from: &Path, to: &Path, names: &[&str]) -> Result<PathBuf, AppError> {
    let mut files = Vec::new();
    for name in names {
        let path = from.join(name);
        let content = fs::read(&path).map_err(host(format!("reading {}", path.display())))?;
        files.push((*name, content));
    }
    let version = version(&files);
    let dir = to.join(&version);
    let wrong = |what: &str| host(format!("{what} {}", dir.display()));
    fs::create_dir_all(to).map_err(wrong("making the parent of"))?;
    let _lock = lock(to, PATIENCE).map_err(wrong("locking the parent of"))?;
    fs::create_dir_all(&dir).map_err(wrong("making"))?;
    fs::set_permissions(&dir, Permissions::from_mode(0o755)).map_err(wrong("opening"))?;
    for (name, content) in &files {
        put(&dir, name, content).map_err(wrong("writing into"))?;
    }
    let synced = File::open(&dir).and_then(|dir| dir.sync_all());
    synced.map_err(wrong("writing"))?;
    point(to, &version).map_err(wrong("making current"))?;
    Ok(dir)
}

/// hearth's version and what the files are, so that another build of the same version has a directory of its own.
fn version(files: &[(&str, Vec<u8>)]) -> String {
    let mut digest = Sha256::new();
    for (name, content) in files {
        digest.update(name.as_bytes());
        digest.update([0]);
        digest.update(Sha256::digest(content));
    }
    let hex = digest.finalize();
    let hex: String = hex.iter().take(6).map(|b| format!("{b:02x}")).collect();
    format!("{}-{hex}", env!("CARGO_PKG_VERSION"))
}

/// Writes a program whole, unless it is there already.
fn put(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let path = dir.join(name);
    let executable = |path: &Path| {
        let mode = fs::metadata(path).map(|about| about.permissions().mode());
        mode.is_ok_and(|mode| mode & 0o777 == 0o755)
    };
    if executable(&path) && fs::read(&path)? == content {
        return Ok(());
    }
    let fresh = dir.join(format!(".{name}.fresh"));
    let mut file = File::create(&fresh)?;
    file.write_all(content)?;
    // After the write and whatever the umask: what containerd's shim runs must be readable by all of its children.
    file.set_permissions(Permissions::from_mode(0o755))?;
    file.sync_all()?;
    fs::rename(&fresh, &path)
}

/// Swaps the link.
fn point(to: &Path, version: &str) -> io::Result<()> {
    let link = to.join(CURRENT);
    if fs::read_link(&link).is_ok_and(|target| target == Path::new(version)) {
        return Ok(());
    }
    let fresh = to.join(format!(".{CURRENT}.fresh"));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => symlink(version, &fresh)?,
    }
    fs::rename(&fresh, &link)?;
    File::open(to)?.sync_all()
}

fn lock(to: &Path, patience: Duration) -> io::Result<Flock<File>> {
    let began = Instant::now();
    let options = File::options().create(true).append(true).clone();
    let mut file = options.open(to.join(LOCK))?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => return Ok(held),
            Err((_, error)) if began.elapsed() >= patience => return Err(error.into()),
            Err((unlocked, _)) => file = unlocked,
        }
        std::thread::sleep(PAUSE);
    }
}

/// The directory of the version that is current below `dir`, without links; `None` if nothing was installed there.
pub(super) fn current(dir: &Path) -> Option<PathBuf> {
    fs::canonicalize(dir.join(CURRENT)).ok()
}

/// Directories of versions below `dir` that are not current, sorted.
pub(super) fn others(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let dir = fs::canonicalize(dir)?;
    let current = current(&dir);
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        let hidden = |name: &OsStr| name.as_encoded_bytes().starts_with(b".");
        let is_version = !path.is_symlink() && path.is_dir();
        if is_version && path.file_name().is_some_and(|name| !hidden(name)) {
            found.push(path);
        }
    }
    found.retain(|path| Some(path) != current.as_ref());
    found.sort();
    Ok(found)
}

/// Removes those of [`others`] that are not in `used`; tells which. Somebody who installs at this moment goes first: then
/// nothing is removed.
pub(super) fn remove_unused(dir: &Path, used: &BTreeSet<PathBuf>) -> io::Result<Vec<PathBuf>> {
    let Ok(_lock) = lock(dir, Duration::ZERO) else {
        return Ok(Vec::new());
    };
    // Looked at again under the lock: one may have become current.
    let mut unused = others(dir)?;
    unused.retain(|path| !used.contains(path));
    for path in &unused {
        fs::remove_dir_all(path)?;
    }
    Ok(unused)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A directory with the programs of one build.
    fn build(content: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["hearth-init", "hearth-runsc", "runsc"] {
            fs::write(dir.path().join(name), format!("{name} {content}")).unwrap();
        }
        dir
    }

    #[test]
    fn versions_stand_side_by_side_and_unused_ones_go() {
        let node = tempfile::tempdir().unwrap();
        let to = node.path().join("opt/hearth");
        let (first, second) = (build("first"), build("second"));
        let old = install_from(first.path(), &to, &ALWAYS).unwrap();
        let whole = |dir: &Path, content: &str| {
            for name in ALWAYS {
                let path = dir.join(name);
                assert_eq!(
                    fs::read_to_string(&path).unwrap(),
                    format!("{name} {content}")
                );
                assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o755);
            }
        };
        whole(&old, "first");
        assert_eq!(current(&to).unwrap(), old.canonicalize().unwrap());
        assert!(!old.join("runsc").exists(), "only where it was asked for");

        // The same again changes nothing, not even a file's identity.
        use std::os::unix::fs::MetadataExt;
        let inode = || old.join("hearth-init").metadata().unwrap().ino();
        let before = inode();
        assert_eq!(install_from(first.path(), &to, &ALWAYS).unwrap(), old);
        assert_eq!(inode(), before);

        let new = install_from(second.path(), &to, &ALWAYS).unwrap();
        assert_ne!(old, new);
        whole(&old, "first");
        whole(&new, "second");
        assert_eq!(current(&to).unwrap(), new.canonicalize().unwrap());

        // A sandbox still has the old one.
        let old = old.canonicalize().unwrap();
        assert_eq!(others(&to).unwrap(), std::slice::from_ref(&old));
        let used = BTreeSet::from([old.clone()]);
        assert!(remove_unused(&to, &used).unwrap().is_empty());
        whole(&old, "first");
        assert_eq!(
            remove_unused(&to, &BTreeSet::new()).unwrap(),
            std::slice::from_ref(&old)
        );
        assert!(!old.exists());
        whole(&new, "second");

        // Back to it: a rollback.
        install_from(first.path(), &to, &ALWAYS).unwrap();
        whole(&old, "first");
        assert_eq!(current(&to).unwrap(), old);
    }

    #[test]
    fn what_was_cut_off_or_damaged_is_made_whole() {
        let node = tempfile::tempdir().unwrap();
        let (to, build) = (node.path().join("h"), build("x"));
        let names = ["hearth-init", "hearth-runsc", "runsc"];
        let dir = install_from(build.path(), &to, &names).unwrap();
        fs::write(dir.join(".runsc.fresh"), "half").unwrap();
        fs::remove_file(dir.join("runsc")).unwrap();
        fs::write(dir.join("hearth-init"), "dam").unwrap();
        symlink("nowhere", to.join(".current.fresh")).unwrap();
        fs::remove_file(to.join(CURRENT)).unwrap();
        assert_eq!(current(&to), None);
        assert_eq!(install_from(build.path(), &to, &names).unwrap(), dir);
        for name in names {
            let content = fs::read_to_string(dir.join(name)).unwrap();
            assert_eq!(content, format!("{name} x"));
        }
        assert_eq!(current(&to).unwrap(), dir.canonicalize().unwrap());
    }

    #[test]
    fn nothing_is_removed_while_somebody_installs() {
        let node = tempfile::tempdir().unwrap();
        let to = node.path().join("h");
        let old = install_from(build("first").path(), &to, &ALWAYS).unwrap();
        install_from(build("second").path(), &to, &ALWAYS).unwrap();
        let held = lock(&to, PATIENCE).unwrap();
        assert!(remove_unused(&to, &BTreeSet::new()).unwrap().is_empty());
        assert!(old.exists());
        drop(held);
        assert_eq!(remove_unused(&to, &BTreeSet::new()).unwrap().len(), 1);
    }

    #[test]
    fn a_missing_program_is_named_and_nothing_becomes_current() {
        let node = tempfile::tempdir().unwrap();
        let (to, build) = (node.path().join("h"), build("x"));
        fs::remove_file(build.path().join("hearth-runsc")).unwrap();
        let error = install_from(build.path(), &to, &ALWAYS).unwrap_err();
        assert!(error.to_string().contains("hearth-runsc"), "{error}");
        assert_eq!(current(&to), None);
    }
}
