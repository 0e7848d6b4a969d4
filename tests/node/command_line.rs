//! What people type, on a real node: every command of hearthctl once, with its exit codes and its forms.
use crate::hearthd::{Hearth, eventually, patience};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::tcgetattr;
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const POOLS: &str = r#"
[[pools]]
name = "python"
min_warm = 2
max_total = 8
[pools.template]
image = "hearth.local/python:3"
interpreter = "python"
"#;

fn command(hearth: &Hearth, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearthctl"));
    command.arg("--socket").arg(hearth.path("s"));
    command
        .arg("--admin")
        .arg(format!("http://{}", hearth.admin));
    command.args(args);
    command
}

fn ctl(hearth: &Hearth, args: &[&str]) -> Output {
    command(hearth, args).stdin(Stdio::null()).output().unwrap()
}

fn good(hearth: &Hearth, args: &[&str]) -> String {
    let output = ctl(hearth, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(hearth: &Hearth, args: &[&str]) -> serde_json::Value {
    let args: Vec<_> = args.iter().chain(&["-o", "json"]).copied().collect();
    serde_json::from_str(&good(hearth, &args)).unwrap()
}

fn with_stdin(hearth: &Hearth, args: &[&str], stdin: &[u8]) -> Output {
    let mut child = command(hearth, args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    child.wait_with_output().unwrap()
}

/// hearthctl on a terminal: what it shows while `typed` is typed, a line whenever the last one has been answered.
fn on_a_terminal(hearth: &Hearth, args: &[&str], typed: &[(&str, &str)]) -> (String, i32) {
    let pty = openpty(None, None).unwrap();
    let slave = || Stdio::from(pty.slave.try_clone().unwrap());
    let mut child: Child = command(hearth, args)
        .stdin(slave())
        .stdout(slave())
        .stderr(slave())
        .spawn()
        .unwrap();
    drop(pty.slave);
    let mut master = File::from(pty.master);
    let mut shown = String::new();
    let mut seen = 0;
    for (prompt, line) in typed {
        while !shown[seen..].contains(prompt) {
            let mut buffer = [0; 4096];
            let count = master.read(&mut buffer).unwrap();
            assert!(count > 0, "ended before {prompt:?}: {shown}");
            shown.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        seen = shown.len();
        master.write_all(line.as_bytes()).unwrap();
    }
    // The end of the terminal is EIO.
    let mut buffer = [0; 4096];
    while let Ok(count) = master.read(&mut buffer) {
        if count == 0 {
            break;
        }
        shown.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    (shown, child.wait().unwrap().code().unwrap())
}

/// What runs in a reservation's Pod: nothing, and it ends when it is told to, also as process 1, for which no signal has a
/// default action.
#[test]
fn hearthd_wait_does_nothing_until_sigterm() {
    let mut waiting = Command::new(env!("CARGO_BIN_EXE_hearthd"))
        .arg("wait")
        .env_clear()
        .spawn()
        .unwrap();
    let pid = waiting.id();
    // proc_pid_syscall(5): the call that it is in comes first. `SigBlk` would not tell: who waits for a signal has it unblocked.
    let waits_for_signals = || {
        let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
        call.split(' ').next() == Some(nix::libc::SYS_rt_sigtimedwait.to_string().as_str())
    };
    let began = std::time::Instant::now();
    while !waits_for_signals() {
        assert!(began.elapsed() < crate::hearthd::patience());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(waiting.try_wait().unwrap().is_none());
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(waiting.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_can_be_typed() {
    let hearth = Hearth::start().await;
    let file = hearth.path("pools.toml");
    std::fs::write(&file, POOLS).unwrap();
    let file = file.to_str().unwrap();

    // Pools and images.
    good(&hearth, &["pools", "set", "-f", file, "--wait", "60s"]);
    assert!(good(&hearth, &["pools"]).contains("python"));
    assert_eq!(json(&hearth, &["pools"])["pools"][0]["warm"], 2);
    assert!(good(&hearth, &["pools", "export"]).contains("hearth.local/python:3"));
    assert_eq!(
        good(&hearth, &["image", "ls", "-o", "name"]).trim(),
        "hearth.local/python:3"
    );
    let used = ctl(&hearth, &["image", "rm", "hearth.local/python:3"]);
    assert!(!used.status.success(), "{used:?}");
    assert!(
        String::from_utf8_lossy(&used.stderr).contains("pool python"),
        "{used:?}"
    );

    // Claim, look, renew.
    let claimed = json(
        &hearth,
        &["claim", "python", "-e", "WHO=me", "--hostname", "box"],
    );
    let claim = claimed["claim_id"].as_str().unwrap().to_owned();
    let short = &claim[..8];
    assert!(good(&hearth, &["claims"]).contains(short));
    assert!(good(&hearth, &["get", short]).contains(&claim));
    good(&hearth, &["renew", short, "--ttl", "1h"]);
    for args in [
        vec!["node"],
        vec!["top"],
        vec!["stats", short],
        vec!["orphans"],
        vec!["claims", "-o", "yaml"],
    ] {
        assert!(
            !good(&hearth, &args).is_empty() || args[0] == "orphans",
            "{args:?}"
        );
    }
    assert_eq!(json(&hearth, &["node"])["phase"], "ready");

    // Exec: output, stdin, exit codes.
    assert_eq!(
        good(
            &hearth,
            &["exec", short, "--", "sh", "-c", "echo $WHO@$(hostname)"]
        ),
        "me@box\n"
    );
    let echoed = with_stdin(
        &hearth,
        &["exec", "-i", short, "--", "cat"],
        b"through\nand back\n",
    );
    assert_eq!(echoed.stdout, b"through\nand back\n");
    assert_eq!(
        ctl(&hearth, &["exec", short, "--", "sh", "-c", "exit 7"])
            .status
            .code(),
        Some(7)
    );
    assert_eq!(
        ctl(&hearth, &["exec", short, "--", "nothing-there"])
            .status
            .code(),
        Some(127)
    );
    let late = ctl(
        &hearth,
        &["exec", "--timeout", "300ms", short, "--", "sleep", "30"],
    );
    assert_eq!(late.status.code(), Some(137), "{late:?}");

    // exec -it behaves as a terminal does.
    let typed = [
        ("# ", "tty; stty size; echo wo''rks\r"),
        // Told by the group that the key is to end: before that the shell itself would take it.
        ("works", "(echo be''gun; exec sleep 30)\r"),
        ("begun", "\x03"),
        ("# ", "exit 3\r"),
    ];
    let (shown, code) = on_a_terminal(
        &hearth,
        &["exec", "-it", "-e", "PS1=# ", short, "--", "sh"],
        &typed,
    );
    assert_eq!(code, 3, "{shown}");
    assert!(shown.contains("/dev/pts/"), "{shown}");

    // Copy: files, directories, streams.
    let tree = hearth.path("tree");
    std::fs::create_dir_all(tree.join("deep")).unwrap();
    std::fs::write(tree.join("deep/file"), "content").unwrap();
    good(
        &hearth,
        &["cp", tree.to_str().unwrap(), &format!("{short}:/root/tree")],
    );
    let back = hearth.path("back");
    good(
        &hearth,
        &["cp", &format!("{short}:/root/tree"), back.to_str().unwrap()],
    );
    assert_eq!(
        std::fs::read_to_string(back.join("deep/file")).unwrap(),
        "content"
    );
    let out = with_stdin(
        &hearth,
        &["cp", "-", &format!("{short}:/root/note")],
        b"from stdin",
    );
    assert!(out.status.success(), "{out:?}");
    assert_eq!(
        good(&hearth, &["cp", &format!("{short}:/root/note"), "-"]),
        "from stdin"
    );

    // A server inside, from here.
    good(
        &hearth,
        &[
            "exec",
            "-d",
            "-w",
            "/root",
            short,
            "--",
            "python3",
            "-m",
            "http.server",
            "8000",
        ],
    );
    assert!(fetched(&hearth, short).ends_with("from stdin"));

    // Run with code: values, tracebacks, contexts, exit codes, documents.
    assert_eq!(
        good(&hearth, &["run", short, "x = 6\nprint('out')\nx * 7"]),
        "out\n42\n"
    );
    assert_eq!(good(&hearth, &["run", short, "x"]), "6\n");
    let failed = ctl(&hearth, &["run", short, "-c", "other", "x"]);
    let told = String::from_utf8_lossy(&failed.stderr);
    assert_eq!(failed.status.code(), Some(1));
    assert!(
        told.contains("<run 1>") && told.contains("NameError"),
        "{told}"
    );
    let script = hearth.path("script.py");
    std::fs::write(
        &script,
        "display({'text/html': '<b>', 'image/png': b'\\x89'}, raw=True)",
    )
    .unwrap();
    let shown = json(&hearth, &["run", short, "-f", script.to_str().unwrap()]);
    assert_eq!(shown["bundles"][0]["forms"]["text/html"], "<b>", "{shown}");
    assert_eq!(shown["bundles"][0]["forms"]["image/png"]["base64"], "iQ==");
    assert_eq!(
        (&shown["status"], &shown["state"]),
        (&"OK".into(), &"KEPT".into())
    );
    let code = [
        "run",
        short,
        "--timeout",
        "200ms",
        "import time; time.sleep(60)",
    ];
    assert_eq!(ctl(&hearth, &code).status.code(), Some(124));
    let crashed = ctl(&hearth, &["run", short, "import os; os._exit(3)"]);
    assert_eq!(crashed.status.code(), Some(125));
    let told = String::from_utf8_lossy(&crashed.stderr).into_owned();
    assert!(told.contains("exit code 3"), "{told}");
    assert_eq!(
        good(&hearth, &["run", short, "--end-context", "-c", "other"]),
        "nothing ran\n"
    );
    std::fs::remove_file(&script).unwrap();

    // Run: claim, exec, release in one.
    assert_eq!(
        good(
            &hearth,
            &["run", "python", "--", "python3", "-c", "print(6*7)"]
        ),
        "42\n"
    );
    assert_eq!(
        ctl(&hearth, &["run", "python", "--", "sh", "-c", "exit 5"])
            .status
            .code(),
        Some(5)
    );
    let figures = json(&hearth, &["bench", "python", "-n", "3"]);
    assert_eq!((&figures["n"], &figures["failed"]), (&3.into(), &0.into()));
    assert!(figures["first_code_seconds"].is_null());
    let figures = json(
        &hearth,
        &["bench", "python", "-n", "1", "--code", "print(1)"],
    );
    for runs in ["first_code_seconds", "code_again_seconds"] {
        assert!(figures[runs]["p50"].as_f64().unwrap() > 0.0, "{figures}");
    }
    let failing = ctl(&hearth, &["bench", "python", "-n", "1", "--code", "1 / 0"]);
    assert_eq!(failing.status.code(), Some(1));
    let told = String::from_utf8_lossy(&failing.stderr).into_owned();
    assert!(told.contains("CODE_STATUS_ERROR"), "{told}");

    // Doctor finds this node well, or says what to do.
    let doctor = ctl(&hearth, &["doctor", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    assert!(report.to_string().contains("containerd"), "{report}");
    assert!(good(&hearth, &["completions", "bash"]).contains("hearthctl"));

    // Failures tell what is wrong by their exit code.
    assert_eq!(
        ctl(&hearth, &["get", "00000000-0000-4000-8000-000000000001"])
            .status
            .code(),
        Some(4)
    );
    assert_eq!(
        ctl(&hearth, &["claim", "no-such-pool"]).status.code(),
        Some(4)
    );
    assert_eq!(ctl(&hearth, &["claim"]).status.code(), Some(2));
    let nobody = Command::new(env!("CARGO_BIN_EXE_hearthctl"))
        .args(["--socket", "/nonexistent", "pools"])
        .output()
        .unwrap();
    assert_eq!(nobody.status.code(), Some(3), "{nobody:?}");

    good(&hearth, &["release", short]);
    good(&hearth, &["release", "--all"]);
    assert_eq!(json(&hearth, &["claims"]), serde_json::json!([]));
    hearth.finish().await;
}

fn interrupt(child: &Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, Signal::SIGINT).unwrap();
}

/// What the server inside serves, through `port-forward`.
fn fetched(hearth: &Hearth, claim: &str) -> String {
    let mut forward = command(hearth, &["port-forward", claim, ":8000"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = String::new();
    let mut buffer = [0; 256];
    let address = loop {
        let count = forward.stdout.as_mut().unwrap().read(&mut buffer).unwrap();
        assert!(count > 0, "{told}");
        told.push_str(&String::from_utf8_lossy(&buffer[..count]));
        if let Some(at) = told.find("127.0.0.1:") {
            let port: String = told[at..]
                .chars()
                .take_while(|c| !c.is_whitespace())
                .collect();
            if told[at + port.len()..].contains(char::is_whitespace) {
                break port;
            }
        }
    };
    let began = std::time::Instant::now();
    let page = loop {
        let mut page = String::new();
        if let Ok(mut stream) = std::net::TcpStream::connect(&address) {
            let _asked = stream.write_all(b"GET /note HTTP/1.0\r\n\r\n");
            let _read = stream.read_to_string(&mut page);
        }
        if !page.is_empty() {
            break page;
        }
        assert!(
            began.elapsed() < crate::hearthd::patience(),
            "the server never answered"
        );
        std::thread::sleep(Duration::from_millis(50));
    };
    interrupt(&forward);
    forward.wait().unwrap();
    page
}

/// Sets these pools and waits for them.
fn declare(hearth: &Hearth, pools: &str) {
    let file = hearth.path("pools.toml");
    std::fs::write(&file, pools).unwrap();
    let file = file.to_str().unwrap();
    good(hearth, &["pools", "set", "-f", file, "--wait", "60s"]);
}

/// The claim in `top -o json`.
fn row<'a>(top: &'a serde_json::Value, claim: &str) -> &'a serde_json::Value {
    let claims = top["claims"].as_array().unwrap();
    let mut found = claims.iter().filter(|it| it["claim"]["claim_id"] == claim);
    found
        .next()
        .unwrap_or_else(|| panic!("no {claim} in {top}"))
}

/// The sum of a metric's series.
fn metric(hearth: &Hearth, name: &str, label: &str) -> u64 {
    let (_, page) = hearth.admin_page("/metrics");
    let series = page.lines().filter(|line| {
        let rest = line.strip_prefix(name).unwrap_or_default();
        rest.starts_with(['{', ' ']) && rest.contains(label)
    });
    let value = |line: &str| line.rsplit(' ').next()?.parse::<u64>().ok();
    series.filter_map(value).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sleeps_is_shown_where_it_is_with_what_it_takes() {
    const BALLAST: u64 = 24 << 20;
    let hearth = Hearth::start_with(&[("memory.swap", "zram:1GiB")]).await;
    let pools = POOLS.replace("min_warm = 2\n", "min_warm = 2\nrunning = 1\n");
    declare(&hearth, &pools);
    eventually("one member is frozen", || async {
        json(&hearth, &["pools"])["pools"][0]["frozen"] == 1
    })
    .await;
    let claims = [(); 2].map(|()| {
        let claim = json(&hearth, &["claim", "python"])["claim_id"].clone();
        let claim = claim.as_str().unwrap().to_owned();
        let fill = format!("import os; held = os.urandom({BALLAST}); len(held)");
        assert_eq!(good(&hearth, &["run", &claim, &fill]), "25165824\n");
        claim
    });
    let [frozen, stowed] = &claims;
    let top = || json(&hearth, &["top"]);
    let awake = top();
    for claim in &claims {
        let row = row(&awake, claim);
        assert_eq!(row["residency"], "running", "{row}");
        assert!(row["stats"]["memory_bytes"].as_u64() > Some(BALLAST));
    }

    let told = good(&hearth, &["hibernate", frozen]);
    assert_eq!(told, format!("{frozen} is asleep\n"));
    good(&hearth, &["hibernate", "--tier", "disk", stowed]);
    eventually("its memory is in swap", || async {
        row(&top(), frozen)["stats"]["swap_bytes"].as_u64() > Some(BALLAST / 2)
    })
    .await;
    let asleep = top();
    let (one, two) = (row(&asleep, frozen), row(&asleep, stowed));
    assert_eq!(one["residency"], "frozen", "{one}");
    assert_eq!(two["residency"], "on disk", "{two}");
    assert_eq!(one["claim"]["state"], "hibernated");
    // What is random does not compress.
    let compressed = one["stats"]["compressed_bytes"].as_u64().unwrap();
    assert!(compressed > BALLAST / 8, "{one}");
    assert_eq!(one["stats"]["image_bytes"], 0);
    let image = two["stats"]["image_bytes"].as_u64().unwrap();
    assert!(image > BALLAST, "{two}");
    assert_eq!(two["stats"]["memory_bytes"], 0);
    // The pool has all of it, and what nobody has claimed.
    let usage = || json(&hearth, &["pools"])["pools"][0]["usage"].clone();
    eventually("the pool's figures are those of the metrics", || async {
        let near = |name: &str, kind: &str| {
            let told = usage()[name].as_u64().unwrap();
            let metric = metric(&hearth, "hearth_pool_memory_bytes", kind);
            told.abs_diff(metric) <= told / 4
        };
        near("memory_bytes", "kind=\"ram\"") && near("swap_bytes", "kind=\"swap\"")
    })
    .await;
    let pool = json(&hearth, &["pools"])["pools"][0].clone();
    assert_eq!(
        (&pool["hibernated"], &pool["on_disk"]),
        (&2.into(), &1.into())
    );
    assert!(pool["usage"]["swap_bytes"].as_u64() > Some(BALLAST / 2));
    assert!(pool["usage"]["compressed_bytes"].as_u64() > Some(BALLAST / 8));
    assert_eq!(pool["usage"]["image_bytes"], image);
    assert_eq!(metric(&hearth, "hearth_images_bytes", ""), image);

    // The same for people: a line each, and nothing that only a terminal understands.
    let shown = good(&hearth, &["top"]);
    assert!(!shown.contains('\x1b'), "{shown}");
    let line = |of: &str| shown.lines().find(|line| line.starts_with(&of[..6]));
    assert!(line("python").unwrap().contains('~'), "{shown}");
    assert!(line(frozen).unwrap().contains(" frozen "), "{shown}");
    assert!(line(stowed).unwrap().contains(" on disk "), "{shown}");
    let shown = good(&hearth, &["pools"]);
    let column = shown.lines().next().unwrap().find("ON DISK").unwrap();
    let counts = shown.lines().nth(1).unwrap();
    assert_eq!(counts[column..column + 7].trim(), "1", "{shown}");

    good(&hearth, &["resume", frozen, stowed]);
    let again = top();
    for claim in &claims {
        assert_eq!(row(&again, claim)["residency"], "running");
        assert_eq!(row(&again, claim)["stats"]["image_bytes"], 0);
        assert_eq!(good(&hearth, &["run", claim, "len(held)"]), "25165824\n");
    }
    eventually("no image is left", || async {
        let pool = json(&hearth, &["pools"])["pools"][0].clone();
        let images = &pool["usage"]["image_bytes"];
        (&pool["on_disk"], images) == (&0.into(), &0.into())
    })
    .await;
    hearth.finish().await;
}

/// A live view on a terminal: what it shows until `first` holds of the newest look, then, after `change`, until `second`
/// does, and what is left on the terminal by an interruption.
fn watched(
    hearth: &Hearth,
    args: &[&str],
    first: impl Fn(&str) -> bool,
    change: impl FnOnce(),
    second: impl Fn(&str) -> bool,
) {
    let size = Winsize {
        ws_row: 24,
        ws_col: 200,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = openpty(&size, None).unwrap();
    let before = tcgetattr(&pty.slave).unwrap();
    let slave = || Stdio::from(pty.slave.try_clone().unwrap());
    let mut child = command(hearth, args)
        .env("NO_COLOR", "1")
        .stdin(slave())
        .stdout(slave())
        .stderr(slave())
        .spawn()
        .unwrap();
    let mut master = File::from(pty.master);
    let mut shown = String::new();
    let mut until = |shown: &mut String, what: &dyn Fn(&str) -> bool| {
        let began = Instant::now();
        // Each drawing begins where lines are no longer wrapped.
        while !what(shown.rsplit("\x1b[?7l").next().unwrap_or_default()) {
            assert!(began.elapsed() < patience(), "{args:?}: {shown}");
            let mut buffer = [0; 4096];
            let count = master.read(&mut buffer).unwrap();
            assert!(count > 0, "{args:?} ended: {shown}");
            shown.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    until(&mut shown, &first);
    change();
    until(&mut shown, &second);
    // In the same place: the lines of before are gone over.
    assert!(shown.contains("A\r"), "{shown}");
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130), "{shown}");
    // Restored: its settings, and lines wrap.
    assert_eq!(tcgetattr(&pty.slave).unwrap(), before);
    drop(pty.slave);
    let mut buffer = [0; 4096];
    // The end of the terminal is EIO.
    while let Ok(count) = master.read(&mut buffer) {
        if count == 0 {
            break;
        }
        shown.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert!(shown.rfind("\x1b[?7h") > shown.rfind("\x1b[?7l"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn live_views_show_a_change_and_leave_the_terminal_as_it_was() {
    let hearth = Hearth::start().await;
    declare(&hearth, POOLS);
    let claim = || json(&hearth, &["claim", "python"])["claim_id"].clone();
    // POOL WARM FROZEN CREATING CLAIMED …
    let claimed = |look: &str| {
        let mut lines = look.lines();
        let line = lines.find(|line| line.starts_with("python "))?;
        line.split_whitespace().nth(4)?.parse::<u32>().ok()
    };
    watched(
        &hearth,
        &["pools", "--watch"],
        |look| claimed(look) == Some(0),
        || drop(claim()),
        |look| claimed(look) == Some(1),
    );
    let late = std::cell::RefCell::new(String::new());
    watched(
        &hearth,
        &["top", "--watch", "--interval", "300ms"],
        |look| claimed(look) == Some(1) && look.contains(" running "),
        || *late.borrow_mut() = claim().as_str().unwrap()[..8].to_owned(),
        |look| {
            let line = look
                .lines()
                .find(|it| it.starts_with(late.borrow().as_str()));
            claimed(look) == Some(2) && line.is_some_and(|it| it.contains(" running "))
        },
    );
    good(&hearth, &["release", "--all"]);
    hearth.finish().await;
}
