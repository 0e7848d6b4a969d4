//! What a guest's failure means to a caller. Its texts are bounded and escaped by the channel; they are shown in
//! messages and never used as keys, paths or labels.

use super::bounds;
use crate::driver::{GuestError, guest_v1::FailureKind};
use crate::machine::ids::SandboxId;
use crate::machine::refusal::Refusal;

/// The refusal for a call into `sandbox` that failed.
#[must_use]
pub fn refusal(sandbox: SandboxId, error: GuestError) -> Refusal {
    match error {
        GuestError::Silent(_) | GuestError::Protocol(_) | GuestError::Closed => {
            unavailable(sandbox)
        }
        GuestError::Limit => full(),
        GuestError::Failed { kind, message } => match kind {
            FailureKind::NotFound => Refusal::InsideNotFound { detail: message },
            FailureKind::Limit => full(),
            FailureKind::Permission
            | FailureKind::Invalid
            | FailureKind::Refused
            | FailureKind::Io
            | FailureKind::Claimed
            | FailureKind::Unspecified => Refusal::InsideRefused { detail: message },
        },
    }
}

/// The guest does not answer, or not what was asked.
#[must_use]
pub fn unavailable(sandbox: SandboxId) -> Refusal {
    Refusal::GuestUnavailable {
        sandbox,
        retry_ms: bounds::GUEST_RETRY_MS,
    }
}

/// No room for one more call into the sandbox.
#[must_use]
pub fn full() -> Refusal {
    Refusal::QueueFull {
        queue: "executions",
        retry_ms: bounds::STREAM_RETRY_MS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::ids::NodeTag;

    #[test]
    fn every_failure_has_its_refusal() {
        let sandbox = SandboxId::new(NodeTag(1), 1).unwrap();
        let failed = |kind| {
            let refused = refusal(
                sandbox,
                GuestError::Failed {
                    kind,
                    message: "words".into(),
                },
            );
            crate::rpc::status::entry(&refused).reason
        };
        assert_eq!(failed(FailureKind::NotFound), "INSIDE_NOT_FOUND");
        assert_eq!(failed(FailureKind::Permission), "INSIDE_REFUSED");
        assert_eq!(failed(FailureKind::Io), "INSIDE_REFUSED");
        assert_eq!(failed(FailureKind::Limit), "QUEUE_FULL");
        for silent in [
            GuestError::Silent("x"),
            GuestError::Protocol("x"),
            GuestError::Closed,
        ] {
            assert_eq!(refusal(sandbox, silent), unavailable(sandbox));
        }
        assert_eq!(refusal(sandbox, GuestError::Limit), full());
    }
}
