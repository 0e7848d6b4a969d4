//! The thread that writes rules. It alone changes marks and policies, in the kernel and in what the adapter knows, so the
//! two agree also where a caller has gone meanwhile.

use super::NetError;
use super::conntrack;
use super::netlink::Refusal;
use super::nft::{Batch, Nft};
use super::plan::Plan;
use super::router;
use super::rules::{Compiled, pinned};
use super::settings::NetSettings;
use super::state::{Holder, Pins, Slot, State};
use super::table::{self, Place, Table, name};
use super::worker::refused;
use crate::machine::ids::SandboxId;
use crate::machine::network::NetworkPolicy;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

/// Rules of both namespaces.
pub(super) struct Enforcer {
    pub inner: Nft,
    pub node: Nft,
    pub table: Arc<Table>,
    pub settings: NetSettings,
    pub plan: Plan,
    pub state: Arc<Mutex<State>>,
    /// Number of the router's rules after our last transaction; `None`: they are to be made anew.
    expected: Option<u32>,
    node_expected: Option<u32>,
    /// The mark that was given last.
    mark: u32,
}

/// Locks; a panic elsewhere does not make the state wrong.
pub(super) fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(what: &'static str) -> impl Fn(Refusal) -> NetError {
    move |refusal| {
        refused(
            what,
            format!("{} at message {}", refusal.errno, refusal.message),
        )
    }
}

impl Enforcer {
    pub(super) fn new(
        inner: Nft,
        node: Nft,
        table: Arc<Table>,
        settings: NetSettings,
        plan: Plan,
        state: Arc<Mutex<State>>,
    ) -> Self {
        // Marks of earlier lives may still be on flows: begin somewhere else.
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seconds = seconds.map_or(1, |since| since.as_millis() % (1 << 31));
        Self {
            inner,
            node,
            table,
            settings,
            plan,
            state,
            expected: None,
            node_expected: None,
            mark: u32::try_from(seconds).unwrap_or(1),
        }
    }

    fn fresh_mark(&mut self) -> u32 {
        self.mark = self.mark.wrapping_add(1).max(1);
        self.mark
    }

    fn commit(&mut self, what: &'static str, batch: Batch) -> Result<(), NetError> {
        self.inner.commit(batch).map_err(failed(what))?;
        self.expected = self.expected.map(|number| number.wrapping_add(1).max(1));
        Ok(())
    }

    /// Commits; where the kernel refuses because somebody has changed our rules, makes them anew and tries once more.
    fn insist(
        &mut self,
        what: &'static str,
        batch: impl Fn(&Self) -> Batch,
    ) -> Result<(), NetError> {
        let first = batch(self);
        let refused = match self.commit(what, first) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if self.expected.is_some() && self.inner.generation().ok() == self.expected {
            return Err(refused);
        }
        self.rebuild()?;
        let second = batch(self);
        self.commit(what, second)
    }

    /// Makes a slot's chains and sets; it reaches nothing yet.
    pub(super) fn add(&mut self, place: Place) -> Result<(), NetError> {
        let slot = Slot {
            place,
            in_table: true,
            mark: None,
            holder: None,
            denied_before: 0,
        };
        let add = |this: &Self| {
            let mut batch = this.table.batch();
            this.table.add_slot(&mut batch, place);
            batch
        };
        self.insist("making a sandbox's rules", add)?;
        lock(&self.state).slots.insert(place.slot, slot);
        Ok(())
    }

    /// Puts a policy in force: one transaction. The same as before: nothing.
    pub(super) fn apply(
        &mut self,
        id: SandboxId,
        policy: &NetworkPolicy,
        compiled: &Arc<Compiled>,
    ) -> Result<(), NetError> {
        let (place, before, pins) = {
            let state = lock(&self.state);
            let slot = state.by_id.get(&id).and_then(|slot| state.slots.get(slot));
            let slot = slot
                .filter(|slot| slot.in_table)
                .ok_or(NetError::NoInterface)?;
            let holder = slot.holder.as_ref().ok_or(NetError::NoInterface)?;
            if slot.mark.is_some() && holder.compiled == *compiled {
                return Ok(());
            }
            (slot.place, slot.mark, holder.pins.under(compiled))
        };
        let mark = self.fresh_mark();
        let apply = |this: &Self, before| {
            let mut batch = this.table.batch();
            this.table.policy(&mut batch, place, compiled, before, mark);
            put_pins(&mut batch, place.slot, compiled, &pins);
            batch
        };
        let done = self.insist("putting a policy in force", |this| apply(this, before));
        done?;
        let mut state = lock(&self.state);
        if let Some(slot) = state.slots.get_mut(&place.slot) {
            slot.mark = Some(mark);
            if let Some(holder) = &mut slot.holder {
                holder.policy = policy.clone();
                holder.compiled = Arc::clone(compiled);
                holder.pins = pins;
            }
        }
        Ok(())
    }

    /// Opens what a name led to, until then.
    pub(super) fn pin(
        &mut self,
        id: SandboxId,
        name: &str,
        answers: &[(IpAddr, Instant)],
    ) -> Result<(), NetError> {
        let now = Instant::now();
        let (place, compiled, pins) = {
            let state = lock(&self.state);
            let slot = state.by_id.get(&id).and_then(|slot| state.slots.get(slot));
            let slot = slot
                .filter(|slot| slot.in_table)
                .ok_or(NetError::NoInterface)?;
            let holder = slot.holder.as_ref().ok_or(NetError::NoInterface)?;
            let mut pins = holder.pins.clone();
            let mut changed = false;
            for (address, until) in answers {
                changed |= pins.add(*address, name, *until);
            }
            if !changed {
                return Ok(());
            }
            pins.tidy(now);
            // The policy may have changed since the question was allowed.
            (
                slot.place,
                Arc::clone(&holder.compiled),
                pins.under(&holder.compiled),
            )
        };
        self.insist("opening what a name leads to", |this| {
            let mut batch = this.table.batch();
            put_pins(&mut batch, place.slot, &compiled, &pins);
            batch
        })?;
        let mut state = lock(&self.state);
        let slot = state.slots.get_mut(&place.slot);
        if let Some(holder) = slot.and_then(|slot| slot.holder.as_mut()) {
            holder.pins = pins;
        }
        Ok(())
    }

    /// Takes a slot's rules away; its packets go nowhere from then on. What it was denied is added to its pool's.
    pub(super) fn delete(&mut self, slot: u32) -> Result<(), NetError> {
        const WHAT: &str = "deleting a sandbox's rules";
        let (place, mark) = {
            let state = lock(&self.state);
            match state.slots.get(&slot) {
                Some(slot) if slot.in_table => (slot.place, slot.mark),
                _ => return Ok(()),
            }
        };
        let denied = self.inner.counter(self.table.name(), &name("denied", slot));
        let mut batch = self.table.batch();
        self.table.delete_slot(&mut batch, place, mark);
        let deleted = self.commit(WHAT, batch);
        {
            let mut state = lock(&self.state);
            let Some(known) = state.slots.get_mut(&slot) else {
                return Ok(());
            };
            let denied = denied.unwrap_or(0) + std::mem::take(&mut known.denied_before);
            let pool = known.holder.as_ref().map(|holder| holder.pool.clone());
            known.in_table = false;
            known.mark = None;
            if let Some(pool) = pool {
                *state.denied_gone.entry(pool).or_default() += denied;
            }
        }
        // Somebody had changed our rules: without this slot, then.
        deleted.or_else(|_| self.rebuild())
    }

    /// Makes all rules of the router anew, in one transaction: policies in force stay so, with their flows.
    pub(super) fn rebuild(&mut self) -> Result<(), NetError> {
        let counters = self.inner.counters(self.table.name()).unwrap_or_default();
        let counters: BTreeMap<String, u64> = counters.into_iter().collect();
        let now = Instant::now();
        let mut batch = self.table.batch();
        self.table.rebuild(&mut batch);
        {
            let state = lock(&self.state);
            self.table.node_addresses(&mut batch, &state.node_addresses);
            for slot in state.slots.values().filter(|slot| slot.in_table) {
                self.table.add_slot(&mut batch, slot.place);
                if let (Some(holder), Some(mark)) = (&slot.holder, slot.mark) {
                    self.table
                        .policy(&mut batch, slot.place, &holder.compiled, None, mark);
                    let mut pins = holder.pins.clone();
                    pins.tidy(now);
                    put_pins(&mut batch, slot.place.slot, &holder.compiled, &pins);
                }
            }
        }
        self.expected = None;
        self.commit("making all rules anew", batch)?;
        let mut state = lock(&self.state);
        for slot in state.slots.values_mut().filter(|slot| slot.in_table) {
            let counted = counters.get(&name("denied", slot.place.slot));
            slot.denied_before += counted.copied().unwrap_or(0);
        }
        drop(state);
        self.expected = self.inner.generation().ok();
        Ok(())
    }

    /// Makes the node's rules anew.
    pub(super) fn rebuild_node(&mut self) -> Result<(), NetError> {
        router::node_rules(&self.settings, &self.plan, &mut self.node)?;
        self.node_expected = self.node.generation().ok();
        Ok(())
    }

    /// Has anybody changed rules behind our back? Then ours are made anew. True: the router's were.
    pub(super) fn check(&mut self, node_addresses: Vec<IpAddr>) -> Result<bool, NetError> {
        if self.node_expected.is_none() || self.node.generation().ok() != self.node_expected {
            self.rebuild_node()?;
        }
        let changed = {
            let mut state = lock(&self.state);
            let changed = state.node_addresses != node_addresses;
            state.node_addresses.clone_from(&node_addresses);
            changed
        };
        if self.expected.is_none() || self.inner.generation().ok() != self.expected {
            self.rebuild()?;
            return Ok(true);
        }
        if changed {
            let mut batch = self.table.batch();
            self.table.node_addresses(&mut batch, &node_addresses);
            self.commit("writing the node's addresses", batch)?;
        }
        Ok(false)
    }

    /// Forgets the flows of a slot's addresses, in both namespaces.
    pub(super) fn forget_flows(&mut self, slot: u32) -> Result<(), NetError> {
        for address in self.plan.addresses(slot) {
            for rules in [&mut self.inner, &mut self.node] {
                conntrack::forget(rules.socket(), address)
                    .map_err(failed("forgetting a sandbox's flows"))?;
            }
        }
        Ok(())
    }

    /// Marks of the policies in force, by link, each with its policy's digest: as the kernel has them.
    pub(super) fn marks(&mut self) -> BTreeMap<u32, (u32, Vec<u8>)> {
        let shown = self.inner.elements(self.table.name(), "marks");
        let read = |shown: super::nft::Shown| {
            let link = super::netlink::ne32(&shown.key)?;
            Some((link, (shown.mark?, shown.note)))
        };
        shown
            .unwrap_or_default()
            .into_iter()
            .filter_map(read)
            .collect()
    }

    /// What names have opened for a slot: as the kernel has it.
    pub(super) fn read_pins(&mut self, slot: u32) -> Pins {
        let now = Instant::now();
        let mut pins = Pins::default();
        for (set, length) in [("pin4", 4), ("pin6", 16)] {
            let shown = self.inner.elements(self.table.name(), &name(set, slot));
            for element in shown.unwrap_or_default() {
                let address = element.key.get(..length).and_then(table::read_address);
                let (Some(address), Some(left)) = (address, element.expires) else {
                    continue;
                };
                for name in String::from_utf8_lossy(&element.note).split(' ') {
                    pins.add(address, name, now + left);
                }
            }
        }
        pins
    }

    /// Puts a holder and the mark of its policy in place; for slots that `rebuild` will write.
    pub(super) fn adopt(&mut self, place: Place, holder: Holder, in_force: Option<(u32, Vec<u8>)>) {
        let same = in_force.filter(|(_, digest)| *digest == holder.compiled.digest);
        let mark = same.map_or_else(|| self.fresh_mark(), |(mark, _)| mark);
        let slot = Slot {
            place,
            in_table: true,
            mark: Some(mark),
            holder: None,
            denied_before: 0,
        };
        let mut state = lock(&self.state);
        state.found.remove(&holder.id);
        state.slots.insert(place.slot, slot);
        state.hold(place.slot, holder);
    }
}

fn put_pins(batch: &mut Batch, slot: u32, compiled: &Compiled, pins: &Pins) {
    let now = Instant::now();
    let reaches = pinned(&compiled.allow_names, &pins.names());
    table::pin(batch, slot, &reaches, &|address| pins.life(address, now));
}
