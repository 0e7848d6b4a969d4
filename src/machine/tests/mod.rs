//! Tests of the machine. `rig` drives one node by hand; `world` is a small simulated outside for random histories.

mod contract;
mod failures;
mod fixtures;
mod pools;
mod recovery;
mod rig;
mod store;
