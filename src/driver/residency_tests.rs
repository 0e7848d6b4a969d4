#![allow(clippy::unwrap_used)]

use super::*;
use crate::guest::{Guest, GuestConnector};
use crate::machine::event::{CheckpointFailure, Observed, RestoreFailure};
use crate::machine::ids::{NodeTag, PoolName};
use crate::runtime::{
    CreateSpec, Fit, Handler, ImageInfo, ImageProgress, SandboxNetwork, StdioPaths, Versions,
};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// Fake: a runtime that notes freezes and thaws and can do nothing else. Reality can't be made to run a freeze's worker
/// after the machine has decided on the next one.
#[derive(Default)]
struct Noting {
    said: Mutex<Vec<&'static str>>,
}

impl Noting {
    fn note(&self, word: &'static str) -> Result<(), RuntimeError> {
        self.said.lock().unwrap().push(word);
        Ok(())
    }
}

#[async_trait::async_trait]
impl Runtime for Noting {
    async fn freeze(&self, _: SandboxId) -> Result<(), RuntimeError> {
        self.note("freeze")
    }
    async fn thaw(&self, _: SandboxId) -> Result<(), RuntimeError> {
        self.note("thaw")
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
        _: SandboxId,
        _: &CancellationToken,
    ) -> Result<crate::cgroup::Reclaimed, RuntimeError> {
        unimplemented!()
    }
    async fn checkpoint(
        &self,
        _: SandboxId,
        _: &CancellationToken,
    ) -> Result<u64, CheckpointFailure> {
        unimplemented!()
    }
    async fn shed(&self, _: SandboxId) -> Result<(), RuntimeError> {
        unimplemented!()
    }
    async fn restore(
        &self,
        _: SandboxId,
        _: &PoolName,
        _: Option<&SandboxNetwork>,
    ) -> Result<(), RestoreFailure> {
        unimplemented!()
    }
    async fn drop_image(&self, _: SandboxId) -> Result<(), RuntimeError> {
        unimplemented!()
    }
    async fn keep_images(&self, _: Vec<SandboxId>) -> Result<(), RuntimeError> {
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
    async fn drop_golden(&self, _: &PoolName, _: SandboxId) -> Result<(), RuntimeError> {
        unimplemented!()
    }
    async fn usage(&self, _: SandboxId) -> Result<crate::cgroup::Usage, RuntimeError> {
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
struct Unreachable;

impl GuestConnector for Unreachable {
    fn connect(&self, _: &StdioPaths) -> Result<Arc<dyn Guest>, std::io::Error> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

/// A random history (`HEARTH_SEED=14546612740389556436`, 900 histories, as they were generated then) found that the worker
/// of a freeze which had been overtaken ran when the next freeze of the same sandbox was decided already: ahead of that
/// one's commit, and its end was taken for that one's.
#[tokio::test]
async fn a_freeze_that_was_overtaken_never_begins_although_a_second_one_was_decided() {
    let runtime = Arc::new(Noting::default());
    let (events, _kept) = mpsc::channel(16);
    let guests = Guests::new(runtime.clone(), Arc::new(Unreachable), events);
    let residencies = Residencies::new(
        runtime.clone(),
        Arc::new(guests),
        Networks::new(Err("no network here".to_owned())),
        false,
        ResidencyMetrics::register(&prometheus::Registry::new()).unwrap(),
    );
    let sandbox = SandboxId::new(NodeTag(7), 1).unwrap();
    let freeze = |ticket| Effect::Freeze {
        sandbox,
        after: Ticket(ticket),
    };
    let said = || runtime.said.lock().unwrap().clone();

    // Decided in batch 1; its worker is on its way. A use overtakes it, and in batch 3 the next one is decided.
    residencies.note(&freeze(1));
    residencies.note(&Effect::Thaw { sandbox });
    assert_eq!(residencies.freeze(sandbox, Ticket(1)).await, None);
    residencies.note(&freeze(3));
    assert_eq!(residencies.freeze(sandbox, Ticket(1)).await, None);
    assert!(said().is_empty(), "{:?}: ahead of batch 3", said());
    // Durable: now the second one's own worker comes.
    assert_eq!(residencies.freeze(sandbox, Ticket(3)).await, Some(Ok(())));
    assert_eq!(said(), ["freeze"]);
}
