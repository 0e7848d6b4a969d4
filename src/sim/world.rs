//! What everything in a history shares: the seed's random numbers, the time, the trace, what goes wrong, and the moment
//! at which hearthd dies.

use crate::journal::Boot;
use crate::journal::fakes::Random;
use std::collections::VecDeque;
use std::future::pending;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// Lines of the trace that a failure shows.
const SHOWN: usize = 80;

/// How a call to the outside goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Well,
    /// It fails, and nothing has happened.
    Before,
    /// It fails, and what it was to do is done.
    After,
    /// It answers nothing until its deadline.
    Hang,
}

struct State {
    random: Random,
    /// Milliseconds of this world when the present hearthd was started.
    base_ms: u64,
    /// When the machine was booted, and how often it was.
    boot: (u64, u64),
    /// The present hearthd's birth on tokio's clock; `None`: there is no hearthd.
    born: Option<Instant>,
    /// Of hearthd: its death may come at any.
    points: u64,
    dies_at: Option<u64>,
    dead: bool,
    /// One call in so many goes wrong; 0: none.
    weather: u64,
    /// One commit in so many takes seconds.
    slow_disk: u64,
    broken: Option<String>,
    hash: u64,
    events: u64,
    shown: VecDeque<String>,
    loud: bool,
}

/// See the module.
pub struct World {
    state: Mutex<State>,
    over: Notify,
}

impl World {
    /// `loud`: the whole trace is printed.
    pub fn new(seed: u64, loud: bool) -> Self {
        let mut random = Random(seed);
        let weather = [40, 15, 100, 0][random.index(4)];
        let slow_disk = [40, 40, 40, 2][random.index(4)];
        Self {
            state: Mutex::new(State {
                random,
                base_ms: 1_000_000,
                boot: (0, 1),
                born: None,
                points: 0,
                dies_at: None,
                dead: false,
                weather,
                slow_disk,
                broken: None,
                hash: 0xcbf2_9ce4_8422_2325,
                events: 0,
                shown: VecDeque::new(),
                loud,
            }),
            over: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A hearthd is started; it dies at its so many-th point. To be called where its clock runs.
    pub fn born(&self, dies_at: Option<u64>) {
        let mut state = self.state();
        state.born = Some(Instant::now());
        (state.points, state.dies_at, state.dead) = (0, dies_at, false);
    }

    /// It is no more. To be called where its clock ran.
    pub fn buried(&self) {
        let now = self.now_ms();
        let mut state = self.state();
        (state.base_ms, state.born, state.dead) = (now, None, true);
    }

    /// Time passes while there is no hearthd.
    pub fn rest(&self, millis: u64) {
        self.state().base_ms += millis;
    }

    pub fn now_ms(&self) -> u64 {
        let state = self.state();
        let passed = state.born.map_or(Duration::ZERO, |born| born.elapsed());
        state.base_ms + u64::try_from(passed.as_millis()).unwrap()
    }

    /// The machine was booted just now.
    pub fn booted(&self) {
        let now = self.now_ms();
        let mut state = self.state();
        state.boot = (now, state.boot.1 + 1);
    }

    /// The clocks: the wall clock is this world's time.
    pub fn boot(&self) -> Boot {
        let (now, (at, times)) = (self.now_ms(), self.state().boot);
        Boot {
            boot_id: format!("boot {times}"),
            boottime_ms: now - at,
            wall_ms: now,
        }
    }

    pub fn below(&self, bound: u64) -> u64 {
        self.state().random.below(bound)
    }

    /// One of `len` places.
    pub fn index(&self, len: usize) -> usize {
        self.state().random.index(len)
    }

    /// Once in so many times.
    pub fn once_in(&self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// For what takes the generator itself.
    pub fn random<T>(&self, take: impl FnOnce(&mut Random) -> T) -> T {
        take(&mut self.state().random)
    }

    /// From now on nothing goes wrong any more.
    pub fn heal(&self) {
        self.state().weather = 0;
        self.note("-- all is well from here on".to_owned());
    }

    pub fn is_healed(&self) -> bool {
        self.state().weather == 0
    }

    /// The next commit takes seconds.
    pub fn commits_slowly(&self) -> bool {
        let times = self.state().slow_disk;
        !self.is_healed() && self.once_in(times)
    }

    /// How the next call goes.
    pub fn fate(&self) -> Fate {
        let weather = self.state().weather;
        if weather == 0 || !self.once_in(weather) {
            return Fate::Well;
        }
        [Fate::Before, Fate::After, Fate::Hang][self.index(3)]
    }

    /// Something has happened: it becomes part of the history.
    pub fn note(&self, what: String) {
        let now = self.now_ms();
        let mut state = self.state();
        let line = format!("{now} {what}");
        for byte in line.bytes() {
            state.hash = (state.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        state.events += 1;
        if state.loud {
            println!("{line}");
        }
        if state.shown.len() == SHOWN {
            state.shown.pop_front();
        }
        state.shown.push_back(line);
    }

    /// A promise is broken: the history ends.
    pub fn broken(&self, what: String) {
        self.note(format!("BROKEN: {what}"));
        self.state().broken.get_or_insert(what);
        self.over.notify_one();
    }

    /// Says so, unless it holds.
    pub fn ensure(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.broken(what());
        }
    }

    /// What is broken, with what came before.
    pub fn verdict(&self) -> Option<String> {
        let state = self.state();
        let what = state.broken.as_ref()?;
        let lines: Vec<_> = state.shown.iter().map(String::as_str).collect();
        Some(format!("{}\n{what}", lines.join("\n")))
    }

    /// The history's number, and how many things happened in it.
    pub fn told(&self) -> (u64, u64) {
        let state = self.state();
        (state.hash, state.events)
    }

    /// hearthd dies here and now.
    pub fn die(&self, what: &str) {
        let mut state = self.state();
        if !state.dead {
            state.dead = true;
            drop(state);
            self.note(format!("hearthd dies: {what}"));
            self.over.notify_one();
        }
    }

    /// Resolves when hearthd is dead, or a promise broken.
    pub async fn over(&self) {
        loop {
            {
                let state = self.state();
                if state.dead || state.broken.is_some() {
                    return;
                }
            }
            self.over.notified().await;
        }
    }

    /// A moment at which hearthd may die. Who waits for a dead hearthd waits for ever.
    pub async fn point(&self, what: &str) {
        let dies = {
            let mut state = self.state();
            state.points += 1;
            state.dies_at == Some(state.points)
        };
        if dies {
            self.die(what);
        }
        if self.state().dead {
            pending::<()>().await;
        }
    }

    /// Takes a time from `range`, milliseconds; hearthd may die before and after.
    pub async fn pause(&self, what: &str, range: std::ops::Range<u64>) {
        self.point(what).await;
        let span = range.end - range.start;
        let millis = range.start + self.below(span.max(1));
        sleep(Duration::from_millis(millis)).await;
        self.point(what).await;
    }
}
