//! RuntimeClasses of the cluster: which handler of this node a class means, and whether this node can serve it.
//!
//! The cluster tells (`Event::Classes`); what was told last stays in force while it is away. A pool keeps the handler that
//! its class meant when it was declared: it lies with the pool's spec in the journal, so a start needs no cluster.

use super::event::Notice;
use super::handler::{self, Handler, Overhead, Wants};
use super::ids::PoolName;
use super::limits::{CLASSES_RETRY_MS, UNSERVABLE_RETRY_MS};
use super::node::Node;
use super::out::Out;
use super::pools::Pool;
use super::refusal::{Refusal, bounded};
use super::spec::PoolSet;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A RuntimeClass object, as far as hearth goes by it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuntimeClass {
    /// The CRI handler it names.
    pub handler: String,
    /// `overhead.podFixed`: thousandths of a core.
    pub overhead_cpu_millis: u64,
    /// `overhead.podFixed`: bytes.
    pub overhead_memory_bytes: u64,
    /// `scheduling.nodeSelector`: what a node must have.
    pub node_selector: BTreeMap<String, String>,
}

/// What the cluster has told, and what this node is. Built by `kube`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Classes {
    /// By name.
    pub classes: BTreeMap<String, RuntimeClass>,
    /// Labels of this node's object.
    pub labels: BTreeMap<String, String>,
    /// Handlers of this node, in hearth's words.
    pub handlers: BTreeSet<String>,
}

/// A class that this node serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served<'a> {
    /// hearth's handler.
    pub handler: &'a str,
    /// The object.
    pub class: &'a RuntimeClass,
}

impl RuntimeClass {
    fn overhead(&self) -> Overhead {
        Overhead {
            memory_bytes: self.overhead_memory_bytes,
            cpu_millis: self.overhead_cpu_millis,
        }
    }
}

/// CRI's usual word for a handler, where hearth has another: gVisor's documentation names its handler after the program.
const WORDS: [(&str, &str); 1] = [("runsc", "gvisor")];

impl Classes {
    /// What a class means here; else why this node can't serve it, for people.
    pub fn resolve(&self, name: &str) -> Result<Served<'_>, String> {
        let class = self.classes.get(name);
        let class = class.ok_or_else(|| format!("there is no RuntimeClass {name:?}"))?;
        let word = WORDS.iter().find(|(cri, _)| *cri == class.handler);
        let word = word.map_or(class.handler.as_str(), |(_, ours)| ours);
        let Some(handler) = self.handlers.get(word) else {
            let known: Vec<_> = self.handlers.iter().map(String::as_str).collect();
            return Err(format!(
                "RuntimeClass {name:?} names handler {:?}, which hearth does not serve on this node: {}",
                class.handler,
                known.join(", ")
            ));
        };
        let mut selector = class.node_selector.iter();
        if let Some((label, value)) =
            selector.find(|(label, value)| self.labels.get(*label) != Some(value))
        {
            return Err(format!(
                "RuntimeClass {name:?} is for nodes with {label}={value}, and this node has {}",
                match self.labels.get(label) {
                    Some(other) => format!("{label}={other}"),
                    None => "no such label".to_owned(),
                }
            ));
        }
        Ok(Served { handler, class })
    }
}

impl Pool {
    /// What one of its sandboxes takes beside what the template promises: what its RuntimeClass says, also where this node
    /// can't serve it; of a pool without one, what its handler is known for. What was told last stays.
    pub(super) fn weigh(&mut self, classes: Option<&Classes>) {
        let template = &self.spec.template;
        let told = match template.runtime_class.as_str() {
            "" => Some(Overhead::of(&template.runtime_handler).unwrap_or_default()),
            class => {
                let class = classes.and_then(|known| known.classes.get(class));
                class.map(RuntimeClass::overhead)
            }
        };
        self.overhead = told.or(self.overhead);
    }

    /// Why this node can't serve it, going by what the cluster says.
    fn judged(&self, classes: &Classes) -> Option<String> {
        let template = &self.spec.template;
        if template.runtime_class.is_empty() {
            return None;
        }
        match classes.resolve(&template.runtime_class) {
            Ok(served) if served.handler == template.runtime_handler => None,
            Ok(served) => Some(format!(
                "RuntimeClass {:?} now means handler {:?}, and the pool was declared with {:?}: set it again under a larger generation",
                template.runtime_class, served.handler, template.runtime_handler
            )),
            Err(why) => Some(why),
        }
    }
}

impl Node {
    /// RuntimeClasses or the node's labels have changed: pools become unservable, or servable again.
    pub(super) fn classes_told(&mut self, classes: Arc<Classes>, out: &mut Out<'_>) {
        // A WarmPool whose class was missing has no pool here that could be judged anew: who keeps them looks again.
        self.pools_changed |= self.classes.as_deref() != Some(&*classes);
        self.classes = Some(classes);
        for name in self.pools.keys().cloned().collect::<Vec<_>>() {
            self.judge_class(&name, out);
        }
    }

    /// Judges one pool anew; its refill rests while it is unservable, and cold claims that wait are told.
    pub(super) fn judge_class(&mut self, name: &PoolName, out: &mut Out<'_>) {
        let Some(pool) = self.pools.get_mut(name) else {
            return;
        };
        let weighed = pool.overhead;
        pool.weigh(self.classes.as_deref());
        self.pools_changed |= pool.overhead != weighed;
        let Some(classes) = &self.classes else {
            return;
        };
        let why = pool.judged(classes).map(bounded);
        let before = std::mem::replace(&mut pool.unservable, why.clone());
        if before == why {
            return;
        }
        self.pools_changed = true;
        let pool = name.clone();
        match why {
            None => out.notice(Notice::PoolServable { pool }),
            Some(reason) => {
                out.notice(Notice::PoolUnservable { pool, reason });
                self.refuse_cold(name, out);
            }
        }
    }

    /// Gives each pool of the set that names a class its handler: the one it has, as far as it is declared as it is in
    /// force.
    pub(super) fn keep_handlers(&self, set: &mut PoolSet) {
        for spec in &mut set.pools {
            let Some(pool) = self.pools.get(&spec.name) else {
                continue;
            };
            let (asked, there) = (&mut spec.template, &pool.spec.template);
            if spec.generation == pool.spec.generation
                && asked.runtime_class == there.runtime_class
                && !asked.runtime_class.is_empty()
            {
                asked.runtime_handler.clone_from(&there.runtime_handler);
            }
        }
    }

    /// The others get the one that their class means now. Nothing of the set is taken if one can't be served.
    pub(super) fn resolve_handlers(&self, set: &mut PoolSet) -> Result<(), Refusal> {
        for spec in &mut set.pools {
            let template = &mut spec.template;
            if template.runtime_class.is_empty() || !template.runtime_handler.is_empty() {
                continue;
            }
            let Some(classes) = &self.classes else {
                return Err(Refusal::RuntimeClassesUnknown {
                    retry_ms: CLASSES_RETRY_MS,
                });
            };
            let served = classes.resolve(&template.runtime_class);
            let served = served.map_err(|detail| Refusal::RuntimeClassUnservable {
                pool: spec.name.to_string(),
                class: template.runtime_class.clone(),
                detail: bounded(detail),
            })?;
            let handler = Handler::named(served.handler, true);
            let wants = Wants {
                frozen_members: spec.running.is_some_and(|it| it < spec.min_warm),
                idle_freeze: template.idle_after_ms > 0,
                // Told by nobody may look like told: then there is none.
                disk_bound: false,
            };
            if let Some((field, what)) = handler::refused(&handler, wants).into_iter().next() {
                return Err(Refusal::RuntimeClassUnservable {
                    pool: spec.name.to_string(),
                    class: template.runtime_class.clone(),
                    detail: bounded(format!("{field} {what}")),
                });
            }
            if !handler.can.disk_bound {
                template.resources.disk_bytes = 0;
            }
            template.runtime_handler = handler.name;
        }
        Ok(())
    }
}

/// The refusal of a pool that this node can't serve.
pub(super) fn unservable(pool: &PoolName, why: &str) -> Refusal {
    Refusal::PoolFailing {
        pool: pool.to_string(),
        detail: why.to_owned(),
        retry_ms: UNSERVABLE_RETRY_MS,
    }
}
