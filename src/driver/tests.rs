#![allow(clippy::unwrap_used)]

use super::gate::Gate;
use super::watch::ClaimWatches;
use super::{ClaimChange, ClaimWatch};
use crate::machine::event::Effect;
use crate::machine::ids::{ClaimId, PoolName, Ticket};
use crate::machine::limits;
use crate::machine::refusal::Refusal;
use crate::machine::spec::Holder;
use crate::machine::view::{ClaimState, ClaimView};
use std::sync::Arc;

/// An effect that can be told apart.
fn effect(number: u64) -> Effect {
    Effect::List { round: number }
}

fn numbers(effects: Vec<Effect>) -> Vec<u64> {
    let number = |effect| match effect {
        Effect::List { round } => round,
        other => panic!("{other:?}"),
    };
    effects.into_iter().map(number).collect()
}

#[test]
fn an_effect_waits_for_its_own_commit_and_for_those_before() {
    let mut gate = Gate::default();
    // Nothing on its way: durable already.
    assert_eq!(gate.pass(Ticket(1), effect(1)), Some(effect(1)));
    gate.appended(Ticket(2));
    gate.appended(Ticket(4));
    assert_eq!(gate.in_flight(), 2);
    assert_eq!(gate.pass(Ticket(1), effect(1)), Some(effect(1)));
    assert_eq!(gate.pass(Ticket(2), effect(2)), None);
    // Batch 3 persisted nothing: it is as durable as batch 2.
    assert_eq!(gate.pass(Ticket(3), effect(3)), None);
    assert_eq!(gate.pass(Ticket(5), effect(5)), None);
    assert_eq!(numbers(gate.durable(Ticket(2))), [2, 3]);
    assert_eq!(gate.pass(Ticket(3), effect(3)), Some(effect(3)));
    assert_eq!(numbers(gate.durable(Ticket(4))), [5]);
    assert_eq!(gate.in_flight(), 0);
}

#[test]
fn one_commit_for_many_batches_releases_all_in_order() {
    let mut gate = Gate::default();
    for ticket in 1..=3 {
        gate.appended(Ticket(ticket));
    }
    for ticket in [3, 1, 2, 1] {
        assert_eq!(gate.pass(Ticket(ticket), effect(ticket)), None);
    }
    assert_eq!(numbers(gate.durable(Ticket(3))), [1, 1, 2, 3]);
}

fn view(number: u128) -> ClaimView {
    ClaimView {
        id: ClaimId::from_u128(number),
        pool: PoolName::parse("pool").unwrap(),
        holder: Holder::default(),
        state: ClaimState::Claimed,
        reason: None,
        sandbox: None,
        first: None,
        cold_starts: 0,
        generation: 0,
        source: None,
        claimed_at: None,
        expires_at: None,
        image_bytes: 0,
    }
}

async fn next(watch: &mut ClaimWatch) -> (ClaimChange, String) {
    watch.changes.recv().await.unwrap().unwrap()
}

#[tokio::test]
async fn a_watch_begins_with_a_snapshot_and_a_token_goes_on_after_it() {
    let hub = Arc::new(ClaimWatches::new(7, vec![view(1)]));
    hub.put(view(2), false);
    let mut watch = hub.follow(None).unwrap();
    // Who has seen a part of it only can't go on after it: what is missing would never be shown.
    for shown in [view(1), view(2)] {
        let part = (ClaimChange::Snapshot(shown), String::new());
        assert_eq!(next(&mut watch).await, part);
    }
    let (synced, token) = next(&mut watch).await;
    assert_eq!(synced, ClaimChange::Synced { resumed: false });
    hub.put(view(1), true);
    hub.put(view(3), false);
    assert_eq!(next(&mut watch).await.0, ClaimChange::Removed(view(1)));
    assert_eq!(next(&mut watch).await.0, ClaimChange::Upserted(view(3)));

    // From the token on: no snapshot, both changes.
    let mut resumed = hub.follow(Some(&token)).unwrap();
    let went_on = next(&mut resumed).await.0;
    assert_eq!(went_on, ClaimChange::Synced { resumed: true });
    assert_eq!(next(&mut resumed).await.0, ClaimChange::Removed(view(1)));
    assert_eq!(next(&mut resumed).await.0, ClaimChange::Upserted(view(3)));
    // A token of another start, or none at all: a snapshot.
    for token in ["8.0", "7.99", "junk", ""] {
        let mut anew = hub.follow(Some(token)).unwrap();
        assert_eq!(
            next(&mut anew).await.0,
            ClaimChange::Snapshot(view(2)),
            "{token}"
        );
    }
    // Also where there is nothing to show: what was known is gone.
    hub.put(view(2), true);
    hub.put(view(3), true);
    let mut empty = hub.follow(Some("8.0")).unwrap();
    let synced = next(&mut empty).await.0;
    assert_eq!(synced, ClaimChange::Synced { resumed: false });
}

#[tokio::test]
async fn a_watcher_that_falls_out_of_the_history_is_told_so() {
    let hub = Arc::new(ClaimWatches::new(7, Vec::new()));
    let mut watch = hub.follow(None).unwrap();
    let (_, token) = next(&mut watch).await;
    for number in 0..2 * limits::WATCH_HISTORY {
        hub.put(view(number as u128), false);
    }
    // What it had been handed comes first, then the end.
    let mut last = None;
    while let Some(change) = watch.changes.recv().await {
        last = Some(change);
    }
    assert_eq!(last, Some(Err(Refusal::WatchLagged)));
    // The token is too old by now: a snapshot.
    let mut anew = hub.follow(Some(&token)).unwrap();
    assert!(matches!(next(&mut anew).await.0, ClaimChange::Snapshot(_)));
}

#[tokio::test]
async fn there_is_a_bound_on_watchers_and_a_place_is_given_back() {
    let hub = Arc::new(ClaimWatches::new(7, Vec::new()));
    let mut all: Vec<_> = (0..limits::WATCHERS)
        .map(|_| hub.follow(None).unwrap())
        .collect();
    assert!(matches!(
        hub.follow(None),
        Err(Refusal::QueueFull {
            queue: "watchers",
            ..
        })
    ));
    all.pop();
    while hub.follow(None).is_err() {
        tokio::task::yield_now().await;
    }
}
