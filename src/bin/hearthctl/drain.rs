//! `drain`, `undrain`.
//!
//! Owns how a drain's progress looks: a line for each change, an object for each change with `-o json`.

use crate::App;
use crate::claims::word;
use crate::failure::{Exit, Failure, clean};
use crate::output::{self, Format};
use crate::parse::duration;
use hearth::api::{self, DrainRequest, DrainState, DrainStatus, UndrainRequest};
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

/// What a drain does with claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DrainMode {
    /// Wait until they are released or expire
    Wait,
    /// Put their sandboxes to sleep once no stream is open in them, at the deadline all; with a disk tier on the disk
    Hibernate,
    /// Wait, and release at the deadline those that are left
    Evict,
}

/// `drain`
#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    /// What happens to the claims that are there
    #[arg(long, value_enum, default_value = "wait")]
    mode: DrainMode,
    /// How long to let claims go on, for example 10m; needed with evict [default: no deadline]
    #[arg(long, value_parser = duration, required_if_eq("mode", "evict"))]
    deadline: Option<Duration>,
    /// Return once the drain has begun
    #[arg(long)]
    no_wait: bool,
}

/// `drain`
pub async fn begin(app: &App, args: DrainArgs) -> Result<(), Failure> {
    let link = app.link().await?;
    let mode = match args.mode {
        DrainMode::Wait => api::DrainMode::Wait,
        DrainMode::Hibernate => api::DrainMode::Hibernate,
        DrainMode::Evict => api::DrainMode::Evict,
    };
    let request = link.call(DrainRequest {
        mode: mode.into(),
        deadline: args.deadline.and_then(output::to_proto),
    });
    let mut steps = link.node().drain(request).await?.into_inner();
    let mut named = BTreeSet::new();
    while let Some(step) = steps.message().await? {
        let status = step.status.unwrap_or_default();
        output::print(&match app.format() {
            Format::Table => format!("{}\n", line(&status)),
            Format::Name => format!("{}\n", state(&status)),
            format => output::record(format, &value(&status))?,
        })?;
        if matches!(app.format(), Format::Table) {
            for it in &status.kept {
                if named.insert(it.claim_id.clone()) {
                    output::print(&format!(
                        "  {} stays in memory: {} ({})\n",
                        clean(&it.claim_id),
                        clean(&it.reason),
                        clean(&it.detail)
                    ))?;
                }
            }
        }
        match status.state() {
            DrainState::Drained => return Ok(()),
            DrainState::Undrained => {
                return Err(Failure::new(Exit::Refused, "the drain was undone"));
            }
            DrainState::Overdue if mode == api::DrainMode::Wait => {
                let left = format!("the deadline passed, {} claims are left", status.claims);
                return Err(Failure::new(Exit::Retry, left).hint(
                    "the node takes no claims; `hearthctl drain --mode evict --deadline 0` releases them, `hearthctl undrain` ends the drain",
                ));
            }
            _ if args.no_wait => return Ok(()),
            _ => {}
        }
    }
    Err(Failure::new(
        Exit::Retry,
        "hearthd ended the progress; the drain goes on",
    ))
}

/// `undrain`
pub async fn undo(app: &App) -> Result<(), Failure> {
    let link = app.link().await?;
    let undone = link.node().undrain(link.call(UndrainRequest {})).await?;
    if let Some(status) = undone.into_inner().status {
        let left = format!("the cluster drains this node: {}", line(&status));
        return Err(Failure::new(Exit::Refused, left)
            .hint("`kubectl annotate node NODE hearth.dev/drain-` ends that"));
    }
    output::print(&match app.format() {
        Format::Table | Format::Name => "undrained\n".to_owned(),
        format => output::document(format, &serde_json::json!({ "state": "undrained" }))?,
    })
}

fn kept(it: &api::DrainKept) -> serde_json::Value {
    serde_json::json!({ "claim": it.claim_id, "reason": it.reason, "detail": it.detail })
}

fn state(status: &DrainStatus) -> String {
    word(status.state().as_str_name(), "DRAIN_STATE_")
}

/// "draining (hibernate): 3 claims left, 2 asleep, 4 sandboxes going, deadline in 9m"
pub fn line(status: &DrainStatus) -> String {
    if status.state() == DrainState::Undrained {
        return state(status);
    }
    let mut parts = vec![format!("{} claims left", status.claims)];
    if status.hibernated > 0 {
        parts.push(asleep(status));
    }
    if status.unclaimed > 0 {
        parts.push(format!("{} sandboxes going", status.unclaimed));
    }
    let deadline = output::time(status.deadline.as_ref());
    if deadline.is_some() && status.state() == DrainState::Draining {
        let when = output::relative(deadline, SystemTime::now(), "-");
        parts.push(format!("deadline {when}"));
    }
    let mode = word(status.mode().as_str_name(), "DRAIN_MODE_");
    if status.by_cluster {
        parts.push("asked for by the cluster".to_owned());
    }
    format!("{} ({mode}): {}", state(status), parts.join(", "))
}

/// "5 asleep (2 on the disk, 1 on its way, 2 stay in memory)"
fn asleep(status: &DrainStatus) -> String {
    let all = format!("{} asleep", status.hibernated);
    if !status.disk_tier {
        return format!("{all} (in memory: no disk tier)");
    }
    let mut where_to = vec![format!("{} on the disk", status.on_disk)];
    if status.to_disk > 0 {
        where_to.push(format!("{} on the way", status.to_disk));
    }
    let there = status.on_disk.saturating_add(status.to_disk);
    let kept = status.hibernated.saturating_sub(there);
    if kept > 0 {
        where_to.push(format!("{kept} stay in memory"));
    }
    format!("{all} ({})", where_to.join(", "))
}

/// For programs.
pub fn value(status: &DrainStatus) -> serde_json::Value {
    serde_json::json!({
        "state": state(status),
        "mode": word(status.mode().as_str_name(), "DRAIN_MODE_"),
        "claims": status.claims,
        "hibernated": status.hibernated,
        "on_disk": status.on_disk,
        "to_disk": status.to_disk,
        "disk_tier": status.disk_tier,
        "kept": status.kept.iter().map(kept).collect::<Vec<_>>(),
        "unclaimed": status.unclaimed,
        "since": output::time(status.since.as_ref()).map(output::rfc3339),
        "deadline": output::time(status.deadline.as_ref()).map(output::rfc3339),
        "by_cluster": status.by_cluster,
    })
}
