//! The task that keeps reservations as the plan says.

use super::plan::{Decided, Plan, Seen, State, Step, Why};
use super::pod::{self, Owner};
use super::{Metrics, Settings, Standing};
use crate::driver::Handle;
use crate::kube::pace::{self, AGAIN};
use crate::kube::{Backoff, CallError, Follow, Followed, Kube, Report, Reporter, follow, node};
use crate::machine::event::Call;
use crate::machine::ids::PoolName;
use crate::machine::limits::POOLS;
use crate::machine::view::{Answer, Promised};
use ::kube::Api;
use ::kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use k8s_openapi::api::core::v1::{Node, Pod};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Pods followed: one for each pool, and as many that are being deleted.
const PODS: usize = 2 * POOLS;
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How the reservation of each pool stands.
pub type Standings = Arc<BTreeMap<PoolName, Standing>>;

/// Keeps this node's reservations until `stop`, and tells how they stand; `nodes` is this node. Must be called inside the
/// tokio runtime.
pub fn keep(
    kube: &Kube,
    handle: &Handle,
    nodes: Followed<Node>,
    settings: Settings,
    reporter: Reporter,
    metrics: Metrics,
    stop: &CancellationToken,
) -> watch::Receiver<Standings> {
    let (told, standings) = watch::channel(Standings::default());
    let namespace = match settings.namespace.as_str() {
        "" => &kube.namespace,
        named => named,
    };
    let api = kube.within::<Pod>(namespace);
    let own = Follow {
        api: api.clone(),
        what: "reservations",
        fields: None,
        labels: Some(pod::selector(&kube.node)),
        most: PODS,
    };
    let keeper = Keeper {
        pods: follow(kube, own, stop.clone()),
        nodes,
        api,
        kube: kube.clone(),
        handle: handle.clone(),
        settings,
        reporter,
        metrics,
        began: Instant::now(),
        plan: Plan::new(&kube.node),
        refused: BTreeMap::new(),
        short: BTreeMap::new(),
        told,
        backoff: Backoff::new(&kube.node, FIRST_WAIT, LONGEST_WAIT),
    };
    let stop = stop.clone();
    tokio::spawn(async move {
        stop.run_until_cancelled(Box::pin(keeper.run())).await;
    });
    standings
}

struct Keeper {
    kube: Kube,
    api: Api<Pod>,
    handle: Handle,
    pods: Followed<Pod>,
    nodes: Followed<Node>,
    settings: Settings,
    reporter: Reporter,
    metrics: Metrics,
    began: Instant,
    plan: Plan,
    /// Pools whose last step was refused, and why.
    refused: BTreeMap<PoolName, (Why, String)>,
    /// What was told last of each pool there is: why it is short, if it is.
    short: BTreeMap<PoolName, Option<Why>>,
    told: watch::Sender<Standings>,
    backoff: Backoff,
}

impl Keeper {
    async fn run(mut self) {
        let mut pools = self.handle.pools_changed();
        loop {
            self.pods.mark_unchanged();
            self.nodes.mark_unchanged();
            pools.mark_unchanged();
            let rest = pace::rest_after(self.once().await, &mut self.backoff, "reservations");
            let changed = async {
                tokio::select! {
                    changed = self.pods.changed() => changed,
                    changed = self.nodes.changed() => changed,
                    changed = pools.changed() => changed,
                }
            };
            if !pace::rested(rest, changed).await {
                return;
            }
        }
    }

    /// One look at everything: how long it may rest, or why to come back soon.
    async fn once(&mut self) -> Result<Duration, String> {
        let Some(pods) = self.pods.borrow().clone() else {
            // Never listed: what is reserved stays.
            return Ok(AGAIN);
        };
        let owner = node::own(&self.nodes);
        let Some(owner) = owner.as_ref().and_then(Owner::of) else {
            return Err(format!("there is no node {}", self.kube.node));
        };
        let pools = self.pools().await?;
        let seen = pod::read(pods.values(), &owner);
        let now = self.began.elapsed();
        let decided = self.plan.decide(now, &pools, &seen);
        let done = self.act(&owner, &decided, now).await;
        // What was refused and is not wanted any more is settled.
        let (steps, put_off) = (&decided.steps, &decided.put_off);
        self.refused
            .retain(|pool, _| steps.contains_key(pool) || put_off.contains(pool));
        self.tell(&pools, &seen, &decided);
        done?;
        let next = decided.next.map(|at| at.saturating_sub(now));
        Ok(next.map_or(AGAIN, |next| next.min(AGAIN)))
    }

    /// Every declared pool with what its sandboxes were promised, as far as that is known.
    async fn pools(&self) -> Result<BTreeMap<PoolName, Option<Promised>>, String> {
        let answered = self.handle.call(Call::GetPools, None).await;
        match answered.map_err(|refusal| refusal.to_string())?.answer {
            Answer::Pools { pools, .. } => {
                let promised = pools.into_iter().map(|view| {
                    let promised = view.overhead.is_some().then(|| view.promised());
                    (view.spec.name, promised)
                });
                Ok(promised.collect())
            }
            _ => Err("GetPools was answered with something else".into()),
        }
    }

    /// Does what was decided. The first call that is not answered ends the round: the rest is decided again.
    async fn act(&mut self, owner: &Owner, decided: &Decided, now: Duration) -> Result<(), String> {
        for (pool, step) in &decided.steps {
            match self.call(owner, pool, step).await {
                Ok(()) => {
                    self.refused.remove(pool);
                    match step {
                        Step::Create(_) => self.plan.created(pool, now),
                        Step::Resize { .. } => {}
                        Step::Delete { uid } => self.plan.deleted(pool, uid.clone()),
                    }
                    info!(%pool, ?step, "a reservation is changed");
                }
                Err(error @ CallError::Unavailable { .. }) => return Err(error.to_string()),
                // The watch will tell what has become of it.
                Err(error)
                    if !matches!(step, Step::Create(_))
                        && (error.is_not_found() || error.is_conflict()) =>
                {
                    debug!(%pool, %error, "a reservation has changed meanwhile");
                }
                Err(error) => {
                    self.plan.refused(pool, now);
                    let (why, what) = pod::refused(step, error.detail());
                    self.metrics.failed(why);
                    self.refused.insert(pool.clone(), (why, what));
                }
            }
        }
        Ok(())
    }

    async fn call(&self, owner: &Owner, pool: &PoolName, step: &Step) -> Result<(), CallError> {
        let (kube, api) = (&self.kube, &self.api);
        let name = pod::name(pool, &owner.node);
        match step {
            Step::Create(promised) => {
                let pod = pod::pod(pool, *promised, owner, &self.settings);
                let pod = pod.map_err(|error| CallError::Unavailable {
                    what: "pods.create",
                    detail: error.to_string(),
                })?;
                let params = PostParams::default();
                let made = kube.call("pods.create", api.create(&params, &pod));
                made.await.map(drop)
            }
            Step::Resize { uid, to } => {
                let change = pod::resize(uid, *to);
                let params = PatchParams::default();
                let patch = Patch::Strategic(&change);
                let resized = api.patch_subresource("resize", &name, &params, &patch);
                kube.call("pods.resize", resized).await.map(drop)
            }
            Step::Delete { uid } => {
                let params = DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: Some(uid.clone()),
                        resource_version: None,
                    }),
                    ..DeleteParams::default()
                };
                let deleted = kube.call("pods.delete", api.delete(&name, &params));
                deleted.await.map(drop)
            }
        }
    }

    /// Metrics, and what has changed for operators.
    fn tell(
        &mut self,
        pools: &BTreeMap<PoolName, Option<Promised>>,
        seen: &BTreeMap<PoolName, Seen>,
        decided: &Decided,
    ) {
        for pool in &decided.lost {
            self.metrics.failed(Why::Lost);
            info!(%pool, "a reservation was ended by somebody else");
            let note = "its reservation was ended by somebody else, and is made anew";
            self.report("ReservationLost", pool, None, note);
        }
        let there: BTreeSet<_> = pools.keys().chain(seen.keys()).cloned().collect();
        let gone = self.short.keys().filter(|pool| !there.contains(pool));
        for pool in gone.cloned().collect::<Vec<_>>() {
            self.metrics.gone(pool.as_str());
            self.short.remove(&pool);
        }
        let mut standings = BTreeMap::new();
        for pool in there {
            let (wanted, seen) = (pools.get(&pool), seen.get(&pool));
            let wanted = wanted.map_or(Some(Promised::default()), |wanted| *wanted);
            let granted = seen.map_or_else(Promised::default, |it| it.granted);
            self.metrics.pool(pool.as_str(), wanted, granted);
            let before = self.short.get(&pool).copied().unwrap_or_default();
            let stands = match stands(wanted, seen, self.refused.get(&pool)) {
                Stands::Short(why, what) => {
                    self.short.insert(pool.clone(), Some(why));
                    if before != Some(why) {
                        self.falls_short(&pool, why, &what);
                    }
                    Standing::Short {
                        reason: why.reason(),
                        message: what,
                    }
                }
                Stands::Granted => {
                    self.short.insert(pool.clone(), None);
                    if before.is_some() {
                        info!(%pool, "the reservation is granted");
                        let note = "all that it promises is reserved again";
                        self.report("ReservationGranted", &pool, None, note);
                    }
                    Standing::Granted
                }
                // What was told stays until it is clear what comes of it.
                Stands::UnderWay => {
                    self.short.insert(pool.clone(), before);
                    Standing::UnderWay
                }
            };
            standings.insert(pool, stands);
        }
        let standings = Arc::new(standings);
        self.told.send_if_modified(|told| {
            let changed = *told != standings;
            *told = standings;
            changed
        });
    }

    fn falls_short(&self, pool: &PoolName, why: Why, what: &str) {
        if !self.refused.contains_key(pool) {
            // Calls that were refused have been counted, each.
            self.metrics.failed(why);
        }
        let why = why.name();
        warn!(%pool, why, what, "a reservation is not granted");
        let note = format!("its reservation is not granted ({why}): {what}");
        // Another reason is another matter.
        self.report("ReservationShort", pool, Some(why), &note);
    }

    fn report(&self, reason: &'static str, pool: &PoolName, why: Option<&str>, note: &str) {
        self.reporter.tell(Report {
            warning: reason != "ReservationGranted",
            reason,
            action: "Reserve",
            subject: match why {
                Some(why) => format!("{pool} {why}"),
                None => pool.to_string(),
            },
            note: format!("pool {pool}: {note}"),
        });
    }
}

/// How a reservation stands, by what is known at this moment.
enum Stands {
    Granted,
    UnderWay,
    Short(Why, String),
}

fn stands(
    wanted: Option<Promised>,
    seen: Option<&Seen>,
    refused: Option<&(Why, String)>,
) -> Stands {
    if let Some((why, what)) = refused {
        return Stands::Short(*why, what.clone());
    }
    match (seen.map(|it| (&it.state, it.asked)), wanted) {
        (Some((State::Short(why, what), _)), _) => Stands::Short(*why, what.clone()),
        (Some((State::Held, asked)), Some(wanted)) if wanted.max(asked) == asked => Stands::Granted,
        (None, Some(wanted)) if wanted == Promised::default() => Stands::Granted,
        _ => Stands::UnderWay,
    }
}
