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
    eventually("others are made again", || async {
        match cold(&hearth, "scarce").await {
            Ok(claim) => {
                hearth.release(&claim).await;
                true
            }
            Err(_) => false,
        }
    })
    .await;

    fake.hangs_in("checkpoint");
    let refused = hibernate(&hearth, &worker, Tier::Disk).await.unwrap_err();
    assert_eq!(reason(&refused), "HIBERNATE_FAILED", "{refused:?}");
    assert_eq!(hearth.get(&worker).await.state(), ClaimState::Claimed);
    answers(&hearth, &worker).await;
    fake.works();
    hibernate(&hearth, &worker, Tier::Disk).await.unwrap();

    // A runsc that hangs says nothing of the image: it is kept.
    fake.hangs_in("restore");
    let (refused, ()) = tokio::join!(resume(&hearth, &worker), answers(&hearth, &beside));
    let refused = refused.unwrap_err();
    assert_eq!(reason(&refused), "RESUME_FAILED", "{refused:?}");
    assert_eq!(hearth.get(&worker).await.state(), ClaimState::Hibernated);
    fake.works();
    resume(&hearth, &worker).await.unwrap();
    let kept = hearth.run(&worker, &["cat", "/tmp/it"]).await;
    assert_eq!(kept, (0, "kept\n".to_owned()));

    // Destroyed all the same, while it hangs.
    let sandbox = hearth.get(&worker).await.sandbox_id;
    fake.hangs_in("delete");
    hearth.release(&worker).await;
    is_gone(&hearth, &sandbox).await;
    answers(&hearth, &beside).await;
    fake.works();
    assert_no_leak(&hearth).await;
    hearth.finish().await;
}
