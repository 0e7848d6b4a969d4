//! What the machine noticed, in the log.

use crate::machine::event::Notice;
use tracing::{debug, error, info, warn};

/// Logs what an operator may want to know.
pub(super) fn tell(notice: &Notice) {
    match notice {
        Notice::BreakerOpened { pool, reason } => {
            error!(%pool, reason, "the pool's template keeps failing: refill rests");
        }
        Notice::BreakerClosed { pool } => info!(%pool, "the pool's template works again"),
        Notice::MemberLost {
            pool,
            sandbox,
            cause,
        } => warn!(%pool, %sandbox, ?cause, "a member ended by itself"),
        Notice::ClaimExpired { claim } => info!(%claim, "claim expired"),
        Notice::ClaimEvicted { claim } => warn!(%claim, "claim released by the drain's deadline"),
        Notice::DrainBegun { asked } => info!(?asked, "the node is drained: no new claims"),
        Notice::DrainEnded => info!("the drain is undone: claims are taken again"),
        Notice::ClaimFailed { claim, cause } => {
            warn!(%claim, ?cause, "the claim's sandbox ended by itself");
        }
        Notice::OrphanDestroyed { sandbox } => {
            warn!(%sandbox, "destroying a sandbox without a record");
        }
        Notice::OrphanFound { sandbox } => {
            warn!(%sandbox, "found a sandbox of another data directory: left alone");
        }
        Notice::DestroyRetried { sandbox, error } => {
            warn!(%sandbox, error, "destroying failed; it is tried again");
        }
        Notice::Recovered {
            adopted,
            undone,
            unknown,
        } => info!(adopted, undone, unknown, "recovered"),
        Notice::FreezeStarted { cause } => debug!(?cause, "a sandbox is being frozen"),
        Notice::ThawStarted { cause } => debug!(?cause, "a sandbox is being thawed"),
        Notice::FreezeFailed { sandbox, error } => {
            warn!(%sandbox, error, "a freeze failed; the sandbox runs");
        }
        Notice::ThawFailed { sandbox, error } => warn!(%sandbox, error, "a thaw failed"),
        Notice::MemoryShort {
            short_bytes,
            chosen,
        } => info!(
            short_bytes,
            chosen, "memory is short: idle sandboxes are frozen"
        ),
        Notice::Created { pool, took_ms } => debug!(%pool, ?took_ms, "creation ended"),
        Notice::TombstoneForgottenEarly => {
            warn!("a released claim was forgotten before 24 hours: too many of them");
        }
    }
}
