//! Exec, files and connections over the wire, with real processes behind them.

use super::*;
use bytes::Bytes;
use exec_request::Request as Up;
use exec_response::Response as Down;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// What an exec told.
#[derive(Debug, Default)]
struct Told {
    pid: u32,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exited: Option<Exited>,
}

impl Told {
    fn add(&mut self, answer: ExecResponse) {
        match answer.response.unwrap() {
            Down::StartedPid(pid) => self.pid = pid,
            Down::Stdout(piece) => self.stdout.extend(piece),
            Down::Stderr(piece) => self.stderr.extend(piece),
            Down::Exited(exited) => self.exited = Some(exited),
            Down::Attached(it) => self.pid = it.started_pid,
        }
    }

    fn code(&self) -> i32 {
        self.exited.as_ref().unwrap().code
    }
}

fn up(request: Up) -> ExecRequest {
    ExecRequest {
        request: Some(request),
    }
}

fn start(claim_id: &str, command: &[&str]) -> ExecStart {
    ExecStart {
        claim_id: claim_id.into(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        ..Default::default()
    }
}

fn shell(claim_id: &str, script: &str) -> ExecStart {
    start(claim_id, &["sh", "-c", script])
}

async fn to_end(answers: &mut Streaming<ExecResponse>) -> Result<Told, Status> {
    let mut told = Told::default();
    while let Some(answer) = answers.message().await? {
        told.add(answer);
    }
    Ok(told)
}

/// An exec whose input stays open.
async fn open(
    bench: &Bench,
    start: ExecStart,
) -> (mpsc::Sender<ExecRequest>, Streaming<ExecResponse>) {
    let (sender, queue) = mpsc::channel(1);
    sender.send(up(Up::Start(start))).await.unwrap();
    let answers = bench
        .sandboxes()
        .await
        .exec(ReceiverStream::new(queue))
        .await
        .unwrap();
    (sender, answers.into_inner())
}

async fn run(bench: &Bench, start: ExecStart, input: Vec<Up>) -> Result<Told, Status> {
    let requests: Vec<_> = std::iter::once(Up::Start(start))
        .chain(input)
        .map(up)
        .collect();
    let answers = bench
        .sandboxes()
        .await
        .exec(tokio_stream::iter(requests))
        .await?;
    to_end(&mut answers.into_inner()).await
}

async fn nothing_runs(bench: &Bench) {
    eventually("all processes have ended", || {
        bench.driver.running.load(Ordering::SeqCst) == 0
    })
    .await;
    bench.counted(r#"hearth_streams_open{kind="exec"} 0"#).await;
}

#[tokio::test]
async fn output_and_exit_code_come_through() {
    let bench = Bench::start().await;
    let (claim, _) = bench.claimed().await;
    let mut script = shell(&claim, "echo out; echo $A >&2; exit 3");
    script.env.insert("A".into(), "err".into());
    let told = run(&bench, script, vec![]).await.unwrap();
    assert!(told.pid > 0);
    assert_eq!(
        (&told.stdout[..], &told.stderr[..], told.code()),
        (&b"out\n"[..], &b"err\n"[..], 3)
    );
    let told = run(&bench, shell(&claim, "kill -9 $$"), vec![])
        .await
        .unwrap();
    assert_eq!(
        told.exited,
        Some(Exited {
            code: 137,
            signal: 9,
            timed_out: false
        })
    );
    let mut slow = start(&claim, &["sleep", "60"]);
    slow.timeout = Some(prost_types::Duration {
        seconds: 0,
        nanos: 50_000_000,
    });
    assert!(
        run(&bench, slow, vec![])
            .await
            .unwrap()
            .exited
            .unwrap()
            .timed_out
    );
    let missing = run(&bench, start(&claim, &["/no/such/program"]), vec![]).await;
    refused(missing, Code::NotFound, "INSIDE_NOT_FOUND");
    nothing_runs(&bench).await;
}

#[tokio::test]
async fn the_end_of_the_stream_is_the_end_of_stdin() {
    let bench = Bench::start().await;
    let (claim, _) = bench.claimed().await;
    let cat = || ExecStart {
        stdin: true,
        ..start(&claim, &["cat"])
    };
    let piece = |text: &'static str| Up::Stdin(Bytes::from_static(text.as_bytes()));
    let told = run(&bench, cat(), vec![piece("a"), piece("b")])
        .await
        .unwrap();
    assert_eq!((&told.stdout[..], told.code()), (&b"ab"[..], 0));
    let told = run(&bench, cat(), vec![piece("a"), Up::StdinEof(true)])
        .await
        .unwrap();
    assert_eq!(told.stdout, b"a");
    let after = run(&bench, cat(), vec![Up::StdinEof(true), piece("a")]).await;
    // The process may have ended before the mistake was seen.
    assert!(
        after.is_ok_and(|told| told.code() == 0) || bench.metrics().contains("INVALID_ARGUMENT")
    );
    // Without stdin it reads the end at once, although the client's stream stays open.
    let (_open, mut answers) = open(&bench, start(&claim, &["cat"])).await;
    assert_eq!(to_end(&mut answers).await.unwrap().code(), 0);
}

#[tokio::test]
async fn what_must_not_follow_ends_the_exec() {
    let bench = Bench::start().await;
    let (claim, _) = bench.claimed().await;
    let sleep = || start(&claim, &["sleep", "60"]);
    let wrong = [
        Up::Start(sleep()),
        Up::Stdin(Bytes::from_static(b"x")),
        Up::Signal(65),
        Up::Resize(TerminalSize {
            rows: 1,
            columns: 1,
        }),
    ];
    for input in wrong {
        refused(
            run(&bench, sleep(), vec![input]).await,
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
        );
    }
    let first = bench
        .sandboxes()
        .await
        .exec(tokio_stream::iter([up(Up::Signal(1))]))
        .await;
    refused(first.map(drop), Code::InvalidArgument, "INVALID_ARGUMENT");
    nothing_runs(&bench).await;
}

#[tokio::test]
async fn signals_reach_a_process_that_floods_its_output() {
    let bench = Bench::start().await;
    let (claim, _) = bench.claimed().await;
    let (input, mut answers) = open(&bench, start(&claim, &["yes"])).await;
    answers.message().await.unwrap();
    // Nobody reads; the flood has filled every buffer on the way.
    tokio::time::sleep(Duration::from_millis(300)).await;
    input.send(up(Up::Signal(15))).await.unwrap();
    let told = tokio::time::timeout(PATIENCE, to_end(&mut answers))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(told.exited.unwrap().signal, 15);
}

#[tokio::test]
async fn a_client_that_reads_slowly_holds_the_process_back() {
    let bench = Bench::start().await;
    let (claim, _) = bench.claimed().await;
    let script = "i=0; while :; do head -c 65536 /dev/zero; i=$((i+1)); echo $i > count; done";
    let (input, mut answers) = open(&bench, shell(&claim, script)).await;
    answers.message().await.unwrap();
    let count = || {
        let text =
            std::fs::read_to_string(bench.driver.root.path().join("count")).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or_default()
    };
    let mut before = count();
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = count();
        if now == before && now > 0 {
            break;
        }
        before = now;
    }
    let stuck = count();
    assert!(
        stuck < 64,
        "{stuck} pieces of 64 KiB went somewhere although nobody reads"
    );
    // Reading lets it go on.
    for _ in 0..400 {
        answers.message().await.unwrap();
    }
    eventually("it goes on", || count() > stuck).await;
    // Both: hyper's client resets a stream only when nobody holds either half of it.
    drop((input, answers));
    nothing_runs(&bench).await;
}

/// Sends pieces of stdin that nobody reads until it is held back, then asks for something else on the same
/// connection, and stays. How many pieces were taken.
async fn push(
    channel: tonic::transport::Channel,
    start: ExecStart,
    stuck: tokio::sync::oneshot::Sender<usize>,
) {
    let (input, queue) = mpsc::channel(1);
    input.send(up(Up::Start(start))).await.unwrap();
    let mut client = SandboxesClient::new(channel.clone());
    let mut answers = client
        .exec(ReceiverStream::new(queue))
        .await
        .unwrap()
        .into_inner();
    answers.message().await.unwrap();
    let piece = || up(Up::Stdin(Bytes::from(vec![0; 65536])));
    let mut taken = 0;
    while taken < 1000
        && tokio::time::timeout(Duration::from_millis(500), input.send(piece()))
            .await
            .is_ok()
    {
        taken += 1;
    }
    ClaimsClient::new(channel)
        .list(ListClaimsRequest::default())
        .await
        .unwrap();
    stuck.send(taken).unwrap();
    std::future::pending::<()>().await;
    drop((input, answers));
}

#[tokio::test]
async fn a_process_that_does_not_read_holds_the_client_back_and_dies_with_it() {
    let bench = Bench::start().await;
    let (claim, _) = bench.claimed().await;
    let (sender, stuck) = tokio::sync::oneshot::channel();
    let start = ExecStart {
        stdin: true,
        ..start(&claim, &["sleep", "60"])
    };
    let (client, endpoint) = (Mortal::born(), bench.endpoint());
    client.spawn(async move { push(endpoint.connect().await.unwrap(), start, sender).await });
    let taken = tokio::time::timeout(PATIENCE, stuck)
        .await
        .unwrap()
        .unwrap();
    assert!(
        taken < 64,
        "{taken} pieces of 64 KiB were taken although nobody reads them"
    );
    assert_eq!(bench.driver.running.load(Ordering::SeqCst), 1);
    drop(client);
    nothing_runs(&bench).await;
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_process_with_it_unless_detached() {
    let bench = Bench::start().await;
    let (claim, _) = bench.claimed().await;
    let (input, mut answers) = open(&bench, start(&claim, &["sleep", "60"])).await;
    answers.message().await.unwrap();
    assert_eq!(bench.driver.running.load(Ordering::SeqCst), 1);
    drop((input, answers));
    nothing_runs(&bench).await;
    let detached = ExecStart {
        detach: true,
        ..shell(&claim, "sleep 1; touch done")
    };
    let (input, mut answers) = open(&bench, detached).await;
    let first = answers.message().await.unwrap().unwrap();
    assert!(matches!(first.response, Some(Down::StartedPid(_))));
    drop((input, answers));
    bench.counted(r#"hearth_streams_open{kind="exec"} 0"#).await;
    eventually("the detached process has finished", || {
        bench.driver.root.path().join("done").exists()
    })
    .await;
    bench
        .counted(r#"hearth_rpc_requests_total{code="CANCELLED",method="Sandboxes/Exec"} 2"#)
        .await;
}

#[tokio::test]
async fn the_callers_deadline_ends_a_stream_and_its_process() {
    let bench = Bench::start().await;
    let (claim, _) = bench.claimed().await;
    let mut request = tonic::Request::new(tokio_stream::iter([up(Up::Start(start(
        &claim,
        &["sleep", "60"],
    )))]));
    request.set_timeout(Duration::from_secs(2));
    let mut answers = bench
        .sandboxes()
        .await
        .exec(request)
        .await
        .unwrap()
        .into_inner();
    refused(
        to_end(&mut answers).await,
        Code::DeadlineExceeded,
        "DEADLINE_EXCEEDED",
    );
    nothing_runs(&bench).await;
}

#[tokio::test]
async fn files_arrive_whole_or_not_at_all() {
    let bench = Bench::start().await;
    let (claim_id, _) = bench.claimed().await;
    let content: Vec<u8> = (0..=255).cycle().take(1_000_003).collect();
    use write_file_request::Request::{Chunk, Eof, Start};
    let write_start = |path: &str| {
        Start(WriteFileStart {
            claim_id: claim_id.clone(),
            path: path.into(),
            mode: 0,
            parents: true,
        })
    };
    let chunks = content
        .chunks(65536)
        .map(|chunk| Chunk(Bytes::copy_from_slice(chunk)));
    let requests: Vec<_> = std::iter::once(write_start("/w/a"))
        .chain(chunks)
        .chain([Eof(true)])
        .map(|r| WriteFileRequest { request: Some(r) })
        .collect();
    let mut client = bench.sandboxes().await;
    let written = client
        .write_file(tokio_stream::iter(requests))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(written.size_bytes, 1_000_003);
    let read = ReadFileRequest {
        claim_id: claim_id.clone(),
        path: "/w/a".into(),
        ..Default::default()
    };
    let mut answers = client.read_file(read.clone()).await.unwrap().into_inner();
    let first = answers.message().await.unwrap().unwrap();
    assert_eq!((first.size_bytes, first.mode), (1_000_003, 0o644));
    let mut got = first.chunk.to_vec();
    while let Some(answer) = answers.message().await.unwrap() {
        got.extend(answer.chunk);
    }
    assert!(got == content);
    // A stream that ends in the middle is no file.
    let requests = [write_start("/w/half"), Chunk(Bytes::from_static(b"half"))];
    let requests = requests.map(|request| WriteFileRequest {
        request: Some(request),
    });
    let half = client.write_file(tokio_stream::iter(requests)).await;
    refused(half, Code::InvalidArgument, "INVALID_ARGUMENT");
    // A client that dies leaves nothing.
    let (dying, endpoint) = (Mortal::born(), bench.endpoint());
    let requests = [write_start("/w/b"), Chunk(Bytes::from_static(b"half"))];
    let requests = requests.map(|request| WriteFileRequest {
        request: Some(request),
    });
    let requests = tokio_stream::iter(requests).chain(tokio_stream::pending());
    dying.spawn(async move {
        let mut client = SandboxesClient::new(endpoint.connect().await.unwrap());
        let _ = client.write_file(requests).await;
    });
    bench
        .counted(r#"hearth_streams_open{kind="write_file"} 1"#)
        .await;
    drop(dying);
    bench
        .counted(r#"hearth_streams_open{kind="write_file"} 0"#)
        .await;
    let list = ListFilesRequest {
        claim_id,
        path: "/w".into(),
    };
    let mut answers = client.list_files(list).await.unwrap().into_inner();
    let entries = answers.message().await.unwrap().unwrap().entries;
    assert_eq!(
        entries
            .iter()
            .map(|entry| (entry.name.as_str(), entry.kind()))
            .collect::<Vec<_>>(),
        [("a", FileKind::File)]
    );
    assert!(answers.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_connection_is_joined_with_half_closed_ends() {
    let bench = Bench::start().await;
    let (claim_id, _) = bench.claimed().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = u32::from(listener.local_addr().unwrap().port());
    let inside = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut got = Vec::new();
        socket.read_to_end(&mut got).await.unwrap();
        socket.write_all(&got).await.unwrap();
        got.len()
    });
    use connect_request::Request::{Data, Eof, Start};
    let mut requests = vec![Start(ConnectStart { claim_id, port })];
    requests.extend((0..20).map(|_| Data(Bytes::from(vec![1; 65536]))));
    requests.push(Eof(true));
    let requests = requests.into_iter().map(|request| ConnectRequest {
        request: Some(request),
    });
    let mut answers = bench
        .sandboxes()
        .await
        .connect(tokio_stream::iter(requests.collect::<Vec<_>>()))
        .await
        .unwrap()
        .into_inner();
    let (mut back, mut eof) = (0, false);
    while let Some(answer) = answers.message().await.unwrap() {
        match answer.response.unwrap() {
            connect_response::Response::Connected(connected) => assert!(connected && back == 0),
            connect_response::Response::Data(data) => back += data.len(),
            connect_response::Response::Eof(_) => eof = true,
        }
    }
    assert_eq!(
        (back, eof, inside.await.unwrap()),
        (20 * 65536, true, 20 * 65536)
    );
    bench
        .counted(r#"hearth_streams_open{kind="connect"} 0"#)
        .await;
}
