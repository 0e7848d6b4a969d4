//! All calls of one sandbox: who is asked next, whose answer this is, whose time is up.
//!
//! Messages of calls that have ended here but not yet in the guest (cancelled, timed out) are expected for a while and
//! thrown away. No list of them is kept: every such call adds to one allowance what it may still bring, and late
//! messages use it up; beyond it they break the protocol.

use super::answers::Broken;
use super::call::{Call, Kind, Progress, Work};
use super::limits::{LATE_ALLOWANCE, LATE_ALLOWANCE_MAX, LATE_MESSAGE_COST, WRITTEN_DEADLINE};
use super::outgoing::Outgoing;
use super::outlet::Outcome;
use crate::guest::{GuestError, v1, wire};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::task::{Context, Poll};
use tokio::time::Instant;
use v1::guest_message::Body as GuestBody;
use v1::host_message::Body as HostBody;

/// The calls of one sandbox. Their number is bounded by the permits they carry.
#[derive(Default)]
pub(super) struct Calls {
    open: BTreeMap<u64, Box<Call>>,
    /// Largest id taken.
    largest: u64,
    deadlines: BTreeSet<(Instant, u64)>,
    /// Not yet written, in order of arrival.
    starts: VecDeque<u64>,
    /// Known to the guest, wanted no more.
    cancels: VecDeque<u64>,
    /// Whose input went last.
    turn: u64,
    late_allowance: usize,
}

/// A message for the writer.
pub(super) struct Next {
    /// Whose; `None`: of no open call (a Cancel).
    pub(super) call: u64,
    pub(super) is_start: bool,
    pub(super) message: Outgoing,
}

impl Calls {
    /// Takes a call of the client.
    pub(super) fn accept(&mut self, id: u64, call: Box<Call>) {
        self.largest = self.largest.max(id);
        if let Some(deadline) = call.deadline {
            self.deadlines.insert((deadline, id));
        }
        self.starts.push_back(id);
        self.open.insert(id, call);
    }

    /// Somebody waits to be asked.
    pub(super) fn has_unsent(&self) -> bool {
        !self.starts.is_empty()
    }

    /// When the first call's time is up.
    pub(super) fn first_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Takes one message of the guest to its call.
    pub(super) fn receive(&mut self, message: v1::GuestMessage) -> Result<(), Broken> {
        let id = message.call;
        let body = message.body.ok_or("a message without content")?;
        if id == 0 || id > self.largest {
            return Err("an answer to a call that was never made");
        }
        let Some(call) = self.open.get_mut(&id).filter(|call| !is_ended(call)) else {
            return self.receive_late(&body);
        };
        if call.written_at.is_none() {
            return Err("an answer before its question");
        }
        match call.receive(body)? {
            Progress::Open => {}
            Progress::Started => self.clear_deadline(id),
            Progress::Ended => self.ended(id),
        }
        Ok(())
    }

    fn receive_late(&mut self, body: &GuestBody) -> Result<(), Broken> {
        let cost = match body {
            GuestBody::Output(output) => output.data.len().max(1),
            GuestBody::Entries(page) => page
                .entries
                .iter()
                .map(|entry| wire::ENTRY_CREDIT + entry.name.len())
                .sum::<usize>()
                .max(1),
            GuestBody::Credit(credit) => usize::try_from(credit.bytes).unwrap_or(usize::MAX).max(1),
            _ => LATE_MESSAGE_COST,
        };
        self.late_allowance = self
            .late_allowance
            .checked_sub(cost)
            .ok_or("a message after the last of its call")?;
        Ok(())
    }

    /// A call ended here that the guest may not know ended: what it may still bring is no fault.
    fn expect_late(&mut self, credit: usize) {
        let more = credit + wire::FIRST_CREDIT + LATE_ALLOWANCE;
        self.late_allowance = (self.late_allowance + more).min(LATE_ALLOWANCE_MAX);
    }

    fn clear_deadline(&mut self, id: u64) {
        let deadline = self.open.get_mut(&id).and_then(|call| call.deadline.take());
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, id));
        }
    }

    /// The guest has said its last word: a short call is over, a stream once its owner has everything.
    fn ended(&mut self, id: u64) {
        self.clear_deadline(id);
        if matches!(
            self.open.get(&id).map(|call| &call.work),
            Some(Work::Short(_))
        ) {
            self.open.remove(&id);
        }
    }

    /// Takes a call out; tells the guest if it knows of it and has not ended it.
    fn remove(&mut self, id: u64) -> Option<Box<Call>> {
        self.clear_deadline(id);
        let mut call = self.open.remove(&id)?;
        if call.start.is_some() {
            self.starts.retain(|waiting| *waiting != id);
        } else if !is_ended(&call) {
            let credit = call.stream().map(|stream| stream.outlet.credit());
            self.expect_late(credit.unwrap_or_default());
            if credit.is_some() {
                self.cancels.push_back(id);
            }
        }
        Some(call)
    }

    /// Moves all streams on. Ready when something changed that the writer should look at.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut over = Vec::new();
        let mut news = false;
        for (id, call) in &mut self.open {
            let Work::Stream(stream) = &mut call.work else {
                continue;
            };
            let before = (stream.inlet.is_ready(), stream.outlet.is_grant_due());
            match stream.poll(cx) {
                Ok(Outcome::Open) => {}
                Ok(Outcome::Delivered | Outcome::Dropped) => over.push((*id, None)),
                Err(error) => over.push((*id, Some(error))),
            }
            // Only what is new: what waits for room in the FIFO must not wake the task again and again.
            news |= !before.0 && stream.inlet.is_ready();
            news |= !before.1 && stream.outlet.is_grant_due();
        }
        news |= !over.is_empty();
        for (id, error) in over {
            let call = self.remove(id);
            if let (Some(call), Some(error)) = (call, error) {
                call.fail(error);
            }
        }
        if news { Poll::Ready(()) } else { Poll::Pending }
    }

    /// What the guest should be told next: first what frees and moves others, then new calls, then input in turns.
    pub(super) fn next(&mut self, now: Instant) -> Option<Next> {
        if let Some(id) = self.cancels.pop_front() {
            return next(id, HostBody::Cancel(v1::Cancel {}));
        }
        for (id, call) in &mut self.open {
            if let Some(bytes) = call.stream().and_then(|stream| stream.outlet.grant()) {
                return next(*id, HostBody::Credit(v1::Credit { bytes }));
            }
        }
        if let Some(id) = self.starts.pop_front() {
            let message = self.open.get_mut(&id)?.start.take()?;
            return Some(Next {
                call: id,
                is_start: true,
                message,
            });
        }
        self.next_input(now)
    }

    fn next_input(&mut self, now: Instant) -> Option<Next> {
        let ready = |(id, call): (&u64, &mut Box<Call>)| {
            let stream = call.stream().filter(|stream| !stream.is_ended())?;
            stream.inlet.is_ready().then_some(*id)
        };
        let after = self.open.range_mut(self.turn + 1..).find_map(ready);
        let id = after.or_else(|| self.open.iter_mut().find_map(ready))?;
        self.turn = id;
        let call = self.open.get_mut(&id)?;
        let kind = call.kind;
        let stream = call.stream()?;
        let body = stream.inlet.next()?;
        if stream.inlet.is_finished() {
            self.input_finished(id, kind, now);
        }
        next(id, body)
    }

    /// A file is whole: from now on the guest has a time to say so. A connection may be over.
    fn input_finished(&mut self, id: u64, kind: Kind, now: Instant) {
        let Some(call) = self.open.get_mut(&id) else {
            return;
        };
        match kind {
            Kind::WriteFile => {
                let deadline = now + WRITTEN_DEADLINE;
                call.deadline = Some(deadline);
                self.deadlines.insert((deadline, id));
            }
            Kind::Connect => {
                let ended = call.stream().is_some_and(|stream| {
                    stream.input_finished();
                    stream.is_ended()
                });
                if ended {
                    // The guest learns of it only now.
                    self.expect_late(0);
                }
            }
            _ => {}
        }
    }

    /// A call's first message was written whole.
    pub(super) fn was_written(&mut self, id: u64, now: Instant) {
        let Some(call) = self.open.get_mut(&id) else {
            return;
        };
        call.written_at = Some(now);
        if call.kind == Kind::WriteFile {
            if let Some(stream) = call.stream() {
                stream.was_written();
            }
            self.clear_deadline(id);
        }
    }

    /// Ends calls whose time is up. `true`: one of them was asked, or could not be asked, since the guest was last
    /// heard.
    pub(super) fn expire(&mut self, now: Instant, heard: Option<Instant>) -> bool {
        let mut is_stale = false;
        while let Some((at, id)) = self.deadlines.first().copied() {
            if at > now {
                break;
            }
            self.deadlines.pop_first();
            if let Some(call) = self.remove(id) {
                let asked_at = call.written_at.unwrap_or(call.made_at);
                is_stale |= heard.is_none_or(|heard| heard <= asked_at);
                call.fail(GuestError::Silent(match heard {
                    Some(_) => "no answer within the deadline",
                    None => "no alignment within the deadline",
                }));
            }
        }
        is_stale
    }

    /// A new session: calls the guest knew of are closed, the others wait for it. What the guest had ended stays until
    /// its owner has it.
    pub(super) fn close_session(&mut self) {
        let known: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, call)| call.start.is_none() && !is_ended(call))
            .map(|(id, _)| *id)
            .collect();
        for id in known {
            if let Some(call) = self.remove(id) {
                call.fail(GuestError::Closed);
            }
        }
        self.cancels.clear();
        self.late_allowance = 0;
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn held_bytes(&mut self) -> usize {
        let streams = self.open.values_mut().filter_map(|call| call.stream());
        streams.map(|stream| stream.outlet.held_bytes()).sum()
    }

    /// The end of all.
    pub(super) fn fail_all(&mut self, error: &GuestError) {
        for (_, call) in std::mem::take(&mut self.open) {
            call.fail(error.clone());
        }
    }
}

fn is_ended(call: &Call) -> bool {
    match &call.work {
        Work::Short(_) => false,
        Work::Stream(stream) => stream.is_ended(),
    }
}

fn next(call: u64, body: HostBody) -> Option<Next> {
    // Small messages: they always fit.
    let message = Outgoing::encode(call, body).ok()?;
    Some(Next {
        call,
        is_start: false,
        message,
    })
}
