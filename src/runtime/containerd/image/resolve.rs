//! From a digest to everything a sandbox needs of it.

use std::time::{Duration, SystemTime};

use containerd_client::{
    services::v1::{
        CreateRequest, DeleteRequest,
        snapshots::{RemoveSnapshotRequest, StatSnapshotRequest, ViewSnapshotRequest},
    },
    types::{Descriptor, Mount},
};
use oci_spec::image::ImageConfiguration;
use sha2::{Digest, Sha256};

use super::{
    super::client::{Call, Client, Reason, gone_is_fine, leased},
    Images, Resolved, content, user, view,
};
use crate::runtime::{RuntimeConfig, RuntimeError};

const STAT: Call = Call::seconds("snapshots.stat", 5);
const VIEW: Call = Call::seconds("snapshots.view", 10);
const UNVIEW: Call = Call::seconds("snapshots.remove", 10);
pub(super) const LEASE: Call = Call::seconds("leases.create", 5);
pub(super) const UNLEASE: Call = Call::seconds("leases.delete", 10);
/// A view is needed for milliseconds; after this it goes with its lease even if hearthd died over it.
const VIEW_LEASE: Duration = Duration::from_secs(600);
/// Mounting and reading two small files.
const VIEW_READ: Duration = Duration::from_secs(20);

/// The name of the snapshot that holds all of an image's layers (`identity.ChainID` of the OCI image spec).
fn chain_id(diff_ids: &[String]) -> Option<String> {
    let mut ids = diff_ids.iter();
    let first = ids.next()?.clone();
    Some(ids.fold(first, |chain, next| {
        let sum = Sha256::digest(format!("{chain} {next}"));
        let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    }))
}

/// Makes a lease that ends by itself; what is made under it is safe from garbage collection until then.
pub(super) async fn lease(client: &Client, id: &str, lasts: Duration) -> Result<(), RuntimeError> {
    let until = humantime::format_rfc3339_seconds(SystemTime::now() + lasts).to_string();
    let labels = [("containerd.io/gc.expire".to_owned(), until)];
    let request = CreateRequest {
        id: id.to_owned(),
        labels: labels.into(),
    };
    let mut leases = client.leases();
    client.call(LEASE, leases.create(request)).await?;
    Ok(())
}

/// Ends a lease. One that can't be ended expires.
pub(super) async fn unlease(client: &Client, id: &str) {
    let request = DeleteRequest {
        id: id.to_owned(),
        sync: false,
    };
    let mut leases = client.leases();
    if let Err(error) = gone_is_fine(client.call(UNLEASE, leases.delete(request)).await) {
        tracing::debug!(
            lease = id,
            detail = error.detail(),
            "a lease is left to expire"
        );
    }
}

/// Names that nobody else uses.
pub(super) fn nonce() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

impl Images {
    /// Reads manifest and configuration, looks for the unpacked layers, makes numbers of USER.
    pub(super) async fn resolve(
        &self,
        name: &str,
        target: &Descriptor,
    ) -> Result<Resolved, RuntimeError> {
        let manifest = content::manifest(&self.client, name, target).await?;
        let configuration = content::configuration(&self.client, name, &manifest).await?;
        let chain_id = chain_id(configuration.rootfs().diff_ids())
            .ok_or_else(|| content::unusable(name, "it has no layers"))?;
        self.expect_unpacked(name, &chain_id).await?;
        let user = self.user(name, &chain_id, &configuration).await?;
        let config = configuration.config().clone().unwrap_or_default();
        Ok(Resolved {
            digest: target.digest.clone(),
            chain_id,
            env: config.env().clone().unwrap_or_default(),
            working_dir: config.working_dir().clone().unwrap_or_default(),
            user,
        })
    }

    /// Bytes of its content.
    pub(super) async fn size(&self, target: &Descriptor) -> Result<u64, RuntimeError> {
        let manifest = content::manifest(&self.client, &target.digest, target).await?;
        Ok(content::size_bytes(&manifest))
    }

    async fn expect_unpacked(&self, name: &str, chain_id: &str) -> Result<(), RuntimeError> {
        let snapshotter = &self.config.snapshotter;
        let request = StatSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: chain_id.to_owned(),
        };
        let mut snapshots = self.client.snapshots();
        match self.client.call(STAT, snapshots.stat(request)).await {
            Ok(_) => Ok(()),
            Err(error) if error.reason == Reason::NotFound => {
                let detail = format!(
                    "it is in containerd but not unpacked for snapshotter {snapshotter:?}: import or pull it with \
                     hearth (containerd's transfer plugin must have an unpack_config for that snapshotter)"
                );
                Err(content::unusable(name, &detail))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn user(
        &self,
        name: &str,
        chain_id: &str,
        configuration: &ImageConfiguration,
    ) -> Result<Option<String>, RuntimeError> {
        let config = configuration.config().as_ref();
        let text = config
            .and_then(|config| config.user().clone())
            .unwrap_or_default();
        if !user::needs_files(&text) {
            return Ok(None);
        }
        let files = self.files(name, chain_id).await?;
        let [passwd, group] = files.as_slice() else {
            return Err(content::unusable(name, "its user files cannot be read"));
        };
        user::resolve(&text, passwd, group).map_err(|wrong| content::unusable(name, &wrong))
    }

    /// The image's passwd and group files.
    async fn files(&self, name: &str, chain_id: &str) -> Result<Vec<String>, RuntimeError> {
        let key = format!("hearth-view-{}", nonce());
        lease(&self.client, &key, VIEW_LEASE).await?;
        let read = async {
            let mounts = self.view(chain_id, &key).await?;
            read_files(&self.config, name, mounts).await
        };
        let read = read.await;
        let request = RemoveSnapshotRequest {
            snapshotter: self.config.snapshotter.clone(),
            key: key.clone(),
        };
        let mut snapshots = self.client.snapshots();
        let removed = self.client.call(UNVIEW, snapshots.remove(request)).await;
        if let Err(error) = gone_is_fine(removed) {
            tracing::debug!(key, detail = error.detail(), "a view is left to its lease");
        }
        unlease(&self.client, &key).await;
        read
    }

    async fn view(&self, chain_id: &str, key: &str) -> Result<Vec<Mount>, RuntimeError> {
        let request = ViewSnapshotRequest {
            snapshotter: self.config.snapshotter.clone(),
            key: key.to_owned(),
            parent: chain_id.to_owned(),
            ..ViewSnapshotRequest::default()
        };
        let mut snapshots = self.client.snapshots();
        let view = snapshots.view(leased(request, key));
        Ok(self.client.call(VIEW, view).await?.mounts)
    }
}

async fn read_files(
    config: &RuntimeConfig,
    name: &str,
    mounts: Vec<Mount>,
) -> Result<Vec<String>, RuntimeError> {
    let place = config.run_dir.join("views");
    let work = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&place)?;
        view::read_files(mounts, place, &["etc/passwd", "etc/group"])
    });
    match tokio::time::timeout(VIEW_READ, work).await {
        Ok(Ok(Ok(files))) => Ok(files),
        Ok(Ok(Err(error))) => Err(content::unusable(name, &error.to_string())),
        Ok(Err(error)) => Err(content::unusable(name, &error.to_string())),
        Err(_) => Err(RuntimeError::DeadlineExceeded {
            what: "reading the image's users",
            seconds: VIEW_READ.as_secs(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::chain_id;

    #[test]
    fn chain_ids_are_those_of_the_image_spec() {
        let ids = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        assert_eq!(chain_id(&[]), None);
        assert_eq!(chain_id(&ids(&["sha256:a"])), Some("sha256:a".to_owned()));
        // printf 'sha256:a sha256:b' | sha256sum
        let two = chain_id(&ids(&["sha256:a", "sha256:b"]));
        assert_eq!(two.as_deref(), Some(TWO));
        let three = chain_id(&ids(&["sha256:a", "sha256:b", "sha256:c"]));
        assert_eq!(three, chain_id(&ids(&[TWO, "sha256:c"])));
    }

    const TWO: &str = "sha256:970a948bffa8de94d6e22d747ba8c95030e6e546909f98f54e99a13005e173a8";
}
