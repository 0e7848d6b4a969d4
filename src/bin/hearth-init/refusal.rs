//! Why a call failed, as the host is told.

use hearth::guest::v1::{Failure, FailureKind};
use nix::errno::Errno;
use std::io;

use crate::limits::FAILURE_BYTES;

#[derive(Debug)]
pub struct Refusal {
    kind: FailureKind,
    message: String,
}

impl Refusal {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Invalid, message)
    }

    pub fn limit(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Limit, message)
    }

    /// `what` could not be done because of `error`.
    pub fn io(what: impl AsRef<str>, error: &io::Error) -> Self {
        let text = error.to_string();
        // The kernel's words without Rust's "(os error 2)".
        let text = text
            .split_once(" (os error")
            .map_or(text.as_str(), |(text, _)| text);
        Self::new(kind(error), format!("{}: {text}", what.as_ref()))
    }

    /// Puts a word in front: which part of a whole failed.
    #[must_use]
    pub fn of(mut self, part: &str) -> Self {
        self.message = format!("{part}: {}", self.message);
        self
    }

    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    pub fn text(&self) -> &str {
        &self.message
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let mut message = refusal.message;
        let end = (0..=FAILURE_BYTES.min(message.len()))
            .rev()
            .find(|at| message.is_char_boundary(*at));
        message.truncate(end.unwrap_or_default());
        Self {
            kind: refusal.kind.into(),
            message,
        }
    }
}

fn kind(error: &io::Error) -> FailureKind {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ESRCH) => FailureKind::NotFound,
        Some(Errno::EACCES | Errno::EPERM | Errno::EROFS) => FailureKind::Permission,
        Some(
            Errno::EINVAL
            | Errno::EISDIR
            | Errno::ENAMETOOLONG
            | Errno::ELOOP
            | Errno::ENOEXEC
            | Errno::ESPIPE
            | Errno::ENXIO
            | Errno::E2BIG,
        ) => FailureKind::Invalid,
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EAGAIN) => FailureKind::Limit,
        Some(Errno::ECONNREFUSED) => FailureKind::Refused,
        Some(_) => FailureKind::Io,
        None if error.kind() == io::ErrorKind::InvalidInput => FailureKind::Invalid,
        None => FailureKind::Io,
    }
}
