//! AES-256-GCM in pieces, with a key for each image.
//!
//! The key is derived (HKDF-SHA256) from the node's key, 32 random bytes of the image, and the sandbox's id; it never
//! seals twice, so a counter is nonce enough: number of the file, number of the piece. Whether a piece is its file's last
//! is authenticated too, so pieces can be neither left out, moved nor taken from another image.

use super::VaultError;
use crate::machine::ids::SandboxId;
use ring::{aead, hkdf, hmac};
use std::io::{self, Read, Write};
use std::path::Path;

/// Plain bytes of one piece.
const PIECE: usize = 1 << 20;
const TAG: usize = 16;
pub(super) const SALT: usize = 32;

/// Why a file could not be sealed or opened.
#[derive(Debug)]
pub(super) enum SealError {
    Io(io::Error),
    Damaged(&'static str),
    Stopped,
}

impl From<io::Error> for SealError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl SealError {
    pub(super) fn at(self, path: &Path) -> VaultError {
        match self {
            Self::Io(error) => VaultError::io(path)(error),
            Self::Damaged(what) => {
                let name = path.file_name().unwrap_or_default();
                VaultError::Damaged(format!("{}: {what}", name.display()))
            }
            Self::Stopped => VaultError::Stopped,
        }
    }
}

/// Fresh random bytes for one image.
pub(super) fn salt() -> Result<[u8; SALT], VaultError> {
    let mut salt = [0; SALT];
    getrandom::fill(&mut salt).map_err(|error| VaultError::Io {
        path: "(random)".into(),
        source: io::Error::other(error.to_string()),
    })?;
    Ok(salt)
}

/// How long a file is when sealed. An empty one has one piece.
pub(super) fn sealed_bytes(plain_bytes: u64) -> u64 {
    let pieces = plain_bytes.div_ceil(PIECE as u64).max(1);
    plain_bytes + pieces * TAG as u64
}

/// The node's key for images, made from its own key.
#[must_use]
pub fn image_key(node: &[u8; 32]) -> [u8; 32] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, node);
    let tag = hmac::sign(&key, b"hearth images v1");
    let mut bytes = [0; 32];
    bytes.copy_from_slice(tag.as_ref());
    bytes
}

/// The keys of one image.
pub(super) struct ImageKey {
    pieces: aead::LessSafeKey,
    manifest: hmac::Key,
}

impl ImageKey {
    pub(super) fn derive(
        node: &[u8; 32],
        salt: &[u8; SALT],
        id: SandboxId,
    ) -> Result<Self, VaultError> {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(node);
        let id = id.to_string();
        let refused = |_| VaultError::Damaged("no key can be derived".into());
        let info = [b"hearth image v1 pieces".as_slice(), id.as_bytes()];
        let pieces = secret.expand(&info, &aead::AES_256_GCM).map_err(refused)?;
        let info_manifest = [b"hearth image v1 manifest".as_slice(), id.as_bytes()];
        let manifest = secret
            .expand(&info_manifest, hmac::HMAC_SHA256)
            .map_err(refused)?;
        Ok(Self {
            pieces: aead::LessSafeKey::new(aead::UnboundKey::from(pieces)),
            manifest: hmac::Key::from(manifest),
        })
    }

    /// Over the manifest.
    pub(super) fn sign(&self, text: &[u8]) -> Vec<u8> {
        hmac::sign(&self.manifest, text).as_ref().to_vec()
    }

    pub(super) fn is_signed(&self, text: &[u8], mac: &[u8]) -> bool {
        hmac::verify(&self.manifest, text, mac).is_ok()
    }

    pub(super) fn seal(
        &self,
        file: u32,
        plain: &mut impl Read,
        plain_bytes: u64,
        sealed: &mut impl Write,
        stop: &impl Fn() -> bool,
    ) -> Result<(), SealError> {
        let mut buffer = vec![0; PIECE];
        let done = each_piece(plain_bytes, |piece, length, last| {
            if stop() {
                return Err(SealError::Stopped);
            }
            let (nonce, aad) = (nonce(file, piece), aad(last));
            let content = &mut buffer[..length];
            plain.read_exact(content)?;
            let tag = self
                .pieces
                .seal_in_place_separate_tag(nonce, aad, content)
                .map_err(|_| SealError::Damaged("it could not be sealed"))?;
            sealed.write_all(content)?;
            sealed.write_all(tag.as_ref())?;
            Ok(())
        });
        // What is left of a piece that was not sealed is plain.
        buffer.fill(0);
        done
    }

    pub(super) fn open(
        &self,
        file: u32,
        sealed: &mut impl Read,
        plain_bytes: u64,
        plain: &mut impl Write,
    ) -> Result<(), SealError> {
        let mut buffer = vec![0; PIECE + TAG];
        let done = each_piece(plain_bytes, |piece, length, last| {
            let (nonce, aad) = (nonce(file, piece), aad(last));
            let content = &mut buffer[..length + TAG];
            sealed.read_exact(content).map_err(cut_short)?;
            let content = self
                .pieces
                .open_in_place(nonce, aad, content)
                .map_err(|_| SealError::Damaged("a piece is not what was sealed"))?;
            plain.write_all(content)?;
            Ok(())
        });
        buffer.fill(0);
        done?;
        match sealed.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(SealError::Damaged("something follows its end")),
        }
    }
}

fn cut_short(error: io::Error) -> SealError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => SealError::Damaged("it is cut short"),
        _ => SealError::Io(error),
    }
}

/// Calls with the number of each piece, its plain length, and whether it is the last.
fn each_piece(
    plain_bytes: u64,
    mut work: impl FnMut(u64, usize, bool) -> Result<(), SealError>,
) -> Result<(), SealError> {
    let mut left = plain_bytes;
    for piece in 0.. {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
        left -= length as u64;
        work(piece, length, left == 0)?;
        if left == 0 {
            break;
        }
    }
    Ok(())
}

fn nonce(file: u32, piece: u64) -> aead::Nonce {
    let mut bytes = [0; aead::NONCE_LEN];
    bytes[..4].copy_from_slice(&file.to_be_bytes());
    bytes[4..].copy_from_slice(&piece.to_be_bytes());
    aead::Nonce::assume_unique_for_key(bytes)
}

fn aad(last: bool) -> aead::Aad<[u8; 1]> {
    aead::Aad::from([u8::from(last)])
}
