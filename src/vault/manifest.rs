//! What an image is: written and fsynced last. Where there is one the image is whole; it is signed, so a changed one is a
//! damaged image.

use super::sealing::{ImageKey, SALT};
use super::{Fingerprint, NAME_BYTES, VaultError, fresh, sync};
use crate::machine::ids::SandboxId;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The form of the files beside it.
const FORMAT: u32 = 1;
/// It takes some hundred bytes and the CPU's features.
const BYTES: u64 = 1 << 20;

/// A file of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) plain_bytes: u64,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    sandbox: String,
    salt: [u8; SALT],
    pub(super) fingerprint: Fingerprint,
    /// In the order they were sealed in: it is part of each piece's nonce.
    pub(super) files: Vec<Entry>,
}

/// On the disk: the manifest's very bytes, as text, and what signs them.
#[derive(Debug, Serialize, Deserialize)]
struct Signed {
    manifest: String,
    mac: String,
}

/// A name that stays in its directory.
pub(super) fn is_plain(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty()
        && name.len() <= NAME_BYTES
        && !name.starts_with('.')
        && name.chars().all(allowed)
}

fn damaged(what: &str) -> VaultError {
    VaultError::Damaged(format!("its manifest {what}"))
}

impl Manifest {
    pub(super) fn new(
        id: SandboxId,
        salt: &[u8; SALT],
        fingerprint: Fingerprint,
        files: Vec<Entry>,
    ) -> Self {
        Self {
            format: FORMAT,
            sandbox: id.to_string(),
            salt: *salt,
            fingerprint,
            files,
        }
    }

    pub(super) fn path(image: &Path) -> PathBuf {
        image.join("manifest.json")
    }

    /// Of all its files in plain.
    pub(super) fn plain_bytes(&self) -> u64 {
        let sizes = self.files.iter().map(|file| file.plain_bytes);
        sizes.fold(0, u64::saturating_add)
    }

    /// The commit point: durable when this returns.
    pub(super) fn write(&self, image: &Path, key: &ImageKey) -> Result<(), VaultError> {
        let encode = |error: serde_json::Error| damaged(&format!("can't be written: {error}"));
        let manifest = serde_json::to_string(self).map_err(encode)?;
        let mac = hex(&key.sign(manifest.as_bytes()));
        let text = serde_json::to_vec(&Signed { manifest, mac }).map_err(encode)?;
        let (unfinished, path) = (image.join("manifest.new"), Self::path(image));
        let mut file = fresh(&unfinished)?;
        let written = file.write_all(&text).and_then(|()| file.sync_all());
        written.map_err(VaultError::io(&unfinished))?;
        // The names of the files beside it are durable before its own.
        sync(image)?;
        fs::rename(&unfinished, &path).map_err(VaultError::io(&path))?;
        sync(image)
    }

    /// Reads and checks it; the image's key with it.
    pub(super) fn read(
        image: &Path,
        id: SandboxId,
        node: &[u8; 32],
    ) -> Result<(Self, ImageKey), VaultError> {
        let path = Self::path(image);
        let mut text = Vec::new();
        let read = fs::File::open(&path).and_then(|file| file.take(BYTES).read_to_end(&mut text));
        match read {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(damaged("is missing"));
            }
            read => read.map_err(VaultError::io(&path))?,
        };
        let signed: Signed = serde_json::from_slice(&text).map_err(|_| damaged("is no JSON"))?;
        let manifest: Self =
            serde_json::from_str(&signed.manifest).map_err(|_| damaged("does not parse"))?;
        let key = ImageKey::derive(node, &manifest.salt, id)?;
        let mac = unhex(&signed.mac).ok_or_else(|| damaged("has no signature"))?;
        if !key.is_signed(signed.manifest.as_bytes(), &mac) {
            return Err(damaged("was not signed by this node's key"));
        }
        let sound = manifest.sandbox == id.to_string()
            && manifest.files.iter().all(|file| is_plain(&file.name));
        match (manifest.format == FORMAT, sound) {
            (true, true) => Ok((manifest, key)),
            (false, _) => Err(damaged("is of a form that this hearthd does not know")),
            (_, false) => Err(damaged("is another sandbox's")),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    text.as_bytes().chunks(2).map(pair).collect()
}
