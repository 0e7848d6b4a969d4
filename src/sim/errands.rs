//! What the first allocator does besides its places: it declares the pools, and at the end it looks whether a full pool
//! serves.

use super::book::{Refused, reason};
use super::callers::{Callers, POOLS, duration, name};
use super::guest::CLAIM;
use super::hearth::Hearth;
use super::runtime::{BAD, HANDLER};
use crate::api;
use crate::api::claims_server::Claims;
use crate::api::node_server::Node;
use crate::api::pools_server::Pools;
use crate::rpc::unguarded::By;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Response, Status};

/// The allocator.
const FIRST: usize = 0;
/// What templates are made of. The last can't be made.
const IMAGES: [&str; 4] = ["image:1", "image:2", "image:3", BAD];
const MODES: [api::DrainMode; 3] = [
    api::DrainMode::Wait,
    api::DrainMode::Hibernate,
    api::DrainMode::Evict,
];
/// A drain comes to its end, once all is well, within this.
const EMPTY: Duration = Duration::from_secs(600);
/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A set of pools.
#[derive(Debug, Clone)]
pub struct Declared {
    pub generation: u64,
    images: [&'static str; 2],
    recreate: bool,
}

impl Declared {
    pub fn first() -> Self {
        Self {
            generation: 1,
            images: ["image:1"; 2],
            recreate: false,
        }
    }

    fn pools(&self) -> Vec<api::Pool> {
        let strategy = match self.recreate {
            true => api::UpdateStrategy::Recreate,
            false => api::UpdateStrategy::OnReplenish,
        };
        let pool = |at: usize, min_warm, max_total, running| api::Pool {
            name: POOLS[at].to_owned(),
            generation: self.generation,
            template: Some(api::Template {
                image: self.images[at].to_owned(),
                runtime_handler: HANDLER.to_owned(),
                // The first pool's sandboxes have an interface, and reach nothing until a claim brings its policy.
                network_policy: (at == 0).then(|| api::NetworkPolicy {
                    mode: api::NetworkMode::Allowlist.into(),
                    ..api::NetworkPolicy::default()
                }),
                ..api::Template::default()
            }),
            min_warm,
            max_total,
            update_strategy: strategy.into(),
            running,
            ..api::Pool::default()
        };
        vec![pool(0, 2, 3, None), pool(1, 1, 4, Some(0))]
    }
}

impl Callers {
    /// Waits for the answer; who is fenced takes over. `None`: it is to be asked again.
    async fn insist<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Option<Result<T, Status>> {
        let answer = timeout(PATIENCE, call).await.ok()?;
        let answer = answer.map(Response::into_inner);
        let short = match &answer {
            Ok(_) => "ok".to_owned(),
            Err(status) => reason(status),
        };
        self.site.world.note(format!("{what}: {short}"));
        if let Err(status) = &answer
            && short.starts_with("EPOCH_")
        {
            self.take_over(FIRST, &Refused::from(status)).await;
            return None;
        }
        Some(answer)
    }

    /// As an operator: declares pools, drains the node, fills it again.
    pub async fn operate(self: Arc<Self>, hearth: Arc<Hearth>) {
        let world = &self.site.world;
        self.declare(&hearth).await;
        while !self.is_finishing() {
            world.pause("operator", 1_000..15_000).await;
            match world.below(4) {
                0 if !self.is_finishing() => {
                    self.change(|set| {
                        set.generation += 1;
                        set.images = [IMAGES[world.index(4)], IMAGES[world.index(4)]];
                        set.recreate = world.once_in(2);
                    });
                    self.declare(&hearth).await;
                }
                1 => {
                    let _alone = self.draining.lock().await;
                    if !self.is_finishing() {
                        self.drain(&hearth).await;
                        world.pause("drained", 500..8_000).await;
                        self.undrain(&hearth).await;
                    }
                }
                _ => {}
            }
        }
    }

    /// The node takes claims, its pools are good, its disk has room.
    pub async fn settle(&self, hearth: &Hearth) {
        let _alone = self.draining.lock().await;
        self.change(|set| {
            set.generation += 1;
            set.images = [IMAGES[0]; 2];
        });
        self.declare(hearth).await;
        self.undrain(hearth).await;
        hearth.reserve(false).await;
    }

    /// The set that stands, again and again until it does.
    async fn declare(&self, hearth: &Hearth) {
        loop {
            let set = self.declared();
            let message = api::SetPoolsRequest {
                generation: set.generation,
                epoch: self.epoch(FIRST),
                pools: set.pools(),
            };
            let request = hearth.services.asked(By::Allocator(&name(FIRST)), message);
            let call = hearth.services.pools.set_pools(request);
            let what = format!("SetPools {set:?}");
            match self.insist(&what, call).await {
                Some(Ok(_)) => return self.stand(),
                // Another has been declared since.
                Some(Err(status)) if reason(&status) == "GENERATION_STALE" => {}
                Some(Err(status)) if status.code() != Code::Unavailable => {
                    let what = format!("{what} is refused: {status:?}");
                    self.site.world.broken(what);
                }
                _ => {}
            }
            self.site.world.pause("declare", 50..500).await;
        }
    }

    /// The node is drained, and maybe looked at until it is empty.
    async fn drain(&self, hearth: &Hearth) {
        let world = &self.site.world;
        let mode = MODES[world.index(MODES.len())];
        let deadline_ms = world.below(5_000);
        let message = api::DrainRequest {
            mode: mode.into(),
            deadline: Some(duration(deadline_ms)),
        };
        let evicts = mode == api::DrainMode::Evict;
        self.book.drain_sent(evicts.then_some(deadline_ms));
        let request = hearth.services.asked(By::Admin, message);
        let drained = self.insist("Drain", hearth.services.node.drain(request));
        let Some(Ok(stream)) = drained.await else {
            return;
        };
        // It is durable, whether or not anybody hears.
        self.book.drained();
        let looks = [100, 9_000][world.index(2)];
        let empty = self.until_empty(stream);
        if let Ok(what) = timeout(Duration::from_millis(looks), empty).await {
            world.note(format!("Drain {mode:?}: {what:?}"));
        }
    }

    /// The last word of a drain's stream. One that says that nothing runs is right.
    async fn until_empty(
        &self,
        mut stream: impl Stream<Item = Result<api::DrainResponse, Status>> + Unpin,
    ) -> Option<api::DrainState> {
        let mut last = None;
        while let Some(Ok(told)) = stream.next().await {
            let status = told.status.unwrap();
            let sleeps = status.mode() == api::DrainMode::Hibernate;
            last = Some(status.state());
            if status.state() == api::DrainState::Drained {
                self.book.count("Empty");
                let awake = self.site.held_by_somebody(sleeps);
                self.site.world.ensure(awake.is_empty(), || {
                    format!(
                        "the node is drained ({:?}), and these run: {awake:?}",
                        status.mode()
                    )
                });
            }
        }
        last
    }

    /// All is well: the node is emptied, whoever has what.
    pub async fn empty(&self, hearth: &Hearth) {
        let _alone = self.draining.lock().await;
        let world = &self.site.world;
        let mode = MODES[world.index(MODES.len())];
        let deadline_ms = world.below(5_000);
        let evicts = mode == api::DrainMode::Evict;
        let ended = async {
            loop {
                let message = api::DrainRequest {
                    mode: mode.into(),
                    deadline: Some(duration(deadline_ms)),
                };
                self.book.drain_sent(evicts.then_some(deadline_ms));
                let request = hearth.services.asked(By::Admin, message);
                let drained = self.insist("Drain", hearth.services.node.drain(request));
                if let Some(Ok(stream)) = drained.await {
                    self.book.drained();
                    return self.until_empty(stream).await;
                }
            }
        };
        let ended = timeout(EMPTY, ended).await;
        let wanted = match mode {
            api::DrainMode::Wait => [api::DrainState::Drained, api::DrainState::Overdue],
            _ => [api::DrainState::Drained; 2],
        };
        let right = matches!(&ended, Ok(Some(state)) if wanted.contains(state));
        world.ensure(right, || format!("Drain {mode:?} comes to {ended:?}"));
    }

    async fn undrain(&self, hearth: &Hearth) {
        loop {
            self.book.undrain_sent();
            let message = api::UndrainRequest {};
            let request = hearth.services.asked(By::Admin, message);
            let call = hearth.services.node.undrain(request);
            if let Some(Ok(_)) = self.insist("Undrain", call).await {
                return self.book.undrained();
            }
            self.site.world.pause("undrain", 50..500).await;
        }
    }

    /// A claim that nobody has had is granted from the pool, which is full, and released.
    pub async fn serve_once(&self, hearth: &Hearth, pool: &str) {
        let number = POOLS.iter().position(|it| *it == pool).unwrap_or_default();
        let claim_id = format!("00000000-0000-4000-8000-ffff0000000{number}");
        let (world, services) = (&self.site.world, &hearth.services);
        loop {
            let message = api::ClaimRequest {
                claim_id: claim_id.clone(),
                pool: pool.to_owned(),
                epoch: self.epoch(FIRST),
                personalization: Some(api::Personalization {
                    env: BTreeMap::from([(CLAIM.to_owned(), claim_id.clone())]),
                    ..api::Personalization::default()
                }),
                ..api::ClaimRequest::default()
            };
            let sent = self.book.claim_sent(&message, 0, false);
            let call = services
                .claims
                .claim(services.asked(By::Allocator(&name(FIRST)), message));
            let Some(answer) = self.insist("the last Claim", call).await else {
                continue;
            };
            self.book
                .claimed(&sent, answer.as_ref().map_err(Refused::from));
            if let Err(status) = &answer {
                return world.broken(format!("a full pool does not serve: {status:?}"));
            }
            break;
        }
        loop {
            let epoch = self.epoch(FIRST);
            let message = api::ReleaseRequest {
                claim_id: claim_id.clone(),
                epoch,
            };
            let sent = self.book.release_sent(&claim_id, epoch);
            let call = services
                .claims
                .release(services.asked(By::Allocator(&name(FIRST)), message));
            if let Some(answer) = self.insist("the last Release", call).await {
                self.book.released(&sent, &answer);
                return world.ensure(answer.is_ok(), || format!("no release: {answer:?}"));
            }
        }
    }
}
