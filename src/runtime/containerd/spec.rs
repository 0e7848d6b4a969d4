//! The OCI runtime spec of a sandbox. No I/O here: the same inputs give the same spec, byte for byte, which later
//! decides whether a checkpoint image fits (restore demands equal arguments, mounts, capabilities, limits).
//!
//! Written as the JSON it becomes; the unit tests hold it against oci-spec's types, so that no key is misspelt.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::{image::Resolved, names};
use crate::{
    cgroup::Version,
    machine::spec::{Resources, Template},
    ociwrap::{DISK_ANNOTATION, NETWORK_ANNOTATION, NETWORK_SANDBOX},
    runtime::{CreateSpec, RuntimeConfig},
};

/// Where hearth-init is mounted inside.
pub(super) const INIT: &str = "/.hearth-init";
/// Where a claim's secrets are: in memory.
pub(super) const SECRETS: &str = "/run/hearth/secrets";
/// Room for secrets (`machine::limits`: 64 of 64 KiB), twice.
const SECRETS_BYTES: u64 = 8 << 20;
/// What a sandbox needs beside its workload: sentry, gofer and stubs 15 MB (measured, idle), hearth-init, and the room
/// for secrets. On top of what the template promises.
const OVERHEAD_BYTES: u64 = 32 << 20;
/// Host tasks of a sandbox beside its guest's processes: measured 16 idle, 64 with 500 busy threads inside on 2 cores;
/// the Go runtime needs more on more cores.
const HOST_TASKS: u64 = 128;
/// Host tasks for each process inside: measured 2 stubs, and a thread of the sentry while it runs. Threads inside cost
/// nothing on the host. The first bound that a fork bomb meets is RLIMIT_NPROC, inside. This one is for those who become
/// several users there: at it gVisor can't start stubs or threads and the sandbox ends.
const HOST_TASKS_PER_PROCESS: u64 = 3;
/// The period of the CPU quota in microseconds: the kernel's default.
const CPU_PERIOD_MICROS: u64 = 100_000;
/// Of shared memory, as runc gives; less where the sandbox has less memory.
const SHM_BYTES: u64 = 64 << 20;
/// Sandboxes go before the node's daemons when the node itself runs out of memory. Raising the score needs no
/// privilege.
const OOM_SCORE_ADJUST: i32 = 500;
/// For an image that sets none (containerd's `defaultUnixEnv`).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What root inside may do, all of it within gVisor's own kernel. hearth-init needs SYS_ADMIN (sethostname), CHOWN and
/// FOWNER (secrets and files for the image's user), SETUID and SETGID (becoming it), KILL (its processes); the workload
/// expects what containers have: DAC_OVERRIDE, FSETID, MKNOD, SETPCAP, SETFCAP, AUDIT_WRITE, SYS_CHROOT (package managers,
/// servers that drop privileges) and NET_BIND_SERVICE. Not NET_RAW, NET_ADMIN, SYS_PTRACE, SYS_TIME.
///
/// SYS_ADMIN is hearth-init's alone: it takes it out of its bounding set, so no process that it starts has it. gVisor
/// (kernel.go, `incRLimitNProc`) holds those to RLIMIT_NPROC who have neither it nor SYS_RESOURCE: a workload that is root
/// inside is held to its number of processes, hearth-init is not and serves on beside a fork bomb.
const CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
];

/// runc's defaults. gVisor's proc and sys hold nothing of the host and it ignores both lists; another handler would
/// not.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The cgroup of a sandbox, as in `cgroupsPath`.
pub(super) fn cgroup_path(config: &RuntimeConfig, sandbox: &CreateSpec) -> String {
    let parent = config.cgroup_parent.trim_end_matches('/');
    format!("{parent}/{}/{}", sandbox.pool, sandbox.id)
}

/// The spec. `version` is that of the host's cgroups.
pub(super) fn build(
    config: &RuntimeConfig,
    sandbox: &CreateSpec,
    image: &Resolved,
    version: Version,
) -> Value {
    let template = &sandbox.template;
    let limit = |kind: &str, most: u64| json!({"type": kind, "soft": most, "hard": most});
    let cwd = [&template.working_dir, &image.working_dir];
    let cwd = cwd.into_iter().find(|dir| !dir.is_empty());
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": false,
            // hearth-init itself is root inside; its children become the image's user.
            "user": {"uid": 0, "gid": 0},
            "args": args(template, image.user.as_deref()),
            "env": env(&image.env, &template.env),
            "cwd": cwd.map_or("/", String::as_str),
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
                "inheritable": [],
                "ambient": [],
            },
            "rlimits": [
                limit("RLIMIT_NOFILE", template.resources.open_files),
                // Of each user inside; all of them together are bounded on the host, by `resources`.
                limit("RLIMIT_NPROC", template.resources.pids),
                limit("RLIMIT_CORE", 0),
            ],
            "noNewPrivileges": true,
            "oomScoreAdj": OOM_SCORE_ADJUST,
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": sandbox.id.to_string(),
        "mounts": mounts(config, sandbox),
        "annotations": annotations(sandbox),
        "linux": {
            "cgroupsPath": cgroup_path(config, sandbox),
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, network(sandbox),
            ],
            "resources": resources(&template.resources, version),
            "maskedPaths": MASKED,
            "readonlyPaths": READONLY,
        },
    })
}

/// Without a network of its own the namespace is a new, empty one; with runsc's --network=none (hearth-runsc) the sandbox
/// sees a loopback and nothing else. runsc makes one in any case; said here, so that it stays so.
fn network(sandbox: &CreateSpec) -> Value {
    match &sandbox.network {
        Some(network) => json!({"type": "network", "path": network.netns}),
        None => json!({"type": "network"}),
    }
}

fn annotations(sandbox: &CreateSpec) -> Value {
    let disk = sandbox.template.resources.disk_bytes.to_string();
    let mut annotations = json!({DISK_ANNOTATION: disk});
    if sandbox.network.is_some() {
        annotations[NETWORK_ANNOTATION] = json!(NETWORK_SANDBOX);
    }
    annotations
}

/// `/.hearth-init [--user UID:GID[,GID...]] [--interpreter NAME [--prefork N]] [-- command...]`.
fn args(template: &Template, user: Option<&str>) -> Vec<String> {
    let command = &template.command;
    let mut args = vec![INIT.to_owned()];
    if let Some(user) = user {
        args.extend(["--user".to_owned(), user.to_owned()]);
    }
    if !template.interpreter.is_empty() {
        args.extend(["--interpreter".to_owned(), template.interpreter.clone()]);
        if template.prefork > 0 {
            args.extend(["--prefork".to_owned(), template.prefork.to_string()]);
        }
    }
    if !command.is_empty() {
        args.push("--".to_owned());
        args.extend_from_slice(command);
    }
    args
}

/// The image's environment with the template's on top, sorted. HOSTNAME would be stale from the first claim on.
fn env(image: &[String], template: &BTreeMap<String, String>) -> Vec<String> {
    let mut all = BTreeMap::from([("PATH", DEFAULT_PATH)]);
    all.extend(image.iter().filter_map(|entry| entry.split_once('=')));
    all.remove("HOSTNAME");
    all.extend(
        template
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    );
    let entries = all.iter().map(|(name, value)| format!("{name}={value}"));
    // A NUL would end the entry early, inside; an image that has one is broken in a way nobody relies on.
    entries.filter(|entry| !entry.contains('\0')).collect()
}

/// Every writable place is bounded: the root by the disk annotation, each tmpfs by its size. Their pages count as the
/// workload's memory, as files in RAM do everywhere, so none may take more than half of it.
fn mounts(config: &RuntimeConfig, sandbox: &CreateSpec) -> Value {
    let resources = &sandbox.template.resources;
    let half = resources.memory_bytes / 2;
    let size = |bytes: u64| format!("size={bytes}");
    let tmpfs = |destination: &str, mode: &str, bytes: u64, more: &[&str]| {
        let mut options = vec!["nosuid".to_owned(), "nodev".to_owned()];
        options.extend(more.iter().map(|option| (*option).to_owned()));
        options.extend([format!("mode={mode}"), size(bytes)]);
        json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options})
    };
    let file = |destination: &str, source: &Path| {
        json!({"destination": destination, "type": "bind", "source": source,
               "options": ["bind", "ro", "nosuid", "nodev", "noexec"]})
    };
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
               "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
               "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        tmpfs("/dev/shm", "1777", half.min(SHM_BYTES), &["noexec"]),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
        // An empty /tmp would become a tmpfs of gVisor's own without a bound.
        tmpfs("/tmp", "1777", half, &[]),
        // Readable by the image's user; the files in it are 0600 and its own.
        tmpfs(SECRETS, "0755", SECRETS_BYTES, &["noexec"]),
        json!({"destination": INIT, "type": "bind", "source": config.init,
               "options": ["bind", "ro", "nosuid", "nodev"]}),
    ];
    if sandbox.network.is_some() {
        let [resolv_conf, hosts] = names::paths(config, sandbox.id);
        mounts.push(file("/etc/resolv.conf", &resolv_conf));
        mounts.push(file("/etc/hosts", &hosts));
    }
    Value::Array(mounts)
}

fn resources(resources: &Resources, version: Version) -> Value {
    let memory = resources.memory_bytes.saturating_add(OVERHEAD_BYTES);
    // RAM and swap together. v1 counts them together: all of it may be swapped out (when frozen), none comes on top.
    // v2 bounds swap by itself, and runsc passes on the difference: there may be as much again.
    let swap = match version {
        Version::V1 => memory,
        Version::V2 => memory.saturating_mul(2),
    };
    let tasks = resources.pids.saturating_mul(HOST_TASKS_PER_PROCESS);
    let mut limits = json!({
        "memory": {"limit": signed(memory), "swap": signed(swap)},
        "pids": {"limit": signed(tasks.saturating_add(HOST_TASKS))},
    });
    if resources.cpu_millis > 0 {
        let quota = resources
            .cpu_millis
            .saturating_mul(CPU_PERIOD_MICROS / 1000);
        limits["cpu"] = json!({"quota": signed(quota), "period": CPU_PERIOD_MICROS});
    }
    if version == Version::V2 {
        // Without it the OOM killer takes one stub and leaves a sandbox that limps.
        limits["unified"] = json!({"memory.oom.group": "1"});
    }
    limits
}

/// The OCI spec's numbers are signed.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "spec_tests.rs"]
pub(super) mod tests;
