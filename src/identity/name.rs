//! Names of peers and the patterns of the configuration that mean them.
//!
//! One form everywhere, in the configuration, in logs and in epochs: `uid:1000`, `spiffe://trust-domain/path`,
//! `dns:host.example`. Only a SPIFFE path may have wildcards, and only whole segments: neither a trust domain nor a DNS
//! name can be widened, and a character of a wildcard can't be part of a name.

use std::fmt;
use std::net::Ipv4Addr;

/// Longest SPIFFE id, bytes (SPIFFE-ID §2.3).
const SPIFFE_BYTES: usize = 2048;
/// Longest trust domain, and longest DNS name.
const DOMAIN_BYTES: usize = 255;
/// Longest label of a DNS name (RFC 1035 §2.3.4).
const LABEL_BYTES: usize = 63;
/// One segment, whatever it is.
const ANY: &str = "*";
/// One segment or more, at the end.
const REST: &str = "**";

/// The text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Another form.
    #[error("must be \"uid:NUMBER\", \"spiffe://TRUST-DOMAIN/PATH\" or \"dns:NAME\"")]
    Form,
    /// No user id.
    #[error("a user id is a whole number, written without signs or leading zeros")]
    Uid,
    /// No DNS name.
    #[error("a DNS name is exact and in lower case; wildcards are not taken")]
    Dns,
    /// No SPIFFE id, also with wildcards left out.
    #[error(
        "a SPIFFE id has a trust domain in lower case and a path of letters, digits, '.', '_' and '-'; in the path, a \
         whole segment may be * (any one), the last may be ** (one or more)"
    )]
    Spiffe,
}

/// Which peers are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// A user of this host.
    User(u32),
    /// SPIFFE ids.
    Spiffe {
        /// Exact.
        trust_domain: String,
        /// Exact but for [`ANY`] and a last [`REST`].
        path: Vec<String>,
    },
    /// A DNS name.
    Dns(String),
}

impl Pattern {
    /// From the configuration.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if let Some(rest) = text.strip_prefix("spiffe://") {
            let (trust_domain, path) = rest.split_once('/').ok_or(PatternError::Spiffe)?;
            let path: Vec<String> = path.split('/').map(str::to_owned).collect();
            let last = path.len() - 1;
            let fits = |(at, part): (usize, &String)| {
                part == ANY || part == REST && at == last || is_segment(part)
            };
            let good = text.len() <= SPIFFE_BYTES
                && is_trust_domain(trust_domain)
                && path.iter().enumerate().all(fits);
            let trust_domain = trust_domain.to_owned();
            return if good {
                Ok(Self::Spiffe { trust_domain, path })
            } else {
                Err(PatternError::Spiffe)
            };
        }
        if let Some(name) = text.strip_prefix("dns:") {
            return is_dns(name)
                .then(|| Self::Dns(name.to_owned()))
                .ok_or(PatternError::Dns);
        }
        let number = text.strip_prefix("uid:").ok_or(PatternError::Form)?;
        let uid: u32 = number.parse().map_err(|_| PatternError::Uid)?;
        if uid.to_string() == number {
            Ok(Self::User(uid))
        } else {
            Err(PatternError::Uid)
        }
    }

    /// Whether this user is meant.
    #[must_use]
    pub fn is_user(&self, uid: u32) -> bool {
        matches!(self, Self::User(meant) if *meant == uid)
    }

    /// Whether this DNS name, in lower case, is meant.
    #[must_use]
    pub fn is_dns(&self, name: &str) -> bool {
        matches!(self, Self::Dns(meant) if meant == name)
    }

    /// Whether this SPIFFE id, which [`is_spiffe_id`] holds for, is meant.
    #[must_use]
    pub fn is_spiffe(&self, id: &str) -> bool {
        let Self::Spiffe { trust_domain, path } = self else {
            return false;
        };
        let Some((domain, told)) = id
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.split_once('/'))
        else {
            return false;
        };
        let told: Vec<_> = told.split('/').collect();
        let (meant, open) = match path.split_last() {
            Some((last, before)) if last == REST => (before, true),
            _ => (path.as_slice(), false),
        };
        let long_enough = if open {
            told.len() > meant.len()
        } else {
            told.len() == meant.len()
        };
        domain == trust_domain
            && long_enough
            && meant
                .iter()
                .zip(told)
                .all(|(meant, told)| meant == ANY || meant == told)
    }
}

/// As in the configuration.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "uid:{uid}"),
            Self::Spiffe { trust_domain, path } => {
                write!(f, "spiffe://{trust_domain}/{}", path.join("/"))
            }
            Self::Dns(name) => write!(f, "dns:{name}"),
        }
    }
}

/// Whether the text is the SPIFFE id of a workload: the standard's rules (SPIFFE-ID §2), which leave one way only to write
/// each. A path is a must for a workload (X509-SVID §4.1).
#[must_use]
pub fn is_spiffe_id(text: &str) -> bool {
    let parts = text
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.split_once('/'));
    text.len() <= SPIFFE_BYTES
        && parts.is_some_and(|(domain, path)| {
            is_trust_domain(domain) && path.split('/').all(is_segment)
        })
}

fn is_trust_domain(text: &str) -> bool {
    (1..=DOMAIN_BYTES).contains(&text.len())
        && text
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
}

fn is_segment(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !matches!(text, "" | "." | "..") && text.bytes().all(allowed)
}

/// Whether the text is a host's DNS name in lower case: no wildcard, no trailing dot, no address.
#[must_use]
pub fn is_dns(text: &str) -> bool {
    let label = |label: &str| {
        (1..=LABEL_BYTES).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    text.len() <= DOMAIN_BYTES && text.parse::<Ipv4Addr>().is_err() && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_written_in_one_way() {
        for good in [
            "uid:0",
            "uid:4294967295",
            "dns:a",
            "dns:allocator.hearth.svc",
            "spiffe://cluster.local/ns/hearth/sa/allocator",
            "spiffe://cluster.local/ns/*/sa/allocator",
            "spiffe://cluster.local/ns/hearth/**",
            "spiffe://x/**",
        ] {
            assert_eq!(Pattern::parse(good).unwrap().to_string(), good);
        }
        for (wrong, why) in [
            ("", PatternError::Form),
            ("root", PatternError::Form),
            ("UID:0", PatternError::Form),
            ("https://x/y", PatternError::Form),
            ("uid:", PatternError::Uid),
            ("uid:+1", PatternError::Uid),
            ("uid:01", PatternError::Uid),
            ("uid:-1", PatternError::Uid),
            ("uid:4294967296", PatternError::Uid),
            ("uid:*", PatternError::Uid),
            ("dns:", PatternError::Dns),
            ("dns:*.example.com", PatternError::Dns),
            ("dns:Example.com", PatternError::Dns),
            ("dns:example.com.", PatternError::Dns),
            ("dns:10.0.0.1", PatternError::Dns),
            ("dns:a b", PatternError::Dns),
            ("spiffe://", PatternError::Spiffe),
            ("spiffe://x", PatternError::Spiffe),
            ("spiffe://x/", PatternError::Spiffe),
            ("spiffe://*/a", PatternError::Spiffe),
            ("spiffe://X/a", PatternError::Spiffe),
            ("spiffe://x:80/a", PatternError::Spiffe),
            ("spiffe://u@x/a", PatternError::Spiffe),
            ("spiffe://x/a/", PatternError::Spiffe),
            ("spiffe://x//a", PatternError::Spiffe),
            ("spiffe://x/../a", PatternError::Spiffe),
            ("spiffe://x/a*", PatternError::Spiffe),
            ("spiffe://x/**/a", PatternError::Spiffe),
            ("spiffe://x/***", PatternError::Spiffe),
            ("spiffe://x/a%20b", PatternError::Spiffe),
            ("spiffe://x/a?b", PatternError::Spiffe),
        ] {
            assert_eq!(Pattern::parse(wrong), Err(why), "{wrong}");
        }
    }

    fn means(pattern: &str, id: &str) -> bool {
        Pattern::parse(pattern).unwrap().is_spiffe(id)
    }

    #[test]
    fn a_pattern_means_whole_segments_of_its_own_trust_domain() {
        let exact = "spiffe://td/ns/a/sa/b";
        assert!(means(exact, exact));
        for other in [
            "spiffe://td/ns/a/sa/bb",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/ns/A/sa/b",
            "spiffe://td.evil/ns/a/sa/b",
            "spiffe://evil.td/ns/a/sa/b",
        ] {
            assert!(!means(exact, other), "{other}");
        }
        let one = "spiffe://td/ns/*/sa/b";
        assert!(means(one, "spiffe://td/ns/x/sa/b"));
        assert!(!means(one, "spiffe://td/ns/x/y/sa/b"));
        assert!(!means(one, "spiffe://td/ns/sa/b"));
        assert!(!means(one, "spiffe://other/ns/x/sa/b"));
        let rest = "spiffe://td/ns/**";
        assert!(means(rest, "spiffe://td/ns/x") && means(rest, "spiffe://td/ns/x/y"));
        assert!(!means(rest, "spiffe://td/ns") && !means(rest, "spiffe://td/nsx/y"));
    }

    #[test]
    fn kinds_are_never_confused() {
        let user = Pattern::parse("uid:7").unwrap();
        assert!(user.is_user(7) && !user.is_user(8) && !user.is_dns("7") && !user.is_spiffe("7"));
        let dns = Pattern::parse("dns:td").unwrap();
        assert!(dns.is_dns("td") && !dns.is_spiffe("spiffe://td/a") && !dns.is_user(0));
    }

    #[test]
    fn ids_are_those_of_the_standard() {
        assert!(is_spiffe_id("spiffe://td-1.x_y/Ns/a.b-c_d"));
        for wrong in [
            "spiffe://td",
            "spiffe://td/",
            "SPIFFE://td/a",
            "spiffe://td/*",
            "spiffe://td/a//b",
            "spiffe://td/./b",
            "spiffe://td/a#b",
            "https://td/a",
        ] {
            assert!(!is_spiffe_id(wrong), "{wrong}");
        }
        assert!(!is_spiffe_id(&format!("spiffe://td/{}", "a".repeat(2048))));
    }
}
