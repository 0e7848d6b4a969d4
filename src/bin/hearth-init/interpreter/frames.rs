//! What a driver says, frame by frame (docs/interpreters.md): `KIND [ARG] LENGTH\n` and as many bytes. The driver is as
//! hostile as the code it runs: whatever does not fit ends its process.

use bytes::{Buf, Bytes, BytesMut};
use hearth::guest::v1::{BundleEnd, ResultPiece, RunError};

use crate::limits::{ERROR_BYTES, MIME_BYTES};

/// Longest first line of a frame: a kind, a MIME type, a length.
const HEAD_BYTES: usize = 16 + MIME_BYTES + 21;

/// A frame, or a piece of a long one.
#[derive(Debug, PartialEq)]
pub enum Frame {
    /// The interpreter waits for code.
    Ready,
    /// A piece or the end of a bundle.
    Piece(ResultPiece),
    Error(RunError),
    /// The code has ended.
    Done,
}

/// The driver does not keep to the protocol.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken;

#[derive(Debug, Default)]
enum State {
    #[default]
    Head,
    Part {
        mime_type: String,
        left: u64,
    },
    Error {
        length: usize,
    },
}

/// Bytes → frames. Holds one read and at most one error.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: BytesMut,
    state: State,
    /// A form of a bundle has come, and not yet its end.
    open: bool,
}

impl Frames {
    /// Takes what was read. Call [`Self::next`] until it says `None` before feeding more.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame. A piece of a part is at most `most` bytes long.
    pub fn next(&mut self, most: usize) -> Result<Option<Frame>, Broken> {
        loop {
            match &mut self.state {
                State::Head => {
                    let Some(head) = self.head()? else {
                        return Ok(None);
                    };
                    if let Some(frame) = self.begin(&head)? {
                        return Ok(Some(frame));
                    }
                }
                State::Part { mime_type, left } => {
                    let most = usize::try_from(*left).map_or(most, |left| left.min(most));
                    let data = self.buffer.split_to(most.min(self.buffer.len()));
                    if data.is_empty() && *left > 0 {
                        return Ok(None);
                    }
                    *left = left.saturating_sub(data.len() as u64);
                    let piece = ResultPiece {
                        mime_type: mime_type.clone(),
                        last: *left == 0,
                        data: data.freeze(),
                        end: BundleEnd::Unspecified.into(),
                    };
                    if piece.last {
                        self.state = State::Head;
                    }
                    return Ok(Some(Frame::Piece(piece)));
                }
                State::Error { length } => {
                    if self.buffer.len() < *length {
                        return Ok(None);
                    }
                    let data = self.buffer.split_to(*length);
                    self.state = State::Head;
                    self.open = false;
                    return Ok(Some(Frame::Error(error(&data))));
                }
            }
        }
    }

    /// Gives memory back.
    pub fn rest(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    fn head(&mut self) -> Result<Option<String>, Broken> {
        let within = &self.buffer[..self.buffer.len().min(HEAD_BYTES)];
        match within.iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                let line = String::from_utf8(self.buffer.split_to(at).to_vec());
                self.buffer.advance(1);
                line.map(Some).map_err(|_| Broken)
            }
            None if within.len() == HEAD_BYTES => Err(Broken),
            None => Ok(None),
        }
    }

    /// A frame without content, or the state in which the content is read.
    fn begin(&mut self, head: &str) -> Result<Option<Frame>, Broken> {
        let mut words = head.split(' ');
        let word = (words.next(), words.next(), words.next(), words.next());
        let length = |text: &str| text.parse::<u64>().map_err(|_| Broken);
        match word {
            (Some("ready"), Some("0"), None, None) => Ok(Some(Frame::Ready)),
            (Some("done"), Some("0"), None, None) => {
                self.open = false;
                Ok(Some(Frame::Done))
            }
            (Some("shown"), Some("0"), None, None) => self.end(BundleEnd::Shown).map(Some),
            (Some("value"), Some("0"), None, None) => self.end(BundleEnd::Value).map(Some),
            (Some("part"), Some(mime_type), Some(bytes), None) if is_mime(mime_type) => {
                self.open = true;
                self.state = State::Part {
                    mime_type: mime_type.to_owned(),
                    left: length(bytes)?,
                };
                Ok(None)
            }
            (Some("error"), Some(bytes), None, None) => {
                let length = usize::try_from(length(bytes)?).map_err(|_| Broken)?;
                if length > ERROR_BYTES {
                    return Err(Broken);
                }
                self.state = State::Error { length };
                Ok(None)
            }
            _ => Err(Broken),
        }
    }

    fn end(&mut self, end: BundleEnd) -> Result<Frame, Broken> {
        if !std::mem::take(&mut self.open) {
            return Err(Broken);
        }
        Ok(Frame::Piece(ResultPiece {
            mime_type: String::new(),
            data: Bytes::new(),
            last: false,
            end: end.into(),
        }))
    }
}

fn is_mime(word: &str) -> bool {
    let graphic = word.bytes().all(|byte| byte.is_ascii_graphic());
    (3..=MIME_BYTES).contains(&word.len()) && graphic && word.matches('/').count() == 1
}

/// NAME NUL VALUE NUL TRACEBACK.
fn error(data: &[u8]) -> RunError {
    let mut fields = data.splitn(3, |byte| *byte == 0);
    let mut next = || String::from_utf8_lossy(fields.next().unwrap_or_default()).into_owned();
    let mut error = RunError {
        name: next(),
        value: next(),
        traceback: next(),
    };
    // Bytes that are no text grow to three each.
    let mut left = ERROR_BYTES;
    for text in [&mut error.name, &mut error.value, &mut error.traceback] {
        let end = (0..=left.min(text.len()))
            .rev()
            .find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or_default());
        left -= text.len();
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All frames of `bytes`, fed `step` at a time.
    fn all(bytes: &[u8], step: usize, most: usize) -> Result<Vec<Frame>, Broken> {
        let (mut frames, mut found) = (Frames::default(), Vec::new());
        for piece in bytes.chunks(step) {
            frames.feed(piece);
            while let Some(frame) = frames.next(most)? {
                found.push(frame);
            }
        }
        assert!(frames.buffer.is_empty(), "all was understood");
        Ok(found)
    }

    fn piece(mime_type: &str, data: &'static [u8], last: bool) -> Frame {
        Frame::Piece(ResultPiece {
            mime_type: mime_type.into(),
            data: data.into(),
            last,
            end: 0,
        })
    }

    fn end(end: BundleEnd) -> Frame {
        Frame::Piece(ResultPiece {
            end: end.into(),
            ..ResultPiece::default()
        })
    }

    #[test]
    fn frames_come_whole_however_they_are_cut() {
        let bytes = b"ready 0\npart text/plain 5\nab\ncdpart image/png 0\nvalue 0\nerror 5\nE\0v\0tdone 0\n";
        let error = RunError {
            name: "E".into(),
            value: "v".into(),
            traceback: "t".into(),
        };
        for most in [3, 100] {
            let text = match most {
                3 => vec![
                    piece("text/plain", b"ab\n", false),
                    piece("text/plain", b"cd", true),
                ],
                _ => vec![piece("text/plain", b"ab\ncd", true)],
            };
            let mut expected = vec![Frame::Ready];
            expected.extend(text);
            expected.extend([
                piece("image/png", b"", true),
                end(BundleEnd::Value),
                Frame::Error(error.clone()),
                Frame::Done,
            ]);
            assert_eq!(all(bytes, bytes.len(), most), Ok(expected));
        }
        // Byte by byte it is the same but for the cuts within a part.
        let frames = all(bytes, 1, 100).expect("frames");
        assert_eq!(frames.len(), 10);
        assert_eq!(frames.last(), Some(&Frame::Done));
    }

    #[test]
    fn what_does_not_fit_is_broken() {
        for wrong in [
            "\n",
            "ready\n",
            "ready 1\n",
            "done 0 0\n",
            "part text/plain\n",
            "part text/plain -1\n",
            "part textplain 1\n",
            "part a/b/c 1\n",
            "part text/pl\u{e4}in 1\n",
            "part text/plain 99999999999999999999999999\n",
            "error 20000\n",
            "shown 0\n",
            "part text/plain 0\ndone 0\nvalue 0\n",
            "nonsense 0\n",
            &"x".repeat(HEAD_BYTES),
        ] {
            assert_eq!(
                all(wrong.as_bytes(), wrong.len(), 100),
                Err(Broken),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn an_error_stays_within_its_bound() {
        let mut bytes = format!("error {ERROR_BYTES}\n").into_bytes();
        bytes.resize(bytes.len() + ERROR_BYTES, 0xff);
        let frames = all(&bytes, 4096, 100).expect("frames");
        let [Frame::Error(error)] = frames.as_slice() else {
            panic!("{frames:?}");
        };
        assert!(error.name.len() <= ERROR_BYTES && error.value.is_empty());
    }
}
