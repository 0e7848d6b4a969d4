//! Freeze, thaw, reclaim: the cgroup of a living sandbox, never containerd.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::Signal;
use tokio::signal::unix::SignalKind;
use tokio_util::sync::CancellationToken;

use super::{ContainerdRuntime, blocking};
use crate::{
    cgroup::{Reclaimed, SandboxCgroup},
    machine::ids::SandboxId,
    runtime::RuntimeError,
};

/// A freeze takes 0.2-0.9 ms; one that takes so long meets a process stuck in the kernel, and is taken back.
const FREEZE: Duration = Duration::from_secs(2);
/// A thaw takes 0.4 ms.
const THAW: Duration = Duration::from_secs(2);
/// Ends a write to `memory.force_empty`. Its handler does nothing.
const STOP: Signal = Signal::SIGUSR2;

/// The thread that reclaims, while it does. Whoever holds the lock knows that it is alive.
#[derive(Debug, Default)]
struct Reclaiming {
    thread: Mutex<Option<Pthread>>,
}

impl Reclaiming {
    fn lock(&self) -> MutexGuard<'_, Option<Pthread>> {
        // One value, set and cleared whole.
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupt(&self) {
        if let Some(thread) = *self.lock() {
            // The thread is alive: it clears its entry, under this lock, before it ends. ESRCH can't be.
            let _sent = pthread_kill(thread, STOP);
        }
    }
}

impl ContainerdRuntime {
    /// Its cgroup: as known, or looked for, on the thread that uses it.
    pub(super) fn cgroup_of(
        &self,
        id: SandboxId,
    ) -> impl FnOnce() -> Result<SandboxCgroup, String> + use<> {
        let known = self.live.cgroup(id);
        let (tree, parent) = (self.tree.clone(), self.config.cgroup_parent.clone());
        move || {
            let found = match known {
                Some(known) => Some(known),
                None => tree
                    .find(&parent, &id.to_string())
                    .map_err(|error| error.to_string())?,
            };
            found.ok_or_else(|| format!("sandbox {id} has no cgroup"))
        }
    }

    /// See the trait.
    pub(super) async fn stop_processes(&self, id: SandboxId) -> Result<(), RuntimeError> {
        let may = self.can_freeze(id);
        let cgroup = self.cgroup_of(id);
        blocking("freeze", move || {
            may?;
            cgroup()?.freeze(FREEZE).map_err(|error| error.to_string())
        })
        .await
    }

    /// See the trait.
    pub(super) async fn let_go_on(&self, id: SandboxId) -> Result<(), RuntimeError> {
        let cgroup = self.cgroup_of(id);
        blocking("thaw", move || {
            let cgroup = cgroup()?;
            match cgroup.is_frozen() {
                Ok(false) => Ok(()),
                Ok(true) => cgroup.thaw(THAW).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await
    }

    /// See the trait.
    pub(super) async fn take_memory(
        &self,
        id: SandboxId,
        stop: &CancellationToken,
    ) -> Result<Reclaimed, RuntimeError> {
        let handler = tokio::signal::unix::signal(SignalKind::user_defined2());
        // Without it the signal would end hearthd.
        let _handler = handler.map_err(|error| RuntimeError::Refused {
            what: "reclaim",
            detail: error.to_string(),
        })?;
        let cgroup = self.cgroup_of(id);
        let reclaiming = Arc::new(Reclaiming::default());
        let (stopped, entry) = (stop.clone(), reclaiming.clone());
        let work = blocking("reclaim", move || {
            let cgroup = cgroup()?;
            *entry.lock() = Some(pthread_self());
            let reclaimed = cgroup.reclaim(|| stopped.is_cancelled());
            *entry.lock() = None;
            reclaimed.map_err(|error| error.to_string())
        });
        tokio::pin!(work);
        tokio::select! {
            done = &mut work => return done,
            () = stop.cancelled() => {}
        }
        // Again and again: a signal that comes just before the write ends nothing.
        loop {
            reclaiming.interrupt();
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
        }
    }
}
