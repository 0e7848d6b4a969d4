//! Whose a token is and what its owner may do, by the cluster's own word: TokenReview and SubjectAccessReview. What is asked
//! how often is `identity`'s to decide.

use super::client::{CallError, Kube};
use crate::identity::{Authority, Away, Deed, GROUP, Principal, Token};
use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;

/// The resource whose objects have names that a Role may list: the nodes.
const NODES: &str = "nodes";

/// The API server as an authority.
pub struct Reviews {
    kube: Kube,
}

impl Reviews {
    /// Asks by these means.
    #[must_use]
    pub fn new(kube: Kube) -> Self {
        Self { kube }
    }
}

#[async_trait]
impl Authority for Reviews {
    async fn who(&self, token: &Token, audiences: &[String]) -> Result<Option<Principal>, Away> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(audiences.to_vec()),
                token: Some(token.expose().to_owned()),
            },
            ..TokenReview::default()
        };
        let (api, params) = (self.kube.all::<TokenReview>(), PostParams::default());
        let create = api.create(&params, &review);
        let answer = self.kube.call("tokenreviews.create", create).await;
        let status = answer.map_err(|error| away(&error))?.status;
        Ok(status.and_then(|status| vouched(status, audiences)))
    }

    async fn may(&self, who: &Principal, deed: Deed) -> Result<bool, Away> {
        let review = SubjectAccessReview {
            spec: asked(who, deed, &self.kube.namespace, &self.kube.node),
            ..SubjectAccessReview::default()
        };
        let api = self.kube.all::<SubjectAccessReview>();
        let params = PostParams::default();
        let create = api.create(&params, &review);
        let answer = self.kube.call("subjectaccessreviews.create", create).await;
        let status = answer.map_err(|error| away(&error))?.status;
        Ok(status.is_some_and(|status| status.allowed && status.denied != Some(true)))
    }
}

/// The API server does not let hearthd ask, or is away: either says nothing of the caller.
fn away(error: &CallError) -> Away {
    Away(error.to_string())
}

/// Whom it vouches for. An API server that knows no audiences would vouch for tokens that were made for others.
fn vouched(status: TokenReviewStatus, audiences: &[String]) -> Option<Principal> {
    let ours = |told: &String| audiences.contains(told);
    let fits = status.audiences.unwrap_or_default().iter().any(ours);
    if status.authenticated != Some(true) || !fits {
        return None;
    }
    let user = status.user?;
    Principal::new(
        user.username.unwrap_or_default(),
        user.uid.unwrap_or_default(),
        user.groups.unwrap_or_default(),
        user.extra.unwrap_or_default(),
    )
}

/// In hearthd's own namespace, so that a Role there gives rights on this hearth; a ClusterRole does everywhere. Nodes are
/// named, so that a Role may be for some.
fn asked(who: &Principal, deed: Deed, namespace: &str, node: &str) -> SubjectAccessReviewSpec {
    let (resource, subresource) = match deed.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (deed.resource, None),
    };
    SubjectAccessReviewSpec {
        user: Some(who.user.clone()),
        uid: Some(who.uid.clone()),
        groups: Some(who.groups.clone()),
        extra: Some(who.extra.clone()),
        resource_attributes: Some(ResourceAttributes {
            group: Some(GROUP.to_owned()),
            verb: Some(deed.verb.to_owned()),
            resource: Some(resource.to_owned()),
            subresource,
            namespace: Some(namespace.to_owned()),
            name: (resource == NODES).then(|| node.to_owned()),
            ..ResourceAttributes::default()
        }),
        ..SubjectAccessReviewSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::authentication::v1::UserInfo;

    fn status(authenticated: bool, audiences: Option<&[&str]>) -> TokenReviewStatus {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        TokenReviewStatus {
            authenticated: Some(authenticated),
            audiences: audiences.map(words),
            error: None,
            user: Some(UserInfo {
                username: Some("system:serviceaccount:agents:allocator".into()),
                uid: Some("1".into()),
                groups: Some(words(&["system:serviceaccounts"])),
                extra: None,
            }),
        }
    }

    #[test]
    fn only_a_good_token_for_us_is_somebodys() {
        let vouched = |status| vouched(status, &["hearth".into(), "other".into()]);
        let who = vouched(status(true, Some(&["x", "other"]))).unwrap();
        assert_eq!(
            &**who.caller(),
            "k8s:system:serviceaccount:agents:allocator"
        );
        for wrong in [
            status(false, Some(&["hearth"])),
            status(true, Some(&["https://kubernetes.default.svc"])),
            // As of a server that knows no audiences.
            status(true, Some(&[])),
            status(true, None),
            TokenReviewStatus::default(),
            TokenReviewStatus {
                user: None,
                ..status(true, Some(&["hearth"]))
            },
            TokenReviewStatus {
                user: Some(UserInfo::default()),
                ..status(true, Some(&["hearth"]))
            },
        ] {
            assert_eq!(vouched(wrong), None);
        }
    }

    #[test]
    fn rights_are_asked_for_in_hearths_namespace() {
        let who = vouched(status(true, Some(&["hearth"])), &["hearth".into()]).unwrap();
        let told = |verb, resource| {
            let spec = asked(&who, Deed { verb, resource }, "hearth", "node-1");
            assert_eq!(spec.user.as_deref(), Some(who.user.as_str()));
            assert_eq!(spec.groups.as_ref(), Some(&who.groups));
            let told = spec.resource_attributes.unwrap();
            assert_eq!(told.group.as_deref(), Some("hearth.dev"));
            assert_eq!(told.namespace.as_deref(), Some("hearth"));
            let words = [told.verb, told.resource, told.subresource, told.name];
            words.map(Option::unwrap_or_default).join(" ")
        };
        assert_eq!(told("create", "claims"), "create claims  ");
        assert_eq!(told("create", "claims/exec"), "create claims exec ");
        assert_eq!(told("get", "nodes"), "get nodes  node-1");
        assert_eq!(told("update", "nodes/drain"), "update nodes drain node-1");
    }
}
