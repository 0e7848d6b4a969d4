//! Where the API is served, who may call it, and what is written down of it.

use crate::identity::{Pattern, Policy, Roles};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The gRPC API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Unix socket (absolute path). Callers are known by their peer credentials.
    pub socket: PathBuf,
    /// Permission bits of the socket, octal.
    pub socket_mode: String,
    /// TCP address such as "0.0.0.0:9470", served with TLS only. Empty: off.
    pub tcp: String,
    /// Host and port that callers of other machines reach it at; told with every claim. Empty: tcp, if it is one address.
    pub tcp_advertised: String,
    /// Seconds after which a TCP connection is asked to leave and come back, a tenth more or less.
    pub connection_age_seconds: u64,
    /// Seconds that its streams may go on after that.
    pub connection_grace_seconds: u64,
    /// TLS of the TCP address. The files are read again when they change.
    pub tls: Tls,
    /// Who may do what: lists of "uid:NUMBER" (Unix socket), "spiffe://TRUST-DOMAIN/PATH" and "dns:NAME" (certificates).
    pub roles: RoleLists,
}

/// TLS of the TCP address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// hearthd's certificate and its chain, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The CAs of callers, PEM.
    pub client_ca: PathBuf,
    /// "required", or "optional": then callers without one may use Sandboxes with a claim's access token, and no more.
    pub client_certificate: ClientCertificate,
}

/// Whether callers must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificate {
    /// No connection without one.
    Required,
    /// Without one a caller has no role.
    Optional,
}

/// Who may do what. In a SPIFFE path, a whole segment may be * (any one), the last may be ** (one or more).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RoleLists {
    /// May call everything.
    pub admin: Vec<String>,
    /// May claim, release and read.
    pub allocator: Vec<String>,
    /// May read.
    pub viewer: Vec<String>,
}

/// The audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    /// File (absolute path). Empty: audit.log in data_dir. "-": hearthd's stderr.
    pub file: String,
    /// Bytes at which the file becomes .1 and a new one is begun.
    pub max_bytes: u64,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            socket: "/run/hearth/hearth.sock".into(),
            socket_mode: "0660".into(),
            tcp: String::new(),
            tcp_advertised: String::new(),
            connection_age_seconds: 1800,
            connection_grace_seconds: 3600,
            tls: Tls::default(),
            roles: RoleLists::default(),
        }
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            certificate: PathBuf::new(),
            key: PathBuf::new(),
            client_ca: PathBuf::new(),
            client_certificate: ClientCertificate::Required,
        }
    }
}

impl Default for RoleLists {
    fn default() -> Self {
        Self {
            admin: vec!["uid:0".into()],
            allocator: Vec::new(),
            viewer: Vec::new(),
        }
    }
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            file: String::new(),
            max_bytes: 64 << 20,
        }
    }
}

impl RoleLists {
    /// The policy. Empty if a name is wrong, which `load` has refused.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let lists = [
            (Roles::ADMIN, self.admin.as_slice()),
            (Roles::ALLOCATOR, &self.allocator),
            (Roles::VIEWER, &self.viewer),
        ];
        Policy::new(lists).unwrap_or_default()
    }
}

impl Audit {
    /// The file; `None`: stderr.
    #[must_use]
    pub fn path(&self, data_dir: &Path) -> Option<PathBuf> {
        match self.file.as_str() {
            "" => Some(data_dir.join("audit.log")),
            "-" => None,
            path => Some(path.into()),
        }
    }

    pub(super) fn problems(&self, found: &mut Vec<(&'static str, String)>) {
        if !matches!(self.file.as_str(), "" | "-") && !Path::new(&self.file).is_absolute() {
            found.push(("audit.file", "must be an absolute path, or \"-\"".into()));
        }
        if self.max_bytes < 1 << 20 {
            found.push(("audit.max_bytes", "must be at least 1 MiB".into()));
        }
    }
}

impl Api {
    /// The TCP address; `None`: off.
    pub fn tcp_address(&self) -> Result<Option<SocketAddr>, String> {
        if self.tcp.is_empty() {
            return Ok(None);
        }
        let parsed = self.tcp.parse().map(Some);
        parsed.map_err(|_| "must be an IP address and a port such as \"0.0.0.0:9470\"".into())
    }

    /// Where callers reach the API, as every claim tells them.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        let mut endpoints = vec![format!("unix://{}", self.socket.display())];
        let one = |address: &SocketAddr| !address.ip().is_unspecified() && address.port() != 0;
        match self.tcp_address() {
            Ok(Some(_)) if !self.tcp_advertised.is_empty() => {
                endpoints.push(format!("https://{}", self.tcp_advertised));
            }
            Ok(Some(address)) if one(&address) => endpoints.push(format!("https://{address}")),
            Ok(_) | Err(_) => {}
        }
        endpoints
    }

    pub(super) fn problems(&self, found: &mut Vec<(&'static str, String)>) {
        let roles = &self.roles;
        for (key, names) in [
            ("api.roles.admin", &roles.admin),
            ("api.roles.allocator", &roles.allocator),
            ("api.roles.viewer", &roles.viewer),
        ] {
            for name in names {
                if let Err(error) = Pattern::parse(name) {
                    found.push((key, format!("{name:?} {error}")));
                }
            }
        }
        if roles.admin.is_empty() {
            let what = "must name at least one identity: nobody could set pools";
            found.push(("api.roles.admin", what.into()));
        }
        if !(1..=86_400).contains(&self.connection_age_seconds) {
            found.push(("api.connection_age_seconds", "must be 1 to 86400".into()));
        }
        if self.connection_grace_seconds > 30 * 86_400 {
            found.push((
                "api.connection_grace_seconds",
                "must be at most 30 days".into(),
            ));
        }
        match self.tcp_address() {
            Err(problem) => found.push(("api.tcp", problem)),
            Ok(None) => {}
            Ok(Some(_)) => self.tls.problems(found),
        }
    }
}

impl Tls {
    fn problems(&self, found: &mut Vec<(&'static str, String)>) {
        for (key, path) in [
            ("api.tls.certificate", &self.certificate),
            ("api.tls.key", &self.key),
            ("api.tls.client_ca", &self.client_ca),
        ] {
            if !path.is_absolute() {
                let what = "must be an absolute path: api.tcp is served with TLS only";
                found.push((key, what.into()));
            }
        }
    }
}
