//! What a sandbox was made with, kept with its record: its image can be restored only with the same. runsc and hearth-init
//! may be exchanged while it lives; then none is made, for it would be lost.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use containerd_client::services::v1::Container;

use super::{ContainerdRuntime, blocking, spec};
use crate::{
    ociwrap::WrapperConfig,
    runtime::{RuntimeError, labels},
    vault::Fingerprint,
};

impl ContainerdRuntime {
    /// Labels for one that is made now. What can't be told now is left out: nothing is made to fail by it.
    pub(super) async fn made_with(&self) -> HashMap<String, String> {
        let told = [
            (labels::RUNSC, self.runsc.get().await),
            (
                labels::MADE_WITH,
                self.flags_and_init(&self.config.init).await,
            ),
        ];
        let known = told
            .into_iter()
            .filter_map(|(key, told)| Some((key.to_owned(), told.ok()?)));
        known.collect()
    }

    /// The flags that runsc is given, and which hearth-init there is at `init`: gVisor refuses a file that has changed since.
    pub(super) async fn flags_and_init(&self, init: &Path) -> Result<String, RuntimeError> {
        let (config, init) = (self.config.clone(), init.to_owned());
        blocking("hearth-init", move || {
            let flags = WrapperConfig::new(&config.runsc, &config.cgroup_parent).flags();
            let about = std::fs::metadata(&init);
            let about = about.map_err(|error| format!("{}: {error}", init.display()))?;
            let changed = about.modified().map_err(|error| error.to_string())?;
            let changed = changed.duration_since(UNIX_EPOCH).unwrap_or_default();
            let changed = changed.as_nanos();
            Ok(format!("{flags} init={}/{changed}", about.len()))
        })
        .await
    }

    /// The hearth-init that is mounted into a sandbox: of another version than this hearthd's, maybe.
    pub(super) fn init_of(&self, container: &Container) -> PathBuf {
        let spec = container.spec.as_ref().map(|spec| spec.value.as_slice());
        let spec = serde_json::from_slice::<serde_json::Value>(spec.unwrap_or_default());
        let spec = spec.unwrap_or_default();
        let mounts = spec["mounts"].as_array().into_iter().flatten();
        let mut mounts = mounts.filter(|mount| mount["destination"] == spec::INIT);
        let source = mounts.next().and_then(|mount| mount["source"].as_str());
        source.map_or_else(|| self.config.init.clone(), PathBuf::from)
    }
}

/// Would an image of it, made now, come back here? `Err`: what differs. One that an older hearth has made does not say; its
/// image is judged when it is restored.
pub(super) fn comes_back(
    labels: &HashMap<String, String>,
    now: &Fingerprint,
) -> Result<(), String> {
    let differs = |label: &str, now: &str| labels.get(label).filter(|then| *then != now).cloned();
    if let Some(then) = differs(labels::RUNSC, &now.runsc) {
        return Err(format!(
            "it is run by runsc {then}, and runsc is {} now",
            now.runsc
        ));
    }
    match differs(labels::MADE_WITH, &now.flags) {
        Some(then) => Err(format!(
            "it was made with \"{then}\", and now there is \"{}\"",
            now.flags
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_made_only_where_all_is_as_it_was() {
        let now = Fingerprint {
            runsc: "release-2".to_owned(),
            flags: "--x init=1/2".to_owned(),
            chain: String::new(),
            spec: String::new(),
            cpu: Default::default(),
        };
        let with = |runsc: &str, made_with: &str| {
            let labels = [(labels::RUNSC, runsc), (labels::MADE_WITH, made_with)];
            let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
            comes_back(&labels.into(), &now)
        };
        assert_eq!(with("release-2", "--x init=1/2"), Ok(()));
        let told = with("release-1", "--x init=1/2").unwrap_err();
        assert!(told.contains("release-1") && told.contains("release-2"));
        for other in ["--x init=1/3", "--y init=1/2"] {
            assert!(with("release-2", other).unwrap_err().contains(other));
        }
        // An older hearth's.
        assert_eq!(comes_back(&HashMap::new(), &now), Ok(()));
    }
}
