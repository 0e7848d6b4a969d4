//! The link of a slot: its namespace, the veth pair into it, and what gVisor finds on it. Verbs of the thread that owns the
//! router; each may be repeated.

use super::NetError;
use super::netlink::Refusal;
use super::plan::{Plan, link_name, mac, slot_of_link};
use super::router::{self, Router};
use super::rtnl::{End, Requests, Route, Rtnl};
use super::settings::NetSettings;
use super::spaces::{self, sysctl};
use super::table::Place;
use super::worker::refused;
use crate::machine::ids::SandboxId;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The link as the sandbox sees it.
const INSIDE: &str = "eth0";
const WHAT: &str = "making a sandbox's link";
const SPARE: &str = "spare-";

/// The router, and where namespaces are bound.
pub(super) struct Links {
    pub router: Router,
    pub directory: PathBuf,
    pub plan: Plan,
}

/// What the kernel shows of slots.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Links by slot: index and whose it is, if it is somebody's.
    pub links: BTreeMap<u32, (u32, Option<SandboxId>)>,
    /// Files in the directory that may be namespaces of slots: name, and whether it is a namespace.
    pub spaces: BTreeMap<String, bool>,
}

fn failed(what: &'static str) -> impl Fn(Refusal) -> NetError {
    move |refusal| refused(what, refusal.errno)
}

impl Links {
    /// Finds or makes the router. The thread works in containerd's mount namespace from here on.
    pub(super) fn start(settings: &NetSettings, plan: Plan) -> Result<Self, NetError> {
        if let Some(mounts) = &settings.mounts {
            const WHAT: &str =
                "entering containerd's mount namespace (CAP_SYS_PTRACE, CAP_SYS_CHROOT)";
            spaces::mount_there(mounts).map_err(|error| refused(WHAT, error))?;
        }
        Ok(Self {
            router: Router::open(settings, &plan)?,
            directory: router::directory(settings),
            plan,
        })
    }

    /// Where a sandbox's namespace is bound.
    pub(super) fn path(&self, id: SandboxId) -> PathBuf {
        self.directory.join(id.to_string())
    }

    fn spare(&self, slot: u32) -> PathBuf {
        self.directory.join(format!("{SPARE}{slot}"))
    }

    /// Makes the slot's namespace and link, nobody's yet. What was left of an earlier try goes first.
    pub(super) fn make(&mut self, slot: u32) -> Result<Place, NetError> {
        self.remove(slot, None)?;
        let path = self.spare(slot);
        let made = self.pair(slot, &path);
        if made.is_err() {
            let _ = self.remove(slot, None);
        }
        made
    }

    fn pair(&mut self, slot: u32, path: &Path) -> Result<Place, NetError> {
        let inside = spaces::make(path, || {
            for (name, value) in [
                // gVisor brings a stack of its own; the kernel's has nothing to say in there.
                ("ipv6/conf/default/accept_ra", "0"),
                ("ipv6/conf/default/addr_gen_mode", "1"),
                ("ipv6/conf/default/accept_dad", "0"),
            ] {
                sysctl(name, value).map_err(|error| refused(WHAT, format!("{name}: {error}")))?;
            }
            Rtnl::open().map_err(|error| refused(WHAT, error))
        });
        let mut inside = inside.map_err(|error| refused(WHAT, error))??;
        let space = self.open(path)?;
        let name = link_name(slot);
        let near = End {
            name: &name,
            mac: mac(slot, false),
            netns: None,
            noarp: true,
        };
        let far = End {
            name: INSIDE,
            mac: mac(slot, true),
            netns: Some(space.as_fd()),
            noarp: false,
        };
        let mut requests = Requests::new();
        requests.veth(self.router.mtu, &near, &far);
        self.router.inner.send(requests).map_err(failed(WHAT))?;
        let link = self
            .link(slot)?
            .ok_or_else(|| refused(WHAT, "the link has gone again"))?;
        let mut requests = Requests::new();
        for address in self.plan.addresses(slot) {
            let length = if address.is_ipv4() { 32 } else { 128 };
            requests.route(&Route {
                to: address,
                length,
                via: None,
                link,
            });
            requests.neighbour(link, address, mac(slot, true));
        }
        self.router.inner.send(requests).map_err(failed(WHAT))?;
        self.furnish(&mut inside, slot)?;
        Ok(Place { slot, link })
    }

    fn open(&self, path: &Path) -> Result<OwnedFd, NetError> {
        let found = spaces::find(path).map_err(|error| refused("opening a namespace", error))?;
        found.ok_or(NetError::NoInterface)
    }

    /// Index of the slot's link in the router's namespace.
    pub(super) fn link(&mut self, slot: u32) -> Result<Option<u32>, NetError> {
        let link = self.router.inner.link(&link_name(slot));
        Ok(link
            .map_err(failed("looking for a link"))?
            .map(|link| link.index))
    }

    /// Addresses, routes and neighbours inside.
    fn furnish(&self, inside: &mut Rtnl, slot: u32) -> Result<(), NetError> {
        const WHAT: &str = "putting a sandbox's addresses on its link";
        let link = inside.link(INSIDE).map_err(failed(WHAT))?;
        let link = link.ok_or(NetError::NoInterface)?.index;
        let mut requests = Requests::new();
        requests.up(link);
        // gVisor makes its loopback of the namespace's, and skips what is down: 127.0.0.1 would go to the gateway.
        if let Some(lo) = inside.link("lo").map_err(failed(WHAT))? {
            requests.up(lo.index);
        }
        let pairs = self
            .plan
            .addresses(slot)
            .into_iter()
            .zip(self.plan.gateway());
        for (address, gateway) in pairs {
            let length = if address.is_ipv4() { 32 } else { 128 };
            let everywhere = super::rules::address(address.is_ipv4(), 0);
            requests.address(link, address);
            requests.neighbour(link, gateway, mac(slot, false));
            requests.route(&Route {
                to: gateway,
                length,
                via: None,
                link,
            });
            requests.route(&Route {
                to: everywhere,
                length: 0,
                via: Some(gateway),
                link,
            });
        }
        inside.send(requests).map_err(failed(WHAT))
    }

    /// Gives a spare to a sandbox: from here on its link and its namespace carry the id.
    pub(super) fn assign(&mut self, place: Place, id: SandboxId) -> Result<PathBuf, NetError> {
        const WHAT: &str = "giving a sandbox its link";
        let mut requests = Requests::new();
        requests.alias(place.link, &id.to_string());
        self.router.inner.send(requests).map_err(failed(WHAT))?;
        let path = self.path(id);
        spaces::rename(&self.spare(place.slot), &path).map_err(|error| refused(WHAT, error))?;
        Ok(path)
    }

    /// Puts back what gVisor took off the sandbox's link.
    ///
    /// # Errors
    /// [`NetError::NoInterface`]: the namespace or the link has gone.
    pub(super) fn restore(&mut self, place: Place, id: SandboxId) -> Result<PathBuf, NetError> {
        if self.link(place.slot)? != Some(place.link) {
            return Err(NetError::NoInterface);
        }
        let path = self.path(id);
        let space = self.open(&path)?;
        let inside = spaces::enter(&space, Rtnl::open)
            .map_err(|error| refused("entering a sandbox's namespace", error))?;
        let mut inside = inside.map_err(|error| refused("opening rtnetlink", error))?;
        self.furnish(&mut inside, place.slot)?;
        Ok(path)
    }

    /// Takes the slot's link and namespace away and verifies that they have gone.
    pub(super) fn remove(&mut self, slot: u32, id: Option<SandboxId>) -> Result<(), NetError> {
        const WHAT: &str = "removing a sandbox's link";
        if let Some(link) = self.link(slot)? {
            let mut requests = Requests::new();
            requests.delete_link(link);
            match self.router.inner.send(requests) {
                // It went with the other end.
                Err(refusal) if refusal.errno == Errno::ENODEV => {}
                done => done.map_err(failed(WHAT))?,
            }
        }
        for path in [Some(self.spare(slot)), id.map(|id| self.path(id))]
            .into_iter()
            .flatten()
        {
            spaces::remove(&path).map_err(|error| refused(WHAT, error))?;
            if path.exists() {
                return Err(refused(WHAT, "its namespace is still bound"));
            }
        }
        match self.link(slot)? {
            None => Ok(()),
            Some(_) => Err(refused(WHAT, "it is still there")),
        }
    }

    /// Takes a namespace's file away.
    pub(super) fn remove_space(&mut self, name: &str) -> Result<(), NetError> {
        spaces::remove(&self.directory.join(name))
            .map_err(|error| refused("removing a namespace", error))
    }

    /// All that the kernel shows.
    pub(super) fn survey(&mut self) -> Result<Survey, NetError> {
        const WHAT: &str = "looking for links";
        let mut survey = Survey::default();
        for link in self.router.inner.links().map_err(failed(WHAT))? {
            if let Some(slot) = slot_of_link(&link.name) {
                let id = SandboxId::parse(&link.alias).ok();
                survey.links.insert(slot, (link.index, id));
            }
        }
        let files = fs::read_dir(&self.directory).map_err(|error| refused(WHAT, error))?;
        for file in files {
            let file = file.map_err(|error| refused(WHAT, error))?;
            let name = file.file_name().to_string_lossy().into_owned();
            if name.starts_with(SPARE) || SandboxId::parse(&name).is_ok() {
                let space = spaces::find(&file.path()).map_err(|error| refused(WHAT, error))?;
                survey.spaces.insert(name, space.is_some());
            }
        }
        Ok(survey)
    }

    /// Packets over the link of each sandbox, both ways, in one question to the kernel.
    pub(super) fn packets(&mut self) -> Result<BTreeMap<SandboxId, u64>, NetError> {
        let links = self
            .router
            .inner
            .links()
            .map_err(failed("counting packets"))?;
        let of = links
            .into_iter()
            .filter_map(|link| Some((SandboxId::parse(&link.alias).ok()?, link.packets)));
        Ok(of.collect())
    }

    /// The node's own addresses, also those of this namespace: no sandbox may reach them.
    pub(super) fn node_addresses(&mut self) -> Result<Vec<IpAddr>, NetError> {
        self.router.node_addresses()
    }
}
