//! What all services share.

use super::caller::{Caller, Right};
use super::config::RpcConfig;
use super::door::Door;
use super::key::NodeKey;
use super::metrics::Metrics;
use super::places::Places;
use crate::machine::event::Call;
use crate::machine::ids::{ClaimId, SandboxId};
use crate::machine::refusal::Refusal;
use crate::machine::view::{Answer, ClaimState, ClaimView};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Shared by all services, behind an `Arc`.
pub struct Core {
    /// The driver.
    pub door: Arc<dyn Door>,
    /// For tokens and digests.
    pub key: NodeKey,
    /// As given by app.
    pub config: RpcConfig,
    /// Metrics.
    pub metrics: Metrics,
    /// Streams in each sandbox.
    pub places: Places,
    /// Image imports and pulls.
    pub transfers: Arc<Semaphore>,
}

impl Core {
    /// A call without personalization.
    pub async fn call(&self, call: Call) -> Result<Answer, Refusal> {
        Ok(self.door.call(call, None).await?.answer)
    }

    /// The sandbox of an acknowledged claim that the caller may use. Asked for on each call: a token ends with its
    /// claim, and a sandbox is never used for a claim that has lost it.
    pub async fn enter(&self, caller: &Caller, claim: ClaimId) -> Result<SandboxId, Refusal> {
        caller.trail.about(format!("claim {claim}"));
        if self.is_closed(caller, claim).await {
            return self.open(caller, claim, Err(CLOSED)).await;
        }
        let located = match self.call(Call::Locate(claim)).await {
            Ok(Answer::Located { sandbox, .. }) => Ok(sandbox),
            Ok(other) => Err(unexpected(&other)),
            Err(refusal) => Err(refusal),
        };
        self.open(caller, claim, located).await
    }

    /// Looked at before the sandbox is located, for that wakes it: who may not use it must not cause a thaw or a restore.
    /// A claim without a sandbox is nobody's to wake.
    async fn is_closed(&self, caller: &Caller, claim: ClaimId) -> bool {
        match &caller.right {
            Right::Role(_) => false,
            Right::Open => true,
            Right::Token(token) => match self.view(claim).await {
                Ok(view) => view.sandbox.is_some() && !self.opens(token, &view),
                Err(_) => false,
            },
        }
    }

    /// The same, and one that sleeps is left asleep.
    pub async fn find(&self, caller: &Caller, claim: ClaimId) -> Result<SandboxId, Refusal> {
        caller.trail.about(format!("claim {claim}"));
        let found = self.view(claim).await.and_then(found);
        self.open(caller, claim, found).await
    }

    /// The sandbox, if the caller may use it.
    async fn open(
        &self,
        caller: &Caller,
        claim: ClaimId,
        located: Result<SandboxId, Refusal>,
    ) -> Result<SandboxId, Refusal> {
        match &caller.right {
            Right::Role(_) => located,
            Right::Open => Err(NO_TOKEN),
            Right::Token(token) => {
                let (opens, answer) = match located {
                    Ok(sandbox) if self.key.opens(token, claim, sandbox) => (true, Ok(sandbox)),
                    Ok(_) => (false, Err(CLOSED)),
                    Err(refusal) => {
                        let told = self.told_to_holder(token, claim, refusal).await;
                        (told != CLOSED, Err(told))
                    }
                };
                caller.trail.decided(opens, "token");
                answer
            }
        }
    }

    /// A claim that the caller may use, as it stands: nobody is woken.
    pub async fn peek(&self, caller: &Caller, claim: ClaimId) -> Result<ClaimView, Refusal> {
        caller.trail.about(format!("claim {claim}"));
        let view = self.view(claim).await;
        match &caller.right {
            Right::Role(_) => view,
            Right::Open => Err(NO_TOKEN),
            Right::Token(token) => {
                let view = view.map_err(|_| CLOSED)?;
                let opens = self.opens(token, &view);
                caller.trail.decided(opens, "token");
                if opens { Ok(view) } else { Err(CLOSED) }
            }
        }
    }

    /// Why a claim can't be used is told to who holds its token only; others don't even learn that there is one.
    async fn told_to_holder(&self, token: &str, claim: ClaimId, refusal: Refusal) -> Refusal {
        match self.view(claim).await {
            Ok(view) if self.opens(token, &view) => refusal,
            Ok(_) | Err(Refusal::ClaimUnknown { .. } | Refusal::ClaimReleased { .. }) => CLOSED,
            // hearthd's own state, for example that it starts.
            Err(other) => other,
        }
    }

    /// A claim as it stands.
    async fn view(&self, claim: ClaimId) -> Result<ClaimView, Refusal> {
        match self.call(Call::Get(claim)).await? {
            Answer::Claim(view) => Ok(*view),
            other => Err(unexpected(&other)),
        }
    }

    /// Does the token open this claim's sandbox? Without a sandbox there is nothing to open.
    fn opens(&self, token: &str, claim: &ClaimView) -> bool {
        let first = claim.first;
        first.is_some_and(|sandbox| self.key.opens(token, claim.id, sandbox))
    }
}

/// The sandbox of an acknowledged claim.
fn found(view: ClaimView) -> Result<SandboxId, Refusal> {
    let claim = view.id.to_string();
    match (view.state, view.sandbox) {
        (ClaimState::Claimed | ClaimState::Hibernated, Some(sandbox)) => Ok(sandbox),
        (ClaimState::Failed, _) => Err(Refusal::SandboxEnded {
            claim,
            reason: view.reason.unwrap_or_default(),
        }),
        (ClaimState::Unknown, _) => Err(Refusal::ClaimRecovering { claim }),
        (ClaimState::Pending | ClaimState::Claimed | ClaimState::Hibernated, _) => {
            Err(Refusal::ClaimPending { claim })
        }
    }
}

const NO_TOKEN: Refusal = Refusal::NotAllowed {
    detail: "this call needs the claim's access token",
};

const CLOSED: Refusal = Refusal::NotAllowed {
    detail: "the token does not open this claim (a token ends with its claim)",
};

/// An answer of another kind than the call's: a bug.
pub fn unexpected(answer: &Answer) -> Refusal {
    let name = match answer {
        Answer::Granted(_) => "Granted",
        Answer::Released => "Released",
        Answer::Renewed { .. } => "Renewed",
        Answer::Hibernated => "Hibernated",
        Answer::Resumed => "Resumed",
        Answer::Claim(_) => "Claim",
        Answer::Claims { .. } => "Claims",
        Answer::PoolsSet { .. } => "PoolsSet",
        Answer::WarmPoolsSet(_) => "WarmPoolsSet",
        Answer::Pools { .. } => "Pools",
        Answer::Located { .. } => "Located",
        Answer::Drain(_) => "Drain",
        Answer::Node(_) => "Node",
    };
    Refusal::Internal {
        detail: format!("the driver answered {name} to another kind of call"),
    }
}
