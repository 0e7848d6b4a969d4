//! Network policies as people write them, and `net`: what a sandbox may reach, and what was denied.
//!
//! A rule is TARGET[@[tcp|udp][/PORTS]]: `example.com`, `*.example.com@tcp/443`, `192.0.2.0/24@udp/53,8000-8080`,
//! `10.0.0.1@443`. hearthd has the last word on what is well formed.

use crate::App;
use crate::failure::Failure;
use crate::output::{self, Format};
use hearth::api::{
    GetNetworkRequest, GetNetworkResponse, NetworkMode, NetworkPolicy, NetworkRule, PortRange,
    Protocol,
};
use serde::{Deserialize, Serialize};

/// A template's policy in a file: a mode's name, or all of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PolicyEntry {
    /// "none", "internet", "allowlist".
    Word(Mode),
    /// With rules.
    Rules(PolicyRules),
}

/// A mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Loopback only.
    #[default]
    None,
    /// Public addresses.
    Internet,
    /// What is listed.
    Allowlist,
}

/// A policy with rules.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRules {
    mode: Mode,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    allow: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    deny: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    publish: Vec<u32>,
}

impl Default for PolicyEntry {
    fn default() -> Self {
        PolicyEntry::Word(Mode::None)
    }
}

impl From<Mode> for NetworkMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::None => NetworkMode::None,
            Mode::Internet => NetworkMode::Internet,
            Mode::Allowlist => NetworkMode::Allowlist,
        }
    }
}

fn mode(policy: &NetworkPolicy) -> Mode {
    match policy.mode() {
        NetworkMode::Unspecified | NetworkMode::None => Mode::None,
        NetworkMode::Internet => Mode::Internet,
        NetworkMode::Allowlist => Mode::Allowlist,
    }
}

impl PolicyEntry {
    /// For the API. Rules that can't be read go as they are: hearthd says what is wrong with them, and where.
    pub fn to_api(&self) -> NetworkPolicy {
        let rules = |texts: &[String]| {
            let read = |text: &String| rule(text).unwrap_or_else(|_| as_it_is(text));
            texts.iter().map(read).collect()
        };
        match self {
            PolicyEntry::Word(word) => NetworkPolicy {
                mode: NetworkMode::from(*word).into(),
                ..NetworkPolicy::default()
            },
            PolicyEntry::Rules(entry) => NetworkPolicy {
                mode: NetworkMode::from(entry.mode).into(),
                allow: rules(&entry.allow),
                deny: rules(&entry.deny),
                publish: entry.publish.clone(),
            },
        }
    }
}

impl From<&NetworkPolicy> for PolicyEntry {
    fn from(policy: &NetworkPolicy) -> Self {
        let texts = |rules: &[NetworkRule]| rules.iter().map(rule_text).collect::<Vec<_>>();
        let entry = PolicyRules {
            mode: mode(policy),
            allow: texts(&policy.allow),
            deny: texts(&policy.deny),
            publish: policy.publish.clone(),
        };
        match (&entry.allow[..], &entry.deny[..], &entry.publish[..]) {
            ([], [], []) => PolicyEntry::Word(entry.mode),
            _ => PolicyEntry::Rules(entry),
        }
    }
}

/// The same for policies that mean the same, as far as the text of their rules tells.
pub fn normal(policy: Option<NetworkPolicy>) -> NetworkPolicy {
    let mut policy = policy.unwrap_or_default();
    policy.mode = NetworkMode::from(mode(&policy)).into();
    for rules in [&mut policy.allow, &mut policy.deny] {
        rules.sort_by_cached_key(rule_text);
        rules.dedup();
    }
    policy.publish.sort_unstable();
    policy.publish.dedup();
    policy
}

fn as_it_is(text: &str) -> NetworkRule {
    NetworkRule {
        name: text.to_owned(),
        ..NetworkRule::default()
    }
}

/// TARGET[@[tcp|udp][/PORTS]]
pub fn rule(text: &str) -> Result<NetworkRule, String> {
    let (target, more) = match text.split_once('@') {
        Some((target, more)) => (target, Some(more)),
        None => (text, None),
    };
    if target.is_empty() {
        return Err(format!("{text:?} names no target"));
    }
    let (protocol, ports) = match more {
        None => (Protocol::Unspecified, ""),
        Some(more) => match more.split_once('/') {
            Some((word, ports)) => (protocol(word)?, ports),
            None if more.starts_with(|c: char| c.is_ascii_digit()) => (Protocol::Unspecified, more),
            None => (protocol(more)?, ""),
        },
    };
    let ports = ports.split(',').filter(|part| !part.is_empty());
    let ports: Result<Vec<_>, String> = ports.map(range).collect();
    let address = target.split('/').next().unwrap_or_default();
    let is_address = address.parse::<std::net::IpAddr>().is_ok();
    let (cidr, name) = match (is_address, target.contains('/')) {
        (true, true) => (target.to_owned(), String::new()),
        (true, false) if target.contains(':') => (format!("{target}/128"), String::new()),
        (true, false) => (format!("{target}/32"), String::new()),
        (false, _) => (String::new(), target.to_ascii_lowercase()),
    };
    Ok(NetworkRule {
        cidr,
        name,
        protocol: protocol.into(),
        ports: ports?,
    })
}

fn protocol(word: &str) -> Result<Protocol, String> {
    match word {
        "" => Ok(Protocol::Unspecified),
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        other => Err(format!("{other:?} is neither tcp nor udp")),
    }
}

/// "443", "8000-8080"
fn range(text: &str) -> Result<PortRange, String> {
    let port = |text: &str| {
        let number = text.parse::<u16>().ok().filter(|port| *port > 0);
        number
            .map(u32::from)
            .ok_or_else(|| format!("{text:?} is no port of 1 to 65535"))
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Ok(PortRange {
        first: port(first)?,
        last: port(last)?,
    })
}

/// As [`rule`] reads it.
pub fn rule_text(rule: &NetworkRule) -> String {
    let target = if rule.cidr.is_empty() {
        &rule.name
    } else {
        &rule.cidr
    };
    let protocol = match rule.protocol() {
        Protocol::Unspecified => "",
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let ports = rule.ports.iter().map(|ports| match ports.last {
        last if last == 0 || last == ports.first => ports.first.to_string(),
        last => format!("{}-{last}", ports.first),
    });
    let ports = ports.collect::<Vec<_>>().join(",");
    match (protocol, ports.as_str()) {
        ("", "") => target.clone(),
        ("", ports) => format!("{target}@{ports}"),
        (protocol, "") => format!("{target}@{protocol}"),
        (protocol, ports) => format!("{target}@{protocol}/{ports}"),
    }
}

/// One `--network`.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// A mode.
    Mode(Mode),
    /// What is allowed; `None`: an allowlist without rules.
    Allow(Option<NetworkRule>),
    /// What is not.
    Deny(NetworkRule),
    /// A port that others may open.
    Publish(u32),
}

/// `--network`: none, internet, allow[:RULE], deny:RULE, publish:PORT
pub fn part(text: &str) -> Result<Part, String> {
    match text.split_once(':') {
        None if text == "none" => Ok(Part::Mode(Mode::None)),
        None if text == "internet" => Ok(Part::Mode(Mode::Internet)),
        None if text == "allow" || text == "allowlist" => Ok(Part::Allow(None)),
        Some(("allow", text)) => rule(text).map(|rule| Part::Allow(Some(rule))),
        Some(("deny", text)) => rule(text).map(Part::Deny),
        Some(("publish", text)) => range(text).map(|port| Part::Publish(port.first)),
        _ => Err("not none, internet, allow[:RULE], deny:RULE or publish:PORT; for example allow:example.com@tcp/443".into()),
    }
}

/// The policy that several `--network` mean together; `None`: none was given.
pub fn policy(parts: Vec<Part>) -> Result<Option<NetworkPolicy>, Failure> {
    if parts.is_empty() {
        return Ok(None);
    }
    let mut policy = NetworkPolicy::default();
    let mut modes = Vec::new();
    for part in parts {
        match part {
            Part::Mode(mode) => modes.push(mode),
            Part::Allow(rule) => {
                modes.push(Mode::Allowlist);
                policy.allow.extend(rule);
            }
            Part::Deny(rule) => policy.deny.push(rule),
            Part::Publish(port) => policy.publish.push(port),
        }
    }
    modes.dedup();
    let [mode] = modes[..] else {
        return Err(Failure::usage(
            "--network needs exactly one of none, internet and allow:…",
        ));
    };
    policy.mode = NetworkMode::from(mode).into();
    Ok(Some(policy))
}

/// One line: "internet, not 192.0.2.0/24; open to others: 8000".
pub fn policy_text(policy: Option<&NetworkPolicy>) -> String {
    let Some(policy) = policy else {
        return "none".into();
    };
    let list = |rules: &[NetworkRule]| {
        let texts: Vec<_> = rules.iter().map(rule_text).collect();
        texts.join(", ")
    };
    let mut text = match mode(policy) {
        Mode::None => "none".to_owned(),
        Mode::Internet => "internet".to_owned(),
        Mode::Allowlist if policy.allow.is_empty() => "allowlist: nothing".to_owned(),
        Mode::Allowlist => format!("allowlist: {}", list(&policy.allow)),
    };
    if !policy.deny.is_empty() {
        text.push_str(&format!("; never: {}", list(&policy.deny)));
    }
    if !policy.publish.is_empty() {
        let ports: Vec<_> = policy.publish.iter().map(ToString::to_string).collect();
        text.push_str(&format!("; open to others: {}", ports.join(", ")));
    }
    text
}

/// `net`
pub async fn net(app: &App, name: &str) -> Result<(), Failure> {
    let link = app.link().await?;
    let claim_id = match link.resolve(name).await {
        Ok(claim) => claim,
        // Perhaps a sandbox's id.
        Err(failure) => {
            let claims = link.list("").await?;
            let owner = claims.into_iter().find(|claim| claim.sandbox_id == name);
            owner.map(|claim| claim.claim_id).ok_or(failure)?
        }
    };
    let request = link.call(GetNetworkRequest {
        claim_id: claim_id.clone(),
    });
    let network = link.sandboxes().get_network(request).await?.into_inner();
    output::print(&match app.format() {
        Format::Table => sheet(app, &claim_id, &network),
        Format::Name => format!("{claim_id}\n"),
        format => output::document(format, &value(&claim_id, &network))?,
    })
}

fn sheet(app: &App, claim_id: &str, network: &GetNetworkResponse) -> String {
    let or_none = |text: String| if text.is_empty() { "none".into() } else { text };
    let mut text = output::sheet(
        app.style,
        &[
            ("claim", claim_id.to_owned()),
            ("policy", policy_text(network.policy.as_ref())),
            ("interface", or_none(network.interface.clone())),
            ("addresses", or_none(network.addresses.join(", "))),
            ("denied", format!("{} packets", network.denied_packets)),
        ],
    );
    if !network.pinned.is_empty() {
        let rows = network.pinned.iter().map(|pinned| {
            let left = output::duration_seconds(pinned.remaining.as_ref());
            vec![
                pinned.name.clone().into(),
                pinned.address.clone().into(),
                left.map(output::seconds).unwrap_or_default().into(),
            ]
        });
        let headers = ["OPEN NAME", "ADDRESS", "FOR"];
        text.push_str(&format!(
            "\n{}",
            output::table(app.style, &headers, rows.collect())
        ));
    }
    if !network.denied.is_empty() {
        let rows = network.denied.iter().map(|denied| {
            vec![
                denied.address.clone().into(),
                denied.protocol.clone().into(),
                denied.port.to_string().into(),
                denied.packets.to_string().into(),
            ]
        });
        let headers = ["DENIED", "PROTOCOL", "PORT", "PACKETS"];
        text.push_str(&format!(
            "\n{}",
            output::table(app.style, &headers, rows.collect())
        ));
    }
    text
}

fn value(claim_id: &str, network: &GetNetworkResponse) -> serde_json::Value {
    let policy = network.policy.as_ref().map(PolicyEntry::from);
    let pinned = network.pinned.iter().map(|pinned| {
        serde_json::json!({
            "name": pinned.name,
            "address": pinned.address,
            "remaining_seconds": output::duration_seconds(pinned.remaining.as_ref()),
        })
    });
    let denied = network.denied.iter().map(|denied| {
        serde_json::json!({
            "protocol": denied.protocol,
            "address": denied.address,
            "port": denied.port,
            "packets": denied.packets,
        })
    });
    serde_json::json!({
        "claim_id": claim_id,
        "policy": policy,
        "interface": network.interface,
        "addresses": network.addresses,
        "pinned": pinned.collect::<Vec<_>>(),
        "denied_packets": network.denied_packets,
        "denied": denied.collect::<Vec<_>>(),
    })
}
