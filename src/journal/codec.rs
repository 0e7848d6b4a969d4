//! Keys and values of the journal's tables.
//!
//! Keys are fixed bytes, big-endian, so that the table's order is the ids' order. Values are one byte that names the
//! encoding, then JSON. JSON because it describes itself: an upgrade can rewrite a value without the old types, and a
//! person can read a damaged journal. It costs about 1 kB for a claim with its nine content digests (350 bytes in a
//! binary form) and microseconds to write, against the 0.2 ms of the commit's fsync. The encoding is frozen by golden
//! files: `tests/golden/`.

use crate::machine::ids::{ClaimId, NodeTag, SandboxId};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The one encoding there is: JSON of the record.
const JSON: u8 = 1;

/// Why a key or a value can't be read (or, for `Json`, written).
#[derive(Debug, thiserror::Error)]
pub(super) enum CodecError {
    #[error("a value is empty")]
    Empty,
    #[error("a value has the unknown encoding {0}")]
    Encoding(u8),
    #[error("a value does not parse")]
    Json(#[from] serde_json::Error),
    #[error("the key of a row is no id")]
    Key,
    #[error("a row's key differs from the id in its value")]
    KeyDiffers,
}

/// Node tag, then sequence number.
pub(super) fn sandbox_key(id: SandboxId) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&id.tag().0.to_be_bytes());
    key[4..].copy_from_slice(&id.sequence().to_be_bytes());
    key
}

pub(super) fn sandbox_id(key: &[u8; 12]) -> Result<SandboxId, CodecError> {
    let [t0, t1, t2, t3, sequence @ ..] = *key;
    let tag = NodeTag(u32::from_be_bytes([t0, t1, t2, t3]));
    SandboxId::new(tag, u64::from_be_bytes(sequence)).ok_or(CodecError::Key)
}

/// The UUID's 16 bytes. Claims and tombstones.
pub(super) fn claim_key(id: ClaimId) -> [u8; 16] {
    id.as_u128().to_be_bytes()
}

pub(super) fn claim_id(key: [u8; 16]) -> ClaimId {
    ClaimId::from_u128(u128::from_be_bytes(key))
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![JSON];
    serde_json::to_writer(&mut bytes, value)?;
    Ok(bytes)
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    match bytes.split_first() {
        None => Err(CodecError::Empty),
        Some((&JSON, json)) => Ok(serde_json::from_slice(json)?),
        Some((other, _)) => Err(CodecError::Encoding(*other)),
    }
}
