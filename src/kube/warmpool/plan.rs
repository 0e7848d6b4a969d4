//! Which WarmPools this node has, and why it has not the others. Pure: the same objects give the same pools on every node
//! that they select, in whatever order they came.

use super::WarmPool;
use super::convert;
use super::run::Check;
use crate::machine::ids::PoolName;
use crate::machine::limits::POOLS;
use crate::machine::refusal::Refusal;
use crate::machine::spec::{PoolSpec, WarmPoolRef};
use std::collections::{BTreeMap, BTreeSet};

/// What this node makes of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// It has the pool.
    Declared,
    /// It has not, or still has the one before: a reason for programs, a message for people.
    Rejected(&'static str, String),
}

/// What this node is to have.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Ordered by name.
    pub pools: Vec<PoolSpec>,
    /// By "namespace/name": the objects that select this node.
    pub told: BTreeMap<String, Told>,
}

impl Plan {
    /// Pools that the machine left out, or left as they were: their RuntimeClass can't be served here.
    pub(super) fn unserved(&mut self, pools: &[(PoolName, Refusal)]) {
        for (name, why) in pools {
            let spec = self.pools.iter().find(|spec| spec.name == *name);
            let object = spec.and_then(|spec| spec.warm_pool.as_ref());
            if let Some(object) = object {
                let told = Told::Rejected("Unservable", convert::told(why));
                self.told.insert(object.to_string(), told);
            }
        }
    }
}

/// `labels` are this node's. `in_force` are all its pools, those of SetPools included.
pub(super) fn plan(
    objects: &BTreeMap<String, WarmPool>,
    labels: &BTreeMap<String, String>,
    in_force: &[PoolSpec],
    check: &Check,
) -> Plan {
    let others: BTreeSet<&PoolName> = in_force
        .iter()
        .filter(|spec| spec.warm_pool.is_none())
        .map(|spec| &spec.name)
        .collect();
    let mut plan = Plan::default();
    let mut taken: BTreeMap<PoolName, String> = BTreeMap::new();
    for (key, object) in oldest_first(objects) {
        let selected = object.spec.node_selector.iter();
        let selected = selected.clone().all(|(k, v)| labels.get(k) == Some(v));
        if !selected || object.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let told = match wanted(object, check) {
            // What was in force stays until the object is right again: members are not lost to a slip of the pen.
            Err((named, what)) => {
                let before = in_force.iter().find(|spec| {
                    Some(&spec.name) == named.as_ref()
                        && spec.warm_pool.as_ref() == Some(&reference(object))
                });
                if let Some(before) = before
                    && !taken.contains_key(&before.name)
                    && others.len() + taken.len() < POOLS
                {
                    taken.insert(before.name.clone(), key.clone());
                    plan.pools.push(before.clone());
                }
                Told::Rejected("InvalidSpec", what)
            }
            Ok(spec) if others.contains(&spec.name) => Told::Rejected(
                "NameTaken",
                format!("SetPools declares pool {} on this node", spec.name),
            ),
            Ok(spec) => match taken.get(&spec.name) {
                Some(by) => {
                    let what = format!("WarmPool {by} is older and has the pool's name");
                    Told::Rejected("NameTaken", what)
                }
                None if others.len() + taken.len() >= POOLS => {
                    let what = format!("this node has {POOLS} pools already, which is the most");
                    Told::Rejected("NodeFull", what)
                }
                None => {
                    taken.insert(spec.name.clone(), key.clone());
                    plan.pools.push(spec);
                    Told::Declared
                }
            },
        };
        plan.told.insert(key.clone(), told);
    }
    plan.pools.sort_by(|a, b| a.name.cmp(&b.name));
    plan
}

fn oldest_first(objects: &BTreeMap<String, WarmPool>) -> Vec<(&String, &WarmPool)> {
    let mut all: Vec<_> = objects.iter().collect();
    all.sort_by_key(|(key, object)| {
        let made = object.metadata.creation_timestamp.as_ref();
        (made.map(|time| time.0), *key)
    });
    all
}

/// The pool that an object wants, or what is wrong, with its name as far as there is one.
fn wanted(object: &WarmPool, check: &Check) -> Result<PoolSpec, (Option<PoolName>, String)> {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let named = PoolName::parse(name).ok();
    let pool = convert::pool(object).map_err(|wrong| {
        let told = wrong.iter().map(|(field, what)| format!("{field}: {what}"));
        (named.clone(), told.collect::<Vec<_>>().join("; "))
    })?;
    let spec = check(pool).map_err(|refusal| (named, convert::told(&refusal)))?;
    Ok(PoolSpec {
        warm_pool: Some(reference(object)),
        ..spec
    })
}

pub(super) fn reference(object: &WarmPool) -> WarmPoolRef {
    WarmPoolRef {
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        name: object.metadata.name.clone().unwrap_or_default(),
    }
}
