//! `[policy]` and `[kubernetes]` as the machine's rules.

use crate::config::{Config, PolicyMode};
use crate::machine::admission::{Check, Mode, Rules};

/// What templates must keep to.
pub(super) fn rules(config: &Config) -> Rules {
    let policy = &config.policy;
    let of = |check: Check| match check {
        Check::LimitsSet => policy.limits_set,
        Check::NotPrivileged => policy.not_privileged,
        Check::NetworkPolicySet => policy.network_policy_set,
        Check::NamespaceAllowed => policy.namespace_allowed,
        Check::ImageAllowed => policy.image_allowed,
        Check::DigestPinned => policy.digest_pinned,
    };
    let tenant = &config.kubernetes.tenant_namespace;
    Rules {
        modes: Check::ALL.map(|check| (check, mode(of(check)))).into(),
        namespaces: policy.namespaces.clone(),
        images: policy.images.clone(),
        cluster: mode(config.kubernetes.admission),
        tenant: (!tenant.is_empty()).then(|| tenant.clone()),
    }
}

fn mode(mode: PolicyMode) -> Mode {
    match mode {
        PolicyMode::Off => Mode::Off,
        PolicyMode::Audit => Mode::Audit,
        PolicyMode::Enforce => Mode::Enforce,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The configuration names the checks as the machine does.
    #[test]
    fn every_check_has_its_key() {
        let keys = serde_json::to_value(Config::default()).unwrap();
        for check in Check::ALL {
            assert_eq!(keys["policy"][check.name()], "off", "{}", check.name());
        }
    }
}
