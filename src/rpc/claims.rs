//! The Claims service: shape and identity here, everything else in the machine.

use super::answers::{Answers, answers};
use super::bounds;
use super::caller::Caller;
use super::check;
use super::content;
use super::core::{Core, unexpected};
use super::metrics::Metrics;
use super::places::{Kind, Open};
use super::status;
use super::view;
use crate::api::claim_result::Result as Outcome;
use crate::api::claims_server::Claims;
use crate::api::*;
use crate::driver::{Answered, ClaimChange, Timings};
use crate::machine::event::Call;
use crate::machine::ids::PoolName;
use crate::machine::refusal::Refusal;
use crate::machine::spec::{self, Fence};
use crate::machine::view::{Answer, ClaimView, Grant};
use std::sync::Arc;
use tonic::{Code, Request, Response, Status};

/// What the endpoint of the Sandboxes service is called.
const SANDBOXES: &str = "sandboxes";

/// The service.
pub struct ClaimsService(pub Arc<Core>);

/// A claim on its way, counted when it is answered or left.
struct Counted {
    metrics: Metrics,
    pool: String,
    source: &'static str,
    code: Code,
}

impl Counted {
    fn new(metrics: &Metrics, pool: &str) -> Self {
        Self {
            metrics: metrics.clone(),
            pool: pool.to_owned(),
            source: "",
            code: Code::Cancelled,
        }
    }

    fn answered(&mut self, result: &Result<Answered, Refusal>) {
        match result {
            Err(refusal) => {
                // Refused by a pool that is there, of which nothing was asked since the start.
                if let Refusal::PoolEmpty { pool, .. }
                | Refusal::PoolFailing { pool, .. }
                | Refusal::WaitTimedOut { pool, .. } = refusal
                {
                    self.metrics.pools_known([pool.as_str()]);
                }
                self.code = status::entry(refusal).code;
            }
            Ok(answered) => {
                self.code = Code::Ok;
                if let Answer::Granted(grant) = &answered.answer {
                    self.metrics.pools_known([self.pool.as_str()]);
                    self.source = match grant.source {
                        crate::machine::view::Source::Warm => "warm",
                        crate::machine::view::Source::Cold => "cold",
                        crate::machine::view::Source::Thawed => "thawed",
                        crate::machine::view::Source::Cloned => "cloned",
                    };
                    self.metrics.claim_took(self.source, &answered.timings);
                }
            }
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics
            .claim_answered(&self.pool, self.source, self.code);
    }
}

impl ClaimsService {
    /// A checked claim as a call of the driver.
    fn prepare(
        &self,
        by: &Arc<str>,
        caller: Option<&str>,
        request: ClaimRequest,
    ) -> Result<super::door::BatchCall, Refusal> {
        let claim = check::claim(request)?;
        let content = content::digest(&self.0.key, &claim);
        let fence = fence(caller, claim.epoch);
        let brings_its_own = claim.brings_its_own();
        let request = spec::ClaimRequest {
            claim_id: claim.claim_id,
            pool: claim.pool,
            holder: claim.holder,
            ttl_ms: claim.ttl_ms,
            content,
            on_empty: claim.on_empty,
            on_data_loss: match claim.on_data_loss {
                None if brings_its_own => Some(spec::OnDataLoss::Fail),
                said => said,
            },
            network_policy: claim.network,
            by: Arc::clone(by),
        };
        let call = Call::Claim(fence, Box::new(request));
        Ok((call, Some(Arc::new(claim.personalization))))
    }

    fn granted(&self, answered: Answered) -> Result<ClaimResponse, Refusal> {
        match answered.answer {
            Answer::Granted(grant) => Ok(self.response(&grant, &answered.timings)),
            other => Err(unexpected(&other)),
        }
    }

    fn response(&self, grant: &Grant, timings: &Timings) -> ClaimResponse {
        let core = &self.0;
        let stage = |time: Option<std::time::Duration>| time.and_then(view::duration);
        ClaimResponse {
            sandbox_id: grant.sandbox.to_string(),
            generation: grant.generation,
            source: view::source(grant.source).into(),
            expires_at: grant.expires_at.map(|at| view::timestamp(&*core.door, at)),
            access_token: core.key.access_token(grant.claim, grant.first),
            endpoints: core
                .config
                .endpoints
                .iter()
                .map(|at| endpoint(at))
                .collect(),
            timings: Some(StageTimings {
                queue: stage(timings.queue),
                commit: stage(timings.commit),
                guest: stage(timings.guest),
                total: view::duration(timings.total),
            }),
        }
    }

    /// Sends the good ones of a batch together; answers and refusals in the order of the request.
    async fn batch(
        &self,
        by: &Arc<str>,
        caller: Option<&str>,
        claims: Vec<ClaimRequest>,
    ) -> Vec<Result<ClaimResponse, Refusal>> {
        let metrics = &self.0.metrics;
        let mut counted: Vec<_> = claims
            .iter()
            .map(|claim| Counted::new(metrics, &claim.pool))
            .collect();
        let mut results = Vec::with_capacity(claims.len());
        let mut calls = Vec::with_capacity(claims.len());
        for claim in claims {
            let prepared = self.prepare(by, caller, claim);
            results.push(prepared.map(|call| calls.push(call)));
        }
        let mut answers = self.0.door.call_batch(calls).await.into_iter();
        let missing = || Refusal::Internal {
            detail: "the driver left a claim of the batch unanswered".to_owned(),
        };
        let mut next = |good: Result<(), Refusal>, counted: &mut Counted| {
            let answered = good.and_then(|()| answers.next().unwrap_or_else(|| Err(missing())));
            counted.answered(&answered);
            answered.and_then(|answered| self.granted(answered))
        };
        results
            .into_iter()
            .zip(&mut counted)
            .map(|(good, counted)| next(good, counted))
            .collect()
    }
}

fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        name: SANDBOXES.to_owned(),
        address: address.to_owned(),
    }
}

fn fence(caller: Option<&str>, epoch: u64) -> Fence {
    Fence {
        epoch,
        caller: caller.map(str::to_owned),
    }
}

#[tonic::async_trait]
impl Claims for ClaimsService {
    type WatchStream = Answers<WatchClaimsResponse>;

    async fn claim(
        &self,
        request: Request<ClaimRequest>,
    ) -> Result<Response<ClaimResponse>, Status> {
        let caller = Caller::of(&request)?;
        let fenced = caller.fenced()?;
        let request = request.into_inner();
        caller.trail.about(format!(
            "claim {} of pool {}",
            request.claim_id, request.pool
        ));
        let mut counted = Counted::new(&self.0.metrics, &request.pool);
        let answered = match self.prepare(&caller.name, fenced.as_deref(), request) {
            Ok((call, inside)) => self.0.door.call(call, inside).await,
            Err(refusal) => Err(refusal),
        };
        counted.answered(&answered);
        Ok(Response::new(self.granted(answered?)?))
    }

    async fn claim_batch(
        &self,
        request: Request<ClaimBatchRequest>,
    ) -> Result<Response<ClaimBatchResponse>, Status> {
        let caller = Caller::of(&request)?;
        let fenced = caller.fenced()?;
        let request = request.into_inner();
        check::batch(&request)?;
        let ids: Vec<_> = request
            .claims
            .iter()
            .map(|claim| claim.claim_id.clone())
            .collect();
        caller.trail.about(format!("claims {}", ids.join(" ")));
        let results = self
            .batch(&caller.name, fenced.as_deref(), request.claims)
            .await;
        let result = |(claim_id, result): (String, Result<ClaimResponse, Refusal>)| ClaimResult {
            claim_id,
            result: Some(match result {
                Ok(claim) => Outcome::Claim(claim),
                Err(refusal) => Outcome::Error(status::claim_error(&refusal)),
            }),
        };
        let results = ids.into_iter().zip(results).map(result).collect();
        Ok(Response::new(ClaimBatchResponse { results }))
    }

    async fn release(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseResponse>, Status> {
        let caller = Caller::of(&request)?;
        let fenced = caller.fenced()?;
        let (claim, epoch) = check::release(request.get_ref())?;
        caller.trail.about(format!("claim {claim}"));
        match self
            .0
            .call(Call::Release(fence(fenced.as_deref(), epoch), claim))
            .await?
        {
            Answer::Released => Ok(Response::new(ReleaseResponse {})),
            other => Err(unexpected(&other).into()),
        }
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<RenewResponse>, Status> {
        let caller = Caller::of(&request)?;
        let fenced = caller.fenced()?;
        let (claim, epoch, ttl_ms) = check::renew(request.get_ref())?;
        caller.trail.about(format!("claim {claim}"));
        match self
            .0
            .call(Call::Renew(fence(fenced.as_deref(), epoch), claim, ttl_ms))
            .await?
        {
            Answer::Renewed { expires_at } => Ok(Response::new(RenewResponse {
                expires_at: expires_at.map(|at| view::timestamp(&*self.0.door, at)),
            })),
            other => Err(unexpected(&other).into()),
        }
    }

    async fn get(
        &self,
        request: Request<GetClaimRequest>,
    ) -> Result<Response<GetClaimResponse>, Status> {
        let claim = check::claim_id(&request.get_ref().claim_id)?;
        match self.0.call(Call::Get(claim)).await? {
            Answer::Claim(found) => Ok(Response::new(GetClaimResponse {
                claim: Some(view::claim(&*self.0.door, *found)),
            })),
            other => Err(unexpected(&other).into()),
        }
    }

    async fn list(
        &self,
        request: Request<ListClaimsRequest>,
    ) -> Result<Response<ListClaimsResponse>, Status> {
        let request = request.into_inner();
        let listing = check::listing(&request, |pool, token| self.0.key.page_after(pool, token))?;
        let call = Call::List {
            pool: listing.pool,
            after: listing.after,
            limit: listing.limit,
        };
        let (claims, more) = match self.0.call(call).await? {
            Answer::Claims { claims, more } => (claims, more),
            other => return Err(unexpected(&other).into()),
        };
        let last = claims.last().filter(|_| more);
        let next_page_token = last
            .map(|last| self.0.key.page_token(&request.pool, last.id))
            .unwrap_or_default();
        let claims = claims
            .into_iter()
            .map(|found| view::claim(&*self.0.door, found))
            .collect();
        Ok(Response::new(ListClaimsResponse {
            claims,
            next_page_token,
        }))
    }

    async fn watch(
        &self,
        request: Request<WatchClaimsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (pool, resume) = check::watch(request.into_inner())?;
        let mut watch = self.0.door.watch_claims(resume).await?;
        let core = Arc::clone(&self.0);
        let open = Open::count(&core.metrics, Kind::WatchClaims);
        Ok(Response::new(answers(|out| async move {
            let _open = open;
            while let Some(change) = watch.changes.recv().await {
                let (change, resume_token) = change?;
                if let Some(response) = changed(&core, change, resume_token, pool.as_ref()) {
                    out.send(response).await;
                }
            }
            // Only a driver that has ended closes a watch without a word.
            Err(Refusal::ShuttingDown {
                retry_ms: bounds::STREAM_RETRY_MS,
            })
        })))
    }

    async fn hibernate(
        &self,
        request: Request<HibernateRequest>,
    ) -> Result<Response<HibernateResponse>, Status> {
        let caller = Caller::of(&request)?;
        let fenced = caller.fenced()?;
        let asked = check::hibernate(request.get_ref())?;
        caller.trail.about(format!("claim {}", asked.claim));
        let fence = fence(fenced.as_deref(), asked.epoch);
        let call = Call::Hibernate(fence, asked.claim, asked.tier, asked.reason);
        match self.0.call(call).await? {
            Answer::Hibernated => Ok(Response::new(HibernateResponse {})),
            other => Err(unexpected(&other).into()),
        }
    }

    async fn resume(
        &self,
        request: Request<ResumeRequest>,
    ) -> Result<Response<ResumeResponse>, Status> {
        let caller = Caller::of(&request)?;
        let fenced = caller.fenced()?;
        let (claim, epoch) = check::resume(request.get_ref())?;
        caller.trail.about(format!("claim {claim}"));
        let call = Call::Resume(fence(fenced.as_deref(), epoch), claim);
        match self.0.call(call).await? {
            Answer::Resumed => Ok(Response::new(ResumeResponse {})),
            other => Err(unexpected(&other).into()),
        }
    }
}

/// `None`: of another pool than asked for.
fn changed(
    core: &Core,
    change: ClaimChange,
    resume_token: String,
    pool: Option<&PoolName>,
) -> Option<WatchClaimsResponse> {
    let resumed = matches!(change, ClaimChange::Synced { resumed: true });
    let (kind, found): (ChangeKind, Option<ClaimView>) = match change {
        ClaimChange::Snapshot(found) => (ChangeKind::Snapshot, Some(found)),
        ClaimChange::Synced { .. } => (ChangeKind::Synced, None),
        ClaimChange::Upserted(found) => (ChangeKind::Upserted, Some(found)),
        ClaimChange::Removed(found) => (ChangeKind::Removed, Some(found)),
    };
    let other = found
        .as_ref()
        .zip(pool)
        .is_some_and(|(found, pool)| found.pool != *pool);
    (!other).then(|| WatchClaimsResponse {
        kind: kind.into(),
        claim: found.map(|found| view::claim(&*core.door, found)),
        resume_token,
        resumed,
    })
}
