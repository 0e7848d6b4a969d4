//! What the node may do at all, from what it has been told of the world around it.

use super::limits::{CORDON_RETRY_MS, DRAIN_RETRY_MS, RETRY_MS};
use super::refusal::Refusal;
use super::view::Phase;

/// Six independent facts, and the questions that combine them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conditions {
    /// The runtime has not been listed since the start: nothing destructive, no new claims.
    pub(super) recovering: bool,
    /// containerd is reachable.
    pub(super) runtime_available: bool,
    /// The data directory's disk is full up to the reserve.
    pub(super) reserve_reached: bool,
    /// hearthd is going away.
    pub(super) shutting_down: bool,
    /// The node is drained: no new claims, no creations.
    pub(super) draining: bool,
    /// The cluster has cordoned the node: no new claims, no refill.
    pub(super) cordoned: bool,
}

impl Conditions {
    /// As at the start of hearthd. A cordon holds from the start as the cluster told it last: it may be away now.
    pub(super) fn at_start(cordoned: bool) -> Self {
        Self {
            recovering: true,
            runtime_available: false,
            reserve_reached: false,
            shutting_down: false,
            draining: false,
            cordoned,
        }
    }

    /// Are calls served that must not be lost by a shutdown?
    pub(super) fn staying(&self) -> Result<(), Refusal> {
        match self.shutting_down {
            true => Err(Refusal::ShuttingDown { retry_ms: RETRY_MS }),
            false => Ok(()),
        }
    }

    /// Are calls served that start something?
    pub(super) fn serving(&self) -> Result<(), Refusal> {
        self.staying()?;
        match self.recovering {
            true => Err(Refusal::Starting { retry_ms: RETRY_MS }),
            false => Ok(()),
        }
    }

    /// May a claim take a place in the journal or in a queue?
    pub(super) fn may_claim(&self) -> Result<(), Refusal> {
        self.serving()?;
        if self.draining {
            let retry_ms = DRAIN_RETRY_MS;
            return Err(Refusal::NodeDraining { retry_ms });
        }
        if self.cordoned {
            let retry_ms = CORDON_RETRY_MS;
            return Err(Refusal::NodeCordoned { retry_ms });
        }
        match self.reserve_reached {
            true => Err(Refusal::DiskReserve { retry_ms: RETRY_MS }),
            false => Ok(()),
        }
    }

    pub(super) fn may_destroy(&self) -> bool {
        !self.recovering && self.runtime_available && !self.shutting_down
    }

    pub(super) fn may_create(&self) -> bool {
        self.may_destroy() && !self.reserve_reached && !self.draining
    }

    /// May pools be filled? Who has a claim may still get what is made for that.
    pub(super) fn may_fill(&self) -> bool {
        self.may_create() && !self.cordoned
    }

    /// May hearth freeze or thaw by its own decision? Needs no containerd.
    pub(super) fn may_shift(&self) -> bool {
        !self.recovering && !self.shutting_down
    }

    pub(super) fn may_list(&self) -> bool {
        self.runtime_available && !self.shutting_down
    }

    pub(super) fn phase(&self) -> Phase {
        match self {
            Self {
                shutting_down: true,
                ..
            } => Phase::ShuttingDown,
            Self {
                recovering: true, ..
            } => Phase::Recovering,
            Self {
                runtime_available: false,
                ..
            } => Phase::Degraded,
            _ => Phase::Ready,
        }
    }
}
