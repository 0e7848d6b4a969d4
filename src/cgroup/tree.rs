//! The cgroup mounts of this machine, and the sandboxes below a parent.

use std::path::{Path, PathBuf};

use super::{CgroupError, SandboxCgroup, files, group::Dir};

/// Which cgroup interface carries the controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A tree per controller, also where an empty v2 tree is mounted beside them (hybrid).
    V1,
    /// One tree.
    V2,
}

/// A sandbox's cgroup found below a parent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Name of the directory between the parent and the sandbox.
    pub pool: String,
    /// Name of the sandbox's directory.
    pub id: String,
}

/// The cgroup mounts of this machine.
#[derive(Debug, Clone)]
pub struct CgroupTree {
    version: Version,
    /// v2: the one root. v1: the root of every hierarchy, `freezer` first.
    roots: Vec<PathBuf>,
}

/// Components of a cgroup path, refused if one could lead elsewhere.
fn components(path: &str) -> Result<Vec<&str>, CgroupError> {
    let parts: Vec<_> = path.trim_matches('/').split('/').collect();
    let wrong = |part: &&str| part.is_empty() || *part == "." || *part == "..";
    if parts.iter().any(wrong) || path.contains('\0') {
        return Err(CgroupError::BadPath(path.to_owned()));
    }
    Ok(parts)
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

impl CgroupTree {
    /// Looks at what is mounted at `root` (`/sys/fs/cgroup`).
    ///
    /// # Errors
    /// `NoHierarchy` when there is neither v2 nor a v1 freezer.
    pub fn detect(root: impl AsRef<Path>) -> Result<Self, CgroupError> {
        let root = root.as_ref();
        if root.join("cgroup.controllers").is_file() {
            return Ok(Self {
                version: Version::V2,
                roots: vec![root.to_owned()],
            });
        }
        let freezer = root.join("freezer");
        if !freezer.join("cgroup.procs").is_file() {
            return Err(CgroupError::NoHierarchy(root.to_owned()));
        }
        // Links such as `cpu -> cpu,cpuacct` are not directories here: each hierarchy is listed once.
        let others = files::children(root)?
            .into_iter()
            .filter(|path| *path != freezer && path.join("cgroup.procs").is_file());
        let roots = std::iter::once(freezer.clone()).chain(others).collect();
        Ok(Self {
            version: Version::V1,
            roots,
        })
    }

    /// Which interface it is.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The cgroup of a sandbox: `<parent>/<pool>/<id>`. It need not exist.
    ///
    /// # Errors
    /// `BadPath`.
    pub fn sandbox(
        &self,
        parent: &str,
        pool: &str,
        id: &str,
    ) -> Result<SandboxCgroup, CgroupError> {
        let one = |name: &str| components(name).is_ok_and(|parts| parts.len() == 1);
        if !one(pool) || !one(id) {
            return Err(CgroupError::BadPath(format!("{pool}/{id}")));
        }
        self.at(&format!("{parent}/{pool}/{id}"))
    }

    /// The cgroup at an OCI `cgroupsPath`. It need not exist.
    ///
    /// # Errors
    /// `BadPath`.
    pub fn at(&self, path: &str) -> Result<SandboxCgroup, CgroupError> {
        let relative: PathBuf = components(path)?.iter().collect();
        let dir = |root: &PathBuf| Dir {
            hierarchy: name(root),
            path: root.join(&relative),
        };
        let dirs = self.roots.iter().map(dir).collect();
        Ok(SandboxCgroup::new(self.version, dirs))
    }

    /// The cgroup of sandbox `id`, whichever pool it belongs to; `None` when no controller has it.
    ///
    /// # Errors
    /// `BadPath`, `Io`.
    pub fn find(&self, parent: &str, id: &str) -> Result<Option<SandboxCgroup>, CgroupError> {
        for found in self.list(parent)? {
            if found.id == id {
                return self.sandbox(parent, &found.pool, id).map(Some);
            }
        }
        Ok(None)
    }

    /// Every sandbox below `parent` in any controller's tree, sorted, each once; leftovers of dead ones included.
    ///
    /// # Errors
    /// `BadPath`, `Io`.
    pub fn list(&self, parent: &str) -> Result<Vec<Found>, CgroupError> {
        let relative: PathBuf = components(parent)?.iter().collect();
        let mut found = Vec::new();
        for root in &self.roots {
            for pool in files::children(&root.join(&relative))? {
                for sandbox in files::children(&pool)? {
                    found.push(Found {
                        pool: name(&pool),
                        id: name(&sandbox),
                    });
                }
            }
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Removes the directories of pools that have no sandbox left, in every controller. Not to be called while a
    /// sandbox of such a pool is being created: runsc would find its parent gone.
    ///
    /// # Errors
    /// `BadPath`, `Io`.
    pub fn remove_empty_pools(&self, parent: &str) -> Result<(), CgroupError> {
        let relative: PathBuf = components(parent)?.iter().collect();
        for root in &self.roots {
            for pool in files::children(&root.join(&relative))? {
                files::remove_dir(&pool)?;
            }
        }
        Ok(())
    }

    /// Removes the parent itself once it is empty, at the very end of an embedded or test instance. `false` when it
    /// still holds something.
    ///
    /// # Errors
    /// `BadPath`, `Io`.
    pub fn remove_parent(&self, parent: &str) -> Result<bool, CgroupError> {
        self.remove_empty_pools(parent)?;
        let relative: PathBuf = components(parent)?.iter().collect();
        let mut all = true;
        for root in &self.roots {
            all &= files::remove_dir(&root.join(&relative))?;
        }
        Ok(all)
    }
}
