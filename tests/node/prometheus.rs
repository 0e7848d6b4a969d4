//! Debian's Prometheus, scraping one hearthd every second with the rules that hearth ships. Ends with the value.

use super::hearthd::{eventually, tool};
use serde_json::Value;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The directory of what hearth ships for Prometheus.
pub fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("daemonset")
        .join(name)
}

pub struct Prometheus {
    child: Child,
    address: String,
    root: tempfile::TempDir,
}

impl Prometheus {
    /// Starts it and waits until it serves.
    pub async fn start(scraped: &str) -> Self {
        let root = tempfile::Builder::new()
            .prefix("hprom")
            .tempdir_in("/tmp")
            .unwrap();
        let address = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().to_string()
        };
        let config = serde_json::json!({
            "global": {
                "scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s",
            },
            "rule_files": [shipped("prometheus/rules.yaml"), shipped("prometheus/alerts.yaml")],
            "scrape_configs": [{
                "job_name": "hearth", "static_configs": [{ "targets": [scraped] }],
            }],
        });
        // JSON is YAML too.
        let file = root.path().join("prometheus.yaml");
        std::fs::write(&file, config.to_string()).unwrap();
        let log = std::fs::File::create(root.path().join("log")).unwrap();
        let child = Command::new(tool("prometheus"))
            .arg("--config.file")
            .arg(file)
            .arg("--storage.tsdb.path")
            .arg(root.path().join("data"))
            .arg("--web.listen-address")
            .arg(&address)
            .arg("--log.level=warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let prometheus = Self {
            child,
            address,
            root,
        };
        eventually("Prometheus is ready", || async {
            matches!(prometheus.get("/-/ready"), Ok((200, _)))
        })
        .await;
        prometheus
    }

    /// HTTP/1.0: an answer is whole when the connection ends.
    fn get(&self, path: &str) -> std::io::Result<(u16, String)> {
        let mut stream = std::net::TcpStream::connect(&self.address)?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((code.unwrap_or_default(), body.to_owned()))
    }

    /// The data of an answer of the API, which must succeed.
    fn api(&self, path: &str) -> Value {
        let (code, body) = self.get(path).unwrap();
        let answer: Value = serde_json::from_str(&body).unwrap_or_default();
        assert!(
            code == 200 && answer["status"] == "success",
            "{path}: {code} {body}\n{}",
            std::fs::read_to_string(self.root.path().join("log")).unwrap_or_default()
        );
        answer["data"].clone()
    }

    /// Numbers that the expression has now: an error of it fails the test, no data and not-a-number give none.
    pub fn query(&self, expression: &str) -> Vec<f64> {
        let encoded: String = expression.bytes().map(|b| format!("%{b:02X}")).collect();
        let data = self.api(&format!("/api/v1/query?query={encoded}"));
        let samples = data["result"].as_array().unwrap();
        let number = |sample: &Value| sample["value"][1].as_str()?.parse::<f64>().ok();
        let numbers = samples.iter().filter_map(number);
        numbers.filter(|number| number.is_finite()).collect()
    }

    /// Every rule that it evaluates.
    pub fn rules(&self) -> Vec<Value> {
        let groups = self.api("/api/v1/rules");
        let groups = groups["groups"].as_array().unwrap().iter();
        groups
            .flat_map(|group| group["rules"].as_array().unwrap().clone())
            .collect()
    }

    /// Is the alert pending or firing, for this pool if one is named?
    pub fn raised(&self, name: &str, pool: Option<&str>) -> bool {
        let data = self.api("/api/v1/alerts");
        let alerts = data["alerts"].as_array().unwrap();
        alerts.iter().any(|alert| {
            let labels = &alert["labels"];
            labels["alertname"] == name && pool.is_none_or(|pool| labels["pool"] == pool)
        })
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}
