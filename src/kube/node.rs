//! hearthd's own Node object: the label and the startup taint it writes, the cordon it heeds.
//!
//! ```text
//! start ─▶ hearth.dev/node=false ─▶ serving ─▶ hearth.dev/node=true ─▶ every pool filled once ─▶ taint hearth.dev/starting off
//! shutting down ─▶ hearth.dev/node=false                                  spec.unschedulable ─▶ Handle::cordon
//! ```
//! Only differences are written, and what a write depends on goes along (`resourceVersion`), so that a taint somebody else
//! sets at the same moment is not lost. A failed write is tried again, ever more slowly, and never in anybody's way.

use super::backoff::Backoff;
use super::client::{CallError, Kube};
use super::follow::Followed;
use crate::driver::{Handle, Phase};
use crate::machine::event::Call;
use crate::machine::view::{Answer, BreakerView, PoolView};
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use std::time::Duration;
use tracing::{debug, info, warn};

/// "true": hearthd on this node serves.
pub const LABEL: &str = "hearth.dev/node";
/// Put on a new node by who registers it, so that nothing that needs hearth is scheduled before pools are warm.
pub const STARTING: &str = "hearth.dev/starting";

/// To look again at what usually tells by itself when it changes.
const LOOK: Duration = Duration::from_secs(5);
/// After somebody else's write.
const CONFLICT: Duration = Duration::from_millis(200);
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// hearthd's own node, as it was last told.
#[must_use]
pub fn own(followed: &Followed<Node>) -> Option<Node> {
    let known = followed.borrow();
    known.as_ref()?.values().next().cloned()
}

/// `spec.unschedulable`.
#[must_use]
fn is_cordoned(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    spec.and_then(|spec| spec.unschedulable).unwrap_or(false)
}

/// Heeds the cordon. Ends with the watch. A node object that is away says nothing: what was known stays.
pub async fn heed(mut followed: Followed<Node>, handle: Handle) {
    // The first look is always told: what the journal remembers may be long past.
    let mut told = None;
    loop {
        if let Some(node) = own(&followed) {
            let cordoned = is_cordoned(&node);
            if told != Some(cordoned) {
                told = Some(cordoned);
                handle.cordon(cordoned).await;
            }
        }
        if followed.changed().await.is_err() {
            return;
        }
    }
}

/// Writes the label once: for what must be said before there is a driver, and after.
///
/// # Errors
/// See [`CallError`].
pub async fn label(kube: &Kube, serves: bool) -> Result<(), CallError> {
    write(
        kube,
        &json!({"metadata": {"labels": {LABEL: serves.to_string()}}}),
    )
    .await
}

/// A merge patch of the own node.
///
/// # Errors
/// See [`CallError`].
pub(super) async fn write(kube: &Kube, change: &Value) -> Result<(), CallError> {
    let api = kube.nodes();
    let params = PatchParams::default();
    let patch = Patch::Merge(change);
    let written = kube.call("nodes.patch", api.patch(&kube.node, &params, &patch));
    written.await.map(drop)
}

async fn read(kube: &Kube) -> Result<Node, CallError> {
    let api = kube.nodes();
    kube.call("nodes.get", api.get(&kube.node)).await
}

/// Keeps label and taint as they should be. Ends with the watch.
pub async fn keep(kube: Kube, mut followed: Followed<Node>, handle: Handle) {
    let (mut phase, mut pools) = (handle.phase(), handle.pools_changed());
    let mut backoff = Backoff::new(&kube.node, FIRST_WAIT, LONGEST_WAIT);
    // Once filled, a pool that is claimed empty makes no new node of this one.
    let mut warmed = false;
    let mut well = true;
    // Read anew after a conflict; else what the watch tells.
    let mut fresh = None;
    loop {
        // As `/readyz` has it: without containerd warm claims and releases are served.
        let serves = matches!(*phase.borrow_and_update(), Phase::Ready | Phase::Degraded);
        if serves && !warmed {
            // Marked as seen before it is looked at: what changes meanwhile is looked at next.
            pools.mark_unchanged();
            warmed = filled(&handle).await;
        }
        let node = fresh.take().or_else(|| own(&followed));
        let change = node.as_ref().and_then(|node| change(node, serves, warmed));
        let rests = match change {
            // The watch may lag behind what was written: it is looked at again when it tells more.
            None => (serves && !warmed).then_some(LOOK),
            Some(change) => match write(&kube, &change).await {
                Ok(()) => {
                    backoff.worked();
                    if !std::mem::replace(&mut well, true) {
                        info!("the node object can be written again");
                    }
                    debug!(%change, "the node object is written");
                    // Its echo comes by the watch; should it not, look again.
                    Some(LONGEST_WAIT)
                }
                // Somebody else was quicker: on top of that, and if need be again.
                Err(error) if error.is_conflict() => {
                    fresh = read(&kube).await.ok();
                    Some(CONFLICT)
                }
                Err(error) => {
                    if std::mem::replace(&mut well, false) {
                        warn!(%error, "the node object can't be written: it is tried again");
                    }
                    Some(backoff.failed())
                }
            },
        };
        tokio::select! {
            changed = followed.changed() => if changed.is_err() { return },
            changed = phase.changed() => if changed.is_err() { return },
            changed = pools.changed(), if serves && !warmed => if changed.is_err() { return },
            () = rest(rests) => {}
        }
    }
}

async fn rest(rests: Option<Duration>) {
    match rests {
        Some(rests) => tokio::time::sleep(rests).await,
        None => std::future::pending().await,
    }
}

/// What is to be written, if anything.
fn change(node: &Node, serves: bool, warmed: bool) -> Option<Value> {
    let wanted = serves.to_string();
    let labels = node.metadata.labels.as_ref();
    let labelled = labels.and_then(|labels| labels.get(LABEL)) == Some(&wanted);
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let starting = |taint: &&Taint| taint.key == STARTING;
    let tainted = taints.is_some_and(|taints| taints.iter().any(|taint| starting(&taint)));
    let untaint = warmed && tainted;
    if labelled && !untaint {
        return None;
    }
    let mut change = json!({"metadata": {"labels": {LABEL: wanted}}});
    if untaint {
        let kept: Vec<_> = taints
            .into_iter()
            .flatten()
            .filter(|it| !starting(it))
            .collect();
        change["spec"] = json!({"taints": kept});
        // The list is replaced as a whole: refused if somebody else was quicker.
        change["metadata"]["resourceVersion"] = json!(node.metadata.resource_version);
    }
    Some(change)
}

/// Were pools declared, and has every one what it can have?
async fn filled(handle: &Handle) -> bool {
    match handle.call(Call::GetPools, None).await {
        Ok(answered) => match answered.answer {
            Answer::Pools { generation, pools } => generation > 0 && pools.iter().all(is_filled),
            _ => false,
        },
        Err(_) => false,
    }
}

/// As warm as it is to be, or as far as it will get: a pool that keeps failing, or that has no more room, must not keep a
/// whole node closed.
fn is_filled(pool: &PoolView) -> bool {
    let room = pool.spec.max_total.saturating_sub(pool.claimed);
    pool.warm >= pool.spec.min_warm.min(room) || pool.breaker != BreakerView::Closed
}

/// The last word of a hearthd that ends: nothing that needs it should come here.
pub async fn leave(kube: &Kube, followed: &Followed<Node>) {
    let said = own(followed).and_then(|node| node.metadata.labels?.get(LABEL).cloned());
    if said.as_deref() != Some("false")
        && let Err(error) = label(kube, false).await
    {
        info!(%error, "the node keeps its label");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::NodeSpec;
    use kube::core::ObjectMeta;

    fn taint(key: &str) -> Taint {
        Taint {
            key: key.into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        }
    }

    fn node(label: Option<&str>, taints: &[&str]) -> Node {
        Node {
            metadata: ObjectMeta {
                resource_version: Some("7".into()),
                labels: label.map(|value| [(LABEL.to_owned(), value.to_owned())].into()),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                taints: Some(taints.iter().map(|key| taint(key)).collect()),
                ..NodeSpec::default()
            }),
            status: None,
        }
    }

    #[test]
    fn only_differences_are_written() {
        for (label, serves, warmed) in [
            (Some("true"), true, true),
            (Some("true"), true, false),
            (Some("false"), false, false),
        ] {
            assert_eq!(change(&node(label, &["other"]), serves, warmed), None);
        }
        let labels = |value: &str| json!({"metadata": {"labels": {LABEL: value}}});
        let to = |label, serves| change(&node(label, &[STARTING]), serves, false);
        assert_eq!(to(None, false), Some(labels("false")));
        assert_eq!(to(Some("false"), true), Some(labels("true")));
        // Not warm yet: the taint stays.
        assert_eq!(to(Some("true"), true), None);
    }

    #[test]
    fn the_startup_taint_goes_and_no_other() {
        let change = change(&node(Some("true"), &["a", STARTING, "b"]), true, true).unwrap();
        let keys: Vec<_> = change["spec"]["taints"]
            .as_array()
            .unwrap()
            .iter()
            .collect();
        assert_eq!(keys.len(), 2);
        assert_eq!(
            (&keys[0]["key"], &keys[1]["key"]),
            (&json!("a"), &json!("b"))
        );
        // Somebody else's taint of the same moment is not written over.
        assert_eq!(change["metadata"]["resourceVersion"], "7");
    }

    #[test]
    fn an_unschedulable_node_is_cordoned() {
        let mut node = node(None, &[]);
        assert!(!is_cordoned(&node) && !is_cordoned(&Node::default()));
        node.spec.as_mut().unwrap().unschedulable = Some(true);
        assert!(is_cordoned(&node));
    }
}
