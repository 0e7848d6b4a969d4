//! Bounds of calls in flight: one room for each kind, so that no kind starves another. A full room is an answer. In the
//! room of claims a caller has a share as well, which shrinks as the room fills: a few greedy callers leave some for another.

use super::bounds;
use super::caller::Right;
use super::method::Lane;
use crate::machine::refusal::Refusal;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Claims in flight by caller; those without any are not in it.
#[derive(Default)]
struct Shares(Mutex<BTreeMap<Arc<str>, usize>>);

impl Shares {
    fn table(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, usize>> {
        // Every change is one number.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more of this caller, while `free` places are left; `None`: it has its share.
    fn take(self: &Arc<Self>, caller: &Arc<str>, free: usize) -> Option<Share> {
        let mut table = self.table();
        let taken = table.get(caller).copied().unwrap_or(0);
        if taken >= free.saturating_mul(bounds::CLAIMS_SHARE) {
            return None;
        }
        table.insert(Arc::clone(caller), taken + 1);
        Some(Share {
            shares: Arc::clone(self),
            caller: Arc::clone(caller),
        })
    }
}

/// A place of a caller's share, until it is dropped.
struct Share {
    shares: Arc<Shares>,
    caller: Arc<str>,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut table = self.shares.table();
        if let Some(taken) = table.get_mut(&self.caller) {
            *taken -= 1;
            if *taken == 0 {
                table.remove(&self.caller);
            }
        }
    }
}

/// A place for one call; it is free again when this is dropped.
pub struct Place {
    _room: OwnedSemaphorePermit,
    _share: Option<Share>,
}

/// The rooms.
pub struct Lanes {
    claims: Arc<Semaphore>,
    shares: Arc<Shares>,
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
            shares: Arc::default(),
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
    /// Takes a place for one call of this caller.
    pub fn enter(&self, lane: Lane, right: &Right, caller: &Arc<str>) -> Result<Place, Refusal> {
        let (room, queue) = match (lane, right) {
            (Lane::Claims, _) => (&self.claims, "requests"),
            (Lane::Returns, _) => (&self.returns, "requests"),
            (Lane::Reads | Lane::Open, Right::Open) | (Lane::Open, _) => (&self.open, "requests"),
            (Lane::Reads, _) => (&self.reads, "requests"),
            (Lane::Watches, _) => (&self.watches, "watchers"),
            (Lane::Streams, Right::Role(_)) => (&self.streams, "executions"),
            (Lane::Streams, Right::Token(_) | Right::Open) => (&self.held, "executions"),
        };
        let full = || Refusal::QueueFull {
            queue,
            retry_ms: bounds::BUSY_RETRY_MS,
        };
        let share = match lane {
            Lane::Claims => {
                let share = self.shares.take(caller, room.available_permits());
                Some(share.ok_or_else(full)?)
            }
            _ => None,
        };
        let room = Arc::clone(room).try_acquire_owned().map_err(|_| full())?;
        Ok(Place {
            _room: room,
            _share: share,
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
        let (lanes, root, me) = (Lanes::default(), ROLE, "me".into());
        let taken: Vec<_> = (0..bounds::CLAIMS_PER_CALLER)
            .map(|_| lanes.enter(Lane::Claims, &root, &me).unwrap())
            .collect();
        let full = lanes.enter(Lane::Claims, &root, &me).err().unwrap();
        assert!(matches!(
            full,
            Refusal::QueueFull {
                queue: "requests",
                ..
            }
        ));
        let _ = lanes.enter(Lane::Returns, &root, &me).unwrap();
        let _ = lanes.enter(Lane::Reads, &root, &me).unwrap();
        drop(taken);
        let _ = lanes.enter(Lane::Claims, &root, &me).unwrap();
        assert_eq!(lanes.shares.table().len(), 0, "nobody is kept");
    }

    #[test]
    fn a_few_greedy_callers_leave_room_for_one_more() {
        let lanes = Lanes::default();
        let mut taken = Vec::new();
        for greedy in 0..4 {
            let greedy: Arc<str> = format!("greedy {greedy}").into();
            while let Ok(place) = lanes.enter(Lane::Claims, &ROLE, &greedy) {
                taken.push(place);
            }
        }
        assert!(taken.len() > bounds::CLAIMS_PER_CALLER, "{}", taken.len());
        let modest = "modest".into();
        let _ = lanes.enter(Lane::Claims, &ROLE, &modest).unwrap();
    }

    #[test]
    fn holders_never_take_the_room_of_roles() {
        let (lanes, holder, me) = (Lanes::default(), Right::Token("t".into()), "me".into());
        let _taken: Vec<_> = (0..bounds::STREAMS_OPEN)
            .map(|_| lanes.enter(Lane::Streams, &holder, &me).unwrap())
            .collect();
        assert!(lanes.enter(Lane::Streams, &holder, &me).is_err());
        let _ = lanes.enter(Lane::Streams, &ROLE, &me).unwrap();
    }
}
