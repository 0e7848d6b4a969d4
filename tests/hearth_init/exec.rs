//! Processes: streams, environment, exit, signals, timeouts.

use std::time::{Duration, Instant};

use hearth::guest::v1::{
    Exec, FailureKind, Signal, StatsQuery, guest_message::Body as Answer, host_message::Body as Ask,
};

use crate::guest::{Guest, Host, command, eventually, shell, vars};

#[test]
fn output_then_eof_then_exit() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let ran = host.run(shell("echo out; echo err >&2; exit 7"));
    assert_eq!(
        (ran.text().as_str(), &ran.stderr[..], ran.code()),
        ("out\n", &b"err\n"[..], 7)
    );
    assert!(ran.pid > 0 && !ran.exited.unwrap().timed_out);
}

#[test]
fn a_mebibyte_comes_back_equal() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let mut sent = vec![0; 1 << 20];
    getrandom::fill(&mut sent).unwrap();
    let mut exec = command(&["cat"]);
    exec.stdin = true;
    let (id, _) = host.start(exec);
    let mut credit = hearth::guest::wire::FIRST_CREDIT;
    let (mut at, mut back) = (0, Vec::new());
    while back.len() < sent.len() {
        let piece = credit.min(sent.len() - at).min(10_007);
        if piece > 0 {
            host.input(id, &sent[at..at + piece], at + piece == sent.len());
            at += piece;
            credit -= piece;
        }
        match host.next_within(
            id,
            Duration::from_millis(if piece > 0 { 0 } else { 20_000 }),
        ) {
            Some(Answer::Credit(more)) => credit += usize::try_from(more.bytes).unwrap(),
            Some(Answer::Output(output)) => back.extend_from_slice(&output.data),
            None if piece > 0 => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(back == sent, "other bytes came back");
    assert_eq!(host.finish(id).code(), 0);
}

#[test]
fn stdin_ends_where_none_is_promised() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    assert_eq!(host.run(command(&["cat"])).code(), 0);
    // A process that closed its stdin does not hold up the host.
    let mut exec = shell("exec <&-; sleep 0.3");
    exec.stdin = true;
    let (id, _) = host.start(exec);
    std::thread::sleep(Duration::from_millis(100));
    let mut granted = 0;
    for _ in 0..8 {
        host.input(id, &[0; 16 << 10], false);
        match host.next(id) {
            Answer::Credit(credit) => granted += credit.bytes,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(granted, 128 << 10);
    assert_eq!(host.finish(id).code(), 0);
}

#[test]
fn the_environment_has_layers() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let mut exec = shell("echo $ONE $HOME; pwd");
    exec.env = vars(&[("ONE", "1"), ("HOME", "/else")]);
    exec.working_dir = "/usr".into();
    assert_eq!(host.run(exec).text(), "1 /else\n/usr\n");
    // PATH is the child's own.
    let bin = guest.fifos.path("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink("/bin/busybox", bin.join("sed")).unwrap();
    std::os::unix::fs::symlink("/bin/busybox", bin.join("busybox")).unwrap();
    let mut exec = command(&["busybox", "which", "sed"]);
    exec.env = vars(&[("PATH", &bin.display().to_string())]);
    assert_eq!(host.run(exec).text(), format!("{}/sed\n", bin.display()));
    // Relative to the working directory, with a slash and through PATH.
    let mut exec = command(&["./bin/busybox", "echo", "slash"]);
    exec.working_dir = guest.fifos.dir.path().display().to_string();
    assert_eq!(host.run(exec.clone()).text(), "slash\n");
    exec.command[0] = "busybox".into();
    exec.env = vars(&[("PATH", "nowhere:bin")]);
    assert_eq!(host.run(exec).text(), "slash\n");
    assert_eq!(
        host.run(command(&["/bin/sh", "-c", "echo $0"])).text(),
        "/bin/sh\n"
    );
}

#[test]
fn what_cannot_start_says_why() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let plain = guest.fifos.path("plain");
    std::fs::write(&plain, "no program").unwrap();
    let script = guest.fifos.path("script");
    std::fs::write(&script, "#!/no/interpreter\n").unwrap();
    set_mode(&script, 0o755);
    let words = guest.fifos.path("words");
    std::fs::write(&words, "no program").unwrap();
    set_mode(&words, 0o755);
    let of = |path: &std::path::Path| command(&[&path.display().to_string()]);
    let in_dir = |dir: &str| {
        let mut exec = command(&["true"]);
        exec.working_dir = dir.into();
        exec
    };
    let with = |name: &str, value: &str| {
        let mut exec = command(&["true"]);
        exec.env = vars(&[(name, value)]);
        exec
    };
    let long = "x".repeat(200 << 10);
    use FailureKind::{Invalid, Limit, NotFound, Permission};
    let cases: Vec<(Exec, FailureKind, &str)> = vec![
        (command(&["no-such-program"]), NotFound, "not found in PATH"),
        (command(&["/no/such"]), NotFound, "does not exist"),
        (of(&script), NotFound, "interpreter"),
        (of(&plain), Permission, "Permission denied"),
        (of(&words), Invalid, "Exec format error"),
        (in_dir("/no/such"), NotFound, "working directory /no/such"),
        (in_dir("/etc/passwd"), Invalid, "not a directory"),
        (in_dir("relative"), Invalid, "not an absolute path"),
        (command(&[]), Invalid, "no command"),
        (command(&[""]), Invalid, "no command"),
        (command(&["a\0b"]), Invalid, "NUL"),
        (with("a=b", ""), Invalid, "variable"),
        (with("", "x"), Invalid, "variable"),
        (with("a", "x\0"), Invalid, "variable"),
        (command(&["true", &long]), Limit, "bytes"),
        (command(&vec!["true"; 1025]), Limit, "arguments"),
        (with("a", &"x".repeat(300 << 10)), Limit, "variables"),
        (in_dir(&"/x".repeat(4000)), Limit, "path"),
    ];
    for (exec, kind, text) in cases {
        let what = format!("{:?}", exec.command.first());
        let failure = host.failure(Ask::Exec(exec));
        assert_eq!(failure.kind(), kind, "{what}: {failure:?}");
        assert!(failure.message.contains(text), "{what}: {failure:?}");
        assert!(failure.message.len() <= 512);
    }
    let failure = host.failure(Ask::Exec(command(&[&format!("/{}", "é".repeat(3000))])));
    assert!(failure.message.len() <= 512, "{failure:?}");
    host.ping();
}

fn set_mode(path: &std::path::Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn signals_reach_the_group() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    // The shell waits for its child; both get it.
    let (id, _) = host.start(shell(
        "trap 'echo caught; exit 9' TERM; sleep 100 & echo on; wait",
    ));
    host.output_until(id, "on");
    host.say(id, Ask::Signal(Signal { number: 15 }));
    let ran = host.finish(id);
    assert_eq!((ran.text().as_str(), ran.code()), ("caught\n", 9));
    // Numbers that no signal has change nothing; a real-time signal is one.
    for (number, name) in [(9, "kill"), (34 + 6, "real-time")] {
        let (id, _) = host.start(shell("sleep 100"));
        for wrong in [0, 65, u32::MAX] {
            host.say(id, Ask::Signal(Signal { number: wrong }));
        }
        host.say(id, Ask::Signal(Signal { number }));
        let exited = host.finish(id).exited.unwrap();
        assert_eq!(exited.signal, number, "{name}");
        assert_eq!(exited.code, i32::try_from(128 + number).unwrap(), "{name}");
    }
}

#[test]
fn children_begin_with_no_signal_blocked_or_ignored() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let status = host.run(command(&["cat", "/proc/self/status"])).text();
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let of = |status: &str, name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(of(&status, "SigBlk:"), "0000000000000000");
    // At most what this test inherited is inherited; SIGPIPE, which Rust ignores in both programs, is not. 32 and 33 are glibc's
    // own, and its posix_spawn ignores them.
    let bits = |status: &str| u64::from_str_radix(&of(status, "SigIgn:"), 16).unwrap();
    let ignored = |status: &str| bits(status) & !(1 << 12 | 3 << 31);
    assert_eq!(ignored(&status) & !ignored(&own), 0);
    assert_eq!(bits(&status) & 1 << 12, 0);
    // Nothing of ours is inherited, only what this test itself was given.
    let list = std::process::Command::new("ls")
        .arg("/proc/self/fd")
        .output()
        .unwrap();
    let fds = host.run(command(&["ls", "/proc/self/fd"])).text();
    assert_eq!(fds, String::from_utf8(list.stdout).unwrap());
}

#[test]
fn a_timeout_kills_the_group() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let mut exec = shell("sleep 100; echo never");
    exec.timeout_ms = 200;
    let began = Instant::now();
    let ran = host.run(exec);
    let exited = ran.exited.unwrap();
    assert!(
        exited.timed_out && exited.code == 137 && exited.signal == 9,
        "{exited:?}"
    );
    assert!(began.elapsed() >= Duration::from_millis(200));
    // One that is in time does not hear of it; the longest is no trap.
    let mut exec = shell("echo in time");
    exec.timeout_ms = u64::MAX;
    let ran = host.run(exec);
    assert!(!ran.exited.unwrap().timed_out);
}

#[test]
fn a_server_left_in_the_background_does_not_hang_the_exec() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let alive = guest.fifos.path("alive");
    let line = format!(
        "(while :; do echo line; echo x >{0}; sleep 0.05; done) & echo started",
        alive.display()
    );
    let began = Instant::now();
    let ran = host.run(shell(&line));
    println!("ended after {:?}", began.elapsed());
    assert!(
        ran.text().contains("started\n") && ran.code() == 0,
        "{ran:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(5));
    // And it lives on, though it writes to where nobody listens.
    std::thread::sleep(Duration::from_millis(200));
    std::fs::remove_file(&alive).unwrap();
    eventually("the server still runs", || alive.exists());
    host.run(command(&["kill", "-9", "--", &format!("-{}", ran.pid)]));
}

#[test]
fn what_was_written_before_the_end_is_delivered_however_slow_the_host() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    host.generous = false;
    // The background process keeps the pipe open beyond the grace; the host has no credit left meanwhile.
    let (id, _) = host.start(shell("sleep 3 & head -c 120000 /dev/zero; exit 4"));
    std::thread::sleep(Duration::from_millis(1200));
    let mut bytes = 0;
    while let Some(Answer::Output(output)) = host.next_within(id, Duration::from_millis(100)) {
        bytes += output.data.len();
    }
    assert_eq!(bytes, 64 << 10);
    host.grant(id, 100_000);
    let ran = host.finish(id);
    assert_eq!((bytes + ran.stdout.len(), ran.code()), (120_000, 4));
}

#[test]
fn a_babbling_grandchild_does_not_keep_the_exec() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let ran = host.run(shell("cat /dev/zero & exit 5"));
    assert_eq!(ran.code(), 5);
    println!("{} bytes were forwarded", ran.stdout.len());
    host.ping();
    host.run(command(&["kill", "-9", "--", &format!("-{}", ran.pid)]));
}

#[test]
fn processes_run_as_the_user() {
    let guest = Guest::plain(&["--user", "12345:100,27,28"]);
    let mut host = guest.host();
    let id = "id -u; id -g; id -G; echo $HOME";
    assert_eq!(host.sh(id), "12345\n100\n100 27 28\n/\n");
    let mut exec = shell("id -u; tty >/dev/null && echo x >/dev/tty; stty size");
    exec.tty = true;
    (exec.rows, exec.columns) = (20, 50);
    assert_eq!(host.run(exec).text(), "12345\r\nx\r\n20 50\r\n");
    let failure = host.failure(Ask::Exec(command(&["/no/such"])));
    assert_eq!(failure.kind(), FailureKind::NotFound);
    // Its streams are its own: it may open them by name.
    let ran = host.run(shell("echo a >/dev/stdout && echo b >/dev/stderr"));
    assert_eq!((ran.text().as_str(), &ran.stderr[..]), ("a\n", &b"b\n"[..]));
    let mut exec = shell("echo $HOME");
    exec.env = vars(&[("HOME", "/own")]);
    assert_eq!(host.run(exec).text(), "/own\n");
}

#[test]
fn many_at_once() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let began = Instant::now();
    let calls: Vec<u64> = (0..64)
        .map(|at| {
            let mut exec = shell(&format!("read word; echo $word {at}; exit {at}"));
            exec.stdin = true;
            host.ask(Ask::Exec(exec))
        })
        .collect();
    println!("a ping behind 64 starts: {:?}", host.ping());
    assert_eq!(stats(&mut host).1, 64);
    for id in &calls {
        host.input(*id, b"word\n", true);
    }
    for (at, id) in calls.into_iter().enumerate() {
        let ran = host.finish(id);
        assert_eq!(ran.text(), format!("word {at}\n"));
        assert_eq!(ran.code(), i32::try_from(at).unwrap());
    }
    println!("64 execs in {:?}", began.elapsed());
    let (processes, execs) = stats(&mut host);
    assert!(processes > 1 && execs == 0);
}

fn stats(host: &mut Host) -> (u32, u32) {
    match host.call(Ask::Stats(StatsQuery {})) {
        Answer::Stats(stats) => (stats.processes, stats.execs),
        other => panic!("{other:?}"),
    }
}
