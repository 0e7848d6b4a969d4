//! Streams with a real guest behind them: flow control from end to end, callers that die, and peers that are not
//! operators.

use crate::hearthd::{Hearth, eventually, patience, pool};
use hearth::api::sandboxes_client::SandboxesClient;
use hearth::api::{
    ExecAttach, ExecRequest, ExecResponse, ExecStart, StatsRequest, exec_request, exec_response,
};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio_stream::StreamExt;
use tonic::transport::Endpoint;

/// A user who is nobody here.
const NOBODY: u32 = 65_534;

async fn ready(settings: &[(&str, &str)]) -> (Hearth, String, String) {
    let hearth = Hearth::start_with(settings).await;
    hearth.set_pools(vec![pool("python", 1, 4)]).await;
    hearth.warm("python", 1).await;
    let (claim, response) = hearth.claim("python").await;
    (hearth, claim, response.access_token)
}

fn start(claim: &str, script: &str) -> ExecRequest {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    let start = ExecStart {
        claim_id: claim.to_owned(),
        command,
        ..Default::default()
    };
    ExecRequest {
        request: Some(exec_request::Request::Start(start)),
    }
}

async fn execs(hearth: &Hearth, claim: &str) -> u32 {
    let request = StatsRequest {
        claim_id: claim.to_owned(),
        ..StatsRequest::default()
    };
    hearth
        .sandboxes()
        .await
        .stats(request)
        .await
        .unwrap()
        .into_inner()
        .execs
}

/// Pieces of 64 KiB that the flooding process has written.
async fn written(hearth: &Hearth, claim: &str) -> u64 {
    let (_, out) = hearth
        .run(claim, &["sh", "-c", "cat /tmp/count 2>/dev/null || echo 0"])
        .await;
    out.trim().parse().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stalls_holds_the_guest_back_and_dies_with_its_process() {
    let (hearth, claim, _) = ready(&[]).await;
    // A client of its own, that can die: all its sockets are closed at once.
    let client = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let flood = "i=0; while :; do head -c 65536 /dev/zero; i=$((i+1)); echo $i > /tmp/count; done";
    let requests = tokio_stream::iter([start(&claim, flood)]).chain(tokio_stream::pending());
    let endpoint = Endpoint::try_from(format!("unix://{}", hearth.path("s").display())).unwrap();
    client.spawn(async move {
        let mut client = SandboxesClient::new(endpoint.connect().await.unwrap());
        let mut answers = client.exec(requests).await.unwrap().into_inner();
        answers.message().await.unwrap();
        // Neither reads nor goes away.
        std::future::pending::<()>().await;
        drop(answers);
    });
    eventually("the flood has begun", || async {
        written(&hearth, &claim).await > 0
    })
    .await;
    eventually("it stands still", || async {
        let before = written(&hearth, &claim).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        written(&hearth, &claim).await == before
    })
    .await;
    let stuck = written(&hearth, &claim).await;
    assert!(
        stuck < 64,
        "{stuck} pieces of 64 KiB went somewhere although nobody reads"
    );
    assert_eq!(
        execs(&hearth, &claim).await,
        1,
        "the flood alone; Stats counts no exec of ours that has ended"
    );
    client.shutdown_background();
    eventually("the process has died with its caller", || async {
        execs(&hearth, &claim).await == 0
    })
    .await;
    hearth.release(&claim).await;
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_gets_in_with_the_claims_token_only() {
    let (hearth, claim, token) = ready(&[("api.socket_mode", "0666")]).await;
    // The socket is the only thing that keeps others out.
    let root = hearth.path("");
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
    // Where nobody may run it: the build directory may be closed to others.
    let program = root.join("hearthctl");
    std::fs::copy(env!("CARGO_BIN_EXE_hearthctl"), &program).unwrap();
    let run = |words: &[&str]| {
        let mut command = Command::new(&program);
        command
            .arg("--socket")
            .arg(hearth.path("s"))
            .args(words)
            .stdin(Stdio::null());
        let ran = command.uid(NOBODY).gid(NOBODY).output().unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr)
        );
        (ran.status.code().unwrap(), text)
    };
    for words in [
        &["claims"][..],
        &["exec", &claim, "--", "id"],
        &["claim", "python"],
        &["release", &claim],
    ] {
        let (code, text) = run(words);
        assert!(
            code != 0 && text.contains("NOT_ALLOWED"),
            "{words:?}: {code} {text}"
        );
    }
    let (code, text) = run(&["--token", &token, "exec", &claim, "--", "echo", "inside"]);
    assert_eq!((code, text.as_str()), (0, "inside\n"));
    let (_, text) = run(&["--token", &token, "claims"]);
    assert!(text.contains("NOT_ALLOWED"), "{text}");
    let (_, text) = run(&["--token", "hearth_AAAA", "exec", &claim, "--", "id"]);
    assert!(text.contains("NOT_ALLOWED"), "{text}");
    hearth.release(&claim).await;
    let (_, text) = run(&["--token", &token, "exec", &claim, "--", "id"]);
    assert!(
        text.contains("NOT_ALLOWED"),
        "a token ends with its claim: {text}"
    );
    hearth.finish().await;
}

/// What has arrived of an execution.
#[derive(Default)]
struct Heard {
    out: Vec<u8>,
    code: Option<i32>,
    missed: u64,
}

impl Heard {
    fn take(&mut self, answer: ExecResponse) {
        match answer.response {
            Some(exec_response::Response::Stdout(piece)) => self.out.extend_from_slice(&piece),
            Some(exec_response::Response::Exited(exited)) => self.code = Some(exited.code),
            Some(exec_response::Response::Attached(it)) => self.missed += it.stdout_missed,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_that_is_kept_is_attached_to_over_deaths_of_hearthd_with_every_byte_once() {
    const LINES: usize = 3000;
    let (mut hearth, claim, _) = ready(&[]).await;
    let script =
        format!("i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); done; exit 7");
    let mut first = start(&claim, &script);
    let Some(exec_request::Request::Start(asked)) = &mut first.request else {
        unreachable!()
    };
    asked.exec_id = "the-long-one".to_owned();
    asked.keep = Some(prost_types::Duration {
        seconds: 600,
        nanos: 0,
    });
    let mut heard = Heard::default();
    let mut deaths = 0;
    while heard.code.is_none() {
        let request = match deaths {
            0 => first.clone(),
            _ => ExecRequest {
                request: Some(exec_request::Request::Attach(ExecAttach {
                    claim_id: claim.clone(),
                    exec_id: "the-long-one".to_owned(),
                    stdout_bytes: heard.out.len() as u64,
                    stderr_bytes: 0,
                })),
            },
        };
        // Just after a start the claim may still be looked for; its caller is told to come again.
        let began = std::time::Instant::now();
        let mut answers = loop {
            let requests = tokio_stream::iter([request.clone()]).chain(tokio_stream::pending());
            match hearth.sandboxes().await.exec(requests).await {
                Ok(answers) => break answers.into_inner(),
                Err(status) => {
                    let again = status.code() == tonic::Code::Unavailable;
                    assert!(again && began.elapsed() < patience(), "{status:?}");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        };
        // Some of it is heard, then hearthd dies; the last of them is left alone.
        let mut left = 1 + deaths * 20;
        while let Ok(Some(answer)) = answers.message().await {
            heard.take(answer);
            left -= 1;
            if left == 0 && deaths < 4 {
                break;
            }
        }
        if heard.code.is_none() {
            deaths += 1;
            assert!(deaths < 10, "{} bytes", heard.out.len());
            hearth.kill();
            hearth.restart().await;
        }
    }
    assert!(deaths > 0);
    assert_eq!((heard.code, heard.missed), (Some(7), 0));
    let lines: String = (0..LINES).map(|i| format!("line {i}\n")).collect();
    assert_eq!(String::from_utf8(heard.out).unwrap(), lines);
    hearth.release(&claim).await;
    hearth.finish().await;
}
