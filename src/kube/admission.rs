//! Admission parity: whether the cluster would admit a template as a Pod of the tenant's namespace. The Pod is created in a
//! server-side dry run, so the whole admission chain decides (Pod Security, ResourceQuota, LimitRange, policies, webhooks)
//! and nothing is stored.
//!
//! Asked when a template is new, and again from time to time, never on the claim path. What the answer means is the
//! machine's to say. This file is pure: the Pod, and what an answer says.

mod metrics;
mod run;

pub use metrics::Metrics;
pub use run::{Unasked, judge};

use crate::kube::CallError;
use crate::machine::spec::{PoolSpec, Verdict};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use std::collections::BTreeMap;

/// Label that tells policies whose template a Pod is.
const POOL_LABEL: &str = "hearth.dev/pool";

/// A sandbox of the pool, as the Pod that it would be. What a template can't ask for is said as what hearth does: no
/// privileges and none to be gained. Nothing is said of the user, which is the image's, nor of capabilities: within its own
/// kernel a sandbox has those that containers have by default.
fn pod(spec: &PoolSpec, namespace: &str) -> Result<Pod, serde_json::Error> {
    let template = &spec.template;
    let resources = &template.resources;
    let mut amounts = BTreeMap::from([
        ("memory", resources.memory_bytes.to_string()),
        ("ephemeral-storage", resources.disk_bytes.to_string()),
    ]);
    if resources.cpu_millis > 0 {
        amounts.insert("cpu", format!("{}m", resources.cpu_millis));
    }
    let env: Vec<_> = template
        .env
        .iter()
        .map(|(name, value)| json!({"name": name, "value": value}))
        .collect();
    let class = Some(&template.runtime_class).filter(|class| !class.is_empty());
    let working_dir = Some(&template.working_dir).filter(|dir| !dir.is_empty());
    serde_json::from_value(json!({
        "metadata": {
            "generateName": format!("{}-", spec.name),
            "namespace": namespace,
            "labels": {
                "app.kubernetes.io/managed-by": "hearth",
                POOL_LABEL: spec.name.as_str(),
            },
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "runtimeClassName": class,
            "containers": [{
                "name": "sandbox",
                "image": template.image,
                "command": template.command,
                "env": env,
                "workingDir": working_dir,
                "resources": {"limits": amounts, "requests": amounts},
                "securityContext": {"privileged": false, "allowPrivilegeEscalation": false},
            }],
        },
    }))
}

/// What came of asking. `Err`: the cluster gave no verdict, and why.
fn read(answer: Result<Pod, CallError>) -> Result<Verdict, String> {
    let error = match answer {
        Ok(_) => return Ok(Verdict::Allowed),
        Err(error) => error,
    };
    let CallError::Refused { code, detail, .. } = &error else {
        return Err(error.to_string());
    };
    match code {
        400 | 403 | 422 if !is_about_hearth(detail) => Ok(Verdict::Denied {
            rule: rule(detail),
            message: detail.clone(),
        }),
        _ => Err(error.to_string()),
    }
}

/// RBAC refuses hearthd itself: that says nothing of the template.
fn is_about_hearth(message: &str) -> bool {
    message.contains("cannot create resource") || message.contains("is being terminated")
}

/// Whose rule it is, from the words of the API server's own plugins.
pub(super) fn rule(message: &str) -> String {
    let between = |before: &str, after: char| {
        let (_, rest) = message.split_once(before)?;
        let (name, _) = rest.split_once(after)?;
        Some(name.to_owned()).filter(|name| !name.is_empty() && name.len() <= 253)
    };
    if let Some(policy) = between("ValidatingAdmissionPolicy '", '\'') {
        return format!("ValidatingAdmissionPolicy/{policy}");
    }
    if let Some(webhook) = between("admission webhook \"", '"') {
        return format!("webhook/{webhook}");
    }
    if let Some(profile) = between("violates PodSecurity \"", '"') {
        return format!("PodSecurity/{profile}");
    }
    for words in ["exceeded quota: ", "failed quota: "] {
        let name = message.split_once(words).map(|(_, rest)| rest);
        let end = |c: char| c == ',' || c == ':' || c == ' ';
        if let Some(name) = name.and_then(|rest| rest.split(end).next()) {
            return format!("ResourceQuota/{name}");
        }
    }
    let range = ["maximum ", "minimum ", "max limit to request ratio"];
    let about = ["usage per ", "per Container", "per Pod"];
    if range.iter().any(|it| message.contains(it)) && about.iter().any(|it| message.contains(it)) {
        return "LimitRange".to_owned();
    }
    "admission".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16, detail: &str) -> Result<Pod, CallError> {
        Err(CallError::Refused {
            what: "pods.dryrun",
            code,
            reason: String::new(),
            detail: detail.into(),
        })
    }

    fn rule_of(code: u16, detail: &str) -> String {
        match read(refused(code, detail)) {
            Ok(Verdict::Denied { rule, message }) => {
                assert_eq!(message, detail);
                rule
            }
            other => panic!("{other:?}"),
        }
    }

    /// The words of Kubernetes 1.36; tests/cluster_pools.rs asks the real one.
    #[test]
    fn a_denial_names_its_rule() {
        let quota = "pods \"p-x\" is forbidden: exceeded quota: small, requested: memory=1Gi, used: memory=0, limited: memory=512Mi";
        assert_eq!(rule_of(403, quota), "ResourceQuota/small");
        let quota =
            "pods \"p-x\" is forbidden: failed quota: small: must specify limits.cpu for: sandbox";
        assert_eq!(rule_of(403, quota), "ResourceQuota/small");
        let security = "pods \"p-x\" is forbidden: violates PodSecurity \"restricted:latest\": unrestricted capabilities";
        assert_eq!(rule_of(403, security), "PodSecurity/restricted:latest");
        let range = "pods \"p-x\" is forbidden: maximum memory usage per Container is 256Mi, but limit is 512Mi";
        assert_eq!(rule_of(403, range), "LimitRange");
        let policy = "pods \"p-x\" is forbidden: ValidatingAdmissionPolicy 'pinned' with binding 'b' denied request: name images by digest";
        assert_eq!(rule_of(422, policy), "ValidatingAdmissionPolicy/pinned");
        let webhook = "admission webhook \"validate.kyverno.svc-fail\" denied the request: no";
        assert_eq!(rule_of(400, webhook), "webhook/validate.kyverno.svc-fail");
        assert_eq!(
            rule_of(403, "pods \"p\" is forbidden: something new"),
            "admission"
        );
    }

    #[test]
    fn what_is_no_verdict_is_none() {
        let rbac = "pods is forbidden: User \"system:serviceaccount:hearth:hearth\" cannot create resource \"pods\" in API group \"\" in the namespace \"a\"";
        assert!(read(refused(403, rbac)).is_err());
        let ends = "pods \"p\" is forbidden: unable to create new content in namespace a because it is being terminated";
        assert!(read(refused(403, ends)).is_err());
        assert!(read(refused(404, "namespaces \"a\" not found")).is_err());
        assert!(read(refused(409, "conflict")).is_err());
        let away = CallError::Unavailable {
            what: "pods.dryrun",
            detail: "no answer".into(),
        };
        assert!(read(Err(away)).is_err());
        assert_eq!(read(Ok(Pod::default())), Ok(Verdict::Allowed));
    }
}
