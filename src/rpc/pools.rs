//! The Pools service.

use super::answers::{Answers, answers};
use super::bounds;
use super::caller::Caller;
use super::check;
use super::core::{Core, unexpected};
use super::places::{Kind, Open};
use super::view;
use crate::api::pools_server::Pools;
use crate::api::*;
use crate::machine::event::Call;
use crate::machine::refusal::Refusal;
use crate::machine::spec::Fence;
use crate::machine::view::Answer;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The service.
pub struct PoolsService(pub Arc<Core>);

/// Generation of the set, and all pools, ordered by name; with what their sandboxes use, where that is wanted.
pub async fn read(core: &Core, usage: bool) -> Result<(u64, Vec<PoolView>), Refusal> {
    let (generation, pools) = match core.call(Call::GetPools).await? {
        Answer::Pools { generation, pools } => (generation, pools),
        other => return Err(unexpected(&other)),
    };
    core.metrics
        .pools_known(pools.iter().map(|pool| pool.spec.name.as_str()));
    let memory = match usage {
        true => core.door.memory().await,
        false => None,
    };
    let pools = pools
        .into_iter()
        .map(|pool| view::pool(&*core.door, pool, memory.as_deref()))
        .collect();
    Ok((generation, pools))
}

#[tonic::async_trait]
impl Pools for PoolsService {
    type WatchPoolsStream = Answers<WatchPoolsResponse>;

    async fn set_pools(
        &self,
        request: Request<SetPoolsRequest>,
    ) -> Result<Response<SetPoolsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let fenced = caller.fenced()?;
        let handlers = self.0.door.handlers();
        let (set, epoch) = check::set_pools(request.into_inner(), &handlers)?;
        let templates = set.pools.iter().map(|pool| &pool.template);
        let networked =
            |template: &crate::machine::spec::Template| template.network_policy.needs_interface();
        if let Err(detail) = self.0.door.network()
            && templates.into_iter().any(networked)
        {
            return Err(Refusal::NetworkUnavailable { detail }.into());
        }
        caller.trail.about(format!("generation {}", set.generation));
        let names: Vec<_> = set.pools.iter().map(|pool| pool.name.clone()).collect();
        match self
            .0
            .call(Call::SetPools(
                Fence {
                    epoch,
                    caller: fenced,
                },
                set,
            ))
            .await?
        {
            Answer::PoolsSet { generation } => {
                self.0
                    .metrics
                    .pools_known(names.iter().map(|name| name.as_str()));
                Ok(Response::new(SetPoolsResponse { generation }))
            }
            other => Err(unexpected(&other).into()),
        }
    }

    async fn get_pools(
        &self,
        request: Request<GetPoolsRequest>,
    ) -> Result<Response<GetPoolsResponse>, Status> {
        let (generation, pools) = read(&self.0, request.get_ref().usage).await?;
        Ok(Response::new(GetPoolsResponse { generation, pools }))
    }

    async fn watch_pools(
        &self,
        _: Request<WatchPoolsRequest>,
    ) -> Result<Response<Self::WatchPoolsStream>, Status> {
        let core = Arc::clone(&self.0);
        let open = Open::count(&core.metrics, Kind::WatchPools);
        let mut changes = core.door.pools_changed();
        Ok(Response::new(answers(|out| async move {
            let _open = open;
            loop {
                // Marked as seen before it is read: a change in between is told in the next round.
                changes.mark_unchanged();
                let (generation, pools) = read(&core, false).await?;
                out.send(WatchPoolsResponse { generation, pools }).await;
                tokio::time::sleep(bounds::POOLS_PAUSE).await;
                let changed = changes.changed().await;
                changed.map_err(|_| Refusal::ShuttingDown {
                    retry_ms: bounds::STREAM_RETRY_MS,
                })?;
            }
        })))
    }
}
