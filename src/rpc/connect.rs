//! Connect: a client's stream joined to a TCP port inside. Each direction ends by itself (half-closed ends are passed
//! on); the end of the answers closes both.

use super::answers::{Answers, answers};
use super::check::piece;
use super::exec::after_eof;
use super::guest;
use super::incoming;
use super::sandboxes::Entered;
use crate::api::connect_request::Request as Up;
use crate::api::connect_response::Response as Down;
use crate::api::{ConnectRequest, ConnectResponse};
use crate::driver::{GuestError, GuestStream, StreamInput, StreamItem};
use crate::machine::ids::SandboxId;
use crate::machine::refusal::Refusal;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tonic::Streaming;
use tracing::Instrument;

/// The answers of a connection that the guest has taken.
pub fn answer(
    entered: Entered,
    stream: GuestStream,
    requests: Streaming<ConnectRequest>,
) -> Answers<ConnectResponse> {
    let GuestStream { input, mut output } = stream;
    answers(move |out| async move {
        let _place = entered.place;
        let pump = tokio::spawn(pump(requests, input).in_current_span());
        let mut pump = AbortOnDropHandle::new(pump);
        let mut upward = true;
        loop {
            let item = tokio::select! {
                biased;
                item = output.recv() => item,
                ended = &mut pump, if upward => {
                    upward = false;
                    match ended {
                        Ok(Err(refusal)) => return Err(refusal),
                        Ok(Ok(())) => continue,
                        Err(_) => return Err(Refusal::Internal { detail: "a connection's input panicked".to_owned() }),
                    }
                }
            };
            match told(entered.sandbox, item)? {
                Some(response) => {
                    out.send(ConnectResponse {
                        response: Some(response),
                    })
                    .await
                }
                None => return Ok(()),
            }
        }
    })
}

/// Hands on the client's bytes. The end of its stream is the end of its direction.
async fn pump(
    mut requests: Streaming<ConnectRequest>,
    input: mpsc::Sender<StreamInput>,
) -> Result<(), Refusal> {
    let mut open = true;
    loop {
        let request = requests.message().await.map_err(incoming::broken)?;
        let message = match request.map(|request| request.request) {
            None if open => StreamInput::Eof,
            None => return Ok(()),
            Some(Some(Up::Eof(_))) if open => StreamInput::Eof,
            Some(Some(Up::Data(data))) if open => StreamInput::Data(piece("data", data)?),
            Some(Some(Up::Data(_))) => return Err(after_eof("data")),
            Some(Some(Up::Start(_))) => return Err(incoming::not_started("another followed")),
            Some(Some(Up::Eof(_)) | None) => continue,
        };
        open = message != StreamInput::Eof && open;
        // Closed: the connection has ended; the answers tell how.
        if input.send(message).await.is_err() {
            return Ok(());
        }
    }
}

/// One item for the client; `None` when both directions have ended.
fn told(
    sandbox: SandboxId,
    item: Option<Result<StreamItem, GuestError>>,
) -> Result<Option<Down>, Refusal> {
    let item = item.ok_or_else(|| guest::unavailable(sandbox))?;
    match item.map_err(|error| guest::refusal(sandbox, error))? {
        StreamItem::Connected => Ok(Some(Down::Connected(true))),
        StreamItem::Data { data, .. } => Ok(Some(Down::Data(data))),
        StreamItem::Eof { .. } => Ok(Some(Down::Eof(true))),
        StreamItem::Done => Ok(None),
        StreamItem::Started { .. }
        | StreamItem::FileInfo { .. }
        | StreamItem::Exited { .. }
        | StreamItem::Written { .. }
        | StreamItem::Entries(_)
        | StreamItem::Run(_) => Err(guest::unavailable(sandbox)),
    }
}
