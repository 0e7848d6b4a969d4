//! Lines on stderr. The FIFO behind it is the only buffer: a line that does not fit is dropped and counted, and the
//! count is told before the next line that fits.

use nix::{errno::Errno, unistd};
use std::{fmt, io, io::Write};

use crate::limits::LOG_LINE_BYTES;

#[derive(Debug, Default)]
pub struct Log {
    dropped: u64,
}

impl Log {
    /// A line of hearth-init's own.
    pub fn say(&mut self, text: fmt::Arguments<'_>) {
        let text = text.to_string();
        let printable: String = text
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        self.line("hearth-init", printable.as_bytes());
    }

    /// A line of `who`, cut at its bound.
    pub fn line(&mut self, who: &str, text: &[u8]) {
        if self.dropped > 0 {
            let note = format!(
                "hearth-init: {} lines of this log were dropped\n",
                self.dropped
            );
            if !put(note.as_bytes()) {
                self.dropped = self.dropped.saturating_add(1);
                return;
            }
            self.dropped = 0;
        }
        let mut line = Vec::with_capacity(who.len() + text.len().min(LOG_LINE_BYTES) + 3);
        // Cannot fail: a Vec takes all.
        let _ = write!(line, "{who}: ");
        line.extend_from_slice(&text[..text.len().min(LOG_LINE_BYTES)]);
        line.push(b'\n');
        if !put(&line) {
            self.dropped = self.dropped.saturating_add(1);
        }
    }
}

/// One write of less than `PIPE_BUF`: into a FIFO it is whole or not at all, and stderr does not block.
fn put(line: &[u8]) -> bool {
    loop {
        match unistd::write(io::stderr(), line) {
            Ok(_) => return true,
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}
