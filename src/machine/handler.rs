//! Runtime handlers: what runs a sandbox, what each can do, and what a pool may therefore not ask of it.
//!
//! | | gVisor | Kata |
//! |---|---|---|
//! | warm members that run | yes | yes |
//! | freeze (the memory tier) | yes | no: [`Family::why_no_freeze`] |
//! | checkpoint (the disk tier, golden images) | yes | no: its shims have no Task.Checkpoint |
//! | bound on what a sandbox writes to its root | yes | no: it writes through virtio-fs into the node's own file system |

use serde::Serialize;

/// gVisor's handler: always there.
pub const GVISOR: &str = "gvisor";
/// What RuntimeClass objects and containerd's configuration call gVisor's handler. A template may say either.
pub const RUNSC: &str = "runsc";
/// What every Kata handler's name begins with, as in kata-deploy's RuntimeClasses.
pub const KATA: &str = "kata";

/// Kinds of handlers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// A kernel in user space.
    Gvisor,
    /// A virtual machine around each sandbox, whichever monitor and shim run it.
    Kata,
}

impl Family {
    /// Of the handler of that name. Names are checked before: a node offers none that is neither.
    #[must_use]
    pub fn of(handler: &str) -> Self {
        match handler.starts_with(KATA) {
            true => Self::Kata,
            false => Self::Gvisor,
        }
    }

    /// Whether its sandboxes can be frozen.
    #[must_use]
    pub fn can_freeze(self) -> bool {
        self == Self::Gvisor
    }

    /// Why not, for those that can't.
    #[must_use]
    pub fn why_no_freeze(self) -> &'static str {
        // All of a Kata sandbox is in one cgroup (hearth asks for that, or its memory could be neither counted nor bounded),
        // and the shim is in it too: frozen with the rest, it lets containerd wait at every start. And whoever is frozen for
        // longer than the shim's health check (30 s) finds itself taken for dead after the thaw.
        "its shim is in the virtual machine's cgroup and would be frozen with it"
    }

    /// What its sandboxes can do. `disk_tier`: the node keeps images.
    #[must_use]
    pub fn capabilities(self, disk_tier: bool) -> Capabilities {
        Capabilities {
            freeze: self.can_freeze(),
            checkpoint: self == Self::Gvisor && disk_tier,
            disk_bound: self == Self::Gvisor,
        }
    }
}

/// What a runtime handler can do; told to callers, never assumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Cgroup freeze.
    pub freeze: bool,
    /// Checkpoint and restore.
    pub checkpoint: bool,
    /// What a sandbox writes to its root is bounded.
    pub disk_bound: bool,
}

/// What a sandbox takes beside what its template promises to the workload, as its RuntimeClass counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Overhead {
    /// Bytes.
    pub memory_bytes: u64,
    /// Thousandths of a core.
    pub cpu_millis: u64,
}

impl Overhead {
    /// What kata-deploy (Kata 4.1) writes into the RuntimeClass of that handler. `None`: gVisor's has none. The measured use
    /// of a sandbox is in its cgroup, and may be far higher.
    #[must_use]
    pub fn of(handler: &str) -> Option<Self> {
        let mebibytes = match (Family::of(handler), handler.contains("qemu")) {
            (Family::Gvisor, _) => return None,
            (Family::Kata, true) => 320,
            (Family::Kata, false) => 130,
        };
        Some(Self {
            memory_bytes: mebibytes << 20,
            cpu_millis: 250,
        })
    }
}

/// A runtime handler of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// As templates call it.
    pub name: String,
    /// What it can do.
    pub can: Capabilities,
    /// Beside what templates promise; `None`: nothing that a RuntimeClass counts.
    pub overhead: Option<Overhead>,
    /// What its shim says of itself; empty: nothing, or not asked. gVisor's is runsc's own.
    pub version: String,
    /// Why the node can't serve it now; empty: it can.
    pub unservable: String,
}

impl Handler {
    /// The handler of that name, as far as its name tells. `disk_tier`: the node keeps images.
    #[must_use]
    pub fn named(name: &str, disk_tier: bool) -> Self {
        Self {
            name: name.to_owned(),
            can: Family::of(name).capabilities(disk_tier),
            overhead: Overhead::of(name),
            version: String::new(),
            unservable: String::new(),
        }
    }

    /// Whether a template or a RuntimeClass that says `name` means this one.
    #[must_use]
    pub fn answers_to(&self, name: &str) -> bool {
        self.name == name || (self.name == GVISOR && name == RUNSC)
    }
}

/// What a pool asks for that not every handler can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wants {
    /// Some warm members beyond the running ones are to be frozen.
    pub frozen_members: bool,
    /// Idle claimed sandboxes are to be frozen.
    pub idle_freeze: bool,
    /// A bound on the disk was named.
    pub disk_bound: bool,
}

/// What of it the handler can't do, as (field of the pool, what is wrong); empty: all is well. Called when pools are set.
#[must_use]
pub fn refused(handler: &Handler, wants: Wants) -> Vec<(&'static str, String)> {
    let name = &handler.name;
    let mut found = Vec::new();
    if !handler.unservable.is_empty() {
        let why = &handler.unservable;
        let what = format!("this node can't serve {name:?}: {why}");
        found.push(("template.runtime_handler", what));
    }
    if !handler.can.freeze {
        let why = Family::of(name).why_no_freeze();
        if wants.frozen_members {
            let what = format!(
                "must be absent or min_warm: members of handler {name:?} can't be frozen, {why}"
            );
            found.push(("running", what));
        }
        if wants.idle_freeze {
            let what = format!("must be 0: sandboxes of handler {name:?} can't be frozen, {why}");
            found.push(("template.idle_after", what));
        }
    }
    if wants.disk_bound && !handler.can.disk_bound {
        let what =
            format!("must be 0: handler {name:?} does not bound what a sandbox writes to its root");
        found.push(("template.resources.disk_bytes", what));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handler(name: &str) -> Handler {
        Handler::named(name, true)
    }

    const ALL: Wants = Wants {
        frozen_members: true,
        idle_freeze: true,
        disk_bound: true,
    };

    #[test]
    fn each_tier_is_refused_where_its_handler_can_not_do_it_and_names_its_field() {
        assert_eq!(refused(&handler(GVISOR), ALL), []);
        for name in ["kata-clh", "kata-fc", "kata-qemu-runtime-rs"] {
            assert_eq!(refused(&handler(name), Wants::default()), []);
            let found = refused(&handler(name), ALL);
            let fields: Vec<_> = found.iter().map(|(field, _)| *field).collect();
            let wanted = [
                "running",
                "template.idle_after",
                "template.resources.disk_bytes",
            ];
            assert_eq!(fields, wanted);
            assert!(
                found.iter().all(|(_, what)| what.contains(name)),
                "{found:?}"
            );
        }
        let mut absent = handler("kata-clh");
        absent.unservable = "its shim is nowhere".into();
        let found = refused(&absent, Wants::default());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, "template.runtime_handler");
        assert!(found[0].1.contains("its shim is nowhere"));
    }

    #[test]
    fn a_node_without_images_has_no_handler_with_a_disk_tier() {
        for (name, disk_tier, checkpoint) in [
            (GVISOR, true, true),
            (GVISOR, false, false),
            ("kata-qemu", true, false),
        ] {
            let can = Family::of(name).capabilities(disk_tier);
            assert_eq!(can.checkpoint, checkpoint, "{name}");
        }
    }

    #[test]
    fn overheads_are_those_of_the_runtime_classes() {
        let of = |name| Overhead::of(name).map(|it| (it.memory_bytes >> 20, it.cpu_millis));
        assert_eq!(of(GVISOR), None);
        for name in [
            "kata-clh",
            "kata-clh-runtime-rs",
            "kata-fc",
            "kata-dragonball",
        ] {
            assert_eq!(of(name), Some((130, 250)), "{name}");
        }
        for name in ["kata-qemu", "kata-qemu-runtime-rs"] {
            assert_eq!(of(name), Some((320, 250)), "{name}");
        }
    }

    #[test]
    fn gvisor_answers_to_the_name_that_runtime_classes_give_it() {
        assert!(handler(GVISOR).answers_to(RUNSC) && handler(GVISOR).answers_to(GVISOR));
        assert!(!handler("kata-clh").answers_to(RUNSC));
    }
}
