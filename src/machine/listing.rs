//! Listings of the runtime: asked for at every reconnection and now and then, judged as a whole.

use super::event::{Effect, ExitCause, Notice, Observed};
use super::ids::{Now, SandboxId};
use super::node::Node;
use super::out::Out;
use super::record::Owner;
use super::recovery::{Seen, Verdict};
use super::sandboxes::Sandbox;
use super::timers::Timer;
use std::collections::{BTreeMap, BTreeSet};

/// The question that is open, if one is.
#[derive(Debug, Clone, Default)]
pub(super) struct Listing {
    /// Questions asked.
    pub(super) round: u64,
    /// While the answer is awaited: what was destroyed meanwhile, and may still be in it.
    open: Option<BTreeSet<SandboxId>>,
    /// When it is asked (again).
    pub(super) next_at: Option<Now>,
}

impl Listing {
    /// A sandbox is verified gone.
    pub(super) fn note_destroyed(&mut self, id: SandboxId) {
        if let Some(destroyed) = &mut self.open {
            destroyed.insert(id);
        }
    }

    /// The answer has come: what was destroyed since the question. `None`: no such question is open.
    fn close(&mut self, round: u64) -> Option<BTreeSet<SandboxId>> {
        match round == self.round {
            true => self.open.take(),
            false => None,
        }
    }
}

impl Node {
    /// containerd is reachable, or not. Events of the time between are lost: a listing makes up for them.
    pub(super) fn runtime_changed(&mut self, available: bool, out: &mut Out<'_>) {
        self.conditions.runtime_available = available;
        if available {
            self.relist(out);
        }
    }

    /// Asks for a listing, and for the next one after a while (also if this one never comes).
    pub(super) fn relist(&mut self, out: &mut Out<'_>) {
        if let Some(at) = self.listing.next_at.take() {
            self.timers.clear(at, Timer::Relist);
        }
        if !self.conditions.may_list() {
            return;
        }
        let next_at = out.now().plus(self.settings.relist_ms);
        self.timers.set(next_at, Timer::Relist);
        self.listing = Listing {
            round: self.listing.round + 1,
            open: Some(BTreeSet::new()),
            next_at: Some(next_at),
        };
        let round = self.listing.round;
        out.push(Effect::List { round });
    }

    /// Judges a listing. The first one ends recovery.
    pub(super) fn listed(&mut self, round: u64, observed: &[Observed], out: &mut Out<'_>) {
        let Some(destroyed) = self.listing.close(round) else {
            return;
        };
        let verdicts = self.verdicts(observed);
        let those = |verdict| {
            let found = verdicts.iter().filter(move |(_, it)| *it == verdict);
            found.map(|(id, _)| *id)
        };
        let recovered = Notice::Recovered {
            adopted: those(Verdict::Adopt).count() + those(Verdict::Prove).count(),
            undone: those(Verdict::Ended).count() + those(Verdict::Undo).count(),
            unknown: those(Verdict::Confirm).count(),
        };
        let frozen = observed.iter().filter(|seen| seen.frozen);
        let frozen: BTreeSet<_> = frozen.map(|seen| seen.id).collect();
        those(Verdict::Adopt).for_each(|id| self.adopt(id, frozen.contains(&id), out));
        those(Verdict::Ended).for_each(|id| self.ended(id, ExitCause::Exited, out));
        those(Verdict::Undo).for_each(|id| self.doom(id, out));
        // Claims first: somebody may be waiting.
        those(Verdict::Confirm).for_each(|id| self.ask(id, out));
        those(Verdict::Prove).for_each(|id| self.ask(id, out));
        let alive = observed.iter().filter(|seen| seen.alive);
        self.shed_remains(&alive.map(|seen| seen.id).collect(), out);
        self.find_orphans(observed, &destroyed, out);
        if std::mem::take(&mut self.conditions.recovering) {
            self.pools_changed = true;
            out.notice(recovered);
        }
        self.listen_for_all(out.now());
    }

    /// Only what was known to run when the listing was asked for can be missing from it.
    fn verdicts(&self, observed: &[Observed]) -> Vec<(SandboxId, Verdict)> {
        let shown = |it: &Observed| match (it.alive, it.frozen) {
            (false, _) => Seen::Dead,
            (true, true) => Seen::Frozen,
            (true, false) => Seen::Running,
        };
        let seen: BTreeMap<_, _> = observed.iter().map(|it| (it.id, shown(it))).collect();
        let judged = |sandbox: &&Sandbox| sandbox.known_since < self.listing.round;
        let verdict = |sandbox: &Sandbox| {
            let seen = seen.get(&sandbox.id).copied().unwrap_or(Seen::Dead);
            Some((sandbox.id, self.verdict(sandbox, seen)?))
        };
        self.sandboxes
            .iter()
            .filter(judged)
            .filter_map(verdict)
            .collect()
    }

    /// A confirmed claim's sandbox is there, or a frozen member. The record follows what the outside shows.
    fn adopt(&mut self, id: SandboxId, frozen: bool, out: &mut Out<'_>) {
        self.found_there(id, frozen, out);
        if frozen {
            out.push(Effect::Reclaim { sandbox: id });
        }
        let owner = self.sandboxes.get(id).map(|sandbox| sandbox.owner);
        let claim = match owner {
            Some(Owner::Claimed(claim)) => self.claims.get(&claim),
            _ => None,
        };
        if let Some(claim) = claim {
            let after = claim.assignment().map_or(out.ticket(), |it| it.ticket);
            out.claim_changed(self.view_of(claim), false, after);
            if frozen {
                self.sinking.fell_asleep(id, out.now());
            }
        }
    }

    /// What is there without a record: ours is destroyed, as its record was deleted or never committed; another data
    /// directory's is left alone and shown.
    fn find_orphans(
        &mut self,
        observed: &[Observed],
        destroyed: &BTreeSet<SandboxId>,
        out: &mut Out<'_>,
    ) {
        let unrecorded = observed.iter().map(|seen| seen.id);
        let unrecorded: BTreeSet<_> = unrecorded
            .filter(|id| self.sandboxes.get(*id).is_none() && !destroyed.contains(id))
            .collect();
        let reaper = &self.reaper;
        self.orphans
            .retain(|id| unrecorded.contains(id) || reaper.has(*id));
        for sandbox in unrecorded {
            let new = self.orphans.insert(sandbox);
            if sandbox.tag() == self.settings.tag {
                self.sequence.skip(sandbox, out);
                if self.reaper.add(sandbox) {
                    out.notice(Notice::OrphanDestroyed { sandbox });
                }
            } else if new {
                out.notice(Notice::OrphanFound { sandbox });
            }
        }
    }
}
