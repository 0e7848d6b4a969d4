//! The journal against the real redb on real files. Random tests print their seed; `HEARTH_SEED` repeats one.
#![allow(clippy::unwrap_used)]

mod clock;
mod committer;
mod crash;
mod damage;
mod directory;
mod disk;
mod figures;
mod golden;
mod upgrade;

use super::fakes::{MemoryRecords, Random};
use super::*;
use crate::machine::ids::{ClaimId, NodeTag, PoolName, SandboxId};
use crate::machine::network::{
    Cidr, NetworkMode, NetworkPolicy, PortRange, Protocol, Rule, Target,
};
use crate::machine::record::{Asker, ClaimRecord, DrainRecord, Owner, Residency, SandboxRecord};
use crate::machine::spec::{
    ContentDigest, DrainMode, DrainRequest, Fence, Holder, PoolSet, PoolSpec, Readiness, Resources,
    Template, UpdateStrategy,
};
use crate::machine::view::Source;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Longest wait for anything: only a hang takes that long.
const HANG: Duration = Duration::from_secs(60);

fn boot(id: &str, boottime_ms: u64, wall_ms: u64) -> Boot {
    Boot {
        boot_id: id.into(),
        boottime_ms,
        wall_ms,
    }
}

fn sandbox_id(sequence: u64) -> SandboxId {
    SandboxId::new(NodeTag(0xc0ff_ee01), sequence).unwrap()
}

fn claim_id(number: u64) -> ClaimId {
    // Spread like UUIDs, so that neighbours in number are not neighbours in the table.
    let high = u128::from(Random(number).next());
    ClaimId::from_u128(high << 64 | u128::from(number) | 1 << 63)
}

fn pool_policy() -> NetworkPolicy {
    NetworkPolicy {
        mode: NetworkMode::Internet,
        deny: vec![Rule {
            to: Target::Cidr(Cidr {
                address: "2001:db8::".parse().unwrap(),
                length: 32,
            }),
            protocol: None,
            ports: Vec::new(),
        }],
        ..NetworkPolicy::default()
    }
}

fn claim_policy() -> NetworkPolicy {
    let ports = |first, last| PortRange { first, last };
    NetworkPolicy {
        mode: NetworkMode::Allowlist,
        allow: vec![
            Rule {
                to: Target::Cidr(Cidr {
                    address: "192.0.2.0".parse().unwrap(),
                    length: 24,
                }),
                protocol: Some(Protocol::Tcp),
                ports: vec![ports(80, 80), ports(8000, 8080)],
            },
            Rule {
                to: Target::Name("*.example.com".into()),
                protocol: Some(Protocol::Udp),
                ports: vec![ports(443, 443)],
            },
        ],
        deny: Vec::new(),
        publish: vec![8000],
    }
}

fn sandbox(sequence: u64, owner: Owner) -> SandboxRecord {
    SandboxRecord {
        id: sandbox_id(sequence),
        pool: PoolName::parse("python").unwrap(),
        generation: 7,
        owner,
        residency: Residency::Running,
        created_at: Now(1_760_000_000_000 + sequence),
        network: pool_policy(),
    }
}

fn claim(number: u64, sandbox: u64) -> ClaimRecord {
    let fields = [
        "pool",
        "holder",
        "ttl",
        "personalization.env",
        "personalization.files",
        "personalization.secrets",
        "personalization.hostname",
        "personalization.network_policy",
        "on_empty",
    ];
    let digest = |name: &str| (name.to_owned(), claim_id(number).as_u128().to_le_bytes());
    ClaimRecord {
        id: claim_id(number),
        pool: PoolName::parse("python").unwrap(),
        holder: Holder {
            namespace: "agents".into(),
            name: format!("agent-{number}"),
            uid: "8e0c1b3e-4fd5-4ac1-a0f2-111111111111".into(),
        },
        content: ContentDigest {
            fields: fields.map(digest).to_vec(),
        },
        sandbox: sandbox_id(sandbox),
        generation: 7,
        source: Source::Warm,
        claimed_at: Now(1_760_000_001_000),
        expires_at: Some(Now(1_760_003_601_000)),
        confirmed: false,
        failed: None,
        network: Some(claim_policy()),
        on_data_loss: crate::machine::spec::OnDataLoss::Fail,
        first: None,
        cold_starts: 0,
    }
}

fn pools(generation: u64) -> PoolSet {
    let template = Template {
        image: "docker.io/library/python:3".into(),
        runtime_handler: "gvisor".into(),
        runtime_class: String::new(),
        command: vec!["python3".into(), "-i".into()],
        env: [("LANG".to_owned(), "C.UTF-8".to_owned())].into(),
        working_dir: "/work".into(),
        resources: Resources {
            cpu_millis: 1000,
            memory_bytes: 512 << 20,
            pids: 128,
            disk_bytes: 1 << 30,
            open_files: 65_536,
        },
        network_policy: pool_policy(),
        warm_command: vec!["python3".into(), "-c".into(), "import json".into()],
        readiness: Readiness {
            command: vec!["true".into()],
            timeout_ms: 10_000,
        },
        interpreter: "python".to_owned(),
        prefork: 0,
        idle_after_ms: 0,
        on_data_loss: crate::machine::spec::OnDataLoss::Fail,
    };
    PoolSet {
        generation,
        pools: vec![PoolSpec {
            name: PoolName::parse("python").unwrap(),
            generation,
            template,
            min_warm: 4,
            max_total: 64,
            update_strategy: UpdateStrategy::OnReplenish,
            max_parallel_refills: 2,
            running: None,
            warm_pool: None,
        }],
        ..PoolSet::default()
    }
}

fn fence(epoch: u64) -> Fence {
    Fence {
        epoch,
        caller: Some("uid:0".into()),
    }
}

fn drain(minutes: u64) -> DrainRecord {
    DrainRecord {
        asked: DrainRequest {
            mode: DrainMode::Hibernate,
            deadline_ms: Some(minutes * 60_000),
        },
        since: Now(1_760_000_005_000),
    }
}

/// One of every kind.
fn every_op() -> Vec<Op> {
    vec![
        Op::PutSequence(64),
        Op::PutPools(pools(3)),
        Op::PutFence(fence(12)),
        Op::DeleteDrain(Asker::Api),
        Op::PutDrain(Asker::Api, drain(30)),
        Op::PutSandbox(sandbox(1, Owner::Pool)),
        Op::PutSandbox(sandbox(2, Owner::Claimed(claim_id(5)))),
        Op::PutSandbox(sandbox(3, Owner::Releasing)),
        Op::PutSandbox(sandbox(4, Owner::Pool)),
        Op::DeleteSandbox(sandbox_id(4)),
        Op::PutClaim(claim(5, 2)),
        Op::PutClaim(ClaimRecord {
            expires_at: None,
            confirmed: true,
            failed: Some("OOM".into()),
            ..claim(6, 3)
        }),
        Op::PutClaim(claim(7, 3)),
        Op::DeleteClaim(claim_id(7)),
        Op::PutTombstone(claim_id(7), Now(1_760_000_002_000)),
        Op::PutTombstone(claim_id(8), Now(1_760_000_003_000)),
        Op::PutTombstone(claim_id(9), Now(1_760_000_004_000)),
        Op::DeleteTombstone(claim_id(8)),
    ]
}

fn asker(random: &mut Random) -> Asker {
    match random.below(2) {
        0 => Asker::Api,
        _ => Asker::Cluster,
    }
}

/// A few operations on a small set of ids, so that later ones meet earlier ones.
fn random_ops(random: &mut Random) -> Vec<Op> {
    let many = 1 + random.below(12);
    let one = |random: &mut Random| {
        let id = random.below(300);
        match random.below(16) {
            0..=2 => Op::PutSandbox(sandbox(id, Owner::Pool)),
            3 => Op::PutSandbox(sandbox(id, Owner::Claimed(claim_id(id)))),
            4 => Op::DeleteSandbox(sandbox_id(id)),
            5 | 6 => Op::PutClaim(claim(id, random.below(300))),
            7 => Op::DeleteClaim(claim_id(id)),
            8 => Op::PutTombstone(claim_id(id), Now(random.next())),
            9 => Op::DeleteTombstone(claim_id(id)),
            10 => Op::PutSequence(random.next()),
            11 => Op::PutDrain(asker(random), drain(id)),
            12 => Op::DeleteDrain(asker(random)),
            13 => Op::PutCordon(random.below(2) == 0),
            _ if id < 20 => Op::PutPools(pools(id)),
            _ => Op::PutFence(fence(random.next())),
        }
    };
    (0..many).map(|_| one(random)).collect()
}

fn model(ops: &[Op]) -> Records {
    let mut model = MemoryRecords::default();
    ops.iter().for_each(|op| model.apply(op));
    model.read()
}

/// Storage in memory that outlives the database on it.
#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    fn of(image: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(image)))
    }

    fn image(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl redb::StorageBackend for Memory {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let bytes = self.0.lock().unwrap();
        let from = usize::try_from(offset).unwrap();
        let found = bytes.get(from..from + out.len());
        out.copy_from_slice(found.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0
            .lock()
            .unwrap()
            .resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        let from = usize::try_from(offset).unwrap();
        assert!(
            from + data.len() <= bytes.len(),
            "redb never writes beyond the end"
        );
        bytes[from..from + data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// An open journal with what listens to it.
struct Rig {
    journal: RedbJournal,
    records: Records,
    identity: Identity,
    start: Now,
    key: NodeKey,
    events: mpsc::Receiver<JournalEvent>,
    registry: prometheus::Registry,
    failures: Arc<Mutex<Vec<String>>>,
    ticket: u64,
}

const RESERVE: u64 = 1 << 20;

fn settings(dir: &Path) -> Settings {
    Settings {
        data_dir: dir.to_owned(),
        boot: boot("first", 1_000, 1_760_000_000_000),
        reserve_bytes: RESERVE,
    }
}

fn open(dir: &Path) -> Result<Rig, OpenError> {
    open_with(&settings(dir))
}

fn open_with(settings: &Settings) -> Result<Rig, OpenError> {
    let (sender, events) = mpsc::channel(BATCHES_IN_FLIGHT);
    let registry = prometheus::Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let failures = Arc::new(Mutex::new(Vec::new()));
    let failed = Arc::clone(&failures);
    let on_failure: OnFailure = Arc::new(move |why| failed.lock().unwrap().push(why.to_owned()));
    let opened = RedbJournal::open(settings, sender, metrics, on_failure)?;
    Ok(Rig {
        journal: opened.journal,
        records: opened.records,
        identity: opened.identity,
        start: opened.start,
        key: opened.key,
        events,
        registry,
        failures,
        ticket: 0,
    })
}

impl Rig {
    /// Queues a batch.
    fn append(&mut self, ops: Vec<Op>) -> Ticket {
        self.ticket += 1;
        let ticket = Ticket(self.ticket);
        let anchor = self.start.plus(self.ticket);
        self.journal.append(ticket, anchor, ops);
        ticket
    }

    /// The next event; `None`: the journal is dead.
    fn event(&mut self) -> Option<JournalEvent> {
        let began = Instant::now();
        loop {
            match self.events.try_recv() {
                Ok(event) => return Some(event),
                Err(mpsc::error::TryRecvError::Disconnected) => return None,
                Err(mpsc::error::TryRecvError::Empty) => {
                    assert!(began.elapsed() < HANG, "no event");
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
        }
    }

    /// Queues a batch and waits until it is durable.
    fn commit(&mut self, ops: Vec<Op>) {
        let ticket = self.append(ops);
        while self.event().expect("the journal lives") != JournalEvent::Durable(ticket) {}
    }

    fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }

    /// The value of a counter or gauge, or the count of a histogram.
    fn metric(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let metric = &family.expect(name).get_metric()[0];
        #[allow(clippy::cast_precision_loss)]
        let count = metric.get_histogram().get_sample_count() as f64;
        metric.get_counter().get_value() + metric.get_gauge().get_value() + count
    }
}

fn temp_dir() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("hearth-journal-")
        .tempdir()
        .unwrap()
}

/// What an error says, with the path cut out.
fn text(error: &OpenError, dir: &Path) -> String {
    error
        .to_string()
        .replace(&*dir.display().to_string(), "DIR")
}

#[test]
fn every_operation_comes_back() {
    let dir = temp_dir();
    let mut rig = open(dir.path()).unwrap();
    assert_eq!(rig.records, Records::default());
    let identity = rig.identity;
    rig.commit(every_op());
    assert!(rig.failures().is_empty());
    drop(rig);

    let rig = open(dir.path()).unwrap();
    assert_eq!(rig.records, model(&every_op()));
    assert_eq!(rig.identity, identity);
    // The interesting cases are among them.
    assert_eq!(rig.records.sandboxes.len(), 3);
    assert_eq!(rig.records.claims.len(), 2);
    assert_eq!(rig.records.tombstones.len(), 2);
    assert_eq!(rig.records.next_sequence, 64);
}

#[test]
fn random_operations_over_restarts_equal_the_model() {
    let mut random = Random::new();
    let dir = temp_dir();
    let mut model = MemoryRecords::default();
    for _ in 0..6 {
        let mut rig = open(dir.path()).unwrap();
        assert_eq!(rig.records, model.read());
        for _ in 0..20 {
            let ops = random_ops(&mut random);
            ops.iter().for_each(|op| model.apply(op));
            rig.commit(ops);
        }
        assert!(rig.failures().is_empty());
    }
    assert_eq!(open(dir.path()).unwrap().records, model.read());
}

#[test]
fn a_set_of_pools_of_megabytes_comes_back() {
    let dir = temp_dir();
    let mut set = pools(1);
    let value = "x".repeat(1024);
    let env = (0..256).map(|n| (format!("VARIABLE_{n}"), value.clone()));
    set.pools[0].template.env = env.collect();
    let many = (0..64).map(|n| PoolSpec {
        name: PoolName::parse(&format!("pool-{n:02}")).unwrap(),
        ..set.pools[0].clone()
    });
    set.pools = many.collect();
    let mut rig = open(dir.path()).unwrap();
    rig.commit(vec![Op::PutPools(set.clone())]);
    drop(rig);
    assert_eq!(open(dir.path()).unwrap().records.pools, set);
}
