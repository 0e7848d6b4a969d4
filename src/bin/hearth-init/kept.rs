//! An execution that outlives its stream: what it has told is remembered, so that whoever attaches goes on behind the last
//! byte that has arrived, however many were lost on the way. While nobody is attached its output is not read: at a full
//! pipe it waits, as it does for any slow reader.
//!
//! ```text
//!  Exec{key, keep_ms} ─▶ streams ── cancel, new session, its end told ──▶ parked ── keep_ms ──▶ killed, forgotten
//!                           ▲                                               │
//!                           └────── Attach{key, bytes of each stream} ◀─────┘
//! ```

use bytes::Bytes;
use hearth::guest::v1::{Attach, Exec, FailureKind, Stream};
use std::{collections::VecDeque, time::Duration};

use crate::{
    clock::Moment,
    limits::{HISTORY_BYTES, KEY_BYTES, PIECE_BYTES, PIECE_COST},
    refusal::Refusal,
};

/// A piece of one of the streams as it was told.
#[derive(Debug, Clone)]
struct Told {
    stream: Stream,
    /// Bytes of that stream before it.
    at: u64,
    data: Bytes,
    eof: bool,
}

#[derive(Debug)]
pub struct Kept {
    key: String,
    keep: Duration,
    /// Nobody is attached: it ends then.
    until: Option<Moment>,
    /// The latest pieces, in the order in which they were told.
    history: VecDeque<Told>,
    /// What they cost.
    cost: usize,
    /// Bytes told of stdout, of stderr.
    told: [u64; 2],
    closed: [bool; 2],
    /// To be told again, before anything new.
    replay: VecDeque<Told>,
}

fn index(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}

impl Kept {
    /// `None`: it is an execution like any other.
    ///
    /// # Errors
    /// INVALID: it can't be kept as it is asked for.
    pub fn of(exec: &Exec) -> Result<Option<Box<Self>>, Refusal> {
        if exec.key.is_empty() {
            return Ok(None);
        }
        if exec.key.len() > KEY_BYTES || exec.keep_ms == 0 {
            return Err(Refusal::invalid(
                "a key without a time to keep, or too long",
            ));
        }
        if exec.tty || exec.stdin || exec.detach {
            let what = "what has a terminal or stdin, or is detached, is not kept";
            return Err(Refusal::invalid(what));
        }
        Ok(Some(Box::new(Self {
            key: exec.key.clone(),
            keep: Duration::from_millis(exec.keep_ms),
            until: None,
            history: VecDeque::new(),
            cost: 0,
            told: [0; 2],
            closed: [false; 2],
            replay: VecDeque::new(),
        })))
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    /// When it ends, as nobody is attached.
    pub fn until(&self) -> Option<Moment> {
        self.until
    }

    pub fn is_parked(&self) -> bool {
        self.until.is_some()
    }

    /// From now on nobody is attached.
    pub fn park(&mut self, now: Moment) {
        self.replay = VecDeque::new();
        self.until
            .get_or_insert_with(|| now.saturating_add(self.keep));
    }

    /// Something new was told.
    pub fn note(&mut self, stream: Stream, data: &Bytes, eof: bool) {
        let index = index(stream);
        self.closed[index] |= eof;
        if data.is_empty() {
            return;
        }
        // A copy: a piece is a part of a larger buffer.
        let data = Bytes::copy_from_slice(data);
        self.cost += data.len() + PIECE_COST;
        self.history.push_back(Told {
            stream,
            at: self.told[index],
            eof: false,
            data,
        });
        if let Some(told) = self.history.back() {
            self.told[index] += told.data.len() as u64;
        }
        while self.cost > HISTORY_BYTES {
            let Some(oldest) = self.history.pop_front() else {
                return;
            };
            self.cost -= oldest.data.len() + PIECE_COST;
        }
    }

    /// Somebody attaches who has so many bytes of each stream: how many of each can't be told again.
    ///
    /// # Errors
    /// INVALID: more than was told.
    pub fn attach(&mut self, attach: &Attach) -> Result<[u64; 2], Refusal> {
        let has = [attach.stdout_bytes, attach.stderr_bytes];
        if has.iter().zip(&self.told).any(|(has, told)| has > told) {
            return Err(Refusal::invalid("more bytes than it has told"));
        }
        let mut oldest = self.told;
        for told in self.history.iter().rev() {
            oldest[index(told.stream)] = told.at;
        }
        self.replay = self
            .history
            .iter()
            .filter_map(|it| after(it, &has))
            .collect();
        for stream in [Stream::Stdout, Stream::Stderr] {
            if self.closed[index(stream)] {
                self.replay.push_back(Told {
                    stream,
                    at: self.told[index(stream)],
                    data: Bytes::new(),
                    eof: true,
                });
            }
        }
        self.until = None;
        Ok([0, 1].map(|at: usize| oldest[at].saturating_sub(has[at])))
    }

    /// There is something to be told again.
    pub fn replays(&self) -> bool {
        !self.replay.is_empty()
    }

    /// The next of it, at most so many bytes.
    pub fn again(&mut self, most: usize) -> Option<(Stream, Bytes, bool)> {
        let next = self.replay.front_mut()?;
        let most = most.min(PIECE_BYTES);
        if next.data.len() > most {
            return Some((next.stream, next.data.split_to(most), false));
        }
        let next = self.replay.pop_front()?;
        Some((next.stream, next.data, next.eof))
    }
}

/// What of a piece is behind these bytes.
fn after(told: &Told, has: &[u64; 2]) -> Option<Told> {
    let known = has[index(told.stream)].saturating_sub(told.at);
    let known = usize::try_from(known).unwrap_or(usize::MAX);
    (known < told.data.len()).then(|| Told {
        data: told.data.slice(known..),
        at: told.at + known as u64,
        ..told.clone()
    })
}

/// There is no execution of that key.
pub fn unknown(key: &str) -> Refusal {
    let known = key.get(..KEY_BYTES).unwrap_or(key);
    Refusal::new(
        FailureKind::NotFound,
        format!("no execution {known:?} is kept"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Box<Kept> {
        let exec = Exec {
            key: "a".into(),
            keep_ms: 1000,
            ..Exec::default()
        };
        Kept::of(&exec).unwrap().unwrap()
    }

    fn attach(kept: &mut Kept, out: u64, err: u64) -> Result<[u64; 2], Refusal> {
        kept.attach(&Attach {
            key: "a".into(),
            stdout_bytes: out,
            stderr_bytes: err,
        })
    }

    /// What is told again of stdout and of stderr, in pieces of at most `most`.
    fn again(kept: &mut Kept, most: usize) -> [Vec<u8>; 2] {
        let mut heard = [Vec::new(), Vec::new()];
        while let Some((stream, data, _)) = kept.again(most) {
            assert!(data.len() <= most);
            heard[index(stream)].extend_from_slice(&data);
        }
        heard
    }

    #[test]
    fn every_byte_is_told_once_from_wherever_the_caller_is() {
        let mut kept = kept();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        for round in 0..40u8 {
            let data = vec![round; 1 + usize::from(round) * 7 % 50];
            let stream = match round % 3 {
                0 => Stream::Stderr,
                _ => Stream::Stdout,
            };
            match stream {
                Stream::Stderr => err.extend_from_slice(&data),
                _ => out.extend_from_slice(&data),
            }
            kept.note(stream, &Bytes::from(data), false);
        }
        for from in 0..=out.len() {
            let beside = from % (err.len() + 1);
            kept.park(Moment::ZERO);
            let missed = attach(&mut kept, from as u64, beside as u64).unwrap();
            assert_eq!(missed, [0, 0]);
            let heard = again(&mut kept, 1 + from % 60);
            assert_eq!(heard, [out[from..].to_vec(), err[beside..].to_vec()]);
        }
        assert!(attach(&mut kept, out.len() as u64 + 1, 0).is_err());
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_is_missed_is_counted() {
        let mut kept = kept();
        let piece = Bytes::from(vec![7; PIECE_BYTES]);
        let pieces = 2 * HISTORY_BYTES / PIECE_BYTES;
        for _ in 0..pieces {
            kept.note(Stream::Stdout, &piece, false);
            assert!(kept.cost <= HISTORY_BYTES);
        }
        let all = (pieces * PIECE_BYTES) as u64;
        let [missed, _] = attach(&mut kept, 100, 0).unwrap();
        let [heard, _] = again(&mut kept, usize::MAX);
        assert_eq!(100 + missed + heard.len() as u64, all);
        assert!(heard.len() > HISTORY_BYTES - 2 * PIECE_BYTES);
        // Many small ones cost their records too.
        for _ in 0..HISTORY_BYTES {
            kept.note(Stream::Stderr, &Bytes::from_static(b"x"), false);
        }
        assert!(kept.history.len() <= HISTORY_BYTES / PIECE_COST);
    }

    #[test]
    fn an_end_is_told_again_behind_everything() {
        let mut kept = kept();
        kept.note(Stream::Stdout, &Bytes::from_static(b"ab"), false);
        kept.note(Stream::Stdout, &Bytes::new(), true);
        kept.park(Moment::ZERO);
        attach(&mut kept, 1, 0).unwrap();
        let (_, data, eof) = kept.again(9).unwrap();
        assert_eq!((&data[..], eof), (&b"b"[..], false));
        let (_, data, eof) = kept.again(9).unwrap();
        assert!(data.is_empty() && eof);
        assert!(!kept.replays());
    }
}
