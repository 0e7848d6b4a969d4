//! `[kubernetes.tokens]`: callers with a ServiceAccount token.

use super::Config;
use crate::identity::is_audience;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Callers over TCP may show a token of a Kubernetes ServiceAccount instead of a certificate with a role. The cluster says
/// whose it is (TokenReview) and, by its own RBAC on hearth.dev, what its owner may call (SubjectAccessReview).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tokens {
    /// Take them. Needs kubernetes.enabled, api.tcp, and "optional" as api.tls.client_certificate.
    pub enabled: bool,
    /// Audiences that a token must be made for, one of them. The API server's own belongs to nobody else: leave it out.
    pub audiences: Vec<String>,
    /// Good answers that are kept, and as many refusals; of tokens and of rights each.
    pub entries: u32,
    /// Seconds that a good answer counts: so long a right that was taken back may still be used. It is renewed in good time.
    pub allowed_seconds: u64,
    /// Seconds that a refusal counts: so long a right that was given may still be refused.
    pub refused_seconds: u64,
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            enabled: false,
            audiences: vec!["hearth".into()],
            entries: 1024,
            allowed_seconds: 60,
            refused_seconds: 10,
        }
    }
}

impl Tokens {
    /// What is wrong with the values, and with what they need of the others.
    pub(super) fn problems(&self, config: &Config) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut wrong = |is_wrong: bool, key: &'static str, what: &str| {
            if is_wrong {
                found.push((key, what.to_owned()));
            }
        };
        let audiences = &self.audiences;
        wrong(
            !(1..=8).contains(&audiences.len()) || !audiences.iter().all(|it| is_audience(it)),
            "kubernetes.tokens.audiences",
            "must be 1 to 8 audiences, each of 1 to 253 printable characters without spaces",
        );
        wrong(
            !(16..=65_536).contains(&self.entries),
            "kubernetes.tokens.entries",
            "must be 16 to 65536",
        );
        wrong(
            !(1..=3600).contains(&self.allowed_seconds),
            "kubernetes.tokens.allowed_seconds",
            "must be 1 to 3600",
        );
        wrong(
            !(1..=300).contains(&self.refused_seconds),
            "kubernetes.tokens.refused_seconds",
            "must be 1 to 300",
        );
        if !self.enabled {
            return found;
        }
        let mut needs = |met: bool, what: &str| {
            if !met {
                found.push(("kubernetes.tokens.enabled", what.to_owned()));
            }
        };
        needs(
            config.kubernetes.enabled,
            "needs kubernetes.enabled: the API server is who reviews tokens",
        );
        needs(
            !config.api.tcp.is_empty(),
            "needs api.tcp: tokens are taken over TCP with TLS only",
        );
        needs(
            config.api.tls.client_certificate == super::ClientCertificate::Optional,
            "needs api.tls.client_certificate = \"optional\": who has a token shows no certificate",
        );
        found
    }
}
