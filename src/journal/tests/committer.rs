use super::super::directory::DataDirectory;
use super::super::{mark::Mark, reserve::Reserve, store, upgrade};
use super::*;
use redb::StorageBackend;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

/// A journal whose driver has room for one event only: while it does not look, the thread stands still after two commits
/// and the queue fills.
fn narrow(dir: &Path) -> Rig {
    let mut rig = open(dir).unwrap();
    drop(rig.journal);
    let (sender, events) = mpsc::channel(1);
    rig.registry = prometheus::Registry::new();
    let metrics = Metrics::register(&rig.registry).unwrap();
    let failed = Arc::clone(&rig.failures);
    let on_failure: OnFailure = Arc::new(move |why| failed.lock().unwrap().push(why.to_owned()));
    let opened = RedbJournal::open(&settings(dir), sender, metrics, on_failure).unwrap();
    Rig {
        journal: opened.journal,
        events,
        ..rig
    }
}

fn wait(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < HANG, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Two commits: the first one's event fills the channel, the second one's waits.
fn stall(rig: &mut Rig) {
    for number in 1..=2u32 {
        rig.append(vec![Op::PutSequence(number.into())]);
        wait("a commit", || {
            rig.metric("hearth_journal_commits_total") == f64::from(number)
        });
    }
}

#[test]
fn what_is_queued_is_committed_at_once_and_in_order() {
    let dir = temp_dir();
    let mut rig = narrow(dir.path());
    stall(&mut rig);
    for number in 3..=8 {
        rig.append(vec![
            Op::PutSequence(number),
            Op::PutFence(fence(number)),
            Op::PutTombstone(claim_id(number), Now(number)),
        ]);
    }
    assert_eq!(rig.event(), Some(JournalEvent::Durable(Ticket(1))));
    assert_eq!(rig.event(), Some(JournalEvent::Durable(Ticket(2))));
    assert_eq!(rig.event(), Some(JournalEvent::Durable(Ticket(8))));
    assert_eq!(rig.metric("hearth_journal_commits_total"), 3.0);
    assert_eq!(rig.metric("hearth_journal_batch_ops"), 3.0);
    assert_eq!(rig.metric("hearth_journal_commit_duration_seconds"), 3.0);
    assert!(rig.failures().is_empty());
    drop(rig);
    let records = open(dir.path()).unwrap().records;
    assert_eq!(records.next_sequence, 8);
    assert_eq!(records.fence, Some(fence(8)));
    assert_eq!(records.tombstones.len(), 6);
}

#[test]
fn a_batch_without_operations_takes_its_turn_and_costs_no_commit() {
    let dir = temp_dir();
    let mut rig = narrow(dir.path());
    rig.commit(Vec::new());
    assert_eq!(rig.metric("hearth_journal_commits_total"), 0.0);
    stall(&mut rig);
    rig.append(Vec::new());
    rig.append(vec![Op::PutSequence(5)]);
    rig.append(Vec::new());
    let last = Ticket(rig.ticket);
    while rig.event() != Some(JournalEvent::Durable(last)) {}
    assert_eq!(rig.metric("hearth_journal_commits_total"), 3.0);
}

#[test]
fn a_dropped_journal_commits_what_is_queued_though_nobody_listens() {
    let dir = temp_dir();
    let mut rig = narrow(dir.path());
    stall(&mut rig);
    for number in 3..=8 {
        rig.append(vec![Op::PutSequence(number)]);
    }
    // The channel is full and its receiver lives: the thread must not wait for it.
    drop(rig.journal);
    assert_eq!(open(dir.path()).unwrap().records.next_sequence, 8);
    drop(rig.events);
}

/// redb would commit once more and trim the file, on a full disk for good.
#[test]
fn the_end_writes_nothing() {
    let dir = temp_dir();
    let mut rig = open(dir.path()).unwrap();
    rig.commit((0..100).map(|n| Op::PutClaim(claim(n, n))).collect());
    rig.commit((0..100).map(|n| Op::DeleteClaim(claim_id(n))).collect());
    let before = std::fs::read(journal_path(dir.path())).unwrap();
    drop(rig);
    assert!(std::fs::read(journal_path(dir.path())).unwrap() == before);
}

#[test]
fn a_driver_that_keeps_no_bound_is_stopped() {
    let dir = temp_dir();
    let mut rig = narrow(dir.path());
    stall(&mut rig);
    for _ in 0..BATCHES_IN_FLIGHT {
        rig.append(vec![Op::PutSequence(9)]);
    }
    assert!(rig.failures().is_empty());
    rig.append(vec![Op::PutSequence(10)]);
    assert_eq!(
        rig.failures(),
        ["the driver has more batches in flight than agreed"]
    );
}

/// Fake: a disk that fails one sync, or makes redb panic there.
#[derive(Debug)]
struct Failing {
    inner: Memory,
    /// Syncs that still succeed.
    good: AtomicU32,
    panics: bool,
}

impl StorageBackend for Failing {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let left = self.good.load(Ordering::SeqCst);
        assert!(!(left == 0 && self.panics), "as redb's assertions do");
        self.good.store(left.saturating_sub(1), Ordering::SeqCst);
        if left == 0 {
            return Err(nix::errno::Errno::EIO.into());
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write(offset, data)
    }
}

/// A journal on a failing disk.
fn failing(dir: &Path, panics: bool) -> (Rig, Arc<Failing>) {
    let rig = open(dir).unwrap();
    drop(rig.journal);
    let disk = Arc::new(Failing {
        inner: Memory::default(),
        good: AtomicU32::new(u32::MAX),
        panics,
    });
    let clocks = boot("a", 1, 2);
    let path = Path::new("failing");
    store::create(Arc::clone(&disk), rig.identity, &clocks, path).unwrap();
    std::fs::remove_file(dir.join("journal.mark")).unwrap();
    let mark = Mark::open(dir).unwrap();
    let opened = store::open(Arc::clone(&disk), mark, &clocks, path, upgrade::STEPS);
    let directory = DataDirectory::open(dir).unwrap();
    let reserve = Arc::new(Reserve::open(dir, RESERVE).unwrap());
    let parts = (opened.unwrap().0, reserve, directory);
    let (sender, events) = mpsc::channel(BATCHES_IN_FLIGHT);
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let failed = Arc::clone(&rig.failures);
    let on_failure: OnFailure = Arc::new(move |why| failed.lock().unwrap().push(why.to_owned()));
    let journal = RedbJournal::start(parts, sender, metrics, on_failure).unwrap();
    let rig = Rig {
        journal,
        events,
        ..rig
    };
    (rig, disk)
}

fn dies(panics: bool, expected: &str) {
    let dir = temp_dir();
    let (mut rig, disk) = failing(dir.path(), panics);
    rig.commit(vec![Op::PutSequence(1)]);
    disk.good.store(0, Ordering::SeqCst);
    rig.append(vec![Op::PutSequence(2)]);
    // No event: the channel closes.
    assert_eq!(rig.event(), None);
    let failures = rig.failures();
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].contains(expected), "{failures:?}");
    // The failed commit may be on the disk or not; nothing is written after it, also not at the end.
    let after = disk.inner.image();
    rig.append(vec![Op::PutSequence(3)]);
    assert_eq!(rig.failures()[1..], ["the journal's thread has ended"]);
    drop(rig);
    assert!(disk.inner.image() == after);
}

#[test]
fn a_failed_fsync_is_the_end() {
    dies(false, "Input/output error");
}

#[test]
fn a_panic_of_the_thread_is_the_end() {
    dies(true, "its thread panicked");
}

/// The fake of this room keeps the same promises.
#[test]
fn the_memory_journal_commits_when_told_and_loses_its_tail() {
    use super::super::fakes::MemoryDisk;
    let disk = MemoryDisk::new();
    let (sender, mut events) = mpsc::channel(BATCHES_IN_FLIGHT);
    let (mut journal, records) = disk.open(sender.clone());
    assert_eq!(records, Records::default());
    for number in 1..=4 {
        journal.append(Ticket(number), Now(number), vec![Op::PutSequence(number)]);
    }
    assert!(events.try_recv().is_err());
    assert_eq!(disk.commit(2), Some(Ticket(2)));
    assert_eq!(events.try_recv().unwrap(), JournalEvent::Durable(Ticket(2)));
    assert_eq!((disk.queued(), disk.last_now()), (2, Some(Now(2))));
    let (mut journal, records) = disk.open(sender);
    assert_eq!(records.next_sequence, 2);
    assert_eq!(disk.commit_all(), None, "the tail is lost");
    disk.set_automatic(true);
    journal.append(Ticket(1), Now(9), vec![Op::PutSequence(9)]);
    assert_eq!(events.try_recv().unwrap(), JournalEvent::Durable(Ticket(1)));
    assert_eq!(disk.durable().next_sequence, 9);
    disk.set_reserve_reached(true);
    assert_eq!(
        events.try_recv().unwrap(),
        JournalEvent::Reserve { reached: true }
    );
}
