//! The encodings, frozen: `golden/schema-N.txt` holds every row that [`every_op`] leaves in schema N, as
//! `table key-in-hex encoding json`. A change of the machine's types that changes the newest must come with a step in
//! `upgrade.rs` and a golden file of the new schema; the older ones stay.

use super::super::{mark::Mark, store, store::Loaded, upgrade};
use super::*;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::fmt::Write;

const GOLDEN: &str = include_str!("golden/schema-2.txt");
/// Before network policies had rules.
const FIRST: &str = include_str!("golden/schema-1.txt");
/// Rows that differ with every journal.
const OWN: [&str; 2] = ["clock", "identity"];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}

fn line(table: &str, key: &[u8], value: &[u8]) -> String {
    if key == b"schema" {
        return format!("{table} {} - {}\n", hex(key), hex(value));
    }
    let (encoding, json) = value.split_first().unwrap();
    let json = std::str::from_utf8(json).unwrap();
    format!("{table} {} {encoding} {json}\n", hex(key))
}

fn dump(path: &Path) -> String {
    let database = Database::open(path).unwrap();
    let txn = database.begin_read().unwrap();
    let mut text = String::new();
    for name in ["meta", "pools"] {
        let table = txn
            .open_table(TableDefinition::<&str, &[u8]>::new(name))
            .unwrap();
        for row in table.iter().unwrap() {
            let (key, value) = row.unwrap();
            if !OWN.contains(&key.value()) {
                text += &line(name, key.value().as_bytes(), value.value());
            }
        }
    }
    let table = TableDefinition::<&[u8; 12], &[u8]>::new("sandboxes");
    for row in txn.open_table(table).unwrap().iter().unwrap() {
        let (key, value) = row.unwrap();
        text += &line("sandboxes", key.value(), value.value());
    }
    for name in ["claims", "tombstones"] {
        let table = TableDefinition::<&[u8; 16], &[u8]>::new(name);
        for row in txn.open_table(table).unwrap().iter().unwrap() {
            let (key, value) = row.unwrap();
            text += &line(name, key.value(), value.value());
        }
    }
    text
}

/// A journal with exactly the rows of a golden file.
fn load(golden: &str) -> Arc<Memory> {
    let memory = Memory::default();
    let identity = Identity {
        tag: NodeTag(0xc0ff_ee01),
    };
    let path = Path::new("golden");
    store::create(Arc::new(memory.clone()), identity, &boot("a", 1, 2), path).unwrap();
    let database = Database::builder()
        .create_with_backend(memory.clone())
        .unwrap();
    let txn = database.begin_write().unwrap();
    for line in golden.lines() {
        let mut parts = line.splitn(4, ' ');
        let mut part = || parts.next().unwrap();
        let (name, key, encoding, rest) = (part(), unhex(part()), part(), part());
        let value = match encoding {
            "-" => unhex(rest),
            number => [&[number.parse().unwrap()], rest.as_bytes()].concat(),
        };
        let value = value.as_slice();
        match name {
            "meta" | "pools" => {
                let table = TableDefinition::<&str, &[u8]>::new(name);
                let mut table = txn.open_table(table).unwrap();
                table
                    .insert(std::str::from_utf8(&key).unwrap(), value)
                    .unwrap();
            }
            "sandboxes" => {
                let table = TableDefinition::<&[u8; 12], &[u8]>::new(name);
                let key: [u8; 12] = key.try_into().unwrap();
                txn.open_table(table).unwrap().insert(&key, value).unwrap();
            }
            _ => {
                let table = TableDefinition::<&[u8; 16], &[u8]>::new(name);
                let key: [u8; 16] = key.try_into().unwrap();
                txn.open_table(table).unwrap().insert(&key, value).unwrap();
            }
        }
    }
    txn.commit().unwrap();
    drop(database);
    Arc::new(memory)
}

#[test]
fn schema_2_is_written_as_ever() {
    let dir = temp_dir();
    let mut rig = open(dir.path()).unwrap();
    rig.commit(every_op());
    drop(rig);
    let found = dump(&journal_path(dir.path()));
    if std::env::var_os("HEARTH_GOLDEN").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/journal/tests/golden");
        std::fs::write(path.join("schema-2.txt"), &found).unwrap();
    }
    assert!(GOLDEN.lines().count() >= 10);
    assert_eq!(found, GOLDEN);
}

/// Opens a journal with the rows of a golden file: what it holds.
fn read(golden: &str) -> Loaded {
    let dir = temp_dir();
    let backend = load(golden);
    let mark = Mark::open(dir.path()).unwrap();
    let opened = store::open(
        backend,
        mark,
        &boot("a", 1, 2),
        Path::new("golden"),
        upgrade::STEPS,
    );
    opened.unwrap().1
}

#[test]
fn schema_2_is_read_as_ever() {
    let loaded = read(GOLDEN);
    assert_eq!(loaded.records, model(&every_op()));
    assert_eq!(loaded.identity.tag, NodeTag(0xc0ff_ee01));
}

/// The same, when no network policy but "none" could be.
#[test]
fn schema_1_is_read_as_ever() {
    let loaded = read(FIRST);
    let mut before = model(&every_op());
    for pool in &mut before.pools.pools {
        pool.template.network_policy = NetworkPolicy::default();
    }
    for sandbox in &mut before.sandboxes {
        sandbox.network = NetworkPolicy::default();
    }
    for claim in &mut before.claims {
        claim.network = None;
    }
    assert_eq!(loaded.records, before);
    assert_eq!(loaded.identity.tag, NodeTag(0xc0ff_ee01));
}

/// What schema 1 could not hold is damage, not a policy to be guessed.
#[test]
fn another_word_than_none_is_no_policy_of_schema_1() {
    let dir = temp_dir();
    let changed = FIRST.replace(r#""network_policy":"none""#, r#""network_policy":"open""#);
    assert_ne!(changed, FIRST);
    let mark = Mark::open(dir.path()).unwrap();
    let path = Path::new("golden");
    let opened = store::open(load(&changed), mark, &boot("a", 1, 2), path, upgrade::STEPS);
    let error = opened.map(drop).unwrap_err().to_string();
    assert!(error.contains("has the network policy \"open\""), "{error}");
}

/// Values that no hearth wrote: refused by name, never guessed at.
#[test]
fn what_does_not_decode_is_damage() {
    let cases = [
        (
            "tombstones",
            "1 1760000002000",
            "2 1760000002000",
            "a value has the unknown encoding 2",
        ),
        (
            "tombstones",
            "1 1760000002000",
            "1 \"late\"",
            "a value does not parse: invalid type",
        ),
        (
            "claims",
            "\"confirmed\":true",
            "\"confirmed\":1",
            "a value does not parse: invalid type",
        ),
        (
            "sandboxes",
            "hc0ffee01000000000003",
            "hc0ffee01000000000009",
            "a row's key differs from the id",
        ),
        (
            "meta",
            "736368656d61 - 00000002",
            "736368656d61 - 0002",
            "it is a redb file, but no journal of hearth",
        ),
        (
            "meta",
            "736368656d61 - 00000002",
            "736368656d61 - 00000000",
            "it names schema 0",
        ),
    ];
    for (table, right, wrong, expected) in cases {
        let change = |line: &str| {
            let line = if line.starts_with(table) {
                line.replace(right, wrong)
            } else {
                line.to_owned()
            };
            line + "\n"
        };
        let changed: String = GOLDEN.lines().map(change).collect();
        assert_ne!(changed, GOLDEN, "{table}: {right} is not there");
        let dir = temp_dir();
        let mark = Mark::open(dir.path()).unwrap();
        let path = Path::new("golden");
        let error = store::open(load(&changed), mark, &boot("a", 1, 2), path, upgrade::STEPS);
        let error = error.map(drop).unwrap_err().to_string();
        assert!(
            error.starts_with("golden is damaged: ") && error.contains(expected),
            "{error}"
        );
        println!("{error}");
    }
}

/// What schema 1 has learnt since: an older hearthd takes such a row for damage and does not start.
#[test]
fn a_sandbox_on_the_disk_is_written_as_ever() {
    const ROW: &str = r#"{"id":"hc0ffee01000000000004","pool":"python","generation":7,"owner":{"Claimed":"63033b0c-a389-c35a-8000-000000000005"},"residency":{"OnDisk":{"size_bytes":4096,"since":1760000000009}},"created_at":1760000000004}"#;
    use super::super::codec;
    use crate::machine::ids::SandboxId;
    use crate::machine::record::Image;
    let record = SandboxRecord {
        id: SandboxId::parse("hc0ffee01000000000004").unwrap(),
        pool: PoolName::parse("python").unwrap(),
        generation: 7,
        owner: Owner::Claimed(ClaimId::parse("63033b0c-a389-c35a-8000-000000000005").unwrap()),
        residency: Residency::OnDisk(Image {
            size_bytes: 4096,
            since: Now(1_760_000_000_009),
        }),
        created_at: Now(1_760_000_000_004),
        network: Default::default(),
    };
    let written = codec::encode(&record).unwrap();
    assert_eq!(written, [&[1], ROW.as_bytes()].concat());
    let read: SandboxRecord = codec::decode(&written).unwrap();
    assert_eq!(read, record);
}
