//! The resident interpreter: real python3 and perl behind the real hearth-init.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use hearth::guest::v1::{
    BundleEnd, Cancel, FailureKind, InterpreterQuery, Interrupt, RunBegun, RunCode, RunEnded,
    RunError, RunState, RunStatus, Stream, Witness, guest_message::Body as Answer,
    host_message::Body as Ask,
};

use crate::{
    claim::full,
    guest::{Guest, Host, eventually, vars},
};

/// Far above what anything here takes, and below the patience for a hang.
const SOON: Duration = Duration::from_secs(5);

/// MIME types and data.
type Forms = Vec<(String, Vec<u8>)>;

/// What code told.
#[derive(Debug, Default)]
struct Told {
    begun: Option<RunBegun>,
    stdout: String,
    stderr: String,
    /// Whole bundles: what each was, its forms.
    bundles: Vec<(BundleEnd, Forms)>,
    error: Option<RunError>,
    ended: Option<RunEnded>,
    /// The words in order; output in a row is one word.
    order: Vec<&'static str>,
}

impl Told {
    fn status(&self) -> RunStatus {
        self.ended
            .as_ref()
            .map(RunEnded::status)
            .unwrap_or_default()
    }

    fn state(&self) -> RunState {
        self.begun.as_ref().map(RunBegun::state).unwrap_or_default()
    }

    fn error(&self) -> (&str, &str) {
        let error = self.error.as_ref().unwrap_or_else(|| panic!("{self:?}"));
        (&error.name, &error.value)
    }

    /// The plain form of the last expression's value.
    fn value(&self) -> String {
        let mut values = self
            .bundles
            .iter()
            .filter(|(end, _)| *end == BundleEnd::Value);
        let (_, forms) = values
            .next()
            .unwrap_or_else(|| panic!("no value: {self:?}"));
        let plain = forms
            .iter()
            .find(|(mime_type, _)| mime_type == "text/plain");
        String::from_utf8_lossy(&plain.unwrap().1).into_owned()
    }

    fn word(&mut self, word: &'static str) {
        if self.order.last() != Some(&word) {
            self.order.push(word);
        }
    }
}

fn code(context: &str, code: &str) -> RunCode {
    RunCode {
        context: context.into(),
        code: code.into(),
        timeout_ms: 0,
        output_bytes: 16 << 20,
    }
}

/// Begins a run; it was taken.
fn begin(host: &mut Host, asked: RunCode) -> u64 {
    let id = host.ask(Ask::RunCode(asked));
    match host.next(id) {
        Answer::RunAccepted(_) => id,
        other => panic!("not accepted: {other:?}"),
    }
}

/// Follows a run to its end.
fn follow(host: &mut Host, id: u64) -> Told {
    let mut told = Told::default();
    let mut forms: Vec<(String, Vec<u8>)> = Vec::new();
    let mut whole = true;
    loop {
        match host.next(id) {
            Answer::RunBegun(begun) => told.begun = Some(begun),
            Answer::Output(output) => {
                let text = String::from_utf8_lossy(&output.data);
                if output.stream() == Stream::Stderr {
                    told.stderr.push_str(&text);
                    told.word("stderr");
                } else {
                    told.stdout.push_str(&text);
                    told.word("stdout");
                }
            }
            Answer::ResultPiece(piece) if piece.end() == BundleEnd::Unspecified => {
                if whole {
                    forms.push((piece.mime_type.clone(), Vec::new()));
                }
                let (mime_type, data) = forms.last_mut().unwrap();
                assert_eq!(*mime_type, piece.mime_type);
                data.extend_from_slice(&piece.data);
                whole = piece.last;
            }
            Answer::ResultPiece(piece) => {
                assert!(whole && !forms.is_empty());
                told.word("bundle");
                told.bundles.push((piece.end(), std::mem::take(&mut forms)));
            }
            Answer::RunError(error) => {
                forms.clear();
                told.word("error");
                told.error = Some(error);
            }
            Answer::RunEnded(ended) => {
                told.ended = Some(ended);
                return told;
            }
            other => panic!("{other:?}"),
        }
    }
}

fn run(host: &mut Host, text: &str) -> Told {
    run_in(host, "default", text)
}

fn run_in(host: &mut Host, context: &str, text: &str) -> Told {
    let id = begin(host, code(context, text));
    follow(host, id)
}

fn python() -> (Guest, Host) {
    let guest = Guest::plain(&["--interpreter", "python"]);
    let mut host = guest.host();
    ready(&mut host);
    (guest, host)
}

fn ready(host: &mut Host) {
    match host.call(Ask::Interpreter(InterpreterQuery {})) {
        Answer::InterpreterReady(_) => {}
        other => panic!("{other:?}"),
    }
}

fn interrupt(host: &mut Host, context: &str, end: bool) -> bool {
    let context = context.into();
    match host.call(Ask::Interrupt(Interrupt { context, end })) {
        Answer::Interrupted(interrupted) => interrupted.ran,
        other => panic!("{other:?}"),
    }
}

#[test]
fn code_tells_output_values_and_errors_in_order() {
    let (_guest, mut host) = python();
    let told = run(
        &mut host,
        "import sys\nprint('out')\nprint('err', file=sys.stderr)",
    );
    assert_eq!(
        (told.stdout.as_str(), told.stderr.as_str()),
        ("out\n", "err\n")
    );
    assert_eq!(
        (told.status(), told.state()),
        (RunStatus::Ok, RunState::New)
    );
    assert!(told.bundles.is_empty(), "None is no value");
    let told = run(&mut host, "x = 41\nx + 1");
    assert_eq!(
        (told.value().as_str(), told.state()),
        ("42", RunState::Kept)
    );
    assert_eq!(run(&mut host, "_ + x").value(), "83");
    let told = run(
        &mut host,
        "def f():\n  raise ValueError('bad')\nprint('before')\nf()",
    );
    assert_eq!(
        (told.status(), told.error()),
        (RunStatus::Error, ("ValueError", "bad"))
    );
    let trace = &told.error.as_ref().unwrap().traceback;
    assert!(
        trace.contains("line 2, in f") && trace.contains("raise ValueError('bad')"),
        "{trace}"
    );
    assert!(
        !trace.contains("execute"),
        "the driver's own frames are left out: {trace}"
    );
    assert_eq!(told.order, ["stdout", "error"]);
    let told = run(
        &mut host,
        "import time\nprint(1)\ndisplay('a', {1: 2})\ntime.sleep(0.3)\nprint(2)\ndisplay('b')\n3",
    );
    assert_eq!(told.order, ["stdout", "bundle", "stdout", "bundle"]);
    let ends: Vec<_> = told.bundles.iter().map(|(end, _)| *end).collect();
    assert_eq!(
        ends,
        [
            BundleEnd::Shown,
            BundleEnd::Shown,
            BundleEnd::Shown,
            BundleEnd::Value
        ]
    );
    assert_eq!(run(&mut host, "1 +").error().0, "SyntaxError");
    assert_eq!(
        run(&mut host, "import sys; sys.exit(3)").error(),
        ("SystemExit", "3")
    );
    // A child's output is the code's, also what it writes without python.
    assert_eq!(
        run(&mut host, "import os; os.system('echo shell')").stdout,
        "shell\n"
    );
    assert_eq!(run(&mut host, "input()").error().0, "EOFError");
    assert_eq!(
        run(&mut host, "import asyncio\nawait asyncio.sleep(0.01)\n7").value(),
        "7"
    );
    // A child that python forked does not answer in its parent's stead.
    let told = run(
        &mut host,
        "if os.fork() == 0:\n  raise SystemExit\nos.wait()[1]",
    );
    assert_eq!(told.value(), "0");
}

#[test]
fn rich_results_come_in_all_their_forms() {
    let (_guest, mut host) = python();
    // Larger than the credit, the outbox and a pipe.
    let rich = "class Rich:\n  def __repr__(self): return 'rich'\n  def _repr_html_(self): return '<b>é</b>'\n  \
                def _repr_png_(self): return bytes(range(256)) * 4000\n  def _repr_json_(self): return {'a': 1}\n  \
                def _repr_latex_(self): return None\nRich()";
    let told = run(&mut host, rich);
    let (end, forms) = &told.bundles[0];
    assert_eq!(*end, BundleEnd::Value);
    let names: Vec<_> = forms.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["text/plain", "text/html", "image/png", "application/json"]
    );
    assert_eq!(forms[1].1, "<b>é</b>".as_bytes());
    assert_eq!(forms[2].1.len(), 256 * 4000);
    assert!(
        forms[2]
            .1
            .chunks(256)
            .all(|chunk| chunk.iter().copied().eq(0..=255))
    );
    assert_eq!(forms[3].1, b"{\"a\": 1}");
    let told = run(
        &mut host,
        "display({'x/y': b'raw', 'text/plain': ''}, raw=True)",
    );
    assert_eq!(told.bundles[0].1[1], ("text/plain".into(), Vec::new()));
    assert_eq!(
        run(&mut host, "display({'no mime': ''}, raw=True)")
            .error()
            .0,
        "ValueError"
    );
    // A form that fails is told on stderr, and the others come.
    let told = run(
        &mut host,
        "class Half:\n  def _repr_html_(self): 1/0\nHalf()",
    );
    assert!(told.stderr.contains("ZeroDivisionError") && told.bundles.len() == 1);
    assert_eq!(
        run(&mut host, "class Bad:\n  def __repr__(self): 1/0\nBad()")
            .error()
            .0,
        "ZeroDivisionError"
    );
}

#[test]
fn contexts_are_apart_and_bounded() {
    let (_guest, mut host) = python();
    run(&mut host, "x = 1");
    assert_eq!(run_in(&mut host, "other", "x").error().0, "NameError");
    // One waits for its turn; another context goes on beside it.
    let slow = begin(
        &mut host,
        code("default", "import time; time.sleep(0.3); x += 1"),
    );
    let next = begin(&mut host, code("default", "x"));
    assert_eq!(run_in(&mut host, "other", "2").value(), "2");
    assert_eq!(follow(&mut host, slow).status(), RunStatus::Ok);
    assert_eq!(follow(&mut host, next).value(), "2");
    for number in 2..8 {
        assert_eq!(run_in(&mut host, &format!("c{number}"), "1").value(), "1");
    }
    let full = host.failure(Ask::RunCode(code("one.too-many", "1")));
    assert_eq!(full.kind(), FailureKind::Limit, "{full:?}");
    assert!(!interrupt(&mut host, "other", true));
    eventually("its place is free", || {
        let id = host.ask(Ask::RunCode(code("one.too-many", "1")));
        match host.next(id) {
            Answer::RunAccepted(_) => follow(&mut host, id).state() == RunState::New,
            _ => false,
        }
    });
    // A queue has a bound too.
    let first = begin(&mut host, code("default", "import time; time.sleep(60)"));
    for _ in 1..16 {
        begin(&mut host, code("default", "1"));
    }
    let full = host.failure(Ask::RunCode(code("default", "1")));
    assert_eq!(full.kind(), FailureKind::Limit, "{full:?}");
    assert!(interrupt(&mut host, "default", false));
    assert_eq!(follow(&mut host, first).status(), RunStatus::Interrupted);
    for wrong in ["", "a b", "é", "/", &"x".repeat(65)] {
        let failure = host.failure(Ask::RunCode(code(wrong, "1")));
        assert_eq!(failure.kind(), FailureKind::Invalid, "{wrong:?}");
    }
    let context = "never".into();
    let failure = host.failure(Ask::Interrupt(Interrupt {
        context,
        end: false,
    }));
    assert_eq!(failure.kind(), FailureKind::NotFound);
}

#[test]
fn an_interruption_ends_the_code_and_keeps_the_state() {
    let (_guest, mut host) = python();
    run(&mut host, "x = 5");
    let id = begin(
        &mut host,
        code("default", "print('on', flush=True)\nwhile True: pass"),
    );
    while !matches!(host.next(id), Answer::Output(_)) {}
    assert!(interrupt(&mut host, "default", false));
    let told = follow(&mut host, id);
    assert_eq!(
        (told.status(), told.error().0),
        (RunStatus::Interrupted, "KeyboardInterrupt")
    );
    assert!(!interrupt(&mut host, "default", false), "nothing runs");
    // What it started gets the signal too, as from a terminal.
    let mut asked = code(
        "default",
        "import subprocess; subprocess.run(['sleep', '60'])",
    );
    asked.timeout_ms = 200;
    let id = begin(&mut host, asked);
    let told = follow(&mut host, id);
    assert_eq!(
        (told.status(), told.error().0),
        (RunStatus::TimedOut, "KeyboardInterrupt")
    );
    // Cancel is an interruption too; the next one waits for its end.
    let id = begin(
        &mut host,
        code("default", "import time; x = 6; time.sleep(60); x = 7"),
    );
    while !matches!(host.next(id), Answer::RunBegun(_)) {}
    std::thread::sleep(Duration::from_millis(100));
    host.say(id, Ask::Cancel(Cancel {}));
    let told = run(&mut host, "x");
    assert_eq!((told.value().as_str(), told.state()), ("6", RunState::Kept));
    assert_eq!(told.begun.unwrap().unheard, 0, "its caller wanted it so");
    // What has not begun never does.
    let slow = begin(&mut host, code("default", "time.sleep(0.2)"));
    let never = begin(&mut host, code("default", "x = 8"));
    host.say(never, Ask::Cancel(Cancel {}));
    follow(&mut host, slow);
    assert_eq!(run(&mut host, "x").value(), "6");
}

#[test]
fn code_that_does_not_listen_costs_its_state() {
    let (_guest, mut host) = python();
    run(&mut host, "x = 5");
    let mut asked = code(
        "default",
        "import signal\nsignal.signal(signal.SIGINT, lambda *_: print('no', flush=True))\nwhile True: pass",
    );
    asked.timeout_ms = 300;
    let began = Instant::now();
    let id = begin(&mut host, asked);
    let waits = begin(&mut host, code("default", "x"));
    let told = follow(&mut host, id);
    let took = began.elapsed();
    assert!(took > Duration::from_secs(2) && took < SOON * 2, "{took:?}");
    assert_eq!(told.status(), RunStatus::TimedOut);
    assert_eq!(told.stdout, "no\nno\n", "interrupted twice before the end");
    let ended = told.ended.unwrap();
    assert_eq!(
        (ended.state_lost, ended.lost_runs, ended.signal),
        (true, 2, 9)
    );
    let told = follow(&mut host, waits);
    assert_eq!(told.status(), RunStatus::Abandoned);
    assert!(told.begun.is_none(), "it never ran");
    let told = run(&mut host, "'x' in globals()");
    assert_eq!(
        (told.value().as_str(), told.state()),
        ("False", RunState::Lost)
    );
    assert_eq!(run(&mut host, "1").state(), RunState::Kept);
}

#[test]
fn a_crash_is_told_and_mended() {
    let (guest, mut host) = python();
    run(&mut host, "x = 1");
    for (end, code_and_signal) in [
        (
            "import os; print('last words', flush=True); os._exit(7)",
            (7, 0),
        ),
        (
            "import os; print('last words', flush=True); os.abort()",
            (0, 6),
        ),
        (
            "import os; print('last words', flush=True); os.kill(os.getpid(), 9)",
            (0, 9),
        ),
    ] {
        let told = run(&mut host, end);
        assert_eq!(told.status(), RunStatus::Crashed, "{told:?}");
        assert_eq!(told.stdout, "last words\n");
        let ended = told.ended.unwrap();
        assert_eq!((ended.code, ended.signal), code_and_signal);
        assert!(ended.state_lost);
        assert_eq!(run(&mut host, "'x' in globals()").state(), RunState::Lost);
    }
    guest.log_until("interpreter of context default has ended");
}

#[test]
fn a_hostile_interpreter_harms_only_its_own_state() {
    let (_guest, mut host) = python();
    run_in(&mut host, "other", "y = 1");
    let on_channel = |what: &str| {
        format!(
            "import hearth, os, time\nos.write(hearth.CHANNEL, {what})\ntime.sleep(0.05)\nwhile True: os.write(hearth.CHANNEL, b'x' * 65536)"
        )
    };
    for what in [
        "b'garbage\\n'",
        "b'x' * 300",
        "b'part text/plain 18446744073709551616\\n'",
        "b'part no-mime 3\\nabc'",
        "b'error 999999\\n'",
        "b'value 0\\n'",
        "b'part text/html 100\\nonly a half'",
        "b'\\xff\\xfe 0\\n'",
    ] {
        let mut asked = code("default", &on_channel(what));
        asked.output_bytes = 1 << 20;
        let id = begin(&mut host, asked);
        let told = follow(&mut host, id);
        assert_eq!(told.status(), RunStatus::Crashed, "{what}: {told:?}");
    }
    // An early end is believed; the next run finds what is left of it, and hearth-init is none the worse.
    run(
        &mut host,
        "import hearth, os\nos.write(hearth.CHANNEL, b'done 0\\ndone 0\\nshown 0\\n')",
    );
    host.ping();
    // A closed channel leaves nobody to talk to.
    let told = run_in(&mut host, "third", "import os; os.closerange(3, 100)");
    assert_eq!(told.status(), RunStatus::Crashed);
    // Endless output to nowhere and without end, and a result without end, are cut; the caller is told how much.
    let mut asked = code("fourth", "print('a' * 3_000_000)\n'b' * 3_000_000");
    asked.output_bytes = 1 << 20;
    let id = begin(&mut host, asked);
    let told = follow(&mut host, id);
    assert_eq!(told.stdout.len(), 1 << 20);
    assert!(
        told.bundles.is_empty(),
        "a bundle that does not fit is left out"
    );
    assert_eq!(told.status(), RunStatus::Ok);
    assert_eq!(
        told.ended.unwrap().dropped_bytes,
        3_000_001 + 3_000_002 - (1 << 20)
    );
    assert_eq!(run_in(&mut host, "other", "y").value(), "1");
}

#[test]
fn who_does_not_read_holds_the_code_back() {
    let (_guest, mut host) = python();
    host.generous = false;
    let id = begin(
        &mut host,
        code(
            "default",
            "for n in range(100000): print('x' * 100)\ndisplay('end')",
        ),
    );
    let mut got = 0;
    while let Some(answer) = host.next_within(id, Duration::from_millis(300)) {
        if let Answer::Output(output) = answer {
            got += output.data.len();
        }
    }
    assert!(
        (32 << 10..=64 << 10).contains(&got),
        "{got} bytes without more credit"
    );
    host.ping();
    assert_eq!(run_in(&mut host, "other", "1").value(), "1");
    host.generous = true;
    host.grant(id, 64 << 10);
    let told = follow(&mut host, id);
    assert_eq!(got + told.stdout.len(), 100_000 * 101);
    assert_eq!(told.bundles.len(), 1);
}

#[test]
fn a_background_writer_does_not_hold_up_the_end() {
    let (_guest, mut host) = python();
    let told = run(
        &mut host,
        "import subprocess\np = subprocess.Popen(['yes'])\n7",
    );
    assert_eq!(told.value(), "7");
    host.ping();
    assert_eq!(run(&mut host, "p.kill(); p.wait()").value(), "-9");
}

#[test]
fn a_claim_reaches_the_interpreter_that_was_there_before() {
    let guest = Guest::first(&["--interpreter", "python"]);
    let mut host = guest.host();
    ready(&mut host);
    let mut claim = full("c-1");
    claim.env = vars(&[
        ("TOKEN", "abc=d\ne"),
        ("TZ", "Asia/Tokyo"),
        ("PATH", "/bin:/usr/bin"),
    ]);
    match host.call(Ask::Claim(claim)) {
        Answer::ClaimAck(_) => {}
        other => panic!("{other:?}"),
    }
    let told = run(
        &mut host,
        "import os, time\nos.environ['TOKEN'], os.environ['PATH'], time.tzname[0]",
    );
    assert_eq!(told.value(), "('abc=d\\ne', '/bin:/usr/bin', 'JST')");
    assert_eq!(
        run_in(&mut host, "new", "import os; os.environ['TOKEN']").value(),
        "'abc=d\\ne'"
    );
    assert_eq!(
        run(&mut host, "os.getuid(), os.getpid() != 1").value(),
        "(0, True)"
    );
}

#[test]
fn generators_are_seeded_anew_by_a_claim() {
    // The preload seeds its generators as a copy of one image would have them: all the same.
    let preload = "import random, hearth\nrandom.seed(1)\nmine = random.Random(1)\nhearth.at_claim(mine.seed)";
    let draw = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hearth-init"));
        command.env("HEARTH_PRELOAD", preload);
        let guest = Guest::launch(command, &["--interpreter", "python"]);
        let mut host = guest.host();
        ready(&mut host);
        run(&mut host, "random.random(), mine.random()").value()
    };
    let (one, two) = (draw(), draw());
    let halves = |text: &str| {
        text.trim_matches(['(', ')'])
            .split(", ")
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert!(
        halves(&one)
            .iter()
            .zip(halves(&two))
            .all(|(one, two)| *one != two),
        "{one} {two}"
    );
}

#[test]
fn code_outlives_the_session_unheard() {
    let (guest, mut host) = python();
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("mark");
    run(&mut host, "x = 1");
    let text = format!(
        "import time\nx = 2\nprint('y' * 1_000_000)\ntime.sleep(0.3)\nopen({mark:?}, 'w').close()\nx = 3"
    );
    let id = begin(&mut host, code("default", &text));
    begin(&mut host, code("default", "x = 'never'"));
    while !matches!(host.next(id), Answer::Output(_)) {}
    drop(host);
    let mut host = guest.host();
    let told = run(&mut host, "x");
    assert_eq!(told.value(), "3", "it ran on; what waited did not begin");
    let begun = told.begun.unwrap();
    assert_eq!((begun.state(), begun.unheard), (RunState::Kept, 1));
    assert!(Path::new(&mark).exists());
    assert_eq!(run(&mut host, "x").begun.unwrap().unheard, 0, "told once");
    match host.call(Ask::Witness(Witness {})) {
        Answer::Held(_) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_interpreter_that_cannot_start_is_told() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hearth-init"));
    command.env("PATH", "/nowhere");
    let guest = Guest::launch(command, &["--interpreter", "python"]);
    let failure = guest.host().failure(Ask::Interpreter(InterpreterQuery {}));
    assert_eq!(failure.kind(), FailureKind::NotFound, "{failure:?}");
    assert!(failure.message.contains("python3"), "{failure:?}");

    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hearth-init"));
    command.env("HEARTH_PRELOAD", "import no_such_module");
    let guest = Guest::launch(command, &["--interpreter", "python"]);
    let failure = guest.host().failure(Ask::Interpreter(InterpreterQuery {}));
    assert_eq!(failure.kind(), FailureKind::Io, "{failure:?}");
    assert!(failure.message.contains("no_such_module"), "{failure:?}");

    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    for ask in [
        Ask::Interpreter(InterpreterQuery {}),
        Ask::RunCode(code("default", "1")),
    ] {
        let failure = host.failure(ask);
        assert_eq!(failure.kind(), FailureKind::Invalid);
        assert!(failure.message.contains("names no interpreter"));
    }
}

#[test]
fn another_driver_is_fifty_lines() {
    let guest = Guest::plain(&["--interpreter", "perl"]);
    let mut host = guest.host();
    ready(&mut host);
    let told = run(&mut host, "our $x = 41; print \"out\\n\"; $x + 1");
    assert_eq!(
        (told.stdout.as_str(), told.value().as_str()),
        ("out\n", "42")
    );
    assert_eq!(run(&mut host, "$x").value(), "41");
    assert_eq!(run(&mut host, "die 'oops'").error().0, "Error");
    assert_eq!(run(&mut host, "display('a'); undef").bundles.len(), 1);
    let mut asked = code("default", "1 while 1");
    asked.timeout_ms = 200;
    let id = begin(&mut host, asked);
    assert_eq!(follow(&mut host, id).status(), RunStatus::TimedOut);
    assert_eq!(run(&mut host, "$x").value(), "41");
    assert_eq!(run(&mut host, "exit 3").status(), RunStatus::Crashed);
}

/// Not asserted: how long code takes from its request to its value.
#[test]
fn resident_code_is_quick() {
    let (_guest, mut host) = python();
    run(&mut host, "1");
    let began = Instant::now();
    for number in 0..100 {
        assert_eq!(
            run(&mut host, &format!("print({number})\n{number}")).value(),
            number.to_string()
        );
    }
    let mean = began.elapsed() / 100;
    println!("resident: {mean:?} a run");
    assert!(mean < SOON);
}
