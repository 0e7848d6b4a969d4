//! Every method that is served: who may call it, by role or by a right of the cluster, which room it takes, how long it may
//! take, how it is logged and how it ends at a shutdown. A path that is not here is refused to everybody but admins.

use super::bounds;
use crate::identity::{Deed, Roles};
use std::time::Duration;

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Every peer.
    Anyone,
    /// Whoever holds the claim's access token, and admins.
    Holder,
    /// Callers with one of these roles.
    Roles(Roles),
}

/// May change the node itself.
const ADMIN: Access = Access::Roles(Roles::ADMIN);
/// May change claims.
const ALLOCATOR: Access = Access::Roles(Roles::ADMIN.and(Roles::ALLOCATOR));
/// May read.
const VIEWER: Access = Access::Roles(Roles::ADMIN.and(Roles::ALLOCATOR).and(Roles::VIEWER));

/// Which bound of calls in flight it counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Claims.
    Claims,
    /// Releases and renewals: never starved by claims.
    Returns,
    /// Other short calls.
    Reads,
    /// Watches.
    Watches,
    /// Sandboxes and image transfers.
    Streams,
    /// Health and reflection.
    Open,
}

/// When a call that goes on is ended by a shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// Never ends by itself.
    AtOnce,
    /// May finish until the shutdown's deadline.
    AtDeadline,
}

/// A method.
#[derive(Debug, PartialEq, Eq)]
pub struct Method {
    /// HTTP/2 path.
    pub path: &'static str,
    /// "Service/Method": for labels and logs.
    pub name: &'static str,
    /// Who may call.
    pub access: Access,
    /// What it is in the words of the cluster's RBAC, for callers with a ServiceAccount token. `None`: not for them, or open.
    pub deed: Option<Deed>,
    /// Which bound.
    pub lane: Lane,
    /// Server-side bound; `None` for streams, which have bounds of their own inside.
    pub bound: Option<Duration>,
    /// At a shutdown.
    pub ends: Ends,
    /// A call that succeeded is logged at info, else at debug.
    pub loud: bool,
    /// How it ended is written to the audit log.
    pub changes: bool,
}

impl Method {
    const fn new(path: &'static str, access: Access, lane: Lane) -> Self {
        Self {
            path,
            name: short(path),
            access,
            deed: None,
            lane,
            bound: Some(bounds::CALL_BOUND),
            ends: Ends::AtDeadline,
            loud: false,
            changes: false,
        }
    }

    /// Callers with a ServiceAccount token need this right.
    const fn is(mut self, verb: &'static str, resource: &'static str) -> Self {
        self.deed = Some(Deed { verb, resource });
        self
    }

    const fn within(mut self, bound: Duration) -> Self {
        self.bound = Some(bound);
        self
    }

    const fn unbounded(mut self) -> Self {
        self.bound = None;
        self
    }

    const fn endless(mut self) -> Self {
        self.bound = None;
        self.ends = Ends::AtOnce;
        self
    }

    const fn loud(mut self) -> Self {
        self.loud = true;
        self
    }

    const fn changes(mut self) -> Self {
        self.changes = true;
        self
    }
}

/// What follows the last dot: "/hearth.v1.Claims/Get" → "Claims/Get".
const fn short(path: &'static str) -> &'static str {
    let bytes = path.as_bytes();
    let mut at = bytes.len();
    while at > 0 && bytes[at - 1] != b'.' {
        at -= 1;
    }
    path.split_at(at).1
}

/// A method that is not served.
pub static UNKNOWN: Method = Method {
    name: "unknown",
    ..Method::new("", ADMIN, Lane::Reads)
};

/// All of them.
#[rustfmt::skip] // A table.
pub static METHODS: [Method; 32] = [
    Method::new("/hearth.v1.Claims/Claim", ALLOCATOR, Lane::Claims).is("create", "claims").within(bounds::CLAIM_BOUND).loud().changes(),
    Method::new("/hearth.v1.Claims/ClaimBatch", ALLOCATOR, Lane::Claims).is("create", "claims").within(bounds::CLAIM_BOUND).loud().changes(),
    Method::new("/hearth.v1.Claims/Release", ALLOCATOR, Lane::Returns).is("delete", "claims").loud().changes(),
    Method::new("/hearth.v1.Claims/Renew", ALLOCATOR, Lane::Returns).is("update", "claims").changes(),
    Method::new("/hearth.v1.Claims/Get", VIEWER, Lane::Reads).is("get", "claims"),
    Method::new("/hearth.v1.Claims/List", VIEWER, Lane::Reads).is("list", "claims"),
    Method::new("/hearth.v1.Claims/Watch", VIEWER, Lane::Watches).is("watch", "claims").endless(),
    Method::new("/hearth.v1.Claims/Hibernate", ALLOCATOR, Lane::Reads).is("update", "claims").changes(),
    Method::new("/hearth.v1.Claims/Resume", ALLOCATOR, Lane::Reads).is("update", "claims").changes(),
    Method::new("/hearth.v1.Sandboxes/Exec", Access::Holder, Lane::Streams).is("create", "claims/exec").unbounded().changes(),
    Method::new("/hearth.v1.Sandboxes/RunCode", Access::Holder, Lane::Streams).is("create", "claims/exec").unbounded().changes(),
    Method::new("/hearth.v1.Sandboxes/InterruptCode", Access::Holder, Lane::Streams).is("create", "claims/exec").changes(),
    Method::new("/hearth.v1.Sandboxes/ReadFile", Access::Holder, Lane::Streams).is("get", "claims/files").unbounded(),
    Method::new("/hearth.v1.Sandboxes/WriteFile", Access::Holder, Lane::Streams).is("update", "claims/files").unbounded().changes(),
    Method::new("/hearth.v1.Sandboxes/ListFiles", Access::Holder, Lane::Streams).is("get", "claims/files").unbounded(),
    Method::new("/hearth.v1.Sandboxes/Connect", Access::Holder, Lane::Streams).is("create", "claims/connect").unbounded().changes(),
    Method::new("/hearth.v1.Sandboxes/Stats", Access::Holder, Lane::Streams).is("get", "claims/stats"),
    Method::new("/hearth.v1.Sandboxes/GetNetwork", Access::Holder, Lane::Streams).is("get", "claims/stats"),
    Method::new("/hearth.v1.Pools/SetPools", ADMIN, Lane::Reads).is("update", "pools").loud().changes(),
    Method::new("/hearth.v1.Pools/GetPools", VIEWER, Lane::Reads).is("get", "pools"),
    Method::new("/hearth.v1.Pools/WatchPools", VIEWER, Lane::Watches).is("watch", "pools").endless(),
    Method::new("/hearth.v1.Node/Info", VIEWER, Lane::Reads).is("get", "nodes"),
    Method::new("/hearth.v1.Node/Drain", ADMIN, Lane::Watches).is("update", "nodes/drain").endless().loud().changes(),
    Method::new("/hearth.v1.Node/Undrain", ADMIN, Lane::Reads).is("update", "nodes/drain").loud().changes(),
    Method::new("/hearth.v1.Node/Orphans", ADMIN, Lane::Reads).is("update", "nodes/orphans").changes(),
    Method::new("/hearth.v1.Node/ListImages", VIEWER, Lane::Reads).is("get", "images"),
    Method::new("/hearth.v1.Node/ImportImage", ADMIN, Lane::Streams).is("create", "images").unbounded().loud().changes(),
    Method::new("/hearth.v1.Node/PullImage", ADMIN, Lane::Streams).is("create", "images").unbounded().loud().changes(),
    Method::new("/hearth.v1.Node/RemoveImage", ADMIN, Lane::Reads).is("delete", "images").loud().changes(),
    Method::new("/grpc.health.v1.Health/Check", Access::Anyone, Lane::Open),
    Method::new("/grpc.health.v1.Health/Watch", Access::Anyone, Lane::Open).endless(),
    Method::new("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Access::Anyone, Lane::Open).endless(),
];

impl Method {
    /// The role whose part a caller plays that has this method's right from the cluster: the least one that may call it, in
    /// claims an allocator's.
    #[must_use]
    pub const fn part(&self) -> Roles {
        match self.access {
            Access::Roles(roles) if roles.meets(Roles::VIEWER) => Roles::VIEWER,
            Access::Roles(roles) if roles.meets(Roles::ALLOCATOR) => Roles::ALLOCATOR,
            Access::Roles(_) | Access::Holder => Roles::ADMIN,
            Access::Anyone => Roles::NONE,
        }
    }
}

/// The method of a path.
#[must_use]
pub fn find(path: &str) -> &'static Method {
    METHODS
        .iter()
        .find(|method| method.path == path)
        .unwrap_or(&UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn the_table_is_what_the_protos_serve() {
        let set = prost_types::FileDescriptorSet::decode(crate::api::FILE_DESCRIPTOR_SET).unwrap();
        let mut served = Vec::new();
        for file in set.file.iter().filter(|file| file.package() == "hearth.v1") {
            for service in &file.service {
                let methods = service.method.iter();
                served.extend(methods.map(|method| {
                    (
                        format!("/hearth.v1.{}/{}", service.name(), method.name()),
                        method.clone(),
                    )
                }));
            }
        }
        let table: Vec<_> = METHODS
            .iter()
            .filter(|method| method.path.starts_with("/hearth.v1."))
            .collect();
        assert_eq!(table.len(), served.len());
        for (path, method) in served {
            let row = find(&path);
            assert_eq!(row.path, path, "{path} has no row");
            let streams = method.server_streaming() || method.client_streaming();
            assert_eq!(row.bound.is_none(), streams, "{path}");
            let inside = path.starts_with("/hearth.v1.Sandboxes/");
            assert_eq!(row.access == Access::Holder, inside, "{path}");
            assert_ne!(row.access, Access::Anyone, "{path}");
            // What a viewer may not call changes something, and is accounted for.
            let reads = [
                "Sandboxes/ReadFile",
                "Sandboxes/ListFiles",
                "Sandboxes/Stats",
                "Sandboxes/GetNetwork",
            ];
            let quiet = row.access == VIEWER || reads.contains(&row.name);
            assert_eq!(row.changes, !quiet, "{path}");
            // Whoever may only read is never asked for a right that changes something, and the other way round.
            let deed = row.deed.unwrap_or_else(|| panic!("{path}: no right"));
            let reads = ["get", "list", "watch"].contains(&deed.verb);
            assert_eq!(reads, quiet, "{path}");
            let words = |c: char| c.is_ascii_lowercase() || c == '/';
            assert!(deed.resource.chars().all(words) && !deed.resource.is_empty());
            assert!(deed.resource.matches('/').count() <= 1, "{path}");
            let claims = [
                "claims",
                "claims/exec",
                "claims/files",
                "claims/connect",
                "claims/stats",
            ];
            assert_eq!(inside, claims[1..].contains(&deed.resource), "{path}");
            let of_claims = path.starts_with("/hearth.v1.Claims/");
            assert_eq!(of_claims, deed.resource == claims[0], "{path}");
            assert_ne!(row.part(), Roles::NONE, "{path}");
        }
        for row in METHODS
            .iter()
            .filter(|row| !row.path.starts_with("/hearth.v1."))
        {
            assert_eq!(
                (row.access, row.deed),
                (Access::Anyone, None),
                "{}",
                row.path
            );
        }
        assert_eq!(UNKNOWN.deed, None);
    }

    #[test]
    fn a_right_of_the_cluster_plays_the_least_part() {
        let part = |path| find(path).part();
        assert_eq!(part("/hearth.v1.Claims/Get"), Roles::VIEWER);
        assert_eq!(part("/hearth.v1.Claims/Claim"), Roles::ALLOCATOR);
        assert_eq!(part("/hearth.v1.Pools/SetPools"), Roles::ADMIN);
        assert_eq!(part("/hearth.v1.Sandboxes/Exec"), Roles::ADMIN);
    }

    /// The table of docs/security.md.
    fn document() -> String {
        let mut out = String::from(
            "| method | viewer | allocator | admin | access token | right of a ServiceAccount |\n|---|---|---|---|---|---|\n",
        );
        for method in &METHODS {
            let yes = match method.access {
                Access::Anyone => ["yes", "yes", "yes", "not asked for"],
                Access::Holder => ["", "", "yes", "of that claim"],
                Access::Roles(roles) => {
                    let may = |role| if roles.meets(role) { "yes" } else { "" };
                    [
                        may(Roles::VIEWER),
                        may(Roles::ALLOCATOR),
                        may(Roles::ADMIN),
                        "",
                    ]
                }
            };
            let right = match method.deed {
                Some(deed) => format!("{} `{}`", deed.verb, deed.resource),
                None => "not asked for".to_owned(),
            };
            let (name, yes) = (method.name, yes.join(" | "));
            out.push_str(&format!("| `{name}` | {yes} | {right} |\n"));
        }
        out
    }

    #[test]
    fn the_documents_table_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/security.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (begin, end) = ("<!-- methods:begin -->\n", "<!-- methods:end -->");
        let (before, rest) = text.split_once(begin).unwrap();
        let (written, after) = rest.split_once(end).unwrap();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, format!("{before}{begin}{}{end}{after}", document())).unwrap();
        } else {
            assert!(
                written == document(),
                "out of date: UPDATE=1 cargo test --lib rpc::method"
            );
        }
    }

    #[test]
    fn names_are_short_and_unknown_paths_are_closed() {
        assert_eq!(find("/hearth.v1.Claims/Get").name, "Claims/Get");
        assert_eq!(find("/grpc.health.v1.Health/Check").name, "Health/Check");
        for path in [
            "",
            "/",
            "/hearth.v1.Claims",
            "/hearth.v1.Claims/get",
            "/x.Y/Z",
        ] {
            assert_eq!((find(path).name, find(path).access), ("unknown", ADMIN));
        }
    }
}
