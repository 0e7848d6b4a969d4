//! The Node service: what this node can do, what it found without a record, and its images (`images.rs`).

use super::answers::Answers;
use super::caller::Caller;
use super::check;
use super::core::{Core, unexpected};
use super::draining;
use super::images;
use super::view;
use crate::api::node_server::Node;
use crate::api::*;
use crate::machine::event::Call;
use crate::machine::handler::GVISOR;
use crate::machine::ids::SandboxId;
use crate::machine::refusal::Refusal;
use crate::machine::view::{Answer, NodeView};
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

/// The orphan carries another data directory's tag.
const OTHER_NODE_TAG: &str = "OTHER_NODE_TAG";
/// The orphan is being destroyed.
const BEING_DESTROYED: &str = "BEING_DESTROYED";

/// The service.
pub struct NodeService(pub Arc<Core>);

impl NodeService {
    async fn view(&self, call: Call) -> Result<Box<NodeView>, Refusal> {
        match self.0.call(call).await? {
            Answer::Node(view) => Ok(view),
            other => Err(unexpected(&other)),
        }
    }

    fn orphan(&self, id: SandboxId, named: &[SandboxId]) -> Orphan {
        let ours = id.tag() == self.0.config.node_tag;
        Orphan {
            sandbox_id: id.to_string(),
            // A listing tells sandboxes by id, wherever a trace of one was found.
            found: Vec::new(),
            reason: if ours || named.contains(&id) {
                BEING_DESTROYED
            } else {
                OTHER_NODE_TAG
            }
            .to_owned(),
        }
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    type DrainStream = Answers<DrainResponse>;
    type ImportImageStream = Answers<ImportImageResponse>;
    type PullImageStream = Answers<PullImageResponse>;

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let core = &self.0;
        let node = self.view(Call::Inspect).await?;
        // Unreachable is told by an empty version and by the phase.
        let versions = core.door.versions().await.unwrap_or_default();
        let handler = |it: crate::driver::Handler| RuntimeHandler {
            version: match it.name == GVISOR {
                true => versions.runsc.clone(),
                false => it.version,
            },
            name: it.name,
            freeze: it.can.freeze,
            checkpoint: it.can.checkpoint,
            disk_bound: it.can.disk_bound,
            overhead_memory_bytes: it.overhead.map_or(0, |it| it.memory_bytes),
            overhead_cpu_millis: it.overhead.map_or(0, |it| it.cpu_millis),
            unservable: it.unservable,
        };
        Ok(Response::new(InfoResponse {
            version: core.config.version.clone(),
            runtime_handlers: core.door.handlers().into_iter().map(handler).collect(),
            containerd_version: versions.containerd.clone(),
            cgroup_version: core.config.cgroup_version,
            started_at: Some(core.config.started_at.into()),
            node_tag: core.config.node_tag.to_string(),
            phase: node.phase.to_owned(),
            epoch: node.epoch,
            sandboxes: u32::try_from(node.sandboxes.len()).unwrap_or(u32::MAX),
            max_sandboxes: core.config.max_sandboxes,
            drain: node.drain.map(|drain| view::drain(&*core.door, drain)),
            network_unavailable: core.door.network().err().unwrap_or_default(),
        }))
    }

    async fn drain(
        &self,
        request: Request<DrainRequest>,
    ) -> Result<Response<Self::DrainStream>, Status> {
        let asked = check::drain(request.get_ref())?;
        Caller::of(&request)?.trail.about(format!("{asked:?}"));
        let stream = draining::drain(Arc::clone(&self.0), asked).await?;
        Ok(Response::new(stream))
    }

    async fn undrain(
        &self,
        _: Request<UndrainRequest>,
    ) -> Result<Response<UndrainResponse>, Status> {
        let goes_on = draining::read(&self.0, Call::Undrain).await?;
        let status = goes_on.map(|drain| view::drain(&*self.0.door, drain));
        Ok(Response::new(UndrainResponse { status }))
    }

    async fn orphans(
        &self,
        request: Request<OrphansRequest>,
    ) -> Result<Response<OrphansResponse>, Status> {
        let named = check::orphans(&request.get_ref().destroy)?;
        let ids: Vec<_> = named.iter().map(SandboxId::to_string).collect();
        Caller::of(&request)?.trail.about(ids.join(" "));
        let mut view = self.view(Call::Inspect).await?;
        if !named.is_empty() {
            let mut fields = check::Fields::default();
            for (at, id) in named.iter().enumerate() {
                if !view.orphans.contains(id) {
                    fields.wrong(format!("destroy[{at}]"), "is not listed as an orphan");
                }
            }
            fields.finish()?;
            view = self.view(Call::DestroyOrphans(named.clone())).await?;
        }
        let orphans = view
            .orphans
            .into_iter()
            .map(|id| self.orphan(id, &named))
            .collect();
        Ok(Response::new(OrphansResponse { orphans }))
    }

    async fn list_images(
        &self,
        _: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let found = self.0.door.images().await?;
        let images = images::named(&self.0, found).await?;
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn import_image(
        &self,
        request: Request<Streaming<ImportImageRequest>>,
    ) -> Result<Response<Self::ImportImageStream>, Status> {
        let trail = Caller::of(&request)?.trail;
        let stream = images::import(Arc::clone(&self.0), request.into_inner(), trail).await?;
        Ok(Response::new(stream))
    }

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<Self::PullImageStream>, Status> {
        let caller = Caller::of(&request)?;
        let name = request.into_inner().name;
        check::image(&name)?;
        caller.trail.about(format!("image {name}"));
        Ok(Response::new(images::pull(Arc::clone(&self.0), name)?))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let caller = Caller::of(&request)?;
        let name = request.into_inner().name;
        check::image(&name)?;
        caller.trail.about(format!("image {name}"));
        self.0.door.remove_image(&name).await?;
        Ok(Response::new(RemoveImageResponse {}))
    }
}
