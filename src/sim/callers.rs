//! Two allocators. Each has a few places for claims; what is in them is durable on the allocator's side, so that it goes
//! on after every lost answer and every death of hearthd, with the same claim ids.

use super::book::{Book, Refused, reason};
use super::errands::Declared;
use super::guest::CLAIM;
use super::hearth::Hearth;
use super::site::Site;
use super::watchers::Watcher;
use super::world::{Fate, World};
use crate::api::{self, NetworkMode, OnEmpty};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tonic::{Response, Status};

/// Places of both allocators together.
pub const PLACES: usize = 6;
/// The pools.
pub const POOLS: [&str; 2] = ["busy", "calm"];
/// How long anybody waits once all is well.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Idle,
    /// A claim was asked for, maybe.
    Asking,
    /// It was granted.
    Held,
    /// It is to be released.
    Leaving,
    /// The release was answered.
    Left,
}

#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) allocator: usize,
    stage: Stage,
    /// Claims it has had.
    lives: u64,
    pub(super) asked: api::ClaimRequest,
    pub(super) ttl_ms: u64,
}

impl Place {
    pub(super) fn is_held(&self) -> bool {
        self.stage == Stage::Held
    }
}

/// See the module.
pub struct Callers {
    pub site: Arc<Site>,
    pub book: Book,
    pub watcher: Watcher,
    /// Held by whoever drains the node, until it is undone.
    pub(super) draining: tokio::sync::Mutex<()>,
    pub(super) world: Arc<World>,
    places: Mutex<Vec<Place>>,
    epochs: Mutex<[u64; 2]>,
    finishing: AtomicBool,
    /// The pools that are to stand.
    set: Mutex<Declared>,
    /// They do.
    standing: AtomicBool,
}

/// What a caller heard; `None`: nothing.
pub(super) type Heard<T> = Option<Result<T, Status>>;

pub(super) fn duration(millis: u64) -> prost_types::Duration {
    Duration::from_millis(millis).try_into().unwrap()
}

pub(super) fn name(allocator: usize) -> String {
    format!("allocator-{allocator}")
}

impl Callers {
    pub fn new(site: &Arc<Site>) -> Arc<Self> {
        let place = |number| Place {
            allocator: number % 2,
            stage: Stage::Idle,
            lives: 0,
            asked: api::ClaimRequest::default(),
            ttl_ms: 0,
        };
        Arc::new(Self {
            site: Arc::clone(site),
            book: Book::new(site),
            watcher: Watcher::new(&site.world),
            draining: tokio::sync::Mutex::default(),
            world: Arc::clone(&site.world),
            places: Mutex::new((0..PLACES).map(place).collect()),
            epochs: Mutex::new([1, 2]),
            finishing: AtomicBool::new(false),
            set: Mutex::new(Declared::first()),
            standing: AtomicBool::new(false),
        })
    }

    /// Claims that are under way come to their ends, and no new ones begin.
    pub fn finish(&self) {
        self.finishing.store(true, Ordering::SeqCst);
    }

    pub(super) fn declared(&self) -> Declared {
        self.set.lock().unwrap().clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Declared)) {
        change(&mut self.set.lock().unwrap());
    }

    /// The pools stand: from now on claims are asked for.
    pub fn stand(&self) {
        self.standing.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_finishing(&self) -> bool {
        self.finishing.load(Ordering::SeqCst)
    }

    pub fn are_done(&self) -> bool {
        let places = self.places.lock().unwrap();
        places.iter().all(|place| place.stage == Stage::Idle)
    }

    /// What is in the places, for a failure.
    pub fn told(&self) -> String {
        format!("{:?}", self.places.lock().unwrap())
    }

    fn place(&self, number: usize) -> Place {
        self.places.lock().unwrap()[number].clone()
    }

    fn set(&self, number: usize, change: impl FnOnce(&mut Place)) {
        change(&mut self.places.lock().unwrap()[number]);
    }

    pub(super) fn go(&self, number: usize, stage: Stage) {
        self.set(number, |place| place.stage = stage);
    }

    /// The same of one that is asked for under this id, by whoever answers first.
    pub(super) fn go_on(&self, number: usize, claim_id: &str, stage: Stage) {
        self.set(number, |place| {
            if place.stage == Stage::Asking && place.asked.claim_id == claim_id {
                place.stage = stage;
            }
        });
    }

    /// This allocator's places that ask for a claim, or have one.
    pub(super) fn asking_or_held(&self, allocator: usize) -> Vec<(usize, Place)> {
        let places = self.places.lock().unwrap();
        let all = places.iter().cloned().enumerate();
        let stages = [Stage::Asking, Stage::Held];
        all.filter(|(_, it)| it.allocator == allocator && stages.contains(&it.stage))
            .collect()
    }

    pub(super) fn epoch(&self, allocator: usize) -> u64 {
        self.epochs.lock().unwrap()[allocator]
    }

    /// One place, as long as hearthd lives.
    pub async fn live(self: Arc<Self>, number: usize, hearth: Arc<Hearth>) {
        loop {
            let most = [1500, 400][usize::from(self.is_finishing())];
            self.world.pause("place", 5..most).await;
            if self.is_finishing() && self.place(number).stage == Stage::Idle {
                return;
            }
            self.turn(number, &hearth).await;
            if self.world.once_in(6) {
                hearth.look(&self.site).await;
            }
        }
    }

    async fn turn(&self, number: usize, hearth: &Hearth) {
        let place = self.place(number);
        let finishing = self.is_finishing();
        match place.stage {
            Stage::Idle if !self.standing.load(Ordering::SeqCst) => {}
            Stage::Idle => self.begin(number),
            Stage::Asking if !finishing && self.world.once_in(5) => {
                self.doubt(number, &place, hearth).await;
            }
            Stage::Asking if self.world.once_in(4) => {
                self.ask_together(place.allocator, hearth).await;
            }
            Stage::Asking => self.ask(number, &place, hearth).await,
            Stage::Held if finishing => self.go(number, Stage::Leaving),
            Stage::Held => self.hold(number, &place, hearth).await,
            Stage::Leaving => self.release(number, &place, hearth).await,
            Stage::Left => self.look_back(number, &place, hearth).await,
        }
    }

    /// A new claim.
    fn begin(&self, number: usize) {
        let world = &self.world;
        let pool = POOLS[world.index(2)];
        let ttl_ms = [0, 0, 4_000, 20_000][world.index(4)];
        let on_empty = [OnEmpty::Fail, OnEmpty::Wait, OnEmpty::Cold][world.index(3)];
        // The other pool's sandboxes have no interface.
        let policies = [None, Some(NetworkMode::Internet), Some(NetworkMode::None)];
        let policy = policies[world.index(3)].filter(|_| pool == POOLS[0]);
        let wait = (on_empty == OnEmpty::Wait).then(|| duration(500 + world.below(8_000)));
        self.set(number, |place| {
            place.lives += 1;
            let (number, life) = (number as u64 + 1, place.lives);
            let claim_id = format!("00000000-0000-4000-8000-{number:04x}{life:08x}");
            place.ttl_ms = ttl_ms;
            place.asked = api::ClaimRequest {
                pool: pool.to_owned(),
                ttl: (ttl_ms > 0).then(|| duration(ttl_ms)),
                personalization: Some(api::Personalization {
                    env: BTreeMap::from([(CLAIM.to_owned(), claim_id.clone())]),
                    network_policy: policy.map(|mode| api::NetworkPolicy {
                        mode: mode.into(),
                        ..api::NetworkPolicy::default()
                    }),
                    ..api::Personalization::default()
                }),
                on_empty: on_empty.into(),
                wait_timeout: wait,
                claim_id,
                ..api::ClaimRequest::default()
            };
            place.stage = Stage::Asking;
        });
    }

    /// How long the caller of one call waits.
    fn patience(&self) -> Duration {
        match self.is_finishing() {
            true => PATIENCE,
            false => Duration::from_millis(
                [300, 9_000][self.world.index(2)] * (1 + self.world.below(10)) / 10,
            ),
        }
    }

    /// One call: it may be given up, its answer may be late or lost. `judge` sees every answer that leaves hearthd.
    pub(super) async fn send<T>(
        &self,
        what: String,
        call: impl Future<Output = Result<Response<T>, Status>>,
        judge: impl FnOnce(&Result<T, Status>),
    ) -> Heard<T> {
        let fate = self.world.fate();
        self.world.note(format!("{what} ?"));
        self.world.pause("request", 0..6).await;
        let Ok(answer) = timeout(self.patience(), call).await else {
            self.world.note(format!("{what}: given up"));
            return None;
        };
        let answer = answer.map(Response::into_inner);
        let short = match &answer {
            Ok(_) => "ok".to_owned(),
            Err(status) => reason(status),
        };
        self.world.note(format!("{what}: {short}"));
        judge(&answer);
        self.world.point("answered").await;
        match fate {
            Fate::Well => Some(answer),
            Fate::After => {
                self.world.pause("late answer", 200..3_000).await;
                Some(answer)
            }
            Fate::Before | Fate::Hang => {
                self.world.note(format!("{what}: its answer is lost"));
                None
            }
        }
    }

    /// Reacts to what ends a claim, or fences its allocator.
    pub(super) async fn heed<T>(&self, number: usize, allocator: usize, heard: &Heard<T>) {
        let Some(Err(status)) = heard else {
            return;
        };
        let refused = Refused::from(status);
        if refused.reason.starts_with("EPOCH_") {
            self.take_over(allocator, &refused).await;
        }
        if let Some(stage) = refused.ends() {
            self.go(number, stage);
        }
    }

    /// The other allocator is at work; after a while this one takes over.
    pub(super) async fn take_over(&self, allocator: usize, refused: &Refused) {
        if !self.is_finishing() {
            self.world.pause("standby", 0..2_500).await;
        }
        let mut epochs = self.epochs.lock().unwrap();
        epochs[allocator] = epochs[allocator].max(refused.current + 1);
    }

    async fn ask(&self, number: usize, place: &Place, hearth: &Hearth) {
        let heard = self.claim(place, false, hearth).await;
        match heard {
            Some(Ok(_)) => self.go(number, Stage::Held),
            None if !self.is_finishing() && self.world.once_in(2) => {
                self.doubt(number, place, hearth).await;
            }
            _ => {}
        }
        self.heed(number, place.allocator, &heard).await;
    }

    /// It is not known whether there is a claim, and it is used all the same.
    async fn doubt(&self, number: usize, place: &Place, hearth: &Hearth) {
        match self.world.below(4) {
            0 => self.hibernate(number, place, hearth).await,
            1 => self.renew(number, place, hearth).await,
            _ => {
                self.go(number, Stage::Leaving);
                self.release(number, place, hearth).await;
            }
        }
    }

    /// Something that one does with a claim.
    async fn hold(&self, number: usize, place: &Place, hearth: &Hearth) {
        match self.world.below(17) {
            0 | 1 => self.renew(number, place, hearth).await,
            2 => self.ask(number, place, hearth).await,
            3 => {
                let heard = self.claim(place, true, hearth).await;
                self.heed(number, place.allocator, &heard).await;
            }
            4 | 5 => self.get(number, place, hearth).await,
            6 => self.list(hearth).await,
            7 | 8 => self.hibernate(number, place, hearth).await,
            9 | 10 => self.resume(number, place, hearth).await,
            11 => self.go(number, Stage::Leaving),
            12 | 13 => self.execute(number, place, hearth).await,
            14 => self.compare(hearth).await,
            _ => sleep(Duration::from_millis(self.world.below(6_000))).await,
        }
    }

    /// A claim that was let go never answers again.
    async fn look_back(&self, number: usize, place: &Place, hearth: &Hearth) {
        let claim_id = &place.asked.claim_id;
        let sent = self.book.use_sent(claim_id, 0);
        self.read(place, sent, hearth).await;
        if self.world.once_in(2) {
            self.claim(place, false, hearth).await;
        }
        self.go(number, Stage::Idle);
    }
}
