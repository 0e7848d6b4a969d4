//! The cold start after an image was lost, rule by rule.

use super::fixtures::*;
use super::rig::Rig;
use crate::machine::event::*;
use crate::machine::ids::*;
use crate::machine::record;
use crate::machine::refusal::Refusal;
use crate::machine::spec::*;
use crate::machine::view::*;

fn asked() -> ClaimRequest {
    ClaimRequest {
        on_data_loss: Some(OnDataLoss::Cold),
        ttl_ms: 60_000,
        ..ask(1)
    }
}

/// A claim whose image is lost while somebody waits for its sandbox.
fn lost() -> (Rig, SandboxId, RequestId) {
    let mut rig = Rig::with(&[pool("py", 1, 2)]);
    let old = rig.granted(asked()).sandbox;
    rig.create_all();
    rig.sink(1);
    rig.sink_all();
    let request = rig.locate(1);
    lose(&mut rig, old);
    (rig, old, request)
}

fn lose(rig: &mut Rig, sandbox: SandboxId) {
    rig.restoring.clear();
    let failure = RestoreFailure::Lost("damaged".to_owned());
    rig.send(Event::Restored(sandbox, Err(failure)));
}

fn is_recorded_on_disk(rig: &Rig, sandbox: SandboxId) -> bool {
    let record = &rig.store.sandboxes[&sandbox];
    matches!(record.residency, record::Residency::OnDisk(_))
}

fn shown(rig: &mut Rig) -> ClaimView {
    rig.view(1).expect("the claim is there")
}

#[test]
fn a_claim_that_wants_it_gets_a_fresh_sandbox_and_is_told() {
    let (mut rig, old, request) = lost();
    let other = rig.resume(1);
    let fresh = rig.creating[0];
    assert!(
        rig.is_open(request) && rig.is_open(other),
        "they wait for it"
    );
    assert!(is_recorded_on_disk(&rig, old) && rig.destroying.is_empty());
    assert_eq!(rig.store.claims[&id(1)].sandbox, old, "nothing is decided");
    rig.create_all();
    let told = rig.personalizing.clone();
    assert_eq!(told, [(fresh, id(1), None)], "nothing of a caller's");
    rig.guests_confirm();
    let committed = rig.ticket;
    let record = &rig.store.claims[&id(1)];
    assert_eq!((record.sandbox, record.first), (fresh, Some(old)));
    assert!(record.confirmed);
    match rig.ok(request) {
        Answer::Located { sandbox, .. } => assert_eq!(sandbox, fresh),
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.replies[&request].1, committed, "durable first");
    assert_eq!(rig.ok(other), Answer::Resumed);
    assert_eq!(rig.destroying, [old]);
    assert!(rig.notices.contains(&Notice::ColdStarted(id(1), fresh)));
    let view = shown(&mut rig);
    assert_eq!((view.state, view.cold_starts), (ClaimState::Claimed, 1));
    assert_eq!(view.reason.as_deref(), Some("DATA_LOSS"));
    assert_eq!(view.source, Some(Source::Cold));
    // The same claim again: the fresh one, under the old token.
    let again = rig.claim(asked());
    let grant = rig.grant(again);
    assert_eq!((grant.sandbox, grant.first), (fresh, old));
    // It goes on like any other, over a restart too.
    rig.destroy_all();
    rig.sink(1);
    rig.sink_all();
    rig.restart();
    rig.connect(&[]);
    rig.sink_all();
    let view = shown(&mut rig);
    assert_eq!((view.state, view.cold_starts), (ClaimState::Hibernated, 1));
    assert_eq!((view.sandbox, view.first), (Some(fresh), Some(old)));
    rig.resume(1);
    lose(&mut rig, fresh);
    rig.create_all();
    rig.guests_confirm();
    assert_eq!(shown(&mut rig).cold_starts, 2);
    rig.advance(60_000);
    assert_eq!(rig.state(1), None, "it expires when it would have");
}

#[test]
fn the_template_decides_where_the_claim_does_not() {
    for (of_template, of_claim, cold) in [
        (OnDataLoss::Cold, None, true),
        (OnDataLoss::Cold, Some(OnDataLoss::Fail), false),
        (OnDataLoss::Fail, None, false),
        (OnDataLoss::Fail, Some(OnDataLoss::Cold), true),
    ] {
        let template = Template {
            on_data_loss: of_template,
            ..template("image:1")
        };
        let mut rig = Rig::with(&[PoolSpec {
            template,
            ..pool("py", 1, 2)
        }]);
        let asked = ClaimRequest {
            on_data_loss: of_claim,
            ..ask(1)
        };
        let old = rig.granted(asked).sandbox;
        rig.create_all();
        rig.sink(1);
        rig.sink_all();
        let request = rig.resume(1);
        lose(&mut rig, old);
        assert_eq!(rig.is_open(request), cold, "{of_template:?} {of_claim:?}");
        let state = rig.state(1);
        assert_eq!(state == Some(ClaimState::Failed), !cold);
    }
}

#[test]
fn what_can_not_be_made_now_is_tried_at_the_next_use() {
    // Its creation fails.
    let (mut rig, old, request) = lost();
    let fresh = rig.creating.remove(0);
    let failure = CreateFailure::Template("no room".to_owned());
    rig.send(Event::Created(fresh, Err(failure)));
    let refusal = rig.refusal(request);
    assert!(matches!(refusal, Refusal::ResumeFailed { detail, .. } if detail == "no room"));
    assert_eq!(rig.state(1), Some(ClaimState::Hibernated));
    assert_eq!(rig.destroying, [fresh]);
    rig.destroy_all();
    // Its guest does not answer.
    let request = rig.resume(1);
    lose(&mut rig, old);
    let fresh = rig.creating[0];
    rig.create_all();
    rig.guest_is_lost();
    assert!(matches!(rig.refusal(request), Refusal::ResumeFailed { .. }));
    assert_eq!(rig.destroying, [fresh]);
    rig.destroy_all();
    // It ends while its guest is told.
    let request = rig.resume(1);
    lose(&mut rig, old);
    let fresh = rig.creating[0];
    rig.create_all();
    rig.send(Event::Ended(fresh, ExitCause::Exited));
    assert!(matches!(rig.refusal(request), Refusal::ResumeFailed { .. }));
    assert_eq!(rig.state(1), Some(ClaimState::Hibernated));
    // No containerd.
    let request = rig.resume(1);
    rig.send(Event::Runtime { available: false });
    lose(&mut rig, old);
    assert!(matches!(rig.refusal(request), Refusal::ResumeFailed { .. }));
    assert!(is_recorded_on_disk(&rig, old));
}

#[test]
fn a_release_or_a_restart_in_the_middle_leaves_one_of_the_two_or_none() {
    // Released while it is being made, and while its guest is told.
    for made in [false, true] {
        let (mut rig, old, request) = lost();
        let fresh = rig.creating[0];
        if made {
            rig.create_all();
        }
        rig.release(1);
        assert!(matches!(
            rig.refusal(request),
            Refusal::ReleasedInFlight { .. }
        ));
        rig.create_all();
        rig.guests_confirm();
        let mut gone = rig.destroying.clone();
        gone.sort();
        assert_eq!(gone, [old, fresh]);
        rig.destroy_all();
        assert_eq!(rig.state(1), None);
    }
    // hearthd dies before the commit: what was being made is undone, the claim is its image.
    let (mut rig, old, _) = lost();
    let fresh = rig.creating[0];
    rig.create_all();
    rig.restart();
    rig.connect(&[fresh]);
    assert!(rig.destroying.contains(&fresh) && !rig.destroying.contains(&old));
    assert_eq!(rig.state(1), Some(ClaimState::Hibernated));
    assert!(is_recorded_on_disk(&rig, old));
}

#[test]
fn a_pool_that_is_gone_can_not_start_it() {
    let (mut rig, _, _) = lost();
    let mut rig = {
        rig.create_all();
        rig.guests_confirm();
        rig
    };
    let fresh = shown(&mut rig).sandbox.expect("it has one");
    rig.sink(1);
    rig.sink_all();
    rig.call(Call::SetPools(fence(1), set(2, &[])));
    let request = rig.resume(1);
    lose(&mut rig, fresh);
    let refusal = rig.refusal(request);
    assert!(matches!(refusal, Refusal::SandboxEnded { reason, .. } if reason == "DATA_LOSS"));
    assert_eq!(rig.state(1), Some(ClaimState::Failed));
}
