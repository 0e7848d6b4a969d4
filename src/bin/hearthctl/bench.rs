//! `bench`: claims and releases through the API, timed here. A quick look; `make bench` measures properly.
//!
//! Owns its claims: each is released, also when another one fails.

use crate::App;
use crate::cli::BenchArgs;
use crate::failure::{Exit, Failure};
use crate::link::{CALL_DEADLINE, Link};
use crate::output::{self, Format};
use futures::StreamExt;
use hearth::api::run_code_response::Response as Told;
use hearth::api::{ClaimRequest, CodeStatus, Holder, OnEmpty, ReleaseRequest, RunCodeRequest};
use indicatif::ProgressBar;
use std::time::{Duration, Instant};

/// One claim: how long, and where it came from.
struct Sample {
    claim: Duration,
    release: Duration,
    in_hearthd: Option<f64>,
    source: String,
    /// Each run of the code, to its first answer.
    runs: Vec<f64>,
}

/// Runs of the code in each claim, in a row.
const RUNS: usize = 20;

/// `bench`
pub async fn run(app: &App, args: BenchArgs) -> Result<(), Failure> {
    let link = app.link().await?;
    let epoch = link.epoch().await?;
    let bar = ProgressBar::new(u64::from(args.count));
    let began = Instant::now();
    let (link, progress, args) = (&link, &bar, &args);
    let results: Vec<Result<Sample, Failure>> = futures::stream::iter(0..args.count)
        .map(|_| async move {
            let sample = once(link, epoch, args).await;
            progress.inc(1);
            sample
        })
        .buffer_unordered(usize::try_from(args.concurrency).unwrap_or(1))
        .collect()
        .await;
    let elapsed = began.elapsed();
    bar.finish_and_clear();
    let mut samples = Vec::new();
    let mut failed = Vec::new();
    for result in results {
        match result {
            Ok(sample) => samples.push(sample),
            Err(failure) => failed.push(failure),
        }
    }
    if samples.is_empty() {
        let none = || Failure::new(Exit::Refused, "no claim was made");
        return Err(failed.into_iter().next().unwrap_or_else(none));
    }
    report(app, &samples, failed.len(), elapsed)?;
    match failed.into_iter().next() {
        None => Ok(()),
        Some(first) => Err(first.hint("that is the first failure of this run")),
    }
}

async fn once(link: &Link, epoch: u64, args: &BenchArgs) -> Result<Sample, Failure> {
    let claim_id = uuid::Uuid::new_v4().to_string();
    let request = ClaimRequest {
        claim_id: claim_id.clone(),
        pool: args.pool.clone(),
        holder: Some(Holder {
            namespace: "hearthctl".into(),
            name: "bench".into(),
            uid: String::new(),
        }),
        epoch,
        // Should we die in the middle, nothing stays for long.
        ttl: output::to_proto(Duration::from_secs(600)),
        personalization: None,
        on_empty: OnEmpty::Wait.into(),
        wait_timeout: output::to_proto(args.wait),
        ..ClaimRequest::default()
    };
    let began = Instant::now();
    let answer = link
        .claims()
        .claim(link.call_within(request, args.wait + CALL_DEADLINE))
        .await;
    let claim = began.elapsed();
    let ran = match (&answer, &args.code) {
        (Ok(claimed), Some(code)) => {
            runs(link, &claim_id, &claimed.get_ref().access_token, code).await
        }
        _ => Ok(Vec::new()),
    };
    let began = Instant::now();
    let request = link.call(ReleaseRequest { claim_id, epoch });
    let released = link.claims().release(request).await;
    let answer = answer?.into_inner();
    released?;
    let release = began.elapsed();
    Ok(Sample {
        claim,
        release,
        runs: ran?,
        in_hearthd: answer
            .timings
            .as_ref()
            .and_then(|timings| output::duration_seconds(timings.total.as_ref())),
        source: crate::claims::source_word(answer.source()),
    })
}

/// One after the other, each to its end.
async fn runs(link: &Link, claim_id: &str, token: &str, code: &str) -> Result<Vec<f64>, Failure> {
    let inside = link.holding(token)?;
    let mut took = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let request = inside.call(RunCodeRequest {
            claim_id: claim_id.to_owned(),
            code: code.to_owned(),
            ..RunCodeRequest::default()
        });
        let began = Instant::now();
        let mut answers = inside.sandboxes().run_code(request).await?.into_inner();
        let mut first = None;
        while let Some(answer) = answers.message().await? {
            match answer.response {
                Some(Told::Begun(_)) => {}
                // How quickly nothing came of it is no figure.
                Some(Told::Ended(ended)) if ended.status() != CodeStatus::Ok => {
                    let status = ended.status().as_str_name();
                    let hint = "see what it says with `hearthctl run`";
                    let failed = Failure::new(Exit::Refused, "the code does not run to its end");
                    return Err(failed.detail("status", status).hint(hint));
                }
                _ => drop(first.get_or_insert_with(|| began.elapsed())),
            }
        }
        took.extend(first.map(|time| time.as_secs_f64()));
    }
    Ok(took)
}

/// The value that this share of the samples does not exceed (nearest rank); samples sorted.
pub fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

fn report(app: &App, samples: &[Sample], failed: usize, elapsed: Duration) -> Result<(), Failure> {
    let sorted = |values: Vec<f64>| {
        let mut values = values;
        values.sort_by(f64::total_cmp);
        values
    };
    let series = [
        (
            "claim",
            sorted(samples.iter().map(|s| s.claim.as_secs_f64()).collect()),
        ),
        (
            "in hearthd",
            sorted(samples.iter().filter_map(|s| s.in_hearthd).collect()),
        ),
        (
            "first code",
            sorted(
                samples
                    .iter()
                    .flat_map(|s| s.runs.first().copied())
                    .collect(),
            ),
        ),
        (
            "code again",
            sorted(
                samples
                    .iter()
                    .flat_map(|s| s.runs.iter().skip(1).copied())
                    .collect(),
            ),
        ),
        (
            "release",
            sorted(samples.iter().map(|s| s.release.as_secs_f64()).collect()),
        ),
    ];
    let rate = samples.len() as f64 / elapsed.as_secs_f64();
    let mut sources = std::collections::BTreeMap::new();
    for sample in samples {
        *sources.entry(sample.source.as_str()).or_insert(0_u32) += 1;
    }
    let figures = |values: &[f64]| [50, 90, 99, 100].map(|percent| percentile(values, percent));
    if matches!(app.format(), Format::Json | Format::Yaml) {
        let mut value = serde_json::json!({
            "n": samples.len(), "failed": failed, "elapsed_seconds": elapsed.as_secs_f64(),
            "claims_per_second": rate, "sources": sources,
        });
        for (name, values) in series.iter().filter(|(_, values)| !values.is_empty()) {
            let [p50, p90, p99, max] = figures(values);
            value[format!("{}_seconds", name.replace(' ', "_"))] =
                serde_json::json!({ "p50": p50, "p90": p90, "p99": p99, "max": max });
        }
        return output::print(&output::document(app.format(), &value)?);
    }
    let rows = series
        .iter()
        .filter(|(_, values)| !values.is_empty())
        .map(|(name, values)| {
            let mut row = vec![(*name).into()];
            row.extend(figures(values).map(|figure| output::seconds(figure).into()));
            row
        });
    let headers = ["", ">P50", ">P90", ">P99", ">MAX"];
    let mut text = output::table(app.style, &headers, rows.collect());
    let sources: Vec<_> = sources
        .iter()
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    text.push_str(&format!(
        "\n{} claims ({}) and releases in {}: {rate:.0}/s{}\n",
        samples.len(),
        sources.join(", "),
        output::seconds(elapsed.as_secs_f64()),
        if failed > 0 {
            format!("; {failed} failed")
        } else {
            String::new()
        },
    ));
    output::print(&text)
}
