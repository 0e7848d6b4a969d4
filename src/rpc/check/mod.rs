//! Requests in, checked values out: every field against its bound, all problems told at once under their dotted paths,
//! defaults applied. What depends on the node's state is the machine's to judge.
//!
//! A problem's text never repeats a value: values may be secrets.

mod claim;
mod code;
mod inside;
mod network;
mod node;
mod pool;
#[cfg(test)]
mod tests;
mod value;

pub use claim::{Claim, batch, claim, claim_id, hibernate, listing, release, renew, resume, watch};
pub use code::{interrupt_code, run_code};
pub use inside::{
    ExecRules, connect, exec_attach, exec_input, exec_start, list_files, piece, read_file, stats,
    write_file,
};
pub use node::{archive_name, drain, image, orphans};
pub use pool::{pool, set_pools};

use super::bounds;
use super::text::bounded;
use crate::machine::refusal::Refusal;

/// Bytes of a key that is shown in a field's path.
const KEY_BYTES: usize = 64;

/// Problems found in a request, as (field path, what is wrong). Bounded: they travel in HTTP/2 trailers.
#[derive(Debug, Default)]
pub struct Fields {
    found: Vec<(String, String)>,
    bytes: usize,
    untold: usize,
}

impl Fields {
    /// Notes a problem.
    pub fn wrong(&mut self, field: impl AsRef<str>, what: impl AsRef<str>) {
        let field = bounded(field.as_ref(), bounds::METADATA_BYTES);
        let what = bounded(what.as_ref(), bounds::METADATA_BYTES);
        let bytes = self.bytes + field.len() + what.len();
        if self.found.len() == bounds::VIOLATIONS || bytes > bounds::VIOLATION_BYTES {
            self.untold += 1;
            return;
        }
        self.bytes = bytes;
        self.found.push((field, what));
    }

    /// Notes a problem unless `right`.
    fn need(&mut self, right: bool, field: impl AsRef<str>, what: impl AsRef<str>) {
        if !right {
            self.wrong(field, what);
        }
    }

    /// The value, or the problem noted.
    fn take<T, E: std::fmt::Display>(&mut self, field: &str, value: Result<T, E>) -> Option<T> {
        value
            .map_err(|problem| self.wrong(field, problem.to_string()))
            .ok()
    }

    /// `Ok` if nothing was wrong.
    pub fn finish(mut self) -> Result<(), Refusal> {
        if self.found.is_empty() {
            return Ok(());
        }
        if self.untold > 0 {
            let more = format!("{} more problems are not listed", self.untold);
            self.found.push(("(more)".to_owned(), more));
        }
        Err(Refusal::InvalidArgument(self.found))
    }

    /// The value if nothing was wrong. A value is only missing where a problem was noted.
    fn give<T>(self, value: Option<T>) -> Result<T, Refusal> {
        self.finish()?;
        value.ok_or_else(|| Refusal::Internal {
            detail: "a checked value is missing".to_owned(),
        })
    }
}

/// The path of a map's entry.
fn key(at: &str, key: &str) -> String {
    format!("{at}[{:?}]", bounded(key, KEY_BYTES))
}

/// The path of a list's element.
fn index(at: &str, index: usize) -> String {
    format!("{at}[{index}]")
}
