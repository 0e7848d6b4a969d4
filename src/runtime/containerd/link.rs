//! Whether containerd answers, as told to the driver.
//!
//! Every call that fails because of the connection, a held call that ends when the connection does, and a regular
//! probe lead to `Disconnected`; the next answer leads to `Connected`. So whoever got `RuntimeError::Unavailable` is
//! always told `Connected` afterwards.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use containerd_client::services::v1::SubscribeRequest;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{client::Client, outbox::Outbox};

/// For one probe.
const PROBE: Duration = Duration::from_secs(2);
/// Between two probes of a connection that seems fine.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// Unanswered probes in a row that make it count as down: a busy node is not a dead containerd.
const MISSES: u32 = 3;
/// First and longest pause between two probes of one that is down.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The state of the connection.
#[derive(Debug)]
pub(super) struct Link {
    up: AtomicBool,
    suspicion: Notify,
    outbox: Arc<Outbox>,
}

impl Link {
    pub(super) fn new(outbox: Arc<Outbox>) -> Self {
        Self {
            up: AtomicBool::new(false),
            suspicion: Notify::new(),
            outbox,
        }
    }

    /// A call failed because of the connection. While it is down that is no news.
    pub(super) fn suspect(&self) {
        if self.down() {
            self.suspicion.notify_one();
        }
    }

    /// Whether it was up.
    fn down(&self) -> bool {
        let was_up = self.up.swap(false, Ordering::SeqCst);
        if was_up {
            self.outbox.disconnected();
        }
        was_up
    }

    /// Watches for ever.
    pub(super) async fn keep(&self, client: &Client) {
        let mut told_down = false;
        loop {
            let mut pause = RETRY.0;
            while !answers(client).await {
                if !std::mem::replace(&mut told_down, true) {
                    self.outbox.disconnected();
                }
                sleep(pause).await;
                pause = (pause * 2).min(RETRY.1);
            }
            self.up.store(true, Ordering::SeqCst);
            self.outbox.connected();
            tokio::select! {
                () = self.suspected() => {}
                () = hung_up(client) => {}
                () = falls_silent(client) => {}
            }
            self.down();
            told_down = true;
        }
    }
}

impl Link {
    /// Returns when it is down. A notice may be one of the last outage: what counts is the state.
    async fn suspected(&self) {
        while self.up.load(Ordering::SeqCst) {
            self.suspicion.notified().await;
        }
    }
}

/// One probe. Not a measured call: those that fail while it is down would hide the others' figures.
async fn answers(client: &Client) -> bool {
    let mut version = client.version();
    matches!(timeout(PROBE, version.version(())).await, Ok(Ok(_)))
}

/// Returns when the connection ends. A subscription to a topic that nobody publishes is only a call that stays open:
/// exits are learnt from pidfds (see `watch`), not from events, of which there is no replay.
async fn hung_up(client: &Client) {
    let request = SubscribeRequest {
        filters: vec![r#"topic=="/hearth/none""#.to_owned()],
    };
    let mut events = client.events();
    // containerd sends no headers before the first event, so as a rule this is where it waits.
    match events.subscribe(request).await {
        Ok(stream) => {
            let mut stream = stream.into_inner();
            while let Ok(Some(_)) = stream.message().await {}
        }
        // Refused rather than cut: then only probes and failed calls tell.
        Err(status) if std::error::Error::source(&status).is_none() => {
            std::future::pending::<()>().await;
        }
        Err(_) => {}
    }
}

/// Returns when several probes in a row got no answer.
async fn falls_silent(client: &Client) {
    let mut misses = 0;
    while misses < MISSES {
        sleep(PROBE_EVERY).await;
        misses = if answers(client).await { 0 } else { misses + 1 };
    }
}
