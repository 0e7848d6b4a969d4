//! The pure core: all decisions, no I/O, no clock, no randomness, no async.
//!
//! `Node::step(step, event, &mut effects)` is the whole interface; the driver runs the effects.

pub mod event;
pub mod ids;
pub mod limits;
pub mod record;
pub mod refusal;
pub mod spec;
pub mod view;
