//! One kind of question to the authority: remembered, asked once for each key however many wait for it, within a deadline.
//!
//! A question that has begun goes on whoever of its callers leaves. No lock is held while anything is waited for.

use super::memory::{Answer, Memory, Seen};
use super::metrics::Metrics;
use futures::FutureExt;
use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

/// Calls that wait for reviews, of each kind: more are told that nobody could be asked.
const WAITING: usize = 1024;

/// Why there is no yes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turned {
    /// The authority said no.
    Refused,
    /// Nobody could be asked, and why.
    Away(&'static str),
    /// Too many questions come from there: when to come back.
    TooMany(Duration),
}

/// What the desks of one [`super::Reviewer`] share.
#[derive(Clone)]
pub struct Shared {
    /// How long one review may take.
    pub deadline: Duration,
    /// Of reviews.
    pub metrics: Metrics,
    /// Whether the authority answered last: its state is logged when it changes.
    pub well: Arc<AtomicBool>,
}

impl Shared {
    /// A review has ended without an answer. Told once, until there is one again.
    pub fn away(&self, detail: &dyn std::fmt::Display) {
        if self.well.swap(false, Ordering::Relaxed) {
            tracing::warn!(%detail, "tokens can't be reviewed: what is remembered counts on, the rest is refused as UNAVAILABLE");
        } else {
            tracing::debug!(%detail, "a review has no answer");
        }
    }

    fn answered(&self) {
        if !self.well.swap(true, Ordering::Relaxed) {
            tracing::info!("tokens are reviewed again");
        }
    }
}

type Flight<V> = watch::Receiver<Option<Answer<V>>>;

struct State<K, V> {
    memory: Memory<K, V>,
    flights: HashMap<K, Flight<V>>,
}

/// See above. Cheap to clone.
pub struct Desk<K, V> {
    kind: &'static str,
    state: Arc<Mutex<State<K, V>>>,
    waiting: Arc<Semaphore>,
    shared: Shared,
}

impl<K, V> Clone for Desk<K, V> {
    fn clone(&self) -> Self {
        Self {
            kind: self.kind,
            state: Arc::clone(&self.state),
            waiting: Arc::clone(&self.waiting),
            shared: self.shared.clone(),
        }
    }
}

impl<K, V> Desk<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// `kind` is a metric's label.
    pub fn new(kind: &'static str, memory: Memory<K, V>, shared: Shared) -> Self {
        let flights = HashMap::new();
        Self {
            kind,
            state: Arc::new(Mutex::new(State { memory, flights })),
            waiting: Arc::new(Semaphore::new(WAITING)),
            shared,
        }
    }

    fn state(&self) -> MutexGuard<'_, State<K, V>> {
        // Every change is one insertion or removal.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a good answer about this is remembered that counts now.
    pub fn remembers(&self, key: &K) -> bool {
        let seen = self.state().memory.look(key, Instant::now());
        let answer = match seen {
            Seen::Known { answer, .. } => Some(answer),
            Seen::Nothing { .. } => None,
        };
        matches!(answer, Some(Answer::Good(_)))
    }

    /// The answer that is remembered, else that of a review. `until`: a good one counts no longer. `place`: room for a review
    /// to begin, of what was good lately (true) or not; it is called, if at all, under a lock, and never waits.
    pub async fn ask<F>(
        &self,
        key: K,
        until: Option<Instant>,
        place: impl FnOnce(bool) -> Result<OwnedSemaphorePermit, Turned>,
        review: impl FnOnce() -> F,
    ) -> Result<V, Turned>
    where
        F: Future<Output = Answer<V>> + Send + 'static,
    {
        let (by, next) = self.look(key, until, place, review);
        self.shared.metrics.looked(self.kind, by);
        match next {
            Next::Answered(answer) => answer,
            Next::Wait(flight) => self.wait(flight).await,
        }
    }

    fn look<F>(
        &self,
        key: K,
        until: Option<Instant>,
        place: impl FnOnce(bool) -> Result<OwnedSemaphorePermit, Turned>,
        review: impl FnOnce() -> F,
    ) -> (&'static str, Next<V>)
    where
        F: Future<Output = Answer<V>> + Send + 'static,
    {
        let mut state = self.state();
        let before = match state.memory.look(&key, Instant::now()) {
            Seen::Known { answer, again } => {
                // Asked anew in good time, so that who goes on calling never waits; if there is no room, a little later.
                if again
                    && !state.flights.contains_key(&key)
                    && let Ok(place) = place(true)
                {
                    self.begin(&mut state, key, until, place, review());
                }
                return ("memory", Next::Answered(said(answer)));
            }
            Seen::Nothing { before } => before,
        };
        if let Some(flight) = state.flights.get(&key) {
            return ("joined", Next::Wait(flight.clone()));
        }
        match place(before) {
            Ok(place) => {
                let flight = self.begin(&mut state, key, until, place, review());
                ("review", Next::Wait(flight))
            }
            Err(turned) => ("budget", Next::Answered(Err(turned))),
        }
    }

    async fn wait(&self, mut flight: Flight<V>) -> Result<V, Turned> {
        let Ok(_waits) = self.waiting.try_acquire() else {
            return Err(Turned::Away("too many calls wait for reviews"));
        };
        match flight.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(answer)) => said(answer.clone()),
            Ok(None) | Err(_) => Err(Turned::Away("hearthd ends")),
        }
    }

    fn begin(
        &self,
        state: &mut State<K, V>,
        key: K,
        until: Option<Instant>,
        place: OwnedSemaphorePermit,
        review: impl Future<Output = Answer<V>> + Send + 'static,
    ) -> Flight<V> {
        let (tell, told) = watch::channel(None);
        state.flights.insert(key.clone(), told.clone());
        let desk = self.clone();
        let began = Instant::now();
        tokio::spawn(async move {
            // A bug of one review must not leave its key in flight for ever.
            let review = AssertUnwindSafe(Box::pin(review)).catch_unwind();
            let answer = match timeout(desk.shared.deadline, review).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_panic)) => Answer::Away("the review broke"),
                Err(_) => {
                    desk.shared.away(&"no answer in time");
                    Answer::Away("the API server does not answer in time")
                }
            };
            desk.ended(key, until, &answer, began.elapsed());
            drop(place);
            tell.send_replace(Some(answer));
        });
        told
    }

    fn ended(&self, key: K, until: Option<Instant>, answer: &Answer<V>, took: Duration) {
        let result = match answer {
            Answer::Good(_) => "good",
            Answer::Refused => "refused",
            Answer::Away(_) => "away",
        };
        if !matches!(answer, Answer::Away(_)) {
            self.shared.answered();
        }
        let metrics = &self.shared.metrics;
        metrics.reviewed(self.kind, result, took);
        let mut state = self.state();
        let now = Instant::now();
        let left = until.map(|until| until.saturating_duration_since(now));
        state.flights.remove(&key);
        state.memory.learn(key, answer, left, now);
        metrics.kept(self.kind, state.memory.kept());
    }
}

enum Next<V> {
    Answered(Result<V, Turned>),
    Wait(Flight<V>),
}

fn said<V>(answer: Answer<V>) -> Result<V, Turned> {
    match answer {
        Answer::Good(value) => Ok(value),
        Answer::Refused => Err(Turned::Refused),
        Answer::Away(why) => Err(Turned::Away(why)),
    }
}
