//! hearth: warm, hibernating sandboxes for AI agents on one Kubernetes node.
//!
//! The house and its arrows are drawn in `docs/architecture.md` and enforced by `tests/arch.rs`.

// Suites under tests/ that also run inside the library name it as they do outside.
#[cfg(all(test, feature = "daemon"))]
extern crate self as hearth;

/// Probes, metrics, state dump.
#[cfg(feature = "daemon")]
pub mod admin;
/// Types of `hearth.v1`, generated from `proto/hearth/v1`.
#[cfg(feature = "daemon")]
pub mod api;
/// Composition root: the one place where real things are built, joined and spawned.
#[cfg(feature = "daemon")]
pub mod app;
/// Freeze, thaw, usage of a sandbox's cgroup; v1 and v2.
pub mod cgroup;
/// Typed configuration of hearthd.
#[cfg(feature = "daemon")]
pub mod config;
/// The one task that owns the machine, and the door to it.
#[cfg(feature = "daemon")]
pub mod driver;
/// Places where hearthd's death matters, for tests.
#[cfg(feature = "daemon")]
pub mod failpoint;
/// The channel to hearth-init.
pub mod guest;
/// Names, roles, TLS, the audit log.
#[cfg(feature = "daemon")]
pub mod identity;
/// The durable record.
#[cfg(feature = "daemon")]
pub mod journal;
/// What hearthd asks and tells the Kubernetes API.
#[cfg(feature = "kube")]
pub mod kube;
/// The pure core: decisions without I/O, clock or randomness.
#[cfg(feature = "daemon")]
pub mod machine;
/// Namespaces, links, addresses and policy of sandboxes.
#[cfg(feature = "daemon")]
pub mod net;
/// The runc-shaped command line of hearth-runsc.
#[cfg(feature = "runsc")]
pub mod ociwrap;
/// gRPC services.
#[cfg(feature = "daemon")]
pub mod rpc;
/// containerd and the runtime handlers.
#[cfg(feature = "daemon")]
pub mod runtime;
/// The daemon above its adapters in a seeded world, for tests.
#[cfg(all(test, feature = "daemon"))]
mod sim;
/// Images of sandboxes on the disk, sealed.
#[cfg(feature = "daemon")]
pub mod vault;
