//! Following objects of a kind: whoever looks sees all of them as they were last told, and keeps that while the API server
//! is away.

use super::backoff::Backoff;
use super::client::{Kube, chain};
use futures::StreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// The server ends a watch after this long, and one that is silent five seconds longer counts as dead.
const WATCH_SECONDS: u32 = 120;
/// No step of a watch, its first listing included, takes longer.
const SILENCE: Duration = Duration::from_secs(150);
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Objects listed in one call.
const PAGE: u32 = 100;

/// All objects there are, by name ("namespace/name" where they have one).
pub type Objects<K> = Arc<BTreeMap<String, K>>;
/// What is followed; `None`: nothing has been listed since the start.
pub type Followed<K> = watch::Receiver<Option<Objects<K>>>;

/// What to follow.
pub struct Follow<K> {
    /// Of which kind, and where.
    pub api: Api<K>,
    /// A label of metrics and logs, of a closed list.
    pub what: &'static str,
    /// A field selector; `None`: all.
    pub fields: Option<String>,
    /// A label selector; `None`: all.
    pub labels: Option<String>,
    /// Objects kept; those beyond are left out, with a warning.
    pub most: usize,
}

/// Begins to follow, until `stop`. Must be called inside the tokio runtime.
pub fn follow<K>(kube: &Kube, what: Follow<K>, stop: CancellationToken) -> Followed<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (told, followed) = watch::channel(None);
    let kube = kube.clone();
    tokio::spawn(async move {
        stop.run_until_cancelled(Box::pin(go_on(&kube, &what, &told)))
            .await;
    });
    followed
}

async fn go_on<K>(kube: &Kube, what: &Follow<K>, told: &watch::Sender<Option<Objects<K>>>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let config = watcher::Config {
        field_selector: what.fields.clone(),
        label_selector: what.labels.clone(),
        timeout: Some(WATCH_SECONDS),
        page_size: Some(PAGE),
        ..watcher::Config::default()
    };
    let mut backoff = Backoff::new(&kube.node, FIRST_WAIT, LONGEST_WAIT);
    let mut set = Set::new(what.what, what.most);
    // Failures are many while the server is away; the first of them is news.
    let mut well = true;
    loop {
        let mut events = std::pin::pin!(watcher(what.api.clone(), config.clone()));
        loop {
            let wrong = match tokio::time::timeout(SILENCE, events.next()).await {
                Ok(Some(Ok(event))) => {
                    backoff.worked();
                    if let Some(objects) = set.take(event) {
                        told.send_replace(Some(objects));
                        kube.metrics.follows(what.what, true);
                        if !std::mem::replace(&mut well, true) {
                            info!(kind = what.what, "the API server is followed again");
                        }
                    }
                    continue;
                }
                Ok(Some(Err(error))) => Some(chain(&error)),
                Ok(None) => None,
                Err(_) => Some("nothing heard".to_owned()),
            };
            let Some(error) = wrong else {
                break;
            };
            kube.metrics.follows(what.what, false);
            if std::mem::replace(&mut well, false) {
                warn!(
                    kind = what.what,
                    error, "the API server can't be followed: what is known stays"
                );
            } else {
                debug!(kind = what.what, error, "still not followed");
            }
            tokio::time::sleep(backoff.failed()).await;
            if error == "nothing heard" {
                break;
            }
        }
    }
}

/// What has been told so far.
struct Set<K> {
    what: &'static str,
    most: usize,
    known: BTreeMap<String, K>,
    /// A listing that has begun and not ended.
    fresh: Option<BTreeMap<String, K>>,
}

impl<K: Resource<DynamicType = ()> + Clone> Set<K> {
    fn new(what: &'static str, most: usize) -> Self {
        Self {
            what,
            most,
            known: BTreeMap::new(),
            fresh: None,
        }
    }

    /// `Some`: all there is, after a change.
    fn take(&mut self, event: Event<K>) -> Option<Objects<K>> {
        match event {
            Event::Init => {
                self.fresh = Some(BTreeMap::new());
                return None;
            }
            Event::InitApply(object) => {
                let mut fresh = self.fresh.take().unwrap_or_default();
                self.put(&mut fresh, object);
                self.fresh = Some(fresh);
                return None;
            }
            Event::InitDone => self.known = self.fresh.take().unwrap_or_default(),
            Event::Apply(object) => {
                let mut known = std::mem::take(&mut self.known);
                self.put(&mut known, object);
                self.known = known;
            }
            Event::Delete(object) => drop(self.known.remove(&key(&object))),
        }
        Some(Arc::new(self.known.clone()))
    }

    fn put(&self, into: &mut BTreeMap<String, K>, object: K) {
        let key = key(&object);
        if into.len() >= self.most && !into.contains_key(&key) {
            warn!(
                kind = self.what,
                most = self.most,
                left_out = key,
                "too many objects"
            );
            return;
        }
        into.insert(key, object);
    }
}

fn key<K: Resource<DynamicType = ()>>(object: &K) -> String {
    let name = object.name_any();
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{ConfigMap, Node};
    use kube::core::ObjectMeta;

    fn node(name: &str) -> Node {
        Node {
            metadata: ObjectMeta {
                name: Some(name.into()),
                ..ObjectMeta::default()
            },
            ..Node::default()
        }
    }

    fn names(objects: &Objects<Node>) -> Vec<&str> {
        objects.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_listing_is_told_when_it_is_complete_and_replaces_what_was() {
        let mut set = Set::new("nodes", 9);
        assert!(set.take(Event::Init).is_none());
        assert!(set.take(Event::InitApply(node("a"))).is_none());
        assert_eq!(names(&set.take(Event::InitDone).unwrap()), ["a"]);
        assert_eq!(
            names(&set.take(Event::Apply(node("b"))).unwrap()),
            ["a", "b"]
        );
        assert_eq!(names(&set.take(Event::Delete(node("a"))).unwrap()), ["b"]);
        // A second listing, cut off in the middle, changes nothing.
        assert!(set.take(Event::Init).is_none());
        assert!(set.take(Event::InitApply(node("c"))).is_none());
        assert!(set.take(Event::Init).is_none());
        assert!(set.take(Event::InitApply(node("d"))).is_none());
        assert_eq!(names(&set.take(Event::InitDone).unwrap()), ["d"]);
    }

    #[test]
    fn more_than_the_bound_is_left_out() {
        let mut set = Set::new("nodes", 2);
        for name in ["a", "b", "c"] {
            set.take(Event::Apply(node(name)));
        }
        assert_eq!(
            names(&set.take(Event::Apply(node("a"))).unwrap()),
            ["a", "b"]
        );
    }

    #[test]
    fn names_of_two_namespaces_are_two_names() {
        let map = |namespace: &str| ConfigMap {
            metadata: ObjectMeta {
                name: Some("x".into()),
                namespace: Some(namespace.into()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        };
        assert_eq!(key(&map("a")), "a/x");
        assert_ne!(key(&map("a")), key(&map("b")));
    }
}
