//! What code tells, checked: its words, their order, and what they cost of the credit.

use super::answers::Broken;
use super::limits::{MIME_BYTES, RUN_ERROR_BYTES};
use crate::guest::{RunItem, v1, wire};

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct RunProgress {
    has_begun: bool,
    /// A form of a bundle has come, and not its end.
    in_bundle: bool,
}

impl RunProgress {
    /// It runs.
    pub(super) fn begun(&mut self, begun: v1::RunBegun) -> Result<RunItem, Broken> {
        if std::mem::replace(&mut self.has_begun, true) {
            return Err("a run that begins twice");
        }
        if begun.state() == v1::RunState::Unspecified {
            return Err("a state of a run that does not exist");
        }
        Ok(RunItem::Begun(begun))
    }

    /// Whether it may tell anything.
    pub(super) fn check_begun(self) -> Result<(), Broken> {
        if self.has_begun {
            Ok(())
        } else {
            Err("a word of code that has not begun")
        }
    }

    /// A piece of a bundle, and what it costs.
    pub(super) fn piece(&mut self, piece: v1::ResultPiece) -> Result<(RunItem, usize), Broken> {
        self.check_begun()?;
        let cost = wire::RESULT_CREDIT + piece.mime_type.len() + piece.data.len();
        if v1::BundleEnd::try_from(piece.end).is_err() {
            return Err("an end of a bundle that does not exist");
        }
        if piece.end() == v1::BundleEnd::Unspecified {
            check_mime(&piece.mime_type)?;
            self.in_bundle = true;
        } else {
            let bare = piece.mime_type.is_empty() && piece.data.is_empty() && !piece.last;
            if !bare || !std::mem::take(&mut self.in_bundle) {
                return Err("an end of no bundle");
            }
        }
        let piece = v1::ResultPiece {
            // Its own memory: a part of the message would hold the whole message.
            data: bytes::Bytes::copy_from_slice(&piece.data),
            ..piece
        };
        Ok((RunItem::Piece(piece), cost))
    }

    /// What it did not catch, and what that costs.
    pub(super) fn error(&mut self, error: v1::RunError) -> Result<(RunItem, usize), Broken> {
        self.check_begun()?;
        let texts = error.name.len() + error.value.len() + error.traceback.len();
        if texts > RUN_ERROR_BYTES {
            return Err("an error of code that is too long");
        }
        self.in_bundle = false;
        Ok((RunItem::Error(error), wire::RESULT_CREDIT + texts))
    }

    /// Its end.
    pub(super) fn ended(self, ended: v1::RunEnded) -> Result<RunItem, Broken> {
        let status = ended.status();
        let began = status == v1::RunStatus::Abandoned || self.has_begun;
        if status == v1::RunStatus::Unspecified || !began {
            return Err("an end of code that does not exist");
        }
        if !(0..=255).contains(&ended.code) || ended.signal > 64 {
            return Err("an exit code or signal that does not exist");
        }
        Ok(RunItem::Ended(ended))
    }
}

fn check_mime(word: &str) -> Result<(), Broken> {
    let graphic = word.bytes().all(|byte| byte.is_ascii_graphic());
    if (3..=MIME_BYTES).contains(&word.len()) && graphic && word.matches('/').count() == 1 {
        return Ok(());
    }
    Err("a MIME type that is none")
}
