//! `node`, `orphans`, `stats`.
//!
//! Owns how they look.

use crate::App;
use crate::drain;
use crate::failure::Failure;
use crate::output::{self, Field, Format, Mood};
use hearth::api::{
    InfoRequest, InfoResponse, OrphansRequest, RuntimeHandler, StatsRequest, StatsResponse,
};
use std::time::SystemTime;

/// `node`
pub async fn info(app: &App) -> Result<(), Failure> {
    let link = app.link().await?;
    let info = link
        .node()
        .info(link.call(InfoRequest {}))
        .await?
        .into_inner();
    output::print(&match app.format() {
        Format::Table => info_text(app, &info),
        Format::Name => format!("{}\n", info.node_tag),
        format => output::document(format, &info_value(&info))?,
    })
}

fn info_text(app: &App, info: &InfoResponse) -> String {
    let containerd = match info.containerd_version.as_str() {
        "" => "unreachable".to_owned(),
        version => version.to_owned(),
    };
    let started = output::time(info.started_at.as_ref());
    let mut text = output::sheet(
        app.style,
        &[
            ("phase", info.phase.clone()),
            ("hearthd", info.version.clone()),
            ("containerd", containerd),
            ("cgroup", format!("v{}", info.cgroup_version)),
            (
                "sandboxes",
                format!("{} of {}", info.sandboxes, info.max_sandboxes),
            ),
            ("epoch", info.epoch.to_string()),
            ("node tag", info.node_tag.clone()),
            (
                "drain",
                info.drain.as_ref().map_or("no".to_owned(), drain::line),
            ),
            ("started", output::relative(started, SystemTime::now(), "-")),
        ],
    );
    let yes = |can: bool| match can {
        true => Field::new("yes", Mood::Good),
        false => Field::new("no", Mood::Dim),
    };
    let rows = info.runtime_handlers.iter().map(|handler| {
        vec![
            handler.name.clone().into(),
            handler.version.clone().into(),
            yes(handler.freeze),
            yes(handler.checkpoint),
            yes(handler.disk_bound),
            overhead(handler).into(),
            match handler.unservable.as_str() {
                "" => Field::new("yes", Mood::Good),
                why => Field::new(format!("no: {why}"), Mood::Bad),
            },
        ]
    });
    text.push('\n');
    text.push_str(&output::table(
        app.style,
        &[
            "RUNTIME HANDLER",
            "VERSION",
            "FREEZE",
            "CHECKPOINT",
            "DISK BOUND",
            "OVERHEAD",
            "SERVED",
        ],
        rows.collect(),
    ));
    text
}

/// "130.0 MiB, 250m": what its RuntimeClass counts beside the template.
fn overhead(handler: &RuntimeHandler) -> String {
    match (handler.overhead_memory_bytes, handler.overhead_cpu_millis) {
        (0, 0) => "-".to_owned(),
        (memory, cpu) => format!("{}, {cpu}m", output::bytes(memory)),
    }
}

fn info_value(info: &InfoResponse) -> serde_json::Value {
    let handlers: Vec<_> = info
        .runtime_handlers
        .iter()
        .map(|h| {
            serde_json::json!({
                "name": h.name, "version": h.version, "freeze": h.freeze, "checkpoint": h.checkpoint,
                "disk_bound": h.disk_bound, "overhead_memory_bytes": h.overhead_memory_bytes,
                "overhead_cpu_millis": h.overhead_cpu_millis, "unservable": h.unservable,
            })
        })
        .collect();
    serde_json::json!({
        "version": info.version,
        "containerd_version": info.containerd_version,
        "runtime_handlers": handlers,
        "cgroup_version": info.cgroup_version,
        "started_at": output::time(info.started_at.as_ref()).map(output::rfc3339),
        "node_tag": info.node_tag,
        "phase": info.phase,
        "epoch": info.epoch,
        "sandboxes": info.sandboxes,
        "max_sandboxes": info.max_sandboxes,
        "drain": info.drain.as_ref().map(drain::value),
        "network_unavailable": info.network_unavailable,
    })
}

/// `orphans`
pub async fn orphans(app: &App, destroy: Vec<String>) -> Result<(), Failure> {
    let link = app.link().await?;
    // Only what an earlier answer listed is accepted, so the list comes first.
    let listed = link
        .node()
        .orphans(link.call(OrphansRequest::default()))
        .await?
        .into_inner();
    let orphans = match destroy.is_empty() {
        true => listed.orphans,
        false => {
            let request = link.call(OrphansRequest { destroy });
            link.node().orphans(request).await?.into_inner().orphans
        }
    };
    output::print(&match app.format() {
        Format::Table if orphans.is_empty() => "no orphans\n".into(),
        Format::Table => {
            let rows = orphans.iter().map(|orphan| {
                vec![
                    orphan.sandbox_id.clone().into(),
                    orphan.found.join(", ").into(),
                    orphan.reason.clone().into(),
                ]
            });
            output::table(app.style, &["SANDBOX", "FOUND", "REASON"], rows.collect())
        }
        Format::Name => orphans
            .iter()
            .map(|o| format!("{}\n", o.sandbox_id))
            .collect(),
        format => {
            let values = orphans.iter().map(|o| {
                serde_json::json!({ "sandbox_id": o.sandbox_id, "found": o.found, "reason": o.reason })
            });
            output::document(format, &values.collect::<Vec<_>>())?
        }
    })
}

/// `stats`
pub async fn stats(app: &App, name: &str) -> Result<(), Failure> {
    let link = app.link().await?;
    let claim_id = link.resolve(name).await?;
    let request = link.call(StatsRequest {
        claim_id: claim_id.clone(),
        ..StatsRequest::default()
    });
    let stats = link.sandboxes().stats(request).await?.into_inner();
    output::print(&match app.format() {
        Format::Table => output::sheet(
            app.style,
            &[
                ("claim", claim_id),
                ("memory", memory_text(&stats)),
                (
                    "cpu time",
                    output::seconds(stats.cpu_nanoseconds as f64 / 1e9),
                ),
                ("host pids", stats.pids.to_string()),
                (
                    "processes",
                    format!("{} inside, {} by exec", stats.guest_processes, stats.execs),
                ),
            ],
        ),
        Format::Name => format!("{claim_id}\n"),
        format => output::document(format, &stats_value(&claim_id, &stats))?,
    })
}

/// "19.0 MiB of 512.0 MiB"
pub fn memory_text(stats: &StatsResponse) -> String {
    match stats.memory_limit_bytes {
        0 => output::bytes(stats.memory_bytes),
        limit => format!(
            "{} of {}",
            output::bytes(stats.memory_bytes),
            output::bytes(limit)
        ),
    }
}

/// For programs.
pub fn stats_value(claim_id: &str, stats: &StatsResponse) -> serde_json::Value {
    serde_json::json!({
        "claim_id": claim_id,
        "cpu_nanoseconds": stats.cpu_nanoseconds,
        "memory_bytes": stats.memory_bytes,
        "memory_limit_bytes": stats.memory_limit_bytes,
        "pids": stats.pids,
        "guest_processes": stats.guest_processes,
        "execs": stats.execs,
        "swap_bytes": stats.swap_bytes,
        "compressed_bytes": stats.compressed_bytes,
        "image_bytes": stats.image_bytes,
    })
}
