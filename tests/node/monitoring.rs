//! What operators watch, on the real thing: a real Prometheus scrapes a real hearthd, evaluates the rules and answers
//! every query of the dashboard; docs/metrics.md says what a scrape shows, and nothing else.

use super::hearthd::{Hearth, claim_request, eventually, fresh_id, pool, tool};
use super::prometheus::{Prometheus, shipped};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Alerts of a node that is well; those that depend on how quick the machine is are not among them.
const QUIET: [&str; 9] = [
    "HearthDown",
    "HearthRestarting",
    "HearthNotReady",
    "HearthContainerdUnreachable",
    "HearthContainerdRestarting",
    "HearthShimWedged",
    "HearthOrphans",
    "HearthGuestBreaksProtocol",
    "HearthDiskReserveReached",
];

fn text(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(root.join(path)).unwrap()
}

/// (name, expression) of every alert.
fn alerts() -> Vec<(String, String)> {
    let file: Value = serde_norway::from_str(&text("daemonset/prometheus/alerts.yaml")).unwrap();
    let groups = file["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap().iter());
    let word = |rule: &Value, key: &str| rule[key].as_str().unwrap().to_owned();
    let alerts = rules.map(|rule| (word(rule, "alert"), word(rule, "expr")));
    alerts.collect()
}

/// The metrics that an expression selects, each with its matchers.
fn selectors(expression: &str) -> Vec<String> {
    let ours =
        |name: &str| name == "up" || ["hearth", "process_"].iter().any(|p| name.starts_with(p));
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find(|c: char| c.is_ascii_alphabetic()) {
        rest = &rest[at..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
        let name = &rest[..end.unwrap_or(rest.len())];
        let mut whole = name;
        if rest[name.len()..].starts_with('{') {
            whole = &rest[..=rest.find('}').unwrap()];
        }
        if ours(name) {
            found.push(whole.to_owned());
        }
        rest = &rest[whole.len()..];
    }
    found
}

/// (title, expression) of everything that the dashboard asks, its variables filled in.
fn dashboard() -> Vec<(String, String)> {
    let file = std::fs::read_to_string(shipped("grafana/hearth.json")).unwrap();
    let board: Value = serde_json::from_str(&file).unwrap();
    let mut asked = Vec::new();
    for panel in board["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert_eq!(
            panel["type"] != "row",
            panel["targets"].is_array(),
            "{title}: rows ask nothing, everything else does"
        );
        for target in panel["targets"].as_array().into_iter().flatten() {
            asked.push((
                title.to_owned(),
                target["expr"].as_str().unwrap().to_owned(),
            ));
        }
    }
    for variable in board["templating"]["list"].as_array().unwrap() {
        let query = variable["query"].as_str().unwrap();
        if let Some(inner) = query.strip_prefix("label_values(") {
            let (metric, label) = inner.trim_end_matches(')').split_once(", ").unwrap();
            let named = format!("{metric}{{{label}!=\"\"}}");
            asked.push((format!("variable {}", variable["name"]), named));
        }
    }
    for (title, expression) in &mut asked {
        *expression = expression
            .replace("$__rate_interval", "10s")
            .replace("$instance", ".+")
            .replace("$pool", ".+");
        assert!(!expression.contains('$'), "{title}: {expression}");
    }
    asked
}

fn promtool() -> Command {
    Command::new(tool("promtool"))
}

fn succeeds(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {output:?}");
    told
}

#[test]
fn the_rules_pass_their_own_tests() {
    let rules = ["rules", "alerts"].map(|name| shipped(&format!("prometheus/{name}.yaml")));
    succeeds(promtool().args(["check", "rules"]).args(&rules));
    let told = succeeds(
        promtool()
            .args(["test", "rules"])
            .arg(shipped("prometheus/tests.yaml")),
    );
    assert!(told.contains("SUCCESS"), "{told}");
}

#[test]
fn every_alert_is_tested_and_documented() {
    let tests: Value = serde_norway::from_str(&text("daemonset/prometheus/tests.yaml")).unwrap();
    let (mut raised, mut quiet) = (BTreeSet::new(), BTreeSet::new());
    for test in tests["tests"].as_array().unwrap() {
        for case in test["alert_rule_test"].as_array().unwrap() {
            let name = case["alertname"].as_str().unwrap().to_owned();
            if case["exp_alerts"].is_array() {
                raised.insert(name)
            } else {
                quiet.insert(name)
            };
        }
    }
    let names: BTreeSet<_> = alerts().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, raised, "each alert is raised in one of its tests");
    assert_eq!(names, quiet, "each alert stays quiet in one of its tests");
    let document = text("docs/metrics.md");
    let headings = document.lines().filter_map(|l| l.strip_prefix("### "));
    let documented: BTreeSet<_> = headings.map(str::to_owned).collect();
    assert_eq!(names, documented, "docs/metrics.md has a heading for each");
    let anchors = text("daemonset/prometheus/alerts.yaml");
    for name in &names {
        let runbook = format!("runbook: docs/metrics.md#{}\n", name.to_lowercase());
        assert!(anchors.contains(&runbook), "{name} links to no runbook");
    }
}

/// What is known of a metric: its type and the names of its labels.
type Families = BTreeMap<String, (String, BTreeSet<String>)>;

/// The rows of docs/metrics.md: | `name` | type | `label` `label` | meaning | when to act |
fn documented() -> Families {
    let document = text("docs/metrics.md");
    let rows = document.lines().filter(|line| line.starts_with("| `"));
    let family = |row: &str| {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert!(cells.len() == 5 && !cells[3].is_empty(), "{row}");
        let labels = cells[2].split('`').skip(1).step_by(2).map(str::to_owned);
        let known = (cells[1].to_owned(), labels.collect());
        (cells[0].trim_matches('`').to_owned(), known)
    };
    rows.map(family).collect()
}

/// The same of a scrape.
fn scraped(page: &str) -> Families {
    let mut families = Families::new();
    let mut current = (String::new(), String::new());
    for line in page.lines() {
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').unwrap();
            current = (name.to_owned(), kind.to_owned());
        } else if !line.starts_with('#') {
            let labels = line
                .split_once('{')
                .and_then(|(_, rest)| rest.split_once('}'));
            let labels = labels.map_or("", |(labels, _)| labels).split("\",");
            let names = labels.filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
            let family = families.entry(current.0.clone());
            let (_, seen) = family.or_insert_with(|| (current.1.clone(), BTreeSet::new()));
            seen.extend(names.filter(|name| name != "le"));
        }
    }
    families
}

/// Every name that a `metrics.rs`, or `app` for the build, registers.
fn registered() -> BTreeSet<String> {
    fn visit(path: &Path, names: &mut BTreeSet<String>) {
        if path.is_dir() {
            let entries = std::fs::read_dir(path).unwrap();
            entries.for_each(|entry| visit(&entry.unwrap().path(), names));
        } else if path.ends_with("metrics.rs") || path.ends_with("app.rs") {
            let source = std::fs::read_to_string(path).unwrap();
            let quoted = source.split('"').skip(1).step_by(2);
            let plain = |c: char| c.is_ascii_lowercase() || c == '_';
            let ours = quoted.filter(|n| n.starts_with("hearth_") && n.chars().all(plain));
            names.extend(ours.map(str::to_owned));
        }
    }
    let mut names = BTreeSet::new();
    visit(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut names,
    );
    names
}

#[test]
fn every_metric_of_the_sources_is_documented() {
    let mut told: BTreeSet<_> = documented().into_keys().collect();
    told.retain(|name| !name.starts_with("process_"));
    assert_eq!(
        registered(),
        told,
        "left: the sources; right: docs/metrics.md"
    );
}

/// `promtool check metrics` has nothing to say.
fn lint(page: &str) {
    let mut promtool = promtool()
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = promtool.stdin.take().unwrap();
    stdin.write_all(page.as_bytes()).unwrap();
    drop(stdin);
    let output = promtool.wait_with_output().unwrap();
    let silent = output.stdout.is_empty() && output.stderr.is_empty();
    assert!(output.status.success() && silent, "{output:?}");
}

/// One round of a caller's day: a claim with work in it, one that finds its pool dry.
async fn round(hearth: &Hearth) {
    let (claim, _) = hearth.claim("python").await;
    assert_eq!(hearth.run(&claim, &["true"]).await.0, 0);
    hearth.release(&claim).await;
    let dry = claim_request(&fresh_id(), "dry");
    let refused = hearth.claims().await.claim(dry).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
}

/// Every query and rule has data, and the alerts are those of this node.
async fn everything_is_answered(prometheus: &Prometheus) {
    for (title, expression) in dashboard() {
        eventually(&format!("data for {title}: {expression}"), || async {
            !prometheus.query(&expression).is_empty()
        })
        .await;
    }
    eventually("every rule was evaluated without an error", || async {
        let rules = prometheus.rules();
        let wrong = rules.iter().find(|rule| rule["health"] == "err");
        assert!(wrong.is_none(), "{wrong:#?}");
        !rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok")
    })
    .await;
    for rule in prometheus.rules() {
        if rule["type"] == "recording" {
            let name = rule["name"].as_str().unwrap();
            eventually(&format!("data of {name}"), || async {
                !prometheus.query(name).is_empty()
            })
            .await;
        }
    }
    for (alert, expression) in alerts() {
        let selected = selectors(&expression);
        assert!(!selected.is_empty(), "{alert} looks at nothing");
        // Certificates are there with TLS only; the tests of identity show that metric.
        let shown = |selector: &String| !selector.starts_with("hearth_tls_certificate_");
        for selector in selected.into_iter().filter(shown) {
            let what = format!("{alert} looks at something that is there: {selector}");
            eventually(&what, || async { !prometheus.query(&selector).is_empty() }).await;
        }
    }
    for (alert, pool) in [
        ("HearthPoolEmpty", Some("dry")),
        ("HearthPoolEmpty", Some("broken")),
        ("HearthBreakerOpen", Some("broken")),
        ("HearthRefillFailing", Some("broken")),
        ("HearthClaimsFailing", None),
    ] {
        eventually(&format!("{alert} is raised for {pool:?}"), || async {
            prometheus.raised(alert, pool)
        })
        .await;
    }
    assert!(!prometheus.raised("HearthPoolEmpty", Some("python")));
    for alert in QUIET {
        assert!(!prometheus.raised(alert, None), "{alert}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_has_data_for_every_rule_and_every_panel() {
    let mut hearth = Hearth::start().await;
    let prometheus = Prometheus::start(&hearth.admin).await;
    let mut broken = pool("broken", 1, 4);
    broken.template.as_mut().unwrap().image = "hearth.local/absent:1".to_owned();
    // One of its members sleeps.
    let mut python = pool("python", 4, 8);
    python.running = Some(3);
    let dry = pool("dry", 1, 1);
    let pools = vec![python.clone(), dry.clone(), broken];
    hearth.set_pools(pools).await;
    hearth.warm("python", 4).await;
    hearth.warm("dry", 1).await;
    hearth.claim("dry").await;

    let used = async {
        loop {
            // Never its last one: this pool is well.
            hearth.warm("python", 2).await;
            round(&hearth).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = used => {}
        () = everything_is_answered(&prometheus) => {}
    }

    let page = hearth.admin_page("/metrics").1;
    lint(&page);
    // Some series come only with what they count: of those the document's name is checked, below.
    let (shown, mut told) = (scraped(&page), documented());
    told.retain(|name, _| shown.contains_key(name));
    assert_eq!(shown, told, "left: a scrape; right: docs/metrics.md");

    hearth.set_pools(vec![python, dry]).await;
    eventually("the series of a pool that is gone go with it", || async {
        let page = hearth.admin_page("/metrics").1;
        let mut kept = page.lines().filter(|line| line.contains("pool=\"broken\""));
        kept.all(|line| line.starts_with("hearth_claims_total{"))
    })
    .await;

    hearth.kill();
    eventually("HearthDown is raised", || async {
        prometheus.raised("HearthDown", None)
    })
    .await;
    drop(prometheus);
    hearth.finish().await;
}
