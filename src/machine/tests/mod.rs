//! Tests of the machine. `rig` drives one node by hand; `world` is a small simulated outside for random histories.
#![allow(clippy::unwrap_used)]

mod admission;
mod cluster;
mod contract;
mod draining;
mod failures;
mod fixtures;
mod handlers;
mod histories;
mod listening;
mod networking;
mod pools;
mod promises;
mod recovery;
mod replacing;
mod residency;
mod rig;
mod sinking;
mod store;
mod table;
mod world;
