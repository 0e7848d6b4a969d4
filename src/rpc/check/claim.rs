//! Requests of the Claims service.

use super::{Fields, bounds, index, network, value};
use crate::api::{
    ClaimBatchRequest, ClaimRequest, File, HibernateReason, HibernateRequest, ListClaimsRequest,
    ReleaseRequest, RenewRequest, ResumeRequest, Secret, Tier, WatchClaimsRequest,
};
use crate::driver::Personalization;
use crate::machine::ids::{ClaimId, PoolName};
use crate::machine::limits;
use crate::machine::network::NetworkPolicy;
use crate::machine::refusal::Refusal;
use crate::machine::spec::{self, Holder, OnDataLoss, OnEmpty};
use std::collections::BTreeSet;

/// A checked ClaimRequest.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The idempotency key.
    pub claim_id: ClaimId,
    /// The pool.
    pub pool: PoolName,
    /// Who it is for.
    pub holder: Holder,
    /// At least 1.
    pub epoch: u64,
    /// Milliseconds; 0: never expires.
    pub ttl_ms: u64,
    /// What to do when the pool is dry.
    pub on_empty: OnEmpty,
    /// What to apply inside; modes are filled in.
    pub personalization: Personalization,
    /// Its own network policy; `None`: the template's.
    pub network: Option<NetworkPolicy>,
    /// As its caller said it; `None`: not at all.
    pub on_data_loss: Option<OnDataLoss>,
}

impl Claim {
    /// It brings what hearth can't give a second time: it is not kept.
    #[must_use]
    pub fn brings_its_own(&self) -> bool {
        let inside = &self.personalization;
        !(inside.env.is_empty()
            && inside.files.is_empty()
            && inside.secrets.is_empty()
            && inside.hostname.is_empty())
    }
}

/// One ClaimRequest.
pub fn claim(request: ClaimRequest) -> Result<Claim, Refusal> {
    let mut fields = Fields::default();
    let claim_id = value::claim_id(&mut fields, "claim_id", &request.claim_id);
    let pool = value::pool_name(&mut fields, "pool", &request.pool);
    let holder = holder(&mut fields, request.holder.unwrap_or_default());
    value::epoch(&mut fields, "epoch", request.epoch);
    let ttl_ms = ttl(&mut fields, request.ttl);
    let on_empty = on_empty(&mut fields, request.on_empty, request.wait_timeout);
    let mut asked = request.personalization.unwrap_or_default();
    let policy = asked.network_policy.take();
    let network = network::policy(&mut fields, "personalization.network_policy", policy);
    let personalization = personalization(&mut fields, asked);
    let on_data_loss = on_data_loss(&mut fields, "on_data_loss", request.on_data_loss);
    let claim = (|| {
        Some(Claim {
            claim_id: claim_id?,
            pool: pool?,
            holder,
            epoch: request.epoch,
            ttl_ms: ttl_ms?,
            on_empty: on_empty?,
            personalization,
            network,
            on_data_loss: on_data_loss?,
        })
    })();
    let cold = |claim: &Claim| claim.on_data_loss == Some(OnDataLoss::Cold);
    let twice = claim
        .as_ref()
        .is_some_and(|it| cold(it) && it.brings_its_own());
    fields.need(
        !twice,
        "on_data_loss",
        "ON_DATA_LOSS_COLD can't be had with env, files, secrets or a hostname: hearth does not keep them",
    );
    fields.give(claim)
}

/// What is wrong with a batch as a whole; its claims are judged one by one.
pub fn batch(request: &ClaimBatchRequest) -> Result<(), Refusal> {
    let mut fields = Fields::default();
    let count = request.claims.len();
    let most = limits::BATCH_CLAIMS;
    fields.need(
        (1..=most).contains(&count),
        "claims",
        format!("must be 1 to {most} claims"),
    );
    let mut seen = BTreeSet::new();
    for (at, claim) in request.claims.iter().enumerate().take(most) {
        let known = ClaimId::parse(&claim.claim_id).is_ok_and(|id| !seen.insert(id));
        fields.need(
            !known,
            format!("{}.claim_id", index("claims", at)),
            "is in this batch already",
        );
    }
    fields.finish()
}

fn holder(fields: &mut Fields, holder: crate::api::Holder) -> Holder {
    let parts = [
        ("namespace", &holder.namespace),
        ("name", &holder.name),
        ("uid", &holder.uid),
    ];
    for (name, text) in parts {
        let fits = text.len() <= limits::HOLDER_BYTES && !text.chars().any(char::is_control);
        let what = format!(
            "must be at most {} bytes without control characters",
            limits::HOLDER_BYTES
        );
        fields.need(fits, format!("holder.{name}"), what);
    }
    Holder {
        namespace: holder.namespace,
        name: holder.name,
        uid: holder.uid,
    }
}

fn ttl(fields: &mut Fields, ttl: Option<prost_types::Duration>) -> Option<u64> {
    value::millis(fields, "ttl", ttl.unwrap_or_default(), limits::MAX_TTL_MS)
}

/// Also of a template. `None` inside: not said.
pub(super) fn on_data_loss(
    fields: &mut Fields,
    at: &str,
    asked: i32,
) -> Option<Option<OnDataLoss>> {
    use crate::api::OnDataLoss as Asked;
    match Asked::try_from(asked) {
        Ok(Asked::Unspecified) => Some(None),
        Ok(Asked::Fail) => Some(Some(OnDataLoss::Fail)),
        Ok(Asked::Cold) => Some(Some(OnDataLoss::Cold)),
        Err(_) => {
            fields.wrong(at, "is not a known value");
            None
        }
    }
}

fn on_empty(
    fields: &mut Fields,
    on_empty: i32,
    wait: Option<prost_types::Duration>,
) -> Option<OnEmpty> {
    use crate::api::OnEmpty as Asked;
    const AT: &str = "wait_timeout";
    let Ok(asked) = Asked::try_from(on_empty) else {
        fields.wrong("on_empty", "is not a known value");
        return None;
    };
    if asked != Asked::Wait {
        fields.need(wait.is_none(), AT, "belongs to ON_EMPTY_WAIT only");
    }
    match asked {
        Asked::Unspecified | Asked::Fail => Some(OnEmpty::Fail),
        Asked::Cold => Some(OnEmpty::Cold),
        Asked::Wait => {
            let timeout_ms =
                value::millis(fields, AT, wait.unwrap_or_default(), limits::MAX_WAIT_MS)?;
            fields.need(
                timeout_ms > 0,
                AT,
                "is required with ON_EMPTY_WAIT and must be positive",
            );
            Some(OnEmpty::Wait { timeout_ms })
        }
    }
}

fn personalization(fields: &mut Fields, asked: crate::api::Personalization) -> Personalization {
    value::env(fields, "personalization.env", &asked.env);
    let hostname = &asked.hostname;
    // The rule of a pool's name is RFC 1123's label.
    let label = hostname.is_empty() || PoolName::parse(hostname).is_ok();
    let form = "must be 1 to 63 lower-case letters, digits and inner hyphens";
    fields.need(label, "personalization.hostname", form);
    Personalization {
        files: files(fields, asked.files),
        secrets: secrets(fields, asked.secrets),
        env: asked.env,
        hostname: asked.hostname,
    }
}

fn files(fields: &mut Fields, files: Vec<File>) -> Vec<(String, bytes::Bytes, u32)> {
    const AT: &str = "personalization.files";
    let bytes: usize = files.iter().map(|file| file.content.len()).sum();
    let (most, most_bytes) = (limits::CLAIM_FILES, limits::CLAIM_FILE_BYTES);
    fields.need(
        files.len() <= most,
        AT,
        format!("must be at most {most} files"),
    );
    fields.need(
        bytes <= most_bytes,
        AT,
        format!("must be at most {most_bytes} bytes together"),
    );
    let mut seen = BTreeSet::new();
    let mut checked = Vec::with_capacity(files.len().min(most));
    for (at, file) in files.into_iter().enumerate().take(most) {
        let at = index(AT, at);
        value::file_path(fields, &format!("{at}.path"), &file.path);
        fields.need(
            seen.insert(file.path.clone()),
            format!("{at}.path"),
            "is in this claim already",
        );
        let mode = value::mode(fields, &format!("{at}.mode"), file.mode);
        checked.push((file.path, file.content, mode));
    }
    checked
}

fn secrets(fields: &mut Fields, secrets: Vec<Secret>) -> Vec<(String, bytes::Bytes)> {
    const AT: &str = "personalization.secrets";
    let (most, most_bytes) = (limits::CLAIM_SECRETS, limits::SECRET_BYTES);
    fields.need(
        secrets.len() <= most,
        AT,
        format!("must be at most {most} secrets"),
    );
    let mut seen = BTreeSet::new();
    let mut checked = Vec::with_capacity(secrets.len().min(most));
    for (at, secret) in secrets.into_iter().enumerate().take(most) {
        let at = index(AT, at);
        let name = format!("{at}.name");
        fields.need(
            is_secret_name(&secret.name),
            &name,
            "must be 1 to 253 letters, digits, '.', '_' and '-', not \".\" or \"..\"",
        );
        fields.need(
            seen.insert(secret.name.clone()),
            &name,
            "is in this claim already",
        );
        fields.need(
            secret.value.len() <= most_bytes,
            format!("{at}.value"),
            format!("must be at most {most_bytes} bytes"),
        );
        checked.push((secret.name, secret.value));
    }
    checked
}

fn is_secret_name(name: &str) -> bool {
    value::is_plain_name(name, bounds::SECRET_NAME_BYTES) && name != "." && name != ".."
}

/// A claim id alone: Get and the calls of Sandboxes.
pub fn claim_id(text: &str) -> Result<ClaimId, Refusal> {
    let mut fields = Fields::default();
    let id = value::claim_id(&mut fields, "claim_id", text);
    fields.give(id)
}

/// Release: (claim, epoch).
pub fn release(request: &ReleaseRequest) -> Result<(ClaimId, u64), Refusal> {
    let mut fields = Fields::default();
    let id = value::claim_id(&mut fields, "claim_id", &request.claim_id);
    value::epoch(&mut fields, "epoch", request.epoch);
    fields.give(id.map(|id| (id, request.epoch)))
}

/// A checked HibernateRequest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hibernation {
    /// The claim.
    pub claim: ClaimId,
    /// At least 1.
    pub epoch: u64,
    /// The tier.
    pub tier: spec::Tier,
    /// Why.
    pub reason: spec::WaitingOn,
}

/// Hibernate.
pub fn hibernate(request: &HibernateRequest) -> Result<Hibernation, Refusal> {
    let mut fields = Fields::default();
    let claim = value::claim_id(&mut fields, "claim_id", &request.claim_id);
    value::epoch(&mut fields, "epoch", request.epoch);
    let tier = match Tier::try_from(request.tier) {
        Ok(Tier::Unspecified) => Some(spec::Tier::Auto),
        Ok(Tier::Memory) => Some(spec::Tier::Memory),
        Ok(Tier::Disk) => Some(spec::Tier::Disk),
        Err(_) => None,
    };
    fields.need(tier.is_some(), "tier", "is not a known value");
    let reason = match HibernateReason::try_from(request.reason) {
        Ok(HibernateReason::Unspecified) => Some(spec::WaitingOn::Unspecified),
        Ok(HibernateReason::WaitingOnHuman) => Some(spec::WaitingOn::Human),
        Ok(HibernateReason::WaitingOnModel) => Some(spec::WaitingOn::Model),
        Err(_) => None,
    };
    fields.need(reason.is_some(), "reason", "is not a known value");
    let checked = (|| {
        Some(Hibernation {
            claim: claim?,
            epoch: request.epoch,
            tier: tier?,
            reason: reason?,
        })
    })();
    fields.give(checked)
}

/// Resume: (claim, epoch).
pub fn resume(request: &ResumeRequest) -> Result<(ClaimId, u64), Refusal> {
    let mut fields = Fields::default();
    let id = value::claim_id(&mut fields, "claim_id", &request.claim_id);
    value::epoch(&mut fields, "epoch", request.epoch);
    fields.give(id.map(|id| (id, request.epoch)))
}

/// Renew: (claim, epoch, ttl in milliseconds).
pub fn renew(request: &RenewRequest) -> Result<(ClaimId, u64, u64), Refusal> {
    let mut fields = Fields::default();
    let id = value::claim_id(&mut fields, "claim_id", &request.claim_id);
    value::epoch(&mut fields, "epoch", request.epoch);
    let ttl = ttl(&mut fields, request.ttl);
    fields.give(id.zip(ttl).map(|(id, ttl)| (id, request.epoch, ttl)))
}

/// A checked ListClaimsRequest.
#[derive(Debug, PartialEq, Eq)]
pub struct Listing {
    /// Only this pool.
    pub pool: Option<PoolName>,
    /// Start after this claim.
    pub after: Option<ClaimId>,
    /// Page size.
    pub limit: usize,
}

/// List. `page_after` reads a page token: the claim it continues after, if List gave it for this filter.
pub fn listing(
    request: &ListClaimsRequest,
    page_after: impl FnOnce(&str, &str) -> Option<ClaimId>,
) -> Result<Listing, Refusal> {
    let mut fields = Fields::default();
    let pool = value::pool_filter(&mut fields, "pool", &request.pool);
    let limit = match usize::try_from(request.page_size) {
        Ok(0) => limits::PAGE,
        Ok(size) if size <= limits::PAGE => size,
        _ => {
            fields.wrong("page_size", format!("must be at most {}", limits::PAGE));
            limits::PAGE
        }
    };
    let after = match request.page_token.as_str() {
        "" => None,
        token if token.len() <= bounds::TOKEN_BYTES => page_after(&request.pool, token),
        _ => None,
    };
    let good = request.page_token.is_empty() || after.is_some();
    fields.need(
        good,
        "page_token",
        "is not one that List gave for this pool",
    );
    fields.give(Some(Listing { pool, after, limit }))
}

/// Watch: (only this pool, resume token).
pub fn watch(request: WatchClaimsRequest) -> Result<(Option<PoolName>, Option<String>), Refusal> {
    let mut fields = Fields::default();
    let pool = value::pool_filter(&mut fields, "pool", &request.pool);
    value::token(&mut fields, "resume_token", &request.resume_token);
    let resume = Some(request.resume_token).filter(|token| !token.is_empty());
    fields.give(Some((pool, resume)))
}
