//! The OCI spec of a sandbox that is a virtual machine: gVisor's, less what only hearth-runsc reads, with what Kata does.
//!
//! One container that is its own sandbox: without `io.kubernetes.cri.container-type` both of Kata's shims take it for that
//! (`SingleContainer`), and size the machine by its `resources`. With it they would wait for a pod's other containers.

use serde_json::{Value, json};

use super::super::{image::Resolved, spec};
use crate::{
    cgroup::Version,
    machine::spec::Resources,
    runtime::{CreateSpec, KataHandler, RuntimeConfig},
};

/// Below the sandbox's own group; Kata renames what comes last ("kata_vm" by the shim in Go), so it must not be the id.
const GROUP: &str = "vm";
/// Kata's configuration file, said here too: `shim delete` of runtime-rs reads the spec only, and would take its default.
const CONFIG_ANNOTATION: &str = "io.katacontainers.config_path";
/// Everything of the sandbox in its group. Without it Kata keeps all but the virtual CPUs in `/kata_overhead`, where nobody
/// bounds or counts them.
const CGROUP_ANNOTATION: &str = "io.katacontainers.config.runtime.sandbox_cgroup_only";
/// Tasks beside those of the workload: hearth-init and its threads.
const INIT_TASKS: u64 = 32;
/// The period of the CPU quota in microseconds.
const CPU_PERIOD_MICROS: u64 = 100_000;

/// The spec.
pub(in crate::runtime::containerd) fn build(
    config: &RuntimeConfig,
    handler: &KataHandler,
    sandbox: &CreateSpec,
    image: &Resolved,
    version: Version,
) -> Value {
    let mut built = spec::build(config, sandbox, image, version);
    let group = format!("{}/{GROUP}", spec::cgroup_path(config, sandbox));
    built["annotations"] = annotations(handler);
    built["linux"]["cgroupsPath"] = json!(group);
    built["linux"]["resources"] = resources(&sandbox.template.resources);
    // It would be about the guest's processes; on the node the machine's monitor counts.
    if let Some(process) = built["process"].as_object_mut() {
        process.remove("oomScoreAdj");
    }
    built
}

fn annotations(handler: &KataHandler) -> Value {
    let mut annotations = json!({CGROUP_ANNOTATION: "true"});
    if !handler.config.as_os_str().is_empty() {
        annotations[CONFIG_ANNOTATION] = json!(handler.config);
    }
    annotations
}

/// Of the container inside: what the template promises, without any overhead of the node's. Kata sizes the machine by it.
fn resources(resources: &Resources) -> Value {
    let tasks = resources.pids.saturating_add(INIT_TASKS);
    let mut limits = json!({
        "memory": {"limit": spec::signed(resources.memory_bytes)},
        "pids": {"limit": spec::signed(tasks)},
    });
    if resources.cpu_millis > 0 {
        let quota = resources
            .cpu_millis
            .saturating_mul(CPU_PERIOD_MICROS / 1000);
        limits["cpu"] = json!({"quota": spec::signed(quota), "period": CPU_PERIOD_MICROS});
    }
    limits
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
