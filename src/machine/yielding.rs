//! Refill steps aside for claims: a creation costs a tenth of a second of CPU, and a claim's guest answers in a
//! millisecond only if it gets a core. What is made for a claim that waits never steps aside.

use super::ids::Now;

/// After so many times its pause, refill goes on whatever the claims do.
const PATIENCE: u64 = 5;

/// When refill may go on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Yielding {
    /// No claim was assigned for a while, from then on.
    quiet_at: Now,
    /// Refill has waited long enough, from then on; `None`: it does not wait yet.
    latest: Option<Now>,
    /// The timer that is set.
    pub(super) timer: Option<Now>,
}

impl Yielding {
    /// As at the start of hearthd.
    pub(super) fn at_start() -> Self {
        Self {
            quiet_at: Now(0),
            latest: None,
            timer: None,
        }
    }

    /// A claim got its member.
    pub(super) fn assigned(&mut self, now: Now, pause_ms: u64) {
        self.quiet_at = now.plus(pause_ms);
        let patience_ms = pause_ms.saturating_mul(PATIENCE);
        self.latest.get_or_insert(now.plus(patience_ms));
    }

    /// A refill has begun: the next wait begins with the next claim.
    pub(super) fn refilled(&mut self) {
        self.latest = None;
    }

    /// Until when refill waits; `None`: it need not.
    pub(super) fn until(&self, now: Now) -> Option<Now> {
        let until = self.quiet_at.min(self.latest?);
        (until > now).then_some(until)
    }
}
