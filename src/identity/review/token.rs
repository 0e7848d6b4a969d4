//! The form of a token: a JWT (RFC 7519 §3) that says it is for us. What it says is not believed here: it only spares the
//! authority what could never be good, and bounds how long its answer counts.

use super::Key;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::time::{Duration, SystemTime};

/// Longest token, bytes. A ServiceAccount's has about 1200.
const TOKEN_BYTES: usize = 8 * 1024;
/// Longest audience, bytes.
const AUDIENCE_BYTES: usize = 253;

/// Why a token is not even asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unfit {
    /// It is no JWT, or longer than any.
    Form,
    /// It says that it is for others.
    Audience,
    /// It says that its time is over.
    Expired,
}

impl Unfit {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Form, Self::Audience, Self::Expired];

    /// One word, for metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Form => "form",
            Self::Audience => "audience",
            Self::Expired => "expired",
        }
    }

    /// For the caller.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Form => "it is no ServiceAccount token",
            Self::Audience => "it was made for another audience",
            Self::Expired => "it has expired",
        }
    }
}

/// A token that is worth asking about.
pub struct Token {
    text: String,
    key: Key,
    /// No answer about it counts after this.
    expires: Option<SystemTime>,
}

/// Never the token.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// What is read of a JWT's claims (RFC 7519 §4.1).
#[derive(Deserialize)]
struct Claims {
    aud: Option<Audiences>,
    exp: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Token {
    /// Reads one that a caller shows, for one of these audiences.
    ///
    /// # Errors
    /// It can't be good.
    pub fn read(text: &str, audiences: &[String], now: SystemTime) -> Result<Self, Unfit> {
        let claims = claims(text).ok_or(Unfit::Form)?;
        let ours = |told: &String| audiences.contains(told);
        let fits = match &claims.aud {
            None => false,
            Some(Audiences::One(told)) => ours(told),
            Some(Audiences::Many(told)) => told.iter().any(ours),
        };
        if !fits {
            return Err(Unfit::Audience);
        }
        let expires = match claims.exp {
            None => None,
            Some(seconds) => Some(moment(seconds).ok_or(Unfit::Form)?),
        };
        if expires.is_some_and(|expires| expires <= now) {
            return Err(Unfit::Expired);
        }
        Ok(Self {
            text: text.to_owned(),
            key: Sha256::digest(text).into(),
            expires,
        })
    }

    /// The secret, for the authority alone.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// What it is remembered by.
    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// How long it is good from `now` on, if it says so.
    pub(super) fn left(&self, now: SystemTime) -> Option<Duration> {
        self.expires
            .map(|expires| expires.duration_since(now).unwrap_or_default())
    }
}

/// The claims of what is formed as a JWT.
fn claims(text: &str) -> Option<Claims> {
    if text.len() > TOKEN_BYTES {
        return None;
    }
    let mut parts = text.split('.');
    let (head, claims, signature) = (parts.next()?, parts.next()?, parts.next()?);
    let good = |part: &str| {
        let letter = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        !part.is_empty() && part.bytes().all(letter)
    };
    if parts.next().is_some() || ![head, claims, signature].into_iter().all(good) {
        return None;
    }
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    serde_json::from_slice(&claims).ok()
}

/// Seconds since 1970 (NumericDate), which may have a fraction.
fn moment(seconds: f64) -> Option<SystemTime> {
    let since = Duration::try_from_secs_f64(seconds.max(0.0)).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(since)
}

/// Is it fit to be an audience: printable, without spaces?
#[must_use]
pub fn is_audience(text: &str) -> bool {
    (1..=AUDIENCE_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::super::fakes::jwt;
    use super::*;
    use serde_json::json;

    const NOW: Duration = Duration::from_secs(1_000_000);

    fn read(text: &str) -> Result<Option<Duration>, Unfit> {
        let now = SystemTime::UNIX_EPOCH + NOW;
        let token = Token::read(text, &["hearth".into(), "other".into()], now)?;
        assert_eq!(token.expose(), text);
        Ok(token.left(now))
    }

    #[test]
    fn a_token_for_us_is_worth_asking_about() {
        let told = |claims| read(&jwt(&claims));
        assert_eq!(told(json!({"aud": "hearth"})), Ok(None));
        assert_eq!(told(json!({"aud": ["x", "other"]})), Ok(None));
        let later = json!({"aud": ["hearth"], "exp": 1_000_060, "sub": {"any": ["thing"]}});
        assert_eq!(told(later), Ok(Some(Duration::from_secs(60))));
    }

    #[test]
    fn what_can_not_be_good_is_not_asked_about() {
        let told = |claims| read(&jwt(&claims));
        for aud in [
            json!(null),
            json!("https://kubernetes"),
            json!([]),
            json!(["Hearth"]),
        ] {
            assert_eq!(told(json!({"aud": aud})), Err(Unfit::Audience), "{aud}");
        }
        for exp in [json!(1_000_000), json!(0), json!(-5), json!(999_999.5)] {
            let claims = json!({"aud": "hearth", "exp": exp});
            assert_eq!(told(claims), Err(Unfit::Expired), "{exp}");
        }
        for exp in [json!("soon"), json!(1e300)] {
            let claims = json!({"aud": "hearth", "exp": exp});
            assert_eq!(told(claims), Err(Unfit::Form), "{exp}");
        }
        let good = jwt(&json!({"aud": "hearth"}));
        let long = jwt(&json!({"aud": "hearth", "x": "x".repeat(TOKEN_BYTES)}));
        let (front, _) = good.rsplit_once('.').unwrap();
        for text in [
            "",
            "..",
            "a.b.c",
            "hearth_AAAA",
            front,
            &format!("{front}."),
            &format!("{good}.x"),
            &format!("{good} "),
            &good.replacen('.', "=.", 1),
            &long,
            &jwt(&json!(["hearth"])),
            &jwt(&json!({"aud": 7})),
        ] {
            assert_eq!(read(text), Err(Unfit::Form), "{text}");
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        let text = jwt(&json!({"aud": "hearth"}));
        let audiences = ["hearth".to_owned()];
        let token = Token::read(&text, &audiences, SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(format!("{token:?}"), "Token");
    }

    #[test]
    fn audiences_are_one_word() {
        assert!(is_audience("hearth") && is_audience("https://hearth.example/"));
        for wrong in ["", "a b", "é", &"a".repeat(254)] {
            assert!(!is_audience(wrong), "{wrong}");
        }
    }
}
