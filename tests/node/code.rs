//! RunCode on a real node: the resident interpreter of a gVisor sandbox, from the claim to hearthd's death.

use crate::hearthd::{Hearth, claim_request, eventually, fresh_id, pool};
use hearth::api::run_code_response::Response as Told;
use hearth::api::{
    BundleKind, CodeBegun, CodeEnded, CodeError, CodeState, CodeStatus, InterruptCodeRequest,
    Personalization, Pool, RunCodeRequest, RunCodeResponse, Secret,
};
use std::time::Duration;
use tonic::{Code, Status, Streaming};

fn with_python(min_warm: u32) -> Pool {
    let mut python = pool("python", min_warm, 8);
    python.template.as_mut().unwrap().interpreter = "python".into();
    python
}

async fn node(min_warm: u32) -> Hearth {
    let hearth = Hearth::start().await;
    hearth.set_pools(vec![with_python(min_warm)]).await;
    hearth.warm("python", min_warm).await;
    hearth
}

/// MIME types and data.
type Forms = Vec<(String, Vec<u8>)>;

#[derive(Debug, Default)]
struct Heard {
    begun: CodeBegun,
    stdout: String,
    stderr: String,
    bundles: Vec<(BundleKind, Forms)>,
    error: Option<CodeError>,
    ended: CodeEnded,
}

impl Heard {
    fn value(&self) -> String {
        let value = self
            .bundles
            .iter()
            .find(|(kind, _)| *kind == BundleKind::Result);
        let (_, forms) = value.unwrap_or_else(|| panic!("no value: {self:?}"));
        String::from_utf8_lossy(&forms[0].1).into_owned()
    }

    fn error(&self) -> &str {
        &self
            .error
            .as_ref()
            .unwrap_or_else(|| panic!("no error: {self:?}"))
            .name
    }
}

fn request(claim: &str, code: &str) -> RunCodeRequest {
    RunCodeRequest {
        claim_id: claim.into(),
        code: code.into(),
        ..RunCodeRequest::default()
    }
}

async fn start(
    hearth: &Hearth,
    request: RunCodeRequest,
) -> Result<Streaming<RunCodeResponse>, Status> {
    let answer = hearth.sandboxes().await.run_code(request).await?;
    Ok(answer.into_inner())
}

async fn follow(mut stream: Streaming<RunCodeResponse>) -> Result<Heard, Status> {
    let mut heard = Heard::default();
    let mut forms: Vec<(String, Vec<u8>)> = Vec::new();
    let mut whole = true;
    while let Some(answer) = stream.message().await? {
        match answer.response.unwrap() {
            Told::Begun(begun) => heard.begun = begun,
            Told::Stdout(data) => heard.stdout.push_str(&String::from_utf8_lossy(&data)),
            Told::Stderr(data) => heard.stderr.push_str(&String::from_utf8_lossy(&data)),
            Told::Piece(piece) if piece.end() == BundleKind::Unspecified => {
                if std::mem::replace(&mut whole, piece.last) {
                    forms.push((piece.mime_type.clone(), Vec::new()));
                }
                forms.last_mut().unwrap().1.extend_from_slice(&piece.data);
            }
            Told::Piece(piece) => heard
                .bundles
                .push((piece.end(), std::mem::take(&mut forms))),
            Told::Error(error) => heard.error = Some(error),
            Told::Ended(ended) => heard.ended = ended,
        }
    }
    assert_ne!(heard.ended.status(), CodeStatus::Unspecified, "no end");
    Ok(heard)
}

/// After a restart hearthd may not have heard of the sandbox yet and says so; a client comes again, a bounded number of
/// times.
async fn run(hearth: &Hearth, claim: &str, code: &str) -> Heard {
    for _ in 0..100 {
        match start(hearth, request(claim, code)).await {
            Err(status) if status.code() == Code::Unavailable => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            stream => return follow(stream.unwrap()).await.unwrap(),
        }
    }
    panic!("still recovering");
}

/// Until the code has printed something.
async fn until_output(stream: &mut Streaming<RunCodeResponse>) {
    loop {
        let answer = stream.message().await.unwrap().expect("output");
        if let Some(Told::Stdout(_)) = answer.response {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn code_runs_in_the_claims_own_interpreter() {
    let hearth = node(2).await;
    let id = fresh_id();
    let mut claim = claim_request(&id, "python");
    claim.personalization = Some(Personalization {
        env: [("GREETING".to_owned(), "hello".to_owned())].into(),
        secrets: vec![Secret {
            name: "token".into(),
            value: b"s3cret".to_vec().into(),
        }],
        ..Personalization::default()
    });
    hearth.claims().await.claim(claim).await.unwrap();

    // The claim reaches an interpreter that was there before it.
    let code = "import os, sys\nprint(os.environ['GREETING'])\nprint('oops', file=sys.stderr)\n\
                open('/run/hearth/secrets/token').read()";
    let heard = run(&hearth, &id, code).await;
    assert_eq!(
        (heard.stdout.as_str(), heard.stderr.as_str()),
        ("hello\n", "oops\n")
    );
    assert_eq!(heard.value(), "'s3cret'");
    assert_eq!(heard.begun.state(), CodeState::New);
    assert!(heard.ended.took.is_some());
    assert_eq!(run(&hearth, &id, "x = 20\nx + 1").await.value(), "21");
    let kept = run(&hearth, &id, "_ + x").await;
    assert_eq!(
        (kept.value().as_str(), kept.begun.state()),
        ("41", CodeState::Kept)
    );
    // Rich results, larger than every queue on their way.
    let rich = "class R:\n  def _repr_html_(self): return '<b>'\n  def _repr_png_(self): return b'\\x89' * 700_000\nR()";
    let forms = &run(&hearth, &id, rich).await.bundles[0].1;
    assert_eq!(
        (forms[1].0.as_str(), forms[1].1.as_slice()),
        ("text/html", b"<b>".as_slice())
    );
    assert_eq!(
        (forms[2].0.as_str(), forms[2].1.len()),
        ("image/png", 700_000)
    );
    let failed = run(&hearth, &id, "def f(): 1/0\nf()").await;
    assert_eq!(
        (failed.error(), failed.ended.status()),
        ("ZeroDivisionError", CodeStatus::Error)
    );
    assert!(failed.error.unwrap().traceback.contains("in f"));
    // Contexts share the sandbox, not the state.
    let mut other = request(&id, "x");
    other.context = "other".into();
    let heard = follow(start(&hearth, other).await.unwrap()).await.unwrap();
    assert_eq!(heard.error(), "NameError");
    // An exec sees the same files, and the interpreter what it wrote.
    assert_eq!(
        hearth
            .run(&id, &["sh", "-c", "echo made >/root/made"])
            .await
            .0,
        0
    );
    assert_eq!(
        run(&hearth, &id, "open('/root/made').read()").await.value(),
        "'made\\n'"
    );

    // Another sandbox shares nothing.
    let (second, _) = hearth.claim("python").await;
    assert_eq!(run(&hearth, &second, "x").await.error(), "NameError");
    let seen = run(
        &hearth,
        &second,
        "import os\nos.environ.get('GREETING'), os.path.exists('/root/made')",
    )
    .await;
    assert_eq!(seen.value(), "(None, False)");
    let draw = "import random, uuid\nrandom.random(), uuid.uuid4()";
    assert_ne!(
        run(&hearth, &id, draw).await.value(),
        run(&hearth, &second, draw).await.value()
    );

    // Bounded output: cut, and told.
    let mut long = request(&id, "print('a' * 100_000)");
    long.output_bytes = 1000;
    let heard = follow(start(&hearth, long).await.unwrap()).await.unwrap();
    assert_eq!(
        (heard.stdout.len(), heard.ended.dropped_bytes),
        (1000, 99_001)
    );
    let metrics = hearth.admin_page("/metrics").1;
    for line in [
        "hearth_code_run_seconds_count{status=\"ok\"}",
        "hearth_code_run_seconds_count{status=\"error\"}",
        "hearth_streams_open{kind=\"run_code\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn code_is_interrupted_bounded_and_begun_anew() {
    let hearth = node(1).await;
    let (id, _) = hearth.claim("python").await;
    run(&hearth, &id, "import os, time\nx = 1").await;

    // By the call of its own.
    let mut stream = start(&hearth, request(&id, "print('on')\nwhile True: pass"))
        .await
        .unwrap();
    until_output(&mut stream).await;
    let interrupt = |context: &str| InterruptCodeRequest {
        claim_id: id.clone(),
        context: context.into(),
        end_context: false,
    };
    let answer = hearth.sandboxes().await.interrupt_code(interrupt("")).await;
    assert!(answer.unwrap().into_inner().ran);
    let heard = follow(stream).await.unwrap();
    assert_eq!(
        (heard.error(), heard.ended.status()),
        ("KeyboardInterrupt", CodeStatus::Interrupted)
    );
    let missing = hearth
        .sandboxes()
        .await
        .interrupt_code(interrupt("none"))
        .await
        .unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);

    // By its caller's going; by its timeout. The state is kept.
    let mut stream = start(&hearth, request(&id, "print('on')\ntime.sleep(600)"))
        .await
        .unwrap();
    until_output(&mut stream).await;
    drop(stream);
    let mut timed = request(&id, "time.sleep(600)");
    timed.timeout = Some(prost_types::Duration {
        seconds: 0,
        nanos: 200_000_000,
    });
    let heard = follow(start(&hearth, timed).await.unwrap()).await.unwrap();
    assert_eq!(heard.ended.status(), CodeStatus::TimedOut);
    assert_eq!(run(&hearth, &id, "x").await.value(), "1");

    // A crash costs the state, and says so.
    let crashed = run(&hearth, &id, "print('last words', flush=True)\nos.abort()").await;
    assert_eq!(
        (crashed.ended.status(), crashed.stdout.as_str()),
        (CodeStatus::Crashed, "last words\n")
    );
    assert!(
        crashed.ended.state_lost && crashed.ended.lost_runs >= 4,
        "{crashed:?}"
    );
    let heard = run(&hearth, &id, "'x' in globals()").await;
    assert_eq!(
        (heard.value().as_str(), heard.begun.state()),
        ("False", CodeState::Lost)
    );

    // An interpreter that lies breaks its own state and nothing else.
    let lies = "import hearth, os\nos.write(hearth.CHANNEL, b'part text/html 99999\\n' + b'x' * 1000 + b'junk 7\\n' * 50_000)";
    assert_eq!(
        run(&hearth, &id, lies).await.ended.status(),
        CodeStatus::Crashed
    );
    assert_eq!(run(&hearth, &id, "1").await.begun.state(), CodeState::Lost);
    let metrics = hearth.admin_page("/metrics").1;
    assert!(
        metrics.contains("hearth_guest_protocol_errors_total 0"),
        "{metrics}"
    );
    assert!(
        metrics.contains("hearth_code_interpreters_lost_total 2"),
        "{metrics}"
    );

    // Without an interpreter in the template there is none.
    hearth.set_pools(vec![pool("plain", 1, 2)]).await;
    hearth.warm("plain", 1).await;
    let (plain, _) = hearth.claim("plain").await;
    let refused = start(&hearth, request(&plain, "1")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(
        refused.message().contains("names no interpreter"),
        "{refused:?}"
    );
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_not_ready_before_its_interpreter() {
    let hearth = Hearth::start().await;
    let mut broken = with_python(1);
    broken.template.as_mut().unwrap().env = [(
        "HEARTH_PRELOAD".to_owned(),
        "import nothing_of_that_name".to_owned(),
    )]
    .into();
    hearth.set_pools(vec![broken]).await;
    eventually("the breaker tells why", || async {
        let status = hearth.status("python").await;
        assert_eq!(status.warm, 0);
        status.breaker_reason.contains("nothing_of_that_name")
    })
    .await;
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn state_outlives_hearthd() {
    let mut hearth = node(1).await;
    let (id, _) = hearth.claim("python").await;
    run(&hearth, &id, "import time\nx = 1").await;
    let long =
        "x = 2\nprint('on')\nfor n in range(200_000): print('y' * 50)\ntime.sleep(0.5)\nx = 3";
    let mut stream = start(&hearth, request(&id, long)).await.unwrap();
    until_output(&mut stream).await;
    hearth.kill();
    let cut = follow(stream).await.unwrap_err();
    // The client's own word for a connection that broke in the middle of a message.
    let broken = [Code::Unavailable, Code::Unknown, Code::Internal];
    assert!(broken.contains(&cut.code()), "{cut:?}");
    hearth.restart().await;
    let heard = run(&hearth, &id, "x").await;
    assert_eq!(heard.value(), "3", "the code ran on");
    assert_eq!(
        (heard.begun.state(), heard.begun.unheard_runs),
        (CodeState::Kept, 1)
    );
    hearth.finish().await;
}
