//! How many a node can keep: hearthd's own cost, and its claims, with few members and with many. Takes minutes and most of
//! a node's memory, so only where `HEARTH_BENCH_DENSITY` says how many (500; 1000 on 24 GiB).

use crate::hearthd::{Hearth, claim_request, eventually, fresh_id, pool};
use crate::measure::{Report, Series, cpu_time, millis, resident_mib};
use crate::sleep::{full, number};
use std::time::{Duration, Instant};

/// Members that run in both; the others are frozen.
const RUNNING: u32 = 10;
/// Claims in each series; `HEARTH_BENCH_DENSITY_CLAIMS`.
const CLAIMS: u32 = 100;
/// Without a reclaim for so long, none is due: the second pass of the member frozen last comes after two seconds, and
/// reclaims leave three quarters of a core to others.
const RECLAIMED: Duration = Duration::from_secs(4);
/// How long the idle daemon is looked at.
const IDLE: Duration = Duration::from_secs(20);

pub async fn section(report: &mut Report) {
    let many = number("HEARTH_BENCH_DENSITY", 0);
    if many == 0 {
        return;
    }
    let settings = [("log.level", "warn"), ("memory.swap", "zram:16GiB")];
    let hearth = Hearth::start_with(&settings).await;
    let mut members = pool("python", RUNNING, many + 20);
    members.max_parallel_refills = 4;
    members.running = Some(RUNNING);
    if let Some(template) = &mut members.template {
        template.warm_command = ["python3", "-c", "pass"].map(str::to_owned).to_vec();
    }
    hearth.set_pools(vec![members.clone()]).await;
    full(&hearth, "python", RUNNING).await;
    let few = claims(&hearth, RUNNING).await;
    members.min_warm = many;
    members.generation = 2;
    let began = Instant::now();
    hearth.set_pools(vec![members]).await;
    full(&hearth, "python", many).await;
    let rate = f64::from(many - RUNNING) / began.elapsed().as_secs_f64();
    quiet(&hearth, many).await;
    let (before, began) = (cpu_time(hearth.pid()), Instant::now());
    tokio::time::sleep(IDLE).await;
    let share = (cpu_time(hearth.pid()) - before).as_secs_f64() / began.elapsed().as_secs_f64();
    let resident = resident_mib(hearth.pid());
    let dense = claims(&hearth, many).await;
    report.rate(
        &format!("filling up to {many} members"),
        rate,
        "sandboxes/s",
    );
    let what = format!("hearthd with {many} members, resident MiB");
    report.goal(&what, resident, "≤ 60", resident <= 60.0);
    report.goal(
        "  idle, percent of a core",
        share * 1e2,
        "≤ 2",
        share <= 0.02,
    );
    report.row(&format!("claim with {RUNNING} members"), &few);
    report.row(&format!("claim with {many} members"), &dense);
    let ratio = millis(dense.at(99)) / millis(few.at(99));
    report.goal("  p99 against few", ratio, "≤ 1.3", ratio <= 1.3);
    hearth.finish().await;
}

/// Nothing is being made, frozen, reclaimed or destroyed.
async fn quiet(hearth: &Hearth, members: u32) {
    eventually("full and quiet", || async {
        let status = hearth.status("python").await;
        let settled = status.frozen >= members.saturating_sub(RUNNING);
        status.creating + status.releasing == 0 && status.warm >= members && settled
    })
    .await;
    let mut seen = (reclaims(hearth), Instant::now());
    while seen.1.elapsed() < RECLAIMED {
        tokio::time::sleep(RECLAIMED / 8).await;
        let now = reclaims(hearth);
        if now != seen.0 {
            seen = (now, Instant::now());
        }
    }
}

/// How many there were.
fn reclaims(hearth: &Hearth) -> String {
    const NAME: &str = "hearth_residency_stage_duration_seconds_count{stage=\"reclaim\"}";
    let (_, metrics) = hearth.admin_page("/metrics");
    let mut counts = metrics.lines().filter_map(|line| line.strip_prefix(NAME));
    counts.next().unwrap_or_default().to_owned()
}

async fn claims(hearth: &Hearth, members: u32) -> Series {
    let mut series = Series::default();
    let mut client = hearth.claims().await;
    for _ in 0..number("HEARTH_BENCH_DENSITY_CLAIMS", CLAIMS) {
        quiet(hearth, members).await;
        let id = fresh_id();
        let began = Instant::now();
        client.claim(claim_request(&id, "python")).await.unwrap();
        series.push(began.elapsed());
        hearth.release(&id).await;
    }
    series
}
