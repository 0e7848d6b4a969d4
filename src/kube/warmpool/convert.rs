//! A WarmPool as the message that SetPools takes: so it is checked by the same rules. What is wrong is told under the
//! names that the object has.

use super::{NetworkMode, NetworkRule, OnDataLoss, Protocol, Quantity, UpdateStrategy, WarmPool};
use crate::api;
use crate::machine::refusal::Refusal;
use prost_types::Duration;

/// The message. Its generation is the machine's to give.
///
/// # Errors
/// What the message has no room for, as (field, what is wrong).
pub(super) fn pool(object: &WarmPool) -> Result<api::Pool, Vec<(String, String)>> {
    let spec = &object.spec;
    let template = &spec.template;
    let mut wrong = Vec::new();
    let mut amount = |field: &str, quantity: &Option<Quantity>, thousandths: bool| {
        let Some(quantity) = quantity else {
            return 0;
        };
        let read = match thousandths {
            true => quantity.thousandths(),
            false => quantity.units(),
        };
        read.unwrap_or_else(|| {
            let field = format!("spec.template.resources.{field}");
            wrong.push((field, "must be an amount such as 500m or 512Mi".to_owned()));
            0
        })
    };
    let resources = api::Resources {
        cpu_millis: amount("cpu", &template.resources.cpu, true),
        memory_bytes: amount("memory", &template.resources.memory, false),
        disk_bytes: amount("disk", &template.resources.disk, false),
        pids: template.resources.pids.into(),
        open_files: template.resources.open_files.into(),
    };
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let runtime_handler = match (&template.runtime_handler, &template.runtime_class_name) {
        (Some(handler), _) => handler.clone(),
        (None, Some(_)) => String::new(),
        (None, None) => "gvisor".to_owned(),
    };
    let strategy = match spec.update_strategy {
        UpdateStrategy::OnReplenish => api::UpdateStrategy::OnReplenish,
        UpdateStrategy::Recreate => api::UpdateStrategy::Recreate,
    };
    let on_data_loss = match template.on_data_loss {
        OnDataLoss::Fail => api::OnDataLoss::Unspecified,
        OnDataLoss::Cold => api::OnDataLoss::Cold,
    };
    Ok(api::Pool {
        name: object.metadata.name.clone().unwrap_or_default(),
        // Any; SetPools' rule is that there is one.
        generation: 1,
        template: Some(api::Template {
            image: template.image.clone(),
            runtime_handler,
            runtime_class: template.runtime_class_name.clone().unwrap_or_default(),
            command: template.command.clone(),
            env: template.env.clone(),
            working_dir: template.working_dir.clone(),
            resources: Some(resources),
            warm_command: template.warm_command.clone(),
            readiness: Some(api::Readiness {
                command: template.readiness.command.clone(),
                timeout: seconds(template.readiness.timeout_seconds),
            }),
            interpreter: template.interpreter.clone(),
            prefork: template.prefork,
            idle_after: seconds(template.idle_after_seconds),
            on_data_loss: on_data_loss.into(),
            network_policy: Some(network(object)),
        }),
        min_warm: spec.min_warm,
        max_total: spec.max_total,
        update_strategy: strategy.into(),
        max_parallel_refills: spec.max_parallel_refills,
        // /scale knows of minWarm only: scaling down must not need a second field changed with it.
        running: spec.running.map(|running| running.min(spec.min_warm)),
    })
}

fn seconds(seconds: u32) -> Option<Duration> {
    (seconds > 0).then(|| Duration {
        seconds: seconds.into(),
        nanos: 0,
    })
}

fn network(object: &WarmPool) -> api::NetworkPolicy {
    let policy = &object.spec.template.network_policy;
    let mode = match policy.mode {
        NetworkMode::None => api::NetworkMode::None,
        NetworkMode::Internet => api::NetworkMode::Internet,
        NetworkMode::Allowlist => api::NetworkMode::Allowlist,
    };
    api::NetworkPolicy {
        mode: mode.into(),
        allow: policy.allow.iter().map(rule).collect(),
        deny: policy.deny.iter().map(rule).collect(),
        publish: policy.publish.clone(),
    }
}

fn rule(rule: &NetworkRule) -> api::NetworkRule {
    let protocol = match rule.protocol {
        None => api::Protocol::Unspecified,
        Some(Protocol::TCP) => api::Protocol::Tcp,
        Some(Protocol::UDP) => api::Protocol::Udp,
    };
    let ports = rule.ports.iter().map(|range| api::PortRange {
        first: range.first,
        last: range.last,
    });
    api::NetworkRule {
        cidr: rule.cidr.clone().unwrap_or_default(),
        name: rule.name.clone().unwrap_or_default(),
        protocol: protocol.into(),
        ports: ports.collect(),
    }
}

/// A refusal of SetPools' rules in the object's words.
pub(super) fn told(refusal: &Refusal) -> String {
    match refusal {
        Refusal::InvalidArgument(fields) => {
            let told = fields
                .iter()
                .map(|(field, what)| format!("{}: {what}", spelt(field)));
            told.collect::<Vec<_>>().join("; ")
        }
        other => other.to_string(),
    }
}

/// "spec.template.resources.cpu_millis" is "spec.template.resources.cpu" there. Keys in brackets stay as they are.
pub(super) fn spelt(field: &str) -> String {
    let (path, key) = match field.split_once("[\"") {
        Some((path, key)) => (path, format!("[\"{key}")),
        None => (field, String::new()),
    };
    let parts = path.split('.').map(|part| match part {
        "name" if path == "spec.name" => "metadata.name".to_owned(),
        "cpu_millis" => "cpu".to_owned(),
        "memory_bytes" => "memory".to_owned(),
        "disk_bytes" => "disk".to_owned(),
        "timeout" => "timeoutSeconds".to_owned(),
        "idle_after" => "idleAfterSeconds".to_owned(),
        "runtime_class" => "runtimeClassName".to_owned(),
        part => camel(part),
    });
    let path = parts.collect::<Vec<_>>().join(".");
    let path = path
        .strip_prefix("spec.metadata")
        .map_or(path.clone(), |rest| format!("metadata{rest}"));
    path + &key
}

fn camel(part: &str) -> String {
    let mut words = part.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |text, word| {
        let mut letters = word.chars();
        let capital = letters.next().map(|c| c.to_ascii_uppercase());
        text + &capital.into_iter().chain(letters).collect::<String>()
    })
}
