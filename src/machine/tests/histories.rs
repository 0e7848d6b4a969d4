//! Random histories: whatever happens, in whatever order, the promises hold; and when all goes well again everything
//! comes to rest at what was asked for.
//!
//! `HEARTH_HISTORIES` is how many (default 300), `HEARTH_SEED` repeats a run; a failure prints its shortest history, to
//! be pasted into a test of its own.

use super::fixtures::*;
use super::world::{CLASS, POOLS, WARM_POOL, World, classes};
use crate::machine::event::{Call, Event};
use crate::machine::network::NetworkMode;
use crate::machine::spec::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

/// One thing that happens. Numbers choose among what there is at that moment.
#[derive(Debug, Clone)]
enum Action {
    Claim {
        slot: usize,
        allocator: usize,
        other_content: bool,
    },
    Release {
        slot: usize,
        allocator: usize,
    },
    Renew {
        slot: usize,
        allocator: usize,
        ttl_ms: u64,
    },
    Hibernate {
        slot: usize,
        allocator: usize,
    },
    Resume {
        slot: usize,
        allocator: usize,
    },
    Read {
        slot: usize,
    },
    /// An allocator is replaced by its successor.
    TakeOver {
        allocator: usize,
    },
    SetPools {
        variant: u8,
        allocator: usize,
    },
    Finish {
        pick: usize,
        outcome: u8,
    },
    Exit {
        pick: usize,
        how: u8,
    },
    Reach {
        available: bool,
    },
    Disk {
        reserve_reached: bool,
    },
    Cordon {
        cordoned: bool,
    },
    /// 0: the class is served.
    Classes {
        variant: u8,
    },
    Advance {
        millis: u64,
    },
    /// The batch ends here.
    Flush,
    Commit,
    Crash {
        commits: usize,
        fate: u8,
    },
    ShutDown,
    Drain {
        mode: DrainMode,
        deadline_ms: u64,
    },
    Undrain,
    /// Of the cluster; `None`: it takes it back.
    ClusterDrain {
        asked: Option<(DrainMode, u64)>,
    },
    /// WarmPools of the cluster come, change and go.
    WarmPools {
        variant: u8,
    },
    /// The cluster says what it thinks of the WarmPool's template.
    Judge {
        allowed: bool,
    },
}

fn mode_and_deadline() -> impl Strategy<Value = (DrainMode, u64)> {
    (
        prop::sample::select(vec![
            DrainMode::Wait,
            DrainMode::Hibernate,
            DrainMode::Evict,
        ]),
        prop::sample::select(vec![0, 3_000, 30_000]),
    )
}

fn action() -> impl Strategy<Value = Action> {
    use Action::*;
    // Of the two allocators 0 is the leader.
    let allocator = prop_oneof![9 => Just(0), 1 => Just(1usize)];
    let slot = 0..8usize;
    prop_oneof![
        16 => (slot.clone(), allocator.clone(), prop::bool::weighted(0.1))
            .prop_map(|(slot, allocator, other_content)| Claim { slot, allocator, other_content }),
        5 => (slot.clone(), allocator.clone()).prop_map(|(slot, allocator)| Release { slot, allocator }),
        3 => (slot.clone(), allocator.clone(), prop::sample::select(vec![0, 5_000, 50_000]))
            .prop_map(|(slot, allocator, ttl_ms)| Renew { slot, allocator, ttl_ms }),
        4 => (slot.clone(), allocator.clone()).prop_map(|(slot, allocator)| Hibernate { slot, allocator }),
        3 => (slot.clone(), allocator.clone()).prop_map(|(slot, allocator)| Resume { slot, allocator }),
        2 => slot.prop_map(|slot| Read { slot }),
        1 => allocator.clone().prop_map(|allocator| TakeOver { allocator }),
        2 => (any::<u8>(), allocator).prop_map(|(variant, allocator)| SetPools { variant, allocator }),
        30 => (0..16usize, prop_oneof![5 => Just(0), 1 => any::<u8>()])
            .prop_map(|(pick, outcome)| Finish { pick, outcome }),
        2 => (0..16usize, any::<u8>()).prop_map(|(pick, how)| Exit { pick, how }),
        2 => prop::bool::weighted(0.7).prop_map(|available| Reach { available }),
        1 => prop::bool::weighted(0.3).prop_map(|reserve_reached| Disk { reserve_reached }),
        2 => prop::bool::weighted(0.4).prop_map(|cordoned| Cordon { cordoned }),
        2 => prop_oneof![2 => Just(0), 1 => 1..4u8].prop_map(|variant| Classes { variant }),
        8 => prop_oneof![
            6 => 1..2_000u64,
            2 => 2_000..100_000u64,
        ].prop_map(|millis| Advance { millis }),
        20 => Just(Flush),
        20 => Just(Commit),
        2 => (0..4usize, any::<u8>()).prop_map(|(commits, fate)| Crash { commits, fate }),
        1 => mode_and_deadline().prop_map(|(mode, deadline_ms)| Drain { mode, deadline_ms }),
        2 => Just(Undrain),
        1 => prop::option::weighted(0.4, mode_and_deadline()).prop_map(|asked| ClusterDrain { asked }),
        2 => any::<u8>().prop_map(|variant| WarmPools { variant }),
        3 => any::<bool>().prop_map(|allowed| Judge { allowed }),
        1 => prop::bool::weighted(0.1).prop_map(|down| if down { ShutDown } else { Flush }),
    ]
}

/// What a slot asks for: a claim id's content never changes by itself.
fn asked(world: &World, slot: usize, other_content: bool) -> ClaimRequest {
    ClaimRequest {
        claim_id: world.claim_id(slot),
        pool: name(POOLS[slot % 2]),
        ttl_ms: [0, 0, 20_000][slot % 3],
        content: content(u8::from(other_content)),
        on_empty: match slot / 2 {
            0 => OnEmpty::Fail,
            1 => OnEmpty::Cold,
            _ => OnEmpty::Wait { timeout_ms: 8_000 },
        },
        by: ["one", "other"][slot / 4].into(),
        network_policy: match slot {
            1 | 2 | 5 => Some(reaches(u8::try_from(slot).unwrap())),
            6 => Some(mode(NetworkMode::Internet)),
            7 => Some(mode(NetworkMode::None)),
            _ => None,
        },
        on_data_loss: match slot % 4 {
            0 => None,
            1 => Some(OnDataLoss::Fail),
            _ => Some(OnDataLoss::Cold),
        },
        ..ask(0)
    }
}

/// A new set; pools come and go, templates change and fail.
fn declared(world: &World, variant: u8) -> PoolSet {
    let generation = world.sets + 1;
    let revise = |at: usize, spec: PoolSpec| {
        let choice = usize::from(variant) >> (2 * at);
        let class = ["", CLASS][usize::from(variant >> 3 & 1) * at];
        PoolSpec {
            generation,
            template: Template {
                idle_after_ms: [0, 4_000][usize::from(variant >> 6) % 2],
                on_data_loss: [OnDataLoss::Fail, OnDataLoss::Cold][usize::from(variant >> 4) % 2],
                runtime_class: class.to_owned(),
                network_policy: match usize::from(variant / 5) % 3 {
                    0 => mode(NetworkMode::Allowlist),
                    1 => mode(NetworkMode::None),
                    _ => mode(NetworkMode::Internet),
                },
                // One that can't freeze, whatever else is asked of it.
                runtime_handler: match (at, usize::from(variant / 11) % 3) {
                    _ if !class.is_empty() => String::new(),
                    (1, 1) => "kata-clh".to_owned(),
                    _ => "gvisor".to_owned(),
                },
                ..template(["image:1", "image:2", "image:1", "bad:1"][choice % 4])
            },
            running: [Some(1), None, Some(0)][usize::from(variant / 3) % 3],
            update_strategy: match variant & 16 {
                0 => UpdateStrategy::OnReplenish,
                _ => UpdateStrategy::Recreate,
            },
            max_parallel_refills: 1 + u32::from(variant >> 7) * 3,
            ..spec
        }
    };
    let (less, more) = match variant & 32 {
        0 => (pool(POOLS[0], 1, 3), pool(POOLS[1], 2, 5)),
        _ => (pool(POOLS[0], 0, 2), pool(POOLS[1], 3, 4)),
    };
    let pools = [revise(0, less), revise(1, more)];
    let kept = usize::from(variant % 8 == 7);
    set(generation, &pools[kept..])
}

/// At most one pool, or one whose name SetPools may have: then it must change nothing.
fn of_warm_pools(variant: u8) -> Vec<PoolSpec> {
    let pool = match variant % 4 {
        0 => return Vec::new(),
        1 => warm_pool(pool(POOLS[0], 3, 3)),
        _ => warm_pool(pool(WARM_POOL, 1, 1 + u32::from(variant >> 7))),
    };
    let image = ["image:1", "image:2"][usize::from(variant >> 4) % 2];
    vec![PoolSpec {
        template: template(image),
        ..pool
    }]
}

fn judged(world: &World, allowed: bool) -> Option<Judgement> {
    let pool = world.node.pools.get(&name(WARM_POOL))?;
    let verdict = match allowed {
        true => Verdict::Allowed,
        false => Verdict::Denied {
            rule: "PodSecurity".into(),
            message: "no".into(),
        },
    };
    Some(Judgement {
        pool: pool.spec.name.clone(),
        template: Box::new(pool.spec.template.clone()),
        verdict,
    })
}

fn act(world: &mut World, action: Action) {
    let fence_of = |world: &World, allocator: usize| {
        let leader = usize::from(world.epochs[0] < world.epochs[1]);
        let allocator = (leader + allocator) % 2;
        Fence {
            epoch: world.epochs[allocator],
            caller: Some(format!("allocator {allocator}")),
        }
    };
    match action {
        Action::Claim {
            slot,
            allocator,
            other_content,
        } => {
            let asked = asked(world, slot, other_content);
            world.call(Call::Claim(fence_of(world, allocator), Box::new(asked)));
        }
        Action::Release { slot, allocator } => {
            let claim = world.claim_id(slot);
            world.call(Call::Release(fence_of(world, allocator), claim));
        }
        Action::Renew {
            slot,
            allocator,
            ttl_ms,
        } => {
            let claim = world.claim_id(slot);
            world.call(Call::Renew(fence_of(world, allocator), claim, ttl_ms));
        }
        Action::Hibernate { slot, allocator } => {
            let (fence, claim) = (fence_of(world, allocator), world.claim_id(slot));
            let tier = match slot % 2 {
                0 => Tier::Auto,
                _ => Tier::Disk,
            };
            world.call(Call::Hibernate(fence, claim, tier, WaitingOn::Human));
        }
        Action::Resume { slot, allocator } => {
            let claim = world.claim_id(slot);
            world.call(Call::Resume(fence_of(world, allocator), claim));
        }
        Action::Read { slot } => {
            let claim = world.claim_id(slot);
            world.call(Call::Get(claim));
            world.call(Call::Locate(claim));
            world.call(Call::Inspect);
        }
        Action::TakeOver { allocator } => {
            world.epochs[allocator] = world.epochs[0].max(world.epochs[1]) + 1;
        }
        Action::SetPools { variant, allocator } => {
            let set = declared(world, variant);
            world.sets += 1;
            world.call(Call::SetPools(fence_of(world, allocator), set));
        }
        Action::Finish { pick, outcome } => world.finish(pick, outcome),
        Action::Exit { pick, how } => world.exit(pick, how),
        Action::Reach { available } => world.reach(available),
        Action::Disk { reserve_reached } => world.tell(Event::Disk { reserve_reached }),
        Action::Cordon { cordoned } => world.cordon(cordoned),
        Action::Classes { variant } => world.tell(classes(variant)),
        Action::Advance { millis } => world.advance(millis),
        Action::Flush => world.flush(),
        Action::Commit => {
            world.flush();
            world.commit();
            world.release_effects();
        }
        Action::Crash { commits, fate } => world.crash(commits, fate),
        Action::ShutDown => world.tell(Event::ShuttingDown),
        Action::Drain { mode, deadline_ms } => {
            let deadline_ms = Some(deadline_ms);
            world.call(Call::Drain(DrainRequest { mode, deadline_ms }));
        }
        Action::Undrain => world.call(Call::Undrain),
        Action::ClusterDrain { asked } => {
            world.cluster_drain(asked.map(|(mode, deadline_ms)| DrainRequest {
                mode,
                deadline_ms: Some(deadline_ms),
            }));
        }
        Action::WarmPools { variant } => world.call(Call::SetWarmPools(of_warm_pools(variant))),
        Action::Judge { allowed } => {
            let judged = judged(world, allowed);
            world.call(Call::JudgePools(judged.into_iter().collect()));
        }
    }
}

fn live(actions: Vec<Action>) -> World {
    let mut world = World::new();
    world.heal();
    act(
        &mut world,
        Action::SetPools {
            variant: 0,
            allocator: 0,
        },
    );
    for action in actions {
        act(&mut world, action);
    }
    world.flush();
    world.heal();
    // A drain comes to its end whatever was before; and so does its undoing.
    let mode = match world.requests % 3 {
        0 => DrainMode::Evict,
        1 => DrainMode::Hibernate,
        _ => DrainMode::Wait,
    };
    let deadline_ms = 0;
    act(&mut world, Action::Drain { mode, deadline_ms });
    world.rest();
    act(&mut world, Action::Undrain);
    act(&mut world, Action::TakeOver { allocator: 0 });
    // An object may have taken a name of the set.
    act(&mut world, Action::WarmPools { variant: 0 });
    act(
        &mut world,
        Action::SetPools {
            variant: 0,
            allocator: 0,
        },
    );
    world.rest();
    // And it goes on serving: all is given back, and a fresh claim in each pool is granted.
    (0..8).for_each(|slot| act(&mut world, Action::Release { slot, allocator: 0 }));
    world.rest();
    world.lives = world.lives.map(|life| life + 1_000);
    let before = world.node.claims.len();
    (4..6).for_each(|slot| {
        act(
            &mut world,
            Action::Claim {
                slot,
                allocator: 0,
                other_content: false,
            },
        );
    });
    world.rest();
    assert_eq!(world.node.claims.len(), before + 2);
    world
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

#[test]
fn promises_hold_in_random_histories() {
    let histories = number("HEARTH_HISTORIES").unwrap_or(300);
    let seed = number("HEARTH_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    println!("HEARTH_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: u32::try_from(histories).unwrap(),
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let (events, heard) = (Cell::new(0), RefCell::new(BTreeMap::new()));
    let outcome = TestRunner::new_with_rng(config, rng).run(&vec(action(), 1..400), |actions| {
        let world = live(actions);
        events.set(events.get() + world.events);
        for (kind, times) in world.heard {
            *heard.borrow_mut().entry(kind).or_insert(0) += times;
        }
        Ok(())
    });
    println!("{histories} histories, {} events: {heard:?}", events.get());
    if let Err(failure) = outcome {
        panic!("HEARTH_SEED={seed}: {failure}");
    }
}
