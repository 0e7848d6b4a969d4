//! What ends a call before its own end: its deadline, or the shutdown.

use super::bounds;
use super::method::{Ends, Method};
use crate::machine::refusal::Refusal;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::codegen::http::HeaderMap;

/// The steps of a shutdown, told to everything that is open.
#[derive(Clone, Default)]
pub struct Shutdown {
    /// It begins: nothing new is accepted, what never ends by itself is ended.
    pub begun: CancellationToken,
    /// The deadline has passed: everything that is open is ended.
    pub ended: CancellationToken,
    /// Connections that are still there are cut.
    pub cut: CancellationToken,
}

/// Resolves when a call must end.
pub struct Until {
    deadline: Option<(Pin<Box<Sleep>>, &'static str)>,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Until {
    /// For a call that begins now.
    #[must_use]
    pub fn new(method: &Method, headers: &HeaderMap, shutdown: &Shutdown) -> Self {
        let asked = timeout(headers).map(|asked| (asked - margin(asked), "the caller's deadline"));
        let bound = method
            .bound
            .map(|bound| (bound, "hearth's bound for this call"));
        let first = asked.into_iter().chain(bound).min_by_key(|(time, _)| *time);
        let shutdown = match method.ends {
            Ends::AtOnce => &shutdown.begun,
            Ends::AtDeadline => &shutdown.ended,
        };
        Self {
            deadline: first.map(|(time, what)| {
                (
                    Box::pin(tokio::time::sleep_until(Instant::now() + time)),
                    what,
                )
            }),
            shutdown: Box::pin(shutdown.clone().cancelled_owned()),
        }
    }

    /// Ready with the reason once the call must end.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Refusal> {
        if self.shutdown.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Refusal::ShuttingDown {
                retry_ms: bounds::STREAM_RETRY_MS,
            });
        }
        match &mut self.deadline {
            Some((sleep, what)) => sleep
                .as_mut()
                .poll(cx)
                .map(|()| Refusal::DeadlineExceeded { what }),
            None => Poll::Pending,
        }
    }
}

/// So much earlier than the caller gives up, that the answer is there before.
fn margin(asked: Duration) -> Duration {
    bounds::DEADLINE_MARGIN.min(asked / 10)
}

/// `grpc-timeout`: at most eight digits and a unit
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>). An invalid one is ignored, as tonic does.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().unwrap());
        timeout(&headers)
    }

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
        assert_eq!(read("1m"), Some(Duration::from_millis(1)));
        assert_eq!(
            read("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        for wrong in ["", "m", "1", "123456789m", "1x", "-1m", "+1m", "1.5S", "m1"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }

    #[test]
    fn the_margin_never_eats_the_deadline() {
        for millis in [0, 1, 10, 100, 100_000] {
            let asked = Duration::from_millis(millis);
            assert!(asked - margin(asked) >= asked * 9 / 10);
        }
    }
}
