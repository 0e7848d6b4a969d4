//! Why a command failed, how it is told, and the exit code that says it to a script.
//!
//! Owns the mapping from gRPC statuses and their details to words for people. Never prints a Debug dump.

use serde::Serialize;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// What a script learns from the exit code. Documented in `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// 1: hearth said no, or something failed for good.
    Refused,
    /// 2: the command line or a value in it is wrong.
    Usage,
    /// 3: hearthd cannot be reached.
    Unreachable,
    /// 4: what was named does not exist.
    NotFound,
    /// 5: not now; the same command may work later.
    Retry,
    /// 130: somebody interrupted it.
    Interrupted,
}

impl Exit {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Exit::Refused => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
            Exit::NotFound => 4,
            Exit::Retry => 5,
            // As a shell tells SIGINT.
            Exit::Interrupted => 130,
        }
    }
}

/// A failed command. Built here or by the command that knows better what to do next.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// Kind, for the exit code.
    pub exit: Exit,
    /// One sentence, lower case, no full stop.
    pub message: String,
    /// `ErrorInfo.reason`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `ErrorInfo.metadata`, and causes, as (name, text).
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_map")]
    pub details: Vec<(String, String)>,
    /// When to retry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<f64>,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Somebody closed our stdout, or interrupted: nothing to say.
    #[serde(skip)]
    pub quiet: bool,
}

impl Failure {
    /// A failure with a message only.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Failure {
            exit,
            message: message.into(),
            reason: None,
            details: Vec::new(),
            retry_after_seconds: None,
            hint: None,
            quiet: false,
        }
    }

    /// Somebody has seen enough.
    pub fn interrupted() -> Self {
        let mut failure = Failure::new(Exit::Interrupted, "interrupted");
        failure.quiet = true;
        failure
    }

    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure::new(Exit::Usage, message)
    }

    /// Something on this side failed (a file, a terminal).
    pub fn local(what: impl Into<String>, error: &std::io::Error) -> Self {
        let mut failure = Failure::new(Exit::Refused, format!("{}: {error}", what.into()));
        failure.quiet = error.kind() == std::io::ErrorKind::BrokenPipe;
        failure
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a named detail.
    #[must_use]
    pub fn detail(mut self, name: &str, text: impl Into<String>) -> Self {
        self.details.push((name.to_owned(), text.into()));
        self
    }

    /// Whether hearth gave this reason.
    pub fn is(&self, reason: &str) -> bool {
        self.reason.as_deref() == Some(reason)
    }

    /// The text for a terminal, several lines.
    pub fn render(&self, style: crate::output::Style) -> String {
        let mut text = format!("{} {}\n", style.red("error:"), clean(&self.message));
        let mut line = |name: &str, value: &str| {
            text.push_str(&format!(
                "  {} {}\n",
                style.dim(&format!("{name:<7}")),
                clean(value)
            ));
        };
        if let Some(reason) = &self.reason {
            line("reason", reason);
        }
        for (name, value) in &self.details {
            line(name, value);
        }
        if let Some(seconds) = self.retry_after_seconds {
            line("retry", &format!("in {}", crate::output::seconds(seconds)));
        }
        if let Some(hint) = &self.hint {
            line("next", hint);
        }
        text
    }
}

fn as_map<S: serde::Serializer>(details: &[(String, String)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(details.iter().map(|(name, text)| (name, text)))
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        if let Some(failure) = of_transport(&status) {
            return failure;
        }
        let details = status.get_error_details();
        let mut failure = Failure::new(exit_of(&status), message_of(&status));
        if let Some(info) = details.error_info() {
            failure.reason = Some(info.reason.clone());
            let mut named: Vec<_> = info
                .metadata
                .iter()
                // What the message says already is not said twice.
                .filter(|(_, value)| !failure.message.contains(value.as_str()))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            named.sort();
            failure.details = named;
        }
        if let Some(bad) = details.bad_request() {
            failure.message = "the request is invalid".into();
            failure.details = bad
                .field_violations
                .iter()
                .map(|v| (v.field.clone(), v.description.clone()))
                .collect();
        }
        let retry = details.retry_info().and_then(|info| info.retry_delay);
        failure.retry_after_seconds = retry.map(|delay: Duration| delay.as_secs_f64());
        failure.hint = failure
            .reason
            .as_deref()
            .and_then(hint_of_reason)
            .or_else(|| hint_of_code(status.code()))
            .map(str::to_owned);
        failure
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::local("writing the output", &error)
    }
}

/// What tonic made up on our side: the connection broke, or our own deadline passed. hearthd's statuses have no source
/// and none of these words.
fn of_transport(status: &Status) -> Option<Failure> {
    let message = status.message();
    if status.code() == Code::Cancelled && message == "Timeout expired" {
        return Some(
            Failure::new(Exit::Retry, "hearthd did not answer in time")
                .hint("it may be busy; `hearthctl doctor` looks for the cause"),
        );
    }
    let mut cause = std::error::Error::source(status);
    let ours = [
        "h2 protocol error",
        "transport error",
        "operation was canceled",
    ];
    if cause.is_none() && !ours.iter().any(|words| message.starts_with(words)) {
        return None;
    }
    let mut last = message.to_owned();
    while let Some(error) = cause {
        last = error.to_string();
        cause = error.source();
    }
    Some(
        Failure::new(Exit::Unreachable, "the connection to hearthd broke")
            .detail("cause", last)
            .hint(
                "if hearthd restarts: claimed sandboxes live on, and `hearthctl claims` lists them",
            ),
    )
}

/// The status's own words, or the code's when it has none.
fn message_of(status: &Status) -> String {
    match status.message() {
        "" => status.code().description().to_lowercase(),
        message => message.to_owned(),
    }
}

/// Exhaustive on purpose: a new code must be thought about.
fn exit_of(status: &Status) -> Exit {
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::NotFound => Exit::NotFound,
        Code::ResourceExhausted | Code::DeadlineExceeded => Exit::Retry,
        // hearth's own UNAVAILABLE says why; the transport's has no details.
        Code::Unavailable if status.details().is_empty() => Exit::Unreachable,
        Code::Unavailable => Exit::Retry,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => Exit::Refused,
    }
}

/// What to do about a reason. Reasons without a line here fall back to the code's.
fn hint_of_reason(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "POOL_UNKNOWN" => "`hearthctl pools` lists the pools",
        "POOL_EMPTY" => {
            "wait for a member with `--wait 30s`, or have one made for this claim with `--cold`"
        }
        "POOL_FULL" => "release claims (`hearthctl claims`), or raise the pool's max_total",
        "POOL_FAILING" | "CREATE_FAILED" => {
            "`hearthctl pools` shows why the template fails; mend it and set it again"
        }
        "WAIT_TIMED_OUT" => "wait longer, or raise the pool's min_warm",
        "CLAIM_UNKNOWN" => "`hearthctl claims` lists the claims",
        "CLAIM_RELEASED" => "a released claim_id is spent; claim again without --id",
        "CLAIM_CONTENT_DIFFERS" => "use the same options as before, or another --id",
        "CLAIM_PENDING" => "the claim is still being made; try again in a moment",
        "CLAIM_RECOVERING" => {
            "hearthd looks for the sandbox after a restart; try again in a moment"
        }
        "SANDBOX_ENDED" => "`hearthctl release` the claim and make a new one",
        "EPOCH_STALE" => {
            "a newer allocator is at work; leave out --epoch to use the node's current epoch"
        }
        "EPOCH_CONFLICT" => {
            "the node's current epoch belongs to another caller's identity, and one epoch has one owner. \
             Call as an admin that is no allocator, or as that one. Only if that allocator is gone for good: a larger --epoch takes over and fences it out"
        }
        "DISK_RESERVE" => "free space in hearth's data directory; releases still work",
        "NETWORK_POLICY_UNSUPPORTED" => {
            "leave --network out, or set the pool with network_policy = \"allowlist\": its sandboxes reach nothing until a claim says what"
        }
        "NETWORK_UNAVAILABLE" => {
            "`hearthctl doctor` tells what is missing; [network] in hearthd's configuration"
        }
        "GENERATION_STALE" => {
            "somebody set newer pools; leave generations out of the file, or raise them"
        }
        "GENERATION_CONFLICT" => {
            "raise the generation, or leave it out of the file and hearthctl counts"
        }
        "POOL_OF_WARM_POOL" => "leave it out of the file; `kubectl edit warmpool` changes it",
        "POLICY_REFUSED" => {
            "change what is named and set the pool again; `hearthctl pools` shows what policies say"
        }
        "POLICY_PENDING" => "the API server has not been asked yet; try again in a moment",
        "IMAGE_UNKNOWN" => {
            "`hearthctl image list` shows the images; `image import` or `image pull` brings one"
        }
        "IMAGE_IN_USE" => "set the pools without it first",
        "RUNTIME_UNAVAILABLE" => "containerd does not answer: `hearthctl doctor`",
        "TOKEN_REFUSED" => "`kubectl create token NAME --audience=hearth` makes one; --token-file",
        "NOT_GRANTED" => {
            "a Role on hearth.dev and its RoleBinding in that namespace give the right"
        }
        "AUTHORITY_UNAVAILABLE" => "hearthd can't ask the API server; try again in a moment",
        "UNAUTHENTICATED" | "NOT_ALLOWED" => {
            "call as an identity of api.roles (root by default), or give the claim's token with --token"
        }
        _ => return None,
    })
}

fn hint_of_code(code: Code) -> Option<&'static str> {
    match code {
        Code::Unimplemented => Some("this hearthd does not serve that (yet)"),
        Code::Unauthenticated | Code::PermissionDenied => {
            Some("call as an identity of api.roles (root by default), or give --token")
        }
        Code::Internal | Code::DataLoss => {
            Some("that is a fault of hearth: its log has more, `hearthctl doctor` looks around")
        }
        Code::DeadlineExceeded => Some("hearthd took too long; see `hearthctl doctor`"),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable => None,
    }
}

/// Text from elsewhere, safe for a terminal: control characters are shown, never obeyed.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
