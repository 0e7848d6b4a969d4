//! Which slot has which addresses, link and names: pure. A slot is one interface's place: everything about it follows from
//! its number, so what the kernel shows tells the number, and nothing needs to be written down.

use super::rtnl::Mac;
use super::rules::{address, number, span};
use super::settings::NetSettings;
use crate::machine::network::Cidr;
use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;

/// Slots of a node, at most: as many as claims.
pub(super) const SLOTS: u32 = 16_384;
/// Addresses of a range before the first slot's: the network, the gateway, the node's end.
const RESERVED: u32 = 3;
/// A link of a slot, in the router's namespace: `sb` and the slot's number.
const LINK: &str = "sb";

/// Addresses and names of this node's slots.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub range4: Cidr,
    pub range6: Cidr,
    slots: u32,
}

impl Plan {
    /// `None`: a range of the wrong family or too small for a single sandbox.
    pub(super) fn of(settings: &NetSettings) -> Option<Self> {
        let (range4, range6) = (settings.range4, settings.range6);
        if !range4.address.is_ipv4() || !range6.address.is_ipv6() {
            return None;
        }
        if !(8..=28).contains(&range4.length) || !(48..=124).contains(&range6.length) {
            return None;
        }
        let size = |cidr| {
            let (first, last) = span(cidr);
            // The last one is IPv4's broadcast.
            u32::try_from(last - first).unwrap_or(u32::MAX)
        };
        let slots = size(range4).min(size(range6)).saturating_sub(RESERVED);
        (slots > 0).then_some(Self {
            range4,
            range6,
            slots: slots.min(SLOTS),
        })
    }

    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    fn nth(range: Cidr, at: u32) -> IpAddr {
        address(range.address.is_ipv4(), span(range).0 + u128::from(at))
    }

    fn both(&self, at: u32) -> [IpAddr; 2] {
        [Self::nth(self.range4, at), Self::nth(self.range6, at)]
    }

    /// Gateway and resolver of every sandbox.
    pub(super) fn gateway(&self) -> [IpAddr; 2] {
        self.both(1)
    }

    /// The node's end of the link between node and router.
    pub(super) fn node(&self) -> [IpAddr; 2] {
        self.both(2)
    }

    /// Addresses of a slot, IPv4 first.
    pub(super) fn addresses(&self, slot: u32) -> [IpAddr; 2] {
        self.both(slot + RESERVED)
    }

    /// Whose address it is.
    pub(super) fn slot_of(&self, address: IpAddr) -> Option<u32> {
        let range = if address.is_ipv4() {
            self.range4
        } else {
            self.range6
        };
        let at = number(address).checked_sub(span(range).0)?;
        let slot = u32::try_from(at).ok()?.checked_sub(RESERVED)?;
        (slot < self.slots).then_some(slot)
    }
}

/// The link of a slot in the router's namespace.
pub(super) fn link_name(slot: u32) -> String {
    format!("{LINK}{slot}")
}

/// The slot of a link; `None`: not a slot's.
pub(super) fn slot_of_link(name: &str) -> Option<u32> {
    let digits = name.strip_prefix(LINK)?;
    let slot = digits.parse().ok()?;
    (link_name(slot) == name).then_some(slot)
}

/// Locally administered, `he`: the router's end of a slot's link, or the sandbox's.
pub(super) fn mac(slot: u32, inside: bool) -> Mac {
    let [a, b, c, d] = slot.to_be_bytes();
    [0x02, if inside { 0x68 } else { 0x65 }, a, b, c, d]
}

/// Ends of the link between node and router.
pub(super) fn uplink_mac(node: bool) -> Mac {
    [0x02, 0x72, 0, 0, 0, u8::from(node)]
}

/// Numbers that are free. One that was freed is given out again as late as possible.
#[derive(Debug)]
pub(super) struct FreeSlots {
    /// Never used so far: from here on.
    fresh: u32,
    slots: u32,
    freed: VecDeque<u32>,
    /// Found in use below `fresh`, or used before it came that far.
    taken: BTreeSet<u32>,
}

impl FreeSlots {
    pub(super) fn new(slots: u32) -> Self {
        Self {
            fresh: 0,
            slots,
            freed: VecDeque::new(),
            taken: BTreeSet::new(),
        }
    }

    /// The number that was free for longest. `None`: all are in use.
    pub(super) fn take(&mut self) -> Option<u32> {
        while self.fresh < self.slots {
            let slot = self.fresh;
            self.fresh += 1;
            if self.taken.insert(slot) {
                return Some(slot);
            }
        }
        let slot = self.freed.pop_front()?;
        self.taken.insert(slot);
        Some(slot)
    }

    /// Takes this one, if it is free.
    pub(super) fn take_this(&mut self, slot: u32) -> bool {
        if slot >= self.slots || !self.taken.insert(slot) {
            return false;
        }
        self.freed.retain(|freed| *freed != slot);
        true
    }

    /// Nothing of it is left: verified.
    pub(super) fn free(&mut self, slot: u32) {
        if self.taken.remove(&slot) && slot < self.fresh {
            self.freed.push_back(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::ids::NodeTag;

    fn plan(length4: u8, length6: u8) -> Option<Plan> {
        let mut settings = NetSettings::new("/run/x".into(), NodeTag(1));
        settings.range4.length = length4;
        settings.range6.length = length6;
        Plan::of(&settings)
    }

    #[test]
    fn addresses_tell_their_slot() {
        let plan = plan(24, 64).unwrap();
        assert_eq!(plan.slots(), 252);
        assert_eq!(
            plan.gateway().map(|a| a.to_string()),
            ["198.18.0.1", "fd68:6561:7274:6800::1"]
        );
        for slot in [0, 7, 251] {
            for address in plan.addresses(slot) {
                assert_eq!(plan.slot_of(address), Some(slot));
            }
        }
        for other in plan.gateway().into_iter().chain(plan.node()) {
            assert_eq!(plan.slot_of(other), None);
        }
        assert_eq!(plan.slot_of(plan.addresses(252)[0]), None);
        assert_eq!(plan.slot_of("1.1.1.1".parse().unwrap()), None);
    }

    #[test]
    fn a_range_without_room_is_refused() {
        assert!(plan(29, 64).is_none());
        assert!(plan(24, 125).is_none());
        assert_eq!(plan(8, 48).unwrap().slots(), SLOTS);
    }

    #[test]
    fn links_tell_their_slot() {
        assert_eq!(slot_of_link(&link_name(16_383)), Some(16_383));
        for other in ["sb", "sb01", "sbx", "uplink", "lo", "sb-1", "sb+1"] {
            assert_eq!(slot_of_link(other), None, "{other}");
        }
        assert!(link_name(SLOTS).len() <= 15);
    }

    #[test]
    fn macs_are_unicast_and_differ() {
        let all = [
            mac(0, true),
            mac(0, false),
            mac(1, true),
            mac(16_000, true),
            uplink_mac(true),
            uplink_mac(false),
        ];
        let different: BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        assert!(all.iter().all(|mac| mac[0] & 3 == 2));
    }

    #[test]
    fn a_freed_number_comes_last() {
        let mut free = FreeSlots::new(4);
        assert!(free.take_this(1));
        assert!(!free.take_this(1) && !free.take_this(4));
        assert_eq!([free.take(), free.take()], [Some(0), Some(2)]);
        free.free(0);
        free.free(0);
        free.free(1);
        assert_eq!(free.take(), Some(3));
        assert_eq!(
            [free.take(), free.take(), free.take()],
            [Some(0), Some(1), None]
        );
        free.free(2);
        assert!(free.take_this(2));
        assert_eq!(free.take(), None);
    }
}
