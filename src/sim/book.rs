//! What callers were promised, whether or not they heard it: every answer that leaves hearthd is judged by it.

mod drains;
mod refusals;

pub use refusals::{Refused, reason};

use super::callers::POOLS;
use super::site::Site;
use super::world::World;
use crate::api;
use crate::machine::ids::{ClaimId, SandboxId};
use crate::machine::network::NetworkMode;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;
use tonic::Status;

/// What an acknowledged claim was told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    sandbox: String,
    generation: u64,
    source: i32,
    token: String,
}

#[derive(Debug, Clone, Default)]
struct Claim {
    pool: String,
    told: Option<Told>,
    /// It was first asked for while the node was drained, and that was not undone since.
    barred: bool,
    /// It may be gone from then on, by its time to live.
    gone_from: Option<u64>,
    /// A release was sent.
    let_go: bool,
    /// A release was answered.
    released: bool,
}

#[derive(Default)]
struct State {
    claims: BTreeMap<String, Claim>,
    /// Who has ever had a sandbox.
    had_by: BTreeMap<String, String>,
    /// The largest epoch under which anything was answered.
    epoch: u64,
    heard: BTreeMap<String, u64>,
    keys: u64,
    /// A drain was answered, and nobody has asked to undo it.
    drained: bool,
    /// A drain that evicts was asked for, and it was not undone: from then on claims may go.
    evicts_from: Option<u64>,
    /// Drains undone.
    undone: u64,
}

/// A call as things stood when it was sent.
#[derive(Debug, Clone)]
pub struct Sent {
    pub(super) claim: String,
    /// 0: a read.
    epoch: u64,
    stale: bool,
    was_told: bool,
    pub(super) was_released: bool,
    /// Drains that had been undone.
    undone: u64,
    /// With content that is not the claim's.
    other_content: bool,
    /// What its sandbox may reach; `None`: it is to have no interface.
    due: Option<NetworkMode>,
}

/// See the module.
pub struct Book {
    pub(super) world: Arc<World>,
    pub(super) site: Arc<Site>,
    state: Mutex<State>,
}

/// Milliseconds of this world.
pub(super) fn millis(at: &prost_types::Timestamp) -> u64 {
    let at = SystemTime::try_from(*at).unwrap();
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

impl Book {
    pub fn new(site: &Arc<Site>) -> Self {
        Self {
            world: Arc::clone(&site.world),
            site: Arc::clone(site),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How often callers were answered what.
    pub fn heard(&self) -> BTreeMap<String, u64> {
        self.state().heard.clone()
    }

    fn sent(&self, claim: &str, epoch: u64) -> Sent {
        let mut state = self.state();
        let stale = epoch > 0 && epoch < state.epoch;
        let undone = state.undone;
        let known = state.claims.entry(claim.to_owned()).or_default();
        Sent {
            claim: claim.to_owned(),
            epoch,
            stale,
            was_told: known.told.is_some(),
            was_released: known.released,
            undone,
            other_content: false,
            due: None,
        }
    }

    /// Get, Hibernate, Resume.
    pub fn use_sent(&self, claim: &str, epoch: u64) -> Sent {
        self.sent(claim, epoch)
    }

    pub fn claim_sent(&self, asked: &api::ClaimRequest, ttl_ms: u64, other_content: bool) -> Sent {
        {
            let mut state = self.state();
            let drained = state.drained;
            let first = || Claim {
                pool: asked.pool.clone(),
                barred: drained,
                ..Claim::default()
            };
            let claims = &mut state.claims;
            claims.entry(asked.claim_id.clone()).or_insert_with(first);
        }
        self.time_is_set(&asked.claim_id, ttl_ms);
        let sent = self.sent(&asked.claim_id, asked.epoch);
        let inside = asked.personalization.as_ref();
        let policy = inside.and_then(|inside| inside.network_policy.as_ref());
        let of_pool = (asked.pool == POOLS[0]).then_some(NetworkMode::Allowlist);
        Sent {
            other_content,
            due: match policy.map(api::NetworkPolicy::mode) {
                Some(api::NetworkMode::Internet) => Some(NetworkMode::Internet),
                Some(_) => of_pool.map(|_| NetworkMode::None),
                None => of_pool,
            },
            ..sent
        }
    }

    pub fn renewal_sent(&self, claim: &str, epoch: u64, ttl_ms: u64) -> Sent {
        self.time_is_set(claim, ttl_ms);
        self.sent(claim, epoch)
    }

    pub fn release_sent(&self, claim: &str, epoch: u64) -> Sent {
        let sent = self.sent(claim, epoch);
        self.change(claim, |known| known.let_go = true);
        sent
    }

    fn change(&self, claim: &str, change: impl FnOnce(&mut Claim)) {
        let mut state = self.state();
        change(state.claims.entry(claim.to_owned()).or_default());
    }

    /// From now on it may live for `ttl_ms` only.
    fn time_is_set(&self, claim: &str, ttl_ms: u64) {
        let from = self.world.now_ms() + ttl_ms;
        if ttl_ms > 0 {
            self.change(claim, |known| {
                let before = known.gone_from.unwrap_or(from);
                known.gone_from = Some(before.min(from));
            });
        }
    }

    fn known(&self, claim: &str) -> Claim {
        self.state().claims.get(claim).cloned().unwrap_or_default()
    }

    pub(super) fn may_be_gone(&self, claim: &str) -> bool {
        let (known, now) = (self.known(claim), self.world.now_ms());
        let due = |at: Option<u64>| at.is_some_and(|at| at <= now);
        known.let_go || due(known.gone_from) || due(self.state().evicts_from)
    }

    pub(super) fn pool_of(&self, claim: &str) -> String {
        self.known(claim).pool
    }

    /// The claim's access token, or that of another. `None`: nobody was told one.
    pub(super) fn token(&self, claim: &str, of_another: bool) -> Option<String> {
        let state = self.state();
        let mut claims = state.claims.iter();
        let found = claims.find(|(id, it)| (*id != claim) == of_another && it.told.is_some());
        found.and_then(|(_, it)| Some(it.told.as_ref()?.token.clone()))
    }

    /// Of a new execution.
    pub(super) fn new_key(&self, claim: &str) -> String {
        let mut state = self.state();
        state.keys += 1;
        format!("{claim}/{}", state.keys)
    }

    pub(super) fn has_ended_of(&self, claim: &str) -> bool {
        let told = self.known(claim).told;
        told.is_none_or(|told| self.has_ended(&told.sandbox))
    }

    fn has_ended(&self, sandbox: &str) -> bool {
        let id = SandboxId::parse(sandbox);
        id.is_ok_and(|id| self.site.has_ended(id))
    }

    pub(super) fn count(&self, what: &str) {
        *self.state().heard.entry(what.to_owned()).or_default() += 1;
    }

    /// Something that changes things was done.
    fn done(&self, sent: &Sent, what: &str) {
        self.count(what);
        self.world.ensure(!sent.stale, || {
            format!("{what} under a stale epoch: {sent:?}")
        });
        self.world
            .ensure(!sent.was_released || what == "Released", || {
                format!("{what}, of a released claim: {sent:?}")
            });
        let mut state = self.state();
        state.epoch = state.epoch.max(sent.epoch);
    }

    pub fn claimed(&self, sent: &Sent, answer: Result<&api::ClaimResponse, Refused>) {
        let grant = match answer {
            Ok(grant) => grant,
            Err(refused) => return self.refused(sent, "Claim", &refused.reason),
        };
        self.done(sent, "Granted");
        self.world.ensure(!sent.other_content, || {
            format!("granted with other content: {sent:?}")
        });
        let told = Told {
            sandbox: grant.sandbox_id.clone(),
            generation: grant.generation,
            source: grant.source,
            token: grant.access_token.clone(),
        };
        match self.known(&sent.claim).told {
            Some(before) => self.world.ensure(before == told, || {
                format!("{} was told {before:?}, now {told:?}", sent.claim)
            }),
            None => self.acknowledged(sent, told),
        }
    }

    fn acknowledged(&self, sent: &Sent, told: Told) {
        let claim = &sent.claim;
        let sandbox = told.sandbox.clone();
        let (id, of) = (
            SandboxId::parse(&sandbox).unwrap(),
            ClaimId::parse(claim).unwrap(),
        );
        let before = {
            let mut state = self.state();
            state.had_by.insert(sandbox.clone(), claim.clone())
        };
        self.world
            .ensure(before.as_ref().is_none_or(|it| it == claim), || {
                format!("{sandbox} is given to {claim} and was given to {before:?}")
            });
        self.world.ensure(!self.known(claim).barred, || {
            format!("{claim} is taken by a node that is drained")
        });
        let (told_so, is_clone) = (
            told.source == i32::from(api::Source::Cloned),
            self.site.is_clone(id),
        );
        self.world.ensure(!told_so || is_clone, || {
            format!("{claim} is told of a clone, which {id} is not")
        });
        if is_clone {
            self.count("Cloned");
        }
        if let Some(real) = self.site.real(id).filter(|real| real.alive) {
            let held = real.held.as_ref() == Some(claim);
            self.world.ensure(held, || {
                format!(
                    "{claim} is acknowledged, and its guest holds {:?}",
                    real.held
                )
            });
        }
        // On the disk it has none to be in force.
        let runs = self.site.real(id).is_some_and(|real| real.alive);
        let excused = !runs || self.site.has_ended(id) || self.may_be_gone(claim);
        let in_force = self.site.network.paper.in_force(id).map(|it| it.mode);
        self.world.ensure(in_force == sent.due || excused, || {
            format!("{claim} is acknowledged, its policy is {in_force:?}: {sent:?}")
        });
        let durable = self.site.disk.durable();
        let there = durable.claims.iter();
        let there = there.filter(|it| it.id == of && it.sandbox == id).count() > 0;
        // A release may have become durable with the answer.
        let gone = durable.tombstones.iter().any(|(it, _)| *it == of);
        self.world.ensure(there || gone, || {
            format!("{claim} is acknowledged and not durable")
        });
        self.change(claim, |known| known.told = Some(told));
    }

    pub fn renewed(&self, sent: &Sent, answer: &Result<api::RenewResponse, Status>) {
        match answer {
            Ok(renewed) => {
                self.done(sent, "Renewed");
                let until = renewed.expires_at.as_ref().map(millis);
                let overtaken = self.state().undone != sent.undone;
                self.change(&sent.claim, |known| {
                    known.gone_from = match (until, known.gone_from) {
                        (Some(until), Some(at)) if overtaken => Some(until.min(at)),
                        (None, at) if overtaken => at,
                        _ => until,
                    };
                });
            }
            Err(status) => self.refused(sent, "Renew", &reason(status)),
        }
    }

    pub fn released(&self, sent: &Sent, answer: &Result<api::ReleaseResponse, Status>) {
        match answer {
            Ok(_) => {
                self.done(sent, "Released");
                self.change(&sent.claim, |known| known.released = true);
            }
            Err(status) => self.refused(sent, "Release", &reason(status)),
        }
    }

    pub fn slept<T>(&self, sent: &Sent, what: &str, answer: &Result<T, Status>) {
        match answer {
            Ok(_) => self.done(sent, what),
            Err(status) => self.refused(sent, what, &reason(status)),
        }
    }

    pub fn read(&self, sent: &Sent, answer: &Result<api::GetClaimResponse, Status>) {
        match answer {
            Ok(got) => {
                self.count("Got");
                let view = got.claim.as_ref().unwrap();
                self.world.ensure(!sent.was_released, || {
                    format!("a released claim is there: {view:?}")
                });
                if sent.was_told {
                    self.seen(view);
                }
            }
            Err(status) => self.refused(sent, "Get", &reason(status)),
        }
    }

    /// A claim that had been told before Get or List showed it so.
    fn seen(&self, view: &api::Claim) {
        let Some(told) = self.known(&view.claim_id).told else {
            return;
        };
        let same = (&told.sandbox, told.generation) == (&view.sandbox_id, view.generation);
        self.world
            .ensure(same, || format!("told {told:?}, shown {view:?}"));
        match view.state() {
            api::ClaimState::Failed => {
                let ended = self.has_ended(&told.sandbox);
                self.world
                    .ensure(ended, || format!("nothing has ended it: {view:?}"));
            }
            api::ClaimState::Pending | api::ClaimState::Unspecified => {
                self.world
                    .broken(format!("acknowledged, and then this: {view:?}"));
            }
            api::ClaimState::Claimed | api::ClaimState::Unknown | api::ClaimState::Hibernated => {}
        }
    }

    /// Those that must be in a list that is asked for now.
    pub fn listing_sent(&self) -> Vec<String> {
        let state = self.state();
        let told = state.claims.iter().filter(|(_, it)| it.told.is_some());
        told.map(|(id, _)| id.clone()).collect()
    }

    pub fn listed(&self, due: &[String], listed: &[api::Claim]) {
        self.count("Listed");
        let known = listed.iter().filter(|view| due.contains(&view.claim_id));
        known.for_each(|view| self.seen(view));
        for claim in due.iter().filter(|claim| !self.may_be_gone(claim)) {
            let there = listed.iter().any(|view| view.claim_id == **claim);
            self.world.ensure(there, || {
                format!("{claim} was acknowledged and is not listed")
            });
        }
    }
}
