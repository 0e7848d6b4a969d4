//! The pure parts: command lines, annotations, texts; and the child's deadline. The rest runs against the real shim in
//! `tests/runsc_wrapper.rs`.
#![allow(clippy::unwrap_used)]

use std::{
    path::Path,
    time::{Duration, Instant, UNIX_EPOCH},
};

use super::{
    WrapError, WrapperConfig,
    bundle::Spec,
    child::{self, Ended},
    command::{self, Invocation, Verb, Wants},
    failure,
};

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn parse(line: &str) -> Result<Invocation, WrapError> {
    command::parse(&words(line))
}

fn config() -> WrapperConfig {
    WrapperConfig::new("/bin/runsc", "/hearth")
}

/// What runsc gets after the fixed global flags.
fn mapped(line: &str) -> String {
    let invocation = parse(line).unwrap();
    let line = invocation.to_runsc(&config(), Wants::default());
    let at = line
        .iter()
        .position(|word| !word.starts_with("--"))
        .unwrap();
    line[at..].join(" ")
}

#[test]
fn maps_what_go_runc_sends() {
    const G: &str = "--root /r/hearth --log /b/log.json --log-format json --systemd-cgroup";
    for (from, to) in [
        (
            "create --bundle /b --pid-file /b/init.pid --no-pivot --no-new-keyring a",
            "create --bundle=/b --pid-file=/b/init.pid a",
        ),
        (
            "create --bundle /b --console-socket /s a",
            "create --bundle=/b --console-socket=/s a",
        ),
        ("start a", "start a"),
        ("kill --all a 9", "kill --all a 9"),
        ("kill a 15", "kill a 15"),
        ("delete --force a", "delete --force a"),
        ("delete a", "delete a"),
        ("state a", "state a"),
        ("ps --format json a", "ps --format=json a"),
        ("ps --format table a -ef", "ps --format=table a"),
        ("events --stats a", "events --stats a"),
        (
            "exec --process /p --detach --pid-file /b/x.pid a",
            "exec --process=/p --detach --pid-file=/b/x.pid a",
        ),
        ("update --resources=- a", "update --resources=- a"),
        (
            "checkpoint --image-path /i --work-path /w --parent-path /q --tcp-established --ext-unix-sk --shell-job \
             --file-locks --manage-cgroups-mode soft --empty-ns network --leave-running a",
            "checkpoint --image-path=/i --leave-running a",
        ),
        (
            "restore --image-path /i --work-path /w --detach --pid-file /b/init.pid --no-pivot -no-subreaper --bundle /b a",
            "restore --image-path=/i --detach --pid-file=/b/init.pid --bundle=/b a",
        ),
    ] {
        assert_eq!(mapped(&format!("{G} {from}")), to, "{from}");
    }
}

#[test]
fn adds_our_global_flags() {
    let line = "--root /r/hearth --log /b/log.json --log-format json create --bundle /b a";
    let wants = Wants {
        disk_bytes: Some(4096),
        network: None,
    };
    let invocation = parse(line).unwrap();
    let line = invocation.to_runsc(&config(), wants);
    for flag in [
        "--root=/r/hearth",
        "--log=/b/log.json",
        "--log-format=json",
        "--platform=systrap",
        "--network=none",
        "--host-uds=none",
        "--ignore-cgroups=false",
        "--allow-flag-override=false",
        "--overlay2=root:self,size=4096",
    ] {
        assert!(line.iter().any(|word| word == flag), "{flag} in {line:?}");
    }
    // A spec may ask for a network: create reads it, and again start, which makes the connection.
    let network = Some(super::NETWORK_SANDBOX);
    let wants = Wants { network, ..wants };
    let line = invocation.to_runsc(&config(), wants);
    assert!(line.contains(&"--network=sandbox".to_owned()), "{line:?}");
    assert!(!line.contains(&"--network=none".to_owned()), "{line:?}");
    // Where we write the log, runsc does not.
    let kill = parse("--root /r --log /l --log-format json kill a 9").unwrap();
    let kill = kill.to_runsc(&config(), Wants::default());
    assert!(
        !kill.iter().any(|word| word.starts_with("--log")),
        "{kill:?}"
    );
    assert_eq!(
        parse("--version")
            .unwrap()
            .to_runsc(&config(), Wants::default()),
        ["--version"]
    );
}

#[test]
fn refuses_what_it_does_not_know() {
    for line in [
        "",
        "run a",
        "create --privileged a",
        "--platform ptrace state a",
        "state",
        "state a b",
        "kill a 9 9",
        "state ../a",
        "state ..",
        "state a/b",
        "create --bundle",
        "kill --all=maybe a",
        "checkpoint --pre-dump a",
    ] {
        assert!(matches!(parse(line), Err(WrapError::Usage(_))), "{line:?}");
    }
}

fn spec(annotations: &str, cgroup: &str) -> Result<Option<u64>, WrapError> {
    let text = format!(
        r#"{{"ociVersion":"1.2.0","annotations":{{{annotations}}},"linux":{{"cgroupsPath":"{cgroup}"}}}}"#
    );
    let spec: Spec = serde_json::from_str(&text).unwrap();
    spec.admit("/hearth")
}

#[test]
fn admits_only_specs_that_stay_in_hand() {
    assert_eq!(spec("", "/hearth/p/a").unwrap(), None);
    assert_eq!(
        spec(r#""dev.hearth/disk-bytes":"7","other":"x""#, "/hearth/p/a").unwrap(),
        Some(7)
    );
    for wrong in ["0", "", "-1", "10m"] {
        let annotation = format!(r#""dev.hearth/disk-bytes":"{wrong}""#);
        assert!(
            matches!(spec(&annotation, "/hearth/p/a"), Err(WrapError::Disk(_))),
            "{wrong:?}"
        );
    }
    for name in [
        "dev.gvisor.spec.cgroup-parent",
        "dev.gvisor.flag.debug",
        "io.kubernetes.cri.sandbox-id",
    ] {
        let annotation = format!(r#""{name}":"""#);
        assert!(
            matches!(
                spec(&annotation, "/hearth/p/a"),
                Err(WrapError::Annotation(_))
            ),
            "{name}"
        );
    }
    for path in [
        "",
        "/",
        "/hearth",
        "/hearth/",
        "/hearthy/a",
        "/kubepods/a",
        "/hearth/../a",
        "a:b:c",
    ] {
        assert!(
            matches!(spec("", path), Err(WrapError::Cgroup { .. })),
            "{path:?}"
        );
    }
}

#[test]
fn speaks_the_words_the_shim_matches() {
    for (verb, from, word) in [
        (
            Verb::Kill,
            "sandbox is not running",
            "container not running",
        ),
        (
            Verb::Kill,
            "loading container: file does not exist",
            "container does not exist",
        ),
        (
            Verb::Delete,
            "loading container \"a\": file does not exist",
            "container does not exist",
        ),
        (
            Verb::Exec,
            "sandbox is not running",
            "sandbox is not running",
        ),
    ] {
        let said = failure::translate(verb, from);
        assert!(said.starts_with(word) && said.ends_with(from), "{said}");
    }
    assert_eq!(
        failure::translate(Verb::Kill, "unknown signal \"99\"\n"),
        "unknown signal \"99\""
    );
    let gone = "destroying container: failed to delete filestore file \"/x\": remove /x: no such file or directory";
    assert!(failure::is_vanished_filestore(gone));
    assert!(!failure::is_vanished_filestore(
        "failed to delete filestore file \"/x\": permission denied"
    ));
}

#[test]
fn logs_as_the_shim_decodes() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log.json");
    failure::append(Some(&log), true, "one \"quoted\"");
    failure::append(Some(&log), true, "two");
    let text = std::fs::read_to_string(log).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(
        (&lines[0]["level"], &lines[0]["msg"]),
        (&"error".into(), &"one \"quoted\"".into())
    );
    assert_eq!(lines[1]["msg"], "two");
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_399, "2000-02-28T23:59:59Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (1_798_761_599, "2026-12-31T23:59:59Z"),
    ] {
        assert_eq!(
            failure::rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)),
            text
        );
    }
}

#[test]
fn the_configuration_lies_one_or_two_levels_up() {
    let dir = tempfile::tempdir().unwrap();
    let written = config();
    written.write(dir.path()).unwrap();
    for below in ["hearth", "runc/hearth"] {
        assert_eq!(
            WrapperConfig::find(Some(&dir.path().join(below))).unwrap(),
            written
        );
    }
    let far = dir.path().join("a/b/c");
    assert!(matches!(
        WrapperConfig::find(Some(&far)),
        Err(WrapError::NoConfig(_))
    ));
    let short = r#"{"runsc":"/bin/runsc","cgroup_parent":"/hearth","of_a_newer_hearthd":1}"#;
    assert_eq!(
        serde_json::from_str::<WrapperConfig>(short).unwrap(),
        config()
    );
}

/// One test for all of it: the wrapper runs one child at a time.
#[test]
fn a_child_ends_at_its_deadline_and_keeps_its_exit_status() {
    let sh = |script: &str, limit: u64| {
        let args = ["-c".to_owned(), script.to_owned()];
        child::run(
            Path::new("/bin/sh"),
            &args,
            false,
            Duration::from_millis(limit),
        )
        .unwrap()
    };
    match sh("echo out; echo err >&2; exit 42", 5_000) {
        Ended::Exited {
            code,
            stdout,
            stderr,
        } => {
            assert_eq!((code, &*stdout, &*stderr), (42, &b"out\n"[..], "err\n"));
        }
        Ended::Overdue => panic!("it ended by itself"),
    }
    match sh("kill -SEGV $$", 5_000) {
        Ended::Exited { code, .. } => assert_eq!(code, 128 + 11),
        Ended::Overdue => panic!("it ended by itself"),
    }
    let began = Instant::now();
    assert!(matches!(sh("sleep 1000 & sleep 1000", 100), Ended::Overdue));
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
}
