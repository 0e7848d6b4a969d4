//! Sandboxes whose hearth-init is hostile, in real gVisor under the real hearthd: each fails with a reason of its own,
//! hearthd holds no more memory than before, and the honest pool beside them is served all the while.

use crate::hearthd::{
    Hearth, claim_request, eventually, fresh_id, patient_request, pool, static_file,
};
use crate::vitals::Vitals;
use hearth::api::{
    BreakerState, ClaimState, ExecRequest, ExecStart, GetClaimRequest, ListFilesRequest, OnEmpty,
    Pool, ReadFileRequest, WriteFileRequest, WriteFileStart, exec_request, write_file_request,
};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// What hearthd may hold more of at any moment of all attacks together than while it served honest claims only: 22
/// channels of at most half a megabyte each (`guest::channel::limits`), and what pools, claims and connections cost.
/// Measured: 2 MB.
const GROWTH_BYTES: u64 = 16 << 20;

/// Fails while it is being made; the words that the pool's status must show.
const AT_BIRTH: &[(&str, &str)] = &[
    ("JunkForHello", "a flood instead of an answer to HELLO"),
    ("OtherProtocol", "another version of the protocol"),
    ("EndlessMessage", "a message beyond its bound"),
];
/// Fails when it is claimed.
const AT_CLAIM: &[&str] = &["NeverAcks", "AcksWithPong", "AcksAnother"];
/// Fails when something is run in it.
const AT_EXEC: &[&str] = &[
    "FloodOutput",
    "FloodNothing",
    "Replay",
    "OldSession",
    "Lengths",
    "Varint",
    "ExitCode",
    "Credit",
];
/// Have moments of their own.
const OTHERS: &[&str] = &[
    "Mute",
    "HoldsAnother",
    "Stall",
    "TalksOn",
    "Names",
    "EndlessFile",
    "FloodLog",
];

/// hostile-init with the honest one behind it, as hearthd is told to mount it.
fn init(dir: &std::path::Path) -> std::path::PathBuf {
    let read = |name| std::fs::read(static_file(name)).unwrap();
    let (mut bytes, honest) = (read("hostile-init"), read("hearth-init"));
    bytes.extend_from_slice(&honest);
    bytes.extend(u64::try_from(honest.len()).unwrap().to_le_bytes());
    let path = dir.join("init");
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn hostile(act: &str, min_warm: u32) -> Pool {
    let mut pool = pool(&name(act), min_warm, 3);
    let template = pool.template.as_mut().unwrap();
    template.env.insert("HOSTILE".to_owned(), act.to_owned());
    // Without this, what was lost is made again at once, and the machine is busy with that alone.
    pool.max_parallel_refills = 1;
    pool
}

/// A pool's name for an act.
fn name(act: &str) -> String {
    act.to_lowercase()
}

pub fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map(|info| info.reason).unwrap_or_default()
}

fn start(claim: &str) -> ExecRequest {
    let start = ExecStart {
        claim_id: claim.to_owned(),
        command: vec!["true".to_owned()],
        ..ExecStart::default()
    };
    ExecRequest {
        request: Some(exec_request::Request::Start(start)),
    }
}

/// The claim says that its sandbox is lost, and why; it can be released like any other.
async fn is_lost(hearth: &Hearth, claim: &str, act: &str) {
    eventually(&format!("{act}: the claim tells"), || async {
        let got = hearth.get(claim).await;
        got.state() == ClaimState::Failed && got.status_reason == "GUEST_LOST"
    })
    .await;
    let refused = hearth.try_run(claim, &["true"]).await.unwrap_err();
    assert_eq!(reason(&refused), "SANDBOX_ENDED", "{act}: {refused:?}");
    hearth.release(claim).await;
}

async fn at_birth(hearth: &Hearth, act: &str, words: &str) {
    eventually(&format!("{act}: the breaker opens"), || async {
        hearth.status(&name(act)).await.breaker() == BreakerState::Open
    })
    .await;
    let status = hearth.status(&name(act)).await;
    assert!(status.breaker_reason.contains(words), "{act}: {status:?}");
    assert_eq!(status.warm, 0, "{act}: never ready, never warm");
}

async fn mute(hearth: &Hearth) {
    let mut request = claim_request(&fresh_id(), &name("Mute"));
    request.on_empty = OnEmpty::Cold.into();
    let refused = hearth.claims().await.claim(request).await.unwrap_err();
    assert_eq!(reason(&refused), "CREATE_FAILED", "{refused:?}");
    assert!(refused.message().contains("does not answer"), "{refused:?}");
}

/// Member after member fails to acknowledge; then the caller is told, and nothing was claimed.
async fn at_claim(hearth: &Hearth, act: &str) {
    hearth.warm(&name(act), 1).await;
    let id = fresh_id();
    let request = patient_request(&id, &name(act), 120);
    let refused = hearth.claims().await.claim(request).await.unwrap_err();
    assert_eq!(reason(&refused), "GUEST_FAILED", "{act}: {refused:?}");
    assert_eq!(refused.code(), Code::Unavailable, "{act}: {refused:?}");
    let request = GetClaimRequest { claim_id: id };
    let absent = hearth.claims().await.get(request).await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound, "{act}: {absent:?}");
}

async fn claimed(hearth: &Hearth, act: &str) -> String {
    hearth.warm(&name(act), 1).await;
    hearth.claim(&name(act)).await.0
}

async fn at_exec(hearth: &Hearth, act: &str) {
    let claim = claimed(hearth, act).await;
    // Some break the protocol only after what they said so far was good.
    let _answer = hearth.try_run(&claim, &["true"]).await;
    is_lost(hearth, &claim, act).await;
}

/// Silence fails the call, not the sandbox.
async fn stall(hearth: &Hearth) {
    let claim = claimed(hearth, "Stall").await;
    let refused = hearth.try_run(&claim, &["true"]).await.unwrap_err();
    assert_eq!(reason(&refused), "GUEST_UNAVAILABLE", "{refused:?}");
    assert_eq!(
        hearth.get(&claim).await.state(),
        ClaimState::Claimed,
        "it may yet answer"
    );
    hearth.release(&claim).await;
}

/// The caller leaves in the middle; what its process still says afterwards is borne for a while, not for ever.
async fn talks_on(hearth: &Hearth) {
    let claim = claimed(hearth, "TalksOn").await;
    let requests = tokio_stream::iter([start(&claim)]);
    let answers = hearth.sandboxes().await.exec(requests).await.unwrap();
    let mut answers = answers.into_inner();
    answers.message().await.unwrap().unwrap();
    drop(answers);
    is_lost(hearth, &claim, "TalksOn").await;
}

async fn names(hearth: &Hearth) {
    let claim = claimed(hearth, "Names").await;
    let request = ListFilesRequest {
        claim_id: claim.clone(),
        path: "/".to_owned(),
    };
    let mut sandboxes = hearth.sandboxes().await;
    let listed = match sandboxes.list_files(request).await {
        Ok(answers) => answers.into_inner().message().await,
        Err(refused) => Err(refused),
    };
    assert!(listed.is_err(), "a name that leads out: {listed:?}");
    is_lost(hearth, &claim, "Names").await;
}

async fn endless_file(hearth: &Hearth) {
    let claim = claimed(hearth, "EndlessFile").await;
    let request = ReadFileRequest {
        claim_id: claim.clone(),
        path: "/file".to_owned(),
        offset: 0,
        limit: 10,
    };
    let mut sandboxes = hearth.sandboxes().await;
    let mut got = 0;
    if let Ok(answers) = sandboxes.read_file(request).await {
        let mut answers = answers.into_inner();
        while let Ok(Some(answer)) = answers.message().await {
            got += answer.chunk.len();
        }
    }
    assert!(got <= 10, "{got} bytes of a file of which 10 were asked");
    is_lost(hearth, &claim, "EndlessFile").await;
}

/// A flood of log lines costs its own lines, nothing else. Its words reach callers escaped and cut.
async fn flood_log(hearth: &Hearth) {
    let claim = claimed(hearth, "FloodLog").await;
    for _ in 0..20 {
        let ran = hearth.run(&claim, &["true"]).await;
        assert_eq!(ran, (0, "honest\n".to_owned()));
    }
    let start = WriteFileStart {
        claim_id: claim.clone(),
        path: "/file".to_owned(),
        ..WriteFileStart::default()
    };
    let requests = [
        write_file_request::Request::Start(start),
        write_file_request::Request::Eof(true),
    ];
    let requests = requests.map(|request| WriteFileRequest {
        request: Some(request),
    });
    let mut sandboxes = hearth.sandboxes().await;
    let refused = sandboxes
        .write_file(tokio_stream::iter(requests))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), "INSIDE_REFUSED", "{refused:?}");
    let text = refused.message();
    assert!(text.len() < 1024, "{} bytes", text.len());
    assert!(!text.contains(char::is_control), "{text:?}");
    assert_eq!(
        hearth.get(&claim).await.state(),
        ClaimState::Claimed,
        "noise is no breach"
    );
    hearth.release(&claim).await;
}

/// Claims, runs and releases in the honest pool until told to stop; every call must succeed.
async fn serve_others(hearth: &Hearth, stop: &AtomicBool, served: &AtomicU32) {
    while !stop.load(Ordering::Relaxed) {
        hearth.serve_one("honest").await;
        served.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_hearth_init_harms_its_own_sandbox_only() {
    let dir = tempfile::tempdir().unwrap();
    let init = init(dir.path());
    let mut hearth = Hearth::start_with(&[("runtime.init", init.to_str().unwrap())]).await;
    let honest = pool("honest", 2, 6);
    hearth.set_pools(vec![honest.clone()]).await;
    hearth.warm("honest", 2).await;
    for _ in 0..10 {
        hearth.serve_one("honest").await;
    }
    let vitals = Vitals::of(hearth.pid());
    vitals.forget_peak();
    let before = vitals.peak_bytes();

    let mut pools = vec![honest];
    pools.extend(AT_BIRTH.iter().map(|(act, _)| hostile(act, 1)));
    let warm = [AT_CLAIM, AT_EXEC, OTHERS].concat();
    pools.extend(
        warm.iter()
            .map(|act| hostile(act, u32::from(*act != "Mute"))),
    );
    pools.sort_by(|one, other| one.name.cmp(&other.name));
    hearth.set_pools(pools).await;

    let (stop, served) = (AtomicBool::new(false), AtomicU32::new(0));
    let attacks = async {
        let birth = futures::future::join_all(
            AT_BIRTH
                .iter()
                .map(|(act, words)| at_birth(&hearth, act, words)),
        );
        let claim = futures::future::join_all(AT_CLAIM.iter().map(|act| at_claim(&hearth, act)));
        let exec = futures::future::join_all(AT_EXEC.iter().map(|act| at_exec(&hearth, act)));
        tokio::join!(
            birth,
            claim,
            exec,
            mute(&hearth),
            stall(&hearth),
            talks_on(&hearth),
            names(&hearth),
            endless_file(&hearth),
            flood_log(&hearth),
        );
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(attacks, serve_others(&hearth, &stop, &served));
    let served = served.load(Ordering::Relaxed);
    assert!(served > 5, "only {served} honest claims during the attacks");

    let grown = vitals.peak_bytes().saturating_sub(before);
    println!(
        "{served} honest claims meanwhile; hearthd's peak grew by {grown} bytes from {before}"
    );
    assert!(grown < GROWTH_BYTES, "hearthd grew by {grown} bytes");
    assert_eq!(hearth.admin_page("/livez").0, 200);
    let metrics = hearth.admin_page("/metrics").1;
    let counted = "hearth_guest_protocol_errors_total ";
    let counted = metrics.lines().find_map(|line| line.strip_prefix(counted));
    let counted: u32 = counted.unwrap().parse().unwrap();
    assert!(counted >= 16, "{counted} breaches were counted");

    // A restart: who lies about what he holds is not what was handed out; an honest claim stands.
    let kept = claimed(&hearth, "honest").await;
    let liar = claimed(&hearth, "HoldsAnother").await;
    hearth.kill();
    hearth.restart().await;
    is_lost(&hearth, &liar, "HoldsAnother").await;
    assert_eq!(hearth.run(&kept, &["echo", "still"]).await.1, "still\n");
    hearth.finish().await;
}
