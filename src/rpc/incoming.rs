//! Messages of a client's stream.

use super::bounds;
use super::text::bounded;
use crate::machine::refusal::Refusal;
use std::time::Duration;
use tokio::time::timeout;
use tonic::{Status, Streaming};

/// The next message, which may take so long; `None` at the stream's end. `what` passes when it does not come.
pub async fn next<T>(
    stream: &mut Streaming<T>,
    within: Duration,
    what: &'static str,
) -> Result<Option<T>, Refusal> {
    match timeout(within, stream.message()).await {
        Err(_) => Err(Refusal::DeadlineExceeded { what }),
        Ok(received) => received.map_err(broken),
    }
}

/// The first message of a stream that must have one.
pub async fn first<T>(stream: &mut Streaming<T>) -> Result<T, Refusal> {
    let first = next(
        stream,
        bounds::FIRST_MESSAGE,
        "the bound for a stream's first message",
    )
    .await?;
    first.ok_or_else(|| not_started("the stream ended before it"))
}

/// The first message of a stream is no start.
pub fn not_started(what: &str) -> Refusal {
    Refusal::InvalidArgument(vec![(
        "start".to_owned(),
        format!("must be the first message: {what}"),
    )])
}

/// A stream that broke: usually nobody is left to read this, but a message that can't be decoded is told.
pub fn broken(status: Status) -> Refusal {
    let what = bounded(status.message(), bounds::METADATA_BYTES);
    Refusal::InvalidArgument(vec![("(message)".to_owned(), what)])
}
