//! What hearthd asks and tells the Kubernetes API, where the configuration says so.
//!
//! ```text
//! client (deadlines) ─▶ follow (watch, kept while the server is away) ─▶ node, drain, runtimeclass ─▶ driver::Handle
//! driver::Handle (phase, pools, notices) ─▶ node (label, taint), events
//! driver::Handle (what pools promise) ─▶ reservation (Pods that request it)
//! warmpool (objects ─▶ pools ─▶ status) ◀─▶ driver::Handle ◀─▶ admission (template ─▶ dry run ─▶ verdict)
//! rpc ─▶ identity (memory, budgets) ─▶ review (whose a token is, what its owner may do)
//! ```
//! Nothing that a claim needs waits for it, but for who shows a token that nothing is known of: the API server may be away at
//! the start, at the end and for any time in between. What was known last stays in force, and is brought up to date when it is back.
//!
//! `client` and `follow` are the foundation; a room of its own is each thing that is built on them.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admission;
mod backoff;
mod client;
mod drain;
mod events;
mod follow;
mod ledger;
mod metrics;
mod node;
mod pace;
pub mod reservation;
mod review;
mod runtimeclass;
pub mod warmpool;

pub use backoff::Backoff;
pub use client::{CallError, ClientError, Kube, Settings};
pub use events::{Report, Reporter};
pub use follow::{Follow, Followed, Objects, follow};
pub use metrics::Metrics;
pub use review::Reviews;
pub use runtimeclass::amount;

use crate::driver::Handle;
use crate::machine::admission::Rules;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::node::v1::RuntimeClass;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

/// How long hearthd's end waits for the API server.
const LAST_CALL: Duration = Duration::from_secs(1);
/// RuntimeClasses of a cluster that are looked at.
const CLASSES: usize = 256;

/// How pools and the cluster go together. From the configuration, by `app`.
pub struct Pools {
    /// Pools are kept as WarmPool objects say, by SetPools' rules; `None`: they are not.
    pub warm_pools: Option<warmpool::Check>,
    /// Which pools the cluster is asked about, and whether at all.
    pub rules: Rules,
    /// How soon it is asked about the same template again.
    pub ask_again: Duration,
    /// Of asking.
    pub metrics: admission::Metrics,
    /// What the cluster is to count for pools, with its metrics; `None`: nothing.
    pub reservation: Option<(reservation::Settings, reservation::Metrics)>,
}

/// Everything of this room that runs. Built by `app`.
pub struct Running {
    kube: Kube,
    nodes: Followed<Node>,
    reporter: Reporter,
    reports: Option<mpsc::Receiver<Report>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Running {
    /// Begins with what must be said before the node is touched. Must be called inside the tokio runtime.
    #[must_use]
    pub fn begin(kube: Kube) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let early = kube.clone();
        let said = async move {
            if let Err(error) = node::label(&early, false).await {
                debug!(%error, "the node is not labelled yet");
            }
        };
        tasks.spawn(stop.clone().run_until_cancelled_owned(Box::pin(said)));
        let own = Follow {
            api: kube.nodes(),
            what: "nodes",
            fields: Some(format!("metadata.name={}", kube.node)),
            labels: None,
            most: 1,
        };
        let nodes = follow(&kube, own, stop.clone());
        let (reporter, reports) = Reporter::new(&kube);
        Self {
            kube,
            nodes,
            reporter,
            reports: Some(reports),
            tasks,
            stop,
        }
    }

    /// For who has something to tell to operators.
    #[must_use]
    pub fn reporter(&self) -> Reporter {
        self.reporter.clone()
    }

    /// For who reviews callers' tokens.
    #[must_use]
    pub fn reviews(&self) -> Reviews {
        Reviews::new(self.kube.clone())
    }

    /// hearthd's own namespace, which rights are asked about in.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.kube.namespace
    }

    /// Begins all the rest: the driver is there. Once.
    pub fn serve(&mut self, handle: &Handle) {
        let classes = Follow {
            api: self.kube.all::<RuntimeClass>(),
            what: "runtimeclasses",
            fields: None,
            labels: None,
            most: CLASSES,
        };
        let classes = follow(&self.kube, classes, self.stop.clone());
        let (kube, nodes) = (self.kube.clone(), self.nodes.clone());
        self.spawn(node::heed(nodes.clone(), handle.clone()));
        self.spawn(drain::heed(nodes.clone(), handle.clone(), self.reporter()));
        self.spawn(drain::tell(kube.clone(), nodes.clone(), handle.clone()));
        self.spawn(node::keep(kube.clone(), nodes.clone(), handle.clone()));
        self.spawn(runtimeclass::tell(classes, nodes.clone(), handle.clone()));
        self.spawn(events::listen(handle.notices(), self.reporter()));
        if let Some(reports) = self.reports.take() {
            self.spawn(events::send(kube, nodes, reports));
        }
    }

    /// Begins to keep the pools of WarmPool objects, to ask the cluster about templates, and to reserve what pools promise.
    /// Once, after the driver is there.
    pub fn serve_pools(&self, handle: &Handle, pools: Pools) {
        let (kube, stop) = (&self.kube, &self.stop);
        let unasked = admission::judge(
            kube,
            handle,
            pools.rules,
            pools.ask_again,
            pools.metrics,
            stop,
        );
        let reserved = pools.reservation.map(|(settings, metrics)| {
            let (nodes, reporter) = (self.nodes.clone(), self.reporter());
            reservation::keep(kube, handle, nodes, settings, reporter, metrics, stop)
        });
        if let Some(check) = pools.warm_pools {
            let nodes = self.nodes.clone();
            let told = warmpool::Beside { unasked, reserved };
            warmpool::keep(kube, handle, nodes, check, told, stop);
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks
            .spawn(stop.run_until_cancelled_owned(Box::pin(task)));
    }

    /// Ends it, with a last word about the node. Takes [`LAST_CALL`] at most.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        let last = async {
            self.tasks.wait().await;
            node::leave(&self.kube, &self.nodes).await;
        };
        if tokio::time::timeout(LAST_CALL, Box::pin(last))
            .await
            .is_err()
        {
            debug!("the API server did not answer in time");
        }
    }
}
