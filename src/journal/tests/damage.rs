//! Truncated, flipped, foreign: either the exact records or `Damaged`, never a panic, never less than what was
//! acknowledged, and never a changed byte in a file that was refused.

use super::super::{mark::Mark, store, upgrade};
use super::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

const PATH: &str = "journal.redb";

/// A journal as `kill -9` leaves it, with its evidence.
struct Victim {
    image: Vec<u8>,
    records: Records,
    dir: tempfile::TempDir,
}

impl Victim {
    fn new(random: &mut Random) -> Self {
        let dir = temp_dir();
        let memory = Memory::default();
        let clocks = boot("a", 1, 2);
        let identity = Identity { tag: NodeTag(77) };
        let path = Path::new(PATH);
        store::create(Arc::new(memory.clone()), identity, &clocks, path).unwrap();
        let mark = Mark::open(dir.path()).unwrap();
        let opened = store::open(
            Arc::new(memory.clone()),
            mark,
            &clocks,
            path,
            upgrade::STEPS,
        );
        let (mut store, _) = opened.unwrap();
        let mut model = MemoryRecords::default();
        for ticket in 1..60 {
            let ops = random_ops(random);
            ops.iter().for_each(|op| model.apply(op));
            let batch = Batch {
                ticket: Ticket(ticket),
                anchor: Now(ticket),
                ops,
            };
            store.commit(&[batch]).unwrap();
        }
        drop(store);
        Self {
            image: memory.image(),
            records: model.read(),
            dir,
        }
    }

    /// Opens a copy. `Err`: refused as damaged, with the text.
    fn open(&self, image: Vec<u8>) -> Result<Records, String> {
        let memory = Memory::of(image.clone());
        let mark = Mark::open(self.dir.path()).unwrap();
        let evidence = std::fs::read(mark.path()).unwrap();
        let backend = Arc::new(memory.clone());
        let opening = AssertUnwindSafe(|| {
            store::open(
                backend,
                mark,
                &boot("a", 1, 2),
                Path::new(PATH),
                upgrade::STEPS,
            )
        });
        let opened = catch_unwind(opening).expect("no panic on a damaged file");
        // An open of an exact copy commits; the next case starts from the same evidence.
        std::fs::write(self.dir.path().join("journal.mark"), evidence).unwrap();
        match opened {
            Ok((_store, loaded)) => Ok(loaded.records),
            Err(OpenError::Damaged { detail, .. }) => {
                assert!(
                    memory.image() == image,
                    "a refused file was changed: {detail}"
                );
                Err(detail)
            }
            Err(other) => panic!("neither opened nor damaged: {other}"),
        }
    }

    /// Either exact or refused. `true`: refused.
    fn check(&self, what: &str, image: Vec<u8>) -> bool {
        match self.open(image) {
            Ok(records) => {
                assert!(records == self.records, "{what}: opened with other records");
                false
            }
            Err(_) => true,
        }
    }
}

#[test]
fn truncated_anywhere() {
    let mut random = Random::new();
    let victim = Victim::new(&mut random);
    let len = victim.image.len();
    assert!(!victim.check("whole", victim.image.clone()));
    let mut cuts = vec![
        0,
        1,
        8,
        9,
        63,
        64,
        127,
        128,
        319,
        320,
        321,
        4095,
        4097,
        len - 1,
    ];
    cuts.extend((4096..len).step_by(4096));
    cuts.extend((0..60).map(|_| random.index(len)));
    let mut refused = 0;
    for cut in &cuts {
        let gone = victim.check(&format!("cut at {cut}"), victim.image[..*cut].to_vec());
        refused += usize::from(gone);
    }
    println!(
        "{refused} of {} truncated files of {len} bytes refused",
        cuts.len()
    );
    // Where the end of the file is free space, a cut there takes nothing away.
    assert!(refused > 12);
    for more in [1, 100, 4096, 1 << 20] {
        let mut image = victim.image.clone();
        image.resize(len + more, 0xa5);
        victim.check(&format!("{more} bytes more"), image);
    }
}

#[test]
fn one_bit_flipped_anywhere() {
    let mut random = Random::new();
    let victim = Victim::new(&mut random);
    let mut places: Vec<usize> = (0..320).collect();
    places.extend((0..400).map(|_| random.index(victim.image.len())));
    let mut refused = 0;
    for at in &places {
        let mut image = victim.image.clone();
        let bit = random.below(8);
        image[*at] ^= 1 << bit;
        refused += usize::from(victim.check(&format!("bit {bit} of byte {at}"), image));
    }
    println!("{refused} of {} flipped files refused", places.len());
    assert!(refused > 100);
}

#[test]
fn a_page_of_garbage_anywhere() {
    let mut random = Random::new();
    let victim = Victim::new(&mut random);
    let mut refused = 0;
    let pages = victim.image.len() / 4096;
    for page in 0..pages {
        let mut image = victim.image.clone();
        for byte in &mut image[page * 4096..(page + 1) * 4096] {
            *byte = u8::try_from(random.below(256)).unwrap();
        }
        refused += usize::from(victim.check(&format!("garbage in page {page}"), image));
    }
    println!("{refused} of {pages} garbled files refused");
    assert!(refused > 1);
}

/// The case that redb alone takes for a commit cut short: its newest commit is damaged after the fsync.
#[test]
fn a_lost_newest_commit_is_not_rolled_back_in_silence() {
    let dir = temp_dir();
    let mut rig = open(dir.path()).unwrap();
    rig.commit(vec![Op::PutSequence(1)]);
    let older = std::fs::read(journal_path(dir.path())).unwrap();
    rig.commit(vec![Op::PutSequence(2)]);
    drop(rig);
    let newer = std::fs::read(journal_path(dir.path())).unwrap();
    std::fs::write(journal_path(dir.path()), &older).unwrap();
    let error = open(dir.path()).err().unwrap();
    insta::assert_snapshot!(text(&error, dir.path()), @"DIR/journal.redb is damaged: it holds 3 commits, but 4 were acknowledged (DIR/journal.mark). If an older copy was put here on purpose, remove that file. Move it away to start anew: sandboxes are then shown as orphans");
    assert!(std::fs::read(journal_path(dir.path())).unwrap() == older);

    // A mark that does not read, or of another identity, is no evidence.
    let mark = dir.path().join("journal.mark");
    let evidence = std::fs::read(&mark).unwrap();
    for byte in 0..evidence.len() {
        let mut broken = evidence.clone();
        broken[byte] ^= 4;
        std::fs::write(&mark, broken).unwrap();
        assert_eq!(Mark::open(dir.path()).unwrap().newest(NodeTag(77)), 0);
    }
    std::fs::write(&mark, &evidence[..15]).unwrap();
    assert_eq!(open(dir.path()).unwrap().records.next_sequence, 1);

    std::fs::write(journal_path(dir.path()), &newer).unwrap();
    std::fs::write(&mark, &evidence).unwrap();
    assert_eq!(open(dir.path()).unwrap().records.next_sequence, 2);
}

#[test]
fn foreign_files() {
    let dir = temp_dir();
    drop(open(dir.path()).unwrap());
    let path = journal_path(dir.path());
    let refusal = || text(&open(dir.path()).err().unwrap(), dir.path());

    std::fs::write(&path, "").unwrap();
    insta::assert_snapshot!(refusal(), @"DIR/journal.redb is damaged: it is empty. Move it away to start anew: sandboxes are then shown as orphans");
    std::fs::write(&path, "SQLite format 3\0 and so on").unwrap();
    insta::assert_snapshot!(refusal(), @"DIR/journal.redb is damaged: Not a redb database: magic number mismatch. Move it away to start anew: sandboxes are then shown as orphans");

    std::fs::remove_file(&path).unwrap();
    let database = redb::Database::create(&path).unwrap();
    let txn = database.begin_write().unwrap();
    let table = redb::TableDefinition::<u64, u64>::new("meta");
    txn.open_table(table).unwrap().insert(1, 2).unwrap();
    txn.commit().unwrap();
    drop(database);
    let before = std::fs::read(&path).unwrap();
    insta::assert_snapshot!(refusal(), @"DIR/journal.redb is damaged: it is a redb file, but no journal of hearth. Move it away to start anew: sandboxes are then shown as orphans");
    assert!(std::fs::read(&path).unwrap() == before);
}
