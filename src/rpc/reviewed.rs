//! Callers with a ServiceAccount token: whose it is and what its owner may do, from the reviewer to a caller that is admitted
//! or a refusal.
//!
//! Only over TCP, and only a bearer token that is none of hearth's own: a claim's access token is judged where the claim is
//! known. A token that is shown is judged, whoever shows it: a proxy passes on those of others without lending them the
//! rights of its certificate.

use super::bounds;
use super::caller;
use super::layer::{Rules, rate_limited};
use super::method::Method;
use super::status;
use crate::identity::{Class, Deed, GROUP, Identity, Reviewer, Token, Trail, Unreviewed};
use crate::machine::refusal::Refusal;
use std::sync::Arc;
use tonic::Code;
use tonic::codegen::http::{HeaderMap, header::AUTHORIZATION};

/// A token that this call is judged by.
pub struct Shown {
    reviewer: Arc<Reviewer>,
    token: Result<Token, Unreviewed>,
    method: &'static Method,
    deed: Deed,
}

impl Shown {
    /// Takes the token out of the headers, so that nothing behind the layer sees it. `None`: the call shows none, or none is
    /// asked for.
    pub fn of(
        reviewer: &Arc<Reviewer>,
        method: &'static Method,
        identity: &Identity,
        headers: &mut HeaderMap,
    ) -> Result<Option<Self>, Refusal> {
        let (true, Some(deed)) = (identity.remote, method.deed) else {
            return Ok(None);
        };
        let Some(text) = caller::foreign(headers)? else {
            return Ok(None);
        };
        let token = reviewer.read(text);
        headers.remove(AUTHORIZATION);
        Ok(Some(Self {
            reviewer: Arc::clone(reviewer),
            token,
            method,
            deed,
        }))
    }

    /// Whom the call is let in as. What was decided is written down; that nobody could be asked is no decision.
    pub async fn judge(
        self,
        rules: &Rules,
        class: Class,
        peer: &Identity,
        trace: &str,
    ) -> Result<(Identity, Trail), Refusal> {
        caller::in_time(peer)?;
        let Self {
            reviewer,
            token,
            method,
            deed,
        } = self;
        let audit = &rules.guard.audit;
        let refused = |identity: &Identity, why| {
            let refusal = refusal(&reviewer, &identity.name, deed, why);
            let entry = status::entry(&refusal);
            if matches!(entry.code, Code::Unauthenticated | Code::PermissionDenied) {
                let trail = audit.trail(identity, method.name, trace);
                trail.decided(false, entry.reason);
            }
            refusal
        };
        // Until its owner is known a call is the peer's.
        if !token.as_ref().is_ok_and(|token| reviewer.remembers(token)) {
            rules.within(&peer.name, class)?;
        }
        let asked = match token {
            Ok(token) => reviewer.who(token, &peer.name).await,
            Err(why) => Err(why),
        };
        let principal = asked.map_err(|why| refused(peer, why))?;
        let identity = peer.vouched(principal.caller());
        rules.within(&identity.name, class)?;
        let asked = reviewer.may(&principal, deed).await;
        asked.map_err(|why| refused(&identity, why))?;
        let trail = audit.trail(&identity, method.name, trace);
        trail.decided(true, "grant");
        Ok((identity, trail))
    }
}

fn refusal(reviewer: &Reviewer, caller: &str, deed: Deed, why: Unreviewed) -> Refusal {
    let token = |detail| Refusal::TokenRefused {
        detail,
        audiences: reviewer.audiences().join(","),
    };
    match why {
        Unreviewed::Unfit(why) => token(why.text()),
        Unreviewed::Refused => token("the API server does not vouch for it"),
        Unreviewed::Denied => Refusal::NotGranted {
            caller: caller.to_owned(),
            verb: deed.verb,
            resource: deed.resource,
            group: GROUP,
            namespace: reviewer.namespace().to_owned(),
        },
        Unreviewed::Away(detail) => Refusal::AuthorityUnavailable {
            detail,
            retry_ms: bounds::REVIEW_RETRY_MS,
        },
        Unreviewed::TooMany(wait) => rate_limited(wait),
    }
}
