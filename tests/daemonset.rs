//! What is shipped for Kubernetes: the chart renders, its manifests are the rendered ones, its configuration is one that
//! hearthd takes, and what it asks for is no more than docs/privileges.md says. Needs helm (`make setup`).
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[path = "support/tool.rs"]
mod tool;
use tool::tool;

fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn helm(args: &[&str]) -> Output {
    let mut command = Command::new(tool("helm"));
    command.env_clear().env("HOME", "/nonexistent");
    command.args(args).output().unwrap()
}

/// The chart with these values: every object of it.
fn render(values: &[&str]) -> Result<Vec<Value>, String> {
    let chart = here("daemonset/chart");
    let mut args = vec![
        "template",
        "hearth",
        chart.to_str().unwrap(),
        "--namespace=hearth",
    ];
    for value in values {
        args.extend(["--set-json", *value]);
    }
    let output = helm(&args);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(documents(&String::from_utf8(output.stdout).unwrap()))
}

fn documents(text: &str) -> Vec<Value> {
    use serde::Deserialize;
    let documents = serde_norway::Deserializer::from_str(text);
    let parsed = documents.map(|document| Value::deserialize(document).unwrap());
    parsed.filter(|document| !document.is_null()).collect()
}

fn one<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found: Vec<_> = objects.iter().filter(|o| o["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{kind}");
    found[0]
}

fn pod(objects: &[Value]) -> &Value {
    &one(objects, "DaemonSet")["spec"]["template"]["spec"]
}

/// Every value that turns something on.
const EVERYTHING: &[&str] = &[
    "network.enabled=true",
    "kubernetes.enabled=true",
    "podMonitor.create=true",
    "prometheusRule.create=true",
    "dashboard.create=true",
    "runtimeClasses.create=true",
    "api.tcp={\"enabled\":true,\"tlsSecret\":\"hearth-tls\"}",
    "runtimeClasses.names=[\"gvisor\",\"kata-clh\",\"kata-clh-runtime-rs\",\"kata-dragonball\",\"kata-fc\",\"kata-qemu\",\"kata-qemu-runtime-rs\"]",
];

#[test]
fn the_chart_is_well_formed() {
    let chart = here("daemonset/chart");
    let output = helm(&["lint", "--strict", chart.to_str().unwrap()]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}");
}

#[test]
fn the_manifests_are_the_rendered_chart() {
    let dir = tempfile::tempdir().unwrap();
    let fresh = dir.path().join("hearth.yaml");
    let status = Command::new(here("hack/manifests.sh")).arg(&fresh).status();
    assert!(status.unwrap().success());
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    assert_eq!(
        read(&here("daemonset/manifests/hearth.yaml")),
        read(&fresh),
        "the chart has changed: run hack/manifests.sh"
    );
}

#[test]
fn wrong_values_are_refused_before_they_reach_a_cluster() {
    for (wrong, word) in [
        ("imagge.tag=\"1\"", "imagge"),
        ("image.digest=\"sha256:1\"", "digest"),
        ("paths.data=\"relative\"", "data"),
        ("runtime.cgroupParent=\"/kubepods/x\"", "cgroupParent"),
        ("runtime.kata=[\"runc\"]", "kata"),
        ("api.roles.admin=[]", "admin"),
        ("api.tcp.enabled=true", "tlsSecret"),
        ("updateStrategy.rollingUpdate.maxSurge=1", "maxSurge"),
        ("extraCapabilities=[\"CAP_NET_RAW\"]", "extraCapabilities"),
        (
            "runtimeClasses={\"create\":true,\"names\":[\"nope\"]}",
            "nope",
        ),
    ] {
        let error = render(&[wrong]).expect_err(wrong);
        assert!(error.contains(word), "{wrong}: {error}");
    }
}

/// docs/privileges.md in the DaemonSet's words.
#[test]
fn the_pod_has_no_right_that_is_not_written_down() {
    for (values, capabilities) in [
        (&[][..], &["KILL"][..]),
        (
            &["network.enabled=true"][..],
            &["KILL", "NET_ADMIN", "SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE"],
        ),
    ] {
        let objects = render(values).unwrap();
        let pod = pod(&objects);
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(
            pod["securityContext"]["seccompProfile"]["type"],
            "RuntimeDefault"
        );
        let has_host_network = pod["hostNetwork"] == true;
        assert_eq!(has_host_network, !values.is_empty());
        let containers = ["initContainers", "containers"].map(|key| pod[key].as_array().unwrap());
        assert_eq!(containers.map(Vec::len), [1, 1]);
        for container in containers.into_iter().flatten() {
            let context = &container["securityContext"];
            assert_eq!(context["privileged"], false);
            assert_eq!(context["allowPrivilegeEscalation"], false);
            assert_eq!(context["readOnlyRootFilesystem"], true);
            assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]));
        }
        let added = |container: &Value| container["securityContext"]["capabilities"]["add"].clone();
        assert_eq!(added(&containers[0][0]), Value::Null);
        assert_eq!(added(&containers[1][0]), serde_json::json!(capabilities));
        // No socket by itself, no root directory, no /proc or /dev.
        for volume in pod["volumes"].as_array().unwrap() {
            if let Some(path) = volume["hostPath"]["path"].as_str() {
                let known = [
                    "/var/lib/hearth",
                    "/run/hearth",
                    "/opt/hearth",
                    "/run/containerd",
                    "/sys/fs/cgroup",
                ];
                assert!(known.contains(&path), "{path}");
                let kind = volume["hostPath"]["type"].as_str().unwrap();
                assert!(kind.starts_with("Directory"), "{kind}");
            }
        }
        for kind in ["ClusterRole", "Role"] {
            assert!(!objects.iter().any(|o| o["kind"] == kind));
        }
    }
}

#[test]
fn the_rights_at_the_api_server_are_the_listed_ones() {
    let objects = render(EVERYTHING).unwrap();
    let mut rights = Vec::new();
    let roles =
        ["ClusterRole", "Role"].map(|kind| one(&objects, kind)["rules"].as_array().unwrap());
    for rule in roles.into_iter().flatten() {
        let words = |key: &str| {
            let words = rule[key].as_array().unwrap().iter();
            let words: Vec<_> = words
                .map(|word| word.as_str().unwrap().to_owned())
                .collect();
            words.join(",")
        };
        rights.push(format!("{} {}", words("resources"), words("verbs")));
    }
    assert_eq!(
        rights,
        [
            "nodes get,list,watch,patch",
            "runtimeclasses list,watch",
            "events create,patch"
        ]
    );
    // Events about nodes live there, and nowhere else may it write any.
    assert_eq!(one(&objects, "Role")["metadata"]["namespace"], "default");
    one(&objects, "RoleBinding");
    // A write to nodes comes with the policy that pins it.
    one(&objects, "ValidatingAdmissionPolicyBinding");
    let policy = one(&objects, "ValidatingAdmissionPolicy");
    assert_eq!(policy["spec"]["failurePolicy"], "Fail");
}

/// Rights for pools come with what needs them, and the right to create Pods with the policy that makes it one to ask.
#[test]
fn pools_of_the_cluster_need_rights_of_their_own() {
    let rights = |values: &[&str]| {
        let objects = render(&[&["kubernetes.enabled=true"], values].concat()).unwrap();
        let named = |kind: &str, end: &str| {
            let found = objects.iter().find(|object| {
                let name = object["metadata"]["name"].as_str().unwrap();
                object["kind"] == kind && name.ends_with(end)
            });
            found.cloned().unwrap_or(Value::Null)
        };
        let role = named("ClusterRole", "-pools");
        let bound = named("ClusterRoleBinding", "-pools");
        assert_eq!(role.is_null(), bound.is_null());
        let pinned = named("ValidatingAdmissionPolicy", "-dry-run");
        let in_force = named("ValidatingAdmissionPolicyBinding", "-dry-run");
        assert_eq!(pinned.is_null(), in_force.is_null());
        let words = |value: &Value| {
            let words = value.as_array().unwrap().iter();
            let words: Vec<_> = words.map(|word| word.as_str().unwrap()).collect();
            words.join(",")
        };
        let rules = role["rules"].as_array().cloned().unwrap_or_default();
        let rules = rules
            .iter()
            .map(|rule| format!("{} {}", words(&rule["resources"]), words(&rule["verbs"])));
        (rules.collect::<Vec<_>>().join("; "), !pinned.is_null())
    };
    let pools = "kubernetes.warmPools=true";
    let asks = "kubernetes.admission=\"audit\"";
    let of_pools = "warmpools list,watch; warmpools/status patch";
    assert_eq!(rights(&[]), (String::new(), false));
    assert_eq!(rights(&[pools]), (of_pools.to_owned(), false));
    assert_eq!(rights(&[asks]), ("pods create".to_owned(), true));
    let both = format!("{of_pools}; pods create");
    assert_eq!(rights(&[pools, asks]), (both, true));
    assert!(render(&["kubernetes.admission=\"maybe\""]).is_err());
}

/// Rights for reservations are in their one namespace, and come with the policy that pins them to the own node.
#[test]
fn reservations_need_rights_in_one_namespace() {
    let rendered = |values: &[&str]| {
        let objects = render(&[&["kubernetes.enabled=true"], values].concat()).unwrap();
        let named = objects.into_iter().filter(|object| {
            let name = object["metadata"]["name"].as_str().unwrap();
            name.ends_with("-reservation")
        });
        named.collect::<Vec<_>>()
    };
    assert!(rendered(&[]).is_empty());
    let mode = "kubernetes.reservation.mode=\"pod\"";
    for (values, namespace) in [
        (&[mode][..], "hearth"),
        (
            &[mode, "kubernetes.reservation.namespace=\"accounts\""],
            "accounts",
        ),
    ] {
        let objects = rendered(values);
        let kinds: Vec<_> = objects
            .iter()
            .map(|it| it["kind"].as_str().unwrap())
            .collect();
        let expected = [
            "Role",
            "RoleBinding",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
        ];
        let mut sorted = kinds.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, expected);
        for kind in ["Role", "RoleBinding"] {
            assert_eq!(one(&objects, kind)["metadata"]["namespace"], namespace);
        }
        assert_eq!(
            one(&objects, "Role")["rules"],
            serde_json::json!([
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch", "create", "delete"]},
                {"apiGroups": [""], "resources": ["pods/resize"], "verbs": ["patch"]},
            ])
        );
        let policy = &one(&objects, "ValidatingAdmissionPolicy")["spec"];
        assert_eq!(policy["failurePolicy"], "Fail");
        assert!(policy.to_string().contains(namespace));
    }
    assert!(render(&["kubernetes.reservation.mode=\"maybe\""]).is_err());
}

/// The right to ask whose a token is comes with what asks it; the Role for controllers is bound to nobody.
#[test]
fn tokens_need_two_rights_and_a_way_in() {
    let tcp = "api.tcp={\"enabled\":true,\"tlsSecret\":\"hearth-tls\"}";
    let (cluster, tokens) = ("kubernetes.enabled=true", "kubernetes.tokens.enabled=true");
    for wrong in [&[tokens][..], &[tokens, tcp], &[tokens, cluster]] {
        let error = render(wrong).expect_err("tokens without what they need");
        assert!(error.contains("kubernetes.tokens.enabled needs"), "{error}");
    }
    assert!(render(&[tcp, cluster, tokens, "kubernetes.tokens.audiences=[]"]).is_err());
    let named = |objects: &[Value], kind: &str, name: &str| {
        let found = objects
            .iter()
            .find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
        found.cloned().unwrap_or(Value::Null)
    };
    let off = render(&[tcp, cluster]).unwrap();
    let on = render(&[tcp, cluster, tokens]).unwrap();
    assert_eq!(named(&off, "ClusterRole", "hearth-tokens"), Value::Null);
    let role = named(&on, "ClusterRole", "hearth-tokens");
    assert_eq!(
        role["rules"],
        serde_json::json!([
            {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
            {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
        ])
    );
    let bound = named(&on, "ClusterRoleBinding", "hearth-tokens");
    assert_eq!(bound["subjects"][0]["name"], "hearth");
    let claimer = named(&on, "Role", "hearth-claimer");
    assert_eq!(claimer["metadata"]["namespace"], "hearth");
    let bindings = |object: &&Value| object["kind"].as_str().unwrap().ends_with("RoleBinding");
    let binds = |object: &Value| object["roleRef"]["name"] == "hearth-claimer";
    assert!(!on.iter().filter(bindings).any(binds));
}

#[test]
fn calls_to_the_api_server_are_made_where_rights_are_given() {
    let config = |values: &[&str]| {
        let objects = render(values).unwrap();
        let text = one(&objects, "ConfigMap")["data"]["hearthd.toml"].clone();
        let mounted = pod(&objects)["automountServiceAccountToken"].clone();
        (text.as_str().unwrap().contains("[kubernetes]"), mounted)
    };
    assert_eq!(config(&[]), (false, false.into()));
    assert_eq!(config(&["kubernetes.enabled=true"]), (true, true.into()));
    // Its NODE_NAME, which hearthd needs for it, and the way there.
    let objects = render(EVERYTHING).unwrap();
    let env = pod(&objects)["containers"][0]["env"].as_array().unwrap();
    assert!(env.iter().any(|it| it["name"] == "NODE_NAME"));
    let ports = one(&objects, "NetworkPolicy")["spec"]["egress"].to_string();
    assert!(ports.contains("6443"), "{ports}");
}

/// hearthd itself reads what the chart renders, every kind of value among them.
#[test]
fn hearthd_takes_the_rendered_configuration() {
    use hearth::config::{PolicyMode, ReservationMode, Sources, load};
    let tls = "api.tcp={\"enabled\":true,\"tlsSecret\":\"t\"}";
    let more = "config={\"limits\":{\"calls_per_second\":500},\"memory\":{\"swap\":\"none\"},\"api\":{\"connection_age_seconds\":60}}";
    let allocator = "api.roles.allocator=[\"spiffe://cluster.local/ns/agents/sa/allocator\"]";
    let cluster = "kubernetes={\"enabled\":true,\"warmPools\":true,\"admission\":\"enforce\",\"tenantNamespace\":\"team\",\"reservation\":{\"mode\":\"pod\",\"priorityClassName\":\"high\"},\"tokens\":{\"enabled\":true,\"audiences\":[\"hearth\",\"node\"]}}";
    let pulled = "imagePullSecrets=[{\"name\":\"of-the-registry\"}]";
    let objects = render(&[tls, more, allocator, cluster, pulled]).unwrap();
    let text = one(&objects, "ConfigMap")["data"]["hearthd.toml"]
        .as_str()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hearthd.toml");
    std::fs::write(&file, text).unwrap();
    let sources = Sources {
        file: Some(file),
        ..Sources::default()
    };
    let config = load(&sources).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(config.limits.calls_per_second, 500);
    assert_eq!(config.memory.swap, "none");
    assert_eq!(config.api.connection_age_seconds, 60);
    assert_eq!(config.api.roles.allocator.len(), 1);
    assert_eq!(config.api.tcp, "0.0.0.0:9470");
    assert_eq!(config.admin.metrics_listen, "0.0.0.0:9468");
    assert!(config.kubernetes.enabled && config.kubernetes.warm_pools);
    assert_eq!(config.kubernetes.admission, PolicyMode::Enforce);
    assert_eq!(config.kubernetes.tenant_namespace, "team");
    let reservation = &config.kubernetes.reservation;
    assert_eq!(reservation.mode, ReservationMode::Pod);
    assert_eq!(reservation.namespace, "hearth");
    assert_eq!(
        Value::from(reservation.image.as_str()),
        pod(&objects)["containers"][0]["image"]
    );
    assert_eq!(reservation.pull_secrets, ["of-the-registry"]);
    assert_eq!(reservation.priority_class, "high");
    assert!(config.kubernetes.tokens.enabled);
    assert_eq!(config.kubernetes.tokens.audiences, ["hearth", "node"]);
    assert!(config.shim_is_named());
    // What it names is mounted at the same place.
    let pod = pod(&objects);
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    let mounted: Vec<_> = mounts
        .iter()
        .map(|mount| Path::new(mount["mountPath"].as_str().unwrap()))
        .collect();
    for path in [
        &config.data_dir,
        &config.run_dir,
        &config.runtime.install_dir,
        &config.containerd.socket,
        &config.api.tls.certificate,
    ] {
        assert!(mounted.iter().any(|at| path.starts_with(at)), "{path:?}");
    }
}

#[test]
fn katas_handlers_reach_hearthd_with_the_places_that_it_sweeps() {
    let of = |values: &[&str]| {
        let objects = render(values).unwrap();
        let maps = objects.iter().filter(|o| o["kind"] == "ConfigMap");
        let mut texts = maps.filter_map(|map| map["data"]["hearthd.toml"].as_str());
        let text = texts.next().unwrap().to_owned();
        let pod = pod(&objects).clone();
        let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
        let mounts = mounts.iter().filter_map(|it| it["mountPath"].as_str());
        let swept =
            mounts.filter(|path| ["/run/vc", "/run/kata", "/run/kata-containers"].contains(path));
        (text, swept.count())
    };
    let (text, swept) = of(&[]);
    assert!(!text.contains("kata") && swept == 0);
    let entry = "kata-clh=/opt/kata/bin/containerd-shim-kata-v2:/opt/kata/clh.toml";
    let (text, swept) = of(&[&format!("runtime.kata=[\"{entry}\"]")]);
    assert!(text.contains(&format!("kata = [\"{entry}\"]")), "{text}");
    assert_eq!(swept, 3);
}

#[test]
fn a_changed_configuration_rolls_the_pods() {
    let checksum = |values: &[&str]| {
        let objects = render(values).unwrap();
        let template = &one(&objects, "DaemonSet")["spec"]["template"];
        template["metadata"]["annotations"]["checksum/config"].clone()
    };
    assert_ne!(
        checksum(&[]),
        checksum(&["config.log={\"level\":\"debug\"}"])
    );
    assert_eq!(checksum(&[]), checksum(&["minReadySeconds=7"]));
}

#[test]
fn an_image_by_digest_is_taken_by_digest() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let objects = render(&[&format!("image.digest=\"{digest}\"")]).unwrap();
    let image = format!("hearth.local/hearth@{digest}");
    for key in ["initContainers", "containers"] {
        assert_eq!(pod(&objects)[key][0]["image"], image);
    }
}

/// The same rules that promtool tests, whole, and the dashboard as it is.
#[test]
fn rules_and_dashboard_are_those_of_the_repository() {
    let objects = render(EVERYTHING).unwrap();
    let mut groups = Vec::new();
    for name in ["rules", "alerts"] {
        let text = std::fs::read_to_string(here(&format!("daemonset/prometheus/{name}.yaml")));
        let document = &documents(&text.unwrap())[0];
        groups.extend(document["groups"].as_array().unwrap().clone());
    }
    assert!(groups.len() > 2);
    assert_eq!(
        one(&objects, "PrometheusRule")["spec"]["groups"],
        Value::from(groups)
    );
    let maps = objects.iter().filter(|o| o["kind"] == "ConfigMap");
    let mut boards = maps.filter_map(|map| map["data"]["hearth.json"].as_str());
    let board: Value = serde_json::from_str(boards.next().unwrap()).unwrap();
    let shipped = std::fs::read_to_string(here("daemonset/grafana/hearth.json")).unwrap();
    assert_eq!(board, serde_json::from_str::<Value>(&shipped).unwrap());
    // The job that the rules look for.
    let monitor = one(&objects, "PodMonitor");
    let label = monitor["spec"]["jobLabel"].as_str().unwrap();
    let labels = &one(&objects, "DaemonSet")["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels[label], "hearth");
}

/// Handlers, overheads and node labels as gVisor's documentation and kata-deploy (Kata 4.1) have them.
#[test]
fn runtime_classes_are_upstreams() {
    let expected = [
        ("gvisor", "runsc", None),
        ("kata-clh", "kata-clh", Some("130Mi")),
        ("kata-clh-runtime-rs", "kata-clh-runtime-rs", Some("130Mi")),
        ("kata-dragonball", "kata-dragonball", Some("130Mi")),
        ("kata-fc", "kata-fc", Some("130Mi")),
        ("kata-qemu", "kata-qemu", Some("320Mi")),
        (
            "kata-qemu-runtime-rs",
            "kata-qemu-runtime-rs",
            Some("320Mi"),
        ),
    ];
    let mut files: Vec<_> = std::fs::read_dir(here("runtimeclasses"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let mut names = expected.map(|(name, ..)| format!("{name}.yaml"));
    names.sort();
    assert_eq!(files, names);
    let rendered = render(EVERYTHING).unwrap();
    for (name, handler, memory) in expected {
        let text = std::fs::read_to_string(here(&format!("runtimeclasses/{name}.yaml"))).unwrap();
        let class = &documents(&text)[0];
        assert_eq!(class["apiVersion"], "node.k8s.io/v1");
        assert_eq!(
            (&class["metadata"]["name"], &class["handler"]),
            (&name.into(), &handler.into())
        );
        assert_eq!(class["overhead"]["podFixed"]["memory"].as_str(), memory);
        // What Node.Info tells of the handler.
        let told = hearth::machine::handler::Overhead::of(handler);
        let told = told.map(|it| (format!("{}Mi", it.memory_bytes >> 20), it.cpu_millis));
        assert_eq!(told, memory.map(|memory| (memory.to_owned(), 250)));
        let selector = &class["scheduling"]["nodeSelector"]["katacontainers.io/kata-runtime"];
        assert_eq!(selector.as_str(), memory.map(|_| "true"));
        assert!(rendered.contains(class), "{name} is not rendered");
    }
}
