//! OCI archives made by hand, whole and damaged, small enough for every test to have its own.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A busybox image in the making.
pub struct Layout {
    dir: tempfile::TempDir,
    config: Value,
    annotations: Value,
}

fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn run(command: &mut Command) {
    let said = command.output().unwrap();
    assert!(said.status.success(), "{command:?}: {said:?}");
}

impl Layout {
    /// With a shell, users and nothing else.
    pub fn busybox() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for sub in ["bin", "etc", "tmp", "root", "srv"] {
            fs::create_dir_all(root.join(sub)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "cat", "echo", "dd", "sleep", "id", "hostname", "mount", "ls", "true", "grep",
            "tail", "pwd", "stat",
        ] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\n",
        )
        .unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nwheel:x:10:app\n").unwrap();
        let layout = dir.path().join("layout/blobs/sha256");
        fs::create_dir_all(layout).unwrap();
        Self {
            dir,
            config: json!({
                "architecture": "amd64",
                "os": "linux",
                "config": {"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "WorkingDir": "/srv"},
            }),
            annotations: json!({}),
        }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub fn named(mut self, name: &str) -> Self {
        self.annotations["org.opencontainers.image.ref.name"] = json!(name);
        self
    }

    pub fn user(mut self, user: &str) -> Self {
        self.config["config"]["User"] = json!(user);
        self
    }

    pub fn architecture(mut self, architecture: &str) -> Self {
        self.config["architecture"] = json!(architecture);
        self
    }

    fn layout(&self) -> PathBuf {
        self.dir.path().join("layout")
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        let name = digest.strip_prefix("sha256:").unwrap();
        fs::write(self.layout().join("blobs/sha256").join(name), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Writes the blobs; the manifest's descriptor.
    pub fn manifest(&mut self) -> Value {
        let tar = self.dir.path().join("layer.tar");
        let mut command = Command::new("tar");
        command.args(["--sort=name", "--owner=0", "--group=0", "--mtime=@0", "-cf"]);
        run(command.arg(&tar).arg("-C").arg(self.root()).arg("."));
        let bytes = fs::read(tar).unwrap();
        self.config["rootfs"] = json!({"type": "layers", "diff_ids": [digest(&bytes)]});
        let layer = self.blob(LAYER, &bytes);
        let config = self.blob(CONFIG, self.config.to_string().as_bytes());
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        let mut descriptor = self.blob(MANIFEST, manifest.to_string().as_bytes());
        descriptor["annotations"] = self.annotations.clone();
        descriptor
    }

    /// Adds an index; its descriptor.
    pub fn index(&self, index: &Value, annotations: &Value) -> Value {
        let media_type = index["mediaType"].as_str().unwrap();
        let mut descriptor = self.blob(media_type, index.to_string().as_bytes());
        descriptor["annotations"] = annotations.clone();
        descriptor
    }

    /// Packs what there is, with this index.
    pub fn pack(&self, manifests: &[Value], archive: &Path) {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(self.layout().join("index.json"), index.to_string()).unwrap();
        fs::write(
            self.layout().join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        let mut command = Command::new("tar");
        command.arg("-cf").arg(archive).arg("-C").arg(self.layout());
        run(command.args(["oci-layout", "index.json", "blobs"]));
    }

    /// The whole of it.
    pub fn archive(mut self, archive: &Path) -> PathBuf {
        let manifest = self.manifest();
        self.pack(&[manifest], archive);
        archive.to_owned()
    }

    /// As `docker save` writes it.
    pub fn docker_archive(mut self, tag: &str, archive: &Path) -> PathBuf {
        self.manifest();
        let dir = self.dir.path().join("docker");
        fs::create_dir(&dir).unwrap();
        fs::copy(self.dir.path().join("layer.tar"), dir.join("layer.tar")).unwrap();
        fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        let manifest =
            json!([{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]);
        fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
        run(Command::new("tar")
            .arg("-cf")
            .arg(archive)
            .arg("-C")
            .arg(&dir)
            .arg("."));
        archive.to_owned()
    }

    /// A blob by its descriptor: for a registry of the test's own.
    pub fn blobs(&self) -> Vec<(String, Vec<u8>)> {
        let files = fs::read_dir(self.layout().join("blobs/sha256")).unwrap();
        let blob = |file: fs::DirEntry| {
            let name = file.file_name().into_string().unwrap();
            (format!("sha256:{name}"), fs::read(file.path()).unwrap())
        };
        files.map(Result::unwrap).map(blob).collect()
    }

    /// Where a blob lies, to damage it.
    pub fn blob_path(&self, descriptor: &Value) -> PathBuf {
        let digest = descriptor["digest"].as_str().unwrap();
        self.layout()
            .join("blobs/sha256")
            .join(digest.strip_prefix("sha256:").unwrap())
    }

    /// The descriptors that a manifest names: configuration, layer.
    pub fn parts(&self, manifest: &Value) -> (Value, Value) {
        let text = fs::read(self.blob_path(manifest)).unwrap();
        let manifest: Value = serde_json::from_slice(&text).unwrap();
        (manifest["config"].clone(), manifest["layers"][0].clone())
    }
}
