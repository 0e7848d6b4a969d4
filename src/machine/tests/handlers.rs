//! A handler that can't freeze: its pools stay warm and running, and nothing ever tries to put its sandboxes to sleep.

use super::fixtures::*;
use super::rig::Rig;
use crate::machine::event::*;
use crate::machine::node::MemoryPolicy;
use crate::machine::refusal::Refusal;
use crate::machine::spec::*;
use crate::machine::view::*;

/// Everything that would put a gVisor pool's sandboxes to sleep is asked for.
fn virtual_machines(min_warm: u32) -> PoolSpec {
    let spec = pool("py", min_warm, 8);
    PoolSpec {
        template: Template {
            runtime_handler: "kata-clh".into(),
            idle_after_ms: 1_000,
            ..spec.template
        },
        running: Some(0),
        ..spec
    }
}

fn look(rig: &mut Rig) {
    rig.look(1000, |idle| Sample {
        memory_bytes: 1 << 30,
        ..idle
    });
}

#[test]
fn its_members_stay_warm_and_running() {
    let rig = &mut Rig::with(&[virtual_machines(3)]);
    rig.live_for(60_000, |_| {});
    assert!(rig.freezing.is_empty());
    let pool = rig.pool("py");
    assert_eq!((pool.warm, pool.frozen), (3, 0));
    let granted = rig.granted(ask(1));
    assert_eq!(granted.source, Source::Warm);
}

#[test]
fn hibernate_is_refused_on_every_tier_and_says_why() {
    let rig = &mut Rig::with(&[virtual_machines(1)]);
    rig.granted(ask(1));
    for asked in [rig.hibernate(1), rig.sink(1)] {
        let Refusal::Unsupported { what } = rig.refusal(asked) else {
            panic!("{:?}", rig.refusal(asked));
        };
        assert!(
            what.contains("kata-clh") && what.contains("cgroup"),
            "{what}"
        );
    }
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
    assert!(rig.freezing.is_empty() && rig.checkpointing.is_empty());
    let used = rig.locate(1);
    assert!(matches!(rig.ok(used), Answer::Located { .. }));
}

#[test]
fn neither_idleness_nor_pressure_freezes_it() {
    let rig = &mut Rig::with(&[virtual_machines(2)]);
    rig.node.settings.memory = MemoryPolicy {
        budget_bytes: 1,
        pressure_permille: 1,
    };
    rig.granted(ask(1));
    for _ in 0..20 {
        look(rig);
        assert!(!rig.sampling.is_empty(), "it is looked at");
        assert!(rig.freezing.is_empty() && rig.checkpointing.is_empty());
    }
}

#[test]
fn a_drain_that_hibernates_waits_for_it() {
    let rig = &mut Rig::with(&[virtual_machines(1)]);
    rig.granted(ask(1));
    rig.create_all();
    let asked = DrainRequest {
        mode: DrainMode::Hibernate,
        deadline_ms: Some(1_000),
    };
    rig.call(Call::Drain(asked));
    rig.destroy_all();
    look(rig);
    rig.advance(10_000);
    assert!(rig.freezing.is_empty());
    let view = rig.node.drain_view().unwrap();
    assert_eq!((view.state, view.claims), (DrainState::Overdue, 1));
    rig.release(1);
    rig.destroy_all();
    let view = rig.node.drain_view().unwrap();
    assert_eq!(view.state, DrainState::Drained);
}

#[test]
fn members_of_an_older_template_are_judged_by_their_own_handler() {
    let rig = &mut Rig::with(&[virtual_machines(1)]);
    let old = rig.created[0];
    let revised = PoolSpec {
        generation: 2,
        running: Some(0),
        ..pool("py", 2, 8)
    };
    rig.call(Call::SetPools(fence(1), set(2, &[revised])));
    rig.create_all();
    assert!(!rig.freezing.is_empty(), "gVisor's is frozen");
    assert!(!rig.freezing.contains(&old));
    rig.freeze_all();
    let pool = rig.pool("py");
    assert_eq!((pool.warm, pool.frozen), (2, 1));
}
