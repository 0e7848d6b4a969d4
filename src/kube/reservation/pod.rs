//! A reservation as a Pod, and what a Pod says of one. Pure.
//!
//! The node is named by affinity, as the DaemonSet controller does it, and not by `nodeName`: so it is the scheduler that
//! admits it, and a node without room leaves it pending instead of failing. It tolerates every taint, for the sandboxes that
//! it stands for are there in any case. It has requests and no limits: it is Burstable whatever it requests (a resize may not
//! change that class, and a Guaranteed Pod with whole CPUs would be given them for itself), and no cgroup has to follow. The
//! kubelet evicts first who uses more than it requests: never this one, which uses nearly nothing.

use super::Settings;
use super::plan::{Seen, State, Step, Why};
use crate::kube::amount;
use crate::machine::ids::PoolName;
use crate::machine::view::Promised;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// `app.kubernetes.io/name` of a reservation.
pub(super) const NAME: &str = "hearth-reservation";
const NAME_LABEL: &str = "app.kubernetes.io/name";
const POOL_LABEL: &str = "hearth.dev/pool";
/// Whose reservations they are: the node's name, or what is [made of it](label).
const NODE_LABEL: &str = "hearth.dev/reserved-on";
/// hearth's own image has no smaller program that waits.
const COMMAND: [&str; 2] = ["/usr/local/bin/hearthd", "wait"];
/// Nobody.
const USER: u32 = 65534;

/// The node that a reservation is of: the object, not only its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub node: String,
    pub uid: String,
}

impl Owner {
    /// `None`: the object has not been told of.
    pub(super) fn of(node: &Node) -> Option<Self> {
        Some(Self {
            node: node.metadata.name.clone()?,
            uid: node.metadata.uid.clone()?,
        })
    }
}

fn hash(of: &str) -> String {
    let digest = Sha256::digest(of.as_bytes());
    let hex = digest.iter().take(6).map(|byte| format!("{byte:02x}"));
    hex.collect()
}

/// A node's name as a label's value, which has 63 bytes at most.
fn label(node: &str) -> String {
    if node.len() <= 63 {
        return node.to_owned();
    }
    let begin: String = node.chars().take(50).collect();
    let begin = begin.trim_end_matches(['.', '-']);
    format!("{begin}-{}", hash(node))
}

/// All reservations of a node, as a label selector.
pub(super) fn selector(node: &str) -> String {
    format!("{NAME_LABEL}={NAME},{NODE_LABEL}={}", label(node))
}

/// One name for each pool of each node: there can't be two.
pub(super) fn name(pool: &PoolName, node: &str) -> String {
    format!("reservation-{pool}-{}", hash(&format!("{node}/{pool}")))
}

fn requests(of: Promised) -> Value {
    const MEBIBYTE: u64 = 1 << 20;
    json!({
        // As people read it in what kubectl shows.
        "memory": match of.memory_bytes % MEBIBYTE {
            0 => format!("{}Mi", of.memory_bytes / MEBIBYTE),
            _ => of.memory_bytes.to_string(),
        },
        "cpu": format!("{}m", of.cpu_millis),
    })
}

/// The Pod of a new reservation.
///
/// # Errors
/// Never: its shape is this file's.
pub(super) fn pod(
    pool: &PoolName,
    promised: Promised,
    owner: &Owner,
    settings: &Settings,
) -> Result<Pod, serde_json::Error> {
    let secrets = settings.pull_secrets.iter();
    let secrets: Vec<_> = secrets.map(|name| json!({"name": name})).collect();
    let class = Some(&settings.priority_class).filter(|class| !class.is_empty());
    let unchanged =
        |resource: &str| json!({"resourceName": resource, "restartPolicy": "NotRequired"});
    serde_json::from_value(json!({
        "metadata": {
            "name": name(pool, &owner.node),
            "labels": {
                NAME_LABEL: NAME,
                "app.kubernetes.io/managed-by": "hearth",
                POOL_LABEL: pool.as_str(),
                NODE_LABEL: label(&owner.node),
            },
            // It goes with the node. As the controller, or `kubectl drain` would not end it without --force.
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Node", "name": owner.node, "uid": owner.uid, "controller": true,
            }],
        },
        "spec": {
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [owner.node]}]},
            ]}}},
            "tolerations": [{"operator": "Exists"}],
            "priorityClassName": class,
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "imagePullSecrets": secrets,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "reservation",
                "image": settings.image,
                // hearthd runs from it: it is on the node.
                "imagePullPolicy": "IfNotPresent",
                "command": COMMAND,
                "resources": {"requests": requests(promised)},
                "resizePolicy": [unchanged("cpu"), unchanged("memory")],
                "securityContext": {
                    "privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    }))
}

/// The change of a resize; of that Pod only, not of one that has its name since.
pub(super) fn resize(uid: &str, to: Promised) -> Value {
    json!({
        "metadata": {"uid": uid},
        "spec": {"containers": [{"name": "reservation", "resources": {"requests": requests(to)}}]},
    })
}

/// This node's reservations among the Pods that carry its labels, by pool. Whoever else has given a Pod such labels keeps
/// it: hearth's are owned by the Node object, by whichever uid, and named after the pool.
pub(super) fn read<'a>(
    pods: impl Iterator<Item = &'a Pod>,
    owner: &Owner,
) -> BTreeMap<PoolName, Seen> {
    let seen = pods.filter_map(|pod| {
        let labels = pod.metadata.labels.as_ref()?;
        let pool = PoolName::parse(labels.get(POOL_LABEL)?).ok()?;
        let owners = pod.metadata.owner_references.as_deref()?;
        let [owned_by] = owners else { return None };
        let ours = owned_by.kind == "Node"
            && owned_by.name == owner.node
            && labels.get(NAME_LABEL).map(String::as_str) == Some(NAME)
            && pod.metadata.name.as_deref() == Some(name(&pool, &owner.node).as_str());
        let seen = ours.then(|| of_pod(pod, owned_by.uid == owner.uid))??;
        Some((pool, seen))
    });
    seen.collect()
}

fn of_pod(pod: &Pod, of_this_node: bool) -> Option<Seen> {
    let container = pod.spec.as_ref()?.containers.first()?;
    let asked = container.resources.as_ref();
    let asked = read_amounts(asked.and_then(|it| it.requests.as_ref()));
    let status = pod.status.as_ref();
    let phase = status.and_then(|it| it.phase.as_deref());
    let conditions = status.and_then(|it| it.conditions.as_deref());
    let condition = |kind: &str| conditions?.iter().find(|it| it.type_ == kind);
    let scheduled = condition("PodScheduled").is_some_and(|it| it.status == "True");
    let containers = status.and_then(|it| it.container_statuses.as_deref());
    let granted = containers.and_then(|it| it.first()?.allocated_resources.as_ref());
    let granted = match (scheduled, granted) {
        (false, _) => Promised::default(),
        (true, Some(allocated)) => read_amounts(Some(allocated)),
        // The kubelet has not told yet, and the scheduler goes by what it placed.
        (true, None) => asked,
    };
    let state = if pod.metadata.deletion_timestamp.is_some() {
        State::Ending
    } else if !of_this_node || matches!(phase, Some("Failed" | "Succeeded")) {
        State::Dead
    } else if !scheduled {
        match condition("PodScheduled").filter(|it| it.status == "False") {
            Some(why) => State::Short(Why::Unschedulable, told(why)),
            None => State::Asked,
        }
    } else if let Some(why) = condition("PodResizePending").filter(|it| it.status == "True") {
        let kind = match why.reason.as_deref() {
            Some("Infeasible") => Why::Infeasible,
            _ => Why::Deferred,
        };
        State::Short(kind, told(why))
    } else if granted == asked {
        State::Held
    } else {
        State::Asked
    };
    Some(Seen {
        uid: pod.metadata.uid.clone()?,
        asked,
        granted,
        state,
    })
}

fn told(condition: &PodCondition) -> String {
    super::super::client::bounded(condition.message.as_deref().unwrap_or_default())
}

fn read_amounts(amounts: Option<&BTreeMap<String, Quantity>>) -> Promised {
    let of = |resource: &str, scale: u32| {
        let quantity = amounts.and_then(|it| it.get(resource));
        quantity.and_then(|Quantity(text)| amount(text, scale))
    };
    Promised {
        memory_bytes: of("memory", 1).unwrap_or(0),
        cpu_millis: of("cpu", 1000).unwrap_or(0),
    }
}

/// What an attempt that the API server refused means.
pub(super) fn refused(step: &Step, detail: &str) -> (Why, String) {
    let rule = crate::kube::admission::rule(detail);
    let why = if rule.starts_with("ResourceQuota/") {
        Why::Quota
    } else if detail.contains("enough allocatable resources") {
        // Kubernetes 1.36 says so when it is asked; before, the kubelet said it afterwards.
        Why::Infeasible
    } else {
        Why::Refused
    };
    let what = match step {
        Step::Create(_) => "it can't be made",
        Step::Resize { .. } => "it can't be resized",
        Step::Delete { .. } => "it can't be deleted",
    };
    (why, format!("{what}: {detail}"))
}
