//! Kubernetes Events for operators, about hearthd's own node: few, the same one only once, and never in anybody's way.
//!
//! What repeats becomes a series of the same Event (its count rises, now and then). All of them together have a rate, and
//! what is remembered has a bound; what is too much is counted (`hearth_kubernetes_events_dropped_total`) and lost: the log
//! has it.

use super::client::{CallError, Kube, cut};
use super::follow::Followed;
use super::ledger::{Ledger, Verdict};
use super::node;
use crate::machine::event::{ExitCause, Notice};
use crate::machine::spec::Verdict as Admission;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::ObjectMeta;
use serde_json::json;
use std::time::Instant;
use tokio::sync::{broadcast, mpsc};
use tracing::debug;

/// Events about objects without a namespace live here.
pub const NAMESPACE: &str = "default";
/// Reports that wait to be sent; one more is dropped.
const QUEUE: usize = 64;
/// The API server takes 1024.
const NOTE_BYTES: usize = 1000;
/// The API server takes 128.
const WORD_BYTES: usize = 120;

/// Something an operator should see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// A warning; else a normal matter.
    pub warning: bool,
    /// CamelCase, of a closed list.
    pub reason: &'static str,
    /// What was done or failed, such as "Refill".
    pub action: &'static str,
    /// What it is about, such as a pool: reports of one reason about one subject are the same Event.
    pub subject: String,
    /// For people; what is too long is cut.
    pub note: String,
}

impl Report {
    fn warning(reason: &'static str, action: &'static str, subject: &str, note: String) -> Self {
        Self {
            warning: true,
            reason,
            action,
            subject: subject.to_owned(),
            note,
        }
    }

    fn normal(reason: &'static str, action: &'static str, subject: &str, note: String) -> Self {
        Self {
            warning: false,
            ..Self::warning(reason, action, subject, note)
        }
    }

    /// What the machine noticed, as far as the cluster's operators are to see it: what only they can mend, and its end.
    fn of(notice: &Notice) -> Option<Self> {
        Some(match notice {
            Notice::BreakerOpened { pool, reason } => {
                let note =
                    format!("pool {pool}: the template keeps failing, refill rests: {reason}");
                Self::warning("PoolFailing", "Refill", pool.as_str(), note)
            }
            Notice::BreakerClosed { pool } => {
                let note = format!("pool {pool}: the template works again");
                Self::normal("PoolWorks", "Refill", pool.as_str(), note)
            }
            Notice::PoolUnservable { pool, reason } => {
                let note = format!("pool {pool}: {reason}; refill rests");
                Self::warning("PoolUnservable", "Refill", pool.as_str(), note)
            }
            Notice::PoolServable { pool } => {
                let note = format!("pool {pool}: this node can serve its RuntimeClass again");
                Self::normal("PoolWorks", "Refill", pool.as_str(), note)
            }
            Notice::PolicyFinding(pool, finding) => {
                let (check, detail) = (finding.check.name(), &finding.detail);
                let note = format!("pool {pool} does not pass the check {check}: {detail}");
                Self::warning("PolicyFinding", "Declare", pool.as_str(), note)
            }
            Notice::Judged(pool, Admission::Denied { rule, message }) => {
                let note = format!("pool {pool}: {rule} denies its template: {message}");
                Self::warning("TemplateDenied", "Declare", pool.as_str(), note)
            }
            Notice::ShimKilled { sandbox } => {
                let note = format!("the shim of sandbox {sandbox} was wedged and has been killed");
                Self::warning("ShimWedged", "Destroy", "", note)
            }
            Notice::MemberLost {
                pool,
                sandbox,
                cause: ExitCause::NetworkLost,
            } => {
                let note = format!(
                    "pool {pool}: sandbox {sandbox} lost its network policy and is destroyed"
                );
                Self::warning("NetworkPolicyLost", "Destroy", pool.as_str(), note)
            }
            Notice::ClaimFailed { claim, cause } => match cause {
                ExitCause::DataLost => {
                    let note = format!("claim {claim}: the image of its sandbox is lost");
                    Self::warning("DataLost", "Restore", "", note)
                }
                ExitCause::NetworkLost => {
                    let note =
                        format!("claim {claim}: its sandbox lost its network policy and has ended");
                    Self::warning("NetworkPolicyLost", "Destroy", "claims", note)
                }
                ExitCause::Exited | ExitCause::OutOfMemory | ExitCause::GuestLost => return None,
            },
            Notice::OrphanFound { sandbox } => {
                let note =
                    format!("sandbox {sandbox} is of another data directory: it is left alone");
                Self::warning("OrphanFound", "Recover", "", note)
            }
            Notice::DrainBegun { asked } => {
                let note = format!("hearth is drained ({:?}): no new claims", asked.mode);
                Self::normal("HearthDraining", "Drain", "", note)
            }
            Notice::DrainEnded => {
                let note = "the drain is undone: claims are taken again".to_owned();
                Self::normal("HearthUndrained", "Drain", "", note)
            }
            _ => return None,
        })
    }
}

/// Where reports go in. Cheap to clone.
#[derive(Clone)]
pub struct Reporter {
    queue: mpsc::Sender<Report>,
    metrics: super::metrics::Metrics,
}

impl Reporter {
    /// Its reports, to be [sent](send).
    #[must_use]
    pub fn new(kube: &Kube) -> (Self, mpsc::Receiver<Report>) {
        let (queue, reports) = mpsc::channel(QUEUE);
        let metrics = kube.metrics.clone();
        (Self { queue, metrics }, reports)
    }

    /// Never waits: what is too much is dropped and counted.
    pub fn tell(&self, report: Report) {
        if self.queue.try_send(report).is_err() {
            self.metrics.events_dropped.inc();
        }
    }
}

/// Hands on what the driver notices. Ends with the driver.
pub async fn listen(mut notices: broadcast::Receiver<Notice>, reporter: Reporter) {
    loop {
        match notices.recv().await {
            Ok(notice) => {
                if let Some(report) = Report::of(&notice) {
                    reporter.tell(report);
                }
            }
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                reporter.metrics.events_dropped.inc_by(lost);
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// Sends reports, one after the other. Ends when nobody reports any more.
pub async fn send(kube: Kube, nodes: Followed<Node>, mut reports: mpsc::Receiver<Report>) {
    let began = Instant::now();
    let mut ledger = Ledger::default();
    // Tells the Events of this hearthd from those of the one before.
    let run = Timestamp::now().as_microsecond();
    let mut sent = 0u64;
    while let Some(report) = reports.recv().await {
        let now = began.elapsed();
        let result = match ledger.judge(report.reason, &report.subject, now) {
            Verdict::New => {
                sent += 1;
                let name = format!("{}.{run:x}.{sent}", cut(&kube.node, 200));
                let made = make(&kube, &nodes, &report, name.clone()).await;
                if made.is_ok() {
                    ledger.made(report.reason, &report.subject, name);
                }
                made
            }
            Verdict::Again { name, count } => repeat(&kube, &name, count).await,
            // Counted in the series that is under way.
            Verdict::Hold => Ok(()),
            Verdict::TooMany => {
                kube.metrics.events_dropped.inc();
                Ok(())
            }
        };
        if let Err(error) = result {
            kube.metrics.events_dropped.inc();
            debug!(%error, reason = report.reason, "an Event is lost");
        }
    }
}

async fn make(
    kube: &Kube,
    nodes: &Followed<Node>,
    report: &Report,
    name: String,
) -> Result<(), CallError> {
    let event = event(&kube.node, node::own(nodes).as_ref(), report, name);
    let api = kube.within::<Event>(NAMESPACE);
    let params = PostParams::default();
    let made = kube.call("events.create", api.create(&params, &event));
    made.await.map(drop)
}

fn event(name_of_node: &str, node: Option<&Node>, report: &Report, name: String) -> Event {
    let kind = if report.warning { "Warning" } else { "Normal" };
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(Timestamp::now())),
        action: Some(report.action.into()),
        reason: Some(report.reason.into()),
        note: Some(cut(&report.note, NOTE_BYTES)),
        type_: Some(kind.into()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(name_of_node.into()),
            uid: node.and_then(|node| node.metadata.uid.clone()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some("hearth.dev/hearthd".into()),
        reporting_instance: Some(cut(name_of_node, WORD_BYTES)),
        ..Event::default()
    }
}

async fn repeat(kube: &Kube, name: &str, count: u32) -> Result<(), CallError> {
    let api = kube.within::<Event>(NAMESPACE);
    let change = json!({"series": {
        "count": count,
        "lastObservedTime": MicroTime(Timestamp::now()),
    }});
    let params = PatchParams::default();
    let patch = Patch::Merge(&change);
    let written = kube.call("events.patch", api.patch(name, &params, &patch));
    written.await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::ids::PoolName;

    #[test]
    fn what_operators_mend_is_reported_and_nothing_of_every_day() {
        let pool = PoolName::parse("py").unwrap();
        let reported = |notice: Notice| Report::of(&notice).map(|it| (it.warning, it.reason));
        let opened = Notice::BreakerOpened {
            pool: pool.clone(),
            reason: "no such image".into(),
        };
        let report = Report::of(&opened).unwrap();
        assert_eq!(
            (report.reason, report.subject.as_str()),
            ("PoolFailing", "py")
        );
        assert!(report.note.contains("no such image"), "{}", report.note);
        let closed = Notice::BreakerClosed { pool: pool.clone() };
        assert_eq!(reported(closed), Some((false, "PoolWorks")));
        let unservable = Notice::PoolUnservable {
            pool: pool.clone(),
            reason: "there is no RuntimeClass \"x\"".into(),
        };
        assert_eq!(reported(unservable), Some((true, "PoolUnservable")));
        let created = Notice::Created {
            pool,
            took_ms: None,
        };
        assert_eq!(reported(created), None);
        assert_eq!(reported(Notice::Cordoned(true)), None);
    }

    #[test]
    fn an_event_fits_what_the_api_server_takes() {
        let long = "x".repeat(5000);
        let report = Report::warning("PoolFailing", "Refill", &long, format!("a\n{long}"));
        let node = "n".repeat(253);
        let event = event(&node, None, &report, "name".into());
        assert!(event.note.as_ref().unwrap().len() <= 1024);
        assert!(!event.note.unwrap().contains('\n'));
        assert!(event.reporting_instance.unwrap().len() <= 128);
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert_eq!(event.regarding.unwrap().name, Some(node));
    }
}
