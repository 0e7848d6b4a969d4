//! The simulation: all of hearthd above its adapters (machine, driver, journal, rpc handlers) in a seeded world.
//!
//! ```text
//!  callers (two allocators, an operator, holders of tokens, a watcher;
//!      │    lost and late answers) ────────────────▶ rpc services ─▶ driver ─▶ machine
//!      │ book: every answer is judged                                  │
//!      ▼                                       InlineCommitter ◀───────┼──▶ SimRuntime, SimConnector, SimNetwork
//!  world: seed, time, trace, deaths                 │                                │
//!                                               TornDisk ── outlive every hearthd ── Site
//! ```
//! A life of hearthd is one tokio runtime of one thread, whose clock moves only when nobody has anything to do. hearthd
//! dies at any of the points that the fakes name (before and after every call, every commit, every answer, at syncs of the
//! disk): its runtime is dropped, with all tasks wherever they stand; or SIGTERM ends it in order. The next life starts on
//! what the disk kept. After the last one all is well: a drain comes to its end, claims and releases come to theirs, pools
//! fill, the watcher knows what there is, and outside is what the record says.
//!
//! The machine checks its own invariants after every batch of events (`Driver`, with debug assertions). What is real here:
//! rpc's services, the driver and its workers, the machine, the store with redb. What is not: see the fakes, and sockets,
//! admission and deadlines of rpc.
//!
//! `HEARTH_SIM_HISTORIES` is how many (default 1,000), `HEARTH_SEED` replays one and prints it. A bug that was found stays
//! as its seed in [`seeds`].
#![allow(clippy::unwrap_used)]

mod batches;
mod book;
mod callers;
mod errands;
mod executions;
mod guest;
mod hearth;
mod history;
mod network;
mod runtime;
mod seeds;
mod site;
mod verbs;
mod watchers;
mod world;

use history::{Outcome, run};
use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Histories at once: each is of one thread.
const THREADS: u64 = 2;
const HISTORIES: u64 = 1_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// One line, to be pasted.
fn replay(seed: u64) -> String {
    format!(
        "HEARTH_SEED={seed} cargo test --lib sim::promises_hold_in_the_simulation -- --exact --nocapture"
    )
}

#[derive(Default)]
struct Totals {
    events: u64,
    lives: u64,
    heard: BTreeMap<String, u64>,
    broken: Vec<(u64, String)>,
}

impl Totals {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.events += outcome.events;
        self.lives += outcome.lives;
        for (what, times) in outcome.heard {
            *self.heard.entry(what).or_default() += times;
        }
        self.broken.extend(outcome.broken.map(|what| (seed, what)));
    }
}

#[test]
fn promises_hold_in_the_simulation() {
    if let Some(seed) = number("HEARTH_SEED") {
        let outcome = run(seed, true);
        println!("{} events, {:x}", outcome.events, outcome.hash);
        assert!(outcome.broken.is_none(), "{}", outcome.broken.unwrap());
        return;
    }
    let histories = number("HEARTH_SIM_HISTORIES").unwrap_or(HISTORIES);
    let first = getrandom::u64().unwrap() >> 16;
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let totals = Mutex::new(Totals::default());
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= histories {
                        return;
                    }
                    // A rig that panics is to name its seed, too.
                    let outcome = catch_unwind(|| run(first + at, false));
                    let mut totals = totals.lock().unwrap();
                    match outcome {
                        Ok(outcome) => totals.add(first + at, outcome),
                        Err(_) => totals
                            .broken
                            .push((first + at, "the rig panicked".to_owned())),
                    }
                    stop.fetch_or(!totals.broken.is_empty(), Ordering::Relaxed);
                }
            });
        }
    });
    let totals = totals.into_inner().unwrap();
    let took = began.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss)] // Thousands.
    let rate = histories as f64 / took;
    println!(
        "simulation: {histories} histories from seed {first}, {} lives of hearthd, {} events in {took:.1} s: {rate:.0} histories/s; {:?}",
        totals.lives, totals.events, totals.heard
    );
    if let Some((seed, what)) = totals.broken.first() {
        panic!("{what}\n{}", replay(*seed));
    }
    // A world in which nothing happens proves nothing.
    for kind in [
        "Granted",
        "Renewed",
        "Released",
        "Hibernated",
        "Resumed",
        "Got",
        "Listed",
        "Cloned",
        "Executed",
        "NOT_ALLOWED",
        "Drained",
        "Empty",
        "SHUTTING_DOWN",
        "Upserted",
        "Removed",
        "Compared",
    ] {
        let heard = totals.heard.get(kind).copied().unwrap_or(0);
        assert!(heard > 0 || histories < 100, "nobody ever heard {kind}");
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in 1..=12 {
        let once = run(seed, false);
        // tokio's numbers of tasks are the process's, and it drops those of a dead hearthd by their numbers.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async { tokio::spawn(async {}).await.unwrap() });
        let again = run(seed, false);
        assert_eq!(
            (once.hash, once.events),
            (again.hash, again.events),
            "{seed}"
        );
        assert!(once.events > 50, "nothing happens in {seed}");
    }
}
