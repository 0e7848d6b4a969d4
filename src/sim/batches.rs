//! Claims that one allocator asks for together.

use super::book::{Refused, Sent};
use super::callers::{Callers, Stage, name};
use super::hearth::Hearth;
use crate::api;
use crate::api::claim_result::Result as Outcome;
use crate::api::claims_server::Claims;
use crate::rpc::unguarded::By;
use tonic::Status;

/// One claim of a batch.
struct Part {
    place: usize,
    asked: api::ClaimRequest,
    sent: Sent,
}

impl Callers {
    /// All that this allocator asks for now, and some that it has, in one call. Its places ask by themselves meanwhile.
    pub(super) async fn ask_together(&self, allocator: usize, hearth: &Hearth) {
        let epoch = self.epoch(allocator);
        let places = self.asking_or_held(allocator).into_iter();
        let parts: Vec<_> = places
            .filter(|(_, it)| !it.is_held() || self.world.once_in(2))
            .map(|(place, it)| {
                // Each is judged by itself, also one that is wrong.
                let other = it.is_held() && self.world.once_in(2);
                let mut asked = it.asked;
                asked.epoch = epoch;
                if other {
                    let inside = asked.personalization.get_or_insert_default();
                    inside.hostname = "other".to_owned();
                }
                let sent = self.book.claim_sent(&asked, it.ttl_ms, other);
                Part { place, asked, sent }
            })
            .collect();
        if parts.is_empty() {
            return;
        }
        let claims = parts.iter().map(|part| part.asked.clone()).collect();
        let message = api::ClaimBatchRequest { claims };
        let request = hearth
            .services
            .asked(By::Allocator(&name(allocator)), message);
        let call = hearth.services.claims.claim_batch(request);
        let what = format!("ClaimBatch of {}", parts.len());
        let judge = |answer: &_| self.judge_batch(&parts, answer);
        let Some(Ok(batch)) = self.send(what, call, judge).await else {
            return;
        };
        let mut fenced = None;
        for (part, result) in parts.iter().zip(&batch.results) {
            let stage = match told(result) {
                Ok(_) => Stage::Held,
                Err(refused) => {
                    if refused.reason.starts_with("EPOCH_") {
                        fenced = Some(refused.clone());
                    }
                    match refused.ends() {
                        Some(stage) => stage,
                        None => continue,
                    }
                }
            };
            self.go_on(part.place, &part.asked.claim_id, stage);
        }
        if let Some(refused) = fenced {
            self.take_over(allocator, &refused).await;
        }
    }

    fn judge_batch(&self, parts: &[Part], answer: &Result<api::ClaimBatchResponse, Status>) {
        let batch = match answer {
            Ok(batch) => batch,
            Err(status) => return self.world.broken(format!("no batch: {status:?}")),
        };
        let asked = parts.iter().map(|part| &part.asked.claim_id);
        let answered = batch.results.iter().map(|result| &result.claim_id);
        self.world.ensure(asked.eq(answered), || {
            format!("answered with another batch: {batch:?}")
        });
        for (part, result) in parts.iter().zip(&batch.results) {
            self.book.claimed(&part.sent, told(result));
        }
    }
}

/// One result of a batch. One without a result is of nobody's making.
fn told(result: &api::ClaimResult) -> Result<&api::ClaimResponse, Refused> {
    match result.result.as_ref() {
        Some(Outcome::Claim(grant)) => Ok(grant),
        Some(Outcome::Error(error)) => Err(Refused::from(error)),
        None => Err(Refused::default()),
    }
}
