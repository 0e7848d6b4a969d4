//! `hibernate`, `resume`.

use crate::App;
use crate::cli::WaitingOn;
use crate::failure::Failure;
use crate::link::Link;
use crate::output::{self, Format};
use hearth::api::{HibernateReason, HibernateRequest, ResumeRequest, Tier};

/// Where a sandbox sleeps.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Where {
    /// Frozen.
    Memory,
    /// Checkpointed.
    Disk,
}

/// `hibernate`: all of them are tried; the first failure is told at the end.
pub async fn hibernate(
    app: &App,
    names: Vec<String>,
    waiting_on: Option<WaitingOn>,
    tier: Option<Where>,
) -> Result<(), Failure> {
    let reason = match waiting_on {
        None => HibernateReason::Unspecified,
        Some(WaitingOn::Human) => HibernateReason::WaitingOnHuman,
        Some(WaitingOn::Model) => HibernateReason::WaitingOnModel,
    };
    let tier = match tier {
        None => Tier::Unspecified,
        Some(Where::Memory) => Tier::Memory,
        Some(Where::Disk) => Tier::Disk,
    };
    each(app, names, "asleep", async |link, claim_id, epoch| {
        let request = HibernateRequest {
            claim_id,
            epoch,
            tier: tier.into(),
            reason: reason.into(),
        };
        link.claims().hibernate(link.call(request)).await?;
        Ok(())
    })
    .await
}

/// `resume`: the same.
pub async fn resume(app: &App, names: Vec<String>) -> Result<(), Failure> {
    each(app, names, "awake", async |link, claim_id, epoch| {
        let request = ResumeRequest { claim_id, epoch };
        link.claims().resume(link.call(request)).await?;
        Ok(())
    })
    .await
}

async fn each(
    app: &App,
    names: Vec<String>,
    becomes: &'static str,
    act: impl AsyncFn(&Link, String, u64) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let link = app.link().await?;
    let epoch = link.epoch().await?;
    let mut first = None;
    for name in names {
        let done = async {
            let claim_id = link.resolve(&name).await?;
            act(&link, claim_id.clone(), epoch).await?;
            Ok::<_, Failure>(claim_id)
        };
        match done.await {
            Ok(claim_id) => output::print(&match app.format() {
                Format::Table => format!("{claim_id} is {becomes}\n"),
                Format::Name => format!("{claim_id}\n"),
                format => output::record(
                    format,
                    &serde_json::json!({ "claim_id": claim_id, "state": becomes }),
                )?,
            })?,
            Err(failure) => first = first.or(Some(failure)),
        }
    }
    first.map_or(Ok(()), Err)
}
