//! Every limit of a sandbox met for real: what the workload sees there, and that its claim, hearthd and the node go on.
//! docs/limits.md is this file in words.

use crate::hearthd::{Hearth, eventually, pool};
use hearth::api::{
    ClaimState, ConnectRequest, ConnectStart, Resources, WriteFileRequest, WriteFileStart,
    connect_request, connect_response, write_file_request,
};
use std::path::Path;
use tonic::Status;
use tonic_types::StatusExt;

const PIDS: u64 = 64;
const DISK_BYTES: u64 = 16 << 20;
const OPEN_FILES: u64 = 100;
/// What one claim's streams are held to in these tests.
const STREAMS: usize = 6;

/// A node with one pool of small sandboxes, and a claim of one.
async fn small() -> (Hearth, String) {
    let streams = STREAMS.to_string();
    let hearth = Hearth::start_with(&[("limits.streams_per_sandbox", &streams)]).await;
    let mut small = pool("small", 1, 2);
    small.template.as_mut().unwrap().resources = Some(Resources {
        cpu_millis: 1000,
        // Enough for as many python processes: memory must not be met first.
        memory_bytes: 1 << 30,
        pids: PIDS,
        disk_bytes: DISK_BYTES,
        open_files: OPEN_FILES,
    });
    hearth.set_pools(vec![small]).await;
    hearth.warm("small", 1).await;
    let (claim, _) = hearth.claim("small").await;
    (hearth, claim)
}

async fn python(hearth: &Hearth, claim: &str, script: &str) -> u64 {
    let (code, out) = hearth.run(claim, &["python3", "-c", script]).await;
    assert_eq!(code, 0, "{script}: {out}");
    out.trim().parse().unwrap()
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map(|info| info.reason).unwrap_or_default()
}

/// As many processes as promised, then EAGAIN; hearth-init serves on beside a fork bomb.
async fn processes(hearth: &Hearth, claim: &str) {
    let count = "import os,time\nn=0\ntry:\n  while True:\n    if os.fork()==0: time.sleep(60)\n    n+=1\n\
        except BlockingIOError: print(n)";
    let forked = python(hearth, claim, count).await;
    // The counting process itself is one of them; nobody else is root's in there but hearth-init.
    assert!((PIDS - 4..PIDS).contains(&forked), "{forked} of {PIDS}");
    let bomb = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass";
    let (code, _) = hearth.run(claim, &["busybox", "killall", "python3"]).await;
    assert_eq!(code, 0, "an exec while all processes are taken");
    hearth.start_detached(claim, &["python3", "-c", bomb]).await;
    let count = ["sh", "-c", "set -- /proc/[0-9]*; echo $#"];
    // All of it spins: an exec comes to its turn late, and may be told so.
    let running = || async {
        hearth
            .try_run(claim, &count)
            .await
            .ok()?
            .1
            .trim()
            .parse::<u64>()
            .ok()
    };
    eventually("the bomb has gone off", || async {
        running().await.is_some_and(|running| running > PIDS / 2)
    })
    .await;
    eventually("the bomb is defused", || async {
        let _late = hearth
            .try_run(claim, &["busybox", "killall", "-9", "python3"])
            .await;
        running().await.is_some_and(|running| running < 8)
    })
    .await;
}

/// Bytes that the files below take on their disk.
fn taken_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(path) else {
        // Gone meanwhile, or no directory.
        return 0;
    };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(info) if info.is_dir() => taken_bytes(&entry.path()),
        Ok(info) => info.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// A write bomb gets ENOSPC at its own bound, and nothing of it is beyond that on the node; space comes back with the
/// file. What comes in through the API is held to the same.
async fn disk(hearth: &Hearth, claim: &str) {
    let before = taken_bytes(&hearth.path("data"));
    let bomb = "n=0\ntry:\n  with open('/bomb','wb',0) as f:\n    while True: n+=f.write(bytes(1<<20))\n\
        except OSError as e: assert e.errno==28, e\nprint(n)";
    let written = python(hearth, claim, bomb).await;
    assert!(written <= DISK_BYTES, "{written} of {DISK_BYTES}");
    assert!(written > DISK_BYTES / 2, "{written} of {DISK_BYTES}");
    let taken = taken_bytes(&hearth.path("data")).saturating_sub(before);
    assert!(taken <= DISK_BYTES + (1 << 20), "{taken} bytes on the node");

    let start = WriteFileStart {
        claim_id: claim.to_owned(),
        path: "/uploaded".to_owned(),
        ..WriteFileStart::default()
    };
    let mut requests = vec![write_file_request::Request::Start(start)];
    let chunk = || write_file_request::Request::Chunk(vec![1; 1 << 16].into());
    requests.extend((0..DISK_BYTES >> 16).map(|_| chunk()));
    requests.push(write_file_request::Request::Eof(true));
    let requests = requests.into_iter().map(|request| WriteFileRequest {
        request: Some(request),
    });
    let mut sandboxes = hearth.sandboxes().await;
    let refused = sandboxes
        .write_file(tokio_stream::iter(requests))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), "INSIDE_REFUSED", "{refused:?}");
    assert!(refused.message().contains("space"), "{refused:?}");
    let (_, listed) = hearth.run(claim, &["ls", "/"]).await;
    assert!(!listed.contains("uploaded"), "half a file: {listed}");
    assert_eq!(hearth.run(claim, &["rm", "/bomb"]).await.0, 0);
    let again = format!(
        "print(open('/again','wb').write(bytes({})))",
        DISK_BYTES / 2
    );
    assert_eq!(python(hearth, claim, &again).await, DISK_BYTES / 2);
}

/// As many descriptors as promised, then EMFILE, in that process only.
async fn open_files(hearth: &Hearth, claim: &str) {
    let leak = "import os\nn=0\ntry:\n  while True: os.open('/etc/passwd',0); n+=1\n\
        except OSError as e: assert e.errno==24, e\nprint(n)";
    let opened = python(hearth, claim, leak).await;
    assert!((OPEN_FILES - 8..OPEN_FILES).contains(&opened), "{opened}");
}

/// The quota holds whoever spins inside.
async fn cpu(hearth: &Hearth, claim: &str) {
    let spin = "while :; do :; done";
    for _ in 0..4 {
        hearth.start_detached(claim, &["sh", "-c", spin]).await;
    }
    let tree = hearth::cgroup::CgroupTree::detect("/sys/fs/cgroup").unwrap();
    let found = tree.list(&hearth.cgroup_parent()).unwrap();
    let root = Path::new("/sys/fs/cgroup");
    let throttled = || {
        let stat = |found: &hearth::cgroup::Found| {
            let group = format!("{}/{}/{}", hearth.cgroup_parent(), found.pool, found.id);
            let v1 = root.join("cpu").join(&group[1..]).join("cpu.stat");
            let v2 = root.join(&group[1..]).join("cpu.stat");
            let text = std::fs::read_to_string(v1).or_else(|_| std::fs::read_to_string(v2));
            let text = text.unwrap_or_default();
            let times = text
                .lines()
                .find_map(|line| line.strip_prefix("nr_throttled "));
            times
                .and_then(|times| times.parse::<u64>().ok())
                .unwrap_or(0)
        };
        found.iter().map(stat).max().unwrap_or(0)
    };
    let before = throttled();
    eventually("the quota holds it back", || async {
        throttled() > before + 5
    })
    .await;
    // One that was only being started, held back as it is, has no name to be found by yet.
    let killed = || hearth.run(claim, &["busybox", "killall", "-9", "sh"]);
    eventually("nobody spins", || async { killed().await.0 != 0 }).await;
}

/// Streams of one claim, connections among them: one more is refused at once, and room comes back.
async fn connections(hearth: &Hearth, claim: &str) {
    let serve = ["python3", "-m", "http.server", "8000"];
    hearth.start_detached(claim, &serve).await;
    let open = || async {
        let start = ConnectStart {
            claim_id: claim.to_owned(),
            port: 8000,
        };
        let first = ConnectRequest {
            request: Some(connect_request::Request::Start(start)),
        };
        let (send, requests) = tokio::sync::mpsc::channel(1);
        send.send(first).await.unwrap();
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut answers = hearth
            .sandboxes()
            .await
            .connect(requests)
            .await?
            .into_inner();
        let first = answers.message().await?.unwrap().response.unwrap();
        assert!(matches!(first, connect_response::Response::Connected(_)));
        Ok::<_, Status>((send, answers))
    };
    eventually("the server listens", || async { open().await.is_ok() }).await;
    let mut kept = Vec::new();
    let refused = loop {
        match open().await {
            Ok(connection) => kept.push(connection),
            Err(refused) => break refused,
        }
        assert!(kept.len() <= STREAMS, "more than {STREAMS}");
    };
    assert_eq!(reason(&refused), "QUEUE_FULL", "{refused:?}");
    // The one that proved that the server listens may still be ending.
    assert!(kept.len() >= STREAMS - 2, "only {}", kept.len());
    kept.clear();
    eventually("there is room again", || async { open().await.is_ok() }).await;
    hearth.run(claim, &["busybox", "killall", "python3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_limit_is_met_inside_and_nowhere_else() {
    let (hearth, claim) = small().await;
    processes(&hearth, &claim).await;
    disk(&hearth, &claim).await;
    open_files(&hearth, &claim).await;
    connections(&hearth, &claim).await;
    cpu(&hearth, &claim).await;
    assert_eq!(hearth.get(&claim).await.state(), ClaimState::Claimed);
    hearth.release(&claim).await;
    hearth.finish().await;
}

/// hearthd keeps so many bytes of a sandbox's log in a second, whatever is written.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_floods_its_log_is_cut() {
    let hearth = Hearth::start().await;
    let mut loud = pool("loud", 1, 2);
    let flood = ["sh", "-c", "while :; do head -c 1000000 /dev/zero; done"];
    loud.template.as_mut().unwrap().command = flood.map(str::to_owned).to_vec();
    hearth.set_pools(vec![loud]).await;
    hearth.warm("loud", 1).await;
    let began = std::time::Instant::now();
    let (claim, _) = hearth.claim("loud").await;
    let counted = |fate: &str| {
        let metrics = hearth.admin_page("/metrics").1;
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with("hearth_guest_log_bytes_total{"));
        let line = lines.into_iter().find(|line| line.contains(fate));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        value.unwrap_or_else(|| panic!("{fate}: {metrics}"))
    };
    eventually("most of it is dropped", || async {
        counted("dropped") > 10.0 * f64::from(1 << 16)
    })
    .await;
    // Three channels' worth: the member before, this one, the next.
    let bound = f64::from(3 << 16) * (began.elapsed().as_secs_f64() + 2.0);
    assert!(counted("kept") <= bound, "{} of {bound}", counted("kept"));
    assert_eq!(hearth.run(&claim, &["echo", "calm"]).await.1, "calm\n");
    hearth.release(&claim).await;
    hearth.finish().await;
}
