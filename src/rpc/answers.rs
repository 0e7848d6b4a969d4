//! A stream of answers written as a plain async function: it sends items, and its end is the stream's end.
//!
//! No task and no queue of its own: the function runs while the client has room for answers, so a client that reads
//! slowly holds back whatever the function reads from. Dropping the stream drops the function.

use crate::machine::refusal::Refusal;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::Status;

type Work = Pin<Box<dyn Future<Output = Result<(), Refusal>> + Send>>;

/// The stream.
pub struct Answers<T> {
    work: Option<Work>,
    items: mpsc::Receiver<T>,
    refusal: Option<Refusal>,
}

/// Where the function sends its items.
pub struct Out<T>(mpsc::Sender<T>);

impl<T> Out<T> {
    /// Sends one item; waits until the client has room.
    pub async fn send(&self, item: T) {
        // The receiver is dropped together with the function that sends: never before.
        let _ = self.0.send(item).await;
    }
}

/// A stream of what `work` sends.
pub fn answers<T, F>(work: impl FnOnce(Out<T>) -> F) -> Answers<T>
where
    F: Future<Output = Result<(), Refusal>> + Send + 'static,
{
    let (sender, items) = mpsc::channel(1);
    Answers {
        work: Some(Box::pin(work(Out(sender)))),
        items,
        refusal: None,
    }
}

impl<T> Stream for Answers<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // What is ready goes out before the work goes on.
        if let Poll::Ready(Some(item)) = self.items.poll_recv(cx) {
            return Poll::Ready(Some(Ok(item)));
        }
        if let Some(work) = &mut self.work
            && let Poll::Ready(ended) = work.as_mut().poll(cx)
        {
            self.work = None;
            self.refusal = ended.err();
        }
        match self.items.poll_recv(cx) {
            Poll::Ready(Some(item)) => Poll::Ready(Some(Ok(item))),
            // The sender lives in the work.
            Poll::Ready(None) if self.work.is_none() => {
                Poll::Ready(self.refusal.take().map(|refusal| Err(refusal.into())))
            }
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio_stream::StreamExt;

    #[tokio::test]
    async fn items_then_the_end() {
        let all: Vec<_> = answers(|out| async move {
            for item in 0..100 {
                out.send(item).await;
                tokio::task::yield_now().await;
            }
            Ok(())
        })
        .map(|item| item.unwrap())
        .collect()
        .await;
        assert_eq!(all, (0..100).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn items_then_the_refusal_then_nothing() {
        let mut stream = answers(|out| async move {
            out.send(1).await;
            Err(Refusal::Internal { detail: "x".into() })
        });
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        assert_eq!(
            stream.next().await.unwrap().unwrap_err().code(),
            tonic::Code::Internal
        );
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn who_does_not_read_holds_the_work_back() {
        let sent = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sent);
        let mut stream = answers(|out| async move {
            loop {
                out.send(()).await;
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        for _ in 0..10 {
            stream.next().await.unwrap().unwrap();
        }
        assert!(
            sent.load(Ordering::SeqCst) <= 11,
            "{}",
            sent.load(Ordering::SeqCst)
        );
    }
}
