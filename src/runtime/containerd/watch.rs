//! Ends of sandboxes, learnt from the kernel.
//!
//! Each living sandbox's first process (the sentry) is held by a pidfd, which becomes readable when it ends: the very
//! thing the shim waits for, without shim and containerd in between. A `Tasks.Wait` stream for each sandbox would tell
//! the same through two processes, end with every restart of containerd, and never tell when a shim hangs; events have
//! no replay. A pidfd costs one descriptor, survives containerd, and can be armed again at any time.

use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;

use super::{live::Live, outbox::Outbox, shim};
use crate::{
    cgroup::{CgroupError, SandboxCgroup},
    machine::ids::SandboxId,
    runtime::{RuntimeMetrics, process::Process},
};

/// Watches handed over but not armed yet. More than creations and adoptions at once; the keeper takes them at once.
pub(super) const HANDED_OVER: usize = 256;

/// A sandbox whose end is to be told.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) id: SandboxId,
    /// `None`: it had ended before it could be held.
    pub(super) sentry: Option<Process>,
    /// Which of its lives: one that came back from its image has another process.
    pub(super) life: u64,
}

/// What is found out about a running task before it is watched.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) sentry: Option<Process>,
    pub(super) shim: Option<Process>,
}

/// Takes hold of a task's first process, and of the shim that started it. A pid that is not in the sandbox's cgroup is
/// somebody else's by now. Blocking.
pub(super) fn find(id: SandboxId, pid: u32, cgroup: &SandboxCgroup) -> std::io::Result<Found> {
    let pid = i32::try_from(pid).unwrap_or_default();
    let inside = |pid: i32| cgroup.processes().is_ok_and(|pids| pids.contains(&pid));
    let sentry = Process::find(pid, inside)?;
    let shim = match &sentry {
        Some(sentry) => shim::of_task(id, sentry.pid())?,
        None => None,
    };
    Ok(Found { sentry, shim })
}

/// Waits for the ends of all that is handed over, for ever.
pub(super) async fn keep(
    mut handed_over: mpsc::Receiver<Watch>,
    live: Arc<Live>,
    outbox: Arc<Outbox>,
    metrics: RuntimeMetrics,
) {
    let mut ends = FuturesUnordered::new();
    loop {
        tokio::select! {
            watch = handed_over.recv() => match watch {
                Some(watch) => ends.push(end(watch)),
                // The adapter is gone; nobody waits for an end any more.
                None => return,
            },
            Some((id, life, seen)) = ends.next() => {
                if let Err(error) = seen {
                    // Out of descriptors or memory. The sandbox may live: the next listing tells, and arms it again.
                    tracing::error!(sandbox = %id, %error, "the end of a sandbox cannot be watched");
                    live.unwatch(id);
                    continue;
                }
                if live.is_leaving(id) || live.life(id) != life {
                    continue;
                }
                // By right a shim outlives its sandbox; containerd ends a sandbox whose shim has died.
                if live.shim(id).is_some_and(|shim| !shim.is_running()) {
                    tracing::warn!(sandbox = %id, "the sandbox ended because its shim did");
                }
                let out_of_memory = out_of_memory(live.cgroup(id)).await;
                metrics.exited(out_of_memory);
                outbox.exited(id, out_of_memory);
            }
        }
    }
}

async fn end(watch: Watch) -> (SandboxId, u64, std::io::Result<()>) {
    let seen = match watch.sentry {
        Some(sentry) => sentry.ended().await,
        None => Ok(()),
    };
    (watch.id, watch.life, seen)
}

/// Whether the OOM killer struck in it. Its cgroup is there until the sandbox is destroyed.
async fn out_of_memory(cgroup: Option<SandboxCgroup>) -> bool {
    let Some(cgroup) = cgroup else {
        return false;
    };
    let usage = tokio::task::spawn_blocking(move || cgroup.usage()).await;
    match usage {
        Ok(Ok(usage)) => usage.oom_kills > 0,
        Ok(Err(CgroupError::NotFound(_))) | Err(_) => false,
        Ok(Err(error)) => {
            tracing::warn!(%error, "whether the OOM killer struck cannot be read");
            false
        }
    }
}
