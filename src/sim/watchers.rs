//! A watcher of claims: it loses connections, reads slowly, and goes on after the last token it has seen, also at the next
//! hearthd. What it knows is what there is: it misses no change, and is told of none that was not.
//!
//! One in each history: tokio wakes those that watch the same thing in an order of its own.

use super::book::millis;
use super::callers::{Callers, POOLS};
use super::hearth::Hearth;
use super::world::World;
use crate::api::claims_server::Claims;
use crate::api::{self, ChangeKind, ClaimState};
use crate::machine::ids::ClaimId;
use crate::rpc::unguarded::By;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;

/// What is watched: all pools, or one.
const OF: [&str; 2] = ["", POOLS[0]];
/// What is on its way to a watcher that reads has come after this long.
const ON_ITS_WAY: Duration = Duration::from_millis(50);
/// Once all is well it is up to date within this.
const UP_TO_DATE: Duration = Duration::from_secs(60);
/// A token of nobody's.
const JUNK: &str = "7.7";

#[derive(Default)]
struct Known {
    claims: BTreeMap<String, api::Claim>,
    /// Of a snapshot that is not complete.
    shown: BTreeMap<String, api::Claim>,
    /// Were there and are gone, for good.
    gone: BTreeSet<String>,
    token: String,
    /// Number of the hearthd that gave it.
    token_of: u64,
    /// It has seen the whole of a snapshot, and reads on: it knows all but what is on its way.
    reads: bool,
    /// Rises with everything that happens.
    stamp: u64,
}

/// See the module.
pub struct Watcher {
    of: &'static str,
    known: Mutex<Known>,
}

impl Watcher {
    pub fn new(world: &World) -> Self {
        Self {
            of: OF[world.index(OF.len())],
            known: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    fn reads(&self, reads: bool) {
        let mut known = self.known();
        known.reads = reads;
        known.stamp += 1;
    }
}

/// Its caller may have been told. Before, also where a restart does not know, a claim may be dropped and asked for again.
fn is_settled(claim: &api::Claim) -> bool {
    let settled = [
        ClaimState::Claimed,
        ClaimState::Hibernated,
        ClaimState::Failed,
    ];
    settled.contains(&claim.state())
}

impl Callers {
    /// The watcher, as long as hearthd lives.
    pub async fn watch(self: Arc<Self>, hearth: Arc<Hearth>) {
        loop {
            self.follow(&hearth).await;
            self.watcher.reads(false);
            self.world.pause("watcher", 20..2_000).await;
        }
    }

    /// One connection.
    async fn follow(&self, hearth: &Hearth) {
        let (world, watcher) = (&self.world, &self.watcher);
        let (mut token, own) = {
            let known = watcher.known();
            let own = known.token_of == hearth.number && !known.token.is_empty();
            (known.token.clone(), own)
        };
        let replaced = world.once_in(6).then(|| [JUNK, ""][world.index(2)]);
        let goes_on = own && replaced.is_none();
        token = replaced.map_or(token, str::to_owned);
        let due = self.book.listing_sent();
        let message = api::WatchClaimsRequest {
            pool: self.watcher.of.to_owned(),
            resume_token: token,
        };
        let request = hearth.services.asked(By::Allocator("watcher"), message);
        let Ok(stream) = hearth.services.claims.watch(request).await else {
            return;
        };
        world.note(format!("watcher goes on: {goes_on}"));
        watcher.known().shown.clear();
        let mut stream = stream.into_inner();
        let most = [60_000, 3_000][usize::from(!world.is_healed())];
        let mut synced = false;
        let reads = async {
            while let Some(Ok(item)) = stream.next().await {
                if item.kind() == ChangeKind::Synced {
                    synced = true;
                    world.ensure(item.resumed == goes_on, || {
                        format!("watcher: goes on {goes_on}, was told {item:?}")
                    });
                    if !item.resumed {
                        self.snapshot_is_whole(&due);
                    }
                }
                self.heard(item, hearth.number);
                if !world.is_healed() && world.once_in(12) {
                    watcher.reads(false);
                    world.pause("slow watcher", 10..2_000).await;
                    watcher.reads(synced);
                }
            }
        };
        let _lost = timeout(Duration::from_millis(10 + world.below(most)), reads).await;
    }

    /// Every claim that was acknowledged before the watch began, and that nobody has let go, was shown.
    fn snapshot_is_whole(&self, due: &[String]) {
        let shown = self.watcher.known().shown.clone();
        for claim in due {
            let there = shown.contains_key(claim) || self.book.may_be_gone(claim);
            let other = !self.watcher.of.is_empty() && self.book.pool_of(claim) != self.watcher.of;
            self.world.ensure(there || other, || {
                format!("watcher: {claim} was acknowledged and is not in the snapshot")
            });
        }
    }

    fn heard(&self, item: api::WatchClaimsResponse, life: u64) {
        let (world, kind) = (&self.world, item.kind());
        let mut known = self.watcher.known();
        let known = &mut *known;
        known.stamp += 1;
        let partial = kind == ChangeKind::Snapshot;
        world.ensure(item.resume_token.is_empty() == partial, || {
            format!("watcher: what token is this: {item:?}")
        });
        if !partial {
            (known.token, known.token_of) = (item.resume_token, life);
        }
        let Some(claim) = item.claim else {
            if !item.resumed {
                known.claims = std::mem::take(&mut known.shown);
            }
            known.reads = true;
            world.note(format!("watcher knows {}", known.claims.len()));
            return;
        };
        let id = claim.claim_id.clone();
        let short = (claim.state(), claim.expires_at.as_ref().map(millis));
        world.note(format!("watcher: {kind:?} {id} {short:?}"));
        self.book.count(&format!("{kind:?}"));
        world.ensure(
            self.watcher.of.is_empty() || self.watcher.of == claim.pool,
            || format!("watcher did not ask for this: {claim:?}"),
        );
        world.ensure(!known.gone.contains(&id), || {
            format!("watcher: it was gone: {claim:?}")
        });
        let before = known.claims.get(&id);
        let was_there = before.is_some_and(is_settled);
        let pending = claim.state() == ClaimState::Pending;
        world.ensure(!was_there || !pending, || {
            format!("watcher: it was {before:?}, and is {claim:?}")
        });
        if kind == ChangeKind::Removed {
            world.ensure(before.is_some(), || {
                format!("watcher: it was never there: {claim:?}")
            });
            known.claims.remove(&id);
            if was_there {
                known.gone.insert(id.clone());
            }
        }
        if was_there || (kind != ChangeKind::Removed && is_settled(&claim)) {
            let there = self.is_durable(&id);
            let told = (kind == ChangeKind::Removed) != there || self.is_spent(&id);
            world.ensure(told, || {
                format!("watcher is told {kind:?} of {id}, which is durable: {there}")
            });
        }
        match kind {
            ChangeKind::Snapshot => drop(known.shown.insert(id, claim)),
            ChangeKind::Upserted => drop(known.claims.insert(id, claim)),
            _ => {}
        }
    }

    fn is_durable(&self, claim: &str) -> bool {
        let id = ClaimId::parse(claim).unwrap();
        let durable = self.site.disk.durable();
        durable.claims.iter().any(|it| it.id == id)
    }

    fn is_spent(&self, claim: &str) -> bool {
        let id = ClaimId::parse(claim).unwrap();
        let durable = self.site.disk.durable();
        durable.tombstones.iter().any(|(it, _)| *it == id)
    }

    /// What a watcher knows against a list of the same moment.
    pub(super) async fn compare(&self, hearth: &Hearth) {
        let watcher = &self.watcher;
        let stamp = watcher.known().stamp;
        let message = api::ListClaimsRequest {
            pool: self.watcher.of.to_owned(),
            ..api::ListClaimsRequest::default()
        };
        let request = hearth.services.asked(By::Allocator("reader"), message);
        let asked = timeout(UP_TO_DATE, hearth.services.claims.list(request));
        let Ok(Ok(listed)) = asked.await else {
            return;
        };
        sleep(ON_ITS_WAY).await;
        let known = watcher.known();
        // Nothing has come since before the list was asked for.
        if !known.reads || known.stamp != stamp {
            return;
        }
        self.book.count("Compared");
        let listed = listed.into_inner().claims.into_iter();
        let listed: BTreeMap<_, _> = listed.map(|it| (it.claim_id.clone(), it)).collect();
        self.world.ensure(listed == known.claims, || {
            format!("watcher knows {:?}, there is {listed:?}", known.claims)
        });
    }

    /// All is well, and there is no claim: the watcher comes to know it.
    pub async fn is_up_to_date(&self) {
        let stale = || self.watcher.known().claims.clone();
        let all = async {
            while !stale().is_empty() {
                sleep(ON_ITS_WAY).await;
            }
        };
        if timeout(UP_TO_DATE, all).await.is_err() {
            self.world
                .broken(format!("the watcher still knows {:?}", stale()));
        }
    }
}
