//! hearthd over TCP: which certificate or token we show, which certificate we take.

use crate::cli::Common;
use crate::failure::{Exit, Failure};
use clap::Args;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// Longest token file that is read, bytes: longer than any token.
const TOKEN_FILE_BYTES: u64 = 64 * 1024;

/// Who we are by the cluster's word.
#[derive(Debug, Args)]
pub struct Account {
    /// With --server: a file with a Kubernetes ServiceAccount token made for hearth, such as a projected volume's; it is
    /// read again for each call. --token goes before it
    #[arg(
        long,
        global = true,
        env = "HEARTH_TOKEN_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub token_file: Option<PathBuf>,
}

impl Account {
    /// The file to show, where no claim's token is given: that one opens what the account may not, and where both are given
    /// one is often of the environment.
    pub fn file(&self, token: Option<&str>) -> Option<&Path> {
        self.token_file.as_deref().filter(|_| token.is_none())
    }
}

/// A token in a file, which somebody replaces from time to time.
#[derive(Clone)]
pub struct TokenFile {
    path: Arc<Path>,
    last: Arc<Mutex<MetadataValue<Ascii>>>,
}

impl TokenFile {
    /// Reads it for the first time.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let first = Self::read(path)?;
        Ok(Self {
            path: path.into(),
            last: Arc::new(Mutex::new(first)),
        })
    }

    fn read(path: &Path) -> Result<MetadataValue<Ascii>, Failure> {
        use std::io::Read;
        let wrong = |error: &std::io::Error| Failure::local(path.display().to_string(), error);
        let file = std::fs::File::open(path).map_err(|error| wrong(&error))?;
        let mut text = String::new();
        let mut bounded = file.take(TOKEN_FILE_BYTES);
        bounded
            .read_to_string(&mut text)
            .map_err(|error| wrong(&error))?;
        match text.trim() {
            "" => Err(Failure::usage(format!("{}: it is empty", path.display()))),
            token => crate::link::bearer(token),
        }
    }

    /// What is in it now; the last good one if it can't be read at this moment.
    pub fn now(&self) -> MetadataValue<Ascii> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(fresh) = Self::read(&self.path) {
            *last = fresh;
        }
        last.clone()
    }
}

/// Where to connect, with its TLS. Reads the files.
pub fn endpoint(server: &str, common: &Common) -> Result<Endpoint, Failure> {
    let wrong = || Failure::usage(format!("--server {server:?} is not https://HOST:PORT"));
    if !server.starts_with("https://") {
        return Err(wrong());
    }
    let endpoint = Endpoint::try_from(server.to_owned()).map_err(|_| wrong())?;
    let Some(ca) = &common.ca else {
        return Err(Failure::usage(
            "--server needs --ca: whom to take for hearthd",
        ));
    };
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
    match (&common.cert, &common.key) {
        (Some(cert), Some(key)) => {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        (None, None) => {}
        _ => return Err(Failure::usage("--cert and --key go together")),
    }
    if let Some(name) = &common.server_name {
        tls = tls.domain_name(name.clone());
    }
    endpoint.tls_config(tls).map_err(|error| {
        Failure::usage(format!(
            "the certificates are of no use: {}",
            causes(&error)
        ))
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::local(path.display().to_string(), &error))
}

/// Why hearthd can't be reached; `None`: it took too long.
pub fn unreachable(server: &str, error: Option<&tonic::transport::Error>) -> Failure {
    let why = error.map_or_else(|| "it does not answer".to_owned(), |error| causes(error));
    Failure::new(Exit::Unreachable, format!("hearthd at {server}: {why}"))
        .hint("does --ca sign hearthd's certificate, --server-name name it, and is our own valid? hearthd logs why it refuses a handshake")
}

/// The last cause says most.
fn causes(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
