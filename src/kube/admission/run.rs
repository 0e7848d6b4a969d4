//! The task that asks.

use super::metrics::Metrics;
use super::{pod, read};
use crate::driver::Handle;
use crate::kube::{Backoff, Kube};
use crate::machine::admission::{Mode, Rules};
use crate::machine::event::Call;
use crate::machine::ids::PoolName;
use crate::machine::spec::{Judgement, PoolSpec, Template, Verdict};
use crate::machine::view::Answer;
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Pools about which the cluster gave no verdict when it was asked last, and why.
pub type Unasked = Arc<BTreeMap<PoolName, String>>;

/// Changes of pools in quick succession are looked at together.
const PACE: Duration = Duration::from_millis(500);
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Asks about every pool that has a tenant's namespace, until `stop`: at once when its template is new, then every
/// `again`. With the mode off it asks nothing. Must be called inside the tokio runtime.
pub fn judge(
    kube: &Kube,
    handle: &Handle,
    rules: Rules,
    again: Duration,
    metrics: Metrics,
    stop: &CancellationToken,
) -> watch::Receiver<Unasked> {
    let (told, unasked) = watch::channel(Unasked::default());
    let judge = Judge {
        kube: kube.clone(),
        handle: handle.clone(),
        rules,
        again,
        metrics,
        told,
        asked: BTreeMap::new(),
    };
    let stop = stop.clone();
    tokio::spawn(async move {
        if judge.rules.cluster == Mode::Off {
            // The receiver lives as long as the sender.
            return stop.cancelled().await;
        }
        stop.run_until_cancelled(Box::pin(judge.run())).await;
    });
    unasked
}

/// The last time a pool was asked about.
struct Asked {
    template: Template,
    namespace: String,
    again_at: Instant,
    backoff: Backoff,
    /// Why there was no verdict.
    failed: Option<String>,
}

struct Judge {
    kube: Kube,
    handle: Handle,
    rules: Rules,
    again: Duration,
    metrics: Metrics,
    told: watch::Sender<Unasked>,
    asked: BTreeMap<PoolName, Asked>,
}

impl Judge {
    async fn run(mut self) {
        let mut pools = self.handle.pools_changed();
        loop {
            pools.mark_unchanged();
            for spec in self.specs().await {
                self.look_at(&spec).await;
            }
            tokio::time::sleep(PACE).await;
            let next = self.asked.values().map(|asked| asked.again_at).min();
            let next = next.unwrap_or_else(|| Instant::now() + self.again);
            if let Ok(Err(_)) = tokio::time::timeout_at(next, pools.changed()).await {
                // The driver is gone.
                return;
            }
        }
    }

    /// The pools there are; what was known of others is forgotten.
    async fn specs(&mut self) -> Vec<PoolSpec> {
        let pools = match self.handle.call(Call::GetPools, None).await {
            Ok(answered) => match answered.answer {
                Answer::Pools { pools, .. } => pools,
                _ => Vec::new(),
            },
            Err(refusal) => {
                debug!(%refusal, "pools can't be read");
                return Vec::new();
            }
        };
        let specs: Vec<_> = pools.into_iter().map(|view| view.spec).collect();
        self.asked
            .retain(|name, _| specs.iter().any(|spec| spec.name == *name));
        specs
    }

    async fn look_at(&mut self, spec: &PoolSpec) {
        let Some(namespace) = self.rules.namespace_of(spec).map(str::to_owned) else {
            return;
        };
        let known = self.asked.get(&spec.name);
        let known = known.filter(|it| it.template == spec.template && it.namespace == namespace);
        if known.is_some_and(|it| it.again_at > Instant::now()) {
            return;
        }
        let verdict = self.ask(spec, &namespace).await;
        self.metrics.count(&verdict);
        let fresh = || Asked {
            template: spec.template.clone(),
            namespace: namespace.clone(),
            again_at: Instant::now(),
            backoff: Backoff::new(&self.kube.node, FIRST_WAIT, LONGEST_WAIT),
            failed: None,
        };
        let mut asked = match self.asked.remove(&spec.name) {
            Some(it) if it.template == spec.template && it.namespace == namespace => it,
            Some(_) | None => fresh(),
        };
        let wait = match &verdict {
            Ok(_) => {
                asked.backoff.worked();
                self.again
            }
            Err(_) => asked.backoff.failed(),
        };
        asked.again_at = Instant::now() + wait;
        let failed = verdict.as_ref().err().cloned();
        if let (Some(why), None) = (&failed, &asked.failed) {
            warn!(pool = %spec.name, namespace, why, "the cluster could not be asked about a template");
        }
        asked.failed = failed;
        self.asked.insert(spec.name.clone(), asked);
        self.publish();
        if let Ok(verdict) = verdict {
            let judged = Judgement {
                pool: spec.name.clone(),
                template: Box::new(spec.template.clone()),
                verdict,
            };
            let told = self.handle.call(Call::JudgePools(vec![judged]), None).await;
            if let Err(refusal) = told {
                debug!(%refusal, "a verdict was not taken");
                if let Some(asked) = self.asked.get_mut(&spec.name) {
                    asked.again_at = Instant::now() + FIRST_WAIT;
                }
            }
        }
    }

    async fn ask(&self, spec: &PoolSpec, namespace: &str) -> Result<Verdict, String> {
        let pod = pod(spec, namespace).map_err(|error| error.to_string())?;
        let dry = PostParams {
            dry_run: true,
            field_manager: None,
        };
        let api = self.kube.within::<Pod>(namespace);
        read(self.kube.call("pods.dryrun", api.create(&dry, &pod)).await)
    }

    fn publish(&self) {
        let failed = self.asked.iter().filter_map(|(name, asked)| {
            let why = asked.failed.clone()?;
            Some((name.clone(), why))
        });
        let failed: Unasked = Arc::new(failed.collect());
        self.told.send_if_modified(|told| {
            let changed = *told != failed;
            *told = failed;
            changed
        });
    }
}
