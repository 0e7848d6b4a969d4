//! `[hibernation]`: the disk tier.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Less staging memory seals no sandbox.
const LEAST_STAGING_BYTES: u64 = 32 << 20;

/// The disk tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Hibernation {
    /// What the images of all sandboxes together may take in data_dir, bytes; 0: no disk tier.
    pub quota_bytes: u64,
    /// Memory (a tmpfs below run_dir) in which images are in plain while they are made and restored, bytes. Bounds how big
    /// a sandbox may be that goes to the disk; used only meanwhile.
    pub staging_bytes: u64,
    /// A claimed sandbox that was frozen for so many seconds goes to the disk; 0: never by itself. Streams that are open
    /// in it end then.
    pub sink_after_seconds: u64,
    /// A file of 32 bytes, mode 0600, that images are sealed with. Empty: a key made from data_dir's node.key.
    pub key_file: PathBuf,
    /// "auto": members of a pool are cloned from an image of the first one, which stays in staging_bytes, where that is
    /// faster; "off": all are made anew.
    pub golden_images: String,
}

impl Default for Hibernation {
    fn default() -> Self {
        Self {
            quota_bytes: 8 << 30,
            staging_bytes: 1 << 30,
            sink_after_seconds: 0,
            key_file: PathBuf::new(),
            golden_images: "off".into(),
        }
    }
}

impl Hibernation {
    /// What is wrong with the values.
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if self.staging_bytes < LEAST_STAGING_BYTES {
            found.push((
                "hibernation.staging_bytes",
                "must be at least 32 MiB".into(),
            ));
        }
        if self.sink_after_seconds > 30 * 24 * 3600 {
            found.push((
                "hibernation.sink_after_seconds",
                "must be at most 30 days".into(),
            ));
        }
        if !(self.key_file.is_absolute() || self.key_file.as_os_str().is_empty()) {
            found.push(("hibernation.key_file", "must be an absolute path".into()));
        }
        if !["auto", "off"].contains(&self.golden_images.as_str()) {
            found.push((
                "hibernation.golden_images",
                "must be \"auto\" or \"off\"".into(),
            ));
        }
        found
    }
}
