//! Where the outside programs are: as configured, else in the installed version, beside hearthd, in HEARTH_BIN_DIR, in the
//! cache of `make setup`, or in PATH.

use super::install;
use crate::config::Config;
use crate::runtime::KataHandler;
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
    /// The version below `runtime.install_dir` that they were taken from, where there is one.
    pub(super) installed: Option<PathBuf>,
}

/// Programs that are nowhere.
#[derive(Debug, thiserror::Error)]
#[error("{}: not found (looked in {looked}). `make setup` builds what hearth needs; or name it in the configuration", .missing.join(", "))]
pub struct MissingPrograms {
    missing: Vec<String>,
    looked: String,
}

/// The directories that are looked through.
fn directories(installed: Option<PathBuf>) -> Vec<PathBuf> {
    let beside = std::env::current_exe().ok();
    let beside = beside.and_then(|path| Some(path.parent()?.to_owned()));
    let named = std::env::var_os("HEARTH_BIN_DIR").map(PathBuf::from);
    let cache = std::env::var_os("HEARTH_CACHE").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/hearth"));
    let cache = cache.or_else(home).map(|cache| cache.join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::split_paths(&path).filter(|dir| dir.is_absolute());
    let first = installed.into_iter().chain(beside);
    let mut all: Vec<PathBuf> = first.chain(named).chain(cache).collect();
    all.extend(path);
    all
}

/// Kata's handlers, as configured: whether their shims are there containerd is asked (its PATH, its mounts).
pub(super) fn kata(config: &Config) -> Vec<KataHandler> {
    let entries = config.runtime.kata.iter();
    // Bad ones were told by the configuration's own check.
    let handlers = entries.filter_map(|entry| crate::config::kata(entry).ok());
    let of = |it: crate::config::Kata| KataHandler {
        name: it.name,
        shim: it.shim,
        config: it.config,
    };
    handlers.map(of).collect()
}

impl Programs {
    /// Finds them all, or tells every one that is missing.
    pub(super) fn find(config: &Config, managed: bool) -> Result<Self, MissingPrograms> {
        let installed = install::current(&config.runtime.install_dir);
        let directories = directories(installed.clone());
        let (shim_is_named, config) = (config.shim_is_named(), &config.runtime);
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
            shim: match shim_is_named {
                true => config.shim.clone(),
                false => find("shim", &config.shim, "containerd-shim-runc-v2"),
            },
            containerd: managed.then(|| find("containerd", &config.containerd, "containerd")),
            installed,
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
