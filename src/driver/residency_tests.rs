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
