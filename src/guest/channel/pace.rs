//! A rate: so many units per second, so many at once.

use std::time::Duration;
use tokio::time::Instant;

/// Generic cell rate: one instant says how far ahead of its rate something is. No timer, no memory while idle.
#[derive(Debug)]
pub(super) struct Pace {
    per_second: u32,
    burst: u32,
    paid_until: Option<Instant>,
}

impl Pace {
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        Self {
            per_second: per_second.max(1),
            burst,
            paid_until: None,
        }
    }

    fn time_of(&self, units: u32) -> Duration {
        Duration::from_secs(1).saturating_mul(units) / self.per_second
    }

    /// Counts what has come.
    pub(super) fn spend(&mut self, units: usize, now: Instant) {
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let from = self.paid_until.map_or(now, |until| until.max(now));
        self.paid_until = from.checked_add(self.time_of(units)).or(self.paid_until);
    }

    /// When more may come; `None`: at once.
    pub(super) fn resumes_at(&self, now: Instant) -> Option<Instant> {
        let at = self.paid_until?.checked_sub(self.time_of(self.burst))?;
        (at > now).then_some(at)
    }

    /// Units that may still come at once.
    pub(super) fn room(&self, now: Instant) -> usize {
        let ahead = self
            .paid_until
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let free = self.time_of(self.burst).saturating_sub(ahead).as_nanos();
        let units = free.saturating_mul(u128::from(self.per_second)) / 1_000_000_000;
        usize::try_from(units).unwrap_or(usize::MAX)
    }
}
