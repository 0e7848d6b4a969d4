//! Figures, printed side by side from one run: `cargo test --release journal::tests::figures -- --nocapture`.

use super::super::{file::JournalFile, mark::Mark, reserve::Reserve, store, upgrade};
use super::*;
use redb::{Database, TableDefinition};
use std::os::unix::fs::FileExt;

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let index = (times.len() as f64 * share) as usize;
        times[index].as_secs_f64() * 1e3
    };
    println!("{what:<44} p50 {:.3} ms, p99 {:.3} ms", at(0.5), at(0.99));
}

fn timed(rounds: u64, mut round: impl FnMut(u64)) -> Vec<Duration> {
    let time = |number| {
        let began = Instant::now();
        round(number);
        began.elapsed()
    };
    (0..rounds).map(time).collect()
}

/// Unoptimised, redb is several times slower than the disk: those figures say nothing.
const ROUNDS: u64 = if cfg!(debug_assertions) { 40 } else { 400 };

#[test]
fn commits() {
    let dir = temp_dir();
    let raw = std::fs::File::create(dir.path().join("raw")).unwrap();
    raw.write_all_at(&vec![1; 4 << 20], 0).unwrap();
    raw.sync_all().unwrap();
    let raw_write = timed(ROUNDS, |number| {
        raw.write_all_at(&[2; 4096], number % 1024 * 4096).unwrap();
        raw.sync_data().unwrap();
    });
    print("raw 4 KiB write + fdatasync", raw_write);

    let mut rig = open(&dir.path().join("data")).unwrap();
    // 1,000 claims are there already.
    rig.commit(
        (0..1000)
            .map(|number| Op::PutClaim(claim(number, number)))
            .collect(),
    );
    let rows = |round: u64, many: u64| -> Vec<Op> {
        let id = |n| (round * many + n) % 2000;
        (0..many)
            .map(|n| Op::PutClaim(claim(id(n), id(n))))
            .collect()
    };
    let claim_and_sandbox = |round: u64| {
        let mut ops = rows(round, 1);
        ops.push(Op::PutSandbox(sandbox(
            round,
            Owner::Claimed(claim_id(round)),
        )));
        ops
    };
    // Without the test's own way of waiting.
    let commit = |rig: &mut Rig, ops| {
        let ticket = rig.append(ops);
        while rig.events.blocking_recv().unwrap() != JournalEvent::Durable(ticket) {}
    };
    for many in [1, 16] {
        let times = timed(ROUNDS, |round| commit(&mut rig, rows(round, many)));
        print(&format!("journal, {many} claims, append to Durable"), times);
    }
    let times = timed(ROUNDS, |round| commit(&mut rig, claim_and_sandbox(round)));
    print("journal, claim + sandbox, append to Durable", times);
    drop(rig);

    let data = dir.path().join("data");
    let reserve = Arc::new(Reserve::open(&data, RESERVE).unwrap());
    let path = journal_path(&data);
    let file = Arc::new(JournalFile::open(&path, reserve).unwrap());
    let mark = Mark::open(&data).unwrap();
    let opened = store::open(file, mark, &boot("a", 1, 2), &path, upgrade::STEPS);
    let (mut store, _) = opened.unwrap();
    let mut commit = |round, ops| {
        let (ticket, anchor) = (Ticket(round), Now(round));
        store
            .commit(&[Batch {
                ticket,
                anchor,
                ops,
            }])
            .unwrap();
    };
    for many in [1, 16] {
        let times = timed(ROUNDS, |round| commit(round, rows(round, many)));
        print(&format!("store alone, {many} claims"), times);
    }
    let times = timed(ROUNDS, |round| commit(round, claim_and_sandbox(round)));
    print("store alone, claim + sandbox", times);
    let times = timed(ROUNDS, |round| commit(round, vec![Op::PutSequence(round)]));
    print("store alone, one small value", times);

    let value = super::super::codec::encode(&claim(1, 1)).unwrap();
    println!("a claim's value has {} bytes", value.len());
    const TABLE: TableDefinition<&[u8; 16], &[u8]> = TableDefinition::new("claims");
    for (what, two_phase, quick) in [
        ("redb, 1 claim, one phase", false, false),
        ("redb, 1 claim, two phases", true, false),
        ("redb, 1 claim, two phases + quick repair", true, true),
    ] {
        let database = Database::create(dir.path().join(what)).unwrap();
        let put = |round: u64, many: u64| {
            let mut txn = database.begin_write().unwrap();
            txn.set_two_phase_commit(two_phase);
            txn.set_quick_repair(quick);
            let mut table = txn.open_table(TABLE).unwrap();
            for number in round..round + many {
                let key = claim_id(number % 2000).as_u128().to_be_bytes();
                table.insert(&key, value.as_slice()).unwrap();
            }
            drop(table);
            txn.commit().unwrap();
        };
        put(0, 1000);
        print(what, timed(ROUNDS, |round| put(round, 1)));
    }
}

#[test]
fn opening_100_000_tombstones() {
    let dir = temp_dir();
    let mut rig = open(dir.path()).unwrap();
    let tombstone = |number| Op::PutTombstone(claim_id(number), Now(1_760_000_000_000 + number));
    for part in 0..20 {
        rig.commit((part * 5000..(part + 1) * 5000).map(tombstone).collect());
    }
    drop(rig);
    let began = Instant::now();
    let rig = open(dir.path()).unwrap();
    let size = std::fs::metadata(journal_path(dir.path())).unwrap().len();
    println!(
        "{} tombstones opened in {:.0} ms, file {} KiB",
        rig.records.tombstones.len(),
        began.elapsed().as_secs_f64() * 1e3,
        size / 1024
    );
    assert_eq!(rig.records.tombstones.len(), 100_000);
}
