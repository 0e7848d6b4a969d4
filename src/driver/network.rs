//! What the driver asks of the node's network, and when.
//!
//! ```text
//! create    furnish (policy in force) ─▶ runtime.create in that netns
//! restore   refurnish (addresses back, policy in force) ─▶ runtime's restore
//! claim     [thaw] ─▶ apply, if the claim brings a policy ─▶ the guest is told ─▶ acknowledged
//! destroy   runtime.destroy ─▶ release: gone only when both are
//! restart   listing ─▶ reconcile ─▶ the machine learns what runs
//! ```
//! Whatever fails here closes: the sandbox is not handed out.

use crate::machine::event::Observed;
use crate::machine::ids::{PoolName, SandboxId};
use crate::machine::network::NetworkPolicy;
use crate::machine::refusal::Refusal;
use crate::machine::refusal::bounded;
use crate::net::{Interface, NetError, NetReport, Network, Wanted};
use crate::runtime::SandboxNetwork;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tracing::{debug, warn};

/// A scrape waits no longer for the kernel's counters; then it shows those of the scrape before.
const SCRAPE: Duration = Duration::from_millis(500);
/// A look at what sandboxes use waits no longer: links may be in the making.
const LOOK: Duration = Duration::from_secs(5);

/// The node's network; `Err`: why sandboxes get none here.
pub type NodeNetwork = Result<Arc<dyn Network>, String>;

/// The node's network as workers use it.
pub(super) struct Networks {
    network: NodeNetwork,
    reconciling: Arc<tokio::sync::Mutex<()>>,
}

impl Networks {
    pub(super) fn new(network: NodeNetwork) -> Arc<Self> {
        let reconciling = Arc::default();
        Arc::new(Self {
            network,
            reconciling,
        })
    }

    /// Why sandboxes get no network here.
    pub(super) fn available(&self) -> Result<(), String> {
        self.network.as_ref().map(drop).map_err(Clone::clone)
    }

    /// The network of a sandbox about to be made; `None`: its policy needs none.
    pub(super) async fn furnish(
        &self,
        id: SandboxId,
        pool: &PoolName,
        policy: &NetworkPolicy,
    ) -> Result<Option<SandboxNetwork>, String> {
        if !policy.needs_interface() {
            return Ok(None);
        }
        let furnished = self.network()?.furnish(id, pool, policy).await;
        furnished.map(|it| Some(seen_from_inside(it))).map_err(told)
    }

    /// The same before a restore, for gVisor takes the addresses off the link at each start: `policy` is the one in
    /// force (`Node::network_policies`), `made_with` that of the template. What it answers goes into the spec.
    pub(super) async fn refurnish(
        &self,
        id: SandboxId,
        pool: &PoolName,
        (made_with, policy): (&NetworkPolicy, &NetworkPolicy),
    ) -> Result<Option<SandboxNetwork>, String> {
        if !made_with.needs_interface() {
            return Ok(None);
        }
        let furnished = self.network()?.refurnish(id, pool, policy).await;
        furnished.map(|it| Some(seen_from_inside(it))).map_err(told)
    }

    /// Puts a claim's policy in force.
    pub(super) async fn apply(&self, id: SandboxId, policy: &NetworkPolicy) -> Result<(), String> {
        self.network()?.apply(id, policy).await.map_err(told)
    }

    /// Takes away what a sandbox that the runtime holds no more had. Without a network nothing can be looked at: what an
    /// earlier hearthd left is found by the reconciliation of the next one that has it.
    pub(super) async fn release(&self, id: SandboxId) -> Result<(), String> {
        match &self.network {
            Ok(network) => network.release(id).await.map_err(told),
            Err(_) => Ok(()),
        }
    }

    /// After a restart: the kernel is made to match `wanted`. Those that run and whose interface is gone, so that no
    /// policy can be in force for them. `Err`: policies could not be put in force.
    pub(super) async fn reconcile(
        &self,
        wanted: Vec<(SandboxId, PoolName, NetworkPolicy)>,
        observed: &[Observed],
    ) -> Result<Vec<SandboxId>, String> {
        let alive = observed.iter().filter(|it| it.alive).map(|it| it.id);
        let alive: BTreeSet<_> = alive.collect();
        let lost = match &self.network {
            Ok(network) => {
                let nothing = wanted.is_empty();
                let wanted =
                    wanted
                        .into_iter()
                        .map(|(id, pool, policy)| Wanted { id, pool, policy });
                match self.reconcile_alone(network, wanted.collect()).await {
                    Ok(gone) => gone,
                    // Leftovers that could not be looked for hold nobody up.
                    Err(error) if nothing => {
                        warn!(%error, "networks left behind were not looked for");
                        Vec::new()
                    }
                    Err(error) => return Err(told(error)),
                }
            }
            Err(_) => wanted.into_iter().map(|(id, _, _)| id).collect(),
        };
        Ok(lost.into_iter().filter(|id| alive.contains(id)).collect())
    }

    /// What is in force for a sandbox; one without an interface reaches nothing.
    pub(super) async fn report(&self, id: SandboxId) -> Result<NetReport, Refusal> {
        let Ok(network) = &self.network else {
            return Ok(NetReport::default());
        };
        match network.report(id).await {
            Ok(report) => Ok(report),
            Err(NetError::NoInterface) => Ok(NetReport::default()),
            Err(error) => Err(Refusal::Internal {
                detail: told(error),
            }),
        }
    }

    /// Has the network bring its counters of denied packets up to date, for a scrape.
    pub(super) async fn count_denied(&self) {
        if let Ok(network) = &self.network {
            seen("denied packets", SCRAPE, network.denied()).await;
        }
    }

    /// Packets over each sandbox's interface so far; who has none is not named. `None`: they could not be counted.
    pub(super) async fn packets(&self) -> Option<BTreeMap<SandboxId, u64>> {
        match &self.network {
            Ok(network) => seen("packets", LOOK, network.packets()).await,
            Err(_) => Some(BTreeMap::new()),
        }
    }

    /// Who something came in for, and how long ago; nobody, where that can't be read.
    pub(super) async fn knocks(&self) -> BTreeMap<SandboxId, Duration> {
        match &self.network {
            Ok(network) => seen("knocks", LOOK, network.knocks()).await,
            Err(_) => None,
        }
        .unwrap_or_default()
    }

    /// To its end, also when whoever asked gives up: the next one, and with it the first creation, waits for it. Else one
    /// that is given up could take away later what was made meanwhile.
    async fn reconcile_alone(
        &self,
        network: &Arc<dyn Network>,
        wanted: Vec<Wanted>,
    ) -> Result<Vec<SandboxId>, NetError> {
        let alone = self.reconciling.clone().lock_owned().await;
        let network = network.clone();
        let task = tokio::spawn(async move {
            let done = network.reconcile(wanted).await;
            drop(alone);
            done
        });
        task.await.unwrap_or_else(|error| {
            Err(NetError::Refused {
                what: "reconcile",
                detail: error.to_string(),
            })
        })
    }

    fn network(&self) -> Result<&Arc<dyn Network>, String> {
        let absent = |why: &String| format!("this node gives sandboxes no network: {why}");
        self.network.as_ref().map_err(absent)
    }
}

/// What the kernel shows, in time; `None`: it did not, and whoever looks does without.
async fn seen<T>(
    what: &'static str,
    limit: Duration,
    look: impl Future<Output = Result<T, NetError>>,
) -> Option<T> {
    match timeout(limit, look).await {
        Ok(Ok(seen)) => Some(seen),
        Ok(Err(error)) => {
            debug!(what, %error, "not read from the kernel");
            None
        }
        Err(_) => {
            debug!(what, "not read from the kernel in time");
            None
        }
    }
}

fn seen_from_inside(interface: Interface) -> SandboxNetwork {
    SandboxNetwork {
        netns: interface.netns,
        resolvers: interface.resolvers,
    }
}

fn told(error: NetError) -> String {
    bounded(error.to_string())
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
