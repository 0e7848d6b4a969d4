//! The workers of the memory tier: freeze, thaw, reclaim, and the looks at what sandboxes use and at what comes in for them.

use super::work::Workers;
use crate::cgroup::memory_pressure_permille;
use crate::machine::event::{Event, Sample};
use crate::machine::ids::{SandboxId, Ticket};
use std::time::Duration;

/// A freeze or a thaw, above the deadlines of the kernel's part and of what it waits for.
const SHIFT: Duration = Duration::from_secs(30);
/// A look at all sandboxes: some file reads each.
const SAMPLE: Duration = Duration::from_secs(30);

impl Workers {
    pub(super) fn freeze(&self, id: SandboxId, decided: Ticket) {
        let residencies = self.residencies.clone();
        let otherwise = Event::Frozen(id, Err("the freeze never ended".into()));
        let span = tracing::info_span!("freeze", sandbox = %id);
        self.spawn(span, SHIFT, otherwise, async move {
            match residencies.freeze(id, decided).await {
                Some(result) => Event::Frozen(id, result),
                // The machine went on without it: its end would be taken for that of a later one.
                None => Event::Tick,
            }
        });
    }

    pub(super) fn thaw(&self, id: SandboxId) {
        let residencies = self.residencies.clone();
        let otherwise = Event::Thawed(id, Err("the thaw never ended".into()));
        let span = tracing::info_span!("thaw", sandbox = %id);
        self.spawn(span, SHIFT, otherwise, async move {
            Event::Thawed(id, residencies.wake(id).await)
        });
    }

    /// At most one for each frozen sandbox, of which one runs at a time.
    pub(super) fn reclaim(&self, id: SandboxId) {
        let residencies = self.residencies.clone();
        tokio::spawn(async move { residencies.reclaim(id).await });
    }

    /// Within the deadlines of the network's own calls.
    pub(super) fn listen(&self) {
        let networks = self.networks.clone();
        let nothing = Event::Heard(Vec::new());
        self.spawn(tracing::Span::none(), SAMPLE, nothing, async move {
            let knocks = networks.knocks().await.into_iter();
            let told = |(id, ago): (SandboxId, Duration)| {
                (id, u64::try_from(ago.as_millis()).unwrap_or(u64::MAX))
            };
            Event::Heard(knocks.map(told).collect())
        });
    }

    pub(super) fn sample(&self, sandboxes: Vec<SandboxId>, from_permille: u32) {
        let (runtime, visits) = (self.runtime.clone(), self.visits.clone());
        let networks = self.networks.clone();
        let nothing = Event::Sampled {
            samples: Vec::new(),
            pressure_permille: 0,
        };
        self.spawn(tracing::Span::none(), SAMPLE, nothing, async move {
            let pressure_permille = memory_pressure_permille().unwrap_or_default();
            if pressure_permille < from_permille {
                return Event::Sampled {
                    samples: Vec::new(),
                    pressure_permille,
                };
            }
            let packets = networks.packets().await;
            let mut samples = Vec::with_capacity(sandboxes.len());
            for id in sandboxes {
                // One that has just ended has no figures, and needs none.
                if let Ok(usage) = runtime.usage(id).await {
                    samples.push(Sample {
                        id,
                        cpu_nanoseconds: usage.cpu_nanoseconds,
                        memory_bytes: usage.memory_bytes,
                        busy: visits.look(id),
                        packets: packets.as_ref().map(|of| of.get(&id).copied().unwrap_or(0)),
                    });
                }
            }
            Event::Sampled {
                samples,
                pressure_permille,
            }
        });
    }
}
