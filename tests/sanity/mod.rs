//! Sends every RPC whole, with every field missing, with unknown enum values, oversized, malformed, fenced out, cancelled
//! and with a deadline that is too short; asserts code and reason (and the field's path), and that the node's state is
//! the same before and after.
//!
//! `table.rs` has one row for each (rpc, mutation, expectation); `wire.rs` makes the mutations on the encoded message, so
//! that also what no generated type can say is sent; `bench.rs` sends, reads and tidies up. Needs only a channel.

mod bench;
mod table;
mod wire;

use bench::{Bench, Outcome};
use std::collections::BTreeSet;
use table::{Expect, Mutation, TABLE};
use tonic::transport::Channel;
use wire::Protos;

/// Runs the whole table, one row after the other. Panics with every row that failed.
pub async fn run(channel: Channel, pool: &str) {
    let protos = Protos::load();
    complete(&protos);
    let mut bench = Bench::new(channel, pool).await;
    let before = bench.state().await;
    let mut wrong = Vec::new();
    for (rpc, mutation, expect) in TABLE {
        row(&mut bench, &protos, rpc, *mutation, expect, &mut wrong).await;
    }
    for rpc in protos.rpcs() {
        for (mutation, expect) in table::EVERY {
            row(&mut bench, &protos, &rpc, *mutation, expect, &mut wrong).await;
        }
    }
    bench.settled(&before, &mut wrong).await;
    bench.end().await;
    assert!(
        wrong.is_empty(),
        "{} rows failed:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

async fn row(
    bench: &mut Bench,
    protos: &Protos,
    rpc: &str,
    mutation: Mutation,
    expect: &Expect,
    wrong: &mut Vec<String>,
) {
    let whole = bench.valid(rpc);
    let messages = protos.mutate(rpc, whole, mutation, bench.epoch() - 1);
    let outcome = bench.send(rpc, messages, mutation).await;
    if let Some(problem) = judge(expect, &outcome) {
        wrong.push(format!(
            "{rpc} {mutation:?}: expected {expect:?}, got {problem}"
        ));
    }
    bench.tidy().await;
}

/// What does not fit the expectation.
fn judge(expect: &Expect, outcome: &Outcome) -> Option<String> {
    let shown = || Some(format!("{outcome:?}"));
    if !outcome.is_well_formed() {
        return shown();
    }
    let fits = match expect {
        Expect::Ok => outcome.is("OK", ""),
        Expect::Refused(code, reason) => outcome.is(code, reason),
        Expect::Field(path) => {
            outcome.is("INVALID_ARGUMENT", "INVALID_ARGUMENT") && outcome.names(path)
        }
        Expect::OneOf(all) => all.iter().any(|(code, reason)| outcome.is(code, reason)),
        Expect::NoLeak => true,
    };
    if fits { None } else { shown() }
}

/// The table has a row for every RPC, every field of its first message and every enum in it.
fn complete(protos: &Protos) {
    let mut missing = Vec::new();
    let rows: BTreeSet<(&str, Mutation)> = TABLE
        .iter()
        .map(|(rpc, mutation, _)| (*rpc, *mutation))
        .collect();
    let rpcs = protos.rpcs();
    for rpc in &rpcs {
        if !rows.contains(&(rpc.as_str(), Mutation::Valid)) {
            missing.push(format!("{rpc} Valid"));
        }
        for (path, is_enum) in protos.fields(rpc) {
            let path: &'static str = path.leak();
            if !rows.contains(&(rpc.as_str(), Mutation::Without(path))) {
                missing.push(format!("{rpc} Without({path:?})"));
            }
            if is_enum && !rows.contains(&(rpc.as_str(), Mutation::UnknownEnum(path))) {
                missing.push(format!("{rpc} UnknownEnum({path:?})"));
            }
        }
    }
    let unknown = TABLE
        .iter()
        .filter(|(rpc, ..)| !rpcs.iter().any(|known| known == rpc));
    missing.extend(unknown.map(|(rpc, ..)| format!("{rpc} is no RPC")));
    assert!(
        missing.is_empty(),
        "the table lacks:\n{}",
        missing.join("\n")
    );
}
