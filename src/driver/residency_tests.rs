//! Freezes and reclaims, in what order and how many at once.
#![allow(clippy::unwrap_used)]

use super::super::tier_fakes::*;
use super::*;

/// A random history (`HEARTH_SEED=14546612740389556436`, 900 histories, as they were generated then) found that the worker
/// of a freeze which had been overtaken ran when the next freeze of the same sandbox was decided already: ahead of that
/// one's commit, and its end was taken for that one's.
#[tokio::test]
async fn a_freeze_that_was_overtaken_never_begins_although_a_second_one_was_decided() {
    let runtime = Arc::new(Noting::default());
    let residencies = residencies(&runtime, Unreachable, false);
    let sandbox = sandbox(1);
    let freeze = |ticket| Effect::Freeze {
        sandbox,
        after: Ticket(ticket),
    };
    let said = || runtime.said.all();

    // Decided in batch 1; its worker is on its way. A use overtakes it, and in batch 3 the next one is decided.
    residencies.note(&freeze(1));
    residencies.note(&Effect::Thaw { sandbox });
    assert_eq!(residencies.freeze(sandbox, Ticket(1)).await, None);
    residencies.note(&freeze(3));
    assert_eq!(residencies.freeze(sandbox, Ticket(1)).await, None);
    assert!(said().is_empty(), "{:?}: ahead of batch 3", said());
    // Durable: now the second one's own worker comes.
    assert_eq!(residencies.freeze(sandbox, Ticket(3)).await, Some(Ok(())));
    assert_eq!(said(), ["freeze"]);
}

/// Decided and begun, as the driver does it.
fn reclaim(residencies: &Arc<Residencies>, sandbox: SandboxId) -> tokio::task::JoinHandle<()> {
    residencies.note(&Effect::Reclaim { sandbox });
    let residencies = residencies.clone();
    tokio::spawn(async move { residencies.reclaim(sandbox).await })
}

/// When each reclaim began, milliseconds after `start`, and of which sandbox.
fn begun(runtime: &Noting, start: Instant) -> Vec<(u128, SandboxId)> {
    let reclaims = runtime.reclaims.lock().unwrap();
    let begun = reclaims.iter();
    begun
        .map(|(at, id, _)| ((*at - start).as_millis(), *id))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_reclaim_that_a_checkpoint_follows_never_runs_beside_it() {
    let runtime = Arc::new(Noting::default());
    let residencies = residencies(&runtime, Unreachable, true);
    // Both are decided in one step: it fell asleep, and is to go to the disk.
    residencies.note(&Effect::Reclaim {
        sandbox: sandbox(1),
    });
    residencies.note(&Effect::Checkpoint {
        sandbox: sandbox(1),
        asleep: true,
        after: Ticket(1),
    });
    residencies.reclaim(sandbox(1)).await;
    assert_eq!(begun(&runtime, Instant::now()), []);
    // There was no room: what was cancelled is decided on anew.
    reclaim(&residencies, sandbox(1)).await.unwrap();
    assert_eq!(runtime.reclaims.lock().unwrap().len(), 2);
}
