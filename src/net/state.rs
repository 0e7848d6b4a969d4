//! What the adapter knows of its slots. The kernel has the same: this is rebuilt from it at start.

use super::plan::{FreeSlots, Plan};
use super::rules::{Compiled, matches};
use super::table::Place;
use crate::machine::ids::{PoolName, SandboxId};
use crate::machine::network::NetworkPolicy;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Addresses that names have opened for one sandbox, at most; what ends first makes room.
pub(super) const PINS: usize = 256;
/// Names remembered for one address, at most.
const NAMES_OF_ADDRESS: usize = 8;

/// What names have opened: by address, each name with the end of its answer's life.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pins(BTreeMap<IpAddr, BTreeMap<String, Instant>>);

impl Pins {
    /// Notes an answer. Does anything change that the kernel should know?
    pub(super) fn add(&mut self, address: IpAddr, name: &str, until: Instant) -> bool {
        let names = self.0.entry(address).or_default();
        let before = names.get(name).copied();
        if before.is_some_and(|before| before >= until) {
            return false;
        }
        if before.is_none() && names.len() >= NAMES_OF_ADDRESS {
            return false;
        }
        names.insert(name.to_owned(), until);
        true
    }

    /// Forgets what has ended, and the first to end where there are too many.
    pub(super) fn tidy(&mut self, now: Instant) {
        for names in self.0.values_mut() {
            names.retain(|_, until| *until > now);
        }
        self.0.retain(|_, names| !names.is_empty());
        while self.0.len() > PINS {
            let first = self.0.iter().min_by_key(|(_, names)| names.values().max());
            let Some(address) = first.map(|(address, _)| *address) else {
                return;
            };
            self.0.remove(&address);
        }
    }

    /// Keeps what the policy still names and does not deny.
    pub(super) fn under(&self, policy: &Compiled) -> Self {
        let named = |name: &String| {
            policy
                .allow_names
                .iter()
                .any(|rule| matches(&rule.pattern, name))
                && !policy
                    .deny_names
                    .iter()
                    .any(|rule| matches(&rule.pattern, name))
        };
        let mut kept = self.clone();
        for names in kept.0.values_mut() {
            names.retain(|name, _| named(name));
        }
        kept.0.retain(|_, names| !names.is_empty());
        kept
    }

    /// Addresses with their names.
    pub(super) fn names(&self) -> BTreeMap<IpAddr, BTreeSet<String>> {
        let names = |names: &BTreeMap<String, Instant>| names.keys().cloned().collect();
        self.0
            .iter()
            .map(|(address, of)| (*address, names(of)))
            .collect()
    }

    /// How long an address stays open, and its names as the kernel keeps them beside it.
    pub(super) fn life(&self, address: IpAddr, now: Instant) -> (Duration, Vec<u8>) {
        let names = self.0.get(&address);
        let until = names.and_then(|names| names.values().max());
        let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let mut note = String::new();
        for name in names.into_iter().flat_map(BTreeMap::keys) {
            if note.len() + name.len() < 255 {
                if !note.is_empty() {
                    note.push(' ');
                }
                note.push_str(name);
            }
        }
        // Zero would be for ever.
        (left.max(Duration::from_millis(1)), note.into_bytes())
    }

    /// Every pin: name, address, seconds left.
    pub(super) fn list(&self, now: Instant) -> Vec<(String, IpAddr, u64)> {
        let pins = self.0.iter().flat_map(|(address, names)| {
            names.iter().map(move |(name, until)| {
                let left = until.saturating_duration_since(now);
                (name.clone(), *address, left.as_secs())
            })
        });
        pins.filter(|(_, _, left)| *left > 0).collect()
    }
}

/// Who has a slot.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    pub id: SandboxId,
    pub pool: PoolName,
    pub policy: NetworkPolicy,
    pub compiled: Arc<Compiled>,
    pub pins: Pins,
}

/// One slot in use.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub place: Place,
    /// Its chains and sets are there.
    pub in_table: bool,
    /// Of the policy in force; `None`: no policy was ever, it reaches nothing.
    pub mark: Option<u32>,
    pub holder: Option<Holder>,
    /// Packets denied before its counter was made anew.
    pub denied_before: u64,
}

/// A sandbox's slot found at start, before anybody has said who wants it.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub place: Place,
    /// Mark of the policy in force, and the policy's digest.
    pub in_force: Option<(u32, Vec<u8>)>,
    pub pins: Pins,
}

/// All of it. Behind one lock, held only for moments.
#[derive(Debug)]
pub(super) struct State {
    pub free: FreeSlots,
    pub slots: BTreeMap<u32, Slot>,
    pub by_id: BTreeMap<SandboxId, u32>,
    pub found: BTreeMap<SandboxId, Found>,
    pub spares: VecDeque<u32>,
    /// Slots being made, or whose removal failed: nobody's, to be removed by the keeper once they are not being made.
    pub debris: BTreeSet<u32>,
    /// Packets denied to sandboxes that have gone.
    pub denied_gone: BTreeMap<PoolName, u64>,
    /// The node's own addresses as the kernel's rules have them.
    pub node_addresses: Vec<IpAddr>,
}

impl State {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            free: FreeSlots::new(plan.slots()),
            slots: BTreeMap::new(),
            by_id: BTreeMap::new(),
            found: BTreeMap::new(),
            spares: VecDeque::new(),
            debris: BTreeSet::new(),
            denied_gone: BTreeMap::new(),
            node_addresses: Vec::new(),
        }
    }

    /// The place of a sandbox.
    pub(super) fn place(&self, id: SandboxId) -> Option<Place> {
        let slot = self.by_id.get(&id).and_then(|slot| self.slots.get(slot));
        let found = self.found.get(&id);
        slot.map(|slot| slot.place)
            .or(found.map(|found| found.place))
    }

    /// Gives a slot to a sandbox.
    pub(super) fn hold(&mut self, slot: u32, holder: Holder) {
        if let Some(slot) = self.slots.get_mut(&slot) {
            self.by_id.insert(holder.id, slot.place.slot);
            slot.holder = Some(holder);
        }
    }

    /// Nothing of the slot is left in the kernel.
    pub(super) fn forget(&mut self, slot: u32) {
        let gone = self.slots.remove(&slot);
        if let Some(holder) = gone.and_then(|slot| slot.holder) {
            self.by_id.remove(&holder.id);
        }
        self.found.retain(|_, found| found.place.slot != slot);
        self.spares.retain(|spare| *spare != slot);
        self.debris.remove(&slot);
        self.free.free(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::rules::NameRule;

    fn address(low: u8) -> IpAddr {
        [1, 1, 1, low].into()
    }

    #[test]
    fn a_pin_lives_as_long_as_its_longest_answer() {
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        let mut pins = Pins::default();
        assert!(pins.add(address(1), "a", later(10)));
        assert!(!pins.add(address(1), "a", later(5)));
        assert!(pins.add(address(1), "b", later(20)));
        assert_eq!(
            pins.life(address(1), now),
            (Duration::from_secs(20), b"a b".to_vec())
        );
        pins.tidy(later(15));
        assert_eq!(pins.list(later(15)), [("b".to_owned(), address(1), 5)]);
        pins.tidy(later(20));
        assert_eq!(pins, Pins::default());
        assert!(pins.life(address(1), now).0 > Duration::ZERO);
    }

    #[test]
    fn pins_are_bounded() {
        let now = Instant::now();
        let mut pins = Pins::default();
        for at in 0..=u8::MAX {
            pins.add(
                address(at),
                "a",
                now + Duration::from_secs(1 + u64::from(at)),
            );
        }
        pins.add([2, 2, 2, 2].into(), "a", now + Duration::from_secs(1000));
        pins.tidy(now);
        assert_eq!(pins.names().len(), PINS);
        assert!(!pins.names().contains_key(&address(0)));
        for at in 0..20 {
            pins.add(address(9), &format!("n{at}"), now + Duration::from_secs(9));
        }
        assert_eq!(pins.names()[&address(9)].len(), NAMES_OF_ADDRESS);
    }

    #[test]
    fn a_new_policy_keeps_what_it_still_names() {
        let now = Instant::now() + Duration::from_secs(60);
        let mut pins = Pins::default();
        pins.add(address(1), "a.example", now);
        pins.add(address(1), "b.example", now);
        pins.add(address(2), "c.other", now);
        let rule = |pattern: &str| NameRule {
            pattern: pattern.to_owned(),
            protocol: None,
            ports: Vec::new(),
        };
        let policy = Compiled {
            allow_names: vec![rule("*.example"), rule("c.other")],
            deny_names: vec![rule("b.example"), rule("*.other")],
            ..Compiled::default()
        };
        let kept = pins.under(&policy).names();
        let kept: Vec<_> = kept.iter().map(|(a, names)| (*a, names.len())).collect();
        assert_eq!(kept, [(address(1), 1)]);
    }
}
