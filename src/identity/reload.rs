//! TLS's files while serving: looked at again and again, taken when they are good, the last good ones kept otherwise.
//!
//! By their content, not by inotify: a projected volume swaps a symlink to a directory, a bind mount swaps nothing that
//! can be watched, a network file system tells nobody. Three small files a second cost nothing.

use super::metrics::Metrics;
use super::tls::{Content, Material, TlsError, TlsFiles};
use rustls::ServerConfig;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);

/// What the next handshake is judged by. Cheap to clone.
#[derive(Clone)]
pub struct Tls(watch::Receiver<Arc<ServerConfig>>);

impl Tls {
    /// For one handshake.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.0.borrow()))
    }
}

/// Keeps a [`Tls`] up to date.
pub struct Reloader {
    files: TlsFiles,
    current: watch::Sender<Arc<ServerConfig>>,
    metrics: Metrics,
    /// Of the content that was judged last.
    seen: [u8; 32],
    /// Why it, or its reading, was refused; empty: it is in use.
    refused: String,
}

impl Reloader {
    /// Reads the files for the first time. Called by `app` before anything is served.
    ///
    /// # Errors
    /// They are missing or bad: TLS is not served then.
    pub fn load(files: TlsFiles, metrics: Metrics) -> Result<(Self, Tls), TlsError> {
        let content = Content::read(&files)?;
        let material = Material::make(&files, &content, SystemTime::now())?;
        metrics.certificates(&material);
        let (current, tls) = watch::channel(material.config);
        let reloader = Self {
            files,
            current,
            metrics,
            seen: content.digest(),
            refused: String::new(),
        };
        Ok((reloader, Tls(tls)))
    }

    /// Looks at the files until nobody holds the [`Tls`]. Spawned by `app`.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if self.current.is_closed() {
                return;
            }
            let files = self.files.clone();
            // A file system that hangs holds up this task only.
            let read = tokio::task::spawn_blocking(move || Content::read(&files));
            if let Ok(read) = read.await {
                self.judge(read, SystemTime::now());
            }
        }
    }

    fn judge(&mut self, read: Result<Content, TlsError>, now: SystemTime) {
        let made = read.and_then(|content| {
            let digest = content.digest();
            // What was refused is judged again: a certificate may have become valid.
            if digest == self.seen && self.refused.is_empty() {
                return Ok(None);
            }
            self.seen = digest;
            Material::make(&self.files, &content, now).map(Some)
        });
        match made {
            Ok(None) => {}
            Ok(Some(material)) => {
                self.refused.clear();
                self.metrics.certificates(&material);
                self.metrics.reloaded(true);
                self.current.send_replace(material.config);
                tracing::info!("new TLS certificates are in use");
            }
            Err(error) => {
                let why = error.to_string();
                // Once for each reason: it stays until somebody changes the files.
                if why != self.refused {
                    self.metrics.reloaded(false);
                    tracing::error!(%error, "new TLS files are refused; the last good ones stay in use");
                    self.refused = why;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::certificates::{Authority, Volume, Wanted};
    use super::super::tls::ClientCertificate;
    use super::*;
    use prometheus::Registry;

    const HOUR: Duration = Duration::from_secs(3600);

    struct Bench {
        authority: Authority,
        volume: Volume,
        registry: Registry,
        reloader: Reloader,
        tls: Tls,
    }

    fn files(volume: &Volume) -> TlsFiles {
        TlsFiles {
            certificate: volume.path("tls.crt"),
            key: volume.path("tls.key"),
            client_ca: volume.path("ca.crt"),
            client_certificate: ClientCertificate::Required,
        }
    }

    impl Bench {
        fn new() -> Self {
            let authority = Authority::new("ours");
            let volume = Volume::new();
            volume.swap(&authority.issue(&Wanted::dns("node")), &authority.pem());
            let registry = Registry::new();
            let metrics = Metrics::register(&registry).unwrap();
            let (reloader, tls) = Reloader::load(files(&volume), metrics).unwrap();
            Self {
                authority,
                volume,
                registry,
                reloader,
                tls,
            }
        }

        fn look(&mut self) {
            let read = Content::read(&self.reloader.files);
            self.reloader.judge(read, SystemTime::now());
        }

        fn in_use(&self) -> *const ServerConfig {
            Arc::as_ptr(&self.tls.0.borrow())
        }

        fn counted(&self, line: &str) -> bool {
            let text = prometheus::TextEncoder::new()
                .encode_to_string(&self.registry.gather())
                .unwrap();
            text.lines().any(|found| found == line)
        }
    }

    #[test]
    fn a_swapped_volume_is_taken_and_an_unchanged_one_left() {
        let mut bench = Bench::new();
        let first = bench.in_use();
        bench.look();
        assert_eq!(bench.in_use(), first);
        let next = bench.authority.issue(&Wanted::dns("node"));
        bench.volume.swap(&next, &bench.authority.pem());
        bench.look();
        assert_ne!(bench.in_use(), first);
        assert!(bench.counted(r#"hearth_tls_reloads_total{result="taken"} 1"#));
    }

    #[test]
    fn the_last_good_pair_stays_whatever_comes() {
        let mut bench = Bench::new();
        let first = bench.in_use();
        let ca = bench.authority.pem();
        let good = bench.authority.issue(&Wanted::dns("node"));
        let mut mixed = bench.authority.issue(&Wanted::dns("node"));
        mixed.key_pem.clone_from(&good.key_pem);
        let mut junk = bench.authority.issue(&Wanted::dns("node"));
        junk.pem = "junk".into();
        let expired = Wanted::dns("node").expired();
        let expired = bench.authority.issue(&expired);
        for (bad, ca) in [
            (&mixed, ca.as_str()),
            (&junk, &ca),
            (&expired, &ca),
            (&good, ""),
            (
                &good,
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            ),
        ] {
            bench.volume.swap(bad, ca);
            bench.look();
            bench.look();
            assert_eq!(bench.in_use(), first);
            assert!(!bench.reloader.refused.is_empty());
        }
        assert!(bench.counted(r#"hearth_tls_reloads_total{result="refused"} 5"#));
        std::fs::remove_file(bench.volume.path("tls.key")).unwrap();
        bench.look();
        assert_eq!(bench.in_use(), first);
        bench.volume.link("tls.key");
        bench.volume.swap(&good, &ca);
        bench.look();
        assert_ne!(bench.in_use(), first);
        assert!(bench.reloader.refused.is_empty());
    }

    #[test]
    fn a_certificate_that_becomes_valid_is_taken_then() {
        let mut bench = Bench::new();
        let first = bench.in_use();
        let early = bench
            .authority
            .issue(&Wanted::dns("node").later(HOUR, 2 * HOUR));
        bench.volume.swap(&early, &bench.authority.pem());
        bench.look();
        assert_eq!(bench.in_use(), first);
        let read = Content::read(&bench.reloader.files);
        let later = SystemTime::now() + HOUR + Duration::from_secs(60);
        bench.reloader.judge(read, later);
        assert_ne!(bench.in_use(), first);
    }

    #[test]
    fn expiry_is_told() {
        let bench = Bench::new();
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&bench.registry.gather())
            .unwrap();
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        for of in ["server", "client_ca"] {
            let line = format!("hearth_tls_certificate_expiry_timestamp_seconds{{of=\"{of}\"}} ");
            let told = text.lines().find_map(|found| found.strip_prefix(&line));
            let told: f64 = told.unwrap().parse().unwrap();
            assert!(told > now, "{text}");
        }
    }

    #[test]
    fn an_error_never_shows_a_key() {
        let bench = Bench::new();
        std::fs::write(
            bench.volume.path("tls.key"),
            "-----BEGIN PRIVATE KEY-----\nSECRET!\n-----END PRIVATE KEY-----\n",
        )
        .unwrap();
        let metrics = Metrics::register(&Registry::new()).unwrap();
        let error = Reloader::load(files(&bench.volume), metrics).err().unwrap();
        assert!(
            !format!("{error} {error:?}").contains("SECRET"),
            "{error:?}"
        );
    }
}
