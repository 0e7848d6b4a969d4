//! The client: every call has a deadline, every failure says whether trying again makes sense.

use super::metrics::Metrics;
use k8s_openapi::api::core::v1::Node;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Config, Resource};
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long a TCP connection and a TLS handshake may take each.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes of a message of the API server that are kept.
const DETAIL_BYTES: usize = 512;

/// Where the API server is, and who is asking. From the configuration, by `app`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the Node object hearthd runs on.
    pub node: String,
    /// A kubeconfig file; `None`: the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// What one call may take.
    pub call: Duration,
}

/// The client can't even be built. Nothing has been asked yet: an API server that is away is no reason.
#[derive(Debug, thiserror::Error)]
#[error("kubernetes: {0}")]
pub struct ClientError(String);

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No answer in time, no connection, or the server is not well: it may work later.
    #[error("the API server does not answer {what}: {detail}")]
    Unavailable {
        /// Which call.
        what: &'static str,
        /// Bounded.
        detail: String,
    },
    /// It said no: the same call will hear the same.
    #[error("the API server refused {what} ({code}): {detail}")]
    Refused {
        /// Which call.
        what: &'static str,
        /// HTTP status.
        code: u16,
        /// Its `status.reason`, such as "Forbidden", "Conflict" or "Invalid".
        reason: String,
        /// Its message; bounded.
        detail: String,
    },
}

impl CallError {
    /// The HTTP status of a refusal.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Unavailable { .. } => None,
            Self::Refused { code, .. } => Some(*code),
        }
    }

    /// What the API server said, or why it said nothing; bounded.
    #[must_use]
    pub fn detail(&self) -> &str {
        match self {
            Self::Unavailable { detail, .. } | Self::Refused { detail, .. } => detail,
        }
    }

    /// There is no such object.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// Somebody else has changed the object meanwhile: read it again.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    fn of(what: &'static str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if !matches!(status.code, 0 | 408 | 429 | 500..) => {
                Self::Refused {
                    what,
                    code: status.code,
                    reason: bounded(&status.reason),
                    detail: bounded(&status.message),
                }
            }
            other => Self::Unavailable {
                what,
                detail: bounded(&chain(other)),
            },
        }
    }
}

/// An error with what caused it: hyper says "client error (Connect)" and leaves the rest to its source.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.contains(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        cause = error.source();
    }
    text
}

/// Printable and cut: what others say has a bound.
pub(super) fn bounded(text: &str) -> String {
    cut(text, DETAIL_BYTES)
}

/// The same, at most `most` bytes.
pub(super) fn cut(text: &str, most: usize) -> String {
    let mut kept = String::new();
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if kept.len() + c.len_utf8() > most {
            break;
        }
        kept.push(c);
    }
    kept
}

/// The API server, as hearthd sees it. Cheap to clone.
#[derive(Clone)]
pub struct Kube {
    client: Client,
    /// Its own node's name.
    pub node: Arc<str>,
    /// hearthd's own namespace.
    pub namespace: Arc<str>,
    call: Duration,
    pub(super) metrics: Metrics,
}

impl Kube {
    /// Builds the client; nothing is asked of the API server. Called inside the tokio runtime, once, by `app`.
    ///
    /// # Errors
    /// No service account, or a kubeconfig that can't be read.
    pub async fn new(settings: &Settings, metrics: Metrics) -> Result<Self, ClientError> {
        let wrong = |error: &dyn std::error::Error| ClientError(chain(error));
        let mut config = match &settings.kubeconfig {
            None => Config::incluster().map_err(|error| wrong(&error))?,
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|error| wrong(&error))?;
                let options = KubeConfigOptions::default();
                let read = Box::pin(Config::from_custom_kubeconfig(file, &options)).await;
                read.map_err(|error| wrong(&error))?
            }
        };
        config.connect_timeout = Some(CONNECT);
        config.write_timeout = Some(settings.call);
        // Whoever calls decides whether to try again.
        config.default_retry = false;
        let namespace = config.default_namespace.as_str().into();
        let client = Client::try_from(config).map_err(|error| wrong(&error))?;
        Ok(Self {
            client,
            node: settings.node.as_str().into(),
            namespace,
            call: settings.call,
            metrics,
        })
    }

    /// Objects of a kind that has no namespace, or of all namespaces.
    #[must_use]
    pub fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// Objects of one namespace.
    #[must_use]
    pub fn within<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Nodes; hearthd may write to its own only.
    #[must_use]
    pub fn nodes(&self) -> Api<Node> {
        self.all()
    }

    /// Makes one call within its deadline, and counts it as `what`: one of a closed list, it is a metric's label.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, kube::Error>> + Send,
    ) -> Result<T, CallError> {
        let answer = match tokio::time::timeout(self.call, Box::pin(call)).await {
            Ok(answer) => answer.map_err(|error| CallError::of(what, &error)),
            Err(_) => Err(CallError::Unavailable {
                what,
                detail: format!("not within {} s", self.call.as_secs()),
            }),
        };
        self.metrics.called(what, answer.as_ref().err());
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn a_refusal_is_told_from_a_server_that_is_away() {
        let api = |code, reason: &str| {
            let status = Status::failure("as it says", reason).with_code(code);
            CallError::of("nodes.patch", &kube::Error::Api(Box::new(status)))
        };
        for code in [0, 408, 429, 500, 503, 504] {
            assert_eq!(api(code, "").code(), None, "{code}");
        }
        let conflict = api(409, "Conflict");
        assert!(conflict.is_conflict() && !conflict.is_not_found());
        assert!(api(404, "NotFound").is_not_found());
        assert_eq!(
            api(403, "Forbidden").to_string(),
            "the API server refused nodes.patch (403): as it says"
        );
    }

    #[test]
    fn what_others_say_is_bounded_and_printable() {
        assert_eq!(cut("a\nb\u{1b}[31m", 100), "a b [31m");
        assert_eq!(cut("ééé", 5), "éé");
        assert_eq!(bounded(&"x".repeat(10_000)).len(), DETAIL_BYTES);
    }
}
