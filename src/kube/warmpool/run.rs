//! The task that keeps the machine's pools as the objects say, and the objects' status as the pools are.

use super::plan::{self, Told};
use super::{WarmPool, status};
use crate::api;
use crate::driver::Handle;
use crate::kube::admission::Unasked;
use crate::kube::pace::{self, AGAIN, PACE};
use crate::kube::reservation::Standings;
use crate::kube::{Backoff, CallError, Follow, Followed, Kube, follow};
use crate::machine::event::Call;
use crate::machine::refusal::Refusal;
use crate::machine::spec::PoolSpec;
use crate::machine::view::{Answer, BreakerView, PoolView};
use ::kube::api::{Patch, PatchParams};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// SetPools' rules for one pool of this node: `rpc` has them, `app` brings them here.
pub type Check = Arc<dyn Fn(api::Pool) -> Result<PoolSpec, Refusal> + Send + Sync>;

/// Objects followed; a node has 64 pools at most.
const OBJECTS: usize = 1000;
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What others of this room tell of pools, for the objects' status.
pub struct Beside {
    /// By the dry runs.
    pub unasked: watch::Receiver<Unasked>,
    /// By reservations, where they are made.
    pub reserved: Option<watch::Receiver<Standings>>,
}

impl Beside {
    fn mark_unchanged(&mut self) {
        self.unasked.mark_unchanged();
        if let Some(reserved) = &mut self.reserved {
            reserved.mark_unchanged();
        }
    }

    async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        let reserved = async {
            match &mut self.reserved {
                Some(reserved) => reserved.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.unasked.changed() => changed,
            changed = reserved => changed,
        }
    }
}

/// Keeps pools and objects in step until `stop`; `nodes` is this node. Must be called inside the tokio runtime.
pub fn keep(
    kube: &Kube,
    handle: &Handle,
    nodes: Followed<Node>,
    check: Check,
    beside: Beside,
    stop: &CancellationToken,
) {
    let objects = Follow {
        api: kube.all::<WarmPool>(),
        what: "warmpools",
        fields: None,
        labels: None,
        most: OBJECTS,
    };
    let keeper = Keeper {
        objects: follow(kube, objects, stop.clone()),
        nodes,
        kube: kube.clone(),
        handle: handle.clone(),
        check,
        beside,
        written: BTreeMap::new(),
        not_before: BTreeMap::new(),
        backoff: Backoff::new(&kube.node, FIRST_WAIT, LONGEST_WAIT),
    };
    let stop = stop.clone();
    tokio::spawn(async move {
        stop.run_until_cancelled(Box::pin(keeper.run())).await;
    });
}

struct Keeper {
    kube: Kube,
    handle: Handle,
    check: Check,
    objects: Followed<WarmPool>,
    nodes: Followed<Node>,
    beside: Beside,
    /// By object: the version that the watch had told of at this node's last write, and what came of that. The watch tells of
    /// it a moment later.
    written: BTreeMap<String, (Option<String>, WarmPool)>,
    not_before: BTreeMap<String, Instant>,
    backoff: Backoff,
}

impl Keeper {
    async fn run(mut self) {
        let mut pools = self.handle.pools_changed();
        loop {
            self.objects.mark_unchanged();
            self.nodes.mark_unchanged();
            self.beside.mark_unchanged();
            pools.mark_unchanged();
            let rest = pace::rest_after(self.once().await, &mut self.backoff, "WarmPools");
            let changed = async {
                tokio::select! {
                    changed = self.objects.changed() => changed,
                    changed = self.nodes.changed() => changed,
                    changed = self.beside.changed() => changed,
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
        let (Some(objects), Some(nodes)) =
            (self.objects.borrow().clone(), self.nodes.borrow().clone())
        else {
            // Never listed: what is in force stays.
            return Ok(AGAIN);
        };
        let labels = nodes.values().next();
        let labels = labels.and_then(|node| node.metadata.labels.clone());
        let Some(labels) = labels else {
            return Err(format!("there is no node {}", self.kube.node));
        };
        let before = self.pools().await?;
        let specs: Vec<_> = before.iter().map(|view| view.spec.clone()).collect();
        let mut plan = plan::plan(&objects, &labels, &specs, &self.check);
        let owned = specs.iter().filter(|spec| spec.warm_pool.is_some());
        let owned: Vec<_> = owned.collect();
        let unchanged =
            owned.len() == plan.pools.len() && plan.pools.iter().zip(owned).all(is_in_force);
        // Whether a RuntimeClass that could not be served can be now is the machine's to say.
        let servable = |view: &PoolView| view.breaker != BreakerView::Unservable;
        let unchanged = unchanged && before.iter().all(servable);
        let views = match unchanged {
            true => before,
            false => {
                let names: Vec<_> = plan.pools.iter().map(|it| it.name.to_string()).collect();
                debug!(pools = names.join(","), "WarmPools of this node");
                let call = Call::SetWarmPools(plan.pools.clone());
                let set = self.handle.call(call, None).await;
                let set = set.map_err(|refusal| refusal.to_string())?;
                if let Answer::WarmPoolsSet(unserved) = set.answer {
                    plan.unserved(&unserved);
                }
                self.pools().await?
            }
        };
        self.tell(&objects, &plan.told, &views).await
    }

    async fn pools(&self) -> Result<Vec<PoolView>, String> {
        let answered = self.handle.call(Call::GetPools, None).await;
        match answered.map_err(|refusal| refusal.to_string())?.answer {
            Answer::Pools { pools, .. } => Ok(pools),
            _ => Err("GetPools was answered with something else".into()),
        }
    }

    /// Writes what has changed, each object at most once in [`PACE`]. The first call that is not answered ends the round.
    async fn tell(
        &mut self,
        objects: &BTreeMap<String, WarmPool>,
        told: &BTreeMap<String, Told>,
        views: &[PoolView],
    ) -> Result<Duration, String> {
        self.written.retain(|key, _| objects.contains_key(key));
        self.not_before.retain(|key, _| objects.contains_key(key));
        let unasked = self.beside.unasked.borrow().clone();
        let reserved = self.beside.reserved.as_ref().map(|it| it.borrow().clone());
        let now = now();
        let mut rest = AGAIN;
        for (key, followed) in objects {
            let object = self.newest(key, followed);
            let reference = plan::reference(&object);
            let of_object = |view: &&PoolView| view.spec.warm_pool.as_ref() == Some(&reference);
            let view = views.iter().find(of_object);
            let own = told.get(key).map(|told| {
                let unasked = view.and_then(|view| unasked.get(&view.spec.name));
                let beside = status::Beside {
                    unasked: unasked.map(String::as_str),
                    reserved: view.and_then(|view| reserved.as_ref()?.get(&view.spec.name)),
                };
                status::of_node(&self.kube.node, &object, told, view, beside, &now)
            });
            let status = status::whole(&object, &self.kube.node, own, &now);
            if !status::differs(&object, &status, &self.kube.node) {
                continue;
            }
            let wait = self.not_before.get(key);
            let wait = wait.map_or(Duration::ZERO, |at| at.duration_since(Instant::now()));
            if !wait.is_zero() {
                rest = rest.min(wait);
                continue;
            }
            self.not_before.insert(key.clone(), Instant::now() + PACE);
            match self.write(&object, &status).await {
                Ok(new) => {
                    let from = followed.metadata.resource_version.clone();
                    self.written.insert(key.clone(), (from, new));
                }
                // The watch brings what it was overtaken by, or that it is gone.
                Err(error) if error.is_conflict() || error.is_not_found() => {
                    self.written.remove(key);
                    rest = rest.min(PACE);
                }
                Err(error @ CallError::Unavailable { .. }) => return Err(error.to_string()),
                Err(error) => {
                    warn!(object = key, %error, "a WarmPool's status can't be written");
                    rest = rest.min(LONGEST_WAIT);
                }
            }
        }
        Ok(rest)
    }

    /// The object as followed, or what this node has made of that version since.
    fn newest(&self, key: &str, followed: &WarmPool) -> WarmPool {
        match self.written.get(key) {
            Some((from, new)) if *from == followed.metadata.resource_version => new.clone(),
            Some(_) | None => followed.clone(),
        }
    }

    async fn write(
        &self,
        object: &WarmPool,
        status: &super::WarmPoolStatus,
    ) -> Result<WarmPool, CallError> {
        let reference = plan::reference(object);
        let api = self.kube.within::<WarmPool>(&reference.namespace);
        let params = PatchParams::apply(&field_manager(&self.kube.node)).force();
        let body = Patch::Apply(status::apply(object, &self.kube.node, status));
        let call = api.patch_status(&reference.name, &params, &body);
        self.kube.call("warmpools.status", call).await
    }
}

/// Is a planned pool in force already? Its generation and the handler of its RuntimeClass are the machine's.
fn is_in_force((planned, there): (&PoolSpec, &PoolSpec)) -> bool {
    let mut planned = PoolSpec {
        generation: there.generation,
        ..planned.clone()
    };
    if !planned.template.runtime_class.is_empty() {
        let handler = &there.template.runtime_handler;
        planned.template.runtime_handler.clone_from(handler);
    }
    planned == *there
}

/// To the second: it is for people.
fn now() -> String {
    Timestamp::now().strftime("%FT%TZ").to_string()
}

/// One for each node: what a node has written it may take back, and nothing else. At most 128 bytes.
pub(super) fn field_manager(node: &str) -> String {
    let name = format!("hearth/{node}");
    match name.len() <= 128 {
        true => name,
        false => {
            let sum = crc32fast::hash(node.as_bytes());
            format!("{}-{sum:08x}", &name[..100])
        }
    }
}
