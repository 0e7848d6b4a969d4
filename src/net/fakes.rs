//! `PaperNetwork`: a `Network` in memory, for tests of those who use the trait. The real adapter is tested on real
//! namespaces (tests/network); this one exists for what a kernel does not do on demand: to refuse, or to take too long.

use super::{Interface, NetError, NetReport, Network, Wanted};
use crate::machine::ids::{PoolName, SandboxId};
use crate::machine::network::NetworkPolicy;
use async_trait::async_trait;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One call that was made, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// `furnish`.
    Furnish(SandboxId, PoolName, NetworkPolicy),
    /// `refurnish`.
    Refurnish(SandboxId, PoolName, NetworkPolicy),
    /// `apply`.
    Apply(SandboxId, NetworkPolicy),
    /// `release`.
    Release(SandboxId),
    /// `reconcile`, with the ids wanted.
    Reconcile(Vec<SandboxId>),
}

/// The verbs that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// `furnish`.
    Furnish,
    /// `refurnish`.
    Refurnish,
    /// `apply`.
    Apply,
    /// `release`.
    Release,
    /// `reconcile`.
    Reconcile,
    /// `report`.
    Report,
    /// `denied`.
    Denied,
}

#[derive(Default)]
struct Paper {
    calls: Vec<Call>,
    /// Every sandbox that has an interface: its number, its pool, the policy in force.
    present: BTreeMap<SandboxId, (u16, PoolName, NetworkPolicy)>,
    next: u16,
    /// What the next calls of a verb answer, one each.
    failing: BTreeMap<Verb, VecDeque<NetError>>,
    delay: BTreeMap<Verb, Duration>,
    denied: BTreeMap<PoolName, u64>,
}

/// See the module. Clones are the same network.
#[derive(Clone, Default)]
pub struct PaperNetwork(Arc<Mutex<Paper>>);

impl PaperNetwork {
    /// Empty; everything succeeds.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next call of `verb` that is not told to fail already answers `error` and changes nothing.
    pub fn fail_next(&self, verb: Verb, error: NetError) {
        let mut paper = self.paper();
        paper.failing.entry(verb).or_default().push_back(error);
    }

    /// Every call of `verb` takes so long from now on.
    pub fn delay(&self, verb: Verb, delay: Duration) {
        self.paper().delay.insert(verb, delay);
    }

    /// What was called so far, in order; also what failed.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.paper().calls.clone()
    }

    /// The policy in force, of those that have an interface.
    #[must_use]
    pub fn in_force(&self, id: SandboxId) -> Option<NetworkPolicy> {
        let paper = self.paper();
        paper.present.get(&id).map(|(_, _, policy)| policy.clone())
    }

    /// Ids of those that have an interface.
    #[must_use]
    pub fn present(&self) -> Vec<SandboxId> {
        self.paper().present.keys().copied().collect()
    }

    /// As if somebody had removed its interface behind our back.
    pub fn lose(&self, id: SandboxId) {
        self.paper().present.remove(&id);
    }

    /// As if the kernel had dropped `packets` more of the pool's.
    pub fn deny(&self, pool: &PoolName, packets: u64) {
        *self.paper().denied.entry(pool.clone()).or_default() += packets;
    }

    fn paper(&self) -> MutexGuard<'_, Paper> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the call down, waits, and fails if told to.
    async fn begin(&self, verb: Verb, call: Option<Call>) -> Result<(), NetError> {
        let (delay, error) = {
            let mut paper = self.paper();
            paper.calls.extend(call);
            let error = paper.failing.get_mut(&verb).and_then(VecDeque::pop_front);
            (paper.delay.get(&verb).copied(), error)
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        error.map_or(Ok(()), Err)
    }

    fn put(&self, id: SandboxId, pool: &PoolName, policy: &NetworkPolicy) -> Interface {
        let mut paper = self.paper();
        let fresh = paper.next;
        let entry = paper.present.entry(id);
        let entry = entry.or_insert_with(|| (fresh, pool.clone(), NetworkPolicy::default()));
        entry.1 = pool.clone();
        entry.2 = policy.clone();
        let number = entry.0;
        if number == fresh {
            paper.next = fresh.wrapping_add(1);
        }
        interface(id, number)
    }
}

fn interface(id: SandboxId, number: u16) -> Interface {
    let [high, low] = number.to_be_bytes();
    Interface {
        netns: format!("/run/hearth-paper/netns/{id}").into(),
        ipv4: Ipv4Addr::new(198, 19, high, low),
        ipv6: Ipv6Addr::new(0xfd68, 0x6561, 0x7274, 0x68ff, 0, 0, 0, number),
        resolvers: vec![IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1))],
    }
}

#[async_trait]
impl Network for PaperNetwork {
    async fn furnish(
        &self,
        id: SandboxId,
        pool: &PoolName,
        policy: &NetworkPolicy,
    ) -> Result<Interface, NetError> {
        let call = Call::Furnish(id, pool.clone(), policy.clone());
        self.begin(Verb::Furnish, Some(call)).await?;
        Ok(self.put(id, pool, policy))
    }

    async fn refurnish(
        &self,
        id: SandboxId,
        pool: &PoolName,
        policy: &NetworkPolicy,
    ) -> Result<Interface, NetError> {
        let call = Call::Refurnish(id, pool.clone(), policy.clone());
        self.begin(Verb::Refurnish, Some(call)).await?;
        Ok(self.put(id, pool, policy))
    }

    async fn apply(&self, id: SandboxId, policy: &NetworkPolicy) -> Result<(), NetError> {
        self.begin(Verb::Apply, Some(Call::Apply(id, policy.clone())))
            .await?;
        let mut paper = self.paper();
        let present = paper.present.get_mut(&id).ok_or(NetError::NoInterface)?;
        present.2 = policy.clone();
        Ok(())
    }

    async fn release(&self, id: SandboxId) -> Result<(), NetError> {
        self.begin(Verb::Release, Some(Call::Release(id))).await?;
        self.paper().present.remove(&id);
        Ok(())
    }

    async fn reconcile(&self, wanted: Vec<Wanted>) -> Result<Vec<SandboxId>, NetError> {
        let ids = wanted.iter().map(|wanted| wanted.id).collect();
        self.begin(Verb::Reconcile, Some(Call::Reconcile(ids)))
            .await?;
        let mut paper = self.paper();
        let wanted: BTreeMap<_, _> = wanted.into_iter().map(|w| (w.id, w)).collect();
        paper.present.retain(|id, _| wanted.contains_key(id));
        let mut gone = Vec::new();
        for (id, wanted) in wanted {
            match paper.present.get_mut(&id) {
                Some(present) => (present.1, present.2) = (wanted.pool, wanted.policy),
                None => gone.push(id),
            }
        }
        Ok(gone)
    }

    async fn report(&self, id: SandboxId) -> Result<NetReport, NetError> {
        self.begin(Verb::Report, None).await?;
        let paper = self.paper();
        let (number, _, policy) = paper.present.get(&id).ok_or(NetError::NoInterface)?;
        let interface = interface(id, *number);
        Ok(NetReport {
            interface: format!("sb{number}"),
            addresses: vec![interface.ipv4.into(), interface.ipv6.into()],
            policy: policy.clone(),
            ..NetReport::default()
        })
    }

    async fn packets(&self) -> Result<BTreeMap<SandboxId, u64>, NetError> {
        let paper = self.paper();
        Ok(paper.present.keys().map(|id| (*id, 0)).collect())
    }

    async fn knocks(&self) -> Result<BTreeMap<SandboxId, Duration>, NetError> {
        Ok(BTreeMap::new())
    }

    async fn denied(&self) -> Result<BTreeMap<PoolName, u64>, NetError> {
        self.begin(Verb::Denied, None).await?;
        Ok(self.paper().denied.clone())
    }
}
