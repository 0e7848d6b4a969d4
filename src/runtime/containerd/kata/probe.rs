//! Which of Kata's handlers the node can serve now. containerd is asked, for the shim is looked for and run where it is: in
//! its PATH and its mount namespace, not in hearthd's.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use containerd_client::{services::v1::PluginInfoRequest, types::RuntimeRequest};
use prost::Message;
use prost_types::Any;

use super::super::{
    ContainerdRuntime,
    client::{Call, CallError, Reason},
};
use crate::runtime::KataHandler;

/// It runs `<shim> -info`.
const INFO: Call = Call::seconds("introspection.plugin_info", 10);
/// How containerd begins to tell that there is no such program (`getRuntimeInfo` in core/runtime/v2). A shim that is there
/// and does not know `-info` (Kata's own) fails in other words.
const NOWHERE: &str = "failed to resolve runtime path";
/// Snapshotters whose snapshots are block devices. A machine under Firecracker has no shared file system: its root must be
/// one.
const BLOCK: &[&str] = &["devmapper", "blockfile"];

/// What the latest look has shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::runtime::containerd) struct Probe {
    /// As the shim says; empty: it does not.
    pub(in crate::runtime::containerd) version: String,
    /// Why the handler can't be served; empty: it can, as far as can be seen.
    pub(in crate::runtime::containerd) unservable: String,
}

/// Of all handlers, by name. One that was never looked at counts as servable: its first sandbox would tell.
#[derive(Debug, Default)]
pub(in crate::runtime::containerd) struct Probes {
    latest: Mutex<BTreeMap<String, Probe>>,
}

impl Probes {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Probe>> {
        // Values are put in whole.
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::runtime::containerd) fn of(&self, handler: &str) -> Probe {
        self.lock().get(handler).cloned().unwrap_or_default()
    }
}

impl ContainerdRuntime {
    /// Looks at each. Part of every listing: without Kata's handlers it does nothing.
    pub(in crate::runtime::containerd) async fn probe_handlers(&self) {
        for handler in &self.config.kata {
            let Some(probe) = self.probe(handler).await else {
                continue;
            };
            let before = self
                .probes
                .lock()
                .insert(handler.name.clone(), probe.clone());
            if before.is_none_or(|before| before.unservable != probe.unservable) {
                let (handler, why) = (&handler.name, &probe.unservable);
                match why.is_empty() {
                    true => tracing::info!(handler, "the runtime handler can be served"),
                    false => tracing::warn!(handler, why, "the runtime handler can't be served"),
                }
            }
        }
    }

    /// `None`: containerd did not answer, so nothing new is known.
    async fn probe(&self, handler: &KataHandler) -> Option<Probe> {
        if let Some(unservable) = without_block(&handler.name, &self.config.snapshotter) {
            return Some(Probe {
                unservable,
                ..Probe::default()
            });
        }
        let shim = handler.shim.display().to_string();
        let asked = RuntimeRequest {
            runtime_path: shim.clone(),
            options: None,
        };
        let request = PluginInfoRequest {
            r#type: "io.containerd.runtime.v2".to_owned(),
            id: "task".to_owned(),
            options: Some(Any {
                type_url: "containerd.types.RuntimeRequest".to_owned(),
                value: asked.encode_to_vec(),
            }),
        };
        let mut introspection = self.client.introspection();
        let answer = self
            .client
            .call(INFO, introspection.plugin_info(request))
            .await;
        judge(&shim, answer.map(|it| it.extra))
    }
}

/// What containerd's answer means.
fn judge(shim: &str, answer: Result<Option<Any>, CallError>) -> Option<Probe> {
    match answer {
        Ok(extra) => {
            let info = extra.map(|any| {
                containerd_client::types::RuntimeInfo::decode(any.value.as_slice())
                    .unwrap_or_default()
            });
            let version = info.and_then(|info| info.version).unwrap_or_default();
            Some(Probe {
                version: super::super::client::clip(&version.version),
                unservable: String::new(),
            })
        }
        Err(error) if error.reason == Reason::Unreachable => None,
        Err(error) if error.detail().contains(NOWHERE) => Some(Probe {
            unservable: format!("containerd finds no shim {shim:?}: {}", error.detail()),
            ..Probe::default()
        }),
        Err(_) => Some(Probe::default()),
    }
}

/// Why a handler that needs block devices has none.
fn without_block(handler: &str, snapshotter: &str) -> Option<String> {
    let firecracker = handler.split('-').any(|part| part == "fc");
    (firecracker && !BLOCK.contains(&snapshotter)).then(|| {
        format!(
            "Firecracker shares no file system with its guest, so containerd.snapshotter must be one of {}, not {snapshotter:?}",
            BLOCK.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firecracker_needs_block_devices() {
        for (handler, snapshotter, served) in [
            ("kata-fc", "overlayfs", false),
            ("kata-fc-runtime-rs", "overlayfs", false),
            ("kata-fc", "devmapper", true),
            ("kata-clh", "overlayfs", true),
            ("kata-qemu", "overlayfs", true),
        ] {
            let why = without_block(handler, snapshotter);
            assert_eq!(why.is_none(), served, "{handler} on {snapshotter}: {why:?}");
        }
    }
}
