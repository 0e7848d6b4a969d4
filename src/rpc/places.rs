//! How many streams are open in each sandbox, bounded; and the gauges of all open streams.

use super::guest;
use super::metrics::Metrics;
use crate::driver::Visit;
use crate::machine::ids::SandboxId;
use crate::machine::refusal::Refusal;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What kind of stream: the label of the gauge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Sandboxes.Exec.
    Exec,
    /// Sandboxes.RunCode.
    RunCode,
    /// Sandboxes.ReadFile.
    ReadFile,
    /// Sandboxes.WriteFile.
    WriteFile,
    /// Sandboxes.ListFiles.
    ListFiles,
    /// Sandboxes.Connect.
    Connect,
    /// Claims.Watch.
    WatchClaims,
    /// Pools.WatchPools.
    WatchPools,
    /// Node.ImportImage.
    ImportImage,
    /// Node.PullImage.
    PullImage,
    /// Node.Drain.
    Drain,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 11] = [
        Kind::Exec,
        Kind::RunCode,
        Kind::ReadFile,
        Kind::WriteFile,
        Kind::ListFiles,
        Kind::Connect,
        Kind::WatchClaims,
        Kind::WatchPools,
        Kind::ImportImage,
        Kind::PullImage,
        Kind::Drain,
    ];

    /// The label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Kind::Exec => "exec",
            Kind::RunCode => "run_code",
            Kind::ReadFile => "read_file",
            Kind::WriteFile => "write_file",
            Kind::ListFiles => "list_files",
            Kind::Connect => "connect",
            Kind::WatchClaims => "watch_claims",
            Kind::WatchPools => "watch_pools",
            Kind::ImportImage => "import_image",
            Kind::PullImage => "pull_image",
            Kind::Drain => "drain",
        }
    }
}

/// An open stream in the gauge; dropping it ends it there.
pub struct Open {
    gauge: prometheus::IntGauge,
}

impl Open {
    /// Counts a stream as open.
    #[must_use]
    pub fn count(metrics: &Metrics, kind: Kind) -> Self {
        let gauge = metrics.streams_open(kind);
        gauge.inc();
        Self { gauge }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// Streams in each sandbox.
#[derive(Clone)]
pub struct Places {
    taken: Arc<Mutex<HashMap<SandboxId, usize>>>,
    bound: usize,
    metrics: Metrics,
}

impl Places {
    /// At most `bound` in each sandbox.
    #[must_use]
    pub fn new(bound: usize, metrics: Metrics) -> Self {
        Self {
            taken: Arc::default(),
            bound,
            metrics,
        }
    }

    /// Takes a place for one stream; it is free again when the place is dropped.
    pub fn take(&self, visit: Visit, kind: Kind) -> Result<Place, Refusal> {
        let sandbox = visit.sandbox();
        // A count is never left half changed: a poisoned lock holds good numbers.
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(sandbox).or_default();
        if *count >= self.bound {
            return Err(guest::full());
        }
        *count += 1;
        Ok(Place {
            taken: Arc::clone(&self.taken),
            sandbox,
            _open: Open::count(&self.metrics, kind),
            _visit: visit,
        })
    }
}

/// The place of one stream.
pub struct Place {
    taken: Arc<Mutex<HashMap<SandboxId, usize>>>,
    sandbox: SandboxId,
    _open: Open,
    _visit: Visit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.sandbox) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.sandbox);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::ids::NodeTag;

    #[test]
    fn places_are_bounded_per_sandbox_and_come_back() {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let places = Places::new(2, metrics.clone());
        let sandbox = |n| SandboxId::new(NodeTag(1), n).unwrap();
        let visits = crate::driver::Visits::default();
        let first = places.take(visits.begin(sandbox(1)), Kind::Exec).unwrap();
        let _second = places
            .take(visits.begin(sandbox(1)), Kind::Connect)
            .unwrap();
        assert_eq!(
            places.take(visits.begin(sandbox(1)), Kind::Exec).err(),
            Some(guest::full())
        );
        let other = places.take(visits.begin(sandbox(2)), Kind::Exec).unwrap();
        assert_eq!(metrics.streams_open(Kind::Exec).get(), 2);
        drop(first);
        drop(other);
        assert_eq!(metrics.streams_open(Kind::Exec).get(), 0);
        let _again = places.take(visits.begin(sandbox(1)), Kind::Exec).unwrap();
        assert_eq!(
            places.taken.lock().unwrap().len(),
            1,
            "a sandbox without streams is forgotten"
        );
    }
}
