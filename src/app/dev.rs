//! `hearthd --dev`: a node to play with. Brings an image and a pool, and leaves nothing behind at the end.

use super::AppError;
use crate::cgroup::CgroupTree;
use crate::config::Config;
use crate::driver::Handle;
use crate::machine::event::Call;
use crate::machine::ids::PoolName;
use crate::machine::limits;
use crate::machine::network::{NetworkMode, NetworkPolicy};
use crate::machine::spec::{
    Fence, PoolSet, PoolSpec, Readiness, Resources, Template, UpdateStrategy,
};
use crate::machine::view::{Answer, NodeView};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::info;

/// Name of the image that `make image` builds, and of the pool made from it.
const IMAGE: &str = "hearth.local/python:3";
const POOL: &str = "python";
/// How long hearthd may take to become ready; a cold containerd takes 1-2 s.
const READY: Duration = Duration::from_secs(60);
/// How long the end of all sandboxes may take; some 25 go in a second.
const TEARDOWN: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// What `--dev` was given.
#[derive(Debug, Clone)]
pub struct Dev {
    /// Root of all directories; removed at the end.
    pub root: PathBuf,
    /// OCI archive; `None`: the one `make image` built.
    pub image: Option<PathBuf>,
    /// Members to keep warm.
    pub warm: u32,
}

impl Dev {
    /// The settings that make a node of its own below `root`: (place, key, value).
    #[must_use]
    pub fn settings(root: &Path) -> Vec<(String, String, String)> {
        let name = root.file_name().unwrap_or_default().to_string_lossy();
        let mut settings = vec![
            ("data_dir", root.join("data").display().to_string()),
            ("run_dir", root.join("run").display().to_string()),
            ("runtime.cgroup_parent", format!("/{name}")),
        ];
        settings
            .drain(..)
            .map(|(key, value)| ("flag --dev".to_owned(), key.to_owned(), value))
            .collect()
    }

    fn archive(&self) -> Option<PathBuf> {
        let cache = std::env::var_os("HEARTH_CACHE").map(PathBuf::from);
        let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/hearth"));
        let built = || Some(cache.or_else(home)?.join("images/python.tar"));
        self.image
            .clone()
            .or_else(built)
            .filter(|path| path.is_file())
    }

    /// Imports the image and declares the pool, unless pools are declared already.
    pub(super) async fn furnish(&self, handle: &Handle) -> Result<(), AppError> {
        let mut phase = handle.phase();
        let ready = phase.wait_for(|phase| *phase == crate::driver::Phase::Ready);
        let ready = timeout(READY, ready).await;
        ready
            .map_err(|_| AppError::Dev("hearthd did not become ready".into()))
            .and_then(|phase| {
                phase
                    .map(|_| ())
                    .map_err(|_| AppError::Dev("hearthd ended".into()))
            })?;
        if !inspect(handle).await?.pools.is_empty() {
            return Ok(());
        }
        let Some(archive) = self.archive() else {
            info!("no image for the pool (`make image` builds one); declare pools with hearthctl");
            return Ok(());
        };
        let known = handle.images().await?;
        if !known.iter().any(|image| image.name == IMAGE) {
            let (progress, mut steps) = mpsc::channel(16);
            // Nobody looks at the steps; they must not hold the import back.
            tokio::spawn(async move { while steps.recv().await.is_some() {} });
            handle.import_image(&archive, Some(IMAGE), progress).await?;
            info!(image = IMAGE, archive = %archive.display(), "image imported");
        }
        let set = PoolSet {
            generation: 1,
            pools: vec![self.pool(handle.network().is_ok())?],
            ..PoolSet::default()
        };
        handle.call(Call::SetPools(fence(1), set), None).await?;
        info!(pool = POOL, warm = self.warm, "pool declared");
        Ok(())
    }

    fn pool(&self, networked: bool) -> Result<PoolSpec, AppError> {
        let name = PoolName::parse(POOL).map_err(|error| AppError::Dev(error.to_string()))?;
        Ok(PoolSpec {
            name,
            generation: 1,
            template: Template {
                image: IMAGE.into(),
                runtime_handler: "gvisor".into(),
                runtime_class: String::new(),
                command: Vec::new(),
                env: BTreeMap::new(),
                working_dir: String::new(),
                resources: Resources {
                    cpu_millis: 0,
                    memory_bytes: 512 << 20,
                    pids: 1024,
                    disk_bytes: 1 << 30,
                    open_files: 65_536,
                },
                // Nothing until a claim brings its policy, where the node can give a network at all.
                network_policy: NetworkPolicy {
                    mode: match networked {
                        true => NetworkMode::Allowlist,
                        false => NetworkMode::None,
                    },
                    ..NetworkPolicy::default()
                },
                warm_command: Vec::new(),
                readiness: Readiness {
                    command: vec!["python3".into(), "-c".into(), "pass".into()],
                    timeout_ms: 30_000,
                },
                interpreter: "python".into(),
                prefork: 1,
                idle_after_ms: 0,
                on_data_loss: crate::machine::spec::OnDataLoss::Fail,
            },
            min_warm: self.warm,
            max_total: self.warm.saturating_mul(8).clamp(1, limits::POOL_MAX_TOTAL),
            update_strategy: UpdateStrategy::OnReplenish,
            max_parallel_refills: limits::DEFAULT_PARALLEL_REFILLS,
            running: None,
            warm_pool: None,
        })
    }

    /// Removes what is left on the disk, once containerd has ended.
    pub(super) fn remove(&self, config: &Config) -> Result<(), AppError> {
        let tree = CgroupTree::detect("/sys/fs/cgroup")?;
        tree.remove_parent(&config.runtime.cgroup_parent)?;
        for dir in [&config.data_dir, &config.run_dir] {
            match std::fs::remove_dir_all(dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(super::host(format!("removing {}", dir.display()))(error));
                }
                _ => {}
            }
        }
        let _absent = std::fs::remove_file(&config.api.socket);
        // Whoever started us may keep something beside them, such as our log.
        let _kept = std::fs::remove_dir(&self.root);
        Ok(())
    }

    /// Ends every sandbox and waits until all are verified gone.
    pub(super) async fn clear(&self, handle: &Handle) -> Result<(), AppError> {
        let node = inspect(handle).await?;
        let epoch = node.epoch.saturating_add(1);
        let set = PoolSet {
            generation: node.pools_generation.saturating_add(1),
            pools: Vec::new(),
            ..PoolSet::default()
        };
        handle.call(Call::SetPools(fence(epoch), set), None).await?;
        let deadline = Instant::now() + TEARDOWN;
        loop {
            let node = inspect(handle).await?;
            for claim in &node.claims {
                let release = Call::Release(fence(epoch), claim.id);
                handle.call(release, None).await?;
            }
            if node.sandboxes.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let left: Vec<_> = node.sandboxes.iter().map(|s| s.id.to_string()).collect();
                return Err(AppError::Dev(format!("still there: {}", left.join(", "))));
            }
            sleep(LOOK).await;
        }
    }
}

fn fence(epoch: u64) -> Fence {
    Fence {
        epoch,
        // As an admin: the epoch is for whoever comes first.
        caller: None,
    }
}

async fn inspect(handle: &Handle) -> Result<NodeView, AppError> {
    match handle.call(Call::Inspect, None).await?.answer {
        Answer::Node(view) => Ok(*view),
        _ => Err(AppError::Dev(
            "Inspect was answered with something else".into(),
        )),
    }
}
