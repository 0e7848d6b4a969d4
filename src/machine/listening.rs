//! Wakes sandboxes of claims that sleep when something comes in for them that their network policy lets in: who connects
//! to a published port, or an answer that somebody inside waits for.
//!
//! ```text
//!  falls asleep ─▶ Listen, every LISTEN_MS ─▶ Heard ─▶ a knock since then? ─▶ Thaw, Restore
//!                     ▲                         │ none
//!                     └─────────────────────────┘
//! ```
//! A knock wakes too many rather than too few: what the sandbox's own TCP has acknowledged nobody sends again. What traffic
//! alone has woken falls asleep again by itself once it does nothing: whoever put it to sleep meant it to sleep.

use super::event::{Effect, ThawCause};
use super::ids::{Now, SandboxId};
use super::limits::{KNOCK_EARLY_MS, LISTEN_MS};
use super::node::Node;
use super::out::Out;
use super::record::Owner;
use super::sandboxes::{Operation, Residency, Sandbox};
use super::timers::Timer;
use std::collections::{BTreeMap, BTreeSet};

/// Who is listened for.
#[derive(Debug, Clone, Default)]
pub(super) struct Listening {
    /// Sandboxes that sleep, or are about to, each with the moment from which a knock counts.
    since: BTreeMap<SandboxId, Now>,
    /// When the next look is due.
    pub(super) next_at: Option<Now>,
    /// A look is out.
    looking: bool,
    /// Awake, and nothing but traffic has woken them.
    drowsy: BTreeSet<SandboxId>,
}

impl Listening {
    /// It falls asleep: what came long before does not wake it.
    fn attend(&mut self, id: SandboxId, now: Now) {
        self.since.insert(id, now);
        self.drowsy.remove(&id);
    }

    /// A caller uses it or wants it awake.
    pub(super) fn wanted_awake(&mut self, id: SandboxId) {
        self.drowsy.remove(&id);
    }

    /// Nothing but traffic has woken it.
    pub(super) fn is_drowsy(&self, id: SandboxId) -> bool {
        self.drowsy.contains(&id)
    }

    /// Somebody is.
    pub(super) fn any_drowsy(&self) -> bool {
        !self.drowsy.is_empty()
    }
}

impl Node {
    /// A claim's sandbox falls asleep; one that has no interface hears nothing.
    pub(super) fn listen_for(&mut self, id: SandboxId, now: Now) {
        let hears = self.sandboxes.get(id).is_some_and(|it| {
            matches!(it.owner, Owner::Claimed(_)) && self.in_force(it).needs_interface()
        });
        if hears {
            self.listening.attend(id, now);
        }
    }

    /// Those that were found asleep: after a start, and whoever was missed.
    pub(super) fn listen_for_all(&mut self, now: Now) {
        let asleep = self.sandboxes.iter().filter(|it| it.residency.is_asleep());
        let new = asleep.filter(|it| !self.listening.since.contains_key(&it.id));
        let new: Vec<_> = new.map(|it| it.id).collect();
        for id in new {
            self.listen_for(id, now);
        }
    }

    /// Sets the timer of the next look, or clears it when there is nobody to listen for.
    pub(super) fn keep_listening(&mut self) {
        let listening = &mut self.listening;
        let wanted =
            self.conditions.may_shift() && !listening.since.is_empty() && !listening.looking;
        let held = &mut listening.next_at;
        let at = wanted.then(|| held.unwrap_or(self.now.plus(LISTEN_MS)));
        self.timers.keep(Timer::Listen, held, at);
    }

    /// Asks for a look.
    pub(super) fn listen(&mut self, out: &mut Out<'_>) {
        self.listening.next_at = None;
        self.listening.looking = true;
        out.push(Effect::Listen);
    }

    /// Who was knocked for, each with how long ago, milliseconds.
    pub(super) fn heard(&mut self, knocks: &[(SandboxId, u64)], out: &mut Out<'_>) {
        self.listening.looking = false;
        let sandboxes = &self.sandboxes;
        self.listening.since.retain(|id, _| {
            sandboxes.get(*id).is_some_and(|it| {
                let asleep = it.residency.is_asleep() || it.operation.is_shift();
                matches!(it.owner, Owner::Claimed(_)) && asleep
            })
        });
        if !self.conditions.may_shift() || self.may_wake().is_err() {
            return;
        }
        let now = out.now();
        for (id, ago_ms) in knocks {
            let since = self.listening.since.get(id);
            let counts = since.is_some_and(|since| now.since(*since) + KNOCK_EARLY_MS >= *ago_ms);
            if counts {
                self.knocked(*id, out);
            }
        }
    }

    /// Those that are gone, or did not wake.
    pub(super) fn forget_drowsy(&mut self) {
        let sandboxes = &self.sandboxes;
        self.listening.drowsy.retain(|id| {
            let awake =
                |it: &Sandbox| it.residency == Residency::Running || it.operation.is_shift();
            sandboxes.get(*id).is_some_and(awake)
        });
    }

    fn knocked(&mut self, id: SandboxId, out: &mut Out<'_>) {
        let Some(sandbox) = self.sandboxes.get(id) else {
            return;
        };
        // While something goes on with it the next look finds the knock again.
        if sandbox.operation != Operation::Idle || !self.is_held(sandbox) {
            return;
        }
        let residency = sandbox.residency;
        match residency {
            Residency::Frozen => self.begin_thaw(id, ThawCause::Traffic, out),
            Residency::OnDisk(_) => self.begin_restore(id, ThawCause::Traffic, out),
            _ => return,
        }
        // If it does not wake, the next knock tries again.
        self.listening.since.insert(id, out.now());
        self.listening.drowsy.insert(id);
    }
}
