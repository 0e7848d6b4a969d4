//! The memory tier, rule by rule.

use super::fixtures::*;
use super::rig::Rig;
use crate::machine::event::*;
use crate::machine::ids::*;
use crate::machine::limits::*;
use crate::machine::node::MemoryPolicy;
use crate::machine::record;
use crate::machine::refusal::Refusal;
use crate::machine::sampling::{Candidate, choose};
use crate::machine::spec::*;
use crate::machine::view::*;

fn with_running(min_warm: u32, running: u32) -> PoolSpec {
    PoolSpec {
        running: Some(running),
        ..pool("py", min_warm, 16)
    }
}

/// A pool of frozen and running members.
fn tiers(min_warm: u32, running: u32) -> Rig {
    let mut rig = Rig::with(&[with_running(min_warm, running)]);
    rig.freeze_all();
    rig
}

fn asleep() -> (Rig, SandboxId) {
    let mut rig = Rig::with(&[pool("py", 1, 4)]);
    let sandbox = rig.granted(ask(1)).sandbox;
    let request = rig.hibernate(1);
    rig.freeze_all();
    assert_eq!(rig.ok(request), Answer::Hibernated);
    (rig, sandbox)
}

#[test]
fn members_beyond_the_running_few_are_frozen_and_reclaimed() {
    let rig = &mut tiers(4, 1);
    let pool = rig.pool("py");
    assert_eq!((pool.warm, pool.frozen), (4, 3));
    let running = rig.created[0];
    assert!(
        !rig.asleep.contains(&running),
        "the oldest is next: it runs"
    );
    assert_eq!(rig.reclaiming.len(), 3);
    for sandbox in &rig.asleep {
        let record = &rig.store.sandboxes[sandbox];
        assert_eq!(record.residency, record::Residency::Frozen);
    }
}

#[test]
fn a_claim_takes_a_running_member_first_and_else_thaws_one() {
    let rig = &mut tiers(2, 1);
    let thaws = |rig: &Rig| {
        rig.effects
            .iter()
            .any(|it| matches!(it, Effect::Personalize { thaw: true, .. }))
    };
    let first = rig.claim(ask(1));
    assert!(!thaws(rig));
    let second = rig.claim(ask(2));
    assert!(thaws(rig));
    rig.guests_confirm();
    assert_eq!(rig.grant(first).source, Source::Warm);
    assert_eq!(rig.grant(second).source, Source::Thawed);
    let sandbox = rig.grant(second).sandbox;
    let record = &rig.store.sandboxes[&sandbox];
    assert_eq!(record.residency, record::Residency::Running);
}

#[test]
fn a_claim_overtakes_a_freeze() {
    let rig = &mut Rig::with(&[with_running(1, 0)]);
    let member = rig.freezing[0];
    let request = rig.claim(ask(1));
    // The worker's word for the freeze that never began, or that the thaw undid.
    rig.send(Event::Frozen(member, Ok(())));
    rig.guests_confirm();
    assert_eq!(rig.grant(request).sandbox, member);
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
}

#[test]
fn too_few_running_members_are_thawed_when_no_refill_comes() {
    let rig = &mut tiers(2, 0);
    let revised = PoolSpec {
        generation: 2,
        ..with_running(2, 1)
    };
    rig.call(Call::SetPools(fence(1), set(2, &[revised])));
    assert_eq!(rig.thawing.len(), 1);
    rig.thaw_all();
    let pool = rig.pool("py");
    assert_eq!((pool.warm, pool.frozen), (2, 1));
    assert!(rig.freezing.is_empty(), "and it stays so");
}

#[test]
fn a_failed_freeze_rests_and_is_tried_again() {
    let rig = &mut Rig::with(&[with_running(1, 0)]);
    let member = rig.freezing.remove(0);
    rig.send(Event::Frozen(member, Err("deadline".into())));
    assert_eq!(
        rig.store.sandboxes[&member].residency,
        record::Residency::Running
    );
    assert!(rig.freezing.is_empty());
    rig.advance(FREEZE_PAUSE_MS);
    assert_eq!(rig.freezing, [member]);
}

#[test]
fn a_member_that_can_not_be_thawed_is_replaced() {
    let rig = &mut tiers(1, 0);
    let revised = PoolSpec {
        generation: 2,
        ..with_running(1, 1)
    };
    rig.call(Call::SetPools(fence(1), set(2, &[revised])));
    let member = rig.thawing.remove(0);
    rig.send(Event::Thawed(member, Err("deadline".into())));
    assert_eq!(rig.destroying, [member]);
    assert_eq!(rig.creating.len(), 1);
}

#[test]
fn hibernate_is_idempotent_and_any_use_wakes() {
    let (mut rig, sandbox) = asleep();
    assert_eq!(rig.state(1), Some(ClaimState::Hibernated));
    let again = rig.hibernate(1);
    assert_eq!(rig.ok(again), Answer::Hibernated);
    let used = rig.locate(1);
    assert!(rig.is_open(used), "first it is thawed");
    let meanwhile = rig.hibernate(1);
    assert!(matches!(
        rig.refusal(meanwhile),
        Refusal::WakeInFlight { .. }
    ));
    let other = rig.locate(1);
    rig.thaw_all();
    for request in [used, other] {
        assert!(matches!(rig.ok(request), Answer::Located { sandbox: it, .. } if it == sandbox));
    }
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
    let resumed = rig.resume(1);
    assert_eq!(rig.ok(resumed), Answer::Resumed, "it is awake already");
}

#[test]
fn a_use_in_the_middle_of_a_freeze_wakes_it_after() {
    let mut rig = Rig::with(&[pool("py", 1, 4)]);
    rig.granted(ask(1));
    let hibernated = rig.hibernate(1);
    let joined = rig.hibernate(1);
    let used = rig.locate(1);
    assert!(rig.is_open(hibernated) && rig.is_open(joined) && rig.is_open(used));
    rig.freeze_all();
    assert_eq!(rig.ok(hibernated), Answer::Hibernated);
    assert_eq!(rig.ok(joined), Answer::Hibernated);
    assert!(rig.is_open(used));
    rig.thaw_all();
    assert!(matches!(rig.ok(used), Answer::Located { .. }));
}

#[test]
fn failures_are_told_and_leave_what_was() {
    let mut rig = Rig::with(&[pool("py", 1, 4)]);
    let sandbox = rig.granted(ask(1)).sandbox;
    let request = rig.hibernate(1);
    rig.send(Event::Frozen(sandbox, Err("stuck".into())));
    assert!(matches!(
        rig.refusal(request),
        Refusal::HibernateFailed { .. }
    ));
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
    rig.freezing.clear();
    rig.hibernate(1);
    rig.freeze_all();
    let request = rig.resume(1);
    rig.send(Event::Thawed(sandbox, Err("stuck".into())));
    assert!(matches!(rig.refusal(request), Refusal::ResumeFailed { .. }));
    assert_eq!(rig.state(1), Some(ClaimState::Hibernated));
}

#[test]
fn a_sleeping_claim_expires_and_is_released_and_ends_like_any_other() {
    let (mut rig, sandbox) = asleep();
    rig.release(1);
    assert_eq!(rig.destroying, [sandbox]);
    let (mut rig, sandbox) = asleep();
    let waking = rig.resume(1);
    rig.send(Event::Ended(sandbox, ExitCause::Exited));
    assert!(matches!(rig.refusal(waking), Refusal::SandboxEnded { .. }));
    assert_eq!(rig.state(1), Some(ClaimState::Failed));
    let (mut rig, _) = asleep();
    let waking = rig.resume(1);
    rig.release(1);
    assert!(matches!(
        rig.refusal(waking),
        Refusal::ReleasedInFlight { .. }
    ));
}

#[test]
fn a_restart_finds_frozen_ones_frozen_and_asks_no_guest() {
    let mut rig = tiers(3, 0);
    let sandbox = rig.granted(ask(1)).sandbox;
    rig.asleep.remove(&sandbox);
    rig.create_all();
    rig.freeze_all();
    rig.hibernate(1);
    rig.freeze_all();
    rig.restart();
    let all: Vec<_> = rig.store.sandboxes.keys().copied().collect();
    rig.connect(&all);
    assert!(rig.witnessing.is_empty(), "no frozen guest is asked");
    assert_eq!(rig.reclaiming.len(), 4, "a reclaim may have been cut off");
    assert_eq!(rig.state(1), Some(ClaimState::Hibernated));
    let pool = rig.pool("py");
    assert_eq!((pool.warm, pool.frozen, pool.hibernated), (3, 3, 1));
    let used = rig.locate(1);
    rig.thaw_all();
    assert!(matches!(rig.ok(used), Answer::Located { .. }));
}

#[test]
fn after_a_restart_a_member_found_thawed_must_prove_that_it_was_never_used() {
    let mut rig = tiers(1, 0);
    let member = rig.created[0];
    // A claim had thawed it and told its guest; hearthd died before the commit.
    rig.asleep.clear();
    rig.restart();
    rig.connect(&[member]);
    assert_eq!(rig.witnessing, [member]);
    rig.witness(Held::Claim(id(7)));
    assert_eq!(rig.destroying, [member]);
    // And one whose record says that it runs is asked even if it is frozen.
    let mut rig = Rig::with(&[pool("py", 1, 1)]);
    let member = rig.created[0];
    rig.asleep.insert(member);
    rig.restart();
    rig.connect(&[member]);
    assert_eq!(rig.witnessing, [member]);
}

#[test]
fn what_sleeps_is_what_the_outside_shows() {
    let (mut rig, sandbox) = asleep();
    rig.asleep.clear();
    rig.restart();
    rig.connect(&[sandbox]);
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
    let record = &rig.store.sandboxes[&sandbox];
    assert_eq!(record.residency, record::Residency::Running);
}

fn sleepy(idle_after_ms: u64) -> Rig {
    let spec = pool("py", 1, 4);
    let template = Template {
        idle_after_ms,
        ..spec.template
    };
    Rig::with(&[PoolSpec { template, ..spec }])
}

/// One look: CPU in milliseconds.
fn look(rig: &mut Rig, cpu_ms: u64, busy: bool) {
    look_at(rig, cpu_ms, busy, Some(0));
}

/// The same, with packets over its interface.
fn look_at(rig: &mut Rig, cpu_ms: u64, busy: bool, packets: Option<u64>) {
    rig.look(0, |idle| Sample {
        cpu_nanoseconds: cpu_ms * 1_000_000,
        busy,
        packets,
        ..idle
    });
}

#[test]
fn a_claim_that_does_nothing_for_its_time_is_frozen() {
    let mut rig = sleepy(10_000);
    let sandbox = rig.granted(ask(1)).sandbox;
    look(&mut rig, 0, false);
    look(&mut rig, 0, false);
    assert_eq!(rig.sampling, [sandbox], "only the claimed one is looked at");
    // Something computes, somebody is inside, somebody calls: each counts as use.
    look(&mut rig, 1_000, false);
    look(&mut rig, 1_000, false);
    look(&mut rig, 1_000, true);
    look(&mut rig, 1_000, false);
    look(&mut rig, 1_000, false);
    rig.locate(1);
    for _ in 0..3 {
        look(&mut rig, 1_000, false);
        assert!(rig.freezing.is_empty());
    }
    look(&mut rig, 1_010, false);
    assert_eq!(rig.freezing, [sandbox]);
    rig.freeze_all();
    rig.locate(1);
    rig.thaw_all();
    look(&mut rig, 1_010, false);
    look(&mut rig, 1_010, false);
    assert!(rig.freezing.is_empty(), "its time begins anew");
}

#[test]
fn a_time_that_nobody_looked_at_counts_as_use() {
    let mut rig = sleepy(10_000);
    let sandbox = rig.granted(ask(1)).sandbox;
    look(&mut rig, 0, false);
    // Looks are late. A burst of work in between would average to nothing.
    rig.advance(SAMPLE_GAP_MS);
    look(&mut rig, 100, false);
    assert!(
        rig.freezing.is_empty(),
        "100 ms of work in 12 s pass for idle"
    );
    for _ in 0..3 {
        look(&mut rig, 100, false);
        assert!(rig.freezing.is_empty());
    }
    look(&mut rig, 100, false);
    assert_eq!(rig.freezing, [sandbox]);
}

#[test]
fn traffic_is_use_and_so_is_what_could_not_be_counted() {
    let mut rig = sleepy(10_000);
    let sandbox = rig.granted(ask(1)).sandbox;
    look_at(&mut rig, 0, false, Some(7));
    for packets in [
        Some(7),
        Some(8),
        Some(8),
        None,
        None,
        Some(8),
        Some(8),
        Some(8),
    ] {
        look_at(&mut rig, 0, false, packets);
        assert!(rig.freezing.is_empty(), "{packets:?}");
    }
    look_at(&mut rig, 0, false, Some(8));
    assert!(rig.freezing.is_empty());
    look_at(&mut rig, 0, false, Some(8));
    assert_eq!(rig.freezing, [sandbox]);
}

#[test]
fn without_a_reason_nobody_is_looked_at() {
    let mut rig = sleepy(0);
    rig.granted(ask(1));
    rig.live_for(60_000, |_| {});
    assert!(rig.sampling.is_empty());
}

#[test]
fn under_pressure_members_go_first_then_the_longest_idle() {
    let candidate = |sequence, claimed, idle_ms| Candidate {
        id: sandbox(sequence),
        claimed,
        idle_ms,
        memory_bytes: 100,
    };
    let all = vec![
        candidate(1, false, 0),
        candidate(2, false, 0),
        candidate(3, true, 20_000),
        candidate(4, true, 90_000),
        candidate(5, true, PRESSED_IDLE_MS - 1),
    ];
    let order = [2, 1, 4, 3].map(sandbox);
    assert_eq!(choose(all.clone(), u64::MAX), order);
    assert_eq!(choose(all.clone(), 150), order[..2]);
    assert!(choose(all, 0).is_empty());
    let many = (1..100).map(|n| candidate(n, false, 0)).collect();
    assert_eq!(choose(many, u64::MAX).len(), PRESSED_FREEZES);
}

#[test]
fn over_the_budget_members_are_frozen_and_stay_so_for_a_while() {
    let mut rig = Rig::with(&[with_running(2, 2)]);
    rig.node.settings.memory = MemoryPolicy {
        budget_bytes: 150,
        pressure_permille: 0,
    };
    rig.advance(0);
    look(&mut rig, 0, false);
    assert_eq!(rig.freezing, [rig.created[1]]);
    rig.freeze_all();
    rig.advance(1_000);
    assert!(rig.thawing.is_empty(), "not while memory is short");
    let short = |it: &&Notice| {
        matches!(
            it,
            Notice::MemoryShort {
                short_bytes: 50,
                ..
            }
        )
    };
    assert_eq!(rig.notices.iter().filter(short).count(), 1);
    // A claim takes it all the same.
    rig.granted(ask(1));
    assert_eq!(rig.granted(ask(2)).source, Source::Thawed);
}

#[test]
fn waiters_are_bounded() {
    let (mut rig, _) = asleep();
    for _ in 0..WAKERS_PER_CLAIM {
        let request = rig.locate(1);
        assert!(rig.is_open(request));
    }
    let one_more = rig.locate(1);
    assert!(matches!(rig.refusal(one_more), Refusal::QueueFull { .. }));
}

#[test]
fn a_node_without_a_disk_tier_says_so() {
    let mut rig = Rig::with(&[pool("py", 1, 4)]);
    rig.node.settings.disk.enabled = false;
    rig.granted(ask(1));
    let request = rig.sink(1);
    assert!(matches!(rig.refusal(request), Refusal::Unsupported { .. }));
}
