//! Destroying whatever there is of a sandbox, and proving that nothing is left.
//!
//! ```text
//! cgroup killed ─▶ task ended and deleted ─▶ container ─▶ snapshot ─▶ cgroup, FIFOs, runsc's state ─▶ shim gone
//!                    └─ wedged: the shim is killed, containerd cleans up after it
//! ```
//! The kernel goes first: the processes end whether or not containerd, shim or runsc can answer, frozen or not. Every
//! step is idempotent and has its own deadline; a hung shim costs this call its deadlines and nobody else anything.

use std::{io, sync::Arc, time::Duration};

use containerd_client::services::v1::{
    DeleteContainerRequest, DeleteTaskRequest, WaitRequest, snapshots::RemoveSnapshotRequest,
};
use tokio::time::{Instant, sleep};

use super::{
    ContainerdRuntime, blocking,
    client::{Call, CallError, Reason, gone_is_fine},
    fifo, shim,
};
use crate::{
    cgroup::SandboxCgroup,
    failpoint::failpoint,
    machine::ids::SandboxId,
    runtime::{NAMESPACE, RuntimeError, process::Process},
};

/// A shim learns of its killed processes within milliseconds; one that does not is wedged.
const WAIT: Call = Call::seconds("tasks.wait", 3);
/// hearth-runsc gives `runsc delete` 8 s, containerd 3 s for the shim to leave.
const DELETE: Call = Call::seconds("tasks.delete", 13);
const CONTAINER: Call = Call::seconds("containers.delete", 10);
const SNAPSHOT: Call = Call::seconds("snapshots.remove", 10);
/// For the kernel to end every process of the sandbox.
const KILL: Duration = Duration::from_secs(5);
/// For the kernel to let the empty group go.
const REMOVE: Duration = Duration::from_secs(5);
/// For a shim whose task was deleted to end; containerd has waited before.
const SHIM_ENDS: Duration = Duration::from_secs(3);
/// For containerd to clean up after a killed shim (it gives itself 5 s, the managed one 12).
const CLEANUP: Duration = Duration::from_secs(15);
/// Silence about the sandbox that means the cleaning up is over; containerd begins it within milliseconds.
const QUIET: Duration = Duration::from_millis(300);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(30);
/// For `hearth-runsc delete` without a shim.
const RUNSC_DELETE: Duration = Duration::from_secs(10);

const WHAT: &str = "destroy";

fn failed(detail: impl Into<String>) -> RuntimeError {
    RuntimeError::Refused {
        what: WHAT,
        detail: super::client::clip(&detail.into()),
    }
}

/// How the end of a task went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TaskEnd {
    /// Deleted by the shim.
    Deleted,
    /// containerd knows no such task or container.
    Unknown,
    /// The shim does not do its work.
    Wedged,
}

impl ContainerdRuntime {
    /// See the trait.
    pub(super) async fn unmake(&self, id: SandboxId) -> Result<(), RuntimeError> {
        self.live.leave(id);
        self.end_machine(id).await;
        let cgroup = self.kill(id).await?;
        self.end_left_by_kata(id).await?;
        failpoint!("destroy.killed");
        self.end_task(id).await?;
        self.forget_image(id).await?;
        failpoint!("destroy.task");
        let request = DeleteContainerRequest { id: id.to_string() };
        let mut containers = self.client.containers();
        gone_is_fine(
            self.client
                .call(CONTAINER, containers.delete(request))
                .await,
        )?;
        failpoint!("destroy.container");
        let request = RemoveSnapshotRequest {
            snapshotter: self.config.snapshotter.clone(),
            key: id.to_string(),
        };
        let mut snapshots = self.client.snapshots();
        gone_is_fine(self.client.call(SNAPSHOT, snapshots.remove(request)).await)?;
        failpoint!("destroy.snapshot");
        self.forget_in_runsc(id).await?;
        failpoint!("destroy.runsc");
        self.sweep_after_kata(id).await?;
        self.remove_outside(id, cgroup).await?;
        self.live.forget(id);
        Ok(())
    }

    /// See the trait: all but the container record and the snapshot.
    pub(super) async fn shed_task(&self, id: SandboxId) -> Result<(), RuntimeError> {
        self.live.leave(id);
        let cgroup = self.kill(id).await?;
        let paths = fifo::paths(&self.config, id);
        let shed = blocking(WHAT, move || {
            Ok(!paths.stdin.parent().is_some_and(std::path::Path::exists))
        });
        // The FIFOs go last: without them all of it has gone before, or with a reboot.
        if shed.await? && cgroup.as_ref().is_none_or(|cgroup| !cgroup.exists()) {
            return Ok(());
        }
        self.end_task(id).await?;
        self.forget_in_runsc(id).await?;
        self.remove_outside(id, cgroup).await?;
        self.live.close(id);
        Ok(())
    }

    /// Removes the container record only, for a creation that begins again.
    pub(super) async fn forget_record(&self, id: SandboxId) -> Result<(), RuntimeError> {
        let request = DeleteContainerRequest { id: id.to_string() };
        let mut containers = self.client.containers();
        Ok(gone_is_fine(
            self.client
                .call(CONTAINER, containers.delete(request))
                .await,
        )?)
    }

    /// Ends every process of it; its cgroup, if there is one.
    async fn kill(&self, id: SandboxId) -> Result<Option<SandboxCgroup>, RuntimeError> {
        let known = self.live.cgroup(id);
        let (tree, parent) = (self.tree.clone(), self.config.cgroup_parent.clone());
        blocking(WHAT, move || {
            let cgroup = match known {
                Some(known) => Some(known),
                None => tree
                    .find(&parent, &id.to_string())
                    .map_err(|error| error.to_string())?,
            };
            if let Some(cgroup) = &cgroup {
                cgroup.kill(KILL).map_err(|error| error.to_string())?;
            }
            Ok(cgroup)
        })
        .await
    }

    /// Ends the task and the shim; `Ok` when neither is left.
    async fn end_task(&self, id: SandboxId) -> Result<(), RuntimeError> {
        let end = self.delete_task(id).await?;
        let shim = match (self.live.shim(id), end) {
            (None, TaskEnd::Unknown | TaskEnd::Wedged) => self.search_shim(id).await?,
            (known, _) => known,
        };
        let mut killed = false;
        if let Some(shim) = &shim {
            let watch = |error: io::Error| failed(error.to_string());
            let ends =
                end != TaskEnd::Wedged && shim.ends_within(SHIM_ENDS).await.map_err(watch)?;
            if !ends {
                self.kill_shim(id, shim).await?;
                killed = true;
            }
        }
        // A shim that did not end by its task's deletion is one that containerd cleans up after.
        let cleaned_up_after = match end {
            TaskEnd::Deleted => killed,
            TaskEnd::Wedged => true,
            TaskEnd::Unknown => {
                shim.is_some() || blocking(WHAT, move || Ok(shim::is_spoken_of(id))).await?
            }
        };
        if cleaned_up_after {
            self.until_cleaned_up(id).await?;
        }
        Ok(())
    }

    async fn delete_task(&self, id: SandboxId) -> Result<TaskEnd, RuntimeError> {
        let mut tasks = self.client.tasks();
        let request = WaitRequest {
            container_id: id.to_string(),
            exec_id: String::new(),
        };
        if let Some(end) = judge(self.client.call(WAIT, tasks.wait(request)).await)? {
            return Ok(end);
        }
        let request = DeleteTaskRequest {
            container_id: id.to_string(),
        };
        let deleted = self.client.call(DELETE, tasks.delete(request)).await;
        if let Err(error) = &deleted {
            tracing::info!(sandbox = %id, detail = error.detail(), "the task could not be deleted by its shim");
        }
        Ok(judge(deleted)?.unwrap_or(TaskEnd::Deleted))
    }

    async fn search_shim(&self, id: SandboxId) -> Result<Option<Arc<Process>>, RuntimeError> {
        let found = blocking(WHAT, move || {
            shim::search(id).map_err(|error| error.to_string())
        });
        Ok(found.await?.map(Arc::new))
    }

    async fn kill_shim(&self, id: SandboxId, shim: &Process) -> Result<(), RuntimeError> {
        tracing::warn!(sandbox = %id, pid = shim.pid(), "killing a wedged shim");
        let fail = |error: io::Error| failed(format!("shim {}: {error}", shim.pid()));
        shim.kill().map_err(fail)?;
        self.metrics.shims_killed.inc();
        self.outbox.shim_killed(id);
        if shim.ends_within(SHIM_ENDS).await.map_err(fail)? {
            Ok(())
        } else {
            Err(failed(format!("shim {} does not die", shim.pid())))
        }
    }

    /// containerd learns of a shim's death from the broken connection, starts `shim delete`, which starts hearth-runsc,
    /// and forgets the task. It does not tell when; so it is over when no process on the host has spoken of the sandbox
    /// for a while.
    async fn until_cleaned_up(&self, id: SandboxId) -> Result<(), RuntimeError> {
        let began = Instant::now();
        let mut quiet_since = began;
        while quiet_since.elapsed() < QUIET {
            if began.elapsed() >= CLEANUP {
                return Err(failed(
                    "containerd does not end its cleaning up after a dead shim",
                ));
            }
            if blocking(WHAT, move || Ok(shim::is_spoken_of(id))).await? {
                quiet_since = Instant::now();
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// runsc's record goes with the task as a rule; what a killed shim left is deleted by hearth-runsc itself.
    async fn forget_in_runsc(&self, id: SandboxId) -> Result<(), RuntimeError> {
        if self.runsc_files(id).await?.is_empty() {
            return Ok(());
        }
        let mut command = tokio::process::Command::new(&self.config.wrapper);
        command
            .arg("--root")
            .arg(self.config.runsc_root.join(NAMESPACE));
        command.args(["delete", "--force", &id.to_string()]);
        command
            .kill_on_drop(true)
            .stdin(std::process::Stdio::null());
        // What it says does not matter, only what is left.
        match tokio::time::timeout(RUNSC_DELETE, command.output()).await {
            Ok(Ok(said)) => {
                let text = String::from_utf8_lossy(&said.stderr).into_owned();
                tracing::debug!(sandbox = %id, said = super::client::clip(&text), "hearth-runsc deleted a leftover");
            }
            Ok(Err(error)) => return Err(failed(format!("hearth-runsc: {error}"))),
            Err(_) => return Err(failed("hearth-runsc delete did not end in time")),
        }
        let left = self.runsc_files(id).await?;
        // No process of it is left (its cgroup was emptied first), so a record that stays is a dead letter.
        blocking(WHAT, move || {
            let removed = left.iter().try_for_each(std::fs::remove_file);
            removed.map_err(|error| error.to_string())
        })
        .await
    }

    async fn runsc_files(&self, id: SandboxId) -> Result<Vec<std::path::PathBuf>, RuntimeError> {
        let root = self.config.runsc_root.join(NAMESPACE);
        blocking(WHAT, move || {
            // `<id>_sandbox:<id>.state` and `.lock` (runsc's container/state_file.go).
            let name = |kind: &str| root.join(format!("{id}_sandbox:{id}.{kind}"));
            let files = [name("state"), name("lock")];
            Ok(files.into_iter().filter(|path| path.exists()).collect())
        })
        .await
    }

    /// Removes cgroup, FIFOs and socket.
    async fn remove_outside(
        &self,
        id: SandboxId,
        cgroup: Option<SandboxCgroup>,
    ) -> Result<(), RuntimeError> {
        let paths = fifo::paths(&self.config, id);
        let sockets = shim::sockets(&self.config.socket, id);
        blocking(WHAT, move || {
            // A shim that was killed leaves its socket.
            for socket in sockets {
                let _absent = std::fs::remove_file(socket);
            }
            if let Some(cgroup) = cgroup {
                // Again, as the last word: a creation that was cut off may have been on its way into the group.
                let killed = cgroup.kill(KILL).and_then(|()| cgroup.remove(REMOVE));
                killed.map_err(|error| error.to_string())?;
            }
            fifo::remove(&paths).map_err(|error| error.to_string())
        })
        .await
    }
}

/// What a failed call says about the task; `None`: it went well.
fn judge<T>(result: Result<T, CallError>) -> Result<Option<TaskEnd>, CallError> {
    match result {
        Ok(_) => Ok(None),
        Err(error) => match error.reason {
            Reason::Unreachable => Err(error),
            Reason::NotFound => Ok(Some(TaskEnd::Unknown)),
            // Every process is dead, and the shim does not know it, or can't delete: it never will.
            Reason::Deadline | Reason::Precondition | Reason::Exists | Reason::Refused => {
                Ok(Some(TaskEnd::Wedged))
            }
        },
    }
}
