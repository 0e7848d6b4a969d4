//! What a PID 1 does: buries strangers, hands signals on, ends in order; and the template's command.

use std::{process::Command, time::Instant};

use hearth::guest::v1::{StatsQuery, guest_message::Body as Answer, host_message::Body as Ask};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::guest::{Guest, PATIENCE, eventually, shell};

/// The pid on the host of the PID 1 inside.
fn pid(guest: &Guest) -> Pid {
    let unshare = guest.child.id();
    let path = format!("/proc/{unshare}/task/{unshare}/children");
    let mut child = None;
    eventually("PID 1 is there", || {
        child = std::fs::read_to_string(&path).unwrap().trim().parse().ok();
        child.is_some()
    });
    Pid::from_raw(child.unwrap())
}

#[test]
fn strangers_are_buried() {
    for guest in [Guest::first(&[]), Guest::plain(&[])] {
        let mut host = guest.host();
        // Orphans of orphans, many at once.
        let ran = host.run(shell(
            "for i in $(seq 200); do (sleep 0.1 &) ; done; (setsid sleep 0.2 &)",
        ));
        assert_eq!(ran.code(), 0);
        let zombies = "ps -e -o stat,comm | grep -c '^Z.*sleep'; true";
        let began = Instant::now();
        while host.sh(zombies) != "0\n" {
            assert!(began.elapsed() < PATIENCE);
        }
        host.ping();
    }
}

#[test]
fn the_templates_command_runs_beside_and_its_end_ends_nothing() {
    let line = "echo says; echo err >&2; head -c 3000 /dev/zero | tr '\\0' x; echo; exit 3";
    let guest = Guest::first(&["--", "/bin/sh", "-c", line]);
    let log = guest.log_until("the command has ended: exit status: 3");
    assert!(
        log.contains("command: says\n") && log.contains("command: err\n"),
        "{log}"
    );
    assert!(log.lines().all(|line| line.len() < 1100), "{log}");
    guest.host().ping();
    let guest = Guest::first(&["no-such-program"]);
    guest.log_until("was not started: no-such-program: not found in PATH");
    guest.host().ping();
}

#[test]
fn a_babbling_command_is_dropped_and_counted_and_blocks_nobody() {
    let line = "i=0; while [ $i -lt 60000 ]; do echo a line of some length for the log $i; i=$((i+1)); done; \
                echo x >/run/done; exec sleep 1000";
    let guest = Guest::first(&["--", "/bin/sh", "-c", line]);
    let mut host = guest.host();
    let began = Instant::now();
    // Nobody drains stderr; the command comes to its end all the same.
    while host.sh("ls /run/done 2>/dev/null; true").is_empty() {
        assert!(began.elapsed() < PATIENCE, "the command is blocked");
    }
    let kept = guest.log();
    assert!(kept.len() > 30_000 && kept.contains("some length for the log 0\n"));
    // The next line tells how many were lost.
    host.ask(Ask::Exec(shell("exit")));
    kill(pid(&guest), Signal::SIGTERM).unwrap();
    guest.log_until("lines of this log were dropped");
}

#[test]
fn sigterm_is_handed_on_and_ends_it() {
    let line = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done";
    for args in [&["--", "/bin/sh", "-c", line][..], &[]] {
        let mut guest = Guest::first(args);
        let mut host = guest.host();
        let (id, _) = host.start(shell(line));
        host.output_until(id, "up");
        if !args.is_empty() {
            guest.log_until("up");
        }
        let began = Instant::now();
        kill(pid(&guest), Signal::SIGTERM).unwrap();
        let ran = host.finish(id);
        assert_eq!((ran.text().as_str(), ran.code()), ("bye\n", 0));
        assert_eq!(guest.wait().code(), Some(0));
        println!("ended in {:?}", began.elapsed());
    }
}

#[test]
fn what_ignores_sigterm_is_killed_after_the_grace() {
    for plain in [false, true] {
        let mut guest = if plain {
            Guest::plain(&[])
        } else {
            Guest::first(&[])
        };
        let mut host = guest.host();
        let (id, inner) = host.start(shell("trap '' TERM; echo up; while :; do sleep 0.05; done"));
        host.output_until(id, "up");
        let target = if plain {
            Pid::from_raw(guest.child.id().try_into().unwrap())
        } else {
            pid(&guest)
        };
        kill(target, Signal::SIGTERM).unwrap();
        assert_eq!(guest.wait().code(), Some(0));
        if plain {
            eventually("it was killed", || {
                let stat = std::fs::read_to_string(format!("/proc/{inner}/stat"));
                stat.is_ok_and(|stat| stat.contains(") Z"))
                    || !std::path::Path::new(&format!("/proc/{inner}")).exists()
            });
        }
    }
}

#[test]
fn other_signals_go_to_the_command() {
    let line =
        "trap 'echo reloaded' HUP; trap 'echo one' USR1; echo up; while :; do sleep 0.05; done";
    let guest = Guest::first(&["--", "/bin/sh", "-c", line]);
    guest.log_until("up");
    for (signal, word) in [(Signal::SIGHUP, "reloaded"), (Signal::SIGUSR1, "one")] {
        kill(pid(&guest), signal).unwrap();
        guest.log_until(word);
    }
    let mut host = guest.host();
    match host.call(Ask::Stats(StatsQuery {})) {
        // PID 1, the command and perhaps its sleep.
        Answer::Stats(stats) => assert!((2..=3).contains(&stats.processes), "{stats:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_stands_still_and_goes_on() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let me = Pid::from_raw(guest.child.id().try_into().unwrap());
    let mut exec = shell("sleep 1; echo in time");
    exec.timeout_ms = 2500;
    let (id, _) = host.start(exec);
    // A freeze of 4 s is not 4 s of its life: the timeout has not run out.
    kill(me, Signal::SIGSTOP).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(4));
    kill(me, Signal::SIGCONT).unwrap();
    let ran = host.finish(id);
    assert!(
        ran.text() == "in time\n" && !ran.exited.as_ref().unwrap().timed_out,
        "{ran:?}"
    );
}

#[test]
fn the_command_line() {
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_hearth-init"))
            .args(args)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    assert_eq!(
        run(&["--version"]),
        (
            Some(0),
            format!("hearth-init {}\n", env!("CARGO_PKG_VERSION"))
        )
    );
    assert!(run(&["--help"]).1.contains("Usage:"));
    assert_eq!(run(&["--user", "nobody"]).0, Some(64));
    assert_eq!(run(&["--nonsense"]).0, Some(64));
}
