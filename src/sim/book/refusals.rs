//! Refusals: what they say, and which may come to what.

use super::super::callers::Stage;
use super::{Book, Sent};
use crate::api;
use tonic::Status;
use tonic_types::StatusExt;

/// The machine-readable reason.
pub fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info();
    info.map_or_else(|| format!("{status:?}"), |info| info.reason.clone())
}

/// What a refusal says.
#[derive(Debug, Clone, Default)]
pub struct Refused {
    pub reason: String,
    /// The epoch that stands.
    pub current: u64,
}

impl Refused {
    /// Where it leaves a claim.
    pub fn ends(&self) -> Option<Stage> {
        match self.reason.as_str() {
            "CLAIM_RELEASED" | "RELEASED_IN_FLIGHT" => Some(Stage::Left),
            "SANDBOX_ENDED" | "PERSONALIZATION_REFUSED" => Some(Stage::Leaving),
            _ => None,
        }
    }
}

impl From<&Status> for Refused {
    fn from(status: &Status) -> Self {
        let details = status.get_error_details();
        let current = details
            .error_info()
            .and_then(|info| info.metadata.get("current"));
        Self {
            reason: reason(status),
            current: current.map_or(0, |text| text.parse().unwrap()),
        }
    }
}

impl From<&api::ClaimError> for Refused {
    fn from(error: &api::ClaimError) -> Self {
        let current = error.metadata.get("current");
        Self {
            reason: error.reason.clone(),
            current: current.map_or(0, |text| text.parse().unwrap()),
        }
    }
}

impl Book {
    pub(super) fn refused(&self, sent: &Sent, call: &str, reason: &str) {
        self.count(reason);
        let gone = self.may_be_gone(&sent.claim);
        let may_be = match reason {
            "STARTING" | "CLAIM_RECOVERING" | "SHUTTING_DOWN" | "QUEUE_FULL" => true,
            "EPOCH_STALE" | "EPOCH_CONFLICT" => sent.epoch > 0,
            "CLAIM_RELEASED" | "RELEASED_IN_FLIGHT" => gone,
            "CLAIM_UNKNOWN" | "CLAIM_PENDING" => !sent.was_told,
            "SANDBOX_ENDED" => self.has_ended_of(&sent.claim),
            "WAKE_IN_FLIGHT" | "HIBERNATE_FAILED" | "NO_ROOM_ON_DISK" | "NOT_RESTORABLE" => {
                call == "Hibernated"
            }
            "RESUME_FAILED" => call == "Resumed",
            "NODE_DRAINING" if call == "Resumed" => true,
            "RUNTIME_UNAVAILABLE" => !sent.was_told || call != "Claim",
            "POOL_EMPTY"
            | "POOL_FULL"
            | "WAIT_TIMED_OUT"
            | "DISK_RESERVE"
            | "GUEST_FAILED"
            | "PERSONALIZATION_REFUSED"
            | "CREATE_FAILED"
            | "POOL_FAILING"
            | "NODE_DRAINING" => call == "Claim" && !sent.was_told,
            "CLAIM_CONTENT_DIFFERS" => sent.other_content,
            _ => false,
        };
        self.world.ensure(may_be, || {
            format!("{call} must not be refused {reason}: {sent:?}")
        });
    }
}
