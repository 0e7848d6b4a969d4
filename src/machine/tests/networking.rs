//! Network policies: which go onto which member, and what is in force after a restart.

use super::fixtures::*;
use super::rig::Rig;
use crate::machine::event::{Call, Effect, Event, ExitCause, GuestFailure};
use crate::machine::network::{NetworkMode, NetworkPolicy};
use crate::machine::refusal::Refusal;
use crate::machine::spec::*;
use crate::machine::view::{Answer, ClaimState};

/// A pool whose sandboxes have an interface that reaches nothing.
fn open(min_warm: u32, max_total: u32) -> PoolSpec {
    let pool = pool("py", min_warm, max_total);
    PoolSpec {
        template: networked(pool.template.clone()),
        ..pool
    }
}

fn with(claim: u128, policy: NetworkPolicy) -> ClaimRequest {
    ClaimRequest {
        network_policy: Some(policy),
        ..ask(claim)
    }
}

/// What the latest step put onto a member, if it asked for a personalization.
fn applied(rig: &Rig) -> Option<Option<NetworkPolicy>> {
    rig.effects.iter().find_map(|effect| match effect {
        Effect::Personalize { network, .. } => Some(network.as_deref().cloned()),
        _ => None,
    })
}

fn in_force(rig: &Rig) -> Vec<NetworkPolicy> {
    let policies = rig.node.network_policies().into_iter();
    policies.map(|(_, _, policy)| policy).collect()
}

#[test]
fn a_policy_is_applied_only_where_another_is_in_force() {
    let mut rig = Rig::with(&[open(3, 6)]);
    rig.claim(ask(1));
    assert_eq!(applied(&rig), Some(None), "it asks for none");
    rig.claim(with(2, mode(NetworkMode::Allowlist)));
    assert_eq!(applied(&rig), Some(None), "it is in force");
    rig.claim(with(3, reaches(1)));
    assert_eq!(applied(&rig), Some(Some(reaches(1))));
    rig.guests_confirm();
    let nothing = mode(NetworkMode::Allowlist);
    let claimed = [nothing.clone(), nothing, reaches(1)];
    assert_eq!(in_force(&rig)[..3], claimed);
    assert_eq!(rig.store.claims[&id(1)].network, None);
    assert_eq!(rig.store.claims[&id(3)].network, Some(reaches(1)));
}

#[test]
fn none_goes_onto_every_member_and_more_only_onto_those_with_an_interface() {
    let mut rig = Rig::with(&[pool("py", 2, 4)]);
    rig.claim(with(1, mode(NetworkMode::None)));
    assert_eq!(applied(&rig), Some(None));
    for policy in [
        mode(NetworkMode::Internet),
        mode(NetworkMode::Allowlist),
        reaches(1),
    ] {
        let refused = rig.claim(with(2, policy.clone()));
        let unsupported = Refusal::NetworkPolicyUnsupported {
            policy: policy.mode.as_str(),
            pool: "py".to_owned(),
        };
        assert_eq!(rig.refusal(refused), unsupported);
    }
    assert_eq!(in_force(&rig), [], "none of them has an interface");
    let mut rig = Rig::with(&[open(1, 2)]);
    rig.claim(with(1, mode(NetworkMode::None)));
    assert_eq!(applied(&rig), Some(Some(mode(NetworkMode::None))));
}

#[test]
fn a_policy_that_can_not_be_put_in_force_costs_its_member_and_the_next_serves() {
    let mut rig = Rig::with(&[open(2, 4)]);
    let request = rig.claim(with(1, reaches(1)));
    let first = rig.personalizing[0].0;
    rig.guest_says(GuestFailure::Lost("the network policy: refused".to_owned()));
    assert_eq!(rig.destroying, [first]);
    assert_eq!(
        applied(&rig),
        Some(Some(reaches(1))),
        "the next gets it as well"
    );
    // What is being given up reaches nothing.
    let policies = rig.node.network_policies();
    let given_up = policies.iter().find(|(id, _, _)| *id == first);
    assert_eq!(given_up.unwrap().2, NetworkPolicy::default());
    rig.guests_confirm();
    assert_ne!(rig.grant(request).sandbox, first);
}

#[test]
fn a_member_that_slept_and_one_made_for_the_claim_get_it_too() {
    let mut rig = Rig::with(&[PoolSpec {
        running: Some(0),
        ..open(1, 2)
    }]);
    rig.freeze_all();
    rig.claim(with(1, reaches(1)));
    let thawed = |effect: &Effect| matches!(effect, Effect::Personalize { thaw: true, .. });
    assert!(rig.effects.iter().any(thawed));
    assert_eq!(applied(&rig), Some(Some(reaches(1))));
    let mut rig = Rig::with(&[open(0, 2)]);
    rig.claim(ClaimRequest {
        on_empty: OnEmpty::Cold,
        ..with(1, reaches(2))
    });
    rig.create_all();
    assert_eq!(applied(&rig), Some(Some(reaches(2))));
}

#[test]
fn after_a_restart_each_has_its_own() {
    let mut rig = Rig::with(&[open(3, 6)]);
    let own = rig.granted(with(1, reaches(1)));
    let plain = rig.granted(ask(2));
    rig.create_all();
    // The template changes; those made before keep theirs.
    let newer = PoolSpec {
        generation: 2,
        template: Template {
            network_policy: mode(NetworkMode::Internet),
            ..open(0, 0).template
        },
        ..open(3, 6)
    };
    rig.call(Call::SetPools(fence(1), set(2, &[newer])));
    let before = rig.node.network_policies();
    rig.restart();
    assert_eq!(rig.node.network_policies(), before);
    let of = |sandbox| {
        let policies = rig.node.network_policies().into_iter();
        policies
            .filter(|it| it.0 == sandbox)
            .map(|it| it.2)
            .next()
            .unwrap()
    };
    assert_eq!(of(own.sandbox), reaches(1));
    assert_eq!(of(plain.sandbox), mode(NetworkMode::Allowlist));
    // A retry is the same claim.
    let alive: Vec<_> = before.iter().map(|it| it.0).collect();
    rig.connect(&alive);
    let again = rig.claim(with(1, reaches(1)));
    assert_eq!(rig.grant(again).sandbox, own.sandbox);
}

#[test]
fn one_whose_interface_is_gone_is_not_handed_out_and_its_claim_says_so() {
    let mut rig = Rig::with(&[open(1, 4)]);
    let claimed = rig.granted(with(1, reaches(1))).sandbox;
    rig.create_all();
    let policies = rig.node.network_policies();
    let member = policies
        .iter()
        .map(|it| it.0)
        .find(|id| *id != claimed)
        .unwrap();
    rig.restart();
    // Before the listing that ends recovery.
    rig.send(Event::Runtime { available: true });
    for lost in [claimed, member] {
        rig.send(Event::Ended(lost, ExitCause::NetworkLost));
    }
    assert!(
        rig.destroying.is_empty(),
        "nothing before recovery has ended"
    );
    rig.listed(&[claimed, member]);
    assert_eq!(rig.destroying, [claimed, member]);
    let get = rig.call(Call::Get(id(1)));
    let Answer::Claim(view) = rig.ok(get) else {
        panic!("no claim");
    };
    assert_eq!(view.state, ClaimState::Failed);
    assert_eq!(view.reason.as_deref(), Some("NETWORK_LOST"));
}

#[test]
fn a_template_that_gives_an_interface_replaces_members_without() {
    let mut rig = Rig::with(&[pool("py", 2, 6)]);
    let old: Vec<_> = rig.created.clone();
    let newer = PoolSpec {
        generation: 2,
        ..open(2, 6)
    };
    rig.call(Call::SetPools(fence(1), set(2, &[newer])));
    assert_eq!(rig.destroying, old, "no claim's policy could go onto them");
    rig.create_all();
    rig.granted(with(1, reaches(1)));
}

#[test]
fn who_waits_with_a_policy_is_told_when_the_template_gives_no_interface_any_more() {
    let mut rig = Rig::with(&[open(0, 1)]);
    let held = rig.claim(ClaimRequest {
        on_empty: OnEmpty::Cold,
        ..ask(1)
    });
    rig.create_all();
    rig.guests_confirm();
    rig.grant(held);
    let waits = |claim, policy| ClaimRequest {
        on_empty: OnEmpty::Wait { timeout_ms: 5_000 },
        network_policy: policy,
        ..ask(claim)
    };
    let with_policy = rig.claim(waits(2, Some(reaches(1))));
    let without = rig.claim(waits(3, None));
    let closed = PoolSpec {
        generation: 2,
        ..pool("py", 0, 1)
    };
    rig.call(Call::SetPools(fence(1), set(2, &[closed])));
    assert!(matches!(
        rig.refusal(with_policy),
        Refusal::NetworkPolicyUnsupported { .. }
    ));
    assert!(!rig.replies.contains_key(&without), "it goes on waiting");
}
