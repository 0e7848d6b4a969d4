//! Log lines of a guest: hearth-init's own and those of the template's command. Drained so that nobody inside blocks,
//! kept within a rate, escaped, shown at debug level only.

use super::limits::{LOG_BYTES_PER_SECOND, LOG_DRAINED_PER_SECOND, LOG_LINE_BYTES};
use super::metrics::GuestMetrics;
use super::pace::Pace;
use super::text::escaped;
use tokio::time::Instant;

/// The log of one sandbox.
#[derive(Debug)]
pub(super) struct Log {
    sandbox: String,
    metrics: GuestMetrics,
    kept: Pace,
    drained: Pace,
    /// A line whose end has not come; at most [`LOG_LINE_BYTES`].
    line: Vec<u8>,
}

impl Log {
    pub(super) fn new(sandbox: String, metrics: GuestMetrics) -> Self {
        Self {
            sandbox,
            metrics,
            kept: Pace::new(LOG_BYTES_PER_SECOND, LOG_BYTES_PER_SECOND),
            drained: Pace::new(LOG_DRAINED_PER_SECOND, LOG_DRAINED_PER_SECOND),
            line: Vec::new(),
        }
    }

    /// When draining goes on; `None`: at once.
    pub(super) fn resumes_at(&self, now: Instant) -> Option<Instant> {
        self.drained.resumes_at(now)
    }

    /// Takes what was read.
    pub(super) fn take(&mut self, read: &[u8], now: Instant) {
        self.drained.spend(read.len(), now);
        let (kept, dropped) = read.split_at(read.len().min(self.kept.room(now)));
        self.kept.spend(kept.len(), now);
        self.metrics.log_kept.inc_by(kept.len() as u64);
        self.metrics.log_dropped.inc_by(dropped.len() as u64);
        for part in kept.split_inclusive(|byte| *byte == b'\n') {
            self.take_part(part);
        }
        if !dropped.is_empty() {
            self.flush();
        }
    }

    /// A line, or a part of one.
    fn take_part(&mut self, part: &[u8]) {
        let (text, ends) = match part.split_last() {
            Some((b'\n', text)) => (text, true),
            _ => (part, false),
        };
        for piece in text.chunks(LOG_LINE_BYTES) {
            if self.line.len() + piece.len() > LOG_LINE_BYTES {
                self.flush();
            }
            self.line.extend_from_slice(piece);
        }
        if ends {
            self.flush();
        }
    }

    /// Shows what there is as one line.
    pub(super) fn flush(&mut self) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty()
            || !tracing::enabled!(target: "hearth::guest::log", tracing::Level::DEBUG)
        {
            return;
        }
        let line = escaped(&line, 4 * LOG_LINE_BYTES);
        tracing::debug!(target: "hearth::guest::log", sandbox = self.sandbox, line, "guest log");
    }
}
