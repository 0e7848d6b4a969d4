//! The services over a real socket, with the fake driver behind them.

mod access;
mod claims;
mod code;
mod images;
mod overload;
mod pools;
mod sanity;
mod shutdown;
mod streams;
mod tls;
mod tokens;

use super::config::{Guard, Listeners, RpcConfig, RpcLimits};
use super::fakes::{FakeDriver, HANDLER, TAG};
use super::metrics::Metrics;
use super::serve::{ServeError, serve_door};
use super::tcp::Tcp;
use crate::api::claims_client::ClaimsClient;
use crate::api::node_client::NodeClient;
use crate::api::pools_client::PoolsClient;
use crate::api::sandboxes_client::SandboxesClient;
use crate::api::*;
use crate::identity::{self, Audit, AuditConfig, Limiter, Policy, Roles};
use crate::machine::handler::Handler;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The pool of every bench: two warm members, four at most.
const POOL: &str = "python";
/// What must happen happens within this.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server with its fake driver.
struct Bench {
    driver: Arc<FakeDriver>,
    registry: prometheus::Registry,
    dir: tempfile::TempDir,
    stop: CancellationToken,
    server: Option<JoinHandle<Result<(), ServeError>>>,
}

fn ourselves() -> u32 {
    nix::unistd::getuid().as_raw()
}

/// Lets this identity do everything.
pub fn guard(registry: &prometheus::Registry, admin: &str, audit: &Path) -> Guard {
    let lists = [admin.to_owned()];
    let policy = Policy::new([(Roles::ADMIN, lists.as_slice())]).unwrap();
    guard_of(registry, policy, 1_000_000, audit)
}

fn guard_of(
    registry: &prometheus::Registry,
    policy: Policy,
    calls_per_second: u32,
    audit: &Path,
) -> Guard {
    let metrics = identity::Metrics::register(registry).unwrap();
    let config = AuditConfig {
        file: Some(audit.to_owned()),
        max_bytes: 1 << 20,
    };
    let (audit, writer) = Audit::open(config, metrics.clone()).unwrap();
    // Ends with the server.
    std::thread::spawn(|| writer.run());
    Guard {
        policy: policy.into(),
        audit,
        limiter: Limiter::new(calls_per_second).into(),
        reviewer: None,
        metrics,
    }
}

impl Bench {
    /// Whom we may call everything of.
    async fn start() -> Self {
        Self::with(|_| ()).await
    }

    async fn with(change: impl FnOnce(&mut RpcConfig)) -> Self {
        let guard = |registry: &prometheus::Registry, dir: &Path| {
            guard(registry, &format!("uid:{}", ourselves()), dir)
        };
        Self::guarded(guard, None, change).await
    }

    async fn guarded(
        guard: impl FnOnce(&prometheus::Registry, &Path) -> Guard,
        tcp: Option<Tcp>,
        change: impl FnOnce(&mut RpcConfig),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = RpcConfig {
            node_key: [7; 32],
            endpoints: vec!["unix:///run/hearth/hearth.sock".into()],
            version: "1.2.3".into(),
            node_tag: TAG,
            started_at: SystemTime::now(),
            max_sandboxes: 77,
            cgroup_version: 2,
            limits: RpcLimits {
                streams_per_sandbox: 4,
                image_import_bytes: 1 << 20,
                import_dir: dir.path().join("import"),
                disk_reserve_bytes: 0,
                shutdown: Duration::from_millis(300),
            },
        };
        change(&mut config);
        let driver = FakeDriver::new();
        let registry = prometheus::Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let socket = dir.path().join("s");
        let unix = super::bind(&socket, 0o600).await.unwrap();
        let listeners = Listeners { unix, tcp };
        let guard = guard(&registry, &dir.path().join("audit.log"));
        let stop = CancellationToken::new();
        let (door, shutdown) = (Arc::clone(&driver), stop.clone().cancelled_owned());
        let server = tokio::spawn(async move {
            Box::pin(serve_door(
                listeners, door, config, guard, metrics, shutdown,
            ))
            .await
        });
        let bench = Self {
            driver,
            registry,
            dir,
            stop,
            server: Some(server),
        };
        bench.declare_pool();
        bench
    }

    fn declare_pool(&self) {
        let pool = Pool {
            name: POOL.into(),
            generation: 1,
            template: Some(Template {
                image: "python:3".into(),
                runtime_handler: HANDLER.into(),
                ..Default::default()
            }),
            min_warm: 2,
            max_total: 4,
            ..Default::default()
        };
        let request = SetPoolsRequest {
            generation: 1,
            pools: vec![pool],
            epoch: 1,
        };
        let (set, _) = super::check::set_pools(request, &[Handler::named(HANDLER, true)]).unwrap();
        self.driver.declare(set);
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::try_from(format!("unix://{}", self.socket().display())).unwrap()
    }

    async fn channel(&self) -> Channel {
        self.endpoint().connect().await.unwrap()
    }

    async fn claims(&self) -> ClaimsClient<Channel> {
        ClaimsClient::new(self.channel().await)
    }

    async fn sandboxes(&self) -> SandboxesClient<Channel> {
        SandboxesClient::new(self.channel().await)
    }

    async fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel().await)
    }

    async fn pools(&self) -> PoolsClient<Channel> {
        PoolsClient::new(self.channel().await)
    }

    /// A claim that is granted.
    async fn claimed(&self) -> (String, ClaimResponse) {
        let request = claim_request();
        let id = request.claim_id.clone();
        let response = self.claims().await.claim(request).await.unwrap();
        (id, response.into_inner())
    }

    fn metrics(&self) -> String {
        prometheus::TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap()
    }

    /// A line of the metrics appears.
    async fn counted(&self, line: &str) {
        eventually(line, || self.metrics().lines().any(|found| found == line)).await;
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
    }
}

/// A client that can die: on a runtime of its own, so that all its sockets are closed at once. A client that lives and
/// lets go of a call ends its stream of requests in an orderly way, which may say "that was all".
struct Mortal(Option<tokio::runtime::Runtime>);

impl Mortal {
    fn born() -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        Self(Some(
            builder.worker_threads(1).enable_all().build().unwrap(),
        ))
    }

    fn spawn(&self, life: impl Future<Output = ()> + Send + 'static) {
        self.0.as_ref().unwrap().spawn(life);
    }
}

/// Dies.
impl Drop for Mortal {
    fn drop(&mut self) {
        self.0.take().unwrap().shutdown_background();
    }
}

fn claim_request() -> ClaimRequest {
    ClaimRequest {
        claim_id: uuid::Uuid::new_v4().to_string(),
        pool: POOL.into(),
        epoch: 1,
        ..Default::default()
    }
}

fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    details
        .error_info()
        .map(|info| info.reason.clone())
        .unwrap_or_default()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, why: &str) -> Status {
    let status = answer.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (code, why),
        "{status:?}"
    );
    status
}

/// Waits for something that must come.
async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !done() {
        assert!(
            began.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
