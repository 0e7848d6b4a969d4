//! Who a peer is, what it may do, and what is written down of both.
//!
//! Owns: names (a user of this host, a SPIFFE id, a DNS name, a ServiceAccount), roles, the files of TLS and their reloading,
//! the bound of calls per caller, reviews of tokens and their memory, the audit log. Pure decisions apart from [`tls`] and
//! [`reload`] (files), [`review`] (asks an authority, behind a trait) and [`audit`] (a thread).
//! Never: a request's content, a token, a key in a log or an error.
//!
//! ```text
//! files ─▶ reload ─▶ Tls ─▶ handshake ─▶ Certificate ─┐
//!                         Unix socket ─▶ uid ─────────┴─▶ Policy ─▶ Identity {name, roles} ─▶ rpc: method table
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod audit;
mod certificate;
mod metrics;
mod name;
mod policy;
mod rate;
mod reload;
mod review;
mod tls;

#[cfg(test)]
#[path = "../../tests/support/certificates.rs"]
pub(crate) mod certificates;

pub use audit::{Audit, AuditConfig, AuditError, AuditWriter, Trail};
pub use certificate::{Certificate, CertificateError, Names};
pub use metrics::Metrics;
pub use name::{Pattern, PatternError};
pub use policy::{Identity, Policy, Roles};
pub use rate::{Class, Limiter};
pub use reload::{Reloader, Tls};
#[cfg(test)]
pub use review::fakes as review_fakes;
pub use review::{
    Authority, Away, Deed, GROUP, Metrics as ReviewMetrics, Principal, Reviewer,
    Settings as ReviewSettings, Token, Unreviewed, is_audience,
};
pub use tls::{ClientCertificate, TlsError, TlsFiles};
