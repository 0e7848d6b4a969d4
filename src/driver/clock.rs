//! hearth time.

use crate::machine::ids::Now;
use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime};

/// Where the driver's `now` comes from. The real one is [`BootClock`].
pub trait Clock: Send + Sync + 'static {
    /// hearth time: never falls.
    fn now(&self) -> Now;

    /// The wall-clock time at hearth time `at`, as the wall clock stands now.
    fn to_wall_clock(&self, at: Now) -> SystemTime {
        let now = self.now();
        let wall = SystemTime::now();
        if at >= now {
            wall.checked_add(Duration::from_millis(at.since(now)))
        } else {
            wall.checked_sub(Duration::from_millis(now.since(at)))
        }
        // Beyond what SystemTime can tell: a ttl is bounded, so only a wild clock comes here.
        .unwrap_or(wall)
    }
}

/// CLOCK_BOOTTIME from a starting point on: goes on during suspend and is not moved by clock steps.
#[derive(Debug, Clone, Copy)]
pub struct BootClock {
    start: Now,
    boottime_at_start: Duration,
}

impl BootClock {
    /// A clock that says `start` when CLOCK_BOOTTIME says `boottime_at_start` (the journal computes the pair).
    #[must_use]
    pub fn new(start: Now, boottime_at_start: Duration) -> Self {
        Self {
            start,
            boottime_at_start,
        }
    }

    /// CLOCK_BOOTTIME now.
    ///
    /// # Errors
    /// The kernel does not know the clock (Linux < 2.6.39).
    pub fn boottime() -> std::io::Result<Duration> {
        Ok(clock_gettime(ClockId::CLOCK_BOOTTIME)?.into())
    }
}

impl Clock for BootClock {
    fn now(&self) -> Now {
        // app has read the clock before; should the kernel refuse all the same, time stands still rather than falls.
        let boottime = Self::boottime().unwrap_or(self.boottime_at_start);
        let passed = boottime.saturating_sub(self.boottime_at_start);
        self.start
            .plus(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX))
    }
}
