//! Bounds of calls in flight: one room for each kind, so that no kind starves another. A full room is an answer.

use super::bounds;
use super::caller::Right;
use super::method::Lane;
use crate::machine::refusal::Refusal;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The rooms.
pub struct Lanes {
    claims: Arc<Semaphore>,
    returns: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// Streams of callers with a token: a room of their own, since the token is checked only when the claim is known.
    held: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Default for Lanes {
    fn default() -> Self {
        let room = |places| Arc::new(Semaphore::new(places));
        Self {
            claims: room(bounds::CLAIMS_IN_FLIGHT),
            returns: room(bounds::RETURNS_IN_FLIGHT),
            reads: room(bounds::READS_IN_FLIGHT),
            watches: room(bounds::WATCHES_OPEN),
            streams: room(bounds::STREAMS_OPEN),
            held: room(bounds::STREAMS_OPEN),
            open: room(bounds::OPEN_CALLS),
        }
    }
}

impl Lanes {
    /// Takes a place for one call; it is free again when the permit is dropped.
    pub fn enter(&self, lane: Lane, right: &Right) -> Result<OwnedSemaphorePermit, Refusal> {
        let (room, queue) = match (lane, right) {
            (Lane::Claims, _) => (&self.claims, "requests"),
            (Lane::Returns, _) => (&self.returns, "requests"),
            (Lane::Reads | Lane::Open, Right::Open) | (Lane::Open, _) => (&self.open, "requests"),
            (Lane::Reads, _) => (&self.reads, "requests"),
            (Lane::Watches, _) => (&self.watches, "watchers"),
            (Lane::Streams, Right::Role(_)) => (&self.streams, "executions"),
            (Lane::Streams, Right::Token(_) | Right::Open) => (&self.held, "executions"),
        };
        Arc::clone(room)
            .try_acquire_owned()
            .map_err(|_| Refusal::QueueFull {
                queue,
                retry_ms: bounds::BUSY_RETRY_MS,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Roles;

    const ROLE: Right = Right::Role(Roles::ADMIN);

    #[test]
    fn a_full_room_is_an_answer_and_starves_no_other() {
        let (lanes, root) = (Lanes::default(), ROLE);
        let taken: Vec<_> = (0..bounds::CLAIMS_IN_FLIGHT)
            .map(|_| lanes.enter(Lane::Claims, &root).unwrap())
            .collect();
        let full = lanes.enter(Lane::Claims, &root).unwrap_err();
        assert!(matches!(
            full,
            Refusal::QueueFull {
                queue: "requests",
                ..
            }
        ));
        let _ = lanes.enter(Lane::Returns, &root).unwrap();
        let _ = lanes.enter(Lane::Reads, &root).unwrap();
        drop(taken);
        let _ = lanes.enter(Lane::Claims, &root).unwrap();
    }

    #[test]
    fn holders_never_take_the_room_of_roles() {
        let (lanes, holder) = (Lanes::default(), Right::Token("t".into()));
        let _taken: Vec<_> = (0..bounds::STREAMS_OPEN)
            .map(|_| lanes.enter(Lane::Streams, &holder).unwrap())
            .collect();
        assert!(lanes.enter(Lane::Streams, &holder).is_err());
        let _ = lanes.enter(Lane::Streams, &ROLE).unwrap();
    }
}
