//! What has been answered lately, within bounds. Pure: no clock of its own.
//!
//! Good and bad answers are kept apart, so that whatever comes in with made-up tokens pushes out no answer about a good one.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Part of a good answer's age after which it is asked for anew, beside the calls that still use it: who goes on calling
/// waits for one review in its life.
const AGAIN: f64 = 0.75;

/// How long answers count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ages {
    /// Good ones.
    pub good: Duration,
    /// Refusals.
    pub refused: Duration,
    /// That nobody could be asked: so long the same is not asked again.
    pub away: Duration,
}

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<V> {
    /// Yes.
    Good(V),
    /// No.
    Refused,
    /// Nobody could be asked; why, for the caller.
    Away(&'static str),
}

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen<V> {
    /// This was answered, and counts.
    Known {
        /// The answer.
        answer: Answer<V>,
        /// It is good, and time to ask anew beside it.
        again: bool,
    },
    /// Nothing that counts. `before`: it was good lately.
    Nothing {
        /// See above.
        before: bool,
    },
}

struct Good<V> {
    value: V,
    until: Instant,
    again: Instant,
}

struct Bad {
    /// `None`: refused.
    away: Option<&'static str>,
    until: Instant,
}

/// The answers about keys of one kind.
pub struct Memory<K, V> {
    good: HashMap<K, Good<V>>,
    bad: HashMap<K, Bad>,
    most: usize,
    ages: Ages,
}

impl<K: Clone + Eq + Hash, V: Clone> Memory<K, V> {
    /// Keeps so many good answers and as many others.
    pub fn new(most: usize, ages: Ages) -> Self {
        Self {
            good: HashMap::new(),
            bad: HashMap::new(),
            most: most.max(1),
            ages,
        }
    }

    /// What is known of it.
    pub fn look(&self, key: &K, now: Instant) -> Seen<V> {
        let good = self.good.get(key);
        if let Some(good) = good.filter(|good| now < good.until) {
            return Seen::Known {
                answer: Answer::Good(good.value.clone()),
                again: good.again <= now,
            };
        }
        match self.bad.get(key).filter(|bad| now < bad.until) {
            Some(bad) => Seen::Known {
                answer: bad.away.map_or(Answer::Refused, Answer::Away),
                again: false,
            },
            None => Seen::Nothing {
                before: good.is_some(),
            },
        }
    }

    /// This was answered. A good answer counts for `left` at most.
    pub fn learn(&mut self, key: K, answer: &Answer<V>, left: Option<Duration>, now: Instant) {
        let (away, age) = match answer {
            Answer::Good(value) => {
                self.bad.remove(&key);
                let age = left.map_or(self.ages.good, |left| left.min(self.ages.good));
                let known = Good {
                    value: value.clone(),
                    until: now + age,
                    again: now + age.mul_f64(AGAIN),
                };
                make_room(&mut self.good, &key, self.most, now, |good| good.until);
                self.good.insert(key, known);
                return;
            }
            Answer::Refused => {
                self.good.remove(&key);
                (None, self.ages.refused)
            }
            Answer::Away(why) => {
                // What counts still counts; it is asked for again a little later.
                if let Some(good) = self.good.get_mut(&key).filter(|good| now < good.until) {
                    good.again = now + self.ages.away;
                    return;
                }
                (Some(*why), self.ages.away)
            }
        };
        make_room(&mut self.bad, &key, self.most, now, |bad| bad.until);
        let until = now + age;
        self.bad.insert(key, Bad { away, until });
    }

    /// Good answers and others that are kept.
    pub fn kept(&self) -> (usize, usize) {
        (self.good.len(), self.bad.len())
    }
}

/// What counts no more goes first, then what ends first. Looks at all of them, which only a review makes it do.
fn make_room<K: Clone + Eq + Hash, E>(
    table: &mut HashMap<K, E>,
    key: &K,
    most: usize,
    now: Instant,
    until: impl Fn(&E) -> Instant,
) {
    if table.len() < most || table.contains_key(key) {
        return;
    }
    table.retain(|_, entry| now < until(entry));
    if table.len() >= most {
        let first = table.iter().min_by_key(|(_, entry)| until(entry));
        if let Some(first) = first.map(|(key, _)| key.clone()) {
            table.remove(&first);
        }
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
