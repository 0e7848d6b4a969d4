//! Two hundred real sandboxes, and hearthd dies: the next one adopts all of them and touches none. Once more with containerd
//! dead beside it, while most of them are frozen. How long that takes is printed, not asserted.

use crate::hearthd::{Hearth, eventually, fresh_id, patience, patient_request, pool};
use hearth::api::{ClaimState, HibernateRequest, ReleaseRequest, ResumeRequest, Tier};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Members, of which some run; and claims, of which some sleep, some of these on the disk.
const MEMBERS: u32 = 150;
const RUNNING: u32 = 50;
const CLAIMS: usize = 50;
const ASLEEP: usize = 20;
const ON_DISK: usize = 5;
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
    for (at, id) in claims.keys().take(ASLEEP).enumerate() {
        let tier = if at < ON_DISK {
            Tier::Disk
        } else {
            Tier::Memory
        };
        let request = HibernateRequest {
            claim_id: id.clone(),
            epoch: 1,
            tier: tier.into(),
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
        let of = |residency: &str| seen.values().filter(|it| *it == residency).count();
        let frozen = usize::try_from(MEMBERS - RUNNING).unwrap() + ASLEEP - ON_DISK;
        let all = of("frozen") == frozen && of("on_disk") == ON_DISK;
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
        let has_task = residency != "on_disk";
        assert_eq!(before.contains_key(id), has_task, "{id} had a task");
        assert_eq!(
            before.get(id),
            after.get(id),
            "{id} ({residency}) was touched"
        );
    }
    for (claim, sandbox) in &claims {
        let now = hearth.get(claim).await;
        let slept = seen.get(sandbox).is_some_and(|it| it != "running");
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
        .filter(|it| seen.get(*it).is_some_and(|it| it != "running"));
    assert!(asleep.count() >= ASLEEP - UNDER_WAY);
    // Where what was being made had to be undone, the pool may thaw as many for the running few; no more.
    let now = residencies(&hearth);
    let members = seen.iter().filter(|(_, it)| *it == "frozen");
    let members = members.filter(|(id, _)| !released.contains(*id));
    let members = members.filter(|(id, _)| !claims.values().any(|it| it == *id));
    let woken = members.filter(|(id, it)| now.get(*id) != Some(it)).count();
    assert!(woken <= UNDER_WAY, "{woken} slept and were woken");

    // Now containerd dies while hearthd is away: it, too, finds every sandbox again, and nobody waits for the frozen ones.
    eventually("the pool is at rest", || async {
        let now = hearth.status("python").await;
        (now.warm, now.creating, now.releasing) == (MEMBERS, 0, 0)
    })
    .await;
    let (before, seen) = (tasks(&hearth), residencies(&hearth));
    hearth.kill();
    hearth.kill_containerd();
    let ready = hearth.restart().await;
    let known = Instant::now();
    eventually("every member has proved itself", || async {
        let now = hearth.status("python").await;
        now.warm + now.creating >= MEMBERS
    })
    .await;
    let frozen = seen.values().filter(|it| *it == "frozen").count();
    println!(
        "containerd dead too, {frozen} frozen: ready after {ready:?}, every member proved after {:?}",
        ready + known.elapsed()
    );
    assert_eq!(tasks(&hearth), before, "a task was touched");
    for (claim, sandbox) in &claims {
        assert_eq!(&hearth.get(claim).await.sandbox_id, sandbox);
    }
    // One of each residency is used.
    for residency in ["running", "frozen", "on_disk"] {
        let mut of = claims
            .iter()
            .filter(|(_, it)| seen.get(*it).map(String::as_str) == Some(residency));
        let (claim_id, _) = of.next().expect(residency);
        let request = ResumeRequest {
            claim_id: claim_id.clone(),
            epoch: 1,
        };
        if residency != "running" {
            hearth.claims().await.resume(request).await.unwrap();
        }
        let (code, text) = hearth.run(claim_id, &["echo", residency]).await;
        assert_eq!((code, text.trim()), (0, residency));
    }
    hearth.finish().await;
}
