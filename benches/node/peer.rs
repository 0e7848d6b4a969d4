//! Floors and peers: the same work done by hand, on the same containerd and the same image.

use crate::hearthd::{Hearth, IMAGE, pool, static_init, tool};
use crate::measure::Series;
use hearth::guest::GuestConnector;
use hearth::guest::channel::{ChannelConfig, FifoConnector, GuestMetrics};
use hearth::machine::ids::{NodeTag, PoolName, SandboxId};
use hearth::machine::spec::{Readiness, Resources, Template};
use hearth::runtime::containerd::ContainerdRuntime;
use hearth::runtime::{CreateSpec, Runtime, RuntimeConfig, RuntimeMetrics};
use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of the two records that a claim commits, as the journal encodes them (measured: 936 and about 250).
const CLAIM_BYTES: usize = 1200;

/// Writes as many bytes as a claim commits and syncs them, on the disk of hearth's journal.
pub fn fdatasync(path: &std::path::Path, count: u32, pause: Duration) -> Series {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(4 << 20).unwrap();
    let content = [7; CLAIM_BYTES];
    // Blocks written before: as the journal's are.
    file.write_all_at(&vec![1; 4 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let mut series = Series::default();
    for number in 0..count {
        std::thread::sleep(pause);
        let began = Instant::now();
        file.write_all_at(&content, u64::from(number % 1000) * 4096)
            .unwrap();
        file.sync_data().unwrap();
        series.push(began.elapsed());
    }
    std::fs::remove_file(path).unwrap();
    series
}

/// Sandboxes made by hand for the floor.
const GUESTS: u32 = 20;

/// Pings of sandboxes made by hand, each in its turn: as with claims, the guest did nothing for a while.
pub async fn guest_round_trip(hearth: &Hearth, count: u32, pause: Duration) -> Series {
    let registry = prometheus::Registry::new();
    let tag = NodeTag(0xf100_0001);
    let config = RuntimeConfig {
        socket: hearth.containerd_socket(),
        run_dir: hearth.path("floor-run"),
        wrapper: env!("CARGO_BIN_EXE_hearth-runsc").into(),
        runsc: tool("runsc"),
        runsc_root: hearth.path("floor-run/runsc"),
        init: static_init(),
        shim: tool("containerd-shim-runc-v2"),
        snapshotter: "overlayfs".into(),
        cgroup_parent: hearth.cgroup_parent(),
        node_tag: tag,
        kata: Vec::new(),
        kata_run: "/run".into(),
    };
    let metrics = RuntimeMetrics::register(&registry).unwrap();
    let connected = ContainerdRuntime::connect(config, metrics).unwrap();
    let background = tokio::spawn(connected.background.run());
    let runtime = connected.runtime;
    let connector = FifoConnector::new(
        tokio::runtime::Handle::current(),
        ChannelConfig::default(),
        GuestMetrics::register(&registry).unwrap(),
    );
    let mut guests = Vec::new();
    for number in 1..=GUESTS {
        let id = SandboxId::new(tag, u64::from(number)).unwrap();
        let spec = CreateSpec {
            id,
            pool: PoolName::parse("floor").unwrap(),
            generation: 1,
            template: Arc::new(template()),
            network: None,
        };
        runtime.create(&spec).await.unwrap();
        let guest = connector.connect(&runtime.stdio(id)).unwrap();
        guest.ping(Duration::from_secs(30)).await.unwrap();
        guests.push((id, guest));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut series = Series::default();
    for number in 0..count {
        tokio::time::sleep(pause).await;
        let (_, guest) = &guests[number as usize % guests.len()];
        let began = Instant::now();
        guest.ping(Duration::from_secs(5)).await.unwrap();
        series.push(began.elapsed());
    }
    for (id, guest) in guests {
        guest.close();
        runtime.destroy(id).await.unwrap();
    }
    background.abort();
    // runsc keeps one mount per root for its gofers.
    let null = hearth.path("floor-run/runsc/hearth/null-netns");
    if null.exists() {
        let unmounted = Command::new("umount").arg(&null).status().unwrap();
        assert!(unmounted.success());
    }
    std::fs::remove_dir_all(hearth.path("floor-run")).unwrap();
    series
}

fn template() -> Template {
    let declared = pool("floor", 0, 1).template.unwrap();
    Template {
        image: declared.image,
        runtime_handler: declared.runtime_handler,
        runtime_class: declared.runtime_class,
        command: Vec::new(),
        env: BTreeMap::new(),
        working_dir: String::new(),
        resources: Resources {
            cpu_millis: 0,
            memory_bytes: 256 << 20,
            pids: 1024,
            disk_bytes: 1 << 30,
            open_files: 65_536,
        },
        network_policy: Default::default(),
        warm_command: Vec::new(),
        readiness: Readiness {
            command: Vec::new(),
            timeout_ms: 30_000,
        },
        interpreter: String::new(),
        prefork: 0,
        idle_after_ms: 0,
        on_data_loss: hearth::machine::spec::OnDataLoss::Fail,
    }
}

fn ctr(hearth: &Hearth, name: &str, detached: bool, words: &[&str]) -> Command {
    let mut command = Command::new(tool("ctr"));
    command.arg("--address").arg(hearth.containerd_socket());
    command.args(["-n", "hearth", "run"]);
    command.args(if detached {
        ["-d", "--null-io"].as_slice()
    } else {
        &["--rm"]
    });
    command.args(["--runtime", "io.containerd.runc.v2"]);
    command.args([
        "--runc-binary",
        env!("CARGO_BIN_EXE_hearth-runsc"),
        "--runc-root",
    ]);
    command.arg(hearth.path("run/runsc"));
    command
        .arg("--cgroup")
        .arg(format!("{}/ctr/{name}", hearth.cgroup_parent()));
    command.arg(IMAGE).arg(name).args(words);
    command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Whole `ctr run --rm` of the same image with the same runtime.
pub fn ctr_run(hearth: &Hearth, count: u32) -> Series {
    let mut series = Series::default();
    for number in 0..count {
        let began = Instant::now();
        let status = ctr(hearth, &format!("peer-{number}"), false, &["true"])
            .status()
            .unwrap();
        assert!(status.success());
        series.push(began.elapsed());
    }
    series
}

/// `ctr run` of python until its first byte of output.
pub fn ctr_first_byte(hearth: &Hearth, count: u32) -> Series {
    let mut series = Series::default();
    for number in 0..count {
        let name = format!("byte-{number}");
        let mut command = ctr(hearth, &name, false, &["python3", "-c", "print('x')"]);
        let began = Instant::now();
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        series.push(began.elapsed());
        child.wait().unwrap();
    }
    series
}

/// Sandboxes a second by `ctr run -d`, `parallel` at once; they are removed again.
pub fn ctr_run_detached_rate(hearth: &Hearth, count: usize, parallel: usize) -> f64 {
    let name = |number: usize| format!("detached-{number:04}");
    let began = Instant::now();
    std::thread::scope(|scope| {
        for worker in 0..parallel {
            scope.spawn(move || {
                for number in (worker..count).step_by(parallel) {
                    let name = format!("detached-{number:04}");
                    let made = ctr(hearth, &name, true, &["sleep", "1000"])
                        .status()
                        .unwrap();
                    assert!(made.success());
                }
            });
        }
    });
    let took = began.elapsed();
    let tree = hearth::cgroup::CgroupTree::detect("/sys/fs/cgroup").unwrap();
    for number in 0..count {
        let group = tree
            .sandbox(&hearth.cgroup_parent(), "ctr", &name(number))
            .unwrap();
        group.kill(Duration::from_secs(10)).unwrap();
    }
    for number in 0..count {
        // ctr exits with the status of the killed task.
        let mut delete = Command::new(tool("ctr"));
        delete.arg("--address").arg(hearth.containerd_socket());
        let deleted = delete
            .args(["-n", "hearth", "tasks", "rm", "-f", &name(number)])
            .output();
        assert!(deleted.is_ok());
        hearth.ctr(&["containers", "rm", &name(number)]);
    }
    f64::from(u32::try_from(count).unwrap()) / took.as_secs_f64()
}
