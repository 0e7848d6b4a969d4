//! On the real cgroups of this machine, with real processes.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, Command},
    time::Duration,
};

use super::{CgroupError, CgroupTree, Limits, SandboxCgroup, Version, files};

const LIMIT: Duration = Duration::from_secs(5);

/// A parent of its own per test, gone at the end.
struct Parent {
    tree: CgroupTree,
    name: String,
    children: Vec<Child>,
}

impl Parent {
    fn new(test: &str) -> Self {
        Self::at("/sys/fs/cgroup", test)
    }

    /// On every real tree of this machine: a hybrid one has an empty v2 tree too, which can freeze and kill.
    fn all(test: &str) -> Vec<Self> {
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let real = roots
            .iter()
            .filter(|root| std::path::Path::new(root).is_dir());
        real.map(|root| Self::at(root, test)).collect()
    }

    fn at(root: &str, test: &str) -> Self {
        Self {
            tree: CgroupTree::detect(root).unwrap(),
            name: format!("/hearth-cgroup-test-{}-{test}", std::process::id()),
            children: Vec::new(),
        }
    }

    /// A sandbox's group in every controller, as runsc makes it, with `count` sleeping processes.
    fn sandbox(&mut self, pool: &str, id: &str, count: usize) -> SandboxCgroup {
        let group = self.tree.sandbox(&self.name, pool, id).unwrap();
        for dir in &group.dirs {
            fs::create_dir_all(&dir.path).unwrap();
        }
        for _ in 0..count {
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            for dir in group.dirs.iter().filter(|dir| dir.hierarchy != "cpuset") {
                fs::write(dir.path.join("cgroup.procs"), child.id().to_string()).unwrap();
            }
            self.children.push(child);
        }
        group
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        for found in self.tree.list(&self.name).unwrap() {
            let group = self
                .tree
                .sandbox(&self.name, &found.pool, &found.id)
                .unwrap();
            group.kill(LIMIT).unwrap();
            for child in &mut self.children {
                child.wait().unwrap();
            }
            group.remove(LIMIT).unwrap();
        }
        assert!(
            self.tree.remove_parent(&self.name).unwrap(),
            "{} is left",
            self.name
        );
    }
}

#[test]
fn freezes_and_thaws() {
    for mut parent in Parent::all("freeze") {
        let group = parent.sandbox("pool", "one", 3);
        assert!(!group.is_frozen().unwrap());
        assert_eq!(group.processes().unwrap().len(), 3);
        group.freeze(LIMIT).unwrap();
        assert!(group.is_frozen().unwrap());
        assert_eq!(
            group.processes().unwrap().len(),
            3,
            "a frozen group shows its processes"
        );
        group.freeze(LIMIT).unwrap();
        group.thaw(LIMIT).unwrap();
        assert!(!group.is_frozen().unwrap());
    }
}

#[test]
fn kills_what_is_frozen_and_what_forks() {
    for parent in Parent::all("kill") {
        kills(parent);
    }
}

fn kills(mut parent: Parent) {
    let frozen = parent.sandbox("pool", "frozen", 4);
    frozen.freeze(LIMIT).unwrap();
    frozen.kill(LIMIT).unwrap();
    assert_eq!(frozen.processes().unwrap(), Vec::<i32>::new());
    for child in &mut parent.children {
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
    parent.children.clear();

    let forking = parent.sandbox("pool", "forking", 0);
    let mut forks = Command::new("sh");
    forks.args(["-c", "read go; while :; do sleep 1000 & sleep 0.001; done"]);
    forks.stdin(std::process::Stdio::piped());
    let mut child = forks.spawn().unwrap();
    for dir in forking.dirs.iter().filter(|dir| dir.hierarchy != "cpuset") {
        fs::write(dir.path.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"go\n").unwrap();
    while forking.processes().unwrap().len() < 20 {}
    forking.kill(LIMIT).unwrap();
    assert_eq!(forking.processes().unwrap(), Vec::<i32>::new());
    child.wait().unwrap();
}

#[test]
fn tells_usage_and_limits() {
    let mut parent = Parent::new("usage");
    let group = parent.sandbox("pool", "one", 2);
    if group.version == Version::V1 {
        let limit = group
            .controller("memory")
            .unwrap()
            .join("memory.limit_in_bytes");
        assert_eq!(group.usage().unwrap().memory_limit_bytes, 0);
        fs::write(limit, "67108864").unwrap();
        let usage = group.usage().unwrap();
        assert_eq!(usage.memory_limit_bytes, 67_108_864);
        assert_eq!(usage.pids, 2);
        assert_eq!(usage.oom_kills, 0);
        let before = usage.cpu_nanoseconds;
        let busy = Command::new("sh")
            .arg("-c")
            .arg(format!(
                "echo $$ > {}; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done",
                group
                    .controller("cpuacct")
                    .unwrap()
                    .join("cgroup.procs")
                    .display()
            ))
            .status();
        assert!(busy.unwrap().success());
        assert!(group.usage().unwrap().cpu_nanoseconds > before + 1_000_000);
    }
}

#[test]
fn makes_a_group_with_its_limits() {
    let parent = Parent::new("make");
    let group = parent.tree.sandbox(&parent.name, "pool", "one").unwrap();
    for memory_bytes in [64 << 20, 128 << 20] {
        let limits = Limits {
            memory_bytes,
            cpu_quota: Some((50_000, 100_000)),
            tasks: 100,
        };
        group.make(&limits).unwrap();
        assert_eq!(group.usage().unwrap().memory_limit_bytes, memory_bytes);
        let read = |controller: &str, file: &str| {
            let dir = group.controller(controller).unwrap();
            files::read(&dir.join(file)).unwrap().trim().to_owned()
        };
        assert_eq!(read("pids", "pids.max"), "100");
        match group.version {
            Version::V1 => assert_eq!(read("cpu", "cpu.cfs_quota_us"), "50000"),
            Version::V2 => {
                assert_eq!(read("cpu", "cpu.max"), "50000 100000");
                assert_eq!(read("memory", "memory.oom.group"), "1");
            }
        }
    }
}

#[test]
fn lists_finds_and_removes_leftovers_of_any_controller() {
    let mut parent = Parent::new("list");
    let alive = parent.sandbox("p1", "aa", 1);
    let left = parent.sandbox("p2", "bb", 0);
    // As a crash in the middle of a removal leaves it: gone from the freezer, still elsewhere.
    if parent.tree.version() == Version::V1 {
        fs::remove_dir(left.path()).unwrap();
    }
    let listed = parent.tree.list(&parent.name).unwrap();
    let names: Vec<_> = listed
        .iter()
        .map(|found| (&*found.pool, &*found.id))
        .collect();
    assert_eq!(names, [("p1", "aa"), ("p2", "bb")]);
    let found = parent.tree.find(&parent.name, "bb").unwrap().unwrap();
    assert!(found.exists());
    found.kill(LIMIT).unwrap();
    found.remove(LIMIT).unwrap();
    assert!(!found.exists());
    assert!(parent.tree.find(&parent.name, "bb").unwrap().is_none());
    parent.tree.remove_empty_pools(&parent.name).unwrap();
    assert!(
        !parent.tree.remove_parent(&parent.name).unwrap(),
        "it still holds a living sandbox"
    );
    assert!(alive.exists());
    let busy = alive.remove(Duration::from_millis(20));
    assert!(
        matches!(busy, Err(CgroupError::Deadline { .. })),
        "{busy:?}"
    );
}

#[test]
fn a_vanished_group_is_not_found() {
    let parent = Parent::new("gone");
    let group = parent.tree.sandbox(&parent.name, "pool", "never").unwrap();
    assert!(!group.exists());
    assert!(matches!(group.is_frozen(), Err(CgroupError::NotFound(_))));
    assert!(matches!(group.freeze(LIMIT), Err(CgroupError::NotFound(_))));
    assert!(matches!(group.processes(), Err(CgroupError::NotFound(_))));
    assert!(matches!(group.usage(), Err(CgroupError::NotFound(_))));
    group.kill(LIMIT).unwrap();
    group.remove(LIMIT).unwrap();
}

#[test]
fn paths_stay_below_the_parent() {
    let tree = CgroupTree::detect("/sys/fs/cgroup").unwrap();
    for wrong in ["", "/", "/a/../b", "/..", "a//b", "./a"] {
        assert!(
            matches!(tree.at(wrong), Err(CgroupError::BadPath(_))),
            "{wrong:?}"
        );
    }
    for (pool, id) in [
        ("..", "a"),
        ("a", ".."),
        ("a/b", "c"),
        ("a", "b/c"),
        ("", "a"),
    ] {
        assert!(
            tree.sandbox("/hearth", pool, id).is_err(),
            "{pool:?} {id:?}"
        );
    }
    assert!(matches!(
        CgroupTree::detect("/proc"),
        Err(CgroupError::NoHierarchy(_))
    ));
}

/// The v2 files as kernel documentation describes them, in plain directories: a stand-in for a v2 root that this
/// machine may not have. It shows what is read and written, not that a kernel obeys.
#[test]
fn reads_v2_files() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
    let dir: PathBuf = root.path().join("hearth/pool/one");
    fs::create_dir_all(&dir).unwrap();
    for (file, text) in [
        ("cgroup.freeze", "0\n"),
        ("cgroup.kill", ""),
        ("cgroup.events", "populated 0\nfrozen 1\n"),
        ("cgroup.procs", "12\n7\n"),
        ("cpu.stat", "usage_usec 5\nuser_usec 1\n"),
        ("memory.current", "4096\n"),
        ("memory.max", "max\n"),
        ("pids.current", "2\n"),
        ("memory.events", "low 0\noom 3\noom_kill 2\n"),
    ] {
        fs::write(dir.join(file), text).unwrap();
    }
    let tree = CgroupTree::detect(root.path()).unwrap();
    assert_eq!(tree.version(), Version::V2);
    let group = tree.find("/hearth", "one").unwrap().unwrap();
    let usage = group.usage().unwrap();
    assert_eq!((usage.cpu_nanoseconds, usage.memory_bytes), (5000, 4096));
    assert_eq!(
        (usage.memory_limit_bytes, usage.pids, usage.oom_kills),
        (0, 2, 2)
    );
    assert_eq!(group.processes().unwrap(), [7, 12]);
    group.freeze(LIMIT).unwrap();
    assert_eq!(
        fs::read_to_string(dir.join("cgroup.freeze"))
            .unwrap()
            .trim(),
        "1"
    );
    group.kill(LIMIT).unwrap();
    assert_eq!(fs::read_to_string(dir.join("cgroup.kill")).unwrap(), "1");
    let thaw = group.thaw(Duration::from_millis(5));
    assert!(
        matches!(
            thaw,
            Err(CgroupError::Deadline {
                wanted: "thawed",
                ..
            })
        ),
        "{thaw:?}"
    );
}
