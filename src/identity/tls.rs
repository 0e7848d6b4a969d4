//! The files of the TCP listener's TLS, and what a handshake is judged by: TLS 1.2 or 1.3, our certificate, their CAs.

use super::certificate::{Certificate, CertificateError};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Longest file that is read.
const FILE_BYTES: u64 = 1 << 20;
/// What gRPC speaks.
const ALPN: &[u8] = b"h2";

/// Whether a peer must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificate {
    /// No connection without one.
    Required,
    /// Without one a peer has no role: it may use a claim's access token only. One that is shown must be good.
    Optional,
}

/// Where TLS is read from. All PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Our chain, our own certificate first.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The CAs of clients.
    pub client_ca: PathBuf,
    /// Whether clients must show a certificate.
    pub client_certificate: ClientCertificate,
}

/// The files can't be used. Names files, never their content.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not readable.
    #[error("{path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// No PEM of that kind.
    #[error("{path}: {source}")]
    Pem {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: pem::Error,
    },
    /// No certificate in it.
    #[error("{0}: there is no certificate in it")]
    Empty(PathBuf),
    /// A certificate can't be read.
    #[error("{path}: {source}")]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: CertificateError,
    },
    /// Our certificate is of no use now.
    #[error("{0}: the certificate has expired or is not valid yet")]
    NotValidNow(PathBuf),
    /// A CA is refused, or certificate and key don't belong together.
    #[error("{path}: {source}")]
    Refused {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// No verifier can be made of the CAs.
    #[error("{path}: {source}")]
    Verifier {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: VerifierBuilderError,
    },
}

/// The files' content, read one after the other: it may be from both sides of a rotation, which then shows as a key that
/// does not fit, and the next look finds the rest.
pub(super) struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Vec<u8>,
}

impl Content {
    /// Blocks on the file system.
    pub(super) fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self {
            certificate: read(&files.certificate)?,
            key: read(&files.key)?,
            client_ca: read(&files.client_ca)?,
        })
    }

    /// Tells contents apart without keeping a key.
    pub(super) fn digest(&self) -> [u8; 32] {
        let parts = [&self.certificate, &self.key, &self.client_ca];
        let each = parts.into_iter().map(Sha256::digest);
        each.fold(Sha256::new(), |all, one| all.chain_update(one))
            .finalize()
            .into()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut content = Vec::new();
    file.take(FILE_BYTES)
        .read_to_end(&mut content)
        .map_err(failed)?;
    Ok(content)
}

/// What connections are judged by, made of good files.
pub(super) struct Material {
    pub(super) config: Arc<ServerConfig>,
    /// When our certificate expires.
    pub(super) expires: SystemTime,
    /// When the first of the clients' CAs expires.
    pub(super) client_ca_expires: SystemTime,
}

impl Material {
    pub(super) fn make(
        files: &TlsFiles,
        content: &Content,
        now: SystemTime,
    ) -> Result<Self, TlsError> {
        let chain = certificates(&files.certificate, &content.certificate)?;
        let own = parsed(&files.certificate, &chain)?;
        let own = own
            .first()
            .ok_or(TlsError::Empty(files.certificate.clone()))?;
        if now < own.not_before || own.not_after <= now {
            return Err(TlsError::NotValidNow(files.certificate.clone()));
        }
        let key = PrivateKeyDer::from_pem_slice(&content.key).map_err(|source| TlsError::Pem {
            path: files.key.clone(),
            source,
        })?;
        let cas = certificates(&files.client_ca, &content.client_ca)?;
        let expires = parsed(&files.client_ca, &cas)?
            .iter()
            .map(|ca| ca.not_after)
            .min();
        let mut roots = RootCertStore::empty();
        for ca in cas {
            roots.add(ca).map_err(|source| TlsError::Refused {
                path: files.client_ca.clone(),
                source,
            })?;
        }
        Ok(Self {
            config: Arc::new(server(files, chain, key, roots)?),
            expires: own.not_after,
            client_ca_expires: expires.ok_or(TlsError::Empty(files.client_ca.clone()))?,
        })
    }
}

fn server(
    files: &TlsFiles,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: RootCertStore,
) -> Result<ServerConfig, TlsError> {
    let refused = |source| TlsError::Refused {
        path: files.certificate.clone(),
        source,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let verifier = match files.client_certificate {
        ClientCertificate::Required => verifier,
        ClientCertificate::Optional => verifier.allow_unauthenticated(),
    };
    let verifier = verifier.build().map_err(|source| TlsError::Verifier {
        path: files.client_ca.clone(),
        source,
    })?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(refused)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(refused)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would bring back a client's certificate without verifying it: not against the CAs of now, not
    // against the clock. Connections are few and live long: each one pays its handshake.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn certificates(path: &Path, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(content).collect();
    let found = found.map_err(|source| TlsError::Pem {
        path: path.to_owned(),
        source,
    })?;
    if found.is_empty() {
        return Err(TlsError::Empty(path.to_owned()));
    }
    Ok(found)
}

fn parsed(path: &Path, found: &[CertificateDer<'_>]) -> Result<Vec<Certificate>, TlsError> {
    let read = found.iter().map(|der| Certificate::read(der));
    let read: Result<Vec<_>, _> = read.collect();
    read.map_err(|source| TlsError::Certificate {
        path: path.to_owned(),
        source,
    })
}
