//! Pipes that nobody listens to any more, read to nowhere. A server that an exec left running goes on when it writes a
//! line: its pipe neither fills nor breaks.

use nix::{errno::Errno, unistd};
use std::{collections::BTreeMap, os::fd::OwnedFd};

use crate::{
    limits::{DRAINS, PIECE_BYTES},
    wants::{Tag, Wants},
};

#[derive(Debug, Default)]
pub struct Drains {
    pipes: BTreeMap<u64, OwnedFd>,
    next: u64,
}

impl Drains {
    /// Takes a pipe (or the master of a terminal) that does not block.
    pub fn push(&mut self, pipe: OwnedFd) {
        if self.pipes.len() >= DRAINS {
            self.pipes.pop_first();
        }
        self.pipes.insert(self.next, pipe);
        self.next += 1;
    }

    pub fn wants<'a>(&'a self, wants: &mut Wants<'a>) {
        for (id, pipe) in &self.pipes {
            wants.read(pipe, Tag::Drain(*id));
        }
    }

    /// Reads from one once; closes it at its end.
    pub fn read(&mut self, id: u64) {
        let mut nowhere = [0; PIECE_BYTES];
        let Some(pipe) = self.pipes.get(&id) else {
            return;
        };
        match unistd::read(pipe, &mut nowhere) {
            Ok(1..) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(0) | Err(_) => {
                self.pipes.remove(&id);
            }
        }
    }
}
