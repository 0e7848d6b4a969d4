//! Reading manifests and configurations out of the content store.

use containerd_client::{services::v1::ReadContentRequest, types::Descriptor};
use oci_spec::image::{Arch, ImageConfiguration, ImageIndex, ImageManifest, Os, Platform};
use serde::de::DeserializeOwned;

use super::super::client::{Call, CallError, Client, Reason};
use crate::runtime::RuntimeError;

const READ: Call = Call::seconds("content.read", 10);
/// The largest manifest or configuration; registries take 4 MiB.
const DOCUMENT_BYTES: usize = 4 << 20;
/// Indexes within indexes that are followed.
const DEPTH: usize = 3;

const WHAT: &str = "image";

/// `Refused`, about an image.
pub(super) fn unusable(name: &str, detail: &str) -> RuntimeError {
    RuntimeError::Refused {
        what: WHAT,
        detail: super::super::client::clip(&format!("{name:?} cannot be used: {detail}")),
    }
}

/// Reads one document.
async fn read<T: DeserializeOwned>(
    client: &Client,
    name: &str,
    digest: &str,
) -> Result<T, RuntimeError> {
    let request = ReadContentRequest {
        digest: digest.to_owned(),
        ..ReadContentRequest::default()
    };
    let mut content = client.content();
    let whole = client.measure(READ, async {
        let mut pieces = content.read(request).await?.into_inner();
        let mut text = Vec::new();
        while let Some(piece) = pieces.message().await? {
            if text.len() + piece.data.len() > DOCUMENT_BYTES {
                return Ok(None);
            }
            text.extend_from_slice(&piece.data);
        }
        Ok(Some(text))
    });
    let text = match whole.await {
        Ok(Some(text)) => text,
        Ok(None) => {
            return Err(unusable(
                name,
                &format!("{digest} is larger than {DOCUMENT_BYTES} bytes"),
            ));
        }
        Err(error) if lacks(&error) => {
            return Err(unusable(
                name,
                &format!("{digest} is missing in containerd"),
            ));
        }
        Err(error) => return Err(error.into()),
    };
    serde_json::from_slice(&text).map_err(|error| unusable(name, &format!("{digest}: {error}")))
}

fn lacks(error: &CallError) -> bool {
    error.reason == Reason::NotFound
}

fn is_index(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

fn is_ours(platform: Option<&Platform>) -> bool {
    platform.is_none_or(|platform| {
        *platform.os() == Os::Linux && *platform.architecture() == Arch::Amd64
    })
}

/// Digests that an index lists; none if it is no index.
pub(super) async fn listed(
    client: &Client,
    target: &Descriptor,
) -> Result<Vec<String>, RuntimeError> {
    if !is_index(&target.media_type) {
        return Ok(Vec::new());
    }
    let index: ImageIndex = read(client, &target.digest, &target.digest).await?;
    let digests = index.manifests().iter().map(|one| one.digest().to_string());
    Ok(digests.collect())
}

/// The manifest for linux/amd64 that a reference leads to.
pub(super) async fn manifest(
    client: &Client,
    name: &str,
    target: &Descriptor,
) -> Result<ImageManifest, RuntimeError> {
    let mut digest = target.digest.clone();
    let mut media_type = target.media_type.clone();
    for _ in 0..DEPTH {
        if !is_index(&media_type) {
            return read(client, name, &digest).await;
        }
        let index: ImageIndex = read(client, name, &digest).await?;
        // One that names its platform goes before one that does not.
        let mut ours: Vec<_> = index
            .manifests()
            .iter()
            .filter(|one| is_ours(one.platform().as_ref()))
            .collect();
        ours.sort_by_key(|one| one.platform().is_none());
        let Some(chosen) = ours.first() else {
            return Err(unusable(name, "it has no manifest for linux/amd64"));
        };
        digest = chosen.digest().to_string();
        media_type = chosen.media_type().to_string();
    }
    Err(unusable(name, "it has too many indexes within indexes"))
}

/// The configuration that a manifest names.
pub(super) async fn configuration(
    client: &Client,
    name: &str,
    manifest: &ImageManifest,
) -> Result<ImageConfiguration, RuntimeError> {
    let configuration: ImageConfiguration =
        read(client, name, manifest.config().digest().as_ref()).await?;
    let (os, arch) = (configuration.os(), configuration.architecture());
    if (os, arch) != (&Os::Linux, &Arch::Amd64) {
        return Err(unusable(
            name,
            &format!("it is for {os}/{arch}, not linux/amd64"),
        ));
    }
    Ok(configuration)
}

/// Bytes of everything that a manifest names, compressed as it lies in the content store.
pub(super) fn size_bytes(manifest: &ImageManifest) -> u64 {
    let layers = manifest
        .layers()
        .iter()
        .map(oci_spec::image::Descriptor::size);
    layers.fold(manifest.config().size(), u64::saturating_add)
}
