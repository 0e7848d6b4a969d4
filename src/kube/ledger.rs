//! What has been reported: the same matter is one Event, all of them together have a rate, and the memory of it a bound.
//! Pure: the time is given.

use std::collections::BTreeMap;
use std::time::Duration;

/// Matters remembered; beyond, the one that was quiet longest is forgotten.
const MATTERS: usize = 64;
/// The same matter after so long is a new Event; the API server forgets Events after an hour.
const FORGOTTEN: Duration = Duration::from_secs(20 * 60);
/// The count of a series is told so often at most.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Calls at once, and how soon there may be one more.
const BURST: u32 = 20;
const ONE_MORE: Duration = Duration::from_secs(15);

/// What to do about a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Make an Event of it; if that works, tell its name by [`Ledger::made`].
    New,
    /// It is in this Event: tell its count.
    Again {
        /// The Event's.
        name: String,
        /// How often it was seen.
        count: u32,
    },
    /// It is counted, and told with a later one.
    Hold,
    /// Too many for now: it is lost.
    TooMany,
}

#[derive(Debug)]
struct Matter {
    name: String,
    count: u32,
    seen: Duration,
    told: Duration,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Ledger {
    matters: BTreeMap<(&'static str, String), Matter>,
    /// The moment at which all calls so far are paid for.
    paid: Duration,
    now: Duration,
}

impl Ledger {
    /// One more report, `now` after the start.
    pub fn judge(&mut self, reason: &'static str, subject: &str, now: Duration) -> Verdict {
        self.now = now;
        self.matters
            .retain(|_, matter| now.saturating_sub(matter.seen) < FORGOTTEN);
        let key = (reason, subject.to_owned());
        if let Some(matter) = self.matters.get_mut(&key) {
            matter.seen = now;
            matter.count = matter.count.saturating_add(1);
            if now.saturating_sub(matter.told) < TOLD_EVERY {
                return Verdict::Hold;
            }
        }
        if !self.pays() {
            return match self.matters.contains_key(&key) {
                true => Verdict::Hold,
                false => Verdict::TooMany,
            };
        }
        match self.matters.get_mut(&key) {
            Some(matter) => {
                matter.told = now;
                Verdict::Again {
                    name: matter.name.clone(),
                    count: matter.count,
                }
            }
            None => Verdict::New,
        }
    }

    /// The Event was made.
    pub fn made(&mut self, reason: &'static str, subject: &str, name: String) {
        let now = self.now;
        let matter = Matter {
            name,
            count: 1,
            seen: now,
            told: now,
        };
        self.matters.insert((reason, subject.to_owned()), matter);
        if self.matters.len() > MATTERS {
            let quiet = self.matters.iter().min_by_key(|(_, matter)| matter.seen);
            if let Some(quiet) = quiet.map(|(key, _)| key.clone()) {
                self.matters.remove(&quiet);
            }
        }
    }

    fn pays(&mut self) -> bool {
        let paid = self.paid.max(self.now) + ONE_MORE;
        let may = paid <= self.now + ONE_MORE * BURST;
        if may {
            self.paid = paid;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn tell(ledger: &mut Ledger, subject: &str, at: u64) -> Verdict {
        let verdict = ledger.judge("PoolFailing", subject, seconds(at));
        if verdict == Verdict::New {
            ledger.made("PoolFailing", subject, subject.to_uppercase());
        }
        verdict
    }

    #[test]
    fn the_same_matter_is_one_event_whose_count_rises() {
        let mut ledger = Ledger::default();
        assert_eq!(tell(&mut ledger, "a", 0), Verdict::New);
        for at in 1..60 {
            assert_eq!(tell(&mut ledger, "a", at), Verdict::Hold);
        }
        let (name, count) = ("A".to_owned(), 61);
        assert_eq!(tell(&mut ledger, "a", 60), Verdict::Again { name, count });
        assert_eq!(tell(&mut ledger, "b", 60), Verdict::New);
        assert_eq!(ledger.judge("Other", "a", seconds(60)), Verdict::New);
        // Long after, it is news again.
        assert_eq!(tell(&mut ledger, "a", 60 + 20 * 60), Verdict::New);
    }

    #[test]
    fn an_event_that_could_not_be_made_is_no_series() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.judge("PoolFailing", "a", seconds(0)), Verdict::New);
        assert_eq!(ledger.judge("PoolFailing", "a", seconds(1)), Verdict::New);
    }

    #[test]
    fn many_matters_have_a_rate_and_a_bound() {
        let mut ledger = Ledger::default();
        let told = (0..1000).filter(|n| tell(&mut ledger, &n.to_string(), 0) == Verdict::New);
        assert_eq!(told.count(), 20);
        assert_eq!(tell(&mut ledger, "late", 14), Verdict::TooMany);
        assert_eq!(tell(&mut ledger, "late", 15), Verdict::New);
        // What is known is not lost for it.
        assert_eq!(tell(&mut ledger, "late", 16), Verdict::Hold);
        for n in 0..1000u64 {
            tell(&mut ledger, &format!("slow {n}"), 1000 + n * 15);
            assert!(ledger.matters.len() <= MATTERS);
        }
    }
}
