//! Which reservations are made, resized and deleted, and when. Pure: the time is given, as what has passed since the start.
//!
//! What is too small grows at once. What is too large is made smaller when it was so for [`LESS_AFTER`], so that claims that
//! come and go move nothing. A reservation that somebody else took away is made anew, ever more slowly, until it has held
//! for [`WELL_AFTER`]. What was refused is tried again, ever more slowly, until it is granted.

use crate::kube::Backoff;
use crate::machine::ids::PoolName;
use crate::machine::view::Promised;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A reservation that is too large is made smaller after so long.
pub(super) const LESS_AFTER: Duration = Duration::from_secs(30);
/// One that was held so long has given its budget of attempts back.
pub(super) const WELL_AFTER: Duration = Duration::from_secs(600);
/// Between two attempts.
pub(super) const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// The same where something was refused: a quota may be raised at any time.
const LONGEST_REFUSED: Duration = Duration::from_secs(60);

/// What keeps a reservation from being granted. The names are labels of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// A ResourceQuota of its namespace.
    Quota,
    /// Anything else that the API server refuses.
    Refused,
    /// The scheduler finds no room on the node.
    Unschedulable,
    /// The node has no room for a larger one now.
    Deferred,
    /// The node will never have room for it.
    Infeasible,
    /// Somebody else ended it: it is made anew.
    Lost,
}

impl Why {
    pub(super) const ALL: [Self; 6] = [
        Self::Quota,
        Self::Refused,
        Self::Unschedulable,
        Self::Deferred,
        Self::Infeasible,
        Self::Lost,
    ];

    /// As a condition's reason.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Quota => "QuotaExceeded",
            Self::Refused => "Refused",
            Self::Unschedulable => "Unschedulable",
            Self::Deferred => "Deferred",
            Self::Infeasible => "Infeasible",
            Self::Lost => "Lost",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::Refused => "refused",
            Self::Unschedulable => "unschedulable",
            Self::Deferred => "deferred",
            Self::Infeasible => "infeasible",
            Self::Lost => "lost",
        }
    }
}

/// How a reservation stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// All of it is counted.
    Held,
    /// It was asked for, and nothing was said yet.
    Asked,
    /// It, or its last resize, is not granted; in the cluster's words.
    Short(Why, String),
    /// It is being deleted.
    Ending,
    /// It has ended, or belongs to a node object that is gone: it is in the way of a new one.
    Dead,
}

/// A reservation as the watch shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// Of the Pod.
    pub uid: String,
    /// What it requests.
    pub asked: Promised,
    /// What the scheduler counts for it at least.
    pub granted: Promised,
    pub state: State,
}

impl Seen {
    fn is_alive(&self) -> bool {
        matches!(self.state, State::Held | State::Asked | State::Short(..))
    }
}

/// What to do about one pool's reservation. Whoever does it tells the plan what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Create(Promised),
    Resize { uid: String, to: Promised },
    Delete { uid: String },
}

/// One look's result.
#[derive(Debug, Default)]
pub(super) struct Decided {
    /// At most one a pool.
    pub steps: BTreeMap<PoolName, Step>,
    /// Pools whose reservation somebody else ended.
    pub lost: Vec<PoolName>,
    /// Pools for which there is a step, but not so soon after the last attempt.
    pub put_off: BTreeSet<PoolName>,
    /// When to look again although nothing has changed.
    pub next: Option<Duration>,
}

/// There will be something to do then.
struct Later {
    at: Duration,
    /// It would be done now, but for the last attempt.
    put_off: bool,
}

/// What is remembered of a pool's reservation.
#[derive(Debug)]
struct Known {
    creations: Backoff,
    refusals: Backoff,
    not_before: Duration,
    /// Since when it is too large.
    less_since: Option<Duration>,
    held_since: Option<Duration>,
    /// It was there when it was looked at last, and nobody had asked for its end.
    there: bool,
    /// The Pod that hearthd has deleted last: the watch may still show it.
    deleted: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Plan {
    node: String,
    known: BTreeMap<PoolName, Known>,
}

impl Plan {
    /// For a node of that name, whose attempts are spread by it.
    pub(super) fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            known: BTreeMap::new(),
        }
    }

    /// What to do now. `pools` are all that are declared, with what their sandboxes were promised (`None`: not known yet);
    /// `seen` are all reservations of this node, by pool.
    pub(super) fn decide(
        &mut self,
        now: Duration,
        pools: &BTreeMap<PoolName, Option<Promised>>,
        seen: &BTreeMap<PoolName, Seen>,
    ) -> Decided {
        let mut decided = Decided::default();
        let of_now: BTreeSet<_> = pools.keys().chain(seen.keys()).collect();
        self.known.retain(|pool, _| of_now.contains(pool));
        for pool in of_now {
            let fresh = || Known::new(&self.node);
            let known = self.known.entry(pool.clone()).or_insert_with(fresh);
            let there = seen.get(pool);
            let there = there.filter(|it| known.deleted.as_ref() != Some(&it.uid));
            if known.look(now, there) {
                decided.lost.push(pool.clone());
            }
            // Gone for sure, or only as far as hearthd knows: then its name is still taken.
            let is_free = !seen.contains_key(pool);
            let step = known.step(now, pools.get(pool), there, is_free);
            match step {
                Err(Later { at, put_off }) => {
                    decided.next = Some(decided.next.map_or(at, |next| next.min(at)));
                    decided.put_off.extend(put_off.then(|| pool.clone()));
                }
                Ok(step) => {
                    let step = step.map(|step| (pool.clone(), step));
                    decided.steps.extend(step);
                }
            }
        }
        decided
    }

    /// A reservation was created.
    pub(super) fn created(&mut self, pool: &PoolName, now: Duration) {
        if let Some(known) = self.known.get_mut(pool) {
            let next = now + known.creations.failed();
            known.not_before = known.not_before.max(next);
        }
    }

    /// A step was refused.
    pub(super) fn refused(&mut self, pool: &PoolName, now: Duration) {
        if let Some(known) = self.known.get_mut(pool) {
            let next = now + known.refusals.failed();
            known.not_before = known.not_before.max(next);
        }
    }

    /// hearthd's own deletion was taken.
    pub(super) fn deleted(&mut self, pool: &PoolName, uid: String) {
        if let Some(known) = self.known.get_mut(pool) {
            known.there = false;
            known.less_since = None;
            known.deleted = Some(uid);
        }
    }
}

impl Known {
    fn new(node: &str) -> Self {
        Self {
            creations: Backoff::new(node, FIRST_WAIT, LONGEST_WAIT),
            refusals: Backoff::new(node, FIRST_WAIT, LONGEST_REFUSED),
            not_before: Duration::ZERO,
            less_since: None,
            held_since: None,
            there: false,
            deleted: None,
        }
    }

    /// Has somebody else ended it?
    fn look(&mut self, now: Duration, seen: Option<&Seen>) -> bool {
        let alive = seen.is_some_and(Seen::is_alive);
        let lost = self.there && !alive;
        self.there = alive;
        match seen.map(|it| &it.state) {
            Some(State::Held) => {
                let since = *self.held_since.get_or_insert(now);
                if now.saturating_sub(since) >= WELL_AFTER {
                    self.creations.worked();
                }
            }
            Some(_) | None => self.held_since = None,
        }
        lost
    }

    /// What to do, if anything.
    fn step(
        &mut self,
        now: Duration,
        declared: Option<&Option<Promised>>,
        seen: Option<&Seen>,
        is_free: bool,
    ) -> Result<Option<Step>, Later> {
        let Some(seen) = seen else {
            return match declared {
                Some(Some(promised)) if is_free && *promised != Promised::default() => {
                    self.due(now, Step::Create(*promised))
                }
                Some(_) | None => Ok(None),
            };
        };
        let uid = seen.uid.clone();
        match (&seen.state, declared) {
            (State::Ending, _) | (_, Some(None)) => Ok(None),
            (State::Dead, _) | (_, None) => self.due(now, Step::Delete { uid }),
            (_, Some(Some(promised))) => {
                let to = promised.max(seen.asked);
                if to != seen.asked {
                    self.less_since = None;
                    return self.due(now, Step::Resize { uid, to });
                }
                if *promised == seen.asked {
                    self.less_since = None;
                    self.refusals.worked();
                    return Ok(None);
                }
                let at = *self.less_since.get_or_insert(now) + LESS_AFTER;
                if now < at {
                    let put_off = false;
                    return Err(Later { at, put_off });
                }
                let step = match *promised == Promised::default() {
                    true => Step::Delete { uid },
                    false => Step::Resize { uid, to: *promised },
                };
                let due = self.due(now, step);
                if due.is_ok() {
                    // Whatever comes of it: not again at once.
                    self.less_since = None;
                }
                due
            }
        }
    }

    fn due(&self, now: Duration, step: Step) -> Result<Option<Step>, Later> {
        match now < self.not_before {
            true => Err(Later {
                at: self.not_before,
                put_off: true,
            }),
            false => Ok(Some(step)),
        }
    }
}
