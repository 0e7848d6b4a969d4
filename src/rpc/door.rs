//! What rpc asks of the driver: [`Handle`], or a fake of it in tests (`fakes.rs`), for what reality does not produce on
//! demand: a full queue, a guest that hangs, floods or lies.

use crate::driver::{
    Answered, ClaimWatch, Guest, Handle, Handler, ImageInfo, ImageProgress, MemoryLook, NetReport,
    Personalization, Phase, Usage, Versions, Visit, Zram,
};
use crate::machine::event::Call;
use crate::machine::ids::{Now, SandboxId};
use crate::machine::refusal::Refusal;
use async_trait::async_trait;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::{mpsc, watch};

/// A call of a batch.
pub type BatchCall = (Call, Option<Arc<Personalization>>);

/// The methods of [`Handle`], documented there.
#[async_trait]
pub trait Door: Send + Sync + 'static {
    async fn call(
        &self,
        call: Call,
        inside: Option<Arc<Personalization>>,
    ) -> Result<Answered, Refusal>;
    async fn call_batch(&self, calls: Vec<BatchCall>) -> Vec<Result<Answered, Refusal>>;
    fn guest(&self, sandbox: SandboxId) -> Result<Arc<dyn Guest>, Refusal>;
    fn visit(&self, sandbox: SandboxId) -> Visit;
    async fn usage(&self, sandbox: SandboxId) -> Result<Usage, Refusal>;
    async fn memory(&self) -> Option<Arc<MemoryLook>>;
    async fn zram(&self) -> Option<Zram>;
    async fn network_report(&self, sandbox: SandboxId) -> Result<NetReport, Refusal>;
    fn network(&self) -> Result<(), String>;
    async fn watch_claims(&self, resume: Option<String>) -> Result<ClaimWatch, Refusal>;
    fn pools_changed(&self) -> watch::Receiver<u64>;
    fn phase(&self) -> watch::Receiver<Phase>;
    fn to_wall_clock(&self, at: Now) -> SystemTime;
    async fn images(&self) -> Result<Vec<ImageInfo>, Refusal>;
    async fn import_image(
        &self,
        archive: &Path,
        name: Option<&str>,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<Vec<ImageInfo>, Refusal>;
    async fn pull_image(
        &self,
        name: &str,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<ImageInfo, Refusal>;
    async fn remove_image(&self, name: &str) -> Result<(), Refusal>;
    async fn versions(&self) -> Result<Versions, Refusal>;
    fn handlers(&self) -> Vec<Handler>;
}

#[async_trait]
impl Door for Handle {
    async fn call(
        &self,
        call: Call,
        inside: Option<Arc<Personalization>>,
    ) -> Result<Answered, Refusal> {
        Handle::call(self, call, inside).await
    }

    async fn call_batch(&self, calls: Vec<BatchCall>) -> Vec<Result<Answered, Refusal>> {
        Handle::call_batch(self, calls).await
    }

    fn guest(&self, sandbox: SandboxId) -> Result<Arc<dyn Guest>, Refusal> {
        Handle::guest(self, sandbox)
    }

    fn visit(&self, sandbox: SandboxId) -> Visit {
        Handle::visit(self, sandbox)
    }

    async fn usage(&self, sandbox: SandboxId) -> Result<Usage, Refusal> {
        Handle::usage(self, sandbox).await
    }

    async fn memory(&self) -> Option<Arc<MemoryLook>> {
        Handle::memory(self).await
    }

    async fn zram(&self) -> Option<Zram> {
        Handle::zram(self).await
    }

    async fn network_report(&self, sandbox: SandboxId) -> Result<NetReport, Refusal> {
        Handle::network_report(self, sandbox).await
    }

    fn network(&self) -> Result<(), String> {
        Handle::network(self)
    }

    async fn watch_claims(&self, resume: Option<String>) -> Result<ClaimWatch, Refusal> {
        Handle::watch_claims(self, resume).await
    }

    fn pools_changed(&self) -> watch::Receiver<u64> {
        Handle::pools_changed(self)
    }

    fn phase(&self) -> watch::Receiver<Phase> {
        Handle::phase(self)
    }

    fn to_wall_clock(&self, at: Now) -> SystemTime {
        Handle::to_wall_clock(self, at)
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, Refusal> {
        Handle::images(self).await
    }

    async fn import_image(
        &self,
        archive: &Path,
        name: Option<&str>,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<Vec<ImageInfo>, Refusal> {
        Handle::import_image(self, archive, name, progress).await
    }

    async fn pull_image(
        &self,
        name: &str,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<ImageInfo, Refusal> {
        Handle::pull_image(self, name, progress).await
    }

    async fn remove_image(&self, name: &str) -> Result<(), Refusal> {
        Handle::remove_image(self, name).await
    }

    async fn versions(&self) -> Result<Versions, Refusal> {
        Handle::versions(self).await
    }

    fn handlers(&self) -> Vec<Handler> {
        Handle::handlers(self)
    }
}
