//! The pure core: all decisions, no I/O, no clock, no randomness, no async.
//!
//! [`node::Node::step`] is the whole interface: it takes one event and yields effects, which the driver runs.

pub mod admission;
pub mod classes;
pub mod event;
pub mod handler;
pub mod ids;
pub mod limits;
pub mod network;
pub mod node;
pub mod record;
pub mod refusal;
pub mod spec;
pub mod view;
mod yielding;

mod breaker;
mod call;
mod causes;
mod claiming;
mod claims;
mod conditions;
mod declaring;
mod draining;
mod fence;
mod hibernating;
mod inspect;
mod invariants;
mod lifecycle;
mod listening;
mod listing;
mod networking;
mod notice;
mod out;
mod pools;
mod queue;
mod queueing;
mod reaper;
mod recovery;
mod refill;
mod releasing;
mod replacing;
mod residing;
mod sampling;
mod sandboxes;
mod sequence;
mod sinking;
mod stowing;
mod timers;
mod tombstones;
mod witness;

#[cfg(test)]
mod tests;
