//! `hearth-runsc.json`: how this node runs runsc. Written by hearthd at start, read by every hearth-runsc.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{WrapError, command::Verb};

/// Everything hearth-runsc must know that the shim does not tell it. Unknown keys are ignored: a newer hearthd may
/// write for an older wrapper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrapperConfig {
    /// The real runsc.
    pub runsc: PathBuf,
    /// cgroup parent that every sandbox must lie below, such as `/hearth`.
    pub cgroup_parent: String,
    /// runsc's `--platform`.
    #[serde(default = "default_platform")]
    pub platform: String,
    /// runsc's `--network`.
    #[serde(default = "default_network")]
    pub network: String,
    /// How long each subcommand may take.
    #[serde(default)]
    pub deadlines: Deadlines,
    /// Where runsc writes its debug logs; absent: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub debug_log_dir: Option<PathBuf>,
    /// The cgroup mounts.
    #[serde(default = "default_cgroup_root")]
    pub cgroup_root: PathBuf,
}

fn default_platform() -> String {
    "systrap".to_owned()
}

fn default_network() -> String {
    "none".to_owned()
}

fn default_cgroup_root() -> PathBuf {
    PathBuf::from("/sys/fs/cgroup")
}

/// How long one invocation may take in all, in milliseconds. containerd waits 5 s for the pids of each sandbox when it
/// starts, so `query_ms` stays far below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Deadlines {
    /// create, start, exec.
    pub start_ms: u64,
    /// ps, state, list, events, version, features.
    pub query_ms: u64,
    /// kill.
    pub kill_ms: u64,
    /// delete.
    pub delete_ms: u64,
    /// pause, resume, update.
    pub control_ms: u64,
    /// checkpoint, restore: they move the sandbox's memory.
    pub image_ms: u64,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            start_ms: 20_000,
            query_ms: 2_000,
            kill_ms: 4_000,
            delete_ms: 8_000,
            control_ms: 4_000,
            image_ms: 120_000,
        }
    }
}

impl Deadlines {
    /// The deadline of one subcommand.
    pub(super) fn of(&self, verb: Verb) -> Duration {
        Duration::from_millis(match verb {
            Verb::Create | Verb::Start | Verb::Exec => self.start_ms,
            Verb::Ps | Verb::State | Verb::List | Verb::Events | Verb::Features | Verb::Version => {
                self.query_ms
            }
            Verb::Kill => self.kill_ms,
            Verb::Delete => self.delete_ms,
            Verb::Pause | Verb::Resume | Verb::Update => self.control_ms,
            Verb::Checkpoint | Verb::Restore => self.image_ms,
        })
    }
}

impl WrapperConfig {
    /// Name of the file.
    pub const FILE: &'static str = "hearth-runsc.json";
    /// The shim passes `--root <Options.root>/<namespace>`: the file lies beside that directory, or one above.
    const LEVELS_UP: usize = 2;

    /// A configuration with the defaults.
    #[must_use]
    pub fn new(runsc: impl Into<PathBuf>, cgroup_parent: impl Into<String>) -> Self {
        Self {
            runsc: runsc.into(),
            cgroup_parent: cgroup_parent.into(),
            platform: default_platform(),
            network: default_network(),
            deadlines: Deadlines::default(),
            debug_log_dir: None,
            cgroup_root: default_cgroup_root(),
        }
    }

    /// The flags that every sandbox gets, as one text: an image can be restored only under the same.
    #[must_use]
    pub fn flags(&self) -> String {
        let fixed = super::command::FIXED.join(" ");
        format!(
            "--platform={} --network={} {fixed}",
            self.platform, self.network
        )
    }

    /// Writes it into `dir` (the `root` of the runtime options) so that a reader sees the old file or the new one,
    /// never half of it. Called by hearthd before the first sandbox.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, dir: &Path) -> io::Result<PathBuf> {
        let path = dir.join(Self::FILE);
        let fresh = dir.join(format!("{}.{}", Self::FILE, std::process::id()));
        // runsc's state is for root alone.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
        fs::write(&fresh, serde_json::to_vec_pretty(self)?)?;
        fs::File::open(&fresh)?.sync_all()?;
        fs::rename(&fresh, &path)?;
        Ok(path)
    }

    /// The configuration that belongs to runsc's `--root`.
    pub(super) fn find(root: Option<&Path>) -> Result<Self, WrapError> {
        let root = root.ok_or_else(|| WrapError::Usage("--root is needed".to_owned()))?;
        for dir in root.ancestors().skip(1).take(Self::LEVELS_UP) {
            let path = dir.join(Self::FILE);
            match fs::read(&path) {
                Ok(text) => {
                    return serde_json::from_slice(&text)
                        .map_err(|source| WrapError::Config { path, source });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(WrapError::Read { path, source }),
            }
        }
        Err(WrapError::NoConfig(root.to_owned()))
    }
}
