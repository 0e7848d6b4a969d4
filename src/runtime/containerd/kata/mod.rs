//! Kata: what is different where a sandbox is a virtual machine. Its shim is asked through the same Task API, its guest
//! answers over the same FIFOs; the record, the spec, the cgroup and what is left at the end are its own.
//!
//! ```text
//! <parent>/<pool>/<id>        made by hearth, with the limits: as the kubelet makes a pod's group
//! └── kata_vm | vm | vm/sandbox   made by Kata (Go; runtime-rs on v1; on v2): monitor, virtiofsd, and the shim itself
//! ```

mod probe;
mod spec;
mod sweep;

pub(super) use probe::Probes;
pub(super) use spec::build;
pub(super) use sweep::ids;

use std::path::Path;

use containerd_client::services::v1::{
    DeleteTaskRequest, KillRequest, WaitRequest, container::Runtime,
};
use prost::Message;

use sweep::Left;

use super::{
    ContainerdRuntime, blocking,
    client::{Call, CallError, Reason},
    proto::any,
};
use crate::{
    cgroup::{Limits, SandboxCgroup},
    machine::{ids::SandboxId, spec::Resources},
    runtime::{CreateSpec, Family, KataHandler, Overhead, RuntimeError},
};

/// A virtual machine boots in it; Kata's own bound is 60 s.
pub(super) const TASK: Call = Call::seconds("tasks.create", 65);
/// Kata stops the machine, unmounts what it has shared, removes the network namespace it has made.
const KILL: Call = Call::seconds("tasks.kill", 5);
const WAIT: Call = Call::seconds("tasks.wait", 5);
const DELETE: Call = Call::seconds("tasks.delete", 13);
/// The group's period of the CPU quota in microseconds: the kernel's default.
const CPU_PERIOD_MICROS: u64 = 100_000;
/// Host tasks of a virtual machine: threads of its monitor, of virtiofsd and of the shim. What runs inside is not among them.
const HOST_TASKS: u64 = 4096;
/// SIGKILL.
const SIGKILL: u32 = 9;

/// `runtimeoptions.v1.Options`, which Kata's shims (both) read from the container's record. Field numbers from
/// `api/types/runtimeoptions/v1/api.proto` of containerd 2.4.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Options {
    #[prost(string, tag = "2")]
    pub(super) config_path: String,
}

impl prost::Name for Options {
    const NAME: &'static str = "Options";
    const PACKAGE: &'static str = "runtimeoptions.v1";
}

/// The runtime of a container's record. The task gets no options of its own: containerd takes only runc's there, and hands
/// these to the shim where there are none.
pub(super) fn runtime(handler: &KataHandler) -> Runtime {
    let config = path(&handler.config);
    Runtime {
        name: path(&handler.shim),
        options: (!config.is_empty()).then(|| {
            any(&Options {
                config_path: config,
            })
        }),
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

/// What the whole of a sandbox may take on the node: what its template promises inside, and what its RuntimeClass counts
/// for the machine around it. The same sum the kubelet would set.
fn limits(resources: &Resources, handler: &str) -> Limits {
    let overhead = Overhead::of(handler);
    let (memory, cpu) = overhead.map_or((0, 0), |it| (it.memory_bytes, it.cpu_millis));
    let quota = |millis: u64| {
        let millis = millis.saturating_add(cpu);
        (
            millis.saturating_mul(CPU_PERIOD_MICROS / 1000),
            CPU_PERIOD_MICROS,
        )
    };
    Limits {
        memory_bytes: resources.memory_bytes.saturating_add(memory),
        cpu_quota: (resources.cpu_millis > 0).then(|| quota(resources.cpu_millis)),
        tasks: HOST_TASKS,
    }
}

impl ContainerdRuntime {
    /// The Kata handler of that name, if this node offers it.
    pub(super) fn kata(&self, handler: &str) -> Option<&KataHandler> {
        self.config.kata.iter().find(|it| it.name == handler)
    }

    /// Its group, with its limits, before anything is in it.
    pub(super) async fn make_group(
        &self,
        sandbox: &CreateSpec,
        cgroup: SandboxCgroup,
    ) -> Result<(), RuntimeError> {
        let template = &sandbox.template;
        let limits = limits(&template.resources, &template.runtime_handler);
        blocking("create", move || {
            cgroup.make(&limits).map_err(|error| error.to_string())
        })
        .await
    }

    /// What a sandbox of this handler can't do is refused here too, for the machine may not know its handler any more.
    pub(super) fn can_freeze(&self, id: SandboxId) -> Result<(), String> {
        let family = self.live.family(id);
        match family.can_freeze() {
            true => Ok(()),
            false => Err(family.why_no_freeze().to_owned()),
        }
    }

    /// Lets the shim end the machine, while it can: only it knows what it has mounted and made. Whatever comes of that, what
    /// follows ends it without asking.
    pub(super) async fn end_machine(&self, id: SandboxId) {
        if self.live.family(id) != Family::Kata {
            return;
        }
        let ended: Result<(), CallError> = async {
            let container_id = id.to_string();
            let mut tasks = self.client.tasks();
            let kill = KillRequest {
                container_id: container_id.clone(),
                signal: SIGKILL,
                all: true,
                ..KillRequest::default()
            };
            match self.client.call(KILL, tasks.kill(kill)).await {
                // It has ended by itself; what it has left is deleted all the same.
                Err(error) if error.reason == Reason::NotFound => {}
                other => drop(other?),
            }
            let wait = WaitRequest {
                container_id: container_id.clone(),
                exec_id: String::new(),
            };
            self.client.call(WAIT, tasks.wait(wait)).await?;
            let delete = DeleteTaskRequest { container_id };
            self.client.call(DELETE, tasks.delete(delete)).await?;
            Ok(())
        }
        .await;
        if let Err(error) = ended
            && error.reason != Reason::NotFound
        {
            tracing::warn!(sandbox = %id, detail = error.detail(), "Kata's shim does not end its machine: it is ended without it");
        }
    }

    /// Ends what Kata has outside the sandbox's group. containerd can't have cleaned up before.
    pub(super) async fn end_left_by_kata(&self, id: SandboxId) -> Result<(), RuntimeError> {
        let (left, tree) = (self.left(id), self.tree.clone());
        blocking("destroy", move || left.end(&tree)).await
    }

    /// What Kata has left of a sandbox that is dead otherwise. `Ok` when nothing is left.
    pub(super) async fn sweep_after_kata(&self, id: SandboxId) -> Result<(), RuntimeError> {
        let (left, tree) = (self.left(id), self.tree.clone());
        blocking("destroy", move || {
            left.end(&tree).and_then(|()| left.remove())
        })
        .await
    }

    fn left(&self, id: SandboxId) -> Left {
        Left::of(&self.config.kata_run, id, self.live.family(id))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::runtime::containerd::proto::from_any;

    fn handler(config: &str) -> KataHandler {
        KataHandler {
            name: "kata-clh".into(),
            shim: "io.containerd.kata-clh.v2".into(),
            config: config.into(),
        }
    }

    #[test]
    fn the_record_has_the_options_that_katas_shims_read() {
        let runtime = runtime(&handler("/opt/kata/clh.toml"));
        assert_eq!(runtime.name, "io.containerd.kata-clh.v2");
        let options = runtime.options.unwrap();
        assert_eq!(options.type_url, "runtimeoptions.v1.Options");
        // Field 2, length, text: as protoc's generated code for the file would write it.
        assert_eq!(options.value, b"\x12\x12/opt/kata/clh.toml");
        let read: Options = from_any(&options).unwrap();
        assert_eq!(read.config_path, "/opt/kata/clh.toml");
        assert_eq!(super::runtime(&handler("")).options, None);
    }

    #[test]
    fn the_group_holds_what_the_template_promises_and_the_overhead() {
        let mut resources = Resources {
            cpu_millis: 1500,
            memory_bytes: 256 << 20,
            pids: 100,
            disk_bytes: 0,
            open_files: 1024,
        };
        let clh = limits(&resources, "kata-clh");
        assert_eq!(clh.memory_bytes, (256 + 130) << 20);
        assert_eq!(clh.cpu_quota, Some((175_000, 100_000)));
        let qemu = limits(&resources, "kata-qemu");
        assert_eq!(qemu.memory_bytes, (256 + 320) << 20);
        (resources.cpu_millis, resources.memory_bytes) = (0, u64::MAX);
        let unlimited = limits(&resources, "kata-clh");
        assert_eq!(
            (unlimited.cpu_quota, unlimited.memory_bytes),
            (None, u64::MAX)
        );
    }
}
