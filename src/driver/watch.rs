//! Watches of claims: what is durable of them, the latest changes, and the watchers that follow.
//!
//! A watcher has no queue here: it reads the history at its own pace and is cut off when it falls behind it.

use super::{ClaimChange, ClaimWatch};
use crate::machine::ids::ClaimId;
use crate::machine::limits;
use crate::machine::refusal::Refusal;
use crate::machine::view::ClaimView;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, mpsc, watch};

/// Changes handed to a watcher before it has read the last ones.
const WATCHER_CHANNEL: usize = 64;
/// How soon a watcher may ask again when there are too many.
const RETRY_MS: u64 = 1_000;

#[derive(Default)]
struct Known {
    claims: BTreeMap<ClaimId, ClaimView>,
    /// (number, change), the latest [`limits::WATCH_HISTORY`].
    history: VecDeque<(u64, ClaimChange)>,
    /// Number of the last change.
    last: u64,
}

/// What watchers follow.
pub(super) struct ClaimWatches {
    /// Told apart from those of another start of hearthd.
    start: u64,
    known: Mutex<Known>,
    last: watch::Sender<u64>,
    places: Arc<Semaphore>,
}

impl ClaimWatches {
    /// `start`: different for every start of hearthd.
    pub(super) fn new(start: u64, claims: Vec<ClaimView>) -> Self {
        let known = Known {
            claims: claims.into_iter().map(|view| (view.id, view)).collect(),
            ..Known::default()
        };
        Self {
            start,
            known: Mutex::new(known),
            last: watch::Sender::new(0),
            places: Arc::new(Semaphore::new(limits::WATCHERS)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change became durable.
    pub(super) fn put(&self, view: ClaimView, removed: bool) {
        let mut known = self.lock();
        let change = if removed {
            known.claims.remove(&view.id);
            ClaimChange::Removed(view)
        } else {
            known.claims.insert(view.id, view.clone());
            ClaimChange::Upserted(view)
        };
        known.last += 1;
        let last = known.last;
        known.history.push_back((last, change));
        if known.history.len() > limits::WATCH_HISTORY {
            known.history.pop_front();
        }
        drop(known);
        self.last.send_replace(last);
    }

    fn token(&self, number: u64) -> String {
        format!("{:x}.{number}", self.start)
    }

    /// The change after which to go on, if the token is of this start and the history still reaches back to it.
    fn resumed(&self, known: &Known, token: &str) -> Option<u64> {
        let (start, number) = token.split_once('.')?;
        let number: u64 = number.parse().ok()?;
        let ours = u64::from_str_radix(start, 16).ok()? == self.start;
        (ours && number <= known.last && known.reaches(number)).then_some(number)
    }

    /// Begins a watch. A token that does not fit any more gives a snapshot.
    pub(super) fn follow(self: &Arc<Self>, resume: Option<&str>) -> Result<ClaimWatch, Refusal> {
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| Refusal::QueueFull {
            queue: "watchers",
            retry_ms: RETRY_MS,
        })?;
        let (snapshot, from) = {
            let known = self.lock();
            match resume.and_then(|token| self.resumed(&known, token)) {
                Some(number) => (None, number),
                None => {
                    let views: Vec<_> = known.claims.values().cloned().collect();
                    (Some(views), known.last)
                }
            }
        };
        let (sender, changes) = mpsc::channel(WATCHER_CHANNEL);
        let hub = self.clone();
        tokio::spawn(async move {
            let _place = place;
            hub.feed(snapshot, from, sender).await;
        });
        Ok(ClaimWatch { changes })
    }

    /// Serves one watcher until it goes away or falls behind.
    async fn feed(
        &self,
        snapshot: Option<Vec<ClaimView>>,
        mut at: u64,
        watcher: mpsc::Sender<Result<(ClaimChange, String), Refusal>>,
    ) {
        let resumed = snapshot.is_none();
        // Who has seen a part of a snapshot can't go on after it.
        let shown = snapshot.into_iter().flatten();
        let shown = shown.map(|view| (ClaimChange::Snapshot(view), String::new()));
        let synced = (ClaimChange::Synced { resumed }, self.token(at));
        for item in shown.chain(std::iter::once(synced)) {
            if watcher.send(Ok(item)).await.is_err() {
                return;
            }
        }
        let mut last = self.last.subscribe();
        loop {
            let Some(changes) = self.after(at) else {
                let behind = Refusal::WatchLagged;
                let _gone = watcher.send(Err(behind)).await;
                return;
            };
            for (number, change) in changes {
                at = number;
                if watcher
                    .send(Ok((change, self.token(number))))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            tokio::select! {
                () = watcher.closed() => return,
                changed = last.wait_for(|last| *last > at) => if changed.is_err() { return },
            }
        }
    }

    /// Some of the changes after `number`; `None`: the history does not reach back that far.
    fn after(&self, number: u64) -> Option<Vec<(u64, ClaimChange)>> {
        let known = self.lock();
        if !known.reaches(number) {
            return None;
        }
        let ahead = usize::try_from(known.last - number).ok()?;
        let skipped = known.history.len().saturating_sub(ahead);
        let later = known.history.iter().skip(skipped);
        Some(later.take(WATCHER_CHANNEL).cloned().collect())
    }
}

impl Known {
    /// Whether every change after `number` is still in the history.
    fn reaches(&self, number: u64) -> bool {
        number == self.last
            || self
                .history
                .front()
                .is_some_and(|(first, _)| *first <= number + 1)
    }
}
