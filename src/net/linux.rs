//! `LinuxNetwork`: the trait on the real kernel. Two threads do the work (`links`: namespaces and links; `rules`: nf_tables),
//! so that a claim's policy never waits behind the making of a namespace.

use super::enforce::{Enforcer, lock};
use super::links::{Links, Survey};
use super::metrics::NetMetrics;
use super::nft::Nft;
use super::plan::Plan;
use super::router::{self, Router};
use super::rules::Compiled;
use super::settings::NetSettings;
use super::state::{Found, Holder, State};
use super::table::{Place, Table, name};
use super::worker::{Worker, refused};
use super::{Interface, NetError, NetReport, Network, Wanted};
use crate::machine::ids::{PoolName, SandboxId};
use crate::machine::network::NetworkPolicy;
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
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
const SURVEY_DEADLINE: Duration = Duration::from_secs(60);
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
    reconciled: std::sync::atomic::AtomicBool,
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
            let router = Router::open(&for_links, &plan_of_links)?;
            let directory = router::directory(&for_links);
            Ok(Links {
                router,
                directory,
                plan: plan_of_links,
            })
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
            find(&mut enforcer, &survey);
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
        self.reconcile(Vec::new()).await?;
        let settings = self.0.settings.clone();
        let done = self.0.rules.run("dismantling", SURVEY_DEADLINE, |rules| {
            Nft::open()
                .map_err(|error| refused("opening nf_tables", error))
                .inspect(|_| {
                    let _ = rules;
                })
        });
        let mut nft = done.await?;
        let work =
            move |links: &mut Links| router::dismantle(&settings, &mut links.router.node, &mut nft);
        self.0.links.run("dismantling", SURVEY_DEADLINE, work).await
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
            let place = self
                .0
                .links
                .run("making a sandbox's link", LINKS_DEADLINE, make)
                .await?;
            let add = move |rules: &mut Enforcer| rules.add(place);
            self.0
                .rules
                .run("making a sandbox's rules", RULES_DEADLINE, add)
                .await
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
        let path = self
            .0
            .links
            .run("giving a sandbox its link", LINKS_DEADLINE, assign)
            .await?;
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
        self.0
            .rules
            .run("putting a policy in force", RULES_DEADLINE, apply)
            .await
    }

    async fn remove(&self, slot: u32, id: Option<SandboxId>) -> Result<(), NetError> {
        let delete = move |rules: &mut Enforcer| rules.delete(slot);
        self.0
            .rules
            .run("deleting a sandbox's rules", RULES_DEADLINE, delete)
            .await?;
        let remove = move |links: &mut Links| links.remove(slot, id);
        self.0
            .links
            .run("removing a sandbox's link", LINKS_DEADLINE, remove)
            .await?;
        // Once more for a sandbox found at start whose rules nobody has read: the next transaction is a whole one.
        let forget = move |rules: &mut Enforcer| rules.forget_flows(slot);
        self.0
            .rules
            .run("forgetting a sandbox's flows", RULES_DEADLINE, forget)
            .await?;
        lock(&self.0.state).forget(slot);
        Ok(())
    }

    /// Removes what could not be removed, or made, before.
    pub(super) async fn sweep(&self) -> Result<(), NetError> {
        let debris: Vec<u32> = lock(&self.0.state).debris.iter().copied().collect();
        for slot in debris {
            self.remove(slot, None).await?;
        }
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
            true => {
                self.0
                    .links
                    .run("putting addresses back", LINKS_DEADLINE, restore)
                    .await
            }
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
                self.0
                    .links
                    .run("removing a namespace", LINKS_DEADLINE, remove)
                    .await
            }
        }
    }
}

/// Notes what an earlier hearthd has left. Nothing is changed: that is `reconcile`'s.
fn find(enforcer: &mut Enforcer, survey: &Survey) {
    let marks = enforcer.marks();
    for (slot, (link, id)) in &survey.links {
        let place = Place {
            slot: *slot,
            link: *link,
        };
        let pins = enforcer.read_pins(*slot);
        let mut state = lock(&enforcer.state);
        if !state.free.take_this(*slot) {
            continue;
        }
        match id {
            Some(id) => {
                let found = Found {
                    place,
                    in_force: marks.get(link).cloned(),
                    pins,
                };
                state.found.insert(*id, found);
            }
            None => {
                state.debris.insert(*slot);
            }
        }
    }
}

fn compile(policy: &NetworkPolicy) -> Result<Arc<Compiled>, NetError> {
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
        let survey = |links: &mut Links| Ok((links.survey()?, links.node_addresses()?));
        let (survey, addresses) = self
            .0
            .links
            .run("looking for links", SURVEY_DEADLINE, survey)
            .await?;
        let mut wanted: BTreeMap<SandboxId, Wanted> = wanted
            .into_iter()
            .map(|wanted| (wanted.id, wanted))
            .collect();
        let mut plans = Vec::new();
        for wanted in wanted.values() {
            plans.push((wanted.clone(), compile(&wanted.policy)?));
        }
        // What is whole: the link is there, carries the id, and the namespace is bound under the id.
        let whole = |id: SandboxId, place: Place| {
            survey.links.get(&place.slot) == Some(&(place.link, Some(id)))
                && survey.spaces.get(&id.to_string()) == Some(&true)
        };
        let (mut gone, mut adopted, mut changed) = (Vec::new(), Vec::new(), Vec::new());
        let mut kept: BTreeSet<u32> = BTreeSet::new();
        {
            let state = lock(&self.0.state);
            for (wanted, compiled) in plans {
                let place = state
                    .place(wanted.id)
                    .filter(|place| whole(wanted.id, *place));
                let Some(place) = place else {
                    gone.push(wanted.id);
                    continue;
                };
                kept.insert(place.slot);
                let found = state.found.get(&wanted.id).cloned();
                match found {
                    Some(found) => adopted.push((found, wanted, compiled)),
                    None => changed.push((wanted, compiled)),
                }
            }
            let spare = |slot: &&u32| {
                survey.links.get(*slot).is_some_and(|(_, id)| id.is_none())
                    && survey.spaces.get(&format!("spare-{slot}")) == Some(&true)
            };
            kept.extend(state.spares.iter().filter(spare));
        }
        gone.iter().for_each(|id| {
            wanted.remove(id);
        });
        // Slots that the kernel shows or we know of, and that nobody wants.
        let unwanted: Vec<(u32, Option<SandboxId>)> = {
            let mut state = lock(&self.0.state);
            let mut unwanted: BTreeMap<u32, Option<SandboxId>> = survey
                .links
                .iter()
                .map(|(slot, (_, id))| (*slot, *id))
                .collect();
            unwanted.extend(state.by_id.iter().map(|(id, slot)| (*slot, Some(*id))));
            unwanted.extend(state.debris.iter().map(|slot| (*slot, None)));
            unwanted.extend(state.spares.iter().map(|slot| (*slot, None)));
            unwanted.retain(|slot, _| !kept.contains(slot));
            for slot in unwanted.keys() {
                state.free.take_this(*slot);
            }
            unwanted.into_iter().collect()
        };
        let first = !self.0.reconciled.load(std::sync::atomic::Ordering::Acquire);
        let write = move |rules: &mut Enforcer| {
            for (found, wanted, compiled) in adopted {
                let holder = Holder {
                    id: wanted.id,
                    pool: wanted.pool,
                    policy: wanted.policy,
                    pins: found.pins.under(&compiled),
                    compiled,
                };
                rules.adopt(found.place, holder, found.in_force);
            }
            if first {
                rules.rebuild()?;
            }
            for (wanted, compiled) in changed {
                if let Some(slot) = lock(&rules.state).by_id.get(&wanted.id).copied() {
                    let mut state = lock(&rules.state);
                    let holder = state
                        .slots
                        .get_mut(&slot)
                        .and_then(|slot| slot.holder.as_mut());
                    holder
                        .into_iter()
                        .for_each(|holder| holder.pool = wanted.pool.clone());
                }
                rules.apply(wanted.id, &wanted.policy, &compiled)?;
            }
            rules.check(addresses).map(|_| ())
        };
        self.0
            .rules
            .run("reconciling rules", SURVEY_DEADLINE, write)
            .await?;
        self.0
            .reconciled
            .store(true, std::sync::atomic::Ordering::Release);
        for (slot, id) in unwanted {
            self.remove(slot, id).await?;
        }
        let spares: BTreeSet<String> = lock(&self.0.state)
            .spares
            .iter()
            .map(|slot| format!("spare-{slot}"))
            .collect();
        for space in survey.spaces.into_keys() {
            let of_wanted = SandboxId::parse(&space).is_ok_and(|id| wanted.contains_key(&id));
            if !of_wanted && !spares.contains(&space) {
                let remove = move |links: &mut Links| links.remove_space(&space);
                self.0
                    .links
                    .run("removing a namespace", LINKS_DEADLINE, remove)
                    .await?;
            }
        }
        Ok(gone)
    }

    async fn report(&self, id: SandboxId) -> Result<NetReport, NetError> {
        let read = move |rules: &mut Enforcer| rules.report(id, DENIED);
        self.0
            .rules
            .run("reading what is in force", RULES_DEADLINE, read)
            .await
    }

    async fn denied(&self) -> Result<BTreeMap<PoolName, u64>, NetError> {
        let read = |rules: &mut Enforcer| rules.denied();
        self.0
            .rules
            .run("reading what was denied", RULES_DEADLINE, read)
            .await
    }
}

/// The counter of what a slot was denied.
pub(super) fn counter(slot: u32) -> String {
    name("denied", slot)
}
