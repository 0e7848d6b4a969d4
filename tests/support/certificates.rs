//! Certificates of every kind, also the wrong ones, and a projected volume that swaps them as Kubernetes does.
#![allow(dead_code)] // Each suite uses its part.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

const HOUR: Duration = Duration::from_secs(3600);

/// What a certificate shall say.
#[derive(Debug, Clone)]
pub struct Wanted {
    names: Vec<SanType>,
    from: SystemTime,
    until: SystemTime,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            from: SystemTime::now() - HOUR,
            until: SystemTime::now() + HOUR,
        }
    }
}

impl Wanted {
    pub fn spiffe(id: &str) -> Self {
        Self::default().and_uri(id)
    }

    pub fn dns(name: &str) -> Self {
        Self::default().and_dns(name)
    }

    pub fn and_uri(mut self, uri: &str) -> Self {
        self.names.push(SanType::URI(uri.try_into().unwrap()));
        self
    }

    pub fn and_dns(mut self, name: &str) -> Self {
        self.names.push(SanType::DnsName(name.try_into().unwrap()));
        self
    }

    pub fn and_address(mut self, address: &str) -> Self {
        self.names
            .push(SanType::IpAddress(address.parse().unwrap()));
        self
    }

    /// Since `before` ago, until `after` from now.
    pub fn valid(mut self, before: Duration, after: Duration) -> Self {
        self.from = SystemTime::now() - before;
        self.until = SystemTime::now() + after;
        self
    }

    /// Over for an hour.
    pub fn expired(mut self) -> Self {
        self.from = SystemTime::now() - 2 * HOUR;
        self.until = SystemTime::now() - HOUR;
        self
    }

    /// From and until, both from now.
    pub fn later(mut self, from: Duration, until: Duration) -> Self {
        self.from = SystemTime::now() + from;
        self.until = SystemTime::now() + until;
        self
    }
}

/// A certificate with its key.
#[derive(Clone)]
pub struct Issued {
    pub pem: String,
    pub der: Vec<u8>,
    pub key_pem: String,
}

/// A CA.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Its own certificate.
    pub fn pem(&self) -> String {
        self.pem.clone()
    }

    /// Good for servers and clients.
    pub fn issue(&self, wanted: &Wanted) -> Issued {
        let mut params = CertificateParams::default();
        params.subject_alt_names = wanted.names.clone();
        params.not_before = wanted.from.into();
        params.not_after = wanted.until.into();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued {
            pem: certificate.pem(),
            der: certificate.der().to_vec(),
            key_pem: key.serialize_pem(),
        }
    }
}

/// A directory as the kubelet projects it: files are links through `..data`, which is swapped at once.
pub struct Volume {
    dir: tempfile::TempDir,
    version: std::sync::atomic::AtomicU32,
}

impl Volume {
    pub const FILES: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];

    pub fn new() -> Self {
        let volume = Self {
            dir: tempfile::tempdir().unwrap(),
            version: 0.into(),
        };
        Self::FILES.iter().for_each(|name| volume.link(name));
        volume
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a file's link, as at the beginning.
    pub fn link(&self, name: &str) {
        std::os::unix::fs::symlink(format!("..data/{name}"), self.path(name)).unwrap();
    }

    /// Another pair and other CAs, at once.
    pub fn swap(&self, pair: &Issued, ca: &str) {
        let next = self
            .version
            .fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let (name, link) = (format!("..v{next}"), self.path("..data_tmp"));
        let dir = self.path(&name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("tls.crt"), &pair.pem).unwrap();
        std::fs::write(dir.join("tls.key"), &pair.key_pem).unwrap();
        std::fs::write(dir.join("ca.crt"), ca).unwrap();
        std::os::unix::fs::symlink(&name, &link).unwrap();
        std::fs::rename(&link, self.path("..data")).unwrap();
        if let Some(last) = next.checked_sub(1) {
            std::fs::remove_dir_all(self.path(&format!("..v{last}"))).unwrap();
        }
    }
}
