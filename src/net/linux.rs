//! `LinuxNetwork`: the trait on the real kernel. Two threads do the work (`links`: namespaces and links; `rules`: nf_tables),
//! so that a claim's policy never waits behind the making of a namespace.

use super::enforce::{Enforcer, lock};
use super::links::Links;
use super::metrics::NetMetrics;
use super::nft::Nft;
use super::plan::Plan;
use super::reconcile;
use super::router;
use super::rules::Compiled;
use super::settings::NetSettings;
use super::state::{Holder, State};
use super::table::{Place, Table};
use super::worker::{Worker, refused};
use super::{Interface, NetError, NetReport, Network, Wanted};
use crate::failpoint::failpoint;
use crate::machine::ids::{PoolName, SandboxId};
use crate::machine::network::NetworkPolicy;
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, RwLock};

/// For one verb on links: the kernel's lock for links may be held for seconds while namespaces end.
pub(super) const LINKS_DEADLINE: Duration = Duration::from_secs(20);
/// For one transaction.
pub(super) const RULES_DEADLINE: Duration = Duration::from_secs(5);
/// For looking through everything.
pub(super) const SURVEY_DEADLINE: Duration = Duration::from_secs(60);
/// Sandboxes whose calls are kept apart from each other.
const TURNS: usize = 64;
/// Denied destinations in a report.
const DENIED: usize = 32;

pub(super) struct Inner {
    pub settings: NetSettings,
    pub plan: Plan,
    pub table: Arc<Table>,
    pub links: Worker<Links>,
    pub rules: Worker<Enforcer>,
    pub state: Arc<Mutex<State>>,
    pub metrics: NetMetrics,
    /// Reconcile has everything to itself.
    pub gate: RwLock<()>,
    /// One call at a time for a sandbox.
    turns: [tokio::sync::Mutex<()>; TURNS],
    /// A spare was taken.
    pub wake: Notify,
    /// The router's rules were written by this process.
    pub reconciled: std::sync::atomic::AtomicBool,
}

/// The real network. Clones are the same one.
#[derive(Clone)]
pub struct LinuxNetwork(pub(super) Arc<Inner>);

impl LinuxNetwork {
    /// Finds or makes the router, and finds the sandboxes that have a link to it. Called by `app`, once; then spawn
    /// [`Self::run`].
    ///
    /// # Errors
    /// The ranges make no sense, or the kernel refuses: then there is no network for any sandbox.
    pub async fn start(settings: NetSettings, metrics: NetMetrics) -> Result<Self, NetError> {
        let plan = Plan::of(&settings).ok_or_else(|| {
            refused(
                "planning addresses",
                "a range is too small or of the wrong family",
            )
        })?;
        let state = Arc::new(Mutex::new(State::new(&plan)));
        let (for_links, plan_of_links) = (settings.clone(), plan.clone());
        let links = Worker::start("net-links", SURVEY_DEADLINE, move || {
            Links::start(&for_links, plan_of_links)
        });
        let links = links.await?;
        let open = links.run("opening nf_tables", LINKS_DEADLINE, |links| {
            let inner = links.router.within(Nft::open)?;
            let inner = inner.map_err(|error| refused("opening nf_tables", error))?;
            let node = Nft::open().map_err(|error| refused("opening nf_tables", error))?;
            Ok((
                inner,
                node,
                links.router.uplink,
                links.survey()?,
                links.node_addresses()?,
            ))
        });
        let (inner, node, uplink, survey, addresses) = open.await?;
        let table = Arc::new(Table::new(&settings, &plan, uplink));
        lock(&state).node_addresses = addresses;
        let mut enforcer = Enforcer::new(
            inner,
            node,
            Arc::clone(&table),
            settings.clone(),
            plan.clone(),
            Arc::clone(&state),
        );
        let rules = Worker::start("net-rules", SURVEY_DEADLINE, move || {
            enforcer.rebuild_node()?;
            let there = enforcer.inner.has_table(enforcer.table.name());
            if !there.map_err(|refusal| refused("looking for the router's rules", refusal.errno))? {
                enforcer.rebuild()?;
            }
            reconcile::find(&mut enforcer, &survey);
            Ok(enforcer)
        });
        let inner = Inner {
            rules: rules.await?,
            settings,
            plan,
            table,
            links,
            state,
            metrics,
            gate: RwLock::new(()),
            turns: std::array::from_fn(|_| tokio::sync::Mutex::new(())),
            wake: Notify::new(),
            reconciled: false.into(),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Takes the router and all that belongs to it away, also what sandboxes still use. For tests and for `hearthd` leaving a
    /// node for good.
    ///
    /// # Errors
    /// Something is left.
    pub async fn dismantle(&self) -> Result<(), NetError> {
        // Spares are nobody's, like all the rest.
        lock(&self.0.state).spares.clear();
        self.reconcile(Vec::new()).await?;
        let settings = self.0.settings.clone();
        let work = move |links: &mut Links| {
            let mut nft = Nft::open().map_err(|error| refused("opening nf_tables", error))?;
            router::dismantle(&settings, &mut links.router.node, &mut nft)
        };
        let links = &self.0.links;
        links.run("dismantling", SURVEY_DEADLINE, work).await
    }

    pub(super) fn is_reconciled(&self) -> bool {
        self.0.reconciled.load(std::sync::atomic::Ordering::Acquire)
    }

    fn turn(&self, id: SandboxId) -> &tokio::sync::Mutex<()> {
        let at = usize::try_from(id.sequence() % TURNS as u64).unwrap_or(0);
        &self.0.turns[at]
    }

    fn interface(&self, slot: u32, netns: PathBuf) -> Result<Interface, NetError> {
        match self.0.plan.addresses(slot) {
            [IpAddr::V4(ipv4), IpAddr::V6(ipv6)] => Ok(Interface {
                netns,
                ipv4,
                ipv6,
                resolvers: self.0.plan.gateway().to_vec(),
            }),
            _ => Err(refused(
                "planning addresses",
                "a range is of the wrong family",
            )),
        }
    }

    /// Makes a slot that is nobody's.
    pub(super) async fn make(&self) -> Result<u32, NetError> {
        let slot = lock(&self.0.state).free.take();
        let slot = slot.ok_or_else(|| {
            let range = self.0.plan.range4;
            NetError::AddressesExhausted(format!("{}/{}", range.address, range.length))
        })?;
        self.make_this(slot).await.map(|()| slot)
    }

    /// Makes a slot whose number has been taken. On failure it is debris, which the keeper removes.
    async fn make_this(&self, slot: u32) -> Result<(), NetError> {
        let made = async {
            let make = move |links: &mut Links| links.make(slot);
            let place = self.links("making a sandbox's link", make).await?;
            let add = move |rules: &mut Enforcer| rules.add(place);
            failpoint!("net.linked");
            self.rules("making a sandbox's rules", add).await
        };
        let made = made.await;
        if made.is_err() {
            lock(&self.0.state).debris.insert(slot);
        }
        made
    }

    /// Gives the sandbox a slot that is nobody's: a spare, or one made now.
    async fn furnish_new(&self, id: SandboxId, holder: Holder) -> Result<PathBuf, NetError> {
        let spare = lock(&self.0.state).spares.pop_front();
        self.0.wake.notify_one();
        let slot = match spare {
            Some(spare) => spare,
            None => self.make().await?,
        };
        self.give(id, slot, holder).await
    }

    async fn give(&self, id: SandboxId, slot: u32, holder: Holder) -> Result<PathBuf, NetError> {
        let (policy, compiled) = (holder.policy.clone(), Arc::clone(&holder.compiled));
        let place = {
            let mut state = lock(&self.0.state);
            // Not the policy in force: `apply` is to see that it differs.
            state.hold(
                slot,
                Holder {
                    compiled: Arc::new(Compiled::default()),
                    ..holder
                },
            );
            state.place(id).ok_or(NetError::NoInterface)?
        };
        let assign = move |links: &mut Links| links.assign(place, id);
        let path = self.links("giving a sandbox its link", assign).await?;
        failpoint!("net.given");
        self.enforce(id, policy, compiled).await?;
        Ok(path)
    }

    async fn enforce(
        &self,
        id: SandboxId,
        policy: NetworkPolicy,
        compiled: Arc<Compiled>,
    ) -> Result<(), NetError> {
        let apply = move |rules: &mut Enforcer| rules.apply(id, &policy, &compiled);
        self.rules("putting a policy in force", apply).await?;
        failpoint!("net.enforced");
        Ok(())
    }

    /// Takes a slot away and gives its number back. May be repeated.
    pub(super) async fn remove(&self, slot: u32, id: Option<SandboxId>) -> Result<(), NetError> {
        let delete = move |rules: &mut Enforcer| rules.delete(slot);
        self.rules("deleting a sandbox's rules", delete).await?;
        failpoint!("net.unruled");
        let remove = move |links: &mut Links| links.remove(slot, id);
        self.links("removing a sandbox's link", remove).await?;
        failpoint!("net.unlinked");
        // Once more for a sandbox found at start whose rules nobody has read: the next transaction is a whole one.
        let forget = move |rules: &mut Enforcer| rules.forget_flows(slot);
        self.rules("forgetting a sandbox's flows", forget).await?;
        lock(&self.0.state).forget(slot);
        Ok(())
    }

    async fn put(
        &self,
        id: SandboxId,
        pool: &PoolName,
        policy: &NetworkPolicy,
    ) -> Result<Interface, NetError> {
        let compiled = compile(policy)?;
        let holder = Holder {
            id,
            pool: pool.clone(),
            policy: policy.clone(),
            compiled: Arc::clone(&compiled),
            pins: Default::default(),
        };
        let known = lock(&self.0.state).place(id);
        let path = match known {
            None => self.furnish_new(id, holder).await,
            Some(place) => self.put_again(id, place, holder).await,
        };
        let path = match path {
            Ok(path) => path,
            Err(error) => {
                // Undone now, or by the next release or reconcile.
                if known.is_none() {
                    let _ = self.release_now(id).await;
                }
                return Err(error);
            }
        };
        let place = lock(&self.0.state).place(id).ok_or(NetError::NoInterface)?;
        self.interface(place.slot, path)
    }

    async fn put_again(
        &self,
        id: SandboxId,
        place: Place,
        holder: Holder,
    ) -> Result<PathBuf, NetError> {
        let ready = {
            let mut state = lock(&self.0.state);
            let slot = state.slots.get_mut(&place.slot);
            // Found at start and not reconciled yet: made anew, nobody knows its rules.
            slot.is_some_and(|slot| match &mut slot.holder {
                Some(known) => {
                    known.pool = holder.pool.clone();
                    slot.in_table
                }
                None => false,
            })
        };
        let restore = move |links: &mut Links| links.restore(place, id);
        let restored = match ready {
            true => self.links("putting addresses back", restore).await,
            false => Err(NetError::NoInterface),
        };
        match restored {
            Ok(path) => {
                self.enforce(id, holder.policy, holder.compiled).await?;
                Ok(path)
            }
            Err(NetError::NoInterface) => {
                self.remove(place.slot, Some(id)).await?;
                let same = lock(&self.0.state).free.take_this(place.slot);
                if !same {
                    return self.furnish_new(id, holder).await;
                }
                self.make_this(place.slot).await?;
                self.give(id, place.slot, holder).await
            }
            Err(error) => Err(error),
        }
    }

    async fn release_now(&self, id: SandboxId) -> Result<(), NetError> {
        let place = lock(&self.0.state).place(id);
        match place {
            Some(place) => self.remove(place.slot, Some(id)).await,
            None => {
                let remove = move |links: &mut Links| links.remove_space(&id.to_string());
                self.links("removing a namespace", remove).await
            }
        }
    }

    async fn links<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&mut Links) -> Result<T, NetError> + Send + 'static,
    ) -> Result<T, NetError> {
        self.0.links.run(what, LINKS_DEADLINE, work).await
    }

    async fn rules<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&mut Enforcer) -> Result<T, NetError> + Send + 'static,
    ) -> Result<T, NetError> {
        self.0.rules.run(what, RULES_DEADLINE, work).await
    }
}

/// A policy ready for the kernel.
pub(super) fn compile(policy: &NetworkPolicy) -> Result<Arc<Compiled>, NetError> {
    let compiled = Compiled::of(policy).map_err(|error| refused("reading a policy", error))?;
    Ok(Arc::new(compiled))
}

#[async_trait]
impl Network for LinuxNetwork {
    async fn furnish(
        &self,
        id: SandboxId,
        pool: &PoolName,
        policy: &NetworkPolicy,
    ) -> Result<Interface, NetError> {
        let began = Instant::now();
        let _open = self.0.gate.read().await;
        let _turn = self.turn(id).lock().await;
        let put = self.put(id, pool, policy).await;
        self.0.metrics.furnished(began.elapsed(), put.is_ok());
        put
    }

    async fn refurnish(
        &self,
        id: SandboxId,
        pool: &PoolName,
        policy: &NetworkPolicy,
    ) -> Result<Interface, NetError> {
        self.furnish(id, pool, policy).await
    }

    async fn apply(&self, id: SandboxId, policy: &NetworkPolicy) -> Result<(), NetError> {
        let began = Instant::now();
        let compiled = compile(policy)?;
        let _open = self.0.gate.read().await;
        let _turn = self.turn(id).lock().await;
        let applied = self.enforce(id, policy.clone(), compiled).await;
        self.0.metrics.applied(began.elapsed(), applied.is_ok());
        applied
    }

    async fn release(&self, id: SandboxId) -> Result<(), NetError> {
        let _open = self.0.gate.read().await;
        let _turn = self.turn(id).lock().await;
        self.release_now(id).await
    }

    async fn reconcile(&self, wanted: Vec<Wanted>) -> Result<Vec<SandboxId>, NetError> {
        let _alone = self.0.gate.write().await;
        let missing = self.match_kernel(wanted).await?;
        failpoint!("net.reconciled");
        Ok(missing)
    }

    async fn report(&self, id: SandboxId) -> Result<NetReport, NetError> {
        let read = move |rules: &mut Enforcer| rules.report(id, DENIED);
        self.rules("reading what is in force", read).await
    }

    async fn packets(&self) -> Result<BTreeMap<SandboxId, u64>, NetError> {
        self.links("counting packets", Links::packets).await
    }

    async fn knocks(&self) -> Result<BTreeMap<SandboxId, Duration>, NetError> {
        self.rules("reading knocks", Enforcer::knocks).await
    }

    async fn denied(&self) -> Result<BTreeMap<PoolName, u64>, NetError> {
        let denied = self.rules("reading what was denied", Enforcer::denied);
        let denied = denied.await?;
        self.0.metrics.denied(&denied);
        Ok(denied)
    }
}
