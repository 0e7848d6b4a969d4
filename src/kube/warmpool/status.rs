//! What a node tells of a WarmPool. Pure.
//!
//! Every node writes its own entry of `nodes` and, in the same write, the sums over all entries. The write holds only for
//! the version of the object that the sums were made from, so they are right at every version: a node that was overtaken
//! reads again. Nobody has to be elected, and a node that is gone for a while spoils nothing.

use super::plan::Told;
use super::{Condition, NodeStatus, WarmPool, WarmPoolStatus};
use crate::kube::reservation::Standing;
use crate::machine::spec::Verdict;
use crate::machine::view::{BreakerView, PoolView};
use serde_json::{Value, json};

/// Condition types, in the order in which they are told.
const ACCEPTED: &str = "Accepted";
const ADMITTED: &str = "Admitted";
const READY: &str = "Ready";
/// Only where reservations are made.
const RESERVED: &str = "Reserved";
const TYPES: [&str; 4] = [ACCEPTED, ADMITTED, READY, RESERVED];
/// Bytes of a message. An object has one for each node: etcd's bound is 1.5 MB.
const MESSAGE_BYTES: usize = 512;

/// What others of this room tell of a pool.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Beside<'a> {
    /// What the cluster was asked about the template last, where it did not answer.
    pub unasked: Option<&'a str>,
    /// How the pool's reservation stands, where there is one.
    pub reserved: Option<&'a Standing>,
}

/// One condition, as yet without its time.
struct Said(&'static str, &'static str, &'static str, String);

/// This node's entry.
pub(super) fn of_node(
    node: &str,
    object: &WarmPool,
    told: &Told,
    view: Option<&PoolView>,
    beside: Beside<'_>,
    now: &str,
) -> NodeStatus {
    let accepted = match told {
        Told::Declared => Said(ACCEPTED, "True", "Declared", String::new()),
        Told::Rejected(reason, what) => Said(ACCEPTED, "False", reason, what.clone()),
    };
    let said = [
        Some(accepted),
        Some(admitted(view, beside.unasked)),
        Some(ready(object, told, view)),
        beside.reserved.map(reserved),
    ];
    let before = object.status.as_ref();
    let before = before.and_then(|status| status.nodes.iter().find(|it| it.node == node));
    let before = before.map_or(&[][..], |it| &it.conditions);
    NodeStatus {
        node: node.to_owned(),
        observed_generation: object.metadata.generation.unwrap_or_default(),
        warm: view.map_or(0, |view| view.warm),
        frozen: view.map_or(0, |view| view.frozen),
        claimed: view.map_or(0, |view| view.claimed),
        conditions: said
            .into_iter()
            .flatten()
            .map(|said| dated(said, before, now))
            .collect(),
    }
}

fn reserved(standing: &Standing) -> Said {
    match standing {
        Standing::Granted => Said(RESERVED, "True", "Granted", String::new()),
        Standing::UnderWay => Said(RESERVED, "Unknown", "UnderWay", String::new()),
        Standing::Short { reason, message } => Said(RESERVED, "False", reason, message.clone()),
    }
}

fn admitted(view: Option<&PoolView>, unasked: Option<&str>) -> Said {
    let Some(view) = view else {
        return Said(ADMITTED, "Unknown", "NoPool", String::new());
    };
    let effect = match view.held.is_empty() {
        true => "told only: nothing is held",
        false => "the pool gets no further sandbox",
    };
    if let Some(Verdict::Denied { rule, message }) = &view.verdict {
        return Said(
            ADMITTED,
            "False",
            "Denied",
            format!("{rule}: {message} ({effect})"),
        );
    }
    if !view.findings.is_empty() {
        let told = view.findings.iter();
        let told = told.map(|it| {
            let field = super::convert::spelt(&format!("spec.{}", it.check.field()));
            format!("{}: {field}: {}", it.check.name(), it.detail)
        });
        let told = told.collect::<Vec<_>>().join("; ");
        return Said(
            ADMITTED,
            "False",
            "ChecksFailed",
            format!("{told} ({effect})"),
        );
    }
    match (&view.verdict, unasked) {
        (Some(_), Some(why)) => Said(
            ADMITTED,
            "True",
            "Admitted",
            format!("as of before; the cluster could not be asked again: {why}"),
        ),
        (Some(_), None) => Said(ADMITTED, "True", "Admitted", String::new()),
        (None, Some(why)) => Said(
            ADMITTED,
            "Unknown",
            "CouldNotAsk",
            format!("{why} ({effect})"),
        ),
        (None, None) => Said(ADMITTED, "Unknown", "NotAsked", String::new()),
    }
}

fn ready(object: &WarmPool, told: &Told, view: Option<&PoolView>) -> Said {
    let Some(view) = view else {
        return Said(
            READY,
            "False",
            "NoPool",
            "this node does not have the pool".into(),
        );
    };
    let wanted = object.spec.min_warm;
    let count = format!("{} of {wanted} warm", view.warm);
    match (told, view.breaker) {
        (Told::Rejected(..), _) => {
            let what = "the pool is as the object was before it became invalid";
            Said(READY, "False", "NotAccepted", what.into())
        }
        _ if view.warm >= wanted => Said(READY, "True", "Warm", String::new()),
        _ if !view.held.is_empty() => Said(READY, "False", "Held", view.held.clone()),
        (_, BreakerView::Open(_) | BreakerView::HalfOpen | BreakerView::Unservable) => {
            Said(READY, "False", "Failing", view.breaker_reason.clone())
        }
        (_, BreakerView::Closed) => Said(READY, "False", "Filling", count),
    }
}

/// Its time is that of the last change of its status.
fn dated(
    Said(r#type, status, reason, message): Said,
    before: &[Condition],
    now: &str,
) -> Condition {
    let same = before.iter().find(|it| it.r#type == r#type);
    let same = same.filter(|it| it.status == status);
    Condition {
        r#type: r#type.into(),
        status: status.into(),
        last_transition_time: same.map_or(now, |it| &it.last_transition_time).to_owned(),
        reason: reason.into(),
        message: super::super::client::cut(&message, MESSAGE_BYTES),
    }
}

/// The whole status as it is with this node's entry; `None`: the node has no entry.
pub(super) fn whole(
    object: &WarmPool,
    node: &str,
    own: Option<NodeStatus>,
    now: &str,
) -> WarmPoolStatus {
    let before = object.status.clone().unwrap_or_default();
    let others = before.nodes.into_iter().filter(|it| it.node != node);
    let mut nodes: Vec<_> = others.chain(own).collect();
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    let sum = |of: fn(&NodeStatus) -> u32| nodes.iter().map(of).fold(0, u32::saturating_add);
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let ready = nodes.iter().filter(|it| is_true(it, READY));
    let is_told = |r#type: &&str| {
        *r#type != RESERVED || nodes.iter().any(|node| of(node, RESERVED).is_some())
    };
    let types = TYPES.into_iter().filter(is_told);
    let conditions = types.map(|r#type| dated(of_all(r#type, &nodes), &before.conditions, now));
    WarmPoolStatus {
        replicas: nodes.iter().map(|it| it.warm).min().unwrap_or(0),
        warm: sum(|it| it.warm),
        frozen: sum(|it| it.frozen),
        claimed: sum(|it| it.claimed),
        nodes_ready: count(ready.count()),
        nodes_total: count(nodes.len()),
        observed_generation: nodes
            .iter()
            .map(|it| it.observed_generation)
            .min()
            .unwrap_or(0),
        conditions: conditions.collect(),
        nodes,
    }
}

fn of<'a>(node: &'a NodeStatus, r#type: &str) -> Option<&'a Condition> {
    node.conditions.iter().find(|it| it.r#type == r#type)
}

fn is_true(node: &NodeStatus, r#type: &str) -> bool {
    of(node, r#type).is_some_and(|it| it.status == "True")
}

/// True if true on every node; else of the first node where it is false, else of the first where it is unknown.
fn of_all(r#type: &'static str, nodes: &[NodeStatus]) -> Said {
    for status in ["False", "Unknown"] {
        let found = nodes.iter().find_map(|node| {
            let found = of(node, r#type).filter(|it| it.status == status)?;
            Some((node, found))
        });
        if let Some((node, found)) = found {
            let more = nodes
                .iter()
                .filter(|it| of(it, r#type).is_some_and(|it| it.status == status));
            let message = match more.count() {
                1 => format!("node {}: {}: {}", node.node, found.reason, found.message),
                n => format!(
                    "{n} nodes, the first of them {}: {}: {}",
                    node.node, found.reason, found.message
                ),
            };
            let reason = match nodes.len() {
                1 => as_static(&found.reason),
                _ => "OnSomeNodes",
            };
            return Said(r#type, status, reason, message);
        }
    }
    match nodes.is_empty() {
        true => Said(r#type, "Unknown", "NoNode", "no node has the pool".into()),
        false => Said(r#type, "True", "OnAllNodes", String::new()),
    }
}

/// Reasons are a closed list; one of another version of hearthd is told as such.
fn as_static(reason: &str) -> &'static str {
    const REASONS: [&str; 19] = [
        "InvalidSpec",
        "Unservable",
        "NameTaken",
        "NodeFull",
        "NoPool",
        "Denied",
        "ChecksFailed",
        "CouldNotAsk",
        "NotAsked",
        "NotAccepted",
        "Held",
        "Failing",
        "Filling",
        "QuotaExceeded",
        "Refused",
        "Unschedulable",
        "Deferred",
        "Infeasible",
        "UnderWay",
    ];
    let known = REASONS.into_iter().find(|it| *it == reason);
    known.unwrap_or("Other")
}

/// The server-side apply: this node's entry and the sums, at the version they were made from. Entries of others are not in
/// it, so they stay theirs.
pub(super) fn apply(object: &WarmPool, node: &str, status: &WarmPoolStatus) -> Value {
    let own = status.nodes.iter().filter(|it| it.node == node);
    let mut told = json!(status);
    told["nodes"] = json!(own.collect::<Vec<_>>());
    json!({
        "apiVersion": "hearth.dev/v1alpha1",
        "kind": "WarmPool",
        "metadata": {
            "name": object.metadata.name,
            "namespace": object.metadata.namespace,
            "resourceVersion": object.metadata.resource_version,
        },
        "status": told,
    })
}

/// Has the node something to write?
pub(super) fn differs(object: &WarmPool, status: &WarmPoolStatus, node: &str) -> bool {
    let before = object.status.as_ref();
    let had = before.is_some_and(|it| it.nodes.iter().any(|it| it.node == node));
    let has = status.nodes.iter().any(|it| it.node == node);
    // A node that neither has nor had the pool is not asked.
    (had || has) && before != Some(status)
}
