//! A call that streams: its order of answers, and its two directions.

use super::answers::{self, Broken};
use super::call::{Kind, Progress};
use super::inlet::{Inlet, Takes};
use super::outlet::{Item, Outcome, Outlet};
use super::run::RunProgress;
use crate::guest::{GuestError, RunItem, StreamInput, StreamItem, v1};
use std::task::Context;
use tokio::sync::{mpsc, oneshot};
use v1::guest_message::Body;

/// Who waits for the start of a stream.
pub(super) type Started = oneshot::Sender<Result<(), GuestError>>;

/// The host's end of a stream.
pub(super) struct Stream {
    kind: Kind,
    waits_for_start: Option<Started>,
    /// The guest has said its last word.
    is_ended: bool,
    /// The guest has said eof on stdout, on stderr.
    eof: [bool; 2],
    /// ReadFile: bytes that may still come.
    left: u64,
    run: RunProgress,
    pub(super) outlet: Outlet,
    pub(super) inlet: Inlet,
}

/// What a stream is made with.
pub(super) struct StreamParts {
    pub(super) kind: Kind,
    pub(super) takes: Takes,
    /// ReadFile: most bytes asked for; else and without a limit `u64::MAX`.
    pub(super) limit: u64,
    pub(super) started: Started,
    pub(super) output: mpsc::Sender<Item>,
    pub(super) input: mpsc::Receiver<StreamInput>,
}

impl Stream {
    pub(super) fn new(parts: StreamParts) -> Self {
        Self {
            kind: parts.kind,
            waits_for_start: Some(parts.started),
            is_ended: false,
            eof: [false; 2],
            left: parts.limit,
            run: RunProgress::default(),
            outlet: Outlet::new(parts.output),
            inlet: Inlet::new(parts.takes, parts.input),
        }
    }

    /// Input flows once it has started.
    pub(super) fn is_started(&self) -> bool {
        self.waits_for_start.is_none()
    }

    /// The guest has said its last word.
    pub(super) fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Its first message was written: that is the start of a WriteFile, which the guest answers at the end only.
    pub(super) fn was_written(&mut self) {
        if self.kind == Kind::WriteFile {
            self.begin();
        }
    }

    fn begin(&mut self) {
        if let Some(waiting) = self.waits_for_start.take() {
            // The caller may have gone; then its queue is closed too.
            let _ = waiting.send(Ok(()));
        }
    }

    /// Takes one message of the guest; not after the end.
    pub(super) fn receive(&mut self, body: Body) -> Result<Progress, Broken> {
        if let Body::Failure(failure) = body {
            self.refuse(answers::failure(failure));
            return Ok(Progress::Ended);
        }
        if !self.is_started() {
            return self.receive_start(body);
        }
        match (self.kind, body) {
            (_, Body::Credit(credit)) => {
                self.inlet.grant(credit.bytes)?;
                Ok(Progress::Open)
            }
            (Kind::Exec | Kind::ReadFile | Kind::Connect, Body::Output(output)) => {
                self.receive_output(&output)
            }
            (Kind::RunCode, body) => self.receive_run(body),
            (Kind::Exec, Body::Exited(exited)) => {
                let item = answers::exited(exited)?;
                Ok(self.end(item))
            }
            (Kind::WriteFile, Body::Written(written)) => self.receive_written(&written),
            (Kind::ListFiles, Body::Entries(entries)) => self.receive_entries(entries),
            _ => Err("an answer of the wrong kind"),
        }
    }

    fn receive_start(&mut self, body: Body) -> Result<Progress, Broken> {
        match (self.kind, body) {
            (Kind::Exec, Body::Started(started)) => {
                let missed = [started.missed_stdout, started.missed_stderr];
                let pid = started.pid;
                self.outlet.start(StreamItem::Started { pid, missed });
            }
            (Kind::ReadFile, Body::FileInfo(info)) => self.outlet.start(answers::file_info(info)),
            (Kind::Connect, Body::Connected(_)) => self.outlet.start(StreamItem::Connected),
            (Kind::RunCode, Body::RunAccepted(accepted)) => {
                let item = RunItem::Accepted(accepted.ahead);
                self.outlet.start(StreamItem::Run(item));
            }
            (Kind::ListFiles, Body::Entries(entries)) => {
                self.begin();
                return match self.receive_entries(entries)? {
                    Progress::Open => Ok(Progress::Started),
                    other => Ok(other),
                };
            }
            _ => return Err("a first answer of the wrong kind"),
        }
        self.begin();
        Ok(Progress::Started)
    }

    fn receive_output(&mut self, output: &v1::Output) -> Result<Progress, Broken> {
        let has_stderr = matches!(self.kind, Kind::Exec | Kind::RunCode);
        let at = answers::stream_of(output, has_stderr)?;
        if self.eof[at] {
            return Err("output after its end");
        }
        if output.data.is_empty() && !output.eof {
            return Err("an empty output");
        }
        self.left = self
            .left
            .checked_sub(output.data.len() as u64)
            .ok_or("more of a file than was asked for")?;
        self.outlet.data(at, &output.data)?;
        if !output.eof {
            return Ok(Progress::Open);
        }
        self.eof[at] = true;
        if self.kind == Kind::ReadFile {
            return Ok(self.end(StreamItem::Done));
        }
        self.outlet.eof(at);
        Ok(self.end_of_connection())
    }

    /// A word of code: in its place among its output.
    fn receive_run(&mut self, body: Body) -> Result<Progress, Broken> {
        let (item, cost) = match body {
            Body::Output(output) => {
                self.run.check_begun()?;
                if output.eof {
                    return Err("the end of a stream of code, which has none");
                }
                return self.receive_output(&output);
            }
            Body::RunBegun(begun) => (self.run.begun(begun)?, 0),
            Body::ResultPiece(piece) => self.run.piece(piece)?,
            Body::RunError(error) => self.run.error(error)?,
            Body::RunEnded(ended) => {
                let last = self.run.ended(ended)?;
                return Ok(self.end(StreamItem::Run(last)));
            }
            _ => return Err("an answer of the wrong kind"),
        };
        self.outlet.run(item, cost)?;
        Ok(Progress::Open)
    }

    /// A connection has ended when both directions have.
    fn end_of_connection(&mut self) -> Progress {
        if self.kind == Kind::Connect && self.eof[0] && self.inlet.is_finished() {
            return self.end(StreamItem::Done);
        }
        Progress::Open
    }

    fn receive_written(&mut self, written: &v1::Written) -> Result<Progress, Broken> {
        if !self.inlet.is_finished() || written.size_bytes != self.inlet.sent() {
            return Err("a file written other than it was sent");
        }
        Ok(self.end(StreamItem::Written {
            size_bytes: written.size_bytes,
        }))
    }

    fn receive_entries(&mut self, page: v1::Entries) -> Result<Progress, Broken> {
        if page.entries.is_empty() && !page.done {
            return Err("an empty page of entries");
        }
        let (entries, cost) = answers::entries(page.entries)?;
        self.outlet.entries(entries, cost)?;
        Ok(if page.done {
            self.end(StreamItem::Done)
        } else {
            Progress::Open
        })
    }

    fn end(&mut self, last: StreamItem) -> Progress {
        self.is_ended = true;
        self.outlet.end(Ok(last));
        Progress::Ended
    }

    /// The guest's no: to whoever waits for the start, else as the last item.
    fn refuse(&mut self, error: GuestError) {
        self.is_ended = true;
        if let Some(waiting) = self.waits_for_start.take() {
            let _ = waiting.send(Err(error.clone()));
        }
        self.outlet.end(Err(error));
    }

    /// Ends it with an error of the host's side.
    pub(super) fn fail(mut self: Box<Self>, error: GuestError) {
        if let Some(waiting) = self.waits_for_start.take() {
            let _ = waiting.send(Err(error.clone()));
        }
        self.outlet.fail(error);
    }

    /// The end of the input was handed to the guest: the connection may be over.
    pub(super) fn input_finished(&mut self) {
        self.end_of_connection();
    }

    /// Moves both directions on; `Err`: the owner gave up before the file was whole.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Result<Outcome, GuestError> {
        let outcome = self.outlet.poll(cx);
        let goes_on = outcome == Outcome::Open && self.is_started() && !self.is_ended;
        if goes_on && self.inlet.poll(cx) {
            // No end, no file: half of one must never appear.
            if self.kind == Kind::WriteFile {
                return Err(GuestError::Closed);
            }
            self.inlet.finish();
        }
        Ok(outcome)
    }
}
