//! Where the tools lie that `make setup` builds.

use std::path::PathBuf;

/// One of them, by name.
pub fn tool(name: &str) -> PathBuf {
    let dir = std::env::var_os("HEARTH_BIN_DIR").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/hearth/bin"),
        PathBuf::from,
    );
    let path = dir.join(name);
    assert!(
        path.exists(),
        "{} is missing: run `make setup`",
        path.display()
    );
    path
}
