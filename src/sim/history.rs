//! One history: storms and deaths, then all is well and everything must come to its end.

use super::callers::{Callers, PLACES, POOLS};
use super::hearth::{Hearth, TAG};
use super::site::Site;
use super::world::World;
use crate::journal::disk_fakes::{NotOpened, TornDisk};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// How long the driver may take for its last commits, as `app` has it.
const LAST_COMMIT: Duration = Duration::from_secs(10);
/// How long everything may take to come to its end once all is well. A breaker may rest for five minutes.
const END: Duration = Duration::from_secs(1_200);

/// What a history was.
pub struct Outcome {
    /// The same for the same seed.
    pub hash: u64,
    /// Things that happened.
    pub events: u64,
    /// Lives of hearthd.
    pub lives: u64,
    /// How often callers were answered what.
    pub heard: BTreeMap<String, u64>,
    /// A broken promise, with what came before.
    pub broken: Option<String>,
}

enum End {
    /// Everything came to its end.
    Well,
    Died,
    Broken,
}

/// The history of this seed.
pub fn run(seed: u64, loud: bool) -> Outcome {
    let world = Arc::new(World::new(seed, loud));
    let disk = TornDisk::new(TAG, &world.boot());
    let site = Site::new(Arc::clone(&world), disk);
    let callers = Callers::new(&site);
    let (mut deaths, mut lives) = (world.below(4), 0);
    loop {
        lives += 1;
        match life(&callers, deaths > 0) {
            End::Well | End::Broken => break,
            End::Died => {
                deaths -= 1;
                let lossy = world.once_in(2);
                world.random(|random| site.disk.crash(lossy, random));
                if lossy && world.once_in(3) {
                    site.reboot();
                    world.booted();
                }
                world.rest(200 + world.below(4_000));
            }
        }
    }
    let (hash, events) = world.told();
    Outcome {
        hash,
        events,
        lives,
        heard: callers.book.heard(),
        broken: world.verdict(),
    }
}

/// One life of hearthd: everything of it goes with its tokio runtime, wherever it stands.
fn life(callers: &Arc<Callers>, mortal: bool) -> End {
    let world = &callers.site.world;
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let dies_at = mortal.then(|| 1 + world.below(900));
        world.born(dies_at);
        let end = Box::pin(live(callers, mortal)).await;
        world.buried();
        end
    })
}

async fn live(callers: &Arc<Callers>, mortal: bool) -> End {
    let (site, world) = (&callers.site, &callers.site.world);
    let (hearth, driver) = match Hearth::start(site, mortal) {
        Ok(started) => started,
        Err(NotOpened::Died) => {
            world.note("hearthd dies while it opens its journal".to_owned());
            return End::Died;
        }
        Err(NotOpened::Broken(what)) => {
            world.broken(what);
            return End::Broken;
        }
    };
    for number in 0..PLACES {
        tokio::spawn(Arc::clone(callers).live(number, Arc::clone(&hearth)));
    }
    tokio::spawn(chaos(Arc::clone(site), Arc::clone(&hearth)));
    tokio::spawn(Arc::clone(callers).operate(Arc::clone(&hearth)));
    tokio::spawn(Arc::clone(callers).watch(Arc::clone(&hearth)));
    let course = tokio::spawn(course(Arc::clone(callers), Arc::clone(&hearth), mortal));
    let end = tokio::select! {
        biased;
        () = world.over() => End::Died,
        why = ended(driver) => match why {
            None if hearth.is_ending() => {
                world.note("hearthd ends in order".to_owned());
                End::Died
            }
            why => {
                world.broken(format!("the driver ended: {why:?}"));
                End::Broken
            }
        },
        ended = course => match ended {
            Ok(()) => End::Well,
            Err(error) => {
                world.broken(format!("the rig: {error}"));
                End::Broken
            }
        },
    };
    match world.verdict() {
        Some(_) => End::Broken,
        None => end,
    }
}

/// `None`: in order.
async fn ended(driver: JoinHandle<()>) -> Option<String> {
    driver.await.err().map(|error| error.to_string())
}

/// Sandboxes end by themselves, containerd goes and comes back, interfaces vanish, something comes in, the disk fills up.
async fn chaos(site: Arc<Site>, hearth: Arc<Hearth>) {
    let world = &site.world;
    loop {
        world.pause("chaos", 100..4_000).await;
        if world.is_healed() {
            return;
        }
        match world.below(8) {
            0 | 1 => site.end_one(),
            3 => site.lose_interface(),
            5 => site.network.knock(),
            4 => {
                hearth.reserve(true).await;
                world.pause("full disk", 50..5_000).await;
                hearth.reserve(false).await;
            }
            2 => {
                site.reach(false);
                world.pause("outage", 50..6_000).await;
                site.reach(true);
            }
            _ => {}
        }
    }
}

/// What the life comes to.
async fn course(callers: Arc<Callers>, hearth: Arc<Hearth>, mortal: bool) {
    let (site, world) = (&callers.site, &callers.site.world);
    // Most lives are short: what they meet is met in many of them.
    let most = [5_000, 5_000, 16_000][world.index(3)];
    sleep(Duration::from_millis(2_000 + world.below(most))).await;
    if mortal && world.once_in(3) {
        hearth.terminate().await;
        sleep(LAST_COMMIT).await;
        return world.broken("SIGTERM does not end it".to_owned());
    }
    if mortal {
        return world.die("killed");
    }
    world.heal();
    site.reach(true);
    if world.once_in(4) {
        callers.empty(&hearth).await;
    }
    callers.finish();
    callers.settle(&hearth).await;
    if timeout(END, all_done(&callers)).await.is_err() {
        let places = callers.told();
        let view = hearth.inspect().await;
        return world.broken(format!("claims came to no end: {places}\n{view:?}"));
    }
    come_to_rest(site, &hearth).await;
    callers.is_up_to_date().await;
    for pool in POOLS {
        callers.serve_once(&hearth, pool).await;
    }
    come_to_rest(site, &hearth).await;
}

async fn all_done(callers: &Callers) {
    while !callers.are_done() {
        sleep(Duration::from_millis(500)).await;
    }
}

async fn come_to_rest(site: &Site, hearth: &Hearth) {
    let mut last = String::new();
    let rests = async {
        while let Err(why) = hearth.is_at_rest(site).await {
            last = why;
            sleep(Duration::from_millis(500)).await;
        }
    };
    if timeout(END, rests).await.is_err() {
        site.world.broken(format!("no rest: {last}"));
    }
}
