//! What is in force, and what was denied: read from the kernel.

use super::enforce::{Enforcer, lock};
use super::netlink::ne32;
use super::nft::Shown;
use super::plan::link_name;
use super::table::{KNOCKS_FOR, name, read_address};
use super::worker::refused;
use super::{NetError, NetReport};
use crate::machine::ids::{PoolName, SandboxId};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

impl Enforcer {
    /// Of one sandbox, with at most `bound` denied destinations.
    ///
    /// # Errors
    /// The kernel does not have the policy that it should have: somebody has taken it away, and it is not back yet.
    pub(super) fn report(&mut self, id: SandboxId, bound: usize) -> Result<NetReport, NetError> {
        const WHAT: &str = "reading what is in force";
        let (slot, holder) = {
            let state = lock(&self.state);
            let slot = state.by_id.get(&id).and_then(|slot| state.slots.get(slot));
            let slot = slot.ok_or(NetError::NoInterface)?;
            let holder = slot.holder.clone().ok_or(NetError::NoInterface)?;
            (slot.clone(), holder)
        };
        let marks = self.marks();
        let in_force = marks.get(&slot.place.link);
        if in_force.map(|(mark, digest)| (Some(*mark), digest.as_slice()))
            != Some((slot.mark, &holder.compiled.digest[..]))
        {
            return Err(refused(WHAT, "the kernel does not have the policy"));
        }
        let counted = self
            .inner
            .counter(self.table.name(), &counter(slot.place.slot));
        let counted = counted.map_err(|refusal| refused(WHAT, refusal.errno))?;
        Ok(NetReport {
            interface: link_name(slot.place.slot),
            addresses: self.plan.addresses(slot.place.slot).to_vec(),
            policy: holder.policy,
            pinned: holder.pins.list(Instant::now()),
            denied_packets: slot.denied_before + counted,
            denied: self.destinations(slot.place.slot, bound),
        })
    }

    fn destinations(&mut self, slot: u32, bound: usize) -> Vec<(String, IpAddr, u16, u64)> {
        let mut seen: Vec<(Duration, Shown)> = Vec::new();
        for set in ["seen4", "seen6"] {
            let shown = self.inner.elements(self.table.name(), &name(set, slot));
            let shown = shown.unwrap_or_default().into_iter();
            seen.extend(shown.map(|shown| (shown.expires.unwrap_or_default(), shown)));
        }
        // What stays longest was seen last.
        seen.sort_by_key(|(left, _)| std::cmp::Reverse(*left));
        let read = |(_, shown): (Duration, Shown)| {
            // protocol, address, port, each in pieces of four.
            let (protocol, rest) = shown.key.split_at_checked(4)?;
            let (address, port) = rest.split_at_checked(rest.len().checked_sub(4)?)?;
            let protocol = match protocol[0] {
                1 | 58 => "icmp".to_owned(),
                6 => "tcp".to_owned(),
                17 => "udp".to_owned(),
                other => other.to_string(),
            };
            let port = if protocol == "icmp" {
                0
            } else {
                u16::from_be_bytes([port[0], port[1]])
            };
            Some((protocol, read_address(address)?, port, shown.packets))
        };
        seen.into_iter().filter_map(read).take(bound).collect()
    }

    /// Who was knocked for, and how long ago.
    pub(super) fn knocks(&mut self) -> Result<BTreeMap<SandboxId, Duration>, NetError> {
        let knocks = self.inner.elements(self.table.name(), "knocks");
        let knocks = knocks.map_err(|refusal| refused("reading knocks", refusal.errno))?;
        if knocks.is_empty() {
            return Ok(BTreeMap::new());
        }
        let state = lock(&self.state);
        let holders = state.slots.values().filter_map(|slot| {
            let holder = slot.holder.as_ref()?;
            Some((slot.place.link, holder.id))
        });
        let holders: BTreeMap<u32, SandboxId> = holders.collect();
        let of = knocks.into_iter().filter_map(|knock| {
            let id = holders.get(&ne32(&knock.key)?)?;
            let ago = KNOCKS_FOR.saturating_sub(knock.expires?);
            Some((*id, ago))
        });
        Ok(of.collect())
    }

    /// Packets denied per pool, since hearth counts.
    pub(super) fn denied(&mut self) -> Result<BTreeMap<PoolName, u64>, NetError> {
        let counters = self.inner.counters(self.table.name());
        let counters =
            counters.map_err(|refusal| refused("reading what was denied", refusal.errno))?;
        let counters: BTreeMap<String, u64> = counters.into_iter().collect();
        let state = lock(&self.state);
        let mut denied = state.denied_gone.clone();
        for slot in state.slots.values() {
            if let Some(holder) = &slot.holder {
                let counted = counters
                    .get(&counter(slot.place.slot))
                    .copied()
                    .unwrap_or(0);
                *denied.entry(holder.pool.clone()).or_default() += slot.denied_before + counted;
            }
        }
        Ok(denied)
    }
}

/// The counter of what a slot was denied.
fn counter(slot: u32) -> String {
    name("denied", slot)
}
