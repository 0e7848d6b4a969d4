//! Golden images on a real node: members that are clones, what two clones do not share, clones that fail.

use crate::hearthd::{Hearth, claim_request, eventually, fresh_id, pool};
use hearth::api::run_code_response::Response as Told;
use hearth::api::{HibernateRequest, OnEmpty, Pool, RunCodeRequest, Source, Tier};
use hearth::cgroup::CgroupTree;
use std::collections::BTreeSet;

/// And leaves a machine id, as images of whole systems do.
const WARM: &str = "import decimal, json, time; time.sleep(1)\nopen('/etc/machine-id', 'w').write('0' * 32 + '\\n')";

fn members(min_warm: u32) -> Pool {
    let mut python = pool("python", min_warm, 12);
    python.max_parallel_refills = 1;
    let template = python.template.as_mut().unwrap();
    template.interpreter = "python".into();
    // Generators that have drawn before the image is taken: what they draw next is in it.
    let preload = "import random, ssl; random.random(); ssl.RAND_bytes(16)";
    template.env = [("HEARTH_PRELOAD".to_owned(), preload.to_owned())].into();
    // What takes its time when a member is made: a clone has it done.
    let warm = ["python3", "-c", WARM];
    template.warm_command = warm.map(str::to_owned).to_vec();
    python
}

async fn start() -> Hearth {
    Hearth::start_with(&[("hibernation.golden_images", "auto")]).await
}

fn figure(hearth: &Hearth, name: &str) -> u64 {
    let (_, metrics) = hearth.admin_page("/metrics");
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("{name} is not in\n{metrics}"))
        .parse()
        .unwrap()
}

/// What the resident interpreter prints.
async fn code(hearth: &Hearth, claim: &str, code: &str) -> String {
    let request = RunCodeRequest {
        claim_id: claim.into(),
        code: code.into(),
        ..RunCodeRequest::default()
    };
    let answer = hearth.sandboxes().await.run_code(request).await.unwrap();
    let mut stream = answer.into_inner();
    let mut text = String::new();
    while let Some(answer) = stream.message().await.unwrap() {
        if let Some(Told::Stdout(data)) = answer.response {
            text.push_str(&String::from_utf8_lossy(&data));
        }
    }
    text.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_are_ready_and_share_no_randomness_and_no_name() {
    const DRAWN: &str = "import os,random,uuid,secrets,ssl\nprint(os.urandom(16).hex(), random.random(), uuid.uuid4(), secrets.token_hex(8), ssl.RAND_bytes(16).hex())";
    let hearth = start().await;
    hearth.set_pools(vec![members(4)]).await;
    hearth.warm("python", 4).await;
    assert_eq!(figure(&hearth, "hearth_golden_images"), 1);
    let clones = figure(&hearth, "hearth_clone_duration_seconds_count");
    assert!(clones >= 1, "nobody was cloned");
    assert_eq!(figure(&hearth, "hearth_clone_failures_total"), 0);
    println!("{clones} clones of 4 members");

    let (mut drawn, mut names) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..4 {
        let (claim, answer) = hearth.claim("python").await;
        let resident = code(&hearth, &claim, DRAWN).await;
        let (status, fresh) = hearth.run(&claim, &["python3", "-c", DRAWN]).await;
        assert_eq!(status, 0);
        let words = resident.split_whitespace().chain(fresh.split_whitespace());
        for word in words {
            assert!(drawn.insert(word.to_owned()), "{word} was drawn twice");
        }
        let (_, name) = hearth.run(&claim, &["busybox", "hostname"]).await;
        assert_eq!(name.trim(), answer.sandbox_id);
        assert!(names.insert(name));
        let (_, machine) = hearth.run(&claim, &["cat", "/etc/machine-id"]).await;
        let made = machine.len() == 33 && machine.trim().chars().all(|c| c.is_ascii_hexdigit());
        assert!(made && !machine.starts_with("0000000000"), "{machine}");
        assert!(drawn.insert(machine), "two machines have the same id");
        let (_, now) = hearth.run(&claim, &["busybox", "date", "+%s"]).await;
        let here = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let apart = here
            .unwrap()
            .as_secs()
            .abs_diff(now.trim().parse().unwrap());
        assert!(apart <= 2, "its clock is {apart} s apart");
    }
    assert_eq!(drawn.len(), 4 * (2 * 5 + 1));
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_pool_serves_a_clone_and_one_that_fails_is_made_anew() {
    let hearth = start().await;
    hearth.set_pools(vec![members(1)]).await;
    hearth.warm("python", 1).await;
    let cold = |id: &str| {
        let mut request = claim_request(id, "python");
        request.on_empty = OnEmpty::Cold.into();
        request
    };
    let mut sources = Vec::new();
    for _ in 0..2 {
        let request = cold(&fresh_id());
        let answer = hearth.claims().await.claim(request).await.unwrap();
        sources.push(answer.into_inner().source());
    }
    assert_eq!(sources, [Source::Warm, Source::Cloned]);

    // The image is damaged: as with any restore that fails, the claim is served all the same.
    let staging = std::fs::read_dir(hearth.path("run/images")).unwrap();
    let golden = staging
        .map(|entry| entry.unwrap().path())
        .find(|path| path.display().to_string().contains("golden-"))
        .expect("a golden image");
    std::fs::write(golden.join("checkpoint.img"), "junk").unwrap();
    eventually("a refill met it, or is over", || async {
        let status = hearth.status("python").await;
        status.creating == 0 && status.warm == 1
    })
    .await;
    for _ in 0..2 {
        let request = cold(&fresh_id());
        let answer = hearth.claims().await.claim(request).await.unwrap();
        sources.push(answer.into_inner().source());
    }
    assert!(figure(&hearth, "hearth_clone_failures_total") >= 1);
    assert!(sources.contains(&Source::Cold), "{sources:?}");
    hearth.finish().await;
}

/// Starts a python that holds so much memory.
async fn hold(hearth: &Hearth, claim: &str, mib: u64) {
    let script = format!(
        "import os,time\npiece=os.urandom(1<<20)\nballast=[piece[1:] for _ in range({mib})]\nopen('/tmp/held','w').close()\ntime.sleep(100000)"
    );
    hearth
        .start_detached(claim, &["python3", "-c", &script])
        .await;
    eventually("it holds its memory", || async {
        hearth.run(claim, &["test", "-e", "/tmp/held"]).await.0 == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_golden_image_makes_way_for_a_sandbox_that_goes_to_the_disk_and_is_taken_anew() {
    const STAGING_MIB: u64 = 224;
    let staging = (STAGING_MIB << 20).to_string();
    let settings = [
        ("hibernation.golden_images", "auto"),
        ("hibernation.staging_bytes", &staging),
    ];
    let hearth = Hearth::start_with(&settings).await;
    hearth.set_pools(vec![members(1)]).await;
    hearth.warm("python", 1).await;
    assert_eq!(figure(&hearth, "hearth_golden_images"), 1);
    // The image's pages are charged to the first one: its own image would seem bigger than it is.
    let (_original, _) = hearth.claim("python").await;
    hearth.warm("python", 1).await;
    let (claim, answer) = hearth.claim("python").await;
    hearth.warm("python", 1).await;
    // So much that both images have no room at once: half a golden image less than all.
    let tree = CgroupTree::detect("/sys/fs/cgroup").unwrap();
    let cgroup = tree.find(&hearth.cgroup_parent(), &answer.sandbox_id);
    let mib = cgroup.unwrap().unwrap().usage().unwrap().memory_bytes >> 20;
    hold(&hearth, &claim, STAGING_MIB - 40 - mib).await;
    let request = HibernateRequest {
        claim_id: claim.clone(),
        epoch: 1,
        tier: Tier::Disk.into(),
        ..HibernateRequest::default()
    };
    hearth.claims().await.hibernate(request).await.unwrap();
    let told = hearth.log_text();
    assert!(told.contains("makes way"), "there was room for both");
    // So it does when the sandbox comes back, if it was taken anew meanwhile; the pool goes on either way.
    assert_eq!(hearth.run(&claim, &["test", "-e", "/tmp/held"]).await.0, 0);
    hearth.release(&claim).await;
    hearth.claim("python").await;
    hearth.warm("python", 1).await;
    eventually("it is taken anew", || async {
        let taken = hearth.log_text().matches("golden image taken").count();
        if taken < 2 {
            hearth.serve_one("python").await;
        }
        taken >= 2
    })
    .await;
    assert_eq!(figure(&hearth, "hearth_clone_failures_total"), 0);
    hearth.finish().await;
}
