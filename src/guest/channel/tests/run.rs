//! Code through the channel: its words in order, and every way in which a guest can tell them wrong.

use super::hostile::{check_answer, run};
use super::*;
use crate::guest::RunItem;
use crate::guest::wire::{FIRST_CREDIT, RESULT_CREDIT};

fn code() -> v1::RunCode {
    v1::RunCode {
        context: "default".into(),
        code: "x".into(),
        timeout_ms: 0,
        output_bytes: 1 << 20,
    }
}

fn accepted() -> Says {
    Says::RunAccepted(v1::RunAccepted { ahead: 2 })
}

fn begun() -> Says {
    Says::RunBegun(v1::RunBegun {
        state: v1::RunState::New.into(),
        unheard: 0,
    })
}

fn piece(mime_type: &str, data: &[u8]) -> v1::ResultPiece {
    v1::ResultPiece {
        mime_type: mime_type.into(),
        data: data.to_vec().into(),
        last: true,
        end: 0,
    }
}

fn end() -> v1::ResultPiece {
    v1::ResultPiece {
        end: v1::BundleEnd::Value.into(),
        ..v1::ResultPiece::default()
    }
}

fn error(bytes: usize) -> Says {
    Says::RunError(v1::RunError {
        name: "E".into(),
        value: String::new(),
        traceback: "t".repeat(bytes),
    })
}

fn ended(status: v1::RunStatus) -> v1::RunEnded {
    v1::RunEnded {
        status: status.into(),
        ..v1::RunEnded::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn words_keep_their_place_among_the_output() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (call, _) = guest.message();
        for body in [
            accepted(),
            begun(),
            stdout(b"a"),
            output(v1::Stream::Stderr, b"e", false),
            stdout(b"b"),
            Says::ResultPiece(piece("text/plain", b"1")),
            Says::ResultPiece(end()),
            stdout(b"c"),
            error(3),
            stdout(b"d"),
            Says::RunEnded(ended(v1::RunStatus::Error)),
        ] {
            guest.say(call, body);
        }
    });
    let host = rig.connect();
    let mut stream = host.run_code(code()).await.unwrap();
    // All of it is here before anything is taken.
    guest.join().unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut order = String::new();
    for item in drain(&mut stream).await {
        match item.unwrap() {
            StreamItem::Data { data, .. } => order += std::str::from_utf8(&data).unwrap(),
            StreamItem::Run(RunItem::Accepted(ahead)) => order += &format!("<{ahead}"),
            StreamItem::Run(RunItem::Begun(_)) => order += "(",
            StreamItem::Run(RunItem::Piece(piece)) if piece.end == 0 => order += "p",
            StreamItem::Run(RunItem::Piece(_)) => order += "/",
            StreamItem::Run(RunItem::Error(_)) => order += "!",
            StreamItem::Run(RunItem::Ended(_)) => order += ")",
            other => panic!("{other:?}"),
        }
    }
    // stdout and stderr merge between two words; nothing passes a word.
    let known = ["<2(abep/c!d)", "<2(aebp/c!d)", "<2(eabp/c!d)"];
    assert!(known.contains(&order.as_str()), "{order}");
}

#[tokio::test(flavor = "multi_thread")]
async fn words_that_are_wrong_fail_the_channel() {
    let v1_piece = |edit: fn(&mut v1::ResultPiece)| {
        let mut piece = piece("text/plain", b"1");
        edit(&mut piece);
        vec![begun(), Says::ResultPiece(piece)]
    };
    let v1_end = |edit: fn(&mut v1::RunEnded)| {
        let mut ended = ended(v1::RunStatus::Ok);
        edit(&mut ended);
        vec![begun(), Says::RunEnded(ended)]
    };
    let wrong = [
        vec![accepted()],
        vec![begun(), begun()],
        vec![stdout(b"before its begin")],
        vec![error(1)],
        vec![Says::ResultPiece(piece("text/plain", b"1"))],
        vec![Says::RunEnded(ended(v1::RunStatus::Ok))],
        vec![Says::RunBegun(v1::RunBegun {
            state: 0,
            unheard: 0,
        })],
        vec![Says::RunBegun(v1::RunBegun {
            state: 77,
            unheard: 0,
        })],
        vec![begun(), stdout(b"")],
        vec![begun(), output(v1::Stream::Stdout, b"x", true)],
        vec![begun(), error(17 << 10)],
        vec![begun(), exited(0)],
        vec![begun(), Says::ResultPiece(end())],
        vec![begun(), error(1), Says::ResultPiece(end())],
        v1_piece(|piece| piece.mime_type = "text".into()),
        v1_piece(|piece| piece.mime_type = "text/pl ain".into()),
        v1_piece(|piece| piece.mime_type = format!("a/{}", "b".repeat(100))),
        v1_piece(|piece| piece.mime_type = String::new()),
        v1_piece(|piece| piece.end = 1),
        v1_piece(|piece| piece.end = 9),
        v1_end(|ended| ended.status = 0),
        v1_end(|ended| ended.status = 99),
        v1_end(|ended| ended.code = -1),
        v1_end(|ended| ended.signal = 65),
    ];
    for words in wrong {
        let says = std::iter::once(accepted()).chain(words).collect();
        check_answer(says, async |host| run(host.run_code(code()).await).await).await;
    }
    // Not even accepted.
    for says in [started(), begun(), stdout(b"x"), pong()] {
        check_answer(vec![says], async |host| host.run_code(code()).await).await;
    }
    for says in [pong(), accepted()] {
        let ask = async |host: Arc<dyn Guest>| host.interpreter(LONG).await;
        check_answer(vec![says], ask).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn words_without_data_cost_credit_too() {
    // As many empty pieces as the credit pays for, and one more.
    let most = FIRST_CREDIT / (RESULT_CREDIT + 10);
    let mut says = vec![accepted(), begun()];
    says.extend((0..=most).map(|_| Says::ResultPiece(piece("text/plain", b""))));
    check_answer(says, async |host| {
        let stream = host.run_code(code()).await?;
        // Nobody takes anything.
        let error = failure(&host).await;
        drop(stream);
        Err::<(), _>(error)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_interpreter_and_interruptions_are_asked() {
    let rig = Rig::new();
    rig.run(|guest| {
        guest.align();
        guest.serve(|guest, call, body| match body {
            Hears::Interpreter(_) => {
                guest.say(call, Says::InterpreterReady(v1::InterpreterReady {}));
            }
            Hears::Interrupt(asked) => {
                let interrupted = v1::Interrupted { ran: asked.end };
                guest.say(call, Says::Interrupted(interrupted));
            }
            other => panic!("{other:?}"),
        });
    });
    let host = rig.connect();
    assert_eq!(host.interpreter(LONG).await, Ok(()));
    for end in [true, false] {
        let context = "c".to_owned();
        let asked = v1::Interrupt { context, end };
        assert_eq!(host.interrupt(asked, LONG).await, Ok(end));
    }
}
