//! One run of code: what its caller asked, what it may still send, how it is to end.

use bytes::Bytes;
use hearth::guest::{
    v1::{
        Output, ResultPiece, RunBegun, RunCode, RunEnded, RunError, RunState, RunStatus, Stream,
        guest_message::Body,
    },
    wire::RESULT_CREDIT,
};
use nix::libc;
use std::{os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

use super::{frames::Frame, process::Process};
use crate::{
    calls::Desk,
    clock::Moment,
    credit::Allowance,
    limits::{INTERRUPT_GRACE, MIME_BYTES, PIECE_BYTES},
};

/// Credit below which a run waits for more. Grants come in lumps, so it never waits for long.
const RESERVE: usize = 4 * (RESULT_CREDIT + MIME_BYTES);

/// Why it was interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    Asked,
    TimedOut,
}

#[derive(Debug)]
pub struct Run {
    pub call: u64,
    /// The host still listens.
    pub is_heard: bool,
    /// The session ended under it.
    pub is_cut: bool,
    code: String,
    timeout: Option<Duration>,
    allowance: Allowance,
    /// Bytes of output and results that may still be sent.
    left: u64,
    dropped: u64,
    /// The bundle under way has lost a part.
    is_spoilt: bool,
    has_failed: bool,
    /// When it began; `None`: not yet.
    begun: Option<Moment>,
    deadline: Option<Moment>,
    stop: Option<Stop>,
    /// When it is interrupted once more, and when its interpreter is killed.
    again: Option<Moment>,
    kill: Option<Moment>,
}

impl Run {
    pub fn new(call: u64, asked: RunCode) -> Self {
        Self {
            call,
            is_heard: true,
            is_cut: false,
            timeout: (asked.timeout_ms > 0).then(|| Duration::from_millis(asked.timeout_ms)),
            left: asked.output_bytes,
            code: asked.code,
            allowance: Allowance::default(),
            dropped: 0,
            is_spoilt: false,
            has_failed: false,
            begun: None,
            deadline: None,
            stop: None,
            again: None,
            kill: None,
        }
    }

    pub fn has_begun(&self) -> bool {
        self.begun.is_some()
    }

    /// Bytes that wait for their turn.
    pub fn code_bytes(&self) -> usize {
        self.code.len()
    }

    /// Hands the code to its interpreter.
    pub fn begin(&mut self, process: &mut Process, state: RunState, unheard: u32, desk: &mut Desk) {
        self.begun = Some(desk.now);
        self.deadline = self.timeout.map(|timeout| desk.now.saturating_add(timeout));
        self.say(
            Body::RunBegun(RunBegun {
                state: state.into(),
                unheard,
            }),
            desk,
        );
        process.tell("run", std::mem::take(&mut self.code).as_bytes());
    }

    /// In its place among what the run tells, if anybody listens.
    fn say(&self, body: Body, desk: &mut Desk) {
        if self.is_heard {
            desk.outbox.stream(self.call, body);
        }
    }

    /// It may not send more now: nothing of its interpreter is read.
    pub fn is_held(&self, desk: &Desk) -> bool {
        self.is_heard && (!desk.outbox.has_room() || self.allowance.left() < RESERVE)
    }

    pub fn credit(&mut self, bytes: usize) {
        self.allowance.grant(bytes);
    }

    /// The largest piece it may send now.
    pub fn most(&self) -> usize {
        if self.is_heard {
            PIECE_BYTES.min(self.allowance.left().saturating_sub(RESERVE / 2))
        } else {
            PIECE_BYTES
        }
    }

    /// How much of that many bytes is within the bound.
    fn within(&mut self, bytes: usize) -> usize {
        let fits = usize::try_from(self.left).map_or(bytes, |left| left.min(bytes));
        self.left -= fits as u64;
        self.dropped = self.dropped.saturating_add((bytes - fits) as u64);
        fits
    }

    /// A piece of stdout (0) or stderr (1).
    pub fn output(&mut self, at: usize, mut data: Bytes, desk: &mut Desk) {
        data.truncate(self.within(data.len()));
        if data.is_empty() || !self.is_heard {
            return;
        }
        self.allowance.spend(data.len());
        let stream = [Stream::Stdout, Stream::Stderr][at.min(1)];
        self.say(
            Body::Output(Output {
                stream: stream.into(),
                data,
                eof: false,
            }),
            desk,
        );
    }

    /// Whether there is credit for the frame now.
    pub fn affords(&self, frame: &Frame) -> bool {
        !self.is_heard || cost(frame) <= self.allowance.left()
    }

    /// A frame other than the last.
    pub fn tell(&mut self, frame: Frame, desk: &mut Desk) {
        let spent = cost(&frame);
        let body = match frame {
            Frame::Piece(piece) => match self.piece(piece) {
                Some(piece) => Body::ResultPiece(piece),
                None => return,
            },
            Frame::Error(error) => {
                self.has_failed = true;
                self.is_spoilt = false;
                Body::RunError(error)
            }
            Frame::Ready | Frame::Done => return,
        };
        if self.is_heard {
            self.allowance.spend(spent);
            self.say(body, desk);
        }
    }

    /// A bundle that does not fit into the bound is left out as a whole: without its end it counts for nothing.
    fn piece(&mut self, piece: ResultPiece) -> Option<ResultPiece> {
        let fits = self.within(piece.data.len()) == piece.data.len();
        self.is_spoilt |= !fits;
        if piece.end == 0 {
            return (!self.is_spoilt).then_some(piece);
        }
        (!std::mem::take(&mut self.is_spoilt)).then_some(piece)
    }

    /// Interrupts it; kills its interpreter if it is not ready to listen.
    pub fn interrupt(&mut self, why: Stop, process: &Process, now: Moment) {
        self.deadline = None;
        if self.stop.is_some() {
            return;
        }
        self.stop = Some(why);
        if !process.is_ready {
            process.signal(libc::SIGKILL);
            return;
        }
        process.signal(libc::SIGINT);
        self.again = Some(now + INTERRUPT_GRACE / 2);
        self.kill = Some(now + INTERRUPT_GRACE);
    }

    pub fn next_deadline(&self) -> Option<Moment> {
        let all = [self.deadline, self.again, self.kill];
        all.into_iter().flatten().min()
    }

    /// What is due.
    pub fn due(&mut self, process: &Process, now: Moment) {
        let is_due = |at: &mut Option<Moment>| at.take_if(|at| *at <= now).is_some();
        if is_due(&mut self.deadline) {
            self.interrupt(Stop::TimedOut, process, now);
        }
        if is_due(&mut self.again) {
            process.signal(libc::SIGINT);
        }
        if is_due(&mut self.kill) {
            process.signal(libc::SIGKILL);
        }
    }

    /// Its last word: the code has ended.
    pub fn done(self, desk: &mut Desk) {
        let status = match self.stop {
            _ if !self.has_failed => RunStatus::Ok,
            None => RunStatus::Error,
            Some(Stop::Asked) => RunStatus::Interrupted,
            Some(Stop::TimedOut) => RunStatus::TimedOut,
        };
        self.end(status, None, desk);
    }

    /// Its last word: the interpreter has ended under it, or before its turn; `lost` runs had made its state.
    pub fn lost(self, with: ExitStatus, lost: u32, desk: &mut Desk) {
        let status = match self.stop {
            _ if !self.has_begun() => RunStatus::Abandoned,
            None => RunStatus::Crashed,
            Some(Stop::Asked) => RunStatus::Interrupted,
            Some(Stop::TimedOut) => RunStatus::TimedOut,
        };
        self.end(status, Some((with, lost)), desk);
    }

    fn end(self, status: RunStatus, lost: Option<(ExitStatus, u32)>, desk: &mut Desk) {
        let took = desk.now.saturating_sub(self.begun.unwrap_or(desk.now));
        let signal = lost.and_then(|(with, _)| with.signal()).unwrap_or_default();
        let code = lost.and_then(|(with, _)| with.code()).unwrap_or_default();
        let ended = RunEnded {
            status: status.into(),
            dropped_bytes: self.dropped,
            state_lost: lost.is_some(),
            lost_runs: lost.map_or(0, |(_, runs)| runs),
            code,
            signal: signal.unsigned_abs(),
            took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        };
        self.say(Body::RunEnded(ended), desk);
    }
}

/// What a frame costs of the credit, as guest.proto says.
fn cost(frame: &Frame) -> usize {
    match frame {
        Frame::Piece(ResultPiece {
            mime_type, data, ..
        }) => RESULT_CREDIT + mime_type.len() + data.len(),
        Frame::Error(RunError {
            name,
            value,
            traceback,
        }) => RESULT_CREDIT + name.len() + value.len() + traceback.len(),
        Frame::Ready | Frame::Done => 0,
    }
}
