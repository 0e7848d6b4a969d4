//! A record that this hearthd can't read: damaged, or a newer hearth's. It says so, ends, and touches nothing.

use super::answers;
use crate::crash::assert_no_leak;
use crate::hearthd::{Hearth, pool};
use hearth::api::ClaimState;
use redb::{Database, TableDefinition};
use std::path::Path;

/// Of a hearth that is still to come.
const SCHEMA: u32 = 99;

fn of_the_future(journal: &Path) {
    let database = Database::open(journal).unwrap();
    let change = database.begin_write().unwrap();
    {
        let meta = TableDefinition::<&str, &[u8]>::new("meta");
        let mut meta = change.open_table(meta).unwrap();
        let schema = SCHEMA.to_be_bytes();
        let before = meta.insert("schema", schema.as_slice()).unwrap();
        assert!(before.is_some(), "the schema is elsewhere");
    }
    change.commit().unwrap();
}

/// One bit of every copy of `word`, also of those that count no more.
fn flipped(bytes: &[u8], word: &[u8]) -> Vec<u8> {
    let mut flipped = bytes.to_vec();
    let places = bytes.windows(word.len()).enumerate();
    let places = places.filter(|(_, it)| *it == word).map(|(at, _)| at);
    let mut count = 0;
    for at in places {
        flipped[at] ^= 1;
        count += 1;
    }
    assert!(count > 0, "nothing to flip");
    flipped
}

/// Exits with 1 and these words; the record is as it was, byte for byte, and so is all that runs.
fn is_refused(hearth: &Hearth, words: &[&str]) {
    let journal = hearth.path("data/journal.redb");
    let key = || std::fs::read(hearth.path("data/node.key")).unwrap();
    let before = (std::fs::read(&journal).unwrap(), key());
    let outside = (hearth.census(), hearth.containerd_pid());
    let ended = hearth.command(false).output().unwrap();
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{text}");
    assert!(text.contains(journal.to_str().unwrap()), "{text}");
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
    let after = (std::fs::read(&journal).unwrap(), key());
    assert!(after == before, "it was written to");
    assert_eq!((hearth.census(), hearth.containerd_pid()), outside);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_can_not_be_read_is_told_and_nothing_is_touched() {
    let mut hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 1, 4)]).await;
    hearth.warm("python", 1).await;
    let (kept, told) = hearth.claim("python").await;
    hearth.warm("python", 1).await;
    hearth.kill();
    let journal = hearth.path("data/journal.redb");
    let good = std::fs::read(&journal).unwrap();

    // In a row of a pool, in a claim's, and in the file's own head.
    for word in [&b"hearth.local/python:3"[..], kept.as_bytes(), &good[..9]] {
        std::fs::write(&journal, flipped(&good, word)).unwrap();
        is_refused(&hearth, &["is damaged"]);
    }
    std::fs::write(&journal, &good).unwrap();
    of_the_future(&journal);
    let newer = format!("was written by a newer hearth (schema {SCHEMA}, this one knows");
    is_refused(&hearth, &[&newer, "downgrades are refused"]);

    std::fs::write(&journal, &good).unwrap();
    hearth.restart().await;
    let got = hearth.get(&kept).await;
    assert_eq!(got.state(), ClaimState::Claimed);
    assert_eq!(got.sandbox_id, told.sandbox_id);
    answers(&hearth, &kept).await;
    hearth.release(&kept).await;
    hearth.warm("python", 1).await;
    assert_no_leak(&hearth).await;
    hearth.finish().await;
}
