//! Exec: the client's messages into the guest, the guest's output to the client, each at the pace of its reader.
//!
//! The two directions do not wait for each other: a process that floods its output can still be signalled, and one that
//! does not read its stdin can still be heard. The end of the client's stream is the end of stdin; the end of the
//! answers (the client has gone, the call must end) cancels the process in the guest, unless it was started detached or to
//! be kept: then another stream attaches to it.

use super::answers::{Answers, answers};
use super::check::{ExecRules, exec_input};
use super::guest;
use super::incoming;
use super::sandboxes::Entered;
use crate::api::exec_response::Response as Output;
use crate::api::{Attached, ExecRequest, ExecResponse, Exited};
use crate::driver::{GuestStream, StreamInput, StreamItem};
use crate::machine::ids::SandboxId;
use crate::machine::refusal::Refusal;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tonic::Streaming;
use tracing::Instrument;

/// What a guest may tell of a process's end.
const CODES: std::ops::RangeInclusive<i32> = 0..=255;
const SIGNALS: u32 = 64;

/// The answers of an exec that the guest has taken.
pub fn answer(
    entered: Entered,
    stream: GuestStream,
    requests: Streaming<ExecRequest>,
    rules: ExecRules,
) -> Answers<ExecResponse> {
    let GuestStream { input, mut output } = stream;
    let attached = rules.attached;
    answers(move |out| async move {
        let _place = entered.place;
        let mut input = Input::Open(AbortOnDropHandle::new(tokio::spawn(
            pump(requests, input, rules).in_current_span(),
        )));
        loop {
            let item = tokio::select! {
                item = output.recv() => item,
                refusal = input.refused() => return Err(refusal),
            };
            let (response, last) = told(entered.sandbox, item, attached)?;
            if let Some(response) = response {
                out.send(ExecResponse {
                    response: Some(response),
                })
                .await;
            }
            if last {
                return Ok(());
            }
        }
    })
}

/// The client's direction.
enum Input {
    Open(AbortOnDropHandle<Result<(), Refusal>>),
    Over,
}

impl Input {
    /// Resolves if the client sent what it must not; its orderly end is no event.
    async fn refused(&mut self) -> Refusal {
        if let Input::Open(pump) = self {
            let ended = pump.await;
            *self = Input::Over;
            match ended {
                Ok(Err(refusal)) => return refusal,
                Err(panic) if panic.is_panic() => {
                    return Refusal::Internal {
                        detail: "the exec's input panicked".to_owned(),
                    };
                }
                Ok(Ok(())) | Err(_) => {}
            }
        }
        std::future::pending().await
    }
}

/// Hands on the client's messages; waits while the guest does not take them, and so holds the client back.
async fn pump(
    mut requests: Streaming<ExecRequest>,
    input: mpsc::Sender<StreamInput>,
    rules: ExecRules,
) -> Result<(), Refusal> {
    let mut open = rules.stdin;
    loop {
        let message = match requests.message().await.map_err(incoming::broken)? {
            Some(request) => exec_input(request, rules)?,
            None if open => StreamInput::Eof,
            None => return Ok(()),
        };
        match &message {
            StreamInput::Eof if !open => continue,
            StreamInput::Eof => open = false,
            StreamInput::Data(_) if !open => return Err(after_eof("stdin")),
            StreamInput::Data(_) | StreamInput::Resize { .. } | StreamInput::Signal(_) => {}
        }
        // Closed: the process has ended; the output tells how.
        if input.send(message).await.is_err() {
            return Ok(());
        }
    }
}

/// Data that follows its end.
pub fn after_eof(field: &str) -> Refusal {
    Refusal::InvalidArgument(vec![(
        field.to_owned(),
        "must not follow the end of it".to_owned(),
    )])
}

/// One item of the guest for the client, and whether it was the last.
fn told(
    sandbox: SandboxId,
    item: Option<Result<StreamItem, crate::driver::GuestError>>,
    attached: bool,
) -> Result<(Option<Output>, bool), Refusal> {
    let item = item.ok_or_else(|| guest::unavailable(sandbox))?;
    Ok(
        match item.map_err(|error| guest::refusal(sandbox, error))? {
            StreamItem::Started { pid, missed } if attached => {
                let [stdout_missed, stderr_missed] = missed;
                let attached = Attached {
                    started_pid: pid,
                    stdout_missed,
                    stderr_missed,
                };
                (Some(Output::Attached(attached)), false)
            }
            StreamItem::Started { pid, .. } => (Some(Output::StartedPid(pid)), false),
            StreamItem::Data {
                stderr: false,
                data,
            } => (Some(Output::Stdout(data)), false),
            StreamItem::Data { stderr: true, data } => (Some(Output::Stderr(data)), false),
            StreamItem::Eof { .. } => (None, false),
            StreamItem::Exited {
                code,
                signal,
                timed_out,
            } => {
                let exited = Exited {
                    code: code.clamp(*CODES.start(), *CODES.end()),
                    signal: if signal <= SIGNALS { signal } else { 0 },
                    timed_out,
                };
                (Some(Output::Exited(exited)), true)
            }
            // No part of an exec: the guest does not keep to the protocol.
            StreamItem::FileInfo { .. }
            | StreamItem::Connected
            | StreamItem::Written { .. }
            | StreamItem::Entries(_)
            | StreamItem::Run(_)
            | StreamItem::Done => return Err(guest::unavailable(sandbox)),
        },
    )
}
