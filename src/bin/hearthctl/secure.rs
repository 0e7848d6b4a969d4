//! hearthd over TCP: which certificate we show, which we take.

use crate::cli::Common;
use crate::failure::{Exit, Failure};
use std::error::Error;
use std::path::Path;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

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
