//! Personalization, as PID 1 of namespaces of its own (host name and /etc are really changed).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hearth::guest::v1::{
    Claim, FailureKind, GuestFile, Witness, guest_message::Body as Answer,
    host_message::Body as Ask,
};

use crate::guest::{Guest, Host, shell, vars};

pub fn file(path: &str, content: &str, mode: u32) -> GuestFile {
    GuestFile {
        path: path.into(),
        content: content.to_owned().into(),
        mode,
    }
}

/// One with everything in it.
pub fn full(id: &str) -> Claim {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Claim {
        claim_id: id.into(),
        env: vars(&[("CLAIMED", "yes"), ("PATH", "/claimed/bin:/bin:/usr/bin")]),
        files: vec![
            file("/run/claimed/deep/file", "content", 0o640),
            file("/run/claimed/script", "#!/bin/sh\necho it ran\n", 0o755),
        ],
        secrets: vec![file("token", "s3cret", 0)],
        hostname: "claimed-host".into(),
        wall_clock_ns: u64::try_from(now.as_nanos()).unwrap(),
        entropy: vec![7; 32].into(),
    }
}

fn held(host: &mut Host) -> String {
    match host.call(Ask::Witness(Witness {})) {
        Answer::Held(held) => held.claim_id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_claim_is_applied_once() {
    let guest = Guest::first(&[]);
    let mut host = guest.host();
    assert_eq!(held(&mut host), "");
    match host.call(Ask::Claim(full("one"))) {
        Answer::ClaimAck(ack) => assert!(!ack.already),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        host.sh("echo $CLAIMED $PATH"),
        "yes /claimed/bin:/bin:/usr/bin\n"
    );
    assert_eq!(
        host.sh("cat /run/claimed/deep/file; stat -c %a /run/claimed/deep/file"),
        "content640\n"
    );
    assert_eq!(host.sh("/run/claimed/script"), "it ran\n");
    let secret = "cd /run/hearth/secrets; cat *; stat -c ' %a %u' *; ls -A | wc -l";
    assert_eq!(host.sh(secret), "s3cret 600 0\n1\n");
    let names =
        "hostname; cat /etc/hostname /proc/sys/kernel/hostname; grep -c claimed-host /etc/hosts";
    assert_eq!(
        host.sh(names),
        "claimed-host\nclaimed-host\nclaimed-host\n1\n"
    );
    // An exec's own come on top.
    let mut exec = shell("echo $CLAIMED");
    exec.env = vars(&[("CLAIMED", "over")]);
    assert_eq!(host.run(exec).text(), "over\n");

    // Again: nothing twice. After a new session as well. Another: no.
    host.sh("echo changed >/run/claimed/deep/file");
    drop(host);
    let mut host = guest.host();
    match host.call(Ask::Claim(full("one"))) {
        Answer::ClaimAck(ack) => assert!(ack.already),
        other => panic!("{other:?}"),
    }
    assert_eq!(host.sh("cat /run/claimed/deep/file"), "changed\n");
    let failure = host.failure(Ask::Claim(full("two")));
    assert_eq!(failure.kind(), FailureKind::Claimed);
    assert_eq!(held(&mut host), "one");
}

#[test]
fn a_claim_is_whole_or_not_at_all() {
    let guest = Guest::first(&[]);
    let mut host = guest.host();
    host.sh("mkdir -p /run/there /run/full && echo old >/run/there/kept && mkfifo /run/there/fifo");
    guest.mount(&["-t", "tmpfs", "-o", "size=64k", "none", "/run/full"]);
    let denied = host.run(shell("mount -t tmpfs none /run/full"));
    assert_ne!(denied.code(), 0, "SYS_ADMIN is hearth-init's alone");
    let with = |change: &dyn Fn(&mut Claim)| {
        let mut claim = full("one");
        claim.files.push(file("/run/there/kept", "new", 0));
        change(&mut claim);
        Ask::Claim(claim)
    };
    let big = "x".repeat(100_000);
    use FailureKind::{Invalid, Io, Limit, NotFound};
    let cases: Vec<(Ask, FailureKind, &str)> = vec![
        (
            with(&|c| c.files.push(file("/run/there", "", 0))),
            Invalid,
            "files: /run/there",
        ),
        (
            with(&|c| c.files.push(file("/run/there/fifo", "", 0))),
            Invalid,
            "files:",
        ),
        (
            with(&|c| c.files.push(file("relative", "", 0))),
            Invalid,
            "files:",
        ),
        (
            with(&|c| c.files.push(file("/proc/no/file", "", 0))),
            NotFound,
            "files: /proc/no",
        ),
        (
            with(&|c| c.files.push(file("/run/full/file", &big, 0))),
            Io,
            "files: /run/full",
        ),
        (
            with(&|c| c.secrets.push(file("../out", "", 0))),
            Invalid,
            "secret",
        ),
        (
            with(&|c| c.secrets.push(file("big", &big, 0))),
            Limit,
            "secrets",
        ),
        (
            with(&|c| c.hostname = "not a name".into()),
            Invalid,
            "host name",
        ),
        (
            with(&|c| _ = c.env.insert("a=b".into(), String::new())),
            Invalid,
            "env",
        ),
        (
            with(&|c| c.files = vec![file("/run/x", "", 0); 65]),
            Limit,
            "files",
        ),
        (with(&|c| c.claim_id = "x".repeat(65)), Invalid, "claim id"),
        (with(&|c| c.claim_id = String::new()), Invalid, "claim id"),
    ];
    let state = "ls -R /run/claimed /run/hearth/secrets 2>&1; ls -A /run/there /run/full; \
                 cat /run/there/kept; hostname; echo $CLAIMED";
    let before = host.run(shell(state)).text();
    for (ask, kind, text) in cases {
        let failure = host.failure(ask);
        assert_eq!(failure.kind(), kind, "{text}: {failure:?}");
        assert!(failure.message.contains(text), "{text}: {failure:?}");
        assert_eq!(host.run(shell(state)).text(), before, "after {failure:?}");
        assert_eq!(held(&mut host), "");
    }
    // One that fails when the first files are already in their place: two claim the same path, one as a directory.
    let failure = host.failure(with(&|c| {
        c.files.push(file("/run/there/new", "", 0));
        c.files.push(file("/run/there/new/below", "", 0));
        c.files.reverse();
    }));
    assert_eq!(host.run(shell(state)).text(), before, "after {failure:?}");
    assert!(matches!(host.call(with(&|_| ())), Answer::ClaimAck(_)));
    assert_eq!(
        host.sh("cat /run/there/kept; ls -A /run/there"),
        "newfifo\nkept\n"
    );
}

#[test]
fn secrets_are_refused_where_they_would_reach_a_disk() {
    // An ordinary process: /run/hearth/secrets is not there, or on a disk.
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let claim = Claim {
        claim_id: "one".into(),
        secrets: vec![file("token", "s3cret", 0)],
        ..Claim::default()
    };
    let failure = host.failure(Ask::Claim(claim));
    assert!(
        failure.message.starts_with("secrets: /run/hearth/secrets"),
        "{failure:?}"
    );
    let guest = Guest::first(&[]);
    let mut host = guest.host();
    // A proc file system stands for any that is not a tmpfs.
    // Aligned: hearth-init is there, its tmpfs too.
    assert_eq!(held(&mut host), "");
    guest.mount(&["-t", "proc", "none", "/run/hearth/secrets"]);
    let failure = host.failure(Ask::Claim(full("one")));
    assert!(failure.message.contains("not a tmpfs"), "{failure:?}");
    assert_eq!(
        host.sh("hostname; ls /run/claimed 2>/dev/null || echo none"),
        format!("{}none\n", host.sh("hostname"))
    );
}

#[test]
fn a_claim_for_a_user() {
    let guest = Guest::first(&["--user", "12345:54321"]);
    let mut host = guest.host();
    assert!(matches!(
        host.call(Ask::Claim(full("one"))),
        Answer::ClaimAck(_)
    ));
    let look = "cat /run/hearth/secrets/token; stat -c ' %u:%g' /run/hearth/secrets/token \
                /run/claimed /run/claimed/deep/file";
    assert_eq!(
        host.sh(look),
        "s3cret 12345:54321\n 12345:54321\n 12345:54321\n"
    );
}

#[test]
fn the_largest_claim_leaves_no_memory_and_no_secret_behind() {
    let guest = Guest::first(&[]);
    let mut host = guest.host();
    host.ping();
    let before = memory(&mut host);
    let marker = "5ecret-marker-";
    let mut claim = full("one");
    claim.secrets = (0..64)
        .map(|at| {
            file(
                &format!("s{at}"),
                &marker.repeat((64 << 10) / marker.len()),
                0,
            )
        })
        .collect();
    claim
        .files
        .push(file("/run/claimed/big", &"f".repeat(1_000_000), 0));
    let id = host.ask(Ask::Claim(claim));
    let answer = host.next_within(id, Duration::from_secs(10));
    assert!(matches!(answer, Some(Answer::ClaimAck(_))), "{answer:?}");
    host.ping();
    let after = memory(&mut host);
    println!("anonymous memory: {before} KiB before, {after} KiB after a claim of 5 MB");
    assert!(
        after < before + 1024,
        "{before} KiB before, {after} KiB after"
    );
    assert_eq!(host.sh("wc -c </run/hearth/secrets/s63"), "65534\n");
    // PID 1's memory, read through /proc: every writable mapping.
    let search = "grep -E '^[0-9a-f]+-[0-9a-f]+ rw' /proc/1/maps | while read range rest; do \
         from=$((0x${range%-*})); to=$((0x${range#*-})); \
         dd if=/proc/1/mem bs=4096 skip=$((from/4096)) count=$(((to-from)/4096)) 2>/dev/null; \
         done | grep -c -a 5ecret[-]marker; true";
    assert_eq!(host.sh(search), "0\n");
}

/// Anonymous resident memory of PID 1 in KiB.
fn memory(host: &mut Host) -> u64 {
    let text = host.sh("grep RssAnon /proc/1/status");
    text.split_whitespace().nth(1).unwrap().parse().unwrap()
}
