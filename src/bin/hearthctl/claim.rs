//! `claim`: what the options mean as a request, and how the answer looks.
//!
//! Never stores a token: it is shown when asked for, and forgotten.

use crate::App;
use crate::claims::{source_word, ttl_proto};
use crate::cli::ClaimArgs;
use crate::failure::Failure;
use crate::link::{CALL_DEADLINE, Link};
use crate::output::{self, Format};
use bytes::Bytes;
use hearth::api::{
    ClaimRequest, ClaimResponse, File, Holder, OnDataLoss, OnEmpty, Personalization, Secret,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// `--on-data-loss`, and a pool file's `on_data_loss`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    /// the claim fails with DATA_LOSS
    #[default]
    Fail,
    /// it gets a fresh sandbox under the same claim id
    Cold,
}

impl Loss {
    /// In the API's words.
    pub fn to_api(self) -> OnDataLoss {
        match self {
            Self::Fail => OnDataLoss::Fail,
            Self::Cold => OnDataLoss::Cold,
        }
    }
}

/// Longest a cold start may take.
const COLD_DEADLINE: Duration = Duration::from_secs(120);
/// More than hearth takes in one file or secret; the daemon has the last word.
const CONTENT: u64 = 4 << 20;

/// `claim`
pub async fn run(app: &App, args: ClaimArgs) -> Result<(), Failure> {
    let link = app.link().await?;
    let deadline = match (args.wait, args.cold) {
        (Some(wait), _) => wait + CALL_DEADLINE,
        (None, true) => COLD_DEADLINE,
        (None, false) => CALL_DEADLINE,
    };
    let show_token = args.show_token;
    let request = request(&link, args).await?;
    let (claim_id, pool) = (request.claim_id.clone(), request.pool.clone());
    let began = Instant::now();
    let answer = link
        .claims()
        .claim(link.call_within(request, deadline))
        .await;
    let latency = began.elapsed();
    let claimed = match answer {
        Ok(answer) => answer.into_inner(),
        // It may have been made all the same: the id is what finds it again.
        Err(status) => return Err(Failure::from(status).detail("claim", claim_id)),
    };
    output::print(&match app.format() {
        Format::Table => claimed_text(app, &claim_id, &pool, &claimed, latency, show_token),
        Format::Name => format!("{claim_id}\n"),
        format => output::document(
            format,
            &claimed_value(&claim_id, &pool, &claimed, latency, show_token),
        )?,
    })
}

/// The request that the options mean.
pub async fn request(link: &Link, args: ClaimArgs) -> Result<ClaimRequest, Failure> {
    let mut files = Vec::new();
    for (from, to) in &args.files {
        let (content, mode) = read(from)?;
        files.push(File {
            path: to.clone(),
            content,
            mode,
        });
    }
    let mut secrets = Vec::new();
    for (name, from) in &args.secrets {
        secrets.push(Secret {
            name: name.clone(),
            value: read(from)?.0,
        });
    }
    let holder = args.holder.unwrap_or_else(ourselves);
    Ok(ClaimRequest {
        claim_id: args.id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
        pool: args.pool,
        holder: Some(Holder {
            namespace: holder.namespace,
            name: holder.name,
            uid: String::new(),
        }),
        epoch: link.epoch().await?,
        ttl: ttl_proto(args.ttl.unwrap_or_default())?,
        personalization: Some(Personalization {
            env: args.env.into_iter().collect(),
            files,
            secrets,
            hostname: args.hostname.unwrap_or_default(),
            network_policy: crate::network::policy(args.network)?,
        }),
        on_empty: match (args.wait, args.cold) {
            (Some(_), _) => OnEmpty::Wait,
            (None, true) => OnEmpty::Cold,
            (None, false) => OnEmpty::Fail,
        }
        .into(),
        wait_timeout: args.wait.and_then(output::to_proto),
        on_data_loss: args
            .on_data_loss
            .map_or(OnDataLoss::Unspecified, Loss::to_api)
            .into(),
    })
}

/// Who types: for the claim's holder.
pub fn ourselves() -> crate::parse::HolderName {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER"));
    crate::parse::HolderName {
        namespace: "hearthctl".into(),
        name: user
            .ok()
            .filter(|u| !u.is_empty())
            .unwrap_or_else(|| "root".into()),
    }
}

/// A small local file (or stdin for "-") and its permission bits.
fn read(path: &Path) -> Result<(Bytes, u32), Failure> {
    use std::os::unix::fs::PermissionsExt;
    let name = path.display().to_string();
    let broken = |error: std::io::Error| Failure::local(&name, &error);
    let mut content = Vec::new();
    let mut mode = 0;
    if path == Path::new("-") {
        std::io::stdin()
            .take(CONTENT + 1)
            .read_to_end(&mut content)
            .map_err(broken)?;
    } else {
        let file = std::fs::File::open(path).map_err(broken)?;
        mode = file.metadata().map_err(broken)?.permissions().mode() & 0o777;
        file.take(CONTENT + 1)
            .read_to_end(&mut content)
            .map_err(broken)?;
    }
    if content.len() as u64 > CONTENT {
        return Err(
            Failure::usage(format!("{name} is too large to be sent with a claim"))
                .hint("copy it after the claim with `hearthctl cp`"),
        );
    }
    Ok((content.into(), mode))
}

fn stages(claimed: &ClaimResponse) -> Vec<(&'static str, f64)> {
    let timings = claimed.timings.unwrap_or_default();
    [
        ("queue", timings.queue),
        ("commit", timings.commit),
        ("guest", timings.guest),
        ("total", timings.total),
    ]
    .into_iter()
    .filter_map(|(name, time)| Some((name, output::duration_seconds(time.as_ref())?)))
    .collect()
}

fn claimed_text(
    app: &App,
    claim_id: &str,
    pool: &str,
    claimed: &ClaimResponse,
    latency: Duration,
    show_token: bool,
) -> String {
    let style = app.style;
    let stages: Vec<String> = stages(claimed)
        .iter()
        .map(|(name, time)| format!("{name} {}", output::seconds(*time)))
        .collect();
    let expires = output::time(claimed.expires_at.as_ref());
    let short = &claim_id[..claim_id.len().min(8)];
    let mut lines = vec![
        ("claim", claim_id.to_owned()),
        ("sandbox", claimed.sandbox_id.clone()),
        (
            "pool",
            format!("{pool} (generation {})", claimed.generation),
        ),
        (
            "expires",
            output::relative(expires, SystemTime::now(), "never"),
        ),
        ("in hearthd", stages.join(" · ")),
    ];
    if show_token {
        lines.push(("token", claimed.access_token.clone()));
    }
    lines.push(("next", format!("hearthctl exec -it {short} -- sh")));
    format!(
        "{} in {} ({})\n{}",
        style.green("claimed"),
        style.bold(&output::seconds(latency.as_secs_f64())),
        source_word(claimed.source()),
        output::sheet(style, &lines)
    )
}

fn claimed_value(
    claim_id: &str,
    pool: &str,
    claimed: &ClaimResponse,
    latency: Duration,
    show_token: bool,
) -> serde_json::Value {
    let timings: BTreeMap<String, f64> = stages(claimed)
        .into_iter()
        .map(|(name, time)| (format!("{name}_seconds"), time))
        .collect();
    let mut value = serde_json::json!({
        "claim_id": claim_id,
        "sandbox_id": claimed.sandbox_id,
        "pool": pool,
        "generation": claimed.generation,
        "source": source_word(claimed.source()),
        "expires_at": output::time(claimed.expires_at.as_ref()).map(output::rfc3339),
        "endpoints": claimed.endpoints.iter()
            .map(|e| serde_json::json!({ "name": e.name, "address": e.address }))
            .collect::<Vec<_>>(),
        "latency_seconds": latency.as_secs_f64(),
        "timings": timings,
    });
    if show_token {
        value["access_token"] = claimed.access_token.clone().into();
    }
    value
}
