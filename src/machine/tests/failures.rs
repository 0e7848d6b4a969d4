//! The seven ways warm pools fail in the field, each a regression test.

use super::fixtures::*;
use super::rig::Rig;
use crate::machine::event::*;
use crate::machine::ids::*;
use crate::machine::limits::*;
use crate::machine::refusal::Refusal;
use crate::machine::spec::*;
use crate::machine::view::*;

#[test]
fn failure_1_double_assignment_from_a_stale_view() {
    let mut rig = Rig::with(&[pool("py", 1, 1)]);
    let stale = rig.store.clone();
    let member = *rig.store.sandboxes.keys().next().unwrap();
    // Two allocators saw the same member; both claims are in one batch.
    let first = rig.claim(ask(1));
    rig.send_in_batch(Event::Request(
        RequestId(100),
        Call::Claim(fence(1), Box::new(ask(2))),
    ));
    assert!(matches!(
        rig.refusal(RequestId(100)),
        Refusal::PoolEmpty { .. }
    ));
    rig.guests_confirm();
    assert_eq!(rig.grant(first).sandbox, member);

    // hearthd dies before the commit: the journal still shows the member as free, its guest has been personalized.
    rig.store = stale;
    rig.restart();
    rig.connect(&[member]);
    let before_the_guest_told = rig.claim(ask(2));
    assert!(matches!(
        rig.refusal(before_the_guest_told),
        Refusal::PoolEmpty { .. }
    ));
    rig.witness(Held::Claim(id(1)));
    assert_eq!(rig.destroying, [member]);
    let never = rig.claim(ask(2));
    assert!(matches!(rig.refusal(never), Refusal::PoolEmpty { .. }));
}

#[test]
fn failure_2_over_creation_runaway_after_lagging_events() {
    let mut rig = Rig::with(&[]);
    rig.call(Call::SetPools(
        fence(1),
        set(
            2,
            &[PoolSpec {
                max_parallel_refills: 16,
                ..pool("py", 3, 9)
            }],
        ),
    ));
    assert_eq!(rig.created.len(), 3);
    // Whatever happens, no event of these creations has come.
    for _ in 0..50 {
        rig.advance(RELIST_MS);
        rig.listed(&[]);
        rig.send(Event::Runtime { available: false });
        rig.connect(&[]);
    }
    assert_eq!(rig.created.len(), 3);
    rig.create_all();
    assert_eq!((rig.created.len(), rig.pool("py").warm), (3, 3));
}

#[test]
fn failure_3_warm_orphans_after_a_restart() {
    let mut rig = Rig::with(&[pool("py", 2, 4)]);
    let members: Vec<_> = rig.store.sandboxes.keys().copied().collect();
    let unrecorded = sandbox(9_999);
    rig.restart();
    let listed: Vec<_> = members.iter().copied().chain([unrecorded]).collect();
    rig.connect(&listed);
    assert_eq!(rig.destroying, [unrecorded]);
    assert!(rig.notices.contains(&Notice::OrphanDestroyed {
        sandbox: unrecorded
    }));
    rig.witness(Held::Nothing);
    rig.witness(Held::Nothing);
    assert_eq!(rig.pool("py").warm, 2, "adopted");
    assert_eq!(rig.created, [], "none beside them");
    rig.destroy_all();
    assert!(rig.inspect().orphans.is_empty());
    let fresh = rig.granted(ask(1)).sandbox;
    assert!(members.contains(&fresh));
    assert_eq!(rig.created.len(), 1);
    assert!(
        rig.created.iter().all(|id| id.sequence() > 9_999),
        "its id is not reused"
    );
}

#[test]
fn failure_4_restart_kills_claimed_sandboxes() {
    let mut rig = Rig::with(&[pool("py", 2, 4)]);
    let confirmed = rig.granted(ask(1));
    let unconfirmed = rig.granted(ask(2));
    rig.store.claims.get_mut(&id(2)).unwrap().confirmed = false;
    rig.restart();
    // containerd is slow, events of every kind come, time passes.
    rig.send(Event::Runtime { available: false });
    rig.advance(60_000);
    assert_eq!(rig.state(1), Some(ClaimState::Unknown));
    rig.connect(&[confirmed.sandbox, unconfirmed.sandbox]);
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
    for _ in 0..100 {
        rig.witness(Held::Silent);
        assert_eq!(rig.state(2), Some(ClaimState::Unknown));
        rig.live_for(WITNESS_RETRY_MAX_MS, |rig| {
            rig.creating.clear();
        });
    }
    rig.witness(Held::Claim(id(2)));
    assert_eq!(rig.state(2), Some(ClaimState::Claimed));
    let again = rig.claim(ask(2));
    assert_eq!(rig.grant(again), unconfirmed);
    for claimed in [confirmed.sandbox, unconfirmed.sandbox] {
        assert!(!rig.destroying.contains(&claimed));
    }
}

#[test]
fn failure_5_handing_out_members_that_are_not_ready() {
    let mut rig = Rig::with(&[]);
    rig.call(Call::SetPools(fence(1), set(2, &[pool("py", 1, 1)])));
    let made = rig.creating[0];
    let early = rig.claim(ask(1));
    assert!(matches!(rig.refusal(early), Refusal::PoolEmpty { .. }));
    // It runs, says the runtime; but nothing has proved it ready.
    rig.send(Event::Runtime { available: true });
    rig.listed(&[made]);
    let listed = rig.claim(ask(1));
    assert!(matches!(rig.refusal(listed), Refusal::PoolEmpty { .. }));
    // It ended between its proof and the event of it.
    rig.send(Event::Ended(made, ExitCause::Exited));
    rig.send(Event::Created(made, Ok(())));
    let dead = rig.claim(ask(1));
    assert!(matches!(rig.refusal(dead), Refusal::PoolEmpty { .. }));
    assert_eq!(rig.destroying, [made]);
}

#[test]
fn failure_6_endless_refill_of_a_failing_template() {
    let mut rig = Rig::with(&[pool("ok", 1, 2)]);
    let sound = rig.created.len();
    let declared = [pool("ok", 1, 2), pool("py", 8, 8)];
    rig.call(Call::SetPools(fence(1), set(2, &declared)));
    let fail_all = |rig: &mut Rig| {
        while !rig.creating.is_empty() {
            rig.create_fails("exit status 1");
        }
        rig.destroy_all();
    };
    fail_all(&mut rig);
    rig.live_for(60 * 60 * 1000, fail_all);
    let made = rig.created.len() - sound;
    let probes = usize::try_from(60 * 60 * 1000 / BREAKER_MAX_MS).unwrap();
    let most = usize::try_from(BREAKER_FAILURES).unwrap() + 2 + probes + 6;
    assert!(made <= most, "{made} creations in an hour, at most {most}");
    assert!(made >= probes, "it is still being probed");
    let view = rig.pool("py");
    assert!(matches!(view.breaker, BreakerView::Open(_)));
    assert_eq!(view.breaker_reason, "exit status 1");
    assert_eq!(rig.pool("ok").warm, 1);
    let told = rig.claim(ask(1));
    let visible =
        |it| matches!(it, Refusal::PoolFailing { detail, .. } if detail == "exit status 1");
    assert!(visible(rig.refusal(told)));
    let opened = |it: &&Notice| matches!(it, Notice::BreakerOpened { .. });
    assert_eq!(rig.notices.iter().filter(opened).count(), 1);
    // One probe at a time; when it succeeds the pool fills.
    let until = match view.breaker {
        BreakerView::Open(until) => until,
        other => panic!("{other:?}"),
    };
    rig.now = until;
    rig.send(Event::Tick);
    assert_eq!(rig.creating.len(), 1);
    assert_eq!(rig.pool("py").breaker, BreakerView::HalfOpen);
    rig.create_all();
    assert_eq!(rig.pool("py").warm, 8);
    let closed = Notice::BreakerClosed { pool: name("py") };
    assert!(rig.notices.contains(&closed));
}

#[test]
fn failure_7_reconcile_that_revives_or_renews_idle_ones() {
    let mut rig = Rig::with(&[pool("py", 3, 3)]);
    let asked = |claim| ClaimRequest {
        ttl_ms: 10 * RELIST_MS,
        ..ask(claim)
    };
    let held = rig.granted(asked(1));
    let released = rig.granted(asked(2));
    let failed = rig.granted(asked(3));
    rig.release(2);
    rig.send(Event::Ended(failed.sandbox, ExitCause::Exited));
    // Listings go on showing all three as alive.
    let all = [held.sandbox, released.sandbox, failed.sandbox];
    for _ in 0..9 {
        rig.advance(RELIST_MS);
        rig.listed(&all);
    }
    let expires_at = rig.view(1).unwrap().expires_at;
    assert_eq!(expires_at, held.expires_at, "not renewed");
    assert_eq!(rig.state(2), None);
    assert_eq!(rig.state(3), Some(ClaimState::Failed), "not revived");
    assert_eq!(rig.pool("py").warm, 0, "used ones never return");
    rig.advance(RELIST_MS);
    rig.listed(&all);
    assert_eq!(rig.state(1), None, "expired");
    assert_eq!(rig.state(3), None);
    let dead: Vec<_> = rig.inspect().sandboxes;
    assert!(dead.iter().all(|it| it.owner == "releasing"));
}
