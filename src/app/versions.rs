//! Old versions of the installed programs: removed when no container's record names them any more.

use super::install;
use crate::driver::{Handle, Phase};
use crate::runtime::containerd::ContainerdRuntime;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// Between two looks. Nobody waits for the space.
const LOOK: Duration = Duration::from_secs(600);

/// Looks now and then, from the end of recovery on: before, records may be missing. Spawned by `app`, ends with the
/// driver. `own` is the version that this hearthd gives to new sandboxes; it stays even if another one is current.
pub(super) async fn sweep(
    dir: PathBuf,
    own: Option<PathBuf>,
    runtime: Arc<ContainerdRuntime>,
    handle: Handle,
) {
    let mut phase = handle.phase();
    while phase.wait_for(|phase| *phase == Phase::Ready).await.is_ok() {
        match once(&dir, own.as_ref(), &runtime).await {
            Ok(removed) => {
                for path in removed {
                    info!(path = %path.display(), "a version that no sandbox uses any more was removed");
                }
            }
            // Unknown is not unused: they stay, and are looked at again.
            Err(error) => warn!(%error, "unused versions could not be looked for"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn once(
    dir: &std::path::Path,
    own: Option<&PathBuf>,
    runtime: &ContainerdRuntime,
) -> Result<Vec<PathBuf>, String> {
    let blocking = |work: Box<dyn FnOnce() -> std::io::Result<Vec<PathBuf>> + Send>| async {
        let done = tokio::task::spawn_blocking(work).await;
        let done = done.map_err(|error| error.to_string())?;
        done.map_err(|error| error.to_string())
    };
    let parent = dir.to_owned();
    let others = blocking(Box::new(move || install::others(&parent))).await?;
    if others.iter().all(|path| Some(path) == own) {
        return Ok(Vec::new());
    }
    let named = runtime.named(&others).await;
    let mut used = named.map_err(|error| error.to_string())?;
    // What was installed since is in neither list, and stays.
    used.extend(own.cloned());
    let parent = dir.to_owned();
    blocking(Box::new(move || {
        let mut used = used;
        let fresh = install::others(&parent)?.into_iter();
        used.extend(fresh.filter(|path| !others.contains(path)));
        install::remove_unused(&parent, &used)
    }))
    .await
}
