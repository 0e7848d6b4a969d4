//! Links, addresses, routes, neighbours and routing rules, as rtnetlink(7) has them. Every verb may be repeated.

use super::netlink::{
    ACKED, CREATE, EXCL, REPLACE, Refusal, Socket, Wire, attribute, attributes, ne32, ne64, text,
};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::SockProtocol;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A link-layer address.
pub(super) type Mac = [u8; 6];

const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const NUD_PERMANENT: u16 = 0x80;
const RTN_UNICAST: u8 = 1;
const RTPROT_STATIC: u8 = 4;
const RTNH_F_ONLINK: u32 = 4;
const IFA_F_NODAD: u8 = 2;
const FR_ACT_TO_TBL: u8 = 1;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_FWMASK: u16 = 16;
/// Table of the kernel's local addresses.
pub(super) const LOCAL: u8 = 255;
/// The table that routes go to.
pub(super) const MAIN: u8 = 254;

const UP: u32 = libc::IFF_UP.cast_unsigned();
const NOARP: u32 = libc::IFF_NOARP.cast_unsigned();

/// A link as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    /// `ifalias`; empty: none.
    pub alias: String,
    pub mtu: u32,
    pub up: bool,
    /// Received and sent.
    pub packets: u64,
}

/// One end of a veth pair to be made.
pub(super) struct End<'a> {
    pub name: &'a str,
    pub mac: Mac,
    /// Where it goes; `None`: the socket's namespace.
    pub netns: Option<BorrowedFd<'a>>,
    /// Without address resolution: neighbours are written, never asked for nor learnt.
    pub noarp: bool,
}

impl End<'_> {
    fn header(&self, wire: &mut Wire, up: u32) {
        let flags = up | if self.noarp { NOARP } else { 0 };
        link_header(wire, 0, flags, flags);
    }

    fn write(&self, wire: &mut Wire, mtu: u32) {
        wire.text(libc::IFLA_IFNAME, self.name);
        wire.attr(libc::IFLA_ADDRESS, &self.mac);
        wire.u32(libc::IFLA_MTU, mtu);
        if let Some(netns) = self.netns {
            wire.u32(libc::IFLA_NET_NS_FD, netns.as_raw_fd().cast_unsigned());
        }
    }
}

fn link_header(wire: &mut Wire, index: u32, flags: u32, change: u32) {
    wire.raw(&[0; 4]);
    wire.raw(&index.to_ne_bytes());
    wire.raw(&flags.to_ne_bytes());
    wire.raw(&change.to_ne_bytes());
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

/// The octets of an address, in network order.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// A route to be written.
pub(super) struct Route {
    pub to: IpAddr,
    pub length: u8,
    /// The next hop, taken to be on the link; `None`: the destination itself is.
    pub via: Option<IpAddr>,
    pub link: u32,
}

/// Requests of one exchange.
#[derive(Default)]
pub(super) struct Requests(Wire);

impl Requests {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// A veth pair, both ends up.
    pub(super) fn veth(&mut self, mtu: u32, near: &End<'_>, far: &End<'_>) -> &mut Self {
        self.0
            .message(libc::RTM_NEWLINK, ACKED | CREATE | EXCL, |w| {
                near.header(w, UP);
                near.write(w, mtu);
                w.nest(libc::IFLA_LINKINFO, |w| {
                    w.text(IFLA_INFO_KIND, "veth");
                    w.nest(IFLA_INFO_DATA, |w| {
                        w.nest(VETH_INFO_PEER, |w| {
                            // Not up yet: it is made before the two are joined, and veth_open refuses (ENOTCONN).
                            far.header(w, 0);
                            far.write(w, mtu);
                        });
                    });
                });
            });
        self
    }

    pub(super) fn up(&mut self, link: u32) -> &mut Self {
        self.0
            .message(libc::RTM_NEWLINK, ACKED, |w| link_header(w, link, UP, UP));
        self
    }

    pub(super) fn alias(&mut self, link: u32, alias: &str) -> &mut Self {
        self.0.message(libc::RTM_NEWLINK, ACKED, |w| {
            link_header(w, link, 0, 0);
            w.text(libc::IFLA_IFALIAS, alias);
        });
        self
    }

    pub(super) fn delete_link(&mut self, link: u32) -> &mut Self {
        self.0
            .message(libc::RTM_DELLINK, ACKED, |w| link_header(w, link, 0, 0));
        self
    }

    /// A single address. IPv6 without duplicate detection: hearth alone gives them out.
    pub(super) fn address(&mut self, link: u32, address: IpAddr) -> &mut Self {
        let flags = ACKED | CREATE | REPLACE;
        self.0.message(libc::RTM_NEWADDR, flags, |w| {
            w.raw(&[family(address), width(address), IFA_F_NODAD, 0]);
            w.raw(&link.to_ne_bytes());
            w.attr(libc::IFA_LOCAL, &octets(address));
            w.attr(libc::IFA_ADDRESS, &octets(address));
        });
        self
    }

    pub(super) fn route(&mut self, route: &Route) -> &mut Self {
        let flags = ACKED | CREATE | REPLACE;
        let scope = if route.via.is_none() && route.to.is_ipv4() {
            libc::RT_SCOPE_LINK
        } else {
            libc::RT_SCOPE_UNIVERSE
        };
        self.0.message(libc::RTM_NEWROUTE, flags, |w| {
            w.raw(&[family(route.to), route.length, 0, 0]);
            w.raw(&[MAIN, RTPROT_STATIC, scope, RTN_UNICAST]);
            let onlink = if route.via.is_some() {
                RTNH_F_ONLINK
            } else {
                0
            };
            w.raw(&onlink.to_ne_bytes());
            if route.length > 0 {
                w.attr(libc::RTA_DST, &octets(route.to));
            }
            if let Some(via) = route.via {
                w.attr(libc::RTA_GATEWAY, &octets(via));
            }
            w.u32(libc::RTA_OIF, route.link);
        });
        self
    }

    /// A permanent neighbour.
    pub(super) fn neighbour(&mut self, link: u32, address: IpAddr, mac: Mac) -> &mut Self {
        let flags = ACKED | CREATE | REPLACE;
        self.0.message(libc::RTM_NEWNEIGH, flags, |w| {
            w.raw(&[family(address), 0, 0, 0]);
            w.raw(&link.to_ne_bytes());
            w.raw(&NUD_PERMANENT.to_ne_bytes());
            w.raw(&[0, 0]);
            w.attr(libc::NDA_DST, &octets(address));
            w.attr(libc::NDA_LLADDR, &mac);
        });
        self
    }

    /// A routing rule of both families: who carries `mark` (`None`: who was made here) looks in `table`.
    pub(super) fn rule(&mut self, priority: u32, mark: Option<u32>, table: u8) -> &mut Self {
        for family in [2, 10] {
            self.0
                .message(libc::RTM_NEWRULE, ACKED | CREATE | EXCL, |w| {
                    w.raw(&[family, 0, 0, 0, table, 0, 0, FR_ACT_TO_TBL]);
                    w.raw(&[0; 4]);
                    w.u32(FRA_PRIORITY, priority);
                    match mark {
                        Some(mark) => {
                            w.u32(FRA_FWMARK, mark);
                            w.u32(FRA_FWMASK, mark);
                        }
                        None => w.text(FRA_IIFNAME, "lo"),
                    }
                });
        }
        self
    }

    /// Takes a rule of a family away.
    pub(super) fn delete_rule(&mut self, family: u8, priority: u32, table: u8) -> &mut Self {
        self.0.message(libc::RTM_DELRULE, ACKED, |w| {
            w.raw(&[family, 0, 0, 0, table, 0, 0, FR_ACT_TO_TBL]);
            w.raw(&[0; 4]);
            w.u32(FRA_PRIORITY, priority);
        });
        self
    }
}

/// A socket for links and what belongs to them.
pub(super) struct Rtnl(Socket);

impl Rtnl {
    /// Of the namespace in which the calling thread is.
    pub(super) fn open() -> Result<Self, Errno> {
        Socket::open(SockProtocol::NetlinkRoute).map(Self)
    }

    /// Sends them together.
    ///
    /// # Errors
    /// The first refusal; the others were done all the same.
    pub(super) fn send(&mut self, requests: Requests) -> Result<(), Refusal> {
        self.0.exchange(requests.0)
    }

    /// Every link of the namespace.
    pub(super) fn links(&mut self) -> Result<Vec<Link>, Refusal> {
        let mut links = Vec::new();
        self.0.dump(
            libc::RTM_GETLINK,
            |w| link_header(w, 0, 0, 0),
            |_, body| links.extend(read_link(body)),
        )?;
        Ok(links)
    }

    /// The link of that name.
    pub(super) fn link(&mut self, name: &str) -> Result<Option<Link>, Refusal> {
        let mut link = None;
        let asked = self.0.get(
            libc::RTM_GETLINK,
            |w| {
                link_header(w, 0, 0, 0);
                w.text(libc::IFLA_IFNAME, name);
            },
            |_, body| link = read_link(body),
        );
        match asked {
            Err(refusal) if refusal.errno == Errno::ENODEV => Ok(None),
            asked => asked.map(|()| link),
        }
    }

    /// Every address of the namespace with its link.
    pub(super) fn addresses(&mut self) -> Result<Vec<(u32, IpAddr)>, Refusal> {
        let mut found = Vec::new();
        self.0.dump(
            libc::RTM_GETADDR,
            |w| w.raw(&[0; 8]),
            |_, body| found.extend(read_address(body)),
        )?;
        Ok(found)
    }

    /// Links that default routes leave through.
    pub(super) fn default_links(&mut self) -> Result<Vec<u32>, Refusal> {
        let mut found = Vec::new();
        for family in [2, 10] {
            let ask = |w: &mut Wire| w.raw(&[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            self.0.dump(libc::RTM_GETROUTE, ask, |_, body| {
                let Some((header, rest)) = body.split_at_checked(12) else {
                    return;
                };
                // A default of the main table.
                if header[1] == 0 && header[4] == MAIN {
                    let link = attribute(rest, libc::RTA_OIF).and_then(ne32);
                    found.extend(link.filter(|link| !found.contains(link)));
                }
            })?;
        }
        Ok(found)
    }

    /// (family, priority, table) of every routing rule.
    pub(super) fn rules(&mut self) -> Result<Vec<(u8, u32, u8)>, Refusal> {
        let mut found = Vec::new();
        for family in [2, 10] {
            let ask = |w: &mut Wire| w.raw(&[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            self.0.dump(libc::RTM_GETRULE, ask, |_, body| {
                if let Some((header, rest)) = body.split_at_checked(12) {
                    let priority = attribute(rest, FRA_PRIORITY).and_then(ne32);
                    found.push((header[0], priority.unwrap_or(0), header[4]));
                }
            })?;
        }
        Ok(found)
    }
}

fn read_link(body: &[u8]) -> Option<Link> {
    let (header, rest) = body.split_at_checked(16)?;
    let mut link = Link {
        index: ne32(&header[4..8])?,
        name: String::new(),
        alias: String::new(),
        mtu: 0,
        up: ne32(&header[8..12])? & UP != 0,
        packets: 0,
    };
    for (kind, value) in attributes(rest) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_IFALIAS => link.alias = text(value),
            // It begins with what was received and what was sent.
            libc::IFLA_STATS64 => {
                link.packets = value.chunks_exact(8).take(2).filter_map(ne64).sum()
            }
            libc::IFLA_MTU => link.mtu = ne32(value).unwrap_or(0),
            _ => {}
        }
    }
    Some(link)
}

fn read_address(body: &[u8]) -> Option<(u32, IpAddr)> {
    let (header, rest) = body.split_at_checked(8)?;
    let link = ne32(&header[4..8])?;
    let value = attribute(rest, libc::IFA_LOCAL).or_else(|| attribute(rest, libc::IFA_ADDRESS))?;
    let address = match <[u8; 4]>::try_from(value) {
        Ok(octets) => IpAddr::from(octets),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(value).ok()?),
    };
    Some((link, address))
}
