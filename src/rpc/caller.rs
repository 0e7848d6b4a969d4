//! Who calls, and whether it may: decided before a byte of the request's message is read. Deny by default.
//!
//! A peer is known as `identity` says: by the user that the kernel tells for its end of the Unix socket, or by the
//! certificate of its connection. The method table says which roles may call what. Whoever presents a claim's access
//! token may call Sandboxes for that claim; a token that is presented is checked, whoever presents it, so that a proxy
//! with rights of its own may pass on the tokens of others without lending them its rights.

use super::key;
use super::method::{Access, Method};
use crate::identity::{Identity, Policy, Roles, Trail};
use crate::machine::refusal::Refusal;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;
use tonic::codegen::http::{Extensions, HeaderMap, header::AUTHORIZATION};

/// Longer than any token of hearth.
const TOKEN_BYTES: usize = 256;

/// What lets a caller in.
#[derive(Clone, PartialEq, Eq)]
pub enum Right {
    /// One of its roles.
    Role(Roles),
    /// This token. It has not been checked yet: that needs the claim.
    Token(Arc<str>),
    /// The method is open to every peer.
    Open,
}

/// Never the token.
impl fmt::Debug for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Role(_) => "role",
            Self::Token(_) => "token",
            Self::Open => "open",
        })
    }
}

/// An admitted caller. Travels in the request's extensions; a request without one is refused by the services.
#[derive(Clone)]
pub struct Caller {
    /// Its identity's name.
    pub name: Arc<str>,
    /// What lets it in.
    pub right: Right,
    /// The audit log's view of this call.
    pub trail: Trail,
}

impl Caller {
    /// The caller that the layer has admitted.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, Refusal> {
        let admitted = request.extensions().get::<Self>().cloned();
        admitted.ok_or(Refusal::Unauthenticated {
            detail: "nobody has admitted this call",
        })
    }

    /// Its name for fencing: an epoch has one owner, which is an allocator. `None`: an admin who is no allocator, and
    /// who acts beside the owner.
    pub fn fenced(&self) -> Result<Option<String>, Refusal> {
        match self.right {
            Right::Role(roles) if roles.meets(Roles::ALLOCATOR) => Ok(Some(self.name.to_string())),
            Right::Role(_) => Ok(None),
            Right::Token(_) | Right::Open => Err(Refusal::NotAllowed {
                detail: "only callers with a role take part in epochs",
            }),
        }
    }
}

/// The peer's identity, as its connection knows it. Nobody, where there is none: never an error, never a right.
#[must_use]
pub fn identity(extensions: &Extensions) -> Identity {
    let known = extensions.get::<Identity>().cloned();
    known.unwrap_or_else(|| Policy::default().user(None))
}

/// Admits a call, or says why not.
pub fn admit(method: &Method, identity: &Identity, headers: &HeaderMap) -> Result<Right, Refusal> {
    in_time(identity)?;
    let role = |roles: Roles| {
        let fits = identity.roles.meets(roles);
        fits.then_some(Right::Role(identity.roles))
    };
    match method.access {
        Access::Anyone => Ok(Right::Open),
        Access::Roles(roles) => {
            role(roles).ok_or_else(|| denied(identity, "no role of this caller may call this"))
        }
        Access::Holder => match token(headers)? {
            Some(token) => Ok(Right::Token(token)),
            None => role(Roles::ADMIN)
                .ok_or_else(|| denied(identity, "this call needs the claim's access token")),
        },
    }
}

/// A certificate that has expired lets nobody in, whatever else is shown.
pub fn in_time(identity: &Identity) -> Result<(), Refusal> {
    let expired = |until| until <= SystemTime::now();
    match identity.valid_until.is_some_and(expired) {
        true => Err(Refusal::Unauthenticated {
            detail: "the certificate of this connection has expired: connect anew",
        }),
        false => Ok(()),
    }
}

fn denied(identity: &Identity, detail: &'static str) -> Refusal {
    if identity.known {
        Refusal::NotAllowed { detail }
    } else {
        Refusal::Unauthenticated {
            detail: "nobody vouches for this peer",
        }
    }
}

const FORM: Refusal = Refusal::NotAllowed {
    detail: "the authorization metadata is not one bearer token",
};

/// A claim's access token, if one is presented.
fn token(headers: &HeaderMap) -> Result<Option<Arc<str>>, Refusal> {
    match bearer(headers)? {
        Some(token) if token.len() > TOKEN_BYTES => Err(FORM),
        token => Ok(token.map(Arc::from)),
    }
}

/// The token of another authority, if one is presented: a bearer token that does not begin as hearth's own do.
pub fn foreign(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let token = bearer(headers)?;
    Ok(token.filter(|token| !token.starts_with(key::TOKEN_PREFIX)))
}

/// The bearer token (RFC 6750, §2.1), if one is presented.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut told = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = told.next() else {
        return Ok(None);
    };
    if told.next().is_some() {
        return Err(FORM);
    }
    let (scheme, token) = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .ok_or(FORM)?;
    let token = token.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() {
        Ok(Some(token))
    } else {
        Err(FORM)
    }
}

#[cfg(test)]
mod tests {
    use super::super::method;
    use super::*;
    use std::time::Duration;

    const CLAIM: &str = "/hearth.v1.Claims/Claim";
    const LIST: &str = "/hearth.v1.Claims/List";
    const STATS: &str = "/hearth.v1.Sandboxes/Stats";
    const SET: &str = "/hearth.v1.Pools/SetPools";
    const HEALTH: &str = "/grpc.health.v1.Health/Check";
    const ALL: [&str; 5] = [CLAIM, LIST, STATS, SET, HEALTH];

    fn peer(roles: Roles, known: bool) -> Identity {
        Identity {
            roles,
            known,
            ..Policy::default().user(Some(7))
        }
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        headers
    }

    fn asked(path: &str, peer: &Identity, values: &[&str]) -> Result<Right, &'static str> {
        let admitted = admit(method::find(path), peer, &headers(values));
        admitted.map_err(|refusal| super::super::status::entry(&refusal).reason)
    }

    #[test]
    fn roles_open_what_the_table_says() {
        let role = |roles| Ok(Right::Role(roles));
        for (roles, allowed) in [
            (Roles::ADMIN, [true; 4]),
            (Roles::ALLOCATOR, [true, true, false, false]),
            (Roles::VIEWER, [false, true, false, false]),
            (Roles::NONE, [false; 4]),
        ] {
            for (path, allowed) in ALL.into_iter().zip(allowed) {
                let expected = if allowed {
                    role(roles)
                } else {
                    Err("NOT_ALLOWED")
                };
                assert_eq!(asked(path, &peer(roles, true), &[]), expected, "{path}");
            }
            assert_eq!(asked(HEALTH, &peer(roles, true), &[]), Ok(Right::Open));
        }
    }

    #[test]
    fn who_is_not_known_is_told_so() {
        for path in &ALL[..4] {
            let nobody = peer(Roles::NONE, false);
            assert_eq!(asked(path, &nobody, &[]), Err("UNAUTHENTICATED"));
            if *path != STATS {
                let asked = asked(path, &nobody, &["Bearer hearth_x"]);
                assert_eq!(asked, Err("UNAUTHENTICATED"));
            }
        }
    }

    #[test]
    fn an_expired_certificate_opens_nothing_any_more() {
        let now = SystemTime::now();
        let until = |until| Identity {
            valid_until: Some(until),
            ..peer(Roles::ADMIN, true)
        };
        let late = until(now - Duration::from_secs(1));
        for path in ALL {
            assert_eq!(asked(path, &late, &[]), Err("UNAUTHENTICATED"), "{path}");
        }
        assert_eq!(
            asked(STATS, &late, &["Bearer hearth_x"]),
            Err("UNAUTHENTICATED")
        );
        assert!(asked(CLAIM, &until(now + Duration::from_secs(60)), &[]).is_ok());
    }

    #[test]
    fn a_token_opens_the_holders_calls_and_is_checked_for_admins_too() {
        for peer in [
            peer(Roles::NONE, false),
            peer(Roles::NONE, true),
            peer(Roles::ADMIN, true),
        ] {
            for value in ["Bearer hearth_x", "bearer  hearth_x "] {
                let right = Right::Token("hearth_x".into());
                assert_eq!(asked(STATS, &peer, &[value]), Ok(right));
            }
        }
        let admin = peer(Roles::ADMIN, true);
        let long = format!("Bearer {}", "x".repeat(300));
        for wrong in [
            &["hearth_x"][..],
            &["Basic hearth_x"],
            &["Bearer "],
            &["Bearer"],
            &["Bearer a", "Bearer b"],
            &[&long],
        ] {
            assert_eq!(asked(STATS, &admin, wrong), Err("NOT_ALLOWED"), "{wrong:?}");
        }
        assert_eq!(
            asked(CLAIM, &peer(Roles::NONE, true), &["Bearer hearth_x"]),
            Err("NOT_ALLOWED")
        );
    }

    #[test]
    fn tokens_of_two_kinds_are_told_apart() {
        let told = |values: &[&str]| {
            let headers = headers(values);
            foreign(&headers).map(|token| token.map(str::to_owned))
        };
        assert_eq!(told(&[]), Ok(None));
        assert_eq!(told(&["Bearer hearth_x"]), Ok(None));
        let long = "x".repeat(4096);
        for token in ["a.b.c", "Hearth_x", &long] {
            let value = format!("Bearer {token}");
            assert_eq!(told(&[&value]), Ok(Some(token.to_owned())));
        }
        for wrong in [&["Basic x"][..], &["Bearer "], &["Bearer a", "Bearer b"]] {
            assert_eq!(told(wrong), Err(FORM), "{wrong:?}");
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        let holder = Right::Token("hearth_secret".into());
        assert_eq!(format!("{holder:?}"), "token");
    }
}
