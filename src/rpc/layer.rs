//! Around every call: span, admission, room, deadline, metrics, one log line. The services behind it see admitted
//! callers only.

use super::body::{CallBody, Tally};
use super::caller::{self, Caller, Right};
use super::config::Guard;
use super::lanes::{Lanes, Place};
use super::method::{self, Lane, Method};
use super::metrics::Metrics;
use super::status::{self, adopted};
use super::trace;
use super::until::{Shutdown, Until};
use crate::identity::{Class, Identity};
use crate::machine::refusal::Refusal;
use futures::FutureExt;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Instrument;

/// What every call is judged by.
pub struct Rules {
    /// Who may call, and what is written down of it.
    pub guard: Guard,
    /// Rooms for calls in flight.
    pub lanes: Lanes,
    /// Metrics.
    pub metrics: Metrics,
    /// Shutdown.
    pub shutdown: Shutdown,
}

impl Rules {
    /// Admits a call into its room.
    fn admit(
        &self,
        method: &'static Method,
        identity: &Identity,
        trace: &str,
        request: &Request<Body>,
    ) -> Result<(Caller, Place), Refusal> {
        let guard = &self.guard;
        let class = match method.lane {
            Lane::Returns => Class::Returns,
            Lane::Claims | Lane::Reads | Lane::Watches | Lane::Streams | Lane::Open => Class::Other,
        };
        // Before the decision, and not written down: refusing a flood must not become one.
        let within = guard.limiter.take(&identity.name, class, Instant::now());
        within.map_err(|wait| {
            guard.metrics.rate_limited();
            Refusal::RateLimited {
                retry_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1),
            }
        })?;
        let trail = guard.audit.trail(identity, method.name, trace);
        let right = caller::admit(method, identity, request.headers());
        match &right {
            Ok(Right::Role(_)) => trail.decided(true, "role"),
            // A token is judged where the claim is known; what is open to everybody is no decision.
            Ok(Right::Token(_) | Right::Open) => {}
            Err(refusal) => trail.decided(false, status::entry(refusal).reason),
        }
        let right = right?;
        let permit = self.lanes.enter(method.lane, &right, &identity.name)?;
        let name = Arc::clone(&identity.name);
        Ok((Caller { name, right, trail }, permit))
    }
}

/// Puts [`CallService`] around the router.
#[derive(Clone)]
pub struct CallLayer(pub Arc<Rules>);

impl<S> Layer<S> for CallLayer {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CallService {
            inner,
            rules: Arc::clone(&self.0),
        }
    }
}

/// See [`CallLayer`].
#[derive(Clone)]
pub struct CallService<S> {
    inner: S,
    rules: Arc<Rules>,
}

type Answer = Result<Response<CallBody>, Infallible>;

impl<S> Service<Request<Body>> for CallService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = Response<CallBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let method = method::find(request.uri().path());
        let identity = caller::identity(request.extensions());
        let span = tracing::info_span!(
            "rpc",
            method = method.name,
            trace_id = tracing::field::Empty,
            // Whether or not it presents a token.
            caller = &*identity.name,
        );
        let trace = trace::join(&span, request.headers());
        let admitted = self.rules.admit(method, &identity, &trace, &request);
        let mut tally = Tally::begin(self.rules.metrics.clone(), method, span);
        let (caller, permit) = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => {
                return Box::pin(std::future::ready(Ok(refused(refusal.into(), tally))));
            }
        };
        tally.admitted(caller.trail.clone());
        request.extensions_mut().insert(caller);
        let until = Until::new(method, request.headers(), &self.rules.shutdown);
        let span = tally.span().clone();
        // Runs the service's code up to its first wait: inside the span.
        let answer = span.in_scope(|| self.inner.call(request));
        Box::pin(run(answer, until, tally, permit).instrument(span))
    }
}

/// Waits for the head of the answer, or for what ends the call before.
async fn run<F>(answer: F, mut until: Until, tally: Tally, permit: Place) -> Answer
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    let mut answer = pin!(AssertUnwindSafe(answer).catch_unwind());
    let head = poll_fn(|cx| match answer.as_mut().poll(cx) {
        // One call's bug must not take down the other calls of its connection.
        Poll::Ready(Err(_panic)) => Poll::Ready(Err(Refusal::Internal {
            detail: "the call panicked".to_owned(),
        })),
        Poll::Ready(Ok(Ok(head))) => Poll::Ready(Ok(head)),
        Poll::Pending => until.poll(cx).map(Err),
    });
    Ok(match head.await {
        Err(refusal) => refused(refusal.into(), tally),
        Ok(head) => match Status::from_header_map(head.headers()) {
            Some(status) if status.code() != Code::Ok => refused(adopted(status), tally),
            _ => head.map(|body| CallBody::new(body, until, tally, permit)),
        },
    })
}

fn refused(status: Status, mut tally: Tally) -> Response<CallBody> {
    tally.ended(status.code());
    let (head, ()) = status.into_http::<()>().into_parts();
    Response::from_parts(head, CallBody::over(tally))
}

#[cfg(test)]
#[path = "layer_tests.rs"]
mod tests;
