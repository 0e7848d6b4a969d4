//! Files that appear whole or not at all: written beside their target under another name, then renamed over it.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{refusal::Refusal, user::User};

/// A file on its way. Dropped before [`Self::commit`] it leaves nothing behind, not even the directories made for it.
#[derive(Debug)]
pub struct Placing {
    target: PathBuf,
    temporary: PathBuf,
    file: File,
    mode: u32,
    made: Vec<PathBuf>,
    placed: bool,
}

/// What a commit replaced: enough to undo it.
#[derive(Debug)]
pub struct Placed {
    target: PathBuf,
    /// Another name of what was there before.
    before: Option<PathBuf>,
    made: Vec<PathBuf>,
}

impl Placing {
    /// Begins a file at `path`, owned by `user`. A symlink is followed; one that leads nowhere is replaced.
    /// `mode` 0 means 0644. `parents`: make missing directories, mode 0755.
    ///
    /// # Errors
    /// INVALID for a target that is there and no regular file; else what the file system says.
    pub fn begin(
        path: &Path,
        mode: u32,
        parents: bool,
        user: Option<&User>,
    ) -> Result<Self, Refusal> {
        let what = path.display().to_string();
        let target = real_target(path).map_err(|error| Refusal::io(&what, &error))?;
        check_target(&target)?;
        let dir = target
            .parent()
            .ok_or_else(|| Refusal::invalid(format!("{what} is a directory")))?;
        let mut made = Vec::new();
        let begun = (|| {
            if parents {
                make_directories(dir, user, &mut made)?;
            }
            let temporary = unused_name(dir)?;
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            let file = options.open(&temporary)?;
            Ok((temporary, file))
        })();
        let (temporary, file) = begun.map_err(|error| {
            remove_directories(&made);
            Refusal::io(&what, &error)
        })?;
        let placing = Self {
            target,
            temporary,
            file,
            mode: if mode == 0 { 0o644 } else { mode & 0o7777 },
            made,
            placed: false,
        };
        if let Some(user) = user {
            let owned = user.own(&placing.temporary);
            owned.map_err(|error| Refusal::io(&what, &error))?;
        }
        Ok(placing)
    }

    /// Appends.
    ///
    /// # Errors
    /// What the file system says; LIMIT for a full disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let written = self.file.write_all(bytes);
        written.map_err(|error| self.refusal(&error))
    }

    /// It appears under its name.
    ///
    /// # Errors
    /// What the file system says. Then nothing has changed.
    pub fn commit(mut self) -> Result<(), Refusal> {
        self.appear()
    }

    /// As [`Self::commit`], and can be undone.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_undoable(mut self) -> Result<Placed, Refusal> {
        let before = fs::symlink_metadata(&self.target)
            .is_ok()
            .then(|| self.keep_before())
            .transpose()
            .map_err(|error| self.refusal(&error))?;
        if let Err(refusal) = self.appear() {
            before.iter().for_each(|name| remove(name));
            return Err(refusal);
        }
        Ok(Placed {
            target: self.target.clone(),
            before,
            made: std::mem::take(&mut self.made),
        })
    }

    fn keep_before(&self) -> io::Result<PathBuf> {
        let name = unused_name(self.target.parent().unwrap_or(Path::new("/")))?;
        fs::hard_link(&self.target, &name)?;
        Ok(name)
    }

    fn appear(&mut self) -> Result<(), Refusal> {
        let permissions = Permissions::from_mode(self.mode);
        self.file
            .set_permissions(permissions)
            .and_then(|()| fs::rename(&self.temporary, &self.target))
            .map_err(|error| self.refusal(&error))?;
        self.placed = true;
        Ok(())
    }

    fn refusal(&self, error: &io::Error) -> Refusal {
        Refusal::io(self.target.display().to_string(), error)
    }
}

impl Drop for Placing {
    fn drop(&mut self) {
        if !self.placed {
            remove(&self.temporary);
            remove_directories(&self.made);
        }
    }
}

impl Placed {
    /// As it was before.
    pub fn undo(self) {
        match &self.before {
            // Over the new one, at once.
            Some(before) => _ = fs::rename(before, &self.target),
            None => remove(&self.target),
        }
        remove_directories(&self.made);
    }

    /// It stays.
    pub fn settle(self) {
        self.before.iter().for_each(|name| remove(name));
    }
}

/// Through a symlink to what it means, so that the link stays.
fn real_target(path: &Path) -> io::Result<PathBuf> {
    match fs::symlink_metadata(path) {
        Ok(info) if info.is_symlink() => match fs::canonicalize(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.into()),
            target => target,
        },
        _ => Ok(path.into()),
    }
}

fn check_target(target: &Path) -> Result<(), Refusal> {
    let wrong = |what| Err(Refusal::invalid(format!("{}: {what}", target.display())));
    match fs::symlink_metadata(target) {
        Ok(info) if info.is_dir() => wrong("is a directory"),
        Ok(info) if !info.is_file() && !info.is_symlink() => wrong("is not a regular file"),
        // Missing, or the creation beside it will tell.
        _ => Ok(()),
    }
}

/// Those that are missing, outermost first, into `made`.
fn make_directories(dir: &Path, user: Option<&User>, made: &mut Vec<PathBuf>) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    for dir in missing.into_iter().rev() {
        match DirBuilder::new().mode(0o755).create(dir) {
            Ok(()) => made.push(dir.into()),
            // A process inside was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
        }
        if let Some(user) = user {
            user.own(dir)?;
        }
    }
    Ok(())
}

fn unused_name(dir: &Path) -> io::Result<PathBuf> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|_| io::Error::other("no random bytes"))?;
    let name = format!(".hearth-{:016x}", u64::from_le_bytes(bytes));
    Ok(dir.join(OsString::from(name)))
}

/// Best effort: what can't be removed is hidden, and the sandbox is not used twice.
fn remove(file: &Path) {
    let _ = fs::remove_file(file);
}

/// Innermost first; one that is no longer empty stays.
fn remove_directories(made: &[PathBuf]) {
    for dir in made.iter().rev() {
        let _ = fs::remove_dir(dir);
    }
}
