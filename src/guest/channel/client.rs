//! [`Guest`] for callers: makes calls, hands them to the task, waits for their answers.

use super::ChannelConfig;
use super::call::{Answer, Call, Kind, Work};
use super::conversation::Command;
use super::inlet::{self, Takes};
use super::limits::{LONGEST_DEADLINE, SHORT_CALLS};
use super::metrics::GuestMetrics;
use super::outgoing::Outgoing;
use super::outlet;
use super::stream::{Stream, StreamParts};
use crate::guest::{Guest, GuestError, GuestStream, Personalization, Silence, v1};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use v1::host_message::Body;

/// Mode of a secret's file.
const SECRET_MODE: u32 = 0o600;
/// Fresh random bytes for the guest's random device.
const ENTROPY_BYTES: usize = 32;

/// The client's end of one channel. Dropping it ends the channel.
pub(super) struct FifoGuest {
    commands: mpsc::Sender<Command>,
    close: CancellationToken,
    end: watch::Receiver<Option<GuestError>>,
    next_call: AtomicU64,
    short_calls: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    config: ChannelConfig,
    metrics: GuestMetrics,
}

/// A stream to be opened.
struct Opening {
    kind: Kind,
    body: Body,
    takes: Takes,
    limit: u64,
}

impl FifoGuest {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        close: CancellationToken,
        end: watch::Receiver<Option<GuestError>>,
        config: ChannelConfig,
        metrics: GuestMetrics,
    ) -> Self {
        Self {
            commands,
            close,
            end,
            next_call: AtomicU64::new(1),
            short_calls: Arc::new(Semaphore::new(SHORT_CALLS)),
            streams: Arc::new(Semaphore::new(config.streams)),
            config,
            metrics,
        }
    }

    /// How the channel ended.
    fn ending(&self) -> GuestError {
        self.end.borrow().clone().unwrap_or(GuestError::Closed)
    }

    fn hand_over(&self, id: u64, call: Call) -> Result<(), GuestError> {
        use mpsc::error::TrySendError;
        self.commands
            .try_send((id, Box::new(call)))
            .map_err(|error| match error {
                TrySendError::Full(_) => GuestError::Limit,
                TrySendError::Closed(_) => self.ending(),
            })
    }

    fn make(
        &self,
        kind: Kind,
        body: Body,
        permit: OwnedSemaphorePermit,
        deadline: Duration,
        work: Work,
    ) -> Result<(u64, Call), GuestError> {
        let id = self.next_call.fetch_add(1, Ordering::Relaxed);
        let made_at = Instant::now();
        let call = Call {
            kind,
            work,
            start: Some(Outgoing::encode(id, body)?),
            made_at,
            written_at: None,
            deadline: Some(made_at + deadline.min(LONGEST_DEADLINE)),
            _permit: permit,
        };
        Ok((id, call))
    }

    /// A short call: one question, one answer.
    async fn ask(&self, kind: Kind, body: Body, deadline: Duration) -> Result<Answer, GuestError> {
        let asked_at = Instant::now();
        let result = self.ask_unmeasured(kind, body, deadline).await;
        self.answered(kind, asked_at, result.as_ref().err());
        result
    }

    async fn ask_unmeasured(
        &self,
        kind: Kind,
        body: Body,
        deadline: Duration,
    ) -> Result<Answer, GuestError> {
        let permit = permit_of(&self.short_calls)?;
        let (reply, answer) = oneshot::channel();
        let (id, call) = self.make(kind, body, permit, deadline, Work::Short(reply))?;
        self.hand_over(id, call)?;
        answer.await.unwrap_or_else(|_| Err(self.ending()))
    }

    /// Opens a stream and waits for its start.
    async fn open(&self, opening: Opening) -> Result<GuestStream, GuestError> {
        let (kind, asked_at) = (opening.kind, Instant::now());
        let result = self.open_unmeasured(opening).await;
        self.answered(kind, asked_at, result.as_ref().err());
        result
    }

    async fn open_unmeasured(&self, opening: Opening) -> Result<GuestStream, GuestError> {
        let permit = permit_of(&self.streams)?;
        let (started, start) = oneshot::channel();
        let (to_owner, output) = mpsc::channel(outlet::QUEUE_ITEMS);
        let (input, from_owner) = mpsc::channel(inlet::QUEUE_ITEMS);
        let stream = Stream::new(StreamParts {
            kind: opening.kind,
            takes: opening.takes,
            limit: opening.limit,
            started,
            output: to_owner,
            input: from_owner,
        });
        let work = Work::Stream(Box::new(stream));
        let deadline = self.config.start_deadline;
        let (id, call) = self.make(opening.kind, opening.body, permit, deadline, work)?;
        self.hand_over(id, call)?;
        start.await.unwrap_or_else(|_| Err(self.ending()))?;
        Ok(GuestStream { input, output })
    }

    /// For the figures, and a line inside the caller's span.
    fn answered(&self, kind: Kind, asked_at: Instant, error: Option<&GuestError>) {
        let took = asked_at.elapsed();
        if error.is_none() {
            self.metrics.answered(kind, took);
        }
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let error = error.map(outcome);
        tracing::debug!(call = kind.label(), took_us, error, "guest call");
    }
}

/// An error's kind without anything the guest wrote.
fn outcome(error: &GuestError) -> &'static str {
    match error {
        GuestError::Silent(_) => "silent",
        GuestError::Protocol(_) => "protocol",
        GuestError::Closed => "closed",
        GuestError::Limit => "limit",
        GuestError::Failed { kind, .. } => kind.as_str_name(),
    }
}

fn permit_of(semaphore: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, GuestError> {
    Arc::clone(semaphore)
        .try_acquire_owned()
        .map_err(|_| GuestError::Limit)
}

/// An answer of the wrong kind never leaves the task; the compiler does not know.
const WRONG_KIND: GuestError = GuestError::Protocol("an answer of the wrong kind");

/// Everything a claim is told, with fresh entropy and the wall clock.
fn claim(claim_id: &str, what: &Personalization) -> Result<v1::Claim, GuestError> {
    let mut entropy = vec![0; ENTROPY_BYTES];
    getrandom::fill(&mut entropy).map_err(|_| GuestError::Failed {
        kind: v1::FailureKind::Io,
        message: "the host has no random bytes".to_owned(),
    })?;
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    let wall_clock = since_epoch.unwrap_or_default().as_nanos();
    let file = |path: &str, content: &Bytes, mode| v1::GuestFile {
        path: path.to_owned(),
        content: content.clone(),
        mode,
    };
    let files = what.files.iter();
    let secrets = what.secrets.iter();
    Ok(v1::Claim {
        claim_id: claim_id.to_owned(),
        env: what.env.clone(),
        files: files
            .map(|(path, content, mode)| file(path, content, *mode))
            .collect(),
        secrets: secrets
            .map(|(name, value)| file(name, value, SECRET_MODE))
            .collect(),
        hostname: what.hostname.clone(),
        wall_clock_ns: u64::try_from(wall_clock).unwrap_or_default(),
        entropy: Bytes::from(entropy),
    })
}

#[async_trait]
impl Guest for FifoGuest {
    async fn ping(&self, deadline: Duration) -> Result<String, GuestError> {
        match self
            .ask(Kind::Ping, Body::Ping(v1::Ping::default()), deadline)
            .await?
        {
            Answer::Pong(version) => Ok(version),
            _ => Err(WRONG_KIND),
        }
    }

    async fn quiesce(&self, silence: Silence, deadline: Duration) -> Result<(), GuestError> {
        let body = Body::Ping(v1::Ping {
            quiesce: true,
            quiesce_seconds: silence.seconds(),
        });
        match self.ask(Kind::Quiesce, body, deadline).await? {
            Answer::Pong(_) => Ok(()),
            _ => Err(WRONG_KIND),
        }
    }

    async fn personalize(
        &self,
        claim_id: &str,
        what: &Personalization,
        deadline: Duration,
    ) -> Result<(), GuestError> {
        let body = Body::Claim(claim(claim_id, what)?);
        match self.ask(Kind::Personalize, body, deadline).await? {
            Answer::Personalized => Ok(()),
            _ => Err(WRONG_KIND),
        }
    }

    async fn witness(&self, deadline: Duration) -> Result<String, GuestError> {
        let body = Body::Witness(v1::Witness {});
        match self.ask(Kind::Witness, body, deadline).await? {
            Answer::Held(claim_id) => Ok(claim_id),
            _ => Err(WRONG_KIND),
        }
    }

    async fn exec(&self, exec: v1::Exec) -> Result<GuestStream, GuestError> {
        let takes = Takes {
            data: exec.stdin,
            size: exec.tty,
            signals: true,
        };
        self.open(Opening {
            kind: Kind::Exec,
            body: Body::Exec(exec),
            takes,
            limit: u64::MAX,
        })
        .await
    }

    async fn attach(&self, attach: v1::Attach) -> Result<GuestStream, GuestError> {
        let takes = Takes {
            data: false,
            size: false,
            signals: true,
        };
        self.open(Opening {
            kind: Kind::Exec,
            body: Body::Attach(attach),
            takes,
            limit: u64::MAX,
        })
        .await
    }

    async fn read_file(&self, request: v1::ReadFile) -> Result<GuestStream, GuestError> {
        let limit = match request.limit {
            0 => u64::MAX,
            limit => limit,
        };
        self.open(Opening {
            kind: Kind::ReadFile,
            body: Body::ReadFile(request),
            takes: Takes::default(),
            limit,
        })
        .await
    }

    async fn write_file(&self, request: v1::WriteFile) -> Result<GuestStream, GuestError> {
        self.open(Opening {
            kind: Kind::WriteFile,
            body: Body::WriteFile(request),
            takes: Takes::DATA,
            limit: 0,
        })
        .await
    }

    async fn list_files(&self, request: v1::ListFiles) -> Result<GuestStream, GuestError> {
        self.open(Opening {
            kind: Kind::ListFiles,
            body: Body::ListFiles(request),
            takes: Takes::default(),
            limit: 0,
        })
        .await
    }

    async fn connect(&self, port: u16) -> Result<GuestStream, GuestError> {
        let body = Body::Connect(v1::Connect {
            port: u32::from(port),
        });
        self.open(Opening {
            kind: Kind::Connect,
            body,
            takes: Takes::DATA,
            limit: u64::MAX,
        })
        .await
    }

    async fn interpreter(&self, deadline: Duration) -> Result<(), GuestError> {
        let body = Body::Interpreter(v1::InterpreterQuery {});
        match self.ask(Kind::Interpreter, body, deadline).await? {
            Answer::InterpreterReady => Ok(()),
            _ => Err(WRONG_KIND),
        }
    }

    async fn run_code(&self, request: v1::RunCode) -> Result<GuestStream, GuestError> {
        self.open(Opening {
            kind: Kind::RunCode,
            body: Body::RunCode(request),
            takes: Takes::default(),
            limit: u64::MAX,
        })
        .await
    }

    async fn interrupt(
        &self,
        request: v1::Interrupt,
        deadline: Duration,
    ) -> Result<bool, GuestError> {
        let body = Body::Interrupt(request);
        match self.ask(Kind::Interrupt, body, deadline).await? {
            Answer::Interrupted(ran) => Ok(ran),
            _ => Err(WRONG_KIND),
        }
    }

    async fn stats(&self, deadline: Duration) -> Result<v1::GuestStats, GuestError> {
        let body = Body::Stats(v1::StatsQuery {});
        match self.ask(Kind::Stats, body, deadline).await? {
            Answer::Stats(stats) => Ok(stats),
            _ => Err(WRONG_KIND),
        }
    }

    async fn failed(&self) -> GuestError {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(error) => error.clone().unwrap_or(GuestError::Closed),
            Err(_) => GuestError::Closed,
        }
    }

    fn close(&self) {
        self.close.cancel();
    }
}

impl Drop for FifoGuest {
    fn drop(&mut self) {
        self.close.cancel();
    }
}
