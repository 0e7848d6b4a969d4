//! The claim contract, rule by rule.

use super::fixtures::*;
use super::rig::Rig;
use crate::machine::event::*;
use crate::machine::ids::*;
use crate::machine::limits::*;
use crate::machine::network::{NetworkMode, NetworkPolicy};
use crate::machine::record::Op;
use crate::machine::refusal::Refusal;
use crate::machine::spec::*;
use crate::machine::view::*;

fn cold(claim: u128) -> ClaimRequest {
    ClaimRequest {
        on_empty: OnEmpty::Cold,
        ..ask(claim)
    }
}

fn wait(claim: u128, timeout_ms: u64) -> ClaimRequest {
    ClaimRequest {
        on_empty: OnEmpty::Wait { timeout_ms },
        ..ask(claim)
    }
}

fn with_ttl(claim: u128, ttl_ms: u64) -> ClaimRequest {
    ClaimRequest {
        ttl_ms,
        ..ask(claim)
    }
}

#[test]
fn rule_1_the_same_claim_gives_the_same_answer() {
    let mut rig = Rig::with(&[pool("py", 2, 4)]);
    let first = rig.granted(with_ttl(1, 60_000));
    rig.advance(500);
    let again = rig.claim(with_ttl(1, 60_000));
    assert_eq!(rig.grant(again), first);
    assert!(rig.personalizing.is_empty());
}

#[test]
fn rule_1_a_released_claim_is_remembered() {
    let mut rig = Rig::with(&[pool("py", 2, 4)]);
    rig.granted(ask(1));
    rig.release(1);
    rig.restart();
    let members: Vec<_> = rig.store.sandboxes.keys().copied().collect();
    rig.connect(&members);
    let again = rig.claim(ask(1));
    assert!(matches!(rig.refusal(again), Refusal::ClaimReleased { .. }));
    let read = rig.call(Call::Get(id(1)));
    assert!(matches!(rig.refusal(read), Refusal::ClaimReleased { .. }));
}

#[test]
fn rule_1_tombstones_live_a_day_and_are_bounded() {
    let mut rig = Rig::with(&[pool("py", 1, 1)]);
    let cycle = |rig: &mut Rig, claim| {
        rig.granted(ask(claim));
        rig.release(claim);
        rig.destroy_all();
        rig.create_all();
    };
    cycle(&mut rig, 1);
    rig.advance(TOMBSTONE_MIN_AGE_MS - 2000);
    cycle(&mut rig, 2);
    assert!(rig.store.tombstones.contains_key(&id(1)));
    rig.advance(2000);
    cycle(&mut rig, 3);
    let left: Vec<_> = rig.store.tombstones.keys().copied().collect();
    assert_eq!(left, [id(2), id(3)]);

    // Too many in a day: the oldest goes early, and that is told.
    let before = rig.now;
    for claim in rig.store.tombstones.len()..TOMBSTONES {
        let claim = id(1_000_000 + u128::try_from(claim).unwrap());
        rig.store.tombstones.insert(claim, before);
    }
    rig.restart();
    rig.connect(&[]);
    rig.destroy_all();
    rig.create_all();
    cycle(&mut rig, 4);
    let forgotten = |it: &&Notice| **it == Notice::TombstoneForgottenEarly;
    assert!(rig.notices.iter().filter(forgotten).count() > 0);
    assert!(rig.store.tombstones.len() <= TOMBSTONES);
}

#[test]
fn rule_2_other_content_is_refused_by_field() {
    let mut rig = Rig::with(&[pool("py", 2, 4)]);
    let other = ClaimRequest {
        content: content(7),
        ..ask(1)
    };
    let differs = |refusal| match refusal {
        Refusal::ClaimContentDiffers { field, .. } => field,
        other => panic!("{other:?}"),
    };
    rig.claim(ask(1));
    let early = rig.claim(other.clone());
    assert_eq!(differs(rig.refusal(early)), "personalization.env");
    rig.guests_confirm();
    let late = rig.claim(other);
    assert_eq!(differs(rig.refusal(late)), "personalization.env");
}

#[test]
fn rule_3_a_retry_joins_and_starts_nothing() {
    let mut rig = Rig::with(&[pool("py", 2, 4)]);
    let first = rig.claim(ask(1));
    let second = rig.claim(ask(1));
    assert_eq!(rig.personalizing.len(), 1);
    assert!(rig.is_open(first) && rig.is_open(second));
    rig.guests_confirm();
    assert_eq!(rig.grant(first), rig.grant(second));
    assert_eq!(rig.pool("py").claimed, 1);
}

#[test]
fn rule_3_those_that_join_are_bounded() {
    let mut rig = Rig::with(&[pool("py", 1, 1)]);
    let all: Vec<_> = (0..JOINERS_PER_CLAIM).map(|_| rig.claim(ask(1))).collect();
    let one_more = rig.claim(ask(1));
    let full = |it| matches!(it, Refusal::QueueFull { queue, .. } if queue == "joiners");
    assert!(full(rig.refusal(one_more)));
    rig.guests_confirm();
    for request in all {
        rig.grant(request);
    }
}

#[test]
fn rule_3_each_waits_until_its_own_deadline_and_the_oldest_left_is_used() {
    let mut rig = Rig::with(&[pool("py", 0, 1)]);
    let first = rig.claim(wait(1, 300));
    let second = rig.claim(wait(1, 5000));
    rig.advance(300);
    assert!(matches!(rig.refusal(first), Refusal::WaitTimedOut { .. }));
    assert!(rig.is_open(second));
    rig.create_all();
    assert_eq!(
        rig.personalizing[0].2,
        Some(second),
        "its request is still there"
    );
    rig.guests_confirm();
    rig.grant(second);
}

#[test]
fn rule_4_an_unrenewed_claim_expires_counted_from_the_acknowledgement() {
    let mut rig = Rig::with(&[pool("py", 1, 2)]);
    let request = rig.claim(with_ttl(1, 10_000));
    rig.advance(3000);
    rig.guests_confirm();
    let told = rig.grant(request).expires_at;
    assert_eq!(told, Some(rig.now.plus(10_000)));
    rig.advance(9999);
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
    rig.advance(1);
    assert_eq!(rig.state(1), None);
    assert_eq!(rig.destroying.len(), 1);
    assert!(rig.notices.contains(&Notice::ClaimExpired { claim: id(1) }));
    let again = rig.claim(with_ttl(1, 10_000));
    assert!(matches!(rig.refusal(again), Refusal::ClaimReleased { .. }));
}

#[test]
fn rule_4_renew_moves_the_expiry_and_0_is_never() {
    let mut rig = Rig::with(&[pool("py", 1, 2)]);
    rig.granted(with_ttl(1, 10_000));
    rig.advance(9000);
    let renewed = rig.renew(1, 10_000);
    let expires_at = Some(rig.now.plus(10_000));
    assert_eq!(rig.ok(renewed), Answer::Renewed { expires_at });
    rig.advance(9000);
    rig.renew(1, 0);
    rig.advance(MAX_TTL_MS);
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
    let absent = rig.renew(2, 1000);
    assert!(matches!(rig.refusal(absent), Refusal::ClaimUnknown { .. }));
}

#[test]
fn rule_4_a_claim_in_flight_goes_on_without_its_caller() {
    // The driver forgets a caller that went away; the machine is not told and finishes the claim.
    let mut rig = Rig::with(&[pool("py", 1, 2)]);
    rig.claim(with_ttl(1, 1000));
    rig.advance(20_000);
    rig.guests_confirm();
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
}

#[test]
fn rule_5_fencing() {
    let mut rig = Rig::with(&[pool("py", 4, 8)]);
    let with = |epoch, caller: &str, claim| {
        let caller = Some(caller.to_owned());
        Call::Claim(Fence { epoch, caller }, Box::new(ask(claim)))
    };
    let new = rig.call(with(7, "b", 1));
    let held = |op: &Op| matches!(op, Op::PutFence(Fence { epoch: 7, .. }));
    assert!(
        rig.persisted.iter().any(held),
        "durable with the op that raised it"
    );
    rig.guests_confirm();
    rig.grant(new);
    let stale = rig.call(with(6, "a", 2));
    assert_eq!(rig.refusal(stale), Refusal::EpochStale { current: 7 });
    let conflict = rig.call(with(7, "a", 2));
    assert_eq!(rig.refusal(conflict), Refusal::EpochConflict { current: 7 });
    for stale in [
        Call::Release(fence(6), id(1)),
        Call::Renew(fence(6), id(1), 5),
        Call::SetPools(fence(6), set(2, &[])),
    ] {
        let stale = rig.call(stale);
        assert_eq!(rig.refusal(stale), Refusal::EpochStale { current: 7 });
    }
    let read = rig.call(Call::Get(id(1)));
    assert!(matches!(rig.ok(read), Answer::Claim(_)));

    rig.restart();
    let stale = rig.call(Call::Release(fence(6), id(1)));
    assert_eq!(rig.refusal(stale), Refusal::EpochStale { current: 7 });
}

#[test]
fn rule_5_an_admin_acts_beside_the_owner_of_the_epoch() {
    let mut rig = Rig::with(&[pool("py", 2, 8)]);
    let as_caller = |epoch, caller: Option<&str>| Fence {
        epoch,
        caller: caller.map(str::to_owned),
    };
    let release = |rig: &mut Rig, fence| rig.call(Call::Release(fence, id(77)));
    // The admin brings the epoch; the first allocator that comes with it owns it, durably.
    let admin = release(&mut rig, as_caller(7, None));
    rig.ok(admin);
    let owner = release(&mut rig, as_caller(7, Some("a")));
    rig.ok(owner);
    let conflict = Refusal::EpochConflict { current: 7 };
    let other = release(&mut rig, as_caller(7, Some("b")));
    assert_eq!(rig.refusal(other), conflict);
    let admin = release(&mut rig, as_caller(7, None));
    rig.ok(admin);
    let stale = release(&mut rig, as_caller(6, None));
    assert_eq!(rig.refusal(stale), Refusal::EpochStale { current: 7 });
    rig.restart();
    let other = release(&mut rig, as_caller(7, Some("b")));
    assert_eq!(rig.refusal(other), conflict);
}

#[test]
fn rule_5_an_answer_waits_for_the_epoch_it_was_given_under() {
    let mut rig = Rig::with(&[pool("py", 1, 2)]);
    rig.granted(ask(1));
    let retry = rig.call(Call::Claim(fence(9), Box::new(ask(1))));
    assert_eq!(rig.replies[&retry].1, rig.ticket);
    let settled = rig.ticket;
    let retry = rig.call(Call::Claim(fence(9), Box::new(ask(1))));
    assert_eq!(
        rig.replies[&retry].1, settled,
        "and not for unrelated commits"
    );
}

#[test]
fn rule_6_an_answer_waits_for_the_guest_and_for_the_commit_of_the_assignment() {
    let mut rig = Rig::with(&[pool("py", 1, 2)]);
    let request = rig.claim(ask(1));
    let assigned = rig.ticket;
    assert!(rig.is_open(request));
    let pending = rig.call(Call::Locate(id(1)));
    assert!(matches!(rig.refusal(pending), Refusal::ClaimPending { .. }));
    rig.guests_confirm();
    assert!(rig.ticket > assigned);
    assert_eq!(rig.replies[&request].1, assigned);
    assert!(rig.store.claims[&id(1)].confirmed);
    let located = rig.call(Call::Locate(id(1)));
    assert!(matches!(
        rig.ok(located),
        Answer::Located {
            template: Some(_),
            ..
        }
    ));
}

#[test]
fn rule_6_a_lost_guest_costs_its_sandbox_and_the_same_request_gets_the_next() {
    let mut rig = Rig::with(&[pool("py", 4, 8)]);
    let request = rig.claim(ask(1));
    let lost = rig.personalizing[0].0;
    rig.guest_is_lost();
    assert!(rig.destroying.contains(&lost));
    assert_ne!(rig.personalizing[0].0, lost);
    assert_eq!(rig.personalizing[0].2, Some(request));
    rig.guests_confirm();
    assert_ne!(rig.grant(request).sandbox, lost);
    // The late word of a guest that was given up means nothing.
    rig.send(Event::Personalized(lost, id(1), Ok(())));
    assert_eq!(
        rig.view(1).unwrap().sandbox,
        Some(rig.grant(request).sandbox)
    );
}

#[test]
fn rule_6_attempts_are_bounded() {
    let mut rig = Rig::with(&[pool("py", 4, 8)]);
    let request = rig.claim(ask(1));
    for _ in 0..CLAIM_ATTEMPTS {
        assert!(rig.is_open(request));
        rig.guest_is_lost();
    }
    let attempts =
        |it| matches!(it, Refusal::GuestFailed { attempts, .. } if attempts == CLAIM_ATTEMPTS);
    assert!(attempts(rig.refusal(request)));
    assert!(rig.personalizing.is_empty() && rig.store.claims.is_empty());
    rig.create_all();
    rig.granted(ask(1));
}

#[test]
fn rule_6_what_an_answer_shows_is_durable() {
    let mut rig = Rig::with(&[pool("py", 1, 2)]);
    let grant = rig.granted(with_ttl(1, 10_000));
    let shows = |rig: &mut Rig| {
        let calls = [
            Call::Get(id(1)),
            Call::Locate(id(1)),
            Call::Claim(fence(1), Box::new(with_ttl(1, 10_000))),
        ];
        calls.map(|call| {
            let request = rig.call(call);
            rig.replies[&request].1
        })
    };
    rig.renew(1, 50_000);
    let renewed = rig.ticket;
    assert_eq!(shows(&mut rig), [renewed; 3]);
    rig.send(Event::Ended(grant.sandbox, ExitCause::Exited));
    let failed = rig.ticket;
    let read = rig.call(Call::Get(id(1)));
    assert_eq!(rig.replies[&read].1, failed);
    let list = Call::List {
        pool: None,
        after: None,
        limit: 9,
    };
    let listed = rig.call(list);
    assert_eq!(rig.replies[&listed].1, rig.ticket);
}

#[test]
fn rule_7_fail_tells_the_refill_estimate() {
    let mut rig = Rig::with(&[pool("py", 0, 8)]);
    let estimate = |rig: &Rig, request| match rig.refusal(request) {
        Refusal::PoolEmpty { retry_ms, .. } => retry_ms,
        other => panic!("{other:?}"),
    };
    let unmeasured = rig.claim(ask(1));
    assert_eq!(estimate(&rig, unmeasured), REFILL_ESTIMATE_MS);
    // Measured: a creation of 2 s, then more of them.
    rig.claim(cold(2));
    rig.advance(2000);
    let made = rig.creating.remove(0);
    rig.send(Event::Created(made, Ok(())));
    let measured = rig.claim(ask(3));
    assert_eq!(estimate(&rig, measured), 2000);
}

#[test]
fn rule_7_wait_is_first_come_first_served_until_the_deadline() {
    let mut rig = Rig::with(&[pool("py", 0, 2)]);
    let requests: Vec<_> = (1..=3)
        .map(|claim| rig.claim(wait(claim, 10_000)))
        .collect();
    assert_eq!(rig.creating.len(), 2, "waiting claims are a demand");
    rig.create_all();
    let served: Vec<_> = rig.personalizing.iter().filter_map(|it| it.2).collect();
    assert_eq!(served, requests[..2]);
    rig.guests_confirm();
    rig.advance(10_000);
    assert!(matches!(
        rig.refusal(requests[2]),
        Refusal::WaitTimedOut { .. }
    ));
    assert_eq!(rig.state(3), None);
    assert_eq!(rig.pool("py").waiting, 0);
}

#[test]
fn rule_7_who_lost_a_member_waits_at_the_front() {
    let mut rig = Rig::with(&[pool("py", 1, 1)]);
    let first = rig.claim(wait(1, 60_000));
    let second = rig.claim(wait(2, 60_000));
    rig.guest_is_lost();
    assert!(
        rig.store.claims.is_empty(),
        "it has no sandbox: nothing of it is durable"
    );
    rig.destroy_all();
    rig.create_all();
    rig.guests_confirm();
    rig.grant(first);
    assert!(rig.is_open(second));
}

#[test]
fn rule_7_waiting_claims_are_bounded() {
    let mut rig = Rig::with(&[pool("py", 0, 0)]);
    let most = u128::try_from(WAITERS_PER_POOL).unwrap();
    for claim in 1..=most {
        rig.claim(wait(claim, 60_000));
    }
    let one_more = rig.claim(wait(most + 1, 60_000));
    let full = |it| matches!(it, Refusal::QueueFull { queue, .. } if queue == "waiters");
    assert!(full(rig.refusal(one_more)));
}

fn by(who: &str, asked: ClaimRequest) -> ClaimRequest {
    let by = who.into();
    ClaimRequest { by, ..asked }
}

#[test]
fn rule_7_callers_that_wait_take_turns_and_each_is_served_in_its_order() {
    let mut rig = Rig::with(&[pool("py", 0, 4)]);
    for claim in 1..=20 {
        rig.claim(by("greedy", wait(claim, 60_000)));
    }
    for claim in 21..=23 {
        rig.claim(by("modest", wait(claim, 60_000)));
    }
    rig.create_all();
    let served = rig.personalizing.iter().map(|(_, claim, _)| *claim);
    assert_eq!(served.collect::<Vec<_>>(), [1, 21, 2, 22].map(id));
    // One that loses its member comes next again.
    rig.guest_is_lost();
    rig.destroy_all();
    rig.create_all();
    let next = rig.personalizing.last().unwrap().1;
    assert_eq!(next, id(1));
}

#[test]
fn rule_7_who_waits_with_many_makes_room_for_who_waits_with_few() {
    let mut rig = Rig::with(&[pool("py", 0, 0)]);
    let most = u128::try_from(WAITERS_PER_POOL).unwrap();
    let greedy: Vec<_> = (1..=most)
        .map(|claim| rig.claim(by("greedy", wait(claim, 60_000))))
        .collect();
    let full = |it| matches!(it, Refusal::QueueFull { queue, .. } if queue == "waiters");
    let more = rig.claim(by("greedy", wait(most + 1, 60_000)));
    assert!(full(rig.refusal(more)));
    let modest = rig.claim(by("modest", wait(most + 2, 60_000)));
    assert!(rig.is_open(modest));
    let newest = *greedy.last().unwrap();
    assert!(full(rig.refusal(newest)), "the newest of who has most");
    assert!(greedy[..greedy.len() - 1].iter().all(|it| rig.is_open(*it)));
    // As many each, and not one more.
    let others =
        (2..=most / 2).map(|claim| rig.claim(by("modest", wait(most + 1 + claim, 60_000))));
    let others: Vec<_> = others.collect();
    assert!(others.iter().all(|it| rig.is_open(*it)));
    let beyond = rig.claim(by("modest", wait(3 * most, 60_000)));
    assert!(full(rig.refusal(beyond)));
}

#[test]
fn rule_7_cold_is_created_for_the_claim_within_the_limits() {
    let mut rig = Rig::with(&[pool("py", 0, 2)]);
    let requests: Vec<_> = (1..=2).map(|claim| rig.claim(cold(claim))).collect();
    let full = rig.claim(cold(3));
    assert!(matches!(
        rig.refusal(full),
        Refusal::PoolFull { limit: 2, .. }
    ));
    rig.create_all();
    rig.guests_confirm();
    for request in requests {
        assert_eq!(rig.grant(request).source, Source::Cold);
    }
    let mut rig = Rig::with(&[pool("py", 1, 2)]);
    let warm = rig.granted(cold(1));
    assert_eq!(warm.source, Source::Warm, "a warm member is better");
}

#[test]
fn rule_7_a_cold_creation_that_fails_refuses_the_claim() {
    let mut rig = Rig::with(&[pool("py", 0, 2)]);
    let request = rig.claim(cold(1));
    rig.create_fails("no such command");
    let failed =
        |it| matches!(it, Refusal::CreateFailed { detail, .. } if detail == "no such command");
    assert!(failed(rig.refusal(request)));
    assert_eq!(rig.destroying.len(), 1);
    assert!(rig.store.claims.is_empty());
}

#[test]
fn rule_7_a_cold_claim_that_waits_for_a_slot_takes_a_member_that_becomes_warm() {
    let mut rig = Rig::with(&[PoolSpec {
        max_parallel_refills: 1,
        ..pool("py", 0, 4)
    }]);
    let first = rig.claim(cold(1));
    let second = rig.claim(cold(2));
    assert_eq!(rig.creating.len(), 1);
    rig.release(1);
    assert!(matches!(
        rig.refusal(first),
        Refusal::ReleasedInFlight { .. }
    ));
    rig.create_all();
    rig.guests_confirm();
    rig.grant(second);
}

#[test]
fn rule_8_what_cannot_be_applied_is_refused() {
    let mut rig = Rig::with(&[pool("py", 2, 4)]);
    let policy = |policy: NetworkPolicy| ClaimRequest {
        network_policy: Some(policy),
        ..ask(1)
    };
    let refused = rig.claim(policy(mode(NetworkMode::Internet)));
    let unsupported = Refusal::NetworkPolicyUnsupported {
        policy: "internet",
        pool: "py".to_owned(),
    };
    assert_eq!(rig.refusal(refused), unsupported);
    let request = rig.claim(policy(mode(NetworkMode::None)));
    let spent = rig.personalizing[0].0;
    rig.guest_says(GuestFailure::Refused("bad path".to_owned()));
    let detail = "bad path".to_owned();
    assert_eq!(
        rig.refusal(request),
        Refusal::PersonalizationRefused { detail }
    );
    assert_eq!(rig.destroying, [spent], "the sandbox is spent");
    assert!(rig.personalizing.is_empty(), "no other would");
    assert!(rig.store.claims.is_empty() && rig.store.tombstones.is_empty());
}

#[test]
fn rule_9_release_is_durable_before_it_is_answered_and_destroyed() {
    let mut rig = Rig::with(&[pool("py", 1, 2)]);
    let grant = rig.granted(ask(1));
    let released = rig.release(1);
    assert_eq!(rig.ok(released), Answer::Released);
    assert_eq!(rig.replies[&released].1, rig.ticket);
    assert_eq!(rig.destroying, [grant.sandbox]);
    assert!(rig.store.tombstones.contains_key(&id(1)));
    let again = rig.release(1);
    let absent = rig.release(99);
    assert_eq!(rig.ok(again), Answer::Released);
    assert_eq!(rig.ok(absent), Answer::Released);
    rig.destroy_all();
    assert!(!rig.store.sandboxes.contains_key(&grant.sandbox));
}

#[test]
fn rule_9_release_during_claim_wins_at_every_stage() {
    type Stage = (&'static str, u32, fn(u128) -> ClaimRequest);
    let stages: [Stage; 3] = [
        ("assigned", 1, ask),
        ("making", 0, cold),
        ("queued", 0, |claim| wait(claim, 60_000)),
    ];
    for (stage, min_warm, asked) in stages {
        let mut rig = Rig::with(&[pool("py", min_warm, 1)]);
        if stage == "queued" {
            rig.claim(cold(9));
        }
        let request = rig.claim(asked(1));
        let released = rig.release(1);
        assert_eq!(rig.ok(released), Answer::Released, "{stage}");
        let lost = matches!(rig.refusal(request), Refusal::ReleasedInFlight { .. });
        assert!(lost, "{stage}");
        let retry = rig.claim(asked(1));
        let spent = matches!(rig.refusal(retry), Refusal::ClaimReleased { .. });
        assert!(spent, "{stage}");
        rig.create_all();
        rig.guests_confirm();
        assert_eq!(rig.state(1), None, "{stage}");
    }
}

#[test]
fn rule_9_a_release_that_overtakes_its_claim_wins() {
    let mut rig = Rig::with(&[pool("py", 1, 2)]);
    let member = rig.created[0];
    let released = rig.release(1);
    assert_eq!(rig.ok(released), Answer::Released);
    assert_eq!(rig.replies[&released].1, rig.ticket, "durable before");
    rig.restart();
    rig.connect(&[member]);
    rig.witness(Held::Nothing);
    let late = rig.claim(ask(1));
    assert!(matches!(rig.refusal(late), Refusal::ClaimReleased { .. }));
    rig.release(1);
    assert_eq!(rig.persisted, [], "spent already");
}

#[test]
fn rule_9_a_failed_destruction_is_tried_for_ever() {
    let mut rig = Rig::with(&[pool("py", 1, 1)]);
    rig.granted(ask(1));
    rig.release(1);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let sandbox = rig.destroying.pop().unwrap();
        rig.send(Event::Destroyed(sandbox, Err("busy".to_owned())));
        let start = rig.now;
        while rig.destroying.is_empty() {
            rig.now = rig.node.next_wakeup().unwrap();
            rig.send(Event::Tick);
        }
        pauses.push(rig.now.since(start));
    }
    assert_eq!(pauses[..3], [500, 1000, 2000]);
    assert_eq!(pauses[11], DESTROY_RETRY_MAX_MS);
    assert_eq!(rig.creating, [], "its place is not free yet");
    rig.destroy_all();
    assert_eq!(rig.creating.len(), 1);
}

#[test]
fn rule_10_a_batch_is_judged_one_by_one_and_committed_together() {
    let mut rig = Rig::with(&[pool("py", 2, 4)]);
    rig.send(Event::Tick);
    let claims = [ask(1), ask(2), ask(3)];
    for (at, asked) in claims.into_iter().enumerate() {
        let request = RequestId(100 + u64::try_from(at).unwrap());
        rig.send_in_batch(Event::Request(
            request,
            Call::Claim(fence(1), Box::new(asked)),
        ));
    }
    let together = rig.ticket;
    rig.guests_confirm();
    for request in [100, 101] {
        rig.grant(RequestId(request));
        assert_eq!(rig.replies[&RequestId(request)].1, together);
    }
    assert!(matches!(
        rig.refusal(RequestId(102)),
        Refusal::PoolEmpty { .. }
    ));
}

#[test]
fn an_ended_sandbox_fails_its_claim_until_it_is_released() {
    let mut rig = Rig::with(&[pool("py", 1, 2)]);
    let grant = rig.granted(ask(1));
    rig.send(Event::Ended(grant.sandbox, ExitCause::OutOfMemory));
    let view = rig.view(1).unwrap();
    assert_eq!(
        (view.state, view.reason.as_deref()),
        (ClaimState::Failed, Some("OOM"))
    );
    for call in [
        Call::Claim(fence(1), Box::new(ask(1))),
        Call::Locate(id(1)),
        Call::Renew(fence(1), id(1), 1000),
    ] {
        let request = rig.call(call);
        assert!(matches!(rig.refusal(request), Refusal::SandboxEnded { .. }));
    }
    rig.destroy_all();
    rig.restart();
    let members: Vec<_> = rig.store.sandboxes.keys().copied().collect();
    rig.connect(&members);
    assert_eq!(rig.state(1), Some(ClaimState::Failed));
    rig.release(1);
    assert_eq!(rig.state(1), None);
}

#[test]
fn watchers_see_every_change_in_order() {
    let mut rig = Rig::with(&[pool("py", 1, 2)]);
    rig.granted(with_ttl(1, 5000));
    rig.renew(1, 9000);
    rig.release(1);
    let seen: Vec<_> = rig
        .changes
        .iter()
        .map(|(it, gone)| (it.state, *gone))
        .collect();
    let claimed = (ClaimState::Claimed, false);
    assert_eq!(
        seen,
        [
            (ClaimState::Pending, false),
            claimed,
            claimed,
            (ClaimState::Claimed, true)
        ]
    );
}

#[test]
fn list_pages_by_id() {
    let mut rig = Rig::with(&[pool("js", 1, 8), pool("py", 3, 8)]);
    for claim in 1..=3 {
        rig.granted(ask(claim));
    }
    rig.granted(ClaimRequest {
        pool: name("js"),
        ..ask(4)
    });
    let mut page = |pool: Option<&str>, after: Option<u128>, limit| {
        let request = rig.call(Call::List {
            pool: pool.map(name),
            after: after.map(id),
            limit,
        });
        match rig.ok(request) {
            Answer::Claims { claims, more } => {
                let ids: Vec<_> = claims.iter().map(|it| it.id).collect();
                (ids, more)
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(page(None, None, 2), (vec![id(1), id(2)], true));
    assert_eq!(page(None, Some(2), 2), (vec![id(3), id(4)], false));
    assert_eq!(
        page(Some("py"), None, 3),
        (vec![id(1), id(2), id(3)], false)
    );
}
