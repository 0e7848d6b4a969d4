//! The network of sandboxes, built if the configuration asks for it. A node that cannot have one serves templates without.

use crate::config::{self, Config};
use crate::driver::NodeNetwork;
use crate::machine::ids::NodeTag;
use crate::machine::network::Cidr;
use crate::net::{LinuxNetwork, NetMetrics, NetSettings};
use prometheus::Registry;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tracing::{info, warn};

/// Where the node's own resolvers are told.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What was built: for the driver, and to be taken down at the end of `--dev`.
pub(super) struct Built {
    pub(super) network: NodeNetwork,
    /// With its background: spares, the resolver, a look at the rules.
    linux: Option<(LinuxNetwork, JoinHandle<()>)>,
}

/// The network, or why sandboxes get none. `elsewhere`: see `mountspace`.
pub(super) async fn build(
    config: &Config,
    tag: NodeTag,
    elsewhere: Option<PathBuf>,
    registry: &Registry,
) -> Result<Built, prometheus::Error> {
    let none = |why: String| Built {
        network: Err(why),
        linux: None,
    };
    if !config.network.enabled {
        let why = "network.enabled is false in hearthd's configuration";
        return Ok(none(why.to_owned()));
    }
    let metrics = NetMetrics::register(registry)?;
    let mut settings = settings(config, tag);
    settings.mounts = elsewhere;
    match LinuxNetwork::start(settings, metrics).await {
        Ok(linux) => {
            info!("sandboxes may have a network");
            Ok(Built {
                network: Ok(Arc::new(linux.clone())),
                linux: Some((linux.clone(), tokio::spawn(linux.run()))),
            })
        }
        Err(error) => {
            warn!(%error, "sandboxes get no network");
            Ok(none(error.to_string()))
        }
    }
}

impl Built {
    /// Takes everything away, with what sandboxes still use.
    pub(super) async fn take_down(&self) {
        let Some((linux, background)) = &self.linux else {
            return;
        };
        background.abort();
        if let Err(error) = linux.dismantle().await {
            warn!(%error, "something of the sandboxes' network is left");
        }
    }
}

fn settings(config: &Config, tag: NodeTag) -> NetSettings {
    let asked = &config.network;
    let mut settings = NetSettings::new(config.run_dir.clone(), tag);
    // What does not parse was refused when the configuration was read.
    let all = |texts: &[String]| texts.iter().filter_map(|text| cidr(text)).collect();
    settings.range4 = cidr(&asked.range4).unwrap_or(NetSettings::RANGE4);
    settings.range6 = cidr(&asked.range6).unwrap_or(NetSettings::RANGE6);
    settings.closed = all(&asked.cluster_ranges);
    settings.never = all(&asked.never);
    settings.uplinks = asked.uplinks.clone();
    settings.spares = asked.spares;
    settings.flows_per_sandbox = asked.flows_per_sandbox;
    settings.questions_per_second = asked.questions_per_second;
    let named = asked.resolvers.iter();
    settings.upstream = named.filter_map(|text| config::resolver(text)).collect();
    if settings.upstream.is_empty() {
        settings.upstream = match std::fs::read_to_string(RESOLV_CONF) {
            Ok(text) => nameservers(&text),
            Err(error) => {
                warn!(%error, "{RESOLV_CONF} can't be read: sandboxes resolve no names");
                Vec::new()
            }
        };
    }
    settings
}

fn cidr(text: &str) -> Option<Cidr> {
    let (address, length) = config::prefix(text)?;
    Some(Cidr { address, length })
}

/// The nameservers of a resolv.conf.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next())?
    });
    let addresses = lines.filter_map(|word| word.parse::<IpAddr>().ok());
    addresses
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_nodes_own_resolvers_are_read() {
        let text = "# made by hand\nsearch example.com\nnameserver 192.0.2.1\nnameserver fd00::1 # two\nnameserver junk\n";
        let found = nameservers(text);
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[fd00::1]:53"]);
    }

    #[test]
    fn the_defaults_are_the_adapters() {
        let tag = NodeTag(7);
        let config = Config::default();
        let ours = settings(&config, tag);
        let theirs = NetSettings::new(config.run_dir.clone(), tag);
        assert_eq!((ours.range4, ours.range6), (theirs.range4, theirs.range6));
        assert_eq!(ours.spares, theirs.spares);
        assert_eq!(ours.flows_per_sandbox, theirs.flows_per_sandbox);
        assert_eq!(ours.questions_per_second, theirs.questions_per_second);
    }
}
