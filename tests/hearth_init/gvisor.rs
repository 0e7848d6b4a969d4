//! hearth-init as PID 1 of a real gVisor sandbox, by runsc alone. HEARTH_INIT names the static binary to try; without it
//! the one built for these tests is, with this machine's C library mounted beside it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use hearth::{
    cgroup::{CgroupTree, SandboxCgroup},
    guest::v1::{
        Connect, Resize, StatsQuery, guest_message::Body as Answer, host_message::Body as Ask,
    },
};

use crate::{
    channel::{BABBLE, rates},
    claim::full,
    guest::{Guest, Host, command, eventually, quiet, shell, vars},
    pty::terminal,
    tool::tool,
};

const POOL: &str = "pool";
const LIMIT: Duration = Duration::from_secs(5);

struct Sandbox {
    guest: Guest,
    tree: CgroupTree,
    parent: String,
    group: SandboxCgroup,
    root: PathBuf,
    id: String,
    began: Instant,
    bundle: tempfile::TempDir,
}

impl Sandbox {
    fn start(test: &str, args: &[&str]) -> Self {
        let bundle = tempfile::Builder::new()
            .prefix("hg")
            .tempdir_in("/tmp")
            .unwrap();
        let id = format!("init-{}-{test}", std::process::id());
        let tree = CgroupTree::detect("/sys/fs/cgroup").unwrap();
        let parent = format!("/hearth-init-{}-{test}", std::process::id());
        let group = tree.sandbox(&parent, POOL, &id).unwrap();
        make_rootfs(&bundle.path().join("rootfs"));
        let config = config(&format!("{parent}/{POOL}/{id}"), args);
        fs::write(bundle.path().join("config.json"), config).unwrap();
        let root = bundle.path().join("root");
        let mut run = runsc(&root, &["run"]);
        run.arg(format!("--bundle={}", bundle.path().display()));
        let began = Instant::now();
        Self {
            guest: Guest::launch(run, &[&id]),
            tree,
            parent,
            group,
            root,
            id,
            began,
            bundle,
        }
    }

    fn runsc(&self, args: &[&str]) -> Command {
        runsc(&self.root, args)
    }
}

fn runsc(root: &Path, args: &[&str]) -> Command {
    let mut runsc = Command::new(tool("runsc"));
    runsc.arg(format!("--root={}", root.display()));
    runsc
        .args([
            "--network=none",
            "--platform=systrap",
            "--overlay2=root:memory",
        ])
        .args(args);
    runsc
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.group.thaw(LIMIT);
        let _ = self.group.kill(LIMIT);
        let _ = self.guest.child.wait();
        let _ = quiet(&mut self.runsc(&["delete", "--force", &self.id])).status();
        // runsc keeps an empty network namespace mounted in its root directory.
        let _ = quiet(Command::new("umount").arg(self.root.join("null-netns"))).status();
        let _ = self.group.remove(LIMIT);
        let _ = self.tree.remove_empty_pools(&self.parent);
        let _ = self.tree.remove_parent(&self.parent);
    }
}

fn make_rootfs(root: &Path) {
    for dir in ["bin", "etc", "proc", "dev", "sys", "tmp", "run", "www"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static: run `make setup`");
    for name in [
        "sh", "cat", "echo", "sleep", "head", "stty", "hostname", "ls", "stat", "true", "kill",
        "id", "wc", "seq", "httpd", "ps", "grep", "tty", "dd",
    ] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
    fs::write(root.join("etc/hostname"), "before\n").unwrap();
    fs::write(root.join("www/index.html"), "a page\n").unwrap();
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> String {
    format!(
        "{{\"destination\":{destination:?},\"type\":{kind:?},\"source\":{source:?},\"options\":{options:?}}}"
    )
}

fn config(cgroup: &str, args: &[&str]) -> String {
    let fixed = std::env::var("HEARTH_INIT").ok();
    let init = fixed
        .clone()
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_hearth-init").into());
    println!("hearth-init under test: {init}");
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &[]),
        mount("/dev", "tmpfs", "tmpfs", &[]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["newinstance", "ptmxmode=0666"],
        ),
        mount("/sys", "sysfs", "sysfs", &["ro"]),
        mount(
            "/run/hearth/secrets",
            "tmpfs",
            "tmpfs",
            &["mode=0755", "size=5m"],
        ),
        mount("/.hearth-init", "bind", &init, &["bind", "ro"]),
    ];
    if fixed.is_none() {
        for lib in ["/lib", "/lib64"] {
            let source = fs::canonicalize(lib).unwrap();
            mounts.push(mount(
                lib,
                "bind",
                source.to_str().unwrap(),
                &["rbind", "ro"],
            ));
        }
    }
    let mut line = vec!["/.hearth-init"];
    line.extend(args);
    let capabilities = "[\"CAP_SYS_ADMIN\",\"CAP_CHOWN\",\"CAP_FOWNER\",\"CAP_DAC_OVERRIDE\",\"CAP_SETUID\",\
                        \"CAP_SETGID\",\"CAP_KILL\"]";
    format!(
        "{{\"ociVersion\":\"1.0.2\",\"process\":{{\"args\":{line:?},\"cwd\":\"/\",\
         \"env\":[\"PATH=/bin\"],\"user\":{{\"uid\":0,\"gid\":0}},\
         \"capabilities\":{{\"bounding\":{capabilities},\"effective\":{capabilities},\"permitted\":{capabilities}}}}},\
         \"root\":{{\"path\":\"rootfs\"}},\"hostname\":\"warm\",\"mounts\":[{}],\
         \"linux\":{{\"cgroupsPath\":{cgroup:?},\"namespaces\":[{{\"type\":\"pid\"}},{{\"type\":\"ipc\"}},\
         {{\"type\":\"uts\"}},{{\"type\":\"mount\"}},{{\"type\":\"network\"}}]}}}}",
        mounts.join(",")
    )
}

fn spread(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!(
        "{name}: p50 {:?}, p99 {:?}, longest {:?}",
        at(50),
        at(99),
        at(100)
    );
}

fn measure(host: &mut Host) {
    spread(
        "round trip, back to back",
        (0..2000).map(|_| host.ping()).collect(),
    );
    let idle = |host: &mut Host| {
        std::thread::sleep(Duration::from_millis(100));
        host.ping()
    };
    spread(
        "round trip after 100 ms of nothing",
        (0..20).map(|_| idle(host)).collect(),
    );
    let mut first = Vec::new();
    let mut whole = Vec::new();
    for _ in 0..50 {
        let began = Instant::now();
        let (id, _) = host.start(command(&["/bin/echo", "x"]));
        assert!(matches!(host.next(id), Answer::Output(_)));
        first.push(began.elapsed());
        assert_eq!(host.finish(id).code(), 0);
        whole.push(began.elapsed());
    }
    spread("exec of a static binary, first byte", first);
    spread("exec of a static binary, exit", whole);
    rates(host, 200_000_000);
}

#[test]
fn it_serves_a_sandbox_of_gvisor() {
    let line = "echo the command says; exec sleep 100000";
    let sandbox = Sandbox::start("serves", &["--", "/bin/sh", "-c", line]);
    let mut host = sandbox.guest.host();
    host.ping();
    println!(
        "from `runsc run` to the first answer: {:?}",
        sandbox.began.elapsed()
    );
    sandbox.guest.log_until("command: the command says");
    let usage = sandbox.group.usage().unwrap();
    println!(
        "the whole sandbox at rest: {} KiB",
        usage.memory_bytes / 1024
    );

    // A claim with everything.
    match host.call(Ask::Claim(full("one"))) {
        Answer::ClaimAck(ack) => assert!(!ack.already),
        other => panic!("{other:?}"),
    }
    let log = sandbox.guest.log();
    assert!(!log.contains("entropy") && !log.contains("clock"), "{log}");
    let look = "hostname; cat /etc/hostname; grep -c claimed-host /etc/hosts; cat /run/hearth/secrets/token; \
                stat -c ' %a' /run/hearth/secrets/token; grep -c secrets.*tmpfs /proc/mounts; echo $CLAIMED";
    assert_eq!(
        host.sh(look),
        "claimed-host\nclaimed-host\n1\ns3cret 600\n1\nyes\n"
    );

    // A terminal: size, control characters, resize.
    let (id, _) = host.start(terminal(command(&["/bin/sh", "-i"])));
    host.input(id, b"stty size; tty\n", false);
    host.output_until(id, "30 100");
    host.say(
        id,
        Ask::Resize(Resize {
            rows: 44,
            columns: 111,
        }),
    );
    host.input(id, b"stty size; sleep 100\n", false);
    host.output_until(id, "44 111");
    std::thread::sleep(Duration::from_millis(200));
    host.input(id, b"\x03", false);
    host.input(id, b"echo back''again; exit 6\n", false);
    host.output_until(id, "backagain");
    assert_eq!(host.finish(id).code(), 6);
    let (id, _) = host.start(terminal(command(&["cat"])));
    host.input(id, b"line\n", true);
    assert_eq!(host.finish(id).text(), "line\r\nline\r\n");

    // A server inside, through the port.
    let mut exec = command(&["httpd", "-f", "-p", "127.0.0.1:8080", "-h", "/www"]);
    exec.detach = true;
    host.start(exec);
    let id = loop {
        let id = host.ask(Ask::Connect(Connect { port: 8080 }));
        if matches!(host.next(id), Answer::Connected(_)) {
            break id;
        }
    };
    host.input(id, b"GET /index.html HTTP/1.0\r\n\r\n", true);
    let page = host.finish_data(id);
    assert!(
        page.contains(" 200 OK") && page.ends_with("\r\n\r\na page\n"),
        "{page}"
    );

    // Environment and timeouts as on the host.
    let mut exec = shell("echo $A; sleep 100");
    (exec.env, exec.timeout_ms) = (vars(&[("A", "a")]), 300);
    let ran = host.run(exec);
    assert!(ran.text() == "a\n" && ran.exited.unwrap().timed_out);
    assert_eq!(host.run(shell("kill -40 $$")).exited.unwrap().signal, 40);
    host.sh("for i in $(seq 50); do (sleep 0.1 &) ; done");
    let zombies = "sleep 0.3; ps -o stat,comm | grep -c '^Z'; true";
    assert_eq!(host.sh(zombies), "0\n");
    match host.call(Ask::Stats(StatsQuery {})) {
        Answer::Stats(stats) => assert!(stats.processes >= 3 && stats.execs == 1, "{stats:?}"),
        other => panic!("{other:?}"),
    }
    measure(&mut host);
    drop(host);

    // SIGTERM, as the shim sends it.
    assert!(
        quiet(&mut sandbox.runsc(&["kill", &sandbox.id, "TERM"]))
            .status()
            .unwrap()
            .success()
    );
    let mut sandbox = sandbox;
    assert_eq!(sandbox.guest.wait().code(), Some(0));
}

#[test]
fn it_survives_a_checkpoint() {
    let mut sandbox = Sandbox::start("saved", &["--", "/bin/sleep", "100000"]);
    let mut host = sandbox.guest.host();
    assert!(matches!(
        host.call(Ask::Claim(full("one"))),
        Answer::ClaimAck(_)
    ));
    let mut exec = shell("i=0; while :; do echo $i >/tmp/count; i=$((i+1)); sleep 0.05; done");
    (exec.detach, exec.timeout_ms) = (true, 60_000);
    host.start(exec);
    let (babbler, _) = host.start(shell(BABBLE));
    host.grant(babbler, 1 << 30);
    std::thread::sleep(Duration::from_millis(200));
    drop(host);
    let image = sandbox.root.join("image").display().to_string();
    let saved = sandbox
        .runsc(&["checkpoint", "--image-path", &image, &sandbox.id])
        .output()
        .unwrap();
    assert!(saved.status.success(), "{saved:?}");
    sandbox.guest.wait();
    assert!(
        quiet(&mut sandbox.runsc(&["delete", "--force", &sandbox.id]))
            .status()
            .unwrap()
            .success()
    );
    std::thread::sleep(Duration::from_secs(2));

    // The same FIFOs, a new runsc, a new session.
    let mut restore = sandbox.runsc(&["restore", "--image-path", &image]);
    restore
        .arg(format!("--bundle={}", sandbox.bundle.path().display()))
        .arg(&sandbox.id);
    sandbox.guest.fifos.give(&mut restore);
    let began = Instant::now();
    sandbox.guest.child = restore.spawn().unwrap();
    let mut host = sandbox.guest.host();
    host.ping();
    println!(
        "from `runsc restore` to the first answer: {:?}",
        began.elapsed()
    );
    match host.call(Ask::Witness(hearth::guest::v1::Witness {})) {
        Answer::Held(held) => assert_eq!((held.claim_id.as_str(), held.running), ("one", 1)),
        other => panic!("{other:?}"),
    }
    let count = |host: &mut Host| host.sh("cat /tmp/count").trim().parse::<u32>().unwrap();
    let before = count(&mut host);
    eventually("what was detached goes on", || count(&mut host) > before);
    assert_eq!(
        host.sh("cat /run/hearth/secrets/token; echo $CLAIMED"),
        "s3cretyes\n"
    );
}

#[test]
fn it_realigns_after_a_freeze_in_the_middle_of_everything() {
    let sandbox = Sandbox::start("freeze", &["--user", "1000:1000"]);
    let mut host = sandbox.guest.host();
    assert_eq!(host.sh("id -u; echo $HOME"), "1000\n/home/user\n");
    assert_eq!(host.sh("echo a >/proc/self/fd/1"), "a\n");
    let began = |host: &mut Host| {
        let began = Instant::now();
        assert_eq!(host.run(command(&["/bin/true"])).code(), 0);
        began.elapsed()
    };
    spread(
        "exec as a user (fork), exit",
        (0..30).map(|_| began(&mut host)).collect(),
    );
    for round in 0..3 {
        let (babbler, _) = host.start(shell(BABBLE));
        host.grant(babbler, 1 << 30);
        let mut exec = command(&["cat"]);
        (exec.stdin, exec.detach) = (true, true);
        let (id, _) = host.start(exec);
        // Full both ways, the last message cut, then frozen, then the host dies.
        std::thread::sleep(Duration::from_millis(50));
        sandbox.group.freeze(LIMIT).unwrap();
        let record = hearth::guest::wire::records(host.session, &[0; 9000]).swap_remove(0);
        while std::io::Write::write(&mut host.to, &record).is_ok() {}
        let _ = id;
        drop(host);
        sandbox.group.thaw(LIMIT).unwrap();
        let began = Instant::now();
        host = sandbox.guest.host();
        host.ping();
        println!(
            "after the thaw: aligned in {:?} after {} stale bytes, answered in {:?}",
            host.aligned.0,
            host.aligned.1,
            began.elapsed()
        );
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!(host.sh("echo on"), "on\n");
        match host.call(Ask::Witness(hearth::guest::v1::Witness {})) {
            // cat of earlier rounds ended: its stdin did.
            Answer::Held(held) => assert!(held.running <= round + 1, "{held:?}"),
            other => panic!("{other:?}"),
        }
    }
}
