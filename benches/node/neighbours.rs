//! What a sandbox that takes all it can get costs the others: their warm claims beside each noise, against the same claims
//! in quiet.

use crate::hearthd::{Hearth, eventually, fresh_id, patient_request};
use crate::measure::{Report, millis};
use crate::noises::{NOISES, noisy};
use crate::{PAUSE, python, settle, warm_claims};
use hearth::api::ClaimState;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Executions at once in the sandbox that does nothing else.
const EXECS: usize = 4;

/// The noisy sandbox's claim, to be released whenever the measuring is over.
type Current = Mutex<Option<String>>;

pub async fn section(report: &mut Report, hearth: &Hearth) {
    hearth.set_pools(vec![noisy(1), python()]).await;
    hearth.warm("noisy", 1).await;
    settle(hearth, "python").await;
    let quiet = warm_claims(hearth, PAUSE).await.whole;
    report.row("warm claim, quiet neighbours", &quiet);
    let tiny = [("tiny execs without end", "")];
    for (name, script) in NOISES.iter().chain(&tiny) {
        let current = Current::default();
        let claims = tokio::select! {
            claims = warm_claims(hearth, PAUSE) => claims.whole,
            () = noise(hearth, script, &current) => return,
        };
        report.row(&format!("  beside: {name}"), &claims);
        let ratio = millis(claims.at(50)) / millis(quiet.at(50));
        let what = format!("warm claim beside a sandbox with: {name}");
        report.goal(&what, ratio, "< 1.5", ratio < 1.5);
        let last = current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(claim) = last {
            hearth.release(&claim).await;
        }
        eventually("quiet again", || async {
            let status = hearth.status("noisy").await;
            status.releasing == 0 && status.warm == 1
        })
        .await;
        settle(hearth, "python").await;
    }
    hearth.set_pools(vec![python()]).await;
    settle(hearth, "python").await;
}

/// For ever: what ends itself begins anew in the next sandbox.
async fn noise(hearth: &Hearth, script: &str, current: &Current) {
    loop {
        let id = fresh_id();
        let request = patient_request(&id, "noisy", 60);
        *current.lock().unwrap_or_else(PoisonError::into_inner) = Some(id.clone());
        hearth.claims().await.claim(request).await.unwrap();
        if script.is_empty() {
            let execs = std::iter::repeat_with(|| execs(hearth, &id)).take(EXECS);
            futures::future::join_all(execs).await;
        }
        hearth.start_detached(&id, &["python3", "-c", script]).await;
        until_failed(hearth, &id).await;
        hearth.release(&id).await;
    }
}

async fn execs(hearth: &Hearth, claim: &str) {
    loop {
        hearth.run(claim, &["busybox", "true"]).await;
    }
}

async fn until_failed(hearth: &Hearth, claim: &str) {
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        if hearth.get(claim).await.state() == ClaimState::Failed {
            return;
        }
    }
}
