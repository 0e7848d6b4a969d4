//! Hibernate and Resume again and again, in both tiers, while something goes on inside: nobody fails, nothing is left.
//! `HEARTH_CHURN_SANDBOXES` (6) and `HEARTH_CHURN_ROUNDS` (60, of all together) say how much; `make churn` does 1,000 over 50.

use crate::hearthd::{Census, Hearth, eventually, pool};
use crate::vitals::Vitals;
use hearth::api::{HibernateRequest, ResumeRequest, Tier};
use std::collections::BTreeSet;

/// What hearthd may have open more than before: connections of this test's own that are still ending.
const FDS: usize = 24;

fn number(name: &str, otherwise: u32) -> u32 {
    let text = std::env::var(name).ok();
    text.map_or(otherwise, |text| text.parse().expect("a number"))
}

/// Counts, and starts processes all the time: a sleep in the middle of that is what hurts. All `count` together start as many
/// a second, however many they are: more would be a test of how slow the node gets.
async fn busy(hearth: &Hearth, claim: &str, count: u32) {
    let script = "import os,time\nballast=bytearray(os.urandom(1<<20)*4)\nn=0\nwhile True:\n  n+=1\n  with open('/tmp/m','w') as f: f.write(str(n))\n  os.replace('/tmp/m','/tmp/n')\n  time.sleep(.1)";
    hearth
        .start_detached(claim, &["python3", "-c", script])
        .await;
    let pause = f64::from(count) / 60.0;
    let forks = format!("while :; do sleep {pause:.2}; done");
    hearth.start_detached(claim, &["sh", "-c", &forks]).await;
    eventually("it counts", || async { counted(hearth, claim).await > 2 }).await;
}

async fn counted(hearth: &Hearth, claim: &str) -> u64 {
    let (_, text) = hearth.run(claim, &["cat", "/tmp/n"]).await;
    text.parse().unwrap_or(0)
}

async fn sleep_and_wake(hearth: &Hearth, claim: &str, tier: Tier) {
    let request = HibernateRequest {
        claim_id: claim.to_owned(),
        epoch: 1,
        tier: tier.into(),
        ..HibernateRequest::default()
    };
    hearth.claims().await.hibernate(request).await.unwrap();
    let request = ResumeRequest {
        claim_id: claim.to_owned(),
        epoch: 1,
    };
    hearth.claims().await.resume(request).await.unwrap();
}

fn files(hearth: &Hearth, dir: &str) -> usize {
    std::fs::read_dir(hearth.path(dir)).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn sleeping_and_waking_over_and_over_fails_nobody_and_leaves_nothing() {
    let count = number("HEARTH_CHURN_SANDBOXES", 6);
    let rounds = number("HEARTH_CHURN_ROUNDS", 60).div_ceil(count);
    let hearth = Hearth::start_with(&[("memory.swap", "zram:4GiB")]).await;
    let mut members = pool("python", 1, count + 1);
    members.max_parallel_refills = 2;
    hearth.set_pools(vec![members]).await;
    let (mut claims, mut sandboxes) = (Vec::new(), BTreeSet::new());
    for _ in 0..count {
        hearth.warm("python", 1).await;
        let (claim, answer) = hearth.claim("python").await;
        busy(&hearth, &claim, count).await;
        claims.push(claim);
        sandboxes.insert(answer.sandbox_id);
    }
    hearth.warm("python", 1).await;
    let before = hearth.census();
    let vitals = Vitals::of(hearth.pid());
    let open_before = vitals.descriptors();
    let began = std::time::Instant::now();
    for round in 0..rounds {
        let tier = if round % 3 == 2 {
            Tier::Memory
        } else {
            Tier::Disk
        };
        let all = claims
            .iter()
            .map(|claim| sleep_and_wake(&hearth, claim, tier));
        futures::future::join_all(all).await;
        // It is as it was, not anew.
        for claim in &claims {
            let view = hearth.get(claim).await;
            assert!(sandboxes.contains(&view.sandbox_id), "{view:?}");
            let so_far = counted(&hearth, claim).await;
            assert!(so_far > 2, "round {round}: {so_far}");
        }
    }
    println!(
        "{} rounds over {count} sandboxes in {:?}",
        rounds * count,
        began.elapsed()
    );
    for claim in &claims {
        let so_far = counted(&hearth, claim).await;
        eventually("it counts on", || async {
            counted(&hearth, claim).await > so_far
        })
        .await;
    }
    eventually("no image is left, in plain or sealed", || async {
        files(&hearth, "data/hibernated") + files(&hearth, "run/images") == 0
    })
    .await;
    eventually("what there was, and nothing else", || async {
        hearth.census() == before
    })
    .await;
    eventually("no descriptor is left open", || async {
        vitals.descriptors() <= open_before + FDS
    })
    .await;
    let (_, metrics) = hearth.admin_page("/metrics");
    for line in metrics.lines() {
        let failed = line.strip_prefix("hearth_residency_failures_total{");
        assert!(failed.is_none_or(|it| it.ends_with(" 0")), "{line}");
    }
    for claim in claims {
        hearth.release(&claim).await;
    }
    eventually("only the member is left", || async {
        let census: Census = hearth.census();
        census.containers.is_disjoint(&sandboxes) && census.cgroups.is_disjoint(&sandboxes)
    })
    .await;
    hearth.finish().await;
}
