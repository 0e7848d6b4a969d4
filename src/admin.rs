//! Probes, metrics and state dump, on ports of their own: `/livez /readyz /startupz /metrics /state` on loopback, and the
//! same without `/state` where the kubelet and Prometheus reach it, if that is asked for.
//!
//! Asks for no identity and therefore shows no secret: no environment, file, token or command of a claim; beyond loopback
//! no id of a claim or a sandbox either. Sees only the driver's [`Handle`] and the metrics registry.

use crate::driver::{Handle, Phase};
use crate::machine::event::Call;
use crate::machine::view::Answer;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Encoder, Registry, TextEncoder};
use std::future::Future;
use std::time::Duration;

/// How long the driver may take to answer a probe.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Shared {
    handle: Handle,
    registry: Registry,
}

/// Which pages a port has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Every one: for loopback.
    All,
    /// Probes and metrics only: for whoever reaches the node.
    Open,
}

/// The routes.
fn routes(pages: Pages, handle: Handle, registry: Registry) -> Router {
    let open = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/startupz", get(startupz))
        .route("/metrics", get(metrics));
    let all = match pages {
        Pages::All => open.route("/state", get(state)),
        Pages::Open => open,
    };
    all.with_state(Shared { handle, registry })
}

/// Serves until `shutdown` resolves. Spawned by `app`.
pub async fn serve(
    listener: tokio::net::TcpListener,
    pages: Pages,
    handle: Handle,
    registry: Registry,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, routes(pages, handle, registry))
        .with_graceful_shutdown(shutdown)
        .await
}

/// Alive: the driver's task answers. A hung driver is the one thing that only a restart mends.
async fn livez(State(shared): State<Shared>) -> Response {
    match tokio::time::timeout(PROBE_DEADLINE, shared.handle.call(Call::GetPools, None)).await {
        Ok(Ok(_)) => (StatusCode::OK, "ok\n").into_response(),
        // Refusals (queue full, starting) are answers: the driver lives.
        Ok(Err(refusal)) => (StatusCode::OK, format!("ok: {refusal}\n")).into_response(),
        Err(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the driver does not answer\n",
        )
            .into_response(),
    }
}

/// Ready: recovery has finished and no shutdown has begun. The level of a pool is a metric, not readiness.
async fn readyz(State(shared): State<Shared>) -> Response {
    match *shared.handle.phase().borrow() {
        Phase::Ready => (StatusCode::OK, "ok\n"),
        Phase::Degraded => (
            StatusCode::OK,
            "ok: containerd is unreachable; warm claims and releases are served\n",
        ),
        Phase::Recovering => (StatusCode::SERVICE_UNAVAILABLE, "recovering\n"),
        Phase::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
    }
    .into_response()
}

/// Started: recovery has finished once.
async fn startupz(State(shared): State<Shared>) -> Response {
    match *shared.handle.phase().borrow() {
        Phase::Recovering => (StatusCode::SERVICE_UNAVAILABLE, "recovering\n"),
        Phase::Ready | Phase::Degraded | Phase::ShuttingDown => (StatusCode::OK, "ok\n"),
    }
    .into_response()
}

/// Prometheus text format.
async fn metrics(State(shared): State<Shared>) -> Response {
    shared.handle.prepare_metrics().await;
    let encode = move || {
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&shared.registry.gather(), &mut text);
        encoded.map(|()| text)
    };
    // Some of it is read from files.
    let encoded = tokio::task::spawn_blocking(encode).await;
    let encoded = encoded.map_err(|error| error.to_string());
    match encoded.and_then(|encoded| encoded.map_err(|error| error.to_string())) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// The machine's whole state as JSON.
async fn state(State(shared): State<Shared>) -> Response {
    let answered =
        tokio::time::timeout(PROBE_DEADLINE, shared.handle.call(Call::Inspect, None)).await;
    let view = match answered {
        Ok(Ok(answered)) => match answered.answer {
            Answer::Node(view) => view,
            other => {
                return (
                    StatusCode::INTERNAL_SERVER_ERROR,
                    format!("unexpected answer {other:?}\n"),
                )
                    .into_response();
            }
        },
        Ok(Err(refusal)) => {
            return (StatusCode::SERVICE_UNAVAILABLE, format!("{refusal}\n")).into_response();
        }
        Err(_) => {
            return (
                StatusCode::SERVICE_UNAVAILABLE,
                "the driver does not answer\n",
            )
                .into_response();
        }
    };
    match serde_json::to_vec_pretty(&view) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
