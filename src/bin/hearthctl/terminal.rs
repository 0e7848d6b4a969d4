//! The user's terminal: raw mode and its certain end, size.
//!
//! Owns the saved settings. Whatever happens (return, panic, signal handled by us), the terminal gets them back.

use hearth::api::TerminalSize;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::sync::{Mutex, PoisonError};

/// Settings to give back; `None` while the terminal is as we found it.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode while it lives.
pub struct Raw(());

impl Raw {
    /// Puts stdin's terminal into raw mode.
    pub fn enter() -> std::io::Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Raw(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal its settings back; again is harmless.
pub fn restore() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = saved {
        // Nothing better can be done about a terminal that is gone.
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &before);
    }
}

/// A panic first restores the terminal, so that its message can be read.
pub fn restore_on_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        before(info);
    }));
}

/// Size of the terminal on stdout, else on stdin; `None` without one.
pub fn size() -> Option<TerminalSize> {
    let (columns, rows) = terminal_size::terminal_size_of(std::io::stdout())
        .or_else(|| terminal_size::terminal_size_of(std::io::stdin()))?;
    Some(TerminalSize {
        rows: u32::from(rows.0),
        columns: u32::from(columns.0),
    })
}
