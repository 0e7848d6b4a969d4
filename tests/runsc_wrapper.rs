//! hearth-runsc between the real shim and the real runsc. Needs root, cgroups, and what `make setup` builds.
#![allow(clippy::unwrap_used)]

#[path = "support/containerd.rs"]
mod containerd;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use containerd::{Node, Said, eventually, patient, say, tool};
use hearth::ociwrap::WrapperConfig;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const LIMIT: Duration = Duration::from_secs(5);

fn plain(_: &mut WrapperConfig, _: &Path) {}

fn assert_ok(said: &Said) {
    assert!(said.ok, "{said:?}");
}

#[test]
fn a_frozen_sandbox_can_be_killed_and_deleted() {
    let mut node = Node::start("kill", plain);
    let group = node.sleeper("frozen");
    group.freeze(LIMIT).unwrap();
    let killed = node.ctr(&["tasks", "kill", "-s", "SIGKILL", "frozen"]);
    assert_ok(&killed);
    assert!(killed.took < patient(Duration::from_secs(2)), "{killed:?}");
    eventually("the shim sees the end", || {
        node.status("frozen").as_deref() == Some("STOPPED")
    });
    assert_ok(&node.ctr(&["tasks", "delete", "frozen"]));
    assert_ok(&node.ctr(&["containers", "rm", "frozen"]));
    assert_eq!(group.processes().unwrap_or_default(), Vec::<i32>::new());

    // Any other signal is for the guest, which is thawed to take it.
    let trap = "trap 'exit 7' TERM; while :; do /bin/busybox sleep 0.05; done";
    assert_ok(&node.run("term", &[], &["/bin/busybox", "sh", "-c", trap]));
    let group = node.group("term");
    std::thread::sleep(Duration::from_millis(300));
    group.freeze(LIMIT).unwrap();
    let before = (node.status("term"), group.processes());
    let killed = node.ctr(&["tasks", "kill", "-s", "SIGTERM", "term"]);
    let after = (node.status("term"), group.processes());
    assert!(killed.ok, "{killed:?}, before {before:?}, after {after:?}");
    eventually("the guest took SIGTERM", || {
        node.status("term").as_deref() == Some("STOPPED")
    });
}

#[test]
fn a_restart_of_containerd_does_not_wait_for_frozen_sandboxes() {
    let mut node = Node::start("restart", plain);
    let ids = ["fa", "fb", "fc"];
    let groups = ids.map(|id| node.sleeper(id));
    node.crash();
    let running = node.boot();
    for group in &groups {
        group.freeze(LIMIT).unwrap();
    }
    node.crash();
    let frozen = node.boot();
    println!("containerd ready: {running:?} with 3 running, {frozen:?} with 3 frozen sandboxes");
    assert!(
        frozen < running + patient(Duration::from_secs(1)),
        "{frozen:?} against {running:?}"
    );
    for (id, group) in ids.iter().zip(&groups) {
        assert_eq!(
            node.status(id).as_deref(),
            Some("RUNNING"),
            "{}",
            node.log()
        );
        group.thaw(LIMIT).unwrap();
        let said = node.exec(id, &["/bin/busybox", "echo", "alive"]);
        assert_eq!(said.stdout, "alive\n", "{said:?}");
    }
}

#[test]
fn a_frozen_sandbox_answers_what_can_be_answered_and_refuses_the_rest_at_once() {
    let mut node = Node::start("refuse", plain);
    let group = node.sleeper("cold");
    let warm = node.wrapper(&["state", "cold"]);
    assert_ok(&warm);
    group.freeze(LIMIT).unwrap();

    let refused = node.exec("cold", &["/bin/busybox", "true"]);
    assert!(
        !refused.ok && refused.stderr.contains("frozen"),
        "{refused:?}"
    );
    assert!(
        refused.took < patient(Duration::from_secs(1)),
        "{refused:?}"
    );
    let pids = node.wrapper(&["ps", "--format", "json", "cold"]);
    assert_ok(&pids);
    let pids: Vec<i32> = serde_json::from_str(&pids.stdout).unwrap();
    assert_eq!(pids, group.processes().unwrap());
    let state = node.wrapper(&["state", "cold"]);
    let [mut state, mut warm]: [serde_json::Value; 2] =
        [&state, &warm].map(|said| serde_json::from_str(&said.stdout).unwrap());
    // The spec's own version against the one of runsc's library; the rest is the same.
    for state in [&mut state, &mut warm] {
        assert!(
            state
                .as_object_mut()
                .unwrap()
                .remove("ociVersion")
                .is_some()
        );
    }
    assert_eq!(state, warm, "frozen against running");
    for verb in ["pause", "resume", "checkpoint"] {
        let said = node.wrapper(&[verb, "cold"]);
        assert!(!said.ok && said.stderr.contains("frozen"), "{said:?}");
        assert!(said.took < patient(Duration::from_millis(500)), "{said:?}");
    }

    group.thaw(LIMIT).unwrap();
    assert_eq!(
        node.exec("cold", &["/bin/busybox", "echo", "on"]).stdout,
        "on\n"
    );
}

#[test]
fn a_stopped_sandbox_is_not_found_by_kill_and_can_be_deleted() {
    let mut node = Node::start("stopped", plain);
    assert_ok(&node.run("brief", &[], &["/bin/busybox", "true"]));
    eventually("it ends", || {
        node.status("brief").as_deref() == Some("STOPPED")
    });
    let direct = node.wrapper(&["kill", "brief", "9"]);
    assert!(
        !direct.ok && direct.stderr.contains("container not running"),
        "{direct:?}"
    );
    let unknown = node.wrapper(&["kill", "unknown", "9"]);
    assert!(
        !unknown.ok && unknown.stderr.contains("does not exist"),
        "{unknown:?}"
    );
    assert_ok(&node.ctr(&["tasks", "delete", "brief"]));
    assert_ok(&node.ctr(&["containers", "rm", "brief"]));
}

#[test]
fn a_delete_whose_filestore_has_vanished_succeeds() {
    let mut node = Node::start("filestore", plain);
    node.sleeper("bare");
    let rootfs = node.dir.path().join("rootfs");
    let mut removed = 0;
    for entry in fs::read_dir(&rootfs).unwrap().map(Result::unwrap) {
        if entry.file_name().to_string_lossy().contains("filestore") {
            fs::remove_file(entry.path()).unwrap();
            removed += 1;
        }
    }
    assert_eq!(removed, 1, "runsc keeps one filestore in the root");
    let (task, container) = node.remove("bare");
    // ctr passes the exit status of a killed task on as its own.
    assert!(!task.stderr.contains("filestore"), "{task:?}");
    assert_ok(&container);
}

#[test]
fn the_disk_annotation_bounds_what_the_guest_writes() {
    let mut node = Node::start("disk", plain);
    let annotation = ["--annotation", "dev.hearth/disk-bytes=10485760"];
    assert_ok(&node.run("disk", &annotation, &["/bin/busybox", "sleep", "100000"]));
    let write = |megabytes: &str| {
        let count = format!("count={megabytes}");
        node.exec(
            "disk",
            &[
                "/bin/busybox",
                "dd",
                "if=/dev/zero",
                "of=/big",
                "bs=1M",
                &count,
            ],
        )
    };
    assert_ok(&write("5"));
    let full = write("20");
    let text = format!("{}{}", full.stdout, full.stderr);
    assert!(
        !full.ok && text.contains("No space left on device"),
        "{full:?}"
    );
}

#[test]
fn specs_that_would_leave_our_hands_are_refused() {
    let mut node = Node::start("specs", plain);
    let sleep = ["/bin/busybox", "sleep", "100000"];
    let said = node.run(
        "free",
        &["--annotation", "dev.gvisor.spec.cgroup-parent="],
        &sleep,
    );
    assert!(
        !said.ok
            && said
                .stderr
                .contains("dev.gvisor.spec.cgroup-parent is refused"),
        "{said:?}"
    );
    let said = node.run("far", &["--cgroup", "/elsewhere/far"], &sleep);
    assert!(!said.ok && said.stderr.contains("is not below"), "{said:?}");
    assert!(
        node.tree
            .list(&node.config.cgroup_parent)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn a_checkpoint_through_the_shim_leaves_an_image_and_the_sandbox() {
    let mut node = Node::start("image", plain);
    node.sleeper("saved");
    let image = node.dir.path().join("image");
    fs::create_dir(&image).unwrap();
    let path = image.display().to_string();
    assert_ok(&node.ctr(&["tasks", "checkpoint", "--image-path", &path, "saved"]));
    for file in ["checkpoint.img", "pages.img", "pages_meta.img"] {
        assert!(image.join(file).exists(), "{file}");
    }
    assert_eq!(
        node.exec("saved", &["/bin/busybox", "echo", "on"]).stdout,
        "on\n"
    );
}

/// A runsc that hangs in the subcommand named in the file `hang`, else the real one: reality hangs too rarely.
fn fake_hung_runsc(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("fake-hung-runsc");
    let script = format!(
        "#!/bin/sh\nhang=$(cat {hang} 2>/dev/null)\n\
         for word; do [ \"$word\" = \"$hang\" ] && exec sleep 1000; done\nexec {runsc} \"$@\"\n",
        hang = dir.join("hang").display(),
        runsc = tool("runsc").display(),
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_hung_runsc_never_hangs_the_shim() {
    let deadline = patient(Duration::from_secs(3));
    let mut node = Node::start("hung", |config, dir| {
        config.runsc = fake_hung_runsc(dir);
        let all = u64::try_from(deadline.as_millis()).unwrap();
        let limits = &mut config.deadlines;
        (limits.start_ms, limits.query_ms, limits.kill_ms) = (all, all, all);
        (limits.delete_ms, limits.control_ms, limits.image_ms) = (all, all, all);
    });
    let hang = node.dir.path().join("hang");
    let bound = deadline + patient(Duration::from_secs(1));
    let group = node.sleeper("hung");

    let image = node.dir.path().join("image").display().to_string();
    for (verb, line) in [
        (
            "exec",
            vec![
                "tasks",
                "exec",
                "--exec-id",
                "x",
                "hung",
                "/bin/busybox",
                "true",
            ],
        ),
        ("pause", vec!["tasks", "pause", "hung"]),
        (
            "checkpoint",
            vec!["tasks", "checkpoint", "--image-path", &image, "hung"],
        ),
        ("kill", vec!["tasks", "kill", "-s", "SIGTERM", "hung"]),
    ] {
        fs::write(&hang, verb).unwrap();
        let said = node.ctr(&line);
        assert!(!said.ok && said.took < bound, "{verb}: {said:?}");
        fs::remove_file(&hang).unwrap();
        assert_eq!(
            node.status("hung").as_deref(),
            Some("RUNNING"),
            "after {verb}"
        );
        let alive = node.exec("hung", &["/bin/busybox", "echo", "alive"]);
        assert_eq!(alive.stdout, "alive\n", "after {verb}: {alive:?}");
    }

    // What can be answered without runsc is answered; what can't says so.
    for (verb, answers) in [
        ("ps", true),
        ("state", true),
        ("events", false),
        ("update", false),
    ] {
        fs::write(&hang, verb).unwrap();
        let line: &[&str] = if verb == "ps" {
            &["ps", "--format", "json", "hung"]
        } else {
            &[verb, "hung"]
        };
        let said = node.wrapper(line);
        assert!(said.ok == answers && said.took < bound, "{verb}: {said:?}");
    }

    fs::write(&hang, "kill").unwrap();
    let said = node.ctr(&["tasks", "kill", "-s", "SIGKILL", "hung"]);
    assert!(said.ok && said.took < bound, "{said:?}");
    assert!(
        group.processes().unwrap_or_default().is_empty(),
        "a SIGKILL kills through the cgroup"
    );
    eventually("the shim sees the end", || {
        node.status("hung").as_deref() == Some("STOPPED")
    });

    fs::write(&hang, "delete").unwrap();
    let said = node.ctr(&["tasks", "delete", "hung"]);
    assert!(!said.ok && said.took < bound, "{said:?}");
    fs::remove_file(&hang).unwrap();

    for verb in ["create", "start"] {
        fs::write(&hang, verb).unwrap();
        let began = Instant::now();
        let said = node.run(verb, &[], &["/bin/busybox", "sleep", "100000"]);
        assert!(!said.ok, "{verb}: {said:?}");
        assert!(
            said.stderr.contains("did not end within"),
            "{verb}: {said:?}"
        );
        assert!(began.elapsed() < bound + deadline, "{verb}: {said:?}");
        fs::remove_file(&hang).unwrap();
    }
}

#[test]
fn signals_reach_runsc_and_nothing_outlives_the_wrapper() {
    let mut node = Node::start("signals", |config, dir| config.runsc = fake_hung_runsc(dir));
    node.sleeper("sig");
    fs::write(node.dir.path().join("hang"), "pause").unwrap();
    for (signal, code) in [(Signal::SIGTERM, Some(128 + 15)), (Signal::SIGKILL, None)] {
        let mut wrapper = Command::new(env!("CARGO_BIN_EXE_hearth-runsc"))
            .arg("--root")
            .arg(node.dir.path().join("runc/hearth"))
            .args(["pause", "sig"])
            .spawn()
            .unwrap();
        let pid = wrapper.id();
        let children = format!("/proc/{pid}/task/{pid}/children");
        let mut child = String::new();
        eventually("runsc hangs", || {
            child = fs::read_to_string(&children).unwrap().trim().to_owned();
            let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            line.starts_with(b"sleep")
        });
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
        assert_eq!(wrapper.wait().unwrap().code(), code, "{signal}");
        eventually("runsc is gone", || {
            !Path::new(&format!("/proc/{child}")).exists()
        });
    }
}

#[test]
fn the_wrapper_costs_little() {
    let mut node = Node::start("cost", plain);
    node.sleeper("cost");
    let root = format!("--root={}", node.dir.path().join("runc/hearth").display());
    let median = |mut one: Box<dyn FnMut() -> Said>| {
        let mut times: Vec<_> = (0..21)
            .map(|_| one())
            .map(|said| (said.took, said.ok))
            .collect();
        times.sort();
        assert!(times.iter().all(|(_, ok)| *ok));
        times[times.len() / 2].0
    };
    let direct = median(Box::new(move || {
        say(Command::new(tool("runsc")).args([&root, "state", "cost"]))
    }));
    let group = node.group("cost");
    let warm = median({
        let dir = node.dir.path().join("runc/hearth");
        Box::new(move || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_hearth-runsc"));
            say(command.arg("--root").arg(&dir).args(["state", "cost"]))
        })
    });
    group.freeze(LIMIT).unwrap();
    let frozen = median({
        let dir = node.dir.path().join("runc/hearth");
        Box::new(move || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_hearth-runsc"));
            say(command.arg("--root").arg(&dir).args(["state", "cost"]))
        })
    });
    println!(
        "state, median of 21: runsc {direct:?}, hearth-runsc {warm:?}, of a frozen one {frozen:?}"
    );
    assert!(
        warm < direct + Duration::from_millis(20),
        "{warm:?} against {direct:?}"
    );
    assert!(frozen < Duration::from_millis(20), "{frozen:?}");
}
