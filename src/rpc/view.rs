//! The machine's views as messages of the API.

use super::door::Door;
use crate::api;
use crate::driver::{MemoryLook, NetReport};
use crate::machine::admission::Finding;
use crate::machine::ids::Now;
use crate::machine::network::{
    Cidr, NetworkMode, NetworkPolicy, PortRange, Protocol, Rule, Target,
};
use crate::machine::spec::{DrainMode, OnDataLoss, PoolSpec, UpdateStrategy, Verdict};
use crate::machine::view::{
    BreakerView, ClaimState, ClaimView, DrainState, DrainView, Kept, NotStowed, PoolView, Source,
};
use std::time::{Duration, SystemTime};

/// Hearth time as a timestamp.
pub fn timestamp(door: &dyn Door, at: Now) -> prost_types::Timestamp {
    door.to_wall_clock(at).into()
}

/// A duration; one too long for the API (292 billion years) is left out.
pub fn duration(time: Duration) -> Option<prost_types::Duration> {
    time.try_into().ok()
}

/// How a sandbox came to be.
pub fn source(source: Source) -> api::Source {
    match source {
        Source::Warm => api::Source::Warm,
        Source::Cold => api::Source::Cold,
        Source::Thawed => api::Source::Thawed,
        Source::Cloned => api::Source::Cloned,
    }
}

/// A claim.
pub fn claim(door: &dyn Door, view: ClaimView) -> api::Claim {
    let state = match view.state {
        ClaimState::Pending => api::ClaimState::Pending,
        ClaimState::Claimed => api::ClaimState::Claimed,
        ClaimState::Failed => api::ClaimState::Failed,
        ClaimState::Unknown => api::ClaimState::Unknown,
        ClaimState::Hibernated => api::ClaimState::Hibernated,
    };
    api::Claim {
        claim_id: view.id.to_string(),
        pool: view.pool.to_string(),
        holder: Some(api::Holder {
            namespace: view.holder.namespace,
            name: view.holder.name,
            uid: view.holder.uid,
        }),
        state: state.into(),
        status_reason: view.reason.unwrap_or_default(),
        sandbox_id: view.sandbox.map(|id| id.to_string()).unwrap_or_default(),
        generation: view.generation,
        source: view.source.map_or(api::Source::Unspecified, source).into(),
        claimed_at: view.claimed_at.map(|at| timestamp(door, at)),
        expires_at: view.expires_at.map(|at| timestamp(door, at)),
        cold_starts: view.cold_starts,
    }
}

/// A network policy.
pub fn network(policy: NetworkPolicy) -> api::NetworkPolicy {
    let rules = |rules: Vec<Rule>| rules.into_iter().map(rule).collect();
    let mode = match policy.mode {
        NetworkMode::None => api::NetworkMode::None,
        NetworkMode::Internet => api::NetworkMode::Internet,
        NetworkMode::Allowlist => api::NetworkMode::Allowlist,
    };
    api::NetworkPolicy {
        mode: mode.into(),
        allow: rules(policy.allow),
        deny: rules(policy.deny),
        publish: policy.publish.into_iter().map(u32::from).collect(),
    }
}

fn rule(rule: Rule) -> api::NetworkRule {
    let (cidr, name) = match rule.to {
        Target::Cidr(Cidr { address, length }) => (format!("{address}/{length}"), String::new()),
        Target::Name(name) => (String::new(), name),
    };
    let protocol = match rule.protocol {
        None => api::Protocol::Unspecified,
        Some(Protocol::Tcp) => api::Protocol::Tcp,
        Some(Protocol::Udp) => api::Protocol::Udp,
    };
    let port = |range: PortRange| api::PortRange {
        first: range.first.into(),
        last: range.last.into(),
    };
    api::NetworkRule {
        cidr,
        name,
        protocol: protocol.into(),
        ports: rule.ports.into_iter().map(port).collect(),
    }
}

/// The network of a sandbox.
pub fn network_report(report: NetReport) -> api::GetNetworkResponse {
    let pinned = report
        .pinned
        .into_iter()
        .map(|(name, address, seconds)| api::PinnedName {
            name,
            address: address.to_string(),
            remaining: duration(Duration::from_secs(seconds)),
        });
    let denied = report
        .denied
        .into_iter()
        .map(
            |(protocol, address, port, packets)| api::DeniedDestination {
                protocol,
                address: address.to_string(),
                port: port.into(),
                packets,
            },
        );
    api::GetNetworkResponse {
        policy: Some(network(report.policy)),
        interface: report.interface,
        addresses: report.addresses.iter().map(ToString::to_string).collect(),
        pinned: pinned.collect(),
        denied_packets: report.denied_packets,
        denied: denied.collect(),
    }
}

/// What a pool's sandboxes use.
fn usage(memory: &MemoryLook, view: &PoolView) -> api::PoolUsage {
    let charge = memory.pool(view.spec.name.as_str());
    let zram = memory.zram;
    api::PoolUsage {
        memory_bytes: charge.memory_bytes,
        swap_bytes: charge.swap_bytes,
        compressed_bytes: zram.and_then(|zram| zram.estimate(charge.swap_bytes)),
        image_bytes: view.image_bytes,
    }
}

/// A pool and its status.
pub fn pool(door: &dyn Door, view: PoolView, memory: Option<&MemoryLook>) -> api::PoolView {
    let usage = memory.map(|memory| usage(memory, &view));
    let retry_after = match view.breaker {
        BreakerView::Open(until) => {
            let left = door.to_wall_clock(until).duration_since(SystemTime::now());
            // Already over: the next probe is due.
            duration(left.unwrap_or_default())
        }
        BreakerView::Closed | BreakerView::HalfOpen | BreakerView::Unservable => None,
    };
    let breaker = match view.breaker {
        BreakerView::Closed => api::BreakerState::Closed,
        BreakerView::Open(_) => api::BreakerState::Open,
        BreakerView::HalfOpen => api::BreakerState::HalfOpen,
        BreakerView::Unservable => api::BreakerState::Unservable,
    };
    let warm_pool = view.spec.warm_pool.as_ref();
    let warm_pool = warm_pool.map_or_else(String::new, ToString::to_string);
    let finding = |it: Finding| api::PolicyFinding {
        check: it.check.name().into(),
        enforced: it.enforced,
        field: it.check.field().into(),
        detail: it.detail,
    };
    api::PoolView {
        warm_pool,
        pool: Some(declared(view.spec)),
        status: Some(api::PoolStatus {
            warm: view.warm,
            creating: view.creating,
            claimed: view.claimed,
            releasing: view.releasing,
            waiting: view.waiting,
            outdated: view.outdated,
            breaker: breaker.into(),
            breaker_reason: view.breaker_reason,
            retry_after,
            consecutive_failures: view.consecutive_failures,
            frozen: view.frozen,
            hibernated: view.hibernated,
            on_disk: view.on_disk,
            usage,
            held: view.held,
            findings: view.findings.into_iter().map(finding).collect(),
            admission: view.verdict.map(admission),
        }),
    }
}

fn admission(verdict: Verdict) -> api::Admission {
    match verdict {
        Verdict::Allowed => api::Admission {
            allowed: true,
            ..api::Admission::default()
        },
        Verdict::Denied { rule, message } => api::Admission {
            allowed: false,
            rule,
            message,
        },
    }
}

/// A drain.
pub fn drain(door: &dyn Door, view: DrainView) -> api::DrainStatus {
    let state = match view.state {
        DrainState::Draining => api::DrainState::Draining,
        DrainState::Overdue => api::DrainState::Overdue,
        DrainState::Drained => api::DrainState::Drained,
    };
    let mode = match view.mode {
        DrainMode::Wait => api::DrainMode::Wait,
        DrainMode::Hibernate => api::DrainMode::Hibernate,
        DrainMode::Evict => api::DrainMode::Evict,
    };
    api::DrainStatus {
        state: state.into(),
        mode: mode.into(),
        claims: view.claims,
        hibernated: view.hibernated,
        unclaimed: view.unclaimed,
        since: Some(timestamp(door, view.since)),
        deadline: view.deadline.map(|at| timestamp(door, at)),
        on_disk: view.on_disk,
        to_disk: view.to_disk,
        disk_tier: view.disk_tier,
        kept: view.kept.into_iter().map(kept).collect(),
        by_cluster: view.by_cluster,
    }
}

/// With the reasons that Claims.Hibernate gives.
fn kept(kept: Kept) -> api::DrainKept {
    let reason = match kept.why {
        NotStowed::NoRoom => "NO_ROOM_ON_DISK",
        NotStowed::NotRestorable => "NOT_RESTORABLE",
        NotStowed::Failed => "HIBERNATE_FAILED",
    };
    api::DrainKept {
        claim_id: kept.claim.to_string(),
        reason: reason.to_owned(),
        detail: kept.detail,
    }
}

/// A pool as declared, with its defaults filled in.
fn declared(spec: PoolSpec) -> api::Pool {
    let template = spec.template;
    let strategy = match spec.update_strategy {
        UpdateStrategy::OnReplenish => api::UpdateStrategy::OnReplenish,
        UpdateStrategy::Recreate => api::UpdateStrategy::Recreate,
    };
    api::Pool {
        name: spec.name.to_string(),
        generation: spec.generation,
        template: Some(api::Template {
            image: template.image,
            // As it was declared: with one of the two.
            runtime_handler: match template.runtime_class.is_empty() {
                true => template.runtime_handler,
                false => String::new(),
            },
            runtime_class: template.runtime_class,
            command: template.command,
            env: template.env,
            working_dir: template.working_dir,
            resources: Some(api::Resources {
                cpu_millis: template.resources.cpu_millis,
                memory_bytes: template.resources.memory_bytes,
                pids: template.resources.pids,
                disk_bytes: template.resources.disk_bytes,
                open_files: template.resources.open_files,
            }),
            network_policy: Some(network(template.network_policy)),
            warm_command: template.warm_command,
            idle_after: (template.idle_after_ms > 0)
                .then(|| duration(Duration::from_millis(template.idle_after_ms)))
                .flatten(),
            readiness: Some(api::Readiness {
                command: template.readiness.command,
                timeout: duration(Duration::from_millis(template.readiness.timeout_ms)),
            }),
            interpreter: template.interpreter,
            prefork: template.prefork,
            on_data_loss: match template.on_data_loss {
                OnDataLoss::Fail => api::OnDataLoss::Unspecified,
                OnDataLoss::Cold => api::OnDataLoss::Cold,
            }
            .into(),
        }),
        min_warm: spec.min_warm,
        max_total: spec.max_total,
        update_strategy: strategy.into(),
        max_parallel_refills: spec.max_parallel_refills,
        running: spec.running,
    }
}
