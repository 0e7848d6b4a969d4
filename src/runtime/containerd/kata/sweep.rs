//! What Kata leaves of a sandbox whose shim did not end it itself: processes, mounts, directories. Death comes first: nothing
//! is removed beneath a process that lives, and nothing is removed through a mount.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::{
    cgroup::CgroupTree,
    machine::ids::SandboxId,
    runtime::{
        Family, mounts,
        process::{self, Process},
    },
};

/// Where Kata has a directory for each sandbox, below its run directory: the shim in Go (state; sockets of the monitor;
/// Firecracker's jail), runtime-rs, and both (what is shared with the guest).
const PLACES: &[&str] = &[
    "vc/sbs",
    "vc/vm",
    "vc/firecracker",
    "kata",
    "kata-containers/shared/sandboxes",
];
/// Programs that run for a sandbox, by how the file's name begins.
const PROGRAMS: &[&str] = &[
    "containerd-shim-kata",
    "qemu-system-",
    "cloud-hypervisor",
    "firecracker",
    "jailer",
    "virtiofsd",
    "nydusd",
    "stratovirt",
];
/// Where the shim in Go keeps a sandbox's processes that are not to count; hearth asks it not to.
const OVERHEAD_GROUP: &str = "/kata_overhead";
/// For the kernel to end what a shim has left.
const LIMIT: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Sandboxes of which Kata has a directory.
pub(in crate::runtime::containerd) fn ids(run: &Path) -> io::Result<Vec<SandboxId>> {
    let mut found = Vec::new();
    for place in PLACES {
        let entries = match fs::read_dir(run.join(place)) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let name = entry?.file_name();
            found.extend(name.to_str().and_then(|name| SandboxId::parse(name).ok()));
        }
    }
    Ok(found)
}

fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

/// What is left of one sandbox. All of it blocks, and is bounded.
#[derive(Debug)]
pub(super) struct Left {
    id: String,
    /// Kata ran it; else only directories tell that it did.
    known: bool,
    places: Vec<PathBuf>,
}

impl Left {
    pub(super) fn of(run: &Path, id: SandboxId, family: Family) -> Self {
        let id = id.to_string();
        let places = PLACES.iter().map(|place| run.join(place).join(&id));
        Self {
            places: places.collect(),
            known: family == Family::Kata,
            id,
        }
    }

    /// Ends its processes; `Ok` when none is left.
    pub(super) fn end(&self, tree: &CgroupTree) -> Result<(), String> {
        if !self.known && !self.places.iter().any(|dir| dir.exists()) {
            return Ok(());
        }
        let overhead = tree.at(&format!("{OVERHEAD_GROUP}/{}", self.id));
        let overhead = overhead.map_err(|error| error.to_string())?;
        if overhead.exists() {
            let ended = overhead.kill(LIMIT).and_then(|()| overhead.remove(LIMIT));
            ended.map_err(|error| error.to_string())?;
        }
        self.end_processes()
    }

    /// Removes its directories. Its processes have ended.
    pub(super) fn remove(&self) -> Result<(), String> {
        for dir in self.places.iter().filter(|dir| dir.exists()) {
            remove(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        }
        Ok(())
    }

    fn end_processes(&self) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let left = self.processes().map_err(|error| error.to_string())?;
            if left.is_empty() {
                return Ok(());
            }
            if began.elapsed() >= LIMIT {
                let pids: Vec<_> = left.iter().map(|it| it.pid().to_string()).collect();
                return Err(format!("Kata's processes do not die: {}", pids.join(", ")));
            }
            for process in &left {
                let (sandbox, pid) = (&self.id, process.pid());
                tracing::warn!(sandbox, pid, "ending a process that Kata has left");
                process.kill().map_err(|error| format!("{pid}: {error}"))?;
            }
            while left.iter().any(Process::is_running) && began.elapsed() < LIMIT {
                thread::sleep(LOOK_EVERY);
            }
        }
    }

    /// Kata's processes that name the sandbox, held. Not the short-lived helper with which containerd cleans up after a
    /// shim: it is doing the same.
    fn processes(&self) -> io::Result<Vec<Process>> {
        let is_katas = |pid| {
            let words = process::command_line(pid);
            let program = words.first().map(String::as_str).unwrap_or_default();
            let name = program.rsplit('/').next().unwrap_or_default();
            let known = PROGRAMS.iter().any(|known| name.starts_with(known));
            let helps = matches!(words.last().map(String::as_str), Some("start" | "delete"));
            known && !helps && words.iter().any(|word| word.contains(&self.id))
        };
        let mut found = Vec::new();
        for pid in process::pids() {
            if is_katas(pid) {
                found.extend(Process::find(pid, is_katas)?);
            }
        }
        Ok(found)
    }
}

/// Removes a directory with what is in it; what is mounted in it is taken down before, and must be gone then. A bind mount
/// is of the node's own files: a removal that went on through it would take those.
fn remove(dir: &Path) -> io::Result<()> {
    let mounted = || -> io::Result<Vec<PathBuf>> {
        // The directory itself may be a mount point.
        let all = mounts::below(&[dir.parent().unwrap_or(dir).to_owned()])?;
        Ok(all.into_iter().filter(|it| it.starts_with(dir)).collect())
    };
    for point in mounted()? {
        mounts::detach(&point)?;
    }
    if let Some(point) = mounted()?.first() {
        let what = format!("{} is still mounted", point.display());
        return Err(io::Error::other(what));
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::machine::ids::NodeTag;
    use std::os::unix::process::CommandExt;

    fn id(sequence: u64) -> SandboxId {
        SandboxId::new(NodeTag(0x51ab), sequence).unwrap()
    }

    /// A process under the name and with the argument of one of Kata's. Never outlives a failed test.
    struct StandIn(std::process::Child);

    impl StandIn {
        fn start(program: &str, argument: &str) -> Self {
            let mut command = std::process::Command::new("/bin/sh");
            // `sh -c` keeps what follows as its own arguments.
            let command = command.arg0(program).args(["-c", "read _", argument]);
            let stdin = std::process::Stdio::piped();
            Self(command.stdin(stdin).spawn().unwrap())
        }

        fn has_ended(&mut self) -> bool {
            self.0.try_wait().unwrap().is_some()
        }

        /// Its command line is its own once it was executed.
        fn ready(self) -> Self {
            let pid = i32::try_from(self.0.id()).unwrap();
            while process::command_line(pid).len() < 4 {
                thread::yield_now();
            }
            self
        }
    }

    impl Drop for StandIn {
        fn drop(&mut self) {
            let _ended = self.0.kill();
            let _reaped = self.0.wait();
        }
    }

    #[test]
    fn only_katas_processes_of_this_sandbox_are_ended_and_only_its_directories_removed() {
        let run = tempfile::tempdir().unwrap();
        let tree = CgroupTree::detect("/sys/fs/cgroup").unwrap();
        let (one, other) = (id(1), id(2));
        for (place, id) in [
            ("vc/sbs", one),
            ("vc/vm", one),
            ("vc/vm", other),
            ("kata", one),
            ("kata-containers/shared/sandboxes", one),
        ] {
            let dir = run.path().join(place).join(id.to_string());
            fs::create_dir_all(dir.join("deep")).unwrap();
            fs::write(dir.join("deep/file"), "x").unwrap();
        }
        let mut seen = ids(run.path()).unwrap();
        seen.sort();
        seen.dedup();
        assert_eq!(seen, [one, other]);
        let socket = |id: SandboxId| format!("/run/vc/vm/{id}/vhost-fs.sock");
        let mut virtiofsd = StandIn::start("/opt/kata/libexec/virtiofsd", &socket(one)).ready();
        let mut monitor = StandIn::start("cloud-hypervisor", &socket(one)).ready();
        let mut others = StandIn::start("/opt/kata/libexec/virtiofsd", &socket(other)).ready();
        let mut editor = StandIn::start("/usr/bin/vi", &socket(one)).ready();

        let left = Left::of(run.path(), one, Family::Gvisor);
        left.end(&tree).unwrap();
        left.remove().unwrap();
        assert!(virtiofsd.has_ended() && monitor.has_ended());
        assert!(!others.has_ended() && !editor.has_ended());
        assert_eq!(ids(run.path()).unwrap(), [other]);
        let kept = run.path().join("vc/vm").join(other.to_string());
        assert!(kept.join("deep/file").exists());
        left.end(&tree).unwrap();
        left.remove().unwrap();
    }

    #[test]
    fn a_mount_is_taken_down_and_what_is_behind_it_stays() {
        let run = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "x").unwrap();
        let dir = run
            .path()
            .join("kata-containers/shared/sandboxes")
            .join(id(3).to_string());
        let point = dir.join("shared");
        fs::create_dir_all(&point).unwrap();
        let bind = nix::mount::MsFlags::MS_BIND;
        let none = None::<&str>;
        nix::mount::mount(Some(outside.path()), &point, none, bind, none).unwrap();
        assert!(point.join("precious").exists());
        Left::of(run.path(), id(3), Family::Kata).remove().unwrap();
        assert!(!dir.exists());
        assert!(outside.path().join("precious").exists());
    }
}
