//! Who has staging memory: images in the making and on their way back, and golden images.
//!
//! Golden images only save time and can be taken anew. So they take only what is free, and make way for the others: the
//! longest unused first, one after the other until there is enough, never one that a clone is just made from.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::{
    machine::ids::{PoolName, SandboxId},
    vault::Fingerprint,
};

/// Staging memory is given out in pieces of this size.
const UNIT_BYTES: u64 = 1 << 20;

/// All of it.
#[derive(Debug)]
pub(super) struct Staging {
    free: Arc<Semaphore>,
    units: u32,
    pub(super) goldens: Goldens,
}

impl Staging {
    pub(super) fn new(bytes: u64) -> Self {
        let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX / 8);
        let units = units.max(1);
        Self {
            free: Arc::new(Semaphore::new(units as usize)),
            units,
            goldens: Goldens::default(),
        }
    }

    /// Whether it could ever hold so much.
    pub(super) fn holds(&self, bytes: u64) -> bool {
        bytes.div_ceil(UNIT_BYTES) <= u64::from(self.units)
    }

    /// What is free now, for a golden image.
    pub(super) fn try_take(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).ok()?.max(1);
        self.free.clone().try_acquire_many_owned(units).ok()
    }

    /// For an image in the making or on its way back: golden images make way for it, others are waited for in their order.
    /// Who wants more than there is gets all of it, and is refused by the vault.
    pub(super) async fn take(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        let units = units.clamp(1, self.units);
        let mut ends = self.goldens.ends.subscribe();
        // Keeps its place in the queue meanwhile: what golden images give back is its.
        let mut turn = std::pin::pin!(self.free.clone().acquire_many_owned(units));
        loop {
            tokio::select! {
                biased;
                taken = &mut turn => return taken.ok(),
                () = std::future::ready(()) => {}
            }
            if let Some(golden) = self.goldens.longest_unused() {
                tracing::info!(path = %golden.path().display(), "a golden image makes way for a sandbox's image");
                golden.go().await;
                continue;
            }
            tokio::select! {
                biased;
                taken = &mut turn => return taken.ok(),
                // One that was in use may make way now. The sender lives as long as self.
                _changed = ends.changed() => {}
            }
        }
    }
}

/// Files of an image with their staging memory, which is free again once they are gone.
#[derive(Debug)]
struct Files {
    path: PathBuf,
    _staged: OwnedSemaphorePermit,
}

impl Drop for Files {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "a golden image was not removed; the next start does");
            }
            _ => {}
        }
    }
}

/// A golden image. It goes with its last user.
#[derive(Debug)]
pub(super) struct Golden {
    original: SandboxId,
    pub(super) fingerprint: Fingerprint,
    path: PathBuf,
    files: Option<Files>,
}

impl Golden {
    /// Of this original, at `path`, where files are or are to be.
    pub(super) fn new(
        original: SandboxId,
        fingerprint: Fingerprint,
        path: PathBuf,
        staged: OwnedSemaphorePermit,
    ) -> Self {
        let files = Files {
            path: path.clone(),
            _staged: staged,
        };
        Self {
            original,
            fingerprint,
            path,
            files: Some(files),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it; returns when its staging memory is free.
    pub(super) async fn go(mut self) {
        let files = self.files.take();
        // Off the async threads; a panic in there has dropped them all the same.
        let _dropped = tokio::task::spawn_blocking(move || drop(files)).await;
    }
}

impl Drop for Golden {
    fn drop(&mut self) {
        let files = self.files.take();
        if files.is_some()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn_blocking(move || drop(files));
        }
    }
}

/// A golden image that a clone is being made from: it stays so long.
#[derive(Debug)]
pub(super) struct Using<'a> {
    golden: Arc<Golden>,
    /// Dropped after it.
    _ended: Ended<'a>,
}

impl std::ops::Deref for Using<'_> {
    type Target = Golden;

    fn deref(&self) -> &Golden {
        &self.golden
    }
}

/// Tells of a clone's end.
#[derive(Debug)]
struct Ended<'a>(&'a watch::Sender<()>);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.send_replace(());
    }
}

#[derive(Debug, Default)]
struct Kept {
    /// One for each pool, and the number of its last use.
    of: BTreeMap<PoolName, (u64, Arc<Golden>)>,
    uses: u64,
}

/// All golden images.
#[derive(Debug)]
pub(super) struct Goldens {
    kept: Mutex<Kept>,
    /// A clone has ended, or an image was taken: one more may make way.
    ends: watch::Sender<()>,
}

impl Default for Goldens {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            ends: watch::Sender::new(()),
        }
    }
}

impl Goldens {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Every change to the map is one call.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To make a clone from.
    pub(super) fn make_use(&self, pool: &PoolName, original: SandboxId) -> Option<Using<'_>> {
        let mut kept = self.lock();
        kept.uses += 1;
        let now = kept.uses;
        let (used, golden) = kept.of.get_mut(pool)?;
        if golden.original != original {
            return None;
        }
        *used = now;
        Some(Using {
            golden: golden.clone(),
            _ended: Ended(&self.ends),
        })
    }

    /// Keeps it, in the place of its pool's older one.
    pub(super) fn keep(&self, pool: PoolName, golden: Golden) {
        let mut kept = self.lock();
        kept.uses += 1;
        let used = kept.uses;
        kept.of.insert(pool, (used, Arc::new(golden)));
        drop(kept);
        // Somebody may be waiting for what it has.
        self.ends.send_replace(());
    }

    /// Gives up a pool's image of this original; one that a clone is made from goes by itself after that.
    pub(super) fn forget(&self, pool: &PoolName, original: SandboxId) -> Option<Golden> {
        self.forget_if(pool, |it| it.original == original)
    }

    /// The same of any other original.
    pub(super) fn forget_others(&self, pool: &PoolName, original: SandboxId) -> Option<Golden> {
        self.forget_if(pool, |it| it.original != original)
    }

    fn forget_if(&self, pool: &PoolName, which: impl Fn(&Golden) -> bool) -> Option<Golden> {
        let mut kept = self.lock();
        let golden = kept.of.get(pool);
        golden.filter(|(_, it)| which(it))?;
        let (_, golden) = kept.of.remove(pool)?;
        Arc::into_inner(golden)
    }

    /// Gives up the one whose last use is the longest ago, of those that nobody uses.
    fn longest_unused(&self) -> Option<Golden> {
        let mut kept = self.lock();
        let idle = kept.of.iter();
        let idle = idle.filter(|(_, (_, golden))| Arc::strong_count(golden) == 1);
        let pool = idle.min_by_key(|(_, (used, _))| *used)?.0.clone();
        let (_, golden) = kept.of.remove(&pool)?;
        // Nobody can have got hold of it: that takes the lock.
        Arc::into_inner(golden)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::machine::ids::NodeTag;
    use std::time::Duration;
    use tokio::time::timeout;

    const MIB: u64 = 1 << 20;

    fn pool(name: &str) -> PoolName {
        PoolName::parse(name).unwrap()
    }

    fn original(number: u64) -> SandboxId {
        SandboxId::new(NodeTag(7), number).unwrap()
    }

    fn has(staging: &Staging, name: &str, number: u64) -> bool {
        let made_use = staging.goldens.make_use(&pool(name), original(number));
        made_use.is_some()
    }

    fn fingerprint() -> Fingerprint {
        Fingerprint {
            runsc: String::new(),
            flags: String::new(),
            chain: String::new(),
            spec: String::new(),
            cpu: std::collections::BTreeSet::new(),
        }
    }

    /// A golden image of so many MiB, with a file.
    fn golden(staging: &Staging, dir: &Path, name: &str, number: u64, mib: u64) -> PathBuf {
        let staged = staging.try_take(mib * MIB).unwrap();
        let path = dir.join(format!("{name}-{number}"));
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("checkpoint.img"), "pages").unwrap();
        let golden = Golden::new(original(number), fingerprint(), path.clone(), staged);
        staging.goldens.keep(pool(name), golden);
        path
    }

    #[tokio::test]
    async fn golden_images_make_way_the_longest_unused_first_and_no_more_than_needed() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::new(10 * MIB);
        let of = |name| golden(&staging, dir.path(), name, 1, 3);
        let (old, used, new) = (of("old"), of("used"), of("new"));
        drop(staging.goldens.make_use(&pool("old"), original(1)).unwrap());
        drop(
            staging
                .goldens
                .make_use(&pool("used"), original(1))
                .unwrap(),
        );
        drop(staging.goldens.make_use(&pool("new"), original(1)).unwrap());
        drop(staging.goldens.make_use(&pool("old"), original(1)).unwrap());
        // A golden image takes only what is free.
        assert!(staging.try_take(2 * MIB).is_none());
        let image = staging.take(4 * MIB).await.unwrap();
        assert!(!used.exists() && old.exists() && new.exists());
        assert!(!has(&staging, "used", 1));
        // The next one needs both others.
        let other = staging.take(6 * MIB).await.unwrap();
        assert!(!old.exists() && !new.exists());
        drop((image, other));
        let again = golden(&staging, dir.path(), "used", 1, 3);
        assert!(again.exists() && has(&staging, "used", 1));
    }

    #[tokio::test]
    async fn one_that_is_cloned_from_makes_way_only_after_that() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Arc::new(Staging::new(4 * MIB));
        let path = golden(&staging, dir.path(), "py", 1, 3);
        let using = staging.goldens.make_use(&pool("py"), original(1)).unwrap();
        let taken = timeout(Duration::from_millis(200), staging.take(4 * MIB));
        assert!(taken.await.is_err(), "an image in use went");
        assert!(using.path().join("checkpoint.img").exists());
        let waits = staging.clone();
        let waits = tokio::spawn(async move { waits.take(4 * MIB).await.is_some() });
        tokio::task::yield_now().await;
        drop(using);
        let taken = timeout(Duration::from_secs(60), waits).await;
        assert!(taken.unwrap().unwrap());
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn one_that_was_in_the_making_makes_way_too() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Arc::new(Staging::new(4 * MIB));
        let staged = staging.try_take(3 * MIB).unwrap();
        let waits = staging.clone();
        let waits = tokio::spawn(async move { waits.take(4 * MIB).await.is_some() });
        tokio::task::yield_now().await;
        let path = dir.path().join("py-1");
        let golden = Golden::new(original(1), fingerprint(), path, staged);
        staging.goldens.keep(pool("py"), golden);
        let taken = timeout(Duration::from_secs(60), waits).await;
        assert!(taken.unwrap().unwrap());
        assert!(!has(&staging, "py", 1));
    }

    #[tokio::test]
    async fn one_that_is_given_up_keeps_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::new(4 * MIB);
        let path = golden(&staging, dir.path(), "py", 1, 4);
        let py = pool("py");
        assert!(staging.goldens.forget(&py, original(2)).is_none());
        assert!(
            staging
                .goldens
                .forget(&pool("other"), original(1))
                .is_none()
        );
        assert!(staging.goldens.forget_others(&py, original(1)).is_none());
        assert!(path.exists() && has(&staging, "py", 1) && !has(&staging, "py", 2));
        let given_up = staging.goldens.forget(&py, original(1)).unwrap();
        given_up.go().await;
        assert!(!path.exists() && staging.try_take(4 * MIB).is_some());
        // One in use goes with its last clone.
        let path = golden(&staging, dir.path(), "py", 2, 4);
        let using = staging.goldens.make_use(&py, original(2)).unwrap();
        assert!(staging.goldens.forget_others(&py, original(3)).is_none());
        assert!(path.exists() && !has(&staging, "py", 2));
        drop(using);
        let free = timeout(Duration::from_secs(60), staging.take(4 * MIB));
        assert!(free.await.unwrap().is_some());
        assert!(!path.exists());
    }
}
