//! gRPC services over a Unix socket, and over TCP with TLS.
//!
//! Owns: decoding, admission, the shape and bounds of every request, statuses, streams to and from guests, and the
//! bounds of what is in flight. Never: a decision about claims or pools (the machine's), an effect outside (the
//! driver's). What a caller sees of a refusal is one table, `status.rs`.
//!
//! ```text
//! socket ─▶ Acceptor ┬▶ CallLayer: span · who (caller, reviewed) · room (lanes) · deadline (until) · metrics, log line
//! TCP ─▶ TLS ─▶ Tcp ─┘      │                                              ▲ the answer's body, to its end
//!                           ▼                                              │
//!             services: check ─▶ Call ─▶ driver::Handle ─▶ Answer ─▶ view ─┤
//!                       check ─▶ Locate, token ─▶ Guest ─▶ Answers (stream)┘
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod answers;
mod archive;
mod body;
mod bounds;
mod caller;
mod check;
mod claims;
mod code;
mod config;
mod connect;
mod connection;
mod content;
mod core;
mod door;
mod draining;
mod exec;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod guest;
mod images;
mod incoming;
mod key;
mod lanes;
mod layer;
mod method;
mod metrics;
mod node;
mod places;
mod pools;
mod reviewed;
mod sandboxes;
mod serve;
mod socket;
mod status;
mod tcp;
mod text;
mod trace;
mod until;
mod view;

#[cfg(test)]
mod fakes;
#[cfg(test)]
mod guest_fakes;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub mod unguarded;

pub use check::pool as check_pool;
pub use config::{Guard, Listeners, RpcConfig, RpcLimits};
pub use metrics::Metrics;
pub use serve::{ServeError, serve};
pub use socket::{BindError, bind};
pub use tcp::Tcp;
