//! hearthd and the API server: the node's label and taint, a cordon, RuntimeClasses, Events; and an API server that is away.

use super::*;

const CLASS: &str = "sandboxed";

/// The node object.
pub fn node(cluster: &Cluster) -> Value {
    cluster.get(&["node", "node"])
}

fn label(cluster: &Cluster) -> Value {
    node(cluster)["metadata"]["labels"]["hearth.dev/node"].clone()
}

fn is_tainted(cluster: &Cluster) -> bool {
    let node = node(cluster);
    let mut taints = node["spec"]["taints"].as_array().into_iter().flatten();
    taints.any(|taint| taint["key"] == "hearth.dev/starting")
}

fn claims_are_refused(cluster: &Cluster) -> bool {
    let output = cluster.try_hearthctl(&["claim", POOL, "-o", "json"]);
    if let Ok(claim) = serde_json::from_slice::<Value>(&output.stdout)
        && let Some(id) = claim["claim_id"].as_str()
        && output.status.success()
    {
        cluster.hearthctl(&["release", id]);
        return false;
    }
    String::from_utf8_lossy(&output.stderr).contains("NODE_CORDONED")
}

/// One pool of this template; the answer of `pools set`.
fn declare(cluster: &Cluster, warm: u32, image: &str, class: Option<&str>) -> Output {
    declare_as(cluster, POOL, warm, image, class)
}

fn declare_as(
    cluster: &Cluster,
    name: &str,
    warm: u32,
    image: &str,
    class: Option<&str>,
) -> Output {
    let file = cluster.root.join("pools.json");
    let mut template = json!({"image": image, "interpreter": "python"});
    if let Some(class) = class {
        template["runtime_class"] = class.into();
    }
    let pool = json!({"name": name, "min_warm": warm, "max_total": 8, "template": template});
    std::fs::write(&file, json!({"pools": [pool]}).to_string()).unwrap();
    cluster.try_hearthctl(&["pools", "set", "-f", file.to_str().unwrap()])
}

fn pool(cluster: &Cluster) -> Value {
    let text = cluster.hearthctl(&["pools", "-o", "json"]);
    let told: Value = serde_json::from_str(&text).unwrap();
    let pools = told["pools"].as_array().or(told.as_array()).unwrap();
    pools
        .iter()
        .find(|pool| pool["name"] == POOL)
        .unwrap()
        .clone()
}

fn class(cluster: &Cluster, name: &str, handler: &str, selector: Option<(&str, &str)>) {
    let mut object = json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": handler,
    });
    if let Some((label, value)) = selector {
        object["scheduling"] = json!({"nodeSelector": {label: value}});
    }
    cluster.apply(&object);
}

/// Events about the node with this reason: (note, how often).
pub fn events(cluster: &Cluster, reason: &str) -> Vec<(String, u64)> {
    let text = cluster.tool(
        "kubectl",
        &["get", "events.events.k8s.io", "-n", "default", "-o", "json"],
    );
    let list: Value = serde_json::from_str(&text).unwrap();
    let items = list["items"].as_array().unwrap().iter();
    let ours = items.filter(|it| it["reason"] == reason && it["regarding"]["name"] == "node");
    let seen = |it: &Value| {
        (
            it["note"].as_str().unwrap().to_owned(),
            it["series"]["count"].as_u64().unwrap_or(1),
        )
    };
    ours.map(seen).collect()
}

#[test]
fn hearthd_heeds_its_node_and_lives_without_the_api_server() {
    let _alone = alone();
    let cluster = Cluster::find();
    let image = here("target/image/first.tar").display().to_string();
    cluster.tool("ctr", &["-n", "k8s.io", "images", "import", &image]);

    step("a new node is tainted, and labelled when hearth serves");
    cluster.kubectl(&[
        "taint",
        "node",
        "node",
        "hearth.dev/starting=true:NoSchedule",
    ]);
    let values = [
        "image.tag=first",
        "image.pullPolicy=Never",
        "kubernetes.enabled=true",
    ];
    cluster.helm(&["install", "--create-namespace"], &values);
    eventually("the node is labelled", || label(&cluster) == "true");
    assert!(is_tainted(&cluster), "no pool was declared yet");
    cluster.import_python();
    cluster.pool(2);
    eventually("the taint is gone", || !is_tainted(&cluster));
    let mut held = Held::claim(&cluster, 41);
    cluster.pool(2);

    step("cordoned: no claims, no refill; what is there stays");
    cluster.kubectl(&["cordon", "node"]);
    eventually("claims are refused", || claims_are_refused(&cluster));
    assert!(
        cluster
            .page("/metrics")
            .unwrap()
            .contains("hearth_node_cordoned 1")
    );
    held.is_untouched(&cluster, 41);
    let warm = pool(&cluster)["warm"].clone();
    let declared = declare(&cluster, 4, IMAGE, None);
    assert!(declared.status.success(), "{declared:?}");
    // Refill begins at once or not at all.
    std::thread::sleep(Duration::from_secs(3));
    let now = pool(&cluster);
    assert_eq!(
        (&now["warm"], &now["creating"]),
        (&warm, &json!(0)),
        "{now}"
    );
    drained::and_undone(&cluster, &mut held);
    cluster.kubectl(&["uncordon", "node"]);
    eventually("the pool is filled", || pool(&cluster)["warm"] == 4);
    let later = Held::claim(&cluster, 5);
    cluster.hearthctl(&["release", &later.claim]);

    runtime_classes(&cluster);
    held.is_untouched(&cluster, 41);

    step("a template that keeps failing is an Event of the node");
    let declared = declare_as(&cluster, "broken", 1, "hearth.local/nothing:1", None);
    assert!(declared.status.success(), "{declared:?}");
    eventually("operators are told", || {
        let told = events(&cluster, "PoolFailing");
        told.iter()
            .any(|(note, _)| note.contains("hearth.local/nothing:1"))
    });
    assert_eq!(
        events(&cluster, "PoolFailing").len(),
        1,
        "one Event a matter"
    );
    cluster.pool(2);

    without_the_api_server(&cluster, &held);

    step("uninstalled");
    cluster.hearthctl(&["release", &held.claim]);
    cluster.pool(0);
    cluster.no_sandbox_is_left();
    cluster.uninstall();
    cluster.kubectl(&["label", "node", "node", "hearth.dev/node-"]);
    nothing_runs(&cluster);
}

fn runtime_classes(cluster: &Cluster) {
    step("pools by RuntimeClass: what this node can't serve is refused");
    class(cluster, CLASS, "runsc", None);
    class(cluster, "kata-nowhere", "kata-nowhere", None);
    class(
        cluster,
        "elsewhere",
        "runsc",
        Some(("hearth.dev/test", "elsewhere")),
    );
    for (name, word) in [
        ("nope", "there is no RuntimeClass"),
        ("kata-nowhere", "kata-nowhere"),
        ("elsewhere", "hearth.dev/test=elsewhere"),
    ] {
        // The watch tells within moments; until then the class is unknown, which is refused too.
        eventually("it is refused for what is wrong with it", || {
            let output = declare(cluster, 2, IMAGE, Some(name));
            assert!(!output.status.success(), "{name} was taken");
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            told.contains("RUNTIME_CLASS_UNSERVABLE") && told.contains(word)
        });
    }
    eventually("a class that fits is taken", || {
        declare(cluster, 2, IMAGE, Some(CLASS)).status.success()
    });
    eventually("its members are warm", || pool(cluster)["warm"] == 2);

    step("its RuntimeClass goes, and comes back");
    cluster.kubectl(&["delete", "runtimeclass", CLASS]);
    eventually("the pool is unservable", || {
        pool(cluster)["breaker"] == "unservable"
    });
    let reason = pool(cluster)["breaker_reason"].as_str().unwrap().to_owned();
    assert!(reason.contains(CLASS), "{reason}");
    eventually("operators are told", || {
        let told = events(cluster, "PoolUnservable");
        told.iter().any(|(note, _)| note.contains(CLASS))
    });
    class(cluster, CLASS, "runsc", None);
    eventually("the pool is servable", || {
        pool(cluster)["breaker"] == "closed"
    });
    cluster.kubectl(&["delete", "runtimeclass", "kata-nowhere", "elsewhere"]);
}

/// A stopped process answers nobody and closes no connection: worse than one that has died.
fn without_the_api_server(cluster: &Cluster, held: &Held) {
    step("the API server is away: claims, and even a start of hearthd, go on");
    let pid = std::fs::read_to_string(cluster.root.join("pids/kube-apiserver")).unwrap();
    let stop = format!("kill -STOP {}", pid.trim());
    cluster.tool("node", &["sh", "-c", &stop]);
    // No kubectl from here on: it would wait.
    let later = Held::claim(cluster, 7);
    held.is_untouched(cluster, 41);
    let killed = cluster.hearthd();
    let pid = nix::unistd::Pid::from_raw(killed);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("the kubelet has started another hearthd", || {
        cluster
            .try_hearthctl(&["pools", "-o", "name"])
            .status
            .success()
            && cluster.hearthd() != killed
    });
    held.is_untouched(cluster, 41);
    later.is_untouched(cluster, 7);
    let fresh = Held::claim(cluster, 8);
    cluster.hearthctl(&["release", &fresh.claim]);
    cluster.hearthctl(&["release", &later.claim]);

    step("it is killed and comes back: the node is heeded again");
    let root = cluster.root.to_str().unwrap();
    let killed = Command::new(here("hack/cluster.sh"))
        .args(["restart", root, "kube-apiserver"])
        .status();
    assert!(killed.unwrap().success());
    eventually("the API server answers", || {
        cluster
            .try_tool("kubectl", &["get", "--raw", "/readyz"])
            .status
            .success()
    });
    cluster.kubectl(&["cordon", "node"]);
    eventually("claims are refused", || claims_are_refused(cluster));

    step("cordoned, and started while the API server is away: no claim from the first moment");
    cluster.api_server("-STOP");
    let killed = cluster.hearthd();
    let pid = nix::unistd::Pid::from_raw(killed);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let mut answers = Vec::new();
    eventually("another hearthd answers a claim", || {
        let output = cluster.try_hearthctl(&["claim", POOL, "-o", "json"]);
        assert!(!output.status.success(), "{output:?}");
        answers.push(String::from_utf8_lossy(&output.stderr).into_owned());
        answers.last().unwrap().contains("NODE_CORDONED")
    });
    assert_ne!(cluster.hearthd(), killed, "{answers:?}");
    held.is_untouched(cluster, 41);
    cluster.api_server("-CONT");
    cluster.kubectl(&["uncordon", "node"]);
    eventually("claims are taken", || {
        let output = cluster.try_hearthctl(&["claim", POOL, "-o", "json"]);
        let claim: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let Some(id) = claim["claim_id"]
            .as_str()
            .filter(|_| output.status.success())
        else {
            return false;
        };
        cluster.hearthctl(&["release", id]);
        true
    });
    assert_eq!(label(cluster), "true");
    held.is_untouched(cluster, 41);
    let page = cluster.page("/metrics").unwrap();
    for shown in [
        "hearth_kubernetes_followed{kind=\"nodes\"} 1",
        "hearth_kubernetes_followed{kind=\"runtimeclasses\"} 1",
        "hearth_kubernetes_calls_total{call=\"nodes.patch\"",
    ] {
        assert!(page.contains(shown), "{shown}: {page}");
    }
}
