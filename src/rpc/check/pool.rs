//! SetPools.

use super::{Fields, bounds, index, network, value};
use crate::api::{Pool, Readiness, Resources, SetPoolsRequest, Template, UpdateStrategy};
use crate::machine::handler::{self, Handler, Wants};
use crate::machine::ids::PoolName;
use crate::machine::limits;
use crate::machine::refusal::Refusal;
use crate::machine::spec;
use std::collections::BTreeSet;

/// SetPools: the set, ordered by name, with defaults filled in, and the epoch. `handlers` are the runtime handlers of
/// this node.
pub fn set_pools(
    request: SetPoolsRequest,
    handlers: &[Handler],
) -> Result<(spec::PoolSet, u64), Refusal> {
    let mut fields = Fields::default();
    value::epoch(&mut fields, "epoch", request.epoch);
    fields.need(request.generation >= 1, "generation", "must be at least 1");
    let most = limits::POOLS;
    fields.need(
        request.pools.len() <= most,
        "pools",
        format!("must be at most {most} pools"),
    );
    let mut pools = Vec::new();
    let mut names = BTreeSet::new();
    for (at, pool) in request.pools.into_iter().enumerate().take(most) {
        let at = index("pools", at);
        let Some(pool) = one(&mut fields, &at, pool, handlers) else {
            continue;
        };
        fields.need(
            names.insert(pool.name.clone()),
            format!("{at}.name"),
            "is in this set already",
        );
        pools.push(pool);
    }
    pools.sort_by(|a, b| a.name.cmp(&b.name));
    fields.give(Some((
        spec::PoolSet {
            generation: request.generation,
            pools,
            ..spec::PoolSet::default()
        },
        request.epoch,
    )))
}

/// One pool that no request declares, by the same rules; its problems begin with "spec".
pub fn pool(pool: Pool, handlers: &[Handler]) -> Result<spec::PoolSpec, Refusal> {
    let mut fields = Fields::default();
    let checked = one(&mut fields, "spec", pool, handlers);
    fields.give(checked)
}

fn one(fields: &mut Fields, at: &str, pool: Pool, handlers: &[Handler]) -> Option<spec::PoolSpec> {
    let field = |name: &str| format!("{at}.{name}");
    let name = fields.take(&field("name"), PoolName::parse(&pool.name));
    fields.need(
        pool.generation >= 1,
        field("generation"),
        "must be at least 1",
    );
    let most = limits::POOL_MAX_TOTAL;
    fields.need(
        (1..=most).contains(&pool.max_total),
        field("max_total"),
        format!("must be 1 to {most}"),
    );
    fields.need(
        pool.min_warm <= pool.max_total,
        field("min_warm"),
        "must be at most max_total",
    );
    let most = limits::MAX_PARALLEL_REFILLS;
    let refills = pool.max_parallel_refills;
    fields.need(
        refills <= most,
        field("max_parallel_refills"),
        format!("must be at most {most}"),
    );
    fields.need(
        pool.running.is_none_or(|running| running <= pool.min_warm),
        field("running"),
        "must be at most min_warm",
    );
    let update_strategy = match UpdateStrategy::try_from(pool.update_strategy) {
        Ok(UpdateStrategy::Unspecified | UpdateStrategy::OnReplenish) => {
            Some(spec::UpdateStrategy::OnReplenish)
        }
        Ok(UpdateStrategy::Recreate) => Some(spec::UpdateStrategy::Recreate),
        Err(_) => {
            fields.wrong(field("update_strategy"), "is not a known value");
            None
        }
    };
    if let Some(asked) = &pool.template {
        let wants = Wants {
            frozen_members: pool.running.is_some_and(|running| running < pool.min_warm),
            idle_freeze: asked.idle_after.is_some_and(|it| it != Default::default()),
            disk_bound: asked.resources.is_some_and(|it| it.disk_bytes > 0),
        };
        let mut known = handlers.iter();
        let handler = known.find(|it| it.answers_to(&asked.runtime_handler));
        for (name, what) in handler
            .map(|it| handler::refused(it, wants))
            .unwrap_or_default()
        {
            fields.wrong(field(name), what);
        }
    }
    let template = match pool.template {
        Some(asked) => template(fields, &field("template"), asked, handlers),
        None => {
            fields.wrong(field("template"), "is required");
            None
        }
    };
    Some(spec::PoolSpec {
        name: name?,
        generation: pool.generation,
        template: template?,
        min_warm: pool.min_warm,
        max_total: pool.max_total,
        update_strategy: update_strategy?,
        max_parallel_refills: if refills == 0 {
            limits::DEFAULT_PARALLEL_REFILLS
        } else {
            refills
        },
        running: pool.running,
        warm_pool: None,
    })
}

fn template(
    fields: &mut Fields,
    at: &str,
    asked: Template,
    handlers: &[Handler],
) -> Option<spec::Template> {
    let field = |name: &str| format!("{at}.{name}");
    image(fields, &field("image"), &asked.image);
    let handler = handlers
        .iter()
        .find(|it| it.answers_to(&asked.runtime_handler));
    if !asked.runtime_class.is_empty() {
        runtime_class(fields, at, &asked);
    } else if handler.is_none() {
        let known: Vec<_> = handlers.iter().map(|it| it.name.as_str()).collect();
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        fields.wrong(
            field("runtime_handler"),
            format!("is not one of this node's: {known}"),
        );
    }
    value::command(fields, &field("command"), &asked.command);
    value::env(fields, &field("env"), &asked.env);
    value::working_dir(fields, &field("working_dir"), &asked.working_dir);
    value::command(fields, &field("warm_command"), &asked.warm_command);
    fields.need(
        asked.interpreter.is_empty() || limits::INTERPRETERS.contains(&asked.interpreter.as_str()),
        field("interpreter"),
        format!(
            "must be empty or one of: {}",
            limits::INTERPRETERS.join(", ")
        ),
    );
    let most = limits::PREFORK_MAX;
    let preforked = limits::PREFORKED.contains(&asked.interpreter.as_str());
    fields.need(
        asked.prefork == 0 || (asked.prefork <= most && preforked),
        field("prefork"),
        format!(
            "must be at most {most}, and 0 unless interpreter is one of: {}",
            limits::PREFORKED.join(", ")
        ),
    );
    let mut resources = resources(
        fields,
        &field("resources"),
        asked.resources.unwrap_or_default(),
    );
    if handler.is_some_and(|it| !it.can.disk_bound) {
        // No bound is told where none is kept.
        resources.disk_bytes = 0;
    }
    let readiness = readiness(
        fields,
        &field("readiness"),
        asked.readiness.unwrap_or_default(),
    );
    let network_policy = network::policy(fields, &field("network_policy"), asked.network_policy);
    let idle_after = idle_after(fields, &field("idle_after"), asked.idle_after);
    let on_data_loss =
        super::claim::on_data_loss(fields, &field("on_data_loss"), asked.on_data_loss);
    Some(spec::Template {
        image: asked.image,
        runtime_handler: handler.map_or(asked.runtime_handler, |it| it.name.clone()),
        runtime_class: asked.runtime_class,
        command: asked.command,
        env: asked.env,
        working_dir: asked.working_dir,
        resources,
        network_policy: network_policy.unwrap_or_default(),
        warm_command: asked.warm_command,
        readiness: readiness?,
        interpreter: asked.interpreter,
        prefork: asked.prefork,
        idle_after_ms: idle_after?,
        on_data_loss: on_data_loss?.unwrap_or_default(),
    })
}

/// A RuntimeClass's name, and no handler beside it. What it means is the cluster's to say.
fn runtime_class(fields: &mut Fields, at: &str, asked: &Template) {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let name = &asked.runtime_class;
    fields.need(
        name.len() <= bounds::CLASS_BYTES && name.bytes().all(good),
        format!("{at}.runtime_class"),
        "must be the name of a RuntimeClass: at most 253 of a-z, 0-9, '-' and '.'",
    );
    fields.need(
        asked.runtime_handler.is_empty(),
        format!("{at}.runtime_handler"),
        "must be empty beside a runtime_class, which names the handler",
    );
}

/// Milliseconds; 0: never.
fn idle_after(fields: &mut Fields, at: &str, asked: Option<prost_types::Duration>) -> Option<u64> {
    let Some(asked) = asked else {
        return Some(0);
    };
    let least = limits::IDLE_AFTER_MIN_MS;
    let after = value::millis(fields, at, asked, limits::MAX_TTL_MS)?;
    fields.need(
        after == 0 || after >= least,
        at,
        format!("must be at least {} s", least / 1000),
    );
    Some(after)
}

/// An image reference: a bounded word. Whether it names something is containerd's to say.
pub fn image(fields: &mut Fields, at: &str, image: &str) {
    let word = image.bytes().all(|b| b.is_ascii_graphic());
    let fits = (1..=bounds::IMAGE_BYTES).contains(&image.len()) && word;
    fields.need(
        fits,
        at,
        "must be an image reference such as \"hearth.local/python:3.11\"",
    );
}

fn resources(fields: &mut Fields, at: &str, asked: Resources) -> spec::Resources {
    let field = |name: &str| format!("{at}.{name}");
    let most = bounds::CPU_MILLIS;
    fields.need(
        asked.cpu_millis <= most,
        field("cpu_millis"),
        format!("must be at most {most}"),
    );
    spec::Resources {
        cpu_millis: asked.cpu_millis,
        memory_bytes: value::amount(
            fields,
            &field("memory_bytes"),
            asked.memory_bytes,
            bounds::MEMORY_BYTES,
        ),
        pids: value::amount(fields, &field("pids"), asked.pids, bounds::PIDS),
        disk_bytes: value::amount(
            fields,
            &field("disk_bytes"),
            asked.disk_bytes,
            bounds::DISK_BYTES,
        ),
        open_files: value::amount(
            fields,
            &field("open_files"),
            asked.open_files,
            bounds::OPEN_FILES,
        ),
    }
}

fn readiness(fields: &mut Fields, at: &str, asked: Readiness) -> Option<spec::Readiness> {
    let (default, least, most) = bounds::READINESS_MS;
    value::command(fields, &format!("{at}.command"), &asked.command);
    let timeout_ms = match asked.timeout {
        None => default,
        Some(timeout) => {
            let at = format!("{at}.timeout");
            let timeout = value::millis(fields, &at, timeout, most)?;
            fields.need(
                timeout >= least,
                at,
                format!("must be at least {} s", least / 1000),
            );
            timeout
        }
    };
    Some(spec::Readiness {
        command: asked.command,
        timeout_ms,
    })
}
