//! The ports of probes and metrics: one on loopback with every page, and where `admin.metrics_listen` says so one that
//! the kubelet and Prometheus reach, without the state dump.

use super::{AppError, host};
use crate::admin::{self, Pages};
use crate::config::Config;
use crate::driver::Handle;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// What is bound and not yet served.
pub(super) struct Ports(Vec<(TcpListener, Pages)>);

impl Ports {
    /// Binds what is configured.
    pub(super) async fn bind(config: &Config) -> Result<Self, AppError> {
        let wanted = [
            ("admin.listen", config.admin_address(), Pages::All),
            (
                "admin.metrics_listen",
                config.metrics_address(),
                Pages::Open,
            ),
        ];
        let mut bound = Vec::new();
        for (key, address, pages) in wanted {
            // A wrong address was refused when the configuration was read.
            if let Ok(Some(address)) = address {
                let listener = TcpListener::bind(address).await;
                bound.push((listener.map_err(host(format!("{key} {address}")))?, pages));
            }
        }
        Ok(Self(bound))
    }

    /// Serves them until `stop`.
    pub(super) fn serve(self, handle: &Handle, registry: &Registry, stop: &CancellationToken) {
        for (listener, pages) in self.0 {
            if let Ok(address) = listener.local_addr() {
                info!(%address, ?pages, "probes and metrics");
            }
            let shutdown = stop.clone().cancelled_owned();
            let (handle, registry) = (handle.clone(), registry.clone());
            tokio::spawn(admin::serve(listener, pages, handle, registry, shutdown));
        }
    }
}
