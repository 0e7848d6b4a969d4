//! Making the kernel match what is wanted: sandboxes that an earlier hearthd has left are adopted with their flows, and what
//! nobody wants is removed.

use super::NetError;
use super::Wanted;
use super::enforce::{Enforcer, lock};
use super::links::{Links, Survey};
use super::linux::{LINKS_DEADLINE, LinuxNetwork, SURVEY_DEADLINE, compile};
use super::rules::Compiled;
use super::state::{Found, Holder};
use super::table::Place;
use crate::machine::ids::SandboxId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What is to be done.
#[derive(Default)]
struct Work {
    /// Wanted, and their interface is not whole.
    gone: Vec<SandboxId>,
    /// Wanted, and left by an earlier hearthd.
    adopted: Vec<(Found, Wanted, Arc<Compiled>)>,
    /// Wanted, and known.
    known: Vec<(Wanted, Arc<Compiled>)>,
    /// Slots that stay: of those, and spares.
    kept: BTreeSet<u32>,
}

impl LinuxNetwork {
    /// [`super::Network::reconcile`], with everything else held back.
    pub(super) async fn match_kernel(
        &self,
        wanted: Vec<Wanted>,
    ) -> Result<Vec<SandboxId>, NetError> {
        let links = &self.0.links;
        let look = |links: &mut Links| Ok((links.survey()?, links.node_addresses()?));
        let looked = links
            .run("looking for links", SURVEY_DEADLINE, look)
            .await?;
        let (survey, addresses) = looked;
        let work = self.plan_work(wanted, &survey)?;
        let unwanted = self.unwanted(&survey, &work.kept);
        let first = !self.is_reconciled();
        let Work {
            gone,
            adopted,
            known,
            ..
        } = work;
        let mut names: BTreeSet<String> = adopted
            .iter()
            .map(|(_, wanted, _)| wanted.id.to_string())
            .collect();
        names.extend(known.iter().map(|(wanted, _)| wanted.id.to_string()));
        let write = move |rules: &mut Enforcer| {
            for (found, wanted, compiled) in adopted {
                rules.adopt_found(found, wanted, compiled);
            }
            if first {
                rules.rebuild()?;
            }
            for (wanted, compiled) in known {
                rules.apply_wanted(&wanted, &compiled)?;
            }
            rules.check(addresses).map(|_| ())
        };
        self.0
            .rules
            .run("reconciling rules", SURVEY_DEADLINE, write)
            .await?;
        self.0.reconciled.store(true, Ordering::Release);
        for (slot, id) in unwanted {
            self.remove(slot, id).await?;
        }
        names.extend(
            lock(&self.0.state)
                .spares
                .iter()
                .map(|slot| format!("spare-{slot}")),
        );
        for space in survey
            .spaces
            .into_keys()
            .filter(|space| !names.contains(space))
        {
            let remove = move |links: &mut Links| links.remove_space(&space);
            links
                .run("removing a namespace", LINKS_DEADLINE, remove)
                .await?;
        }
        Ok(gone)
    }

    fn plan_work(&self, wanted: Vec<Wanted>, survey: &Survey) -> Result<Work, NetError> {
        let mut compiled = Vec::new();
        for wanted in wanted {
            let policy = compile(&wanted.policy)?;
            compiled.push((wanted, policy));
        }
        // Whole: the link is there and carries the id, and the namespace is bound under the id.
        let whole = |id: SandboxId, place: &Place| {
            survey.links.get(&place.slot) == Some(&(place.link, Some(id)))
                && survey.spaces.get(&id.to_string()) == Some(&true)
        };
        let spare = |slot: &&u32| {
            survey.links.get(*slot).is_some_and(|(_, id)| id.is_none())
                && survey.spaces.get(&format!("spare-{slot}")) == Some(&true)
        };
        let state = lock(&self.0.state);
        let mut work = Work::default();
        for (wanted, policy) in compiled {
            let place = state
                .place(wanted.id)
                .filter(|place| whole(wanted.id, place));
            let Some(place) = place else {
                work.gone.push(wanted.id);
                continue;
            };
            work.kept.insert(place.slot);
            match state.found.get(&wanted.id).cloned() {
                Some(found) => work.adopted.push((found, wanted, policy)),
                None => work.known.push((wanted, policy)),
            }
        }
        work.kept.extend(state.spares.iter().filter(spare));
        Ok(work)
    }

    /// Slots that the kernel shows or that are known here, and that nobody wants.
    fn unwanted(&self, survey: &Survey, kept: &BTreeSet<u32>) -> BTreeMap<u32, Option<SandboxId>> {
        let mut state = lock(&self.0.state);
        let shown = survey.links.iter().map(|(slot, (_, id))| (*slot, *id));
        let mut unwanted: BTreeMap<u32, Option<SandboxId>> = shown.collect();
        unwanted.extend(state.by_id.iter().map(|(id, slot)| (*slot, Some(*id))));
        unwanted.extend(state.debris.iter().map(|slot| (*slot, None)));
        unwanted.extend(state.spares.iter().map(|slot| (*slot, None)));
        unwanted.retain(|slot, _| !kept.contains(slot));
        for slot in unwanted.keys() {
            state.free.take_this(*slot);
        }
        unwanted
    }
}

impl Enforcer {
    fn adopt_found(&mut self, found: Found, wanted: Wanted, compiled: Arc<Compiled>) {
        let holder = Holder {
            id: wanted.id,
            pool: wanted.pool,
            policy: wanted.policy,
            pins: found.pins.under(&compiled),
            compiled,
        };
        self.adopt(found.place, holder, found.in_force);
    }

    fn apply_wanted(&mut self, wanted: &Wanted, compiled: &Arc<Compiled>) -> Result<(), NetError> {
        {
            let mut state = lock(&self.state);
            let slot = state.by_id.get(&wanted.id).copied();
            let slot = slot.and_then(|slot| state.slots.get_mut(&slot));
            if let Some(holder) = slot.and_then(|slot| slot.holder.as_mut()) {
                holder.pool = wanted.pool.clone();
            }
        }
        self.apply(wanted.id, &wanted.policy, compiled)
    }
}

/// Notes what an earlier hearthd has left. Nothing is changed: that is `reconcile`'s.
pub(super) fn find(enforcer: &mut Enforcer, survey: &Survey) {
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
