//! Every method that is served: who may call it, which room it takes, how long it may take, how it is logged and how
//! it ends at a shutdown. A path that is not here is refused to everybody but operators.

use super::bounds;
use std::time::Duration;

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Every peer.
    Anyone,
    /// Users of `allowed_uids`, and whoever holds the claim's access token.
    Holder,
    /// Users of `allowed_uids`.
    Operator,
}

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
    /// Which bound.
    pub lane: Lane,
    /// Server-side bound; `None` for streams, which have bounds of their own inside.
    pub bound: Option<Duration>,
    /// At a shutdown.
    pub ends: Ends,
    /// A call that succeeded is logged at info, else at debug.
    pub loud: bool,
}

impl Method {
    const fn new(path: &'static str, access: Access, lane: Lane) -> Self {
        Self {
            path,
            name: short(path),
            access,
            lane,
            bound: Some(bounds::CALL_BOUND),
            ends: Ends::AtDeadline,
            loud: false,
        }
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
    ..Method::new("", Access::Operator, Lane::Reads)
};

/// All of them.
#[rustfmt::skip] // A table.
pub static METHODS: [Method; 31] = [
    Method::new("/hearth.v1.Claims/Claim", Access::Operator, Lane::Claims).within(bounds::CLAIM_BOUND).loud(),
    Method::new("/hearth.v1.Claims/ClaimBatch", Access::Operator, Lane::Claims).within(bounds::CLAIM_BOUND).loud(),
    Method::new("/hearth.v1.Claims/Release", Access::Operator, Lane::Returns).loud(),
    Method::new("/hearth.v1.Claims/Renew", Access::Operator, Lane::Returns),
    Method::new("/hearth.v1.Claims/Get", Access::Operator, Lane::Reads),
    Method::new("/hearth.v1.Claims/List", Access::Operator, Lane::Reads),
    Method::new("/hearth.v1.Claims/Watch", Access::Operator, Lane::Watches).endless(),
    Method::new("/hearth.v1.Claims/Hibernate", Access::Operator, Lane::Reads),
    Method::new("/hearth.v1.Claims/Resume", Access::Operator, Lane::Reads),
    Method::new("/hearth.v1.Sandboxes/Exec", Access::Holder, Lane::Streams).unbounded(),
    Method::new("/hearth.v1.Sandboxes/RunCode", Access::Holder, Lane::Streams).unbounded(),
    Method::new("/hearth.v1.Sandboxes/InterruptCode", Access::Holder, Lane::Streams),
    Method::new("/hearth.v1.Sandboxes/ReadFile", Access::Holder, Lane::Streams).unbounded(),
    Method::new("/hearth.v1.Sandboxes/WriteFile", Access::Holder, Lane::Streams).unbounded(),
    Method::new("/hearth.v1.Sandboxes/ListFiles", Access::Holder, Lane::Streams).unbounded(),
    Method::new("/hearth.v1.Sandboxes/Connect", Access::Holder, Lane::Streams).unbounded(),
    Method::new("/hearth.v1.Sandboxes/Stats", Access::Holder, Lane::Streams),
    Method::new("/hearth.v1.Pools/SetPools", Access::Operator, Lane::Reads).loud(),
    Method::new("/hearth.v1.Pools/GetPools", Access::Operator, Lane::Reads),
    Method::new("/hearth.v1.Pools/WatchPools", Access::Operator, Lane::Watches).endless(),
    Method::new("/hearth.v1.Node/Info", Access::Operator, Lane::Reads),
    Method::new("/hearth.v1.Node/Drain", Access::Operator, Lane::Reads),
    Method::new("/hearth.v1.Node/Undrain", Access::Operator, Lane::Reads),
    Method::new("/hearth.v1.Node/Orphans", Access::Operator, Lane::Reads),
    Method::new("/hearth.v1.Node/ListImages", Access::Operator, Lane::Reads),
    Method::new("/hearth.v1.Node/ImportImage", Access::Operator, Lane::Streams).unbounded().loud(),
    Method::new("/hearth.v1.Node/PullImage", Access::Operator, Lane::Streams).unbounded().loud(),
    Method::new("/hearth.v1.Node/RemoveImage", Access::Operator, Lane::Reads).loud(),
    Method::new("/grpc.health.v1.Health/Check", Access::Anyone, Lane::Open),
    Method::new("/grpc.health.v1.Health/Watch", Access::Anyone, Lane::Open).endless(),
    Method::new("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Access::Anyone, Lane::Open).endless(),
];

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
            // UNIMPLEMENTED streams answer at once.
            let streams = method.server_streaming() || method.client_streaming();
            let unserved = row.name == "Node/Drain";
            assert_eq!(row.bound.is_none(), streams && !unserved, "{path}");
            let inside = path.starts_with("/hearth.v1.Sandboxes/");
            assert_eq!(
                row.access,
                if inside {
                    Access::Holder
                } else {
                    Access::Operator
                },
                "{path}"
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
            assert_eq!(
                (find(path).name, find(path).access),
                ("unknown", Access::Operator)
            );
        }
    }
}
