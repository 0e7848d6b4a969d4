//! A real node: hearthd with its own containerd, the real runsc, real cgroups. Needs root and what `make setup`,
//! `make image` and `hack/build.sh init` bring; nothing is skipped.
#![allow(clippy::unwrap_used)]

mod adoption;
mod churn;
mod code;
mod command_line;
mod crash;
mod disk;
mod drain;
mod faults;
mod golden;
mod hearthd;
mod hostile;
mod identity;
mod kata;
mod limits;
mod main_job;
mod monitoring;
mod neighbours;
mod network;
mod noises;
mod outside;
mod overload;
mod prefork;
mod privileges;
mod prometheus;
mod python;
#[path = "../support/python_lines.rs"]
mod python_lines;
mod residency;
mod sanity;
mod soak;
mod spans;
mod streams;
mod torture;
mod traffic;
mod vitals;
