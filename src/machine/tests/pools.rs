//! Pools: generations, update strategies, refill, fairness, and the conditions of the node.

use super::fixtures::*;
use super::rig::Rig;
use crate::machine::event::*;
use crate::machine::limits::*;
use crate::machine::refusal::Refusal;
use crate::machine::spec::*;
use crate::machine::view::*;

fn declare(rig: &mut Rig, generation: u64, pools: &[PoolSpec]) -> Result<Answer, Refusal> {
    let request = rig.call(Call::SetPools(fence(1), set(generation, pools)));
    rig.replies[&request].0.clone()
}

fn revised(image: &str, strategy: UpdateStrategy) -> PoolSpec {
    PoolSpec {
        generation: 2,
        template: template(image),
        update_strategy: strategy,
        ..pool("py", 2, 8)
    }
}

#[test]
fn generations_of_the_set() {
    let one = [pool("py", 1, 4)];
    let mut rig = Rig::with(&one);
    let same = declare(&mut rig, 1, &one);
    assert_eq!(same, Ok(Answer::PoolsSet { generation: 1 }));
    assert!(rig.persisted.is_empty());
    let other = declare(&mut rig, 1, &[]);
    assert!(
        matches!(other, Err(Refusal::GenerationConflict { what, current: 1 }) if what == "set")
    );
    let lower = declare(&mut rig, 0, &one);
    assert!(matches!(lower, Err(Refusal::GenerationStale { what, current: 1 }) if what == "set"));
}

#[test]
fn generations_of_a_pool() {
    let first = PoolSpec {
        generation: 5,
        ..pool("py", 1, 4)
    };
    let mut rig = Rig::with(std::slice::from_ref(&first));
    let lower = PoolSpec {
        generation: 4,
        ..first.clone()
    };
    let stale = declare(&mut rig, 2, &[lower]);
    assert!(matches!(stale, Err(Refusal::GenerationStale { what, current: 5 }) if what == "py"));
    let other = PoolSpec {
        min_warm: 2,
        ..first.clone()
    };
    let conflict = declare(&mut rig, 2, &[other]);
    assert!(
        matches!(conflict, Err(Refusal::GenerationConflict { what, current: 5 }) if what == "py")
    );
    assert_eq!(
        rig.store.pools.generation, 1,
        "nothing of a refused set is in force"
    );
    assert!(declare(&mut rig, 2, &[first]).is_ok());
}

#[test]
fn on_replenish_old_members_stay_claimable_and_are_used_first() {
    let mut rig = Rig::with(&[pool("py", 2, 8)]);
    let old = rig.created.clone();
    declare(
        &mut rig,
        2,
        &[revised("image:2", UpdateStrategy::OnReplenish)],
    )
    .unwrap();
    assert_eq!((rig.pool("py").warm, rig.pool("py").outdated), (2, 2));
    let grant = rig.granted(ask(1));
    assert_eq!((grant.sandbox, grant.generation), (old[0], 1));
    rig.create_all();
    assert_eq!((rig.pool("py").warm, rig.pool("py").outdated), (2, 1));
    rig.granted(ask(2));
    assert_eq!(rig.granted(ask(3)).generation, 2);
}

#[test]
fn recreate_destroys_old_members_at_once_and_no_claimed_one() {
    let mut rig = Rig::with(&[pool("py", 2, 8)]);
    let grant = rig.granted(ask(1));
    let late = rig.creating.clone();
    declare(&mut rig, 2, &[revised("image:2", UpdateStrategy::Recreate)]).unwrap();
    assert_eq!(
        rig.destroying.len(),
        1,
        "the warm one; that being made is waited for"
    );
    rig.send(Event::Created(late[0], Ok(())));
    assert!(rig.destroying.contains(&late[0]));
    assert!(!rig.destroying.contains(&grant.sandbox));
    rig.creating.retain(|id| *id != late[0]);
    rig.create_all();
    assert_eq!((rig.pool("py").warm, rig.pool("py").outdated), (2, 0));
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
}

#[test]
fn a_generation_without_another_template_keeps_the_members() {
    let mut rig = Rig::with(&[pool("py", 2, 8)]);
    let members = rig.created.clone();
    declare(&mut rig, 2, &[revised("image:1", UpdateStrategy::Recreate)]).unwrap();
    assert_eq!((rig.pool("py").warm, rig.pool("py").outdated), (2, 0));
    rig.restart();
    rig.connect(&members);
    rig.witness(Held::Nothing);
    rig.witness(Held::Nothing);
    assert_eq!((rig.pool("py").warm, rig.pool("py").outdated), (2, 0));
    assert!(rig.destroying.is_empty());
}

#[test]
fn a_pool_that_is_left_out_drains() {
    let mut rig = Rig::with(&[pool("py", 1, 1)]);
    rig.granted(ask(1));
    let waiting = rig.claim(ClaimRequest {
        on_empty: OnEmpty::Wait { timeout_ms: 60_000 },
        ..ask(2)
    });
    declare(&mut rig, 2, &[]).unwrap();
    assert!(matches!(rig.refusal(waiting), Refusal::PoolUnknown { .. }));
    let new = rig.claim(ask(3));
    assert!(matches!(rig.refusal(new), Refusal::PoolUnknown { .. }));
    assert_eq!(rig.state(1), Some(ClaimState::Claimed), "claims live on");
    let located = rig.call(Call::Locate(id(1)));
    assert!(matches!(rig.ok(located), Answer::Located { .. }));
    rig.release(1);
    rig.destroy_all();
    assert!(rig.store.sandboxes.is_empty() && rig.creating.is_empty());
}

#[test]
fn fewer_members_declared_is_fewer_members_kept() {
    let mut rig = Rig::with(&[pool("py", 4, 8)]);
    rig.granted(ask(1));
    rig.create_all();
    let lower = PoolSpec {
        generation: 2,
        ..pool("py", 1, 2)
    };
    declare(&mut rig, 2, &[lower]).unwrap();
    assert_eq!(rig.pool("py").warm, 1);
    rig.destroy_all();
    assert_eq!((rig.pool("py").warm, rig.pool("py").claimed), (1, 1));
    assert!(rig.creating.is_empty());
}

#[test]
fn max_total_counts_what_is_not_verified_gone() {
    let mut rig = Rig::with(&[pool("py", 2, 2)]);
    rig.granted(ask(1));
    rig.release(1);
    assert!(
        rig.creating.is_empty(),
        "the released one may still be there"
    );
    rig.destroy_all();
    assert_eq!(rig.creating.len(), 1);
}

#[test]
fn the_node_has_a_limit_of_its_own() {
    let declared = [pool("js", 60, 100), pool("py", 60, 100)];
    let mut rig = Rig::with(&declared);
    let limit = usize::try_from(settings().max_sandboxes).unwrap();
    assert_eq!(rig.inspect().sandboxes.len(), limit);
    let views = (rig.pool("js").warm, rig.pool("py").warm);
    assert_eq!(views, (32, 32), "shared fairly");
}

#[test]
fn creations_are_shared_fairly_and_claims_come_first() {
    let declared = ["a", "b", "c", "d"].map(|it| PoolSpec {
        max_parallel_refills: 4,
        ..pool(it, 8, 9)
    });
    let mut rig = Rig::new();
    declare(&mut rig, 1, &declared).unwrap();
    assert_eq!(rig.creating.len(), NODE_PARALLEL_CREATES);
    for pool in ["a", "b", "c", "d"] {
        assert_eq!(rig.pool(pool).creating, 1, "{pool}");
    }
    let cold = rig.claim(ClaimRequest {
        pool: name("d"),
        on_empty: OnEmpty::Cold,
        ..ask(1)
    });
    let done = rig.creating.remove(0);
    rig.send(Event::Created(done, Ok(())));
    assert_eq!(rig.pool("d").claimed, 1, "the next slot is the claim's");
    rig.create_all();
    rig.guests_confirm();
    assert_eq!(rig.grant(cold).source, Source::Cold);
}

#[test]
fn a_breaker_that_opens_refuses_cold_claims_that_wait() {
    let one_at_a_time = PoolSpec {
        max_parallel_refills: 1,
        ..pool("py", 0, 9)
    };
    let mut rig = Rig::with(&[one_at_a_time]);
    let cold = |claim| ClaimRequest {
        on_empty: OnEmpty::Cold,
        ..ask(claim)
    };
    let requests: Vec<_> = (1..=8).map(|claim| rig.claim(cold(claim))).collect();
    for _ in 0..BREAKER_FAILURES {
        rig.create_fails("no such image");
        rig.advance(REFILL_PAUSE_MS);
    }
    for (at, request) in requests.into_iter().enumerate() {
        let refusal = rig.refusal(request);
        match at < 5 {
            true => assert!(matches!(refusal, Refusal::CreateFailed { .. })),
            false => assert!(matches!(refusal, Refusal::PoolFailing { .. })),
        }
    }
    let new = rig.claim(cold(9));
    assert!(matches!(rig.refusal(new), Refusal::PoolFailing { .. }));
    // Another template is another matter.
    declare(
        &mut rig,
        2,
        &[PoolSpec {
            generation: 2,
            template: template("image:2"),
            ..pool("py", 0, 9)
        }],
    )
    .unwrap();
    let new = rig.claim(cold(10));
    assert!(rig.is_open(new));
}

#[test]
fn the_disk_reserve_refuses_claims_and_lets_releases_through() {
    let mut rig = Rig::with(&[pool("py", 1, 2)]);
    rig.granted(ask(1));
    rig.create_all();
    rig.granted(ask(2));
    let waiting = rig.claim(ClaimRequest {
        on_empty: OnEmpty::Wait { timeout_ms: 9000 },
        ..ask(3)
    });
    rig.send(Event::Disk {
        reserve_reached: true,
    });
    assert!(matches!(rig.refusal(waiting), Refusal::DiskReserve { .. }));
    let refused = rig.claim(ask(3));
    assert!(matches!(rig.refusal(refused), Refusal::DiskReserve { .. }));
    let retry = rig.claim(ask(1));
    rig.grant(retry);
    let released = rig.release(1);
    assert_eq!(rig.ok(released), Answer::Released);
    rig.destroy_all();
    assert!(rig.creating.is_empty(), "no refill either");
    rig.send(Event::Disk {
        reserve_reached: false,
    });
    assert_eq!(rig.creating.len(), 1);
}

#[test]
fn without_the_runtime_warm_claims_and_releases_go_on() {
    let mut rig = Rig::with(&[pool("py", 2, 3)]);
    rig.send(Event::Runtime { available: false });
    assert_eq!(rig.inspect().phase, "degraded");
    rig.granted(ask(1));
    rig.release(1);
    assert!(rig.creating.is_empty() && rig.destroying.is_empty());
    let cold = |claim| ClaimRequest {
        on_empty: OnEmpty::Cold,
        ..ask(claim)
    };
    rig.granted(cold(2));
    let refused = rig.claim(cold(3));
    assert!(matches!(
        rig.refusal(refused),
        Refusal::RuntimeUnavailable { .. }
    ));
    let round = rig.round;
    rig.send(Event::Runtime { available: true });
    assert_eq!(rig.round, round + 1);
    assert!(!rig.creating.is_empty() && !rig.destroying.is_empty());
}

#[test]
fn shutting_down_refuses_what_changes_and_finishes_what_is_in_flight() {
    let mut rig = Rig::with(&[pool("py", 2, 2)]);
    let in_flight = rig.claim(ask(1));
    rig.granted(ask(2));
    let waiting = rig.claim(ClaimRequest {
        on_empty: OnEmpty::Wait { timeout_ms: 9000 },
        ..ask(3)
    });
    rig.send(Event::ShuttingDown);
    assert!(matches!(rig.refusal(waiting), Refusal::ShuttingDown { .. }));
    rig.guests_confirm();
    rig.grant(in_flight);
    for call in [
        Call::Claim(fence(1), Box::new(ask(1))),
        Call::Release(fence(1), id(1)),
        Call::Renew(fence(1), id(1), 5),
        Call::SetPools(fence(1), set(2, &[])),
        Call::DestroyOrphans(Vec::new()),
    ] {
        let refused = rig.call(call);
        assert!(matches!(rig.refusal(refused), Refusal::ShuttingDown { .. }));
    }
    let read = rig.call(Call::Get(id(1)));
    assert!(matches!(rig.ok(read), Answer::Claim(_)));
    rig.live_for(10 * RELIST_MS, |_| {});
    assert!(rig.creating.is_empty() && rig.destroying.is_empty());
}

#[test]
fn refill_steps_aside_for_claims_and_not_for_ever() {
    let mut rig = Rig::with(&[pool("py", 8, 40)]);
    rig.node.settings.refill_yield_ms = 100;
    let started = rig.now;
    // One claim after the other, each within the pause of the one before.
    for claim in 1..=6 {
        rig.granted(ask(claim));
        assert!(rig.creating.is_empty(), "claim {claim}");
        rig.now = rig.now.plus(90);
    }
    // Long enough.
    assert_eq!(rig.node.next_wakeup(), Some(started.plus(500)));
    rig.send(Event::Tick);
    assert!(!rig.creating.is_empty());
    rig.create_all();

    // A single claim: after its pause.
    rig.granted(ask(7));
    assert!(rig.creating.is_empty());
    assert_eq!(rig.node.next_wakeup(), Some(rig.now.plus(100)));
    rig.now = rig.now.plus(100);
    rig.send(Event::Tick);
    assert_eq!(rig.creating.len(), 1);
    rig.create_all();

    // What a claim waits for does not step aside.
    let mut rig = Rig::with(&[pool("py", 1, 40)]);
    rig.node.settings.refill_yield_ms = 100;
    rig.granted(ask(1));
    assert!(rig.creating.is_empty());
    let cold = ClaimRequest {
        on_empty: OnEmpty::Cold,
        ..ask(2)
    };
    rig.call(Call::Claim(fence(1), Box::new(cold)));
    assert_eq!(rig.creating.len(), 1);
}
