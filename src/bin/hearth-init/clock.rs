//! Time while the sandbox runs. A frozen, checkpointed or stopped sandbox does not use up a process's timeout, and a
//! clock that jumps at a restore breaks none.

use std::time::{Duration, Instant};

/// A point in that time, from the start.
pub type Moment = Duration;

/// Longest wait while somebody has a deadline.
pub const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// A longer step than this means that the sandbox stood still.
const LONGEST_STEP: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Clock {
    last: Instant,
    run: Moment,
}

impl Clock {
    pub fn start() -> Self {
        Self {
            last: Instant::now(),
            run: Moment::ZERO,
        }
    }

    /// The time now. Call it once a turn: what lies between two calls beyond [`LONGEST_STEP`] was standstill, and
    /// counts as one longest wait. While nobody has a deadline turns may be longer, and nobody looks at the time.
    pub fn tick(&mut self) -> Moment {
        let now = Instant::now();
        // Zero when the clock went back.
        let step = now.saturating_duration_since(self.last);
        self.last = now;
        self.run += if step > LONGEST_STEP {
            LONGEST_WAIT
        } else {
            step
        };
        self.run
    }
}
