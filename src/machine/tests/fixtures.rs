//! Values the tests use.

use crate::machine::ids::{ClaimId, NodeTag, PoolName, SandboxId};
use crate::machine::network::{Cidr, NetworkMode, NetworkPolicy, Rule, Target};
use crate::machine::node::{DiskPolicy, MemoryPolicy, Settings};
use crate::machine::spec::*;

/// From one listing of the runtime to the next while nothing happens.
pub const RELIST_MS: u64 = 60_000;
pub const TAG: NodeTag = NodeTag(0x00c0_ffee);

pub fn settings() -> Settings {
    Settings {
        tag: TAG,
        max_sandboxes: 64,
        refill_yield_ms: 0,
        relist_ms: RELIST_MS,
        memory: MemoryPolicy::default(),
        disk: DiskPolicy {
            enabled: true,
            sink_after_ms: 0,
        },
    }
}

pub fn id(claim: u128) -> ClaimId {
    ClaimId::from_u128(claim)
}

pub fn sandbox(sequence: u64) -> SandboxId {
    SandboxId::new(TAG, sequence).unwrap()
}

pub fn name(pool: &str) -> PoolName {
    PoolName::parse(pool).unwrap()
}

pub fn template(image: &str) -> Template {
    Template {
        image: image.to_owned(),
        runtime_handler: "gvisor".to_owned(),
        runtime_class: String::new(),
        command: Vec::new(),
        env: Default::default(),
        working_dir: String::new(),
        resources: Resources {
            cpu_millis: 0,
            memory_bytes: 1 << 28,
            pids: 1024,
            disk_bytes: 1 << 30,
            open_files: 65_536,
        },
        network_policy: Default::default(),
        warm_command: Vec::new(),
        readiness: Readiness {
            command: Vec::new(),
            timeout_ms: 30_000,
        },
        interpreter: String::new(),
        prefork: 0,
        idle_after_ms: 0,
        on_data_loss: OnDataLoss::Fail,
    }
}

/// The template with an interface that reaches nothing yet.
pub fn networked(template: Template) -> Template {
    Template {
        network_policy: mode(NetworkMode::Allowlist),
        ..template
    }
}

/// A policy without rules.
pub fn mode(mode: NetworkMode) -> NetworkPolicy {
    NetworkPolicy {
        mode,
        ..NetworkPolicy::default()
    }
}

/// Reaches 192.0.2.`last` and nothing else.
pub fn reaches(last: u8) -> NetworkPolicy {
    NetworkPolicy {
        allow: vec![Rule {
            to: Target::Cidr(Cidr {
                address: core::net::Ipv4Addr::new(192, 0, 2, last).into(),
                length: 32,
            }),
            protocol: None,
            ports: Vec::new(),
        }],
        ..mode(NetworkMode::Allowlist)
    }
}

/// A pool of generation 1 that makes its members two at a time.
pub fn pool(pool: &str, min_warm: u32, max_total: u32) -> PoolSpec {
    PoolSpec {
        name: name(pool),
        generation: 1,
        template: template("image:1"),
        min_warm,
        max_total,
        update_strategy: UpdateStrategy::OnReplenish,
        max_parallel_refills: 2,
        running: None,
        warm_pool: None,
    }
}

/// The same pool as an object of namespace "tenant" declares it.
pub fn warm_pool(spec: PoolSpec) -> PoolSpec {
    PoolSpec {
        warm_pool: Some(WarmPoolRef {
            namespace: "tenant".to_owned(),
            name: spec.name.to_string(),
        }),
        ..spec
    }
}

pub fn set(generation: u64, pools: &[PoolSpec]) -> PoolSet {
    PoolSet {
        generation,
        pools: pools.to_vec(),
        ..PoolSet::default()
    }
}

pub fn fence(epoch: u64) -> Fence {
    Fence {
        epoch,
        caller: Some("uid:0".to_owned()),
    }
}

/// A claim of pool "py" that never expires and is refused when the pool is dry.
pub fn ask(claim: u128) -> ClaimRequest {
    ClaimRequest {
        claim_id: id(claim),
        pool: name("py"),
        holder: Holder::default(),
        ttl_ms: 0,
        content: content(0),
        on_empty: OnEmpty::Fail,
        network_policy: None,
        by: "someone".into(),
        on_data_loss: None,
    }
}

/// Digests that differ in the environment.
pub fn content(env: u8) -> ContentDigest {
    ContentDigest {
        fields: vec![
            ("pool".to_owned(), [0; 16]),
            ("personalization.env".to_owned(), [env; 16]),
        ],
    }
}
