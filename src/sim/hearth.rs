//! One life of hearthd in this world: all that is above the adapters, built as `app` builds it.

use super::callers::POOLS;
use super::guest::SimConnector;
use super::runtime::SimRuntime;
use super::site::Site;
use super::world::World;
use crate::driver::{self, Clock, Handle, Parts};
use crate::journal::disk_fakes::{InlineCommitter, NotOpened};
use crate::journal::{BATCHES_IN_FLIGHT, JournalEvent};
use crate::machine::event::Call;
use crate::machine::ids::{NodeTag, Now};
use crate::machine::node::{DiskPolicy, MemoryPolicy, Node, Settings};
use crate::machine::spec::Template;
use crate::machine::view::{Answer, NodeView};
use crate::rpc::unguarded::Services;
use crate::rpc::{RpcConfig, RpcLimits};
use prometheus::Registry;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Of this data directory.
pub const TAG: NodeTag = NodeTag(0x51a);
/// Events of the runtime that wait for the driver.
const RUNTIME_EVENTS: usize = 64;
/// Sandboxes at once.
const MAX_SANDBOXES: u32 = 6;

/// Hearth time goes on as the world's.
struct SimClock {
    world: Arc<World>,
    start: Now,
    started_ms: u64,
}

impl Clock for SimClock {
    fn now(&self) -> Now {
        self.start.plus(self.world.now_ms() - self.started_ms)
    }

    fn to_wall_clock(&self, at: Now) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(at.0)
    }
}

/// What callers reach.
pub struct Hearth {
    /// Of this life.
    pub number: u64,
    pub services: Services,
    pub handle: Handle,
    world: Arc<World>,
    journal: mpsc::Sender<JournalEvent>,
    /// Ends the driver.
    stop: CancellationToken,
}

fn settings() -> Settings {
    Settings {
        tag: TAG,
        max_sandboxes: MAX_SANDBOXES,
        refill_yield_ms: 40,
        memory: MemoryPolicy::default(),
        disk: DiskPolicy {
            enabled: true,
            sink_after_ms: 15_000,
        },
        relist_ms: 10_000,
    }
}

fn rpc_config() -> RpcConfig {
    RpcConfig {
        node_key: [7; 32],
        endpoints: Vec::new(),
        version: "simulated".to_owned(),
        node_tag: TAG,
        started_at: SystemTime::UNIX_EPOCH,
        max_sandboxes: MAX_SANDBOXES,
        cgroup_version: 2,
        limits: RpcLimits {
            streams_per_sandbox: 1,
            image_import_bytes: 0,
            import_dir: "/nonexistent".into(),
            disk_reserve_bytes: 0,
            shutdown: Duration::ZERO,
        },
    }
}

impl Hearth {
    /// Starts on what the disk holds. With it comes the task of its driver, which ends only when it is told to. `mortal`: it may die while
    /// it opens its journal, and at any commit.
    pub fn start(site: &Arc<Site>, mortal: bool) -> Result<(Arc<Self>, JoinHandle<()>), NotOpened> {
        let world = &site.world;
        let boot = world.boot();
        let (journal_in, journal_events) = mpsc::channel(2 * BATCHES_IN_FLIGHT);
        let dies = (mortal && world.once_in(12)).then(|| world.below(3));
        let opened = site.disk.open(&boot, dies, journal_in.clone())?;
        world.note("hearthd starts".to_owned());
        let (runtime_in, runtime_events) = mpsc::channel(RUNTIME_EVENTS);
        let clock = SimClock {
            world: Arc::clone(world),
            start: opened.start,
            started_ms: world.now_ms(),
        };
        let parts = Parts {
            node: Node::recover(settings(), opened.records, opened.start),
            journal: Box::new(opened.journal),
            journal_events,
            runtime: Arc::new(SimRuntime(Arc::clone(site))),
            runtime_events,
            network: Ok(site.network.clone()),
            connector: Arc::new(SimConnector(Arc::clone(site))),
            memory: None,
            reclaim: true,
            golden: site.golden,
            clock: Arc::new(clock),
            start_nonce: opened.start.0,
        };
        let registry = Registry::new();
        let (driver, handle) = driver::build(parts, &registry).unwrap();
        let stop = CancellationToken::new();
        let driver = tokio::spawn(driver.run_until_stopped(stop.clone()));
        tokio::spawn(commit(Arc::clone(world), opened.committer, mortal));
        let hearth = Self {
            number: site.attach(runtime_in),
            services: Services::new(handle.clone(), rpc_config(), &registry),
            handle,
            world: Arc::clone(world),
            journal: journal_in,
            stop,
        };
        Ok((Arc::new(hearth), driver))
    }

    /// SIGTERM, as `app` takes it: what would change something is refused, calls in flight may end, then the driver
    /// commits what it has taken, and ends.
    pub async fn terminate(&self) {
        self.world.note("SIGTERM".to_owned());
        self.handle.shut_down().await;
        self.world.pause("shutdown", 100..6_000).await;
        self.stop.cancel();
    }

    /// It was told to end.
    pub fn is_ending(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// The disk's reserve is reached, or free again.
    pub async fn reserve(&self, reached: bool) {
        self.world.note(format!("reserve reached: {reached}"));
        let event = JournalEvent::Reserve { reached };
        // The driver is gone only when hearthd ends.
        let _ended = self.journal.send(event).await;
    }

    /// The node in one look.
    pub async fn inspect(&self) -> Option<NodeView> {
        let asked = self.handle.call(Call::Inspect, None);
        match timeout(Duration::from_secs(10), asked).await {
            Ok(Ok(answered)) => match answered.answer {
                Answer::Node(view) => Some(*view),
                _ => None,
            },
            _ => None,
        }
    }

    /// What can be claimed was never used, and no bound is passed.
    pub async fn look(&self, site: &Site) {
        let used = site.used();
        let Some(view) = self.inspect().await else {
            return;
        };
        let awake = |residency: &str| matches!(residency, "running" | "frozen");
        let members = view.sandboxes.iter().filter(|it| it.owner == "pool");
        for member in members.filter(|it| awake(it.residency)) {
            self.world.ensure(!used.contains(&member.id), || {
                format!("a used sandbox is a pool member: {member:?}")
            });
        }
        for pool in &view.pools {
            let there = pool.warm + pool.creating + pool.claimed + pool.releasing;
            self.world.ensure(there <= pool.spec.max_total, || {
                format!("too many in {:?}", pool.spec.name)
            });
        }
        let there = view.sandboxes.len();
        let most = usize::try_from(MAX_SANDBOXES).unwrap();
        self.world
            .ensure(there <= most, || format!("{there} sandboxes"));
    }

    /// Everything is at rest: the pools are full, nobody has anything, and what is outside is what the node knows.
    pub async fn is_at_rest(&self, site: &Site) -> Result<(), String> {
        let view = self.inspect().await.ok_or("no answer")?;
        if view.phase != "ready" || !view.claims.is_empty() || view.pools.len() != POOLS.len() {
            return Err(format!("{} with claims {:?}", view.phase, view.claims));
        }
        for pool in &view.pools {
            let busy = pool.creating + pool.claimed + pool.releasing + pool.waiting;
            if pool.warm < pool.spec.min_warm || busy > 0 {
                return Err(format!("{pool:?}"));
            }
        }
        let known: Vec<_> = view.sandboxes.iter().map(|it| it.id).collect();
        let (there, images) = site.there();
        let wired = site.network.paper.present();
        let stray = wired.iter().any(|id| !known.contains(id));
        // hearthd has not heard of all that ended.
        let dead = site.look().into_iter().filter(|it| !it.alive).count();
        let declared = |template: &Template| {
            let mut pools = view.pools.iter();
            pools.any(|pool| pool.spec.template == *template)
        };
        let unneeded = site.goldens().iter().any(|it| !declared(it));
        match known == there && images.is_empty() && !stray && !unneeded && dead == 0 {
            true => Ok(()),
            false => Err(format!(
                "known {known:?}, there {there:?}, images {images:?}, interfaces {wired:?}, unneeded golden images: {unneeded}"
            )),
        }
    }
}

/// The journal's thread, as a task.
async fn commit(world: Arc<World>, mut committer: InlineCommitter, mortal: bool) {
    loop {
        committer.queued().await;
        let takes = match world.commits_slowly() {
            true => 300..4_000,
            false => 0..6,
        };
        world.pause("commit", takes).await;
        let dies = (mortal && world.once_in(100)).then(|| world.below(2));
        match committer.commit(dies) {
            Ok(Some(ticket)) => {
                world.point("committed").await;
                committer.tell(JournalEvent::Durable(ticket)).await;
            }
            Ok(None) => {
                world.die("at a sync");
                pending::<()>().await;
            }
            Err(why) => {
                world.broken(format!("the journal failed: {why}"));
                pending::<()>().await;
            }
        }
    }
}
