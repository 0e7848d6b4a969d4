//! The circuit breaker of a pool: a template that keeps failing rests, and is then probed with one creation.
//!
//! ```text
//! Closed ──failure──▶ Pausing ──pause over, creation starts──▶ Closed
//!    │ 5 failures in a row                    ▲
//!    ▼                                        │ success (of any creation)
//!  Open ──rest over, creation starts──▶ HalfOpen
//!    ▲──────────── probe fails: twice the rest ─┘
//! ```
//! Not durable: after a restart a failing template gets its failures in a row again.

use super::ids::{Now, SandboxId};
use super::limits::{BREAKER_FAILURES, BREAKER_FIRST_MS, BREAKER_MAX_MS, REFILL_PAUSE_MS};
use super::refusal::bounded;
use super::view::BreakerView;

#[derive(Debug, Clone, Copy)]
enum State {
    Closed,
    Pausing { until: Now },
    Open { until: Now, rest_ms: u64 },
    HalfOpen { probe: SandboxId, rest_ms: u64 },
}

/// One pool's.
#[derive(Debug, Clone)]
pub(super) struct Breaker {
    state: State,
    failures: u32,
    reason: String,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            state: State::Closed,
            failures: 0,
            reason: String::new(),
        }
    }
}

impl Breaker {
    /// May a creation start?
    pub(super) fn permits(&self, now: Now) -> bool {
        match self.state {
            State::Closed => true,
            State::Pausing { until } | State::Open { until, .. } => until <= now,
            State::HalfOpen { .. } => false,
        }
    }

    /// A creation starts; it was permitted.
    pub(super) fn creation_started(&mut self, sandbox: SandboxId) {
        self.state = match self.state {
            State::Open { rest_ms, .. } => State::HalfOpen {
                probe: sandbox,
                rest_ms,
            },
            State::Closed | State::Pausing { .. } => State::Closed,
            half_open @ State::HalfOpen { .. } => half_open,
        };
    }

    /// A creation succeeded: the template works. True: it was thought not to.
    pub(super) fn creation_succeeded(&mut self) -> bool {
        let was_failing = matches!(self.state, State::Open { .. } | State::HalfOpen { .. });
        *self = Self::default();
        was_failing
    }

    /// A creation failed by the template's fault. True: the breaker opens now.
    pub(super) fn creation_failed(&mut self, sandbox: SandboxId, reason: &str, now: Now) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.reason = bounded(reason.to_owned());
        let pausing = State::Pausing {
            until: now.plus(REFILL_PAUSE_MS),
        };
        let open = |rest_ms| State::Open {
            until: now.plus(rest_ms),
            rest_ms,
        };
        let (state, opened) = match self.state {
            State::HalfOpen { probe, rest_ms } if probe == sandbox => {
                (open((2 * rest_ms).min(BREAKER_MAX_MS)), false)
            }
            State::Closed | State::Pausing { .. } if self.failures >= BREAKER_FAILURES => {
                (open(BREAKER_FIRST_MS), true)
            }
            State::Closed | State::Pausing { .. } => (pausing, false),
            failing @ (State::Open { .. } | State::HalfOpen { .. }) => (failing, false),
        };
        self.state = state;
        opened
    }

    /// A creation failed because the runtime went away: a pause, nobody's fault.
    pub(super) fn creation_interrupted(&mut self, sandbox: SandboxId, now: Now) {
        let until = now.plus(REFILL_PAUSE_MS);
        self.state = match self.state {
            State::HalfOpen { probe, rest_ms } if probe == sandbox => {
                State::Open { until, rest_ms }
            }
            State::Closed | State::Pausing { .. } => State::Pausing { until },
            failing @ (State::Open { .. } | State::HalfOpen { .. }) => failing,
        };
    }

    /// When a creation that is not permitted now may be: the time to look again.
    pub(super) fn wakes_at(&self) -> Option<Now> {
        match self.state {
            State::Pausing { until } | State::Open { until, .. } => Some(until),
            State::Closed | State::HalfOpen { .. } => None,
        }
    }

    /// Milliseconds until the pool may be tried again, if it is failing.
    pub(super) fn failing_for(&self, now: Now) -> Option<u64> {
        match self.state {
            State::Open { until, .. } => Some(until.since(now)).filter(|rest| *rest > 0),
            State::HalfOpen { rest_ms, .. } => Some(rest_ms),
            State::Closed | State::Pausing { .. } => None,
        }
    }

    /// The creation that probes a failing template.
    pub(super) fn probe(&self) -> Option<SandboxId> {
        match self.state {
            State::HalfOpen { probe, .. } => Some(probe),
            _ => None,
        }
    }

    /// The last failure, bounded; empty: none.
    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) fn view(&self) -> BreakerView {
        match self.state {
            State::Closed | State::Pausing { .. } => BreakerView::Closed,
            State::Open { until, .. } => BreakerView::Open(until),
            State::HalfOpen { .. } => BreakerView::HalfOpen,
        }
    }
}
