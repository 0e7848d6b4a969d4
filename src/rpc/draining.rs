//! Node.Drain's stream: how far the drain is, whenever that changes, until it has come to an end.

use super::answers::{Answers, answers};
use super::bounds;
use super::core::{Core, unexpected};
use super::places::{Kind, Open};
use super::view;
use crate::api::{DrainResponse, DrainState, DrainStatus};
use crate::machine::event::Call;
use crate::machine::refusal::Refusal;
use crate::machine::spec::{DrainMode, DrainRequest};
use crate::machine::view::{Answer, DrainView};
use std::sync::Arc;
use tokio::time::timeout;

/// The drain as it is after the call.
pub async fn read(core: &Core, call: Call) -> Result<Option<DrainView>, Refusal> {
    match core.call(call).await? {
        Answer::Drain(drain) => Ok(drain),
        other => Err(unexpected(&other)),
    }
}

/// Begins a drain or joins it. The drain does not depend on the stream: only telling ends with it.
pub async fn drain(
    core: Arc<Core>,
    asked: DrainRequest,
) -> Result<Answers<DrainResponse>, Refusal> {
    let open = Open::count(&core.metrics, Kind::Drain);
    let mut changes = core.door.pools_changed();
    let mut now = read(&core, Call::Drain(asked)).await?;
    Ok(answers(|out| async move {
        let _open = open;
        let mut told = None;
        loop {
            let waits = now.as_ref().is_some_and(|it| it.mode == DrainMode::Wait);
            let status = match now {
                Some(drain) => view::drain(&*core.door, drain),
                None => DrainStatus {
                    state: DrainState::Undrained.into(),
                    ..DrainStatus::default()
                },
            };
            let last = is_last(&status, waits);
            if told.as_ref() != Some(&status) {
                told = Some(status.clone());
                let status = Some(status);
                out.send(DrainResponse { status }).await;
            }
            if last {
                return Ok(());
            }
            // What changes without a word (a deadline) is seen at the next look.
            match timeout(bounds::DRAIN_LOOK, changes.changed()).await {
                Ok(Err(_)) => {
                    let retry_ms = bounds::STREAM_RETRY_MS;
                    return Err(Refusal::ShuttingDown { retry_ms });
                }
                Ok(Ok(())) => tokio::time::sleep(bounds::POOLS_PAUSE).await,
                Err(_) => {}
            }
            now = read(&core, Call::GetDrain).await?;
        }
    }))
}

/// Mode Wait does nothing more after its deadline; the others go on.
fn is_last(status: &DrainStatus, waits: bool) -> bool {
    match status.state() {
        DrainState::Unspecified | DrainState::Draining => false,
        DrainState::Overdue => waits,
        DrainState::Drained | DrainState::Undrained => true,
    }
}
