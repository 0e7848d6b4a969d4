//! What the machine itself must bring: kernel, cgroups, parts, swap, nftables, overlayfs, rights.
//!
//! Reads files and asks programs for their version; each with a deadline.

use super::Check;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

/// How long a program may take to tell its version.
const VERSION_DEADLINE: Duration = Duration::from_secs(5);
/// Most of what a program says that is kept.
const SAID: usize = 4096;
/// Capabilities by bit, as linux/capability.h numbers them.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;

/// All of them, in the order they matter.
pub async fn checks() -> Vec<Check> {
    let mut checks = vec![kernel(), cgroups()];
    checks.extend(rights());
    checks.push(overlayfs());
    for part in PARTS {
        checks.push(program(part).await);
    }
    checks.push(nft().await);
    checks.push(swap(&read("/proc/swaps")));
    checks
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn kernel() -> Check {
    let release = read("/proc/sys/kernel/osrelease").trim().to_owned();
    match kernel_version(&release) {
        Some(version) if version >= (5, 10) => Check::ok("kernel", release),
        Some(version) if version >= (4, 14) => Check::warn(
            "kernel",
            release,
            "5.10 or newer is what hearth is tested with",
        ),
        _ => Check::fail(
            "kernel",
            release,
            "install Linux 5.10 or newer (gVisor needs 4.14.77)",
        ),
    }
}

/// "6.18.5-cloud" → (6, 18)
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn cgroups() -> Check {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let controllers = read("/sys/fs/cgroup/cgroup.controllers");
        return judge_controllers("v2", &["cpu", "memory", "pids"], |name| {
            controllers.split_whitespace().any(|c| c == name)
        });
    }
    let mounts = read("/proc/self/mounts");
    judge_controllers("v1", &["cpu", "memory", "pids", "freezer"], |name| {
        cgroup1_has(&mounts, name)
    })
}

/// Whether a v1 hierarchy with this controller is mounted.
pub fn cgroup1_has(mounts: &str, controller: &str) -> bool {
    mounts.lines().any(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        fields.get(2) == Some(&"cgroup")
            && fields
                .get(3)
                .is_some_and(|o| o.split(',').any(|o| o == controller))
    })
}

fn judge_controllers(version: &str, wanted: &[&str], has: impl Fn(&str) -> bool) -> Check {
    let missing: Vec<_> = wanted.iter().filter(|name| !has(name)).copied().collect();
    if missing.is_empty() {
        return Check::ok("cgroups", format!("{version}: {}", wanted.join(", ")));
    }
    let fix = match version {
        "v2" => "enable them on the kernel's command line (cgroup_enable=memory), then reboot",
        _ => {
            "mount them (Debian: boot with systemd), or boot with systemd.unified_cgroup_hierarchy=1"
        }
    };
    Check::fail(
        "cgroups",
        format!("{version} without {}", missing.join(", ")),
        fix,
    )
}

fn rights() -> Vec<Check> {
    let status = read("/proc/self/status");
    let effective = effective_capabilities(&status).unwrap_or(0);
    let has = |bit: u32| effective & (1 << bit) != 0;
    let root = match nix::unistd::geteuid().is_root() {
        true => Check::ok("root", "uid 0"),
        false => Check::warn(
            "root",
            format!("uid {}", nix::unistd::geteuid()),
            "hearthd runs as root; run `sudo hearthctl doctor` to check as it will see things",
        ),
    };
    let needed = |name, bit, what: &str| match has(bit) {
        true => Check::ok(name, "yes"),
        false => Check::fail(
            name,
            "missing",
            format!("hearthd needs it {what}; in a container: privileged, or add it"),
        ),
    };
    let resource = match has(CAP_SYS_RESOURCE) {
        true => Check::ok("CAP_SYS_RESOURCE", "yes"),
        false => Check::warn(
            "CAP_SYS_RESOURCE",
            "missing",
            "tolerated: OOM scores and limits above ours are then left as they are",
        ),
    };
    vec![
        root,
        needed(
            "CAP_SYS_ADMIN",
            CAP_SYS_ADMIN,
            "to mount and to make namespaces",
        ),
        needed(
            "CAP_NET_ADMIN",
            CAP_NET_ADMIN,
            "to set up sandboxes' networks",
        ),
        resource,
    ]
}

/// CapEff of /proc/self/status.
pub fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn overlayfs() -> Check {
    let known = |text: String| {
        text.lines()
            .any(|line| line.split_whitespace().last() == Some("overlay"))
    };
    if known(read("/proc/filesystems")) {
        return Check::ok("overlayfs", "in the kernel");
    }
    let release = read("/proc/sys/kernel/osrelease");
    let module = PathBuf::from("/lib/modules")
        .join(release.trim())
        .join("kernel/fs/overlayfs");
    match module.exists() {
        true => Check::warn("overlayfs", "a module, not loaded", "modprobe overlay"),
        false => Check::fail(
            "overlayfs",
            "unknown to the kernel",
            "modprobe overlay, or a kernel with CONFIG_OVERLAY_FS",
        ),
    }
}

/// A program of the runtime.
struct Part {
    name: &'static str,
    version: &'static [&'static str],
    why: &'static str,
}

const PARTS: &[Part] = &[
    Part {
        name: "containerd",
        version: &["--version"],
        why: "hearthd starts one of its own with it",
    },
    Part {
        name: "containerd-shim-runc-v2",
        version: &["-v"],
        why: "it holds every sandbox",
    },
    Part {
        name: "runsc",
        version: &["--version"],
        why: "gVisor itself",
    },
    Part {
        name: "hearth-runsc",
        version: &[],
        why: "the shim calls it",
    },
    Part {
        name: "hearth-init",
        version: &[],
        why: "PID 1 of every sandbox",
    },
];

/// Where hearthd looks too: beside us, HEARTH_BIN_DIR, the cache of `make setup`, PATH.
fn find(name: &str) -> Option<PathBuf> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|own| Some(own.parent()?.to_owned()));
    let given = std::env::var_os("HEARTH_BIN_DIR").map(PathBuf::from);
    let cache = std::env::var_os("HEARTH_CACHE").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/hearth"));
    let cached = cache.or_else(home).map(|cache| cache.join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = beside
        .into_iter()
        .chain(given)
        .chain(std::env::split_paths(&path))
        .chain(cached);
    places
        .map(|place| place.join(name))
        .find(|file| executable(file))
}

fn executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

async fn program(part: &Part) -> Check {
    let Some(file) = find(part.name) else {
        return Check::fail(
            part.name,
            "not found",
            format!(
                "{}: `make setup` (the others: `make build`) brings it, or put its directory into HEARTH_BIN_DIR or PATH",
                part.why
            ),
        );
    };
    let place = file.display().to_string();
    if part.version.is_empty() {
        return Check::ok(part.name, place);
    }
    match said(&file, part.version).await {
        Some(text) => judge_version(part.name, &text, &place),
        None => Check::fail(
            part.name,
            format!("{place} does not tell its version"),
            "it may be broken or for another machine: `make setup`",
        ),
    }
}

/// containerd below 2.1 cannot do what hearth needs.
fn judge_version(name: &'static str, text: &str, place: &str) -> Check {
    let Some(version) = version_word(text) else {
        return Check::warn(
            name,
            format!("{place}, version unknown"),
            "hearth is tested with the one of `make setup`",
        );
    };
    let found = format!("{version} ({place})");
    let numbers = kernel_version(version.trim_start_matches('v'));
    if name == "containerd" && numbers.is_none_or(|numbers| numbers < (2, 1)) {
        return Check::fail(name, found, "containerd 2.1 or newer: `make setup`");
    }
    Check::ok(name, found)
}

/// The word of a version text that has a digit and a dot: "v2.4.2", "release-20260905.0".
pub fn version_word(text: &str) -> Option<&str> {
    let mut words = text.split_whitespace();
    words.find(|word| {
        word.contains('.') && word.contains(|c: char| c.is_ascii_digit()) && !word.contains('/')
    })
}

async fn said(program: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(VERSION_DEADLINE, command.output())
        .await
        .ok()?
        .ok()?;
    let text = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    let text = String::from_utf8_lossy(&text[..text.len().min(SAID)]).into_owned();
    output.status.success().then_some(text)
}

async fn nft() -> Check {
    const FIX: &str = "apt-get install nftables: it shows the rules that hearthd writes (hearthd itself does not need it)";
    let places = ["/usr/sbin/nft", "/sbin/nft"].map(PathBuf::from);
    let Some(file) = find("nft").or_else(|| places.into_iter().find(|file| executable(file)))
    else {
        return Check::warn("nftables", "nft not found", FIX);
    };
    match said(&file, &["list", "tables"]).await {
        Some(_) => Check::ok("nftables", file.display().to_string()),
        None => Check::warn(
            "nftables",
            "nft cannot list tables",
            "run as root, on a kernel with nf_tables",
        ),
    }
}

/// By /proc/swaps.
pub fn swap(swaps: &str) -> Check {
    match swap_kib(swaps) {
        0 => Check::warn(
            "swap",
            "none",
            "frozen sandboxes then keep their memory: set memory.swap = \"zram:<size>\" and hearthd makes one (module zram), or add swap",
        ),
        kib => {
            let kind = if swaps.contains("zram") {
                "with zram"
            } else {
                "no zram"
            };
            Check::ok(
                "swap",
                format!("{}, {kind}", crate::output::bytes(kib << 10)),
            )
        }
    }
}

/// Sum of /proc/swaps.
pub fn swap_kib(swaps: &str) -> u64 {
    let sizes = swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(2));
    sizes.filter_map(|size| size.parse::<u64>().ok()).sum()
}
