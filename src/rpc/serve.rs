//! The server: builds the services, serves them, and shuts down in order.

use super::archive;
use super::bounds;
use super::claims::ClaimsService;
use super::config::{Guard, Listeners, RpcConfig};
use super::connection::{Acceptor, Connection, Rooms};
use super::core::Core;
use super::door::Door;
use super::key::NodeKey;
use super::lanes::Lanes;
use super::layer::{CallLayer, Rules};
use super::metrics::Metrics;
use super::node::NodeService;
use super::places::Places;
use super::pools::PoolsService;
use super::sandboxes::SandboxesService;
use super::tcp::{self, Keeper, Serve, Tcp};
use super::until::Shutdown;
use crate::api::claims_server::ClaimsServer;
use crate::api::node_server::NodeServer;
use crate::api::pools_server::PoolsServer;
use crate::api::sandboxes_server::SandboxesServer;
use crate::driver::{Handle, Phase};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::layer::util::{Identity, Stack};

/// The server could not be built, or broke.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The directory of image archives can't be used.
    #[error("{path}: {source}")]
    ImportDir {
        /// Where.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The descriptors of the protos can't be read: a bug of the build.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport.
    #[error("the API's transport: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves the API on these listeners until `shutdown` resolves: then nothing new is accepted, watches end,
/// calls in flight and streams may finish for `config.limits.shutdown`, and what is left is ended with SHUTTING_DOWN.
/// Health says SERVING in phases Ready and Degraded. Spawned by `app`, inside the tokio runtime.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(
    listeners: Listeners,
    handle: Handle,
    config: RpcConfig,
    guard: Guard,
    metrics: Metrics,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    Box::pin(serve_door(
        listeners,
        Arc::new(handle),
        config,
        guard,
        metrics,
        shutdown,
    ))
    .await
}

/// [`serve()`] for whatever stands behind the door.
pub(super) async fn serve_door(
    listeners: Listeners,
    door: Arc<dyn Door>,
    config: RpcConfig,
    guard: Guard,
    metrics: Metrics,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let import_dir = |source| ServeError::ImportDir {
        path: config.limits.import_dir.clone(),
        source,
    };
    archive::clear(&config.limits).await.map_err(import_dir)?;
    let steps = Shutdown::default();
    let rooms = Rooms::new(metrics.clone());
    let (policy, identity_metrics) = (Arc::clone(&guard.policy), guard.metrics.clone());
    let rules = Arc::new(Rules {
        guard,
        lanes: Lanes::default(),
        metrics: metrics.clone(),
        shutdown: steps.clone(),
    });
    let patience = config.limits.shutdown;
    let phase = door.phase();
    let acceptor = Acceptor::new(
        listeners.unix,
        Arc::clone(&policy),
        rooms.clone(),
        steps.clone(),
    );
    let core = Arc::new(Core {
        door,
        key: NodeKey::new(&config.node_key),
        places: Places::new(config.limits.streams_per_sandbox, metrics.clone()),
        transfers: Arc::new(Semaphore::new(bounds::IMAGE_TRANSFERS)),
        config,
        metrics,
    });
    let health = HealthReporter::new();
    let now = *phase.borrow();
    tell(&health, now).await;
    let served = Served {
        rules,
        routes: routes(&core, &health)?,
    };
    let serving = served.router().serve_with_incoming_shutdown(
        acceptor.connections(),
        steps.begun.clone().cancelled_owned(),
    );
    let keeper = Keeper {
        policy,
        rooms,
        metrics: identity_metrics,
        shutdown: steps.clone(),
    };
    let both = async {
        let (unix, ()) = tokio::join!(serving, Box::pin(over_tcp(listeners.tcp, keeper, served)));
        unix
    };
    tokio::select! {
        served = both => Ok(served?),
        () = follow(&health, phase) => Ok(()),
        () = wind_down(&health, &steps, patience, shutdown) => Ok(()),
    }
}

async fn over_tcp(tcp: Option<Tcp>, keeper: Keeper, served: Served) {
    if let Some(tcp) = tcp {
        tcp.run(keeper, served).await;
    }
}

/// What is served on every connection.
#[derive(Clone)]
struct Served {
    rules: Arc<Rules>,
    routes: Routes,
}

impl Served {
    fn router(&self) -> Router<Stack<CallLayer, Identity>> {
        builder()
            .layer(CallLayer(Arc::clone(&self.rules)))
            .add_routes(self.routes.clone())
    }
}

impl Serve for Served {
    async fn serve(
        &self,
        connection: Connection,
        leave: impl Future<Output = ()> + Send + 'static,
    ) {
        let served = self
            .router()
            .serve_with_incoming_shutdown(tcp::only(connection), leave);
        if let Err(error) = served.await {
            tracing::debug!(%error, "serving a connection failed");
        }
    }
}

fn builder() -> Server {
    Server::builder()
        .max_concurrent_streams(bounds::STREAMS_PER_CONNECTION)
        .initial_stream_window_size(bounds::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(bounds::CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(bounds::HEADER_BYTES)
        .http2_keepalive_interval(Some(bounds::KEEP_ALIVE))
        .http2_keepalive_timeout(Some(bounds::KEEP_ALIVE_DEADLINE))
}

fn routes(core: &Arc<Core>, health: &HealthReporter) -> Result<Routes, ServeError> {
    let claims = ClaimsServer::new(ClaimsService(Arc::clone(core)));
    let sandboxes = SandboxesServer::new(SandboxesService(Arc::clone(core)));
    let pools = PoolsServer::new(PoolsService(Arc::clone(core)));
    let node = NodeServer::new(NodeService(Arc::clone(core)));
    let health = tonic_health::server::HealthService::from_health_reporter(health.clone());
    let health = tonic_health::pb::health_server::HealthServer::new(health);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(crate::api::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    Ok(
        Routes::new(claims.max_decoding_message_size(bounds::REQUEST_BYTES))
            .add_service(sandboxes.max_decoding_message_size(bounds::SANDBOX_REQUEST_BYTES))
            .add_service(pools.max_decoding_message_size(bounds::REQUEST_BYTES))
            .add_service(node.max_decoding_message_size(bounds::REQUEST_BYTES))
            .add_service(health.max_decoding_message_size(bounds::OPEN_REQUEST_BYTES))
            .add_service(reflection.max_decoding_message_size(bounds::OPEN_REQUEST_BYTES)),
    )
}

/// Services that health tells of: the whole server, and each of ours by name.
const SERVICES: [&str; 5] = [
    "",
    "hearth.v1.Claims",
    "hearth.v1.Sandboxes",
    "hearth.v1.Pools",
    "hearth.v1.Node",
];

async fn tell(health: &HealthReporter, phase: Phase) {
    let status = match phase {
        Phase::Ready | Phase::Degraded => ServingStatus::Serving,
        Phase::Recovering | Phase::ShuttingDown => ServingStatus::NotServing,
    };
    for service in SERVICES {
        health.set_service_status(service, status).await;
    }
}

/// Tells every change of phase; never ends.
async fn follow(health: &HealthReporter, mut phase: watch::Receiver<Phase>) {
    while phase.changed().await.is_ok() {
        let now = *phase.borrow_and_update();
        tell(health, now).await;
    }
    // The driver has ended; its last phase stands.
    std::future::pending().await
}

/// Goes through the steps of the shutdown; ends when the last connection has had its chance to end.
async fn wind_down(
    health: &HealthReporter,
    steps: &Shutdown,
    patience: Duration,
    shutdown: impl Future<Output = ()>,
) {
    shutdown.await;
    tell(health, Phase::ShuttingDown).await;
    tracing::info!(
        patience_seconds = patience.as_secs_f64(),
        "the API shuts down"
    );
    steps.begun.cancel();
    tokio::time::sleep(patience).await;
    steps.ended.cancel();
    tokio::time::sleep(bounds::CUT_PAUSE).await;
    steps.cut.cancel();
    tokio::time::sleep(bounds::CUT_PAUSE).await;
}
