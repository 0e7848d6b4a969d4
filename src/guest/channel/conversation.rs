//! The one task of a sandbox that speaks with its guest: it owns the FIFOs, the session and all calls.
//!
//! ```text
//!            ┌──────────── HELLO(new nonce) ◀── call after silence ──┐
//!            ▼                                                        │
//!   Link::Aligning ── ACK(nonce) ──▶ Link::Aligned ── protocol broken ──▶ end: every call fails
//!    drops all else                   calls ⇄ guest
//! ```
//!
//! A turn says what there is to say, waits until something may be done (the only await), and does it without waiting.

use super::alignment::Alignment;
use super::answers::Broken;
use super::call::Call;
use super::calls::Calls;
use super::fifos::{self, Fifos};
use super::limits::{RECORDS_BURST, RECORDS_PER_SECOND, TURN_BYTES};
use super::log::Log;
use super::metrics::GuestMetrics;
use super::pace::Pace;
use super::session::Session;
use super::writer::Writer;
use crate::guest::GuestError;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// A call on its way to the task.
pub(super) type Command = (u64, Box<Call>);

/// Where the conversation stands.
pub(super) enum Link {
    Aligning(Alignment),
    Aligned(Session),
}

/// Why a turn was the last.
enum End {
    /// The client closed or dropped the channel.
    Closed,
    Broken(Broken),
    Io(io::Error),
}

impl From<Broken> for End {
    fn from(what: Broken) -> Self {
        Self::Broken(what)
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Everything of one channel.
pub(super) struct Conversation {
    sandbox: String,
    fifos: Fifos,
    commands: mpsc::Receiver<Command>,
    close: CancellationToken,
    end: watch::Sender<Option<GuestError>>,
    metrics: GuestMetrics,
    link: Link,
    /// A call fell silent and so may be the channel: the next call begins a new session.
    is_stale: bool,
    calls: Calls,
    writer: Writer,
    log: Log,
    pace: Pace,
    /// The last turn ended before everything was read.
    is_busy: bool,
    alarm: Pin<Box<Sleep>>,
}

/// What a conversation is made with.
pub(super) struct Parts {
    pub(super) sandbox: String,
    pub(super) fifos: Fifos,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) close: CancellationToken,
    pub(super) end: watch::Sender<Option<GuestError>>,
    pub(super) metrics: GuestMetrics,
}

impl Conversation {
    /// In a tokio runtime's context.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        Ok(Self {
            log: Log::new(parts.sandbox.clone(), parts.metrics.clone()),
            sandbox: parts.sandbox,
            fifos: parts.fifos,
            commands: parts.commands,
            close: parts.close,
            end: parts.end,
            metrics: parts.metrics,
            link: Link::Aligning(Alignment::begin()?),
            is_stale: false,
            calls: Calls::default(),
            writer: Writer::default(),
            pace: Pace::new(RECORDS_PER_SECOND, RECORDS_BURST),
            is_busy: false,
            alarm: Box::pin(sleep_until(Instant::now())),
        })
    }

    /// Until the channel is closed or has failed.
    pub(super) async fn run(mut self) {
        let end = loop {
            if let Err(end) = self.turn().await {
                break end;
            }
            // A busy guest must not keep a worker thread from others.
            if self.is_busy {
                tokio::task::yield_now().await;
            }
            tokio::task::coop::consume_budget().await;
        };
        self.finish(&end);
    }

    async fn turn(&mut self) -> Result<(), End> {
        if self.close.is_cancelled() {
            return Err(End::Closed);
        }
        let link = &mut self.link;
        self.writer
            .write(&self.fifos.stdin, link, &mut self.calls)?;
        if let Some(command) = self.wait().await? {
            self.accept(command)?;
        }
        while let Ok(command) = self.commands.try_recv() {
            self.accept(command)?;
        }
        let now = Instant::now();
        self.read(now)?;
        self.read_log(now)?;
        self.expire(now)?;
        let link = &mut self.link;
        self.writer
            .write(&self.fifos.stdin, link, &mut self.calls)?;
        Ok(())
    }

    /// Until something may be done.
    async fn wait(&mut self) -> Result<Option<Command>, End> {
        let now = Instant::now();
        let reading = self.pace.resumes_at(now);
        let logging = self.log.resumes_at(now);
        let alarm = self.next_alarm(reading, logging);
        if let Some(at) = alarm.filter(|at| *at != self.alarm.deadline()) {
            self.alarm.as_mut().reset(at);
        }
        tokio::select! {
            () = self.close.cancelled() => Err(End::Closed),
            command = self.commands.recv() => command.map(Some).ok_or(End::Closed),
            () = poll_fn(|cx| self.calls.poll(cx)) => Ok(None),
            ready = self.fifos.stdout.readable(), if reading.is_none() => Ok(ready.map(|()| None)?),
            ready = self.fifos.stderr.readable(), if logging.is_none() => Ok(ready.map(|()| None)?),
            ready = self.fifos.stdin.writable(), if self.writer.is_blocked() => Ok(ready.map(|()| None)?),
            () = self.alarm.as_mut(), if alarm.is_some() => Ok(None),
        }
    }

    /// The first time that matters; an idle channel has none.
    fn next_alarm(&self, reading: Option<Instant>, logging: Option<Instant>) -> Option<Instant> {
        let hello = match &self.link {
            Link::Aligning(alignment) if self.calls.has_unsent() => alignment.repeats_at(),
            _ => None,
        };
        let times = [self.calls.first_deadline(), hello, reading, logging];
        times.into_iter().flatten().min()
    }

    fn accept(&mut self, (id, call): Command) -> Result<(), End> {
        if std::mem::take(&mut self.is_stale) {
            tracing::debug!(sandbox = self.sandbox, "a new session after silence");
            self.link = Link::Aligning(Alignment::begin()?);
            self.writer.forget();
            self.calls.close_session();
        }
        self.calls.accept(id, call);
        Ok(())
    }

    fn read(&mut self, now: Instant) -> Result<(), End> {
        let mut left = TURN_BYTES;
        self.is_busy = false;
        while left > 0 && self.pace.resumes_at(now).is_none() {
            let link = &mut self.link;
            let calls = &mut self.calls;
            let metrics = &self.metrics;
            let take = |bytes: &[u8]| link.take(bytes, calls, metrics, now).map(|()| bytes.len());
            let Some(count) = fifos::read(&self.fifos.stdout, take)? else {
                return Ok(());
            };
            left = left.saturating_sub(count?);
            let records = match &mut self.link {
                Link::Aligned(session) => session.take_records(),
                Link::Aligning(_) => 0,
            };
            // A read that brings less than a record costs as much as one.
            self.pace.spend(records.max(1), now);
        }
        self.is_busy = true;
        Ok(())
    }

    fn read_log(&mut self, now: Instant) -> Result<(), End> {
        if self.log.resumes_at(now).is_none() {
            fifos::read(&self.fifos.stderr, |bytes| self.log.take(bytes, now))?;
        }
        Ok(())
    }

    /// Calls whose time is up; another HELLO if one is due.
    fn expire(&mut self, now: Instant) -> Result<(), End> {
        match &mut self.link {
            Link::Aligned(session) => {
                self.is_stale |= self.calls.expire(now, Some(session.heard_at));
            }
            Link::Aligning(alignment) => {
                // It is being renewed already.
                self.calls.expire(now, None);
                let is_due = alignment.repeats_at().is_some_and(|at| at <= now);
                if is_due && self.calls.has_unsent() {
                    alignment.repeat(self.fifos.is_unread(), now)?;
                }
            }
        }
        Ok(())
    }

    /// Everybody learns of the end; the FIFOs close with `self`.
    fn finish(mut self, end: &End) {
        let sandbox = &self.sandbox;
        let error = match end {
            End::Closed => GuestError::Closed,
            End::Io(error) => {
                tracing::warn!(sandbox, %error, "guest channel failed");
                GuestError::Closed
            }
            End::Broken(what) => {
                tracing::warn!(sandbox, what, "guest broke the protocol");
                self.metrics.protocol_errors.inc();
                GuestError::Protocol(what)
            }
        };
        self.log.flush();
        // First: a client that finds the queue closed reads why.
        self.end.send_replace(Some(error.clone()));
        self.commands.close();
        while let Ok((id, call)) = self.commands.try_recv() {
            self.calls.accept(id, call);
        }
        self.calls.fail_all(&error);
    }
}

impl Link {
    /// Takes what was read.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        calls: &mut Calls,
        metrics: &GuestMetrics,
        now: Instant,
    ) -> Result<(), Broken> {
        match self {
            Self::Aligned(session) => converse(session, bytes, calls, metrics, now),
            Self::Aligning(alignment) => {
                let before = alignment.thrown_away();
                let found = alignment.find_ack(bytes);
                metrics.junk_bytes.inc_by(alignment.thrown_away() - before);
                let Some(rest) = found? else {
                    return Ok(());
                };
                metrics.sessions.inc();
                let mut session = Session::new(alignment.nonce(), now);
                converse(&mut session, &rest, calls, metrics, now)?;
                *self = Self::Aligned(session);
                Ok(())
            }
        }
    }
}

/// Takes what was read in a session that stands.
fn converse(
    session: &mut Session,
    bytes: &[u8],
    calls: &mut Calls,
    metrics: &GuestMetrics,
    now: Instant,
) -> Result<(), Broken> {
    let before = session.junk();
    session.feed(bytes);
    let mut taken = Ok(());
    while taken.is_ok() {
        taken = match session.next_message(now) {
            Ok(Some(message)) => calls.receive(message),
            Ok(None) => break,
            Err(broken) => Err(broken),
        };
    }
    metrics.junk_bytes.inc_by(session.junk() - before);
    taken
}
