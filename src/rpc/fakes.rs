//! A fake of the driver behind the door: one map of claims, no journal, no sandboxes. It keeps the contract as far as
//! callers of rpc can tell, and it can be made to do what the real one does not do on demand: hold its answers, be full.

use super::door::{BatchCall, Door};
use super::guest_fakes::{HostGuest, Manner};
use crate::driver::{
    Answered, Charge, ClaimChange, ClaimWatch, Guest, Handler, ImageInfo, ImageProgress,
    MemoryLook, NetReport, Personalization, Phase, Timings, Usage, Versions, Visit, Visits, Zram,
};
use crate::machine::event::Call;
use crate::machine::ids::{ClaimId, NodeTag, Now, PoolName, SandboxId};
use crate::machine::refusal::Refusal;
use crate::machine::spec::{ClaimRequest, DrainRequest, Fence, OnEmpty, PoolSet};
use crate::machine::view::{
    Answer, BreakerView, ClaimState, ClaimView, DrainState, DrainView, Grant, NodeView, PoolView,
    SandboxView, Source,
};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};

pub const TAG: NodeTag = NodeTag(0xfa4e);
/// The handler that the fake offers.
pub const HANDLER: &str = "gvisor";

struct Held {
    view: ClaimView,
    request: ClaimRequest,
    inside: Arc<Personalization>,
}

type Watcher = mpsc::Sender<Result<(ClaimChange, String), Refusal>>;

#[derive(Default)]
struct State {
    fence: Option<Fence>,
    pools: PoolSet,
    claims: BTreeMap<ClaimId, Held>,
    tombstones: BTreeSet<ClaimId>,
    sequence: u64,
    orphans: Vec<SandboxId>,
    drain: Option<(DrainRequest, Now)>,
    images: Vec<ImageInfo>,
    watchers: Vec<Watcher>,
    changes: u64,
    located: u64,
}

/// See the module.
pub struct FakeDriver {
    state: Mutex<State>,
    /// Root directory of every guest.
    pub root: tempfile::TempDir,
    /// Claims are answered only while this is true.
    pub answering: watch::Sender<bool>,
    /// Every call meets a full queue.
    pub full: AtomicBool,
    /// Claims that reached the driver.
    pub claims_begun: AtomicU32,
    pub visits: Visits,
    /// What guests are like.
    pub manner: Mutex<Manner>,
    /// Execs that run.
    pub running: Arc<AtomicU32>,
    pub phase: watch::Sender<Phase>,
    pub pools_changed: watch::Sender<u64>,
    /// Why sandboxes get no network.
    pub network: Mutex<Result<(), String>>,
}

fn now() -> Now {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    Now(u64::try_from(since.as_millis()).unwrap())
}

fn expiry(ttl_ms: u64) -> Option<Now> {
    (ttl_ms > 0).then(|| now().plus(ttl_ms))
}

impl FakeDriver {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            root: tempfile::tempdir().unwrap(),
            answering: watch::Sender::new(true),
            full: AtomicBool::new(false),
            claims_begun: AtomicU32::new(0),
            visits: Visits::default(),
            manner: Mutex::new(Manner::Honest),
            running: Arc::default(),
            phase: watch::Sender::new(Phase::Ready),
            pools_changed: watch::Sender::new(0),
            network: Mutex::new(Err("the fake has none".to_owned())),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What a claim was personalized with.
    pub fn inside(&self, claim: ClaimId) -> Arc<Personalization> {
        Arc::clone(&self.lock().claims[&claim].inside)
    }

    /// Leaves a sandbox without a record.
    pub fn orphan(&self, tag: NodeTag) -> SandboxId {
        let id = SandboxId::new(tag, 1).unwrap();
        self.lock().orphans.push(id);
        id
    }

    /// These are the pools.
    pub fn declare(&self, set: PoolSet) {
        self.lock().pools = set;
    }

    /// Takes over the claims of another driver.
    pub fn adopt(&self, other: &Self) {
        let theirs = std::mem::take(&mut other.lock().claims);
        self.lock().claims.extend(theirs);
    }

    /// How often a sandbox was located, which wakes one that sleeps.
    pub fn located(&self) -> u64 {
        self.lock().located
    }

    /// A claim's sandbox ends by itself.
    pub fn end(&self, claim: ClaimId) {
        let mut state = self.lock();
        let view = &mut state.claims.get_mut(&claim).unwrap().view;
        (view.state, view.reason) = (ClaimState::Failed, Some("OOM".into()));
    }

    async fn answered(&self) {
        let mut answering = self.answering.subscribe();
        let _ = answering.wait_for(|answering| *answering).await;
    }

    async fn claim(
        &self,
        fence: &Fence,
        request: &ClaimRequest,
        inside: Arc<Personalization>,
    ) -> Result<Answer, Refusal> {
        self.claims_begun.fetch_add(1, Ordering::SeqCst);
        let begun = now();
        loop {
            let granted = self.lock().claim(fence, request, &inside);
            match (granted, request.on_empty) {
                (Err(Refusal::PoolEmpty { pool, retry_ms }), OnEmpty::Wait { timeout_ms }) => {
                    if now().since(begun) >= timeout_ms {
                        return Err(Refusal::WaitTimedOut { pool, retry_ms });
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                (granted, _) => {
                    self.pools_changed.send_modify(|count| *count += 1);
                    self.answered().await;
                    return granted;
                }
            }
        }
    }
}

impl State {
    fn fenced(&mut self, fence: &Fence) -> Result<(), Refusal> {
        match &self.fence {
            Some(seen) if fence.epoch < seen.epoch => {
                return Err(Refusal::EpochStale {
                    current: seen.epoch,
                });
            }
            Some(seen) if fence.epoch == seen.epoch => match (&seen.caller, &fence.caller) {
                (Some(owner), Some(caller)) if owner != caller => {
                    return Err(Refusal::EpochConflict {
                        current: seen.epoch,
                    });
                }
                (Some(_), _) => {}
                (None, _) => self.fence = Some(fence.clone()),
            },
            _ => self.fence = Some(fence.clone()),
        }
        Ok(())
    }

    fn changed(&mut self, change: ClaimChange) {
        self.changes += 1;
        let token = format!("fake.{}", self.changes);
        self.watchers.retain(|watcher| {
            watcher
                .try_send(Ok((change.clone(), token.clone())))
                .is_ok()
        });
    }

    fn claimed(&self, pool: &PoolName) -> u32 {
        u32::try_from(
            self.claims
                .values()
                .filter(|held| held.view.pool == *pool)
                .count(),
        )
        .unwrap()
    }

    fn claim(
        &mut self,
        fence: &Fence,
        request: &ClaimRequest,
        inside: &Arc<Personalization>,
    ) -> Result<Answer, Refusal> {
        self.fenced(fence)?;
        let claim = request.claim_id.to_string();
        if self.tombstones.contains(&request.claim_id) {
            return Err(Refusal::ClaimReleased { claim });
        }
        if let Some(held) = self.claims.get(&request.claim_id) {
            if let Some(field) = held.request.content.first_difference(&request.content) {
                return Err(Refusal::ClaimContentDiffers {
                    claim,
                    field: field.to_owned(),
                });
            }
            return Ok(Answer::Granted(grant(&held.view)));
        }
        let pool = self
            .pools
            .pools
            .iter()
            .find(|pool| pool.name == request.pool);
        let pool = pool
            .ok_or_else(|| Refusal::PoolUnknown {
                pool: request.pool.to_string(),
            })?
            .clone();
        if let Some(policy) = &request.network_policy
            && policy.needs_interface()
            && !pool.template.network_policy.needs_interface()
        {
            return Err(Refusal::NetworkPolicyUnsupported {
                policy: policy.mode.as_str(),
                pool: pool.name.to_string(),
            });
        }
        let (claimed, name) = (self.claimed(&pool.name), pool.name.to_string());
        let source = match request.on_empty {
            _ if claimed < pool.min_warm => Source::Warm,
            OnEmpty::Cold if claimed < pool.max_total => Source::Cold,
            OnEmpty::Cold => {
                return Err(Refusal::PoolFull {
                    pool: name,
                    limit: pool.max_total,
                    retry_ms: 10,
                });
            }
            _ => {
                return Err(Refusal::PoolEmpty {
                    pool: name,
                    retry_ms: 10,
                });
            }
        };
        self.sequence += 1;
        let view = ClaimView {
            id: request.claim_id,
            pool: pool.name,
            holder: request.holder.clone(),
            state: ClaimState::Claimed,
            reason: None,
            sandbox: SandboxId::new(TAG, self.sequence),
            first: SandboxId::new(TAG, self.sequence),
            cold_starts: 0,
            generation: pool.generation,
            source: Some(source),
            claimed_at: Some(now()),
            expires_at: expiry(request.ttl_ms),
            image_bytes: 0,
        };
        let granted = grant(&view);
        let held = Held {
            view: view.clone(),
            request: request.clone(),
            inside: Arc::clone(inside),
        };
        self.claims.insert(request.claim_id, held);
        self.changed(ClaimChange::Upserted(view));
        Ok(Answer::Granted(granted))
    }

    fn held(&mut self, claim: ClaimId) -> Result<&mut Held, Refusal> {
        if self.tombstones.contains(&claim) {
            return Err(Refusal::ClaimReleased {
                claim: claim.to_string(),
            });
        }
        self.claims
            .get_mut(&claim)
            .ok_or_else(|| Refusal::ClaimUnknown {
                claim: claim.to_string(),
            })
    }

    fn set_pools(&mut self, fence: &Fence, set: PoolSet) -> Result<Answer, Refusal> {
        self.fenced(fence)?;
        let (what, current) = ("set".to_owned(), self.pools.generation);
        if set.generation < current {
            return Err(Refusal::GenerationStale { what, current });
        }
        if set.generation == current && set != self.pools {
            return Err(Refusal::GenerationConflict { what, current });
        }
        self.pools = set;
        Ok(Answer::PoolsSet {
            generation: self.pools.generation,
        })
    }

    fn pools(&self) -> Vec<PoolView> {
        let view = |spec: &crate::machine::spec::PoolSpec| {
            let claimed = self.claimed(&spec.name);
            PoolView {
                spec: spec.clone(),
                warm: spec.min_warm.saturating_sub(claimed),
                creating: 0,
                claimed,
                frozen: 0,
                hibernated: 0,
                on_disk: 0,
                image_bytes: 3,
                releasing: 0,
                waiting: 0,
                outdated: 0,
                breaker: BreakerView::Open(now().plus(60_000)),
                breaker_reason: "as told".into(),
                consecutive_failures: 5,
                verdict: None,
                findings: Vec::new(),
                held: String::new(),
                overhead: None,
            }
        };
        self.pools.pools.iter().map(view).collect()
    }

    /// Claims are there or not; nothing sleeps.
    fn drain_view(&self) -> Option<DrainView> {
        let (asked, since) = self.drain?;
        let deadline = asked.deadline_ms.map(|ms| since.plus(ms));
        let claims = u32::try_from(self.claims.len()).unwrap();
        Some(DrainView {
            mode: asked.mode,
            state: match (claims, deadline.is_some_and(|at| at <= now())) {
                (0, _) => DrainState::Drained,
                (_, true) => DrainState::Overdue,
                (_, false) => DrainState::Draining,
            },
            since,
            deadline,
            by_cluster: false,
            claims,
            hibernated: 0,
            on_disk: 0,
            to_disk: 0,
            disk_tier: false,
            kept: Vec::new(),
            unclaimed: 0,
        })
    }

    fn node(&self) -> NodeView {
        let sandbox = |held: &Held| SandboxView {
            id: held.view.sandbox.unwrap(),
            pool: held.view.pool.clone(),
            owner: "claimed",
            claim: Some(held.view.id),
            residency: "running",
            created_at: Now(0),
        };
        NodeView {
            phase: "ready",
            epoch: self.fence.as_ref().map_or(0, |fence| fence.epoch),
            pools_generation: self.pools.generation,
            pools: self.pools(),
            sandboxes: self.claims.values().map(sandbox).collect(),
            claims: Vec::new(),
            tombstones: self.tombstones.len(),
            orphans: self.orphans.clone(),
            drain: self.drain_view(),
            cordoned: false,
        }
    }

    fn other(&mut self, call: Call) -> Result<Answer, Refusal> {
        match call {
            Call::Claim(..) => unreachable!("answered before"),
            Call::Release(fence, claim) => {
                self.fenced(&fence)?;
                if let Some(held) = self.claims.remove(&claim) {
                    self.tombstones.insert(claim);
                    self.changed(ClaimChange::Removed(held.view));
                }
                Ok(Answer::Released)
            }
            Call::Renew(fence, claim, ttl_ms) => {
                self.fenced(&fence)?;
                let expires_at = expiry(ttl_ms);
                self.held(claim)?.view.expires_at = expires_at;
                Ok(Answer::Renewed { expires_at })
            }
            Call::Hibernate(fence, claim, _, _) => {
                self.fenced(&fence)?;
                self.held(claim)?.view.state = ClaimState::Hibernated;
                Ok(Answer::Hibernated)
            }
            Call::Resume(fence, claim) => {
                self.fenced(&fence)?;
                self.held(claim)?.view.state = ClaimState::Claimed;
                Ok(Answer::Resumed)
            }
            Call::Drain(asked) => {
                if self.drain.is_none_or(|(under_way, _)| under_way != asked) {
                    self.drain = Some((asked, now()));
                }
                Ok(Answer::Drain(self.drain_view()))
            }
            Call::Undrain => {
                self.drain = None;
                Ok(Answer::Drain(None))
            }
            Call::GetDrain => Ok(Answer::Drain(self.drain_view())),
            Call::Get(claim) => Ok(Answer::Claim(Box::new(self.held(claim)?.view.clone()))),
            Call::List { pool, after, limit } => {
                let fits = |view: &ClaimView| {
                    after.is_none_or(|after| view.id > after)
                        && pool.as_ref().is_none_or(|pool| view.pool == *pool)
                };
                let mut views = self
                    .claims
                    .values()
                    .map(|held| held.view.clone())
                    .filter(fits);
                let claims: Vec<_> = views.by_ref().take(limit).collect();
                Ok(Answer::Claims {
                    claims,
                    more: views.next().is_some(),
                })
            }
            Call::SetPools(fence, set) => self.set_pools(&fence, set),
            Call::SetWarmPools(_) | Call::JudgePools(_) => Err(Refusal::Unsupported {
                what: "the cluster's side".into(),
            }),
            Call::GetPools => Ok(Answer::Pools {
                generation: self.pools.generation,
                pools: self.pools(),
            }),
            Call::Locate(claim) => {
                self.located += 1;
                let view = &self.held(claim)?.view;
                if view.state == ClaimState::Failed {
                    let reason = view.reason.clone().unwrap_or_default();
                    return Err(Refusal::SandboxEnded {
                        claim: claim.to_string(),
                        reason,
                    });
                }
                Ok(Answer::Located {
                    sandbox: view.sandbox.unwrap(),
                    template: None,
                })
            }
            Call::Inspect => Ok(Answer::Node(Box::new(self.node()))),
            Call::DestroyOrphans(ids) => {
                self.orphans.retain(|id| !ids.contains(id));
                Ok(Answer::Node(Box::new(self.node())))
            }
        }
    }
}

fn grant(view: &ClaimView) -> Grant {
    Grant {
        claim: view.id,
        sandbox: view.sandbox.unwrap(),
        generation: view.generation,
        source: view.source.unwrap(),
        expires_at: view.expires_at,
        first: view.first.unwrap(),
    }
}

#[async_trait]
impl Door for FakeDriver {
    async fn call(
        &self,
        call: Call,
        inside: Option<Arc<Personalization>>,
    ) -> Result<Answered, Refusal> {
        if self.full.load(Ordering::SeqCst) {
            return Err(Refusal::QueueFull {
                queue: "requests",
                retry_ms: 20,
            });
        }
        let answer = match &call {
            Call::Claim(fence, request) => self.claim(fence, request, inside.unwrap()).await?,
            _ => self.lock().other(call)?,
        };
        let took = Duration::from_millis(1);
        let timings = Timings {
            queue: Some(took),
            commit: Some(took),
            guest: Some(took),
            total: took * 3,
        };
        Ok(Answered { answer, timings })
    }

    async fn call_batch(&self, calls: Vec<BatchCall>) -> Vec<Result<Answered, Refusal>> {
        let mut answers = Vec::new();
        for (call, inside) in calls {
            answers.push(self.call(call, inside).await);
        }
        answers
    }

    fn guest(&self, _: SandboxId) -> Result<Arc<dyn Guest>, Refusal> {
        let guest = HostGuest {
            root: self.root.path().to_owned(),
            manner: *self.manner.lock().unwrap(),
            running: Arc::clone(&self.running),
        };
        Ok(Arc::new(guest))
    }

    fn visit(&self, sandbox: SandboxId) -> Visit {
        self.visits.begin(sandbox)
    }

    /// As of a pool "python" of which a half sleeps.
    async fn memory(&self) -> Option<Arc<MemoryLook>> {
        let charge = |memory_bytes, swap_bytes| Charge {
            memory_bytes,
            swap_bytes,
        };
        let charged = [
            (("python".to_owned(), "running"), charge(20, 0)),
            (("python".to_owned(), "frozen"), charge(1, 12)),
        ];
        Some(Arc::new(MemoryLook {
            charged: charged.into(),
            zram: self.zram().await,
        }))
    }

    async fn zram(&self) -> Option<Zram> {
        Some(Zram {
            stored_bytes: 30,
            taken_bytes: 10,
        })
    }

    async fn network_report(&self, _: SandboxId) -> Result<NetReport, Refusal> {
        Ok(NetReport::default())
    }

    fn network(&self) -> Result<(), String> {
        self.network.lock().unwrap().clone()
    }

    async fn usage(&self, _: SandboxId) -> Result<Usage, Refusal> {
        Ok(Usage {
            cpu_nanoseconds: 1,
            memory_bytes: 2,
            swap_bytes: 5,
            memory_limit_bytes: 3,
            pids: 4,
            oom_kills: 0,
        })
    }

    async fn watch_claims(&self, resume: Option<String>) -> Result<ClaimWatch, Refusal> {
        let (watcher, changes) = mpsc::channel(4096);
        let mut state = self.lock();
        let token = format!("fake.{}", state.changes);
        let resumed = resume.as_deref() == Some(&token);
        for held in state.claims.values().filter(|_| !resumed) {
            let shown = ClaimChange::Snapshot(held.view.clone());
            let _ = watcher.try_send(Ok((shown, String::new())));
        }
        let _ = watcher.try_send(Ok((ClaimChange::Synced { resumed }, token)));
        state.watchers.push(watcher);
        Ok(ClaimWatch { changes })
    }

    fn pools_changed(&self) -> watch::Receiver<u64> {
        self.pools_changed.subscribe()
    }

    fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    fn to_wall_clock(&self, at: Now) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(at.0)
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, Refusal> {
        Ok(self.lock().images.clone())
    }

    async fn import_image(
        &self,
        archive: &Path,
        name: Option<&str>,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<Vec<ImageInfo>, Refusal> {
        let size_bytes = std::fs::metadata(archive).unwrap().len();
        self.pull_image(name.unwrap_or("named-by-archive:1"), progress)
            .await?;
        let mut state = self.lock();
        state.images.last_mut().unwrap().size_bytes = size_bytes;
        Ok(state.images.last().cloned().into_iter().collect())
    }

    async fn pull_image(
        &self,
        name: &str,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<ImageInfo, Refusal> {
        for bytes in 0..100 {
            let step = ImageProgress {
                stage: "unpacking".into(),
                item: "layer".into(),
                bytes,
                total_bytes: 100,
            };
            let _ = progress.send(step).await;
        }
        self.answered().await;
        let image = ImageInfo {
            name: name.into(),
            digest: "sha256:0".into(),
            size_bytes: 7,
        };
        self.lock().images.push(image.clone());
        Ok(image)
    }

    async fn remove_image(&self, name: &str) -> Result<(), Refusal> {
        let mut state = self.lock();
        let user = state
            .pools
            .pools
            .iter()
            .find(|pool| pool.template.image == name);
        if let Some(pool) = user {
            return Err(Refusal::ImageInUse {
                image: name.into(),
                pool: pool.name.to_string(),
            });
        }
        let before = state.images.len();
        state.images.retain(|image| image.name != name);
        match state.images.len() < before {
            true => Ok(()),
            false => Err(Refusal::ImageUnknown { image: name.into() }),
        }
    }

    async fn versions(&self) -> Result<Versions, Refusal> {
        Ok(Versions {
            containerd: "fake".into(),
            runsc: "fake".into(),
        })
    }

    fn handlers(&self) -> Vec<Handler> {
        vec![Handler::named(HANDLER, false)]
    }
}
