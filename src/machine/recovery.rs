//! After a restart, and at every listing of the runtime: what each sandbox is found to be.
//!
//! [`judge`] is the plan, a pure table. Nothing is destroyed before the first listing has been judged as a whole.
//!
//! | recorded | the runtime shows | then |
//! |---|---|---|
//! | being made (at the crash) | anything | undone: an intent without a result |
//! | member | alive | its guest is asked: holds nothing → adopted; holds a claim → never back to the pool; silent → asked again, given up after [`WITNESS_TRIES`](super::limits::WITNESS_TRIES) (it is nobody's) |
//! | member, frozen | frozen | adopted at once: it is thawed before a guest is told anything, so it was never used |
//! | member no pool wants now, or any while the node is drained | alive | undone |
//! | claimed, on the disk | anything | stays so: what runs or is left outside is shed |
//! | claimed, confirmed | alive | adopted at once, asleep if it is frozen |
//! | claimed, not confirmed | alive | its guest is asked: holds the claim → confirmed; holds nothing → its caller was never told, a retry takes the same sandbox; silent → asked again, for ever |
//! | member or claimed | not alive | ended: the claim fails and stays until it is released, the remains go |
//! | releasing | anything | destroyed |
//! | nothing, our tag | anything | destroyed |
//! | nothing, another tag | anything | left alone, shown as an orphan |

use super::admission::Rules;
use super::claims::{Askers, Assignment, Claim, Stage, Terms, expiry};
use super::conditions::Conditions;
use super::fence::Fencing;
use super::ids::{Now, SandboxId, Ticket};
use super::listening::Listening;
use super::listing::Listing;
use super::node::{Node, Settings};
use super::pools::Pool;
use super::reaper::Reaper;
use super::record::{self, ClaimRecord, Owner, Records, SandboxRecord};
use super::residing::Residing;
use super::sampling::Sampling;
use super::sandboxes::{Operation, Residency, Sandbox, Sandboxes};
use super::sequence::Sequence;
use super::sinking::Sinking;
use super::timers::Timers;
use super::tombstones::Tombstones;
use super::yielding::Yielding;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a listing shows of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Dead,
    Running,
    Frozen,
}

/// What a listing means for a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is what its record says, and runs or is frozen as the listing shows.
    Adopt,
    /// Its guest must tell whether the claim was confirmed.
    Confirm,
    /// Its guest must tell that it was never used.
    Prove,
    /// It has ended.
    Ended,
    /// It must go: nobody has it.
    Undo,
}

/// The table. `certain`: the journal knows that the guest confirmed the claim, or that the pool wants such members.
/// `None`: the listing means nothing for it.
pub(super) fn judge(sandbox: &Sandbox, certain: bool, seen: Seen) -> Option<Verdict> {
    use Residency::Unknown;
    let frozen = seen == Seen::Frozen;
    match (sandbox.owner, sandbox.residency, sandbox.operation) {
        (Owner::Releasing, _, _) | (_, _, Operation::Create) => None,
        (_, Residency::Creating, _) => Some(Verdict::Undo),
        // Its image is what it is; see `sinking`.
        (_, Residency::OnDisk(_), _) => None,
        (_, _, _) if seen == Seen::Dead => Some(Verdict::Ended),
        (Owner::Pool, Unknown { .. }, Operation::Idle) if !certain => Some(Verdict::Undo),
        (Owner::Pool, Unknown { slept: true }, Operation::Idle) if frozen => Some(Verdict::Adopt),
        (Owner::Claimed(_), Unknown { .. }, Operation::Idle) if certain => Some(Verdict::Adopt),
        (Owner::Claimed(_), Unknown { .. }, Operation::Idle) => Some(Verdict::Confirm),
        (Owner::Pool, Unknown { .. }, Operation::Idle) => Some(Verdict::Prove),
        (_, _, _) => None,
    }
}

impl Node {
    /// The machine as it stands after a restart: it waits for the runtime. `records` is all the journal holds.
    #[must_use]
    pub fn recover(settings: Settings, records: Records, now: Now) -> Self {
        let pools = records.pools.pools.into_iter();
        let mut pools: BTreeMap<_, _> = pools
            .map(|spec| (spec.name.clone(), Pool::declared(spec)))
            .collect();
        for (name, verdict) in records.pools.verdicts {
            if let Some(pool) = pools.get_mut(&name) {
                pool.verdict = Some(verdict);
            }
        }
        let made_here = records.sandboxes.iter().map(|record| record.id);
        let made_here = made_here.filter(|id| id.tag() == settings.tag);
        let used = made_here.map(|id| id.sequence() + 1).max().unwrap_or(0);
        let sequence = Sequence::starting_at(settings.tag, records.next_sequence.max(used));
        let mut sandboxes = Sandboxes::default();
        let mut reaper = Reaper::default();
        for record in records.sandboxes {
            if record.owner == Owner::Releasing {
                reaper.add(record.id);
            }
            sandboxes.insert(recovered_sandbox(record, &pools));
        }
        let claims = records.claims.into_iter();
        let claims: BTreeMap<_, _> = claims
            .map(|record| (record.id, recovered_claim(record, &sandboxes, now)))
            .collect();
        let mut node = Self {
            settings,
            rules: Rules::default(),
            now,
            conditions: Conditions::at_start(records.cordoned),
            fencing: Fencing::recovered(records.fence),
            sequence,
            pools_generation: records.pools.generation,
            pools,
            yielding: Yielding::at_start(),
            last_filled: None,
            sandboxes,
            claims,
            arrivals: 0,
            tombstones: Tombstones::recovered(&records.tombstones),
            reaper,
            orphans: BTreeSet::new(),
            listing: Listing::default(),
            residing: Residing::default(),
            sampling: Sampling::default(),
            listening: Listening::default(),
            sinking: Sinking::default(),
            drain: None,
            drains: records.drains,
            classes: None,
            timers: Timers::default(),
            pools_changed: false,
        };
        for id in node.claims.keys().copied().collect::<Vec<_>>() {
            node.start_expiry(id);
        }
        node.resume_drain();
        node
    }

    /// What a listing means for a sandbox of this node.
    pub(super) fn verdict(&self, sandbox: &Sandbox, seen: Seen) -> Option<Verdict> {
        let certain = match sandbox.owner {
            Owner::Claimed(claim) => self
                .claims
                .get(&claim)
                .is_some_and(|claim| matches!(claim.stage, Stage::Held { .. })),
            _ => {
                let pool = self.pools.get(&sandbox.pool);
                !self.conditions.draining && pool.is_some_and(|pool| pool.keeps(sandbox.generation))
            }
        };
        judge(sandbox, certain, seen)
    }
}

fn recovered_sandbox(
    record: SandboxRecord,
    pools: &BTreeMap<super::ids::PoolName, Pool>,
) -> Sandbox {
    let pool = pools.get(&record.pool);
    let pool = pool.filter(|pool| pool.spec.generation == record.generation);
    Sandbox {
        id: record.id,
        template: pool.map(|pool| pool.template.clone()),
        network: Arc::new(record.network),
        pool: record.pool,
        generation: record.generation,
        created_at: record.created_at,
        owner: record.owner,
        residency: match record.residency {
            record::Residency::Creating => Residency::Creating,
            record::Residency::Running => Residency::Unknown { slept: false },
            record::Residency::Frozen => Residency::Unknown { slept: true },
            record::Residency::OnDisk(image) => Residency::OnDisk(image),
        },
        operation: match record.owner {
            Owner::Releasing => Operation::Destroy,
            _ => Operation::Idle,
        },
        known_since: 0,
        cloned: false,
    }
}

/// A claim that is not confirmed may have been acknowledged at any time before now: its time to live counts anew.
fn recovered_claim(record: ClaimRecord, sandboxes: &Sandboxes, now: Now) -> Claim {
    let ttl_ms = record
        .expires_at
        .map_or(0, |at| at.since(record.claimed_at));
    // Only a confirmed claim's sandbox goes to the disk.
    let on_disk = sandboxes.get(record.sandbox);
    let on_disk = on_disk.is_some_and(|it| matches!(it.residency, Residency::OnDisk(_)));
    let confirmed = record.confirmed || on_disk;
    let unconfirmed = !confirmed && record.failed.is_none();
    let assignment = Assignment {
        sandbox: record.sandbox,
        generation: record.generation,
        source: record.source,
        claimed_at: record.claimed_at,
        expires_at: match unconfirmed {
            true => expiry(ttl_ms, now),
            false => record.expires_at,
        },
        ticket: Ticket(0),
        first: record.first.unwrap_or(record.sandbox),
        cold_starts: record.cold_starts,
    };
    let backed = is_backed(record.id, record.sandbox, sandboxes);
    let stage = match (record.failed, backed, confirmed) {
        (Some(reason), _, _) => Stage::Failed { assignment, reason },
        (None, true, true) => Stage::Held { assignment },
        (None, true, false) => Stage::Unknown {
            assignment,
            askers: Askers::default(),
        },
        // No commit of hearth's leaves a claim like this; a damaged journal must not make it look alive.
        (None, false, _) => Stage::Failed {
            assignment,
            reason: "SANDBOX_EXITED".to_owned(),
        },
    };
    Claim {
        terms: Terms {
            id: record.id,
            pool: record.pool,
            holder: record.holder,
            content: record.content,
            ttl_ms,
            by: "".into(),
            network: record.network.map(Arc::new),
            on_data_loss: record.on_data_loss,
        },
        stage,
    }
}

fn is_backed(claim: super::ids::ClaimId, sandbox: SandboxId, sandboxes: &Sandboxes) -> bool {
    sandboxes.get(sandbox).is_some_and(|it| {
        let there = matches!(
            it.residency,
            Residency::Unknown { .. } | Residency::OnDisk(_)
        );
        it.owner == Owner::Claimed(claim) && there
    })
}
