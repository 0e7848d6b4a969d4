//! The channel to hearth-init: prost messages in records over the sandbox's stdio FIFOs. `wire` is shared with
//! hearth-init; the rest is the host's side.

/// The messages, generated from `proto/hearth/guest/v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/hearth.guest.v1.rs"));
}

pub mod wire;

#[cfg(feature = "daemon")]
pub mod channel;
#[cfg(feature = "daemon")]
mod traits;
#[cfg(feature = "daemon")]
pub use traits::*;
