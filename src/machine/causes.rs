//! Why sandboxes go to sleep, wake and end, and why they did not.

use super::spec::WaitingOn;

/// Why a sandbox is frozen; for logs and counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezeCause {
    /// Its pool has enough running members.
    Surplus,
    /// Its template's `idle_after` has passed.
    Idle,
    /// The node is short of memory.
    Pressure,
    /// Its caller asked for it.
    Asked(WaitingOn),
    /// The node is drained.
    Drain,
}

/// Why a sandbox goes to the disk; for logs and counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkCause {
    /// It was frozen for `hibernation.sink_after_seconds`.
    Age,
    /// The node is short of memory and nothing is left to be frozen.
    Pressure,
    /// Its caller asked for it.
    Asked(WaitingOn),
    /// The node is drained.
    Drain,
}

/// Why a sandbox did not go to the disk. It is as it was before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointFailure {
    /// There is no room for its image: quota, disk, or the memory in which it is sealed.
    NoRoom(String),
    /// It was made by another runsc, with other flags or another hearth-init than there are now: its image could not come
    /// back, so none is made.
    Mismatch(String),
    /// Anything else.
    Failed(String),
}

/// Why a sandbox did not come back from the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreFailure {
    /// Not now: nothing is wrong with its image.
    Unavailable(String),
    /// The image was made by another runsc, with other flags or on another CPU: as things are here it can't come back.
    Mismatch(String),
    /// The image is damaged or gone, or does not come back although it was tried again.
    Lost(String),
}

/// Why a sandbox is thawed outside a claim; for logs and counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThawCause {
    /// Its pool has too few running members.
    Refill,
    /// Its caller uses it.
    Used,
    /// Its caller asked for it.
    Asked,
    /// Something came in for it over its interface.
    Traffic,
}

/// What the guest said to a personalization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestFailure {
    /// No answer in time, channel dead or babbling: the sandbox is lost, another member may serve.
    Lost(String),
    /// The guest understood and cannot apply it: no other member would; the sandbox is spent.
    Refused(String),
}

/// How a sandbox ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCause {
    /// Its init ended.
    Exited,
    /// The kernel's OOM killer.
    OutOfMemory,
    /// The guest channel broke its rules or fell silent for good.
    GuestLost,
    /// Its image on the disk is damaged, or does not come back.
    DataLost,
    /// Its network interface is gone: its policy can't be in force. Told by the reconciliation after a restart, before
    /// the listing it belongs to.
    NetworkLost,
}

/// Why a creation did not succeed. Whatever it left is destroyed by the machine's decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreateFailure {
    /// The template is at fault (image, command, readiness, limits): counts towards the breaker.
    Template(String),
    /// containerd cannot be reached: not the template's fault; the machine waits for it to come back.
    RuntimeUnavailable,
}
