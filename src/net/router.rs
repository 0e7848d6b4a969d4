//! The router: a namespace of hearth's own between sandboxes and node. Every sandbox's link ends there, the policy is
//! enforced there, and from there one link leads to the node.
//!
//! ```text
//! sandbox's netns          router's netns (<run>/netns/router)        node's netns
//!   eth0 ─────────── sbN ─┐  guard, policy, resolver
//!   eth0 ─────────── sbM ─┴───────────────────── uplink ──── hearth<tag> ── masquerade ── the node's links
//! ```
//! Why not the node's own namespace: whoever flushes the node's rules (firewalls and network plugins do) opens nothing; the
//! sandboxes' flows fill a table of conntrack of their own, and their neighbours and links are in nobody's way; marks and
//! routing rules can be used without asking who else does. Routing there needs the mark that only the guard gives: without
//! hearth's rules nothing is routed at all.

use super::NetError;
use super::nft::{Batch, Nft};
use super::node_side;
use super::plan::{Plan, uplink_mac};
use super::rtnl::{End, LOCAL, Link, MAIN, Requests, Route, Rtnl};
use super::settings::NetSettings;
use super::spaces::{self, sysctl};
use super::table::{PASSED, UPLINK};
use super::worker::refused;
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use tracing::warn;

/// Settings of the router's namespace.
const SETTINGS: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    // The guard checks sources, by link and MAC too.
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv6/conf/all/accept_redirects", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/default/accept_dad", "0"),
    // A refusal to a packet is routed as the packet was.
    ("ipv4/fwmark_reflect", "1"),
    ("ipv6/fwmark_reflect", "1"),
];
/// Rules that route in the router's namespace, with the kernel's own three taken away.
const RULES: [(u32, Option<u32>, u8); 4] = [
    (10, Some(PASSED), LOCAL),
    (11, Some(PASSED), MAIN),
    (12, None, LOCAL),
    (13, None, MAIN),
];
/// MTU where no uplink tells one.
const MTU: u32 = 1500;

/// Where a namespace is bound.
pub(super) fn directory(settings: &NetSettings) -> PathBuf {
    settings.run.join("netns")
}

/// The node's end of the link to the router.
pub(super) fn node_link(settings: &NetSettings) -> String {
    format!("hearth{}", settings.tag)
}

/// Both namespaces, opened.
pub(super) struct Router {
    pub node: Rtnl,
    pub inner: Rtnl,
    pub space: OwnedFd,
    /// Index of the router's link to the node.
    pub uplink: u32,
    /// Of every link that hearth makes.
    pub mtu: u32,
}

impl Router {
    /// Finds the router or makes it; may be repeated. In a thread of the node's namespace that is not tokio's.
    pub(super) fn open(settings: &NetSettings, plan: &Plan) -> Result<Self, NetError> {
        let directory = directory(settings);
        spaces::directory(&directory)
            .map_err(|error| refused("making the directory of namespaces", error))?;
        let path = directory.join("router");
        let found = spaces::find(&path)
            .map_err(|error| refused("opening the router's namespace", error))?;
        let space = match found {
            Some(space) => space,
            None => {
                spaces::make(&path, || ())
                    .map_err(|error| refused("making the router's namespace", error))?;
                let made = spaces::find(&path)
                    .map_err(|error| refused("opening the router's namespace", error))?;
                made.ok_or_else(|| refused("opening the router's namespace", "it is no namespace"))?
            }
        };
        let inside = spaces::enter(&space, || {
            for (name, value) in SETTINGS {
                sysctl(name, value).map_err(|error| {
                    refused(
                        "setting up the router's namespace",
                        format!("{name}: {error}"),
                    )
                })?;
            }
            Rtnl::open().map_err(|error| refused("opening rtnetlink", error))
        });
        let mut inner =
            inside.map_err(|error| refused("entering the router's namespace", error))??;
        let mut node = Rtnl::open().map_err(|error| refused("opening rtnetlink", error))?;
        let uplinks = uplinks(settings, &mut node)?;
        let mtu = uplinks
            .iter()
            .map(|link| link.mtu)
            .filter(|mtu| *mtu > 0)
            .min()
            .unwrap_or(MTU);
        routing_rules(&mut inner)?;
        let uplink = connect(settings, plan, &mut node, &mut inner, &space, mtu)?;
        let names: Vec<String> = uplinks.into_iter().map(|link| link.name).collect();
        forwarding(&directory, &node_link(settings), &names)?;
        Ok(Self {
            node,
            inner,
            space,
            uplink,
            mtu,
        })
    }

    /// Runs something in the router's namespace.
    pub(super) fn within<T>(&self, inside: impl FnOnce() -> T) -> Result<T, NetError> {
        spaces::enter(&self.space, inside)
            .map_err(|error| refused("entering the router's namespace", error))
    }

    /// The node's own addresses.
    pub(super) fn node_addresses(&mut self) -> Result<Vec<IpAddr>, NetError> {
        let found = self
            .node
            .addresses()
            .map_err(|refusal| refused("reading the node's addresses", refusal.errno))?;
        let found: BTreeSet<IpAddr> = found.into_iter().map(|(_, address)| address).collect();
        Ok(found.into_iter().collect())
    }
}

fn uplinks(settings: &NetSettings, node: &mut Rtnl) -> Result<Vec<Link>, NetError> {
    let failed =
        |refusal: super::netlink::Refusal| refused("looking for the node's uplinks", refusal.errno);
    let links = node.links().map_err(failed)?;
    let defaults = node.default_links().map_err(failed)?;
    let wanted = |link: &Link| match settings.uplinks.as_slice() {
        [] => defaults.contains(&link.index),
        named => named.contains(&link.name),
    };
    Ok(links.into_iter().filter(wanted).collect())
}

fn routing_rules(inner: &mut Rtnl) -> Result<(), NetError> {
    let failed = |refusal: super::netlink::Refusal| {
        refused("writing the router's routing rules", refusal.errno)
    };
    let found = inner.rules().map_err(failed)?;
    let ours = |rule: &(u8, u32, u8)| {
        RULES
            .iter()
            .any(|(priority, _, table)| (rule.1, rule.2) == (*priority, *table))
    };
    let complete = found.iter().filter(|rule| ours(rule)).count() == 2 * RULES.len();
    let mut requests = Requests::new();
    for rule in &found {
        if !complete || !ours(rule) {
            requests.delete_rule(rule.0, rule.1, rule.2);
        }
    }
    if !complete {
        for (priority, mark, table) in RULES {
            requests.rule(priority, mark, table);
        }
    }
    inner.send(requests).map_err(failed)
}

/// The link between node and router, with addresses, routes and neighbours on both sides.
fn connect(
    settings: &NetSettings,
    plan: &Plan,
    node: &mut Rtnl,
    inner: &mut Rtnl,
    space: &OwnedFd,
    mtu: u32,
) -> Result<u32, NetError> {
    let failed =
        |refusal: super::netlink::Refusal| refused("linking node and router", refusal.errno);
    let name = node_link(settings);
    let mut outer = node.link(&name).map_err(failed)?;
    let mut inward = inner.link(UPLINK).map_err(failed)?;
    if outer.is_none() || inward.is_none() {
        let mut requests = Requests::new();
        if let Some(half) = &outer {
            node.send({
                requests.delete_link(half.index);
                requests
            })
            .map_err(failed)?;
        } else if let Some(half) = &inward {
            inner
                .send({
                    requests.delete_link(half.index);
                    requests
                })
                .map_err(failed)?;
        }
        let near = End {
            name: &name,
            mac: uplink_mac(true),
            netns: None,
            noarp: true,
        };
        let far = End {
            name: UPLINK,
            mac: uplink_mac(false),
            netns: Some(space.as_fd()),
            noarp: true,
        };
        let mut requests = Requests::new();
        requests.veth(mtu, &near, &far);
        node.send(requests).map_err(failed)?;
        outer = node.link(&name).map_err(failed)?;
        inward = inner.link(UPLINK).map_err(failed)?;
    }
    let (Some(outer), Some(inward)) = (outer, inward) else {
        return Err(refused(
            "linking node and router",
            "the link has gone again",
        ));
    };
    let mut outside = Requests::new();
    let mut inside = Requests::new();
    outside
        .up(outer.index)
        .alias(outer.index, &format!("hearth {}", settings.tag));
    inside.up(inward.index);
    // The router's own addresses.
    let lo = inner.link("lo").map_err(failed)?.map_or(1, |lo| lo.index);
    inside.up(lo);
    for ((gateway, end), range) in plan
        .gateway()
        .into_iter()
        .zip(plan.node())
        .zip([plan.range4, plan.range6])
    {
        inside.address(inward.index, gateway);
        inside.neighbour(inward.index, end, uplink_mac(true));
        outside.address(outer.index, end);
        outside.neighbour(outer.index, gateway, uplink_mac(false));
        outside.route(&Route {
            to: range.address,
            length: range.length,
            via: Some(gateway),
            link: outer.index,
        });
        let everywhere = super::rules::address(gateway.is_ipv4(), 0);
        inside.route(&Route {
            to: end,
            length: if end.is_ipv4() { 32 } else { 128 },
            via: None,
            link: inward.index,
        });
        inside.route(&Route {
            to: everywhere,
            length: 0,
            via: Some(end),
            link: inward.index,
        });
    }
    node.send(outside).map_err(failed)?;
    inner.send(inside).map_err(failed)?;
    Ok(inward.index)
}

/// Lets the node forward between its uplinks and hearth's link: on these links only. What was off is written down, to be
/// switched off again by [`undo_forwarding`].
fn forwarding(directory: &Path, link: &str, uplinks: &[String]) -> Result<(), NetError> {
    let everywhere = Path::new("/proc/sys/net/ipv6/conf/all/forwarding");
    let all6 = fs::read_to_string(everywhere).is_ok_and(|value| value.trim() == "1");
    let mut changed: BTreeSet<String> = remembered(directory);
    for name in uplinks.iter().map(String::as_str).chain([link]) {
        let mut wanted = vec![format!("ipv4/conf/{name}/forwarding")];
        if !all6 {
            // Per link since Linux 6.17; forwarding everywhere would make the node deaf to router advertisements.
            wanted.push(format!("ipv6/conf/{name}/force_forwarding"));
        }
        for setting in wanted {
            let path = Path::new("/proc/sys/net").join(&setting);
            match fs::read_to_string(&path) {
                Ok(value) if value.trim() == "1" => continue,
                Ok(_) => {}
                Err(_) => {
                    warn!(
                        setting,
                        "this kernel forwards IPv6 only if net.ipv6.conf.all.forwarding is 1: sandboxes have no IPv6"
                    );
                    continue;
                }
            }
            if name != link {
                changed.insert(setting.clone());
                let list: Vec<&str> = changed.iter().map(String::as_str).collect();
                fs::write(directory.join("forwarding"), list.join("\n"))
                    .map_err(|error| refused("writing down which forwarding was off", error))?;
            }
            fs::write(&path, "1").map_err(|error| {
                refused("switching forwarding on", format!("{setting}: {error}"))
            })?;
        }
    }
    Ok(())
}

fn remembered(directory: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(directory.join("forwarding")).unwrap_or_default();
    let setting = |line: &&str| line.starts_with("ipv4/conf/") || line.starts_with("ipv6/conf/");
    text.lines()
        .filter(setting)
        .filter(|line| !line.contains(".."))
        .map(str::to_owned)
        .collect()
}

/// Switches off again what [`forwarding`] switched on.
fn undo_forwarding(directory: &Path) {
    for setting in remembered(directory) {
        if let Err(error) = sysctl(&setting, "0") {
            warn!(%error, setting, "forwarding cannot be switched off again");
        }
    }
    let _ = fs::remove_file(directory.join("forwarding"));
}

/// Takes the router and everything on the node's side away.
pub(super) fn dismantle(
    settings: &NetSettings,
    node: &mut Rtnl,
    rules: &mut Nft,
) -> Result<(), NetError> {
    let directory = directory(settings);
    undo_forwarding(&directory);
    let mut batch = Batch::on(&table_name(settings));
    batch.table();
    batch.delete_table();
    rules
        .commit(batch)
        .map_err(|refusal| refused("deleting the node's rules", refusal.errno))?;
    let failed = |refusal: super::netlink::Refusal| {
        refused("deleting the link to the router", refusal.errno)
    };
    if let Some(link) = node.link(&node_link(settings)).map_err(failed)? {
        let mut requests = Requests::new();
        requests.delete_link(link.index);
        node.send(requests).map_err(failed)?;
    }
    spaces::remove(&directory.join("router"))
        .map_err(|error| refused("removing the router's namespace", error))
}

fn table_name(settings: &NetSettings) -> String {
    format!("hearth-{}", settings.tag)
}

/// Makes the node's rules anew.
pub(super) fn node_rules(
    settings: &NetSettings,
    plan: &Plan,
    rules: &mut Nft,
) -> Result<(), NetError> {
    let mut batch = Batch::on(&table_name(settings));
    node_side::rebuild(&mut batch, &node_link(settings), plan);
    rules.commit(batch).map_err(|refusal| {
        refused(
            "writing the node's rules",
            format!("{} at {}", refusal.errno, refusal.message),
        )
    })
}
