//! Objects in, pools and status out; and the manifest that the API server gets.

use super::plan::{self, Told};
use super::run::{Check, field_manager};
use super::status;
use super::*;
use crate::kube::reservation::Standing;
use crate::machine::admission::{Check as Policy, Finding};
use crate::machine::handler::Handler;
use crate::machine::refusal::Refusal;
use crate::machine::spec::{PoolSpec, Verdict};
use crate::machine::view::{BreakerView, PoolView};
use ::kube::CustomResourceExt;
use serde_json::{Value, json};
use std::sync::Arc;

const NOW: &str = "2026-11-28T12:00:00Z";
const LATER: &str = "2026-11-28T13:00:00Z";

fn object(namespace: &str, name: &str, made: &str, spec: Value) -> WarmPool {
    serde_json::from_value(json!({
        "apiVersion": "hearth.dev/v1alpha1", "kind": "WarmPool",
        "metadata": {
            "namespace": namespace, "name": name, "creationTimestamp": made,
            "generation": 3, "resourceVersion": "7",
        },
        "spec": spec,
    }))
    .unwrap()
}

fn small() -> Value {
    json!({"minWarm": 2, "maxTotal": 4, "template": {"image": "a:1"}})
}

fn all(objects: &[WarmPool]) -> BTreeMap<String, WarmPool> {
    let key = |it: &WarmPool| plan::reference(it).to_string();
    objects.iter().map(|it| (key(it), it.clone())).collect()
}

/// SetPools' own rules.
fn check() -> Check {
    Arc::new(|pool| crate::rpc::check_pool(pool, &[Handler::named("gvisor", true)]))
}

fn planned(objects: &[WarmPool], in_force: &[PoolSpec]) -> plan::Plan {
    let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
    plan::plan(&all(objects), &labels, in_force, &check())
}

fn names(plan: &plan::Plan) -> Vec<&str> {
    plan.pools.iter().map(|it| it.name.as_str()).collect()
}

fn rejected<'a>(plan: &'a plan::Plan, key: &str) -> (&'a str, &'a str) {
    match &plan.told[key] {
        Told::Rejected(reason, what) => (reason, what),
        Told::Declared => panic!("{key} is declared"),
    }
}

#[test]
fn an_object_is_read_as_set_pools_reads_a_pool() {
    let spec = json!({
        "minWarm": 2, "maxTotal": 8, "running": 5, "maxParallelRefills": 3, "updateStrategy": "Recreate",
        "template": {
            "image": "hearth.local/python:3", "interpreter": "python", "workingDir": "/work",
            "command": ["sleep", "1"], "env": {"A": "b"}, "idleAfterSeconds": 60, "onDataLoss": "Cold",
            "resources": {"cpu": "500m", "memory": "256Mi", "disk": 1073741824, "pids": 64},
            "readiness": {"command": ["true"], "timeoutSeconds": 5}, "warmCommand": ["true"],
            "networkPolicy": {"mode": "Allowlist", "publish": [8080],
                "allow": [{"cidr": "192.0.2.0/24", "protocol": "TCP", "ports": [{"first": 443}]}, {"name": "*.example.com"}]},
        },
    });
    let plan = planned(&[object("team", "py", NOW, spec)], &[]);
    assert_eq!(plan.told["team/py"], Told::Declared);
    let pool = &plan.pools[0];
    let resources = &pool.template.resources;
    assert_eq!(resources.cpu_millis, 500);
    assert_eq!(resources.memory_bytes, 256 << 20);
    assert_eq!(resources.disk_bytes, 1 << 30);
    assert_eq!((resources.pids, resources.open_files), (64, 65_536));
    assert_eq!((pool.min_warm, pool.max_total), (2, 8));
    assert_eq!(pool.running, Some(2), "never more than minWarm");
    assert_eq!(pool.template.idle_after_ms, 60_000);
    assert_eq!(pool.template.readiness.timeout_ms, 5_000);
    assert_eq!(pool.template.network_policy.allow.len(), 2);
    let object = pool.warm_pool.as_ref().unwrap();
    assert_eq!(object.to_string(), "team/py");
}

#[test]
fn a_runtime_class_takes_the_place_of_a_handler() {
    let mut spec = small();
    spec["template"]["runtimeClassName"] = json!("gvisor");
    let mut plan = planned(&[object("t", "py", NOW, spec)], &[]);
    let template = &plan.pools[0].template;
    assert_eq!(template.runtime_class, "gvisor");
    assert_eq!(template.runtime_handler, "", "the machine's to give");
    let name = plan.pools[0].name.clone();
    let why = Refusal::RuntimeClassUnservable {
        pool: "py".into(),
        class: "gvisor".into(),
        detail: "no such class".into(),
    };
    plan.unserved(&[(name, why)]);
    let (reason, what) = rejected(&plan, "t/py");
    assert_eq!(reason, "Unservable");
    assert!(what.contains("no such class"), "{what}");
}

#[test]
fn what_is_wrong_is_told_in_the_objects_words() {
    let spec = json!({
        "minWarm": 9, "maxTotal": 8,
        "template": {
            "image": "a b", "runtimeHandler": "other", "idleAfterSeconds": 40_000_000,
            "env": {"A_B=": "x"}, "resources": {"memory": "1Mi", "openFiles": 1},
            "networkPolicy": {"mode": "None", "publish": [1]},
        },
    });
    let plan = planned(&[object("team", "Bad.Name", NOW, spec)], &[]);
    let (reason, what) = rejected(&plan, "team/Bad.Name");
    assert_eq!(reason, "InvalidSpec");
    for field in [
        "metadata.name: ",
        "spec.minWarm: ",
        "spec.template.image: ",
        "spec.template.runtimeHandler: ",
        "spec.template.idleAfterSeconds: ",
        "spec.template.env[\"A_B=\"]: ",
        "spec.template.resources.memory: ",
        "spec.template.resources.openFiles: ",
        "spec.template.networkPolicy.publish: ",
    ] {
        assert!(what.contains(field), "{field} in {what}");
    }
    assert!(!what.contains('_') || what.contains("A_B="), "{what}");
    let spec = json!({"maxTotal": 1, "template": {"image": "a", "resources": {"cpu": "many"}}});
    let plan = planned(&[object("team", "a", NOW, spec)], &[]);
    assert!(
        rejected(&plan, "team/a")
            .1
            .starts_with("spec.template.resources.cpu: ")
    );
}

#[test]
fn a_node_has_what_selects_it() {
    let with = |selector: Value| {
        let mut spec = small();
        spec["nodeSelector"] = selector;
        spec
    };
    let mut going = object("t", "going", NOW, small());
    going.metadata.deletion_timestamp = going.metadata.creation_timestamp.clone();
    let plan = planned(
        &[
            object("t", "everywhere", NOW, small()),
            object("t", "here", NOW, with(json!({"zone": "a"}))),
            object("t", "there", NOW, with(json!({"zone": "b"}))),
            object("t", "both", NOW, with(json!({"zone": "a", "disk": "ssd"}))),
            going,
        ],
        &[],
    );
    assert_eq!(names(&plan), ["everywhere", "here"]);
    assert_eq!(plan.told.len(), 2, "others are not this node's to tell of");
}

#[test]
fn a_name_has_one_owner() {
    let of_api = planned(&[object("x", "api", NOW, small())], &[]).pools;
    let of_api: Vec<_> = of_api
        .into_iter()
        .map(|spec| PoolSpec {
            warm_pool: None,
            ..spec
        })
        .collect();
    let objects = [
        object("b", "py", "2026-01-01T00:00:00Z", small()),
        object("a", "py", "2026-01-02T00:00:00Z", small()),
        object("a", "api", NOW, small()),
    ];
    let plan = planned(&objects, &of_api);
    assert_eq!(names(&plan), ["py"]);
    assert_eq!(plan.told["b/py"], Told::Declared, "the older one");
    assert_eq!(rejected(&plan, "a/py").0, "NameTaken");
    assert_eq!(rejected(&plan, "a/api").0, "NameTaken");
}

#[test]
fn more_pools_than_a_node_may_have_are_left_out_the_newest_first() {
    let objects: Vec<_> = (0..70)
        .map(|n| {
            let made = format!("2026-01-01T00:00:{:02}Z", 69_u32.saturating_sub(n) % 60);
            object("t", &format!("p{n:02}"), &made, small())
        })
        .collect();
    let plan = planned(&objects, &[]);
    assert_eq!(plan.pools.len(), crate::machine::limits::POOLS);
    let left_out = plan.told.values();
    let left_out = left_out.filter(|told| matches!(told, Told::Rejected("NodeFull", _)));
    assert_eq!(left_out.count(), 70 - crate::machine::limits::POOLS);
    assert_eq!(planned(&objects, &plan.pools), plan, "and that is stable");
}

#[test]
fn a_slip_of_the_pen_costs_no_members() {
    let good = planned(&[object("t", "py", NOW, small())], &[]);
    let mut spec = small();
    spec["template"]["runtimeHandler"] = json!("nope");
    let bad = [object("t", "py", NOW, spec)];
    let plan = planned(&bad, &good.pools);
    assert_eq!(plan.pools, good.pools);
    assert_eq!(rejected(&plan, "t/py").0, "InvalidSpec");
    assert!(planned(&bad, &[]).pools.is_empty());
}

fn view(warm: u32) -> PoolView {
    let spec = planned(&[object("t", "py", NOW, small())], &[])
        .pools
        .remove(0);
    PoolView {
        spec,
        warm,
        frozen: 1,
        creating: 0,
        claimed: 3,
        hibernated: 0,
        on_disk: 0,
        image_bytes: 0,
        releasing: 0,
        waiting: 0,
        outdated: 0,
        breaker: BreakerView::Closed,
        breaker_reason: String::new(),
        consecutive_failures: 0,
        verdict: None,
        findings: Vec::new(),
        held: String::new(),
        overhead: None,
    }
}

/// What a node makes of an object that others have written to.
fn told_by(node: &str, object: &WarmPool, view: &PoolView, now: &str) -> WarmPool {
    let beside = status::Beside::default();
    let own = status::of_node(node, object, &Told::Declared, Some(view), beside, now);
    let status = status::whole(object, node, Some(own), now);
    let mut object = object.clone();
    object.status = Some(status);
    object
}

fn condition<'a>(conditions: &'a [Condition], r#type: &str) -> &'a Condition {
    conditions.iter().find(|it| it.r#type == r#type).unwrap()
}

#[test]
fn sums_are_over_all_nodes_and_stable() {
    let first = told_by("a", &object("t", "py", NOW, small()), &view(2), NOW);
    let both = told_by("b", &first, &view(1), LATER);
    let status = both.status.as_ref().unwrap();
    assert_eq!((status.warm, status.frozen, status.claimed), (3, 2, 6));
    assert_eq!((status.nodes_ready, status.nodes_total), (1, 2));
    assert_eq!(status.replicas, 1, "the fewest that a node has");
    assert_eq!(status.observed_generation, 3);
    let ready = condition(&status.conditions, "Ready");
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("False", "OnSomeNodes")
    );
    assert!(
        ready.message.contains("node b: Filling: 1 of 2"),
        "{ready:?}"
    );
    assert_eq!(ready.last_transition_time, LATER, "it was true before");

    // The same again is nothing to write; times stay.
    let again = told_by("a", &both, &view(2), LATER);
    assert!(!status::differs(&both, again.status.as_ref().unwrap(), "a"));
    // b catches up.
    let done = told_by("b", &again, &view(2), LATER);
    let status = done.status.as_ref().unwrap();
    assert_eq!((status.replicas, status.nodes_ready), (2, 2));
    assert_eq!(condition(&status.conditions, "Ready").status, "True");

    // The apply has b's entry only, the sums of all, and the version that they are of.
    let body = status::apply(&done, "b", status);
    assert_eq!(body["status"]["nodes"].as_array().unwrap().len(), 1);
    assert_eq!(body["status"]["nodes"][0]["node"], "b");
    assert_eq!(body["status"]["warm"], 4);
    assert_eq!(body["metadata"]["resourceVersion"], "7");

    // a has it no more: its entry goes, the sums with it; then it has nothing to say.
    let left = status::whole(&done, "a", None, LATER);
    assert_eq!((left.warm, left.nodes_total), (2, 1));
    assert!(status::differs(&done, &left, "a"));
    let mut gone = done.clone();
    gone.status = Some(left.clone());
    assert!(!status::differs(
        &gone,
        &status::whole(&gone, "a", None, LATER),
        "a"
    ));
}

#[test]
fn a_reservation_is_told_where_there_is_one() {
    let short = Standing::Short {
        reason: "QuotaExceeded",
        message: "exceeded quota: small".into(),
    };
    let object = object("t", "py", NOW, small());
    for (standing, expected) in [
        (&Standing::Granted, ["True Granted", "True OnAllNodes"]),
        (&Standing::UnderWay, ["Unknown UnderWay"; 2]),
        (&short, ["False QuotaExceeded"; 2]),
    ] {
        let beside = status::Beside {
            unasked: None,
            reserved: Some(standing),
        };
        let view = view(2);
        let own = status::of_node("a", &object, &Told::Declared, Some(&view), beside, NOW);
        let of_node = condition(&own.conditions, "Reserved").clone();
        let whole = status::whole(&object, "a", Some(own), NOW);
        let of_all = condition(&whole.conditions, "Reserved");
        let said = [&of_node, of_all].map(|it| format!("{} {}", it.status, it.reason));
        assert_eq!(said, expected);
    }
    let none = told_by("a", &object, &view(2), NOW).status.unwrap();
    assert_eq!(none.conditions.len(), 3);
}

#[test]
fn conditions_say_why() {
    let object = object("t", "py", NOW, small());
    let told = |told: &Told, view: Option<&PoolView>, unasked| {
        let beside = status::Beside {
            unasked,
            reserved: None,
        };
        status::of_node("a", &object, told, view, beside, NOW).conditions
    };
    let reasons = |conditions: &[Condition]| {
        let told = conditions.iter();
        told.map(|it| format!("{} {} {}", it.r#type, it.status, it.reason))
            .collect::<Vec<_>>()
    };
    let rejected = Told::Rejected("NameTaken", "by another".into());
    assert_eq!(
        reasons(&told(&rejected, None, None)),
        [
            "Accepted False NameTaken",
            "Admitted Unknown NoPool",
            "Ready False NoPool"
        ]
    );
    let held = PoolView {
        verdict: Some(Verdict::Denied {
            rule: "ResourceQuota/small".into(),
            message: "exceeded".into(),
        }),
        held: "no".into(),
        ..view(0)
    };
    let conditions = told(&Told::Declared, Some(&held), None);
    assert_eq!(
        reasons(&conditions),
        [
            "Accepted True Declared",
            "Admitted False Denied",
            "Ready False Held"
        ]
    );
    assert!(
        conditions[1]
            .message
            .starts_with("ResourceQuota/small: exceeded")
    );
    let audited = PoolView {
        findings: vec![Finding {
            check: Policy::LimitsSet,
            enforced: false,
            detail: "is unlimited".into(),
        }],
        ..view(2)
    };
    let conditions = told(&Told::Declared, Some(&audited), None);
    assert_eq!(
        reasons(&conditions),
        [
            "Accepted True Declared",
            "Admitted False ChecksFailed",
            "Ready True Warm"
        ]
    );
    assert!(
        conditions[1]
            .message
            .starts_with("limits_set: spec.template.resources.cpu: is unlimited (told only"),
        "{}",
        conditions[1].message
    );
    let unasked = told(&Told::Declared, Some(&view(2)), Some("it is away"));
    assert_eq!(reasons(&unasked)[1], "Admitted Unknown CouldNotAsk");
    let failing = PoolView {
        breaker: BreakerView::HalfOpen,
        breaker_reason: "x".repeat(4000),
        ..view(0)
    };
    let conditions = told(&Told::Declared, Some(&failing), None);
    assert_eq!(reasons(&conditions)[2], "Ready False Failing");
    assert!(conditions[2].message.len() <= 512);
}

#[test]
fn every_node_has_a_field_manager_of_its_own() {
    let long = |end: &str| field_manager(&format!("{}{end}", "n".repeat(240)));
    assert_eq!(field_manager("node-1"), "hearth/node-1");
    assert!(long("a").len() <= 128);
    assert_ne!(long("a"), long("b"));
}

/// Integers of Rust have formats that the API server does not know.
fn known_formats(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(format)) = fields.get_mut("format") {
                *format = format.trim_start_matches('u').to_owned();
            }
            fields.values_mut().for_each(known_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(known_formats),
        _ => {}
    }
}

/// `UPDATE=1` writes it anew. Helm's `crds/` are installed once and never upgraded, so an upgrade applies this file.
#[test]
fn the_manifest_is_that_of_the_types() {
    let mut crd = serde_json::to_value(WarmPool::crd()).unwrap();
    known_formats(&mut crd);
    let text = format!(
        "# Rendered from src/kube/warmpool.rs by its tests: UPDATE=1 cargo test --lib kube::warmpool\n{}",
        serde_norway::to_string(&crd).unwrap()
    );
    for name in ["chart/crds/warmpools.yaml", "manifests/warmpools.yaml"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset");
        let path = path.join(name);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(there == text, "UPDATE=1 writes {name} anew");
    }
    for path in [
        "/spec/versions/0/schema/openAPIV3Schema/properties/spec/x-kubernetes-validations/0/rule",
        "/spec/versions/0/subresources/scale/specReplicasPath",
        "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/nodes/x-kubernetes-list-map-keys/0",
    ] {
        assert!(crd.pointer(path).is_some(), "{path}");
    }
}

#[test]
fn refusals_keep_their_own_words() {
    let refusal = Refusal::NetworkUnavailable {
        detail: "no nft".into(),
    };
    assert!(convert::told(&refusal).contains("no nft"));
}
