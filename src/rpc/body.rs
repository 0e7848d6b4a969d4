//! A call in flight: what is remembered of it until its answer has ended, and the answer's body.

use super::lanes::Place;
use super::method::{Ends, Method};
use super::metrics::{Metrics, code_name};
use super::trace;
use super::until::Until;
use crate::identity::Trail;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tonic::body::Body;
use tonic::codegen::http::HeaderMap;
use tonic::{Code, Status};
use tracing::Span;

/// Counts and logs a call when its answer has ended. One that is dropped before was left by its caller.
pub struct Tally {
    metrics: Metrics,
    method: &'static Method,
    began: Instant,
    span: Span,
    code: Code,
    /// Of an admitted call that changes something.
    trail: Option<Trail>,
}

impl Tally {
    /// A call begins.
    #[must_use]
    pub fn begin(metrics: Metrics, method: &'static Method, span: Span) -> Self {
        Self {
            metrics,
            method,
            began: Instant::now(),
            span,
            code: Code::Cancelled,
            trail: None,
        }
    }

    /// The call was admitted: how it ends goes to the audit log, if it changes something.
    pub fn admitted(&mut self, trail: Trail) {
        self.trail = Some(trail).filter(|_| self.method.changes);
    }

    /// The status is known.
    pub fn ended(&mut self, code: Code) {
        self.code = code;
    }

    /// The call's span.
    #[must_use]
    pub fn span(&self) -> &Span {
        &self.span
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        self.metrics.call_ended(self.method.name, self.code, took);
        if let Some(trail) = &self.trail {
            trail.ended(code_name(self.code));
        }
        trace::ended(&self.span, self.code);
        let (code, seconds) = (code_name(self.code), took.as_secs_f64());
        self.span.in_scope(|| {
            if self.method.loud || self.code != Code::Ok {
                tracing::info!(code, seconds, "call ended");
            } else {
                tracing::debug!(code, seconds, "call ended");
            }
        });
    }
}

/// The body of an answer: the service's, until it ends or must end.
pub struct CallBody {
    /// `None`: it has ended.
    inner: Option<Body>,
    until: Option<Until>,
    /// What never ends by itself tells its last words first (health: NOT_SERVING); what may flow for ever is cut.
    last_words: bool,
    tally: Tally,
    _permit: Option<Place>,
}

impl CallBody {
    /// A whole answer is in the headers.
    #[must_use]
    pub fn over(tally: Tally) -> Self {
        Self {
            inner: None,
            until: None,
            last_words: false,
            tally,
            _permit: None,
        }
    }

    /// An answer that goes on.
    #[must_use]
    pub fn new(inner: Body, until: Until, tally: Tally, permit: Place) -> Self {
        Self {
            inner: Some(inner),
            until: Some(until),
            last_words: tally.method.ends == Ends::AtOnce,
            tally,
            _permit: Some(permit),
        }
    }

    fn end(&mut self, code: Code) {
        self.tally.ended(code);
        // Drops what fed it: a stream's end is the end of what it did inside.
        self.inner = None;
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        let span = self.tally.span.clone();
        let polled = span.in_scope(|| Pin::new(inner).poll_frame(cx));
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let status = Status::from_header_map(trailers);
                    self.end(status.map_or(Code::Ok, |status| status.code()));
                }
            }
            Poll::Ready(Some(Err(status))) => self.end(status.code()),
            Poll::Ready(None) => self.end(Code::Ok),
            Poll::Pending => {}
        }
        polled
    }

    fn poll_until(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(until) = &mut self.until else {
            return Poll::Pending;
        };
        let Poll::Ready(refusal) = until.poll(cx) else {
            return Poll::Pending;
        };
        let status = Status::from(refusal);
        self.end(status.code());
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(
            status
                .add_header(&mut trailers)
                .map(|()| Frame::trailers(trailers)),
        ))
    }
}

impl http_body::Body for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.inner.is_none() {
            return Poll::Ready(None);
        }
        let (first, second): (Step, Step) = match this.last_words {
            true => (Self::poll_inner, Self::poll_until),
            false => (Self::poll_until, Self::poll_inner),
        };
        match first(this, cx) {
            Poll::Pending => second(this, cx),
            ready => ready,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

type Step = fn(&mut CallBody, &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>>;
