#![allow(clippy::unwrap_used)]

use super::*;
use std::sync::atomic::{AtomicU64, Ordering};

const ZRAM: Zram = Zram {
    stored_bytes: 40,
    taken_bytes: 10,
};

#[test]
fn compressed_is_an_estimate_at_the_devices_own_ratio() {
    assert_eq!(ZRAM.estimate(0), Some(0));
    assert_eq!(ZRAM.estimate(20), Some(5));
    assert_eq!(ZRAM.estimate(u64::MAX), Some(u64::MAX / 4));
    let empty = Zram::default();
    assert_eq!((empty.estimate(0), empty.estimate(1)), (Some(0), None));
}

#[test]
fn a_pools_tiers_are_summed() {
    let charge = |memory_bytes, swap_bytes| Charge {
        memory_bytes,
        swap_bytes,
    };
    let look = MemoryLook {
        charged: BTreeMap::from([
            (("a".to_owned(), "frozen"), charge(1, 2)),
            (("a".to_owned(), "running"), charge(3, 0)),
            (("b".to_owned(), "running"), charge(7, 0)),
        ]),
        zram: None,
    };
    assert_eq!(look.pool("a"), charge(4, 2));
    assert_eq!(look.pool("b"), charge(7, 0));
    assert_eq!(look.pool("c"), charge(0, 0));
}

/// What is read is counted by the zram device; below the parent is nothing.
#[tokio::test]
async fn however_many_ask_it_is_read_once() {
    let reads = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&reads);
    let read_zram: ReadZram = Box::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        Some(ZRAM)
    });
    let tree = CgroupTree::detect("/sys/fs/cgroup").unwrap();
    let memory = NodeMemory::new(tree, "/hearth-no-such-parent".to_owned(), read_zram);
    let memory = Arc::new(memory);
    let asked = (0..50).map(|_| Arc::clone(&memory).ask());
    let looks = futures::future::join_all(asked).await;
    for look in &looks {
        let look = look.as_ref().unwrap();
        assert_eq!((look.charged.len(), look.zram), (0, Some(ZRAM)));
    }
    // A second may have passed while they asked, on a machine that is busy.
    assert!(reads.load(Ordering::SeqCst) < 10, "{reads:?}");
    memory.kept.lock().unwrap().as_mut().unwrap().due = Instant::now();
    let before = reads.load(Ordering::SeqCst);
    assert!(memory.ask().await.is_some());
    assert_eq!(reads.load(Ordering::SeqCst), before + 1);
}
