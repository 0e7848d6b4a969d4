//! Policies for templates, and pools that objects of the cluster declare beside those of SetPools.

use super::fixtures::*;
use super::rig::Rig;
use crate::machine::admission::{Check, Finding, Mode, Rules};
use crate::machine::event::*;
use crate::machine::network::NetworkMode;
use crate::machine::refusal::Refusal;
use crate::machine::spec::*;
use crate::machine::view::*;

const PINNED: &str =
    "registry.example/a@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn enforced(check: Check) -> Rules {
    Rules {
        modes: [(check, Mode::Enforce)].into(),
        namespaces: vec!["team-*".into(), "exact".into()],
        images: vec!["registry.example/*".into(), "hearth.local/python:3".into()],
        ..Rules::default()
    }
}

fn by_cluster(cluster: Mode) -> Rules {
    Rules {
        cluster,
        ..Rules::default()
    }
}

fn with_image(image: &str) -> PoolSpec {
    PoolSpec {
        template: template(image),
        ..pool("py", 1, 4)
    }
}

fn set_warm(rig: &mut Rig, pools: &[PoolSpec]) {
    let request = rig.call(Call::SetWarmPools(pools.to_vec()));
    rig.ok(request);
}

fn denied() -> Verdict {
    Verdict::Denied {
        rule: "PodSecurity/restricted:latest".into(),
        message: "violates it".into(),
    }
}

fn judge(rig: &mut Rig, spec: &PoolSpec, verdict: Verdict) {
    let judged = Judgement {
        pool: spec.name.clone(),
        template: Box::new(spec.template.clone()),
        verdict,
    };
    let request = rig.call(Call::JudgePools(vec![judged]));
    rig.ok(request);
}

/// Does a check find something?
fn finds(rules: &Rules, spec: &PoolSpec) -> bool {
    let found = rules.findings(spec);
    assert!(found.len() <= 1, "{found:?}");
    assert!(found.iter().all(|it| it.enforced && !it.detail.is_empty()));
    !found.is_empty()
}

#[test]
fn every_check_finds_what_it_is_for_and_nothing_else() {
    let mut limited = pool("py", 1, 4);
    assert!(finds(&enforced(Check::LimitsSet), &limited));
    limited.template.resources.cpu_millis = 500;
    assert!(!finds(&enforced(Check::LimitsSet), &limited));

    let mut handled = pool("py", 1, 4);
    for (handler, wrong) in [("gvisor", false), ("kata-clh", false), ("runc", true)] {
        handled.template.runtime_handler = handler.into();
        assert_eq!(finds(&enforced(Check::NotPrivileged), &handled), wrong);
    }

    let mut networked = pool("py", 1, 4);
    for (of, wrong) in [
        (NetworkMode::None, false),
        (NetworkMode::Allowlist, false),
        (NetworkMode::Internet, true),
    ] {
        networked.template.network_policy = mode(of);
        assert_eq!(finds(&enforced(Check::NetworkPolicySet), &networked), wrong);
    }

    let mut rules = enforced(Check::NamespaceAllowed);
    assert!(!finds(&rules, &pool("py", 1, 4)), "it has no namespace");
    let of_object = warm_pool(pool("py", 1, 4));
    assert!(finds(&rules, &of_object));
    for namespace in ["tenant", "*"] {
        rules.namespaces = vec![namespace.into()];
        assert!(!finds(&rules, &of_object));
    }
    rules.tenant = Some("other".into());
    rules.namespaces = vec!["tenant".into()];
    assert!(!finds(&rules, &of_object), "an object's own comes first");
    assert!(finds(&rules, &pool("py", 1, 4)));

    for (image, wrong) in [
        ("registry.example/a:1", false),
        ("registry.example.evil/a:1", true),
        ("hearth.local/python:3", false),
        ("hearth.local/python:33", true),
    ] {
        let rules = enforced(Check::ImageAllowed);
        assert_eq!(finds(&rules, &with_image(image)), wrong, "{image}");
    }

    for (image, wrong) in [
        (PINNED, false),
        ("registry.example/a:1", true),
        ("registry.example/a@sha256:01", true),
        (&PINNED.replace('0', "g"), true),
    ] {
        let rules = enforced(Check::DigestPinned);
        assert_eq!(finds(&rules, &with_image(image)), wrong, "{image}");
    }
}

#[test]
fn an_enforced_check_refuses_a_set_and_an_audited_one_tells() {
    let mut rig = Rig::new().under(enforced(Check::DigestPinned));
    let request = rig.call(Call::SetPools(fence(1), set(1, &[with_image("a:1")])));
    match rig.refusal(request) {
        Refusal::PolicyRefused {
            pool, rule, field, ..
        } => assert_eq!(
            [pool.as_str(), &rule, &field],
            ["py", "digest_pinned", "template.image"]
        ),
        other => panic!("{other:?}"),
    }
    let told = |rig: &Rig, enforced| {
        rig.notices.iter().any(|notice| {
            let Notice::PolicyFinding(_, finding) = notice else {
                return false;
            };
            finding.check == Check::DigestPinned && finding.enforced == enforced
        })
    };
    assert!(told(&rig, true));
    let request = rig.call(Call::SetPools(fence(1), set(1, &[with_image(PINNED)])));
    rig.ok(request);

    let audited = Rules {
        modes: [(Check::DigestPinned, Mode::Audit)].into(),
        ..Rules::default()
    };
    let mut rig = Rig::new().under(audited);
    let request = rig.call(Call::SetPools(fence(1), set(1, &[with_image("a:1")])));
    rig.ok(request);
    assert!(told(&rig, false));
    rig.create_all();
    let view = rig.pool("py");
    assert_eq!((view.warm, view.held.as_str()), (1, ""));
    assert!(matches!(
        view.findings.as_slice(),
        [Finding {
            check: Check::DigestPinned,
            enforced: false,
            ..
        }]
    ));
}

#[test]
fn rules_that_came_later_hold_a_pool_and_leave_what_there_is() {
    let mut rig = Rig::with(&[with_image("a:1")]).under(enforced(Check::DigestPinned));
    let before = rig.created.len();
    rig.granted(ask(1));
    let refused = rig.claim(ask(2));
    assert!(matches!(
        rig.refusal(refused),
        Refusal::PolicyRefused { rule, .. } if rule == "digest_pinned"
    ));
    let cold = rig.claim(ClaimRequest {
        on_empty: OnEmpty::Cold,
        ..ask(3)
    });
    assert!(matches!(rig.refusal(cold), Refusal::PolicyRefused { .. }));
    assert_eq!(rig.created.len(), before, "no refill, no cold start");
    assert_eq!(rig.state(1), Some(ClaimState::Claimed));
    // The template is mended: it fills.
    let mended = PoolSpec {
        generation: 2,
        ..with_image(PINNED)
    };
    let request = rig.call(Call::SetPools(fence(1), set(2, &[mended])));
    rig.ok(request);
    rig.create_all();
    assert_eq!(rig.pool("py").warm, 1);
}

#[test]
fn what_the_cluster_denies_is_not_made() {
    let spec = warm_pool(pool("py", 1, 4));
    let mut rig = Rig::new().under(by_cluster(Mode::Enforce));
    set_warm(&mut rig, std::slice::from_ref(&spec));
    assert!(rig.created.is_empty(), "it has not been asked");
    let pending = rig.claim(ask(1));
    assert!(matches!(
        rig.refusal(pending),
        Refusal::PolicyPending { .. }
    ));

    judge(&mut rig, &spec, Verdict::Allowed);
    rig.create_all();
    assert_eq!(rig.pool("py").warm, 1);

    judge(&mut rig, &spec, denied());
    rig.granted(ask(2));
    assert_eq!(rig.created.len(), 1, "the member goes, none comes");
    let refused = rig.claim(ask(3));
    assert!(matches!(
        rig.refusal(refused),
        Refusal::PolicyRefused { rule, .. } if rule == "PodSecurity/restricted:latest"
    ));
    assert_eq!(rig.state(2), Some(ClaimState::Claimed));
    assert!(rig.pool("py").held.contains("PodSecurity"));

    judge(&mut rig, &spec, Verdict::Allowed);
    rig.create_all();
    assert_eq!(rig.pool("py").warm, 1);
}

#[test]
fn cold_claims_that_wait_hear_of_a_denial() {
    let spec = warm_pool(PoolSpec {
        max_parallel_refills: 1,
        ..pool("py", 0, 4)
    });
    let mut rig = Rig::new().under(by_cluster(Mode::Audit));
    set_warm(&mut rig, std::slice::from_ref(&spec));
    let cold = |claim| ClaimRequest {
        on_empty: OnEmpty::Cold,
        ..ask(claim)
    };
    let made = rig.claim(cold(1));
    let waits = rig.claim(cold(2));
    assert!(rig.is_open(made) && rig.is_open(waits));
    let mut rig = rig.under(by_cluster(Mode::Enforce));
    judge(&mut rig, &spec, denied());
    assert!(matches!(rig.refusal(waits), Refusal::PolicyRefused { .. }));
    rig.create_all();
    rig.guests_confirm();
    rig.grant(made);
}

#[test]
fn a_denial_that_is_only_audited_holds_nothing() {
    let spec = warm_pool(pool("py", 1, 4));
    let mut rig = Rig::new().under(by_cluster(Mode::Audit));
    set_warm(&mut rig, std::slice::from_ref(&spec));
    judge(&mut rig, &spec, denied());
    rig.create_all();
    let view = rig.pool("py");
    assert_eq!((view.warm, view.held.as_str()), (1, ""));
    assert_eq!(view.verdict, Some(denied()));
}

#[test]
fn a_verdict_is_of_its_template_and_survives_a_restart() {
    let spec = warm_pool(pool("py", 1, 4));
    let rules = || by_cluster(Mode::Enforce);
    let mut rig = Rig::new().under(rules());
    set_warm(&mut rig, std::slice::from_ref(&spec));
    judge(&mut rig, &spec, Verdict::Allowed);
    rig.create_all();

    // The API server may be away for long: who was allowed goes on.
    let alive = rig.created.clone();
    rig.restart();
    rig = rig.under(rules());
    rig.connect(&alive);
    rig.witness(Held::Nothing);
    let view = rig.pool("py");
    assert_eq!((view.warm, view.verdict), (1, Some(Verdict::Allowed)));
    rig.granted(ask(1));
    rig.create_all();
    assert_eq!(rig.pool("py").warm, 1);

    // Another size is the same template.
    let scaled = PoolSpec {
        min_warm: 2,
        ..spec.clone()
    };
    set_warm(&mut rig, std::slice::from_ref(&scaled));
    rig.create_all();
    assert_eq!(rig.pool("py").warm, 2);

    // Another template is to be asked about; what is said of the old one means nothing.
    let other = PoolSpec {
        template: template("image:2"),
        ..scaled.clone()
    };
    set_warm(&mut rig, std::slice::from_ref(&other));
    judge(&mut rig, &scaled, Verdict::Allowed);
    let view = rig.pool("py");
    assert_eq!(view.verdict, None);
    assert!(!view.held.is_empty());
    assert_eq!(view.warm, 2, "members of the template before stay");
}

#[test]
fn neither_side_touches_the_others_pools() {
    let mut rig = Rig::with(&[pool("api", 1, 4)]);
    let objects = [
        warm_pool(pool("api", 2, 2)),
        warm_pool(PoolSpec {
            generation: 77,
            ..pool("py", 1, 4)
        }),
    ];
    set_warm(&mut rig, &objects);
    rig.create_all();
    assert_eq!(rig.pool("api").spec, pool("api", 1, 4), "SetPools has it");
    assert_eq!(rig.pool("py").spec.generation, 1, "the machine's to give");

    // SetPools of everything else leaves it, and can't name it.
    let request = rig.call(Call::SetPools(fence(1), set(2, &[])));
    rig.ok(request);
    assert_eq!(rig.pool("py").warm, 1);
    let request = rig.call(Call::SetPools(fence(1), set(3, &[pool("py", 1, 4)])));
    assert!(matches!(
        rig.refusal(request),
        Refusal::PoolOfWarmPool { warm_pool, .. } if warm_pool == "tenant/py"
    ));

    // The name is free now, and the same set again changes nothing.
    set_warm(&mut rig, &objects);
    assert_eq!(rig.pool("api").spec.min_warm, 2);
    set_warm(&mut rig, &objects);
    assert!(rig.persisted.is_empty());

    // Gone are the objects, and their pools; a restart knows whose is whose.
    rig.restart();
    rig.connect(&[]);
    let request = rig.call(Call::SetPools(fence(1), set(3, &[pool("other", 0, 1)])));
    rig.ok(request);
    set_warm(&mut rig, &[]);
    let names: Vec<_> = rig
        .inspect()
        .pools
        .into_iter()
        .map(|it| it.spec.name)
        .collect();
    assert_eq!(names, [name("other")]);
}

#[test]
fn a_warm_pools_generation_rises_with_its_content() {
    let mut rig = Rig::new();
    let spec = warm_pool(pool("py", 1, 4));
    let generation = |rig: &mut Rig, spec: &PoolSpec| {
        set_warm(rig, std::slice::from_ref(spec));
        rig.pool("py").spec.generation
    };
    assert_eq!(generation(&mut rig, &spec), 1);
    assert_eq!(generation(&mut rig, &spec), 1);
    let other = PoolSpec {
        template: template("image:2"),
        ..spec.clone()
    };
    assert_eq!(generation(&mut rig, &other), 2);
    rig.create_all();
    rig.granted(ask(1));
    // Made anew while a claim of the one before lives on.
    set_warm(&mut rig, &[]);
    assert_eq!(generation(&mut rig, &spec), 3);
}

#[test]
fn a_warm_pools_class_is_resolved_when_the_cluster_has_told() {
    use super::world::{CLASS, classes};
    let mut spec = warm_pool(pool("py", 1, 4));
    spec.template.runtime_class = CLASS.to_owned();
    spec.template.runtime_handler = String::new();
    let set = |rig: &mut Rig| {
        let request = rig.call(Call::SetWarmPools(vec![spec.clone()]));
        match rig.ok(request) {
            Answer::WarmPoolsSet(unserved) => unserved,
            other => panic!("{other:?}"),
        }
    };
    let mut rig = Rig::new();
    assert!(matches!(
        set(&mut rig).as_slice(),
        [(_, Refusal::RuntimeClassesUnknown { .. })]
    ));
    assert!(rig.inspect().pools.is_empty());
    rig.send(classes(2));
    assert!(matches!(
        set(&mut rig).as_slice(),
        [(_, Refusal::RuntimeClassUnservable { .. })]
    ));
    rig.send(classes(0));
    assert!(set(&mut rig).is_empty());
    assert_eq!(rig.pool("py").spec.template.runtime_handler, "gvisor");
    rig.create_all();
    // Over a restart without the cluster it is what it was.
    rig.restart();
    rig.connect(&[]);
    assert!(set(&mut rig).is_empty());
    assert!(rig.persisted.is_empty());
    // It means another handler now: the object needs no change for that.
    rig.send(classes(3));
    assert!(set(&mut rig).is_empty());
    let there = rig.pool("py").spec;
    assert_eq!(there.template.runtime_handler, "other");
    assert_eq!(there.generation, 2);
    // It can't be served any more: what there is stays.
    rig.send(classes(1));
    assert_eq!(set(&mut rig).len(), 1);
    assert_eq!(rig.pool("py").spec, there);
}
