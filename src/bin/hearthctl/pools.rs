//! `pools`: list, watch, set, export, wait.
//!
//! Owns how pools look. The file's form is `pools_file`'s.

use crate::App;
use crate::claims::word;
use crate::cli::{PoolsArgs, PoolsCommand};
use crate::failure::{Exit, Failure};
use crate::link::Link;
use crate::live::{self, Screen};
use crate::output::{self, Field, Format, Mood};
use crate::pools_file::{self, PoolsFile};
use hearth::api::{
    BreakerState, GetPoolsRequest, GetPoolsResponse, PoolStatus, PoolView, SetPoolsRequest,
    WatchPoolsRequest,
};
use indicatif::{MultiProgress, ProgressBar};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Instead of a table.
pub const NONE: &str = "no pools; `hearthctl pools set -f FILE` declares some\n";

/// A pool, for programs.
#[derive(Serialize)]
pub struct PoolRow {
    name: String,
    generation: u64,
    image: String,
    runtime_handler: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    runtime_class: String,
    min_warm: u32,
    max_total: u32,
    warm: u32,
    creating: u32,
    frozen: u32,
    claimed: u32,
    hibernated: u32,
    on_disk: u32,
    releasing: u32,
    waiting: u32,
    outdated: u32,
    breaker: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    breaker_reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<f64>,
    consecutive_failures: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    warm_pool: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    held: String,
    /// What policies say of the template.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    policies: Vec<String>,
    /// What its sandboxes use.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<UsageRow>,
}

/// What a pool's sandboxes use, for programs.
#[derive(Serialize)]
struct UsageRow {
    memory_bytes: u64,
    swap_bytes: u64,
    compressed_bytes: Option<u64>,
    image_bytes: u64,
}

impl From<&PoolView> for PoolRow {
    fn from(view: &PoolView) -> Self {
        let pool = view.pool.clone().unwrap_or_default();
        let status = view.status.clone().unwrap_or_default();
        let template = pool.template.unwrap_or_default();
        PoolRow {
            name: pool.name,
            generation: pool.generation,
            image: template.image,
            runtime_handler: template.runtime_handler,
            runtime_class: template.runtime_class,
            min_warm: pool.min_warm,
            max_total: pool.max_total,
            warm: status.warm,
            creating: status.creating,
            frozen: status.frozen,
            claimed: status.claimed,
            hibernated: status.hibernated,
            on_disk: status.on_disk,
            usage: status.usage.map(|it| UsageRow {
                memory_bytes: it.memory_bytes,
                swap_bytes: it.swap_bytes,
                compressed_bytes: it.compressed_bytes,
                image_bytes: it.image_bytes,
            }),
            releasing: status.releasing,
            waiting: status.waiting,
            outdated: status.outdated,
            breaker: word(status.breaker().as_str_name(), "BREAKER_STATE_"),
            breaker_reason: status.breaker_reason.clone(),
            retry_after_seconds: output::duration_seconds(status.retry_after.as_ref()),
            consecutive_failures: status.consecutive_failures,
            policies: policies(&status),
            warm_pool: view.warm_pool.clone(),
            held: status.held,
        }
    }
}

/// Each as "rule: what it says".
fn policies(status: &PoolStatus) -> Vec<String> {
    let findings = status.findings.iter();
    let findings = findings.map(|it| format!("{}: {}: {}", it.check, it.field, it.detail));
    let denied = status.admission.iter().filter(|it| !it.allowed);
    let denied = denied.map(|it| format!("{}: {}", it.rule, it.message));
    findings.chain(denied).collect()
}

impl PoolRow {
    /// The pool's name, if its breaker is not closed.
    pub fn failing(&self) -> Option<&str> {
        (self.breaker == "open" || self.breaker == "half_open").then_some(&self.name)
    }
}

/// How a pool that has these warm members looks.
pub fn warm(warm: u32, wanted: u32) -> Field {
    let mood = if warm >= wanted {
        Mood::Good
    } else {
        Mood::Look
    };
    Field::new(format!("{warm}/{wanted}"), mood)
}

/// Somebody waits.
pub fn waiting(count: u32) -> Field {
    let mood = if count > 0 { Mood::Look } else { Mood::Plain };
    Field::new(count.to_string(), mood)
}

/// The state of a pool's breaker.
pub fn breaker(status: &PoolStatus) -> Field {
    let mood = match status.breaker() {
        BreakerState::Open | BreakerState::Unservable => Mood::Bad,
        BreakerState::HalfOpen => Mood::Look,
        BreakerState::Closed | BreakerState::Unspecified => Mood::Dim,
    };
    Field::new(word(status.breaker().as_str_name(), "BREAKER_STATE_"), mood)
}

/// The table of pools by what their sandboxes do; those on the disk are some of those asleep.
fn table(app: &App, pools: &[PoolView]) -> String {
    if pools.is_empty() {
        return NONE.to_owned();
    }
    let headers = [
        "POOL",
        ">WARM",
        ">FROZEN",
        ">CREATING",
        ">CLAIMED",
        ">ASLEEP",
        ">ON DISK",
        ">RELEASING",
        ">WAITING",
        ">MAX",
        "BREAKER",
        "IMAGE",
    ];
    let rows = pools.iter().map(|view| {
        let row = PoolRow::from(view);
        let status = view.status.clone().unwrap_or_default();
        vec![
            row.name.into(),
            warm(row.warm, row.min_warm),
            row.frozen.into(),
            row.creating.into(),
            row.claimed.into(),
            row.hibernated.into(),
            row.on_disk.into(),
            row.releasing.into(),
            waiting(row.waiting),
            row.max_total.into(),
            breaker(&status),
            row.image.into(),
        ]
    });
    output::table(app.style, &headers, rows.collect()) + &remarks(app, pools)
}

/// What is wrong with pools, a line each.
pub fn remarks(app: &App, pools: &[PoolView]) -> String {
    let mut text = String::new();
    for row in pools
        .iter()
        .map(PoolRow::from)
        .filter(|row| !row.breaker_reason.is_empty())
    {
        let retry = row.retry_after_seconds.map_or(String::new(), |s| {
            format!("; tries again in {}", output::seconds(s))
        });
        text.push_str(&format!(
            "{} pool {} failed {} times in a row: {}{retry}\n",
            app.style.yellow("!"),
            crate::failure::clean(&row.name),
            row.consecutive_failures,
            crate::failure::clean(&row.breaker_reason),
        ));
    }
    for row in pools.iter().map(PoolRow::from) {
        let what = match row.held.is_empty() {
            true => "does not keep to a policy",
            false => "gets no further sandbox",
        };
        for policy in &row.policies {
            text.push_str(&format!(
                "{} pool {} {what}: {}\n",
                app.style.yellow("!"),
                crate::failure::clean(&row.name),
                crate::failure::clean(policy),
            ));
        }
        if row.policies.is_empty() && !row.held.is_empty() {
            text.push_str(&format!(
                "{} {}\n",
                app.style.yellow("!"),
                crate::failure::clean(&row.held),
            ));
        }
    }
    text
}

/// `pools …`
pub async fn run(app: &App, args: PoolsArgs) -> Result<(), Failure> {
    match args.command {
        None if args.watch => watch(app).await,
        None => list(app).await,
        Some(PoolsCommand::Set {
            file,
            dry_run,
            wait,
        }) => set(app, &file, dry_run, wait).await,
        Some(PoolsCommand::Export) => export(app).await,
        Some(PoolsCommand::Wait { pools, timeout }) => {
            wait_warm(&app.link().await?, &pools, timeout).await
        }
    }
}

/// The set and its status, with what the sandboxes use where that is wanted.
pub async fn get(link: &Link, usage: bool) -> Result<GetPoolsResponse, Failure> {
    let request = link.call(GetPoolsRequest { usage });
    Ok(link.pools().get_pools(request).await?.into_inner())
}

fn value(generation: u64, pools: &[PoolView]) -> serde_json::Value {
    let rows: Vec<_> = pools.iter().map(PoolRow::from).collect();
    serde_json::json!({ "generation": generation, "pools": rows })
}

fn names(pools: &[PoolView]) -> String {
    let pools = pools.iter().filter_map(|view| view.pool.as_ref());
    pools.map(|pool| format!("{}\n", pool.name)).collect()
}

async fn list(app: &App) -> Result<(), Failure> {
    let set = get(&app.link().await?, true).await?;
    output::print(&match app.format() {
        Format::Table => table(app, &set.pools),
        Format::Name => names(&set.pools),
        format => output::document(format, &value(set.generation, &set.pools))?,
    })
}

async fn watch(app: &App) -> Result<(), Failure> {
    let follow = async |screen: &mut Screen| match follow(app, screen).await {
        Err(failure) => failure,
        Ok(()) => Failure::new(Exit::Retry, "hearthd ended the watch"),
    };
    Err(live::keep(app, follow).await)
}

async fn follow(app: &App, screen: &mut Screen) -> Result<(), Failure> {
    let link = app.link().await?;
    let request = link.stream(WatchPoolsRequest {});
    let mut changes = link.pools().watch_pools(request).await?.into_inner();
    while let Some(set) = changes.message().await? {
        match app.format() {
            Format::Table if live::wanted(app) => screen.draw(&table(app, &set.pools))?,
            Format::Table => output::print(&(table(app, &set.pools) + "\n"))?,
            Format::Name => output::print(&names(&set.pools))?,
            format => output::print(&output::record(format, &value(set.generation, &set.pools))?)?,
        }
    }
    Ok(())
}

async fn export(app: &App) -> Result<(), Failure> {
    let set = get(&app.link().await?, false).await?;
    let pools = own(&set.pools).filter_map(|view| view.pool.as_ref());
    let file = PoolsFile {
        generation: None,
        pools: pools.map(Into::into).collect(),
    };
    output::print(&match app.format() {
        Format::Table => toml::to_string(&file)
            .map_err(|error| Failure::new(Exit::Refused, error.to_string()))?,
        Format::Name => names(&set.pools),
        format => output::document(format, &file)?,
    })
}

/// The pools that SetPools declares: those of WarmPool objects are no part of its set.
fn own(pools: &[PoolView]) -> impl Iterator<Item = &PoolView> {
    pools.iter().filter(|view| view.warm_pool.is_empty())
}

async fn set(app: &App, file: &Path, dry_run: bool, wait: Option<Duration>) -> Result<(), Failure> {
    let name = file.display().to_string();
    let text = match name.as_str() {
        "-" => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(file),
    };
    let text = text.map_err(|error| Failure::local(&name, &error))?;
    let file = pools_file::parse(&name, &text)?;
    let link = app.link().await?;
    let current = get(&link, false).await?;
    let pools: Vec<_> = own(&current.pools)
        .filter_map(|view| view.pool.clone())
        .collect();
    let plan = pools_file::plan(file, current.generation, &pools);
    let mut generation = plan.generation;
    if !dry_run {
        let request = link.call(SetPoolsRequest {
            generation,
            pools: plan.pools,
            epoch: link.epoch().await?,
        });
        generation = link
            .pools()
            .set_pools(request)
            .await?
            .into_inner()
            .generation;
    }
    let would = if dry_run {
        " (not done: --dry-run)"
    } else {
        ""
    };
    output::print(&match app.format() {
        Format::Table => {
            let mut text = format!("generation {generation}{would}\n");
            for (pool, change) in &plan.changes {
                text.push_str(&format!("  {change:<9}  {}\n", crate::failure::clean(pool)));
            }
            text
        }
        Format::Name => plan
            .changes
            .keys()
            .map(|pool| format!("{pool}\n"))
            .collect(),
        format => output::document(
            format,
            &serde_json::json!({ "generation": generation, "dry_run": dry_run, "changes": plan.changes }),
        )?,
    })?;
    match wait {
        Some(wait) if !dry_run => wait_warm(&link, &[], wait).await,
        _ => Ok(()),
    }
}

/// Waits until the pools have their warm members, with a bar each.
async fn wait_warm(link: &Link, wanted: &[String], limit: Duration) -> Result<(), Failure> {
    let bars = MultiProgress::new();
    let mut shown = BTreeMap::new();
    let waited = tokio::time::timeout(limit, follow_warm(link, wanted, &bars, &mut shown)).await;
    for bar in shown.values() {
        bar.abandon();
    }
    match waited {
        Ok(result) => result,
        Err(_) => Err(Failure::new(
            Exit::Retry,
            format!(
                "the pools were not warm within {}",
                output::seconds(limit.as_secs_f64())
            ),
        )
        .hint("`hearthctl pools` shows where they are")),
    }
}

async fn follow_warm(
    link: &Link,
    wanted: &[String],
    bars: &MultiProgress,
    shown: &mut BTreeMap<String, ProgressBar>,
) -> Result<(), Failure> {
    let request = link.stream(WatchPoolsRequest {});
    let mut changes = link.pools().watch_pools(request).await?.into_inner();
    while let Some(set) = changes.message().await? {
        let rows: Vec<_> = set.pools.iter().map(PoolRow::from).collect();
        if let Some(absent) = wanted
            .iter()
            .find(|name| rows.iter().all(|row| row.name != **name))
        {
            return Err(
                Failure::new(Exit::NotFound, format!("there is no pool {absent:?}"))
                    .hint("`hearthctl pools` lists the pools"),
            );
        }
        let mut warm = true;
        for row in rows
            .iter()
            .filter(|row| wanted.is_empty() || wanted.contains(&row.name))
        {
            let bar = shown.entry(row.name.clone()).or_insert_with(|| {
                crate::progress::of_members(bars, &row.name, u64::from(row.min_warm))
            });
            bar.set_position(u64::from(row.warm.min(row.min_warm)));
            bar.set_message(crate::failure::clean(&row.breaker_reason));
            warm &= row.warm >= row.min_warm;
            if row.breaker == "open" {
                return Err(Failure::new(
                    Exit::Refused,
                    format!("pool {} keeps failing", row.name),
                )
                .detail("reason", row.breaker_reason.clone())
                .hint("mend the template and set the pools again"));
            }
        }
        if warm {
            return Ok(());
        }
    }
    Err(Failure::new(Exit::Retry, "hearthd ended the watch"))
}
