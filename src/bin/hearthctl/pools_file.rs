//! The file of `pools set`: TOML, JSON or YAML, unknown keys refused, sizes and times as people write them.
//!
//! Owns the file's form and how generations are raised. Pure: reads no file, asks nobody.

use crate::claim::Loss;
use crate::failure::Failure;
use crate::network::{self, PolicyEntry};
use hearth::api::{OnDataLoss, Pool, Readiness, Resources, Template, UpdateStrategy};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The whole set.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolsFile {
    /// Of the set; left out: raised when something changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// All pools.
    #[serde(default)]
    pub pools: Vec<PoolEntry>,
}

/// One pool.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolEntry {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    #[serde(default)]
    min_warm: u32,
    /// Left out: min_warm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_total: Option<u32>,
    #[serde(default, skip_serializing_if = "is_default")]
    max_parallel_refills: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    running: Option<u32>,
    #[serde(default)]
    update_strategy: Strategy,
    template: TemplateEntry,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Strategy {
    #[default]
    OnReplenish,
    Recreate,
}

/// The runtime handler of a template that names neither a handler nor a class.
const GVISOR: &str = "gvisor";

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TemplateEntry {
    image: String,
    /// Neither: gvisor.
    #[serde(default, skip_serializing_if = "is_default")]
    runtime_handler: String,
    #[serde(default, skip_serializing_if = "is_default")]
    runtime_class: String,
    #[serde(default, skip_serializing_if = "is_default")]
    command: Vec<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    working_dir: String,
    #[serde(default, skip_serializing_if = "is_default")]
    network_policy: PolicyEntry,
    #[serde(default, skip_serializing_if = "is_default")]
    warm_command: Vec<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    interpreter: String,
    #[serde(default, skip_serializing_if = "is_default")]
    prefork: u32,
    #[serde(default, skip_serializing_if = "is_default")]
    env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "is_default")]
    resources: ResourcesEntry,
    #[serde(default, skip_serializing_if = "is_default")]
    readiness: ReadinessEntry,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "humantime_text"
    )]
    idle_after: Option<std::time::Duration>,
    #[serde(default, skip_serializing_if = "is_default")]
    on_data_loss: Loss,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResourcesEntry {
    #[serde(default, skip_serializing_if = "is_default")]
    cpu_millis: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    memory: Size,
    #[serde(default, skip_serializing_if = "is_default")]
    pids: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    disk: Size,
    #[serde(default, skip_serializing_if = "is_default")]
    open_files: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadinessEntry {
    #[serde(default, skip_serializing_if = "is_default")]
    command: Vec<String>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "humantime_text"
    )]
    timeout: Option<std::time::Duration>,
}

/// Bytes: a number, or text such as "512MiB".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Size(u64);

impl Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&size_text(self.0))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(from)? {
            Either::Number(bytes) => Ok(Size(bytes)),
            Either::Text(text) => size(&text).map(Size).ok_or_else(|| {
                serde::de::Error::custom(format!("{text:?} is not a size such as 512MiB or 1GiB"))
            }),
        }
    }
}

mod humantime_text {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub fn serialize<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => to.serialize_str(&humantime::format_duration(*time).to_string()),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_duration(&text).map(Some).map_err(|_| {
            serde::de::Error::custom(format!("{text:?} is not a duration such as 30s"))
        })
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// "512MiB", "1GiB", "64k", "1000000": binary units, as memory is sold.
pub fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let shift = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "ki" | "kib" => 10,
        "m" | "mi" | "mib" => 20,
        "g" | "gi" | "gib" => 30,
        "t" | "ti" | "tib" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

fn size_text(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// Reads a file's text. The name's ending tells the form; without one the text does.
pub fn parse(name: &str, text: &str) -> Result<PoolsFile, Failure> {
    let ending = name
        .rsplit_once('.')
        .map(|(_, ending)| ending.to_ascii_lowercase());
    let parsed = match ending.as_deref() {
        Some("toml") => toml::from_str(text).map_err(|e| e.to_string()),
        Some("json") => serde_json::from_str(text).map_err(|e| e.to_string()),
        Some("yaml" | "yml") => serde_norway::from_str(text).map_err(|e| e.to_string()),
        _ if text.contains("[[pools]]") => toml::from_str(text).map_err(|e| e.to_string()),
        // YAML takes JSON in.
        _ => serde_norway::from_str(text).map_err(|e| e.to_string()),
    };
    parsed.map_err(|error: String| {
        let mut failure = Failure::usage(format!("{name} is not a set of pools"))
            .hint("`hearthctl pools export` prints a file that is");
        for line in error.lines().filter(|line| !line.trim().is_empty()).take(8) {
            failure = failure.detail("file", line);
        }
        failure
    })
}

/// What a set would do to the set in force.
pub struct Plan {
    /// Of the set.
    pub generation: u64,
    /// To be sent.
    pub pools: Vec<Pool>,
    /// (pool, "new" | "changed" | "unchanged" | "removed"), ordered by name.
    pub changes: BTreeMap<String, &'static str>,
}

/// Compares the file with what is in force, and counts the generations that the file leaves out.
pub fn plan(file: PoolsFile, current_generation: u64, current: &[Pool]) -> Plan {
    let mut changes: BTreeMap<String, &'static str> = BTreeMap::new();
    for pool in current {
        changes.insert(pool.name.clone(), "removed");
    }
    for entry in &file.pools {
        let old = current.iter().find(|pool| pool.name == entry.name);
        let change = match old {
            None => "new",
            Some(old) if same(old, &entry.to_pool(old.generation)) => "unchanged",
            Some(_) => "changed",
        };
        changes.insert(entry.name.clone(), change);
    }
    let idle = changes.values().all(|change| *change == "unchanged");
    let next = match (idle, current_generation) {
        (true, 1..) => current_generation,
        _ => current_generation + 1,
    };
    let generation = file.generation.unwrap_or(next);
    let pools = file.pools.iter().map(|entry| {
        let old = current.iter().find(|pool| pool.name == entry.name);
        let kept = old.filter(|_| changes.get(&entry.name) == Some(&"unchanged"));
        let counted = match (kept, old) {
            (Some(kept), _) => kept.generation,
            (None, Some(old)) => generation.max(old.generation + 1),
            // A name that was used before must not fall behind its past: the set's own generation never does.
            (None, None) => generation,
        };
        entry.to_pool(entry.generation.unwrap_or(counted))
    });
    Plan {
        generation,
        pools: pools.collect(),
        changes,
    }
}

/// The same but for the generation, and for defaults that hearthd may have written out.
fn same(one: &Pool, other: &Pool) -> bool {
    normal(one) == normal(other)
}

fn normal(pool: &Pool) -> Pool {
    let mut pool = pool.clone();
    pool.generation = 0;
    if pool.update_strategy() == UpdateStrategy::Unspecified {
        pool.set_update_strategy(UpdateStrategy::OnReplenish);
    }
    let template = pool.template.get_or_insert_default();
    template.network_policy = Some(network::normal(template.network_policy.take()));
    // The defaults that pools.proto promises.
    let resources = template.resources.get_or_insert_default();
    for (value, default) in [
        (&mut resources.memory_bytes, 512 << 20),
        (&mut resources.pids, 1024),
        (&mut resources.disk_bytes, 1 << 30),
        (&mut resources.open_files, 65_536),
    ] {
        if *value == 0 {
            *value = default;
        }
    }
    let readiness = template.readiness.get_or_insert_default();
    readiness.timeout.get_or_insert(prost_types::Duration {
        seconds: 30,
        nanos: 0,
    });
    pool
}

impl PoolEntry {
    fn to_pool(&self, generation: u64) -> Pool {
        let template = &self.template;
        Pool {
            name: self.name.clone(),
            generation,
            template: Some(Template {
                image: template.image.clone(),
                runtime_handler: match (&template.runtime_handler, &template.runtime_class) {
                    (none, class) if none.is_empty() && class.is_empty() => GVISOR.to_owned(),
                    (handler, _) => handler.clone(),
                },
                runtime_class: template.runtime_class.clone(),
                command: template.command.clone(),
                env: template.env.clone(),
                working_dir: template.working_dir.clone(),
                resources: Some(Resources {
                    cpu_millis: template.resources.cpu_millis,
                    memory_bytes: template.resources.memory.0,
                    pids: template.resources.pids,
                    disk_bytes: template.resources.disk.0,
                    open_files: template.resources.open_files,
                }),
                network_policy: Some(template.network_policy.to_api()),
                warm_command: template.warm_command.clone(),
                readiness: Some(Readiness {
                    command: template.readiness.command.clone(),
                    timeout: template.readiness.timeout.and_then(crate::output::to_proto),
                }),
                interpreter: template.interpreter.clone(),
                prefork: template.prefork,
                idle_after: template.idle_after.and_then(crate::output::to_proto),
                on_data_loss: template.on_data_loss.to_api().into(),
            }),
            min_warm: self.min_warm,
            max_total: self.max_total.unwrap_or(self.min_warm),
            update_strategy: match self.update_strategy {
                Strategy::OnReplenish => UpdateStrategy::OnReplenish,
                Strategy::Recreate => UpdateStrategy::Recreate,
            }
            .into(),
            max_parallel_refills: self.max_parallel_refills,
            running: self.running,
        }
    }
}

impl From<&Pool> for PoolEntry {
    fn from(pool: &Pool) -> Self {
        let template = pool.template.clone().unwrap_or_default();
        let resources = template.resources.unwrap_or_default();
        let on_data_loss = match template.on_data_loss() {
            OnDataLoss::Cold => Loss::Cold,
            OnDataLoss::Fail | OnDataLoss::Unspecified => Loss::Fail,
        };
        let readiness = template.readiness.unwrap_or_default();
        PoolEntry {
            name: pool.name.clone(),
            // Left to hearthctl, so that an edited export just works.
            generation: None,
            min_warm: pool.min_warm,
            max_total: Some(pool.max_total),
            max_parallel_refills: pool.max_parallel_refills,
            running: pool.running,
            update_strategy: match pool.update_strategy() {
                UpdateStrategy::Recreate => Strategy::Recreate,
                UpdateStrategy::OnReplenish | UpdateStrategy::Unspecified => Strategy::OnReplenish,
            },
            template: TemplateEntry {
                image: template.image,
                runtime_handler: template.runtime_handler,
                runtime_class: template.runtime_class,
                command: template.command,
                working_dir: template.working_dir,
                network_policy: template
                    .network_policy
                    .as_ref()
                    .map(PolicyEntry::from)
                    .unwrap_or_default(),
                warm_command: template.warm_command,
                interpreter: template.interpreter,
                prefork: template.prefork,
                env: template.env,
                resources: ResourcesEntry {
                    cpu_millis: resources.cpu_millis,
                    memory: Size(resources.memory_bytes),
                    pids: resources.pids,
                    disk: Size(resources.disk_bytes),
                    open_files: resources.open_files,
                },
                readiness: ReadinessEntry {
                    command: readiness.command,
                    timeout: readiness.timeout.and_then(|t| t.try_into().ok()),
                },
                on_data_loss,
                idle_after: template.idle_after.and_then(|t| t.try_into().ok()),
            },
        }
    }
}
