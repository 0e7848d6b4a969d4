//! The kernel's side of sandboxes' networks, on the real kernel: each test has a node of its own, which is a network namespace
//! with an uplink to another that plays the internet. Sandboxes are played by sockets in their namespaces.
#![allow(clippy::unwrap_used)]

mod closed;
mod first;
mod flows;
mod matrix;
mod names;
mod resolving;
mod spoofed;
mod traces;
mod world;
