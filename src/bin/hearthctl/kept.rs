//! `exec --keep`: a process that outlives its stream.

use crate::exec::{INTERRUPTED, Manner, OPEN_DEADLINE, QUEUE, Signals, code, follow, send};
use crate::failure::{Exit, Failure};
use crate::link::Link;
use crate::output;
use hearth::api::exec_request::Request as Input;
use hearth::api::{Attached, ExecAttach, ExecStart};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Before the next attempt to attach.
const ATTACH_PAUSE: Duration = Duration::from_millis(500);

/// One process that outlives its stream, to its end: joined again whenever that breaks. Started once: what has begun under
/// its id is attached to.
pub async fn run(link: &Link, start: ExecStart, keep: Duration) -> Result<u8, Failure> {
    let mut signals = Signals::new()?;
    let mut heard = Heard::default();
    let mut next = Input::Start(start.clone());
    let mut broken: Option<Instant> = None;
    loop {
        let before = heard;
        let attaching = matches!(next, Input::Attach(_));
        let (input, queue) = mpsc::channel(QUEUE);
        send(&input, next).await;
        let request = link.stream(ReceiverStream::new(queue));
        let mut client = link.sandboxes();
        let opened = tokio::time::timeout(OPEN_DEADLINE, client.exec(request)).await;
        let ended = match opened {
            Ok(Ok(answers)) => {
                let mut answers = answers.into_inner();
                Box::pin(follow(
                    &mut answers,
                    &input,
                    &mut signals,
                    &mut heard,
                    Manner::default(),
                ))
                .await
            }
            Ok(Err(status)) => Err(status.into()),
            Err(_) => Err(Failure::new(Exit::Retry, "hearthd did not answer in time")),
        };
        let failure = match ended {
            Err(failure) => failure,
            Ok(ended) => return code(ended),
        };
        if heard != before {
            broken = None;
        }
        // Its start did not arrive.
        let unknown = attaching && heard == Heard::default() && failure.is("INSIDE_NOT_FOUND");
        let again = unknown || matches!(failure.exit, Exit::Retry | Exit::Unreachable);
        let since = *broken.get_or_insert_with(Instant::now);
        if !again || since.elapsed() > keep {
            return Err(failure);
        }
        tokio::select! {
            () = tokio::time::sleep(ATTACH_PAUSE) => {}
            () = signals.until_ended() => return Ok(INTERRUPTED),
        }
        next = match unknown {
            true => Input::Start(start.clone()),
            false => Input::Attach(ExecAttach {
                claim_id: start.claim_id.clone(),
                exec_id: start.exec_id.clone(),
                stdout_bytes: heard.stdout,
                stderr_bytes: heard.stderr,
            }),
        };
    }
}

/// Bytes of each stream that have arrived, or are known to be lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard {
    /// Of stdout.
    pub stdout: u64,
    /// Of stderr.
    pub stderr: u64,
}

impl Heard {
    /// What can't be told again.
    pub fn missed(&mut self, attached: &Attached) {
        let lost = attached
            .stdout_missed
            .saturating_add(attached.stderr_missed);
        if lost > 0 {
            output::note(&format!(
                "hearthctl: {lost} bytes of output were lost on the way"
            ));
        }
        self.stdout = self.stdout.saturating_add(attached.stdout_missed);
        self.stderr = self.stderr.saturating_add(attached.stderr_missed);
    }
}
