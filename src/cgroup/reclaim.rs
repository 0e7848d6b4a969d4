//! Taking a frozen group's memory: to swap where there is some, else only what can be read again from files.

use std::{fs, io::Write, time::Duration, time::Instant};

use nix::errno::Errno;

use super::{CgroupError, SandboxCgroup, Version, files};

/// v2: bytes asked for in one write, so that a caller can stop in between. 4 MiB go to zram in some 5 ms.
const STEP_BYTES: u64 = 4 << 20;

/// What a reclaim did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reclaimed {
    /// Bytes that left RAM.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// It came to its end; `false`: it was stopped.
    pub complete: bool,
}

impl SandboxCgroup {
    /// Takes as much of its memory as the kernel will, until `stopped` says so. v2 goes in steps; v1 does everything in
    /// one write, which a signal to this thread ends.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn reclaim(&self, stopped: impl Fn() -> bool) -> Result<Reclaimed, CgroupError> {
        let began = Instant::now();
        let before = self.usage()?.memory_bytes;
        let complete = match self.version {
            Version::V1 => self.empty_v1(&stopped)?,
            Version::V2 => self.reclaim_v2(&stopped)?,
        };
        let after = self.usage()?.memory_bytes;
        Ok(Reclaimed {
            bytes: before.saturating_sub(after),
            took: began.elapsed(),
            complete,
        })
    }

    fn empty_v1(&self, stopped: &impl Fn() -> bool) -> Result<bool, CgroupError> {
        let Some(dir) = self.controller("memory") else {
            return Ok(true);
        };
        if stopped() {
            return Ok(false);
        }
        // EBUSY: something is left, as always.
        match write_once(&dir.join("memory.force_empty"), "0")? {
            Some(Errno::EINTR) => Ok(false),
            _ => Ok(true),
        }
    }

    fn reclaim_v2(&self, stopped: &impl Fn() -> bool) -> Result<bool, CgroupError> {
        let file = self.path().join("memory.reclaim");
        let step = STEP_BYTES.to_string();
        let mut left = self.usage()?.memory_bytes;
        // Each round but the last frees something, so there are not many.
        while left > 0 {
            if stopped() {
                return Ok(false);
            }
            // EAGAIN: less was freed than asked for, as at every end.
            let refused = write_once(&file, &step)?;
            let now = self.usage()?.memory_bytes;
            if refused.is_some() && now.saturating_add(STEP_BYTES / 16) >= left {
                break;
            }
            left = now;
        }
        Ok(true)
    }
}

/// One write, not repeated when a signal ends it. The kernel's refusals that are part of reclaiming are returned.
fn write_once(path: &std::path::Path, text: &str) -> Result<Option<Errno>, CgroupError> {
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).open(path);
    let mut file = opened.map_err(|source| files::wrap(path, source))?;
    let Err(source) = file.write(text.as_bytes()) else {
        return Ok(None);
    };
    match source.raw_os_error().map(Errno::from_raw) {
        Some(errno @ (Errno::EAGAIN | Errno::EINTR | Errno::EBUSY)) => Ok(Some(errno)),
        _ => Err(files::wrap(path, source)),
    }
}

/// Share of the last ten seconds in which something on the node waited for memory, thousandths; `None`: the kernel does
/// not tell (no PSI).
#[must_use]
pub fn memory_pressure_permille() -> Option<u32> {
    let text = fs::read_to_string("/proc/pressure/memory").ok()?;
    parse_pressure(&text)
}

/// `some avg10=1.53 avg60=…`.
fn parse_pressure(text: &str) -> Option<u32> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let share = some
        .split(' ')
        .find_map(|word| word.strip_prefix("avg10="))?;
    let (whole, part) = share.split_once('.')?;
    let tenths: u32 = part.get(..1)?.parse().ok()?;
    whole
        .parse::<u32>()
        .ok()?
        .checked_mul(10)?
        .checked_add(tenths)
}

#[cfg(test)]
mod tests {
    use super::parse_pressure;

    #[test]
    fn pressure_is_read_in_thousandths() {
        let text = "some avg10=1.53 avg60=0.40 avg300=0.00 total=1235057\nfull avg10=9.00 avg60=0 avg300=0 total=8\n";
        assert_eq!(parse_pressure(text), Some(15));
        assert_eq!(parse_pressure("some avg10=100.00 avg60=0"), Some(1000));
        for junk in ["", "some", "some avg10=x.y", "some avg10=1"] {
            assert_eq!(parse_pressure(junk), None, "{junk}");
        }
    }
}
