//! What stands between redb and the bytes: a gate that ends all writing, and a shadow that keeps writes in memory.

use redb::StorageBackend;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Passes everything through until it is shut; then nothing is written any more. The store shuts it before the database
/// is dropped, because redb's close would commit once more and trim the file; see the room's docs, "crash-only".
#[derive(Debug)]
pub(super) struct Gate<B> {
    inner: Arc<B>,
    shut: Arc<AtomicBool>,
}

impl<B: StorageBackend> Gate<B> {
    pub fn new(inner: Arc<B>, shut: Arc<AtomicBool>) -> Self {
        Self { inner, shut }
    }

    fn enter(&self) -> io::Result<&B> {
        if self.shut.load(Ordering::Acquire) {
            return Err(io::Error::other("the journal is shut"));
        }
        Ok(&self.inner)
    }
}

impl<B: StorageBackend> StorageBackend for Gate<B> {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.enter()?.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.enter()?.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.enter()?.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
}

/// A backend as it would be: reads come from the one beneath, writes stay in memory. redb repairs a file while it opens
/// it, before it can know whether the repair succeeds; an open is therefore tried on the shadow first, so that a journal
/// which can't be read keeps every byte it had. Writes of one open are few (the header and a handful of pages), so they
/// are simply kept in order.
#[derive(Debug)]
pub(super) struct Shadow<B> {
    beneath: Arc<B>,
    state: Mutex<Overlay>,
}

#[derive(Debug)]
struct Overlay {
    len: u64,
    /// Bytes of `beneath` that still show through, from the start.
    kept: u64,
    writes: Vec<(u64, Vec<u8>)>,
}

impl<B: StorageBackend> Shadow<B> {
    pub fn new(beneath: Arc<B>) -> io::Result<Self> {
        let len = beneath.len()?;
        let state = Mutex::new(Overlay {
            len,
            kept: len,
            writes: Vec::new(),
        });
        Ok(Self { beneath, state })
    }

    /// There is nothing beneath.
    pub fn is_empty(&self) -> bool {
        self.state().len == 0
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Overlay> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: StorageBackend> StorageBackend for Shadow<B> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        if offset + out.len() as u64 > state.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let shown = usize::try_from(state.kept.saturating_sub(offset)).unwrap_or(usize::MAX);
        let shown = shown.min(out.len());
        self.beneath.read(offset, &mut out[..shown])?;
        out[shown..].fill(0);
        for (at, data) in &state.writes {
            overlay(offset, out, *at, data);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.len = len;
        state.kept = state.kept.min(len);
        for (at, data) in &mut state.writes {
            let room = usize::try_from(len.saturating_sub(*at)).unwrap_or(usize::MAX);
            data.truncate(room);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.len = state.len.max(offset + data.len() as u64);
        state.writes.push((offset, data.to_vec()));
        Ok(())
    }
}

/// Copies the part of `data` (at `at`) that falls into `out` (at `offset`).
fn overlay(offset: u64, out: &mut [u8], at: u64, data: &[u8]) {
    let from = offset.max(at);
    let to = (offset + out.len() as u64).min(at + data.len() as u64);
    if from >= to {
        return;
    }
    // All differences below are at most the length of a slice.
    let index = |position: u64, base: u64| usize::try_from(position - base).unwrap_or(usize::MAX);
    out[index(from, offset)..index(to, offset)]
        .copy_from_slice(&data[index(from, at)..index(to, at)]);
}
