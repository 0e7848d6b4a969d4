//! What can be judged without a hearthd: parsers, words, tables, exit codes, plans. And, against a named fake of the
//! Sandboxes service, what a real sandbox would not do: lie about names, or see a source break in the middle.
#![allow(clippy::unwrap_used)]

mod hostile;

use crate::bench::percentile;
use crate::cli::Cli;
use crate::doctor;
use crate::failure::{Exit, Failure};
use crate::forward::{Ports, ports};
use crate::link::{choose, socket_path};
use crate::output::{self, Field, Mood, Style};
use crate::parse::{self, Place};
use crate::pools_file;
use clap::{CommandFactory, Parser};
use std::collections::HashMap;
use std::time::{Duration, SystemTime};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn exec_takes_options_of_the_command_as_they_are() {
    let cli = Cli::parse_from([
        "hearthctl",
        "exec",
        "-it",
        "7f9c",
        "--",
        "ls",
        "-l",
        "--color",
    ]);
    let crate::cli::Command::Exec(args) = cli.command else {
        panic!("not exec")
    };
    assert!(args.options.interactive && args.options.tty);
    assert_eq!(args.command, ["ls", "-l", "--color"]);
    // Also without the dashes, as people type it.
    let cli = Cli::parse_from(["hearthctl", "exec", "7f9c", "python3", "-c", "1"]);
    let crate::cli::Command::Exec(args) = cli.command else {
        panic!("not exec")
    };
    assert_eq!(args.command, ["python3", "-c", "1"]);
}

#[test]
fn wrong_command_lines_are_refused() {
    for line in [
        vec!["claim"],
        vec!["claim", "p", "--id", "7f9c"],
        vec!["claim", "p", "--wait", "3s", "--cold"],
        vec!["claim", "p", "--ttl", "soon"],
        vec!["release"],
        vec!["release", "--all", "7f9c"],
        vec!["exec", "7f9c"],
        vec!["exec", "-d", "-t", "7f9c", "sh"],
        vec!["claims", "--epoch", "0"],
        vec!["port-forward", "7f9c"],
        vec!["pools", "--watch", "export"],
        vec!["-o", "xml", "pools"],
    ] {
        let words = std::iter::once("hearthctl").chain(line.iter().copied());
        assert!(Cli::try_parse_from(words).is_err(), "{line:?} was taken");
    }
}

#[test]
fn variables_files_and_secrets() {
    assert_eq!(parse::variable("A=b=c"), Ok(("A".into(), "b=c".into())));
    assert_eq!(parse::variable("A="), Ok(("A".into(), String::new())));
    assert!(parse::variable("=b").is_err());
    assert!(parse::variable("HEARTH_NEVER_SET_ANYWHERE").is_err());
    assert_eq!(
        parse::file("a.py:/w/a.py"),
        Ok(("a.py".into(), "/w/a.py".into()))
    );
    assert_eq!(parse::file("/x:y/a:/w"), Ok(("/x:y/a".into(), "/w".into())));
    assert!(parse::file("a.py:w/a.py").is_err());
    assert!(parse::file(":/w").is_err());
    assert_eq!(parse::secret("k=@f"), Ok(("k".into(), "f".into())));
    assert!(
        parse::secret("k=hunter2").is_err(),
        "a value on the command line shows in ps"
    );
    assert_eq!(parse::holder("ns/me").unwrap().namespace, "ns");
    assert_eq!(parse::holder("me").unwrap().namespace, "");
    assert!(parse::holder("a/b/c").is_err());
    assert!(parse::holder("ns/").is_err());
}

#[test]
fn places_of_cp() {
    let inside = |claim: &str, path: &str| Place::Inside {
        claim: claim.into(),
        path: path.into(),
    };
    assert_eq!(parse::place("7f9c:/a b"), Ok(inside("7f9c", "/a b")));
    assert_eq!(parse::place("7f9c:/a:b"), Ok(inside("7f9c", "/a:b")));
    assert_eq!(parse::place("-"), Ok(Place::Stream));
    assert_eq!(
        parse::place("./7f9c:/a"),
        Ok(Place::Local("./7f9c:/a".into()))
    );
    assert_eq!(parse::place("/x:/a"), Ok(Place::Local("/x:/a".into())));
    assert!(parse::place("7f9c:a").is_err());
    assert!(parse::place("").is_err());
}

#[test]
fn ports_of_a_forward() {
    let of = |local, remote| Ok(Ports { local, remote });
    assert_eq!(ports("8080"), of(8080, 8080));
    assert_eq!(ports("80:8080"), of(80, 8080));
    assert_eq!(ports(":8080"), of(0, 8080));
    assert!(ports("80:0").is_err());
    assert!(ports("80:").is_err());
    assert!(ports("70000").is_err());
}

#[test]
fn sockets() {
    for socket in ["unix:///run/h.sock", "unix:/run/h.sock", "/run/h.sock"] {
        assert_eq!(socket_path(socket).unwrap(), "/run/h.sock");
    }
    assert!(socket_path("h.sock").unwrap().starts_with('/'));
    assert_eq!(
        socket_path("http://127.0.0.1:1").unwrap_err().exit,
        Exit::Usage
    );
    assert_eq!(socket_path("unix://").unwrap_err().exit, Exit::Usage);
}

#[test]
fn a_token_file_is_read_again_and_a_bad_moment_is_lived_through() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    assert!(crate::secure::TokenFile::open(&path).is_err());
    std::fs::write(&path, "\n").unwrap();
    assert!(crate::secure::TokenFile::open(&path).is_err());
    std::fs::write(&path, "first\n").unwrap();
    let file = crate::secure::TokenFile::open(&path).unwrap();
    assert_eq!(file.now(), "Bearer first");
    std::fs::write(&path, "second").unwrap();
    assert_eq!(file.now(), "Bearer second");
    assert!(file.now().is_sensitive());
    std::fs::remove_file(&path).unwrap();
    assert_eq!(file.now(), "Bearer second");
}

#[test]
fn a_claims_token_goes_before_the_accounts() {
    let shown = |line: &[&str]| {
        let words = std::iter::once("hearthctl").chain(line.iter().copied());
        let common = Cli::try_parse_from(words).unwrap().common;
        let file = common.account.file(common.token.as_deref());
        file.map(std::path::Path::to_owned)
    };
    let file = Some(std::path::PathBuf::from("/t"));
    assert_eq!(shown(&["--token-file", "/t", "pools"]), file);
    let both = ["--token", "hearth_x", "--token-file", "/t", "pools"];
    assert_eq!(shown(&both), None);
}

#[test]
fn a_prefix_must_mean_one_claim() {
    let ids = ["7f9c24e8-3b0c", "7f9caaaa-0000", "01234567-89ab"];
    let chosen = |prefix| choose(prefix, ids.iter().copied());
    assert_eq!(chosen("0123").unwrap(), "01234567-89ab");
    assert_eq!(chosen("7f9c").unwrap_err().exit, Exit::Usage);
    assert_eq!(chosen("ffff").unwrap_err().exit, Exit::NotFound);
}

#[test]
fn every_code_has_its_exit_code() {
    let codes = [
        (Code::InvalidArgument, 2),
        (Code::OutOfRange, 2),
        (Code::NotFound, 4),
        (Code::ResourceExhausted, 5),
        (Code::DeadlineExceeded, 5),
        (Code::Unavailable, 3),
        (Code::Cancelled, 1),
        (Code::Unknown, 1),
        (Code::AlreadyExists, 1),
        (Code::PermissionDenied, 1),
        (Code::FailedPrecondition, 1),
        (Code::Aborted, 1),
        (Code::Unimplemented, 1),
        (Code::Internal, 1),
        (Code::DataLoss, 1),
        (Code::Unauthenticated, 1),
    ];
    for (code, exit) in codes {
        let failure = Failure::from(Status::new(code, "x"));
        assert_eq!(failure.exit.code(), exit, "{code:?}");
        assert_eq!(crate::exec::code_of(&failure), 125, "{code:?}");
    }
    // hearth's own UNAVAILABLE carries details: it was reached.
    let mut details = ErrorDetails::new();
    details.set_retry_info(Some(Duration::from_millis(250)));
    let status = Status::with_error_details(Code::Unavailable, "hearthd is starting", details);
    assert_eq!(Failure::from(status).exit, Exit::Retry);
}

#[test]
fn a_broken_connection_is_not_an_answer() {
    let broken = Failure::from(Status::internal("h2 protocol error: stream closed"));
    assert_eq!(broken.exit, Exit::Unreachable);
    assert_eq!(broken.message, "the connection to hearthd broke");
    let late = Failure::from(Status::cancelled("Timeout expired"));
    assert_eq!(late.exit, Exit::Retry);
    // hearthd's own words stay its own.
    assert_eq!(
        Failure::from(Status::internal("journal: torn page")).exit,
        Exit::Refused
    );
}

fn refused(code: Code, reason: &str, metadata: &[(&str, &str)], message: &str) -> Failure {
    let metadata: HashMap<String, String> = metadata
        .iter()
        .map(|(key, value)| ((*key).into(), (*value).into()))
        .collect();
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "hearth", metadata);
    if code == Code::ResourceExhausted {
        details.set_retry_info(Some(Duration::from_millis(250)));
    }
    Failure::from(Status::with_error_details(code, message, details))
}

#[test]
fn a_refusal_tells_reason_retry_and_what_to_do() {
    let failure = refused(
        Code::ResourceExhausted,
        "POOL_EMPTY",
        &[("pool", "py"), ("min_warm", "3")],
        "pool py has no warm member",
    );
    assert_eq!(
        failure.render(Style::PLAIN),
        "error: pool py has no warm member\n  reason  POOL_EMPTY\n  min_warm 3\n  retry   in 250.0 ms\n  \
         next    wait for a member with `--wait 30s`, or have one made for this claim with `--cold`\n"
    );
    let conflict = refused(
        Code::Aborted,
        "EPOCH_CONFLICT",
        &[("current", "7")],
        "epoch 7 belongs to another caller",
    );
    assert!(conflict.render(Style::PLAIN).contains("fences it out"));
}

#[test]
fn bad_fields_are_all_told() {
    let mut details = ErrorDetails::new();
    details.add_bad_request_violation("pool", "must not be empty");
    details.add_bad_request_violation("ttl", "must be at most a year");
    let failure = Failure::from(Status::with_error_details(
        Code::InvalidArgument,
        "x",
        details,
    ));
    let text = failure.render(Style::PLAIN);
    assert!(text.contains("pool    must not be empty"), "{text}");
    assert!(text.contains("ttl     must be at most a year"), "{text}");
    assert_eq!(failure.exit, Exit::Usage);
}

#[test]
fn what_the_guest_could_not_run_has_the_codes_of_a_shell() {
    let of = |reason| crate::exec::code_of(&refused(Code::NotFound, reason, &[], "x"));
    assert_eq!(of("INSIDE_NOT_FOUND"), 127);
    assert_eq!(of("INSIDE_REFUSED"), 126);
    assert_eq!(of("CLAIM_UNKNOWN"), 125);
}

#[test]
fn a_terminal_never_obeys_text_from_elsewhere() {
    let failure = Failure::new(Exit::Refused, "a\x1b[2Jb\r\n");
    assert!(!failure.render(Style::PLAIN).contains('\x1b'));
    let rows = vec![vec![Field::from("\x1b]0;owned\x07")]];
    let text = output::table(Style::PLAIN, &["A"], rows);
    assert!(!text.contains(['\x1b', '\x07']), "{text:?}");
}

#[test]
fn tables_are_aligned_and_plain_without_a_terminal() {
    let row = |a: &str, b: u32| vec![Field::new(a, Mood::Good), b.into()];
    let text = output::table(Style::PLAIN, &["NAME", ">WARM", "X"], {
        let mut rows = vec![row("python", 5), row("", 120)];
        rows.iter_mut().for_each(|row| row.push("x".into()));
        rows
    });
    assert_eq!(text, "NAME    WARM  X\npython     5  x\n-        120  x\n");
}

#[test]
fn figures_as_people_say_them() {
    for (value, text) in [
        (0.0, "0s"),
        (0.000_25, "250 µs"),
        (0.0123, "12.3 ms"),
        (2.5, "2.5s"),
        (75.0, "1m 15s"),
        (90_061.0, "1day 1h"),
        (f64::NAN, "0s"),
    ] {
        assert_eq!(output::seconds(value), text);
    }
    assert_eq!(output::bytes(0), "0 B");
    assert_eq!(output::bytes(1536), "1.5 KiB");
    assert_eq!(output::bytes(512 << 20), "512.0 MiB");
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!(output::relative(at(1060), now, "never"), "in 1m");
    assert_eq!(output::relative(at(997), now, "never"), "3s ago");
    assert_eq!(output::relative(None, now, "never"), "never");
}

#[test]
fn percentiles_are_of_the_nearest_rank() {
    let values: Vec<f64> = (1..=100).map(f64::from).collect();
    assert_eq!(percentile(&values, 50), 50.0);
    assert_eq!(percentile(&values, 99), 99.0);
    assert_eq!(percentile(&values, 100), 100.0);
    assert_eq!(percentile(&[7.0], 50), 7.0);
}

const FILE: &str = r#"
[[pools]]
name = "py"
min_warm = 3
max_total = 10
[pools.template]
image = "hearth.local/python:3.11"
env = { A = "b" }
resources = { memory = "256MiB", disk = 1048576 }
readiness = { command = ["true"], timeout = "10s" }
"#;

#[test]
fn the_three_forms_of_a_pools_file_mean_the_same() {
    let toml = pools_file::parse("p.toml", FILE).unwrap();
    let json = serde_json::to_string(&toml).unwrap();
    let yaml = serde_norway::to_string(&toml).unwrap();
    let plan = |name: &str, text: &str| {
        pools_file::plan(pools_file::parse(name, text).unwrap(), 0, &[]).pools
    };
    let pools = plan("p.toml", FILE);
    assert_eq!(pools, plan("p.json", &json));
    assert_eq!(pools, plan("p.yaml", &yaml));
    // Without an ending the text tells.
    assert_eq!(pools, plan("-", FILE));
    assert_eq!(pools, plan("-", &yaml));
    let template = pools[0].template.as_ref().unwrap();
    let resources = template.resources.unwrap();
    assert_eq!(
        (resources.memory_bytes, resources.disk_bytes),
        (256 << 20, 1 << 20)
    );
    assert_eq!(template.runtime_handler, "gvisor");
}

#[test]
fn mistakes_in_a_pools_file_are_told_with_their_place() {
    for (name, text, word) in [
        (
            "p.toml",
            "[[pools]]\nname='a'\nmin_worm=3\n[pools.template]\nimage='x'",
            "min_worm",
        ),
        (
            "p.toml",
            "[[pools]]\nname='a'\n[pools.template]\nimage='x'\nresources={memory='much'}",
            "much",
        ),
        ("p.yaml", "pools:\n- name: a\n", "template"),
        ("p.json", "{", "line 1"),
    ] {
        let failure = pools_file::parse(name, text).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        let text = failure.render(Style::PLAIN);
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn sizes() {
    assert_eq!(pools_file::size("512MiB"), Some(512 << 20));
    assert_eq!(pools_file::size("1 g"), Some(1 << 30));
    assert_eq!(pools_file::size("77"), Some(77));
    for wrong in [
        "",
        "MiB",
        "-1",
        "1.5GiB",
        "99999999999999999999",
        "18446744073709551615k",
    ] {
        assert_eq!(pools_file::size(wrong), None, "{wrong}");
    }
}

#[test]
fn generations_rise_only_for_what_changed() {
    let file = || pools_file::parse("p.toml", FILE).unwrap();
    let first = pools_file::plan(file(), 0, &[]);
    assert_eq!((first.generation, first.pools[0].generation), (1, 1));
    assert_eq!(first.changes["py"], "new");

    // As hearthd may tell it back: defaults written out.
    let mut stored = first.pools.clone();
    let template = stored[0].template.as_mut().unwrap();
    template.network_policy = Some(hearth::api::NetworkPolicy {
        mode: hearth::api::NetworkMode::None.into(),
        ..Default::default()
    });
    template.resources.as_mut().unwrap().pids = 1024;
    let again = pools_file::plan(file(), 1, &stored);
    assert_eq!((again.generation, again.pools[0].generation), (1, 1));
    assert_eq!(again.changes["py"], "unchanged");

    let changed =
        pools_file::parse("p.toml", &FILE.replace("min_warm = 3", "min_warm = 4")).unwrap();
    let changed = pools_file::plan(changed, 1, &stored);
    assert_eq!((changed.generation, changed.pools[0].generation), (2, 2));
    assert_eq!(changed.changes["py"], "changed");

    let other = pools_file::parse("p.toml", &FILE.replace("\"py\"", "\"other\"")).unwrap();
    let other = pools_file::plan(other, 7, &stored);
    assert_eq!(
        (other.changes["py"], other.changes["other"]),
        ("removed", "new")
    );
    // A name used long ago may have had any generation up to the set's.
    assert_eq!((other.generation, other.pools[0].generation), (8, 8));
}

#[test]
fn an_export_sets_the_same_pools() {
    let pools = pools_file::plan(pools_file::parse("p.toml", FILE).unwrap(), 4, &[]).pools;
    let file = pools_file::PoolsFile {
        generation: None,
        pools: pools.iter().map(Into::into).collect(),
    };
    let text = toml::to_string(&file).unwrap();
    let plan = pools_file::plan(pools_file::parse("p.toml", &text).unwrap(), 5, &pools);
    assert_eq!(plan.changes["py"], "unchanged", "{text}");
    assert_eq!(plan.pools, pools);
}

#[test]
fn what_doctor_reads() {
    use doctor::{daemon, host};
    assert_eq!(host::kernel_version("6.18.44-cloud"), Some((6, 18)));
    assert_eq!(host::kernel_version("x"), None);
    let mounts = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\n\
                  cgroup2 /sys/fs/cgroup/unified cgroup2 rw,memory 0 0\n";
    assert!(host::cgroup1_has(mounts, "cpu"));
    assert!(!host::cgroup1_has(mounts, "memory"));
    assert_eq!(
        host::effective_capabilities("Name:\tx\nCapEff:\t0000000000200000\n"),
        Some(1 << 21)
    );
    assert_eq!(
        host::version_word("containerd github.com/containerd/containerd/v2 2.4.2 abc"),
        Some("2.4.2")
    );
    assert_eq!(
        host::version_word("runsc version release-20260905.0\nspec: 1.2.1"),
        Some("release-20260905.0")
    );
    assert_eq!(
        host::swap_kib(
            "Filename Type Size Used\n/dev/zram0 partition 1024 0 5\n/s file 2048 0 -2\n"
        ),
        3072
    );
    let told = |swaps| serde_json::to_value(host::swap(swaps)).unwrap();
    let none = told("Filename Type Size Used\n");
    assert_eq!(
        (&none["verdict"], &none["found"]),
        (&"warn".into(), &"none".into())
    );
    assert!(
        none["fix"]
            .as_str()
            .unwrap()
            .contains("memory.swap = \"zram:<size>\"")
    );
    let zram = told("Filename Type Size Used\n/dev/zram0 partition 1048576 0 5\n");
    assert_eq!(
        (&zram["verdict"], &zram["found"]),
        (&"ok".into(), &"1.0 GiB, with zram".into())
    );
    let file = told("Filename Type Size Used\n/s file 2048 0 -2\n");
    assert_eq!(file["found"], "2.0 MiB, no zram");
    let answer = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 11\r\n\r\nrecovering\n";
    assert_eq!(daemon::parse(answer), Some((503, "recovering\n".into())));
    assert_eq!(daemon::parse("hello"), None);
}

#[test]
fn doctor_tells_what_handlers_can_do_and_which_are_not_served() {
    use hearth::api::RuntimeHandler;
    let gvisor = RuntimeHandler {
        name: "gvisor".into(),
        freeze: true,
        checkpoint: true,
        disk_bound: true,
        ..RuntimeHandler::default()
    };
    let clh = RuntimeHandler {
        name: "kata-clh".into(),
        ..RuntimeHandler::default()
    };
    let text = |all: &[RuntimeHandler]| format!("{:?}", doctor::daemon::handlers(all));
    let told = text(&[gvisor.clone(), clh.clone()]);
    assert!(
        told.contains("gvisor (freeze, checkpoint, disk bound); kata-clh (running only)"),
        "{told}"
    );
    let absent = RuntimeHandler {
        unservable: "containerd finds no shim".into(),
        ..clh
    };
    let told = text(&[gvisor, absent]);
    assert!(
        told.contains("not served: kata-clh: containerd finds no shim"),
        "{told}"
    );
}

#[test]
fn network_rules_as_people_write_them() {
    use crate::network::{Part, part, policy, policy_text, rule, rule_text};
    for (text, shown) in [
        ("example.com", "example.com"),
        ("*.Example.com@443", "*.example.com@443"),
        ("192.0.2.1@tcp", "192.0.2.1/32@tcp"),
        (
            "192.0.2.0/24@udp/53,8000-8080",
            "192.0.2.0/24@udp/53,8000-8080",
        ),
        ("2001:db8::1@/80", "2001:db8::1/128@80"),
    ] {
        let read = rule(text).unwrap();
        assert_eq!(rule_text(&read), shown);
        assert_eq!(rule(shown).unwrap(), read, "it reads what it shows");
    }
    for wrong in ["", "@tcp", "x@sctp", "x@tcp/0", "x@1-", "x@tcp/99999"] {
        assert!(rule(wrong).is_err(), "{wrong}");
    }
    let parts = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| part(text).unwrap())
            .collect::<Vec<Part>>()
    };
    let told = |texts: &[&str]| policy_text(policy(parts(texts)).unwrap().as_ref());
    assert_eq!(policy(Vec::new()).unwrap(), None);
    assert_eq!(told(&["none"]), "none");
    assert_eq!(told(&["allow"]), "allowlist: nothing");
    assert_eq!(
        told(&["internet", "deny:192.0.2.1", "publish:8000"]),
        "internet; never: 192.0.2.1/32; open to others: 8000"
    );
    assert_eq!(
        told(&["allow:a.example", "allow:b.example@tcp/443"]),
        "allowlist: a.example, b.example@tcp/443"
    );
    assert!(policy(parts(&["none", "internet"])).is_err());
    assert!(policy(parts(&["publish:80"])).is_err());
    for wrong in ["", "open", "allow:", "deny", "publish:x", "none:x"] {
        assert!(part(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_template_with_a_network_goes_to_a_file_and_back() {
    let with = |policy: &str| {
        let text = FILE.replace(
            "[pools.template]\n",
            &format!("[pools.template]\n{policy}\n"),
        );
        assert_ne!(text, FILE);
        pools_file::plan(pools_file::parse("p.toml", &text).unwrap(), 1, &[]).pools
    };
    for policy in [
        "network_policy = \"internet\"",
        "network_policy = \"allowlist\"",
        "network_policy = { mode = \"allowlist\", allow = [\"example.com@tcp/443\"], publish = [8000] }",
    ] {
        let pools = with(policy);
        let file = pools_file::PoolsFile {
            generation: None,
            pools: pools.iter().map(Into::into).collect(),
        };
        let text = toml::to_string(&file).unwrap();
        let plan = pools_file::plan(pools_file::parse("p.toml", &text).unwrap(), 5, &pools);
        assert_eq!(plan.changes["py"], "unchanged", "{text}");
    }
}
