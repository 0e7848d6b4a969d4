//! What sandboxes may reach: which policy is in force for which, and which claims may bring their own.
//!
//! A sandbox is made with an interface or without one, for good: gVisor reads its interfaces when it starts. So a claim's
//! own policy goes onto members with an interface only, and a pool whose template gives one keeps no unclaimed member
//! without. In force is the claim's policy, else that of the template the sandbox was made from; for one that is being
//! given up nothing.

use super::claims::{Stage, Terms};
use super::ids::{ClaimId, PoolName, SandboxId};
use super::network::{NetworkMode, NetworkPolicy};
use super::node::Node;
use super::out::Out;
use super::pools::Pool;
use super::record::Owner;
use super::refusal::Refusal;
use super::sandboxes::Sandbox;
use std::sync::Arc;

impl NetworkMode {
    /// As callers write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Internet => "internet",
            Self::Allowlist => "allowlist",
        }
    }
}

impl Pool {
    /// May a claim bring this policy? Without an interface only what that gives anyway.
    pub(super) fn may_have(&self, asked: Option<&NetworkPolicy>) -> Result<(), Refusal> {
        match asked.filter(|policy| policy.needs_interface()) {
            Some(policy) if !self.network.needs_interface() => {
                Err(Refusal::NetworkPolicyUnsupported {
                    policy: policy.mode.as_str(),
                    pool: self.spec.name.to_string(),
                })
            }
            _ => Ok(()),
        }
    }
}

impl Node {
    /// The policies that must be in force: of every sandbox with an interface that may exist outside, asleep or being
    /// given up, ordered by id. For the reconciliation after a restart.
    #[must_use]
    pub fn network_policies(&self) -> Vec<(SandboxId, PoolName, NetworkPolicy)> {
        let furnished = self
            .sandboxes
            .iter()
            .filter(|it| it.network.needs_interface());
        furnished
            .map(|it| (it.id, it.pool.clone(), self.in_force(it)))
            .collect()
    }

    /// The same while recovery has not ended: a listing is told only once they are in force.
    #[must_use]
    pub fn unreconciled(&self) -> Option<Vec<(SandboxId, PoolName, NetworkPolicy)>> {
        self.conditions.recovering.then(|| self.network_policies())
    }

    pub(super) fn in_force(&self, sandbox: &Sandbox) -> NetworkPolicy {
        match sandbox.owner {
            Owner::Pool => NetworkPolicy::clone(&sandbox.network),
            Owner::Releasing => NetworkPolicy::default(),
            Owner::Claimed(claim) => match self.claims.get(&claim) {
                Some(claim) => {
                    let own = claim.terms.network.as_ref();
                    NetworkPolicy::clone(own.unwrap_or(&sandbox.network))
                }
                None => NetworkPolicy::default(),
            },
        }
    }

    /// The claim's own policy, if another one is in force for the member it gets.
    pub(super) fn policy_to_apply(
        &self,
        terms: &Terms,
        member: SandboxId,
    ) -> Option<Arc<NetworkPolicy>> {
        let own = terms.network.as_ref()?;
        let made_with = self.sandboxes.get(member).map(|it| &it.network);
        (made_with != Some(own)).then(|| own.clone())
    }

    /// An unclaimed member of an older template that has no interface, while the template in force gives one.
    pub(super) fn lacks_interface(&self, member: SandboxId) -> bool {
        self.sandboxes.get(member).is_some_and(|it| {
            let pool = self.pools.get(&it.pool);
            pool.is_some_and(|pool| pool.network.needs_interface()) && !it.network.needs_interface()
        })
    }

    /// The template has changed: those who wait with a policy that its sandboxes can't have are refused. One whose own
    /// sandbox is being made goes on: that has what it was made with.
    pub(super) fn refuse_policies(&mut self, name: &PoolName, out: &mut Out<'_>) {
        let Some(pool) = self.pools.get(name) else {
            return;
        };
        let waiting = pool.queue.iter().filter_map(|(_, id)| {
            let claim = self.claims.get(&id)?;
            let refusal = pool.may_have(claim.terms.network.as_deref()).err()?;
            matches!(claim.stage, Stage::Queued { .. }).then_some((id, refusal))
        });
        let refused: Vec<(ClaimId, Refusal)> = waiting.collect();
        for (id, refusal) in refused {
            self.drop_claim(id, &refusal, out);
        }
    }
}
