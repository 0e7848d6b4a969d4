//! Every field of every request against its bound: the field's path in the answer, all of them at once.

use super::*;
use crate::api;
use crate::driver::StreamInput;
use crate::machine::handler::Handler;
use crate::machine::limits;
use crate::machine::network::{NetworkMode, NetworkPolicy};
use crate::machine::spec;
use bytes::Bytes;

const ID: &str = "7f9c24e8-3b0c-4f6b-9f0e-2f5d8c1a7e11";

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

/// The paths of what is wrong.
fn fields<T: std::fmt::Debug>(checked: Result<T, Refusal>) -> Vec<String> {
    match checked {
        Err(Refusal::InvalidArgument(found)) => found.into_iter().map(|(field, _)| field).collect(),
        other => panic!("not invalid: {other:?}"),
    }
}

fn a_claim() -> api::ClaimRequest {
    api::ClaimRequest {
        claim_id: ID.into(),
        pool: "python".into(),
        epoch: 1,
        ..Default::default()
    }
}

fn inside(request: &mut api::ClaimRequest) -> &mut api::Personalization {
    request.personalization.get_or_insert_default()
}

fn file(path: &str, bytes: usize) -> api::File {
    api::File {
        path: path.into(),
        content: Bytes::from(vec![0; bytes]),
        mode: 0,
    }
}

fn secret(name: &str, bytes: usize) -> api::Secret {
    api::Secret {
        name: name.into(),
        value: Bytes::from(vec![0; bytes]),
    }
}

#[test]
fn a_claim_gets_its_defaults() {
    let checked = claim(a_claim()).unwrap();
    assert_eq!((checked.ttl_ms, checked.on_empty), (0, spec::OnEmpty::Fail));
    let mut request = a_claim();
    request.claim_id = ID.to_uppercase();
    request.ttl = Some(prost_types::Duration {
        seconds: 1,
        nanos: 1,
    });
    request.on_empty = api::OnEmpty::Wait.into();
    request.wait_timeout = seconds(600);
    inside(&mut request).files = vec![file("/w/a", limits::CLAIM_FILE_BYTES)];
    inside(&mut request).secrets = vec![secret(".k-1_", limits::SECRET_BYTES)];
    inside(&mut request).hostname = "box-1".into();
    inside(&mut request).env.insert("A".into(), "=".into());
    let checked = claim(request).unwrap();
    assert_eq!(checked.claim_id.to_string(), ID);
    assert_eq!(checked.ttl_ms, 1001, "rounded up");
    assert_eq!(
        checked.on_empty,
        spec::OnEmpty::Wait {
            timeout_ms: 600_000
        }
    );
    assert_eq!(checked.personalization.files[0].2, 0o644);
}

#[test]
fn each_field_of_a_claim() {
    type Change = Box<dyn Fn(&mut api::ClaimRequest)>;
    fn row(
        path: &'static str,
        change: impl Fn(&mut api::ClaimRequest) + 'static,
    ) -> (&'static str, Change) {
        (path, Box::new(change))
    }
    let holder = |namespace: String, name: String, uid: String| {
        Some(api::Holder {
            namespace,
            name,
            uid,
        })
    };
    let long = || "x".repeat(limits::HOLDER_BYTES + 1);
    let mut rows = vec![
        row("claim_id", |r| r.claim_id.clear()),
        row("claim_id", |r| {
            r.claim_id = "00000000-0000-0000-0000-000000000000".into()
        }),
        row("claim_id", |r| r.claim_id = format!("{ID} ")),
        row("claim_id", |r| {
            r.claim_id = "{7f9c24e8-3b0c-4f6b-9f0e-2f5d8c1a7}".into()
        }),
        row("pool", |r| r.pool.clear()),
        row("pool", |r| r.pool = "Python".into()),
        row("pool", |r| r.pool = "x".repeat(64)),
        row("pool", |r| r.pool = "../x".into()),
        row("holder.namespace", move |r| {
            r.holder = holder(long(), String::new(), String::new())
        }),
        row("holder.name", move |r| {
            r.holder = holder(String::new(), long(), String::new())
        }),
        row("holder.uid", move |r| {
            r.holder = holder(String::new(), String::new(), long())
        }),
        row("holder.name", move |r| {
            r.holder = holder(String::new(), "a\nb".into(), String::new())
        }),
        row("epoch", |r| r.epoch = 0),
        row("ttl", |r| r.ttl = seconds(-1)),
        row("ttl", |r| r.ttl = seconds(i64::MAX)),
        row("ttl", |r| r.ttl = seconds(30 * 24 * 3600 + 1)),
        row("ttl", |r| {
            r.ttl = Some(prost_types::Duration {
                seconds: 1,
                nanos: 1_000_000_000,
            })
        }),
        row("ttl", |r| {
            r.ttl = Some(prost_types::Duration {
                seconds: 1,
                nanos: -1,
            })
        }),
        row("on_empty", |r| r.on_empty = 77),
        row("wait_timeout", |r| r.on_empty = api::OnEmpty::Wait.into()),
        row("wait_timeout", |r| r.wait_timeout = seconds(1)),
    ];
    for wait in [0, -1, 601] {
        rows.push(row("wait_timeout", move |r| {
            r.on_empty = api::OnEmpty::Wait.into();
            r.wait_timeout = seconds(wait);
        }));
    }
    for (name, value) in [("", "v"), ("A=B", "v"), ("A\0", "v"), ("A", "v\0")] {
        let path = key("personalization.env", name).leak();
        rows.push(row(path, move |r| {
            drop(inside(r).env.insert(name.into(), value.into()))
        }));
    }
    const ENV: &str = "personalization.env";
    rows.push(row(ENV, |r| {
        inside(r).env = (0..=limits::ENV_VARS)
            .map(|n| (format!("V{n}"), String::new()))
            .collect();
    }));
    rows.push(row(ENV, |r| {
        drop(
            inside(r)
                .env
                .insert("A".into(), "x".repeat(limits::ENV_BYTES)),
        )
    }));
    const PATH: &str = "personalization.files[0].path";
    for path in [
        "",
        "relative",
        "/a/../b",
        "/..",
        "/a\0",
        "/",
        "/a/",
        &format!("/{}", "x".repeat(4096)),
    ] {
        let path = path.to_owned();
        rows.push(row(PATH, move |r| inside(r).files = vec![file(&path, 1)]));
    }
    rows.push(row("personalization.files[1].path", |r| {
        inside(r).files = vec![file("/a", 1), file("/a", 1)]
    }));
    rows.push(row("personalization.files[0].mode", |r| {
        inside(r).files = vec![api::File {
            mode: 0o10_000,
            ..file("/a", 1)
        }];
    }));
    const FILES: &str = "personalization.files";
    rows.push(row(FILES, |r| {
        inside(r).files = (0..=limits::CLAIM_FILES)
            .map(|n| file(&format!("/{n}"), 0))
            .collect()
    }));
    rows.push(row(FILES, |r| {
        inside(r).files = vec![file("/a", limits::CLAIM_FILE_BYTES), file("/b", 1)]
    }));
    const NAME: &str = "personalization.secrets[0].name";
    for name in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(254)] {
        let name = name.to_owned();
        rows.push(row(NAME, move |r| {
            inside(r).secrets = vec![secret(&name, 1)]
        }));
    }
    rows.push(row("personalization.secrets[1].name", |r| {
        inside(r).secrets = vec![secret("a", 1), secret("a", 1)]
    }));
    rows.push(row("personalization.secrets[0].value", |r| {
        inside(r).secrets = vec![secret("a", limits::SECRET_BYTES + 1)];
    }));
    rows.push(row("personalization.secrets", |r| {
        inside(r).secrets = (0..=limits::CLAIM_SECRETS)
            .map(|n| secret(&n.to_string(), 0))
            .collect();
    }));
    for hostname in ["-a", "a.b", "A", "a_b", &"x".repeat(64)] {
        let hostname = hostname.to_owned();
        rows.push(row("personalization.hostname", move |r| {
            inside(r).hostname.clone_from(&hostname)
        }));
    }
    rows.push(row("personalization.network_policy.mode", |r| {
        inside(r).network_policy = Some(api::NetworkPolicy {
            mode: 9,
            ..Default::default()
        });
    }));
    for (path, change) in rows {
        let mut request = a_claim();
        change(&mut request);
        assert_eq!(fields(claim(request.clone())), [path], "{request:?}");
    }
}

/// Whether it can be applied is the machine's to judge; the rules themselves are in `network_tests.rs`.
#[test]
fn a_claim_brings_its_policy() {
    let mut request = a_claim();
    assert_eq!(claim(request.clone()).unwrap().network, None);
    inside(&mut request).network_policy = Some(api::NetworkPolicy {
        mode: api::NetworkMode::Internet.into(),
        publish: vec![80],
        ..Default::default()
    });
    let policy = claim(request).unwrap().network.unwrap();
    assert_eq!(policy.mode, NetworkMode::Internet);
    assert_eq!(policy.publish, [80]);
}

#[test]
fn all_problems_are_told_at_once_and_no_value_of_a_secret() {
    let mut request = api::ClaimRequest {
        on_empty: -1,
        ..Default::default()
    };
    let value = Bytes::from("hunter2".repeat(limits::SECRET_BYTES));
    inside(&mut request).secrets = vec![api::Secret {
        name: "/hunter2".into(),
        value,
    }];
    inside(&mut request)
        .env
        .insert("A".into(), "hunter2\0".into());
    let refusal = claim(request).unwrap_err();
    assert!(!refusal.to_string().contains("hunter2"), "{refusal}");
    let expected = [
        "claim_id",
        "pool",
        "epoch",
        "on_empty",
        "personalization.env[\"A\"]",
        "personalization.secrets[0].name",
        "personalization.secrets[0].value",
    ];
    assert_eq!(fields::<()>(Err(refusal)), expected);
}

#[test]
fn the_list_of_problems_is_bounded() {
    let mut found = Fields::default();
    for at in 0..10_000 {
        found.wrong(format!("field[{at}]"), "is wrong");
    }
    let told = fields(found.finish());
    assert_eq!(told.len(), bounds::VIOLATIONS + 1);
    assert_eq!(told.last().unwrap(), "(more)");
    let mut found = Fields::default();
    found.wrong(key("env", &"\n".repeat(100_000)), "x".repeat(100_000));
    let Err(Refusal::InvalidArgument(told)) = found.finish() else {
        panic!("nothing wrong")
    };
    assert!(
        told[0].0.len() + told[0].1.len() <= bounds::VIOLATION_BYTES,
        "{}",
        told[0].0.len()
    );
}

#[test]
fn batches() {
    let other = || api::ClaimRequest {
        claim_id: ID.replace('7', "8"),
        ..a_claim()
    };
    let of = |claims| api::ClaimBatchRequest { claims };
    batch(&of(vec![a_claim(), other()])).unwrap();
    // Judged one by one, later.
    batch(&of(vec![
        api::ClaimRequest::default(),
        api::ClaimRequest::default(),
    ]))
    .unwrap();
    assert_eq!(fields(batch(&of(vec![]))), ["claims"]);
    let upper = api::ClaimRequest {
        claim_id: ID.to_uppercase(),
        ..a_claim()
    };
    assert_eq!(
        fields(batch(&of(vec![a_claim(), other(), upper]))),
        ["claims[2].claim_id"]
    );
    assert_eq!(
        fields(batch(&of(vec![
            api::ClaimRequest::default();
            limits::BATCH_CLAIMS + 1
        ]))),
        ["claims"]
    );
}

#[test]
fn short_requests_about_claims() {
    assert_eq!(fields(claim_id("x")), ["claim_id"]);
    let nothing = api::ReleaseRequest::default();
    assert_eq!(fields(release(&nothing)), ["claim_id", "epoch"]);
    let renewal = api::RenewRequest {
        ttl: seconds(-1),
        ..Default::default()
    };
    assert_eq!(fields(renew(&renewal)), ["claim_id", "epoch", "ttl"]);
    let good = api::RenewRequest {
        claim_id: ID.into(),
        epoch: 3,
        ttl: seconds(60),
    };
    assert_eq!(renew(&good).unwrap().2, 60_000);
    let long = api::WatchClaimsRequest {
        pool: "P".into(),
        resume_token: "x".repeat(257),
    };
    assert_eq!(fields(watch(long)), ["pool", "resume_token"]);
    assert_eq!(
        watch(api::WatchClaimsRequest::default()).unwrap(),
        (None, None)
    );
}

#[test]
fn listings() {
    let after = crate::machine::ids::ClaimId::parse(ID).unwrap();
    let read = |pool: &str, token: &str| (pool == "p" && token == "t").then_some(after);
    let of = |pool: &str, page_size, token: &str| {
        let request = api::ListClaimsRequest {
            pool: pool.into(),
            page_size,
            page_token: token.into(),
        };
        listing(&request, read)
    };
    assert_eq!(of("", 0, "").unwrap().limit, limits::PAGE);
    let page = of("p", 7, "t").unwrap();
    assert_eq!((page.limit, page.after), (7, Some(after)));
    assert_eq!(
        fields(of("P", 1001, "u")),
        ["pool", "page_size", "page_token"]
    );
    assert_eq!(
        fields(of("p", u32::MAX, &"t".repeat(1000))),
        ["page_size", "page_token"]
    );
}

fn a_pool() -> api::Pool {
    api::Pool {
        name: "python".into(),
        generation: 1,
        template: Some(api::Template {
            image: "python:3".into(),
            runtime_handler: "gvisor".into(),
            ..Default::default()
        }),
        max_total: 4,
        min_warm: 2,
        ..Default::default()
    }
}

fn set(pools: Vec<api::Pool>) -> Result<spec::PoolSet, Refusal> {
    let request = api::SetPoolsRequest {
        generation: 1,
        epoch: 1,
        pools,
    };
    set_pools(request, &handlers()).map(|(set, _)| set)
}

/// One that can't be served among them.
fn handlers() -> Vec<Handler> {
    let names = ["gvisor", "kata-clh", "kata-qemu"];
    let mut all = names.map(|name| Handler::named(name, true)).to_vec();
    all[2].unservable = "containerd finds no shim".into();
    all
}

#[test]
fn a_pool_that_asks_for_what_its_handler_can_not_do_is_refused_by_field() {
    let asking = |handler: &str| {
        let mut pool = a_pool();
        pool.running = Some(1);
        let template = pool.template.as_mut().unwrap();
        template.runtime_handler = handler.into();
        template.idle_after = Some(prost_types::Duration {
            seconds: 60,
            nanos: 0,
        });
        template.resources = Some(api::Resources {
            disk_bytes: 1 << 30,
            ..Default::default()
        });
        pool
    };
    assert!(set(vec![asking("gvisor")]).is_ok());
    assert_eq!(
        fields(set(vec![asking("kata-clh")])),
        [
            "pools[0].running",
            "pools[0].template.idle_after",
            "pools[0].template.resources.disk_bytes"
        ]
    );
    let mut plain = a_pool();
    plain.template.as_mut().unwrap().runtime_handler = "kata-clh".into();
    let given = set(vec![plain.clone()]).unwrap();
    let template = &given.pools[0].template;
    assert_eq!(template.runtime_handler, "kata-clh");
    assert_eq!(template.resources.disk_bytes, 0, "no bound is promised");
    // All of them may run.
    plain.running = Some(plain.min_warm);
    assert!(set(vec![plain.clone()]).is_ok());
    plain.template.as_mut().unwrap().runtime_handler = "kata-qemu".into();
    let Err(Refusal::InvalidArgument(found)) = set(vec![plain]) else {
        panic!("a handler that can't be served was taken");
    };
    assert_eq!(found[0].0, "pools[0].template.runtime_handler");
    assert!(found[0].1.contains("finds no shim"), "{found:?}");
}

#[test]
fn gvisor_may_be_called_what_runtime_classes_call_it() {
    let mut pool = a_pool();
    pool.template.as_mut().unwrap().runtime_handler = "runsc".into();
    let given = set(vec![pool]).unwrap();
    assert_eq!(given.pools[0].template.runtime_handler, "gvisor");
}

#[test]
fn a_pool_gets_its_defaults_and_its_place() {
    let set = set(vec![
        a_pool(),
        api::Pool {
            name: "node".into(),
            ..a_pool()
        },
    ])
    .unwrap();
    assert_eq!(
        set.pools
            .iter()
            .map(|pool| pool.name.as_str())
            .collect::<Vec<_>>(),
        ["node", "python"]
    );
    let pool = &set.pools[0];
    let resources = pool.template.resources;
    assert_eq!(
        (resources.cpu_millis, resources.memory_bytes),
        (0, 512 << 20)
    );
    assert_eq!((resources.pids, resources.disk_bytes), (1024, 1 << 30));
    assert_eq!(pool.template.readiness.timeout_ms, 30_000);
    assert_eq!(pool.template.network_policy, NetworkPolicy::default());
    assert_eq!(pool.update_strategy, spec::UpdateStrategy::OnReplenish);
    assert_eq!(pool.max_parallel_refills, limits::DEFAULT_PARALLEL_REFILLS);
    // What GetPools shows can be set again: equal and same.
    assert!(
        super::set_pools(
            api::SetPoolsRequest {
                generation: 1,
                epoch: 1,
                pools: vec![]
            },
            &[]
        )
        .is_ok()
    );
}

#[test]
fn each_field_of_a_pool() {
    type Change = fn(&mut api::Pool);
    fn template(pool: &mut api::Pool) -> &mut api::Template {
        pool.template.as_mut().unwrap()
    }
    fn resources(pool: &mut api::Pool) -> &mut api::Resources {
        template(pool).resources.get_or_insert_default()
    }
    fn readiness(pool: &mut api::Pool) -> &mut api::Readiness {
        template(pool).readiness.get_or_insert_default()
    }
    let rows: [(&str, Change); 41] = [
        ("name", |p| p.name = "-".into()),
        ("generation", |p| p.generation = 0),
        ("max_total", |p| (p.max_total, p.min_warm) = (0, 0)),
        ("max_total", |p| p.max_total = limits::POOL_MAX_TOTAL + 1),
        ("min_warm", |p| p.min_warm = 5),
        ("max_parallel_refills", |p| p.max_parallel_refills = 17),
        ("running", |p| p.running = Some(p.min_warm + 1)),
        ("template.idle_after", |p| {
            template(p).idle_after = Some(prost_types::Duration {
                seconds: 0,
                nanos: 1,
            });
        }),
        ("update_strategy", |p| p.update_strategy = 3),
        ("template", |p| p.template = None),
        ("template.image", |p| template(p).image.clear()),
        ("template.image", |p| template(p).image = "a b".into()),
        ("template.image", |p| template(p).image = "x".repeat(513)),
        ("template.runtime_handler", |p| {
            template(p).runtime_handler.clear()
        }),
        ("template.runtime_handler", |p| {
            template(p).runtime_handler = "kata".into()
        }),
        ("template.runtime_class", |p| {
            template(p).runtime_handler.clear();
            template(p).runtime_class = "Not/A/Class".into();
        }),
        // One of the two, not both.
        ("template.runtime_handler", |p| {
            template(p).runtime_class = "gvisor".into()
        }),
        ("template.command[0]", |p| {
            template(p).command = vec![String::new()]
        }),
        ("template.command[1]", |p| {
            template(p).command = vec!["sh".into(), "\0".into()]
        }),
        ("template.command", |p| {
            template(p).command = vec!["x".into(); limits::COMMAND_ARGS + 1]
        }),
        ("template.command", |p| {
            template(p).command = vec!["x".repeat(limits::COMMAND_BYTES)]
        }),
        ("template.env[\"\"]", |p| {
            drop(template(p).env.insert(String::new(), String::new()))
        }),
        ("template.working_dir", |p| {
            template(p).working_dir = "w".into()
        }),
        ("template.working_dir", |p| {
            template(p).working_dir = "/w/..".into()
        }),
        ("template.resources.cpu_millis", |p| {
            resources(p).cpu_millis = u64::MAX
        }),
        ("template.resources.memory_bytes", |p| {
            resources(p).memory_bytes = 1
        }),
        ("template.resources.memory_bytes", |p| {
            resources(p).memory_bytes = u64::MAX
        }),
        ("template.resources.pids", |p| resources(p).pids = 31),
        ("template.resources.pids", |p| {
            resources(p).pids = (1 << 22) + 1
        }),
        ("template.resources.open_files", |p| {
            resources(p).open_files = 63
        }),
        ("template.resources.disk_bytes", |p| {
            resources(p).disk_bytes = 4096
        }),
        ("template.resources.disk_bytes", |p| {
            resources(p).disk_bytes = u64::MAX
        }),
        ("template.warm_command[0]", |p| {
            template(p).warm_command = vec![String::new(), "x".into()]
        }),
        ("template.interpreter", |p| {
            template(p).interpreter = "cobol".into()
        }),
        ("template.prefork", |p| {
            template(p).interpreter = "python".into();
            template(p).prefork = 5;
        }),
        ("template.prefork", |p| template(p).prefork = 1),
        ("template.readiness.command[0]", |p| {
            readiness(p).command = vec!["\0".into()]
        }),
        ("template.readiness.timeout", |p| {
            readiness(p).timeout = seconds(0)
        }),
        ("template.readiness.timeout", |p| {
            readiness(p).timeout = seconds(301)
        }),
        ("template.readiness.timeout", |p| {
            readiness(p).timeout = seconds(-1)
        }),
        ("template.readiness.timeout", |p| {
            readiness(p).timeout = Some(prost_types::Duration {
                seconds: 0,
                nanos: 999_000_000,
            });
        }),
    ];
    for (path, change) in rows {
        let mut pool = a_pool();
        change(&mut pool);
        assert_eq!(
            fields(set(vec![pool.clone()])),
            [format!("pools[0].{path}")],
            "{pool:?}"
        );
    }
}

#[test]
fn the_whole_set() {
    let nothing = api::SetPoolsRequest::default();
    assert_eq!(fields(set_pools(nothing, &[])), ["epoch", "generation"]);
    assert_eq!(fields(set(vec![a_pool(), a_pool()])), ["pools[1].name"]);
    let many = (0..=limits::POOLS)
        .map(|n| api::Pool {
            name: format!("p{n}"),
            ..a_pool()
        })
        .collect();
    assert_eq!(fields(set(many)), ["pools"]);
    let mut open = a_pool();
    let policy = |mode| api::NetworkPolicy {
        mode,
        ..Default::default()
    };
    let template = open.template.as_mut().unwrap();
    template.network_policy = Some(policy(api::NetworkMode::Internet.into()));
    let declared = set(vec![open.clone()]).unwrap().pools.remove(0);
    assert_eq!(declared.template.network_policy.mode, NetworkMode::Internet);
    open.template.as_mut().unwrap().network_policy = Some(policy(7));
    let wrong = ["pools[0].template.network_policy.mode"];
    assert_eq!(fields(set(vec![open])), wrong);
}

fn a_start() -> api::ExecStart {
    api::ExecStart {
        claim_id: ID.into(),
        command: vec!["true".into()],
        ..Default::default()
    }
}

#[test]
fn each_field_of_an_exec() {
    let good = exec_start(api::ExecStart {
        timeout: seconds(2),
        ..a_start()
    })
    .unwrap();
    assert_eq!(
        (good.exec.timeout_ms, good.exec.rows, good.rules.tty),
        (2000, 0, false)
    );
    let tty = exec_start(api::ExecStart {
        tty: true,
        ..a_start()
    })
    .unwrap()
    .exec;
    assert_eq!((tty.rows, tty.columns), (24, 80));
    let size = |rows, columns| Some(api::TerminalSize { rows, columns });
    type Change = Box<dyn Fn(&mut api::ExecStart)>;
    let rows: Vec<(&str, Change)> = vec![
        ("start.claim_id", Box::new(|s| s.claim_id.clear())),
        ("start.command", Box::new(|s| s.command.clear())),
        (
            "start.command[0]",
            Box::new(|s| s.command = vec![String::new()]),
        ),
        (
            "start.env[\"a=b\"]",
            Box::new(|s| drop(s.env.insert("a=b".into(), String::new()))),
        ),
        (
            "start.working_dir",
            Box::new(|s| s.working_dir = "./w".into()),
        ),
        ("start.size", Box::new(move |s| s.size = size(1, 1))),
        (
            "start.size.rows",
            Box::new(move |s| (s.tty, s.size) = (true, size(0, 80))),
        ),
        (
            "start.size.columns",
            Box::new(move |s| (s.tty, s.size) = (true, size(24, 5000))),
        ),
        ("start.timeout", Box::new(|s| s.timeout = seconds(0))),
        ("start.timeout", Box::new(|s| s.timeout = seconds(i64::MAX))),
        (
            "start.detach",
            Box::new(|s| (s.tty, s.detach) = (true, true)),
        ),
        ("start.exec_id", Box::new(|s| s.exec_id = "a".into())),
        ("start.exec_id", Box::new(|s| s.keep = seconds(1))),
        (
            "start.exec_id",
            Box::new(|s| (s.keep, s.exec_id) = (seconds(1), "a/b".into())),
        ),
        (
            "start.keep",
            Box::new(|s| (s.keep, s.exec_id) = (seconds(0), "a".into())),
        ),
        (
            "start.keep",
            Box::new(|s| (s.keep, s.exec_id) = (seconds(86_401), "a".into())),
        ),
        (
            "start.keep",
            Box::new(|s| (s.keep, s.exec_id, s.stdin) = (seconds(1), "a".into(), true)),
        ),
    ];
    for (path, change) in rows {
        let mut start = a_start();
        change(&mut start);
        assert_eq!(fields(exec_start(start.clone())), [path], "{start:?}");
    }
}

#[test]
fn what_may_follow_the_start_of_an_exec() {
    use api::exec_request::Request as Input;
    let of = |request, stdin, tty| {
        let rules = ExecRules {
            stdin,
            tty,
            attached: false,
        };
        exec_input(api::ExecRequest { request }, rules)
    };
    let piece = |bytes| Some(Input::Stdin(Bytes::from(vec![1; bytes])));
    assert!(matches!(
        of(piece(limits::CHUNK_BYTES), true, false),
        Ok(StreamInput::Data(_))
    ));
    assert!(matches!(
        of(Some(Input::StdinEof(true)), true, false),
        Ok(StreamInput::Eof)
    ));
    assert!(matches!(
        of(Some(Input::Signal(15)), false, false),
        Ok(StreamInput::Signal(15))
    ));
    let size = |rows| Some(Input::Resize(api::TerminalSize { rows, columns: 1 }));
    assert!(matches!(
        of(size(1), false, true),
        Ok(StreamInput::Resize {
            rows: 1,
            columns: 1
        })
    ));
    assert_eq!(
        fields(of(piece(limits::CHUNK_BYTES + 1), true, false)),
        ["stdin"]
    );
    assert_eq!(fields(of(piece(1), false, false)), ["stdin"]);
    assert_eq!(
        fields(of(Some(Input::StdinEof(true)), false, false)),
        ["stdin_eof"]
    );
    assert_eq!(fields(of(size(0), false, true)), ["resize.rows"]);
    assert_eq!(fields(of(size(1), false, false)), ["resize"]);
    for number in [0, 65, u32::MAX] {
        assert_eq!(
            fields(of(Some(Input::Signal(number)), true, true)),
            ["signal"]
        );
    }
    assert_eq!(
        fields(of(Some(Input::Start(a_start())), true, true)),
        ["start"]
    );
    assert_eq!(fields(of(None, true, true)), ["request"]);
}

#[test]
fn files_and_ports() {
    let read = |path: &str, offset, limit| {
        read_file(api::ReadFileRequest {
            claim_id: ID.into(),
            path: path.into(),
            offset,
            limit,
        })
    };
    assert_eq!(read("/a", 1, 2).unwrap().read.offset, 1);
    assert_eq!(fields(read("a", u64::MAX, 1)), ["path", "offset"]);
    assert_eq!(fields(read("/a", i64::MAX.unsigned_abs(), 1)), ["offset"]);
    assert_eq!(
        fields(read_file(api::ReadFileRequest::default())),
        ["claim_id", "path"]
    );
    let write = |path: &str, mode| {
        let start = api::WriteFileStart {
            claim_id: ID.into(),
            path: path.into(),
            mode,
            parents: true,
        };
        write_file(start)
    };
    assert_eq!(write("/a", 0).unwrap().write.mode, 0o644);
    assert_eq!(
        fields(write("/a/", 0o777_777)),
        ["start.path", "start.mode"]
    );
    let list = |path: &str| {
        list_files(api::ListFilesRequest {
            claim_id: ID.into(),
            path: path.into(),
        })
    };
    assert_eq!(list("/").unwrap().list.path, "/");
    assert_eq!(fields(list("")), ["path"]);
    let port = |port| {
        connect(&api::ConnectStart {
            claim_id: ID.into(),
            port,
        })
    };
    assert_eq!(port(65_535).unwrap().port, 65_535);
    for wrong in [0, 65_536, u32::MAX] {
        assert_eq!(fields(port(wrong)), ["start.port"]);
    }
    assert_eq!(
        fields(connect(&api::ConnectStart::default())),
        ["start.claim_id", "start.port"]
    );
    assert_eq!(fields(stats(&api::StatsRequest::default())), ["claim_id"]);
    assert_eq!(
        fields(piece(
            "chunk",
            Bytes::from(vec![0; limits::CHUNK_BYTES + 1])
        )),
        ["chunk"]
    );
}

#[test]
fn requests_of_the_operator() {
    let good = "h00000001000000000001".to_owned();
    assert_eq!(
        orphans(std::slice::from_ref(&good)).unwrap()[0].to_string(),
        good
    );
    assert_eq!(fields(orphans(&[good, "../x".to_owned()])), ["destroy[1]"]);
    assert_eq!(
        fields(orphans(&vec![
            "h00000001000000000001".to_owned();
            bounds::ORPHANS + 1
        ])),
        ["destroy"]
    );
    for wrong in ["", "a b", "a\u{7f}", &"x".repeat(513)] {
        assert_eq!(fields(image(wrong)), ["name"]);
    }
    assert_eq!(archive_name("").unwrap(), None);
    assert_eq!(archive_name("a:b").unwrap().as_deref(), Some("a:b"));
}
