//! Making a sandbox.
//!
//! ```text
//! image resolved ─▶ Containers.Create ─▶ Snapshots.Prepare ─▶ FIFOs ─▶ Tasks.Create ─▶ watched ─▶ Tasks.Start
//! ```
//! The container record comes first. It names the snapshot before that exists and so roots it from the moment it does:
//! no lease is needed (two writes to containerd's database less), and whatever a crash leaves can be found by its id.

use std::{collections::HashMap, path::Path, time::Instant};

use containerd_client::{
    services::v1::{
        Container, CreateContainerRequest, CreateTaskRequest, StartRequest, container,
        snapshots::PrepareSnapshotRequest,
    },
    types::Mount,
};
use prost_types::Any;

use super::{
    ContainerdRuntime, blocking,
    checkpoint::RESTORE,
    client::{Call, Reason},
    fifo,
    image::Resolved,
    kata, names,
    proto::{RuncOptions, any, spec_any},
    spec,
    watch::{self, Watch},
};
use crate::{
    cgroup::SandboxCgroup,
    failpoint::failpoint,
    runtime::{CreateSpec, Family, RuntimeError, labels, metrics::Stage},
};

const CONTAINER: Call = Call::seconds("containers.create", 10);
const PREPARE: Call = Call::seconds("snapshots.prepare", 10);
/// hearth-runsc gives `runsc create` 20 s; the shim's own start comes before it.
const TASK: Call = Call::seconds("tasks.create", 30);
/// The same for `runsc start`.
const START: Call = Call::seconds("tasks.start", 25);

const WHAT: &str = "create";

impl ContainerdRuntime {
    /// See the trait. On error whatever was made stays.
    pub(super) async fn make(&self, sandbox: &CreateSpec) -> Result<(), RuntimeError> {
        self.make_from(sandbox, None).await
    }

    /// The same; with an image it is restored from that.
    pub(super) async fn make_from(
        &self,
        sandbox: &CreateSpec,
        from: Option<&Path>,
    ) -> Result<(), RuntimeError> {
        if !self.known_handler(&sandbox.template.runtime_handler) {
            return Err(RuntimeError::Refused {
                what: WHAT,
                detail: format!(
                    "there is no runtime handler {:?}",
                    sandbox.template.runtime_handler
                ),
            });
        }
        let mut clock = Instant::now();
        let mut lap = |stage| {
            let now = Instant::now();
            let took = now.duration_since(std::mem::replace(&mut clock, now));
            (stage, took)
        };
        let mut image = self.images.of(sandbox).await?;
        self.record(sandbox, &image).await?;
        failpoint!("create.container");
        let mut laps = vec![lap(Stage::Container)];
        let rootfs = match self.prepare(sandbox, &image).await {
            // The image was removed and collected since it was resolved. If its reference stands for something again,
            // that is what this pool's next members are made of, as after a restart.
            Err(error) if error.reason == Reason::NotFound => {
                tracing::warn!(
                    image = sandbox.template.image,
                    "the image's layers are gone; resolving it again"
                );
                self.images.forget(&image);
                image = self.images.of(sandbox).await?;
                self.forget_record(sandbox.id).await?;
                self.record(sandbox, &image).await?;
                self.prepare(sandbox, &image).await?
            }
            other => other?,
        };
        failpoint!("create.snapshot");
        laps.push(lap(Stage::Snapshot));
        let cgroup = self.cgroup(sandbox)?;
        if self.kata(&sandbox.template.runtime_handler).is_some() {
            self.make_group(sandbox, cgroup.clone()).await?;
        }
        let pid = self.task(sandbox, rootfs, cgroup.clone(), from).await?;
        failpoint!("create.task");
        if from.is_none() {
            self.watch(sandbox, pid, cgroup.clone()).await?;
        }
        failpoint!("create.watched");
        laps.push(lap(Stage::Task));
        let request = StartRequest {
            container_id: sandbox.id.to_string(),
            exec_id: String::new(),
        };
        let mut tasks = self.client.tasks();
        let call = if from.is_some() { RESTORE } else { START };
        let started = self.client.call(call, tasks.start(request)).await?;
        if from.is_some() {
            // A restored task has no process before.
            self.watch(sandbox, started.pid, cgroup).await?;
        }
        failpoint!("create.started");
        laps.push(lap(Stage::Start));
        for (stage, took) in laps {
            self.metrics.stage(stage).observe(took.as_secs_f64());
        }
        Ok(())
    }

    /// Writes the container record.
    async fn record(&self, sandbox: &CreateSpec, image: &Resolved) -> Result<(), RuntimeError> {
        let id = sandbox.id.to_string();
        let handler = &sandbox.template.runtime_handler;
        let (config, version) = (&self.config, self.tree.version());
        let (runtime, spec) = match self.kata(handler) {
            Some(kata) => (
                kata::runtime(kata),
                kata::build(config, kata, sandbox, image, version),
            ),
            None => (
                container::Runtime {
                    name: config.shim.display().to_string(),
                    options: Some(self.runc_options()),
                },
                spec::build(config, sandbox, image, version),
            ),
        };
        let mut labels: HashMap<_, _> = [
            (labels::SANDBOX, id.clone()),
            (labels::POOL, sandbox.pool.to_string()),
            (labels::GENERATION, sandbox.generation.to_string()),
            (labels::NODE_TAG, sandbox.id.tag().to_string()),
            (labels::HANDLER, handler.clone()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        labels.extend(self.made_with().await);
        let container = Container {
            id: id.clone(),
            labels,
            image: sandbox.template.image.clone(),
            runtime: Some(runtime),
            spec: Some(spec_any(spec.to_string().into_bytes())),
            snapshotter: self.config.snapshotter.clone(),
            snapshot_key: id,
            ..Container::default()
        };
        let request = CreateContainerRequest {
            container: Some(container),
        };
        let mut containers = self.client.containers();
        self.client
            .call(CONTAINER, containers.create(request))
            .await?;
        Ok(())
    }

    /// What the shim needs to call hearth-runsc. On the container too: `shim delete` reads it from there after a crash.
    fn runc_options(&self) -> Any {
        any(&self.options())
    }

    /// The same, to be added to.
    pub(super) fn options(&self) -> RuncOptions {
        RuncOptions {
            binary_name: self.config.wrapper.display().to_string(),
            root: self.config.runsc_root.display().to_string(),
            criu_image_path: String::new(),
        }
    }

    /// Makes the writable layer.
    async fn prepare(
        &self,
        sandbox: &CreateSpec,
        image: &Resolved,
    ) -> Result<Vec<Mount>, super::client::CallError> {
        let id = sandbox.id.to_string();
        let request = PrepareSnapshotRequest {
            snapshotter: self.config.snapshotter.clone(),
            key: id.clone(),
            parent: image.chain_id.clone(),
            labels: [(labels::SANDBOX.to_owned(), id)].into(),
        };
        let mut snapshots = self.client.snapshots();
        let prepared = self
            .client
            .call(PREPARE, snapshots.prepare(request))
            .await?;
        Ok(prepared.mounts)
    }

    /// Where its cgroup will be.
    fn cgroup(&self, sandbox: &CreateSpec) -> Result<SandboxCgroup, RuntimeError> {
        let path = spec::cgroup_path(&self.config, sandbox);
        self.tree.at(&path).map_err(|error| RuntimeError::Refused {
            what: WHAT,
            detail: error.to_string(),
        })
    }

    /// Makes FIFOs and task; the pid of the task's first process.
    async fn task(
        &self,
        sandbox: &CreateSpec,
        rootfs: Vec<Mount>,
        cgroup: SandboxCgroup,
        from: Option<&Path>,
    ) -> Result<u32, RuntimeError> {
        let paths = fifo::paths(&self.config, sandbox.id);
        let fifos = blocking("fifos", {
            let paths = paths.clone();
            let network = sandbox.network.clone();
            let names = names::paths(&self.config, sandbox.id);
            move || {
                let fifos = fifo::make(&paths).map_err(|error| error.to_string())?;
                if let Some(network) = network {
                    names::write(&names, &network).map_err(|error| error.to_string())?;
                }
                Ok(fifos)
            }
        });
        let kata = self.kata(&sandbox.template.runtime_handler).is_some();
        let family = Family::of(&sandbox.template.runtime_handler);
        self.live.expect(sandbox.id, cgroup, fifos.await?, family);
        failpoint!("create.fifos");
        let text = |path: &std::path::Path| path.display().to_string();
        let request = CreateTaskRequest {
            container_id: sandbox.id.to_string(),
            rootfs,
            stdin: text(&paths.stdin),
            stdout: text(&paths.stdout),
            stderr: text(&paths.stderr),
            options: (!kata).then(|| {
                any(&RuncOptions {
                    criu_image_path: from.map(text).unwrap_or_default(),
                    ..self.options()
                })
            }),
            ..CreateTaskRequest::default()
        };
        let mut tasks = self.client.tasks();
        let call = if kata { kata::TASK } else { TASK };
        let created = self.client.call(call, tasks.create(request)).await?;
        Ok(created.pid)
    }

    /// Watches for its end, from before it is started.
    async fn watch(
        &self,
        sandbox: &CreateSpec,
        pid: u32,
        cgroup: SandboxCgroup,
    ) -> Result<(), RuntimeError> {
        let id = sandbox.id;
        let found = blocking("watch", move || {
            watch::find(id, pid, &cgroup).map_err(|error| error.to_string())
        });
        let found = found.await?;
        self.live.watch(id, found.shim);
        let (sentry, life) = (found.sentry, self.live.life(id));
        self.hand_over(Watch { id, sentry, life }).await
    }
}
