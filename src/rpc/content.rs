//! The digest of a claim's content: equal digests mean equal content, and no secret is stored to compare them.

use super::check::Claim;
use super::key::{FieldDigest, NodeKey};
use crate::api;
use crate::machine::network::{NetworkMode, NetworkPolicy, Protocol, Target};
use crate::machine::spec::{ContentDigest, OnDataLoss, OnEmpty};

/// Keyed digests of the fields of a claim, in the order of the proto, without epoch and deadlines. Defaults are filled
/// in before, so that leaving a field out and naming its default are the same content.
#[must_use]
pub fn digest(key: &NodeKey, claim: &Claim) -> ContentDigest {
    let inside = &claim.personalization;
    let field = |name: &str, fill: &dyn Fn(&mut FieldDigest)| {
        let mut digest = key.field(claim.claim_id, name);
        fill(&mut digest);
        (name.to_owned(), digest.finish())
    };
    let mut fields = vec![
        field("pool", &|d| d.bytes(claim.pool.as_str().as_bytes())),
        field("holder", &|d| {
            d.bytes(claim.holder.namespace.as_bytes());
            d.bytes(claim.holder.name.as_bytes());
            d.bytes(claim.holder.uid.as_bytes());
        }),
        field("ttl", &|d| d.number(claim.ttl_ms)),
        field("personalization.env", &|d| {
            d.number(inside.env.len() as u64);
            for (name, value) in &inside.env {
                d.bytes(name.as_bytes());
                d.bytes(value.as_bytes());
            }
        }),
        field("personalization.files", &|d| {
            d.number(inside.files.len() as u64);
            for (path, content, mode) in &inside.files {
                d.bytes(path.as_bytes());
                d.bytes(content);
                d.number(u64::from(*mode));
            }
        }),
        field("personalization.secrets", &|d| {
            d.number(inside.secrets.len() as u64);
            for (name, value) in &inside.secrets {
                d.bytes(name.as_bytes());
                d.bytes(value);
            }
        }),
        field("personalization.hostname", &|d| {
            d.bytes(inside.hostname.as_bytes())
        }),
        field("personalization.network_policy", &|d| {
            policy(d, claim.network.as_ref());
        }),
        field("on_empty", &|d| {
            d.bytes(match claim.on_empty {
                OnEmpty::Fail => b"fail",
                // Not the timeout: a retry has less time left.
                OnEmpty::Wait { .. } => b"wait",
                OnEmpty::Cold => b"cold",
            });
        }),
    ];
    // Only where it is said: claims of before have no such field.
    if let Some(on_data_loss) = claim.on_data_loss {
        fields.push(field("on_data_loss", &|d| {
            d.bytes(match on_data_loss {
                OnDataLoss::Fail => b"fail",
                OnDataLoss::Cold => b"cold",
            });
        }));
    }
    ContentDigest { fields }
}

/// In the form that rpc/check gives it: policies that mean the same are the same.
fn policy(digest: &mut FieldDigest, policy: Option<&NetworkPolicy>) {
    let mode = match policy.map(|policy| policy.mode) {
        None => api::NetworkMode::Unspecified,
        Some(NetworkMode::None) => api::NetworkMode::None,
        Some(NetworkMode::Internet) => api::NetworkMode::Internet,
        Some(NetworkMode::Allowlist) => api::NetworkMode::Allowlist,
    };
    // As it was before there were rules.
    digest.bytes(mode.as_str_name().as_bytes());
    let Some(policy) = policy.filter(|policy| policy.needs_interface()) else {
        return;
    };
    for rules in [&policy.allow, &policy.deny] {
        digest.number(rules.len() as u64);
        for rule in rules {
            match &rule.to {
                Target::Cidr(cidr) => {
                    digest.bytes(cidr.address.to_string().as_bytes());
                    digest.number(u64::from(cidr.length));
                }
                Target::Name(name) => digest.bytes(name.as_bytes()),
            }
            digest.bytes(match rule.protocol {
                None => b"any",
                Some(Protocol::Tcp) => b"tcp",
                Some(Protocol::Udp) => b"udp",
            });
            digest.number(rule.ports.len() as u64);
            for ports in &rule.ports {
                digest.number(u64::from(ports.first));
                digest.number(u64::from(ports.last));
            }
        }
    }
    digest.number(policy.publish.len() as u64);
    for port in &policy.publish {
        digest.number(u64::from(*port));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ClaimRequest, File, Holder, Personalization, Secret};
    use crate::rpc::check;

    fn request() -> ClaimRequest {
        ClaimRequest {
            claim_id: "7f9c24e8-3b0c-4f6b-9f0e-2f5d8c1a7e11".into(),
            pool: "python".into(),
            holder: Some(Holder {
                namespace: "ns".into(),
                name: "me".into(),
                uid: "1".into(),
            }),
            epoch: 1,
            personalization: Some(Personalization {
                env: [("A".to_owned(), "1".to_owned())].into(),
                files: vec![File {
                    path: "/a".into(),
                    content: "x".into(),
                    mode: 0,
                }],
                secrets: vec![Secret {
                    name: "k".into(),
                    value: "hunter2".into(),
                }],
                hostname: "box".into(),
                network_policy: None,
            }),
            ..Default::default()
        }
    }

    fn of(change: impl FnOnce(&mut ClaimRequest)) -> ContentDigest {
        let mut request = request();
        change(&mut request);
        digest(&NodeKey::new(&[3; 32]), &check::claim(request).unwrap())
    }

    fn allowlist(cidr: &str) -> crate::api::NetworkPolicy {
        crate::api::NetworkPolicy {
            mode: crate::api::NetworkMode::Allowlist.into(),
            allow: vec![crate::api::NetworkRule {
                cidr: cidr.into(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn inside(request: &mut ClaimRequest) -> &mut Personalization {
        request.personalization.as_mut().unwrap()
    }

    #[test]
    fn the_first_field_that_differs_is_named() {
        type Change = fn(&mut ClaimRequest);
        let changes: [(&str, Change); 13] = [
            ("pool", |r| r.pool = "other".into()),
            ("holder", |r| r.holder = None),
            ("ttl", |r| {
                r.ttl = Some(prost_types::Duration {
                    seconds: 1,
                    nanos: 0,
                })
            }),
            ("personalization.env", |r| {
                drop(inside(r).env.insert("A".into(), "2".into()))
            }),
            ("personalization.files", |r| inside(r).files[0].mode = 0o600),
            ("personalization.files", |r| {
                inside(r).files[0].content = "y".into()
            }),
            ("personalization.secrets", |r| {
                inside(r).secrets[0].value = "hunter3".into()
            }),
            ("personalization.secrets", |r| inside(r).secrets.clear()),
            ("personalization.hostname", |r| inside(r).hostname.clear()),
            ("personalization.network_policy", |r| {
                inside(r).network_policy = Some(crate::api::NetworkPolicy {
                    mode: 1,
                    ..Default::default()
                });
            }),
            ("personalization.network_policy", |r| {
                inside(r).network_policy = Some(allowlist("192.0.2.0/24"));
            }),
            ("on_empty", |r| {
                r.on_empty = crate::api::OnEmpty::Cold.into()
            }),
            ("on_data_loss", |r| {
                r.on_data_loss = crate::api::OnDataLoss::Fail.into()
            }),
        ];
        let base = of(|_| ());
        for (name, change) in changes {
            assert_eq!(base.first_difference(&of(change)), Some(name));
        }
    }

    #[test]
    fn epoch_deadline_and_spelled_out_defaults_are_no_difference() {
        let base = of(|_| ());
        assert_eq!(base, of(|r| r.epoch = 9));
        assert_eq!(base, of(|r| r.on_empty = crate::api::OnEmpty::Fail.into()));
        assert_eq!(base, of(|r| r.ttl = Some(prost_types::Duration::default())));
        assert_eq!(base, of(|r| inside(r).files[0].mode = 0o644));
        assert_eq!(base, of(|r| r.claim_id = r.claim_id.to_uppercase()));
        let unspecified = |r: &mut ClaimRequest| {
            inside(r).network_policy = Some(crate::api::NetworkPolicy::default());
        };
        assert_eq!(base, of(unspecified));
        let to = |cidr: &'static str| of(move |r| inside(r).network_policy = Some(allowlist(cidr)));
        assert_eq!(to("192.0.2.77/24"), to("192.0.2.0/24"));
        assert_eq!(
            to("192.0.2.0/24").first_difference(&to("192.0.2.0/25")),
            Some("personalization.network_policy")
        );
        let waits = |seconds| {
            of(move |r| {
                r.on_empty = crate::api::OnEmpty::Wait.into();
                r.wait_timeout = Some(prost_types::Duration { seconds, nanos: 0 });
            })
        };
        assert_eq!(waits(3), waits(60));
    }

    #[test]
    fn digests_of_two_claims_or_nodes_cannot_be_compared() {
        let base = of(|_| ());
        let other = of(|r| r.claim_id = "7f9c24e8-3b0c-4f6b-9f0e-2f5d8c1a7e12".into());
        let pairs = base.fields.iter().zip(&other.fields);
        assert!(pairs.clone().count() == 9 && pairs.clone().all(|(a, b)| a.0 == b.0 && a.1 != b.1));
        let elsewhere = digest(&NodeKey::new(&[4; 32]), &check::claim(request()).unwrap());
        assert!(
            base.fields
                .iter()
                .zip(&elsewhere.fields)
                .all(|(a, b)| a.1 != b.1)
        );
    }
}
