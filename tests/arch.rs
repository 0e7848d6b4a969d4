//! House rules that a program can check: the import arrows of docs/architecture.md, what each room may use, how big a
//! file may grow, and what a metric is called.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

/// room → what it may import of `crate::…`. `api` is generated code: data without behaviour.
const ARROWS: &[(&str, &[&str])] = &[
    ("machine", &[]),
    ("failpoint", &[]),
    ("cgroup", &[]),
    ("ociwrap", &["cgroup"]),
    ("guest", &["runtime"]),
    (
        "runtime",
        &["machine", "cgroup", "ociwrap", "vault", "failpoint"],
    ),
    ("vault", &["machine", "failpoint"]),
    ("journal", &["machine", "failpoint"]),
    ("net", &["machine", "failpoint"]),
    (
        "driver",
        &[
            "machine",
            "journal",
            "runtime",
            "guest",
            "cgroup",
            "net",
            "vault",
            "failpoint",
        ],
    ),
    ("identity", &[]),
    ("rpc", &["machine", "driver", "identity", "api"]),
    ("admin", &["machine", "driver"]),
    // `api`: a WarmPool is read as the message that SetPools takes, so that one set of rules checks both.
    // `identity`: the trait of who vouches for tokens.
    ("kube", &["machine", "driver", "identity", "api"]),
    // Only tests: all above the adapters, on fakes of what is below.
    (
        "sim",
        &[
            "machine", "driver", "journal", "runtime", "guest", "cgroup", "net", "rpc", "api",
        ],
    ),
    ("config", &["identity"]),
    ("api", &[]),
    (
        "app",
        &[
            "failpoint",
            "machine",
            "driver",
            "journal",
            "runtime",
            "guest",
            "cgroup",
            "rpc",
            "admin",
            "kube",
            "config",
            "identity",
            "net",
            "vault",
        ],
    ),
];

/// binary → what it may import of `hearth::…`.
const BINARIES: &[(&str, &[&str])] = &[
    ("hearthd.rs", &["app", "config"]),
    ("hearthctl", &["api"]),
    ("hearth-init", &["guest"]),
    ("hearth-runsc.rs", &["ociwrap", "cgroup"]),
];

/// What must not appear in the pure core.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::time",
    "std::env",
    "std::process",
    "std::thread",
    "std::io",
    "SystemTime",
    "Instant",
    "tokio",
    "async fn",
    ".await",
    "HashMap",
    "HashSet",
    "rand::",
    "getrandom",
    "nix::",
    "redb",
    "tonic",
    "prometheus",
    "tracing",
    "println!",
];

/// Lines of a file that is not a test.
const LINES: usize = 450;

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let mut found: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() || path.extension().is_some_and(|e| e == "rs"))
        .flat_map(|path| sources(&path))
        .filter(|path| {
            let text = path.to_string_lossy();
            !(text.contains("/tests/") || text.ends_with("tests.rs") || text.ends_with("fakes.rs"))
        })
        .collect();
    found.sort();
    found
}

fn room(name: &str) -> Vec<PathBuf> {
    let both = [src().join(format!("{name}.rs")), src().join(name)];
    both.iter()
        .filter(|path| path.exists())
        .flat_map(|path| sources(path))
        .collect()
}

/// Every line of code that `wrong` objects to, as a report.
fn objections(files: &[PathBuf], wrong: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut report = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        for (at, line) in text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
        {
            if let Some(what) = wrong(line) {
                report.push(format!(
                    "{}:{}: {what}: {}",
                    file.display(),
                    at + 1,
                    line.trim()
                ));
            }
        }
    }
    report
}

/// Every `root::name` in the line, also inside `root::{a, b}` of one line.
fn imports(line: &str, root: &str) -> Vec<String> {
    let word = |text: &str| {
        text.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect::<String>()
    };
    let mut found = Vec::new();
    for (at, _) in line.match_indices(root) {
        let before = line[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &line[at + root.len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group.split(',').map(|part| word(part.trim_start()))),
            None => found.push(word(rest)),
        }
    }
    found
}

fn foreign(line: &str, root: &str, own: &str, allowed: &[&str]) -> Option<String> {
    let known = |name: &String| ARROWS.iter().any(|(room, _)| room == name);
    let names = imports(line, root).into_iter().filter(known);
    let mut names = names.filter(|name| name != own && !allowed.contains(&name.as_str()));
    names
        .next()
        .map(|name| format!("{own} may not import {name}"))
}

fn assert_none(report: &[String]) {
    assert!(report.is_empty(), "{}", report.join("\n"));
}

#[test]
fn arrows_point_one_way() {
    let mut report = Vec::new();
    for (name, allowed) in ARROWS {
        let files = room(name);
        assert!(
            !files.is_empty(),
            "room {name} has no file: the table is out of date"
        );
        report.extend(objections(&files, |line| {
            foreign(line, "crate::", name, allowed)
        }));
    }
    for (name, allowed) in BINARIES {
        let files = sources(&src().join("bin").join(name));
        report.extend(objections(&files, |line| {
            foreign(line, "hearth::", name, allowed)
        }));
    }
    assert_none(&report);
}

#[test]
fn every_room_has_its_arrows() {
    for entry in std::fs::read_dir(src()).unwrap() {
        let name = entry
            .unwrap()
            .path()
            .file_stem()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let known = name == "lib" || name == "bin" || ARROWS.iter().any(|(room, _)| *room == name);
        assert!(known, "src/{name} is not in the table of arrows");
    }
}

#[test]
fn the_machine_is_pure() {
    let named = |line: &str| {
        IMPURE
            .iter()
            .find(|name| line.contains(**name))
            .map(|name| format!("{name} is impure"))
    };
    assert_none(&objections(&room("machine"), named));
}

#[test]
fn every_queue_is_bounded() {
    let unbounded = |line: &str| {
        let found = ["unbounded_channel", "mpsc::channel()"]
            .iter()
            .find(|name| line.contains(**name));
        found.map(|_| "an unbounded queue".to_owned())
    };
    assert_none(&objections(&sources(&src()), unbounded));
}

#[test]
fn files_are_small_enough_to_hold_in_the_head() {
    let lines = |file: &PathBuf| std::fs::read_to_string(file).unwrap().lines().count();
    let long = sources(&src())
        .into_iter()
        .map(|file| (lines(&file), file))
        .filter(|(lines, _)| *lines > LINES);
    assert_none(
        &long
            .map(|(lines, file)| format!("{}: {lines} lines", file.display()))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn metrics_are_in_base_units() {
    let names = |line: &str| -> Vec<String> {
        let quoted = line
            .split('"')
            .skip(1)
            .step_by(2)
            .filter(|text| text.starts_with("hearth_"));
        quoted
            .filter(|text| !text.contains(['{', ' ']))
            .map(str::to_owned)
            .collect()
    };
    let count = std::cell::Cell::new(0);
    let report = objections(&sources(&src()), |line| {
        let found = names(line);
        count.set(count.get() + found.len());
        let wrong = found.into_iter().find(|name| {
            ["_ms", "_millis", "_kb", "_mb"]
                .iter()
                .any(|u| name.ends_with(u))
        });
        wrong.map(|name| format!("{name} is not in a base unit"))
    });
    assert_none(&report);
    assert!(
        count.get() > 5,
        "only {} metric names found: this test looks at nothing",
        count.get()
    );
}
