//! Every refusal there is, its row of the table, and `docs/statuses.md`.

use super::*;
use crate::machine::ids::{NodeTag, SandboxId};
use std::fmt::Write;

/// One sample of every variant. The generated match has no catch-all: a new variant does not compile until it is here.
macro_rules! refusals {
    ($($pattern:pat => $sample:expr,)*) => {
        #[allow(dead_code)]
        fn listed(refusal: &Refusal) {
            match refusal { $($pattern => (),)* }
        }
        fn samples() -> Vec<Refusal> {
            vec![$($sample),*]
        }
    };
}

fn text(name: &str) -> String {
    format!("<{name}>")
}

refusals! {
    Refusal::InvalidArgument(_) => Refusal::InvalidArgument(vec![(text("field"), text("what is wrong"))]),
    Refusal::PoolUnknown { .. } => Refusal::PoolUnknown { pool: text("pool") },
    Refusal::ClaimUnknown { .. } => Refusal::ClaimUnknown { claim: text("claim_id") },
    Refusal::ClaimReleased { .. } => Refusal::ClaimReleased { claim: text("claim_id") },
    Refusal::ClaimContentDiffers { .. } => Refusal::ClaimContentDiffers { claim: text("claim_id"), field: text("field") },
    Refusal::ClaimPending { .. } => Refusal::ClaimPending { claim: text("claim_id") },
    Refusal::SandboxEnded { .. } => Refusal::SandboxEnded { claim: text("claim_id"), reason: text("cause") },
    Refusal::ClaimRecovering { .. } => Refusal::ClaimRecovering { claim: text("claim_id") },
    Refusal::WakeInFlight { .. } => Refusal::WakeInFlight { claim: text("claim_id") },
    Refusal::HibernateFailed { .. } => Refusal::HibernateFailed { claim: text("claim_id"), detail: text("what went wrong"), retry_ms: 500 },
    Refusal::ResumeFailed { .. } => Refusal::ResumeFailed { claim: text("claim_id"), detail: text("what went wrong"), retry_ms: 500 },
    Refusal::NoRoomOnDisk { .. } => Refusal::NoRoomOnDisk { claim: text("claim_id"), detail: text("which bound"), retry_ms: 500 },
    Refusal::NotRestorable { .. } => Refusal::NotRestorable { claim: text("claim_id"), detail: text("what differs") },
    Refusal::ImageMismatch { .. } => Refusal::ImageMismatch { claim: text("claim_id"), detail: text("what differs") },
    Refusal::EpochStale { .. } => Refusal::EpochStale { current: 7 },
    Refusal::EpochConflict { .. } => Refusal::EpochConflict { current: 7 },
    Refusal::ReleasedInFlight { .. } => Refusal::ReleasedInFlight { claim: text("claim_id") },
    Refusal::PoolEmpty { .. } => Refusal::PoolEmpty { pool: text("pool"), retry_ms: 1 },
    Refusal::PoolFull { .. } => Refusal::PoolFull { pool: text("pool"), limit: 7, retry_ms: 1 },
    Refusal::WaitTimedOut { .. } => Refusal::WaitTimedOut { pool: text("pool"), retry_ms: 1 },
    Refusal::QueueFull { .. } => Refusal::QueueFull { queue: "<queue>", retry_ms: 1 },
    Refusal::WatchLagged => Refusal::WatchLagged,
    Refusal::DiskReserve { .. } => Refusal::DiskReserve { retry_ms: 1 },
    Refusal::GuestFailed { .. } => Refusal::GuestFailed { pool: text("pool"), attempts: 3, last: text("detail"), retry_ms: 1 },
    Refusal::PersonalizationRefused { .. } => Refusal::PersonalizationRefused { detail: text("detail") },
    Refusal::CreateFailed { .. } => Refusal::CreateFailed { pool: text("pool"), detail: text("detail"), retry_ms: 1 },
    Refusal::PoolFailing { .. } => Refusal::PoolFailing { pool: text("pool"), detail: text("detail"), retry_ms: 1 },
    Refusal::PoolOfWarmPool { .. } => Refusal::PoolOfWarmPool { pool: text("pool"), warm_pool: text("warm_pool") },
    Refusal::PolicyRefused { .. } => Refusal::PolicyRefused { pool: text("pool"), rule: text("rule"), field: text("field"), detail: text("what is wrong, and what would be right") },
    Refusal::PolicyPending { .. } => Refusal::PolicyPending { pool: text("pool"), retry_ms: 1 },
    Refusal::Unsupported { .. } => Refusal::Unsupported { what: text("what") },
    Refusal::NetworkPolicyUnsupported { .. } => Refusal::NetworkPolicyUnsupported { policy: "<policy>", pool: text("pool") },
    Refusal::NetworkUnavailable { .. } => Refusal::NetworkUnavailable { detail: text("detail") },
    Refusal::GenerationStale { .. } => Refusal::GenerationStale { what: text("of"), current: 7 },
    Refusal::GenerationConflict { .. } => Refusal::GenerationConflict { what: text("of"), current: 7 },
    Refusal::Starting { .. } => Refusal::Starting { retry_ms: 1 },
    Refusal::ShuttingDown { .. } => Refusal::ShuttingDown { retry_ms: 1 },
    Refusal::NodeDraining { .. } => Refusal::NodeDraining { retry_ms: 1 },
    Refusal::NodeCordoned { .. } => Refusal::NodeCordoned { retry_ms: 1 },
    Refusal::RuntimeClassesUnknown { .. } => Refusal::RuntimeClassesUnknown { retry_ms: 1 },
    Refusal::RuntimeClassUnservable { .. } => Refusal::RuntimeClassUnservable { pool: text("pool"), class: text("class"), detail: text("detail") },
    Refusal::RuntimeUnavailable { .. } => Refusal::RuntimeUnavailable { retry_ms: 1 },
    Refusal::GuestUnavailable { .. } => Refusal::GuestUnavailable { sandbox: SandboxId::new(NodeTag(0), 0).unwrap(), retry_ms: 1 },
    Refusal::InsideNotFound { .. } => Refusal::InsideNotFound { detail: text("detail") },
    Refusal::InsideRefused { .. } => Refusal::InsideRefused { detail: text("detail") },
    Refusal::Unauthenticated { .. } => Refusal::Unauthenticated { detail: "<detail>" },
    Refusal::RateLimited { .. } => Refusal::RateLimited { retry_ms: 1 },
    Refusal::TokenRefused { .. } => Refusal::TokenRefused { detail: "<why>", audiences: text("audiences") },
    Refusal::NotGranted { .. } => Refusal::NotGranted { caller: text("caller"), verb: "<verb>", resource: "<resource>", group: "<group>", namespace: text("namespace") },
    Refusal::AuthorityUnavailable { .. } => Refusal::AuthorityUnavailable { detail: "<why>", retry_ms: 1000 },
    Refusal::NotAllowed { .. } => Refusal::NotAllowed { detail: "<detail>" },
    Refusal::ImageFailed { .. } => Refusal::ImageFailed { image: text("image"), detail: text("detail") },
    Refusal::ImageUnknown { .. } => Refusal::ImageUnknown { image: text("image") },
    Refusal::ImageInUse { .. } => Refusal::ImageInUse { image: text("image"), pool: text("pool") },
    Refusal::DeadlineExceeded { .. } => Refusal::DeadlineExceeded { what: "<what>" },
    Refusal::Internal { .. } => Refusal::Internal { detail: text("detail") },
}

/// The variant's name, from its Debug form.
fn variant(refusal: &Refusal) -> String {
    let debug = format!("{refusal:?}");
    debug
        .chars()
        .take_while(char::is_ascii_alphanumeric)
        .collect()
}

fn upper_snake(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
    }
    out
}

#[test]
fn the_reason_is_the_name_in_upper_snake_case_and_unique() {
    let mut seen = std::collections::BTreeSet::new();
    for refusal in samples() {
        let entry = entry(&refusal);
        assert_eq!(entry.reason, upper_snake(&variant(&refusal)));
        assert!(seen.insert(entry.reason), "{} twice", entry.reason);
    }
    assert!(
        seen.len() > 30,
        "only {} refusals: the list is cut",
        seen.len()
    );
}

/// The contract's words about codes.
#[test]
fn codes_that_promise_a_retry_delay_carry_one() {
    for refusal in samples() {
        let entry = entry(&refusal);
        let promised = matches!(entry.code, Code::ResourceExhausted | Code::Unavailable);
        assert!(!promised || entry.retry.is_some(), "{}", entry.reason);
        let state = entry.code == Code::FailedPrecondition;
        assert_eq!(state, entry.precondition.is_some(), "{}", entry.reason);
        assert!(
            !entry.next.is_empty() && !entry.next.ends_with('.'),
            "{}",
            entry.reason
        );
    }
}

#[test]
fn a_status_carries_all_its_details() {
    for refusal in samples() {
        let (entry, status) = (entry(&refusal), status(&refusal));
        let details = status.get_error_details();
        assert_eq!(status.code(), entry.code);
        assert!(
            status.message().ends_with(entry.next),
            "{}",
            status.message()
        );
        let info = details.error_info().unwrap();
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            (entry.reason, DOMAIN)
        );
        assert_eq!(
            info.metadata.len(),
            entry.metadata.len(),
            "{}",
            entry.reason
        );
        assert_eq!(
            details.retry_info().and_then(|info| info.retry_delay),
            entry.retry
        );
        let fields = details
            .bad_request()
            .map_or(0, |bad| bad.field_violations.len());
        assert_eq!(fields == 1, entry.code == Code::InvalidArgument);
        let error = claim_error(&refusal);
        assert_eq!(
            (error.code, error.reason.as_str()),
            (i32::from(entry.code), entry.reason)
        );
        assert_eq!(error.message, status.message());
        assert_eq!(error.retry_after.is_some(), entry.retry.is_some());
        assert_eq!(adopted(status.clone()).details(), status.details());
    }
}

/// Trailers are read by clients within 8 KiB (gRPC's default), whatever a guest or a caller wrote.
#[test]
fn no_status_is_larger_than_clients_take() {
    let long = "ä\n".repeat(20_000);
    let mut worst = vec![
        Refusal::InsideRefused {
            detail: long.clone(),
        },
        Refusal::Internal {
            detail: long.clone(),
        },
        Refusal::ImageFailed {
            image: long.clone(),
            detail: long.clone(),
        },
        Refusal::ImageInUse {
            image: long.clone(),
            pool: long.clone(),
        },
        Refusal::PoolFailing {
            pool: long.clone(),
            detail: long.clone(),
            retry_ms: 1,
        },
    ];
    let mut fields = crate::rpc::check::Fields::default();
    for at in 0..500 {
        fields.wrong(format!("pools[{at}].template.env[{long}]"), &long);
    }
    worst.push(fields.finish().unwrap_err());
    for refusal in worst {
        let mut headers = tonic::codegen::http::HeaderMap::new();
        status(&refusal).add_header(&mut headers).unwrap();
        let size: usize = headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + 32)
            .sum();
        assert!(size < 8 * 1024, "{} is {size} bytes", variant(&refusal));
    }
}

#[test]
fn statuses_of_the_transport_get_a_reason() {
    let reason = |status: Status| {
        let status = adopted(status);
        (
            status.code(),
            status
                .get_error_details()
                .error_info()
                .map(|info| info.reason.clone()),
        )
    };
    let of = |code, reason: &str| (code, Some(reason.to_owned()));
    assert_eq!(
        reason(Status::out_of_range("too long")),
        of(Code::InvalidArgument, "INVALID_ARGUMENT")
    );
    assert_eq!(
        reason(Status::internal("buffer underflow")),
        of(Code::InvalidArgument, "INVALID_ARGUMENT")
    );
    assert_eq!(
        reason(Status::unimplemented("")),
        of(Code::Unimplemented, "UNSUPPORTED")
    );
    assert_eq!(
        reason(Status::not_found("service not registered")),
        (Code::NotFound, None)
    );
}

fn document() -> String {
    let mut out = String::from(
        "# Statuses of hearth\n\n\
         Every refusal carries `google.rpc.ErrorInfo` with `domain` \"hearth\", the `reason` below and the metadata named here; \
         decide by the reason, never by the message. *Retry* means that `google.rpc.RetryInfo` tells when. INVALID_ARGUMENT \
         carries `google.rpc.BadRequest` with every bad field at once, FAILED_PRECONDITION `google.rpc.PreconditionFailure`. \
         In `ClaimBatch` the same table fills `ClaimError`.\n\n\
         A broken connection or a dead hearthd shows as UNAVAILABLE *without* details: every call is idempotent, so repeat it.\n\n\
         Generated from the table in `src/rpc/status.rs`: `UPDATE=1 cargo test --lib rpc::status` rewrites it.\n\n\
         | reason | code | retry | metadata | message, and what to do next |\n|---|---|---|---|---|\n",
    );
    let mut rows: Vec<_> = samples()
        .iter()
        .map(|refusal| (entry(refusal), refusal.to_string()))
        .collect();
    rows.sort_by_key(|(entry, _)| entry.reason);
    for (entry, what) in rows {
        let keys: Vec<_> = entry
            .metadata
            .iter()
            .map(|(key, _)| format!("`{key}`"))
            .collect();
        let code = upper_snake(&format!("{:?}", entry.code));
        let retry = if entry.retry.is_some() { "yes" } else { "" };
        let (reason, keys, next) = (entry.reason, keys.join(" "), entry.next);
        let what = what.replace('<', "\\<").replace('|', "\\|");
        writeln!(
            out,
            "| <a id=\"{}\"></a>`{reason}` | {code} | {retry} | {keys} | {what}. *{next}* |",
            reason.to_lowercase()
        )
        .unwrap();
    }
    out
}

#[test]
fn the_document_is_true() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/statuses.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, document()).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == document(),
        "docs/statuses.md is out of date: UPDATE=1 cargo test --lib rpc::status"
    );
}
