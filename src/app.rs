//! Composition root: the one place where real things are built, joined and spawned.
//!
//! ```text
//! config ─▶ journal (lock, records, key) ─▶ containerd (managed or not) ─▶ runtime ─▶ Node::recover ─▶ driver
//!                                                                     rpc, admin ◀── Handle ◀──┘
//! ```
//! Ends in the reverse order: refuse, drain, stop the driver when all is durable. Sandboxes and containerd live on.

mod dev;
mod log;
mod programs;

pub use dev::Dev;
pub use programs::MissingPrograms;
