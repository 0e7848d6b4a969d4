//! From the owner of a stream to the guest: input waits here for the guest's credit, and that holds the owner back.

use super::answers::Broken;
use super::limits::{INPUT_CREDIT_BYTES, INPUT_PIECE_BYTES};
use crate::guest::wire::FIRST_CREDIT;
use crate::guest::{StreamInput, v1};
use bytes::Bytes;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use v1::host_message::Body;

/// Queue of a stream's input. One more piece waits in the inlet.
pub(super) const QUEUE_ITEMS: usize = 1;

/// What a call takes from its owner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Takes {
    /// Data and Eof.
    pub(super) data: bool,
    /// Resize.
    pub(super) size: bool,
    /// Signal.
    pub(super) signals: bool,
}

impl Takes {
    /// Data and its end.
    pub(super) const DATA: Self = Self {
        data: true,
        size: false,
        signals: false,
    };
}

/// The host's end of a stream's input.
#[derive(Debug)]
pub(super) struct Inlet {
    takes: Takes,
    queue: Option<mpsc::Receiver<StreamInput>>,
    held: Option<StreamInput>,
    credit: usize,
    sent: u64,
    eof_sent: bool,
}

impl Inlet {
    /// What a call does not take is dropped; a call that takes nothing closes its queue at once.
    pub(super) fn new(takes: Takes, queue: mpsc::Receiver<StreamInput>) -> Self {
        Self {
            takes,
            queue: (takes != Takes::default()).then_some(queue),
            held: None,
            credit: FIRST_CREDIT,
            sent: 0,
            eof_sent: false,
        }
    }

    /// Bytes of data handed to the guest.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// The end of input was handed to the guest.
    pub(super) fn is_finished(&self) -> bool {
        self.eof_sent
    }

    /// The guest may take that much more.
    pub(super) fn grant(&mut self, bytes: u32) -> Result<(), Broken> {
        if !self.takes.data {
            return Err("credit for input of a call that has none");
        }
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.credit = self.credit.saturating_add(bytes);
        if bytes == 0 || self.credit > INPUT_CREDIT_BYTES {
            return Err("absurd credit");
        }
        Ok(())
    }

    /// Takes the owner's next input, if there is room for it. `true`: the owner dropped its end before the end of
    /// its input.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        while self.held.is_none() {
            let Some(queue) = &mut self.queue else {
                return false;
            };
            match queue.poll_recv(cx) {
                Poll::Ready(Some(input)) => self.held = Some(input).filter(|i| self.is_taken(i)),
                Poll::Ready(None) => {
                    self.queue = None;
                    return self.takes.data && !self.eof_sent;
                }
                Poll::Pending => return false,
            }
        }
        false
    }

    fn is_taken(&self, input: &StreamInput) -> bool {
        let open = self.takes.data && !self.eof_sent;
        match input {
            StreamInput::Data(data) => open && !data.is_empty(),
            StreamInput::Eof => open,
            StreamInput::Resize { .. } => self.takes.size,
            StreamInput::Signal(number) => self.takes.signals && (1..=64).contains(number),
        }
    }

    /// Ends the input as if the owner had said so.
    pub(super) fn finish(&mut self) {
        self.held = Some(StreamInput::Eof);
    }

    /// Whether [`Self::next`] would give something.
    pub(super) fn is_ready(&self) -> bool {
        match &self.held {
            None => false,
            Some(StreamInput::Data(_)) => self.credit > 0,
            Some(_) => true,
        }
    }

    /// What may go to the guest now.
    pub(super) fn next(&mut self) -> Option<Body> {
        match self.held.take()? {
            StreamInput::Data(data) => self.next_piece(data),
            StreamInput::Eof => {
                self.eof_sent = true;
                Some(Body::Input(v1::Chunk {
                    data: Bytes::new(),
                    eof: true,
                }))
            }
            StreamInput::Resize { rows, columns } => {
                Some(Body::Resize(v1::Resize { rows, columns }))
            }
            StreamInput::Signal(number) => Some(Body::Signal(v1::Signal { number })),
        }
    }

    fn next_piece(&mut self, mut data: Bytes) -> Option<Body> {
        let piece = data.split_to(data.len().min(self.credit).min(INPUT_PIECE_BYTES));
        self.held = (!data.is_empty()).then_some(StreamInput::Data(data));
        if piece.is_empty() {
            return None;
        }
        self.credit -= piece.len();
        self.sent += piece.len() as u64;
        Some(Body::Input(v1::Chunk {
            data: piece,
            eof: false,
        }))
    }
}
