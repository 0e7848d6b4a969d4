//! Where what `make setup` and `make image` build lies, as `hack/lib.sh` has it.

use std::path::PathBuf;

fn cache() -> PathBuf {
    std::env::var_os("HEARTH_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/hearth"),
        PathBuf::from,
    )
}

/// It is there; `how` it is made.
pub fn needed(path: PathBuf, how: &str) -> PathBuf {
    assert!(path.exists(), "{} is missing: {how}", path.display());
    path
}

/// A tool, by name.
#[allow(dead_code)] // Not every test needs both.
pub fn tool(name: &str) -> PathBuf {
    let dir = std::env::var_os("HEARTH_BIN_DIR").map_or_else(|| cache().join("bin"), PathBuf::from);
    needed(dir.join(name), "run `make setup`")
}

/// The python image.
#[allow(dead_code)]
pub fn python_archive() -> PathBuf {
    needed(cache().join("images/python.tar"), "run `make image`")
}
