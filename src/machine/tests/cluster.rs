//! What the cluster tells: a cordon, RuntimeClasses.

use super::fixtures::*;
use super::rig::Rig;
use crate::machine::classes::{Classes, RuntimeClass};
use crate::machine::event::*;
use crate::machine::refusal::Refusal;
use crate::machine::spec::*;
use crate::machine::view::*;
use std::sync::Arc;

const CORDONED: Event = Event::Cordon { cordoned: true };
const UNCORDONED: Event = Event::Cordon { cordoned: false };

fn waits(claim: u128) -> ClaimRequest {
    ClaimRequest {
        on_empty: OnEmpty::Wait { timeout_ms: 9000 },
        ..ask(claim)
    }
}

#[test]
fn a_cordon_refuses_claims_and_refill_and_leaves_what_is_there() {
    let mut rig = Rig::with(&[pool("py", 2, 4)]);
    rig.granted(ask(1));
    rig.create_all();
    rig.send(CORDONED);
    assert!(rig.inspect().cordoned);
    assert_eq!(rig.pool("py").warm, 2, "members stay");
    let refused = rig.claim(ask(2));
    assert!(matches!(rig.refusal(refused), Refusal::NodeCordoned { .. }));
    // Who had a claim keeps it: retries, renewals, sleep, release.
    let retry = rig.claim(ask(1));
    rig.grant(retry);
    let renewed = rig.renew(1, 60_000);
    assert!(matches!(rig.ok(renewed), Answer::Renewed { .. }));
    let slept = rig.hibernate(1);
    rig.freeze_all();
    assert_eq!(rig.ok(slept), Answer::Hibernated);
    let woken = rig.resume(1);
    rig.thaw_all();
    assert_eq!(rig.ok(woken), Answer::Resumed);
    let released = rig.release(1);
    assert_eq!(rig.ok(released), Answer::Released);
    rig.destroy_all();
    // A member that is lost is not made anew.
    let member = rig.created[1];
    rig.send(Event::Ended(member, ExitCause::Exited));
    rig.destroy_all();
    assert!(rig.creating.is_empty());
    rig.send(UNCORDONED);
    assert!(!rig.inspect().cordoned);
    rig.create_all();
    assert_eq!(rig.pool("py").warm, 2);
    rig.granted(ask(2));
}

#[test]
fn a_cordon_ends_the_wait_of_who_has_no_sandbox() {
    let mut rig = Rig::with(&[pool("py", 1, 2)]);
    rig.granted(ask(1));
    rig.create_all();
    rig.granted(ask(2));
    let waiting = rig.claim(waits(3));
    assert!(rig.is_open(waiting));
    rig.send(CORDONED);
    assert!(matches!(rig.refusal(waiting), Refusal::NodeCordoned { .. }));
    assert_eq!(rig.notices.pop(), Some(Notice::Cordoned(true)));
    // Told twice is told once.
    rig.send(CORDONED);
    assert_ne!(rig.notices.last(), Some(&Notice::Cordoned(true)));
    rig.send(UNCORDONED);
    assert_eq!(rig.notices.pop(), Some(Notice::Cordoned(false)));
}

/// The cluster may be away at the start, and what was cordoned for a reason must not take claims meanwhile.
#[test]
fn a_cordon_outlives_hearthd_until_the_cluster_says_otherwise() {
    let mut rig = Rig::with(&[pool("py", 2, 4)]);
    rig.send(CORDONED);
    let before: Vec<_> = rig.store.sandboxes.keys().copied().collect();
    for _ in 0..2 {
        rig.restart();
        rig.connect(&before);
        assert!(rig.inspect().cordoned);
        let refused = rig.claim(ask(2));
        assert!(matches!(rig.refusal(refused), Refusal::NodeCordoned { .. }));
        // Told again: nothing is new.
        rig.send(CORDONED);
        assert!(rig.persisted.is_empty());
    }
    rig.send(UNCORDONED);
    rig.restart();
    rig.connect(&before);
    assert!(!rig.inspect().cordoned);
    let waiting = rig.claim(waits(2));
    assert!(rig.is_open(waiting), "it is taken");
}

#[test]
fn a_claim_under_way_is_served_although_the_node_is_cordoned() {
    let mut rig = Rig::with(&[pool("py", 2, 4)]);
    let first = rig.claim(ask(1));
    rig.send(CORDONED);
    // Its guest fails, so it gets the next member.
    rig.guest_is_lost();
    rig.guests_confirm();
    rig.grant(first);
}

#[test]
fn a_drain_is_told_before_a_cordon() {
    let mut rig = Rig::with(&[pool("py", 1, 2)]);
    rig.send(CORDONED);
    let asked = DrainRequest {
        mode: DrainMode::Wait,
        deadline_ms: None,
    };
    rig.call(Call::Drain(asked));
    let refused = rig.claim(ask(1));
    assert!(matches!(rig.refusal(refused), Refusal::NodeDraining { .. }));
    rig.call(Call::Undrain);
    let refused = rig.claim(ask(1));
    assert!(matches!(rig.refusal(refused), Refusal::NodeCordoned { .. }));
}

fn class(handler: &str, selector: &[(&str, &str)]) -> RuntimeClass {
    let pairs = selector.iter();
    let pairs = pairs.map(|(label, value)| ((*label).to_owned(), (*value).to_owned()));
    RuntimeClass {
        handler: handler.to_owned(),
        node_selector: pairs.collect(),
        ..RuntimeClass::default()
    }
}

fn known(classes: &[(&str, RuntimeClass)]) -> Classes {
    let classes = classes.iter();
    Classes {
        classes: classes
            .map(|(name, it)| ((*name).to_owned(), it.clone()))
            .collect(),
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        handlers: ["gvisor".to_owned(), "other".to_owned()].into(),
    }
}

fn told(classes: &[(&str, RuntimeClass)]) -> Event {
    Event::Classes(Arc::new(known(classes)))
}

fn of_class(class: &str) -> PoolSpec {
    let mut spec = pool("py", 1, 2);
    spec.template.runtime_handler = String::new();
    spec.template.runtime_class = class.to_owned();
    spec
}

fn declare(rig: &mut Rig, generation: u64, spec: PoolSpec) -> Result<Answer, Refusal> {
    let request = rig.call(Call::SetPools(fence(1), set(generation, &[spec])));
    rig.replies[&request].0.clone()
}

#[test]
fn a_class_is_served_where_handler_and_selector_fit() {
    let classes = known(&[
        ("gvisor", class("runsc", &[])),
        ("here", class("other", &[("zone", "a")])),
        ("there", class("other", &[("zone", "b")])),
        ("labelled", class("other", &[("gpu", "yes")])),
        ("kata", class("kata-clh", &[])),
    ]);
    let handler = |name: &str| classes.resolve(name).map(|served| served.handler);
    assert_eq!(handler("gvisor"), Ok("gvisor"), "runsc is CRI's word");
    assert_eq!(handler("here"), Ok("other"));
    for (name, word) in [
        ("there", "zone=a"),
        ("labelled", "no such label"),
        ("kata", "\"kata-clh\""),
        ("nope", "no RuntimeClass"),
    ] {
        let why = handler(name).unwrap_err();
        assert!(why.contains(word), "{why}");
    }
}

#[test]
fn a_pool_whose_class_is_not_served_is_refused_and_nothing_of_its_set_is_taken() {
    let mut rig = Rig::with(&[pool("py", 1, 2)]);
    let mut spec = of_class("gvisor");
    spec.generation = 2;
    let refused = declare(&mut rig, 2, spec.clone()).unwrap_err();
    assert!(matches!(refused, Refusal::RuntimeClassesUnknown { .. }));
    rig.send(told(&[("other", class("other", &[]))]));
    let refused = declare(&mut rig, 2, spec.clone()).unwrap_err();
    let Refusal::RuntimeClassUnservable {
        pool, class: named, ..
    } = &refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!((pool.as_str(), named.as_str()), ("py", "gvisor"));
    assert_eq!(rig.pool("py").spec.generation, 1);
    rig.send(told(&[("gvisor", class("runsc", &[]))]));
    declare(&mut rig, 2, spec).unwrap();
    assert_eq!(rig.pool("py").spec.template.runtime_handler, "gvisor");
    rig.create_all();
    assert_eq!(rig.pool("py").warm, 1);
}

#[test]
fn a_class_that_changes_rests_the_pools_refill_until_it_is_mended() {
    let good = || told(&[("sandboxed", class("runsc", &[]))]);
    for (bad, word) in [
        (told(&[]), "no RuntimeClass"),
        (told(&[("sandboxed", class("other", &[]))]), "now means"),
        (
            told(&[("sandboxed", class("runsc", &[("zone", "b")]))]),
            "zone",
        ),
    ] {
        let mut rig = Rig::new();
        rig.send(good());
        declare(&mut rig, 1, of_class("sandboxed")).unwrap();
        rig.create_all();
        rig.send(bad);
        let view = rig.pool("py");
        assert_eq!(view.breaker, BreakerView::Unservable);
        assert!(
            view.breaker_reason.contains(word),
            "{}",
            view.breaker_reason
        );
        assert!(matches!(
            rig.notices.pop(),
            Some(Notice::PoolUnservable { .. })
        ));
        // What is warm is served; there is no more.
        rig.granted(ask(1));
        assert!(rig.creating.is_empty());
        for on_empty in [OnEmpty::Fail, OnEmpty::Cold] {
            let refused = rig.claim(ClaimRequest { on_empty, ..ask(2) });
            let refusal = rig.refusal(refused);
            assert!(
                matches!(refusal, Refusal::PoolFailing { .. }),
                "{refusal:?}"
            );
        }
        rig.release(1);
        rig.destroy_all();
        rig.send(good());
        assert!(matches!(
            rig.notices.pop(),
            Some(Notice::PoolServable { .. })
        ));
        rig.create_all();
        rig.granted(ask(3));
    }
}

#[test]
fn a_pool_promises_what_its_class_takes_beside_the_template() {
    let heavy = |memory_bytes, cpu_millis| {
        let class = RuntimeClass {
            overhead_cpu_millis: cpu_millis,
            overhead_memory_bytes: memory_bytes,
            ..class("runsc", &[])
        };
        told(&[("sandboxed", class)])
    };
    let mut rig = Rig::new();
    rig.send(heavy(1000, 250));
    let mut spec = of_class("sandboxed");
    spec.template.resources.memory_bytes = 5000;
    spec.template.resources.cpu_millis = 500;
    declare(&mut rig, 1, spec).unwrap();
    let promised = |rig: &mut Rig| {
        let promised = rig.pool("py").promised();
        (promised.memory_bytes, promised.cpu_millis)
    };
    // What is being made counts, and what is claimed; asleep as well.
    assert_eq!(promised(&mut rig), (6000, 750));
    rig.create_all();
    rig.granted(ask(1));
    rig.create_all();
    assert_eq!(promised(&mut rig), (12_000, 1500));
    rig.hibernate(1);
    rig.freeze_all();
    assert_eq!(promised(&mut rig), (12_000, 1500));
    // A class may change, and go: what was told last stays.
    rig.send(heavy(2000, 0));
    assert_eq!(promised(&mut rig), (14_000, 1000));
    rig.send(told(&[]));
    assert_eq!(promised(&mut rig), (14_000, 1000));
    rig.restart();
    assert_eq!(rig.pool("py").overhead, None, "not told of since the start");
    rig.send(heavy(2000, 0));
    assert_eq!(promised(&mut rig), (14_000, 1000));
}

#[test]
fn a_restart_needs_no_cluster_and_the_same_set_is_the_same() {
    let mut rig = Rig::new();
    rig.send(told(&[("sandboxed", class("runsc", &[]))]));
    declare(&mut rig, 1, of_class("sandboxed")).unwrap();
    rig.create_all();
    let member = rig.created[0];
    rig.restart();
    rig.connect(&[member]);
    rig.witness(Held::Nothing);
    assert_eq!(rig.pool("py").warm, 1);
    let granted = rig.granted(ask(1));
    assert_eq!(granted.sandbox, member);
    // Refilled by the handler that its class meant.
    assert_eq!(rig.creating.len(), 1);
    let same = Answer::PoolsSet { generation: 1 };
    assert_eq!(declare(&mut rig, 1, of_class("sandboxed")), Ok(same));
    let other = declare(&mut rig, 1, of_class("another"));
    assert!(
        matches!(other, Err(Refusal::GenerationConflict { .. })),
        "{other:?}"
    );
    // The cluster is heard again.
    rig.send(told(&[]));
    assert_eq!(rig.pool("py").breaker, BreakerView::Unservable);
}
