//! Pools that objects of the cluster declare, and what the cluster's own admission says of their templates: with a real API
//! server, its real Pod Security, ResourceQuota, LimitRange and ValidatingAdmissionPolicy.

use super::{Cluster, IMAGE, alone, eventually, here, step};
use serde_json::{Value, json};
use std::time::Duration;

const WITH_POOLS: &[&str] = &[
    "image.tag=first",
    "image.pullPolicy=Never",
    "kubernetes.enabled=true",
    "kubernetes.warmPools=true",
    "config.kubernetes.admission_seconds=10",
    "config.policy.limits_set=audit",
];

impl Cluster {
    /// An object of any namespace.
    pub(super) fn put(&self, object: &Value) {
        let file = self.root.join("object.json");
        std::fs::write(&file, object.to_string()).unwrap();
        self.tool("kubectl", &["apply", "-f", file.to_str().unwrap()]);
    }

    pub(super) fn warm_pool(&self, namespace: &str, name: &str, spec: Value) -> Value {
        let object = json!({
            "apiVersion": "hearth.dev/v1alpha1", "kind": "WarmPool",
            "metadata": {"namespace": namespace, "name": name}, "spec": spec,
        });
        self.put(&object);
        object
    }

    fn status(&self, namespace: &str, name: &str) -> Value {
        let args = ["warmpool", name, "-n", namespace];
        self.get(&args)["status"].take()
    }

    /// Waits until a condition of the object is as said; its message.
    pub(super) fn condition(
        &self,
        (namespace, name): (&str, &str),
        kind: &str,
        is: (&str, &str),
    ) -> String {
        let mut seen = Value::Null;
        let mut found = String::new();
        let what = format!("{namespace}/{name} is {kind} {is:?}");
        let began = std::time::Instant::now();
        loop {
            seen.clone_from(&self.status(namespace, name));
            let conditions = seen["conditions"].as_array().cloned().unwrap_or_default();
            let one = conditions.iter().find(|it| it["type"] == kind);
            if let Some(one) = one
                && one["status"] == is.0
                && one["reason"] == is.1
            {
                found.push_str(one["message"].as_str().unwrap());
                return found;
            }
            assert!(
                began.elapsed() < super::PATIENCE,
                "{what}: {seen}{}",
                self.state()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn has(&self, (namespace, name): (&str, &str), field: &str, value: u32) {
        eventually(&format!("{namespace}/{name}: {field} is {value}"), || {
            self.status(namespace, name)[field] == value
        });
    }

    pub(super) fn fails(&self, tool: &str, args: &[&str]) -> String {
        let output = self.try_tool(tool, args);
        assert!(!output.status.success(), "{args:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    pub(super) fn namespace(&self, name: &str, labels: Value) {
        self.put(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
        }));
        eventually("its service account is there", || {
            let args = ["get", "serviceaccount", "default", "-n", name];
            self.try_tool("kubectl", &args).status.success()
        });
    }

    /// Stops or continues the API server, which then neither answers nor refuses.
    pub fn api_server(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.root.join("pids/kube-apiserver")).unwrap();
        self.tool("node", &["busybox", "kill", signal, pid.trim()]);
    }

    fn pools_of_node(&self) -> Value {
        serde_json::from_str(&self.hearthctl(&["pools", "-o", "json"])).unwrap()
    }

    fn pool_of_node(&self, name: &str) -> Value {
        let pools = self.pools_of_node()["pools"].take();
        let pools = pools.as_array().unwrap();
        let found = pools.iter().find(|pool| pool["name"] == name);
        found.cloned().unwrap_or(Value::Null)
    }

    pub(super) fn metric(&self, line: &str) -> bool {
        self.page("/metrics")
            .is_ok_and(|page| page.lines().any(|it| it == line))
    }

    pub(super) fn claim(&self, pool: &str) -> String {
        let text = self.hearthctl(&["claim", pool, "--wait", "60s", "-o", "json"]);
        let claim: Value = serde_json::from_str(&text).unwrap();
        claim["claim_id"].as_str().unwrap().to_owned()
    }
}

fn spec(min_warm: u32) -> Value {
    json!({
        "minWarm": min_warm, "maxTotal": 4,
        "template": {"image": IMAGE, "resources": {"cpu": "500m", "memory": "256Mi", "disk": "64Mi"}},
    })
}

#[test]
fn pools_come_from_the_cluster() {
    let _alone = alone();
    let cluster = Cluster::find();
    let image = here("target/image/first.tar").display().to_string();
    cluster.tool("ctr", &["-n", "k8s.io", "images", "import", &image]);
    let values = |mode: &'static str| [WITH_POOLS, &[mode][..]].concat();

    step("installed with WarmPools, admission audited");
    cluster.helm(
        &["install", "--create-namespace"],
        &values("kubernetes.admission=audit"),
    );
    cluster.import_python();
    cluster.namespace("tenant", json!({}));
    declared_scaled_and_claimed(&cluster);
    told_apart_from_set_pools(&cluster);
    goes_on_without_the_api_server(&cluster);

    step("audited: denied, told, and made all the same");
    denied_by_every_kind_of_rule(&cluster);

    step("enforced: what is denied is not made");
    cluster.helm(&["upgrade"], &values("kubernetes.admission=enforce"));
    held_until_the_rule_changes(&cluster);

    step("gone with its object, and claims stay");
    let claim = cluster.claim("python");
    for namespace in ["tenant", "restricted", "quota", "range", "pinned"] {
        cluster.kubectl(&["delete", "warmpools", "--all", "-n", namespace]);
    }
    eventually("no pool is left", || {
        cluster.pools_of_node()["pools"] == json!([])
    });
    let told = cluster.hearthctl(&["exec", &claim, "--", "sh", "-c", "echo alive"]);
    assert_eq!(told.trim(), "alive");
    cluster.hearthctl(&["release", &claim]);
    cluster.no_sandbox_is_left();
    cluster.uninstall();
    cluster.kubectl(&["delete", "crd", "warmpools.hearth.dev"]);
    cluster.kubectl(&[
        "delete",
        "namespace",
        "tenant",
        "restricted",
        "quota",
        "range",
        "pinned",
    ]);
    eventually("no pod is left", || {
        cluster.get(&["pods"])["items"] == json!([])
    });
    super::nothing_runs(&cluster);
}

const PYTHON: (&str, &str) = ("tenant", "python");

fn declared_scaled_and_claimed(cluster: &Cluster) {
    step("the API server knows the bounds");
    let mut wrong = spec(5);
    wrong["template"]["networkPolicy"] =
        json!({"mode": "None", "allow": [{"name": "example.com"}]});
    let object = json!({
        "apiVersion": "hearth.dev/v1alpha1", "kind": "WarmPool",
        "metadata": {"namespace": "tenant", "name": "python"}, "spec": wrong,
    });
    let file = cluster.root.join("wrong.json");
    std::fs::write(&file, object.to_string()).unwrap();
    let told = cluster.fails("kubectl", &["apply", "-f", file.to_str().unwrap()]);
    for what in [
        "minWarm must be at most maxTotal",
        "allow belongs to mode Allowlist",
    ] {
        assert!(told.contains(what), "{told}");
    }

    step("a WarmPool becomes a pool, and tells of it");
    cluster.warm_pool("tenant", "python", spec(1));
    let wait = [
        "wait",
        "-n",
        "tenant",
        "--for=condition=Ready",
        "warmpool/python",
        "--timeout=120s",
    ];
    cluster.kubectl(&wait);
    cluster.condition(PYTHON, "Accepted", ("True", "OnAllNodes"));
    cluster.condition(PYTHON, "Admitted", ("True", "OnAllNodes"));
    let status = cluster.status("tenant", "python");
    let node = &status["nodes"][0];
    assert_eq!((&node["node"], &node["warm"]), (&json!("node"), &json!(1)));
    assert_eq!(
        (&status["nodesReady"], &status["nodesTotal"]),
        (&json!(1), &json!(1))
    );
    let managed = cluster.kubectl(&[
        "get",
        "wp",
        "python",
        "-n",
        "tenant",
        "-o",
        "json",
        "--show-managed-fields",
    ]);
    assert!(
        managed.contains("\"manager\": \"hearth/node\""),
        "{managed}"
    );
    let shown = cluster.kubectl(&["get", "wp", "-n", "tenant"]);
    for word in ["MIN", "WARM", "CLAIMED", "READY", "NODES", "True"] {
        assert!(shown.contains(word), "{shown}");
    }
    assert_eq!(cluster.pool_of_node("python")["warm_pool"], "tenant/python");

    step("kubectl scale");
    let scale = |replicas: &str| {
        let replicas = format!("--replicas={replicas}");
        cluster.try_tool(
            "kubectl",
            &["scale", "-n", "tenant", "warmpool/python", &replicas],
        )
    };
    assert!(scale("2").status.success());
    cluster.has(PYTHON, "warm", 2);
    let path = "/apis/hearth.dev/v1alpha1/namespaces/tenant/warmpools/python/scale";
    let shown: Value = serde_json::from_str(&cluster.kubectl(&["get", "--raw", path])).unwrap();
    assert_eq!(
        (&shown["spec"]["replicas"], &shown["status"]["replicas"]),
        (&json!(2), &json!(2))
    );
    let beyond = scale("9");
    assert!(!beyond.status.success(), "more than maxTotal");

    step("a job scales it");
    job_scales(cluster);

    step("claimed");
    let claim = cluster.claim("python");
    cluster.has(PYTHON, "claimed", 1);
    cluster.hearthctl(&["release", &claim]);
    cluster.has(PYTHON, "claimed", 0);

    step("a RuntimeClass in the place of a handler");
    cluster.put(&json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "of-pools"}, "handler": "runsc",
    }));
    let mut classed = spec(0);
    classed["template"]["runtimeClassName"] = "of-pools".into();
    cluster.warm_pool("tenant", "classed", classed);
    let object = ("tenant", "classed");
    cluster.condition(object, "Accepted", ("True", "OnAllNodes"));
    cluster.condition(object, "Admitted", ("True", "OnAllNodes"));
    cluster.kubectl(&["delete", "warmpool", "classed", "-n", "tenant"]);
    cluster.kubectl(&["delete", "runtimeclass", "of-pools"]);
    unservable_until_its_class_comes(cluster);

    step("an invalid template is told, and costs no members");
    let mut slip = spec(2);
    slip["template"]["runtimeHandler"] = json!("nope");
    cluster.warm_pool("tenant", "python", slip);
    let told = cluster.condition(PYTHON, "Accepted", ("False", "InvalidSpec"));
    assert!(told.contains("spec.template.runtimeHandler"), "{told}");
    assert_eq!(cluster.pool_of_node("python")["warm"], 2);
    let mut unlimited = spec(2);
    unlimited["template"]["resources"] = json!({"memory": "256Mi"});
    cluster.warm_pool("tenant", "python", unlimited);
    let told = cluster.condition(PYTHON, "Admitted", ("False", "ChecksFailed"));
    assert!(
        told.contains("limits_set: spec.template.resources.cpu"),
        "{told}"
    );
    cluster.warm_pool("tenant", "python", spec(2));
    cluster.condition(PYTHON, "Admitted", ("True", "OnAllNodes"));
    cluster.condition(PYTHON, "Ready", ("True", "OnAllNodes"));
}

fn unservable_until_its_class_comes(cluster: &Cluster) {
    step("a RuntimeClass that is not there, and one that hearth can't serve");
    let object = ("tenant", "late");
    let class = |handler: &str| {
        cluster.put(&json!({
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "late"}, "handler": handler,
        }));
    };
    let mut late = spec(1);
    late["template"]["runtimeClassName"] = "late".into();
    cluster.warm_pool("tenant", "late", late);
    let told = cluster.condition(object, "Accepted", ("False", "Unservable"));
    assert!(told.contains("there is no RuntimeClass"), "{told}");
    cluster.condition(object, "Ready", ("False", "NoPool"));
    class("kata-nowhere");
    eventually("the handler is named", || {
        let told = cluster.condition(object, "Accepted", ("False", "Unservable"));
        told.contains("kata-nowhere")
    });
    assert_eq!(cluster.pool_of_node("late"), Value::Null);

    step("it comes, and the pool fills");
    // A handler can't be changed.
    cluster.kubectl(&["delete", "runtimeclass", "late"]);
    class("runsc");
    cluster.condition(object, "Accepted", ("True", "OnAllNodes"));
    cluster.condition(object, "Ready", ("True", "OnAllNodes"));
    assert_eq!(cluster.pool_of_node("late")["warm"], 1);
    cluster.kubectl(&["delete", "warmpool", "late", "-n", "tenant"]);
    cluster.kubectl(&["delete", "runtimeclass", "late"]);
}

/// examples/scale: what it may do is what it needs.
fn job_scales(cluster: &Cluster) {
    let text = std::fs::read_to_string(here("examples/scale/scale.yaml")).unwrap();
    assert!(text.contains("/scale"));
    let file = cluster.root.join("scale.yaml");
    // No registry here, and no kubectl in an image: the roles are tried with the token of the job's account.
    std::fs::write(&file, &text).unwrap();
    cluster.kubectl(&[
        "apply",
        "-n",
        "tenant",
        "--dry-run=server",
        "-f",
        file.to_str().unwrap(),
    ]);
    cluster.kubectl(&[
        "apply",
        "-n",
        "tenant",
        "-f",
        file.to_str().unwrap(),
        "-l",
        "hearth.dev/example=rights",
    ]);
    let token = cluster.kubectl(&["create", "token", "scale-python", "-n", "tenant"]);
    let token = format!("--token={}", token.trim());
    let scale = |replicas: &str| {
        let args = [&token, "scale", "-n", "tenant", "warmpool/python", replicas];
        cluster.try_tool("kubectl", &args).status.success()
    };
    assert!(scale("--replicas=1"));
    cluster.has(PYTHON, "warm", 1);
    assert!(scale("--replicas=2"));
    cluster.has(PYTHON, "warm", 2);
    let beyond = [token.as_str(), "delete", "-n", "tenant", "warmpool/python"];
    assert!(!cluster.try_tool("kubectl", &beyond).status.success());
}

fn told_apart_from_set_pools(cluster: &Cluster) {
    step("SetPools and WarmPools leave each other alone");
    let file = cluster.root.join("pools.json");
    let set = |name: &str| {
        let pools = json!({"pools": [{"name": name, "min_warm": 0, "max_total": 1, "template": {"image": IMAGE}}]});
        std::fs::write(&file, pools.to_string()).unwrap();
        cluster.try_hearthctl(&["pools", "set", "-f", file.to_str().unwrap()])
    };
    assert!(set("mine").status.success());
    assert_eq!(cluster.pool_of_node("python")["warm"], 2);
    let taken = set("python");
    let told = String::from_utf8_lossy(&taken.stderr);
    assert!(
        !taken.status.success() && told.contains("POOL_OF_WARM_POOL"),
        "{told}"
    );
    cluster.warm_pool("tenant", "mine", spec(1));
    cluster.condition(("tenant", "mine"), "Accepted", ("False", "NameTaken"));
    cluster.kubectl(&["delete", "warmpool", "mine", "-n", "tenant"]);
    std::fs::write(&file, json!({"pools": []}).to_string()).unwrap();
    cluster.hearthctl(&["pools", "set", "-f", file.to_str().unwrap()]);
    assert_eq!(cluster.pool_of_node("python")["warm"], 2);
}

fn goes_on_without_the_api_server(cluster: &Cluster) {
    step("the API server hangs: claims, refill and a restart of hearthd go on");
    cluster.api_server("-STOP");
    let claims = [cluster.claim("python"), cluster.claim("python")];
    eventually("refilled", || cluster.pool_of_node("python")["warm"] == 2);
    let before = cluster.hearthd();
    let killed = nix::unistd::Pid::from_raw(before);
    nix::sys::signal::kill(killed, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("hearthd is back, with its pools", || {
        let output = cluster.try_hearthctl(&["pools", "-o", "json"]);
        let pools: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        pools["pools"][0]["warm"] == 2
    });
    assert_ne!(cluster.hearthd(), before);
    let third = cluster.claim("python");
    cluster.hearthctl(&["release", &third]);
    cluster.api_server("-CONT");

    step("it is back: the status catches up");
    cluster.has(PYTHON, "claimed", 2);
    for claim in &claims {
        cluster.hearthctl(&["release", claim]);
    }
    cluster.has(PYTHON, "claimed", 0);
}

/// Each denies the template in its own words; nothing is stored of what was asked.
fn denied_by_every_kind_of_rule(cluster: &Cluster) {
    cluster.namespace(
        "restricted",
        json!({"pod-security.kubernetes.io/enforce": "restricted"}),
    );
    cluster.namespace("quota", json!({}));
    cluster.namespace("range", json!({}));
    cluster.namespace("pinned", json!({"images": "pinned"}));
    quota(cluster, "64Mi");
    cluster.put(&json!({
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"namespace": "range", "name": "small"},
        "spec": {"limits": [{"type": "Container", "max": {"memory": "64Mi"}}]},
    }));
    cluster.put(&json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "pinned-images"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]},
            "validations": [{
                "expression": "object.spec.containers.all(c, c.image.contains('@sha256:'))",
                "message": "name images by digest",
            }],
        },
    }));
    cluster.put(&json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "pinned-images"},
        "spec": {
            "policyName": "pinned-images", "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": {"images": "pinned"}}},
        },
    }));
    for (namespace, rule, words) in [
        (
            "restricted",
            "PodSecurity/restricted:latest: ",
            "violates PodSecurity",
        ),
        ("quota", "ResourceQuota/small: ", "exceeded quota: small"),
        (
            "range",
            "LimitRange: ",
            "maximum memory usage per Container is 64Mi",
        ),
        (
            "pinned",
            "ValidatingAdmissionPolicy/pinned-images: ",
            "name images by digest",
        ),
    ] {
        step(&format!("in namespace {namespace}"));
        let name = format!("in-{namespace}");
        let object = (namespace, name.as_str());
        cluster.warm_pool(namespace, &name, spec(1));
        let told = cluster.condition(object, "Admitted", ("False", "Denied"));
        assert!(told.contains(rule) && told.contains(words), "{told}");
        assert!(told.contains("told only"), "{told}");
        cluster.condition(object, "Ready", ("True", "OnAllNodes"));
        let denied = format!("hearth_pool_denied{{pool=\"{name}\"}} 1");
        assert!(cluster.metric(&denied), "{denied}");
        let pods = cluster.get(&["pods", "-n", namespace])["items"].take();
        assert_eq!(pods, json!([]), "nothing is stored");
    }
    let used = cluster.get(&["resourcequota", "small", "-n", "quota"]);
    assert_eq!(used["status"]["used"]["limits.memory"], "0");
    assert!(cluster.metric("hearth_pool_denied{pool=\"python\"} 0"));
    assert!(cluster.metric("hearth_pool_held{pool=\"in-quota\"} 0"));

    step("its right to create Pods is one to ask");
    let token = cluster.kubectl(&["create", "token", "hearth"]);
    let token = format!("--token={}", token.trim());
    let run = [
        token.as_str(),
        "run",
        "p",
        "-n",
        "tenant",
        "--image=a",
        "--restart=Never",
    ];
    let told = cluster.fails("kubectl", &run);
    assert!(told.contains("in dry runs only"), "{told}");
    assert!(
        cluster
            .try_tool("kubectl", &[&run[..], &["--dry-run=server"]].concat())
            .status
            .success()
    );
}

fn quota(cluster: &Cluster, memory: &str) {
    cluster.put(&json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"namespace": "quota", "name": "small"},
        "spec": {"hard": {"limits.memory": memory}},
    }));
    // The controller tells what is used; before that the quota denies nothing.
    eventually("the quota is in force", || {
        let quota = cluster.get(&["resourcequota", "small", "-n", "quota"]);
        quota["status"]["hard"]["limits.memory"] == memory
    });
}

fn held_until_the_rule_changes(cluster: &Cluster) {
    let object = ("quota", "in-quota");
    eventually("hearthd says that it holds", || {
        cluster.pool_of_node("in-quota")["held"] != Value::Null
    });
    // The member that is there is handed out; another one is not made.
    let claim = cluster.claim("in-quota");
    let told = cluster.condition(object, "Ready", ("False", "Held"));
    assert!(told.contains("ResourceQuota/small"), "{told}");
    let refused = cluster.try_hearthctl(&["claim", "in-quota"]);
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && told.contains("POLICY_REFUSED"),
        "{told}"
    );
    let alive = cluster.hearthctl(&["exec", &claim, "--", "sh", "-c", "echo alive"]);
    assert_eq!(alive.trim(), "alive");
    eventually("it is counted", || {
        cluster.metric("hearth_pool_held{pool=\"in-quota\"} 1")
    });
    assert_eq!(cluster.pool_of_node("in-quota")["warm"], 0);
    cluster.condition(PYTHON, "Ready", ("True", "OnAllNodes"));

    step("the quota is raised: it is asked again, and fills");
    quota(cluster, "1Gi");
    cluster.condition(object, "Ready", ("True", "OnAllNodes"));
    cluster.condition(object, "Admitted", ("True", "OnAllNodes"));
    cluster.hearthctl(&["release", &claim]);
}
