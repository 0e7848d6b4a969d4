//! `runtime.kata`: Kata's runtime handlers.

use std::path::{Path, PathBuf};

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kata {
    /// As templates and RuntimeClasses call it.
    pub name: String,
    /// containerd's name of its shim, or the shim's absolute path.
    pub shim: PathBuf,
    /// Kata's configuration file; empty: the shim's own default.
    pub config: PathBuf,
}

/// What every name begins with.
const PREFIX: &str = "kata";
/// A RuntimeClass's handler is a DNS label.
const NAME_BYTES: usize = 63;

/// Reads "NAME", "NAME=SHIM" or "NAME=SHIM:CONFIG". Called by `app`, and by the check of the configuration.
///
/// # Errors
/// What is wrong with it.
pub fn kata(entry: &str) -> Result<Kata, String> {
    let (name, rest) = entry.split_once('=').unwrap_or((entry, ""));
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let label = name.len() <= NAME_BYTES && name.bytes().all(letter) && !name.ends_with('-');
    if !label || !name.starts_with(PREFIX) {
        return Err(format!(
            "{entry:?}: the name must be a DNS label that begins with \"kata\", such as \"kata-clh\""
        ));
    }
    let (shim, config) = rest.split_once(':').unwrap_or((rest, ""));
    let shim = match shim {
        "" => format!("io.containerd.{name}.v2"),
        shim => shim.to_owned(),
    };
    let named = shim.starts_with("io.containerd.") && !shim.contains('/');
    if !named && !Path::new(&shim).is_absolute() {
        return Err(format!(
            "{entry:?}: the shim must be an absolute path or a name such as \"io.containerd.kata-clh.v2\""
        ));
    }
    if !config.is_empty() && !Path::new(config).is_absolute() {
        return Err(format!(
            "{entry:?}: Kata's configuration file must be an absolute path"
        ));
    }
    Ok(Kata {
        name: name.to_owned(),
        shim: shim.into(),
        config: config.into(),
    })
}

/// What is wrong with all of them.
pub(super) fn problems(entries: &[String]) -> Vec<(&'static str, String)> {
    const KEY: &str = "runtime.kata";
    let mut names = std::collections::BTreeSet::new();
    let mut found = Vec::new();
    for entry in entries {
        match kata(entry) {
            Ok(kata) if names.insert(kata.name.clone()) => {}
            Ok(kata) => found.push((KEY, format!("{:?} is named twice", kata.name))),
            Err(problem) => found.push((KEY, problem)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_entry_names_a_handler_its_shim_and_its_configuration() {
        let read = |entry: &str| {
            let kata = kata(entry).unwrap();
            [kata.name.into(), kata.shim, kata.config].map(|it: PathBuf| it.display().to_string())
        };
        let name = ["kata-clh", "io.containerd.kata-clh.v2", ""];
        assert_eq!(read("kata-clh"), name);
        assert_eq!(
            read("kata-qemu=/opt/kata/bin/containerd-shim-kata-v2"),
            ["kata-qemu", "/opt/kata/bin/containerd-shim-kata-v2", ""]
        );
        assert_eq!(
            read("kata-clh=io.containerd.kata.v2:/opt/kata/clh.toml"),
            ["kata-clh", "io.containerd.kata.v2", "/opt/kata/clh.toml"]
        );
        for wrong in [
            "",
            "gvisor",
            "runc",
            "Kata",
            "kata_x",
            "kata-",
            "kata-x=shim",
            "kata-x=./shim",
            "kata-x=io.containerd.x/../y",
            "kata-x=/shim:relative.toml",
        ] {
            let problem = kata(wrong).unwrap_err();
            assert!(problem.contains("must be"), "{wrong}: {problem}");
        }
        let twice = ["kata-clh", "kata-clh=/shim"].map(str::to_owned);
        assert_eq!(problems(&twice).len(), 1);
    }
}
