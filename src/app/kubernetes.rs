//! hearthd's own calls to the Kubernetes API, where they are asked for.

use super::AppError;
use crate::config::Config;
use crate::driver::Handle;
use crate::identity::Reviewer;
use prometheus::Registry;
use std::sync::Arc;

/// What calls the API server; nothing where it is off. Nothing of hearthd waits for it, except [`Kubernetes::stop`], which
/// has a bound.
pub(super) struct Kubernetes {
    #[cfg(feature = "kube")]
    running: Option<crate::kube::Running>,
}

impl Kubernetes {
    /// Begins: the node is labelled as not ready before anything on it is touched, if the API server answers by then.
    ///
    /// # Errors
    /// No node name, no credentials. An API server that is away is no error.
    pub(super) async fn begin(config: &Config, registry: &Registry) -> Result<Self, AppError> {
        #[cfg(feature = "kube")]
        {
            let running = match config.kubernetes.enabled {
                true => Some(Box::pin(connect(config, registry)).await?),
                false => None,
            };
            Ok(Self { running })
        }
        #[cfg(not(feature = "kube"))]
        {
            // The configuration was refused if it is enabled.
            let (_, _) = (config, registry);
            Ok(Self {})
        }
    }

    /// Who reviews callers' tokens; `None`: they are not taken.
    ///
    /// # Errors
    /// A metric was registered twice: a bug.
    pub(super) fn reviewer(
        &self,
        config: &Config,
        registry: &Registry,
    ) -> Result<Option<Arc<Reviewer>>, AppError> {
        #[cfg(feature = "kube")]
        if let Some(running) = &self.running
            && config.kubernetes.tokens.enabled
        {
            return Ok(Some(reviewer(running, config, registry)?));
        }
        #[cfg(not(feature = "kube"))]
        let (_, _) = (config, registry);
        Ok(None)
    }

    /// The driver is there: from now on the node tells what it does, and hears what the cluster wants. Where no cluster is
    /// asked, none will take back what one has said before.
    pub(super) async fn serve(&mut self, handle: &Handle) {
        #[cfg(feature = "kube")]
        if let Some(running) = &mut self.running {
            running.serve(handle);
            return;
        }
        handle.cordon(false).await;
        handle.cluster_drain(None).await;
    }

    /// Begins to keep the pools that the cluster declares, and to ask it about templates.
    ///
    /// # Errors
    /// A metric was registered twice: a bug.
    pub(super) fn serve_pools(
        &self,
        config: &Config,
        handle: &Handle,
        registry: &Registry,
    ) -> Result<(), AppError> {
        #[cfg(feature = "kube")]
        if let Some(running) = &self.running {
            let pools = crate::kube::Pools {
                warm_pools: config.kubernetes.warm_pools.then(|| check(handle)),
                rules: super::policies::rules(config),
                ask_again: std::time::Duration::from_secs(config.kubernetes.admission_seconds),
                metrics: crate::kube::admission::Metrics::register(registry)?,
                reservation: reservation(config, registry)?,
            };
            running.serve_pools(handle, pools);
        }
        #[cfg(not(feature = "kube"))]
        let (_, _, _) = (config, handle, registry);
        Ok(())
    }

    /// Ends it; tells the cluster that the node takes no claims, if that is quickly done.
    pub(super) async fn stop(self) {
        #[cfg(feature = "kube")]
        if let Some(running) = self.running {
            running.stop().await;
        }
    }
}

#[cfg(feature = "kube")]
fn reviewer(
    running: &crate::kube::Running,
    config: &Config,
    registry: &Registry,
) -> Result<Arc<Reviewer>, AppError> {
    use crate::identity::{ReviewMetrics, ReviewSettings};
    use std::time::Duration;
    let said = &config.kubernetes.tokens;
    let settings = ReviewSettings {
        audiences: said.audiences.clone(),
        namespace: running.namespace().to_owned(),
        entries: usize::try_from(said.entries).unwrap_or(usize::MAX),
        good: Duration::from_secs(said.allowed_seconds),
        refused: Duration::from_secs(said.refused_seconds),
        // A little more than the client's own: its error says more.
        deadline: Duration::from_secs(config.kubernetes.call_seconds + 1),
    };
    let authority = Arc::new(running.reviews());
    let metrics = ReviewMetrics::register(registry)?;
    tracing::info!(audiences = ?said.audiences, namespace = %settings.namespace, "takes ServiceAccount tokens");
    Ok(Arc::new(Reviewer::new(authority, &settings, metrics)))
}

#[cfg(feature = "kube")]
async fn connect(config: &Config, registry: &Registry) -> Result<crate::kube::Running, AppError> {
    use crate::kube::{Kube, Metrics, Running, Settings};
    use std::time::Duration;
    let said = &config.kubernetes;
    let settings = Settings {
        node: node_name(&said.node, std::env::var("NODE_NAME").ok())?,
        kubeconfig: (!said.kubeconfig.as_os_str().is_empty()).then(|| said.kubeconfig.clone()),
        call: Duration::from_secs(said.call_seconds),
    };
    let kube = Kube::new(&settings, Metrics::register(registry)?).await;
    let kube = kube.map_err(|error| AppError::Kubernetes(error.to_string()))?;
    tracing::info!(node = %kube.node, namespace = %kube.namespace, "calls the Kubernetes API");
    Ok(Running::begin(kube))
}

/// What the cluster is to count for pools.
#[cfg(feature = "kube")]
fn reservation(
    config: &Config,
    registry: &Registry,
) -> Result<
    Option<(
        crate::kube::reservation::Settings,
        crate::kube::reservation::Metrics,
    )>,
    AppError,
> {
    use crate::kube::reservation::{Metrics, Settings};
    let said = &config.kubernetes.reservation;
    if said.mode == crate::config::ReservationMode::None {
        return Ok(None);
    }
    let settings = Settings {
        namespace: said.namespace.clone(),
        image: said.image.clone(),
        pull_secrets: said.pull_secrets.clone(),
        priority_class: said.priority_class.clone(),
    };
    Ok(Some((settings, Metrics::register(registry)?)))
}

/// SetPools' rules for one pool.
#[cfg(feature = "kube")]
fn check(handle: &Handle) -> crate::kube::warmpool::Check {
    use crate::machine::refusal::Refusal;
    let handle = handle.clone();
    Arc::new(move |pool| {
        let spec = crate::rpc::check_pool(pool, &handle.handlers())?;
        match handle.network() {
            Err(detail) if spec.template.network_policy.needs_interface() => {
                Err(Refusal::NetworkUnavailable { detail })
            }
            Ok(()) | Err(_) => Ok(spec),
        }
    })
}

/// The configured name, else what the DaemonSet says.
#[cfg(feature = "kube")]
fn node_name(configured: &str, environment: Option<String>) -> Result<String, AppError> {
    let name = match configured {
        "" => environment.unwrap_or_default(),
        name => name.to_owned(),
    };
    match crate::config::is_node_name(&name) {
        true => Ok(name),
        false => Err(AppError::Kubernetes(format!(
            "neither kubernetes.node nor NODE_NAME names a node: {name:?}"
        ))),
    }
}

#[cfg(all(test, feature = "kube"))]
mod tests {
    use super::node_name;

    #[test]
    fn the_node_is_the_configured_one_or_the_daemonsets() {
        let told = |configured, environment: Option<&str>| {
            node_name(configured, environment.map(str::to_owned)).map_err(|it| it.to_string())
        };
        assert_eq!(told("a", Some("b")), Ok("a".to_owned()));
        assert_eq!(told("", Some("b.example")), Ok("b.example".to_owned()));
        for wrong in [None, Some(""), Some("Not/A/Node")] {
            let error = told("", wrong).unwrap_err();
            assert!(error.contains("NODE_NAME"), "{error}");
        }
    }
}
