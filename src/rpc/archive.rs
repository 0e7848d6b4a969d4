//! Image archives on their way in: a file below the data directory, readable by hearthd only, bounded, and gone when
//! its import has ended, however it ended.

use super::bounds;
use super::config::RpcLimits;
use crate::machine::refusal::Refusal;
use bytes::Bytes;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use tokio::io::AsyncWriteExt;

/// What the names of archives begin with.
const PREFIX: &str = "import-";
/// Bytes written between two looks at the disk's free space.
const LOOK_EVERY_BYTES: u64 = 16 << 20;

/// Removes what a killed hearthd left. Called at start, before anything is imported.
pub async fn clear(limits: &RpcLimits) -> io::Result<()> {
    let dir = limits.import_dir.clone();
    let cleared = tokio::task::spawn_blocking(move || {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)?;
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    });
    cleared.await.map_err(io::Error::other)?
}

/// An archive being received.
pub struct Archive {
    file: tokio::fs::File,
    path: Removed,
    bytes: u64,
    looked_at: u64,
    limits: RpcLimits,
}

impl Archive {
    /// Makes an empty one.
    pub async fn create(limits: &RpcLimits) -> Result<Self, Refusal> {
        let path = limits
            .import_dir
            .join(format!("{PREFIX}{}", uuid::Uuid::new_v4().simple()));
        let mut options = tokio::fs::OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .await
            .map_err(|e| broken(&e))?;
        let mut archive = Self {
            file,
            path: Removed(path),
            bytes: 0,
            looked_at: 0,
            limits: limits.clone(),
        };
        archive.look().await?;
        Ok(archive)
    }

    /// Adds a piece. The archive and the disk have their bounds.
    pub async fn add(&mut self, piece: &Bytes) -> Result<(), Refusal> {
        let bytes = self.bytes.saturating_add(piece.len() as u64);
        let most = self.limits.image_import_bytes;
        if bytes > most {
            let what = format!("the archive is larger than limits.image_import_bytes, {most}");
            return Err(Refusal::InvalidArgument(vec![("chunk".to_owned(), what)]));
        }
        self.file.write_all(piece).await.map_err(|e| broken(&e))?;
        self.bytes = bytes;
        if bytes - self.looked_at >= LOOK_EVERY_BYTES {
            self.look().await?;
        }
        Ok(())
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// It is whole: its path, as long as the guard lives.
    pub async fn finish(mut self) -> Result<Removed, Refusal> {
        self.file.flush().await.map_err(|e| broken(&e))?;
        Ok(self.path)
    }

    /// The journal lives on the same file system: its reserve is not for images.
    async fn look(&mut self) -> Result<(), Refusal> {
        self.looked_at = self.bytes;
        let dir = self.limits.import_dir.clone();
        let asked = tokio::task::spawn_blocking(move || nix::sys::statvfs::statvfs(&dir));
        let free = match asked.await {
            Ok(Ok(found)) => found
                .blocks_available()
                .saturating_mul(found.fragment_size()),
            Ok(Err(error)) => return Err(broken(&error.into())),
            Err(error) => {
                return Err(Refusal::Internal {
                    detail: error.to_string(),
                });
            }
        };
        if free
            < self
                .limits
                .disk_reserve_bytes
                .saturating_add(LOOK_EVERY_BYTES)
        {
            return Err(Refusal::DiskReserve {
                retry_ms: bounds::STREAM_RETRY_MS,
            });
        }
        Ok(())
    }
}

fn broken(error: &io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Refusal::DiskReserve {
            retry_ms: bounds::STREAM_RETRY_MS,
        },
        _ => Refusal::Internal {
            detail: format!("keeping the archive: {error}"),
        },
    }
}

/// A file that is removed with this guard.
pub struct Removed(PathBuf);

impl Removed {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Removed {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.0);
        let remove = move || {
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "an imported archive could not be removed");
            }
        };
        // Freeing gigabytes takes its time: not on a worker thread.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    fn limits(dir: &Path) -> RpcLimits {
        RpcLimits {
            streams_per_sandbox: 1,
            image_import_bytes: 10,
            import_dir: dir.join("import"),
            disk_reserve_bytes: 0,
            shutdown: Duration::from_secs(1),
        }
    }

    fn count(dir: &Path) -> usize {
        std::fs::read_dir(dir.join("import")).unwrap().count()
    }

    async fn gone(dir: &Path) {
        for _ in 0..500 {
            if count(dir) == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the archive is still there");
    }

    #[tokio::test]
    async fn an_archive_is_private_bounded_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let limits = limits(dir.path());
        clear(&limits).await.unwrap();
        let mut archive = Archive::create(&limits).await.unwrap();
        archive
            .add(&Bytes::from_static(b"0123456789"))
            .await
            .unwrap();
        let refused = archive.add(&Bytes::from_static(b"x")).await.unwrap_err();
        assert!(matches!(refused, Refusal::InvalidArgument(_)), "{refused}");
        let whole = archive.finish().await.unwrap();
        let found = std::fs::metadata(whole.path()).unwrap();
        assert_eq!(
            (found.permissions().mode() & 0o777, found.len()),
            (0o600, 10)
        );
        drop(whole);
        gone(dir.path()).await;
        drop(Archive::create(&limits).await.unwrap());
        gone(dir.path()).await;
    }

    #[tokio::test]
    async fn the_disk_reserve_is_not_for_images() {
        let dir = tempfile::tempdir().unwrap();
        let limits = RpcLimits {
            disk_reserve_bytes: u64::MAX / 2,
            ..limits(dir.path())
        };
        clear(&limits).await.unwrap();
        let refused = Archive::create(&limits).await.err().unwrap();
        assert!(matches!(refused, Refusal::DiskReserve { .. }), "{refused}");
        gone(dir.path()).await;
    }

    #[tokio::test]
    async fn what_a_killed_hearthd_left_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let limits = limits(dir.path());
        clear(&limits).await.unwrap();
        std::fs::write(limits.import_dir.join("import-1"), "x").unwrap();
        std::fs::write(limits.import_dir.join("other"), "x").unwrap();
        clear(&limits).await.unwrap();
        assert_eq!(count(dir.path()), 1, "what is not ours stays");
    }
}
