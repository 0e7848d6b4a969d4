//! Drain and Undrain, rule by rule.

use super::fixtures::*;
use super::rig::Rig;
use crate::machine::event::*;
use crate::machine::limits::*;
use crate::machine::refusal::Refusal;
use crate::machine::spec::*;
use crate::machine::view::*;

fn drain(rig: &mut Rig, mode: DrainMode, deadline_ms: Option<u64>) -> DrainView {
    let request = rig.call(Call::Drain(DrainRequest { mode, deadline_ms }));
    match rig.ok(request) {
        Answer::Drain(Some(view)) => view,
        other => panic!("{other:?}"),
    }
}

fn look(rig: &mut Rig) -> Option<DrainView> {
    let request = rig.call(Call::GetDrain);
    match rig.ok(request) {
        Answer::Drain(view) => view,
        other => panic!("{other:?}"),
    }
}

fn state(rig: &mut Rig) -> DrainState {
    look(rig).expect("no drain").state
}

fn undrain(rig: &mut Rig) {
    let request = rig.call(Call::Undrain);
    assert_eq!(rig.ok(request), Answer::Drain(None));
}

const REFUSED: Refusal = Refusal::NodeDraining {
    retry_ms: DRAIN_RETRY_MS,
};

/// One claim that is held, and two members.
fn served() -> Rig {
    let mut rig = Rig::with(&[pool("py", 2, 8)]);
    rig.granted(ask(1));
    rig.create_all();
    rig
}

/// A look that finds claim 1's sandbox busy, or not.
fn sampled(rig: &mut Rig, busy: bool) {
    rig.look(0, |idle| Sample { busy, ..idle });
    assert!(!rig.sampling.is_empty(), "nobody looked");
}

#[test]
fn a_drained_node_takes_no_claims_and_destroys_what_nobody_has() {
    let rig = &mut served();
    let begun = drain(rig, DrainMode::Wait, None);
    assert_eq!((begun.claims, begun.unclaimed), (1, 2));
    assert_eq!(begun.state, DrainState::Draining);
    assert_eq!(rig.destroying.len(), 2);
    for on_empty in [
        OnEmpty::Fail,
        OnEmpty::Cold,
        OnEmpty::Wait { timeout_ms: 1000 },
    ] {
        let asked = ClaimRequest { on_empty, ..ask(2) };
        let refused = rig.claim(asked);
        assert_eq!(rig.refusal(refused), REFUSED);
    }
    rig.destroy_all();
    assert!(rig.creating.is_empty(), "nothing is made");
    // Who is there is served as before.
    let again = rig.claim(ask(1));
    assert_eq!(rig.grant(again).claim, id(1));
    let renewed = rig.renew(1, 1000);
    assert!(matches!(rig.ok(renewed), Answer::Renewed { .. }));
    let located = rig.locate(1);
    assert!(matches!(rig.ok(located), Answer::Located { .. }));
    rig.release(1);
    assert_eq!(state(rig), DrainState::Draining, "it is being destroyed");
    rig.destroy_all();
    assert_eq!(state(rig), DrainState::Drained);
    undrain(rig);
    rig.create_all();
    assert_eq!(rig.pool("py").warm, 2);
    rig.granted(ask(3));
}

#[test]
fn who_waits_when_the_drain_begins_is_refused_and_who_is_being_served_is_served() {
    let rig = &mut Rig::with(&[pool("py", 0, 8)]);
    let cold = rig.claim(ClaimRequest {
        on_empty: OnEmpty::Cold,
        ..ask(1)
    });
    let waits = rig.claim(ClaimRequest {
        on_empty: OnEmpty::Wait { timeout_ms: 60_000 },
        ..ask(2)
    });
    let made_for_it = rig.creating.clone();
    assert_eq!(made_for_it.len(), 2);
    drain(rig, DrainMode::Wait, None);
    assert_eq!(rig.refusal(waits), REFUSED);
    rig.create_all();
    rig.guests_confirm();
    assert_eq!(rig.grant(cold).source, Source::Cold);
    assert_eq!(rig.destroying, vec![made_for_it[1]]);
}

#[test]
fn the_same_drain_again_joins_and_another_one_replaces_it() {
    let rig = &mut served();
    let first = drain(rig, DrainMode::Wait, Some(60_000));
    rig.advance(5_000);
    let joined = drain(rig, DrainMode::Wait, Some(60_000));
    assert_eq!(
        (joined.since, joined.deadline),
        (first.since, first.deadline)
    );
    assert!(rig.persisted.is_empty(), "nothing new is durable");
    let replaced = drain(rig, DrainMode::Evict, Some(60_000));
    assert_eq!(replaced.since, rig.now);
    undrain(rig);
    assert!(!rig.persisted.is_empty());
    undrain(rig);
    assert!(rig.persisted.is_empty(), "there was none");
}

#[test]
fn waiting_goes_on_after_the_deadline() {
    let rig = &mut served();
    drain(rig, DrainMode::Wait, Some(1000));
    rig.destroy_all();
    rig.advance(1000);
    assert_eq!(state(rig), DrainState::Overdue);
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
    rig.release(1);
    rig.destroy_all();
    assert_eq!(state(rig), DrainState::Drained);
}

#[test]
fn eviction_releases_at_the_deadline_and_not_before() {
    let rig = &mut served();
    drain(rig, DrainMode::Evict, Some(1000));
    rig.destroy_all();
    rig.advance(999);
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
    rig.advance(1);
    assert_eq!(rig.state(1), None);
    assert!(rig.notices.contains(&Notice::ClaimEvicted { claim: id(1) }));
    let gone = rig.call(Call::Get(id(1)));
    assert!(matches!(rig.refusal(gone), Refusal::ClaimReleased { .. }));
    rig.destroy_all();
    assert_eq!(state(rig), DrainState::Drained);
}

#[test]
fn hibernation_waits_for_streams_until_the_deadline() {
    let rig = &mut served();
    drain(rig, DrainMode::Hibernate, Some(60_000));
    rig.destroy_all();
    sampled(rig, true);
    assert!(rig.freezing.is_empty(), "it is in use");
    sampled(rig, false);
    assert_eq!(rig.freezing.len(), 1);
    rig.node.settings.disk.enabled = false;
    rig.freeze_all();
    assert_eq!(rig.state(1), Some(ClaimState::Hibernated));
    let view = look(rig).unwrap();
    assert_eq!((view.claims, view.hibernated), (0, 1));
    // Without a disk tier that is all, and it is told.
    assert_eq!((view.disk_tier, view.to_disk), (false, 0));
    assert_eq!(view.state, DrainState::Drained);
    // What the drain has put to sleep stays so.
    for woken in [rig.locate(1), rig.resume(1)] {
        assert_eq!(rig.refusal(woken), REFUSED);
    }
    undrain(rig);
    let woken = rig.locate(1);
    rig.thaw_all();
    assert!(matches!(rig.ok(woken), Answer::Located { .. }));

    drain(rig, DrainMode::Hibernate, Some(10_000));
    sampled(rig, true);
    rig.advance(10_000);
    assert_eq!(rig.freezing.len(), 1, "the deadline has passed");
}

#[test]
fn a_use_after_the_look_is_not_cut_off() {
    let rig = &mut Rig::with(&[pool("py", 6, 8)]);
    for claim in 1..=6 {
        rig.granted(ask(claim));
    }
    rig.create_all();
    drain(rig, DrainMode::Hibernate, None);
    sampled(rig, false);
    assert_eq!(rig.freezing.len(), NODE_PARALLEL_FREEZES, "a few at a time");
    let used = rig.locate(6);
    assert!(matches!(rig.ok(used), Answer::Located { .. }));
    rig.freeze_all();
    assert_eq!(rig.state(6), Some(ClaimState::Claimed));
    assert_eq!(rig.state(5), Some(ClaimState::Hibernated));
    sampled(rig, false);
    rig.freeze_all();
    assert_eq!(rig.state(6), Some(ClaimState::Hibernated));
}

#[test]
fn a_freeze_that_fails_is_tried_again_after_a_rest() {
    let rig = &mut served();
    drain(rig, DrainMode::Hibernate, Some(0));
    rig.advance(0);
    let sandbox = rig.freezing.remove(0);
    rig.send(Event::Frozen(sandbox, Err("deadline".to_owned())));
    assert!(rig.freezing.is_empty(), "not at once");
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
    rig.advance(FREEZE_PAUSE_MS);
    assert_eq!(rig.freezing, vec![sandbox]);
}

#[test]
fn a_restart_goes_on_with_the_drain() {
    let rig = &mut served();
    let sandbox = rig.view(1).unwrap().sandbox.unwrap();
    let begun = drain(rig, DrainMode::Evict, Some(60_000));
    let before: Vec<_> = rig.store.sandboxes.keys().copied().collect();
    rig.restart();
    let after = look(rig).unwrap();
    assert_eq!((after.since, after.deadline), (begun.since, begun.deadline));
    let refused = rig.claim(ask(2));
    assert!(matches!(rig.refusal(refused), Refusal::Starting { .. }));
    rig.connect(&before);
    assert_eq!(rig.destroying.len(), 2, "members stay unwanted");
    assert!(!rig.destroying.contains(&sandbox));
    let refused = rig.claim(ask(2));
    assert_eq!(rig.refusal(refused), REFUSED);
    rig.destroy_all();
    // The deadline passes while hearthd is away.
    rig.now = rig.now.plus(60_000);
    rig.restart();
    rig.connect(&[sandbox]);
    rig.advance(0);
    assert_eq!(rig.destroying, vec![sandbox]);
    rig.destroy_all();
    assert_eq!(state(rig), DrainState::Drained);
    undrain(rig);
    rig.restart();
    rig.connect(&[]);
    assert_eq!(look(rig), None);
    rig.create_all();
    assert_eq!(rig.pool("py").warm, 2);
}

#[test]
fn members_that_recovery_would_prove_are_unwanted_on_a_drained_node() {
    let rig = &mut served();
    let before: Vec<_> = rig.store.sandboxes.keys().copied().collect();
    rig.restart();
    drain(rig, DrainMode::Wait, None);
    assert!(
        rig.destroying.is_empty(),
        "not before recovery has finished"
    );
    rig.connect(&before);
    assert_eq!(rig.destroying.len(), 2);
    assert!(rig.witnessing.is_empty());
}

#[test]
fn a_claim_that_nobody_was_told_of_does_not_hold_a_drain_up() {
    let rig = &mut served();
    rig.store.claims.get_mut(&id(1)).unwrap().confirmed = false;
    let before: Vec<_> = rig.store.sandboxes.keys().copied().collect();
    rig.restart();
    rig.connect(&before);
    rig.witness(Held::Nothing);
    drain(rig, DrainMode::Wait, None);
    let again = rig.claim(ask(1));
    assert_eq!(rig.refusal(again), REFUSED);
    rig.destroy_all();
    assert_eq!(state(rig), DrainState::Drained);
}

/// So many claims, all asleep in memory, on a node that is drained at once.
fn asleep(claims: u128) -> Rig {
    let mut rig = Rig::with(&[pool("py", u32::try_from(claims).unwrap(), 8)]);
    for claim in 1..=claims {
        rig.granted(ask(claim));
    }
    rig.create_all();
    drain(&mut rig, DrainMode::Hibernate, Some(0));
    rig.advance(0);
    rig.destroy_all();
    rig
}

/// Freezes end until none begins.
fn all_freeze(rig: &mut Rig) {
    while !rig.freezing.is_empty() {
        rig.freeze_all();
    }
}

#[test]
fn what_sleeps_goes_to_the_disk_a_few_at_a_time() {
    let rig = &mut asleep(5);
    all_freeze(rig);
    assert_eq!(rig.checkpointing.len(), NODE_PARALLEL_SINKS);
    let view = look(rig).unwrap();
    assert_eq!((view.claims, view.hibernated), (0, 5));
    assert_eq!((view.on_disk, view.to_disk, view.disk_tier), (0, 5, true));
    assert_eq!(view.state, DrainState::Overdue, "not there yet");
    let first = rig.checkpointing.remove(0);
    rig.send(Event::Checkpointed(first, Ok(7)));
    assert_eq!(rig.checkpointing.len(), NODE_PARALLEL_SINKS, "the next one");
    assert_eq!(rig.shedding, [first]);
    let view = look(rig).unwrap();
    assert_eq!(
        (view.on_disk, view.to_disk),
        (0, 5),
        "what ran is there yet"
    );
    while !rig.checkpointing.is_empty() {
        assert!(rig.checkpointing.len() <= NODE_PARALLEL_SINKS);
        rig.sink_all();
    }
    let view = look(rig).unwrap();
    assert_eq!((view.on_disk, view.to_disk), (5, 0));
    assert_eq!(view.state, DrainState::Drained);
    let used = rig.locate(1);
    assert_eq!(rig.refusal(used), REFUSED);
    undrain(rig);
    let used = rig.locate(1);
    rig.restore_all();
    assert!(matches!(rig.ok(used), Answer::Located { .. }));
}

#[test]
fn what_was_asleep_before_goes_to_the_disk_too_and_what_is_there_stays() {
    let rig = &mut Rig::with(&[pool("py", 2, 8)]);
    let sandboxes = [1, 2].map(|claim| rig.granted(ask(claim)).sandbox);
    rig.create_all();
    rig.hibernate(1);
    rig.freeze_all();
    rig.sink(2);
    rig.sink_all();
    drain(rig, DrainMode::Hibernate, None);
    rig.destroy_all();
    assert_eq!(rig.checkpointing, sandboxes[..1], "no look is needed");
    rig.sink_all();
    assert_eq!(state(rig), DrainState::Drained);
}

#[test]
fn one_that_does_not_get_to_the_disk_is_tried_a_few_times_and_stays_asleep() {
    let rig = &mut asleep(2);
    all_freeze(rig);
    let stuck = rig.checkpointing.remove(0);
    let no_room = CheckpointFailure::NoRoom("quota".to_owned());
    rig.send(Event::Checkpointed(stuck, Err(no_room)));
    rig.sink_all();
    for _ in 1..DRAIN_SINK_TRIES {
        assert!(rig.checkpointing.is_empty(), "not at once");
        assert_eq!(look(rig).unwrap().to_disk, 1);
        assert_eq!(state(rig), DrainState::Overdue);
        rig.advance(DRAIN_SINK_RETRY_MS);
        assert_eq!(rig.checkpointing, [stuck]);
        rig.checkpointing.clear();
        let failure = CheckpointFailure::Failed("deadline".to_owned());
        rig.send(Event::Checkpointed(stuck, Err(failure)));
    }
    rig.live_for(10 * DRAIN_SINK_RETRY_MS, |_| {});
    assert!(rig.checkpointing.is_empty(), "given up");
    let view = look(rig).unwrap();
    assert_eq!(view.state, DrainState::Drained, "all that can be done");
    assert_eq!((view.hibernated, view.on_disk, view.to_disk), (2, 1, 0));
    let kept = Kept {
        claim: id(1),
        why: NotStowed::Failed,
        detail: "deadline".to_owned(),
    };
    assert_eq!(view.kept, [kept]);
    // Asked for again it is tried again.
    let deadline_ms = Some(0);
    drain(rig, DrainMode::Hibernate, deadline_ms);
    assert_eq!(rig.checkpointing, [stuck]);
    rig.sink_all();
    let view = look(rig).unwrap();
    assert_eq!((view.on_disk, view.kept.len()), (2, 0));
}

#[test]
fn one_that_could_not_come_back_is_named_at_once() {
    let rig = &mut asleep(1);
    all_freeze(rig);
    let stuck = rig.checkpointing.remove(0);
    let failure = CheckpointFailure::Mismatch("runsc".to_owned());
    rig.send(Event::Checkpointed(stuck, Err(failure)));
    rig.live_for(10 * DRAIN_SINK_RETRY_MS, |_| {});
    assert!(rig.checkpointing.is_empty(), "tried again");
    let view = look(rig).unwrap();
    assert_eq!((view.state, view.to_disk), (DrainState::Drained, 0));
    assert_eq!(view.kept[0].why, NotStowed::NotRestorable);
}

#[test]
fn a_restart_goes_on_sending_to_the_disk() {
    let rig = &mut asleep(3);
    all_freeze(rig);
    let there: Vec<_> = rig.store.sandboxes.keys().copied().collect();
    let sunk = rig.checkpointing.remove(0);
    rig.asleep.remove(&sunk);
    rig.send(Event::Checkpointed(sunk, Ok(7)));
    rig.restart();
    rig.connect(&there);
    rig.advance(0);
    assert_eq!(rig.kept, Some(vec![sunk]));
    assert_eq!(rig.checkpointing.len(), NODE_PARALLEL_SINKS);
    rig.sink_all();
    let view = look(rig).unwrap();
    assert_eq!((view.hibernated, view.on_disk), (3, 3));
    assert_eq!(view.state, DrainState::Drained);
}

#[test]
fn nothing_goes_to_the_disk_while_containerd_is_away() {
    let rig = &mut asleep(1);
    rig.send(Event::Runtime { available: false });
    all_freeze(rig);
    assert!(rig.checkpointing.is_empty());
    let there: Vec<_> = rig.store.sandboxes.keys().copied().collect();
    rig.connect(&there);
    assert_eq!(rig.checkpointing.len(), 1);
    // The claim is released on its way: nothing is left of it.
    rig.release(1);
    rig.send(Event::Checkpointed(
        there[0],
        Err(CheckpointFailure::Failed("gone".to_owned())),
    ));
    rig.destroy_all();
    let view = look(rig).unwrap();
    assert_eq!((view.state, view.kept.len()), (DrainState::Drained, 0));
}

fn cluster(rig: &mut Rig, asked: Option<(DrainMode, Option<u64>)>) {
    let asked = asked.map(|(mode, deadline_ms)| DrainRequest { mode, deadline_ms });
    rig.send(Event::ClusterDrain { asked });
}

#[test]
fn the_cluster_drains_and_takes_back_its_own_drain_only() {
    let rig = &mut served();
    cluster(rig, Some((DrainMode::Hibernate, None)));
    let begun = look(rig).unwrap();
    assert_eq!((begun.mode, begun.by_cluster), (DrainMode::Hibernate, true));
    assert_eq!(rig.destroying.len(), 2, "as every drain");
    let refused = rig.claim(ask(2));
    assert_eq!(rig.refusal(refused), REFUSED);
    // Told again, as after every start and every change of the node: nothing is new.
    rig.advance(5_000);
    cluster(rig, Some((DrainMode::Hibernate, None)));
    assert_eq!(look(rig).unwrap().since, begun.since);
    assert!(rig.persisted.is_empty());

    // Nobody undoes it over the API.
    let undone = rig.call(Call::Undrain);
    let Answer::Drain(Some(view)) = rig.ok(undone) else {
        panic!("undone")
    };
    assert_eq!(view.since, begun.since);
    cluster(rig, None);
    assert_eq!(look(rig), None);
    assert!(rig.notices.contains(&Notice::DrainEnded));

    // And the cluster undoes none of the API's.
    let theirs = drain(rig, DrainMode::Wait, None);
    assert!(!theirs.by_cluster);
    cluster(rig, None);
    assert_eq!(look(rig).unwrap().since, theirs.since);
}

#[test]
fn of_two_drains_the_stricter_one_is_in_force() {
    use DrainMode::*;
    let rig = &mut served();
    let mode = |rig: &mut Rig| look(rig).map(|it| (it.mode, it.by_cluster));
    drain(rig, Hibernate, None);
    cluster(rig, Some((Wait, Some(1000))));
    assert_eq!(mode(rig), Some((Hibernate, true)));
    cluster(rig, Some((Evict, Some(60_000))));
    assert_eq!(mode(rig), Some((Evict, true)));
    // Over a restart, too.
    let before: Vec<_> = rig.store.sandboxes.keys().copied().collect();
    rig.restart();
    rig.connect(&before);
    assert_eq!(mode(rig), Some((Evict, true)));
    // What was asked for beside it is still there.
    cluster(rig, None);
    assert_eq!(mode(rig), Some((Hibernate, false)));
    assert_eq!(
        rig.state(1),
        Some(ClaimState::Claimed),
        "nothing was evicted"
    );
    // Of the same mode the sooner deadline.
    cluster(rig, Some((Hibernate, Some(0))));
    rig.advance(0);
    assert_eq!(rig.freezing.len(), 1);
    cluster(rig, None);
    undrain(rig);
}

#[test]
fn an_eviction_that_the_cluster_takes_back_in_time_takes_no_claim() {
    let rig = &mut served();
    cluster(rig, Some((DrainMode::Evict, Some(1000))));
    rig.advance(999);
    cluster(rig, None);
    rig.advance(10_000);
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
    cluster(rig, Some((DrainMode::Evict, Some(1000))));
    rig.advance(1000);
    assert_eq!(rig.state(1), None);
}
