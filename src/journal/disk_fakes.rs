//! Fake: a disk that loses and tears what was not synced, and the real store (redb and the mark) on it. Commits run when
//! and where the test says; the real ones have a thread of their own (`committer.rs`).
#![allow(clippy::unwrap_used)]

use super::fakes::{MemoryRecords, Random};
use super::mark::Mark;
use super::store::{self, Store};
use super::{BATCHES_IN_FLIGHT, Batch, Boot, Journal, JournalEvent, OpenError, upgrade};
use crate::machine::ids::{NodeTag, Now, SandboxId, Ticket};
use crate::machine::record::{Identity, Op, Records, SandboxRecord};
use redb::StorageBackend;
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{Notify, mpsc};

#[derive(Debug)]
enum Change {
    Bytes(u64, Vec<u8>),
    Len(u64),
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Len(len) => image.resize(usize::try_from(*len).unwrap(), 0),
            Self::Bytes(offset, data) => {
                let from = usize::try_from(*offset).unwrap();
                // A write beyond the end is of a growth that was lost.
                let room = image.len().saturating_sub(from).min(data.len());
                if room > 0 {
                    image[from..from + room].copy_from_slice(&data[..room]);
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct Platter {
    /// As the process sees it.
    live: Vec<u8>,
    /// As of the last sync.
    synced: Vec<u8>,
    /// Since then.
    open: Vec<Change>,
    /// The process dies at the sync after so many.
    syncs_left: Option<u64>,
    dead: bool,
}

impl Platter {
    fn change(&mut self, change: Change) -> io::Result<()> {
        if self.dead {
            return Err(io::Error::other("dead"));
        }
        change.apply(&mut self.live);
        self.open.push(change);
        Ok(())
    }
}

/// redb's storage.
#[derive(Debug, Clone, Default)]
struct Bytes(Arc<Mutex<Platter>>);

impl Bytes {
    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }
}

impl StorageBackend for Bytes {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.platter();
        let from = usize::try_from(offset).unwrap();
        let found = platter.live.get(from..from + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.platter().change(Change::Len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.platter();
        if platter.dead || platter.syncs_left == Some(0) {
            platter.dead = true;
            return Err(io::Error::other("dead"));
        }
        platter.syncs_left = platter.syncs_left.map(|left| left - 1);
        let Platter { synced, open, .. } = &mut *platter;
        open.drain(..).for_each(|change| change.apply(synced));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.platter().change(Change::Bytes(offset, data.to_vec()))
    }
}

/// What is known beside the bytes.
#[derive(Debug, Default)]
struct Known {
    /// What commits that have succeeded amount to.
    durable: MemoryRecords,
    /// Of a commit that has not succeeded: all of it is on the disk, or nothing.
    open: Vec<Batch>,
}

/// The disk. It outlives every journal on it.
#[derive(Debug, Clone)]
pub struct TornDisk {
    bytes: Bytes,
    known: Arc<Mutex<Known>>,
    /// The mark is a real file: it is never synced, so it may be older than it was.
    dir: Arc<tempfile::TempDir>,
    tag: NodeTag,
}

/// An opened journal with what it held.
pub struct OpenedDisk {
    /// For the driver.
    pub journal: QueueJournal,
    /// To be run by the test.
    pub committer: InlineCommitter,
    /// What it held.
    pub records: Records,
    /// hearth time at the instant of the boot clock given.
    pub start: Now,
}

/// Why a journal was not opened.
#[derive(Debug)]
pub enum NotOpened {
    /// The process died at the sync that was chosen.
    Died,
    /// It should have been: a bug.
    Broken(String),
}

const PATH: &str = "journal.redb";

impl TornDisk {
    /// A disk with a new journal.
    pub fn new(tag: NodeTag, boot: &Boot) -> Self {
        let disk = Self {
            bytes: Bytes::default(),
            known: Arc::default(),
            dir: Arc::new(tempfile::tempdir().unwrap()),
            tag,
        };
        let backend = Arc::new(disk.bytes.clone());
        store::create(backend, Identity { tag }, boot, Path::new(PATH)).unwrap();
        disk
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    fn mark(&self) -> Mark {
        Mark::open(self.dir.path()).unwrap()
    }

    /// What is durable of a sandbox.
    pub fn sandbox(&self, id: SandboxId) -> Option<SandboxRecord> {
        self.known().durable.sandbox(id).cloned()
    }

    /// What is durable.
    pub fn durable(&self) -> Records {
        self.known().durable.read()
    }

    /// Opens the journal as a start of hearthd does; it may die at one of the open's syncs. What was committed is there,
    /// and of a commit under way all or nothing.
    pub fn open(
        &self,
        boot: &Boot,
        dies_at_sync: Option<u64>,
        events: mpsc::Sender<JournalEvent>,
    ) -> Result<OpenedDisk, NotOpened> {
        self.bytes.platter().syncs_left = dies_at_sync;
        let backend = Arc::new(self.bytes.clone());
        let opened = store::open(backend, self.mark(), boot, Path::new(PATH), upgrade::STEPS);
        let (store, loaded) = opened.map_err(|error| self.not_opened(&error))?;
        self.bytes.platter().syncs_left = None;
        let mut known = self.known();
        if loaded.records != known.durable.read() {
            let open = std::mem::take(&mut known.open);
            apply(&mut known.durable, &open);
            if loaded.records != known.durable.read() {
                let what = format!("the journal lost or made up records: {:?}", loaded.records);
                return Err(NotOpened::Broken(what));
            }
        }
        known.open.clear();
        let queue = Arc::new(Queue::default());
        Ok(OpenedDisk {
            journal: QueueJournal(Arc::clone(&queue)),
            committer: InlineCommitter {
                store,
                disk: self.clone(),
                queue,
                events,
            },
            records: loaded.records,
            start: loaded.start,
        })
    }

    fn not_opened(&self, error: &OpenError) -> NotOpened {
        match self.bytes.platter().dead {
            true => NotOpened::Died,
            false => NotOpened::Broken(format!("the journal does not open: {error}")),
        }
    }

    /// The process is dead. `lossy`: of what was not synced each write is there, in part, or not at all; else all of it is.
    pub fn crash(&self, lossy: bool, random: &mut Random) {
        let mut platter = self.bytes.platter();
        let open = std::mem::take(&mut platter.open);
        for change in open {
            let fate = if lossy { random.below(3) } else { 0 };
            match (fate, change) {
                (0, change) => change.apply(&mut platter.synced),
                (1, Change::Bytes(offset, data)) => {
                    let from = random.index(data.len());
                    let to = from + random.index(data.len() - from) + 1;
                    let part = Change::Bytes(offset + from as u64, data[from..to].to_vec());
                    part.apply(&mut platter.synced);
                }
                _ => {}
            }
        }
        platter.live = platter.synced.clone();
        (platter.dead, platter.syncs_left) = (false, None);
        drop(platter);
        let newest = self.mark().newest(self.tag);
        if lossy && newest > 0 && random.coin() {
            self.mark().note(self.tag, random.below(newest)).unwrap();
        }
    }
}

fn apply(records: &mut MemoryRecords, batches: &[Batch]) {
    let ops = batches.iter().flat_map(|batch| &batch.ops);
    ops.for_each(|op| records.apply(op));
}

#[derive(Debug, Default)]
struct Queue {
    batches: Mutex<VecDeque<Batch>>,
    filled: Notify,
}

/// The driver's end.
#[derive(Debug)]
pub struct QueueJournal(Arc<Queue>);

impl Journal for QueueJournal {
    fn append(&mut self, ticket: Ticket, anchor: Now, ops: Vec<Op>) {
        let mut batches = self.0.batches.lock().unwrap();
        let newest = batches.back().map(|batch| batch.ticket);
        assert!(newest < Some(ticket), "tickets must rise");
        assert!(
            batches.len() < BATCHES_IN_FLIGHT,
            "more batches in flight than agreed"
        );
        batches.push_back(Batch {
            ticket,
            anchor,
            ops,
        });
        self.0.filled.notify_one();
    }
}

/// Commits what is queued, as the journal's thread does.
pub struct InlineCommitter {
    store: Store,
    disk: TornDisk,
    queue: Arc<Queue>,
    events: mpsc::Sender<JournalEvent>,
}

impl InlineCommitter {
    /// Until something is queued.
    pub async fn queued(&self) {
        while self.queue.batches.lock().unwrap().is_empty() {
            self.queue.filled.notified().await;
        }
    }

    /// Commits all that is queued as one; the newest ticket made durable. `None`: the process died at the sync after so
    /// many, or (`Err`) the store failed.
    pub fn commit(&mut self, dies_at_sync: Option<u64>) -> Result<Option<Ticket>, String> {
        let group: Vec<_> = self.queue.batches.lock().unwrap().drain(..).collect();
        let Some(ticket) = group.last().map(|batch| batch.ticket) else {
            return Ok(None);
        };
        self.disk.known().open.clone_from(&group);
        self.disk.bytes.platter().syncs_left = dies_at_sync;
        let committed = self.store.commit(&group);
        if self.disk.bytes.platter().dead {
            return Ok(None);
        }
        committed.map_err(|error| error.to_string())?;
        self.disk.bytes.platter().syncs_left = None;
        let mut known = self.disk.known();
        apply(&mut known.durable, &group);
        known.open.clear();
        Ok(Some(ticket))
    }

    /// Tells the driver.
    pub async fn tell(&self, event: JournalEvent) {
        // The driver is gone only when hearthd ends.
        let _ended = self.events.send(event).await;
    }
}
