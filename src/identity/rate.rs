//! How many calls a caller may make: a token bucket each, in a bounded table.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Callers that have a bucket of their own. The others share one.
const CALLERS: usize = 1024;
/// A bucket holds the calls of so many seconds: a burst.
const BURST_SECONDS: f64 = 2.0;
/// The name that callers share when the table is full. No identity has it.
const OTHERS: &str = "";

/// What a call counts against: returning must not starve behind claiming, also of the same caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Releases and renewals.
    Returns,
    /// Everything else.
    Other,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

/// The buckets.
pub struct Limiter {
    per_second: f64,
    burst: f64,
    buckets: Mutex<HashMap<(Arc<str>, Class), Bucket>>,
}

impl Limiter {
    /// So many calls a second for each caller, of each class.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second.max(1));
        Self {
            per_second,
            burst: per_second * BURST_SECONDS,
            buckets: Mutex::default(),
        }
    }

    /// Counts one call.
    ///
    /// # Errors
    /// The caller makes too many: when to come back.
    pub fn take(&self, caller: &Arc<str>, class: Class, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (Arc::clone(caller), class);
        let key = if buckets.contains_key(&key) || self.room(&mut buckets, now) {
            key
        } else {
            (OTHERS.into(), class)
        };
        let bucket = buckets.entry(key).or_insert(Bucket {
            tokens: self.burst,
            at: now,
        });
        bucket.tokens = self.filled(bucket, now);
        bucket.at = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            Ok(())
        } else {
            Err(Duration::from_secs_f64(
                (1.0 - bucket.tokens) / self.per_second,
            ))
        }
    }

    fn filled(&self, bucket: &Bucket, now: Instant) -> f64 {
        let since = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.tokens + since * self.per_second).min(self.burst)
    }

    /// Makes room for one more by forgetting full buckets: they say nothing.
    fn room(&self, buckets: &mut HashMap<(Arc<str>, Class), Bucket>, now: Instant) -> bool {
        if buckets.len() >= CALLERS {
            buckets.retain(|_, bucket| self.filled(bucket, now) < self.burst);
        }
        buckets.len() < CALLERS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: &str) -> Arc<str> {
        name.into()
    }

    #[test]
    fn a_caller_has_its_burst_then_its_rate_and_is_told_when_to_come_back() {
        let (limiter, now, a) = (Limiter::new(10), Instant::now(), caller("uid:1"));
        for _ in 0..20 {
            limiter.take(&a, Class::Other, now).unwrap();
        }
        let wait = limiter.take(&a, Class::Other, now).unwrap_err();
        assert!(Duration::ZERO < wait && wait <= Duration::from_millis(100));
        let later = now + wait + Duration::from_micros(1);
        limiter.take(&a, Class::Other, later).unwrap();
        assert!(limiter.take(&a, Class::Other, later).is_err());
    }

    #[test]
    fn callers_and_returns_are_counted_apart() {
        let (limiter, now, a) = (Limiter::new(1), Instant::now(), caller("uid:1"));
        while limiter.take(&a, Class::Other, now).is_ok() {}
        limiter.take(&a, Class::Returns, now).unwrap();
        limiter.take(&caller("uid:2"), Class::Other, now).unwrap();
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_is_idle() {
        let (limiter, now) = (Limiter::new(1), Instant::now());
        for n in 0..5 * CALLERS {
            let _refused = limiter.take(&caller(&format!("uid:{n}")), Class::Other, now);
        }
        let held = || limiter.buckets.lock().unwrap().len();
        assert!(held() <= CALLERS + 1, "{}", held());
        // Those without a bucket share one, which is empty by now.
        let late = caller("uid:late");
        assert!(limiter.take(&late, Class::Other, now).is_err());
        let later = now + Duration::from_secs(60);
        limiter.take(&late, Class::Other, later).unwrap();
        assert!(held() < 10, "{}", held());
    }
}
