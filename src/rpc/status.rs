//! The single table refusal → gRPC status: code, reason, when to retry, and what to do next. Exhaustive; written out for
//! people in `docs/statuses.md` (its test keeps that file true).
//!
//! Every status of hearth carries `google.rpc.ErrorInfo{reason, domain "hearth", metadata}`; where a retry makes sense
//! `RetryInfo`; for bad fields `BadRequest`; for forbidden states `PreconditionFailure`.

use super::bounds;
use super::text::bounded;
use crate::api::ClaimError;
use crate::machine::refusal::Refusal;
use std::collections::BTreeMap;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, PreconditionViolation, StatusExt};

/// `ErrorInfo.domain` of every status.
pub const DOMAIN: &str = "hearth";

/// What a refusal looks like outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// gRPC code.
    pub code: Code,
    /// `ErrorInfo.reason`: the refusal's name in upper snake case.
    pub reason: &'static str,
    /// What to do next: the end of the message.
    pub next: &'static str,
    /// `RetryInfo.retry_delay`.
    pub retry: Option<Duration>,
    /// `ErrorInfo.metadata`. Keys are ours; values are bounded.
    pub metadata: Vec<(&'static str, String)>,
    /// `PreconditionFailure`: (type, subject) of what forbids it.
    pub precondition: Option<(&'static str, String)>,
}

impl Entry {
    fn new(code: Code, reason: &'static str, next: &'static str) -> Self {
        Self {
            code,
            reason,
            next,
            retry: None,
            metadata: Vec::new(),
            precondition: None,
        }
    }

    fn retry(mut self, millis: u64) -> Self {
        self.retry = Some(Duration::from_millis(millis));
        self
    }

    fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        let value = bounded(&value.to_string(), bounds::METADATA_BYTES);
        self.metadata.push((key, value));
        self
    }

    fn precondition(mut self, kind: &'static str, subject: &str) -> Self {
        self.precondition = Some((kind, bounded(subject, bounds::METADATA_BYTES)));
        self
    }
}

/// The table. No catch-all arm: a new refusal must be thought about.
#[must_use]
#[rustfmt::skip] // One row, one thought: rows must be comparable at a glance.
pub fn entry(refusal: &Refusal) -> Entry {
    use Code::*;
    match refusal {
        Refusal::InvalidArgument(fields) =>
            Entry::new(InvalidArgument, "INVALID_ARGUMENT", "correct the named fields; the same request never works")
                .with("fields", fields.iter().map(|(field, _)| field.as_str()).collect::<Vec<_>>().join(",")),
        Refusal::PoolUnknown { pool } =>
            Entry::new(NotFound, "POOL_UNKNOWN", "Pools.GetPools lists the pools there are").with("pool", pool),
        Refusal::ClaimUnknown { claim } =>
            Entry::new(NotFound, "CLAIM_UNKNOWN", "Claims.List lists the claims there are").with("claim_id", claim),
        Refusal::ClaimReleased { claim } =>
            Entry::new(NotFound, "CLAIM_RELEASED", "a released claim_id is spent: claim with a new one").with("claim_id", claim),
        Refusal::ClaimContentDiffers { claim, field } =>
            Entry::new(AlreadyExists, "CLAIM_CONTENT_DIFFERS", "repeat the first request exactly, or choose a new claim_id")
                .with("claim_id", claim).with("field", field),
        Refusal::ClaimPending { claim } =>
            Entry::new(FailedPrecondition, "CLAIM_PENDING", "repeat Claim to join it, or wait until Get says CLAIMED")
                .retry(bounds::PENDING_RETRY_MS).with("claim_id", claim).precondition("CLAIM_STATE", claim),
        Refusal::SandboxEnded { claim, reason } =>
            Entry::new(FailedPrecondition, "SANDBOX_ENDED", "release the claim and make a new one")
                .with("claim_id", claim).with("cause", reason).precondition("CLAIM_STATE", claim),
        Refusal::ClaimRecovering { claim } =>
            Entry::new(Unavailable, "CLAIM_RECOVERING", "hearthd looks for the sandbox after a restart: retry")
                .retry(bounds::PENDING_RETRY_MS).with("claim_id", claim),
        Refusal::WakeInFlight { claim } =>
            Entry::new(Aborted, "WAKE_IN_FLIGHT", "somebody wakes the sandbox just now: put it to sleep again when it is no longer used")
                .with("claim_id", claim),
        Refusal::HibernateFailed { claim, detail: _, retry_ms } =>
            Entry::new(Unavailable, "HIBERNATE_FAILED", "the sandbox runs on: retry").retry(*retry_ms).with("claim_id", claim),
        Refusal::ResumeFailed { claim, detail: _, retry_ms } =>
            Entry::new(Unavailable, "RESUME_FAILED", "the sandbox still sleeps: retry; if it repeats, release the claim")
                .retry(*retry_ms).with("claim_id", claim),
        Refusal::NoRoomOnDisk { claim, detail: _, retry_ms } =>
            Entry::new(ResourceExhausted, "NO_ROOM_ON_DISK", "the sandbox is as it was: release claims that sleep on the disk, or raise the bound that is named")
                .retry(*retry_ms).with("claim_id", claim),
        Refusal::NotRestorable { claim, detail: _ } =>
            Entry::new(FailedPrecondition, "NOT_RESTORABLE", "the sandbox is as it was: let it sleep in memory, or claim another one")
                .with("claim_id", claim).precondition("CLAIM_STATE", claim),
        Refusal::ImageMismatch { claim, detail: _ } =>
            Entry::new(FailedPrecondition, "IMAGE_MISMATCH", "the image is kept: run it where what is named is as it was, or release the claim")
                .with("claim_id", claim).precondition("CLAIM_STATE", claim),
        Refusal::EpochStale { current } =>
            Entry::new(Aborted, "EPOCH_STALE", "a newer allocator is at work: stop, or take a larger epoch from your election")
                .with("current", current),
        Refusal::EpochConflict { current } =>
            Entry::new(Aborted, "EPOCH_CONFLICT", "one epoch has one owner: take a larger epoch from your election")
                .with("current", current),
        Refusal::ReleasedInFlight { claim } =>
            Entry::new(Aborted, "RELEASED_IN_FLIGHT", "the release has won: claim with a new claim_id").with("claim_id", claim),
        Refusal::PoolEmpty { pool, retry_ms } =>
            Entry::new(ResourceExhausted, "POOL_EMPTY", "retry after the delay, or ask with ON_EMPTY_WAIT or ON_EMPTY_COLD")
                .retry(*retry_ms).with("pool", pool),
        Refusal::PoolFull { pool, limit, retry_ms } =>
            Entry::new(ResourceExhausted, "POOL_FULL", "release claims, or raise the pool's max_total")
                .retry(*retry_ms).with("pool", pool).with("limit", limit),
        Refusal::WaitTimedOut { pool, retry_ms } =>
            Entry::new(ResourceExhausted, "WAIT_TIMED_OUT", "wait longer, or raise the pool's min_warm")
                .retry(*retry_ms).with("pool", pool),
        Refusal::QueueFull { queue, retry_ms } =>
            Entry::new(ResourceExhausted, "QUEUE_FULL", "retry after the delay, with a growing one if it repeats")
                .retry(*retry_ms).with("queue", queue),
        Refusal::WatchLagged =>
            Entry::new(Aborted, "WATCH_LAGGED", "a new Watch begins with a snapshot"),
        Refusal::DiskReserve { retry_ms } =>
            Entry::new(ResourceExhausted, "DISK_RESERVE", "free space in hearth's data directory; releases still work")
                .retry(*retry_ms),
        Refusal::GuestFailed { pool, attempts, last: _, retry_ms } =>
            Entry::new(Unavailable, "GUEST_FAILED", "those sandboxes are being destroyed: retry with the same claim_id")
                .retry(*retry_ms).with("pool", pool).with("attempts", attempts),
        Refusal::PersonalizationRefused { detail: _ } =>
            Entry::new(FailedPrecondition, "PERSONALIZATION_REFUSED", "correct what the sandbox names; no other member would take it")
                .precondition("PERSONALIZATION", "guest"),
        Refusal::CreateFailed { pool, detail: _, retry_ms } =>
            Entry::new(Unavailable, "CREATE_FAILED", "mend the pool's template if it repeats; Pools.GetPools shows the last failure")
                .retry(*retry_ms).with("pool", pool),
        Refusal::PoolFailing { pool, detail: _, retry_ms } =>
            Entry::new(Unavailable, "POOL_FAILING", "mend the pool's template and set it again; hearth probes after the delay")
                .retry(*retry_ms).with("pool", pool),
        Refusal::PoolOfWarmPool { pool, warm_pool } =>
            Entry::new(FailedPrecondition, "POOL_OF_WARM_POOL", "leave it out of the set and change the object, for example with kubectl; or choose another name")
                .with("pool", pool).with("warm_pool", warm_pool).precondition("POOL", pool),
        Refusal::PolicyRefused { pool, rule, field, detail: _ } =>
            Entry::new(PermissionDenied, "POLICY_REFUSED", "change the field that is named and set the pool again, or have who owns the rule change it; what there is of the pool stays")
                .with("pool", pool).with("rule", rule).with("field", field),
        Refusal::PolicyPending { pool, retry_ms } =>
            Entry::new(Unavailable, "POLICY_PENDING", "retry; if it repeats, hearthd can't reach the API server: kubernetes.admission in its configuration says that it must")
                .retry(*retry_ms).with("pool", pool),
        Refusal::Unsupported { what } =>
            Entry::new(Unimplemented, "UNSUPPORTED", "Node.Info tells what this node can do").with("what", what),
        Refusal::NetworkPolicyUnsupported { policy, pool } =>
            Entry::new(FailedPrecondition, "NETWORK_POLICY_UNSUPPORTED", "give the pool's template an allowlist, which may be empty: its sandboxes then have an interface, and reach nothing until a claim brings its policy")
                .with("policy", policy).with("pool", pool).precondition("NETWORK_POLICY", pool),
        Refusal::NetworkUnavailable { detail: _ } =>
            Entry::new(FailedPrecondition, "NETWORK_UNAVAILABLE", "mend what is told and start hearthd again, or give the template the network policy none; docs/network.md tells what hearthd needs")
                .precondition("NETWORK", "node"),
        Refusal::GenerationStale { what, current } =>
            Entry::new(Aborted, "GENERATION_STALE", "read with GetPools, apply your change to it and set it under a larger generation")
                .with("of", what).with("current", current),
        Refusal::GenerationConflict { what, current } =>
            Entry::new(AlreadyExists, "GENERATION_CONFLICT", "raise the generation whenever the content changes")
                .with("of", what).with("current", current),
        Refusal::Starting { retry_ms } =>
            Entry::new(Unavailable, "STARTING", "hearthd recovers its sandboxes: retry").retry(*retry_ms),
        Refusal::ShuttingDown { retry_ms } =>
            Entry::new(Unavailable, "SHUTTING_DOWN", "claims live on: retry when hearthd is back").retry(*retry_ms),
        Refusal::NodeDraining { retry_ms } =>
            Entry::new(Unavailable, "NODE_DRAINING", "claim on another node; claims that are there live on, and Node.Undrain ends it").retry(*retry_ms),
        Refusal::NodeCordoned { retry_ms } =>
            Entry::new(Unavailable, "NODE_CORDONED", "claim on another node; claims that are there live on, and kubectl uncordon ends it").retry(*retry_ms),
        Refusal::RuntimeClassesUnknown { retry_ms } =>
            Entry::new(Unavailable, "RUNTIME_CLASSES_UNKNOWN", "retry when the API server is back, or declare a runtime_handler; hearthd asks where kubernetes.enabled is set")
                .retry(*retry_ms),
        Refusal::RuntimeClassUnservable { pool, class, detail: _ } =>
            Entry::new(FailedPrecondition, "RUNTIME_CLASS_UNSERVABLE", "name a class whose handler and nodeSelector fit this node, or mend the class")
                .with("pool", pool).with("class", class).precondition("RUNTIME_CLASS", class),
        Refusal::RuntimeUnavailable { retry_ms } =>
            Entry::new(Unavailable, "RUNTIME_UNAVAILABLE", "warm claims and releases go on: retry when containerd is back").retry(*retry_ms),
        Refusal::GuestUnavailable { sandbox, retry_ms } =>
            Entry::new(Unavailable, "GUEST_UNAVAILABLE", "retry; if it repeats, release the claim and make a new one")
                .retry(*retry_ms).with("sandbox_id", sandbox),
        Refusal::InsideNotFound { detail: _ } =>
            Entry::new(NotFound, "INSIDE_NOT_FOUND", "check the path or program; it is looked up inside the sandbox"),
        Refusal::InsideRefused { detail: _ } =>
            Entry::new(FailedPrecondition, "INSIDE_REFUSED", "the sandbox's own system said no: see its words")
                .precondition("SANDBOX", "guest"),
        Refusal::Unauthenticated { detail: _ } =>
            Entry::new(Unauthenticated, "UNAUTHENTICATED", "connect with a certificate that is valid, over the Unix socket, or give the claim's access token; where they are taken, a ServiceAccount token"),
        Refusal::TokenRefused { detail: _, audiences } =>
            Entry::new(Unauthenticated, "TOKEN_REFUSED", "give a token of a ServiceAccount that is made for one of the audiences, as a projected volume or kubectl create token makes it, before it expires")
                .with("audiences", audiences),
        Refusal::NotGranted { caller, verb, resource, group, namespace } =>
            Entry::new(PermissionDenied, "NOT_GRANTED", "have who administers the cluster grant it, with a Role in that namespace (docs/kubernetes.md), or give the claim's access token to Sandboxes")
                .with("caller", caller).with("verb", verb).with("resource", resource).with("group", group).with("namespace", namespace),
        Refusal::AuthorityUnavailable { detail: _, retry_ms } =>
            Entry::new(Unavailable, "AUTHORITY_UNAVAILABLE", "retry: hearthd can't ask the API server just now, and goes on with what it knows; callers with a certificate go on")
                .retry(*retry_ms),
        Refusal::NotAllowed { detail: _ } =>
            Entry::new(PermissionDenied, "NOT_ALLOWED", "call as an identity that api.roles lets call this, or give the claim's access token to Sandboxes"),
        Refusal::RateLimited { retry_ms } =>
            Entry::new(ResourceExhausted, "RATE_LIMITED", "retry after the delay; limits.calls_per_second bounds each caller").retry(*retry_ms),
        Refusal::ImageFailed { image, detail: _ } =>
            Entry::new(FailedPrecondition, "IMAGE_FAILED", "see containerd's words; correct the archive or the reference")
                .with("image", image).precondition("IMAGE", image),
        Refusal::ImageUnknown { image } =>
            Entry::new(NotFound, "IMAGE_UNKNOWN", "Node.ImportImage or Node.PullImage brings one").with("image", image),
        Refusal::ImageInUse { image, pool } =>
            Entry::new(FailedPrecondition, "IMAGE_IN_USE", "set the pools without it first")
                .with("image", image).with("pool", pool).precondition("IMAGE", image),
        Refusal::DeadlineExceeded { what } =>
            Entry::new(DeadlineExceeded, "DEADLINE_EXCEEDED", "what was started goes on: repeat the call (a Claim joins) with a longer deadline")
                .with("what", what),
        Refusal::Internal { detail: _ } =>
            Entry::new(Internal, "INTERNAL", "this is a bug of hearth: its log has more; please report it"),
    }
}

/// The message for people: what is wrong, then what to do next.
fn message(refusal: &Refusal, next: &str) -> String {
    let room = bounds::MESSAGE_BYTES - next.len().min(bounds::MESSAGE_BYTES) - 2;
    format!("{}; {next}", bounded(&refusal.to_string(), room))
}

/// The status of a refusal.
#[must_use]
pub fn status(refusal: &Refusal) -> Status {
    let entry = entry(refusal);
    let metadata = entry.metadata.iter();
    let metadata = metadata.map(|(key, value)| ((*key).to_owned(), value.clone()));
    let mut details = ErrorDetails::new();
    details.set_error_info(
        entry.reason,
        DOMAIN,
        metadata.collect::<std::collections::HashMap<_, _>>(),
    );
    if let Some(delay) = entry.retry {
        details.set_retry_info(Some(delay));
    }
    if let Some((kind, subject)) = &entry.precondition {
        let description = bounded(&refusal.to_string(), bounds::METADATA_BYTES);
        details.set_precondition_failure(vec![PreconditionViolation::new(
            *kind,
            subject,
            description,
        )]);
    }
    if let Refusal::InvalidArgument(fields) = refusal {
        for (field, what) in fields {
            details.add_bad_request_violation(field, what);
        }
    }
    Status::with_error_details(entry.code, message(refusal, entry.next), details)
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        status(&refusal)
    }
}

/// The same as a member of a batch's answer.
#[must_use]
pub fn claim_error(refusal: &Refusal) -> ClaimError {
    let entry = entry(refusal);
    ClaimError {
        code: entry.code.into(),
        message: message(refusal, entry.next),
        reason: entry.reason.to_owned(),
        metadata: entry
            .metadata
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect::<BTreeMap<_, _>>(),
        retry_after: entry.retry.and_then(|delay| delay.try_into().ok()),
    }
}

/// Statuses that tonic made up before any code of hearth ran have no details. They become refusals of the table where
/// the caller's message was at fault; others (health's and reflection's own) stay.
#[must_use]
pub fn adopted(status: Status) -> Status {
    if !status.details().is_empty() {
        return status;
    }
    let malformed = |what: String| Refusal::InvalidArgument(vec![("(message)".to_owned(), what)]);
    match status.code() {
        // tonic's decoder: longer than the service's bound.
        // Or prost's: no message of this type, or none at all. hearth's own INTERNAL has details.
        Code::OutOfRange | Code::Internal => {
            malformed(bounded(status.message(), bounds::METADATA_BYTES)).into()
        }
        // tonic's router.
        Code::Unimplemented => Refusal::Unsupported {
            what: "this method".to_owned(),
        }
        .into(),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::InvalidArgument
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => status,
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
