//! Restarts and listings.

use super::fixtures::*;
use super::rig::Rig;
use crate::machine::event::*;
use crate::machine::ids::*;
use crate::machine::limits::*;
use crate::machine::record;
use crate::machine::refusal::Refusal;
use crate::machine::spec::*;
use crate::machine::view::*;

/// One claim whose confirmation never reached the journal; hearthd has restarted and the runtime shows its sandbox.
fn unconfirmed(ttl_ms: u64) -> (Rig, Grant) {
    let mut rig = Rig::with(&[pool("py", 1, 1)]);
    let grant = rig.granted(ClaimRequest { ttl_ms, ..ask(1) });
    rig.store.claims.get_mut(&id(1)).unwrap().confirmed = false;
    rig.restart();
    rig.connect(&[grant.sandbox]);
    assert_eq!(rig.witnessing, [grant.sandbox]);
    (rig, grant)
}

#[test]
fn nothing_is_done_before_the_runtime_was_listed() {
    let mut rig = Rig::with(&[pool("py", 2, 3)]);
    rig.granted(ask(1));
    rig.release(1);
    rig.granted(ask(2));
    rig.restart();
    for event in [Event::Tick, Event::Runtime { available: true }, Event::Tick] {
        rig.send(event);
    }
    for call in [
        Call::Claim(fence(1), Box::new(ask(3))),
        Call::SetPools(fence(1), set(2, &[])),
    ] {
        let refused = rig.call(call);
        assert!(matches!(rig.refusal(refused), Refusal::Starting { .. }));
    }
    let read = rig.call(Call::Get(id(2)));
    assert!(matches!(rig.ok(read), Answer::Claim(view) if view.state == ClaimState::Unknown));
    let released = rig.release(2);
    assert_eq!(rig.ok(released), Answer::Released);
    assert!(rig.destroying.is_empty() && rig.creating.is_empty());
    assert_eq!(rig.inspect().phase, "recovering");
    rig.listed(&[]);
    assert_eq!(rig.inspect().phase, "ready");
    assert_eq!(rig.destroying.len(), NODE_PARALLEL_DESTROYS.min(3));
}

#[test]
fn an_intent_to_create_without_a_result_is_undone() {
    let mut rig = Rig::with(&[]);
    rig.call(Call::SetPools(fence(1), set(2, &[pool("py", 1, 1)])));
    let begun = rig.creating[0];
    rig.restart();
    rig.connect(&[begun]);
    assert_eq!(rig.destroying, [begun], "alive, but never proved");
    let owner = rig.store.sandboxes[&begun].owner;
    assert_eq!(
        owner,
        record::Owner::Releasing,
        "durable before it is destroyed"
    );
    rig.destroy_all();
    assert_ne!(rig.creating, [begun]);
}

#[test]
fn a_claim_the_guest_holds_is_confirmed() {
    let (mut rig, grant) = unconfirmed(0);
    let retry = rig.claim(ask(1));
    assert!(rig.is_open(retry), "it waits for the guest's word");
    rig.witness(Held::Claim(id(1)));
    assert_eq!(rig.grant(retry), grant);
    assert!(rig.store.claims[&id(1)].confirmed);
}

#[test]
fn a_claim_the_guest_does_not_hold_is_served_by_a_retry_on_the_same_sandbox() {
    let (mut rig, grant) = unconfirmed(0);
    rig.witness(Held::Nothing);
    assert_eq!(rig.state(1), Some(ClaimState::Pending));
    let retry = rig.claim(ask(1));
    let again = vec![(grant.sandbox, id(1), Some(retry))];
    assert_eq!(rig.personalizing, again, "with the retry's own data");
    rig.guests_confirm();
    assert_eq!(rig.grant(retry), grant);

    // The retry came first.
    let (mut rig, grant) = unconfirmed(0);
    let retry = rig.claim(ask(1));
    rig.witness(Held::Nothing);
    rig.guests_confirm();
    assert_eq!(rig.grant(retry), grant);
}

#[test]
fn a_claim_nobody_was_told_of_goes_with_its_expiry_its_release_or_its_sandbox() {
    let (mut rig, _) = unconfirmed(10_000);
    rig.witness(Held::Nothing);
    rig.advance(9000);
    assert_eq!(rig.state(1), Some(ClaimState::Pending));
    rig.advance(1000);
    assert_eq!(rig.state(1), None);

    let (mut rig, grant) = unconfirmed(0);
    rig.witness(Held::Nothing);
    rig.send(Event::Ended(grant.sandbox, ExitCause::Exited));
    assert_eq!(rig.state(1), None);
    rig.destroy_all();
    rig.create_all();
    rig.granted(ask(1));
}

#[test]
fn a_silent_guest_keeps_its_claim_and_callers_are_told_to_come_again() {
    let (mut rig, _) = unconfirmed(0);
    let retry = rig.claim(ask(1));
    rig.witness(Held::Silent);
    assert!(matches!(
        rig.refusal(retry),
        Refusal::ClaimRecovering { .. }
    ));
    let located = rig.call(Call::Locate(id(1)));
    assert!(matches!(
        rig.refusal(located),
        Refusal::ClaimRecovering { .. }
    ));
    assert!(rig.witnessing.is_empty());
    let eager = rig.claim(ask(1));
    assert_eq!(rig.witnessing.len(), 1, "who asks makes it ask at once");
    rig.witness(Held::Claim(id(1)));
    rig.grant(eager);
}

#[test]
fn an_unconfirmed_claim_never_expires_before_the_time_its_caller_was_told() {
    let mut rig = Rig::with(&[pool("py", 1, 1)]);
    let request = rig.claim(ClaimRequest {
        ttl_ms: 10_000,
        ..ask(1)
    });
    let before = rig.store.claims.clone();
    rig.advance(4000);
    rig.guests_confirm();
    let told = rig.grant(request).expires_at.unwrap();
    rig.store.claims = before;
    rig.restart();
    rig.connect(&[rig.store.claims[&id(1)].sandbox]);
    rig.witness(Held::Claim(id(1)));
    assert!(rig.view(1).unwrap().expires_at.unwrap() >= told);
    rig.now = told;
    rig.send(Event::Tick);
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
}

#[test]
fn a_holder_can_renew_while_its_guest_is_silent() {
    let (mut rig, _) = unconfirmed(10_000);
    rig.witness(Held::Silent);
    let renewed = rig.renew(1, 60_000);
    assert!(matches!(rig.ok(renewed), Answer::Renewed { .. }));
    rig.live_for(59_000, |rig| rig.witnessing.clear());
    assert_eq!(rig.state(1), Some(ClaimState::Unknown));
}

#[test]
fn a_guest_that_holds_another_claim_is_lost() {
    let (mut rig, grant) = unconfirmed(0);
    rig.witness(Held::Claim(id(77)));
    let view = rig.view(1).unwrap();
    assert_eq!(view.reason.as_deref(), Some("GUEST_LOST"));
    assert_eq!(rig.destroying, [grant.sandbox]);
}

#[test]
fn what_is_not_there_any_more_has_ended() {
    let mut rig = Rig::with(&[pool("py", 2, 3)]);
    let grant = rig.granted(ask(1));
    rig.restart();
    rig.connect(&[]);
    let view = rig.view(1).unwrap();
    assert_eq!(
        (view.state, view.reason.as_deref()),
        (ClaimState::Failed, Some("SANDBOX_EXITED"))
    );
    assert!(
        rig.destroying.contains(&grant.sandbox),
        "remains may be left"
    );
    rig.destroy_all();
    rig.create_all();
    rig.destroy_all();
    assert_eq!(rig.pool("py").warm, 2);
    rig.release(1);
}

#[test]
fn a_member_that_stays_silent_is_given_up_within_its_budget() {
    let mut rig = Rig::with(&[pool("py", 1, 2)]);
    let member = rig.created[0];
    rig.restart();
    rig.connect(&[member]);
    let mut asked = 0;
    while !rig.witnessing.is_empty() {
        asked += 1;
        rig.witness(Held::Silent);
        rig.live_for(WITNESS_RETRY_MAX_MS, |_| {});
    }
    assert_eq!(asked, WITNESS_TRIES);
    assert_eq!(rig.destroying, [member]);
}

#[test]
fn members_not_heard_of_yet_are_counted() {
    let mut rig = Rig::with(&[pool("py", 2, 4)]);
    let members = rig.created.clone();
    rig.restart();
    rig.connect(&members);
    assert_eq!((rig.pool("py").warm, rig.pool("py").creating), (0, 2));
    assert!(rig.creating.is_empty());
}

#[test]
fn a_listing_judges_only_what_was_known_when_it_was_asked_for() {
    let mut rig = Rig::with(&[pool("py", 1, 4)]);
    let old = rig.created[0];
    rig.advance(RELIST_MS);
    let asked = rig.round;
    // Meanwhile the member is claimed, its successor proved ready.
    rig.granted(ask(1));
    rig.create_all();
    let young = *rig.created.last().unwrap();
    let only_old = vec![Observed {
        id: old,
        alive: true,
        frozen: false,
    }];
    rig.send(Event::Listed {
        round: asked,
        observed: only_old.clone(),
    });
    assert_eq!(
        rig.pool("py").warm,
        1,
        "the listing is older than the member"
    );
    // A late answer to an older question means nothing at all.
    rig.advance(RELIST_MS);
    rig.send(Event::Listed {
        round: asked,
        observed: Vec::new(),
    });
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
    rig.send(Event::Listed {
        round: rig.round,
        observed: only_old,
    });
    assert_eq!(rig.pool("py").warm, 0, "now its absence counts");
    assert!(rig.destroying.contains(&young));
}

#[test]
fn what_was_destroyed_while_the_listing_ran_is_no_orphan() {
    let mut rig = Rig::with(&[pool("py", 0, 4)]);
    rig.claim(ClaimRequest {
        on_empty: OnEmpty::Cold,
        ..ask(1)
    });
    rig.create_all();
    rig.guests_confirm();
    let gone = rig.created[0];
    rig.advance(RELIST_MS);
    rig.release(1);
    rig.destroy_all();
    rig.listed(&[gone]);
    assert!(rig.inspect().orphans.is_empty() && rig.destroying.is_empty());
}

#[test]
fn a_listing_heals_a_lost_exit() {
    let mut rig = Rig::with(&[pool("py", 1, 4)]);
    rig.granted(ask(1));
    rig.create_all();
    rig.advance(RELIST_MS);
    rig.listed(&[]);
    assert_eq!(rig.state(1), Some(ClaimState::Failed));
    assert_eq!(rig.pool("py").warm, 0);
}

#[test]
fn another_data_directorys_sandboxes_are_left_alone_until_named() {
    let mut rig = Rig::new();
    let stranger = SandboxId::new(NodeTag(7), 1).unwrap();
    rig.send(Event::Runtime { available: true });
    rig.listed(&[stranger]);
    assert_eq!(rig.inspect().orphans, [stranger]);
    assert!(
        rig.notices
            .contains(&Notice::OrphanFound { sandbox: stranger })
    );
    assert!(rig.destroying.is_empty());
    let unknown = rig.call(Call::DestroyOrphans(vec![stranger, sandbox(5)]));
    assert!(matches!(rig.refusal(unknown), Refusal::InvalidArgument(_)));
    assert!(rig.destroying.is_empty(), "all or none");
    rig.call(Call::DestroyOrphans(vec![stranger]));
    assert_eq!(rig.destroying, [stranger]);
    rig.destroy_all();
    assert!(rig.inspect().orphans.is_empty());
    // One that goes by itself is forgotten.
    rig.advance(RELIST_MS);
    rig.listed(&[SandboxId::new(NodeTag(7), 2).unwrap()]);
    rig.advance(RELIST_MS);
    rig.listed(&[]);
    assert!(rig.inspect().orphans.is_empty());
}

#[test]
fn a_listing_that_never_comes_is_asked_for_again() {
    let mut rig = Rig::started(Default::default(), Now(5));
    rig.send(Event::Runtime { available: true });
    assert_eq!(rig.round, 1);
    rig.live_for(RELIST_MS, |_| {});
    assert_eq!(rig.round, 2);
    rig.send(Event::Runtime { available: false });
    rig.live_for(5 * RELIST_MS, |_| {});
    assert_eq!(rig.round, 2, "nobody could answer");
    rig.connect(&[]);
    assert_eq!(rig.inspect().phase, "ready");
}

#[test]
fn ids_are_never_reused_whatever_was_lost() {
    let mut rig = Rig::with(&[pool("py", 3, 3)]);
    let mut used = rig.created.clone();
    for _ in 0..3 {
        rig.restart();
        rig.connect(&[]);
        rig.destroy_all();
        rig.create_all();
        rig.destroy_all();
        assert!(rig.created.iter().all(|id| !used.contains(id)));
        used.append(&mut rig.created.clone());
    }
}
