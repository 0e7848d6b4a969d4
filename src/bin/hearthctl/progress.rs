//! Progress of long work on stderr: bars on a terminal, nothing elsewhere.
//!
//! Owns how bars look. Honours NO_COLOR.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::time::Duration;

/// indicatif hides a bar by itself when stderr is no terminal.
fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    // A template that does not parse is a bug that shows at once in the default style.
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─");
    bar.with_style(style)
}

/// A bar of bytes. Without a total it counts.
pub fn of_bytes(what: &str, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "{prefix} {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {msg}",
        ),
        None => (
            ProgressBar::no_length(),
            "{prefix} {spinner} {binary_bytes} {binary_bytes_per_sec} {msg}",
        ),
    };
    let bar = styled(bar, template).with_prefix(crate::failure::clean(what));
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// A bar of things, several under each other.
pub fn of_members(all: &MultiProgress, name: &str, total: u64) -> ProgressBar {
    let bar = styled(
        ProgressBar::new(total),
        "{prefix:20} {bar:30} {pos}/{len} warm {elapsed} {msg}",
    );
    all.add(bar.with_prefix(crate::failure::clean(name)))
}
