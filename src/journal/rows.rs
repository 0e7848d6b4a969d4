//! The tables of journal.redb: what is in them, how an operation changes them, how they are read back.

use super::codec::{self, CodecError};
use super::store::{StoreError, redb_error};
use crate::machine::record::{Asker, ClaimRecord, Drains, Op, Records, SandboxRecord};
use redb::{Key, ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};
use serde::{Serialize, de::DeserializeOwned};

type Bytes = &'static [u8];

/// Small single values: schema, identity, clock, fence, sequence. One leaf, rewritten with every commit.
pub(super) const META: TableDefinition<&str, Bytes> = TableDefinition::new("meta");
/// The set of pools, under "set": apart from META because it can be megabytes.
pub(super) const POOLS: TableDefinition<&str, Bytes> = TableDefinition::new("pools");
const SANDBOXES: TableDefinition<&[u8; 12], Bytes> = TableDefinition::new("sandboxes");
const CLAIMS: TableDefinition<&[u8; 16], Bytes> = TableDefinition::new("claims");
const TOMBSTONES: TableDefinition<&[u8; 16], Bytes> = TableDefinition::new("tombstones");

/// Every table, for one transaction.
pub(super) struct Rows<'t> {
    pub meta: Table<'t, &'static str, Bytes>,
    pools: Table<'t, &'static str, Bytes>,
    sandboxes: Table<'t, &'static [u8; 12], Bytes>,
    claims: Table<'t, &'static [u8; 16], Bytes>,
    tombstones: Table<'t, &'static [u8; 16], Bytes>,
}

impl<'t> Rows<'t> {
    pub fn open(txn: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            meta: txn.open_table(META).map_err(redb_error)?,
            pools: txn.open_table(POOLS).map_err(redb_error)?,
            sandboxes: txn.open_table(SANDBOXES).map_err(redb_error)?,
            claims: txn.open_table(CLAIMS).map_err(redb_error)?,
            tombstones: txn.open_table(TOMBSTONES).map_err(redb_error)?,
        })
    }

    pub fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
        use codec::{claim_key, sandbox_key};
        match op {
            Op::PutSandbox(record) => put(&mut self.sandboxes, &sandbox_key(record.id), record),
            Op::DeleteSandbox(id) => delete(&mut self.sandboxes, &sandbox_key(*id)),
            Op::PutClaim(record) => put(&mut self.claims, &claim_key(record.id), record),
            Op::DeleteClaim(id) => delete(&mut self.claims, &claim_key(*id)),
            Op::PutTombstone(id, at) => put(&mut self.tombstones, &claim_key(*id), at),
            Op::DeleteTombstone(id) => delete(&mut self.tombstones, &claim_key(*id)),
            Op::PutPools(set) => put(&mut self.pools, "set", set),
            Op::PutFence(fence) => put(&mut self.meta, "fence", fence),
            Op::PutDrain(asker, drain) => put(&mut self.meta, drain_key(*asker), drain),
            Op::DeleteDrain(asker) => delete(&mut self.meta, drain_key(*asker)),
            Op::PutCordon(true) => put(&mut self.meta, "cordon", &true),
            Op::PutCordon(false) => delete(&mut self.meta, "cordon"),
            Op::PutSequence(next) => put(&mut self.meta, "sequence", next),
        }
    }
}

fn drain_key(asker: Asker) -> &'static str {
    match asker {
        Asker::Api => "drain",
        Asker::Cluster => "drain of the cluster",
    }
}

pub(super) fn put<'k, K: Key + 'static, T: Serialize>(
    table: &mut Table<'_, K, Bytes>,
    key: impl std::borrow::Borrow<K::SelfType<'k>>,
    value: &T,
) -> Result<(), StoreError> {
    let bytes = codec::encode(value).map_err(|source| StoreError::Value {
        table: "(written)",
        source,
    })?;
    table
        .insert(key, bytes.as_slice())
        .map(drop)
        .map_err(redb_error)
}

fn delete<'k, K: Key + 'static>(
    table: &mut Table<'_, K, Bytes>,
    key: impl std::borrow::Borrow<K::SelfType<'k>>,
) -> Result<(), StoreError> {
    table.remove(key).map(drop).map_err(redb_error)
}

pub(super) const META_NAME: &str = "meta";

pub(super) fn get<T: DeserializeOwned>(
    table: &impl ReadableTable<&'static str, Bytes>,
    name: &'static str,
    key: &str,
) -> Result<Option<T>, StoreError> {
    let row = table.get(key).map_err(redb_error)?;
    let value = row.map(|row| codec::decode(row.value())).transpose();
    value.map_err(|source| StoreError::Value {
        table: name,
        source,
    })
}

/// All rows of a table in key order, each made of its key and value by `read`.
fn rows<const N: usize, T>(
    txn: &ReadTransaction,
    table: TableDefinition<'static, &'static [u8; N], Bytes>,
    name: &'static str,
    read: impl Fn(&[u8; N], &[u8]) -> Result<T, CodecError>,
) -> Result<Vec<T>, StoreError> {
    let table = txn.open_table(table).map_err(redb_error)?;
    let mut found = Vec::new();
    for row in table.iter().map_err(redb_error)? {
        let (key, value) = row.map_err(redb_error)?;
        let row = read(key.value(), value.value());
        found.push(row.map_err(|source| StoreError::Value {
            table: name,
            source,
        })?);
    }
    Ok(found)
}

pub(super) fn read_records(txn: &ReadTransaction) -> Result<Records, StoreError> {
    let sandboxes = rows(txn, SANDBOXES, "sandboxes", |key, value| {
        let record: SandboxRecord = codec::decode(value)?;
        let same = record.id == codec::sandbox_id(key)?;
        same.then_some(record).ok_or(CodecError::KeyDiffers)
    })?;
    let claims = rows(txn, CLAIMS, "claims", |key, value| {
        let record: ClaimRecord = codec::decode(value)?;
        let same = record.id == codec::claim_id(*key);
        same.then_some(record).ok_or(CodecError::KeyDiffers)
    })?;
    let tombstones = rows(txn, TOMBSTONES, "tombstones", |key, value| {
        Ok((codec::claim_id(*key), codec::decode(value)?))
    })?;
    let meta = txn.open_table(META).map_err(redb_error)?;
    let pools = txn.open_table(POOLS).map_err(redb_error)?;
    Ok(Records {
        sandboxes,
        claims,
        tombstones,
        pools: get(&pools, "pools", "set")?.unwrap_or_default(),
        fence: get(&meta, META_NAME, "fence")?,
        drains: Drains {
            api: get(&meta, META_NAME, drain_key(Asker::Api))?,
            cluster: get(&meta, META_NAME, drain_key(Asker::Cluster))?,
        },
        cordoned: get(&meta, META_NAME, "cordon")?.unwrap_or_default(),
        next_sequence: get(&meta, META_NAME, "sequence")?.unwrap_or_default(),
    })
}
