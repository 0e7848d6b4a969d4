//! A node that is reached over TCP with certificates: by hearthctl, by the Python example, and by nobody else.

use crate::hearthd::{Hearth, IMAGE, pool};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

#[path = "../support/certificates.rs"]
mod certificates;
use certificates::{Authority, Issued, Volume, Wanted};

const ALLOCATOR: &str = "spiffe://cluster.local/ns/agents/sa/allocator";

/// A node with a TCP port, its CA, and what callers hold.
pub struct Secure {
    pub hearth: Hearth,
    authority: Authority,
    dir: tempfile::TempDir,
    address: String,
    _volume: Volume,
}

impl Secure {
    pub async fn start() -> Self {
        let (authority, volume) = (Authority::new("node test"), Volume::new());
        let node = Wanted::dns("localhost").and_address("127.0.0.1");
        volume.swap(&authority.issue(&node), &authority.pem());
        let address = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().to_string()
        };
        let file = |name: &str| volume.path(name).display().to_string();
        let hearth = Hearth::start_with(&[
            ("api.tcp", &address),
            ("api.tls.certificate", &file("tls.crt")),
            ("api.tls.key", &file("tls.key")),
            ("api.tls.client_ca", &file("ca.crt")),
            (
                "api.roles.allocator",
                "spiffe://cluster.local/ns/*/sa/allocator",
            ),
            ("api.roles.viewer", "dns:viewer.example"),
        ])
        .await;
        let secure = Self {
            hearth,
            authority,
            dir: tempfile::tempdir().unwrap(),
            address,
            _volume: volume,
        };
        std::fs::write(secure.path("ca"), secure.authority.pem()).unwrap();
        let issue = |wanted: &Wanted| secure.authority.issue(wanted);
        secure.keep("allocator", &issue(&Wanted::spiffe(ALLOCATOR)));
        secure.keep("viewer", &issue(&Wanted::dns("viewer.example")));
        secure.keep(
            "wrong",
            &Authority::new("x").issue(&Wanted::spiffe(ALLOCATOR)),
        );
        secure
    }

    /// A connection of its own with this certificate.
    pub async fn channel(&self, name: &str) -> Channel {
        let read = |file: String| std::fs::read(self.path(&file)).unwrap();
        let ours = Identity::from_pem(read(format!("{name}.crt")), read(format!("{name}.key")));
        let authority = Certificate::from_pem(self.authority.pem());
        let tls = ClientTlsConfig::new()
            .ca_certificate(authority)
            .identity(ours)
            .domain_name("localhost");
        let endpoint = Endpoint::try_from(format!("https://{}", self.address)).unwrap();
        let endpoint = endpoint.tls_config(tls).unwrap();
        endpoint.connect().await.unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn keep(&self, name: &str, issued: &Issued) {
        std::fs::write(self.path(&format!("{name}.crt")), &issued.pem).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), &issued.key_pem).unwrap();
    }

    /// hearthctl with this certificate, all by environment, as in a pod.
    fn ctl(&self, name: &str, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hearthctl"));
        command
            .env("HEARTH_SERVER", format!("https://{}", self.address))
            .env("HEARTH_CA", self.path("ca"))
            .env("HEARTH_CERT", self.path(&format!("{name}.crt")))
            .env("HEARTH_KEY", self.path(&format!("{name}.key")));
        command.args(args).stdin(Stdio::null()).output().unwrap()
    }
}

fn text(output: &Output) -> String {
    let all = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_used_over_tcp_with_certificates() {
    let secure = Secure::start().await;
    let hearth = &secure.hearth;
    let mut python = pool("python", 1, 4);
    python.template.as_mut().unwrap().interpreter = "python".into();
    hearth.set_pools(vec![python]).await;
    hearth.warm("python", 1).await;
    let command = ["run", "python", "--", "echo", "over tcp"];
    let ran = secure.ctl("allocator", &command);
    assert!(ran.status.success(), "{}", text(&ran));
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "over tcp\n");

    // Each role its own.
    let seen = secure.ctl("viewer", &["pools"]);
    assert!(text(&seen).contains("python"), "{}", text(&seen));
    for (who, args) in [
        ("viewer", &["claim", "python"][..]),
        ("allocator", &["image", "rm", IMAGE]),
    ] {
        let refused = secure.ctl(who, args);
        assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
        assert!(text(&refused).contains("NOT_ALLOWED"), "{}", text(&refused));
    }
    let unknown = secure.ctl("wrong", &["pools"]);
    assert!(!unknown.status.success(), "{}", text(&unknown));

    // An admin beside the epoch's owner: the socket's root, while the allocator holds it.
    hearth.warm("python", 1).await;
    let (claim, answer) = hearth.claim("python").await;
    let endpoints: Vec<_> = answer
        .endpoints
        .iter()
        .map(|at| at.address.as_str())
        .collect();
    assert!(
        endpoints.contains(&format!("https://{}", secure.address).as_str()),
        "{endpoints:?}"
    );
    hearth.release(&claim).await;

    hearth.warm("python", 1).await;
    python_example(&secure).await;

    let audit = std::fs::read_to_string(hearth.path("data/audit.log")).unwrap();
    let lines: Vec<serde_json::Value> = audit
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let has = |event: &str, caller: &str, method: &str| {
        lines.iter().any(|line| {
            line["event"] == event && line["caller"] == caller && line["method"] == method
        })
    };
    assert!(has("decision", ALLOCATOR, "Claims/Claim"), "{audit}");
    assert!(has("outcome", ALLOCATOR, "Claims/Release"), "{audit}");
    assert!(
        has("decision", "dns:viewer.example", "Claims/Claim"),
        "{audit}"
    );
    assert!(
        !audit.contains("hearth_") && !audit.contains("warm welcome"),
        "{audit}"
    );
    let (_, metrics) = hearth.admin_page("/metrics");
    assert!(
        metrics.contains(r#"hearth_tls_certificate_expiry_timestamp_seconds{of="server"}"#),
        "{metrics}"
    );
    secure.hearth.finish().await;
}

async fn python_example(secure: &Secure) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python/run.sh");
    let mut command = tokio::process::Command::new(script);
    command
        .args(["--server", &secure.address, "--pool", "python", "--ca"])
        .arg(secure.path("ca"))
        .arg("--cert")
        .arg(secure.path("allocator.crt"))
        .arg("--key")
        .arg(secure.path("allocator.key"));
    command.stdin(Stdio::null()).kill_on_drop(true);
    let ran = tokio::time::timeout(crate::python::PATIENCE, command.output());
    let ran = ran.await.unwrap().unwrap();
    assert!(ran.status.success(), "{}", text(&ran));
    assert!(
        text(&ran).contains("hello from example with a warm welcome"),
        "{}",
        text(&ran)
    );
}

#[test]
fn bad_files_of_tls_are_told_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("x");
    let issued = authority.issue(&Wanted::dns("localhost").expired());
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let checked = Command::new(env!("CARGO_BIN_EXE_hearthd"))
        .arg("--check")
        .args(["--set", "api.tcp=127.0.0.1:1", "--set"])
        .arg(format!("api.tls.certificate={}", write("crt", &issued.pem)))
        .arg("--set")
        .arg(format!("api.tls.key={}", write("key", &issued.key_pem)))
        .arg("--set")
        .arg(format!(
            "api.tls.client_ca={}",
            write("ca", &authority.pem())
        ))
        .arg("--set")
        .arg(format!(
            "runtime.init={}",
            crate::hearthd::static_init().display()
        ))
        .output()
        .unwrap();
    assert_eq!(checked.status.code(), Some(2), "{}", text(&checked));
    assert!(text(&checked).contains("has expired"), "{}", text(&checked));
}
