//! Checks of what a guest says, one function per kind of answer: whatever passes is safe to hand on.

use super::limits::{CLAIM_ID_BYTES, FAILURE_BYTES, NAME_BYTES, VERSION_BYTES};
use super::text::escaped;
use crate::guest::{GuestError, StreamItem, v1, wire};

/// What the guest broke.
pub(super) type Broken = &'static str;

/// Permission bits of a mode.
const MODE: u32 = 0o7777;

/// A failure, bounded and escaped.
pub(super) fn failure(failure: v1::Failure) -> GuestError {
    GuestError::Failed {
        // A kind of a later version is none of ours.
        kind: v1::FailureKind::try_from(failure.kind).unwrap_or_default(),
        message: escaped(failure.message.as_bytes(), FAILURE_BYTES),
    }
}

pub(super) fn version(pong: &v1::Pong) -> String {
    escaped(pong.version.as_bytes(), VERSION_BYTES)
}

pub(super) fn held(held: v1::Held) -> Result<String, Broken> {
    let safe = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if held.claim_id.len() > CLAIM_ID_BYTES || !held.claim_id.bytes().all(safe) {
        return Err("a claim id that no host gave");
    }
    Ok(held.claim_id)
}

pub(super) fn exited(exited: v1::Exited) -> Result<StreamItem, Broken> {
    if !(0..=255).contains(&exited.code) || exited.signal > 64 {
        return Err("an exit code or signal that does not exist");
    }
    Ok(StreamItem::Exited {
        code: exited.code,
        signal: exited.signal,
        timed_out: exited.timed_out,
    })
}

pub(super) fn file_info(info: v1::FileInfo) -> StreamItem {
    StreamItem::FileInfo {
        size_bytes: info.size_bytes,
        mode: info.mode & MODE,
    }
}

/// Which stream an output is of: 0 stdout, 1 stderr (which only processes and code have).
pub(super) fn stream_of(output: &v1::Output, has_stderr: bool) -> Result<usize, Broken> {
    match v1::Stream::try_from(output.stream) {
        Ok(v1::Stream::Stdout) => Ok(0),
        Ok(v1::Stream::Stderr) if has_stderr => Ok(1),
        _ => Err("output of a stream that the call does not have"),
    }
}

/// Entries, and what they cost of the call's credit.
pub(super) fn entries(entries: Vec<v1::Entry>) -> Result<(Vec<v1::Entry>, usize), Broken> {
    let mut cost = 0;
    let mut checked = Vec::with_capacity(entries.len());
    for mut entry in entries {
        cost += wire::ENTRY_CREDIT + entry.name.len();
        check_name(&entry.name)?;
        if !(1..=4).contains(&entry.kind) {
            return Err("an entry of a kind that does not exist");
        }
        entry.mode &= MODE;
        // Its own memory: a part of the message would hold the whole message.
        entry.name = bytes::Bytes::copy_from_slice(&entry.name);
        checked.push(entry);
    }
    Ok((checked, cost))
}

/// A name can be joined to a directory's path without leaving it.
fn check_name(name: &[u8]) -> Result<(), Broken> {
    if name.is_empty() || name.len() > NAME_BYTES {
        return Err("an entry's name of no valid length");
    }
    if name.iter().any(|b| matches!(b, 0 | b'/')) || name == b"." || name == b".." {
        return Err("an entry's name that is no name");
    }
    Ok(())
}
