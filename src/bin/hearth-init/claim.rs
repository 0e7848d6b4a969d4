//! Personalization: makes a warm sandbox the caller's own. All or nothing: everything that may fail is tried before
//! anything shows, and what showed is undone when a later part fails. (hearthd destroys such a sandbox anyway.)

use hearth::guest::v1::{Claim, ClaimAck, FailureKind, GuestFile};
use nix::{
    sys::statfs::{TMPFS_MAGIC, statfs},
    unistd::{gethostname, sethostname},
};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    check,
    limits::{CLOCK_DIFFERENCE, TABLE_BYTES},
    log::Log,
    place::{Placed, Placing},
    refusal::Refusal,
    user::User,
};

/// In RAM: the runtime mounts a tmpfs there.
pub const SECRETS: &str = "/run/hearth/secrets";

/// What this sandbox holds once it is somebody's.
#[derive(Debug)]
pub struct Held {
    pub claim_id: String,
    /// For every later process.
    pub env: BTreeMap<String, String>,
}

/// Applies a claim, or tells that it is applied already.
///
/// # Errors
/// CLAIMED by another; else the kind of what failed, and its part by name.
pub fn personalize(
    claim: Claim,
    held: &mut Option<Held>,
    user: Option<&User>,
    random: &mut RandomDevice,
    log: &mut Log,
) -> Result<ClaimAck, Refusal> {
    if let Some(held) = held {
        return if held.claim_id == claim.claim_id {
            Ok(ClaimAck { already: true })
        } else {
            Err(Refusal::new(FailureKind::Claimed, "held by another claim"))
        };
    }
    check::claim(&claim)?;
    if !claim.secrets.is_empty() {
        check_in_ram(Path::new(SECRETS), user)?;
    }
    let mut prepared = Prepared(Vec::new());
    for secret in &claim.secrets {
        let path = Path::new(SECRETS).join(&secret.path);
        let written = prepared.write(&path, secret, 0o600, user);
        written.map_err(|refusal| refusal.of("secrets"))?;
    }
    for file in &claim.files {
        let written = prepared.write(Path::new(&file.path), file, file.mode, user);
        written.map_err(|refusal| refusal.of("files"))?;
    }
    let before = set_hostname(&claim.hostname)?;
    if let Err(refusal) = prepared.show() {
        if let Some(before) = before {
            // It was this process that could set it.
            let _ = sethostname(before);
        }
        return Err(refusal.of("files"));
    }
    name_in_tables(&claim.hostname, log);
    random.stir(&claim.entropy, log);
    own_machine_id(log);
    compare_clock(claim.wall_clock_ns, log);
    *held = Some(Held {
        claim_id: claim.claim_id,
        env: claim.env,
    });
    Ok(ClaimAck { already: false })
}

fn check_in_ram(dir: &Path, user: Option<&User>) -> Result<(), Refusal> {
    let failed = |error: io::Error| Refusal::io(format!("secrets: {SECRETS}"), &error);
    let found = statfs(dir).map_err(|errno| failed(errno.into()))?;
    if found.filesystem_type() != TMPFS_MAGIC {
        let message = format!("secrets: {SECRETS} is not a tmpfs, secrets would reach a disk");
        return Err(Refusal::new(FailureKind::Io, message));
    }
    user.map_or(Ok(()), |user| user.own(dir)).map_err(failed)
}

/// Files that are written and not yet there. What is not shown is taken back, the last one first: an earlier one made
/// directories for it.
struct Prepared(Vec<Placing>);

impl Prepared {
    fn write(
        &mut self,
        path: &Path,
        file: &GuestFile,
        mode: u32,
        user: Option<&User>,
    ) -> Result<(), Refusal> {
        let mut placing = Placing::begin(path, mode, true, user)?;
        let written = placing.write(&file.content);
        self.0.push(placing);
        written
    }

    /// All appear, or none.
    fn show(mut self) -> Result<(), Refusal> {
        self.0.reverse();
        let mut placed: Vec<Placed> = Vec::with_capacity(self.0.len());
        while let Some(placing) = self.0.pop() {
            match placing.commit_undoable() {
                Ok(one) => placed.push(one),
                Err(refusal) => {
                    self.0.reverse();
                    drop(self);
                    placed.into_iter().rev().for_each(Placed::undo);
                    return Err(refusal);
                }
            }
        }
        placed.into_iter().for_each(Placed::settle);
        Ok(())
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

/// The name before, if it was changed.
fn set_hostname(name: &str) -> Result<Option<OsString>, Refusal> {
    if name.is_empty() {
        return Ok(None);
    }
    let failed = |errno: nix::Error| Refusal::io("hostname", &errno.into());
    let before = gethostname().map_err(failed)?;
    sethostname(name).map_err(failed)?;
    Ok(Some(before))
}

/// `/etc/hostname` and `/etc/hosts`, in place because they may be mounts. The sandbox works without them.
fn name_in_tables(name: &str, log: &mut Log) {
    if name.is_empty() {
        return;
    }
    let mut told = |table: &str, result: io::Result<()>| {
        if let Err(error) = result {
            log.say(format_args!("{table} was left as it is: {error}"));
        }
    };
    let hostname = open_table("/etc/hostname", OpenOptions::new().write(true))
        .and_then(|mut file| {
            file.set_len(0)
                .map(|()| file.write_all(format!("{name}\n").as_bytes()))
        })
        .and_then(|written| written);
    told("/etc/hostname", hostname);
    told("/etc/hosts", add_host(name));
}

/// `/etc/machine-id` where the image or the warm command has left one: every sandbox of it, clones included, would have the
/// same. In place and of random bytes drawn after the host's were stirred in. (D-Bus's own is a link to it, as a rule.)
fn own_machine_id(log: &mut Log) {
    const TABLE: &str = "/etc/machine-id";
    let mut file = match open_table(TABLE, OpenOptions::new().write(true)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return log.say(format_args!("{TABLE} was left as it is: {error}")),
    };
    let mut drawn = [0; 16];
    let random = getrandom::fill(&mut drawn).map_err(|_| io::Error::other("no random bytes"));
    let written = random.and_then(|()| {
        file.set_len(0)?;
        file.write_all(format!("{}\n", machine_id(drawn)).as_bytes())
    });
    if let Err(error) = written {
        log.say(format_args!("{TABLE} was left as it is: {error}"));
    }
}

/// As systemd makes them: a version 4 UUID without its dashes.
fn machine_id(mut drawn: [u8; 16]) -> String {
    drawn[6] = (drawn[6] & 0x0f) | 0x40;
    drawn[8] = (drawn[8] & 0x3f) | 0x80;
    drawn.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn add_host(name: &str) -> io::Result<()> {
    let mut file = open_table("/etc/hosts", OpenOptions::new().read(true).append(true))?;
    let mut text = Vec::new();
    Read::by_ref(&mut file)
        .take(TABLE_BYTES)
        .read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let known = |line: &str| line.split_whitespace().any(|word| word == name);
    if text.lines().any(known) {
        return Ok(());
    }
    let newline = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    file.write_all(format!("{newline}127.0.1.1\t{name}\n").as_bytes())
}

/// A regular file of a bearable size, without waiting for anybody.
fn open_table(path: &str, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let info = file.metadata()?;
    if info.is_file() && info.len() <= TABLE_BYTES {
        Ok(file)
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    }
}

/// `/dev/urandom`, open from the rehearsal on: opening it is most of what stirring costs.
#[derive(Debug, Default)]
pub struct RandomDevice(Option<File>);

impl RandomDevice {
    /// Mixes the host's random bytes into it: clones of one image must not draw the same numbers.
    fn stir(&mut self, entropy: &[u8], log: &mut Log) {
        let opened = match self.0.take() {
            Some(device) => Ok(device),
            None => OpenOptions::new().write(true).open("/dev/urandom"),
        };
        let stirred = opened.and_then(|mut device| {
            device.write_all(entropy)?;
            self.0 = Some(device);
            Ok(())
        });
        if let Err(error) = stirred {
            log.say(format_args!("the host's entropy was not taken: {error}"));
        }
    }
}

/// gVisor's clock follows the host's; another runtime's may not.
fn compare_clock(host_ns: u64, log: &mut Log) {
    let here = SystemTime::now().duration_since(UNIX_EPOCH);
    let difference = here
        .unwrap_or_default()
        .abs_diff(Duration::from_nanos(host_ns));
    if host_ns > 0 && difference > CLOCK_DIFFERENCE {
        log.say(format_args!(
            "the clock differs from the host's by {difference:?}"
        ));
    }
}
