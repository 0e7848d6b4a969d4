#![allow(clippy::unwrap_used, clippy::expect_used)]

mod alignment;
mod calls;
mod credit;
mod endings;
mod fuzz;
mod hostile;
mod observed;
mod run;
mod units;

use super::fakes::{FakeGuest, make_fifos};
use super::{ChannelConfig, FifoConnector, GuestMetrics};
use crate::guest::{Guest, GuestConnector, GuestError, GuestStream, StreamItem, v1};
use crate::runtime::StdioPaths;
use prometheus::Registry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Handle;
use v1::guest_message::Body as Says;
use v1::host_message::Body as Hears;

/// Only there so that a test fails instead of hanging.
const LONG: Duration = Duration::from_secs(30);
/// Of calls that must not be answered.
const SHORT: Duration = Duration::from_millis(300);

/// The name of the sandbox in all tests.
const SANDBOX: &str = "h0000000a000000000001";

/// FIFOs, and a connector to them.
struct Rig {
    _directory: tempfile::TempDir,
    paths: StdioPaths,
    registry: Registry,
    connector: FifoConnector,
    over: Arc<AtomicBool>,
}

impl Rig {
    fn new() -> Self {
        Self::with(ChannelConfig::default())
    }

    fn with(config: ChannelConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let sandbox = directory.path().join(SANDBOX);
        std::fs::create_dir(&sandbox).unwrap();
        let registry = Registry::new();
        let metrics = GuestMetrics::register(&registry).unwrap();
        Self {
            paths: make_fifos(&sandbox),
            _directory: directory,
            registry,
            connector: FifoConnector::new(Handle::current(), config, metrics),
            over: Arc::default(),
        }
    }

    fn connect(&self) -> Arc<dyn Guest> {
        self.connector.connect(&self.paths).unwrap()
    }

    fn run<T: Send + 'static>(
        &self,
        script: impl FnOnce(&mut FakeGuest) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let mut guest = FakeGuest::open(&self.paths);
        guest.over = Arc::clone(&self.over);
        guest.run(script)
    }

    /// Endless scripts stop.
    fn over(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// A counter or a histogram's count, summed over labels that contain `label`.
    fn metric(&self, name: &str, label: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let family = family.unwrap_or_else(|| panic!("no metric {name}"));
        let of_label = family.get_metric().iter().filter(|metric| {
            label.is_empty() || metric.get_label().iter().any(|pair| pair.value() == label)
        });
        #[allow(clippy::cast_precision_loss)]
        of_label
            .map(|metric| {
                metric.get_counter().get_value() + metric.get_histogram().get_sample_count() as f64
            })
            .sum()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.over();
    }
}

fn exec(command: &str) -> v1::Exec {
    v1::Exec {
        command: vec![command.to_owned()],
        stdin: true,
        ..v1::Exec::default()
    }
}

fn pong() -> Says {
    Says::Pong(v1::Pong {
        version: "1.2.3".to_owned(),
    })
}

fn started() -> Says {
    Says::Started(v1::Started {
        pid: 42,
        ..Default::default()
    })
}

fn output(stream: v1::Stream, data: &[u8], eof: bool) -> Says {
    Says::Output(v1::Output {
        stream: stream.into(),
        data: data.to_vec().into(),
        eof,
    })
}

fn stdout(data: &[u8]) -> Says {
    output(v1::Stream::Stdout, data, false)
}

fn exited(code: i32) -> Says {
    Says::Exited(v1::Exited {
        code,
        ..v1::Exited::default()
    })
}

/// Answers pings and starts every exec, until the test is over.
fn serve(guest: &mut FakeGuest) {
    guest.serve(|guest, call, body| match body {
        Hears::Ping(_) => guest.say(call, pong()),
        Hears::Exec(_) => guest.say(call, started()),
        _ => {}
    });
}

/// The next item of a stream.
async fn next(stream: &mut GuestStream) -> Option<Result<StreamItem, GuestError>> {
    tokio::time::timeout(LONG, stream.output.recv())
        .await
        .expect("a stream that gives nothing")
}

/// All items of a stream to its end.
async fn drain(stream: &mut GuestStream) -> Vec<Result<StreamItem, GuestError>> {
    let mut items = Vec::new();
    while let Some(item) = next(stream).await {
        items.push(item);
    }
    items
}

/// How a channel ended.
async fn failure(guest: &Arc<dyn Guest>) -> GuestError {
    tokio::time::timeout(LONG, guest.failed())
        .await
        .expect("a channel that does not end")
}

/// Until nobody on the host's side holds the guest's stdout open.
async fn fifos_closed(paths: &StdioPaths) {
    use std::os::unix::fs::OpenOptionsExt;
    let is_open = || {
        std::fs::File::options()
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(&paths.stdout)
            .is_ok()
    };
    let until = std::time::Instant::now() + LONG;
    while is_open() {
        assert!(std::time::Instant::now() < until, "the FIFOs stay open");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
