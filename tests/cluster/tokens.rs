//! Callers with a ServiceAccount token: a real API server says whose it is, and by its own RBAC what its owner may call.

use super::*;

/// How long a good answer counts, seconds.
const ALLOWED: u64 = 30;
/// Where the callers live.
const AGENTS: &str = "agents";

/// Calls over TCP from the node's network.
struct Caller<'a> {
    cluster: &'a Cluster,
    server: String,
    ca: PathBuf,
}

impl Caller<'_> {
    /// hearthctl as whoever has this token.
    fn try_as(&self, token: &str, args: &[&str]) -> Result<String, String> {
        let file = self.cluster.root.join("token");
        std::fs::write(&file, token).unwrap();
        let pid = std::fs::read_to_string(self.cluster.root.join("pid")).unwrap();
        let mut command = Command::new("nsenter");
        command.args([
            "-t",
            pid.trim(),
            "-n",
            "--",
            env!("CARGO_BIN_EXE_hearthctl"),
        ]);
        command.args(["--server", &self.server, "--server-name=hearth"]);
        command.arg("--ca").arg(&self.ca);
        command.arg("--token-file").arg(&file).args(args);
        let output = command.stdin(Stdio::null()).output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// A call that must be refused with this reason.
    fn is_refused(&self, token: &str, args: &[&str], reason: &str) -> String {
        let told = self.try_as(token, args).expect_err(reason);
        assert!(
            told.contains(reason),
            "{reason}: {told}{}",
            self.cluster.state()
        );
        told
    }

    fn claims(&self, token: &str) -> String {
        let told = self.try_as(token, &["claim", POOL, "-o", "json"]);
        let told = told.unwrap_or_else(|told| panic!("{told}{}", self.cluster.state()));
        let claim: Value = serde_json::from_str(&told).unwrap();
        let id = claim["claim_id"].as_str().unwrap().to_owned();
        self.try_as(token, &["release", &id]).unwrap();
        id
    }
}

fn account(cluster: &Cluster, name: &str) {
    cluster.put(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": AGENTS, "name": name},
    }));
}

fn token(cluster: &Cluster, account: &str, audience: Option<&str>) -> String {
    let audience = audience.map(|audience| format!("--audience={audience}"));
    let mut args = vec!["-n", AGENTS, "create", "token", account, "--duration=10m"];
    args.extend(audience.as_deref());
    cluster.tool("kubectl", &args).trim().to_owned()
}

/// In hearth's namespace, of the Role that the chart brings.
fn bind(cluster: &Cluster, account: &str) {
    cluster.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": account},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "hearth-claimer"},
        "subjects": [{"kind": "ServiceAccount", "namespace": AGENTS, "name": account}],
    }));
}

#[test]
fn the_cluster_says_who_may_claim() {
    let _alone = alone();
    let cluster = Cluster::find();
    let image = here("target/image/first.tar").display().to_string();
    cluster.tool("ctr", &["-n", "k8s.io", "images", "import", &image]);
    cluster.namespace("hearth", json!({}));
    cluster.namespace(AGENTS, json!({}));
    let authority = Authority::new("test");
    let server = authority.issue(&Wanted::dns("hearth"));
    cluster.secret("hearth-tls", &authority, &server);
    let allowed = format!("config.kubernetes.tokens.allowed_seconds={ALLOWED}");
    let values = [
        "image.tag=first",
        "image.pullPolicy=Never",
        "kubernetes.enabled=true",
        "kubernetes.tokens.enabled=true",
        "api.tcp.enabled=true",
        "api.tcp.tlsSecret=hearth-tls",
        "config.kubernetes.tokens.refused_seconds=1",
        &allowed,
    ];
    cluster.helm(&["install"], &values);
    cluster.import_python();
    cluster.pool(2);
    for name in ["allocator", "stranger", "late"] {
        account(&cluster, name);
    }
    let address = cluster.pod()["status"]["podIP"]
        .as_str()
        .unwrap()
        .to_owned();
    let ca = cluster.root.join("tokens-ca.crt");
    std::fs::write(&ca, authority.pem()).unwrap();
    let caller = Caller {
        cluster: &cluster,
        server: format!("https://{address}:9470"),
        ca,
    };

    step("a ServiceAccount without a right is refused, and one with a Role claims");
    let allocator = token(&cluster, "allocator", Some("hearth"));
    let told = caller.is_refused(&allocator, &["claims"], "NOT_GRANTED");
    for word in [
        "k8s:system:serviceaccount:agents:allocator",
        "list",
        "claims",
        "hearth.dev",
    ] {
        assert!(told.contains(word), "{word}: {told}");
    }
    bind(&cluster, "allocator");
    eventually("the binding is in force", || {
        caller.try_as(&allocator, &["claims"]).is_ok()
    });
    caller.claims(&allocator);
    let pools = cluster.root.join("pools.json");
    let set = ["pools", "set", "-f", pools.to_str().unwrap()];
    caller.is_refused(&allocator, &set, "NOT_GRANTED");
    let stranger = token(&cluster, "stranger", Some("hearth"));
    caller.is_refused(&stranger, &["claims"], "NOT_GRANTED");

    step("tokens for others, and no tokens at all, open nothing");
    let others = token(&cluster, "allocator", None);
    caller.is_refused(&others, &["claims"], "TOKEN_REFUSED");
    let (front, _) = allocator.rsplit_once('.').unwrap();
    let forged = format!("{front}.c2ln");
    caller.is_refused(&forged, &["claims"], "TOKEN_REFUSED");
    caller.is_refused("garbage", &["claims"], "TOKEN_REFUSED");

    step("claimed from a pod with a projected token and no certificate");
    claimed_by_a_pod(&caller, &authority);
    let audit = format!("{}/var/lib/hearth/audit.log", cluster.node());
    let audit = std::fs::read_to_string(audit).unwrap();
    for part in [
        r#""caller":"k8s:system:serviceaccount:agents:allocator""#,
        r#""by":"grant""#,
        r#""by":"NOT_GRANTED""#,
    ] {
        assert!(audit.contains(part), "{part}: {audit}");
    }
    assert!(!audit.contains(&allocator) && !audit.contains(front));

    step("a binding that is deleted ends its right within the answer's age");
    cluster.kubectl(&["delete", "rolebinding", "allocator"]);
    eventually("the right has ended", || {
        let asked = caller.try_as(&allocator, &["claims"]);
        asked.is_err_and(|told| told.contains("NOT_GRANTED"))
    });
    bind(&cluster, "allocator");
    bind(&cluster, "late");
    eventually("the binding is in force again", || {
        caller.try_as(&allocator, &["claims"]).is_ok()
    });

    without_the_api_server(&caller, &allocator);

    step("uninstalled");
    let page = cluster.page("/metrics").unwrap();
    for shown in [
        "hearth_token_reviews_total{result=\"good\",review=\"token\"}",
        "hearth_kubernetes_calls_total{call=\"tokenreviews.create\",result=\"ok\"}",
        "hearth_kubernetes_calls_total{call=\"subjectaccessreviews.create\",result=\"ok\"}",
    ] {
        assert!(page.contains(shown), "{shown}: {page}");
    }
    cluster.pool(0);
    cluster.no_sandbox_is_left();
    cluster.uninstall();
    cluster.kubectl(&["delete", "rolebinding", "allocator", "late"]);
    cluster.kubectl(&["delete", "secret", "hearth-tls"]);
    cluster.kubectl(&["delete", "namespace", AGENTS]);
    cluster.kubectl(&["label", "node", "node", "hearth.dev/node-"]);
    nothing_runs(&cluster);
}

/// hearthctl in a pod that has a token for hearth, hearthd's CA, and nothing else.
fn claimed_by_a_pod(caller: &Caller<'_>, authority: &Authority) {
    let cluster = caller.cluster;
    cluster.put(&json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": AGENTS, "name": "hearth-ca"},
        "data": {"ca.crt": authority.pem()},
    }));
    let projected = json!({"path": "token", "audience": "hearth", "expirationSeconds": 600});
    cluster.put(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": AGENTS, "name": "claimer"},
        "spec": {
            "serviceAccountName": "allocator", "automountServiceAccountToken": false,
            "restartPolicy": "Never", "enableServiceLinks": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65534, "fsGroup": 65534},
            "volumes": [
                {"name": "ca", "configMap": {"name": "hearth-ca"}},
                {"name": "token", "projected": {"sources": [{"serviceAccountToken": projected}]}},
            ],
            "containers": [{
                "name": "claimer", "image": "hearth.local/hearth:first", "imagePullPolicy": "Never",
                "command": [
                    "hearthctl", "--server", caller.server, "--server-name=hearth", "--ca=/ca/ca.crt",
                    "--token-file=/hearth/token", "claim", POOL, "-o", "json",
                ],
                "volumeMounts": [
                    {"name": "ca", "mountPath": "/ca", "readOnly": true},
                    {"name": "token", "mountPath": "/hearth", "readOnly": true},
                ],
            }],
        },
    }));
    let mut phase = String::new();
    eventually("the pod has ended", || {
        let pod = cluster.get(&["pod", "claimer", "-n", AGENTS]);
        phase = pod["status"]["phase"].as_str().unwrap_or_default().into();
        ["Succeeded", "Failed"].contains(&phase.as_str())
    });
    let log = cluster.tool("kubectl", &["logs", "-n", AGENTS, "claimer"]);
    assert_eq!(phase, "Succeeded", "{log}{}", cluster.state());
    let claim: Value = serde_json::from_str(&log).unwrap();
    cluster.hearthctl(&["release", claim["claim_id"].as_str().unwrap()]);
}

/// A stopped process answers nobody and closes no connection: worse than one that has died.
fn without_the_api_server(caller: &Caller<'_>, known: &str) {
    let cluster = caller.cluster;
    step("the API server is stopped: who is known goes on, the others are told to wait");
    let late = token(cluster, "late", Some("hearth"));
    let pid = std::fs::read_to_string(cluster.root.join("pids/kube-apiserver")).unwrap();
    let signal = |name: &str| {
        let kill = format!("kill -{name} {}", pid.trim());
        cluster.tool("node", &["sh", "-c", &kill]);
    };
    let began = Instant::now();
    // All that it asks for is remembered from now on, or from a little earlier: an answer in use is renewed.
    caller.claims(known);
    signal("STOP");
    let stood_still = || began.elapsed() > Duration::from_secs(ALLOWED / 6);
    match caller.try_as(known, &["claim", POOL, "-o", "json"]) {
        Ok(told) => {
            let claim: Value = serde_json::from_str(&told).unwrap();
            cluster.hearthctl(&["release", claim["claim_id"].as_str().unwrap()]);
        }
        Err(told) => assert!(
            stood_still() && told.contains("AUTHORITY_UNAVAILABLE"),
            "{told}"
        ),
    }
    let told = caller.try_as(&late, &["claims"]).unwrap_err();
    let others = cluster.hearthctl(&["claim", POOL, "-o", "json"]);
    // Before anything can fail that would ask it for a report.
    signal("CONT");
    assert!(told.contains("AUTHORITY_UNAVAILABLE"), "{told}");
    let claim: Value = serde_json::from_str(&others).unwrap();
    cluster.hearthctl(&["release", claim["claim_id"].as_str().unwrap()]);
    eventually("the API server is asked again", || {
        caller.try_as(&late, &["claims"]).is_ok()
    });
}
