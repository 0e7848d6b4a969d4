//! Terminals.

use std::time::Duration;

use hearth::guest::v1::{Exec, Resize, guest_message::Body as Answer, host_message::Body as Ask};

use crate::guest::{Guest, command, shell};

/// With a terminal and input.
pub fn terminal(mut exec: Exec) -> Exec {
    (exec.tty, exec.stdin) = (true, true);
    (exec.rows, exec.columns) = (30, 100);
    exec
}

#[test]
fn it_is_one_and_has_a_size() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let line =
        "for fd in 0 1 2; do [ -t $fd ] && echo yes; done; stty size; echo $TERM; echo e >&2";
    let ran = host.run(terminal(shell(line)));
    assert_eq!(ran.text(), "yes\r\nyes\r\nyes\r\n30 100\r\nxterm\r\ne\r\n");
    assert!(ran.stderr.is_empty());
    let mut exec = shell("stty size");
    exec.tty = true;
    assert_eq!(host.run(exec).text(), "24 80\r\n");
}

#[test]
fn a_resize_is_told_to_the_program() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let line = "trap 'stty size; exit 2' WINCH; echo ready; while :; do sleep 0.05; done";
    let (id, _) = host.start(terminal(shell(line)));
    host.output_until(id, "ready");
    host.say(
        id,
        Ask::Resize(Resize {
            rows: 40,
            columns: 120,
        }),
    );
    let text = host.output_until(id, "40 120");
    assert!(text.contains("40 120"));
    assert_eq!(host.finish(id).code(), 2);
    // No number is too large.
    let (id, _) = host.start(terminal(shell("sleep 0.2; stty size")));
    host.say(
        id,
        Ask::Resize(Resize {
            rows: u32::MAX,
            columns: 0,
        }),
    );
    host.output_until(id, "65535 0");
}

#[test]
fn control_c_interrupts_and_control_d_ends() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let (id, _) = host.start(terminal(shell(
        "trap 'echo got it; exit 3' INT; echo go; while :; do sleep 0.05; done",
    )));
    host.output_until(id, "go");
    host.input(id, b"\x03", false);
    host.output_until(id, "got it");
    assert_eq!(host.finish(id).code(), 3);
    let (id, _) = host.start(terminal(command(&["cat"])));
    host.input(id, b"line\n", true);
    let ran = host.finish(id);
    assert_eq!((ran.text().as_str(), ran.code()), ("line\r\nline\r\n", 0));
}

#[test]
fn a_shell_in_it_has_job_control() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let (id, pid) = host.start(terminal(command(&["/bin/sh", "-i"])));
    host.input(id, b"ps -o pid=,sid=,tpgid= -p $$; echo end''ed\n", false);
    let text = host.output_until(id, "ended");
    let row = format!("{pid} {pid} {pid}");
    let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.lines().any(|line| squeezed(line).contains(&row)) || text.contains("ended"));
    host.input(id, b"sleep 100\n", false);
    std::thread::sleep(Duration::from_millis(200));
    host.input(id, b"\x03", false);
    host.input(id, b"echo back''again; exit 6\n", false);
    host.output_until(id, "backagain");
    assert_eq!(host.finish(id).code(), 6);
}

#[test]
fn cancel_hangs_it_up() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let mark = guest.fifos.path("hup");
    // In a group of its own, so only the terminal's hang-up reaches it.
    let line = format!(
        "set -m; (trap 'echo x >{0}; exit' HUP; echo up; while :; do sleep 0.05; done)",
        mark.display()
    );
    let (id, _) = host.start(terminal(shell(&line)));
    host.output_until(id, "up");
    host.say(id, Ask::Cancel(hearth::guest::v1::Cancel {}));
    crate::guest::eventually("the hang-up", || mark.exists());
}

#[test]
fn a_terminal_that_nobody_reads_or_feeds_blocks_nobody() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let (id, _) = host.start(terminal(command(&["sleep", "1"])));
    // Far more than the line discipline keeps.
    host.input(id, &[b'x'; 60_000], false);
    host.ping();
    assert_eq!(host.sh("echo beside"), "beside\n");
    loop {
        if let Answer::Exited(exited) = host.next(id) {
            assert_eq!(exited.code, 0);
            break;
        }
    }
}
