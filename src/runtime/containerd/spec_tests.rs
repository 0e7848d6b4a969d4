#![allow(clippy::unwrap_used)]

use super::*;
use crate::machine::{
    ids::{NodeTag, PoolName, SandboxId},
    spec::{Readiness, Template},
};
use std::sync::Arc;

pub(in crate::runtime::containerd) fn sandbox() -> CreateSpec {
    let template = Template {
        image: "hearth.local/python:3".into(),
        runtime_handler: "gvisor".into(),
        runtime_class: String::new(),
        command: vec!["python3".into(), "-m".into(), "http.server".into()],
        env: [("MODE", "warm"), ("PATH", "/opt/bin:/bin")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        working_dir: String::new(),
        resources: Resources {
            cpu_millis: 1500,
            memory_bytes: 256 << 20,
            pids: 100,
            disk_bytes: 10 << 20,
            open_files: 65_536,
        },
        network_policy: Default::default(),
        warm_command: Vec::new(),
        readiness: Readiness {
            command: Vec::new(),
            timeout_ms: 30_000,
        },
        interpreter: "python".into(),
        prefork: 2,
        idle_after_ms: 0,
        on_data_loss: crate::machine::spec::OnDataLoss::Fail,
    };
    CreateSpec {
        id: SandboxId::new(NodeTag(0xabcd), 1).unwrap(),
        pool: PoolName::parse("python").unwrap(),
        generation: 3,
        template: Arc::new(template),
        network: None,
    }
}

pub(in crate::runtime::containerd) fn image() -> Resolved {
    Resolved {
        digest: "sha256:aa".into(),
        chain_id: "sha256:bb".into(),
        env: [
            "LANG=C.UTF-8",
            "PATH=/usr/bin",
            "HOSTNAME=builder",
            "broken",
        ]
        .map(str::to_owned)
        .into(),
        working_dir: "/work".into(),
        user: Some("1000:1001,10".into()),
    }
}

pub(in crate::runtime::containerd) fn config() -> RuntimeConfig {
    RuntimeConfig {
        socket: "/run/hearth/containerd/s".into(),
        run_dir: "/run/hearth".into(),
        wrapper: "/b/hearth-runsc".into(),
        runsc: "/b/runsc".into(),
        runsc_root: "/run/hearth/runsc".into(),
        init: "/b/hearth-init".into(),
        shim: crate::runtime::SHIM.into(),
        snapshotter: "overlayfs".into(),
        cgroup_parent: "/hearth".into(),
        node_tag: NodeTag(0xabcd),
        kata: Vec::new(),
        kata_run: "/run".into(),
    }
}

#[test]
fn the_spec_of_a_python_sandbox() {
    let spec = build(&config(), &sandbox(), &image(), Version::V1);
    insta::assert_json_snapshot!(spec);
}

/// Unknown keys are dropped by oci-spec's types and lists of capabilities are sets there: what comes back must be equal.
#[test]
fn every_key_is_one_of_the_oci_spec() {
    fn sorted(mut value: Value) -> Value {
        for list in ["bounding", "effective", "permitted"] {
            let path = format!("/process/capabilities/{list}");
            let list = value.pointer_mut(&path).unwrap().as_array_mut().unwrap();
            list.sort_by_key(ToString::to_string);
        }
        value
    }
    for version in [Version::V1, Version::V2] {
        let ours = build(&config(), &sandbox(), &image(), version);
        let theirs: oci_spec::runtime::Spec = serde_json::from_value(ours.clone()).unwrap();
        let theirs = serde_json::to_value(theirs).unwrap();
        assert_eq!(sorted(theirs), sorted(ours));
    }
}

#[test]
fn root_images_and_empty_commands_need_no_arguments() {
    let mut sandbox = sandbox();
    let template = Arc::make_mut(&mut sandbox.template);
    template.command.clear();
    template.interpreter.clear();
    let mut image = image();
    (image.user, image.working_dir) = (None, String::new());
    image.env.clear();
    let spec = build(&config(), &sandbox, &image, Version::V1);
    assert_eq!(spec["process"]["args"], json!(["/.hearth-init"]));
    assert_eq!(spec["process"]["cwd"], "/");
    assert_eq!(
        spec["process"]["env"],
        json!(["MODE=warm", "PATH=/opt/bin:/bin"])
    );
    Arc::make_mut(&mut sandbox.template).env.clear();
    Arc::make_mut(&mut sandbox.template).working_dir = "/srv".into();
    let spec = build(&config(), &sandbox, &image, Version::V1);
    assert_eq!(
        spec["process"]["env"],
        json!([format!("PATH={DEFAULT_PATH}")])
    );
    assert_eq!(spec["process"]["cwd"], "/srv");
}

#[test]
fn limits_hold_the_promise_and_the_overhead() {
    let mut sandbox = sandbox();
    let spec = build(&config(), &sandbox, &image(), Version::V2);
    let limits = &spec["linux"]["resources"];
    let memory = (256 << 20) + (32 << 20);
    assert_eq!(
        limits["memory"],
        json!({"limit": memory, "swap": 2 * memory})
    );
    assert_eq!(limits["cpu"], json!({"quota": 150_000, "period": 100_000}));
    assert_eq!(limits["pids"]["limit"], 428);
    assert_eq!(limits["unified"]["memory.oom.group"], "1");
    // Extreme values stay within what the kernel can be told.
    let resources = &mut Arc::make_mut(&mut sandbox.template).resources;
    (resources.memory_bytes, resources.pids, resources.cpu_millis) = (u64::MAX, u64::MAX, 0);
    let spec = build(&config(), &sandbox, &image(), Version::V1);
    let limits = &spec["linux"]["resources"];
    assert_eq!(limits["memory"]["limit"], i64::MAX);
    assert_eq!(limits["memory"]["swap"], i64::MAX);
    assert_eq!(limits["pids"]["limit"], i64::MAX);
    assert!(limits.get("cpu").is_none());
}
