//! The ladder from older schemas to this one: one named step each, all in one transaction, tried on the shadow first.
//!
//! To make schema 3: write `fn three(txn: &WriteTransaction) -> Result<(), StoreError>` that rewrites what schema 2 wrote,
//! add `("what it does", three)` to [`STEPS`], and commit a golden file of schema 3 beside those before, which then
//! prove the steps.

use super::codec;
use super::rows::{META, POOLS};
use super::store::{StoreError, redb_error};
use redb::{ReadableTable, WriteTransaction};
use serde_json::{Value, json};

/// One step: what it does, for the log, and how.
pub(super) type Step = (
    &'static str,
    fn(&WriteTransaction) -> Result<(), StoreError>,
);

/// `STEPS[n]` leads from schema n + 1 to n + 2.
pub(super) const STEPS: &[Step] = &[("network policies of templates become rules", two)];

/// A template's network policy was a word, and "none" the only one there was. Sandboxes and claims had none of their own;
/// records without one say so.
fn two(txn: &WriteTransaction) -> Result<(), StoreError> {
    let mut table = txn.open_table(POOLS).map_err(redb_error)?;
    let value = |source| StoreError::Value {
        table: "pools",
        source,
    };
    let written = table.get("set").map_err(redb_error)?;
    let written = written.map(|row| codec::decode::<Value>(row.value()));
    let Some(mut set) = written.transpose().map_err(value)? else {
        return Ok(());
    };
    let pools = set.get_mut("pools").and_then(Value::as_array_mut);
    for pool in pools.into_iter().flatten() {
        match pool.pointer_mut("/template/network_policy") {
            Some(policy) if *policy == json!("none") => *policy = json!({"mode": "None"}),
            Some(other) => {
                let what = format!("a template of schema 1 has the network policy {other}");
                return Err(StoreError::Damaged(what));
            }
            None => {
                let what = "a template of schema 1 has no network policy";
                return Err(StoreError::Damaged(what.to_owned()));
            }
        }
    }
    let bytes = codec::encode(&set).map_err(value)?;
    table.insert("set", bytes.as_slice()).map_err(redb_error)?;
    Ok(())
}

/// The schema that a ladder leads to.
pub(super) fn schema_of(steps: &[Step]) -> u32 {
    u32::try_from(steps.len() + 1).unwrap_or(u32::MAX)
}

/// Climbs from schema `found` to that of `steps`, within the caller's transaction.
pub(super) fn climb(txn: &WriteTransaction, found: u32, steps: &[Step]) -> Result<(), StoreError> {
    let known = schema_of(steps);
    let done = match found {
        0 => return Err(StoreError::Damaged("it names schema 0".into())),
        _ if found > known => return Err(StoreError::Future { found, known }),
        _ => usize::try_from(found - 1).unwrap_or(usize::MAX),
    };
    for (what, step) in steps.iter().skip(done) {
        tracing::info!(what, "the journal's schema is upgraded");
        step(txn)?;
    }
    write_schema(txn, known)
}

pub(super) fn write_schema(txn: &WriteTransaction, schema: u32) -> Result<(), StoreError> {
    let mut meta = txn.open_table(META).map_err(redb_error)?;
    let bytes = schema.to_be_bytes();
    meta.insert("schema", bytes.as_slice())
        .map_err(redb_error)?;
    Ok(())
}

/// The schema of a file; `None`: none is written there, so hearth did not make it.
pub(super) fn read_schema(bytes: Option<&[u8]>) -> Option<u32> {
    Some(u32::from_be_bytes(bytes?.try_into().ok()?))
}
