//! What stands between callers and the API: listeners, TLS and its reloading, roles, limits, the audit log.

use super::{AppError, host};
use crate::config::{ClientCertificate, Config};
use crate::identity::{self, Audit, AuditConfig, Limiter, Reloader, Reviewer, TlsFiles};
use crate::rpc::{self, Guard, Listeners, Tcp};
use prometheus::Registry;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// Binds both listeners; spawns the reloader of TLS's files and the writer of the audit log.
pub(super) async fn listen(
    config: &Config,
    registry: &Registry,
    reviewer: Option<Arc<Reviewer>>,
) -> Result<(Listeners, Guard), AppError> {
    let metrics = identity::Metrics::register(registry)?;
    let unix = rpc::bind(&config.api.socket, config.socket_mode().unwrap_or(0o660)).await?;
    let tcp = listen_tcp(config, &metrics).await?;
    let audit = AuditConfig {
        file: config.audit.path(&config.data_dir),
        max_bytes: config.audit.max_bytes,
    };
    let (audit, writer) = Audit::open(audit, metrics.clone())?;
    std::thread::Builder::new()
        .name("audit".into())
        .spawn(|| writer.run())
        .map_err(host("starting the audit log's thread"))?;
    let guard = Guard {
        policy: Arc::new(config.api.roles.policy()),
        audit,
        limiter: Arc::new(Limiter::new(config.limits.calls_per_second)),
        reviewer,
        metrics,
    };
    Ok((Listeners { unix, tcp }, guard))
}

async fn listen_tcp(config: &Config, metrics: &identity::Metrics) -> Result<Option<Tcp>, AppError> {
    // `config` has checked the address.
    let Ok(Some(address)) = config.api.tcp_address() else {
        return Ok(None);
    };
    let (reloader, tls) = Reloader::load(files(config), metrics.clone())?;
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(host(format!("api.tcp {address}")))?;
    tokio::spawn(reloader.run());
    tracing::info!(%address, "the API over TCP, with TLS");
    Ok(Some(Tcp {
        listener,
        tls,
        age: Duration::from_secs(config.api.connection_age_seconds),
        grace: Duration::from_secs(config.api.connection_grace_seconds),
    }))
}

/// Reads the files of TLS, if they are used.
pub(super) fn check(config: &Config) -> Result<(), AppError> {
    if let Ok(Some(_)) = config.api.tcp_address() {
        let metrics = identity::Metrics::register(&Registry::new())?;
        Reloader::load(files(config), metrics)?;
    }
    Ok(())
}

fn files(config: &Config) -> TlsFiles {
    let tls = &config.api.tls;
    TlsFiles {
        certificate: tls.certificate.clone(),
        key: tls.key.clone(),
        client_ca: tls.client_ca.clone(),
        client_certificate: match tls.client_certificate {
            ClientCertificate::Required => identity::ClientCertificate::Required,
            ClientCertificate::Optional => identity::ClientCertificate::Optional,
        },
    }
}
