//! What pools promise, as scheduler, kubelet and ResourceQuota of a real cluster count it.

use super::{Cluster, IMAGE, POOL, alone, eventually, here, node, nothing_runs, step};
use hearth::kube::amount;
use serde_json::{Value, json};

const ACCOUNTS: &str = "accounts";
const MIB: u64 = 1 << 20;
/// One sandbox of the pool.
const MEMORY: u64 = 128 * MIB;
const CPU: u64 = 100;

/// Memory and CPU of a list of resources.
fn amounts(of: &Value) -> (u64, u64) {
    let read = |resource: &str, scale| of[resource].as_str().and_then(|text| amount(text, scale));
    (
        read("memory", 1).unwrap_or(0),
        read("cpu", 1000).unwrap_or(0),
    )
}

impl Cluster {
    fn reservations(&self) -> Vec<Value> {
        let ours = "app.kubernetes.io/name=hearth-reservation";
        let pods = self.get(&["pods", "-n", ACCOUNTS, "-l", ours])["items"].take();
        pods.as_array().unwrap().clone()
    }

    /// The one reservation, when it requests this and the kubelet has given it.
    fn reserved(&self, memory: u64, cpu: u64) -> Value {
        let mut found = Value::Null;
        eventually(
            &format!("{} MiB and {cpu}m are reserved", memory / MIB),
            || {
                let pods = self.reservations();
                let [pod] = pods.as_slice() else {
                    return false;
                };
                let asked = amounts(&pod["spec"]["containers"][0]["resources"]["requests"]);
                let container = &pod["status"]["containerStatuses"][0];
                let given = amounts(&container["allocatedResources"]);
                let runs = container["state"]["running"].is_object();
                if (asked, given) == ((memory, cpu), (memory, cpu)) && runs {
                    found = pod.clone();
                }
                !found.is_null()
            },
        );
        found
    }

    fn reserved_for(&self, sandboxes: u64) -> Value {
        self.reserved(sandboxes * MEMORY, sandboxes * CPU)
    }

    /// Sets the pool; `memory`: of one sandbox.
    fn reserve(&self, warm: u32, memory: u64, class: Option<&str>) {
        let mut pool = json!({
            "name": POOL, "min_warm": warm, "max_total": 8,
            "template": {
                "image": IMAGE, "interpreter": "python",
                "resources": {"memory": memory, "cpu_millis": CPU, "disk": "64MiB"},
            },
        });
        if let Some(class) = class {
            pool["template"]["runtime_class"] = class.into();
        }
        self.declare_reserved(&json!([pool]));
    }

    fn declare_reserved(&self, pools: &Value) {
        let file = self.root.join("pools.json");
        std::fs::write(&file, json!({"pools": pools}).to_string()).unwrap();
        self.hearthctl(&["pools", "set", "-f", file.to_str().unwrap()]);
    }

    fn quota_of_accounts(&self, memory: &str) {
        self.put(&json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"namespace": ACCOUNTS, "name": "all"},
            "spec": {"hard": {"requests.memory": memory, "requests.cpu": "100"}},
        }));
        eventually("the quota is in force", || {
            let quota = self.get(&["resourcequota", "all", "-n", ACCOUNTS]);
            quota["status"]["hard"]["requests.memory"] == memory
        });
    }

    fn counted_by_quota(&self, sandboxes: u64) {
        eventually("the quota counts it", || {
            let quota = self.get(&["resourcequota", "all", "-n", ACCOUNTS]);
            let used = &quota["status"]["used"];
            let used = json!({"memory": used["requests.memory"], "cpu": used["requests.cpu"]});
            amounts(&used) == (sandboxes * MEMORY, sandboxes * CPU)
        });
    }

    fn failures(&self, reason: &str) -> u64 {
        let page = self.page("/metrics").unwrap();
        let name = format!("hearth_reservation_failures_total{{reason=\"{reason}\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap().parse().unwrap()
    }

    fn shown(&self, metric: &str, labels: &str, value: u64) {
        let line = format!("{metric}{{{labels}}} {value}");
        eventually(&line, || self.metric(&line));
    }

    fn told(&self, reason: &str, words: &str) {
        eventually(&format!("operators are told: {reason}, {words}"), || {
            let told = node::events(self, reason);
            told.iter().any(|(note, _)| note.contains(words))
        });
    }

    /// A claim is served, whatever becomes of the reservation.
    fn serves_a_claim(&self) {
        let claim = self.claim(POOL);
        let told = self.hearthctl(&["run", &claim, "6 * 7"]);
        assert_eq!(told.trim(), "42");
        self.hearthctl(&["release", &claim]);
    }
}

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[test]
fn what_pools_promise_is_reserved() {
    let _alone = alone();
    let cluster = Cluster::find();
    let image = here("target/image/first.tar").display().to_string();
    cluster.tool("ctr", &["-n", "k8s.io", "images", "import", &image]);
    let restricted = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    cluster.namespace(ACCOUNTS, restricted);
    cluster.quota_of_accounts("100Ti");
    let values = [
        "image.tag=first",
        "image.pullPolicy=Never",
        "kubernetes.enabled=true",
        "kubernetes.reservation.mode=pod",
        "kubernetes.reservation.namespace=accounts",
    ];
    cluster.helm(&["install", "--create-namespace"], &values);
    cluster.import_python();

    grows_in_place(&cluster);
    of_the_own_node_only(&cluster);
    refused_by_a_quota(&cluster);
    ended_by_somebody(&cluster);
    with_a_classes_overhead(&cluster);
    larger_than_the_node(&cluster);
    goes_with_its_pool(&cluster);

    step("uninstalled");
    cluster.no_sandbox_is_left();
    cluster.uninstall();
    cluster.kubectl(&["label", "node", "node", "hearth.dev/node-"]);
    cluster.kubectl(&["delete", "namespace", ACCOUNTS]);
    nothing_runs(&cluster);
}

fn grows_in_place(cluster: &Cluster) {
    step("a pool is reserved");
    cluster.reserve(2, MEMORY, None);
    let made = cluster.reserved_for(2);
    assert_eq!(made["spec"]["nodeName"], "node");
    assert_eq!(made["status"]["qosClass"], "Burstable");
    let owner = &made["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["name"]),
        (&json!("Node"), &json!("node"))
    );
    cluster.counted_by_quota(2);
    // The node's part of it, in kubectl's own sums.
    let name = made["metadata"]["name"].as_str().unwrap();
    let described = cluster.kubectl(&["describe", "node", "node"]);
    let line = described.lines().find(|line| line.contains(name));
    let line = line.unwrap_or_else(|| panic!("{described}"));
    assert!(
        line.contains("200m (") && line.contains("256Mi ("),
        "{line}"
    );

    step("it grows in place with the pool, and by what is claimed");
    cluster.reserve(3, MEMORY, None);
    let grown = cluster.reserved_for(3);
    let claim = cluster.claim(POOL);
    let more = cluster.reserved_for(4);
    for pod in [&grown, &more] {
        assert_eq!(uid(pod), uid(&made));
        let container = &pod["status"]["containerStatuses"][0];
        assert_eq!(container["restartCount"], 0);
        assert_eq!(
            container["containerID"],
            made["status"]["containerStatuses"][0]["containerID"]
        );
    }
    cluster.counted_by_quota(4);
    let of_pool = format!("pool=\"{POOL}\"");
    cluster.shown("hearth_pool_promised_memory_bytes", &of_pool, 4 * MEMORY);
    for state in ["wanted", "granted"] {
        let labels = format!("{of_pool},state=\"{state}\"");
        cluster.shown("hearth_pool_reserved_memory_bytes", &labels, 4 * MEMORY);
    }

    step("kubectl drain would end it without --force");
    let drain = [
        "drain",
        "node",
        "--dry-run=client",
        "--ignore-daemonsets",
        "--pod-selector=app.kubernetes.io/name=hearth-reservation",
    ];
    assert!(cluster.kubectl(&drain).contains(name));

    step("it shrinks when it was too large for a while");
    cluster.hearthctl(&["release", &claim]);
    cluster.reserve(2, MEMORY, None);
    assert_eq!(uid(&cluster.reserved_for(2)), uid(&made));
    assert_eq!(cluster.failures("lost"), 0);
}

/// With the token of hearthd's pod.
fn of_the_own_node_only(cluster: &Cluster) {
    step("its right to Pods is one to reservations of its node");
    let pod = cluster.pod_name();
    let bound = ["create", "token", "hearth", "--bound-object-kind=Pod"];
    let token = cluster.kubectl(&[&bound[..], &["--bound-object-name", &pod]].concat());
    let token = format!("--token={}", token.trim());
    let reservation = cluster.reserved_for(2);
    let change = |what: &dyn Fn(&mut Value)| {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "another", "namespace": ACCOUNTS,
                "labels": reservation["metadata"]["labels"],
                "ownerReferences": reservation["metadata"]["ownerReferences"],
            },
            "spec": reservation["spec"],
        });
        object["spec"].as_object_mut().unwrap().remove("nodeName");
        what(&mut object);
        let file = cluster.root.join("another.json");
        std::fs::write(&file, object.to_string()).unwrap();
        let args = [token.as_str(), "create", "-f", file.to_str().unwrap()];
        cluster.try_tool("kubectl", &args)
    };
    type Change = fn(&mut Value);
    let wrong: [(Change, &str); 6] = [
        (
            |pod| pod["metadata"]["ownerReferences"] = json!([]),
            "of that node only",
        ),
        (
            |pod| pod["metadata"]["ownerReferences"][0]["name"] = json!("b"),
            "of that node only",
        ),
        (|pod| pod["spec"]["nodeName"] = json!("node"), "scheduler"),
        (|pod| pod["spec"]["affinity"] = json!({}), "own node"),
        (
            |pod| pod["spec"]["containers"][0]["command"] = json!(["/usr/local/bin/hearthctl"]),
            "image that waits",
        ),
        (
            |pod| pod["spec"]["automountServiceAccountToken"] = json!(true),
            "a token",
        ),
    ];
    for (what, why) in wrong {
        let output = change(&what);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && told.contains(why),
            "{why}: {told}"
        );
    }
    // Of that shape it may; the plan makes no second one.
    assert!(change(&|_| {}).status.success());
    cluster.kubectl(&["delete", "pod", "another", "-n", ACCOUNTS]);

    step("and what somebody else has there is not touched");
    let mut stranger = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "stranger", "namespace": ACCOUNTS, "labels": reservation["metadata"]["labels"],
        },
        "spec": reservation["spec"],
    });
    stranger["spec"].as_object_mut().unwrap().remove("nodeName");
    cluster.put(&stranger);
    let delete = [token.as_str(), "delete", "pod", "stranger", "-n", ACCOUNTS];
    let told = cluster.fails("kubectl", &delete);
    assert!(told.contains("reservations of that node only"), "{told}");
    cluster.kubectl(&["get", "pod", "stranger", "-n", ACCOUNTS]);
    cluster.kubectl(&["delete", "pod", "stranger", "-n", ACCOUNTS]);
}

fn refused_by_a_quota(cluster: &Cluster) {
    step("a quota refuses it: it is told, and claims go on");
    cluster.quota_of_accounts("300Mi");
    cluster.reserve(4, MEMORY, None);
    cluster.told("ReservationShort", "exceeded quota: all");
    assert!(cluster.failures("quota") > 0);
    cluster.serves_a_claim();
    let labels = format!("pool=\"{POOL}\",state=\"granted\"");
    let granted = "hearth_pool_reserved_memory_bytes";
    assert!(cluster.metric(&format!("{granted}{{{labels}}} {}", 2 * MEMORY)));

    step("the quota is raised: it is tried again");
    cluster.quota_of_accounts("100Ti");
    eventually("all is granted", || {
        let asked = cluster.reservations();
        let asked = amounts(&asked[0]["spec"]["containers"][0]["resources"]["requests"]);
        asked.0 >= 4 * MEMORY
    });
    cluster.told("ReservationGranted", POOL);
    cluster.reserved_for(4);
}

fn ended_by_somebody(cluster: &Cluster) {
    step("somebody deletes it: it is made anew");
    let before = cluster.reserved_for(4);
    let name = before["metadata"]["name"].as_str().unwrap();
    cluster.kubectl(&["delete", "pod", name, "-n", ACCOUNTS]);
    let after = cluster.reserved_for(4);
    assert_ne!(uid(&after), uid(&before));
    assert!(cluster.failures("lost") > 0);
    cluster.told("ReservationLost", POOL);
}

fn with_a_classes_overhead(cluster: &Cluster) {
    step("what a RuntimeClass takes beside the template counts");
    cluster.put(&json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "heavy"},
        "handler": "runsc", "overhead": {"podFixed": {"memory": "64Mi", "cpu": "50m"}},
    }));
    eventually("hearthd knows the class", || {
        let file = cluster.root.join("pools.json");
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let mut set: Value = serde_json::from_str(&text).unwrap();
        set["pools"][0]["template"]["runtime_class"] = json!("heavy");
        std::fs::write(&file, set.to_string()).unwrap();
        let args = ["pools", "set", "-f", file.to_str().unwrap()];
        cluster.try_hearthctl(&args).status.success()
    });
    cluster.reserved(4 * (MEMORY + 64 * MIB), 4 * (CPU + 50));
    let of_pool = format!("pool=\"{POOL}\"");
    let promised = 4 * (MEMORY + 64 * MIB);
    cluster.shown("hearth_pool_promised_memory_bytes", &of_pool, promised);
    let line = format!("hearth_pool_promised_cpu_cores{{{of_pool}}} 0.6");
    assert!(cluster.metric(&line), "{line}");
}

fn larger_than_the_node(cluster: &Cluster) {
    step("more than the node has: it is told, and claims go on");
    // No member is made of it: those of before are still good.
    cluster.reserve(4, 1 << 40, Some("heavy"));
    cluster.told("ReservationShort", "enough allocatable resources");
    let labels = format!("pool=\"{POOL}\",state=\"granted\"");
    let granted = 4 * (MEMORY + 64 * MIB);
    cluster.shown("hearth_pool_reserved_memory_bytes", &labels, granted);
    let claim = cluster.claim(POOL);
    cluster.hearthctl(&["release", &claim]);
    cluster.reserve(2, MEMORY, None);
    cluster.kubectl(&["delete", "runtimeclass", "heavy"]);
    cluster.reserved_for(2);
}

fn goes_with_its_pool(cluster: &Cluster) {
    step("the API server hangs: pools change, claims go on");
    cluster.api_server("-STOP");
    cluster.reserve(3, MEMORY, None);
    cluster.serves_a_claim();
    cluster.api_server("-CONT");
    cluster.reserved_for(3);

    step(
        "the pool is gone while it hangs, and hearthd is killed: the next one deletes what is left",
    );
    cluster.api_server("-STOP");
    cluster.declare_reserved(&json!([]));
    let before = cluster.hearthd();
    let killed = nix::unistd::Pid::from_raw(before);
    nix::sys::signal::kill(killed, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("hearthd is back", || {
        let output = cluster.try_hearthctl(&["pools", "-o", "name"]);
        output.status.success() && cluster.hearthd() != before
    });
    cluster.api_server("-CONT");
    eventually("no reservation is left", || {
        cluster.reservations().is_empty()
    });
    cluster.counted_by_quota(0);
    let page = cluster.page("/metrics").unwrap();
    assert!(
        !page.contains("hearth_pool_reserved_memory_bytes{"),
        "{page}"
    );
}
