//! The swap that frozen sandboxes' memory goes to: a zram device of hearthd's own, set up at start and taken down when it
//! is no longer asked for. It outlives hearthd as the sandboxes do whose memory it holds; a note in the run directory
//! tells the next hearthd which one it is, and in which boot that was. A device without such a note, or with another label,
//! is never touched; nor one without any label that a note of an earlier boot names: the number is given out anew.

use super::{AppError, host};
use crate::config::{Config, Swap};
use crate::driver::Zram;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;
use tracing::{info, warn};

const CONTROL: &str = "/sys/class/zram-control";
/// Which devices the compressor is chosen from, the best first; the kernel's own choice where it has none of them.
const COMPRESSORS: [&str; 2] = ["zstd", "lz4"];
/// mkswap and swapon take milliseconds.
const QUICK: Duration = Duration::from_secs(10);
/// swapoff brings everything back into RAM.
const SWAPOFF: Duration = Duration::from_secs(120);
/// Where mkswap writes the label, after the version, the last page, the bad pages and the UUID.
const LABEL: usize = 1024 + 12 + 16;
/// Where the tools are when PATH does not say.
const SBIN: [&str; 2] = ["/usr/sbin", "/sbin"];

/// A device of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Device {
    /// zram<number>.
    number: u32,
    /// The swap label: tells it from others' devices, also after the numbers have been given out anew.
    label: String,
    /// The note of it was written in this boot.
    of_this_boot: bool,
}

/// What a note says: the device's number, and the boot. One without a boot is of an older hearthd.
fn read_note(text: &str, boot: &str) -> Option<(u32, bool)> {
    let mut words = text.split_whitespace();
    let number = words.next()?.parse().ok()?;
    let of_this_boot = words.next().is_some_and(|it| it == boot);
    Some((number, of_this_boot))
}

/// Of this boot; empty, and so of none, where the kernel does not tell.
fn boot() -> String {
    host::boot_id().unwrap_or_default()
}

/// Says which device is ours.
pub(super) fn note(config: &Config) -> PathBuf {
    config.run_dir.join("zram")
}

/// A label that only this run directory has, at most 16 bytes.
fn label(config: &Config) -> String {
    use sha2::{Digest, Sha256};
    use std::os::unix::ffi::OsStrExt;
    let digest = Sha256::digest(config.run_dir.as_os_str().as_bytes());
    let hex: String = digest.iter().take(4).map(|b| format!("{b:02x}")).collect();
    format!("hearth-{hex}")
}

/// Makes the swap what the configuration says. Called at start, before any sandbox is looked at.
///
/// # Errors
/// The device could not be set up, or an old one not taken down.
pub(super) async fn prepare(config: &Config) -> Result<(), AppError> {
    let wanted = config.memory.swap().map_err(AppError::Swap)?;
    let ours = find(config)?;
    match (wanted, ours) {
        (Swap::Zram(size), Some(device)) if device.size() == Some(size) && device.is_on() => {
            info!(device = %device.path().display(), "the zram device of before is used again");
        }
        (Swap::Zram(size), ours) => {
            remove(config, ours).await?;
            let device = set_up(config, size).await?;
            info!(device = %device.path().display(), size_bytes = size, "zram device set up");
        }
        (Swap::Existing, ours) => {
            remove(config, ours).await?;
            if swaps().lines().count() < 2 {
                warn!(
                    "memory.swap is \"existing\" and there is none: frozen sandboxes keep what no file holds; \"zram:<size>\" sets one up"
                );
            }
        }
        (Swap::None, ours) => remove(config, ours).await?,
    }
    Ok(())
}

/// Takes down what hearthd set up, if it did. Called at the end of a `--dev` node, when no sandbox is left.
///
/// # Errors
/// It could not be taken down.
pub(super) async fn take_down(config: &Config) -> Result<(), AppError> {
    let ours = find(config)?;
    remove(config, ours).await
}

/// What the device of a note holds. `None`: there is no device.
pub(super) fn zram(note: &Path) -> Option<Zram> {
    let (number, _) = read_note(&std::fs::read_to_string(note).ok()?, "")?;
    let stat = std::fs::read_to_string(format!("/sys/block/zram{number}/mm_stat")).ok()?;
    // orig_data_size, compr_data_size, mem_used_total, ...
    let mut figures = stat.split_whitespace().map(str::parse);
    Some(Zram {
        stored_bytes: figures.next()?.ok()?,
        taken_bytes: figures.nth(1)?.ok()?,
    })
}

fn swaps() -> String {
    std::fs::read_to_string("/proc/swaps").unwrap_or_default()
}

/// The device of the note, if it is there and still ours.
fn find(config: &Config) -> Result<Option<Device>, AppError> {
    let text = match std::fs::read_to_string(note(config)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(host("reading the note of the zram device"))?,
    };
    let device = read_note(&text, &boot()).map(|(number, of_this_boot)| Device {
        number,
        label: label(config),
        of_this_boot,
    });
    // After a reboot the number may be somebody else's device.
    Ok(device.filter(Device::is_ours))
}

async fn remove(config: &Config, ours: Option<Device>) -> Result<(), AppError> {
    if let Some(device) = ours {
        if device.is_on() {
            run("swapoff", &[&device.path()], SWAPOFF).await?;
        }
        device.write("reset", "1")?;
        std::fs::write(
            Path::new(CONTROL).join("hot_remove"),
            device.number.to_string(),
        )
        .map_err(host(format!("removing {}", device.path().display())))?;
        info!(device = %device.path().display(), "zram device taken down");
    }
    match std::fs::remove_file(note(config)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(host("removing the note of the zram device")(error))
        }
        _ => Ok(()),
    }
}

async fn set_up(config: &Config, size: u64) -> Result<Device, AppError> {
    let number = std::fs::read_to_string(Path::new(CONTROL).join("hot_add")).map_err(|error| {
        AppError::Swap(format!(
            "no zram device can be added ({error}): load the zram module (modprobe zram), or use \"existing\" or \"none\""
        ))
    })?;
    let number = number.trim().parse().map_err(|_| {
        AppError::Swap(format!(
            "the kernel named a strange zram device: {number:?}"
        ))
    })?;
    let device = Device {
        number,
        label: label(config),
        of_this_boot: true,
    };
    std::fs::create_dir_all(&config.run_dir).map_err(host("making the run directory"))?;
    std::fs::write(note(config), format!("{number} {}", boot()))
        .map_err(host("writing the note of the zram device"))?;
    let offered = std::fs::read_to_string(device.attribute("comp_algorithm")).unwrap_or_default();
    let has = |name: &&&str| offered.split([' ', '[', ']', '\n']).any(|it| it == **name);
    if let Some(compressor) = COMPRESSORS.iter().find(has) {
        device.write("comp_algorithm", compressor)?;
    }
    device.write("disksize", &size.to_string())?;
    let path = device.path();
    let labelled = [Path::new("-L"), Path::new(&device.label), &path];
    run("mkswap", &labelled, QUICK).await?;
    // Before any other swap: it is the fastest.
    run("swapon", &[Path::new("-p"), Path::new("100"), &path], QUICK).await?;
    Ok(device)
}

impl Device {
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/zram{}", self.number))
    }

    fn attribute(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/sys/block/zram{}/{name}", self.number))
    }

    fn write(&self, attribute: &str, value: &str) -> Result<(), AppError> {
        let path = self.attribute(attribute);
        std::fs::write(&path, value).map_err(host(format!("writing {}", path.display())))
    }

    fn size(&self) -> Option<u64> {
        let text = std::fs::read_to_string(self.attribute("disksize")).ok()?;
        text.trim().parse().ok()
    }

    fn is_on(&self) -> bool {
        let path = self.path();
        let path = path.to_string_lossy();
        swaps()
            .lines()
            .any(|line| line.split_whitespace().next() == Some(&path))
    }

    fn is_ours(&self) -> bool {
        let Some(size) = self.size() else {
            return false;
        };
        let mut head = [0; LABEL + 16];
        if size > 0 {
            let read = std::fs::File::open(self.path())
                .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut head));
            if read.is_err() {
                return false;
            }
        }
        self.owns(&head)
    }

    /// It has our label; or nothing yet, and set-up ended early, in this boot.
    fn owns(&self, head: &[u8]) -> bool {
        let written = head.get(LABEL..).unwrap_or_default();
        let blank = head.iter().all(|byte| *byte == 0);
        written.starts_with(self.label.as_bytes()) || (blank && self.of_this_boot)
    }
}

/// Runs a tool of util-linux.
async fn run(program: &str, arguments: &[&Path], limit: Duration) -> Result<(), AppError> {
    let beside = SBIN.iter().map(|dir| Path::new(dir).join(program));
    let mut beside = beside.filter(|path| path.exists());
    let path = beside.next().unwrap_or_else(|| program.into());
    let mut command = Command::new(path);
    command.args(arguments).kill_on_drop(true);
    let output = timeout(limit, command.output()).await;
    let output = output
        .map_err(|_| AppError::Swap(format!("{program} did not end in {limit:?}")))?
        .map_err(host(format!("running {program}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().escape_debug().to_string();
    Err(AppError::Swap(format!("{program}: {said}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn head(label: &str) -> Vec<u8> {
        let mut head = vec![0; LABEL + 16];
        head[LABEL..][..label.len()].copy_from_slice(label.as_bytes());
        head
    }

    #[test]
    fn a_device_is_ours_by_its_label_or_before_it_has_one_in_the_same_boot() {
        let of = |note: &str| {
            let (number, of_this_boot) = read_note(note, "b-2").unwrap();
            Device {
                number,
                label: "hearth-0a1b2c3d".to_owned(),
                of_this_boot,
            }
        };
        let (now, before, older) = (of("3 b-2"), of("3 b-1"), of("3\n"));
        let blank = vec![0; LABEL + 16];
        // A label does not outlive the RAM that it is in.
        for device in [&now, &before, &older] {
            assert_eq!(device.number, 3);
            assert!(device.owns(&head("hearth-0a1b2c3d")));
            assert!(!device.owns(&head("hearth-ffffffff")));
            assert!(!device.owns(&head("swap")));
        }
        assert!(now.owns(&blank), "a set-up that was cut off");
        // After a reboot somebody else's fresh device may have the number.
        assert!(!before.owns(&blank) && !older.owns(&blank));
        assert_eq!(read_note("", "b"), None);
        assert_eq!(read_note("zram3 b", "b"), None);
        assert!(!read_note("3 ", "").unwrap().1, "a boot that is not known");
    }
}
