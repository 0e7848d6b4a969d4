//! Who calls, and whether it may: decided before a byte of the request's message is read. Deny by default.
//!
//! A peer is known by the credentials that the kernel gives for its end of the Unix socket (SO_PEERCRED). Users of
//! `allowed_uids` may call everything. Whoever presents a claim's access token may call Sandboxes for that claim; a
//! token that is presented is checked, whoever presents it, so that a proxy running as an allowed user may pass on the
//! tokens of others without lending them its own rights.

use super::method::Access;
use crate::machine::refusal::Refusal;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use tonic::codegen::http::{Extensions, HeaderMap, header::AUTHORIZATION};
use tonic::transport::server::UdsConnectInfo;

/// Longer than any token of hearth.
const TOKEN_BYTES: usize = 256;

/// An admitted caller. Travels in the request's extensions; a request without one is refused by the services.
#[derive(Clone, PartialEq, Eq)]
pub enum Caller {
    /// A user of `allowed_uids`.
    Operator(u32),
    /// Whoever holds this token. It has not been checked yet: that needs the claim.
    Holder(Arc<str>),
    /// A peer of health or reflection.
    Anyone,
}

impl Caller {
    /// The caller that the layer has admitted.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, Refusal> {
        let admitted = request.extensions().get::<Self>().cloned();
        admitted.ok_or(Refusal::Unauthenticated {
            detail: "nobody has admitted this call",
        })
    }

    /// Its name for fencing. Only operators take part in it.
    pub fn fenced<T>(request: &tonic::Request<T>) -> Result<String, Refusal> {
        match Self::of(request)? {
            Self::Operator(uid) => Ok(format!("uid:{uid}")),
            Self::Holder(_) | Self::Anyone => Err(Refusal::NotAllowed {
                detail: "only operators own epochs",
            }),
        }
    }
}

/// Never the token.
impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator(uid) => write!(f, "uid:{uid}"),
            Self::Holder(_) => f.write_str("holder"),
            Self::Anyone => f.write_str("anyone"),
        }
    }
}

/// The peer's user id, if the kernel told.
#[must_use]
pub fn uid(extensions: &Extensions) -> Option<u32> {
    let peer = extensions.get::<UdsConnectInfo>()?;
    peer.peer_cred.map(|cred| cred.uid())
}

/// Admits a call, or says why not.
pub fn admit(
    access: Access,
    uid: Option<u32>,
    allowed: &BTreeSet<u32>,
    headers: &HeaderMap,
) -> Result<Caller, Refusal> {
    let operator = uid
        .filter(|uid| allowed.contains(uid))
        .map(Caller::Operator);
    match access {
        Access::Anyone => Ok(operator.unwrap_or(Caller::Anyone)),
        Access::Operator => {
            operator.ok_or_else(|| denied(uid, "this user is not one of api.allowed_uids"))
        }
        Access::Holder => match token(headers)? {
            Some(token) => Ok(Caller::Holder(token)),
            None => operator.ok_or_else(|| denied(uid, "this user needs the claim's access token")),
        },
    }
}

fn denied(uid: Option<u32>, detail: &'static str) -> Refusal {
    match uid {
        Some(_) => Refusal::NotAllowed { detail },
        None => Refusal::Unauthenticated {
            detail: "the kernel does not tell who the peer is",
        },
    }
}

/// The bearer token (RFC 6750, §2.1), if one is presented.
fn token(headers: &HeaderMap) -> Result<Option<Arc<str>>, Refusal> {
    const FORM: Refusal = Refusal::NotAllowed {
        detail: "the authorization metadata is not one bearer token",
    };
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
    let good = scheme.eq_ignore_ascii_case("bearer") && (1..=TOKEN_BYTES).contains(&token.len());
    if good {
        Ok(Some(token.into()))
    } else {
        Err(FORM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        headers
    }

    fn asked(access: Access, uid: Option<u32>, values: &[&str]) -> Result<Caller, &'static str> {
        let allowed = [0, 7].into();
        let admitted = admit(access, uid, &allowed, &headers(values));
        admitted.map_err(|refusal| super::super::status::entry(&refusal).reason)
    }

    #[test]
    fn operators_may_call_everything() {
        for access in [Access::Anyone, Access::Holder, Access::Operator] {
            assert_eq!(asked(access, Some(7), &[]), Ok(Caller::Operator(7)));
        }
    }

    #[test]
    fn others_are_refused_by_default() {
        assert_eq!(asked(Access::Anyone, Some(8), &[]), Ok(Caller::Anyone));
        assert_eq!(asked(Access::Anyone, None, &[]), Ok(Caller::Anyone));
        for access in [Access::Holder, Access::Operator] {
            assert_eq!(asked(access, Some(8), &[]), Err("NOT_ALLOWED"));
            assert_eq!(asked(access, None, &[]), Err("UNAUTHENTICATED"));
        }
        assert_eq!(
            asked(Access::Operator, Some(8), &["Bearer hearth_x"]),
            Err("NOT_ALLOWED")
        );
        assert_eq!(
            asked(Access::Operator, None, &["Bearer hearth_x"]),
            Err("UNAUTHENTICATED")
        );
    }

    #[test]
    fn a_token_opens_the_holders_calls_and_is_checked_for_operators_too() {
        for uid in [None, Some(8), Some(7)] {
            for value in ["Bearer hearth_x", "bearer  hearth_x "] {
                assert_eq!(
                    asked(Access::Holder, uid, &[value]),
                    Ok(Caller::Holder("hearth_x".into()))
                );
            }
        }
        for wrong in [
            &["hearth_x"][..],
            &["Basic hearth_x"],
            &["Bearer "],
            &["Bearer"],
            &["Bearer a", "Bearer b"],
        ] {
            assert_eq!(
                asked(Access::Holder, Some(7), wrong),
                Err("NOT_ALLOWED"),
                "{wrong:?}"
            );
        }
        assert_eq!(
            asked(
                Access::Holder,
                None,
                &[&format!("Bearer {}", "x".repeat(300))]
            ),
            Err("NOT_ALLOWED")
        );
    }

    #[test]
    fn a_token_is_never_shown() {
        let holder = Caller::Holder("hearth_secret".into());
        assert_eq!(format!("{holder:?}"), "holder");
    }
}
