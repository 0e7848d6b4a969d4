//! Callers that show a token of another authority (a Kubernetes ServiceAccount's) instead of a certificate: who they are and
//! what they may do is asked of that authority, and remembered for a short time.
//!
//! ```text
//! bearer token ─▶ Token (its form; nothing is believed) ─▶ Desk: who? ─▶ Principal ─▶ Desk: may it? ─▶ let in
//!                                            Memory (pure) · one review a key · budget · deadline ─▶ Authority
//! ```
//! Owns: the token's form, memory, budgets. The [`Authority`] is somebody else's (`kube`'s, joined by `app`). Never: a token
//! in a log, an error or a metric; a right that nobody has granted; a refusal where nobody could be asked.

mod desk;
#[cfg(test)]
pub mod fakes;
mod memory;
mod metrics;
mod reviewer;
mod token;

pub use metrics::Metrics;
pub use reviewer::{Reviewer, Settings, Unreviewed};
pub use token::{Token, Unfit, is_audience};

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;

/// API group of the rights that the authority is asked about.
pub const GROUP: &str = "hearth.dev";
/// Before the name of a caller that an authority vouches for: no other identity's name begins so.
const PREFIX: &str = "k8s:";
/// Longest name of a caller, bytes. A ServiceAccount's has 340 at most.
const USER_BYTES: usize = 512;
/// What is kept of one principal, bytes: name, groups and the rest. A ServiceAccount's takes some 500.
const PRINCIPAL_BYTES: usize = 8 * 1024;
/// Groups and further attributes of one principal.
const PRINCIPAL_WORDS: usize = 256;

/// SHA-256 of what is asked about.
type Key = [u8; 32];

/// What a call does, in the authority's words: a verb on a resource of [`GROUP`]. Both are words of rpc's method table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Deed {
    /// Such as "create".
    pub verb: &'static str,
    /// Such as "claims", or "claims/exec" with a subresource.
    pub resource: &'static str,
}

/// Whom a token belongs to, as the authority says. Cheap to clone behind its [`Arc`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Its name at the authority, such as "system:serviceaccount:agents:allocator".
    pub user: String,
    /// Its id there.
    pub uid: String,
    /// Its groups.
    pub groups: Vec<String>,
    /// What else the authority's own rules may ask about.
    pub extra: BTreeMap<String, Vec<String>>,
    caller: Arc<str>,
    key: Key,
}

impl Principal {
    /// `None`: it has no name, one that is not printable, or more of something than hearth keeps.
    #[must_use]
    pub fn new(
        user: String,
        uid: String,
        groups: Vec<String>,
        extra: BTreeMap<String, Vec<String>>,
    ) -> Option<Self> {
        let named = (1..=USER_BYTES).contains(&user.len()) && !user.contains(char::is_control);
        let mut tally = Tally::default();
        tally.words([&user, &uid]);
        tally.words(&groups);
        for (name, values) in &extra {
            tally.words([name]);
            tally.words(values);
        }
        if !named || tally.words > PRINCIPAL_WORDS || tally.bytes > PRINCIPAL_BYTES {
            return None;
        }
        Some(Self {
            caller: format!("{PREFIX}{user}").into(),
            key: tally.key.finalize().into(),
            user,
            uid,
            groups,
            extra,
        })
    }

    /// Its name everywhere in hearth: logs, epochs, shares.
    #[must_use]
    pub fn caller(&self) -> &Arc<str> {
        &self.caller
    }
}

/// What a principal amounts to.
#[derive(Default)]
struct Tally {
    key: Sha256,
    words: usize,
    bytes: usize,
}

impl Tally {
    /// A list with its length, and each word of it with its own: no two principals give the same input.
    fn words<'a>(
        &mut self,
        words: impl IntoIterator<Item = &'a String, IntoIter: ExactSizeIterator>,
    ) {
        let words = words.into_iter();
        self.key.update(words.len().to_le_bytes());
        for word in words {
            self.key.update(word.len().to_le_bytes());
            self.key.update(word);
            self.words += 1;
            self.bytes = self.bytes.saturating_add(word.len());
        }
    }
}

/// The authority gave no answer: it is away, too busy, or does not let hearthd ask. For hearthd's log; bounded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Away(pub String);

/// Who vouches for tokens and says what their owners may do. Its answers are bounded by it; the deadline and the number of
/// calls at once are the [`Reviewer`]'s.
#[async_trait]
pub trait Authority: Send + Sync + 'static {
    /// Whose token this is, if it is good for one of these audiences. `None`: it is not good.
    ///
    /// # Errors
    /// There is no answer.
    async fn who(&self, token: &Token, audiences: &[String]) -> Result<Option<Principal>, Away>;

    /// Whether that principal may do this.
    ///
    /// # Errors
    /// There is no answer.
    async fn may(&self, who: &Principal, deed: Deed) -> Result<bool, Away>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(groups: &[&str], extra: &[(&str, &[&str])]) -> Option<Principal> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let extra = extra.iter().map(|(key, of)| ((*key).to_owned(), words(of)));
        Principal::new("u".into(), "1".into(), words(groups), extra.collect())
    }

    #[test]
    fn principals_that_differ_have_other_keys() {
        let all = [
            principal(&[], &[]),
            principal(&["a"], &[]),
            principal(&["a", "b"], &[]),
            principal(&["ab"], &[]),
            principal(&["a"], &[("b", &[])]),
            principal(&[], &[("a", &["b"])]),
            principal(&[], &[("a", &[]), ("b", &[])]),
        ];
        let keys: std::collections::BTreeSet<_> =
            all.iter().map(|one| one.as_ref().unwrap().key).collect();
        assert_eq!(keys.len(), all.len());
        assert_eq!(&**all[0].as_ref().unwrap().caller(), "k8s:u");
    }

    #[test]
    fn what_an_authority_says_is_bounded() {
        let named = |name: &str| Principal::new(name.into(), String::new(), vec![], [].into());
        assert!(named("").is_none() && named("a\nb").is_none());
        assert!(named(&"a".repeat(USER_BYTES)).is_some());
        assert!(named(&"a".repeat(USER_BYTES + 1)).is_none());
        let many: Vec<_> = (0..PRINCIPAL_WORDS).map(|_| "g").collect();
        assert!(principal(&many, &[]).is_none());
        let long = "g".repeat(PRINCIPAL_BYTES);
        assert!(principal(&[&long], &[]).is_none());
        assert!(principal(&[], &[("x", &[&long])]).is_none());
    }
}
