//! From the guest to the owner of a stream: a bounded queue, and credit.
//!
//! ```text
//!  guest ──Output──▶ backlog (≤ first credit, merged) ──▶ queue: 1 item offered | 1 slot kept for the last item ──▶ owner
//!    ◀──Credit── granted as the owner takes items
//! ```
//!
//! The task never waits for an owner: what the guest may send is bounded by its credit, and small pieces merge in the
//! backlog, so neither bytes nor number of items grow. The last item (the end or an error) has a slot of its own.

use super::answers::Broken;
use super::limits::GRANT_BYTES;
use crate::guest::wire::FIRST_CREDIT;
use crate::guest::{GuestError, RunItem, StreamItem, v1};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio_util::sync::PollSender;

/// What travels to an owner.
pub(super) type Item = Result<StreamItem, GuestError>;

/// Queue of a stream towards its owner: one item offered, one slot for the last.
pub(super) const QUEUE_ITEMS: usize = 2;

/// What became of an outlet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It goes on.
    Open,
    /// The last item was handed over.
    Delivered,
    /// The owner dropped its end.
    Dropped,
}

/// What has come and was not yet offered.
#[derive(Debug, Default)]
struct Backlog {
    start: Option<StreamItem>,
    /// Of stdout and stderr.
    data: [BytesMut; 2],
    eof: [bool; 2],
    entries: Vec<v1::Entry>,
    entries_cost: usize,
    /// Words of code with their costs; those that cost anything cost at least `RESULT_CREDIT`, so there are few.
    words: VecDeque<(RunItem, usize, AfterWord)>,
    /// Which stream comes first next time.
    turn: usize,
}

/// Output that came after a word and before the next one.
type AfterWord = [BytesMut; 2];

impl Backlog {
    /// Where output goes that comes now.
    fn newest(&mut self) -> &mut [BytesMut; 2] {
        match self.words.back_mut() {
            Some((_, _, after)) => after,
            None => &mut self.data,
        }
    }

    /// The next item and what it costs of the guest's credit.
    fn next(&mut self) -> Option<(StreamItem, usize)> {
        if let Some(start) = self.start.take() {
            return Some((start, 0));
        }
        for at in [self.turn, 1 - self.turn] {
            if let Some(found) = self.next_of(at) {
                self.turn = 1 - at;
                return Some(found);
            }
        }
        if let Some((word, cost, after)) = self.words.pop_front() {
            self.data = after;
            return Some((StreamItem::Run(word), cost));
        }
        if self.entries.is_empty() {
            return None;
        }
        let cost = std::mem::take(&mut self.entries_cost);
        Some((StreamItem::Entries(std::mem::take(&mut self.entries)), cost))
    }

    fn next_of(&mut self, at: usize) -> Option<(StreamItem, usize)> {
        let stderr = at == 1;
        if !self.data[at].is_empty() {
            let data = std::mem::take(&mut self.data[at]).freeze();
            let cost = data.len();
            return Some((StreamItem::Data { stderr, data }, cost));
        }
        std::mem::take(&mut self.eof[at]).then_some((StreamItem::Eof { stderr }, 0))
    }
}

/// The host's end of a stream's output.
pub(super) struct Outlet {
    room: PollSender<Item>,
    /// Room is reserved: the owner has taken everything.
    is_hungry: bool,
    closed: Pin<Box<dyn Future<Output = ()> + Send>>,
    last: Option<OwnedPermit<Item>>,
    end: Option<Item>,
    backlog: Backlog,
    /// Cost of the item in the queue.
    offered: usize,
    /// Taken by the owner, not yet granted again.
    taken: usize,
    /// What the guest may still send.
    credit: usize,
}

impl Outlet {
    /// `sender` of a new, empty queue of [`QUEUE_ITEMS`].
    pub(super) fn new(sender: mpsc::Sender<Item>) -> Self {
        let watched = sender.clone();
        Self {
            last: sender.clone().try_reserve_owned().ok(),
            room: PollSender::new(sender),
            is_hungry: false,
            closed: Box::pin(async move { watched.closed().await }),
            end: None,
            backlog: Backlog::default(),
            offered: 0,
            taken: 0,
            credit: FIRST_CREDIT,
        }
    }

    /// The first item.
    pub(super) fn start(&mut self, item: StreamItem) {
        self.backlog.start = Some(item);
    }

    /// A piece of stdout (0) or stderr (1).
    pub(super) fn data(&mut self, stream: usize, data: &Bytes) -> Result<(), Broken> {
        self.charge(data.len())?;
        // Copied: a part of what was read would hold all that was read.
        self.backlog.newest()[stream].extend_from_slice(data);
        Ok(())
    }

    /// A word of code, in its place among the output.
    pub(super) fn run(&mut self, word: RunItem, cost: usize) -> Result<(), Broken> {
        self.charge(cost)?;
        self.backlog
            .words
            .push_back((word, cost, AfterWord::default()));
        Ok(())
    }

    /// No more of stdout (0) or stderr (1).
    pub(super) fn eof(&mut self, stream: usize) {
        self.backlog.eof[stream] = true;
    }

    /// Entries of a directory.
    pub(super) fn entries(&mut self, entries: Vec<v1::Entry>, cost: usize) -> Result<(), Broken> {
        self.charge(cost)?;
        self.backlog.entries.extend(entries);
        self.backlog.entries_cost += cost;
        Ok(())
    }

    fn charge(&mut self, cost: usize) -> Result<(), Broken> {
        self.credit = self
            .credit
            .checked_sub(cost)
            .ok_or("more output than was granted")?;
        Ok(())
    }

    /// The guest has ended the call: this goes out after all else.
    pub(super) fn end(&mut self, end: Item) {
        self.end = Some(end);
    }

    /// What the guest may still send.
    pub(super) fn credit(&self) -> usize {
        self.credit
    }

    /// Whether [`Self::grant`] would give something.
    pub(super) fn is_grant_due(&self) -> bool {
        self.taken >= GRANT_BYTES && self.end.is_none()
    }

    /// Credit to be told to the guest now.
    pub(super) fn grant(&mut self) -> Option<u32> {
        if !self.is_grant_due() {
            return None;
        }
        let granted = std::mem::take(&mut self.taken);
        self.credit += granted;
        u32::try_from(granted).ok()
    }

    /// Offers what there is to the owner; learns what it took.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Outcome {
        if self.closed.as_mut().poll(cx).is_ready() {
            return Outcome::Dropped;
        }
        loop {
            if !self.is_hungry {
                match self.room.poll_reserve(cx) {
                    Poll::Ready(Ok(())) => self.was_emptied(),
                    Poll::Ready(Err(_)) => return Outcome::Dropped,
                    Poll::Pending => break,
                }
            }
            let Some((item, cost)) = self.backlog.next() else {
                return self.deliver_end();
            };
            self.offered = cost;
            self.is_hungry = false;
            if self.room.send_item(Ok(item)).is_err() {
                return Outcome::Dropped;
            }
        }
        Outcome::Open
    }

    fn was_emptied(&mut self) {
        self.is_hungry = true;
        self.taken += std::mem::take(&mut self.offered);
    }

    fn deliver_end(&mut self) -> Outcome {
        match self.end.take() {
            Some(end) => {
                self.send_last(end);
                Outcome::Delivered
            }
            None => Outcome::Open,
        }
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn held_bytes(&self) -> usize {
        let data: usize = self.backlog.data.iter().map(BytesMut::len).sum();
        let words = self.backlog.words.iter();
        let words: usize = words
            .map(|(_, cost, after)| cost + after.iter().map(BytesMut::len).sum::<usize>())
            .sum();
        words + data + self.backlog.entries_cost + self.offered
    }

    /// Ends it at once; what was not offered is lost.
    pub(super) fn fail(mut self, error: GuestError) {
        self.send_last(Err(error));
    }

    fn send_last(&mut self, item: Item) {
        if let Some(slot) = self.last.take() {
            slot.send(item);
        }
    }
}
