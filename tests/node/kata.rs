//! A pool of one of Kata's handlers on a real hearthd and a real containerd, with a **recording shim** in the place of Kata's
//! (see tests/kata.rs): what is proven is hearth's side, from the pool to the claim, with a real hearth-init behind the FIFOs
//! and gVisor where the virtual machine would be.

use crate::hearthd::{Hearth, eventually, pool, tool};
use hearth::api::{
    HibernateReason, HibernateRequest, InfoRequest, Pool, Resources, SetPoolsRequest, Tier,
};
use serde_json::json;
use std::path::Path;
use tonic::Code;
use tonic_types::StatusExt;

const HANDLER: &str = "kata-recording";

fn machines(min_warm: u32) -> Pool {
    let mut machines = pool("python", min_warm, 8);
    machines.template.as_mut().unwrap().runtime_handler = HANDLER.into();
    machines
}

/// What the recording shim reads in the place of Kata's configuration.
fn configure(hearth: &Hearth, place: &Path) {
    std::fs::create_dir_all(place.join("shared")).unwrap();
    let text = json!({
        "runtime": env!("CARGO_BIN_EXE_hearth-runsc"), "root": hearth.path("run/runsc"), "run": place.join("run"),
        "shared": place.join("shared"), "calls": place.join("calls"),
    });
    std::fs::write(place.join("configuration.toml"), text.to_string()).unwrap();
}

/// Where the recording shim has what Kata has in /run, which is where hearthd looks: what is left of a machine whose creation
/// was cut off stays here, and is taken down at the end, however the test ends.
struct Place(tempfile::TempDir);

impl Drop for Place {
    fn drop(&mut self) {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for point in points.filter(|it| Path::new(it).starts_with(self.0.path())) {
            let _gone = nix::mount::umount(point);
        }
    }
}

/// The fields that a set is refused for.
async fn refused(hearth: &Hearth, pool: Pool) -> Vec<(String, String)> {
    let request = SetPoolsRequest {
        generation: 99,
        epoch: 1,
        pools: vec![pool],
    };
    let status = hearth.pools().await.set_pools(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let details = status.get_error_details();
    let bad = details.bad_request().unwrap().field_violations.iter();
    bad.map(|it| (it.field.clone(), it.description.clone()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_of_machines_is_warm_is_claimed_outlives_hearthd_and_never_sleeps() {
    let place = Place(tempfile::tempdir().unwrap());
    let shim = tool("containerd-shim-kata-recording-v2");
    let config = place.0.path().join("configuration.toml");
    let kata = format!(
        "{HANDLER}={}:{},kata-absent",
        shim.display(),
        config.display()
    );
    let mut hearth = Hearth::start_with(&[
        ("runtime.kata", &kata),
        ("hibernation.golden_images", "auto"),
    ])
    .await;
    configure(&hearth, place.0.path());

    let info = hearth.node().await.info(InfoRequest {}).await.unwrap();
    let handlers = info.into_inner().runtime_handlers;
    let names: Vec<_> = handlers.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["gvisor", "kata-absent", HANDLER]);
    let [gvisor, absent, ours] = &handlers[..] else {
        panic!()
    };
    assert!(gvisor.freeze && gvisor.disk_bound && gvisor.unservable.is_empty());
    assert!(absent.unservable.contains("kata-absent"), "{absent:?}");
    assert!(!ours.freeze && !ours.checkpoint && !ours.disk_bound && ours.unservable.is_empty());
    assert_eq!(
        (ours.overhead_memory_bytes, ours.overhead_cpu_millis),
        (130 << 20, 250)
    );

    // What it can't do is refused by field.
    let mut greedy = machines(2);
    greedy.running = Some(0);
    let template = greedy.template.as_mut().unwrap();
    template.idle_after = Some(prost_types::Duration {
        seconds: 60,
        nanos: 0,
    });
    template.resources = Some(Resources {
        disk_bytes: 1 << 30,
        ..Resources::default()
    });
    let fields: Vec<_> = refused(&hearth, greedy).await;
    let fields: Vec<_> = fields.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "pools[0].running",
            "pools[0].template.idle_after",
            "pools[0].template.resources.disk_bytes"
        ]
    );
    let mut nowhere = machines(1);
    nowhere.template.as_mut().unwrap().runtime_handler = "kata-absent".into();
    let found = refused(&hearth, nowhere).await;
    assert_eq!(found[0].0, "pools[0].template.runtime_handler");
    assert!(found[0].1.contains("finds no shim"), "{found:?}");

    hearth.set_pools(vec![machines(2)]).await;
    hearth.warm("python", 2).await;
    let (claim, _) = hearth.claim("python").await;
    let (code, said) = hearth.run(&claim, &["python3", "-c", "print(6 * 7)"]).await;
    assert_eq!((code, said.trim()), (0, "42"));
    for tier in [Tier::Unspecified, Tier::Memory, Tier::Disk] {
        let request = HibernateRequest {
            claim_id: claim.clone(),
            epoch: 1,
            tier: tier.into(),
            reason: HibernateReason::WaitingOnModel.into(),
        };
        let refused = hearth.claims().await.hibernate(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
        assert!(refused.message().contains(HANDLER), "{refused}");
    }

    hearth.kill();
    hearth.restart().await;
    let (code, _) = hearth.run(&claim, &["true"]).await;
    assert_eq!(code, 0, "the claim goes on");
    hearth.warm("python", 2).await;
    hearth.release(&claim).await;
    hearth.set_pools(vec![]).await;
    eventually("all are gone", || async {
        hearth.state()["sandboxes"].as_array().unwrap().is_empty()
    })
    .await;
    let calls = std::fs::read_to_string(place.0.path().join("calls")).unwrap();
    let said = |word: &str| calls.matches(&format!("\"call\":\"{word}\"")).count();
    assert!(said("create") >= 3, "{calls}");
    assert_eq!(said("create"), said("delete"));
    for never in ["pause", "checkpoint", "exec"] {
        assert_eq!(said(never), 0, "{never}");
    }
    hearth.finish().await;
}
