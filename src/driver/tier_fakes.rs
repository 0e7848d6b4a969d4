//! Fakes for the workers of the memory and the disk tier: a runtime that notes what it is told and answers as the test
//! says, and guests that say nothing, or only what a freeze and a restore ask for. Reality can't be made to fail a restore
//! once, to have no room, or to run a worker after the machine has decided on the next one.
#![allow(clippy::unwrap_used)]

use super::guests::Guests;
use super::network::Networks;
use super::residency::{Residencies, ResidencyMetrics};
use crate::cgroup::{Reclaimed, Usage};
use crate::guest::{Guest, GuestConnector, GuestError, GuestStream, Personalization, Silence, v1};
use crate::machine::event::{CheckpointFailure, Observed, RestoreFailure};
use crate::machine::ids::{NodeTag, PoolName, SandboxId};
use crate::runtime::{
    CreateSpec, Fit, Handler, ImageInfo, ImageProgress, Quieting, Runtime, RuntimeError,
    SandboxNetwork, StdioPaths, Versions,
};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Sandbox number `n`.
pub(super) fn sandbox(n: u64) -> SandboxId {
    SandboxId::new(NodeTag(7), n).unwrap()
}

/// Fake: what was said to whom, in order.
#[derive(Clone, Default)]
pub(super) struct Said(Arc<Mutex<Vec<&'static str>>>);

impl Said {
    fn note(&self, word: &'static str) {
        self.0.lock().unwrap().push(word);
    }

    pub(super) fn all(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().clone()
    }
}

/// Fake: a runtime.
pub(super) struct Noting {
    pub(super) said: Said,
    /// How long a reclaim takes that is not stopped.
    pub(super) reclaim_takes: Duration,
    /// When each reclaim began, of whom, and whether it was stopped.
    pub(super) reclaims: Mutex<Vec<(Instant, SandboxId, bool)>>,
    /// Staging memory is there.
    pub(super) staging: watch::Sender<bool>,
    /// Instead of an image: before the silence, and after it.
    pub(super) no_room: Mutex<Option<CheckpointFailure>>,
    pub(super) no_image: Mutex<Option<CheckpointFailure>>,
    /// What restores answer, in turn; then they succeed.
    pub(super) restores: Mutex<VecDeque<RestoreFailure>>,
}

impl Default for Noting {
    fn default() -> Self {
        Self {
            said: Said::default(),
            reclaim_takes: Duration::from_millis(40),
            reclaims: Mutex::default(),
            staging: watch::Sender::new(true),
            no_room: Mutex::default(),
            no_image: Mutex::default(),
            restores: Mutex::default(),
        }
    }
}

#[async_trait::async_trait]
impl Runtime for Noting {
    async fn freeze(&self, _: SandboxId) -> Result<(), RuntimeError> {
        self.said.note("freeze");
        Ok(())
    }
    async fn thaw(&self, _: SandboxId) -> Result<(), RuntimeError> {
        self.said.note("thaw");
        Ok(())
    }
    fn stdio(&self, _: SandboxId) -> StdioPaths {
        StdioPaths {
            stdin: PathBuf::new(),
            stdout: PathBuf::new(),
            stderr: PathBuf::new(),
        }
    }
    async fn create(&self, _: &CreateSpec) -> Result<(), RuntimeError> {
        unimplemented!()
    }
    async fn destroy(&self, _: SandboxId) -> Result<(), RuntimeError> {
        unimplemented!()
    }
    async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        unimplemented!()
    }
    async fn reclaim(
        &self,
        id: SandboxId,
        stop: &CancellationToken,
    ) -> Result<Reclaimed, RuntimeError> {
        let began = Instant::now();
        let complete = tokio::select! {
            biased;
            () = stop.cancelled() => false,
            () = sleep(self.reclaim_takes) => true,
        };
        self.reclaims.lock().unwrap().push((began, id, !complete));
        Ok(Reclaimed {
            bytes: 1,
            took: began.elapsed(),
            complete,
        })
    }
    async fn checkpoint(
        &self,
        _: SandboxId,
        quiet: Quieting<'_>,
        _: &CancellationToken,
    ) -> Result<u64, CheckpointFailure> {
        self.said.note("image wanted");
        let mut staging = self.staging.subscribe();
        staging.wait_for(|there| *there).await.unwrap();
        if let Some(failure) = self.no_room.lock().unwrap().take() {
            return Err(failure);
        }
        quiet.await.map_err(CheckpointFailure::Failed)?;
        self.said.note("image made");
        match self.no_image.lock().unwrap().take() {
            Some(failure) => Err(failure),
            None => Ok(7),
        }
    }
    async fn shed(&self, _: SandboxId) -> Result<(), RuntimeError> {
        self.said.note("shed");
        Ok(())
    }
    async fn restore(
        &self,
        _: SandboxId,
        _: &PoolName,
        _: Option<&SandboxNetwork>,
    ) -> Result<(), RestoreFailure> {
        self.said.note("restore");
        match self.restores.lock().unwrap().pop_front() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
    async fn drop_image(&self, _: SandboxId) -> Result<(), RuntimeError> {
        unimplemented!()
    }
    async fn keep_images(&self, _: Vec<SandboxId>) -> Result<Vec<SandboxId>, RuntimeError> {
        unimplemented!()
    }
    async fn take_golden(&self, _: &CreateSpec) -> Result<(), CheckpointFailure> {
        unimplemented!()
    }
    async fn golden_fits(&self, _: SandboxId, _: &CreateSpec) -> Fit {
        unimplemented!()
    }
    async fn create_clone(&self, _: &CreateSpec, _: SandboxId) -> Result<(), RuntimeError> {
        unimplemented!()
    }
    async fn drop_golden(&self, _: &PoolName, _: SandboxId) {
        unimplemented!()
    }
    async fn usage(&self, _: SandboxId) -> Result<Usage, RuntimeError> {
        unimplemented!()
    }
    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        unimplemented!()
    }
    async fn import_image(
        &self,
        _: &Path,
        _: Option<&str>,
        _: mpsc::Sender<ImageProgress>,
    ) -> Result<Vec<ImageInfo>, RuntimeError> {
        unimplemented!()
    }
    async fn pull_image(
        &self,
        _: &str,
        _: mpsc::Sender<ImageProgress>,
    ) -> Result<ImageInfo, RuntimeError> {
        unimplemented!()
    }
    async fn remove_image(&self, _: &str) -> Result<(), RuntimeError> {
        unimplemented!()
    }
    async fn versions(&self) -> Result<Versions, RuntimeError> {
        unimplemented!()
    }
    fn handlers(&self) -> Vec<Handler> {
        unimplemented!()
    }
}

/// Fake: guests whose channel can't be opened. A freeze goes on without their word.
pub(super) struct Unreachable;

impl GuestConnector for Unreachable {
    fn connect(&self, _: &StdioPaths) -> Result<Arc<dyn Guest>, std::io::Error> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

/// Fake: guests that know silence and its end, and nothing else.
#[derive(Clone)]
pub(super) struct Quiet {
    pub(super) said: Said,
    /// So many of the next words are not answered.
    pub(super) silent: Arc<Mutex<u32>>,
}

impl Quiet {
    pub(super) fn new(said: &Said) -> Self {
        Self {
            said: said.clone(),
            silent: Arc::default(),
        }
    }

    fn answer(&self, word: &'static str) -> Result<(), GuestError> {
        self.said.note(word);
        let mut silent = self.silent.lock().unwrap();
        if *silent > 0 {
            *silent -= 1;
            return Err(GuestError::Silent("the fake"));
        }
        Ok(())
    }
}

impl GuestConnector for Quiet {
    fn connect(&self, _: &StdioPaths) -> Result<Arc<dyn Guest>, std::io::Error> {
        Ok(Arc::new(self.clone()))
    }
}

#[async_trait::async_trait]
impl Guest for Quiet {
    async fn ping(&self, _: Duration) -> Result<String, GuestError> {
        self.answer("go on").map(|()| "fake".to_owned())
    }
    async fn quiesce(&self, silence: Silence, _: Duration) -> Result<(), GuestError> {
        self.answer(match silence {
            Silence::Freeze => "silence for a freeze",
            Silence::Image => "silence for an image",
        })
    }
    async fn personalize(
        &self,
        _: &str,
        _: &Personalization,
        _: Duration,
    ) -> Result<(), GuestError> {
        unimplemented!()
    }
    async fn witness(&self, _: Duration) -> Result<String, GuestError> {
        unimplemented!()
    }
    async fn exec(&self, _: v1::Exec) -> Result<GuestStream, GuestError> {
        unimplemented!()
    }
    async fn read_file(&self, _: v1::ReadFile) -> Result<GuestStream, GuestError> {
        unimplemented!()
    }
    async fn attach(&self, _: v1::Attach) -> Result<GuestStream, GuestError> {
        unimplemented!()
    }
    async fn write_file(&self, _: v1::WriteFile) -> Result<GuestStream, GuestError> {
        unimplemented!()
    }
    async fn list_files(&self, _: v1::ListFiles) -> Result<GuestStream, GuestError> {
        unimplemented!()
    }
    async fn connect(&self, _: u16) -> Result<GuestStream, GuestError> {
        unimplemented!()
    }
    async fn interpreter(&self, _: Duration) -> Result<(), GuestError> {
        unimplemented!()
    }
    async fn run_code(&self, _: v1::RunCode) -> Result<GuestStream, GuestError> {
        unimplemented!()
    }
    async fn interrupt(&self, _: v1::Interrupt, _: Duration) -> Result<bool, GuestError> {
        unimplemented!()
    }
    async fn stats(&self, _: Duration) -> Result<v1::GuestStats, GuestError> {
        unimplemented!()
    }
    async fn failed(&self) -> GuestError {
        std::future::pending().await
    }
    fn close(&self) {}
}

/// The workers over a fake runtime and fake guests, without a network.
pub(super) fn residencies(
    runtime: &Arc<Noting>,
    guests: impl GuestConnector,
    reclaims: bool,
) -> Arc<Residencies> {
    counting(&prometheus::Registry::new(), runtime, guests, reclaims)
}

/// The same, and what they count.
pub(super) fn counting(
    registry: &prometheus::Registry,
    runtime: &Arc<Noting>,
    guests: impl GuestConnector,
    reclaims: bool,
) -> Arc<Residencies> {
    let (events, _gone) = mpsc::channel(16);
    let guests = Guests::new(runtime.clone(), Arc::new(guests), events);
    Arc::new(Residencies::new(
        runtime.clone(),
        Arc::new(guests),
        Networks::new(Err("no network here".to_owned())),
        reclaims,
        ResidencyMetrics::register(registry).unwrap(),
    ))
}
