//! Events on their way to the driver. Nothing here ever waits for the receiver: what it has not taken yet is kept as a
//! state (the last word on the connection, the set of sandboxes that ended), which is bounded by the number of
//! sandboxes and loses nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use tokio::sync::{Notify, mpsc};

use crate::{machine::ids::SandboxId, runtime::RuntimeEvent};

#[derive(Debug, Default)]
struct Pending {
    /// Connected or not; `None`: nothing new.
    link: Option<bool>,
    /// Ended, and whether the OOM killer did it.
    exits: BTreeMap<SandboxId, bool>,
    /// Wedged shims were killed.
    shims: BTreeSet<SandboxId>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pending: Mutex<Pending>,
    news: Notify,
}

impl Outbox {
    pub(super) fn connected(&self) {
        self.put(|pending| pending.link = Some(true));
    }

    pub(super) fn disconnected(&self) {
        self.put(|pending| pending.link = Some(false));
    }

    pub(super) fn exited(&self, id: SandboxId, out_of_memory: bool) {
        self.put(|pending| {
            pending.exits.insert(id, out_of_memory);
        });
    }

    pub(super) fn shim_killed(&self, id: SandboxId) {
        self.put(|pending| {
            pending.shims.insert(id);
        });
    }

    fn put(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        self.news.notify_one();
    }

    fn take(&self) -> Option<RuntimeEvent> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        match pending.link.take() {
            Some(true) => return Some(RuntimeEvent::Connected),
            Some(false) => return Some(RuntimeEvent::Disconnected),
            None => {}
        }
        if let Some((id, out_of_memory)) = pending.exits.pop_first() {
            return Some(RuntimeEvent::Exited { id, out_of_memory });
        }
        let id = pending.shims.pop_first()?;
        Some(RuntimeEvent::ShimKilled { id })
    }

    /// Sends until the receiver is gone.
    pub(super) async fn deliver(&self, receiver: mpsc::Sender<RuntimeEvent>) {
        loop {
            while let Some(event) = self.take() {
                if receiver.send(event).await.is_err() {
                    return;
                }
            }
            self.news.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::machine::ids::NodeTag;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_receiver_that_lags_loses_no_exit_and_learns_the_last_word() {
        let outbox = Arc::new(Outbox::default());
        let (sender, mut receiver) = mpsc::channel(1);
        let delivery = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.deliver(sender).await }
        });
        let id = |n| SandboxId::new(NodeTag(7), n).unwrap();
        for n in 0..1000 {
            outbox.exited(id(n), n % 2 == 1);
            outbox.disconnected();
            outbox.connected();
            if n % 10 == 0 {
                tokio::task::yield_now().await;
            }
        }
        let mut exits = BTreeMap::new();
        let mut link = None;
        while exits.len() < 1000 || link != Some(true) {
            let event = tokio::time::timeout(std::time::Duration::from_secs(10), receiver.recv());
            match event.await.unwrap().unwrap() {
                RuntimeEvent::Connected => link = Some(true),
                RuntimeEvent::Disconnected => link = Some(false),
                RuntimeEvent::Exited { id, out_of_memory } => {
                    assert_eq!(exits.insert(id, out_of_memory), None);
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(
            exits
                .iter()
                .all(|(id, oom)| *oom == (id.sequence() % 2 == 1))
        );
        drop(receiver);
        outbox.exited(id(1), false);
        tokio::time::timeout(std::time::Duration::from_secs(10), delivery)
            .await
            .unwrap()
            .unwrap();
    }
}
