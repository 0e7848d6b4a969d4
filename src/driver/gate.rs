//! Effects that wait until what they tell is durable.

use crate::machine::event::Effect;
use crate::machine::ids::Ticket;
use std::collections::{BTreeMap, VecDeque};

/// Batches handed to the journal and not durable yet, and the effects behind them.
#[derive(Default)]
pub(super) struct Gate {
    /// Batches with something to persist, oldest first.
    commits: VecDeque<Ticket>,
    held: BTreeMap<Ticket, Vec<Effect>>,
}

impl Gate {
    /// A batch was handed to the journal.
    pub(super) fn appended(&mut self, ticket: Ticket) {
        self.commits.push_back(ticket);
    }

    /// Batches the journal has still to commit.
    pub(super) fn in_flight(&self) -> usize {
        self.commits.len()
    }

    /// Whether everything up to `ticket` is durable. A batch without anything to persist is as durable as those
    /// before it.
    pub(super) fn is_open(&self, ticket: Ticket) -> bool {
        self.commits.front().is_none_or(|oldest| *oldest > ticket)
    }

    /// The effect back, if it may run now; else it is kept.
    pub(super) fn pass(&mut self, ticket: Ticket, effect: Effect) -> Option<Effect> {
        if self.is_open(ticket) {
            return Some(effect);
        }
        self.held.entry(ticket).or_default().push(effect);
        None
    }

    /// Everything up to `ticket` is durable: the effects that may run now, in order.
    pub(super) fn durable(&mut self, ticket: Ticket) -> Vec<Effect> {
        while self.commits.front().is_some_and(|oldest| *oldest <= ticket) {
            self.commits.pop_front();
        }
        let mut open = Vec::new();
        while let Some(entry) = self.held.first_entry() {
            let waits = self
                .commits
                .front()
                .is_some_and(|oldest| oldest <= entry.key());
            if waits {
                break;
            }
            open.extend(entry.remove());
        }
        open
    }
}
