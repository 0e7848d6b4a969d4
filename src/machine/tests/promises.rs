//! What callers have been promised, kept by the callers: the machine is judged by it, across crashes.

use crate::machine::claims::Stage;
use crate::machine::event::Call;
use crate::machine::ids::*;
use crate::machine::network::NetworkPolicy;
use crate::machine::node::Node;
use crate::machine::record::{DrainRecord, Owner};
use crate::machine::refusal::Refusal;
use crate::machine::spec::{DrainMode, DrainRequest, OnDataLoss};
use crate::machine::view::*;
use std::collections::{BTreeMap, BTreeSet};

/// A call as its caller remembers it.
#[derive(Debug, Clone)]
pub struct Sent {
    pub call: Call,
    /// A larger epoch had been answered before it was sent.
    pub stale: bool,
    /// The claim had been granted, then released, both answered, before it was sent.
    pub spent: bool,
    /// A claim asked for the first time while the node was drained, as all had been told, or cordoned.
    pub unwanted: bool,
}

/// An acknowledged claim.
#[derive(Debug, Clone)]
struct Acknowledged {
    grant: Grant,
    /// Its own.
    policy: Option<NetworkPolicy>,
    /// It may expire from then on. `None`: never.
    lives_until: Option<Now>,
    /// Renewals that have no answer: any of them may be in force.
    renewing: usize,
}

#[derive(Debug, Clone, Default)]
pub struct Promises {
    /// Requests without an answer.
    open: BTreeMap<RequestId, Sent>,
    acknowledged: BTreeMap<ClaimId, Acknowledged>,
    released: BTreeSet<ClaimId>,
    /// A release was sent (or a renewal, before the claim was answered): it may be gone at any time.
    let_go: BTreeSet<ClaimId>,
    /// Who has ever had a sandbox.
    had_by: BTreeMap<SandboxId, ClaimId>,
    /// Sandboxes that ended by themselves.
    ended: BTreeSet<SandboxId>,
    /// Claims ever asked for.
    asked: BTreeSet<ClaimId>,
    /// Those of them that may get a fresh sandbox when an image is lost: not those that said no.
    may_start_cold: BTreeSet<ClaimId>,
    /// Of the latest look, milliseconds.
    now: u64,
    /// A drain was answered, and nobody has asked to undo it since.
    draining: bool,
    /// The cluster has cordoned the node. After a death of hearthd: and that was durable.
    pub cordoned: bool,
    /// The cluster asks for a drain; likewise.
    cluster: Option<DrainRecord>,
    /// Drains with mode Evict that may be in force, and the first moment at which each may take claims.
    evicting: BTreeMap<RequestId, Now>,
    /// Largest epoch a mutating call was answered under.
    epoch: u64,
}

impl Promises {
    pub fn send(&mut self, request: RequestId, call: Call, now: Now) {
        let (epoch, claim) = match &call {
            Call::Claim(fence, asked) => (Some(fence.epoch), Some(asked.claim_id)),
            Call::Release(fence, claim) | Call::Renew(fence, claim, _) => {
                (Some(fence.epoch), Some(*claim))
            }
            Call::Hibernate(fence, ..) | Call::Resume(fence, _) => (Some(fence.epoch), None),
            Call::SetPools(fence, _) => (Some(fence.epoch), None),
            _ => (None, None),
        };
        self.evict_due(now);
        match &call {
            Call::Drain(DrainRequest {
                mode: DrainMode::Evict,
                deadline_ms,
            }) => {
                let at = now.plus(deadline_ms.expect("rpc sees to it"));
                self.evicting.insert(request, at);
            }
            Call::Undrain => self.draining = false,
            _ => {}
        }
        let sent = Sent {
            unwanted: match &call {
                Call::Claim(_, asked) => {
                    let first = self.asked.insert(asked.claim_id);
                    if asked.on_data_loss != Some(OnDataLoss::Fail) {
                        self.may_start_cold.insert(asked.claim_id);
                    }
                    first && (self.draining || self.cluster.is_some() || self.cordoned)
                }
                _ => false,
            },
            stale: epoch.is_some_and(|epoch| epoch < self.epoch),
            spent: claim.is_some_and(|claim| self.released.contains(&claim)),
            call: call.clone(),
        };
        match (
            &call,
            claim.and_then(|claim| self.acknowledged.get_mut(&claim)),
        ) {
            (Call::Renew(_, _, ttl_ms), Some(known)) => {
                known.renewing += 1;
                known.lives_until = earlier(known.lives_until, *ttl_ms, now);
            }
            (Call::Release(..) | Call::Renew(..), _) => self.let_go.extend(claim),
            _ => {}
        }
        self.open.insert(request, sent);
    }

    /// hearthd died: who waits never hears.
    pub fn crash(&mut self) {
        self.open.clear();
    }

    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// The policy that an open request asks for.
    pub fn policy_asked(&self, request: RequestId) -> Option<&NetworkPolicy> {
        policy_of(&self.open.get(&request)?.call)
    }

    /// The sandboxes of acknowledged claims that must be there now, with the claims' own policies.
    pub fn policies(&self, now: Now) -> Vec<(SandboxId, Option<&NetworkPolicy>)> {
        let there = self.protected(now);
        there
            .map(|(claim, sandbox)| (sandbox, self.acknowledged[&claim].policy.as_ref()))
            .collect()
    }

    pub fn ended(&mut self, sandbox: SandboxId) {
        self.ended.insert(sandbox);
    }

    /// An answer reaches its caller.
    pub fn answer(&mut self, request: RequestId, answer: &Result<Answer, Refusal>) {
        let Some(sent) = self.open.remove(&request) else {
            panic!("{request:?} was answered twice, or never asked: {answer:?}");
        };
        let fence = match &sent.call {
            Call::Claim(fence, _) | Call::Release(fence, _) | Call::Renew(fence, _, _) => {
                Some(fence.epoch)
            }
            Call::SetPools(fence, _) | Call::Resume(fence, _) => Some(fence.epoch),
            Call::Hibernate(fence, ..) => Some(fence.epoch),
            _ => None,
        };
        let down = matches!(
            answer,
            Err(Refusal::Starting { .. } | Refusal::ShuttingDown { .. })
        );
        let fenced = matches!(
            answer,
            Err(Refusal::EpochStale { .. } | Refusal::EpochConflict { .. })
        );
        assert!(
            !sent.stale || down || fenced,
            "a stale epoch was served: {sent:?}: {answer:?}"
        );
        if !down && !fenced {
            self.epoch = self.epoch.max(fence.unwrap_or(0));
        }
        match (&sent.call, answer) {
            (Call::Claim(..), Ok(Answer::Granted(grant))) => self.granted(&sent, grant),
            (Call::Release(_, claim), Ok(_)) if self.acknowledged.contains_key(claim) => {
                self.released.insert(*claim);
            }
            (Call::Renew(_, claim, _), answer) => self.renewed(*claim, answer),
            // What was asked for later may be in force instead.
            (Call::Drain(asked), Ok(_)) => {
                let undone = self
                    .open
                    .values()
                    .any(|it| matches!(it.call, Call::Undrain));
                self.draining = !undone;
                if asked.mode != DrainMode::Evict {
                    self.superseded(request);
                }
            }
            (Call::Undrain, Ok(_)) => self.superseded(request),
            _ => {}
        }
    }

    /// No drain with mode Evict that was asked for before is in force any more.
    fn superseded(&mut self, request: RequestId) {
        self.evict_due(Now(self.now));
        self.evicting.retain(|it, _| *it > request);
    }

    /// What the cluster asks for from now on.
    pub fn cluster_drain(&mut self, record: Option<DrainRecord>) {
        self.evict_due(Now(self.now));
        self.cluster = record;
        self.evict_due(Now(self.now));
    }

    /// A deadline that has passed may have taken any claim.
    pub fn evict_due(&mut self, now: Now) {
        self.now = now.0;
        let cluster = self
            .cluster
            .filter(|it| it.asked.mode == DrainMode::Evict)
            .and_then(|it| it.deadline());
        let mut evicting = self.evicting.values().copied().chain(cluster);
        if evicting.any(|at| at <= now) {
            self.let_go.extend(self.acknowledged.keys());
            // An acknowledgement that waits for its commit may be told after the claim was evicted.
            let open = self.open.values().filter_map(|sent| match &sent.call {
                Call::Claim(_, asked) => Some(asked.claim_id),
                _ => None,
            });
            self.let_go.extend(open);
        }
    }

    fn granted(&mut self, sent: &Sent, grant: &Grant) {
        assert!(!sent.spent, "a released claim was granted: {grant:?}");
        assert!(!sent.unwanted, "a closed node took a claim: {grant:?}");
        let had_by = self.had_by.entry(grant.sandbox).or_insert(grant.claim);
        assert_eq!(
            *had_by, grant.claim,
            "{} was handed out twice",
            grant.sandbox
        );
        let Some(known) = self.acknowledged.get_mut(&grant.claim) else {
            let known = Acknowledged {
                grant: grant.clone(),
                policy: policy_of(&sent.call).cloned(),
                lives_until: grant.expires_at,
                renewing: 0,
            };
            self.acknowledged.insert(grant.claim, known);
            // Of the batch that has evicted it: the answer comes after.
            self.evict_due(Now(self.now));
            return;
        };
        // Its image was lost, and it wanted a fresh sandbox then: that is its own from now on.
        if self.ended.contains(&known.grant.sandbox) && grant.sandbox != known.grant.sandbox {
            assert!(self.may_start_cold.contains(&grant.claim), "{grant:?}");
            assert_eq!(known.grant.first, grant.first, "its token changes");
            known.grant = grant.clone();
        }
        let same = |grant: &Grant| (grant.sandbox, grant.generation, grant.source);
        assert_eq!(
            same(&known.grant),
            same(grant),
            "another answer for {}",
            grant.claim
        );
        // A renewal that was sent before the claim's first answer may be in force.
        if known.renewing == 0 && !self.let_go.contains(&grant.claim) {
            let sooner = match (known.lives_until, grant.expires_at) {
                (Some(told), Some(now)) => now < told,
                (None, now) => now.is_some(),
                (Some(_), None) => false,
            };
            assert!(!sooner, "{known:?} would expire sooner: {grant:?}");
        }
    }

    fn renewed(&mut self, claim: ClaimId, answer: &Result<Answer, Refusal>) {
        let Some(known) = self.acknowledged.get_mut(&claim) else {
            return;
        };
        known.renewing = known.renewing.saturating_sub(1);
        if let (Ok(Answer::Renewed { expires_at }), 0) = (answer, known.renewing) {
            known.lives_until = *expires_at;
        }
    }

    /// Acknowledged claims that must be there now, with their sandboxes.
    fn protected(&self, now: Now) -> impl Iterator<Item = (ClaimId, SandboxId)> {
        let alive = move |it: &&Acknowledged| {
            let expired = it.lives_until.is_some_and(|until| until <= now);
            !self.let_go.contains(&it.grant.claim)
                && !expired
                && !self.ended.contains(&it.grant.sandbox)
        };
        let known = self.acknowledged.values().filter(alive);
        known.map(|it| (it.grant.claim, it.grant.sandbox))
    }

    /// May this sandbox be destroyed?
    pub fn check_destroy(&self, sandbox: SandboxId, now: Now) {
        let protected = self.protected(now).find(|(_, it)| *it == sandbox);
        assert_eq!(protected, None, "the sandbox of a live claim is destroyed");
    }

    /// No acknowledged claim is lost, none that was released is there.
    pub fn check(&self, node: &Node, now: Now) {
        for (claim, sandbox) in self.protected(now) {
            let stage = node.claims.get(&claim).map(|it| &it.stage);
            let kept = match stage {
                Some(Stage::Held { assignment } | Stage::Unknown { assignment, .. }) => {
                    assignment.sandbox == sandbox
                }
                _ => false,
            };
            assert!(kept, "claim {claim} is lost: {stage:?}");
            let owner = node.sandboxes.get(sandbox).map(|it| it.owner);
            assert_eq!(owner, Some(Owner::Claimed(claim)));
        }
        for claim in &self.released {
            assert!(!node.claims.contains_key(claim), "{claim} came back");
        }
    }

    /// Claims that should be usable when all is well.
    pub fn check_usable(&self, node: &Node, now: Now) {
        for (claim, _) in self.protected(now) {
            let there = node.claims.get(&claim);
            let state = there.map(|it| node.view_of(it).state);
            let usable = [Some(ClaimState::Claimed), Some(ClaimState::Hibernated)];
            assert!(usable.contains(&state), "{claim}: {state:?}");
        }
    }
}

fn policy_of(call: &Call) -> Option<&NetworkPolicy> {
    match call {
        Call::Claim(_, asked) => asked.network_policy.as_ref(),
        _ => None,
    }
}

fn earlier(told: Option<Now>, ttl_ms: u64, now: Now) -> Option<Now> {
    let renewed = (ttl_ms > 0).then(|| now.plus(ttl_ms));
    match (told, renewed) {
        (Some(told), Some(renewed)) => Some(told.min(renewed)),
        (one, other) => one.or(other),
    }
}
