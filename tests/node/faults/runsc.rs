//! A runsc that hangs, in each subcommand that hearthd's work leads to. What hearth-runsc makes of it is in
//! `tests/runsc_wrapper.rs`, for every subcommand.

use super::{answers, cold, hibernate, is_gone, resume};
use crate::crash::assert_no_leak;
use crate::hearthd::{Hearth, eventually, pool, tool};
use crate::hostile::reason;
use hearth::api::{ClaimState, Tier};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What hearth-runsc gives each subcommand here.
const DEADLINE_MS: u64 = 5_000;

/// Subcommands that hearth's work does not lead to.
const OTHERS: &[&str] = &[
    "exec", "ps", "state", "events", "pause", "resume", "update", "list", "features",
];

/// A runsc that hangs in the subcommand named in the file `hang`, else the real one: reality hangs too rarely.
struct FakeHungRunsc(tempfile::TempDir);

impl FakeHungRunsc {
    fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        let script = format!(
            "#!/bin/sh\nhang=$(cat {hang} 2>/dev/null)\n\
             for word; do [ \"$word\" = \"$hang\" ] && exec sleep 1000; done\nexec {runsc} \"$@\"\n",
            hang = this.hang().display(),
            runsc = tool("runsc").display(),
        );
        std::fs::write(this.program(), script).unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(this.program(), mode).unwrap();
        this
    }

    fn program(&self) -> PathBuf {
        self.0.path().join("fake-hung-runsc")
    }

    fn hang(&self) -> PathBuf {
        self.0.path().join("hang")
    }

    fn hangs_in(&self, subcommand: &str) {
        std::fs::write(self.hang(), subcommand).unwrap();
    }

    /// The same words in a file that was changed.
    fn is_another(&self) {
        let file = std::fs::File::options().append(true).open(self.program());
        file.unwrap()
            .set_modified(std::time::SystemTime::now())
            .unwrap();
    }

    fn works(&self) {
        std::fs::remove_file(self.hang()).unwrap();
    }
}

/// The same deadlines as in production would make this test one of minutes.
fn shorten_deadlines(file: &Path) {
    let text = std::fs::read(file).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    for (_, limit) in config["deadlines"].as_object_mut().unwrap() {
        *limit = (*limit).as_u64().unwrap().min(DEADLINE_MS).into();
    }
    std::fs::write(file, config.to_string()).unwrap();
}

async fn others_are_made(hearth: &Hearth, pool: &str) {
    eventually("others are made again", || async {
        match cold(hearth, pool).await {
            Ok(claim) => {
                hearth.release(&claim).await;
                true
            }
            Err(_) => false,
        }
    })
    .await;
}

/// A life: made, used, asleep in both tiers, destroyed.
async fn a_whole_life(hearth: &Hearth, what: &str) {
    let claim = cold(hearth, "python").await;
    let claim = claim.unwrap_or_else(|refused| panic!("{what}: {refused:?}"));
    answers(hearth, &claim).await;
    for tier in [Tier::Memory, Tier::Disk] {
        let asleep = hibernate(hearth, &claim, tier).await;
        asleep.unwrap_or_else(|refused| panic!("{what}: {refused:?}"));
        resume(hearth, &claim).await.unwrap();
        answers(hearth, &claim).await;
    }
    let sandbox = hearth.get(&claim).await.sandbox_id;
    hearth.release(&claim).await;
    is_gone(hearth, &sandbox).await;
}

/// These are not in hearth's way: `ps` and `state` belong to containerd, which asks when it starts.
#[tokio::test(flavor = "multi_thread")]
async fn a_runsc_that_hangs_where_hearth_does_not_ask_it_costs_nothing() {
    let fake = FakeHungRunsc::new();
    let program = fake.program();
    let settings = [("runtime.runsc", program.to_str().unwrap())];
    let hearth = Hearth::start_with(&settings).await;
    shorten_deadlines(&hearth.path("run/runsc/hearth-runsc.json"));
    hearth.set_pools(vec![pool("python", 0, 4)]).await;
    let beside = cold(&hearth, "python").await.unwrap();
    for subcommand in OTHERS {
        fake.hangs_in(subcommand);
        a_whole_life(&hearth, subcommand).await;
        if ["ps", "state"].contains(subcommand) {
            hearth.kill_containerd();
            others_are_made(&hearth, "python").await;
        }
        answers(&hearth, &beside).await;
        fake.works();
    }
    assert_no_leak(&hearth).await;
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_runsc_costs_the_call_that_needed_it() {
    let fake = FakeHungRunsc::new();
    let program = fake.program();
    let settings = [("runtime.runsc", program.to_str().unwrap())];
    let hearth = Hearth::start_with(&settings).await;
    shorten_deadlines(&hearth.path("run/runsc/hearth-runsc.json"));
    // Nothing is made but what is asked for.
    let pools = [("python", 4), ("scarce", 4)];
    hearth
        .set_pools(pools.map(|(name, most)| pool(name, 0, most)).to_vec())
        .await;
    let worker = cold(&hearth, "python").await.unwrap();
    let beside = cold(&hearth, "python").await.unwrap();
    hearth
        .run(&worker, &["sh", "-c", "echo kept > /tmp/it"])
        .await;

    for subcommand in ["create", "start"] {
        fake.hangs_in(subcommand);
        let (refused, ()) = tokio::join!(cold(&hearth, "scarce"), answers(&hearth, &beside));
        let refused = refused.unwrap_err();
        assert_eq!(
            reason(&refused),
            "CREATE_FAILED",
            "{subcommand}: {refused:?}"
        );
        let told = refused.message();
        assert!(told.contains("did not end within"), "{subcommand}: {told}");
        fake.works();
    }
    others_are_made(&hearth, "scarce").await;

    // Its version is asked for when the file is another than it was.
    for subcommand in ["--version", "checkpoint"] {
        fake.is_another();
        fake.hangs_in(subcommand);
        let refused = hibernate(&hearth, &worker, Tier::Disk).await.unwrap_err();
        assert_eq!(reason(&refused), "HIBERNATE_FAILED", "{refused:?}");
        assert_eq!(hearth.get(&worker).await.state(), ClaimState::Claimed);
        answers(&hearth, &worker).await;
        fake.works();
    }
    hibernate(&hearth, &worker, Tier::Disk).await.unwrap();

    // A runsc that hangs says nothing of the image: it is kept.
    for subcommand in ["--version", "restore"] {
        fake.is_another();
        fake.hangs_in(subcommand);
        let (refused, ()) = tokio::join!(resume(&hearth, &worker), answers(&hearth, &beside));
        let refused = refused.unwrap_err();
        assert_eq!(
            reason(&refused),
            "RESUME_FAILED",
            "{subcommand}: {refused:?}"
        );
        assert_eq!(hearth.get(&worker).await.state(), ClaimState::Hibernated);
        fake.works();
    }
    resume(&hearth, &worker).await.unwrap();
    let kept = hearth.run(&worker, &["cat", "/tmp/it"]).await;
    assert_eq!(kept, (0, "kept\n".to_owned()));

    // Destroyed all the same, while it hangs.
    for subcommand in ["kill", "delete"] {
        let spent = cold(&hearth, "python").await.unwrap();
        let sandbox = hearth.get(&spent).await.sandbox_id;
        fake.hangs_in(subcommand);
        hearth.release(&spent).await;
        is_gone(&hearth, &sandbox).await;
        answers(&hearth, &beside).await;
        fake.works();
    }
    assert_no_leak(&hearth).await;
    hearth.finish().await;
}
