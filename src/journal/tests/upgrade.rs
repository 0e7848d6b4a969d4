//! The schema's ladder, with made-up steps beyond those there are. The real ones are proved by the golden files.

use super::super::rows::META;
use super::super::store::{self, StoreError, redb_error};
use super::super::upgrade::{STEPS, Step, schema_of};
use super::super::{file::JournalFile, mark::Mark, reserve::Reserve};
use super::*;
use redb::{Database, ReadableTable, WriteTransaction};

fn append_to_meta(txn: &WriteTransaction, what: &str) -> Result<(), StoreError> {
    let mut meta = txn.open_table(META).map_err(redb_error)?;
    let row = meta.get("steps").map_err(redb_error)?;
    let mut steps = row.map(|row| row.value().to_vec()).unwrap_or_default();
    steps.extend(what.as_bytes());
    meta.insert("steps", steps.as_slice()).map_err(redb_error)?;
    Ok(())
}

/// Done by whoever made the journal.
const DONE: Step = ("one to two", |_| {
    Err(StoreError::Damaged("a step was taken again".into()))
});
const GOOD: &[Step] = &[
    DONE,
    ("two to three", |txn| append_to_meta(txn, "3")),
    ("three to four", |txn| append_to_meta(txn, "4")),
];
const FAILING: &[Step] = &[
    DONE,
    ("two to three", |txn| append_to_meta(txn, "3")),
    ("three to four", |_| {
        Err(StoreError::Damaged("step failed".into()))
    }),
];

fn open_steps(dir: &Path, steps: &[Step]) -> Result<Records, OpenError> {
    let path = journal_path(dir);
    let reserve = Arc::new(Reserve::open(dir, RESERVE).unwrap());
    let file = JournalFile::open(&path, reserve).unwrap();
    let mark = Mark::open(dir).unwrap();
    let opened = store::open(Arc::new(file), mark, &settings(dir).boot, &path, steps);
    opened.map(|(_, loaded)| loaded.records)
}

fn meta(dir: &Path, key: &str) -> Option<Vec<u8>> {
    let database = Database::open(journal_path(dir)).unwrap();
    let txn = database.begin_write().unwrap();
    let meta = txn.open_table(META).unwrap();
    let row = meta.get(key).unwrap();
    row.map(|row| row.value().to_vec())
}

#[test]
fn steps_run_in_order_and_once() {
    let dir = temp_dir();
    let mut rig = open(dir.path()).unwrap();
    rig.commit(every_op());
    drop(rig);
    assert_eq!(schema_of(STEPS), 2);
    assert_eq!(meta(dir.path(), "schema").unwrap(), [0, 0, 0, 2]);
    assert_eq!(open_steps(dir.path(), GOOD).unwrap(), model(&every_op()));
    assert_eq!(meta(dir.path(), "schema").unwrap(), [0, 0, 0, 4]);
    assert_eq!(meta(dir.path(), "steps").unwrap(), b"34");
    // There already.
    assert_eq!(open_steps(dir.path(), GOOD).unwrap(), model(&every_op()));
    assert_eq!(meta(dir.path(), "steps").unwrap(), b"34");

    // Now it is a newer hearth's.
    let before = std::fs::read(journal_path(dir.path())).unwrap();
    let error = open(dir.path()).err().unwrap();
    insta::assert_snapshot!(text(&error, dir.path()), @"DIR/journal.redb was written by a newer hearth (schema 4, this one knows 2); downgrades are refused");
    assert_eq!(std::fs::read(journal_path(dir.path())).unwrap(), before);
}

#[test]
fn a_step_that_fails_leaves_the_file_untouched() {
    let dir = temp_dir();
    drop(open(dir.path()).unwrap());
    let before = std::fs::read(journal_path(dir.path())).unwrap();
    let error = open_steps(dir.path(), FAILING).unwrap_err();
    assert!(error.to_string().contains("step failed"), "{error}");
    assert_eq!(std::fs::read(journal_path(dir.path())).unwrap(), before);
    drop(open(dir.path()).unwrap());
}
