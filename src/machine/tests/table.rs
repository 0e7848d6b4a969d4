//! What every event does to a sandbox in every state: driven through the machine, and compared with
//! `docs/state-machine.md`. A changed rule shows in that file's diff; `UPDATE=1` rewrites it.

use super::fixtures::*;
use super::rig::Rig;
use crate::machine::claims::Stage;
use crate::machine::event::*;
use crate::machine::ids::*;
use crate::machine::record::{Op, Owner};
use crate::machine::sandboxes::{Operation, Residency};
use crate::machine::spec::*;
use crate::machine::view::Answer;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// The sandbox looked at, and the claim that has it or would.
const CLAIM: u128 = 1;
const TTL_MS: u64 = 30 * 60 * 1000;

fn one() -> PoolSpec {
    pool("py", 1, 1)
}

fn asked(on_empty: OnEmpty) -> ClaimRequest {
    ClaimRequest {
        ttl_ms: TTL_MS,
        on_empty,
        ..ask(CLAIM)
    }
}

/// A pool whose only member is being made.
fn making() -> Rig {
    let mut rig = Rig::new();
    rig.call(Call::SetPools(fence(1), set(1, &[one()])));
    rig
}

/// A cold claim whose sandbox is being made.
fn making_cold() -> Rig {
    let mut rig = Rig::with(&[pool("py", 0, 1)]);
    rig.claim(asked(OnEmpty::Cold));
    rig
}

fn warm() -> Rig {
    Rig::with(&[one()])
}

/// A pool whose only member is to be frozen.
fn freezing() -> Rig {
    Rig::with(&[PoolSpec {
        running: Some(0),
        ..one()
    }])
}

fn frozen() -> Rig {
    then(freezing(), |rig, _| rig.freeze_all())
}

/// A member that is thawed for its pool: one is to run from now on.
fn thawing() -> Rig {
    then(frozen(), |rig, _| {
        let revised = PoolSpec {
            generation: 2,
            ..one()
        };
        drop_id(rig.call(Call::SetPools(fence(1), set(2, &[revised]))));
    })
}

fn falling_asleep() -> Rig {
    then(held(), |rig, _| drop_id(rig.hibernate(CLAIM)))
}

fn asleep() -> Rig {
    then(falling_asleep(), |rig, _| rig.freeze_all())
}

fn waking() -> Rig {
    then(asleep(), |rig, _| drop_id(rig.resume(CLAIM)))
}

fn sinking() -> Rig {
    then(held(), |rig, _| drop_id(rig.sink(CLAIM)))
}

fn sinking_frozen() -> Rig {
    then(asleep(), |rig, _| drop_id(rig.sink(CLAIM)))
}

fn shedding() -> Rig {
    then(sinking(), |rig, it| {
        rig.send(Event::Checkpointed(it, Ok(7)));
    })
}

fn on_disk() -> Rig {
    then(sinking(), |rig, _| rig.sink_all())
}

fn restoring() -> Rig {
    then(on_disk(), |rig, _| drop_id(rig.resume(CLAIM)))
}

/// It is back, and that is not durable yet.
fn back() -> Rig {
    then(restoring(), |rig, it| rig.send(Event::Restored(it, Ok(()))))
}

fn personalizing() -> Rig {
    let mut rig = warm();
    rig.claim(asked(OnEmpty::Fail));
    rig
}

fn held() -> Rig {
    let mut rig = personalizing();
    rig.guests_confirm();
    rig
}

/// The journal does not know of the confirmation.
fn unconfirmed() -> Rig {
    let mut rig = held();
    rig.store.claims.get_mut(&id(CLAIM)).unwrap().confirmed = false;
    rig
}

fn then(mut rig: Rig, what: impl FnOnce(&mut Rig, SandboxId)) -> Rig {
    let sandbox = subject(&rig);
    what(&mut rig, sandbox);
    rig
}

fn restarted(rig: Rig) -> Rig {
    then(rig, |rig, _| rig.restart())
}

fn connected(rig: Rig) -> Rig {
    then(rig, |rig, sandbox| rig.connect(&[sandbox]))
}

fn witnessed(rig: Rig, held: Held) -> Rig {
    then(rig, |rig, _| rig.witness(held))
}

fn ended(rig: Rig) -> Rig {
    then(rig, |rig, it| rig.send(Event::Ended(it, ExitCause::Exited)))
}

fn released(rig: Rig) -> Rig {
    then(rig, |rig, _| drop_id(rig.release(CLAIM)))
}

/// Every state there is.
fn states() -> Vec<Rig> {
    let asking = || connected(restarted(unconfirmed()));
    vec![
        making(),
        ended(making()),
        restarted(making()),
        warm(),
        restarted(warm()),
        connected(restarted(warm())),
        witnessed(connected(restarted(warm())), Held::Silent),
        freezing(),
        frozen(),
        restarted(frozen()),
        thawing(),
        making_cold(),
        ended(making_cold()),
        restarted(making_cold()),
        personalizing(),
        held(),
        falling_asleep(),
        asleep(),
        restarted(asleep()),
        waking(),
        sinking(),
        sinking_frozen(),
        shedding(),
        on_disk(),
        restarted(on_disk()),
        restoring(),
        back(),
        restarted(held()),
        restarted(unconfirmed()),
        asking(),
        witnessed(asking(), Held::Silent),
        witnessed(asking(), Held::Nothing),
        released(making_cold()),
        ended(released(making_cold())),
        then(making(), |rig, _| rig.create_fails("exit status 1")),
        released(held()),
        ended(held()),
        released(restarted(held())),
        released(then(held(), |rig, _| {
            rig.send(Event::Runtime { available: false });
        })),
    ]
}

type Happening = (&'static str, fn(&mut Rig, SandboxId));

/// Every kind of event, as it concerns the sandbox.
const EVENTS: &[Happening] = &[
    ("another Claim", |rig, _| drop_id(rig.claim(ask(2)))),
    ("Claim (again)", |rig, _| {
        drop_id(rig.claim(asked(OnEmpty::Fail)));
    }),
    ("Release", |rig, _| drop_id(rig.release(CLAIM))),
    ("Hibernate", |rig, _| drop_id(rig.hibernate(CLAIM))),
    ("Hibernate to the disk", |rig, _| drop_id(rig.sink(CLAIM))),
    ("Resume", |rig, _| drop_id(rig.resume(CLAIM))),
    ("a use of it", |rig, _| drop_id(rig.locate(CLAIM))),
    ("Renew", |rig, _| drop_id(rig.renew(CLAIM, 2 * TTL_MS))),
    ("pool left out", |rig, _| {
        drop_id(rig.call(Call::SetPools(fence(1), set(9, &[]))));
    }),
    ("template changed (Recreate)", |rig, _| {
        let revised = PoolSpec {
            generation: 9,
            template: template("image:9"),
            update_strategy: UpdateStrategy::Recreate,
            ..one()
        };
        drop_id(rig.call(Call::SetPools(fence(1), set(9, &[revised]))));
    }),
    ("created", |rig, it| rig.send(Event::Created(it, Ok(())))),
    ("creation failed", |rig, it| {
        let failure = CreateFailure::Template("exit status 1".to_owned());
        rig.send(Event::Created(it, Err(failure)));
    }),
    ("creation interrupted", |rig, it| {
        let failure = CreateFailure::RuntimeUnavailable;
        rig.send(Event::Created(it, Err(failure)));
    }),
    ("destroyed", |rig, it| {
        rig.send(Event::Destroyed(it, Ok(())))
    }),
    ("destruction failed", |rig, it| {
        rig.send(Event::Destroyed(it, Err("busy".to_owned())));
    }),
    ("guest confirms", |rig, it| {
        rig.send(Event::Personalized(it, id(CLAIM), Ok(())));
    }),
    ("guest lost", |rig, it| {
        let failure = GuestFailure::Lost("no answer".to_owned());
        rig.send(Event::Personalized(it, id(CLAIM), Err(failure)));
    }),
    ("guest refuses", |rig, it| {
        let failure = GuestFailure::Refused("bad path".to_owned());
        rig.send(Event::Personalized(it, id(CLAIM), Err(failure)));
    }),
    ("guest holds nothing", |rig, it| {
        rig.send(Event::Witnessed(it, Held::Nothing));
    }),
    ("guest holds the claim", |rig, it| {
        rig.send(Event::Witnessed(it, Held::Claim(id(CLAIM))));
    }),
    ("guest holds another claim", |rig, it| {
        rig.send(Event::Witnessed(it, Held::Claim(id(3))));
    }),
    ("guest is silent", |rig, it| {
        rig.send(Event::Witnessed(it, Held::Silent));
    }),
    ("frozen", |rig, it| rig.send(Event::Frozen(it, Ok(())))),
    ("freeze failed", |rig, it| {
        rig.send(Event::Frozen(it, Err("deadline".to_owned())));
    }),
    ("thawed", |rig, it| rig.send(Event::Thawed(it, Ok(())))),
    ("thaw failed", |rig, it| {
        rig.send(Event::Thawed(it, Err("deadline".to_owned())));
    }),
    ("checkpointed", |rig, it| {
        rig.send(Event::Checkpointed(it, Ok(7)));
    }),
    ("no room for its image", |rig, it| {
        let failure = CheckpointFailure::NoRoom("quota".to_owned());
        rig.send(Event::Checkpointed(it, Err(failure)));
    }),
    ("shed", |rig, it| rig.send(Event::Shed(it, Ok(())))),
    ("shed failed", |rig, it| {
        rig.send(Event::Shed(it, Err("busy".to_owned())));
    }),
    ("restored", |rig, it| rig.send(Event::Restored(it, Ok(())))),
    ("not restored now", |rig, it| {
        let failure = RestoreFailure::Unavailable("no containerd".to_owned());
        rig.send(Event::Restored(it, Err(failure)));
    }),
    ("its image does not fit", |rig, it| {
        let failure = RestoreFailure::Mismatch("another runsc".to_owned());
        rig.send(Event::Restored(it, Err(failure)));
    }),
    ("its image is damaged", |rig, it| {
        let failure = RestoreFailure::Lost("a piece".to_owned());
        rig.send(Event::Restored(it, Err(failure)));
    }),
    ("ended by itself", |rig, it| {
        rig.send(Event::Ended(it, ExitCause::Exited));
    }),
    ("listed alive", |rig, it| {
        rig.send(Event::Runtime { available: true });
        rig.asleep.clear();
        rig.listed(&[it]);
    }),
    ("listed alive and frozen", |rig, it| {
        rig.send(Event::Runtime { available: true });
        rig.asleep.insert(it);
        rig.listed(&[it]);
    }),
    ("listed as dead", |rig, _| {
        rig.send(Event::Runtime { available: true });
        rig.listed(&[]);
    }),
    ("runtime unreachable", |rig, _| {
        rig.send(Event::Runtime { available: false });
    }),
    ("runtime reachable", |rig, _| {
        rig.send(Event::Runtime { available: true });
    }),
    ("disk reserve reached", |rig, _| {
        rig.send(Event::Disk {
            reserve_reached: true,
        });
    }),
    ("shutting down", |rig, _| rig.send(Event::ShuttingDown)),
    ("a minute passes", |rig, _| rig.advance(RELIST_MS)),
    ("its time to live passes", |rig, _| rig.advance(TTL_MS)),
];

fn drop_id(_: RequestId) {}

fn subject(rig: &Rig) -> SandboxId {
    let mut sandboxes = rig.node.sandboxes.iter();
    sandboxes.next().expect("no sandbox").id
}

/// Owner × residency × operation, and how far the claim is where that differs.
fn state(rig: &Rig, sandbox: SandboxId) -> String {
    let Some(it) = rig.node.sandboxes.get(sandbox) else {
        return "verified gone, record deleted".to_owned();
    };
    let (owner, stage) = match it.owner {
        Owner::Pool => ("pool", None),
        Owner::Releasing => ("releasing", None),
        Owner::Claimed(claim) => {
            let stage = rig.node.claims.get(&claim).map(|it| match it.stage {
                Stage::Queued { .. } => "queued",
                Stage::Making { .. } => "making",
                Stage::Assigned { .. } => "assigned",
                Stage::Held { .. } => "held",
                Stage::Failed { .. } => "failed",
                Stage::Unknown { .. } => "unknown",
                Stage::Unheld { .. } => "unheld",
            });
            ("claimed", stage)
        }
    };
    let residency = match it.residency {
        Residency::Creating => "creating",
        Residency::Running => "running",
        Residency::Frozen => "frozen",
        Residency::OnDisk(_) => "on disk",
        Residency::Unknown { slept: false } => "unknown",
        Residency::Unknown { slept: true } => "unknown (slept)",
        Residency::Gone => "gone",
    };
    let operation = match it.operation {
        Operation::Idle => "idle",
        Operation::Create => "create",
        Operation::Personalize => "personalize",
        Operation::Freeze => "freeze",
        Operation::Thaw => "thaw",
        Operation::Checkpoint => "checkpoint",
        Operation::Shed => "shed",
        Operation::Restore => "restore",
        Operation::Replace { .. } => "replace",
        Operation::Witness { .. } => "witness",
        Operation::AskAgain { .. } => "ask again",
        Operation::Destroy if rig.destroying.contains(&sandbox) => "destroy",
        Operation::Destroy => "destroy (waits)",
    };
    let stage = stage.map(|stage| format!(" [{stage}]")).unwrap_or_default();
    format!("{owner}{stage} × {residency} × {operation}")
}

/// What is asked for because of it; not what other sandboxes get.
fn asked_for(rig: &Rig, sandbox: SandboxId) -> Vec<String> {
    let durable = |op: &Op| match op {
        Op::PutSandbox(it) if it.id == sandbox => Some("persist sandbox".to_owned()),
        Op::DeleteSandbox(it) if *it == sandbox => Some("delete sandbox".to_owned()),
        Op::PutClaim(_) => Some("persist claim".to_owned()),
        Op::DeleteClaim(_) => Some("delete claim".to_owned()),
        Op::PutTombstone(..) => Some("remember release".to_owned()),
        _ => None,
    };
    let told = |effect: &Effect| match effect {
        Effect::Persist(op) => durable(op),
        Effect::PersistLazily(op) => durable(op).map(|op| format!("{op} (lazily)")),
        Effect::Reply { answer, .. } => Some(match answer {
            Ok(Answer::Granted(_)) => "**grant**".to_owned(),
            Ok(answer) => format!("answer {}", kind(answer)),
            Err(refusal) => format!("refuse {}", kind(refusal)),
        }),
        Effect::Destroy { sandbox: it, .. } if *it == sandbox => Some("**destroy**".to_owned()),
        Effect::Personalize { thaw: true, .. } => Some("thaw and personalize".to_owned()),
        Effect::Personalize { .. } => Some("personalize".to_owned()),
        Effect::Witness { .. } => Some("witness".to_owned()),
        Effect::Freeze { .. } => Some("freeze".to_owned()),
        Effect::Thaw { .. } => Some("thaw".to_owned()),
        Effect::Reclaim { .. } => Some("reclaim".to_owned()),
        Effect::Checkpoint { asleep: true, .. } => Some("thaw and checkpoint".to_owned()),
        Effect::Checkpoint { .. } => Some("checkpoint".to_owned()),
        Effect::Shed { .. } => Some("shed".to_owned()),
        Effect::Restore { .. } => Some("restore".to_owned()),
        Effect::GoOn { .. } => Some("go on".to_owned()),
        Effect::DropImage { .. } => Some("drop image".to_owned()),
        Effect::KeepImages(_) => Some("keep images".to_owned()),
        Effect::ClaimChanged { removed: true, .. } => Some("claim removed".to_owned()),
        Effect::ClaimChanged { view, .. } => Some(format!("claim {:?}", view.state)),
        Effect::Notice(Notice::Created { .. } | Notice::Recovered { .. }) => None,
        Effect::Notice(notice) => Some(format!("notice {}", kind(notice))),
        _ => None,
    };
    rig.effects.iter().filter_map(told).collect()
}

/// The name of a variant.
fn kind(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    let end = text.find([' ', '(', '{']).unwrap_or(text.len());
    text[..end].to_owned()
}

struct Row {
    from: String,
    event: &'static str,
    to: String,
    effects: Vec<String>,
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for base in states() {
        for (event, happen) in EVENTS {
            let mut rig = base.clone();
            let sandbox = subject(&rig);
            let from = state(&rig, sandbox);
            happen(&mut rig, sandbox);
            rows.push(Row {
                from,
                event,
                to: state(&rig, sandbox),
                effects: asked_for(&rig, sandbox),
            });
        }
    }
    rows
}

fn document(rows: &[Row]) -> String {
    let mut text = String::from(
        "# The life of a sandbox\n\n\
         Written by `src/machine/tests/table.rs` from what the machine does (`UPDATE=1 cargo test machine::tests::table`);\n\
         the test fails when the two differ. A state is *owner* × *residency* × *operation*; a claimed sandbox also shows\n\
         how far its claim is. The pool looked at has one member and room for no other, so a claim whose guest is lost\n\
         finds no next one here.\n\n",
    );
    diagram(rows, &mut text);
    let mut states: Vec<&str> = Vec::new();
    for row in rows {
        if !states.contains(&row.from.as_str()) {
            states.push(&row.from);
        }
    }
    for from in states {
        let _ = writeln!(text, "\n## {from}\n");
        table(rows.iter().filter(|row| row.from == from), &mut text);
    }
    text
}

fn table<'a>(rows: impl Iterator<Item = &'a Row>, text: &mut String) {
    let (mut idle, mut seen) = (Vec::new(), BTreeSet::new());
    text.push_str("| event | becomes | asked for |\n|---|---|---|\n");
    for row in rows {
        let to = if row.to == row.from { "" } else { &row.to };
        let effects = row.effects.join(", ");
        if !seen.insert(row.event) {
            continue;
        }
        match to.is_empty() && effects.is_empty() {
            true => idle.push(row.event),
            false => drop(writeln!(text, "| {} | {to} | {effects} |", row.event)),
        }
    }
    let _ = writeln!(text, "\nNothing: {}.", idle.join(", "));
}

fn diagram(rows: &[Row], text: &mut String) {
    let mut edges: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.from != row.to) {
        let events = edges.entry((&row.from, &row.to)).or_default();
        if !events.contains(&row.event) {
            events.push(row.event);
        }
    }
    let states: BTreeSet<_> = edges.keys().flat_map(|(from, to)| [*from, *to]).collect();
    let number = |state: &str| {
        states
            .iter()
            .position(|it| *it == state)
            .unwrap_or_default()
    };
    text.push_str("```mermaid\nstateDiagram-v2\n");
    for state in &states {
        let _ = writeln!(text, "  s{}: {state}", number(state));
    }
    for ((from, to), events) in &edges {
        let _ = writeln!(
            text,
            "  s{} --> s{}: {}",
            number(from),
            number(to),
            events.join(", ")
        );
    }
    text.push_str("```\n");
}

#[test]
fn the_documented_table_is_what_the_machine_does() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/state-machine.md");
    let now = document(&rows());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/docs")).unwrap();
        std::fs::write(path, &now).unwrap();
    }
    let documented = std::fs::read_to_string(path).unwrap_or_default();
    let mut lines = documented.lines().zip(now.lines());
    let first = lines.find(|(documented, now)| documented != now);
    assert_eq!(
        first, None,
        "docs/state-machine.md is out of date: run with UPDATE=1"
    );
    assert_eq!(documented.lines().count(), now.lines().count());
}
