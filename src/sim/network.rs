//! Fake: the node's network, in memory, which fails as the others do. It outlives hearthd.

use super::world::{Fate, World};
use crate::machine::ids::{PoolName, SandboxId};
use crate::machine::network::NetworkPolicy;
use crate::net::fakes::PaperNetwork;
use crate::net::{Interface, NetError, NetReport, Network, Wanted};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::sleep;

/// Deadline of every call.
const DEADLINE: Duration = Duration::from_secs(10);

pub struct SimNetwork {
    pub paper: PaperNetwork,
    pub world: Arc<World>,
    /// When something last came in for a sandbox.
    knocks: Mutex<BTreeMap<SandboxId, u64>>,
    /// Those that were to be restored at some time.
    refurnished: Mutex<BTreeSet<SandboxId>>,
}

impl SimNetwork {
    pub fn new(paper: PaperNetwork, world: Arc<World>) -> Self {
        Self {
            paper,
            world,
            knocks: Mutex::default(),
            refurnished: Mutex::default(),
        }
    }

    /// It may have its interface for a restore, which does not look again whether that is still there.
    pub fn was_refurnished(&self, id: SandboxId) -> bool {
        self.refurnished().contains(&id)
    }

    fn refurnished(&self) -> MutexGuard<'_, BTreeSet<SandboxId>> {
        self.refurnished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody outside sends something to one that has an interface.
    pub fn knock(&self) {
        let present = self.paper.present();
        if !present.is_empty() {
            let id = present[self.world.index(present.len())];
            self.world.note(format!("something comes in for {id}"));
            self.knocks().insert(id, self.world.now_ms());
        }
    }

    fn knocks(&self) -> MutexGuard<'_, BTreeMap<SandboxId, u64>> {
        self.knocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call: some time before, some time after, and whatever may go wrong.
    async fn act<T>(
        &self,
        what: &'static str,
        deed: impl Future<Output = Result<T, NetError>>,
    ) -> Result<T, NetError> {
        let fate = self.world.fate();
        self.world.pause(what, 0..5).await;
        match fate {
            Fate::Before => return Err(refused(what)),
            Fate::Hang => {
                sleep(DEADLINE).await;
                let seconds = DEADLINE.as_secs();
                return Err(NetError::DeadlineExceeded { what, seconds });
            }
            Fate::Well | Fate::After => {}
        }
        let done = deed.await;
        self.world.pause(what, 0..5).await;
        match fate {
            Fate::After => Err(refused(what)),
            _ => done,
        }
    }
}

fn refused(what: &'static str) -> NetError {
    NetError::Refused {
        what,
        detail: "the simulation says no".to_owned(),
    }
}

#[async_trait]
impl Network for SimNetwork {
    async fn furnish(
        &self,
        id: SandboxId,
        pool: &PoolName,
        policy: &NetworkPolicy,
    ) -> Result<Interface, NetError> {
        self.act("furnish", self.paper.furnish(id, pool, policy))
            .await
    }

    async fn refurnish(
        &self,
        id: SandboxId,
        pool: &PoolName,
        policy: &NetworkPolicy,
    ) -> Result<Interface, NetError> {
        self.refurnished().insert(id);
        self.act("refurnish", self.paper.refurnish(id, pool, policy))
            .await
    }

    async fn apply(&self, id: SandboxId, policy: &NetworkPolicy) -> Result<(), NetError> {
        self.act("apply", self.paper.apply(id, policy)).await
    }

    async fn release(&self, id: SandboxId) -> Result<(), NetError> {
        self.act("release", self.paper.release(id)).await
    }

    async fn reconcile(&self, wanted: Vec<Wanted>) -> Result<Vec<SandboxId>, NetError> {
        self.act("reconcile", self.paper.reconcile(wanted)).await
    }

    async fn report(&self, id: SandboxId) -> Result<NetReport, NetError> {
        self.paper.report(id).await
    }

    async fn packets(&self) -> Result<BTreeMap<SandboxId, u64>, NetError> {
        self.paper.packets().await
    }

    async fn knocks(&self) -> Result<BTreeMap<SandboxId, Duration>, NetError> {
        // Twenty times a second: not one of the moments at which hearthd may die, for there would be few others.
        if self.world.once_in(8) {
            return Err(refused("knocks"));
        }
        let (knocks, now) = (self.knocks(), self.world.now_ms());
        let ago = |(id, at): (&SandboxId, &u64)| (*id, Duration::from_millis(now - at));
        Ok(knocks.iter().map(ago).collect())
    }

    async fn denied(&self) -> Result<BTreeMap<PoolName, u64>, NetError> {
        self.paper.denied().await
    }
}
