//! What the machine noticed, in the log; and what the runtime told, for the machine.

use super::Handle;
use super::guests::Guests;
use crate::machine::event::{Event, ExitCause, Notice};
use crate::machine::spec::Verdict;
use crate::runtime::RuntimeEvent;
use tracing::{debug, error, info, warn};

/// Logs what an operator may want to know.
pub(super) fn tell(notice: &Notice) {
    match notice {
        Notice::BreakerOpened { pool, reason } => {
            error!(%pool, reason, "the pool's template keeps failing: refill rests");
        }
        Notice::BreakerClosed { pool } => info!(%pool, "the pool's template works again"),
        Notice::PolicyFinding(pool, finding) => warn!(
            %pool,
            check = finding.check.name(),
            enforced = finding.enforced,
            field = finding.check.field(),
            detail = finding.detail,
            "the pool's template does not pass a check"
        ),
        Notice::Judged(pool, verdict) => match verdict {
            Verdict::Allowed => info!(%pool, "the cluster admits the pool's template"),
            Verdict::Denied { rule, message } => {
                warn!(%pool, rule, message, "the cluster denies the pool's template");
            }
        },
        Notice::MemberLost {
            pool,
            sandbox,
            cause,
        } => warn!(%pool, %sandbox, ?cause, "a member ended by itself"),
        Notice::ClaimExpired { claim } => info!(%claim, "claim expired"),
        Notice::ClaimEvicted { claim } => warn!(%claim, "claim released by the drain's deadline"),
        Notice::DrainBegun { asked } => info!(?asked, "the node is drained: no new claims"),
        Notice::DrainEnded => info!("the drain is undone: claims are taken again"),
        Notice::Cordoned(true) => info!("the node is cordoned: no new claims, no refill"),
        Notice::Cordoned(false) => info!("the node is no longer cordoned"),
        Notice::PoolUnservable { pool, reason } => {
            error!(%pool, reason, "this node can't serve the pool: refill rests");
        }
        Notice::PoolServable { pool } => info!(%pool, "this node can serve the pool again"),
        // Told where it was killed.
        Notice::ShimKilled { .. } => {}
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
        Notice::SinkStarted { cause } => debug!(?cause, "a sandbox goes to the disk"),
        Notice::SinkFailed { sandbox, error } => {
            warn!(%sandbox, error, "a sandbox did not get to the disk");
        }
        Notice::RestoreStarted { cause } => debug!(?cause, "a sandbox comes back from the disk"),
        Notice::ColdStarted(claim, sandbox) => {
            warn!(%claim, %sandbox, "the claim's image is lost: it was started cold");
        }
        Notice::RestoreFailed { sandbox, error } => {
            warn!(%sandbox, error, "a sandbox did not come back from the disk");
        }
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

/// What happened in the runtime, as the machine knows it. Whoever talks to a guest that has ended learns it at once.
pub(super) fn translate(event: RuntimeEvent, guests: &Guests, door: &Handle) -> Event {
    match event {
        RuntimeEvent::Connected => {
            info!("containerd is reachable");
            Event::Runtime { available: true }
        }
        RuntimeEvent::Disconnected => {
            warn!("containerd is unreachable");
            Event::Runtime { available: false }
        }
        RuntimeEvent::Exited { id, out_of_memory } => {
            guests.close(id);
            let cause = if out_of_memory {
                ExitCause::OutOfMemory
            } else {
                ExitCause::Exited
            };
            debug!(sandbox = %id, ?cause, "sandbox ended by itself");
            Event::Ended(id, cause)
        }
        // For people: the machine has asked for the destruction itself.
        RuntimeEvent::ShimKilled { id } => {
            door.announce(Notice::ShimKilled { sandbox: id });
            Event::Tick
        }
    }
}
