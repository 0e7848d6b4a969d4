//! Images: what a template's reference stands for, and how images come and go.
//!
//! A pool's generation sees one image: its reference is resolved to a digest once, and what the digest stands for is
//! remembered. Only when that content is gone from containerd is the reference resolved anew.

mod content;
mod naming;
mod resolve;
mod transfer;
mod user;
mod view;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use containerd_client::{
    services::v1::{DeleteImageRequest, GetImageRequest, Image, ListImagesRequest},
    types::Descriptor,
};
use tokio::sync::mpsc;

use super::client::{Call, Client, Reason};
use crate::runtime::{CreateSpec, ImageInfo, ImageProgress, RuntimeConfig, RuntimeError};

const GET: Call = Call::seconds("images.get", 5);
const LIST: Call = Call::seconds("images.list", 10);
const DELETE: Call = Call::seconds("images.delete", 10);
/// Pools' generations whose image is remembered; beyond, any is forgotten and resolved again.
const PINS: usize = 256;
/// Digests whose content is remembered.
const KNOWN: usize = 256;

/// What a sandbox needs to know of its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resolved {
    /// Of the image's manifest (or index), as the reference named it.
    pub(super) digest: String,
    /// The committed snapshot of all its layers.
    pub(super) chain_id: String,
    /// `NAME=value`, as the image has them.
    pub(super) env: Vec<String>,
    /// Empty: none.
    pub(super) working_dir: String,
    /// `uid:gid[,gid…]`; `None`: root.
    pub(super) user: Option<String>,
}

/// (pool, its generation, reference).
type Pin = (String, u64, String);

/// See the module.
#[derive(Debug)]
pub(super) struct Images {
    client: Client,
    config: Arc<RuntimeConfig>,
    pins: Mutex<BTreeMap<Pin, Arc<Resolved>>>,
    known: Mutex<BTreeMap<String, Arc<Resolved>>>,
    /// Bytes by digest.
    sizes: Mutex<BTreeMap<String, u64>>,
    /// Many creations of a new pool begin at once: the first resolves, the others find it done.
    resolving: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps a cache within its bound.
fn remember<K: Ord, V>(cache: &Mutex<BTreeMap<K, V>>, bound: usize, key: K, value: V) {
    let mut cache = lock(cache);
    if cache.len() >= bound {
        cache.pop_first();
    }
    cache.insert(key, value);
}

impl Images {
    pub(super) fn new(client: Client, config: Arc<RuntimeConfig>) -> Self {
        Self {
            client,
            config,
            pins: Mutex::default(),
            known: Mutex::default(),
            sizes: Mutex::default(),
            resolving: tokio::sync::Mutex::default(),
        }
    }

    /// The image of a sandbox to be made.
    ///
    /// # Errors
    /// `ImageMissing`; `Refused` when it cannot be used, in words; those of calls.
    pub(super) async fn of(&self, spec: &CreateSpec) -> Result<Arc<Resolved>, RuntimeError> {
        let name = &spec.template.image;
        let pin = (spec.pool.to_string(), spec.generation, name.clone());
        if let Some(found) = lock(&self.pins).get(&pin) {
            return Ok(found.clone());
        }
        let _one = self.resolving.lock().await;
        if let Some(found) = lock(&self.pins).get(&pin) {
            return Ok(found.clone());
        }
        let target = self.target(name).await?;
        let resolved = self.content_of(name, &target).await?;
        remember(&self.pins, PINS, pin, resolved.clone());
        Ok(resolved)
    }

    /// What a digest stands for, from memory if possible.
    async fn content_of(
        &self,
        name: &str,
        target: &Descriptor,
    ) -> Result<Arc<Resolved>, RuntimeError> {
        if let Some(found) = lock(&self.known).get(&target.digest) {
            return Ok(found.clone());
        }
        let resolved = Arc::new(self.resolve(name, target).await?);
        remember(&self.known, KNOWN, target.digest.clone(), resolved.clone());
        Ok(resolved)
    }

    /// The content of this image turned out to be gone.
    pub(super) fn forget(&self, gone: &Resolved) {
        lock(&self.known).remove(&gone.digest);
        lock(&self.pins).retain(|_, resolved| resolved.digest != gone.digest);
    }

    /// What containerd says a reference stands for.
    async fn target(&self, name: &str) -> Result<Descriptor, RuntimeError> {
        let request = GetImageRequest {
            name: name.to_owned(),
        };
        let mut images = self.client.images();
        let missing = || RuntimeError::ImageMissing(name.to_owned());
        match self.client.call(GET, images.get(request)).await {
            Ok(answer) => answer
                .image
                .and_then(|image| image.target)
                .ok_or_else(missing),
            Err(error) if error.reason == Reason::NotFound => Err(missing()),
            Err(error) => Err(error.into()),
        }
    }

    /// All images, ordered by name.
    ///
    /// # Errors
    /// Those of calls.
    pub(super) async fn list(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        let mut images = self.client.images();
        let request = ListImagesRequest::default();
        let answer = self.client.call(LIST, images.list(request)).await?;
        let mut found = Vec::with_capacity(answer.images.len());
        for image in answer.images {
            found.push(self.info(image).await?);
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    async fn info(&self, image: Image) -> Result<ImageInfo, RuntimeError> {
        let target = image.target.unwrap_or_default();
        let known = lock(&self.sizes).get(&target.digest).copied();
        let size_bytes = match known {
            Some(size) => size,
            // Of an image whose content is not whole it is not known; that must not hide the others.
            None => match self.size(&target).await {
                Ok(size) => {
                    remember(&self.sizes, KNOWN, target.digest.clone(), size);
                    size
                }
                Err(error @ RuntimeError::Unavailable(_)) => return Err(error),
                Err(_) => 0,
            },
        };
        Ok(ImageInfo {
            name: image.name,
            digest: target.digest,
            size_bytes,
        })
    }

    /// Removes a reference.
    ///
    /// # Errors
    /// `ImageMissing`; those of calls.
    pub(super) async fn remove(&self, name: &str) -> Result<(), RuntimeError> {
        let request = DeleteImageRequest {
            name: name.to_owned(),
            ..DeleteImageRequest::default()
        };
        let mut images = self.client.images();
        let removed = self.client.call(DELETE, images.delete(request)).await;
        // A pool that still names it must find out when it next makes a sandbox.
        lock(&self.pins).retain(|(_, _, pinned), _| pinned != name);
        match removed {
            Ok(()) => Ok(()),
            Err(error) if error.reason == Reason::NotFound => {
                Err(RuntimeError::ImageMissing(name.to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Imports an archive file; what it holds is unpacked and can be used. See `transfer`.
    ///
    /// # Errors
    /// `Refused`, naming what is wrong with the archive; those of calls.
    pub(super) async fn import(
        &self,
        archive: &Path,
        name: Option<&str>,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<Vec<ImageInfo>, RuntimeError> {
        let saved = transfer::import(&self.client, &self.config, archive, name, &progress).await?;
        let mut usable = Vec::new();
        for image in saved {
            usable.push(self.usable(image).await?);
        }
        usable.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(usable)
    }

    /// Pulls an image; it is unpacked and can be used.
    ///
    /// # Errors
    /// `Refused` in containerd's words; those of calls.
    pub(super) async fn pull(
        &self,
        name: &str,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<ImageInfo, RuntimeError> {
        transfer::pull(&self.client, &self.config, name, &progress).await?;
        let target = Some(self.target(name).await?);
        let image = Image {
            name: name.to_owned(),
            target,
            ..Image::default()
        };
        self.usable(image).await
    }

    /// Proves that a new image can be used by resolving it; one that can't is removed again.
    async fn usable(&self, image: Image) -> Result<ImageInfo, RuntimeError> {
        let target = image.target.clone().unwrap_or_default();
        match self.content_of(&image.name, &target).await {
            Ok(_) => self.info(image).await,
            Err(error @ RuntimeError::Refused { .. }) => {
                if let Err(left) = self.remove(&image.name).await {
                    tracing::warn!(image = image.name, error = %left, "an unusable image stays");
                }
                Err(error)
            }
            Err(error) => Err(error),
        }
    }
}
