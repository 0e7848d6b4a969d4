//! What must be the same where an image is restored as where it was made (runtime-facts §3: restore demands it).

use super::VaultError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The compatibility key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// runsc's version string.
    pub runsc: String,
    /// Its flags, as one text.
    pub flags: String,
    /// What the sandbox's root file system is made of: its snapshot's parent.
    pub chain: String,
    /// Digest of the sandbox's OCI spec.
    pub spec: String,
    /// Of the CPU; an image needs all it was made with.
    pub cpu: BTreeSet<String>,
}

impl Fingerprint {
    /// Whether an image of this kind can be restored `here`.
    pub(super) fn fits(&self, here: &Self) -> Result<(), VaultError> {
        let pairs = [
            ("runsc", &self.runsc, &here.runsc),
            ("runsc's flags", &self.flags, &here.flags),
            ("the root file system", &self.chain, &here.chain),
            ("the spec", &self.spec, &here.spec),
        ];
        for (what, then, now) in pairs {
            if then != now {
                return Err(VaultError::Mismatch(format!(
                    "{what} was {then:?} when it was made and is {now:?}"
                )));
            }
        }
        let lacking: Vec<_> = self.cpu.difference(&here.cpu).map(String::as_str).collect();
        match lacking.is_empty() {
            true => Ok(()),
            false => Err(VaultError::Mismatch(format!(
                "this CPU lacks {}",
                lacking.join(", ")
            ))),
        }
    }
}

/// The CPU's features, from a text like /proc/cpuinfo: those of the first processor.
#[must_use]
pub fn cpu_features(cpuinfo: &str) -> BTreeSet<String> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let features = line.and_then(|line| line.split_once(':'));
    let features = features.map_or("", |(_, features)| features);
    features.split_whitespace().map(str::to_owned).collect()
}
