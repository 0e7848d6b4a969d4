//! `claims`, `get`, `renew`, `release`.
//!
//! Owns how claims look.

use crate::App;
use crate::failure::{Exit, Failure};
use crate::live::{self, Screen};
use crate::output::{self, Field, Format, Mood};
use hearth::api::{
    ChangeKind, Claim, ClaimState, GetClaimRequest, Holder, ReleaseRequest, RenewRequest, Source,
    WatchClaimsRequest,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// A claim, for programs.
#[derive(Serialize)]
pub struct ClaimRow {
    claim_id: String,
    pool: String,
    holder: HolderRow,
    state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    status_reason: String,
    sandbox_id: String,
    generation: u64,
    source: String,
    claimed_at: Option<String>,
    expires_at: Option<String>,
}

#[derive(Serialize)]
struct HolderRow {
    namespace: String,
    name: String,
    uid: String,
}

impl From<&Claim> for ClaimRow {
    fn from(claim: &Claim) -> Self {
        let holder = claim.holder.clone().unwrap_or_default();
        ClaimRow {
            claim_id: claim.claim_id.clone(),
            pool: claim.pool.clone(),
            holder: HolderRow {
                namespace: holder.namespace,
                name: holder.name,
                uid: holder.uid,
            },
            state: state_word(claim.state()),
            status_reason: claim.status_reason.clone(),
            sandbox_id: claim.sandbox_id.clone(),
            generation: claim.generation,
            source: source_word(claim.source()),
            claimed_at: output::time(claim.claimed_at.as_ref()).map(output::rfc3339),
            expires_at: output::time(claim.expires_at.as_ref()).map(output::rfc3339),
        }
    }
}

fn state_word(state: ClaimState) -> String {
    word(state.as_str_name(), "CLAIM_STATE_")
}

/// "warm", "cold", …
pub fn source_word(source: Source) -> String {
    word(source.as_str_name(), "SOURCE_")
}

/// "CLAIM_STATE_PENDING" → "pending"; an unset value is empty.
pub fn word(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix).unwrap_or(name) {
        "UNSPECIFIED" => String::new(),
        word => word.to_ascii_lowercase(),
    }
}

/// "namespace/name"
pub fn holder_text(holder: Option<&Holder>) -> String {
    match holder {
        None => String::new(),
        Some(holder) if holder.namespace.is_empty() => holder.name.clone(),
        Some(holder) => format!("{}/{}", holder.namespace, holder.name),
    }
}

const HEADERS: [&str; 8] = [
    "CLAIM", "POOL", "STATE", "SOURCE", "SANDBOX", "HOLDER", "CLAIMED", "EXPIRES",
];

fn row(claim: &Claim, now: SystemTime) -> Vec<Field> {
    let mood = match claim.state() {
        ClaimState::Claimed | ClaimState::Hibernated => Mood::Good,
        ClaimState::Pending | ClaimState::Unknown => Mood::Look,
        ClaimState::Failed => Mood::Bad,
        ClaimState::Unspecified => Mood::Dim,
    };
    let mut state = state_word(claim.state());
    if !claim.status_reason.is_empty() {
        state = format!("{state} ({})", claim.status_reason);
    }
    vec![
        claim.claim_id.clone().into(),
        claim.pool.clone().into(),
        Field::new(state, mood),
        source_word(claim.source()).into(),
        claim.sandbox_id.clone().into(),
        holder_text(claim.holder.as_ref()).into(),
        output::relative(output::time(claim.claimed_at.as_ref()), now, "-").into(),
        output::relative(output::time(claim.expires_at.as_ref()), now, "never").into(),
    ]
}

fn table<'a>(app: &App, claims: impl Iterator<Item = &'a Claim>) -> String {
    let now = SystemTime::now();
    let rows: Vec<_> = claims.map(|claim| row(claim, now)).collect();
    if rows.is_empty() {
        return "no claims; `hearthctl claim POOL` makes one\n".into();
    }
    output::table(app.style, &HEADERS, rows)
}

/// `claims`
pub async fn list(app: &App, pool: Option<String>) -> Result<(), Failure> {
    let claims = app.link().await?.list(&pool.unwrap_or_default()).await?;
    output::print(&match app.format() {
        Format::Table => table(app, claims.iter()),
        Format::Name => claims.iter().map(|c| format!("{}\n", c.claim_id)).collect(),
        format => output::document(
            format,
            &claims.iter().map(ClaimRow::from).collect::<Vec<_>>(),
        )?,
    })
}

/// `claims --watch`: a live table on a terminal; elsewhere a record for each change.
pub async fn watch(app: &App, pool: Option<String>) -> Result<(), Failure> {
    let pool = pool.unwrap_or_default();
    let follow = async |screen: &mut Screen| match follow(app, &pool, screen).await {
        Err(failure) => failure,
        Ok(()) => Failure::new(Exit::Retry, "hearthd ended the watch"),
    };
    Err(live::keep(app, follow).await)
}

async fn follow(app: &App, pool: &str, screen: &mut Screen) -> Result<(), Failure> {
    let link = app.link().await?;
    let request = link.stream(WatchClaimsRequest {
        pool: pool.to_owned(),
        resume_token: String::new(),
    });
    let mut changes = link.claims().watch(request).await?.into_inner();
    let live = live::wanted(app);
    let mut claims = BTreeMap::new();
    let mut synced = false;
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        let change = tokio::select! {
            change = changes.message() => change?,
            // Ages move on without a change.
            _ = tick.tick(), if live && synced => {
                screen.draw(&table(app, claims.values()))?;
                continue;
            }
        };
        let Some(change) = change else { return Ok(()) };
        synced |= change.kind() == ChangeKind::Synced;
        if !live {
            if let Some(claim) = &change.claim {
                output::print(&change_text(app, change.kind(), claim)?)?;
            }
            continue;
        }
        let removed = change.kind() == ChangeKind::Removed;
        if let Some(claim) = change.claim {
            match removed {
                true => claims.remove(&claim.claim_id),
                false => claims.insert(claim.claim_id.clone(), claim),
            };
        }
        if synced {
            screen.draw(&table(app, claims.values()))?;
        }
    }
}

fn change_text(app: &App, kind: ChangeKind, claim: &Claim) -> Result<String, Failure> {
    let kind = word(kind.as_str_name(), "CHANGE_KIND_");
    match app.format() {
        Format::Name => Ok(format!("{}\n", claim.claim_id)),
        Format::Table => Ok(format!(
            "{kind:<9} {} {} {} {}\n",
            claim.claim_id,
            claim.pool,
            state_word(claim.state()),
            claim.sandbox_id
        )),
        format => output::record(
            format,
            &serde_json::json!({ "kind": kind, "claim": ClaimRow::from(claim) }),
        ),
    }
}

/// `get`
pub async fn get(app: &App, name: &str) -> Result<(), Failure> {
    let link = app.link().await?;
    let claim_id = link.resolve(name).await?;
    let request = link.call(GetClaimRequest { claim_id });
    let claim = link.claims().get(request).await?.into_inner().claim;
    let claim = claim.unwrap_or_default();
    let now = SystemTime::now();
    output::print(&match app.format() {
        Format::Table => {
            let claimed = output::time(claim.claimed_at.as_ref());
            let expires = output::time(claim.expires_at.as_ref());
            output::sheet(
                app.style,
                &[
                    ("claim", claim.claim_id.clone()),
                    (
                        "pool",
                        format!("{} (generation {})", claim.pool, claim.generation),
                    ),
                    (
                        "state",
                        format!("{} {}", state_word(claim.state()), claim.status_reason),
                    ),
                    ("sandbox", claim.sandbox_id.clone()),
                    ("source", source_word(claim.source())),
                    ("holder", holder_text(claim.holder.as_ref())),
                    ("claimed", output::relative(claimed, now, "not yet")),
                    ("expires", output::relative(expires, now, "never")),
                ],
            )
        }
        Format::Name => format!("{}\n", claim.claim_id),
        format => output::document(format, &ClaimRow::from(&claim))?,
    })
}

/// `renew`
pub async fn renew(app: &App, name: &str, ttl: Duration) -> Result<(), Failure> {
    let link = app.link().await?;
    let claim_id = link.resolve(name).await?;
    let request = link.call(RenewRequest {
        claim_id: claim_id.clone(),
        epoch: link.epoch().await?,
        ttl: ttl_proto(ttl)?,
    });
    let renewed = link.claims().renew(request).await?.into_inner();
    let expires = output::time(renewed.expires_at.as_ref());
    output::print(&match app.format() {
        Format::Table => format!(
            "renewed {claim_id}: expires {}\n",
            output::relative(expires, SystemTime::now(), "never")
        ),
        Format::Name => format!("{claim_id}\n"),
        format => output::document(
            format,
            &serde_json::json!({ "claim_id": claim_id, "expires_at": expires.map(output::rfc3339) }),
        )?,
    })
}

/// `release`: all of them are tried; the first failure is told at the end.
pub async fn release(app: &App, names: Vec<String>, all: bool) -> Result<(), Failure> {
    let link = app.link().await?;
    let epoch = link.epoch().await?;
    let mut ids = Vec::new();
    if all {
        ids.extend(link.list("").await?.into_iter().map(|claim| claim.claim_id));
    }
    let mut failed = None;
    for name in names {
        match link.resolve(&name).await {
            Ok(id) => ids.push(id),
            Err(failure) => failed = failed.or(Some(failure)),
        }
    }
    let mut released = Vec::new();
    for claim_id in ids {
        let request = link.call(ReleaseRequest {
            claim_id: claim_id.clone(),
            epoch,
        });
        match link.claims().release(request).await {
            Ok(_) => released.push(claim_id),
            Err(status) => {
                failed = failed.or(Some(Failure::from(status).detail("claim", claim_id)))
            }
        }
    }
    output::print(&match app.format() {
        Format::Table if released.is_empty() && failed.is_none() => "no claims\n".into(),
        Format::Table => released
            .iter()
            .map(|id| format!("released {id}\n"))
            .collect(),
        Format::Name => released.iter().map(|id| format!("{id}\n")).collect(),
        format => output::document(format, &serde_json::json!({ "released": released }))?,
    })?;
    failed.map_or(Ok(()), Err)
}

/// 0 is "never", which the API says by absence.
pub fn ttl_proto(ttl: Duration) -> Result<Option<prost_types::Duration>, Failure> {
    if ttl.is_zero() {
        return Ok(None);
    }
    match output::to_proto(ttl) {
        Some(ttl) => Ok(Some(ttl)),
        None => Err(Failure::usage("--ttl is too long")),
    }
}
