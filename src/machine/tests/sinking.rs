//! The disk tier, rule by rule.

use super::fixtures::*;
use super::rig::Rig;
use crate::machine::event::*;
use crate::machine::ids::*;
use crate::machine::limits::*;
use crate::machine::node::MemoryPolicy;
use crate::machine::record;
use crate::machine::refusal::Refusal;
use crate::machine::spec::*;
use crate::machine::view::*;

fn held() -> (Rig, SandboxId) {
    let mut rig = Rig::with(&[pool("py", 1, 4)]);
    let sandbox = rig.granted(ask(1)).sandbox;
    rig.create_all();
    (rig, sandbox)
}

fn on_disk() -> (Rig, SandboxId) {
    let (mut rig, sandbox) = held();
    let request = rig.sink(1);
    rig.sink_all();
    assert_eq!(rig.ok(request), Answer::Hibernated);
    (rig, sandbox)
}

fn is_recorded_on_disk(rig: &Rig, sandbox: SandboxId) -> bool {
    let record = &rig.store.sandboxes[&sandbox];
    matches!(record.residency, record::Residency::OnDisk(_))
}

#[test]
fn it_is_on_the_disk_before_what_runs_goes_and_before_anyone_is_told() {
    let (mut rig, sandbox) = held();
    let request = rig.sink(1);
    assert_eq!(rig.checkpointing, [sandbox]);
    assert!(!is_recorded_on_disk(&rig, sandbox), "nothing has happened");
    assert_eq!(rig.state(1), Some(ClaimState::Hibernated));
    assert!(rig.is_open(request));
    rig.send(Event::Checkpointed(sandbox, Ok(4711)));
    assert!(is_recorded_on_disk(&rig, sandbox));
    let (_, after) = rig.replies[&request];
    assert_eq!(after, rig.ticket, "once it is durable");
    let gate = rig.effects.iter().find_map(|it| match it {
        Effect::Shed { after, .. } => Some(*after),
        _ => None,
    });
    assert_eq!(gate, Some(rig.ticket), "and nothing goes before");
    rig.sink_all();
    // Its end outside is its own doing.
    rig.send(Event::Ended(sandbox, ExitCause::Exited));
    rig.listed(&[]);
    assert_eq!(rig.state(1), Some(ClaimState::Hibernated));
}

#[test]
fn a_use_brings_it_back_and_joins_another() {
    let (mut rig, sandbox) = on_disk();
    let counted = |rig: &mut Rig| {
        let pool = rig.pool("py");
        (pool.hibernated, pool.on_disk, pool.image_bytes > 0)
    };
    assert_eq!(counted(&mut rig), (1, 1, true));
    let (one, two) = (rig.resume(1), rig.locate(1));
    assert_eq!(counted(&mut rig), (0, 0, true), "it is still needed");
    assert_eq!(rig.restoring, [sandbox], "once");
    rig.restoring.clear();
    rig.send(Event::Restored(sandbox, Ok(())));
    assert!(rig.is_open(one) && rig.is_open(two));
    let back = rig.ticket;
    let gates = rig.effects.iter().filter_map(|it| match it {
        Effect::GoOn { after, .. } | Effect::DropImage { after, .. } => Some(*after),
        _ => None,
    });
    let gates: Vec<_> = gates.collect();
    assert_eq!(gates, [back, back], "it runs: durable first");
    assert!(!is_recorded_on_disk(&rig, sandbox));
    assert_eq!(counted(&mut rig), (0, 0, false));
    rig.thaw_all();
    assert_eq!(rig.ok(one), Answer::Resumed);
    assert!(matches!(rig.ok(two), Answer::Located { .. }));
    let later = rig.locate(1);
    assert!(rig.replies[&later].1 >= back, "nor is anyone told before");
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
}

#[test]
fn an_image_is_not_begun_before_its_claim_is_durable() {
    let mut rig = Rig::with(&[pool("py", 1, 1)]);
    // Confirmed by its guest; the commit of the assignment is still under way, and nobody was told.
    rig.claim(ask(1));
    let assigned = rig.ticket;
    rig.guests_confirm();
    rig.sink(1);
    let gate = rig.effects.iter().find_map(|it| match it {
        Effect::Checkpoint { after, .. } => Some(*after),
        _ => None,
    });
    assert!(
        gate.unwrap() >= assigned,
        "frozen, it would pass for a member never used"
    );
}

#[test]
fn a_frozen_one_goes_to_the_disk_and_a_freeze_under_way_is_followed() {
    let (mut rig, sandbox) = held();
    rig.hibernate(1);
    rig.freeze_all();
    rig.sink(1);
    let asleep = |rig: &Rig| {
        let mut those = rig.effects.iter();
        those.any(|it| matches!(it, Effect::Checkpoint { asleep: true, .. }))
    };
    assert!(asleep(&rig));
    rig.sink_all();
    assert!(is_recorded_on_disk(&rig, sandbox));

    let (mut rig, _) = held();
    let (first, second) = (rig.hibernate(1), rig.sink(1));
    rig.freeze_all();
    assert!(asleep(&rig) && rig.is_open(first) && rig.is_open(second));
    rig.sink_all();
    assert_eq!(rig.ok(second), Answer::Hibernated);
    // Asked again, for either tier: it sleeps.
    let again = rig.hibernate(1);
    assert_eq!(rig.ok(again), Answer::Hibernated);
}

#[test]
fn who_wants_it_awake_meanwhile_gets_the_one_that_runs() {
    let (mut rig, sandbox) = held();
    let (sinks, wakes) = (rig.sink(1), rig.locate(1));
    rig.checkpointing.clear();
    rig.asleep.insert(sandbox);
    rig.send(Event::Checkpointed(sandbox, Ok(7)));
    assert_eq!(rig.ok(sinks), Answer::Hibernated);
    assert_eq!(rig.dropped, [sandbox]);
    assert!(rig.shedding.is_empty() && !is_recorded_on_disk(&rig, sandbox));
    rig.thaw_all();
    assert!(matches!(rig.ok(wakes), Answer::Located { .. }));
    // While what ran is being shed it is too late for that.
    rig.sink(1);
    rig.checkpointing.clear();
    rig.send(Event::Checkpointed(sandbox, Ok(7)));
    let wakes = rig.locate(1);
    assert!(rig.restoring.is_empty());
    rig.sink_all();
    rig.restore_all();
    assert!(matches!(rig.ok(wakes), Answer::Located { .. }));
}

#[test]
fn without_room_it_stays_as_it_was_and_its_caller_is_told_why() {
    let (mut rig, sandbox) = held();
    let request = rig.sink(1);
    let failure = CheckpointFailure::NoRoom("quota".to_owned());
    rig.send(Event::Checkpointed(sandbox, Err(failure)));
    let refusal = rig.refusal(request);
    assert!(matches!(refusal, Refusal::NoRoomOnDisk { detail, .. } if detail == "quota"));
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
    // One that was frozen is, and is woken for who wants it.
    rig.hibernate(1);
    rig.freeze_all();
    rig.reclaiming.clear();
    let (sinks, wakes) = (rig.sink(1), rig.locate(1));
    let failure = CheckpointFailure::Failed("no".to_owned());
    rig.send(Event::Checkpointed(sandbox, Err(failure)));
    let refusal = rig.refusal(sinks);
    assert!(matches!(refusal, Refusal::HibernateFailed { .. }));
    assert_eq!(rig.thawing, [sandbox]);
    rig.thaw_all();
    assert!(matches!(rig.ok(wakes), Answer::Located { .. }));
    // Who sleeps on gives its memory back again.
    rig.hibernate(1);
    rig.freeze_all();
    rig.reclaiming.clear();
    rig.sink(1);
    let failure = CheckpointFailure::NoRoom("quota".to_owned());
    rig.send(Event::Checkpointed(sandbox, Err(failure)));
    assert_eq!(rig.state(1), Some(ClaimState::Hibernated));
    assert_eq!(rig.reclaiming, [sandbox]);
}

#[test]
fn what_could_not_come_back_does_not_go() {
    let (mut rig, sandbox) = held();
    let request = rig.sink(1);
    let failure = CheckpointFailure::Mismatch("another runsc".to_owned());
    rig.send(Event::Checkpointed(sandbox, Err(failure)));
    let refusal = rig.refusal(request);
    assert!(matches!(refusal, Refusal::NotRestorable { detail, .. } if detail == "another runsc"));
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
}

#[test]
fn what_does_not_come_back_now_is_kept_and_what_never_will_is_data_loss() {
    let (mut rig, sandbox) = on_disk();
    let request = rig.resume(1);
    rig.restoring.clear();
    let failure = RestoreFailure::Unavailable("no containerd".to_owned());
    rig.send(Event::Restored(sandbox, Err(failure)));
    assert!(matches!(rig.refusal(request), Refusal::ResumeFailed { .. }));
    let request = rig.locate(1);
    let failure = RestoreFailure::Mismatch("runsc".to_owned());
    rig.send(Event::Restored(sandbox, Err(failure)));
    assert!(matches!(
        rig.refusal(request),
        Refusal::ImageMismatch { .. }
    ));
    assert_eq!(rig.state(1), Some(ClaimState::Hibernated));
    assert!(rig.destroying.is_empty() && rig.dropped.is_empty());
    let request = rig.resume(1);
    let failure = RestoreFailure::Lost("damaged".to_owned());
    rig.send(Event::Restored(sandbox, Err(failure)));
    let refusal = rig.refusal(request);
    assert!(matches!(refusal, Refusal::SandboxEnded { reason, .. } if reason == "DATA_LOSS"));
    assert_eq!(rig.state(1), Some(ClaimState::Failed));
    assert_eq!(rig.destroying, [sandbox]);
}

#[test]
fn its_claim_ends_like_any_other() {
    let (mut rig, sandbox) = on_disk();
    rig.release(1);
    assert_eq!(rig.destroying, [sandbox]);
    rig.destroy_all();
    assert_eq!(rig.state(1), None);
    // It expires, whatever goes on.
    let mut rig = Rig::with(&[pool("py", 1, 4)]);
    let asked = ClaimRequest {
        ttl_ms: 10_000,
        ..ask(1)
    };
    let sandbox = rig.granted(asked).sandbox;
    rig.sink(1);
    rig.sink_all();
    let request = rig.resume(1);
    rig.advance(10_000);
    assert!(matches!(
        rig.refusal(request),
        Refusal::ReleasedInFlight { .. }
    ));
    assert_eq!(rig.destroying, [sandbox]);
    rig.send(Event::Restored(sandbox, Ok(())));
    assert_eq!(rig.state(1), None);
}

#[test]
fn after_a_restart_the_record_says_which_of_the_two_it_is() {
    // Its image is durable: what still runs goes, and the image is kept.
    let (mut rig, sandbox) = held();
    rig.sink(1);
    rig.send(Event::Checkpointed(sandbox, Ok(7)));
    rig.restart();
    assert_eq!(rig.state(1), Some(ClaimState::Hibernated));
    let early = rig.locate(1);
    assert!(matches!(
        rig.refusal(early),
        Refusal::ClaimRecovering { .. }
    ));
    rig.connect(&[sandbox]);
    assert_eq!(rig.shedding, [sandbox]);
    assert_eq!(rig.kept, Some(vec![sandbox]));
    rig.sink_all();
    let request = rig.locate(1);
    rig.restore_all();
    assert!(matches!(rig.ok(request), Answer::Located { .. }));

    // It is not: the sandbox lives on, and an image is garbage.
    let (mut rig, sandbox) = held();
    rig.sink(1);
    rig.asleep.insert(sandbox);
    rig.restart();
    rig.connect(&[sandbox]);
    assert!(rig.shedding.is_empty());
    assert_eq!(rig.kept, Some(vec![]));
    assert_eq!(rig.state(1), Some(ClaimState::Hibernated));
    let request = rig.locate(1);
    rig.thaw_all();
    assert!(matches!(rig.ok(request), Answer::Located { .. }));

    // After a reboot there is nothing but the image.
    let (mut rig, sandbox) = on_disk();
    rig.restart();
    rig.connect(&[]);
    rig.sink_all();
    rig.listed(&[]);
    assert_eq!(rig.state(1), Some(ClaimState::Hibernated));
    let request = rig.resume(1);
    assert_eq!(rig.restoring, [sandbox]);
    rig.restore_all();
    assert_eq!(rig.ok(request), Answer::Resumed);
}

#[test]
fn what_could_not_be_shed_is_shed_when_a_listing_shows_it() {
    let (mut rig, sandbox) = held();
    rig.sink(1);
    rig.send(Event::Checkpointed(sandbox, Ok(7)));
    rig.shedding.clear();
    rig.send(Event::Shed(sandbox, Err("busy".to_owned())));
    // A use that fails leaves it there.
    rig.locate(1);
    rig.restoring.clear();
    let failure = RestoreFailure::Unavailable("unreachable".to_owned());
    rig.send(Event::Restored(sandbox, Err(failure)));
    // It has died meanwhile: what is left of it shows no more than what is gone.
    rig.advance(RELIST_MS);
    rig.listed(&[]);
    assert_eq!(rig.shedding, [sandbox]);
    rig.sink_all();
    rig.advance(RELIST_MS);
    rig.listed(&[]);
    assert!(rig.shedding.is_empty(), "once it is gone that is all");
    // One that shows itself all the same goes again.
    rig.advance(RELIST_MS);
    rig.listed(&[sandbox]);
    assert_eq!(rig.shedding, [sandbox]);
}

#[test]
fn who_sleeps_long_sinks_one_after_the_other() {
    let mut rig = Rig::with(&[pool("py", 3, 8)]);
    rig.node.settings.disk.sink_after_ms = 60_000;
    let sandboxes = [1, 2].map(|claim| rig.granted(ask(claim)).sandbox);
    rig.create_all();
    for claim in [1, 2] {
        rig.hibernate(claim);
        rig.freeze_all();
    }
    rig.live_for(59_000, |_| {});
    assert!(rig.checkpointing.is_empty());
    rig.live_for(1_000, |_| {});
    assert_eq!(rig.checkpointing, sandboxes[..1], "one at a time");
    rig.sink_all();
    assert!(sandboxes.iter().all(|it| is_recorded_on_disk(&rig, *it)));
    // A woken one begins anew; one that finds no room is left alone for a while.
    let sandbox = sandboxes[0];
    rig.locate(1);
    rig.restore_all();
    rig.hibernate(1);
    rig.freeze_all();
    rig.live_for(60_000, |_| {});
    assert_eq!(rig.checkpointing, [sandbox]);
    rig.checkpointing.clear();
    let failure = CheckpointFailure::NoRoom("quota".to_owned());
    rig.send(Event::Checkpointed(sandbox, Err(failure)));
    rig.live_for(SINK_PAUSE_MS - 1, |_| {});
    assert!(rig.checkpointing.is_empty());
    rig.live_for(1, |_| {});
    assert_eq!(rig.checkpointing, [sandbox]);
}

#[test]
fn when_memory_is_short_and_all_are_frozen_the_longest_asleep_sinks() {
    let (mut rig, sandbox) = held();
    rig.node.settings.memory = MemoryPolicy {
        budget_bytes: 50,
        pressure_permille: 0,
    };
    rig.hibernate(1);
    rig.freeze_all();
    rig.advance(0);
    for _ in 0..2 {
        rig.look(0, |idle| idle);
        rig.freeze_all();
    }
    assert_eq!(rig.checkpointing, [sandbox]);
}
