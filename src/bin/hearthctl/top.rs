//! `top`: pools and claimed sandboxes, where each of them is and what it takes there, once or live. What nobody has claimed
//! is part of its pool's figures.
//!
//! Owns the looks that CPU shares are counted between. Asks for the stats of a bounded number of claims at once.

use crate::App;
use crate::claims::{holder_text, word};
use crate::failure::Failure;
use crate::link::Link;
use crate::live::{self, Screen};
use crate::output::{self, Field, Format, Mood};
use futures::StreamExt;
use hearth::api::{
    Claim, ClaimState, InfoRequest, InfoResponse, PoolUsage, PoolView, StatsRequest, StatsResponse,
};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, Instant, SystemTime};

/// Stats asked for at once.
const PARALLEL: usize = 8;
/// Claims whose stats are asked for; the rest is shown without.
const CLAIMS: usize = 500;
/// Shortest time between two looks.
const SHORTEST: Duration = Duration::from_millis(200);

/// One look at the node.
struct Look {
    at: Instant,
    info: InfoResponse,
    pools: Vec<PoolView>,
    claims: Vec<Claim>,
    stats: BTreeMap<String, StatsResponse>,
}

/// `top`
pub async fn run(app: &App, watch: bool, interval: Duration) -> Result<(), Failure> {
    let interval = interval.max(SHORTEST);
    if watch {
        let follow = async |screen: &mut Screen| match Box::pin(follow(app, interval, screen)).await
        {
            Err(failure) => failure,
            Ok(never) => match never {},
        };
        return Err(live::keep(app, follow).await);
    }
    let link = app.link().await?;
    let before = look(&link).await?;
    // A share of CPU needs two looks.
    tokio::time::sleep(interval.min(Duration::from_secs(1))).await;
    let now = look(&link).await?;
    output::print(&match app.format() {
        Format::Table => text(app, &before, &now),
        Format::Name => names(&now),
        format => output::document(format, &value(&before, &now))?,
    })
}

async fn follow(app: &App, interval: Duration, screen: &mut Screen) -> Result<Infallible, Failure> {
    let link = app.link().await?;
    let mut before = look(&link).await?;
    tokio::time::sleep(SHORTEST).await;
    loop {
        let now = look(&link).await?;
        match app.format() {
            Format::Table if live::wanted(app) => screen.draw(&text(app, &before, &now))?,
            Format::Table => output::print(&(text(app, &before, &now) + "\n"))?,
            Format::Name => output::print(&names(&now))?,
            format => output::print(&output::record(format, &value(&before, &now))?)?,
        }
        before = now;
        tokio::time::sleep(interval).await;
    }
}

fn names(look: &Look) -> String {
    let claims = look.claims.iter();
    claims
        .map(|claim| format!("{}\n", claim.claim_id))
        .collect()
}

async fn look(link: &Link) -> Result<Look, Failure> {
    let info = link
        .node()
        .info(link.call(InfoRequest {}))
        .await?
        .into_inner();
    let pools = crate::pools::get(link, true).await?.pools;
    let claims = link.list("").await?;
    let live = claims
        .iter()
        .filter(|claim| matches!(claim.state(), ClaimState::Claimed | ClaimState::Hibernated));
    let ids: Vec<(String, bool)> = live
        .take(CLAIMS)
        .map(|claim| {
            (
                claim.claim_id.clone(),
                claim.state() == ClaimState::Hibernated,
            )
        })
        .collect();
    let at = Instant::now();
    let stats = futures::stream::iter(ids)
        .map(|(claim_id, asleep)| async move {
            let request = link.call(StatsRequest {
                claim_id: claim_id.clone(),
                // To look is no use: who sleeps is not woken.
                host_only: asleep,
            });
            // A claim that went meanwhile, or does not answer, has no figures.
            let answer = link.sandboxes().stats(request).await.ok()?;
            Some((claim_id, answer.into_inner()))
        })
        .buffer_unordered(PARALLEL)
        .filter_map(|found| async move { found })
        .collect()
        .await;
    Ok(Look {
        at,
        info,
        pools,
        claims,
        stats,
    })
}

/// Cores used between two looks, for example 0.25.
fn cores(before: &Look, now: &Look, claim_id: &str) -> Option<f64> {
    let (old, new) = (before.stats.get(claim_id)?, now.stats.get(claim_id)?);
    let used = new.cpu_nanoseconds.checked_sub(old.cpu_nanoseconds)?;
    let elapsed = now.at.duration_since(before.at).as_secs_f64();
    Some(used as f64 / 1e9 / elapsed.max(0.001))
}

/// Where the sandbox of a claim is; empty: not known, or there is none.
fn residency(claim: &Claim, stats: Option<&StatsResponse>) -> &'static str {
    match (claim.state(), stats) {
        (ClaimState::Claimed, _) => "running",
        (ClaimState::Hibernated, Some(stats)) if stats.image_bytes > 0 => "on disk",
        (ClaimState::Hibernated, Some(_)) => "frozen",
        _ => "",
    }
}

/// RAM, swap, what that takes compressed, and images: as cells, where there is any.
fn figures(usage: Option<&PoolUsage>) -> [Field; 4] {
    let bytes = |it: &PoolUsage| {
        [
            Some(it.memory_bytes),
            Some(it.swap_bytes),
            it.compressed_bytes,
            Some(it.image_bytes),
        ]
    };
    let mut cells = usage.map(bytes).unwrap_or_default().map(|bytes| {
        let some = bytes.filter(|bytes| *bytes > 0);
        some.map(output::bytes).unwrap_or_default()
    });
    // An estimate, and told as one.
    let [_, _, compressed, _] = &mut cells;
    if !compressed.is_empty() {
        compressed.insert(0, '~');
    }
    cells.map(|cell| Field::new(cell, Mood::Plain))
}

/// The same figures of one sandbox.
fn own(stats: &StatsResponse) -> PoolUsage {
    PoolUsage {
        memory_bytes: stats.memory_bytes,
        swap_bytes: stats.swap_bytes,
        compressed_bytes: stats.compressed_bytes,
        image_bytes: stats.image_bytes,
    }
}

fn usages(look: &Look) -> impl Iterator<Item = &PoolUsage> {
    let pools = look.pools.iter();
    pools.filter_map(|view| view.status.as_ref()?.usage.as_ref())
}

fn text(app: &App, before: &Look, now: &Look) -> String {
    let info = &now.info;
    let sum = |of: fn(&PoolUsage) -> u64| output::bytes(usages(now).map(of).sum());
    let mut text = format!(
        "{} {} · {} of {} sandboxes · {} claims · RAM {}, swap {}, disk {} · up {}\n\n",
        app.style.bold("hearth"),
        info.phase,
        info.sandboxes,
        info.max_sandboxes,
        now.claims.len(),
        sum(|it| it.memory_bytes),
        sum(|it| it.swap_bytes),
        sum(|it| it.image_bytes),
        output::relative(
            output::time(info.started_at.as_ref()),
            SystemTime::now(),
            "-"
        )
        .trim_end_matches(" ago"),
    );
    text.push_str(&pools(app, &now.pools));
    if !now.claims.is_empty() {
        text.push('\n');
        text.push_str(&claims(app, before, now));
    }
    text
}

/// Pools by where their sandboxes are, and what all of these take there.
fn pools(app: &App, pools: &[PoolView]) -> String {
    if pools.is_empty() {
        return crate::pools::NONE.to_owned();
    }
    let headers = [
        "POOL",
        ">WARM",
        ">FROZEN",
        ">CREATING",
        ">CLAIMED",
        ">ASLEEP",
        ">ON DISK",
        ">WAITING",
        ">RAM",
        ">SWAP",
        ">COMPRESSED",
        ">DISK",
        "BREAKER",
    ];
    let rows = pools.iter().map(|view| {
        let status = view.status.clone().unwrap_or_default();
        let (name, wanted) = match &view.pool {
            Some(pool) => (pool.name.clone(), pool.min_warm),
            None => Default::default(),
        };
        let [memory, swap, compressed, images] = figures(status.usage.as_ref());
        vec![
            name.into(),
            crate::pools::warm(status.warm, wanted),
            status.frozen.into(),
            status.creating.into(),
            status.claimed.into(),
            status.hibernated.into(),
            status.on_disk.into(),
            crate::pools::waiting(status.waiting),
            memory,
            swap,
            compressed,
            images,
            crate::pools::breaker(&status),
        ]
    });
    output::table(app.style, &headers, rows.collect()) + &crate::pools::remarks(app, pools)
}

/// Claims, those that take the most first.
fn claims(app: &App, before: &Look, now: &Look) -> String {
    let mut claims: Vec<&Claim> = now.claims.iter().collect();
    let used = |claim: &Claim| {
        let stats = now.stats.get(&claim.claim_id);
        stats.map_or((0, 0), |it| (it.memory_bytes, it.image_bytes))
    };
    claims.sort_by_key(|claim| std::cmp::Reverse(used(claim)));
    let rows = claims.into_iter().map(|claim| {
        let stats = now.stats.get(&claim.claim_id);
        let figure = |text: Option<String>| Field::new(text.unwrap_or_default(), Mood::Plain);
        let inside = stats.filter(|_| claim.state() == ClaimState::Claimed);
        let state = match claim.state() {
            ClaimState::Claimed | ClaimState::Hibernated => Mood::Good,
            ClaimState::Failed => Mood::Bad,
            ClaimState::Pending | ClaimState::Unknown | ClaimState::Unspecified => Mood::Look,
        };
        let [memory, swap, compressed, image] = figures(stats.map(own).as_ref());
        vec![
            claim.claim_id.chars().take(8).collect::<String>().into(),
            claim.pool.clone().into(),
            Field::new(word(claim.state().as_str_name(), "CLAIM_STATE_"), state),
            residency(claim, stats).into(),
            figure(cores(before, now, &claim.claim_id).map(|c| format!("{:.0}%", c * 100.0))),
            memory,
            swap,
            compressed,
            image,
            figure(inside.map(|s| s.guest_processes.to_string())),
            figure(inside.map(|s| s.execs.to_string())),
            holder_text(claim.holder.as_ref()).into(),
        ]
    });
    output::table(
        app.style,
        &[
            "CLAIM",
            "POOL",
            "STATE",
            "RESIDENCY",
            ">CPU",
            ">RAM",
            ">SWAP",
            ">COMPRESSED",
            ">DISK",
            ">PROCESSES",
            ">EXECS",
            "HOLDER",
        ],
        rows.collect(),
    )
}

fn value(before: &Look, now: &Look) -> serde_json::Value {
    let claims: Vec<_> = now
        .claims
        .iter()
        .map(|claim| {
            let stats = now.stats.get(&claim.claim_id);
            serde_json::json!({
                "claim": crate::claims::ClaimRow::from(claim),
                "residency": residency(claim, stats),
                "cpu_cores": cores(before, now, &claim.claim_id),
                "stats": stats.map(|stats| crate::node::stats_value(&claim.claim_id, stats)),
            })
        })
        .collect();
    let pools: Vec<_> = now.pools.iter().map(crate::pools::PoolRow::from).collect();
    serde_json::json!({
        "phase": now.info.phase,
        "sandboxes": now.info.sandboxes,
        "max_sandboxes": now.info.max_sandboxes,
        "pools": pools,
        "claims": claims,
    })
}
