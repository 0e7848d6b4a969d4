//! What the loop waits for, and what it gives back while it waits.

use super::Init;
use crate::wants::{Tag, Wants};
use std::io;

impl Init {
    /// Gives memory back when there is nothing to do.
    pub(super) fn rest(&mut self) {
        let idle = self.calls.is_empty() && self.interpreter.is_idle();
        if idle && self.desk.outbox.is_empty() && self.host.is_idle() {
            self.desk.rest();
            self.host.rest();
            crate::MEMORY.rest();
        }
    }

    pub(super) fn wait(&self) -> Vec<Tag> {
        let now = self.desk.now;
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let mut wants = Wants::default();
        wants.read(self.signals.woken(), Tag::Signals);
        if self.desk.outbox.is_crowded() {
            // The host will be heard once it has taken what is there for it.
        } else if self.unheard {
            wants.at_once(Tag::HostIn);
        } else if self.host.absent_until() > now {
            wants.until(self.host.absent_until());
        } else {
            wants.read(&stdin, Tag::HostIn);
        }
        match self.deaf_until.filter(|until| *until > now) {
            Some(until) => wants.until(until),
            None if self.desk.outbox.is_full() => wants.write(&stdout, Tag::HostOut),
            None => {}
        }
        self.calls.wants(&self.desk, &mut wants);
        self.entrypoint.wants(&mut wants);
        self.interpreter.wants(&self.desk, &mut wants);
        self.desk.drains.wants(&mut wants);
        self.desk.strays.wants(&mut wants);
        if let Some(left) = self.quiet.lasts() {
            wants.until(now + left);
        }
        if let Some(ending) = self.ending {
            wants.until(ending);
        }
        if self.mourning {
            wants.at_once(Tag::Signals);
        }
        wants.wait(now)
    }
}
