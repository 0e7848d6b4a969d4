//! The pace of what keeps something in step with the cluster: a look at everything, a rest, and the next look when something has
//! changed. What changes in quick succession is served together.

use super::backoff::Backoff;
use std::time::Duration;
use tokio::sync::watch::error::RecvError;
use tracing::debug;

/// Between two looks at least.
pub(super) const PACE: Duration = Duration::from_secs(1);
/// Between two looks at most, when nothing has changed that is known of: heals what was lost.
pub(super) const AGAIN: Duration = Duration::from_secs(60);

/// How long to rest after a look: as it says, or after a failure as `backoff` says. `what` is kept, for the log.
pub(super) fn rest_after(
    look: Result<Duration, String>,
    backoff: &mut Backoff,
    what: &str,
) -> Duration {
    match look {
        Ok(rest) => {
            backoff.worked();
            rest
        }
        Err(why) => {
            debug!(why, "{what} wait");
            backoff.failed()
        }
    }
}

/// Rests, not longer than until something has changed. `false`: the driver or a watch has ended, and with it hearthd: nothing is
/// left to do.
pub(super) async fn rested(
    rest: Duration,
    changed: impl Future<Output = Result<(), RecvError>>,
) -> bool {
    tokio::time::sleep(PACE.min(rest)).await;
    let more = rest.saturating_sub(PACE);
    !matches!(tokio::time::timeout(more, changed).await, Ok(Err(_)))
}
