//! A drain that the cluster asks for. `kubectl drain` evicts pods, not those of DaemonSets, and knows no sandboxes: that the node
//! is to be emptied of them is said by an annotation of its Node object, as other agents that drain by themselves have it.
//!
//! ```text
//! hearth.dev/drain: wait | hibernate | evict ─┐
//! hearth.dev/drain-seconds: "600"            ─┴▶ Handle::cluster_drain ─▶ the machine: the stricter of this and the API's
//!                                                     hearth.dev/drain-state ◀── Handle::call(GetDrain)
//! ```
//! The annotation is a state, not a command: told anew at every start, at once when it changes, and taken back when it goes.
//! What can't be read changes nothing. While the API server is away, what it said last holds.

use super::backoff::Backoff;
use super::client::{Kube, cut};
use super::events::{Report, Reporter};
use super::follow::Followed;
use super::node::{own, write};
use crate::driver::Handle;
use crate::machine::event::Call;
use crate::machine::limits::DRAIN_DEADLINE_MAX_MS;
use crate::machine::spec::{DrainMode, DrainRequest};
use crate::machine::view::{Answer, DrainState, DrainView};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use std::time::Duration;
use tracing::{debug, info, warn};

/// The mode: `wait`, `hibernate` or `evict`.
pub const ASKED: &str = "hearth.dev/drain";
/// Seconds from the drain's beginning to its deadline; without it there is none.
pub const SECONDS: &str = "hearth.dev/drain-seconds";
/// How far it is; hearthd's own.
pub const STATE: &str = "hearth.dev/drain-state";

/// A value as it is told back, bytes.
const SHOWN: usize = 80;
/// What changes without a word (a deadline) is seen at the next look.
const LOOK: Duration = Duration::from_secs(5);
/// Between two writes, so that a node of many claims does not write for each.
const PAUSE: Duration = Duration::from_secs(1);
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

fn annotation<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    let annotations = node.metadata.annotations.as_ref()?;
    annotations.get(key).map(String::as_str)
}

/// What the node object asks for; `Err`: what is wrong with it.
fn asked(node: &Node) -> Result<Option<DrainRequest>, String> {
    let Some(mode) = annotation(node, ASKED) else {
        return Ok(None);
    };
    let mode = match mode {
        "wait" => DrainMode::Wait,
        "hibernate" => DrainMode::Hibernate,
        "evict" => DrainMode::Evict,
        other => {
            let other = cut(other, SHOWN);
            return Err(format!(
                "{ASKED}={other:?} is none of wait, hibernate, evict"
            ));
        }
    };
    let most = DRAIN_DEADLINE_MAX_MS / 1000;
    let deadline_ms = match annotation(node, SECONDS) {
        None if mode == DrainMode::Evict => {
            return Err(format!(
                "{ASKED}=evict needs {SECONDS}; \"0\" releases every claim at once"
            ));
        }
        None => None,
        Some(text) => match text.parse::<u64>() {
            Ok(seconds) if seconds <= most => Some(seconds * 1000),
            _ => {
                let text = cut(text, SHOWN);
                return Err(format!("{SECONDS}={text:?} is no number from 0 to {most}"));
            }
        },
    };
    Ok(Some(DrainRequest { mode, deadline_ms }))
}

/// Heeds the annotation. Ends with the watch. A node object that is away says nothing: what was known stays.
pub async fn heed(mut followed: Followed<Node>, handle: Handle, reporter: Reporter) {
    let mut told = None;
    loop {
        if let Some(node) = own(&followed) {
            let now = asked(&node);
            if told.as_ref() != Some(&now) {
                match &now {
                    Ok(asked) => handle.cluster_drain(*asked).await,
                    Err(wrong) => {
                        warn!(wrong, "the node's annotation is not heeded");
                        reporter.tell(Report {
                            warning: true,
                            reason: "DrainAnnotationInvalid",
                            action: "Drain",
                            subject: String::new(),
                            note: format!("{wrong}; nothing changes"),
                        });
                    }
                }
                told = Some(now);
            }
        }
        if followed.changed().await.is_err() {
            return;
        }
    }
}

/// How far the drain in force is, in one word, for who waits for it with kubectl. `drained` is said only when the node may
/// be switched off without loss of what sleeps.
fn word(drain: &DrainView) -> &'static str {
    match drain.state {
        DrainState::Draining => "draining",
        DrainState::Overdue => "overdue",
        DrainState::Drained if drain.hibernated > drain.on_disk => "asleep-in-memory",
        DrainState::Drained => "drained",
    }
}

async fn state(handle: &Handle) -> Option<Option<&'static str>> {
    match handle.call(Call::GetDrain, None).await.ok()?.answer {
        Answer::Drain(drain) => Some(drain.as_ref().map(word)),
        _ => None,
    }
}

/// Writes how far the drain is, whoever has asked for it. Ends with the watch.
pub async fn tell(kube: Kube, mut followed: Followed<Node>, handle: Handle) {
    let mut changes = handle.pools_changed();
    let mut backoff = Backoff::new(&kube.node, FIRST_WAIT, LONGEST_WAIT);
    let mut well = true;
    loop {
        changes.mark_unchanged();
        let now = state(&handle).await;
        let node = own(&followed);
        let written = node.as_ref().map(|node| annotation(node, STATE));
        let rests = match (now, written) {
            (Some(now), Some(written)) if now != written => {
                let change = json!({"metadata": {"annotations": {STATE: now}}});
                match write(&kube, &change).await {
                    Ok(()) => {
                        backoff.worked();
                        if !std::mem::replace(&mut well, true) {
                            info!("the drain's state can be told again");
                        }
                        debug!(?now, "the drain's state is told");
                        PAUSE
                    }
                    Err(error) => {
                        if std::mem::replace(&mut well, false) {
                            warn!(%error, "the drain's state can't be told: it is tried again");
                        }
                        backoff.failed()
                    }
                }
            }
            _ => PAUSE,
        };
        tokio::time::sleep(rests).await;
        let looks = async {
            match now {
                // Nothing goes on.
                Some(None) => std::future::pending().await,
                _ => tokio::time::sleep(LOOK).await,
            }
        };
        tokio::select! {
            changed = followed.changed() => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
            () = looks => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::ids::Now;
    use kube::core::ObjectMeta;

    fn node(annotations: &[(&str, &str)]) -> Node {
        let pairs = annotations.iter();
        let pairs = pairs.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Node {
            metadata: ObjectMeta {
                annotations: Some(pairs.collect()),
                ..ObjectMeta::default()
            },
            ..Node::default()
        }
    }

    #[test]
    fn an_annotation_asks_for_a_drain() {
        use DrainMode::*;
        let asks = |annotations: &[(&str, &str)]| asked(&node(annotations)).unwrap();
        assert_eq!(asked(&Node::default()), Ok(None));
        assert_eq!(asks(&[("other", "wait"), (SECONDS, "nonsense")]), None);
        for (mode, seconds, is) in [
            ("wait", None, (Wait, None)),
            ("hibernate", None, (Hibernate, None)),
            ("hibernate", Some("600"), (Hibernate, Some(600_000))),
            ("evict", Some("0"), (Evict, Some(0))),
            (
                "evict",
                Some("2592000"),
                (Evict, Some(DRAIN_DEADLINE_MAX_MS)),
            ),
        ] {
            let mut annotations = vec![(ASKED, mode)];
            annotations.extend(seconds.map(|seconds| (SECONDS, seconds)));
            let (mode, deadline_ms) = is;
            assert_eq!(asks(&annotations), Some(DrainRequest { mode, deadline_ms }));
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (mode, seconds, named) in [
            ("", None, "none of wait, hibernate, evict"),
            ("Evict", Some("1"), "\"Evict\""),
            ("true", None, ASKED),
            ("evict", None, SECONDS),
            ("wait", Some("10m"), "\"10m\""),
            ("wait", Some("-1"), SECONDS),
            ("wait", Some("2592001"), "2592000"),
            ("wait", Some("99999999999999999999999"), SECONDS),
        ] {
            let mut annotations = vec![(ASKED, mode)];
            annotations.extend(seconds.map(|seconds| (SECONDS, seconds)));
            let wrong = asked(&node(&annotations)).unwrap_err();
            assert!(wrong.contains(named), "{annotations:?}: {wrong}");
        }
        let long = "x".repeat(10_000);
        assert!(asked(&node(&[(ASKED, &long)])).unwrap_err().len() < 200);
    }

    #[test]
    fn drained_is_said_only_when_nothing_would_be_lost() {
        let drain = |state, hibernated, on_disk| DrainView {
            mode: DrainMode::Hibernate,
            state,
            since: Now(0),
            deadline: None,
            by_cluster: true,
            claims: 0,
            hibernated,
            on_disk,
            to_disk: 0,
            disk_tier: true,
            kept: Vec::new(),
            unclaimed: 0,
        };
        for (state, hibernated, on_disk, is) in [
            (DrainState::Draining, 1, 1, "draining"),
            (DrainState::Overdue, 1, 1, "overdue"),
            (DrainState::Drained, 0, 0, "drained"),
            (DrainState::Drained, 2, 2, "drained"),
            (DrainState::Drained, 2, 1, "asleep-in-memory"),
        ] {
            assert_eq!(word(&drain(state, hibernated, on_disk)), is);
        }
    }
}
