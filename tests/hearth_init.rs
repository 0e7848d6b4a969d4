//! The real hearth-init over real FIFOs: as an ordinary process, as PID 1 of namespaces of its own, and in gVisor.
//! Needs root, `unshare`, busybox-static, and for gVisor what `make setup` builds.
#![allow(clippy::unwrap_used)]

#[path = "hearth_init/channel.rs"]
mod channel;
#[path = "hearth_init/claim.rs"]
mod claim;
#[path = "hearth_init/exec.rs"]
mod exec;
#[path = "hearth_init/files.rs"]
mod files;
#[path = "hearth_init/first.rs"]
mod first;
#[path = "support/guest.rs"]
mod guest;
#[path = "hearth_init/gvisor.rs"]
mod gvisor;
#[path = "hearth_init/interpreter.rs"]
mod interpreter;
#[path = "hearth_init/port.rs"]
mod port;
#[path = "hearth_init/prefork.rs"]
mod prefork;
#[path = "hearth_init/pty.rs"]
mod pty;
#[path = "support/python_lines.rs"]
mod python_lines;
#[path = "hearth_init/session.rs"]
mod session;
#[path = "support/tool.rs"]
mod tool;
