//! Two hundred real sandboxes, and hearthd dies: the next one adopts all of them and touches none. How long that takes is
//! printed, not asserted.

use crate::hearthd::{Hearth, eventually, fresh_id, patience, patient_request, pool};
use hearth::api::{ClaimState, HibernateRequest, ReleaseRequest};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Members, of which some run; and claims, of which some sleep.
const MEMBERS: u32 = 150;
const RUNNING: u32 = 50;
const CLAIMS: usize = 50;
const ASLEEP: usize = 20;
/// Released, and claimed anew (so that as many are being made), in the moment before the death.
const UNDER_WAY: usize = 5;

/// Task → (pid, when it started).
fn tasks(hearth: &Hearth) -> BTreeMap<String, (i32, u64)> {
    let listed = hearth.ctr(&["tasks", "ls"]);
    let rows = listed.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace();
        let (id, pid) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        Some((id, (pid, started(pid)?)))
    });
    rows.collect()
}

/// Field 22 of /proc/pid/stat (proc(5)).
fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// Sandbox → residency, of those that are to be there.
fn residencies(hearth: &Hearth) -> BTreeMap<String, String> {
    let state = hearth.state();
    let sandboxes = state["sandboxes"].as_array().unwrap().iter();
    let there = sandboxes.filter(|it| it["owner"] != "releasing");
    let text = |it: &serde_json::Value| it.as_str().unwrap().to_owned();
    there
        .map(|it| (text(&it["id"]), text(&it["residency"])))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_sandboxes_are_adopted_and_none_is_touched() {
    let mut hearth = Hearth::start_with(&[("log.level", "info")]).await;
    let mut python = pool("python", MEMBERS, 256);
    python.running = Some(RUNNING);
    python.max_parallel_refills = 4;
    let began = Instant::now();
    hearth.set_pools(vec![python]).await;
    // As they are made, so that the claims are part of one filling.
    let mut claims = BTreeMap::new();
    for _ in 0..CLAIMS {
        let id = fresh_id();
        let request = patient_request(&id, "python", 60);
        let answer = hearth.claims().await.claim(request).await.unwrap();
        claims.insert(id, answer.into_inner().sandbox_id);
    }
    for id in claims.keys().take(ASLEEP) {
        let request = HibernateRequest {
            claim_id: id.clone(),
            epoch: 1,
            ..HibernateRequest::default()
        };
        hearth.claims().await.hibernate(request).await.unwrap();
    }
    // Longer than anything else here: a creation takes a tenth of a second of CPU and more.
    loop {
        let now = hearth.status("python").await;
        if now.warm == MEMBERS && now.frozen == MEMBERS - RUNNING {
            break;
        }
        assert!(began.elapsed() < patience() * 5, "not filled: {now:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let made = began.elapsed();
    let mut seen = BTreeMap::new();
    eventually("freezes have ended", || {
        seen = residencies(&hearth);
        let frozen = seen.values().filter(|it| *it == "frozen").count();
        let all = frozen == usize::try_from(MEMBERS - RUNNING).unwrap() + ASLEEP;
        async move { all }
    })
    .await;
    assert_eq!(seen.len(), usize::try_from(MEMBERS).unwrap() + CLAIMS);

    // In the moment before: some are being made and some are being released.
    let mut released = BTreeSet::new();
    for id in claims
        .keys()
        .rev()
        .take(UNDER_WAY)
        .cloned()
        .collect::<Vec<_>>()
    {
        let request = ReleaseRequest {
            claim_id: id.clone(),
            epoch: 1,
        };
        hearth.claims().await.release(request).await.unwrap();
        released.insert(claims.remove(&id).unwrap());
    }
    for _ in 0..UNDER_WAY {
        let (id, answer) = hearth.claim("python").await;
        claims.insert(id, answer.sandbox_id);
    }
    let before = tasks(&hearth);
    hearth.kill();
    let ready = hearth.restart().await;
    let known = Instant::now();
    eventually("every member has proved itself", || async {
        let now = hearth.status("python").await;
        now.creating <= u32::try_from(UNDER_WAY).unwrap() && now.warm + now.creating >= MEMBERS
    })
    .await;
    let proved = ready + known.elapsed();
    println!(
        "{} sandboxes, made in {made:?}; adopted: ready after {ready:?}, every member proved after {proved:?}",
        seen.len(),
    );

    let after = tasks(&hearth);
    for (id, residency) in &seen {
        if released.contains(id) {
            continue;
        }
        assert!(before.contains_key(id), "{id} had a task");
        assert_eq!(
            before.get(id),
            after.get(id),
            "{id} ({residency}) was touched"
        );
    }
    for (claim, sandbox) in &claims {
        let now = hearth.get(claim).await;
        let slept = seen.get(sandbox).map(String::as_str) == Some("frozen");
        let same = [ClaimState::Claimed, ClaimState::Hibernated];
        assert!(same.contains(&now.state()), "{claim}: {now:?}");
        assert_eq!(&now.sandbox_id, sandbox);
        assert!(
            slept || now.state() == ClaimState::Claimed,
            "{claim}: {now:?}"
        );
    }
    let asleep = claims
        .values()
        .filter(|it| seen.get(*it).is_some_and(|it| it == "frozen"));
    assert!(asleep.count() >= ASLEEP - UNDER_WAY);
    // Where what was being made had to be undone, the pool may thaw as many for the running few; no more.
    let now = residencies(&hearth);
    let members = seen.iter().filter(|(_, it)| *it == "frozen");
    let members = members.filter(|(id, _)| !released.contains(*id));
    let members = members.filter(|(id, _)| !claims.values().any(|it| it == *id));
    let woken = members.filter(|(id, it)| now.get(*id) != Some(it)).count();
    assert!(woken <= UNDER_WAY, "{woken} slept and were woken");
    hearth.finish().await;
}
