//! RunCode and InterruptCode against a guest that says what a real one says; the real one is in tests/node/code.rs.
use super::*;
use crate::api::run_code_response::Response as Word;
use crate::api::{
    BundleKind, CodeState, CodeStatus, InterruptCodeRequest, RunCodeRequest, RunCodeResponse,
};
use std::sync::atomic::Ordering;
use tonic::{Code, Streaming};

fn request(claim: &str, code: &str) -> RunCodeRequest {
    RunCodeRequest {
        claim_id: claim.into(),
        code: code.into(),
        ..RunCodeRequest::default()
    }
}

async fn start(bench: &Bench, request: RunCodeRequest) -> Streaming<RunCodeResponse> {
    let answer = bench.sandboxes().await.run_code(request).await;
    answer.unwrap().into_inner()
}

async fn words(mut stream: Streaming<RunCodeResponse>) -> Vec<Word> {
    let mut words = Vec::new();
    while let Some(answer) = stream.message().await.unwrap() {
        words.push(answer.response.unwrap());
    }
    words
}

#[tokio::test]
async fn what_code_tells_comes_through_in_order() {
    let bench = Bench::start().await;
    let (claim, _) = bench.claimed().await;
    let told = words(start(&bench, request(&claim, "hello")).await).await;
    let [
        Word::Begun(begun),
        Word::Stdout(out),
        Word::Piece(piece),
        Word::Piece(end),
        Word::Ended(ended),
    ] = told.as_slice()
    else {
        panic!("{told:?}");
    };
    assert_eq!((begun.state(), begun.unheard_runs), (CodeState::New, 3));
    assert_eq!(&out[..], b"hello");
    // The default context, in its plain form.
    assert_eq!(
        (piece.mime_type.as_str(), &piece.data[..], piece.last),
        ("text/plain", &b"default"[..], true)
    );
    assert_eq!(end.end(), BundleKind::Result);
    assert_eq!(ended.status(), CodeStatus::Ok);
    assert_eq!(ended.took.unwrap().nanos, 1_500_000);
    let told = words(start(&bench, request(&claim, "crash")).await).await;
    assert!(matches!(told.last(), Some(Word::Ended(ended)) if ended.state_lost));
    for line in [
        r#"hearth_code_run_seconds_count{status="ok"} 1"#,
        r#"hearth_code_run_seconds_count{status="crashed"} 1"#,
        "hearth_code_interpreters_lost_total 1",
        r#"hearth_streams_open{kind="run_code"} 0"#,
    ] {
        bench.counted(line).await;
    }
}

#[tokio::test]
async fn who_leaves_interrupts_and_is_counted() {
    let bench = Bench::start().await;
    let (claim, _) = bench.claimed().await;
    let stream = start(&bench, request(&claim, "wait")).await;
    let interrupt = |context: &str| InterruptCodeRequest {
        claim_id: claim.clone(),
        context: context.into(),
        end_context: false,
    };
    let mut client = bench.sandboxes().await;
    let answer = client.interrupt_code(interrupt("")).await.unwrap();
    assert!(answer.into_inner().ran);
    let missing = client.interrupt_code(interrupt("other")).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    drop(stream);
    eventually("the guest was told", || {
        bench.driver.running.load(Ordering::SeqCst) == 0
    })
    .await;
    bench
        .counted(r#"hearth_code_run_seconds_count{status="cut"} 1"#)
        .await;
}
