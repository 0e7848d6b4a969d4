//! Which directories the records of containers name.

use std::{collections::BTreeSet, path::PathBuf};

use containerd_client::services::v1::Container;

use super::ContainerdRuntime;
use crate::runtime::RuntimeError;

impl ContainerdRuntime {
    /// Those of `dirs` that any container's record in the namespace names, whoever made it: as hearth-runsc in the shim's
    /// options (called again for each step until the sandbox is gone) or as a mount in the spec (needed again at restore).
    /// Called by `app` before it removes old versions; what is not in the answer is used by nobody.
    ///
    /// # Errors
    /// Those of containerd: then nothing is known.
    pub async fn named(&self, dirs: &[PathBuf]) -> Result<BTreeSet<PathBuf>, RuntimeError> {
        let mut named = BTreeSet::new();
        let visit = |container: Container| {
            let here = dirs.iter().filter(|dir| names(&container, dir));
            named.extend(here.cloned());
        };
        self.client.each_container(Vec::new(), visit).await?;
        Ok(named)
    }
}

/// Whether its record has the directory's path anywhere: a match that means something else only keeps a directory longer.
fn names(container: &Container, dir: &std::path::Path) -> bool {
    // With the slash: no version is taken for another one that it begins.
    let inside = format!("{}/", dir.display());
    let holds = |bytes: &[u8]| {
        let mut windows = bytes.windows(inside.len());
        windows.any(|part| part == inside.as_bytes())
    };
    let spec = container.spec.as_ref().map(|any| any.value.as_slice());
    let runtime = container.runtime.as_ref();
    let options = runtime.and_then(|runtime| runtime.options.as_ref());
    spec.is_some_and(holds)
        || options.is_some_and(|any| holds(&any.value))
        || runtime.is_some_and(|runtime| holds(runtime.name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::super::proto::{RuncOptions, any, spec_any};
    use super::*;
    use containerd_client::services::v1::container;
    use std::path::Path;

    #[test]
    fn a_record_names_the_directories_of_its_programs() {
        let container = Container {
            spec: Some(spec_any(
                br#"{"mounts":[{"source":"/opt/h/2/hearth-init"}]}"#.to_vec(),
            )),
            runtime: Some(container::Runtime {
                name: "/opt/shims/shim".to_owned(),
                options: Some(any(&RuncOptions {
                    binary_name: "/opt/h/10/hearth-runsc".to_owned(),
                    root: "/run/hearth/runsc".to_owned(),
                    ..RuncOptions::default()
                })),
            }),
            ..Container::default()
        };
        let is = |dir: &str| names(&container, Path::new(dir));
        assert!(is("/opt/h/2") && is("/opt/h/10") && is("/opt/shims"));
        assert!(!is("/opt/h/1") && !is("/opt/h/3"));
        assert!(!names(&Container::default(), Path::new("/opt/h/2")));
    }
}
