//! Reservations over random histories of pools and of a cluster that grants, refuses, evicts and forgets; and the Pod.

use super::plan::*;
use super::pod::{self, Owner};
use super::*;
use crate::machine::ids::PoolName;
use crate::machine::view::Promised;
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn pool(name: &str) -> PoolName {
    PoolName::parse(name).unwrap()
}

fn sandboxes(number: u64) -> Promised {
    Promised {
        memory_bytes: number * 512 * MIB,
        cpu_millis: number * 500,
    }
}

fn held(uid: &str, asked: Promised) -> Seen {
    Seen {
        uid: uid.into(),
        asked,
        granted: asked,
        state: State::Held,
    }
}

/// One pool "py", and what is done about it.
fn decide(
    plan: &mut Plan,
    at: u64,
    promised: Option<Promised>,
    seen: Option<Seen>,
) -> (Option<Step>, bool) {
    let pools = promised.map(|it| (pool("py"), Some(it)));
    let seen = seen.map(|it| (pool("py"), it));
    let now = Duration::from_secs(at);
    let mut decided = plan.decide(
        now,
        &pools.into_iter().collect(),
        &seen.into_iter().collect(),
    );
    let lost = !decided.lost.is_empty();
    (decided.steps.remove(&pool("py")), lost)
}

#[test]
fn it_grows_at_once_and_shrinks_when_it_was_too_large_for_a_while() {
    let mut plan = Plan::new("node");
    let made = decide(&mut plan, 0, Some(sandboxes(2)), None).0;
    assert_eq!(made, Some(Step::Create(sandboxes(2))));
    let mut step = |at, promised: u64, asked: u64| {
        let seen = held("a", sandboxes(asked));
        decide(&mut plan, at, Some(sandboxes(promised)), Some(seen)).0
    };
    assert_eq!(step(1, 2, 2), None);
    let to = |to: u64| {
        Some(Step::Resize {
            uid: "a".into(),
            to: sandboxes(to),
        })
    };
    assert_eq!(step(2, 5, 2), to(5));
    assert_eq!(step(3, 4, 5), None);
    assert_eq!(step(20, 5, 5), None, "the time begins anew");
    assert_eq!(step(21, 3, 5), None);
    assert_eq!(step(50, 2, 5), None);
    assert_eq!(step(51, 2, 5), to(2));
    // Nothing is left to be counted: no Pod.
    assert_eq!(step(60, 0, 2), None);
    assert_eq!(step(90, 0, 2), Some(Step::Delete { uid: "a".into() }));
}

/// Another template may take more memory and less CPU: never less than before at once.
#[test]
fn each_amount_grows_by_itself() {
    let mut plan = Plan::new("node");
    let of = |memory_bytes, cpu_millis| Promised {
        memory_bytes,
        cpu_millis,
    };
    let mut step = |at, asked| decide(&mut plan, at, Some(of(20, 100)), Some(held("a", asked))).0;
    let to = |to| {
        Some(Step::Resize {
            uid: "a".into(),
            to,
        })
    };
    assert_eq!(step(0, of(10, 500)), to(of(20, 500)));
    assert_eq!(step(1, of(20, 500)), None);
    assert_eq!(step(31, of(20, 500)), to(of(20, 100)));
}

#[test]
fn a_pool_that_is_gone_takes_its_reservation_along_and_an_unknown_one_keeps_it() {
    let mut plan = Plan::new("node");
    let seen = || BTreeMap::from([(pool("py"), held("a", sandboxes(3)))]);
    let unknown = BTreeMap::from([(pool("py"), None)]);
    let now = Duration::from_secs(100);
    assert!(plan.decide(now, &unknown, &seen()).steps.is_empty());
    let gone = plan.decide(now, &BTreeMap::new(), &seen());
    let deleted = Step::Delete { uid: "a".into() };
    assert_eq!(gone.steps, BTreeMap::from([(pool("py"), deleted)]));
    assert!(
        plan.decide(now, &unknown, &BTreeMap::new())
            .steps
            .is_empty()
    );
}

#[test]
fn one_that_somebody_takes_away_is_made_anew_ever_more_slowly() {
    let mut plan = Plan::new("node");
    let (mut at, mut made) = (0, Vec::new());
    while made.len() < 12 {
        if let (Some(Step::Create(_)), _) = decide(&mut plan, at, Some(sandboxes(1)), None) {
            plan.created(&pool("py"), Duration::from_secs(at));
            made.push(at);
            // It is there for a second, and evicted.
            let there = held(&at.to_string(), sandboxes(1));
            assert!(!decide(&mut plan, at, Some(sandboxes(1)), Some(there.clone())).1);
            let ended = Seen {
                state: State::Dead,
                ..there
            };
            let (step, lost) = decide(&mut plan, at, Some(sandboxes(1)), Some(ended));
            // The dead one goes as slowly.
            assert!(lost && step.is_none());
        }
        at += 1;
    }
    let waits: Vec<_> = made.windows(2).map(|it| it[1] - it[0]).collect();
    assert!(waits.is_sorted(), "{waits:?}");
    assert!(waits[0] < 5 && waits[10] >= 300, "{waits:?}");
    // It holds at last: the budget is there again.
    let there = || Some(held("z", sandboxes(1)));
    for at in at..at + 601 {
        assert_eq!(
            decide(&mut plan, at, Some(sandboxes(1)), there()),
            (None, false)
        );
    }
    let (step, lost) = decide(&mut plan, at + 700, Some(sandboxes(1)), None);
    assert!(lost && step.is_some());
    plan.created(&pool("py"), Duration::from_secs(at + 700));
    let (step, _) = decide(&mut plan, at + 705, Some(sandboxes(1)), None);
    assert!(step.is_some(), "within seconds");
}

/// A quota may be raised at any time, and its refusals are no reason to wait longer the next time.
#[test]
fn what_was_refused_is_tried_again_until_it_is_granted() {
    let mut plan = Plan::new("node");
    let mut tries = |from: u64, asked: u64| {
        let mut tries = Vec::new();
        for at in from..from + 600 {
            let seen = held("a", sandboxes(asked));
            if decide(&mut plan, at, Some(sandboxes(4)), Some(seen))
                .0
                .is_some()
            {
                plan.refused(&pool("py"), Duration::from_secs(at));
                tries.push(at);
            }
        }
        tries
    };
    let first = tries(0, 2);
    let waits: Vec<_> = first.windows(2).map(|it| it[1] - it[0]).collect();
    assert!(waits.is_sorted() && waits[0] < 5, "{waits:?}");
    assert!(
        waits.iter().all(|wait| *wait <= 90) && first.len() < 20,
        "{waits:?}"
    );
    assert!(tries(600, 4).is_empty(), "granted");
    let again = tries(1200, 2);
    assert!(again[1] - again[0] < 5, "{again:?}");
}

#[test]
fn what_hearthd_deleted_itself_is_not_lost_and_not_deleted_twice() {
    let mut plan = Plan::new("node");
    let there = || Some(held("a", sandboxes(1)));
    assert_eq!(decide(&mut plan, 0, Some(sandboxes(1)), there()).0, None);
    let (step, _) = decide(&mut plan, 1, None, there());
    assert!(matches!(step, Some(Step::Delete { .. })));
    plan.deleted(&pool("py"), "a".into());
    // The watch lags behind: its name is still taken.
    assert_eq!(decide(&mut plan, 2, None, there()), (None, false));
    assert_eq!(
        decide(&mut plan, 3, Some(sandboxes(1)), there()),
        (None, false)
    );
    let (step, lost) = decide(&mut plan, 4, Some(sandboxes(1)), None);
    assert!(!lost && matches!(step, Some(Step::Create(_))));
}

/// What happens in a history.
#[derive(Debug, Clone)]
enum Happens {
    /// A pool is declared, or its sandboxes have become so many.
    Pool(usize, u64),
    /// Its class is not told of.
    Unknown(usize),
    Withdrawn(usize),
    /// The cluster's quota, in sandboxes of all reservations.
    Quota(u64),
    /// The node's room, in sandboxes of one reservation.
    Room(u64),
    Evicted(usize),
    Died(usize),
    /// The API server is away, or back.
    Away(bool),
    /// The Node object was made anew.
    NewNode,
    Passes(u64),
}

fn happens() -> impl Strategy<Value = Happens> {
    let pool = 0..3usize;
    prop_oneof![
        6 => (pool.clone(), 0..9u64).prop_map(|(pool, number)| Happens::Pool(pool, number)),
        1 => pool.clone().prop_map(Happens::Unknown),
        1 => pool.clone().prop_map(Happens::Withdrawn),
        1 => (0..30u64).prop_map(Happens::Quota),
        1 => (0..12u64).prop_map(Happens::Room),
        1 => pool.clone().prop_map(Happens::Evicted),
        1 => pool.prop_map(Happens::Died),
        1 => any::<bool>().prop_map(Happens::Away),
        1 => Just(Happens::NewNode),
        6 => (1..60u64).prop_map(Happens::Passes),
    ]
}

/// A cluster that goes by the rules of the API server, the scheduler and the kubelet, as far as a reservation meets them.
#[derive(Default)]
struct Cluster {
    pods: BTreeMap<PoolName, Seen>,
    made: u64,
    quota: u64,
    room: u64,
    away: bool,
}

impl Cluster {
    fn quota_allows(&self, of: &PoolName, to: Promised) -> bool {
        let others = self.pods.iter().filter(|(name, _)| *name != of);
        let others: u64 = others.map(|(_, it)| it.asked.memory_bytes).sum();
        others + to.memory_bytes <= sandboxes(self.quota).memory_bytes
    }

    /// What came of it; `None`: no answer.
    fn take(&mut self, of: &PoolName, step: &Step) -> Option<Result<(), ()>> {
        if self.away {
            return None;
        }
        match step {
            Step::Create(to) => {
                assert!(!self.pods.contains_key(of), "two Pods of one pool");
                if !self.quota_allows(of, *to) {
                    return Some(Err(()));
                }
                self.made += 1;
                let seen = Seen {
                    granted: Promised::default(),
                    state: State::Asked,
                    ..held(&self.made.to_string(), *to)
                };
                self.pods.insert(of.clone(), seen);
            }
            Step::Resize { uid, to } => {
                let allowed = self.quota_allows(of, *to);
                let there = self.pods.get_mut(of).unwrap();
                assert_eq!(&there.uid, uid);
                let grows = to.max(there.asked) == *to;
                if grows && !allowed {
                    return Some(Err(()));
                }
                there.asked = *to;
                there.state = State::Asked;
            }
            Step::Delete { uid } => {
                assert_eq!(&self.pods.remove(of).unwrap().uid, uid);
            }
        }
        Some(Ok(()))
    }

    /// Scheduler and kubelet have looked.
    fn settle(&mut self) {
        let room = sandboxes(self.room);
        for it in self.pods.values_mut() {
            if it.state == State::Dead {
                continue;
            }
            let fits = room.max(it.asked) == room;
            (it.granted, it.state) = match fits {
                true => (it.asked, State::Held),
                false => (it.granted, State::Short(Why::Deferred, "no room".into())),
            };
        }
    }
}

/// Everything that must hold, of one history.
fn live(history: &[Happens]) {
    let names = ["a", "b", "c"].map(pool);
    let mut plan = Plan::new("node");
    let mut cluster = Cluster {
        quota: 100,
        room: 100,
        ..Cluster::default()
    };
    let mut pools: BTreeMap<PoolName, Option<Promised>> = BTreeMap::new();
    let mut now = Duration::ZERO;
    // When a reservation was made smaller because its pool is, by pool.
    let mut shrunk: BTreeMap<PoolName, Duration> = BTreeMap::new();
    let mut turn = |plan: &mut Plan,
                    cluster: &mut Cluster,
                    pools: &BTreeMap<PoolName, Option<Promised>>,
                    now: Duration| {
        let decided = plan.decide(now, pools, &cluster.pods);
        for (of, step) in decided.steps {
            let before = cluster.pods.get(&of).cloned();
            let smaller = match (&step, &before) {
                (Step::Resize { to, .. }, Some(before)) => to.max(before.asked) != *to,
                (Step::Delete { .. }, Some(before)) => {
                    pools.contains_key(&of) && before.state != State::Dead
                }
                _ => false,
            };
            match cluster.take(&of, &step) {
                None => return,
                Some(Err(())) => plan.refused(&of, now),
                Some(Ok(())) => {
                    if let Step::Create(to) = step {
                        assert_eq!(pools[&of], Some(to), "of another size");
                        plan.created(&of, now);
                    }
                    if let Step::Delete { uid } = step {
                        plan.deleted(&of, uid);
                    }
                    if smaller {
                        let last = shrunk.insert(of, now);
                        let apart = last.is_none_or(|last| now - last >= LESS_AFTER);
                        assert!(apart, "it flaps");
                    }
                }
            }
        }
    };
    for happens in history {
        match happens {
            Happens::Pool(which, number) => {
                pools.insert(names[*which].clone(), Some(sandboxes(*number)));
            }
            Happens::Unknown(which) => {
                pools
                    .entry(names[*which].clone())
                    .and_modify(|it| *it = None);
            }
            Happens::Withdrawn(which) => drop(pools.remove(&names[*which])),
            Happens::Quota(quota) => cluster.quota = *quota,
            Happens::Room(room) => cluster.room = *room,
            Happens::Evicted(which) => drop(cluster.pods.remove(&names[*which])),
            Happens::Died(which) => {
                let there = cluster.pods.get_mut(&names[*which]);
                there.into_iter().for_each(|it| it.state = State::Dead);
            }
            Happens::Away(away) => cluster.away = *away,
            Happens::NewNode => {
                let all = cluster.pods.values_mut();
                all.for_each(|it| it.state = State::Dead);
            }
            Happens::Passes(seconds) => now += Duration::from_secs(*seconds),
        }
        cluster.settle();
        turn(&mut plan, &mut cluster, &pools, now);
    }
    // In the end all is granted: what is reserved is what is promised, of every pool and of nothing else.
    (cluster.quota, cluster.room, cluster.away) = (100, 100, false);
    for promised in pools.values_mut() {
        promised.get_or_insert(sandboxes(1));
    }
    for _ in 0..1000 {
        now += Duration::from_secs(1);
        cluster.settle();
        turn(&mut plan, &mut cluster, &pools, now);
    }
    let granted = cluster.pods.iter().map(|(of, it)| (of, Some(it.granted)));
    let granted: BTreeMap<_, _> = granted.collect();
    let wanted = pools.iter().map(|(of, it)| (of, *it));
    let wanted: BTreeMap<_, _> = wanted
        .filter(|(_, it)| *it != Some(Promised::default()))
        .collect();
    assert_eq!(granted, wanted);
}

#[test]
fn what_is_reserved_is_what_is_promised_when_everything_is_granted() {
    let config = Config {
        cases: 500,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[8; 32]);
    let histories = proptest::collection::vec(happens(), 1..120);
    let outcome = TestRunner::new_with_rng(config, rng).run(&histories, |history| {
        live(&history);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

fn owner() -> Owner {
    Owner {
        node: "node".into(),
        uid: "n-1".into(),
    }
}

fn settings() -> Settings {
    Settings {
        namespace: "accounts".into(),
        image: "hearth@sha256:0".into(),
        pull_secrets: vec!["s".into()],
        priority_class: String::new(),
    }
}

/// As the API server would tell of it.
fn made() -> Pod {
    let mut pod = pod::pod(&pool("py"), sandboxes(2), &owner(), &settings()).unwrap();
    pod.metadata.uid = Some("p-1".into());
    pod
}

fn read(pod: &Pod) -> Option<Seen> {
    pod::read([pod].into_iter(), &owner()).remove(&pool("py"))
}

fn with_status(status: serde_json::Value) -> Seen {
    let mut pod = made();
    pod.status = Some(serde_json::from_value(status).unwrap());
    read(&pod).unwrap()
}

#[test]
fn what_the_cluster_says_of_a_pod_is_read() {
    let seen = read(&made()).unwrap();
    assert_eq!(seen.state, State::Asked);
    assert_eq!(
        (seen.asked, seen.granted),
        (sandboxes(2), Promised::default())
    );
    let no_room = json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient memory"}]});
    let seen = with_status(no_room);
    let short = State::Short(Why::Unschedulable, "Insufficient memory".into());
    assert_eq!((seen.state, seen.granted), (short, Promised::default()));
    let placed = json!({"type": "PodScheduled", "status": "True"});
    let seen = with_status(json!({"phase": "Pending", "conditions": [placed]}));
    assert_eq!((seen.state, seen.granted), (State::Held, sandboxes(2)));
    let runs = |memory: &str, resize: serde_json::Value| {
        let container = json!({
            "name": "reservation", "image": "a", "imageID": "", "ready": true, "restartCount": 0,
            "allocatedResources": {"memory": memory, "cpu": "1"},
        });
        with_status(json!({
            "phase": "Running", "conditions": [placed, resize], "containerStatuses": [container],
        }))
    };
    let none = json!({"type": "Ready", "status": "True"});
    assert_eq!(runs("1Gi", none.clone()).state, State::Held);
    let seen = runs("512Mi", none);
    assert_eq!(seen.state, State::Asked);
    assert_eq!(seen.granted.memory_bytes, 512 * MIB);
    for (reason, why) in [("Deferred", Why::Deferred), ("Infeasible", Why::Infeasible)] {
        let pending = json!({"type": "PodResizePending", "status": "True", "reason": reason, "message": "no"});
        assert_eq!(runs("512Mi", pending).state, State::Short(why, "no".into()));
    }
    let evicted = json!({"phase": "Failed", "reason": "Evicted", "conditions": [placed]});
    assert_eq!(with_status(evicted).state, State::Dead);
    let mut ending = made();
    ending.metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-11-28T12:00:00Z")).unwrap();
    assert_eq!(read(&ending).unwrap().state, State::Ending);
}

#[test]
fn a_pod_of_somebody_else_is_none_of_hearths() {
    let mut of_an_older_node = made();
    of_an_older_node.metadata.owner_references.as_mut().unwrap()[0].uid = "n-0".into();
    assert_eq!(read(&of_an_older_node).unwrap().state, State::Dead);
    let mut others = Vec::new();
    for change in [
        |pod: &mut Pod| pod.metadata.owner_references = None,
        |pod: &mut Pod| pod.metadata.owner_references.as_mut().unwrap()[0].name = "b".into(),
        |pod: &mut Pod| pod.metadata.owner_references.as_mut().unwrap()[0].kind = "Job".into(),
        |pod: &mut Pod| pod.metadata.name = Some("py".into()),
        |pod: &mut Pod| pod.metadata.labels = None,
        |pod: &mut Pod| {
            let labels = pod.metadata.labels.as_mut().unwrap();
            labels.insert("hearth.dev/pool".into(), "other".into());
        },
    ] {
        let mut pod = made();
        change(&mut pod);
        others.push(pod);
    }
    assert!(pod::read(others.iter(), &owner()).is_empty());
}

#[test]
fn names_are_bounded_and_of_one_pool_of_one_node() {
    let node = format!("{}.example", "n".repeat(240));
    let long = pool(&"p".repeat(63));
    let name = pod::name(&long, &node);
    assert!(name.len() <= 110, "{name}");
    assert_ne!(name, pod::name(&long, &format!("{node}s")));
    assert_ne!(pod::name(&pool("a"), "b"), pod::name(&pool("a"), "c"));
    let selector = pod::selector(&node);
    let value = selector.rsplit_once('=').unwrap().1;
    assert!(value.len() <= 63 && value.ends_with(|c: char| c.is_ascii_alphanumeric()));
    assert!(pod::selector("node-1.example").ends_with("=node-1.example"));
    let pod = pod::pod(&long, sandboxes(1), &owner(), &settings()).unwrap();
    assert!(
        pod.metadata
            .labels
            .unwrap()
            .values()
            .all(|value| value.len() <= 63)
    );
}

#[test]
fn a_refusal_says_whether_it_is_the_quotas() {
    let step = Step::Create(sandboxes(1));
    let quota = "pods \"x\" is forbidden: exceeded quota: small, requested: requests.memory=1Gi";
    assert_eq!(pod::refused(&step, quota).0, Why::Quota);
    let room = "pods \"x\" is forbidden: node didn't have enough allocatable resources: memory, requested: 2, allocatable: 1";
    assert_eq!(pod::refused(&step, room).0, Why::Infeasible);
    let other = pod::refused(&step, "pods \"x\" already exists");
    assert_eq!(other.0, Why::Refused);
    assert!(other.1.contains("already exists"));
}
