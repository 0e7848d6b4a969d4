//! What fails around hearthd: its containerd, shims, runsc, its disk, the clock, its own memory and descriptors. Each time:
//! what its caller is told, that others go on, that all comes right by itself, that nothing is left. `docs/faults.md` shows
//! all faults with the tests that prove them (`tests/support/faults.rs`).

mod clock;
mod containerd;
mod journal;
mod links;
mod own;
mod record;
mod runsc;
mod shims;

use crate::hearthd::{Hearth, claim_request, eventually, fresh_id, processes};
use crate::hostile::reason;
use hearth::api::{ClaimState, HibernateRequest, OnEmpty, ResumeRequest, Tier};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Status;

/// A process that stands still as long as this lives.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: Pid) -> Self {
        kill(pid, Signal::SIGSTOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been killed meanwhile.
        let _gone = kill(self.0, Signal::SIGCONT);
    }
}

/// The shim that serves a sandbox.
fn shim_of(sandbox: &str) -> Pid {
    let found = processes(|line| {
        line[0].ends_with("containerd-shim-runc-v2")
            && line.windows(2).any(|pair| pair == ["-id", sandbox])
            && !matches!(line.last().map(String::as_str), Some("start" | "delete"))
    });
    assert_eq!(found.len(), 1, "one shim of {sandbox}");
    Pid::from_raw(found[0])
}

/// Every sandbox hearthd knows.
fn known(hearth: &Hearth) -> Vec<String> {
    let state = hearth.state();
    let sandboxes = state["sandboxes"].as_array().unwrap().iter();
    sandboxes
        .map(|it| it["id"].as_str().unwrap().to_owned())
        .collect()
}

async fn is_gone(hearth: &Hearth, sandbox: &str) {
    eventually(&format!("{sandbox} is gone"), || async {
        !known(hearth).iter().any(|id| id == sandbox)
    })
    .await;
}

async fn hibernate(hearth: &Hearth, claim: &str, tier: Tier) -> Result<(), Status> {
    let request = HibernateRequest {
        claim_id: claim.to_owned(),
        epoch: 1,
        tier: tier.into(),
        ..HibernateRequest::default()
    };
    hearth.claims().await.hibernate(request).await.map(drop)
}

async fn resume(hearth: &Hearth, claim: &str) -> Result<(), Status> {
    let request = ResumeRequest {
        claim_id: claim.to_owned(),
        epoch: 1,
    };
    hearth.claims().await.resume(request).await.map(drop)
}

/// A claim that has its sandbox made for it: why not.
async fn cold(hearth: &Hearth, pool: &str) -> Result<String, Status> {
    let id = fresh_id();
    let mut request = claim_request(&id, pool);
    request.on_empty = OnEmpty::Cold.into();
    hearth.claims().await.claim(request).await.map(|_| id)
}

/// A sandbox answers.
async fn answers(hearth: &Hearth, claim: &str) {
    let ran = hearth.run(claim, &["echo", "here"]).await;
    assert_eq!(ran, (0, "here\n".to_owned()));
}

/// A claim has lost its sandbox, and says why; calls say so too, and it is released like any other.
async fn has_failed(hearth: &Hearth, claim: &str, why: &str) {
    eventually(&format!("{claim} tells {why}"), || async {
        let got = hearth.get(claim).await;
        got.state() == ClaimState::Failed && got.status_reason == why
    })
    .await;
    let refused = hearth.try_run(claim, &["true"]).await.unwrap_err();
    assert_eq!(reason(&refused), "SANDBOX_ENDED", "{refused:?}");
    hearth.release(claim).await;
}
