//! Around every call: span, admission, room, deadline, metrics, one log line. The services behind it see admitted
//! callers only. Who shows a ServiceAccount token may wait for its review here; nobody else waits.

use super::body::{CallBody, Tally};
use super::caller::{self, Caller, Right};
use super::config::Guard;
use super::lanes::{Lanes, Place};
use super::method::{self, Lane, Method};
use super::metrics::Metrics;
use super::reviewed::Shown;
use super::status::{self, adopted};
use super::trace;
use super::until::{Shutdown, Until};
use crate::identity::{Class, Identity, Trail};
use crate::machine::refusal::Refusal;
use futures::FutureExt;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
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

/// What a call counts against.
fn class(method: &Method) -> Class {
    match method.lane {
        Lane::Returns => Class::Returns,
        Lane::Claims | Lane::Reads | Lane::Watches | Lane::Streams | Lane::Open => Class::Other,
    }
}

impl Rules {
    /// Counts a call of this caller. Before the decision, and not written down: refusing a flood must not become one.
    pub(super) fn within(&self, caller: &Arc<str>, class: Class) -> Result<(), Refusal> {
        let within = self.guard.limiter.take(caller, class, Instant::now());
        within.map_err(|wait| {
            self.guard.metrics.rate_limited();
            rate_limited(wait)
        })
    }

    /// Admits a call into its room.
    fn admit(
        &self,
        method: &'static Method,
        identity: &Identity,
        trace: &str,
        request: &Request<Body>,
    ) -> Result<(Caller, Place), Refusal> {
        let guard = &self.guard;
        self.within(&identity.name, class(method))?;
        let trail = guard.audit.trail(identity, method.name, trace);
        let right = caller::admit(method, identity, request.headers());
        match &right {
            Ok(Right::Role(_)) => trail.decided(true, "role"),
            // A token is judged where the claim is known; what is open to everybody is no decision.
            Ok(Right::Token(_) | Right::Open) => {}
            Err(refusal) => trail.decided(false, status::entry(refusal).reason),
        }
        let right = right?;
        self.enter(method, identity, right, trail)
    }

    /// Admits a call whose caller shows a token of another authority: not by the caller's own roles, by the token alone.
    async fn review(
        &self,
        method: &'static Method,
        identity: &Identity,
        trace: &str,
        shown: Shown,
    ) -> Result<(Caller, Place), Refusal> {
        let (identity, trail) = shown.judge(self, class(method), identity, trace).await?;
        let right = Right::Role(method.part());
        tracing::Span::current().record(CALLER, &*identity.name);
        self.enter(method, &identity, right, trail)
    }

    fn enter(
        &self,
        method: &'static Method,
        identity: &Identity,
        right: Right,
        trail: Trail,
    ) -> Result<(Caller, Place), Refusal> {
        let permit = self.lanes.enter(method.lane, &right, &identity.name)?;
        let name = Arc::clone(&identity.name);
        Ok((Caller { name, right, trail }, permit))
    }
}

/// A caller makes too many calls.
pub fn rate_limited(wait: Duration) -> Refusal {
    Refusal::RateLimited {
        retry_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1),
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
    S::Future: Send + 'static,
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
            caller = tracing::field::Empty,
        );
        let trace = trace::join(&span, request.headers());
        let rules = Arc::clone(&self.rules);
        let tally = Tally::begin(rules.metrics.clone(), method, span.clone());
        let mut until = Until::new(method, request.headers(), &rules.shutdown);
        let shown = rules.guard.reviewer.as_ref().and_then(|reviewer| {
            Shown::of(reviewer, method, &identity, request.headers_mut()).transpose()
        });
        let Some(shown) = shown else {
            // Whether or not it presents a claim's token.
            span.record(CALLER, &*identity.name);
            let admitted = rules.admit(method, &identity, &trace, &request);
            return admitted_or_refused(&mut self.inner, admitted, request, until, tally);
        };
        // The one that is ready; its clone need not be.
        let inner = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, inner);
        let reviewed = async move {
            let admitted = match shown {
                Err(refusal) => rules
                    .within(&identity.name, class(method))
                    .and(Err(refusal)),
                Ok(shown) => {
                    let review = rules.review(method, &identity, &trace, shown);
                    before(&mut until, review).await
                }
            };
            if admitted.is_err() {
                tracing::Span::current().record(CALLER, &*identity.name);
            }
            admitted_or_refused(&mut inner, admitted, request, until, tally).await
        };
        Box::pin(reviewed.instrument(span))
    }
}

/// The span's field of who calls.
const CALLER: &str = "caller";

type Admitted = Result<(Caller, Place), Refusal>;

/// Passes an admitted call on to the service, and answers the others.
fn admitted_or_refused<S>(
    inner: &mut S,
    admitted: Admitted,
    mut request: Request<Body>,
    until: Until,
    mut tally: Tally,
) -> Pin<Box<dyn Future<Output = Answer> + Send>>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    let (caller, permit) = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => {
            return Box::pin(std::future::ready(Ok(refused(refusal.into(), tally))));
        }
    };
    tally.admitted(caller.trail.clone());
    request.extensions_mut().insert(caller);
    let span = tally.span().clone();
    // Runs the service's code up to its first wait: inside the span.
    let answer = span.in_scope(|| inner.call(request));
    Box::pin(run(answer, until, tally, permit).instrument(span))
}

/// What comes of it, or what ends the call before.
async fn before<T>(
    until: &mut Until,
    work: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let mut work = pin!(work);
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(done),
        Poll::Pending => until.poll(cx).map(Err),
    })
    .await
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
