#![allow(clippy::unwrap_used)]

use super::super::super::spec::tests::{config, image, sandbox};
use super::*;
use std::sync::Arc;

fn handler() -> KataHandler {
    KataHandler {
        name: "kata-clh".into(),
        shim: "io.containerd.kata-clh.v2".into(),
        config: "/opt/kata/configuration-clh.toml".into(),
    }
}

fn virtual_machine() -> CreateSpec {
    let mut sandbox = sandbox();
    Arc::make_mut(&mut sandbox.template).runtime_handler = "kata-clh".into();
    sandbox
}

#[test]
fn the_spec_of_a_virtual_machine() {
    let spec = build(
        &config(),
        &handler(),
        &virtual_machine(),
        &image(),
        Version::V2,
    );
    insta::assert_json_snapshot!(spec);
}

#[test]
fn nothing_in_it_is_for_hearth_runsc_or_a_pod() {
    for version in [Version::V1, Version::V2] {
        let mut sandbox = virtual_machine();
        sandbox.network = Some(crate::runtime::SandboxNetwork {
            netns: "/run/netns/x".into(),
            resolvers: Vec::new(),
        });
        let spec = build(&config(), &handler(), &sandbox, &image(), version);
        let annotations = spec["annotations"].as_object().unwrap();
        let foreign = |name: &&String| !name.starts_with("io.katacontainers.");
        assert_eq!(annotations.keys().find(foreign), None);
        // Other than that, what is in it does not depend on the node's cgroups.
        let again = build(&config(), &handler(), &sandbox, &image(), Version::V1);
        assert_eq!(spec, again);
        let typed: oci_spec::runtime::Spec = serde_json::from_value(spec).unwrap();
        let linux = typed.linux().as_ref().unwrap();
        let path = linux.cgroups_path().as_ref().unwrap();
        assert!(path.ends_with("vm") && path.starts_with("/hearth/python"));
        let inits = typed.mounts().as_ref().unwrap().iter();
        let init = inits.filter(|it| it.destination().ends_with(".hearth-init"));
        assert_eq!(
            init.count(),
            1,
            "hearth-init comes in by the shared file system"
        );
    }
}

#[test]
fn without_a_configuration_kata_takes_its_own() {
    let handler = KataHandler {
        config: Default::default(),
        ..handler()
    };
    let spec = build(
        &config(),
        &handler,
        &virtual_machine(),
        &image(),
        Version::V2,
    );
    assert_eq!(spec["annotations"], json!({CGROUP_ANNOTATION: "true"}));
}

#[test]
fn the_machine_is_sized_by_the_template_alone() {
    let mut sandbox = virtual_machine();
    let limits = |sandbox: &CreateSpec| {
        let spec = build(&config(), &handler(), sandbox, &image(), Version::V2);
        spec["linux"]["resources"].clone()
    };
    let bytes = 256 << 20;
    assert_eq!(
        limits(&sandbox),
        json!({
            "memory": {"limit": bytes},
            "pids": {"limit": 132},
            "cpu": {"quota": 150_000, "period": 100_000},
        })
    );
    Arc::make_mut(&mut sandbox.template).resources.cpu_millis = 0;
    assert!(limits(&sandbox).get("cpu").is_none());
}
