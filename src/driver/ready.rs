//! Making a sandbox and proving, inside, that it is ready: only then does it count as warm.

use super::guests::Guests;
use crate::guest::{Guest, GuestError, StreamItem, v1};
use crate::machine::event::CreateFailure;
use crate::machine::ids::SandboxId;
use crate::machine::refusal::bounded;
use crate::runtime::{CreateSpec, Runtime, RuntimeError};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// From the start of the task to the guest's first answer; measured some 20-80 ms, more on a busy node.
const FIRST_ANSWER: Duration = Duration::from_secs(30);
/// Pause between two tries of the readiness command; doubles up to [`READINESS_PAUSE_MAX`].
const READINESS_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between two tries.
const READINESS_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Bytes of a failed command's output that are told.
const TOLD_BYTES: usize = 300;

/// Creates, connects, runs the warm command, waits for readiness.
pub(super) async fn make(
    runtime: &dyn Runtime,
    guests: &Guests,
    spec: &CreateSpec,
) -> Result<(), CreateFailure> {
    let created = runtime.create(spec).await;
    created.map_err(|error| create_failure(&error))?;
    proved(guests, spec, &spec.template.warm_command).await
}

/// Why a clone is not ready.
pub(super) struct CloneFailure {
    pub(super) failure: CreateFailure,
    /// The runtime did not answer in time, so the clone may still come: nothing else may be made under its id. Else its id
    /// is free to be made anew once it is destroyed.
    pub(super) may_still_come: bool,
}

/// Clones it of that original, connects, proves that it is ready. What its original did before is done.
pub(super) async fn clone(
    runtime: &dyn Runtime,
    guests: &Guests,
    spec: &CreateSpec,
    original: SandboxId,
) -> Result<(), CloneFailure> {
    let created = runtime.create_clone(spec, original).await;
    created.map_err(|error| CloneFailure {
        failure: create_failure(&error),
        may_still_come: matches!(error, RuntimeError::DeadlineExceeded { .. }),
    })?;
    let proved = proved(guests, spec, &[]).await;
    proved.map_err(|failure| CloneFailure {
        failure,
        may_still_come: false,
    })
}

/// Connects to what was started, runs `warm` if there is any, waits for interpreter and readiness.
async fn proved(guests: &Guests, spec: &CreateSpec, warm: &[String]) -> Result<(), CreateFailure> {
    let template = |what: String| CreateFailure::Template(bounded(what));
    let guest = guests.open(spec.id);
    let guest = guest.map_err(|error| template(format!("the guest's FIFOs: {error}")))?;
    let answered = guest.ping(FIRST_ANSWER).await;
    answered.map_err(|error| template(format!("hearth-init: {error}")))?;

    let readiness = &spec.template.readiness;
    let deadline = Instant::now() + Duration::from_millis(readiness.timeout_ms);
    if !warm.is_empty() {
        match timeout_at(deadline, run(guest.as_ref(), warm)).await {
            Ok(Ok(())) => {}
            Ok(Err(what)) => return Err(template(format!("warm_command: {what}"))),
            Err(_) => return Err(template("warm_command did not end in time".into())),
        }
    }
    if !spec.template.interpreter.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = guest.interpreter(left).await;
        ready.map_err(|error| template(format!("interpreter: {error}")))?;
    }
    if !readiness.command.is_empty() {
        prove(guest.as_ref(), &readiness.command, deadline)
            .await
            .map_err(template)?;
    }
    Ok(())
}

/// Runs the readiness command until it exits 0: what the template's command starts may need a moment.
async fn prove(guest: &dyn Guest, command: &[String], deadline: Instant) -> Result<(), String> {
    let mut pause = READINESS_PAUSE;
    let mut last = "it never ended".to_owned();
    loop {
        match timeout_at(deadline, run(guest, command)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(what)) => last = what,
            Err(_) => return Err(format!("readiness was not proved in time: {last}")),
        }
        if Instant::now() + pause >= deadline {
            return Err(format!("readiness was not proved in time: {last}"));
        }
        sleep(pause).await;
        pause = (pause * 2).min(READINESS_PAUSE_MAX);
    }
}

/// Runs a command inside; what went wrong, in words, with the end of its output.
async fn run(guest: &dyn Guest, command: &[String]) -> Result<(), String> {
    let exec = v1::Exec {
        command: command.to_vec(),
        ..v1::Exec::default()
    };
    let told = |error: GuestError| error.to_string();
    let mut stream = guest.exec(exec).await.map_err(told)?;
    let mut output = Vec::new();
    while let Some(item) = stream.output.recv().await {
        match item.map_err(told)? {
            StreamItem::Data { data, .. } => {
                output.extend_from_slice(&data);
                let surplus = output.len().saturating_sub(TOLD_BYTES);
                output.drain(..surplus);
            }
            StreamItem::Exited { code: 0, .. } => return Ok(()),
            StreamItem::Exited { code, .. } => {
                let text = String::from_utf8_lossy(&output);
                let text = text.trim().escape_debug();
                return Err(format!("exit code {code}: {text}"));
            }
            StreamItem::Started { .. }
            | StreamItem::Eof { .. }
            | StreamItem::FileInfo { .. }
            | StreamItem::Connected
            | StreamItem::Written { .. }
            | StreamItem::Entries(_)
            | StreamItem::Run(_)
            | StreamItem::Done => {}
        }
    }
    Err("the channel ended before the command".into())
}

/// What a failed creation means for the pool.
pub(super) fn create_failure(error: &RuntimeError) -> CreateFailure {
    match error {
        RuntimeError::Unavailable(_) => CreateFailure::RuntimeUnavailable,
        RuntimeError::DeadlineExceeded { .. }
        | RuntimeError::ImageMissing(_)
        | RuntimeError::Refused { .. } => CreateFailure::Template(bounded(error.to_string())),
    }
}
