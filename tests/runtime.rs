//! The adapter on the real containerd and the real gVisor: sandboxes made, watched, destroyed; what they see inside.
//! Needs root, cgroups, and what `make setup` builds.
#![allow(clippy::unwrap_used)]

#[path = "support/image.rs"]
#[allow(dead_code)]
mod image;
#[path = "support/runtime.rs"]
#[allow(dead_code)]
mod support;
#[path = "support/tool.rs"]
mod tool;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hearth::{
    guest::{
        GuestConnector, Personalization, StreamItem,
        channel::{ChannelConfig, FifoConnector, GuestMetrics},
        v1 as guest_v1,
    },
    runtime::{Runtime, RuntimeError, RuntimeEvent},
};
use image::Layout;
use support::{IMAGE, LIMIT, Node, eventually, processes};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_is_made_answers_is_seen_and_leaves_nothing() {
    let mut node = Node::with_image("life").await;
    let runtime = node.runtime();
    node.adapter()
        .event(|event| *event == RuntimeEvent::Connected)
        .await;
    let id = node.sandbox().await;
    let mut guest = node.guest(id);
    guest.assert_answers("hello").await;

    let listed = runtime.list().await.unwrap();
    assert_eq!(
        listed
            .iter()
            .map(|seen| (seen.id, seen.alive))
            .collect::<Vec<_>>(),
        [(id, true)]
    );
    let usage = runtime.usage(id).await.unwrap();
    assert!(usage.memory_bytes > 1 << 20 && usage.pids > 5, "{usage:?}");
    assert_eq!(usage.memory_limit_bytes, (128 + 32) << 20);
    println!("an idle sandbox: {usage:?}");
    let versions = runtime.versions().await.unwrap();
    assert!(
        versions.containerd.starts_with('v') && versions.runsc.starts_with('v'),
        "{versions:?}"
    );

    // A second creation under the same id is refused and harms nothing.
    let mut again = node.spec(IMAGE);
    again.id = id;
    let refused = runtime.create(&again).await;
    assert!(
        matches!(refused, Err(RuntimeError::Refused { .. })),
        "{refused:?}"
    );
    guest.assert_answers("still").await;

    runtime.destroy(id).await.unwrap();
    node.assert_gone(id).await;
    runtime.destroy(id).await.unwrap();
    assert!(runtime.usage(id).await.is_err());
    // Its own end was no news.
    assert!(node.adapter().events.try_recv().is_err());
    for stage in ["container", "snapshot", "task", "start"] {
        assert_eq!(
            node.count("hearth_sandbox_create_stage_seconds", stage),
            1,
            "{stage}"
        );
    }
    assert!(node.count("hearth_containerd_call_duration_seconds", "tasks.create") >= 1);
    assert_eq!(node.count("hearth_shims_killed_total", ""), 0);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inside_a_sandbox_every_bound_holds() {
    let mut node = Node::with_image("inside").await;
    let mut spec = node.spec(IMAGE);
    Arc::make_mut(&mut spec.template).command = vec!["serve".into(), "two words".into()];
    node.runtime().create(&spec).await.unwrap();
    let mut guest = node.guest(spec.id);

    guest.send("args");
    assert_eq!(guest.until_exit().await.0, "-- serve two words");
    assert_eq!(guest.run("hostname").await.0, spec.id.to_string());
    assert_eq!(guest.run("pwd").await.0, "/srv");
    let (env, _) = guest.run("export").await;
    for wanted in ["FROM_IMAGE=yes", "FROM_TEMPLATE=too", "PATH=/bin"] {
        let (name, value) = wanted.split_once('=').unwrap();
        let line = format!("export {name}='{value}'");
        assert!(env.lines().any(|other| other == line), "{env}");
    }
    let (status, _) = guest.run("cat /proc/self/status").await;
    let field = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default();
        line.split_whitespace()
            .nth(1)
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(field("NoNewPrivs"), "1", "{status}");
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT, SYS_ADMIN, MKNOD,
    // AUDIT_WRITE, SETFCAP.
    let wanted = [0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 21, 27, 29, 31];
    let mask = wanted.iter().fold(0u64, |mask, bit| mask | 1 << bit);
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(u64::from_str_radix(&field(set), 16).unwrap(), mask, "{set}");
    }
    assert_eq!(u64::from_str_radix(&field("CapInh"), 16).unwrap(), 0);
    assert_eq!(guest.run("ulimit -n; ulimit -c").await.0, "65536\n0");
    // sethostname: what hearth-init needs SYS_ADMIN for.
    assert_eq!(
        guest.run("hostname other && hostname").await,
        ("other".to_owned(), 0)
    );
    assert_ne!(
        guest.run("echo x >/.hearth-init").await.1,
        0,
        "the init is read-only"
    );

    // Writable places are bounded: the root by its disk, the rest by size.
    for (path, fits, beyond) in [
        ("/big", 6, 12),
        ("/tmp/big", 40, 80),
        ("/dev/shm/big", 40, 80),
        ("/run/hearth/secrets/big", 4, 12),
    ] {
        let write = |megabytes: u32| format!("dd if=/dev/zero of={path} bs=1M count={megabytes}");
        let (said, code) = guest.run(&write(fits)).await;
        assert_eq!(code, 0, "{path}: {said}");
        let (said, code) = guest.run(&write(beyond)).await;
        assert!(
            code != 0 && said.contains("No space left"),
            "{path}: {said}"
        );
        guest.run(&format!("echo >{path}")).await;
    }
    assert_eq!(
        guest.run("stat -c %a /run/hearth/secrets /tmp").await.0,
        "755\n1777"
    );
    // Loopback only.
    let (links, _) = guest.run("cat /proc/net/dev").await;
    let names: Vec<_> = links
        .lines()
        .skip(2)
        .filter_map(|line| line.split(':').next())
        .map(str::trim)
        .collect();
    assert_eq!(names, ["lo"], "{links}");
    let sentry = node.group(spec.id).processes().unwrap()[0];
    let score = std::fs::read_to_string(format!("/proc/{sentry}/oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "500");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_are_told_with_their_cause() {
    let mut node = Node::with_image("ends").await;
    let exits = node.sandbox().await;
    let mut guest = node.guest(exits);
    guest.assert_answers("up").await;
    guest.send("run exit 3");
    assert!(!node.adapter().exit_of(exits).await);

    let hungry = node.sandbox().await;
    let mut guest = node.guest(hungry);
    guest.assert_answers("up").await;
    // tail keeps all of it, for there is no line in it.
    guest.send("run tail /dev/zero");
    assert!(
        node.adapter().exit_of(hungry).await,
        "the OOM killer took it"
    );
    assert_eq!(node.count("hearth_runtime_exits_total", "oom"), 1);
    assert_eq!(node.count("hearth_runtime_exits_total", "exited"), 1);

    let bomber = node.sandbox().await;
    let mut guest = node.guest(bomber);
    guest.assert_answers("up").await;
    guest.send("run bomb() { bomb & bomb; }; bomb; while :; do sleep 100 & done");
    // At the bound of host tasks gVisor gives up: the bomb costs its own sandbox.
    node.adapter().exit_of(bomber).await;

    for seen in node.runtime().list().await.unwrap() {
        assert!(!seen.alive, "{seen:?}");
    }
    for id in [exits, hungry, bomber] {
        node.runtime().destroy(id).await.unwrap();
        node.assert_gone(id).await;
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_at_once_and_how_fast() {
    let mut node = Node::with_image("rate").await;
    let runtime = node.runtime();
    // The first resolves the image.
    let first = node.sandbox().await;
    let began = Instant::now();
    let mut serial = Vec::new();
    for _ in 0..4 {
        serial.push(node.sandbox().await);
    }
    let took = began.elapsed();
    println!(
        "create, serial: {:?} each, {:.1}/s",
        took / 4,
        4.0 / took.as_secs_f64()
    );

    for stage in ["container", "snapshot", "task", "start"] {
        println!(
            "of that {stage}: {:.1} ms",
            1000.0 * node.mean("hearth_sandbox_create_stage_seconds", stage)
        );
    }

    let specs: Vec<_> = (0..8).map(|_| node.spec(IMAGE)).collect();
    let began = Instant::now();
    let limit = Arc::new(tokio::sync::Semaphore::new(4));
    let creations = specs.iter().map(|spec| {
        let limit = limit.clone();
        let runtime = &runtime;
        async move {
            let _turn = limit.acquire().await.unwrap();
            runtime.create(spec).await
        }
    });
    for created in futures::future::join_all(creations).await {
        created.unwrap();
    }
    let took = began.elapsed();
    println!(
        "create, 8 by 4 in parallel: {:?} each, {:.1}/s",
        took / 8,
        8.0 / took.as_secs_f64()
    );
    for spec in &specs {
        node.guest(spec.id).assert_answers("up").await;
    }
    let began = Instant::now();
    for id in serial.iter().chain([&first]) {
        runtime.destroy(*id).await.unwrap();
    }
    let took = began.elapsed();
    println!(
        "destroy, serial: {:?} each, {:.1}/s",
        took / 5,
        5.0 / took.as_secs_f64()
    );
    let began = Instant::now();
    for destroyed in
        futures::future::join_all(specs.iter().map(|spec| runtime.destroy(spec.id))).await
    {
        destroyed.unwrap();
    }
    let took = began.elapsed();
    println!(
        "destroy, 8 in parallel: {:?} each, {:.1}/s",
        took / 8,
        8.0 / took.as_secs_f64()
    );
    for call in [
        "tasks.wait",
        "tasks.delete",
        "containers.delete",
        "snapshots.remove",
    ] {
        println!(
            "of that {call}: {:.1} ms",
            1000.0 * node.mean("hearth_containerd_call_duration_seconds", call)
        );
    }
    for spec in &specs {
        node.assert_gone(spec.id).await;
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_containerd_comes_back_and_costs_no_sandbox() {
    let mut node = Node::with_image("crash").await;
    node.adapter()
        .event(|event| *event == RuntimeEvent::Connected)
        .await;
    let (one, two) = (node.sandbox().await, node.sandbox().await);
    let mut guest = node.guest(one);
    guest.assert_answers("before").await;
    let frozen = node.sandbox().await;
    node.group(frozen).freeze(LIMIT).unwrap();

    let killed = node.managed.pid();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(killed),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    node.adapter()
        .event(|event| *event == RuntimeEvent::Disconnected)
        .await;
    let refused = node.runtime().list().await;
    assert!(
        matches!(refused, Err(RuntimeError::Unavailable(_))),
        "{refused:?}"
    );
    // Ends are told without containerd.
    node.guest(two).send("run exit 1");
    assert!(!node.adapter().exit_of(two).await);

    node.adapter()
        .event(|event| *event == RuntimeEvent::Connected)
        .await;
    assert_ne!(node.managed.pid(), killed);
    assert_eq!(node.count("hearth_containerd_restarts_total", ""), 1);
    // Once is enough: an outage is told as one.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let more = node.adapter().events.try_recv();
    assert!(more.is_err(), "{more:?}");
    let listed = node.runtime().list().await.unwrap();
    let alive: Vec<_> = listed
        .iter()
        .filter(|seen| seen.alive)
        .map(|seen| seen.id)
        .collect();
    assert_eq!(alive, [one, frozen]);
    guest.assert_answers("after").await;
    node.group(frozen).thaw(LIMIT).unwrap();
    node.guest(frozen).assert_answers("thawed").await;
    let more = node.sandbox().await;
    node.guest(more).assert_answers("new").await;
    node.runtime().destroy(two).await.unwrap();
    node.assert_gone(two).await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_adapter_adopts_what_lives() {
    let mut node = Node::with_image("adopt").await;
    let (one, two) = (node.sandbox().await, node.sandbox().await);
    let mut guest = node.guest(one);
    guest.assert_answers("before").await;
    node.restart_adapter();
    guest.assert_answers("between").await;
    for _ in 0..2 {
        let listed = node.runtime().list().await.unwrap();
        let seen: Vec<_> = listed.iter().map(|seen| (seen.id, seen.alive)).collect();
        assert_eq!(seen, [(one, true), (two, true)]);
    }
    guest.assert_answers("after").await;
    node.guest(two).send("run exit 1");
    assert!(!node.adapter().exit_of(two).await);
    // Two listings armed one watch: one end, one event.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let more = node.adapter().events.try_recv();
    assert!(!matches!(more, Ok(RuntimeEvent::Exited { .. })), "{more:?}");
    node.restart_adapter();
    // Destroyed by one that never saw it alive.
    node.runtime().destroy(one).await.unwrap();
    node.assert_gone(one).await;
    node.runtime().destroy(two).await.unwrap();
    node.assert_gone(two).await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_and_wedged_sandboxes_are_destroyed() {
    let mut node = Node::with_image("wedged").await;
    let runtime = node.runtime();
    let frozen = node.sandbox().await;
    node.group(frozen).freeze(LIMIT).unwrap();
    let began = Instant::now();
    runtime.destroy(frozen).await.unwrap();
    println!("destroy of a frozen sandbox: {:?}", began.elapsed());
    node.assert_gone(frozen).await;
    assert_eq!(node.count("hearth_shims_killed_total", ""), 0);

    for adopted in [false, true] {
        let (wedged, other) = (node.sandbox().await, node.sandbox().await);
        let runtime = node.runtime();
        let shim = shim_of(&wedged.to_string());
        nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGSTOP).unwrap();
        // Unknown is not dead: the shim is silent, the sandbox lives.
        let listed = runtime.list().await.unwrap();
        assert!(listed.iter().all(|seen| seen.alive), "{listed:?}");
        if adopted {
            // By an adapter that knows nothing of it, not even its shim.
            node.restart_adapter();
        }
        let runtime = node.runtime();
        let began = Instant::now();
        let destroying = tokio::spawn({
            let runtime = runtime.clone();
            async move { runtime.destroy(wedged).await }
        });
        // Others go on meanwhile.
        runtime.destroy(other).await.unwrap();
        println!("beside it: {:?}", began.elapsed());
        assert!(began.elapsed() < support::patient(Duration::from_secs(3)));
        destroying.await.unwrap().unwrap();
        println!("destroy with a stopped shim: {:?}", began.elapsed());
        assert!(began.elapsed() < support::patient(Duration::from_secs(25)));
        node.assert_gone(wedged).await;
        node.assert_gone(other).await;
    }
    assert_eq!(node.count("hearth_shims_killed_total", ""), 2);

    // A shim that died: containerd cleans up by itself, and so do we.
    let orphan = node.sandbox().await;
    nix::sys::signal::kill(
        shim_of(&orphan.to_string()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    eventually("the shim is gone", || {
        processes(&orphan.to_string())
            .iter()
            .all(|line| !line.contains("containerd-shim"))
    })
    .await;
    node.runtime().destroy(orphan).await.unwrap();
    node.assert_gone(orphan).await;
    node.finish().await;
}

/// The real hearth-init instead of its stand-in, through the real channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hearth_init_answers_over_the_fifos_before_and_after_a_restart() {
    let init = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/static/hearth-init");
    assert!(
        init.exists(),
        "{} is missing: run `hack/build.sh init`",
        init.display()
    );
    let mut node = Node::start_with("init", |config| config.init = init).await;
    node.import(Layout::busybox().named(IMAGE).user("app"))
        .await;
    let id = node.sandbox().await;
    let metrics = GuestMetrics::register(&prometheus::Registry::new()).unwrap();
    let connector = FifoConnector::new(
        tokio::runtime::Handle::current(),
        ChannelConfig::default(),
        metrics,
    );
    for round in 0..2 {
        if round == 1 {
            node.restart_adapter();
            assert!(node.runtime().list().await.unwrap()[0].alive);
        }
        let guest = connector.connect(&node.runtime().stdio(id)).unwrap();
        let began = Instant::now();
        let version = guest.ping(LIMIT).await.unwrap();
        println!("hearth-init {version} after {:?}", began.elapsed());
        let claim = "11111111-2222-3333-4444-555555555555";
        let secret = Personalization {
            secrets: vec![("token".into(), "s3cret".into())],
            hostname: "claimed".into(),
            ..Personalization::default()
        };
        guest.personalize(claim, &secret, LIMIT).await.unwrap();
        // As the image's user, who can read its secret.
        let exec = guest_v1::Exec {
            command: ["sh", "-c", "id; hostname; cat /run/hearth/secrets/token"]
                .map(str::to_owned)
                .into(),
            ..guest_v1::Exec::default()
        };
        let mut stream = guest.exec(exec).await.unwrap();
        let mut said = Vec::new();
        while let Some(item) = stream.output.recv().await {
            if let StreamItem::Data { data, .. } = item.unwrap() {
                said.extend_from_slice(&data);
            }
        }
        let said = String::from_utf8(said).unwrap();
        assert!(
            said.starts_with("uid=1000") && said.contains("gid=1001") && said.contains("wheel"),
            "{said}"
        );
        assert!(said.ends_with("claimed\ns3cret"), "{said}");
        guest.close();
    }
    node.finish().await;
}

fn shim_of(id: &str) -> nix::unistd::Pid {
    let lines = processes(id);
    let shim = lines
        .iter()
        .find(|line| line.contains("containerd-shim-runc-v2 -namespace hearth"))
        .unwrap();
    let pid = shim.split('"').nth(1).unwrap();
    nix::unistd::Pid::from_raw(pid.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leftovers_of_any_kind_and_tag_are_found_and_removed() {
    let mut node = Node::with_image("left").await;
    let runtime = node.runtime();
    let foreign = |sequence| {
        hearth::machine::ids::SandboxId::new(hearth::machine::ids::NodeTag(0xffff_fff0), sequence)
            .unwrap()
    };
    // A directory, an empty cgroup, one with a stray process, a container without a task, a task not started.
    let (dir, empty, stray, container) = (foreign(1), foreign(2), foreign(3), foreign(4));
    std::fs::create_dir_all(node.config.run_dir.join("sandboxes").join(dir.to_string())).unwrap();
    let mut child = std::process::Command::new("sleep")
        .arg("100")
        .spawn()
        .unwrap();
    let controllers = || {
        std::fs::read_dir("/sys/fs/cgroup")
            .unwrap()
            .map(|entry| entry.unwrap().path())
    };
    for id in [empty, stray] {
        for controller in
            controllers().filter(|path| !path.is_symlink() && path.join("cgroup.procs").is_file())
        {
            let group = controller.join(format!("{}/pool/{id}", &node.config.cgroup_parent[1..]));
            std::fs::create_dir_all(&group).unwrap();
            if id == stray && !controller.ends_with("cpuset") {
                std::fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
            }
        }
    }
    node.ctr(&[
        "containers",
        "create",
        "--label",
        &format!("hearth.dev/sandbox={container}"),
        IMAGE,
        &container.to_string(),
    ]);
    let created = node.spec(IMAGE);
    node.ctr(&[
        "containers",
        "create",
        "--label",
        &format!("hearth.dev/sandbox={}", created.id),
        IMAGE,
        &created.id.to_string(),
    ]);
    let ids = [created.id, dir, empty, stray, container];
    let mut wanted = ids.to_vec();
    wanted.sort();
    let listed = runtime.list().await.unwrap();
    assert_eq!(
        listed.iter().map(|seen| seen.id).collect::<Vec<_>>(),
        wanted
    );
    assert!(listed.iter().all(|seen| !seen.alive), "{listed:?}");
    for id in ids {
        runtime.destroy(id).await.unwrap();
        node.assert_gone(id).await;
    }
    assert!(
        child.wait().unwrap().code().is_none(),
        "the stray process was killed"
    );
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_fails_says_why_and_can_be_undone() {
    let mut node = Node::with_image("fails").await;
    let runtime = node.runtime();
    let missing = node.spec("test.local/none:1");
    let refused = runtime.create(&missing).await;
    assert!(
        matches!(&refused, Err(RuntimeError::ImageMissing(name)) if name == "test.local/none:1"),
        "{refused:?}"
    );
    let mut handler = node.spec(IMAGE);
    Arc::make_mut(&mut handler.template).runtime_handler = "kata".into();
    let refused = runtime.create(&handler).await.unwrap_err().to_string();
    assert!(refused.contains("no runtime handler \"kata\""), "{refused}");
    // A working directory that is a file: runsc's own words come through.
    let mut wrong = node.spec(IMAGE);
    Arc::make_mut(&mut wrong.template).working_dir = "/bin/busybox".into();
    let refused = runtime.create(&wrong).await;
    println!("a bad working directory: {refused:?}");
    assert!(
        matches!(refused, Err(RuntimeError::Refused { .. })),
        "{refused:?}"
    );
    runtime.destroy(wrong.id).await.unwrap();
    node.assert_gone(wrong.id).await;
    node.finish().await;
}
