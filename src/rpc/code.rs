//! RunCode: what the code tells to the client, at the client's pace. The end of the answers before the code's own end (the
//! client has gone, the call must end) interrupts the code.

use super::answers::{Answers, answers};
use super::guest;
use super::metrics::Metrics;
use super::sandboxes::Entered;
use crate::api::run_code_response::Response as Told;
use crate::api::{
    BundleKind, BundlePiece, CodeBegun, CodeEnded, CodeError, CodeState, CodeStatus,
    RunCodeResponse,
};
use crate::driver::{GuestError, GuestStream, RunItem, StreamItem, guest_v1};
use crate::machine::ids::SandboxId;
use crate::machine::refusal::Refusal;
use std::time::Instant;

/// The answers of code that the guest has taken.
pub fn answer(entered: Entered, stream: GuestStream, metrics: Metrics) -> Answers<RunCodeResponse> {
    answers(move |out| async move {
        let Entered {
            sandbox,
            place: _place,
            ..
        } = entered;
        let GuestStream {
            input: _input,
            mut output,
        } = stream;
        let mut measured = Measured {
            metrics,
            began: Instant::now(),
            status: "cut",
        };
        loop {
            let Some(told) = told(sandbox, output.recv().await)? else {
                continue;
            };
            match &told {
                Told::Begun(_) => measured.began = Instant::now(),
                Told::Ended(ended) => measured.ended(ended),
                _ => {}
            }
            let last = matches!(told, Told::Ended(_));
            let response = Some(told);
            out.send(RunCodeResponse { response }).await;
            if last {
                return Ok(());
            }
        }
    })
}

/// The figures of one run, told when it is dropped: also when nobody waits for its end.
struct Measured {
    metrics: Metrics,
    began: Instant,
    status: &'static str,
}

impl Measured {
    fn ended(&mut self, ended: &CodeEnded) {
        self.status = match ended.status() {
            CodeStatus::Ok => "ok",
            CodeStatus::Error => "error",
            CodeStatus::Interrupted => "interrupted",
            CodeStatus::TimedOut => "timed_out",
            CodeStatus::Crashed => "crashed",
            CodeStatus::Abandoned => "abandoned",
            CodeStatus::Unspecified => "cut",
        };
        if ended.state_lost && ended.status() != CodeStatus::Abandoned {
            self.metrics.interpreter_lost();
        }
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        self.metrics.code_ran(self.status, self.began.elapsed());
    }
}

/// One item of the guest for the client; `None`: it is not for the client.
fn told(
    sandbox: SandboxId,
    item: Option<Result<StreamItem, GuestError>>,
) -> Result<Option<Told>, Refusal> {
    let item = item.ok_or_else(|| guest::unavailable(sandbox))?;
    Ok(Some(
        match item.map_err(|error| guest::refusal(sandbox, error))? {
            StreamItem::Data {
                stderr: false,
                data,
            } => Told::Stdout(data),
            StreamItem::Data { stderr: true, data } => Told::Stderr(data),
            StreamItem::Run(RunItem::Accepted(_)) => return Ok(None),
            StreamItem::Run(RunItem::Begun(begun)) => Told::Begun(begun_of(begun)),
            StreamItem::Run(RunItem::Piece(piece)) => Told::Piece(piece_of(piece)),
            StreamItem::Run(RunItem::Error(error)) => Told::Error(CodeError {
                name: error.name,
                value: error.value,
                traceback: error.traceback,
            }),
            StreamItem::Run(RunItem::Ended(ended)) => Told::Ended(ended_of(ended)),
            // No part of a run: the guest does not keep to the protocol.
            StreamItem::Started { .. }
            | StreamItem::Exited { .. }
            | StreamItem::Eof { .. }
            | StreamItem::FileInfo { .. }
            | StreamItem::Connected
            | StreamItem::Written { .. }
            | StreamItem::Entries(_)
            | StreamItem::Done => return Err(guest::unavailable(sandbox)),
        },
    ))
}

fn begun_of(begun: guest_v1::RunBegun) -> CodeBegun {
    let state = match begun.state() {
        guest_v1::RunState::Unspecified => CodeState::Unspecified,
        guest_v1::RunState::Kept => CodeState::Kept,
        guest_v1::RunState::New => CodeState::New,
        guest_v1::RunState::Lost => CodeState::Lost,
    };
    CodeBegun {
        state: state.into(),
        unheard_runs: begun.unheard,
    }
}

fn piece_of(piece: guest_v1::ResultPiece) -> BundlePiece {
    let end = match piece.end() {
        guest_v1::BundleEnd::Unspecified => BundleKind::Unspecified,
        guest_v1::BundleEnd::Shown => BundleKind::Display,
        guest_v1::BundleEnd::Value => BundleKind::Result,
    };
    BundlePiece {
        mime_type: piece.mime_type,
        data: piece.data,
        last: piece.last,
        end: end.into(),
    }
}

fn ended_of(ended: guest_v1::RunEnded) -> CodeEnded {
    let status = match ended.status() {
        guest_v1::RunStatus::Unspecified => CodeStatus::Unspecified,
        guest_v1::RunStatus::Ok => CodeStatus::Ok,
        guest_v1::RunStatus::Error => CodeStatus::Error,
        guest_v1::RunStatus::Interrupted => CodeStatus::Interrupted,
        guest_v1::RunStatus::TimedOut => CodeStatus::TimedOut,
        guest_v1::RunStatus::Crashed => CodeStatus::Crashed,
        guest_v1::RunStatus::Abandoned => CodeStatus::Abandoned,
    };
    let took = std::time::Duration::from_micros(ended.took_us);
    CodeEnded {
        status: status.into(),
        dropped_bytes: ended.dropped_bytes,
        state_lost: ended.state_lost,
        lost_runs: ended.lost_runs,
        exit_code: ended.code,
        signal: ended.signal,
        // What no duration can say is a lie of the guest's.
        took: took.try_into().ok(),
    }
}
