//! Policies for templates: may sandboxes of a pool be made? Checks of hearth's own, and what the cluster's admission said
//! of the template as a Pod. Decided when a pool is declared, never on the claim path.
//!
//! | a pool is held, and gets no further sandbox, when | and then |
//! |---|---|
//! | its template does not pass a check that is enforced | SetPools refuses it; a WarmPool's is declared and held |
//! | the cluster denies its template, and that is enforced | claims that need a new sandbox hear why |
//! | the cluster has not said yet, and that is enforced | the same, with a time to come back |
//!
//! What there is of a held pool stays: claims live on, and members are handed out.

use super::event::Notice;
use super::ids::{PoolName, RequestId};
use super::limits::RETRY_MS;
use super::network::NetworkMode;
use super::node::Node;
use super::out::Out;
use super::record::Op;
use super::refusal::{Refusal, bounded};
use super::spec::{Judgement, PoolSpec, Verdict};
use super::view::Answer;
use serde::Serialize;
use std::collections::BTreeMap;

/// What comes of a policy that is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// It is not looked at.
    #[default]
    Off,
    /// It is told and counted.
    Audit,
    /// The pool gets no sandboxes.
    Enforce,
}

/// A check of hearth's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Check {
    /// The CPU has a limit; memory, processes, disk and descriptors always have.
    LimitsSet,
    /// The runtime handler gives its sandboxes a kernel of their own. A template has no other way to ask for privileges.
    NotPrivileged,
    /// The network policy says what may be reached: none, or an allowlist.
    NetworkPolicySet,
    /// The tenant's namespace is among those that may have pools.
    NamespaceAllowed,
    /// The image is among those that may be used.
    ImageAllowed,
    /// The image is named by its digest.
    DigestPinned,
}

impl Check {
    /// All, in the order in which they are told.
    pub const ALL: [Self; 6] = [
        Self::LimitsSet,
        Self::NotPrivileged,
        Self::NetworkPolicySet,
        Self::NamespaceAllowed,
        Self::ImageAllowed,
        Self::DigestPinned,
    ];

    /// As in the configuration, in metrics and in refusals.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LimitsSet => "limits_set",
            Self::NotPrivileged => "not_privileged",
            Self::NetworkPolicySet => "network_policy_set",
            Self::NamespaceAllowed => "namespace_allowed",
            Self::ImageAllowed => "image_allowed",
            Self::DigestPinned => "digest_pinned",
        }
    }

    /// The field of a pool that it looks at, as the API spells it.
    #[must_use]
    pub fn field(self) -> &'static str {
        match self {
            Self::LimitsSet => "template.resources.cpu_millis",
            Self::NotPrivileged => "template.runtime_handler",
            Self::NetworkPolicySet => "template.network_policy.mode",
            Self::NamespaceAllowed => "metadata.namespace",
            Self::ImageAllowed | Self::DigestPinned => "template.image",
        }
    }
}

/// A check that a template does not pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which.
    pub check: Check,
    /// It holds the pool; else it is only told.
    pub enforced: bool,
    /// What is wrong and what would be right. Bounded.
    pub detail: String,
}

/// What templates must keep to. The default: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// What comes of each check; left out: off.
    pub modes: BTreeMap<Check, Mode>,
    /// For [`Check::NamespaceAllowed`]: names, or beginnings of names that end in `*`.
    pub namespaces: Vec<String>,
    /// For [`Check::ImageAllowed`]: references, or beginnings of references that end in `*`.
    pub images: Vec<String>,
    /// What comes of the cluster's denial.
    pub cluster: Mode,
    /// The namespace of pools that SetPools declares; `None`: they have none, and the cluster is not asked about them.
    pub tenant: Option<String>,
}

impl Rules {
    /// The tenant's namespace of a pool.
    #[must_use]
    pub fn namespace_of<'a>(&'a self, spec: &'a PoolSpec) -> Option<&'a str> {
        let of_object = spec.warm_pool.as_ref();
        let of_object = of_object.map(|object| object.namespace.as_str());
        of_object.or(self.tenant.as_deref())
    }

    /// Checks that the template does not pass and that are not off, in the order of [`Check::ALL`].
    #[must_use]
    pub fn findings(&self, spec: &PoolSpec) -> Vec<Finding> {
        let mode = |check: &Check| self.modes.get(check).copied().unwrap_or_default();
        let looked_at = Check::ALL.into_iter().filter(|it| mode(it) != Mode::Off);
        let found = looked_at.filter_map(|check| {
            let detail = bounded(self.objection(check, spec)?);
            let enforced = mode(&check) == Mode::Enforce;
            Some(Finding {
                check,
                enforced,
                detail,
            })
        });
        found.collect()
    }

    fn objection(&self, check: Check, spec: &PoolSpec) -> Option<String> {
        let template = &spec.template;
        match check {
            Check::LimitsSet => {
                let unlimited = template.resources.cpu_millis == 0;
                unlimited.then(|| "is unlimited: give it a number of thousandths of a core".into())
            }
            Check::NotPrivileged => {
                let handler = &template.runtime_handler;
                let own_kernel = handler == "gvisor" || handler.starts_with("kata");
                (!own_kernel).then(|| {
                    format!("{handler} runs on the node's own kernel: take gvisor or one of kata")
                })
            }
            Check::NetworkPolicySet => {
                let open = template.network_policy.mode == NetworkMode::Internet;
                open.then(|| "reaches the whole internet: take an allowlist, or none".into())
            }
            Check::NamespaceAllowed => {
                let namespace = self.namespace_of(spec)?;
                let allowed = self.namespaces.iter().any(|it| matches(it, namespace));
                (!allowed).then(|| {
                    format!("namespace {namespace} may have no pools: policy.namespaces lists those that may")
                })
            }
            Check::ImageAllowed => {
                let allowed = self.images.iter().any(|it| matches(it, &template.image));
                (!allowed).then(|| {
                    format!(
                        "image {} is not among those that policy.images allows",
                        template.image
                    )
                })
            }
            Check::DigestPinned => (!is_pinned(&template.image)).then(|| {
                format!(
                    "image {} can be another one tomorrow: name it by digest, as NAME@sha256:…",
                    template.image
                )
            }),
        }
    }

    /// Why no sandbox may be made for a pool.
    pub(super) fn hold(&self, spec: &PoolSpec, verdict: Option<&Verdict>) -> Option<Refusal> {
        let pool = spec.name.to_string();
        let mut findings = self.findings(spec).into_iter();
        if let Some(finding) = findings.find(|it| it.enforced) {
            return Some(finding.refuses(pool));
        }
        if self.cluster != Mode::Enforce || self.namespace_of(spec).is_none() {
            return None;
        }
        match verdict {
            Some(Verdict::Allowed) => None,
            Some(Verdict::Denied { rule, message }) => Some(Refusal::PolicyRefused {
                pool,
                rule: rule.clone(),
                field: "template".into(),
                detail: message.clone(),
            }),
            None => {
                let retry_ms = RETRY_MS;
                Some(Refusal::PolicyPending { pool, retry_ms })
            }
        }
    }
}

impl Finding {
    pub(super) fn refuses(self, pool: String) -> Refusal {
        Refusal::PolicyRefused {
            pool,
            rule: self.check.name().to_owned(),
            field: self.check.field().to_owned(),
            detail: self.detail,
        }
    }
}

/// `a/*` fits all that begins with `a/`; without the star it fits itself.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => text.starts_with(beginning),
        None => pattern == text,
    }
}

/// `NAME@sha256:` and 64 hexadecimal digits.
fn is_pinned(image: &str) -> bool {
    let digest = image.rsplit_once("@sha256:").map(|(_, digest)| digest);
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    digest.is_some_and(|digest| digest.len() == 64 && digest.bytes().all(hex))
}

impl Node {
    /// The same node under these rules. Called once, right after [`Node::recover`]: rules are configuration, not durable.
    #[must_use]
    pub fn under(mut self, rules: Rules) -> Self {
        for pool in self.pools.values_mut() {
            pool.held = rules.hold(&pool.spec, pool.verdict.as_ref());
        }
        self.rules = rules;
        self
    }

    /// `Call::JudgePools`.
    pub(super) fn judge_pools(
        &mut self,
        request: RequestId,
        judged: Vec<Judgement>,
        out: &mut Out<'_>,
    ) {
        if let Err(refusal) = self.conditions.staying() {
            return out.refuse(request, refusal);
        }
        let mut changed = false;
        for judgement in judged {
            changed |= self.judged(judgement, out);
        }
        if changed {
            out.persist(Op::PutPools(self.pool_set()));
            self.pools_changed = true;
        }
        let generation = self.pools_generation;
        out.answer(request, Answer::PoolsSet { generation }, out.ticket());
    }

    fn judged(&mut self, judgement: Judgement, out: &mut Out<'_>) -> bool {
        let Some(pool) = self.pools.get_mut(&judgement.pool) else {
            return false;
        };
        let verdict = match judgement.verdict {
            Verdict::Allowed => Verdict::Allowed,
            Verdict::Denied { rule, message } => Verdict::Denied {
                rule: bounded(rule),
                message: bounded(message),
            },
        };
        if pool.spec.template != *judgement.template || pool.verdict.as_ref() == Some(&verdict) {
            return false;
        }
        pool.verdict = Some(verdict.clone());
        out.notice(Notice::Judged(judgement.pool.clone(), verdict));
        self.hold(&judgement.pool, out);
        true
    }

    /// Whether a pool is held, decided anew. Cold claims that wait for a creation that will not come are told; those with a
    /// creation under way get its sandbox.
    pub(super) fn hold(&mut self, name: &PoolName, out: &mut Out<'_>) {
        let Some(pool) = self.pools.get_mut(name) else {
            return;
        };
        pool.held = self.rules.hold(&pool.spec, pool.verdict.as_ref());
        if let Some(Refusal::PolicyRefused { .. }) = pool.held {
            self.refuse_cold(name, out);
        }
    }
}
