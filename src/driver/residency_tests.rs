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
async fn a_frozen_one_is_reclaimed_twice_and_leaves_the_first_moment_to_whoever_wants_it() {
    let runtime = Arc::new(Noting::default());
    let residencies = residencies(&runtime, Unreachable, true);
    let start = Instant::now();
    reclaim(&residencies, sandbox(1)).await.unwrap();
    // 50 ms after the freeze; it takes 40 ms and rests three times as long; 2 s later once more.
    let twice = [(50, sandbox(1)), (2_210, sandbox(1))];
    assert_eq!(begun(&runtime, start), twice);
    // Where there is nowhere to put memory, none is taken.
    let residencies = super::super::tier_fakes::residencies(&runtime, Unreachable, false);
    reclaim(&residencies, sandbox(1)).await.unwrap();
    assert_eq!(begun(&runtime, start).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn reclaims_take_a_quarter_of_a_core_at_most_however_many_were_frozen() {
    const MANY: u64 = 16;
    let runtime = Arc::new(Noting {
        reclaim_takes: Duration::from_millis(500),
        ..Noting::default()
    });
    let residencies = residencies(&runtime, Unreachable, true);
    let start = Instant::now();
    let all = (1..=MANY).map(|n| reclaim(&residencies, sandbox(n)));
    futures::future::join_all(all).await;
    let begun = begun(&runtime, start);
    assert_eq!(begun.len() as u64, 2 * MANY);
    for pair in begun.windows(2) {
        let apart = pair[1].0 - pair[0].0;
        assert!(apart >= 4 * 500, "{apart} ms apart: {begun:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_reclaim_begins_while_a_claim_is_told_and_one_of_the_claimed_sandbox_ends() {
    let runtime = Arc::new(Noting {
        reclaim_takes: Duration::from_secs(5),
        ..Noting::default()
    });
    let residencies = residencies(&runtime, Unreachable, true);
    let (start, second) = (Instant::now(), Duration::from_secs(1));
    // Somebody's claim is on its way into its guest.
    let claiming = residencies.claiming();
    let first = reclaim(&residencies, sandbox(1));
    sleep(60 * second).await;
    assert_eq!(begun(&runtime, start), []);
    drop(claiming);
    sleep(second).await;
    // The claim takes the sandbox whose memory is just being taken: that ends at once, and has no second pass.
    residencies.note(&Effect::Thaw {
        sandbox: sandbox(1),
    });
    sleep(second).await;
    let stopped = runtime.reclaims.lock().unwrap().clone();
    assert_eq!(stopped.len(), 1, "{stopped:?}");
    assert!(stopped[0].2, "it was not stopped");
    first.await.unwrap();
    // One that was woken before its turn came is let be.
    let second_one = reclaim(&residencies, sandbox(2));
    residencies.note(&Effect::Thaw {
        sandbox: sandbox(2),
    });
    second_one.await.unwrap();
    assert_eq!(begun(&runtime, start).len(), 1);
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
