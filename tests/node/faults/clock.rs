//! The wall clock is stepped by a day, forward and back, while hearthd runs and while it is down.

use super::answers;
use crate::crash::assert_no_leak;
use crate::hearthd::{Hearth, claim_request, eventually, fresh_id, pool};
use hearth::api::{ClaimState, GetClaimRequest};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

const DAY: i64 = 24 * 60 * 60;
const SHORT: i64 = 8;
const LONG: i64 = 2 * 60 * 60;

/// See `tests/support/fake_wall_clock.c`.
struct FakeWallClock(tempfile::TempDir);

impl FakeWallClock {
    fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/fake_wall_clock.c");
        let built = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .arg(this.library())
            .arg(source)
            .output()
            .unwrap();
        assert!(built.status.success(), "{built:?}");
        this.step_to(0);
        this
    }

    fn library(&self) -> PathBuf {
        self.0.path().join("fake_wall_clock.so")
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("off")
    }

    fn step_to(&self, seconds: i64) {
        // The same file: it is mapped.
        let mut file = std::fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.file())
            .unwrap();
        std::io::Write::write_all(&mut file, &seconds.to_ne_bytes()).unwrap();
    }
}

async fn claim_for(hearth: &Hearth, seconds: i64) -> (String, String) {
    hearth.warm("python", 1).await;
    let mut request = claim_request(&fresh_id(), "python");
    request.ttl = Some(prost_types::Duration { seconds, nanos: 0 });
    let id = request.claim_id.clone();
    let answer = hearth.claims().await.claim(request).await.unwrap();
    (id, answer.into_inner().sandbox_id)
}

async fn is_there(hearth: &Hearth, claim: &str) -> bool {
    let request = GetClaimRequest {
        claim_id: claim.to_owned(),
    };
    match hearth.claims().await.get(request).await {
        Ok(_) => true,
        Err(status) => {
            assert_eq!(status.code(), tonic::Code::NotFound, "{status:?}");
            false
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_the_wall_clock_moves_no_expiry() {
    let wall = FakeWallClock::new();
    let settings = [
        ("LD_PRELOAD", wall.library().display().to_string()),
        ("FAKE_WALL_CLOCK", wall.file().display().to_string()),
    ];
    let settings: Vec<_> = settings.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let mut hearth = Hearth::start_with(&settings).await;
    hearth.set_pools(vec![pool("python", 1, 8)]).await;
    let (long, sandbox) = claim_for(&hearth, LONG).await;
    let began = Instant::now();
    let (short, _) = claim_for(&hearth, SHORT).await;

    // Forward: both would be over.
    wall.step_to(DAY);
    hearth.serve_one("python").await;
    let there = is_there(&hearth, &short).await;
    // On a machine that took so long it has expired by right.
    assert!(there || began.elapsed().as_secs() >= SHORT.unsigned_abs());
    let told = hearth.get(&long).await;
    assert_eq!(told.state(), ClaimState::Claimed);
    // Told by the wall clock as it stands: this is also how the test knows that hearthd sees the step.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let left = told.expires_at.unwrap().seconds - now.unwrap().as_secs().cast_signed() - DAY;
    assert!((LONG - 300..=LONG).contains(&left), "{left} s left");

    // Back: neither gains a day.
    wall.step_to(-DAY);
    eventually("the short one expires", || async {
        !is_there(&hearth, &short).await
    })
    .await;
    assert!(began.elapsed() >= Duration::from_secs(SHORT.unsigned_abs()));
    answers(&hearth, &long).await;

    // And while it is down, in both directions.
    for off in [DAY, -DAY] {
        let (short, _) = claim_for(&hearth, SHORT).await;
        hearth.kill();
        wall.step_to(off);
        hearth.restart().await;
        assert_eq!(hearth.get(&long).await.sandbox_id, sandbox);
        answers(&hearth, &long).await;
        eventually("the short one expires", || async {
            !is_there(&hearth, &short).await
        })
        .await;
    }
    assert_no_leak(&hearth).await;
    hearth.finish().await;
}
