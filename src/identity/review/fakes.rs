//! A fake authority, for what a real API server does not do on demand: hang, go away, answer late, count who asks it.
//! `tests/cluster/tokens.rs` asks a real one.

use super::{Authority, Away, Deed, Principal, Token};
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// A JWT with these claims and a signature that says nothing.
pub fn jwt(claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2ln", part(&json!({"alg": "fake"})), part(claims))
}

/// A token for hearth that is good for so long, like no other.
pub fn token(left: Duration) -> String {
    let until = SystemTime::now() + left;
    let until = until.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let id = uuid::Uuid::new_v4().to_string();
    jwt(&json!({"aud": ["hearth"], "exp": until.as_secs_f64(), "jti": id}))
}

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// At once.
    Well,
    /// With an error.
    Away,
    /// Not until its mood changes.
    Hung,
}

#[derive(Default)]
struct Said {
    users: BTreeMap<String, String>,
    rights: BTreeSet<(String, Deed)>,
    tokens_asked: usize,
    rights_asked: usize,
    at_once: usize,
    most_at_once: usize,
}

/// The fake.
pub struct FakeAuthority {
    said: Mutex<Said>,
    mood: watch::Sender<Mood>,
}

impl FakeAuthority {
    /// It knows nobody.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            said: Mutex::default(),
            mood: watch::channel(Mood::Well).0,
        })
    }

    /// From now on.
    pub fn mood(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// This token is this user's.
    pub fn knows(&self, token: &str, user: &str) {
        let mut said = self.said.lock().unwrap();
        said.users.insert(token.into(), user.into());
    }

    /// Nobody's any more.
    pub fn forgets(&self, token: &str) {
        self.said.lock().unwrap().users.remove(token);
    }

    /// That user may do this.
    pub fn grants(&self, user: &str, verb: &'static str, resource: &'static str) {
        let deed = Deed { verb, resource };
        self.said.lock().unwrap().rights.insert((user.into(), deed));
    }

    /// It may no more.
    pub fn takes_back(&self, user: &str) {
        let mut said = self.said.lock().unwrap();
        said.rights.retain(|(owner, _)| owner != user);
    }

    /// How often it was asked about tokens and about rights.
    pub fn asked(&self) -> (usize, usize) {
        let said = self.said.lock().unwrap();
        (said.tokens_asked, said.rights_asked)
    }

    /// Most questions at once so far.
    pub fn most_at_once(&self) -> usize {
        self.said.lock().unwrap().most_at_once
    }

    async fn answer<T>(&self, about: impl FnOnce(&mut Said) -> T + Send) -> Result<T, Away> {
        struct Begun<'a>(&'a FakeAuthority);
        impl Drop for Begun<'_> {
            fn drop(&mut self) {
                self.0.said.lock().unwrap().at_once -= 1;
            }
        }
        {
            let mut said = self.said.lock().unwrap();
            said.at_once += 1;
            said.most_at_once = said.most_at_once.max(said.at_once);
        }
        let _begun = Begun(self);
        let mut moods = self.mood.subscribe();
        let mood = *moods.wait_for(|mood| *mood != Mood::Hung).await.unwrap();
        let told = about(&mut self.said.lock().unwrap());
        match mood {
            Mood::Away => Err(Away("refused by a fake".into())),
            Mood::Well | Mood::Hung => Ok(told),
        }
    }
}

#[async_trait]
impl Authority for FakeAuthority {
    async fn who(&self, token: &Token, audiences: &[String]) -> Result<Option<Principal>, Away> {
        assert_eq!(audiences, ["hearth"]);
        let user = self
            .answer(|said| {
                said.tokens_asked += 1;
                said.users.get(token.expose()).cloned()
            })
            .await?;
        let groups = vec!["system:authenticated".into()];
        Ok(user.and_then(|user| Principal::new(user, "1".into(), groups, BTreeMap::new())))
    }

    async fn may(&self, who: &Principal, deed: Deed) -> Result<bool, Away> {
        self.answer(|said| {
            said.rights_asked += 1;
            said.rights.contains(&(who.user.clone(), deed))
        })
        .await
    }
}
