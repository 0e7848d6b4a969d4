//! hearthd is killed with -9 while claims are under way, and so is containerd. What a caller was told stands, nothing is
//! handed out twice, no sandbox restarts, nothing leaks. Real containerd, real gVisor.
use crate::hearthd::{
    Census, Hearth, claim_request, eventually, fresh_id, patience, patient_request, pool, reach,
};
use hearth::api::claims_client::ClaimsClient;
use hearth::api::{ClaimState, GetClaimRequest, ListClaimsRequest, ReleaseRequest};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What callers were told.
#[derive(Default)]
struct Told {
    /// claim → sandbox, acknowledged.
    claimed: BTreeMap<String, String>,
    /// Claims whose release was acknowledged.
    released: BTreeSet<String>,
    /// Every sandbox that was ever told, with its claim.
    sandboxes: BTreeMap<String, String>,
}

/// A caller that goes on over every death of hearthd: claims, remembers, now and then releases.
async fn caller(socket: String, told: Arc<Mutex<Told>>, stop: Arc<AtomicBool>, keep: usize) {
    let connect = || async { ClaimsClient::new(reach(&socket, patience() * 2).await) };
    let mut client = connect().await;
    let mut kept = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let id = fresh_id();
        let request = claim_request_as_told(&id);
        // The same id until it is answered: rule 1.
        let sandbox = loop {
            match client.claim(request.clone()).await {
                Ok(answer) => break Some(answer.into_inner().sandbox_id),
                Err(_) if stop.load(Ordering::Relaxed) => break None,
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    client = connect().await;
                }
            }
        };
        let Some(sandbox) = sandbox else { return };
        {
            let mut told = told.lock().unwrap();
            let before = told.sandboxes.insert(sandbox.clone(), id.clone());
            assert_eq!(before, None, "sandbox {sandbox} was handed out twice");
            told.claimed.insert(id.clone(), sandbox);
        }
        kept.push(id);
        while kept.len() > keep {
            let id = kept.remove(0);
            let request = ReleaseRequest {
                claim_id: id.clone(),
                epoch: 1,
            };
            // From here on the claim may be gone whether or not the answer comes.
            told.lock().unwrap().claimed.remove(&id);
            while client.release(request.clone()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
                client = connect().await;
            }
            told.lock().unwrap().released.insert(id);
        }
    }
}

/// Everything that was told must stand, and the outside must hold what hearthd says.
async fn assert_promises(hearth: &Hearth, told: &Told) {
    let mut client = hearth.claims().await;
    for (claim, sandbox) in &told.claimed {
        let answer = client
            .get(GetClaimRequest {
                claim_id: claim.clone(),
            })
            .await;
        let got = answer.unwrap().into_inner().claim.unwrap();
        assert_eq!(got.state(), ClaimState::Claimed, "{claim}");
        assert_eq!(&got.sandbox_id, sandbox, "{claim}");
        let again = client.claim(claim_request_as_told(claim)).await.unwrap();
        assert_eq!(
            &again.into_inner().sandbox_id,
            sandbox,
            "asked again: {claim}"
        );
    }
    for claim in &told.released {
        let answer = client
            .get(GetClaimRequest {
                claim_id: claim.clone(),
            })
            .await;
        assert_eq!(answer.unwrap_err().code(), tonic::Code::NotFound, "{claim}");
    }
}

fn claim_request_as_told(id: &str) -> hearth::api::ClaimRequest {
    patient_request(id, "python", 20)
}

/// Once nothing is under way: the same sandboxes in the record, in containerd, in the cgroups and on the disk. Of one that
/// is an image there is the container, and nothing that runs.
pub async fn assert_no_leak(hearth: &Hearth) {
    let mut last = (Census::default(), Census::default());
    eventually("record and outside agree", || {
        let state = hearth.state();
        let sandboxes = state["sandboxes"].as_array().unwrap().iter();
        let (on_disk, there): (Vec<_>, Vec<_>) =
            sandboxes.partition(|sandbox| sandbox["residency"] == "on_disk");
        let id = |sandbox: &serde_json::Value| sandbox["id"].as_str().unwrap().to_owned();
        let mut expected = Census::of(&there.into_iter().map(id).collect());
        expected.containers.extend(on_disk.into_iter().map(id));
        last = (expected, hearth.census());
        let agree = last.1 == last.0;
        async move { agree }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_hearthd_under_load_loses_nothing() {
    const KILLS: u64 = 12;
    let mut hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 4, 24)]).await;
    hearth.warm("python", 4).await;
    let told = Arc::new(Mutex::new(Told::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let socket = format!("unix://{}", hearth.path("s").display());
    let callers: Vec<_> = (0..4)
        .map(|_| tokio::spawn(caller(socket.clone(), told.clone(), stop.clone(), 2)))
        .collect();
    let mut ready = Vec::new();
    for round in 0..KILLS {
        // Moments spread over what goes on: claims, refills, destructions, recovery itself.
        tokio::time::sleep(Duration::from_millis(30 + round * 97 % 700)).await;
        hearth.kill();
        ready.push(hearth.restart().await);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    ready.sort();
    let told = Arc::try_unwrap(told).ok().unwrap().into_inner().unwrap();
    println!(
        "{KILLS} kills; {} claims held, {} released, {} sandboxes told; start to ready: median {:?}, max {:?}",
        told.claimed.len(),
        told.released.len(),
        told.sandboxes.len(),
        ready[ready.len() / 2],
        ready[ready.len() - 1],
    );
    assert!(told.sandboxes.len() >= 8, "too few claims for a load");
    assert_promises(&hearth, &told).await;
    hearth.warm("python", 4).await;
    // Recovery may hold claims that nobody was told of: their callers stopped asking. Release them.
    let mut client = hearth.claims().await;
    let all = client
        .list(ListClaimsRequest::default())
        .await
        .unwrap()
        .into_inner();
    for claim in all.claims {
        if !told.claimed.contains_key(&claim.claim_id) {
            hearth.release(&claim.claim_id).await;
        }
    }
    assert_no_leak(&hearth).await;
    hearth.finish().await;
}

async fn read(hearth: &Hearth, claim: &str) -> u64 {
    let (_, text) = hearth.run(claim, &["cat", "/tmp/n"]).await;
    text.parse().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_sandbox_restarts_when_hearthd_dies() {
    let mut hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 2, 8)]).await;
    hearth.warm("python", 2).await;
    let (claim, answer) = hearth.claim("python").await;
    let counter = "import os,time\nn=0\nwhile True:\n  n+=1\n  with open('/tmp/m','w') as f: f.write(str(n))\n  os.replace('/tmp/m','/tmp/n')\n  time.sleep(.01)";
    hearth
        .start_detached(&claim, &["python3", "-c", counter])
        .await;
    hearth.warm("python", 2).await;
    let before = hearth.ctr(&["tasks", "ls"]);
    eventually("the counter runs", || async {
        read(&hearth, &claim).await > 0
    })
    .await;
    let first = read(&hearth, &claim).await;
    hearth.kill();
    tokio::time::sleep(Duration::from_millis(200)).await;
    hearth.restart().await;
    let second = read(&hearth, &claim).await;
    assert!(
        second > first + 10,
        "it went on meanwhile: {first} → {second}"
    );
    let sorted = |text: String| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(
        sorted(hearth.ctr(&["tasks", "ls"])),
        sorted(before),
        "the same tasks, the same pids"
    );
    let again = hearth
        .claims()
        .await
        .claim(claim_request(&claim, "python"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(again.sandbox_id, answer.sandbox_id);
    assert_eq!(
        again.access_token, answer.access_token,
        "the same answer for ever"
    );

    // SIGTERM leaves them as well.
    assert!(hearth.terminate().success());
    hearth.restart().await;
    assert!(read(&hearth, &claim).await > second);
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_killed_under_load_comes_back_and_nothing_is_lost() {
    let hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 4, 24)]).await;
    hearth.warm("python", 4).await;
    let told = Arc::new(Mutex::new(Told::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let socket = format!("unix://{}", hearth.path("s").display());
    let callers: Vec<_> = (0..3)
        .map(|_| tokio::spawn(caller(socket.clone(), told.clone(), stop.clone(), 2)))
        .collect();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        hearth.kill_containerd();
        eventually("hearthd is ready again", || async {
            hearth.phase().await.as_deref() == Some("ready")
        })
        .await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    let told = Arc::try_unwrap(told).ok().unwrap().into_inner().unwrap();
    println!(
        "3 kills of containerd; {} sandboxes told",
        told.sandboxes.len()
    );
    assert_promises(&hearth, &told).await;
    hearth.warm("python", 4).await;
    assert_no_leak(&hearth).await;
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_directory_is_refused_clearly() {
    let hearth = Hearth::start().await;
    let output = hearth.command(false).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    let pid = hearth.pid().to_string();
    assert!(
        text.contains("another hearthd") && text.contains(&pid),
        "{text}"
    );
    assert_eq!(
        hearth.phase().await.as_deref(),
        Some("ready"),
        "the first one is unharmed"
    );
    hearth.finish().await;
}
