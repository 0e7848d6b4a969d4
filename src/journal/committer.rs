//! The journal's thread: takes what is queued, commits it as one, tells the driver; watches the disk.
//!
//! Any failure here is final ("fail-stop"): the driver must not answer anything more, and what the page cache shows after
//! a failed fsync is not what the disk holds. The next start reads the disk.

use super::clock::Boot;
use super::directory::{DataDirectory, random, remove_if_there};
use super::file::JournalFile;
use super::mark::Mark;
use super::metrics::Metrics;
use super::points;
use super::reserve::Reserve;
use super::store::{self, Store, StoreError};
use super::{
    BATCHES_IN_FLIGHT, Batch, Journal, JournalEvent, OpenError, Opened, journal_path, upgrade,
};
use crate::machine::ids::{NodeTag, Now, Ticket};
use crate::machine::record::{Identity, Op};
use std::io::ErrorKind;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, error::TrySendError as EventError};

/// Pause between two looks at the disk while nothing is committed, and between two attempts to make the reserve anew.
const WATCH: Duration = Duration::from_secs(1);
/// Pause before an event is offered again to a driver that has no room for it.
const EVENT_PAUSE: Duration = Duration::from_millis(1);

/// What to do when the journal has failed; told why. Must not return, in hearthd: see [`abort_on_failure`]. Where it does
/// return (tests), the journal is dead: nothing is written and nothing reported any more.
pub type OnFailure = Arc<dyn Fn(&str) + Send + Sync>;

/// Ends the process at once, without unwinding or exit handlers. The reason is in the log by then.
#[must_use]
pub fn abort_on_failure() -> OnFailure {
    Arc::new(|_| std::process::abort())
}

/// Where and how to open.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The data directory; made if need be.
    pub data_dir: PathBuf,
    /// The machine's clocks at this start.
    pub boot: Boot,
    /// `limits.disk_reserve_bytes`.
    pub reserve_bytes: u64,
}

/// The real journal: a door to its thread. Dropping it commits what is queued and waits for the thread to end.
pub struct RedbJournal {
    /// `None` only while it is dropped.
    queue: Option<SyncSender<Batch>>,
    thread: Option<JoinHandle<()>>,
    closing: Arc<AtomicBool>,
    on_failure: OnFailure,
}

impl std::fmt::Debug for RedbJournal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedbJournal")
    }
}

impl RedbJournal {
    /// Opens a data directory and starts the thread. Blocks on the disk, for milliseconds per ten thousand records: called
    /// by `app` before anything is served. `events` should hold at least [`BATCHES_IN_FLIGHT`] events and a few more.
    pub fn open(
        settings: &Settings,
        events: mpsc::Sender<JournalEvent>,
        metrics: Metrics,
        on_failure: OnFailure,
    ) -> Result<Opened<Self>, OpenError> {
        let directory = DataDirectory::open(&settings.data_dir)?;
        let path = journal_path(directory.path());
        let exists = path.try_exists().map_err(OpenError::io(&path))?;
        let key = directory.key(!exists)?;
        let reserve = Reserve::open(directory.path(), settings.reserve_bytes);
        let reserve = Arc::new(reserve.map_err(OpenError::io(&directory.path().join("reserve")))?);
        if !exists {
            make_journal(&directory, &path, &reserve, &settings.boot)?;
        }
        let mark = Mark::open(directory.path()).map_err(OpenError::io(directory.path()))?;
        let file = JournalFile::open(&path, Arc::clone(&reserve));
        let file = file.map_err(|error| in_use(&directory, &path, error))?;
        let (store, loaded) =
            store::open(Arc::new(file), mark, &settings.boot, &path, upgrade::STEPS)?;

        let disk = (store, reserve, directory);
        let journal =
            Self::start(disk, events, metrics, on_failure).map_err(OpenError::io(&path))?;
        Ok(Opened {
            journal,
            records: loaded.records,
            identity: loaded.identity,
            start: loaded.start,
            key,
        })
    }

    /// Starts the thread on what was opened.
    pub(super) fn start(
        (store, reserve, directory): (Store, Arc<Reserve>, DataDirectory),
        events: mpsc::Sender<JournalEvent>,
        metrics: Metrics,
        on_failure: OnFailure,
    ) -> std::io::Result<Self> {
        let (queue, batches) = sync_channel(BATCHES_IN_FLIGHT);
        let closing = Arc::new(AtomicBool::new(false));
        let committer = Committer {
            store,
            reserve,
            batches,
            events,
            metrics,
            closing: Arc::clone(&closing),
            reached: false,
            _directory: directory,
        };
        let fail = Arc::clone(&on_failure);
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || committer.run(&fail))?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
            closing,
            on_failure,
        })
    }
}

impl Journal for RedbJournal {
    fn append(&mut self, ticket: Ticket, anchor: Now, ops: Vec<Op>) {
        let Some(queue) = &self.queue else { return };
        let reason = match queue.try_send(Batch {
            ticket,
            anchor,
            ops,
        }) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => "the driver has more batches in flight than agreed",
            Err(TrySendError::Disconnected(_)) => "the journal's thread has ended",
        };
        fail(&self.on_failure, reason);
    }
}

impl Drop for RedbJournal {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Release);
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // Its panic was caught and told.
            let _ = thread.join();
        }
    }
}

fn fail(on_failure: &OnFailure, reason: &str) {
    tracing::error!(
        reason,
        "the journal has failed: hearthd ends and must be started anew"
    );
    on_failure(reason);
}

/// The locked journal file can't be had: by whom?
fn in_use(directory: &DataDirectory, path: &Path, error: std::io::Error) -> OpenError {
    if error.kind() != ErrorKind::WouldBlock {
        return OpenError::io(path)(error);
    }
    // The lock file is ours, so it was removed and made anew under the other one's feet; its pid went with it.
    OpenError::InUse {
        dir: directory.path().display().to_string(),
        pid: 0,
    }
}

/// Makes a new journal under another name first: a journal.redb is whole from its first moment, so an empty one is
/// damaged, not new.
fn make_journal(
    directory: &DataDirectory,
    path: &Path,
    reserve: &Arc<Reserve>,
    boot: &Boot,
) -> Result<(), OpenError> {
    let unfinished = path.with_extension("redb.new");
    let io = OpenError::io;
    remove_if_there(&unfinished).map_err(io(&unfinished))?;
    let file = JournalFile::create(&unfinished, Arc::clone(reserve)).map_err(io(&unfinished))?;
    let tag = NodeTag(u32::from_be_bytes(random().map_err(io(path))?));
    store::create(Arc::new(file), Identity { tag }, boot, &unfinished)?;
    std::fs::rename(&unfinished, path).map_err(io(path))?;
    directory.sync().map_err(io(directory.path()))
}

/// What the thread owns. Fields are dropped in this order: the directory's lock goes last.
struct Committer {
    store: Store,
    reserve: Arc<Reserve>,
    batches: Receiver<Batch>,
    events: mpsc::Sender<JournalEvent>,
    metrics: Metrics,
    closing: Arc<AtomicBool>,
    /// As told to the driver.
    reached: bool,
    _directory: DataDirectory,
}

impl Committer {
    fn run(mut self, on_failure: &OnFailure) {
        // A panic (redb asserts its invariants) is a failure like any other; nothing of self is used after it.
        let ended = std::panic::catch_unwind(AssertUnwindSafe(|| self.commit_all()));
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => fail(on_failure, &error.to_string()),
            Err(_) => fail(on_failure, "its thread panicked"),
        }
    }

    /// Until the queue is closed and empty.
    fn commit_all(&mut self) -> Result<(), StoreError> {
        let mut next_watch = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next_watch {
                self.refill_reserve();
                self.look_at_disk();
                next_watch = now + WATCH;
            }
            let first = match self.batches.recv_timeout(next_watch - now) {
                Ok(batch) => batch,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let more = self.batches.try_iter().take(BATCHES_IN_FLIGHT - 1);
            let group: Vec<_> = std::iter::once(first).chain(more).collect();
            self.commit(&group)?;
            self.look_at_disk();
        }
    }

    fn commit(&mut self, group: &[Batch]) -> Result<(), StoreError> {
        let ops: usize = group.iter().map(|batch| batch.ops.len()).sum();
        if ops > 0 {
            let began = Instant::now();
            points::reached(points::Stage::Before, group);
            self.store.commit(group)?;
            points::reached(points::Stage::After, group);
            self.metrics
                .commit_duration_seconds
                .observe(began.elapsed().as_secs_f64());
            self.metrics
                .batch_ops
                .observe(u32::try_from(ops).unwrap_or(u32::MAX).into());
            self.metrics.commits.inc();
        }
        if let Some(last) = group.last() {
            self.tell(JournalEvent::Durable(last.ticket));
        }
        Ok(())
    }

    fn refill_reserve(&self) {
        if let Err(error) = self.reserve.refill() {
            tracing::warn!(%error, "the journal's reserve can't be made anew");
        }
    }

    fn look_at_disk(&mut self) {
        let look = match self.reserve.look() {
            Ok(look) => look,
            Err(error) => {
                tracing::warn!(%error, "the free space of the data directory can't be read");
                return;
            }
        };
        #[allow(clippy::cast_precision_loss)] // A gauge: 53 bits of bytes are plenty.
        self.metrics.disk_free_bytes.set(look.free_bytes as f64);
        self.metrics.reserve_reached.set(look.reached.into());
        if look.reached != self.reached {
            self.reached = look.reached;
            let free_bytes = look.free_bytes;
            if look.reached {
                tracing::warn!(
                    free_bytes,
                    "the disk reserve is reached: new claims are refused"
                );
            } else {
                tracing::info!(free_bytes, "the disk has room again");
            }
            self.tell(JournalEvent::Reserve {
                reached: look.reached,
            });
        }
    }

    /// Waits for room as long as the driver lives. Not a blocking send: a driver that drops the journal waits for this
    /// thread, and nobody receives any more.
    fn tell(&self, event: JournalEvent) {
        loop {
            match self.events.try_send(event) {
                Err(EventError::Full(_)) if !self.closing.load(Ordering::Acquire) => {
                    std::thread::sleep(EVENT_PAUSE);
                }
                // Sent, or nobody listens: what is durable is durable.
                _ => return,
            }
        }
    }
}
