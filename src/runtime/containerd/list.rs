//! Everything that is outside and carries a sandbox id, and whether it lives.

use std::collections::{BTreeMap, BTreeSet};

use containerd_client::{
    services::v1::{Container, GetRequest, ListContainersRequest},
    types::v1::{Process as Task, Status},
};
use futures::stream::{StreamExt, iter};

use super::{
    ContainerdRuntime, blocking,
    client::{Call, CallError, Client, Reason},
    fifo, kata,
    watch::{self, Found, Watch},
};
use crate::{
    cgroup::{CgroupTree, SandboxCgroup},
    machine::{event::Observed, ids::SandboxId},
    runtime::{Family, RuntimeConfig, RuntimeError, labels},
};

const CONTAINERS: Call = Call::seconds("containers.list", 30);
/// containerd gives a hung shim 2 s.
const TASK: Call = Call::seconds("tasks.get", 5);
/// Tasks asked for at once. Each by itself: `Tasks.List` asks all shims one after the other, so that some hung ones
/// would keep the truth about all others from us.
const AT_ONCE: usize = 16;

const WHAT: &str = "list";

/// What is known outside containerd of one sandbox.
#[derive(Debug)]
struct Outside {
    cgroup: Option<SandboxCgroup>,
    /// What lives in its cgroup.
    pids: Vec<i32>,
    /// Its cgroup is frozen, or about to be.
    frozen: bool,
}

impl Client {
    /// Every container's record in the namespace that passes one of the filters, or all without one.
    pub(super) async fn each_container(
        &self,
        filters: Vec<String>,
        mut visit: impl FnMut(Container),
    ) -> Result<(), CallError> {
        let mut containers = self.containers();
        let request = ListContainersRequest { filters };
        // As a stream: thousands of records with their specs exceed what one message may hold.
        let listed = self.measure(CONTAINERS, async {
            let mut stream = containers.list_stream(request).await?.into_inner();
            while let Some(message) = stream.message().await? {
                message.container.into_iter().for_each(&mut visit);
            }
            Ok(())
        });
        listed.await
    }
}

impl ContainerdRuntime {
    /// See the trait.
    pub(super) async fn observe(&self) -> Result<Vec<Observed>, RuntimeError> {
        let held_before = self.live.ids();
        let containers = self.containers().await?;
        self.probe_handlers().await;
        let tasks = self.tasks(&containers).await?;
        let outside = blocking(WHAT, {
            let (tree, config) = (self.tree.clone(), self.config.clone());
            move || look_outside(&tree, &config).map_err(|error| error.to_string())
        })
        .await?;
        let mut ids: BTreeSet<SandboxId> = outside.keys().copied().collect();
        ids.extend(containers.keys());
        for (id, family) in containers.iter().filter(|it| *it.1 != Family::Gvisor) {
            self.live.is_of(*id, *family);
        }
        let mut observed = Vec::with_capacity(ids.len());
        for id in &ids {
            let there = outside.get(id);
            let task = tasks.get(id);
            let alive = containers.contains_key(id) && is_alive(task, there);
            if let (true, Some(task), Some(cgroup)) =
                (alive, task, there.and_then(|o| o.cgroup.clone()))
            {
                self.adopt(*id, task.pid, cgroup).await?;
            }
            let frozen = alive && there.is_some_and(|there| there.frozen);
            observed.push(Observed {
                id: *id,
                alive,
                frozen,
            });
        }
        self.live.retain(&held_before, &ids);
        Ok(observed)
    }

    /// Ids of containers, and what runs them.
    async fn containers(&self) -> Result<BTreeMap<SandboxId, Family>, RuntimeError> {
        let ours = vec![format!("labels.\"{}\"", labels::SANDBOX)];
        let mut found = BTreeMap::new();
        let visit = |container: Container| {
            if let Ok(id) = SandboxId::parse(&container.id) {
                let handler = container.labels.get(labels::HANDLER);
                let family = handler.map_or(Family::Gvisor, |it| Family::of(it));
                found.insert(id, family);
            }
        };
        self.client.each_container(ours, visit).await?;
        Ok(found)
    }

    /// What their shims say of them; nothing of one without a task, or whose shim does not answer.
    async fn tasks(
        &self,
        containers: &BTreeMap<SandboxId, Family>,
    ) -> Result<BTreeMap<SandboxId, Task>, RuntimeError> {
        let asked = containers.keys().copied().map(|id| self.task_of(id));
        let mut answers = iter(asked).buffer_unordered(AT_ONCE);
        let mut found = BTreeMap::new();
        while let Some(answer) = answers.next().await {
            found.extend(answer?);
        }
        Ok(found)
    }

    async fn task_of(&self, id: SandboxId) -> Result<Option<(SandboxId, Task)>, RuntimeError> {
        let mut tasks = self.client.tasks();
        let request = GetRequest {
            container_id: id.to_string(),
            exec_id: String::new(),
        };
        match self.client.call(TASK, tasks.get(request)).await {
            Ok(answer) => Ok(answer.process.map(|task| (id, task))),
            Err(error) if error.reason == Reason::Unreachable => Err(error.into()),
            Err(_) => Ok(None),
        }
    }

    /// Takes a living sandbox into our hands: FIFOs open, its end watched.
    async fn adopt(
        &self,
        id: SandboxId,
        pid: u32,
        cgroup: SandboxCgroup,
    ) -> Result<(), RuntimeError> {
        let lacks = self.live.lacks(id);
        if !lacks.fifos && !lacks.watch {
            return Ok(());
        }
        let paths = fifo::paths(&self.config, id);
        let group = cgroup.clone();
        let (fifos, found) = blocking(WHAT, move || {
            let fifos = lacks.fifos.then(|| fifo::open(&paths));
            let found = lacks.watch.then(|| watch::find(id, pid, &group));
            let found = found.transpose().map_err(|error| error.to_string())?;
            Ok((fifos, found))
        })
        .await?;
        let fifos = match fifos {
            // They may have gone in a way that the sandbox survives (someone emptied /run); the guest will not answer,
            // and that is dealt with where guests are asked.
            Some(Err(error)) => {
                tracing::warn!(sandbox = %id, %error, "the FIFOs of a living sandbox cannot be opened");
                None
            }
            Some(Ok(fifos)) => Some(fifos),
            None => None,
        };
        self.live.adopt(id, cgroup, fifos);
        if let Some(Found { sentry, shim }) = found {
            self.live.watch(id, shim);
            let life = self.live.life(id);
            self.hand_over(Watch { id, sentry, life }).await?;
        }
        Ok(())
    }
}

/// Whether it lives: the shim says so and its sentry is in its cgroup (a shim may not have seen the end yet). Unknown is
/// not dead: a task whose shim gives no state lives as long as anything is in the cgroup. Created but not started is
/// not alive: nobody will start it.
fn is_alive(task: Option<&Task>, outside: Option<&Outside>) -> bool {
    let pids = outside
        .map(|outside| outside.pids.as_slice())
        .unwrap_or_default();
    let sentry = task.and_then(|task| i32::try_from(task.pid).ok());
    match task.map_or(Status::Unknown, Task::status) {
        Status::Running | Status::Paused | Status::Pausing => {
            sentry.is_some_and(|sentry| pids.contains(&sentry))
        }
        Status::Unknown => !pids.is_empty(),
        Status::Created | Status::Stopped => false,
    }
}

/// cgroups and directories of sandboxes.
fn look_outside(
    tree: &CgroupTree,
    config: &RuntimeConfig,
) -> Result<BTreeMap<SandboxId, Outside>, Box<dyn std::error::Error + Send + Sync>> {
    let mut outside = BTreeMap::new();
    for found in tree.list(&config.cgroup_parent)? {
        let Ok(id) = SandboxId::parse(&found.id) else {
            continue;
        };
        let cgroup = tree.sandbox(&config.cgroup_parent, &found.pool, &found.id)?;
        // A group that vanishes meanwhile is empty.
        let pids = cgroup.processes().unwrap_or_default();
        let frozen = cgroup.is_frozen().unwrap_or_default();
        let cgroup = Some(cgroup);
        outside.insert(
            id,
            Outside {
                cgroup,
                pids,
                frozen,
            },
        );
    }
    let known_to_kata = kata::ids(&config.kata_run)?;
    for id in fifo::list(config)?.into_iter().chain(known_to_kata) {
        let nothing = Outside {
            cgroup: None,
            pids: Vec::new(),
            frozen: false,
        };
        outside.entry(id).or_insert(nothing);
    }
    Ok(outside)
}
