//! The machine's views as messages of the API.

use super::door::Door;
use crate::api;
use crate::machine::ids::Now;
use crate::machine::spec::{PoolSpec, UpdateStrategy};
use crate::machine::view::{BreakerView, ClaimState, ClaimView, PoolView, Source};
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
    }
}

/// A pool and its status.
pub fn pool(door: &dyn Door, view: PoolView) -> api::PoolView {
    let retry_after = match view.breaker {
        BreakerView::Open(until) => {
            let left = door.to_wall_clock(until).duration_since(SystemTime::now());
            // Already over: the next probe is due.
            duration(left.unwrap_or_default())
        }
        BreakerView::Closed | BreakerView::HalfOpen => None,
    };
    let breaker = match view.breaker {
        BreakerView::Closed => api::BreakerState::Closed,
        BreakerView::Open(_) => api::BreakerState::Open,
        BreakerView::HalfOpen => api::BreakerState::HalfOpen,
    };
    api::PoolView {
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
        }),
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
            runtime_handler: template.runtime_handler,
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
            network_policy: template.network_policy,
            warm_command: template.warm_command,
            idle_after: (template.idle_after_ms > 0)
                .then(|| duration(Duration::from_millis(template.idle_after_ms)))
                .flatten(),
            readiness: Some(api::Readiness {
                command: template.readiness.command,
                timeout: duration(Duration::from_millis(template.readiness.timeout_ms)),
            }),
            interpreter: template.interpreter,
        }),
        min_warm: spec.min_warm,
        max_total: spec.max_total,
        update_strategy: strategy.into(),
        max_parallel_refills: spec.max_parallel_refills,
        running: spec.running,
    }
}
