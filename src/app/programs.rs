//! Where the outside programs are: as configured, else beside hearthd, in HEARTH_BIN_DIR, in the cache of `make setup`,
//! or in PATH.

use crate::config::Runtime;
use std::path::{Path, PathBuf};

/// Every program hearth needs; absolute paths of files that exist.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub(super) runsc: PathBuf,
    pub(super) wrapper: PathBuf,
    pub(super) init: PathBuf,
    pub(super) shim: PathBuf,
    /// Needed only where containerd is managed.
    pub(super) containerd: Option<PathBuf>,
}

/// Programs that are nowhere.
#[derive(Debug, thiserror::Error)]
#[error("{}: not found (looked in {looked}). `make setup` builds what hearth needs; or name it in the configuration", .missing.join(", "))]
pub struct MissingPrograms {
    missing: Vec<String>,
    looked: String,
}

/// The directories that are looked through.
fn directories() -> Vec<PathBuf> {
    let beside = std::env::current_exe().ok();
    let beside = beside.and_then(|path| Some(path.parent()?.to_owned()));
    let named = std::env::var_os("HEARTH_BIN_DIR").map(PathBuf::from);
    let cache = std::env::var_os("HEARTH_CACHE").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/hearth"));
    let cache = cache.or_else(home).map(|cache| cache.join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::split_paths(&path).filter(|dir| dir.is_absolute());
    let mut all: Vec<PathBuf> = beside.into_iter().chain(named).chain(cache).collect();
    all.extend(path);
    all
}

impl Programs {
    /// Finds them all, or tells every one that is missing.
    pub(super) fn find(config: &Runtime, managed: bool) -> Result<Self, MissingPrograms> {
        let directories = directories();
        let mut missing = Vec::new();
        let mut find = |key: &str, configured: &Path, name: &str| {
            if !configured.as_os_str().is_empty() {
                if !configured.is_file() {
                    missing.push(format!("runtime.{key} {}", configured.display()));
                }
                return configured.to_owned();
            }
            let mut candidates = directories.iter().map(|dir| dir.join(name));
            let found = candidates.find(|path| path.is_file());
            found.unwrap_or_else(|| {
                missing.push(format!("{name} (runtime.{key})"));
                PathBuf::new()
            })
        };
        let programs = Self {
            runsc: find("runsc", &config.runsc, "runsc"),
            wrapper: find("wrapper", &config.wrapper, "hearth-runsc"),
            init: find("init", &config.init, "hearth-init"),
            shim: find("shim", &config.shim, "containerd-shim-runc-v2"),
            containerd: managed.then(|| find("containerd", &config.containerd, "containerd")),
        };
        if missing.is_empty() {
            return Ok(programs);
        }
        let looked: Vec<_> = directories
            .iter()
            .map(|dir| dir.display().to_string())
            .collect();
        Err(MissingPrograms {
            missing,
            looked: looked.join(":"),
        })
    }
}
