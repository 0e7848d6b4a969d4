//! The way to hearthd: the channel, who we say we are, deadlines, and what a claim's short name means.
//!
//! Owns the connection. Never prints.

use crate::failure::{Exit, Failure};
use crate::secure::TokenFile;
use hearth::api::claims_client::ClaimsClient;
use hearth::api::node_client::NodeClient;
use hearth::api::pools_client::PoolsClient;
use hearth::api::sandboxes_client::SandboxesClient;
use hearth::api::{Claim, InfoRequest, ListClaimsRequest};
use std::time::Duration;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

/// How long connecting may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long a short call may take.
pub const CALL_DEADLINE: Duration = Duration::from_secs(15);
/// How often a quiet stream asks whether hearthd lives, and how long it waits for the answer.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Shortest prefix of a claim's name.
const PREFIX: usize = 4;
/// Claims read when a short name is looked up: pages of 1000.
const LOOKUP_PAGES: usize = 100;

/// A connection to hearthd.
#[derive(Clone)]
pub struct Link {
    channel: Channel,
    shown: Shown,
    epoch: Option<u64>,
}

/// What is shown with every call.
#[derive(Clone)]
enum Shown {
    Nothing,
    /// A claim's access token.
    Token(MetadataValue<Ascii>),
    /// A ServiceAccount's.
    File(TokenFile),
}

impl Link {
    /// Connects. `socket` is a path, with or without "unix://".
    pub async fn open(
        socket: &str,
        token: Option<&str>,
        epoch: Option<u64>,
    ) -> Result<Self, Failure> {
        let path = socket_path(socket)?;
        let endpoint = Endpoint::try_from(format!("unix://{path}"))
            .map_err(|_| Failure::usage(format!("--socket {socket:?} is not a socket's path")))?;
        match connect(endpoint).await {
            Ok(channel) => Self::with(channel, token, epoch),
            Err(error) => Err(unreachable(&path, error.as_ref().and_then(io_cause))),
        }
    }

    /// Connects over TCP. `endpoint` has its TLS; `server` is its URL, for messages.
    pub async fn over_tls(
        server: &str,
        endpoint: Endpoint,
        token: Option<&str>,
        epoch: Option<u64>,
    ) -> Result<Self, Failure> {
        match connect(endpoint).await {
            Ok(channel) => Self::with(channel, token, epoch),
            Err(error) => Err(crate::secure::unreachable(server, error.as_ref())),
        }
    }

    /// The same connection, as a ServiceAccount.
    pub fn with_account(mut self, file: TokenFile) -> Self {
        self.shown = Shown::File(file);
        self
    }

    fn with(channel: Channel, token: Option<&str>, epoch: Option<u64>) -> Result<Self, Failure> {
        Ok(Link {
            channel,
            shown: match token {
                Some(token) => Shown::Token(bearer(token)?),
                None => Shown::Nothing,
            },
            epoch,
        })
    }

    /// The same connection, with this token.
    pub fn holding(&self, token: &str) -> Result<Self, Failure> {
        Self::with(self.channel.clone(), Some(token), self.epoch)
    }

    /// The Claims service.
    pub fn claims(&self) -> ClaimsClient<Channel> {
        ClaimsClient::new(self.channel.clone())
    }

    /// The Sandboxes service.
    pub fn sandboxes(&self) -> SandboxesClient<Channel> {
        SandboxesClient::new(self.channel.clone())
    }

    /// The Pools service.
    pub fn pools(&self) -> PoolsClient<Channel> {
        PoolsClient::new(self.channel.clone())
    }

    /// The Node service.
    pub fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    /// A short call: with our token and the usual deadline.
    pub fn call<T>(&self, message: T) -> Request<T> {
        self.call_within(message, CALL_DEADLINE)
    }

    /// A call that may take as long as this.
    pub fn call_within<T>(&self, message: T, deadline: Duration) -> Request<T> {
        let mut request = self.stream(message);
        request.set_timeout(deadline);
        request
    }

    /// A stream, which lasts as long as the user wants.
    pub fn stream<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let token = match &self.shown {
            Shown::Nothing => return request,
            Shown::Token(token) => token.clone(),
            Shown::File(file) => file.now(),
        };
        request.metadata_mut().insert("authorization", token);
        request
    }

    /// The epoch of our writes: --epoch, or the node's current one, so that an operator never fences its allocator out.
    pub async fn epoch(&self) -> Result<u64, Failure> {
        match self.epoch {
            Some(epoch) => Ok(epoch),
            None => {
                let info = self.node().info(self.call(InfoRequest {})).await?;
                Ok(info.into_inner().epoch.max(1))
            }
        }
    }

    /// The claim that a name means: a whole claim_id as it is (it may be gone: Release and Get answer that), else the
    /// one claim that it is a prefix of.
    pub async fn resolve(&self, name: &str) -> Result<String, Failure> {
        let name = name.to_ascii_lowercase();
        if uuid::Uuid::try_parse(&name).is_ok() && name.len() == 36 {
            return Ok(name);
        }
        if name.len() < PREFIX {
            return Err(Failure::usage(format!(
                "{name:?} is too short for a claim: give {PREFIX} characters or more"
            )));
        }
        let claims = self.list("").await?;
        choose(&name, claims.iter().map(|claim| claim.claim_id.as_str()))
    }

    /// All claims, in pages.
    pub async fn list(&self, pool: &str) -> Result<Vec<Claim>, Failure> {
        let mut claims = Vec::new();
        let mut token = String::new();
        for _ in 0..LOOKUP_PAGES {
            let request = self.call(ListClaimsRequest {
                pool: pool.to_owned(),
                page_size: 0,
                page_token: token,
            });
            let page = self.claims().list(request).await?.into_inner();
            claims.extend(page.claims);
            token = page.next_page_token;
            if token.is_empty() {
                return Ok(claims);
            }
        }
        Err(Failure::new(
            Exit::Refused,
            format!("more than {LOOKUP_PAGES} pages of claims"),
        )
        .hint("name one pool with --pool"))
    }
}

/// `None`: it took too long.
async fn connect(endpoint: Endpoint) -> Result<Channel, Option<tonic::transport::Error>> {
    let endpoint = endpoint
        .connect_timeout(CONNECT_DEADLINE)
        // Bulk data (cp, image import): wide windows.
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        // A hearthd that hangs ends a stream instead of holding it for ever.
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    match tokio::time::timeout(CONNECT_DEADLINE, endpoint.connect()).await {
        Ok(connected) => connected.map_err(Some),
        Err(_) => Err(None),
    }
}

/// The one id that starts with `prefix`.
pub fn choose<'a>(prefix: &str, ids: impl Iterator<Item = &'a str>) -> Result<String, Failure> {
    let found: Vec<&str> = ids.filter(|id| id.starts_with(prefix)).collect();
    match found.as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => Err(
            Failure::new(Exit::NotFound, format!("no claim starts with {prefix:?}"))
                .hint("`hearthctl claims` lists the claims"),
        ),
        many => Err(
            Failure::usage(format!("{prefix:?} means {} claims", many.len()))
                .detail("claims", many[..many.len().min(5)].join(", "))
                .hint("give more characters"),
        ),
    }
}

/// The path of a socket given as "unix:///path", "unix:/path" or "/path".
pub fn socket_path(socket: &str) -> Result<String, Failure> {
    let path = socket
        .strip_prefix("unix://")
        .or_else(|| socket.strip_prefix("unix:"))
        .unwrap_or(socket);
    if socket.contains("://") && !socket.starts_with("unix://") || path.is_empty() {
        return Err(Failure::usage(format!(
            "--socket {socket:?} is not a Unix socket; over TCP: --server"
        )));
    }
    let path = std::path::absolute(path).map_err(|error| Failure::local(socket, &error))?;
    match path.to_str() {
        Some(path) => Ok(path.to_owned()),
        None => Err(Failure::usage("--socket must be UTF-8")),
    }
}

/// As the authorization metadata has it.
pub fn bearer(token: &str) -> Result<MetadataValue<Ascii>, Failure> {
    let mut value = MetadataValue::try_from(format!("Bearer {}", token.trim()))
        .map_err(|_| Failure::usage("the token has characters that no token has"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The I/O error beneath a transport error.
fn io_cause(error: &tonic::transport::Error) -> Option<std::io::ErrorKind> {
    let mut at: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = at {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        at = error.source();
    }
    None
}

fn unreachable(path: &str, cause: Option<std::io::ErrorKind>) -> Failure {
    use std::io::ErrorKind;
    let (why, hint) = match cause {
        Some(ErrorKind::NotFound) => (
            "there is no such socket",
            "is hearthd running? `hearthd --dev` starts one to play with; another socket: --socket or HEARTH_SOCKET",
        ),
        Some(ErrorKind::PermissionDenied) => (
            "this user may not open it",
            "run as root, or as a member of the socket's group",
        ),
        Some(ErrorKind::ConnectionRefused) => (
            "nobody listens on it",
            "hearthd has ended: start it again; claimed sandboxes live on and are adopted",
        ),
        _ => (
            "it does not answer",
            "`hearthctl doctor` looks for the cause",
        ),
    };
    Failure::new(Exit::Unreachable, format!("hearthd at {path}: {why}")).hint(hint)
}
