//! Workers of the interpreter: real python3 behind the real hearth-init, as PID 1.

use hearth::guest::v1::{
    Claim, Exec, InterpreterQuery, Signal, guest_message::Body as Answer, host_message::Body as Ask,
};

use crate::{
    guest::{Guest, Host, Ran, command, eventually, shell, vars},
    pty::terminal,
    python_lines::{LINES, Line, SETUP},
};

/// Debian's own: a version manager's shim is a wrapper.
const PATH: (&str, &str) = ("PATH", "/usr/bin:/bin");
/// Tells a worker from any other python.
const IS_WORKER: &str = "b'def ' + b'worker' in open('/proc/self/cmdline', 'rb').read()";

fn started(workers: &str, env: &[(&str, &str)]) -> Guest {
    let args = ["--interpreter", "python", "--prefork", workers];
    Guest::first_with(&args, &[&[PATH], env].concat())
}

/// As many as there will be are waiting.
fn settle(host: &mut Host) {
    let answer = host.call(Ask::Interpreter(InterpreterQuery {}));
    assert!(matches!(answer, Answer::InterpreterReady(_)), "{answer:?}");
}

fn claim(host: &mut Host, env: &[(&str, &str)]) {
    let claim = Claim {
        claim_id: "one".into(),
        env: vars(env),
        entropy: vec![7; 32].into(),
        ..Claim::default()
    };
    let answer = host.call(Ask::Claim(claim));
    assert!(matches!(answer, Answer::ClaimAck(_)), "{answer:?}");
}

/// Claimed, with workers that wait.
fn claimed(workers: &str, env: &[(&str, &str)]) -> (Guest, Host) {
    let guest = started(workers, env);
    let mut host = guest.host();
    host.ping();
    settle(&mut host);
    claim(&mut host, &[("CLAIMED", "yes")]);
    (guest, host)
}

fn python(code: &str) -> Exec {
    command(&["python3", "-c", code])
}

fn is_worker(host: &mut Host) -> bool {
    let ran = host.run(python(&format!("print({IS_WORKER})")));
    ran.text() == "True\n"
}

/// Pids of those that wait.
fn workers(host: &mut Host) -> Vec<u32> {
    let find = "for p in /proc/[0-9]*; do grep -q '[d]ef worker' $p/cmdline 2>/dev/null && echo ${p#/proc/}; done; true";
    let found = host.sh(find);
    found.lines().map(|pid| pid.parse().unwrap()).collect()
}

fn one(host: &mut Host, line: &Line) -> Ran {
    let mut exec = command(line.command);
    exec.env = vars(line.env);
    exec.working_dir = line.dir.into();
    exec.stdin = line.stdin.is_some();
    if line.tty {
        let stdin = exec.stdin;
        exec = terminal(exec);
        exec.stdin = stdin;
    }
    let id = host.ask(Ask::Exec(exec));
    if let Some(text) = line.stdin {
        host.input(id, text.as_bytes(), true);
    }
    host.finish(id)
}

#[test]
fn a_worker_does_as_python_does() {
    // Empty is not set.
    for unbuffered in ["", "1"] {
        compare(&[("PYTHONUNBUFFERED", unbuffered)]);
    }
}

fn compare(env: &[(&str, &str)]) {
    let (a, mut with) = claimed("1", env);
    let (b, mut without) = claimed("0", env);
    let mut wrong = Vec::new();
    for (guest, host) in [(&a, &mut with), (&b, &mut without)] {
        guest.mount(&["-t", "tmpfs", "none", "/tmp"]);
        host.sh(SETUP);
    }
    for line in LINES {
        settle(&mut with);
        let waiting = workers(&mut with);
        assert_eq!(waiting.len(), 1, "before {line:?}");
        let (served, plain) = (one(&mut with, line), one(&mut without, line));
        let told = |ran: &Ran| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (text(&ran.stdout), text(&ran.stderr), ran.exited)
        };
        if told(&served) != told(&plain) {
            wrong.push(format!(
                "{line:?}\n  worker: {:?}\n  python: {:?}",
                told(&served),
                told(&plain)
            ));
        }
        if waiting.contains(&served.pid) != line.by_worker {
            wrong.push(format!("{line:?}: by a worker? {}", !line.by_worker));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn it_is_the_claims_and_only_once() {
    let guest = started("2", &[]);
    let mut host = guest.host();
    host.ping();
    settle(&mut host);
    // What proves a member ready leaves them alone.
    assert!(!is_worker(&mut host));
    let first = workers(&mut host);
    assert_eq!(first.len(), 2);
    claim(&mut host, &[("CLAIMED", "yes")]);
    let ran = host.run(python("import os; print(os.environ['CLAIMED'])"));
    assert_eq!(ran.text(), "yes\n");
    assert!(first.contains(&ran.pid));
    let ran = host.run(python("1"));
    assert!(first.contains(&ran.pid));
    // Others take their places.
    settle(&mut host);
    let second = workers(&mut host);
    assert_eq!(second.len(), 2);
    assert!(second.iter().all(|pid| !first.contains(pid)), "{second:?}");
    // A burst is served by who is there, and by python.
    let calls: Vec<_> = (0..8)
        .map(|at| host.ask(Ask::Exec(python(&format!("print({at})")))))
        .collect();
    for (at, id) in calls.into_iter().enumerate() {
        assert_eq!(host.finish(id).text(), format!("{at}\n"));
    }
    // One that is to outlive its stream is python's own.
    settle(&mut host);
    let waiting = workers(&mut host);
    let mut exec = python("import time; time.sleep(100)");
    exec.detach = true;
    let (_, pid) = host.start(exec);
    assert!(!waiting.contains(&pid));
    assert_eq!(
        host.run(command(&["kill", "-9", &pid.to_string()])).code(),
        0
    );
}

#[test]
fn signals_timeouts_and_cancels_reach_it() {
    let (_guest, mut host) = claimed("1", &[]);
    let wait = "import time; print('up', flush=True); time.sleep(100)";
    for (number, code, signal) in [(15, 143, 15), (2, 130, 2), (9, 137, 9)] {
        settle(&mut host);
        let waiting = workers(&mut host);
        let (id, pid) = host.start(python(wait));
        assert_eq!(waiting, [pid]);
        host.output_until(id, "up");
        host.say(id, Ask::Signal(Signal { number }));
        let exited = host.finish(id).exited.unwrap();
        assert_eq!((exited.code, exited.signal), (code, signal));
    }
    settle(&mut host);
    let mut exec = python("import subprocess; subprocess.run(['sleep', '100'])");
    exec.timeout_ms = 500;
    let exited = host.run(exec).exited.unwrap();
    assert!(exited.timed_out && exited.signal == 9, "{exited:?}");
    settle(&mut host);
    let (id, pid) = host.start(python(wait));
    host.output_until(id, "up");
    host.say(id, Ask::Cancel(hearth::guest::v1::Cancel {}));
    let gone = format!("[ ! -e /proc/{pid} ] && echo gone || true");
    eventually("it is gone", || host.sh(&gone) == "gone\n");
}

#[test]
fn a_worker_that_is_dead_or_hung_is_nobodys_loss() {
    let (guest, mut host) = claimed("1", &[]);
    for signal in ["-STOP", "-KILL"] {
        settle(&mut host);
        let [worker] = workers(&mut host)[..] else {
            panic!("one worker");
        };
        let kill = format!("kill {signal} {worker}");
        assert_eq!(host.sh(&kill), "");
        let ran = host.run(python("print('on')"));
        assert_eq!((ran.text().as_str(), ran.code()), ("on\n", 0));
        assert_ne!(ran.pid, worker);
    }
    guest.log_until("did not take its command and is killed");
    settle(&mut host);
    assert!(is_worker(&mut host));
    // Nobody babbles into the channel: whoever does is no worker any more.
    settle(&mut host);
    let [worker] = workers(&mut host)[..] else {
        panic!("one worker");
    };
    // Its end of the channel is a socket, which can't be opened anew; a thief takes it by pidfd.
    let steal = format!(
        "import ctypes, os\nlibc = ctypes.CDLL(None)\nfd = libc.syscall(438, os.pidfd_open({worker}), 0, 0)\n\
         print(os.write(fd, b'x' * 4096))"
    );
    let ran = host.run(shell(&format!("exec python3 -u -c \"{steal}\"")));
    assert_eq!(ran.text(), "4096\n", "{ran:?}");
    assert_eq!(host.run(python("print('still')")).text(), "still\n");
    settle(&mut host);
    assert!(is_worker(&mut host));
}

#[test]
fn workers_that_never_come_up_are_given_up() {
    let preload = format!("import os\nif {IS_WORKER}: os._exit(3)");
    let (guest, mut host) = claimed("1", &[("HEARTH_PRELOAD", &preload)]);
    guest.log_until("no more are started");
    assert!(!is_worker(&mut host));
}

#[test]
fn a_wrapper_has_no_workers() {
    let dir = tempfile::tempdir().unwrap();
    let wrapper = dir.path().join("python3");
    std::fs::write(&wrapper, "#!/bin/sh\nexec /usr/bin/python3 \"$@\"\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&wrapper, mode).unwrap();
    let path = format!("{}:/usr/bin:/bin", dir.path().display());
    let (guest, mut host) = claimed("1", &[("PATH", &path)]);
    guest.log_until("is a wrapper");
    assert!(!is_worker(&mut host));
}

#[test]
fn what_was_preloaded_is_there_and_draws_anew() {
    let preload = "import decimal, random, hearth\nrandom.seed(1)\nhearth.at_claim(lambda: setattr(decimal, 'told', 1))";
    let (_guest, mut host) = claimed("1", &[("HEARTH_PRELOAD", preload)]);
    let code = "import sys; print('decimal' in sys.modules, 'hearth' in sys.modules, sorted(globals()) == sorted(\
                ['__name__', '__doc__', '__package__', '__loader__', '__spec__', '__annotations__', '__builtins__', 'sys']))\n\
                import decimal, random; print(decimal.told, random.random())";
    let mut drawn = Vec::new();
    for _ in 0..2 {
        settle(&mut host);
        let text = host.run(python(code)).text();
        let (flags, rest) = text.split_once('\n').unwrap();
        assert_eq!(flags, "True False True");
        drawn.push(rest.strip_prefix("1 ").unwrap().to_owned());
    }
    assert_ne!(drawn[0], drawn[1]);
    assert!(
        !drawn.contains(&"0.13436424411240122\n".to_owned()),
        "seeded anew"
    );
}

#[test]
fn packages_that_came_later_are_seen() {
    let (guest, mut host) = claimed("1", &[]);
    guest.mount(&["-t", "tmpfs", "none", "/root"]);
    let place = host.run(python("import site; print(site.getusersitepackages())"));
    let place = place.text().trim().to_owned();
    assert!(place.starts_with("/root/"), "{place}");
    host.sh(&format!("mkdir -p {place} /root/far"));
    host.sh(&format!(
        "echo 'print(\"far\")' >/root/far/distant.py; echo /root/far >{place}/far.pth"
    ));
    settle(&mut host);
    assert_eq!(host.run(python("import distant")).text(), "far\n");
    settle(&mut host);
    let waiting = workers(&mut host);
    let ran = host.run(python("import distant"));
    assert_eq!(
        (ran.text().as_str(), &waiting[..]),
        ("far\n", &[ran.pid][..])
    );
}
