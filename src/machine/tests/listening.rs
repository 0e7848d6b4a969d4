//! What comes in for sandboxes that sleep.

use super::fixtures::*;
use super::rig::Rig;
use crate::machine::event::*;
use crate::machine::ids::*;
use crate::machine::limits::*;
use crate::machine::spec::*;
use crate::machine::view::*;

fn held(idle_after_ms: u64) -> (Rig, SandboxId) {
    let spec = pool("py", 1, 4);
    let template = Template {
        idle_after_ms,
        ..networked(spec.template)
    };
    let mut rig = Rig::with(&[PoolSpec { template, ..spec }]);
    let sandbox = rig.granted(ask(1)).sandbox;
    rig.create_all();
    (rig, sandbox)
}

fn asleep() -> (Rig, SandboxId) {
    let (mut rig, sandbox) = held(0);
    rig.hibernate(1);
    rig.freeze_all();
    (rig, sandbox)
}

/// The next look, which finds that something came in so long ago.
fn hear(rig: &mut Rig, sandbox: SandboxId, ago_ms: u64) {
    let before = rig.listening;
    rig.advance(LISTEN_MS);
    assert_eq!(rig.listening, before + 1, "a look is asked for");
    rig.send(Event::Heard(vec![(sandbox, ago_ms)]));
}

/// Looks at what it does for so long: nothing.
fn looks_for(rig: &mut Rig, millis: u64) {
    for _ in 0..=millis / SAMPLE_MS {
        // The look at what came in that was out when it woke.
        rig.send(Event::Heard(Vec::new()));
        rig.look(0, |idle| idle);
    }
}

#[test]
fn what_comes_in_wakes_and_what_came_before_does_not() {
    let (mut rig, sandbox) = asleep();
    // It answered somebody, and was then put to sleep.
    hear(&mut rig, sandbox, LISTEN_MS + KNOCK_EARLY_MS + 1);
    assert!(rig.thawing.is_empty());
    hear(&mut rig, sandbox, 2 * LISTEN_MS);
    assert_eq!(rig.thawing, [sandbox]);
    rig.thaw_all();
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
    let why = rig.notices.iter().find_map(|it| match it {
        Notice::ThawStarted { cause } => Some(*cause),
        _ => None,
    });
    assert_eq!(why, Some(ThawCause::Traffic));
}

#[test]
fn nobody_is_listened_for_who_runs_or_has_no_interface_or_is_nobodys() {
    let nobody = |rig: &mut Rig| {
        rig.advance(10 * LISTEN_MS);
        assert_eq!(rig.listening, 0);
    };
    nobody(&mut held(0).0);
    let mut without = Rig::with(&[pool("py", 1, 4)]);
    without.granted(ask(1));
    without.hibernate(1);
    without.freeze_all();
    nobody(&mut without);
    let spec = pool("py", 1, 4);
    let members = PoolSpec {
        template: networked(spec.template),
        running: Some(0),
        ..spec
    };
    let mut members = Rig::with(&[members]);
    members.freeze_all();
    assert_eq!(members.pool("py").frozen, 1);
    nobody(&mut members);
}

#[test]
fn one_look_is_out_at_a_time_and_the_last_ends_with_the_last_sleeper() {
    let (mut rig, _) = asleep();
    rig.advance(LISTEN_MS);
    rig.advance(10 * LISTEN_MS);
    assert_eq!(rig.listening, 1, "the kernel takes its time");
    rig.send(Event::Heard(Vec::new()));
    rig.advance(LISTEN_MS);
    assert_eq!(rig.listening, 2);
    rig.resume(1);
    rig.thaw_all();
    rig.send(Event::Heard(Vec::new()));
    rig.advance(10 * LISTEN_MS);
    assert_eq!(rig.listening, 2);
}

#[test]
fn what_traffic_alone_woke_falls_asleep_again() {
    let (mut rig, sandbox) = asleep();
    hear(&mut rig, sandbox, 0);
    rig.thaw_all();
    looks_for(&mut rig, DROWSY_IDLE_MS - SAMPLE_MS);
    assert!(rig.freezing.is_empty(), "not at once");
    looks_for(&mut rig, SAMPLE_MS);
    assert_eq!(rig.freezing, [sandbox]);
    rig.freeze_all();
    // And so on.
    hear(&mut rig, sandbox, 0);
    assert_eq!(rig.thawing, [sandbox]);
}

#[test]
fn what_a_caller_uses_meanwhile_stays_awake() {
    for resumed in [true, false] {
        let (mut rig, sandbox) = asleep();
        hear(&mut rig, sandbox, 0);
        rig.thaw_all();
        match resumed {
            true => rig.resume(1),
            false => rig.locate(1),
        };
        looks_for(&mut rig, 10 * DROWSY_IDLE_MS);
        assert!(rig.freezing.is_empty());
    }
}

#[test]
fn the_templates_idle_time_goes_before() {
    let (mut rig, sandbox) = held(10 * DROWSY_IDLE_MS);
    rig.hibernate(1);
    rig.freeze_all();
    hear(&mut rig, sandbox, 0);
    rig.thaw_all();
    looks_for(&mut rig, 2 * DROWSY_IDLE_MS);
    assert!(rig.freezing.is_empty());
}

#[test]
fn it_comes_back_from_the_disk_and_what_fails_waits_for_the_next_knock() {
    let (mut rig, sandbox) = held(0);
    rig.sink(1);
    rig.sink_all();
    hear(&mut rig, sandbox, 0);
    assert_eq!(rig.restoring, [sandbox]);
    rig.restoring.clear();
    let unavailable = RestoreFailure::Unavailable("containerd is away".into());
    rig.send(Event::Restored(sandbox, Err(unavailable)));
    assert_eq!(rig.state(1), Some(ClaimState::Hibernated));
    hear(&mut rig, sandbox, LISTEN_MS + KNOCK_EARLY_MS + 1);
    assert!(rig.restoring.is_empty(), "the same knock");
    hear(&mut rig, sandbox, 0);
    assert_eq!(rig.restoring, [sandbox]);
    rig.restore_all();
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
}

#[test]
fn a_knock_while_it_falls_asleep_wakes_it_once_it_sleeps() {
    let (mut rig, sandbox) = held(0);
    rig.hibernate(1);
    hear(&mut rig, sandbox, 0);
    assert!(rig.thawing.is_empty(), "its freeze is out");
    rig.freeze_all();
    hear(&mut rig, sandbox, LISTEN_MS);
    assert_eq!(rig.thawing, [sandbox]);
}

#[test]
fn a_drain_is_not_undone_by_traffic() {
    let (mut rig, sandbox) = asleep();
    rig.call(Call::Drain(DrainRequest {
        mode: DrainMode::Hibernate,
        deadline_ms: None,
    }));
    rig.sink_all();
    hear(&mut rig, sandbox, 0);
    assert!(rig.thawing.is_empty() && rig.restoring.is_empty());
    rig.call(Call::Undrain);
    hear(&mut rig, sandbox, 0);
    assert_eq!(rig.restoring, [sandbox]);
}

#[test]
fn after_a_restart_those_that_sleep_are_listened_for() {
    let (mut rig, sandbox) = asleep();
    rig.restart();
    rig.connect(&[sandbox]);
    hear(&mut rig, sandbox, 0);
    assert_eq!(rig.thawing, [sandbox]);
}
