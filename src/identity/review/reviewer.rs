//! Who calls with a token and what it may do: from memory, else from the authority, within budgets that made-up tokens can't
//! use up for those that are known.

use super::desk::{Desk, Shared, Turned};
use super::memory::{Ages, Answer, Memory};
use super::{Authority, Away, Deed, Key, Metrics, Principal, Token, Unfit};
use crate::identity::{Class, Limiter};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Reviews a second of tokens that come from one peer and are not known; a burst of twice as many.
const PEER_PER_SECOND: u32 = 10;
/// Reviews a second of each class: unknown tokens, known ones again, rights. A burst of twice as many.
const PER_SECOND: u32 = 50;
/// Reviews of unknown tokens at once.
const STRANGERS_AT_ONCE: usize = 8;
/// All other reviews at once.
const OTHERS_AT_ONCE: usize = 16;
/// So long the same is not asked again where nobody could be asked.
const AWAY: Duration = Duration::from_secs(1);

/// From the configuration, by `app`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Audiences that a token may be made for; one of them suffices.
    pub audiences: Vec<String>,
    /// The namespace that rights are asked about in; told with refusals.
    pub namespace: String,
    /// Good answers that are kept, and as many others; of tokens and of rights each.
    pub entries: usize,
    /// How long a good answer counts.
    pub good: Duration,
    /// How long a refusal counts.
    pub refused: Duration,
    /// How long one review may take.
    pub deadline: Duration,
}

/// Why a call is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreviewed {
    /// The token can't be good.
    Unfit(Unfit),
    /// The authority does not vouch for the token.
    Refused,
    /// Its owner may not do this.
    Denied,
    /// Nobody could be asked, and why.
    Away(&'static str),
    /// Too many unknown tokens come from this peer: when to come back.
    TooMany(Duration),
}

/// Built by `app`, called by rpc's layer.
pub struct Reviewer {
    authority: Arc<dyn Authority>,
    audiences: Arc<[String]>,
    namespace: Arc<str>,
    tokens: Desk<Key, Arc<Principal>>,
    rights: Desk<(Key, Deed), ()>,
    peers: Limiter,
    budget: Limiter,
    strangers: Arc<Semaphore>,
    others: Arc<Semaphore>,
    shared: Shared,
}

impl Reviewer {
    /// Nothing is remembered yet.
    #[must_use]
    pub fn new(authority: Arc<dyn Authority>, settings: &Settings, metrics: Metrics) -> Self {
        let ages = Ages {
            good: settings.good,
            refused: settings.refused,
            away: AWAY,
        };
        let shared = Shared {
            deadline: settings.deadline,
            metrics,
            well: Arc::new(AtomicBool::new(true)),
        };
        let entries = settings.entries;
        Self {
            authority,
            audiences: settings.audiences.as_slice().into(),
            namespace: settings.namespace.as_str().into(),
            tokens: Desk::new("token", Memory::new(entries, ages), shared.clone()),
            rights: Desk::new("access", Memory::new(entries, ages), shared.clone()),
            peers: Limiter::new(PEER_PER_SECOND),
            budget: Limiter::new(PER_SECOND),
            strangers: Arc::new(Semaphore::new(STRANGERS_AT_ONCE)),
            others: Arc::new(Semaphore::new(OTHERS_AT_ONCE)),
            shared,
        }
    }

    /// The audiences, for refusals.
    #[must_use]
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// The namespace that rights are asked about in, for refusals.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A token that a caller shows. Costs no review.
    ///
    /// # Errors
    /// It can't be good.
    pub fn read(&self, text: &str) -> Result<Token, Unreviewed> {
        Token::read(text, &self.audiences, SystemTime::now()).map_err(|why| {
            self.shared.metrics.unfit(why);
            Unreviewed::Unfit(why)
        })
    }

    /// Whether it is remembered whose it is.
    #[must_use]
    pub fn remembers(&self, token: &Token) -> bool {
        self.tokens.remembers(&token.key())
    }

    /// Whose it is. `peer`: the name of who shows it.
    ///
    /// # Errors
    /// The authority does not vouch for it, or could not be asked.
    pub async fn who(&self, token: Token, peer: &Arc<str>) -> Result<Arc<Principal>, Unreviewed> {
        let left = token.left(SystemTime::now());
        let until = left.map(|left| Instant::now() + left);
        let key = token.key();
        let review = || {
            let (authority, audiences) = (Arc::clone(&self.authority), Arc::clone(&self.audiences));
            let shared = self.shared.clone();
            async move {
                match authority.who(&token, &audiences).await {
                    Ok(Some(principal)) => Answer::Good(Arc::new(principal)),
                    Ok(None) => Answer::Refused,
                    Err(away) => no_answer(&shared, &away),
                }
            }
        };
        let place = |known| self.place(known, peer);
        let asked = self.tokens.ask(key, until, place, review).await;
        asked.map_err(|turned| match turned {
            Turned::Refused => Unreviewed::Refused,
            Turned::Away(why) => Unreviewed::Away(why),
            Turned::TooMany(wait) => Unreviewed::TooMany(wait),
        })
    }

    /// Whether that principal may do this.
    ///
    /// # Errors
    /// It may not, or nobody could be asked.
    pub async fn may(&self, who: &Arc<Principal>, deed: Deed) -> Result<(), Unreviewed> {
        let place = |_| self.room(&self.others, "rights");
        let review = || {
            let (authority, who) = (Arc::clone(&self.authority), Arc::clone(who));
            let shared = self.shared.clone();
            async move {
                match authority.may(&who, deed).await {
                    Ok(true) => Answer::Good(()),
                    Ok(false) => Answer::Refused,
                    Err(away) => no_answer(&shared, &away),
                }
            }
        };
        let asked = self.rights.ask((who.key, deed), None, place, review).await;
        asked.map_err(|turned| match turned {
            Turned::Refused => Unreviewed::Denied,
            Turned::Away(why) => Unreviewed::Away(why),
            Turned::TooMany(wait) => Unreviewed::TooMany(wait),
        })
    }

    /// Room for a review of a token: one that was good lately never waits behind those that nobody knows.
    fn place(&self, known: bool, peer: &Arc<str>) -> Result<OwnedSemaphorePermit, Turned> {
        if known {
            return self.room(&self.others, "renewals");
        }
        let within = self.peers.take(peer, Class::Other, Instant::now());
        within.map_err(Turned::TooMany)?;
        self.room(&self.strangers, "strangers")
    }

    fn room(
        &self,
        room: &Arc<Semaphore>,
        class: &'static str,
    ) -> Result<OwnedSemaphorePermit, Turned> {
        let within = self
            .budget
            .take(&class.into(), Class::Other, Instant::now());
        within.map_err(|_| Turned::Away("too many reviews are asked for"))?;
        let place = Arc::clone(room).try_acquire_owned();
        place.map_err(|_| Turned::Away("too many reviews go on at once"))
    }
}

fn no_answer<V>(shared: &Shared, away: &Away) -> Answer<V> {
    shared.away(away);
    Answer::Away("the API server does not answer")
}

#[cfg(test)]
#[path = "reviewer_tests.rs"]
mod tests;
