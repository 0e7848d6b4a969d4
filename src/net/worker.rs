//! A thread of its own for the kernel's verbs, which are synchronous and may hang in a lock of the kernel: never a thread of
//! tokio. One verb after the other; a bounded queue before it; every caller has a deadline.

use super::NetError;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;
use tokio::sync::oneshot;

/// Calls that wait for the thread; one more is refused.
const QUEUE: usize = 1024;

type Job<T> = Box<dyn FnOnce(&mut T) + Send>;

/// The thread, which owns a `T`. It ends when this is dropped and the queue is empty.
pub(super) struct Worker<T> {
    queue: SyncSender<Job<T>>,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts it in the network namespace of the calling thread; `make` runs there first.
    ///
    /// # Errors
    /// No thread could be made, or `make`'s.
    pub(super) async fn start(
        name: &str,
        deadline: Duration,
        make: impl FnOnce() -> Result<T, NetError> + Send + 'static,
    ) -> Result<Self, NetError> {
        const WHAT: &str = "starting a thread of the network";
        let (queue, jobs) = sync_channel::<Job<T>>(QUEUE);
        let (answer, answered) = oneshot::channel();
        let work = move || match make() {
            Ok(mut state) => {
                let _ = answer.send(Ok(()));
                jobs.into_iter().for_each(|job| job(&mut state));
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn(work).map_err(|error| refused(WHAT, error))?;
        match tokio::time::timeout(deadline, answered).await {
            Ok(Ok(made)) => made.map(|()| Self { queue }),
            Ok(Err(_)) => Err(refused(WHAT, "the thread has gone")),
            Err(_) => Err(NetError::DeadlineExceeded {
                what: WHAT,
                seconds: deadline.as_secs(),
            }),
        }
    }

    /// Has the thread do `job`. A job whose caller has gone is done all the same: what it changes it writes down itself.
    pub(super) async fn run<R: Send + 'static>(
        &self,
        what: &'static str,
        deadline: Duration,
        job: impl FnOnce(&mut T) -> Result<R, NetError> + Send + 'static,
    ) -> Result<R, NetError> {
        let (answer, answered) = oneshot::channel();
        let job = Box::new(move |state: &mut T| {
            let _ = answer.send(job(state));
        });
        match self.queue.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(refused(what, "too many calls wait")),
            Err(TrySendError::Disconnected(_)) => return Err(refused(what, "the thread has gone")),
        }
        match tokio::time::timeout(deadline, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(refused(what, "the thread has gone")),
            Err(_) => Err(NetError::DeadlineExceeded {
                what,
                seconds: deadline.as_secs(),
            }),
        }
    }
}

/// The error of a step.
pub(super) fn refused(what: &'static str, detail: impl ToString) -> NetError {
    let mut detail = detail.to_string();
    let end = (0..=200).rev().find(|at| detail.is_char_boundary(*at));
    detail.truncate(end.unwrap_or(0));
    NetError::Refused { what, detail }
}
