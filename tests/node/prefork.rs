//! Workers of the interpreter on a real node: each command line of the table by a worker in gVisor and by python itself;
//! frozen members, clones.

use crate::hearthd::{Hearth, eventually, patience, pool};
use crate::python_lines::{LINES, Line, SETUP};
use hearth::api::exec_request::Request;
use hearth::api::exec_response::Response;
use hearth::api::{ExecRequest, ExecStart, Exited, Pool, TerminalSize};
use std::collections::BTreeSet;
use std::time::Instant;

fn members(name: &str, workers: u32, min_warm: u32) -> Pool {
    let mut python = pool(name, min_warm, 8);
    let template = python.template.as_mut().unwrap();
    template.interpreter = "python".into();
    template.prefork = workers;
    python
}

/// What came of an exec.
#[derive(Debug, Default, PartialEq)]
struct Ran {
    stdout: String,
    stderr: String,
    exited: Option<Exited>,
}

/// Its pid, and what came of it.
async fn one(hearth: &Hearth, claim: &str, line: &Line) -> (u32, Ran) {
    let pairs = line.env.iter();
    let start = ExecStart {
        claim_id: claim.to_owned(),
        command: line.command.iter().map(|&word| word.into()).collect(),
        env: pairs
            .map(|&(name, value)| (name.into(), value.into()))
            .collect(),
        working_dir: line.dir.into(),
        tty: line.tty,
        size: line.tty.then_some(TerminalSize {
            rows: 30,
            columns: 100,
        }),
        stdin: line.stdin.is_some(),
        ..ExecStart::default()
    };
    let mut requests = vec![Request::Start(start)];
    if let Some(text) = line.stdin {
        requests.push(Request::Stdin(text.as_bytes().to_vec().into()));
        requests.push(Request::StdinEof(true));
    }
    let requests = requests.into_iter().map(|request| ExecRequest {
        request: Some(request),
    });
    let mut client = hearth.sandboxes().await;
    let stream = client.exec(tokio_stream::iter(requests.collect::<Vec<_>>()));
    let mut stream = stream.await.unwrap().into_inner();
    let (mut pid, mut ran) = (0, Ran::default());
    let text = |data: &[u8]| String::from_utf8_lossy(data).into_owned();
    while let Some(answer) = stream.message().await.unwrap() {
        match answer.response.unwrap() {
            Response::StartedPid(started) => pid = started,
            Response::Stdout(data) => ran.stdout.push_str(&text(&data)),
            Response::Stderr(data) => ran.stderr.push_str(&text(&data)),
            Response::Exited(exited) => ran.exited = Some(exited),
            Response::Attached(_) => unreachable!("nothing was kept"),
        }
    }
    (pid, ran)
}

/// Pids of the workers that wait.
async fn workers(hearth: &Hearth, claim: &str) -> Vec<u32> {
    let find = "for p in /proc/[0-9]*; do grep -q '[d]ef worker' $p/cmdline && echo ${p#/proc/}; done 2>/dev/null; true";
    let (_, found) = hearth.run(claim, &["sh", "-c", find]).await;
    found.lines().map(|pid| pid.parse().unwrap()).collect()
}

/// Runs it, once more where a worker was to serve it and was still starting; whether one did.
async fn served(hearth: &Hearth, claim: &str, line: &Line) -> (bool, Ran) {
    let began = Instant::now();
    loop {
        let waiting = workers(hearth, claim).await;
        let (pid, ran) = one(hearth, claim, line).await;
        let by_worker = waiting.contains(&pid);
        if by_worker || !line.by_worker || began.elapsed() > patience() {
            return (by_worker, ran);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_in_gvisor_does_as_python_does() {
    let hearth = Hearth::start().await;
    let pools = vec![members("with", 1, 1), members("without", 0, 1)];
    hearth.set_pools(pools).await;
    hearth.warm("with", 1).await;
    hearth.warm("without", 1).await;
    let (with, _) = hearth.claim("with").await;
    let (without, _) = hearth.claim("without").await;
    for claim in [&with, &without] {
        assert_eq!(hearth.run(claim, &["sh", "-c", SETUP]).await.0, 0);
    }
    let mut wrong = Vec::new();
    for line in LINES {
        let (by_worker, by_it) = served(&hearth, &with, line).await;
        let (_, plain) = one(&hearth, &without, line).await;
        if by_it != plain {
            wrong.push(format!(
                "{line:?}\n  worker: {by_it:?}\n  python: {plain:?}"
            ));
        }
        if by_worker != line.by_worker {
            wrong.push(format!("{line:?}: by a worker? {by_worker}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    hearth.finish().await;
}

/// Generators that have drawn before the image is taken.
const PRELOAD: &str = "import random, ssl; random.random(); ssl.RAND_bytes(8)";

const DRAWN: Line = Line {
    command: &[
        "python3",
        "-c",
        "import os, random, ssl, uuid; print(b'def ' + b'worker' in open('/proc/self/cmdline', 'rb').read()); \
         print(os.urandom(8).hex(), random.random(), uuid.uuid4(), ssl.RAND_bytes(8).hex())",
    ],
    env: &[],
    dir: "",
    stdin: None,
    tty: false,
    by_worker: true,
};

#[tokio::test(flavor = "multi_thread")]
async fn workers_of_clones_and_of_sleepers_serve_and_draw_their_own() {
    let settings = [
        ("hibernation.golden_images", "auto"),
        ("memory.swap", "zram:1GiB"),
    ];
    let hearth = Hearth::start_with(&settings).await;
    let mut python = members("python", 1, 4);
    python.max_parallel_refills = 1;
    python.running = Some(2);
    let template = python.template.as_mut().unwrap();
    // What takes its time when a member is made: a clone has it done.
    let warm = ["python3", "-c", "import time; time.sleep(1)"];
    template.warm_command = warm.map(str::to_owned).to_vec();
    template.env = [("HEARTH_PRELOAD".to_owned(), PRELOAD.to_owned())].into();
    hearth.set_pools(vec![python]).await;
    hearth.warm("python", 4).await;
    eventually("two sleep", || async {
        hearth.status("python").await.frozen >= 2
    })
    .await;
    let mut drawn = BTreeSet::new();
    for _ in 0..4 {
        let (claim, _) = hearth.claim("python").await;
        // At once: the worker was there before the claim.
        let (_, ran) = one(&hearth, &claim, &DRAWN).await;
        let words = ran.stdout.strip_prefix("True\n");
        let words = words.unwrap_or_else(|| panic!("no worker: {ran:?}"));
        for word in words.split_whitespace() {
            assert!(drawn.insert(word.to_owned()), "{word} was drawn twice");
        }
    }
    assert_eq!(drawn.len(), 4 * 4);
    let (_, metrics) = hearth.admin_page("/metrics");
    let clones = metrics
        .lines()
        .find(|line| line.starts_with("hearth_clone_duration_seconds_count"));
    println!("{clones:?}");
    hearth.finish().await;
}
