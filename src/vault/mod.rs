//! Images of sandboxes on the disk, sealed.
//!
//! Owns: the directory of images (`<data>/hibernated/<sandbox id>/`), the staging directory in memory beside the node's
//! sockets, the key, the room. Never: decides which image is wanted (the machine does), knows what is in one (runsc
//! does), runs anything. Synchronous: called on blocking threads.
//!
//! ```text
//! runsc checkpoint ─▶ staging/<id>/*.img ── seal ─▶ hibernated/<id>/*.img, fsync ─▶ manifest, fsync: the image exists
//! runsc restore   ◀── staging/<id>/*.img ◀─ unseal ── manifest read and checked
//! ```
//! Guest memory holds secrets, and runsc writes image files itself: it makes them anew (`O_EXCL`), writes pages out of
//! order and reads them so, which neither a pipe nor an encrypting reader could take. So plain files exist only in a
//! tmpfs of hearth's own, bounded, never swapped out where the kernel can promise it (`noswap`, Linux 6.4), emptied at
//! every start; what reaches the disk is ciphertext. The price is that a sandbox needs its image's size in RAM once more
//! for the moment.
//!
//! An image without a manifest is garbage, whatever else is there.

mod fingerprint;
mod manifest;
mod room;
mod sealing;
mod staging;
#[cfg(test)]
mod tests;

pub use fingerprint::{Fingerprint, cpu_features};
pub use sealing::image_key;

use crate::failpoint::failpoint;
use crate::machine::ids::SandboxId;
use manifest::{Entry, Manifest};
use room::Room;
use sealing::ImageKey;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Files of one image: runsc writes three.
const FILES: usize = 16;
/// Of a name of one.
const NAME_BYTES: usize = 64;

/// Why something could not be done with an image.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// Quota, disk or staging memory would be exceeded.
    #[error("{0}")]
    NoRoom(String),
    /// There is no image, or it is not what was sealed.
    #[error("the image is damaged: {0}")]
    Damaged(String),
    /// It was made where something was different.
    #[error("{0}")]
    Mismatch(String),
    /// It was given up.
    #[error("overtaken")]
    Stopped,
    /// The file system.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl VaultError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoRoom(format!("{} is full", path.display()))
            }
            _ => Self::Io { path, source },
        }
    }
}

/// What a vault is opened with.
#[derive(Clone)]
pub struct VaultConfig {
    /// Of the images.
    pub dir: PathBuf,
    /// Where the tmpfs is.
    pub staging: PathBuf,
    /// Whether runsc sees what this process mounts. If not, the directory must lie in a tmpfs already.
    pub may_mount: bool,
    /// Its bound.
    pub staging_bytes: u64,
    /// Of all images together.
    pub quota_bytes: u64,
    /// Kept free on the disk of `dir`.
    pub disk_reserve_bytes: u64,
    /// The node's key for images.
    pub key: [u8; 32],
}

impl std::fmt::Debug for VaultConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VaultConfig({})", self.dir.display())
    }
}

/// See the module.
#[derive(Debug)]
pub struct Vault {
    config: VaultConfig,
    room: Mutex<Room>,
    /// Whose images were there at the start, whole or begun, and have not been spoken for.
    unclaimed: Mutex<BTreeSet<SandboxId>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is one call: a panic leaves the value whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vault {
    /// Opens the directories, mounts and empties the staging tmpfs, removes what has no manifest.
    ///
    /// # Errors
    /// Those of the file system; `NoRoom` never.
    pub fn open(config: VaultConfig) -> Result<Self, VaultError> {
        private(&config.dir)?;
        staging::prepare(&config.staging, config.staging_bytes, config.may_mount)
            .map_err(VaultError::io(&config.staging))?;
        let mut room = Room::default();
        let mut unclaimed = BTreeSet::new();
        let entries = fs::read_dir(&config.dir).map_err(VaultError::io(&config.dir))?;
        for entry in entries {
            let entry = entry.map_err(VaultError::io(&config.dir))?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| SandboxId::parse(name).ok());
            match id.filter(|_| Manifest::path(&entry.path()).exists()) {
                Some(id) => room.put(id, size_of(&entry.path())),
                None => remove_all(&entry.path())?,
            }
            unclaimed.extend(id);
        }
        Ok(Self {
            config,
            room: Mutex::new(room),
            unclaimed: Mutex::new(unclaimed),
        })
    }

    /// Where runsc writes the image of a sandbox, and reads it.
    #[must_use]
    pub fn staged(&self, id: SandboxId) -> PathBuf {
        self.config.staging.join(id.to_string())
    }

    /// A place in the staging memory for something else.
    #[must_use]
    pub fn beside(&self, name: &str) -> PathBuf {
        self.config.staging.join(name)
    }

    fn place(&self, id: SandboxId) -> PathBuf {
        self.config.dir.join(id.to_string())
    }

    /// The bound of the staging memory, bytes.
    #[must_use]
    pub fn staging_bytes(&self) -> u64 {
        self.config.staging_bytes
    }

    /// Bytes of all images.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        lock(&self.room).used()
    }

    /// Makes room for an image of about that size, and clears whatever was there under its name; from then on the next start
    /// finds it begun. [`Self::remove`] gives it back.
    ///
    /// # Errors
    /// `NoRoom`, `Io`.
    pub fn reserve(&self, id: SandboxId, about_bytes: u64) -> Result<(), VaultError> {
        lock(&self.unclaimed).remove(&id);
        self.remove(id)?;
        if about_bytes > self.config.staging_bytes {
            return Err(VaultError::NoRoom(format!(
                "it takes about {} MiB of memory to seal, hibernation.staging_bytes is {} MiB",
                about_bytes >> 20,
                self.config.staging_bytes >> 20
            )));
        }
        let mut room = lock(&self.room);
        room.admit(about_bytes, self.config.quota_bytes)?;
        room::disk(
            &self.config.dir,
            about_bytes,
            self.config.disk_reserve_bytes,
        )?;
        private(&self.place(id))?;
        room.put(id, about_bytes);
        Ok(())
    }

    /// Seals what runsc has staged; its size on the disk when the image is durable. What was staged is gone then, and
    /// after a failure too.
    ///
    /// # Errors
    /// `NoRoom`, `Stopped` once `stop` says so, `Io`: there is no image then.
    pub fn seal(
        &self,
        id: SandboxId,
        fingerprint: &Fingerprint,
        stop: impl Fn() -> bool,
    ) -> Result<u64, VaultError> {
        let sealed = self.try_seal(id, fingerprint, stop);
        let discarded = self.discard(id);
        match sealed.and_then(|size| discarded.map(|()| size)) {
            Ok(size_bytes) => {
                lock(&self.room).put(id, size_bytes);
                Ok(size_bytes)
            }
            Err(error) => {
                self.remove(id)?;
                Err(error)
            }
        }
    }

    fn try_seal(
        &self,
        id: SandboxId,
        fingerprint: &Fingerprint,
        stop: impl Fn() -> bool,
    ) -> Result<u64, VaultError> {
        let (from, to) = (self.staged(id), self.place(id));
        let files = staged_files(&from)?;
        self.admit_whole(id, &files)?;
        private(&to)?;
        let salt = sealing::salt()?;
        let key = ImageKey::derive(&self.config.key, &salt, id)?;
        let mut entries = Vec::with_capacity(files.len());
        let mut size_bytes = 0;
        for (number, (name, plain_bytes)) in (0u32..).zip(files) {
            let mut plain = File::open(from.join(&name)).map_err(VaultError::io(&from))?;
            let path = to.join(&name);
            let mut sealed = fresh(&path)?;
            let sealed_bytes = sealing::sealed_bytes(plain_bytes);
            // The room is taken before anything is written.
            room::allocate(&sealed, sealed_bytes).map_err(VaultError::io(&path))?;
            key.seal(number, &mut plain, plain_bytes, &mut sealed, &stop)
                .map_err(|error| error.at(&path))?;
            sealed.sync_all().map_err(VaultError::io(&path))?;
            size_bytes += sealed_bytes;
            entries.push(Entry { name, plain_bytes });
        }
        failpoint!("checkpoint.sealed");
        let manifest = Manifest::new(id, &salt, fingerprint.clone(), entries);
        manifest.write(&to, &key)?;
        sync(&self.config.dir)?;
        Ok(size_bytes)
    }

    /// What runsc made may be more than what was guessed.
    fn admit_whole(&self, id: SandboxId, files: &[(String, u64)]) -> Result<(), VaultError> {
        let sizes = files.iter().map(|(_, bytes)| sealing::sealed_bytes(*bytes));
        let bytes = sizes.fold(0, u64::saturating_add);
        let mut room = lock(&self.room);
        room.take(id);
        room.admit(bytes, self.config.quota_bytes)?;
        room::disk(&self.config.dir, bytes, self.config.disk_reserve_bytes)?;
        room.put(id, bytes);
        Ok(())
    }

    /// Checks an image and stages it in plain.
    ///
    /// # Errors
    /// `Damaged`, `Mismatch`, `NoRoom` (of staging memory), `Io`. Nothing is staged then.
    pub fn unseal(&self, id: SandboxId, here: &Fingerprint) -> Result<(), VaultError> {
        lock(&self.unclaimed).remove(&id);
        self.discard(id)?;
        let done = self.try_unseal(id, here);
        if done.is_err() {
            self.discard(id)?;
        }
        done
    }

    fn try_unseal(&self, id: SandboxId, here: &Fingerprint) -> Result<(), VaultError> {
        let (from, to) = (self.place(id), self.staged(id));
        let (manifest, key) = Manifest::read(&from, id, &self.config.key)?;
        manifest.fingerprint.fits(here)?;
        if manifest.plain_bytes() > self.config.staging_bytes {
            return Err(VaultError::NoRoom(
                "hibernation.staging_bytes is smaller than the image".into(),
            ));
        }
        private(&to)?;
        for (number, entry) in (0u32..).zip(&manifest.files) {
            let path = from.join(&entry.name);
            let mut sealed = File::open(&path)
                .map_err(|error| VaultError::Damaged(format!("{}: {error}", entry.name)))?;
            let plain_path = to.join(&entry.name);
            let mut plain = fresh(&plain_path)?;
            key.open(number, &mut sealed, entry.plain_bytes, &mut plain)
                .map_err(|error| error.at(&plain_path))?;
        }
        Ok(())
    }

    /// How much staging memory an image needs, bytes; 0: there is none.
    #[must_use]
    pub fn plain_bytes(&self, id: SandboxId) -> u64 {
        Manifest::read(&self.place(id), id, &self.config.key)
            .map_or(0, |(manifest, _)| manifest.plain_bytes())
    }

    /// Removes what is staged of a sandbox.
    ///
    /// # Errors
    /// `Io`.
    pub fn discard(&self, id: SandboxId) -> Result<(), VaultError> {
        remove_all(&self.staged(id))
    }

    /// Removes an image and what is staged of it, and gives its room back. The manifest goes first.
    ///
    /// # Errors
    /// `Io`.
    pub fn remove(&self, id: SandboxId) -> Result<(), VaultError> {
        self.discard(id)?;
        let place = self.place(id);
        let manifest = Manifest::path(&place);
        match fs::remove_file(&manifest) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(VaultError::io(&manifest)(error));
            }
            _ => {}
        }
        remove_all(&place)?;
        lock(&self.room).take(id);
        Ok(())
    }

    /// Removes every image that was there at the start, whole or begun, is not kept, and was not asked for since; whose.
    ///
    /// # Errors
    /// `Io`.
    pub fn sweep(&self, keep: &BTreeSet<SandboxId>) -> Result<Vec<SandboxId>, VaultError> {
        let mut removed = Vec::new();
        loop {
            // Held over the removal: a new image of the same sandbox waits for it in `reserve`.
            let mut unclaimed = lock(&self.unclaimed);
            let Some(id) = unclaimed.pop_first() else {
                return Ok(removed);
            };
            if !keep.contains(&id) {
                self.remove(id)?;
                removed.push(id);
            }
        }
    }

    /// Unmounts the staging tmpfs. At the end of a node that leaves nothing behind.
    ///
    /// # Errors
    /// `Io`.
    pub fn take_down(staging: &Path) -> Result<(), VaultError> {
        staging::take_down(staging).map_err(VaultError::io(staging))
    }
}

/// What runsc has written: (name, bytes), ordered by name.
fn staged_files(dir: &Path) -> Result<Vec<(String, u64)>, VaultError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(VaultError::io(dir))? {
        let entry = entry.map_err(VaultError::io(dir))?;
        let about = entry.metadata().map_err(VaultError::io(dir))?;
        let name = entry.file_name().into_string().unwrap_or_default();
        if !about.is_file() || !manifest::is_plain(&name) || files.len() >= FILES {
            return Err(VaultError::Damaged(format!(
                "runsc made {:?}",
                entry.file_name()
            )));
        }
        files.push((name, about.len()));
    }
    files.sort();
    match files.is_empty() {
        true => Err(VaultError::Damaged("runsc made no image".into())),
        false => Ok(files),
    }
}

fn private(dir: &Path) -> Result<(), VaultError> {
    let mut builder = DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(dir);
    made.map_err(VaultError::io(dir))
}

fn fresh(path: &Path) -> Result<File, VaultError> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    options.open(path).map_err(VaultError::io(path))
}

fn remove_all(path: &Path) -> Result<(), VaultError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(about) if about.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VaultError::io(path)(error)),
        _ => Ok(()),
    }
}

/// Makes names in a directory durable.
fn sync(dir: &Path) -> Result<(), VaultError> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(VaultError::io(dir))
}

fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| Some(entry.metadata().ok()?.len()));
    sizes.sum()
}
