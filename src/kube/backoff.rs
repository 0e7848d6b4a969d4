//! How long to wait after a failure: twice as long each time, up to a bound, and not on all nodes at once.

use std::time::Duration;

/// Without jitter: the node's name spreads a cluster's nodes over half of each wait, the same way each time.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
    /// 1024 to 1535 thousand-and-twenty-fourths of what is due.
    share: u32,
}

impl Backoff {
    /// From `first` to `most`, for a node of this name.
    #[must_use]
    pub fn new(node: &str, first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            next: first,
            share: 1024 + crc32fast::hash(node.as_bytes()) % 512,
        }
    }

    /// What to wait after one more failure.
    pub fn failed(&mut self) -> Duration {
        let due = self.next;
        self.next = (due * 2).min(self.most);
        due * self.share / 1024
    }

    /// It worked.
    pub fn worked(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_to_its_bound_and_starts_anew() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new("node-1", seconds(1), seconds(30));
        let waits: Vec<_> = (0..7).map(|_| backoff.failed()).collect();
        assert!(waits.is_sorted());
        assert!(waits[0] >= seconds(1) && waits[0] < seconds(2));
        assert_eq!(waits[5], waits[6]);
        assert!(waits[6] >= seconds(30) && waits[6] < seconds(45));
        backoff.worked();
        assert_eq!(backoff.failed(), waits[0]);
    }

    #[test]
    fn nodes_do_not_come_back_at_the_same_moment() {
        let first = |node: &str| {
            let second = Duration::from_secs(1);
            Backoff::new(node, second, second).failed()
        };
        let waits: std::collections::BTreeSet<_> =
            (0..100).map(|n| first(&format!("node-{n}"))).collect();
        assert!(waits.len() > 50, "{}", waits.len());
    }
}
