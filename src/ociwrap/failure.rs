//! Failures: our own, runsc's in the words the shim matches on, and the log file it reads them from.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::command::Verb;
use crate::cgroup::CgroupError;

/// Exit status of our own refusals and failures, as runc's.
pub(super) const EXIT_FAILURE: u8 = 1;

/// What it says of a runsc that hung and was killed at its deadline. The runtime room tells by these words that nothing was
/// learnt of what runsc was asked to do.
pub const OVERDUE: &str = "did not end within";

/// Why hearth-runsc itself failed. The texts reach the shim, which matches some of runc's words.
#[derive(Debug, thiserror::Error)]
pub enum WrapError {
    /// A command line that is not runc's.
    #[error("hearth-runsc: {0}")]
    Usage(String),
    /// No `hearth-runsc.json` where the shim's root leads.
    #[error("hearth-runsc: no hearth-runsc.json beside or above {0}")]
    NoConfig(PathBuf),
    /// A file that does not parse.
    #[error("hearth-runsc: {path}: {source}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A file that can't be read.
    #[error("hearth-runsc: {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An answer that could not be encoded.
    #[error("hearth-runsc: {0}")]
    Encode(serde_json::Error),
    /// An annotation with which runsc would let the sandbox out of hearth's hands.
    #[error("hearth-runsc: annotation {0} is refused")]
    Annotation(String),
    /// A disk bound that is no number of bytes.
    #[error(
        "hearth-runsc: annotation dev.hearth/disk-bytes: {0:?} is not a number of bytes above 0"
    )]
    Disk(String),
    /// A connection that hearth does not make.
    #[error("hearth-runsc: annotation dev.hearth/network: {0:?} is not \"sandbox\"")]
    Network(String),
    /// A sandbox whose cgroup hearth would not find.
    #[error("hearth-runsc: cgroupsPath {path:?} is not below {parent:?}")]
    Cgroup {
        /// What the spec asks for.
        path: String,
        /// Where it must be.
        parent: String,
    },
    /// Not possible while frozen.
    #[error("hearth-runsc: {verb} refused: the sandbox is frozen")]
    Frozen {
        /// The subcommand.
        verb: &'static str,
    },
    /// runsc could not be started or watched.
    #[error("hearth-runsc: {program}: {source}")]
    Child {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// runsc did not answer in time and was killed.
    #[error("hearth-runsc: runsc {verb} {} {limit:?} and was killed", OVERDUE)]
    Deadline {
        /// The subcommand.
        verb: &'static str,
        /// Its deadline.
        limit: Duration,
    },
    /// The sandbox's cgroup did not obey.
    #[error("hearth-runsc: {0}")]
    Group(#[from] CgroupError),
}

/// runsc's words → runc's, where the shim compares text (its `checkKillError` and `delete`).
pub(super) fn translate(verb: Verb, text: &str) -> String {
    let text = text.trim();
    let stopped = ["sandbox is not running", "no such process"];
    if verb == Verb::Kill && stopped.iter().any(|words| text.contains(words)) {
        return format!("container not running: {text}");
    }
    // Go's os.ErrNotExist as runsc's loader prints it; the words alone ("file does not exist") would do for the shim,
    // not for a person.
    if text.contains("loading container") && text.contains("file does not exist") {
        return format!("container does not exist: {text}");
    }
    text.to_owned()
}

/// Whether a failed `delete` only missed the file behind the root's overlay: gone with its snapshot.
pub(super) fn is_vanished_filestore(text: &str) -> bool {
    text.contains("filestore file") && text.contains("no such file or directory")
}

/// Appends an error to the file the shim reads it from. Best effort: stderr has it too.
pub(super) fn append(log: Option<&Path>, json: bool, message: &str) {
    let Some(log) = log else { return };
    let time = rfc3339(SystemTime::now());
    let line = if json {
        serde_json::json!({"level": "error", "msg": message, "time": time}).to_string()
    } else {
        format!("time={time:?} level=error msg={message:?}")
    };
    let file = fs::OpenOptions::new().create(true).append(true).open(log);
    let _best_effort = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
}

/// UTC time as Go's JSON decoder wants it, to the second (civil from days, Howard Hinnant's algorithm).
pub(super) fn rfc3339(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}
