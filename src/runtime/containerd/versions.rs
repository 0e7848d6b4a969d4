//! Versions of the outside parts.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use super::{ContainerdRuntime, client::Call};
use crate::runtime::{RuntimeError, Versions};

const VERSION: Call = Call::seconds("version", 5);
/// `runsc --version` starts a Go program and prints three lines.
const RUNSC: Duration = Duration::from_secs(10);

/// runsc's version, asked again when the file changes.
#[derive(Debug)]
pub(super) struct RunscVersion {
    path: PathBuf,
    known: Mutex<Option<(SystemTime, u64, String)>>,
}

impl RunscVersion {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            known: Mutex::default(),
        }
    }

    pub(super) async fn get(&self) -> Result<String, RuntimeError> {
        let refused = |detail: String| RuntimeError::Refused {
            what: "runsc --version",
            detail: super::client::clip(&detail),
        };
        let about = tokio::fs::metadata(&self.path).await;
        let about = about.map_err(|error| refused(format!("{}: {error}", self.path.display())))?;
        let changed = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let state = (changed, about.len());
        let known = self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some((changed, length, version)) = known
            && (changed, length) == state
        {
            return Ok(version);
        }
        let mut command = tokio::process::Command::new(&self.path);
        command
            .arg("--version")
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        let said = match tokio::time::timeout(RUNSC, command.output()).await {
            Ok(Ok(said)) => said,
            Ok(Err(error)) => return Err(refused(error.to_string())),
            Err(_) => {
                return Err(RuntimeError::DeadlineExceeded {
                    what: "runsc --version",
                    seconds: RUNSC.as_secs(),
                });
            }
        };
        let text = String::from_utf8_lossy(&said.stdout);
        // "runsc version release-…", then the spec's and the hash's lines.
        let version = text
            .lines()
            .find_map(|line| line.strip_prefix("runsc version "));
        let version = version
            .ok_or_else(|| refused(text.clone().into_owned()))?
            .trim()
            .to_owned();
        let fresh = Some((state.0, state.1, version.clone()));
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(version)
    }
}

impl ContainerdRuntime {
    /// See the trait.
    pub(super) async fn read_versions(&self) -> Result<Versions, RuntimeError> {
        let mut version = self.client.version();
        let containerd = self
            .client
            .call(VERSION, version.version(()))
            .await?
            .version;
        Ok(Versions {
            containerd: super::client::clip(&containerd),
            runsc: self.runsc.get().await?,
        })
    }
}
