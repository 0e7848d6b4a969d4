//! Does hearthd answer, on its API and on its admin port?
//!
//! The admin port is optional: without it only a warning.

use super::Check;
use crate::App;
use crate::failure::Exit;
use hearth::api::{InfoRequest, OrphansRequest, RuntimeHandler};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long the admin port may take.
const DEADLINE: Duration = Duration::from_secs(6);
/// Most of an answer that is read.
const ANSWER: u64 = 64 << 10;

/// All of them.
pub async fn checks(app: &App) -> Vec<Check> {
    let mut checks = api(app).await;
    checks.push(admin(&app.common.admin).await);
    checks
}

async fn api(app: &App) -> Vec<Check> {
    let asked = async {
        let link = app.link().await?;
        let info = link
            .node()
            .info(link.call(InfoRequest {}))
            .await?
            .into_inner();
        let orphans = link
            .node()
            .orphans(link.call(OrphansRequest::default()))
            .await;
        let set = crate::pools::get(&link, false).await;
        Ok::<_, crate::failure::Failure>((info, orphans, set))
    };
    let (info, orphans, set) = match asked.await {
        Ok(answers) => answers,
        Err(failure) => {
            let fix = failure
                .hint
                .unwrap_or_else(|| "look at hearthd's log".into());
            return vec![match failure.exit {
                Exit::Unreachable | Exit::Retry => Check::fail("hearthd", failure.message, fix),
                Exit::Refused | Exit::Usage | Exit::NotFound | Exit::Interrupted => {
                    Check::warn("hearthd", failure.message, fix)
                }
            }];
        }
    };
    let found = format!(
        "{}, {}, {} sandboxes",
        info.version, info.phase, info.sandboxes
    );
    let mut checks = vec![match info.phase.as_str() {
        "ready" => Check::ok("hearthd", found),
        "recovering" => Check::warn(
            "hearthd",
            found,
            "it looks for its sandboxes after a start: wait",
        ),
        "degraded" => Check::fail(
            "hearthd",
            found,
            "containerd does not answer: see hearthd's log",
        ),
        _ => Check::fail("hearthd", found, "see hearthd's log"),
    }];
    checks.push(match info.network_unavailable.as_str() {
        "" => Check::ok("sandbox network", "on"),
        why => Check::warn(
            "sandbox network",
            why,
            "pools with network_policy none work; for others see [network] in hearthd's configuration, and docs/network.md",
        ),
    });
    checks.push(handlers(&info.runtime_handlers));
    if let Ok(orphans) = orphans {
        let count = orphans.into_inner().orphans.len();
        checks.push(match count {
            0 => Check::ok("orphans", "none"),
            _ => Check::warn(
                "orphans",
                count.to_string(),
                "`hearthctl orphans` lists them and removes them",
            ),
        });
    }
    if let Ok(set) = set {
        let rows: Vec<_> = set.pools.iter().map(crate::pools::PoolRow::from).collect();
        let failing: Vec<_> = rows
            .iter()
            .filter_map(crate::pools::PoolRow::failing)
            .collect();
        checks.push(match failing.is_empty() {
            true => Check::ok("pools", format!("{} declared", rows.len())),
            false => Check::warn(
                "pools",
                format!("failing: {}", failing.join(", ")),
                "`hearthctl pools` tells why",
            ),
        });
    }
    checks
}

/// Which runtime handlers are served, what each can do, and why one is not served.
pub fn handlers(all: &[RuntimeHandler]) -> Check {
    const NAME: &str = "runtime handlers";
    let tiers = |it: &RuntimeHandler| {
        let can = [
            (it.freeze, "freeze"),
            (it.checkpoint, "checkpoint"),
            (it.disk_bound, "disk bound"),
        ];
        let can: Vec<_> = can.iter().filter(|(can, _)| *can).map(|it| it.1).collect();
        match can.is_empty() {
            true => format!("{} (running only)", it.name),
            false => format!("{} ({})", it.name, can.join(", ")),
        }
    };
    let (served, not): (Vec<_>, Vec<_>) = all.iter().partition(|it| it.unservable.is_empty());
    let found: Vec<_> = served.into_iter().map(tiers).collect();
    if let Some(first) = not.first() {
        let names: Vec<_> = not.iter().map(|it| it.name.as_str()).collect();
        return Check::warn(
            NAME,
            format!(
                "{}; not served: {}: {}",
                found.join("; "),
                names.join(", "),
                first.unservable
            ),
            "runtime.kata in hearthd's configuration names shims; pools that name such a handler are refused",
        );
    }
    Check::ok(NAME, found.join("; "))
}

async fn admin(address: &str) -> Check {
    const NAME: &str = "admin port";
    let host = address
        .strip_prefix("http://")
        .unwrap_or(address)
        .trim_end_matches('/');
    match tokio::time::timeout(DEADLINE, get(host, "/readyz")).await {
        Ok(Ok((200, text))) => Check::ok(NAME, format!("{host}: {}", text.trim())),
        Ok(Ok((code, text))) => Check::warn(
            NAME,
            format!("{host}: {code} {}", text.trim()),
            "hearthd is not ready: wait, or look at its log",
        ),
        Ok(Err(error)) => Check::warn(
            NAME,
            format!("{host}: {error}"),
            "optional; metrics and probes are served there: admin.listen in the config, --admin here",
        ),
        Err(_) => Check::warn(
            NAME,
            format!("{host}: no answer"),
            "hearthd hangs: look at its log",
        ),
    }
}

/// A small HTTP/1.0 GET: status and body.
async fn get(host: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = tokio::net::TcpStream::connect(host).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER).read_to_end(&mut answer).await?;
    parse(&String::from_utf8_lossy(&answer))
        .ok_or_else(|| std::io::Error::other("that is not HTTP"))
}

/// Status and body of an HTTP answer.
pub fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/")?.split(' ').nth(1)?;
    Some((status.parse().ok()?, body.to_owned()))
}
