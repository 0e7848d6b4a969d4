//! One call: what it is, what it waits for, and which answers fit it.

use super::answers::{self, Broken};
use super::outgoing::Outgoing;
use super::stream::Stream;
use crate::guest::{GuestError, v1};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;
use v1::guest_message::Body;

/// The kinds of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ping,
    Quiesce,
    Personalize,
    Witness,
    Stats,
    Exec,
    ReadFile,
    WriteFile,
    ListFiles,
    Connect,
    Interpreter,
    RunCode,
    Interrupt,
}

impl Kind {
    /// For metrics and logs.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Quiesce => "quiesce",
            Self::Personalize => "personalize",
            Self::Witness => "witness",
            Self::Stats => "stats",
            Self::Exec => "exec_start",
            Self::ReadFile => "read_start",
            Self::WriteFile => "write_start",
            Self::ListFiles => "list_start",
            Self::Connect => "connect_start",
            Self::Interpreter => "interpreter",
            Self::RunCode => "run_start",
            Self::Interrupt => "interrupt",
        }
    }
}

/// The answer to a short call.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    Pong(String),
    Personalized,
    Held(String),
    Stats(v1::GuestStats),
    InterpreterReady,
    Interrupted(bool),
}

/// Who waits for the answer to a short call.
pub(super) type Reply = oneshot::Sender<Result<Answer, GuestError>>;

/// What is behind a call.
pub(super) enum Work {
    Short(Reply),
    Stream(Box<Stream>),
}

/// A call, made by the client and owned by the task until it has ended.
pub(super) struct Call {
    pub(super) kind: Kind,
    pub(super) work: Work,
    /// Its first message, until the writer takes it.
    pub(super) start: Option<Outgoing>,
    pub(super) made_at: Instant,
    /// Its first message was written whole.
    pub(super) written_at: Option<Instant>,
    /// Until when the guest must answer; `None`: it has.
    pub(super) deadline: Option<Instant>,
    /// Counts it as in flight.
    pub(super) _permit: OwnedSemaphorePermit,
}

/// What an answer did to its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// It goes on as it was.
    Open,
    /// It goes on and has started: its deadline is met.
    Started,
    /// The guest has said its last word; a stream may still have items for its owner.
    Ended,
}

impl Call {
    /// Takes one message of the guest.
    pub(super) fn receive(&mut self, body: Body) -> Result<Progress, Broken> {
        match &mut self.work {
            Work::Stream(stream) => stream.receive(body),
            Work::Short(reply) => {
                let answer = answer(self.kind, body)?;
                // The slot is refilled with a dead end: the call is removed right after.
                let reply = std::mem::replace(reply, oneshot::channel().0);
                // The caller may have gone.
                let _ = reply.send(answer);
                Ok(Progress::Ended)
            }
        }
    }

    /// Ends it with an error.
    pub(super) fn fail(self, error: GuestError) {
        match self.work {
            // The caller may have gone.
            Work::Short(reply) => drop(reply.send(Err(error))),
            Work::Stream(stream) => stream.fail(error),
        }
    }

    /// The stream, if it is one.
    pub(super) fn stream(&mut self) -> Option<&mut Stream> {
        match &mut self.work {
            Work::Short(_) => None,
            Work::Stream(stream) => Some(stream),
        }
    }
}

/// The answer to a short call, checked.
fn answer(kind: Kind, body: Body) -> Result<Result<Answer, GuestError>, Broken> {
    Ok(Ok(match (kind, body) {
        (_, Body::Failure(failure)) => return Ok(Err(answers::failure(failure))),
        (Kind::Ping | Kind::Quiesce, Body::Pong(pong)) => Answer::Pong(answers::version(&pong)),
        (Kind::Personalize, Body::ClaimAck(_)) => Answer::Personalized,
        (Kind::Witness, Body::Held(held)) => Answer::Held(answers::held(held)?),
        (Kind::Stats, Body::Stats(stats)) => Answer::Stats(stats),
        (Kind::Interpreter, Body::InterpreterReady(_)) => Answer::InterpreterReady,
        (Kind::Interrupt, Body::Interrupted(interrupted)) => Answer::Interrupted(interrupted.ran),
        _ => return Err("an answer of the wrong kind"),
    }))
}
