//! Images in and out of the real containerd: imported, pulled from a registry of the test's own, damaged, hostile.
#![allow(clippy::unwrap_used)]

#[path = "support/image.rs"]
#[allow(dead_code)]
mod image;
#[path = "support/runtime.rs"]
#[allow(dead_code)]
mod support;
#[path = "support/tool.rs"]
mod tool;

use std::{fs, os::unix::fs::symlink, path::Path, sync::Arc};

use hearth::runtime::{ImageInfo, ImageProgress, Runtime, RuntimeError};
use image::{Layout, MANIFEST};
use serde_json::json;
use support::{IMAGE, Node};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::mpsc,
};

async fn import(
    node: &Node,
    archive: &Path,
    name: Option<&str>,
) -> Result<Vec<ImageInfo>, RuntimeError> {
    let (progress, _) = mpsc::channel(1);
    node.runtime().import_image(archive, name, progress).await
}

fn names(images: &[ImageInfo]) -> Vec<&str> {
    images.iter().map(|image| image.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_of_every_kind_are_imported_under_the_right_names() {
    let node = Node::start("kinds").await;
    let path = |name: &str| node.dir.path().join(name);
    let runtime = node.runtime();
    let (progress, mut told) = mpsc::channel(64);
    let archive = Layout::busybox().named(IMAGE).archive(&path("named.tar"));
    let size = fs::metadata(&archive).unwrap().len();
    let images = runtime
        .import_image(&archive, Some("ignored.local/x:1"), progress)
        .await
        .unwrap();
    assert_eq!(names(&images), [IMAGE], "an archive's own name wins");
    assert!(
        images[0].digest.starts_with("sha256:") && images[0].size_bytes > 1 << 20,
        "{images:?}"
    );
    let mut stages = Vec::new();
    while let Ok(ImageProgress {
        stage,
        item,
        bytes,
        total_bytes,
    }) = told.try_recv()
    {
        assert_eq!((item.as_str(), total_bytes), ("named.tar", size));
        stages.push((stage, bytes));
    }
    assert_eq!(stages.last(), Some(&("unpacking".to_owned(), size)));
    assert!(
        stages.len() > 1 && stages.is_sorted_by_key(|(_, bytes)| *bytes),
        "{stages:?}"
    );

    let tagged = Layout::busybox().named("7").archive(&path("tagged.tar"));
    assert_eq!(
        names(
            &import(&node, &tagged, Some("test.local/tagged"))
                .await
                .unwrap()
        ),
        ["test.local/tagged:7"]
    );
    let nameless = Layout::busybox().user("0").archive(&path("nameless.tar"));
    let refused = import(&node, &nameless, None)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("\"nameless.tar\" does not name its image"),
        "{refused}"
    );
    assert_eq!(
        names(
            &import(&node, &nameless, Some("test.local/given:2"))
                .await
                .unwrap()
        ),
        ["test.local/given:2"]
    );
    let docker = Layout::busybox().docker_archive("busybox:saved", &path("docker.tar"));
    assert_eq!(
        names(&import(&node, &docker, None).await.unwrap()),
        ["docker.io/library/busybox:saved"]
    );
    let gzip = path("named.tar.gz");
    let packed = std::process::Command::new("gzip")
        .arg("-c")
        .arg(&archive)
        .output()
        .unwrap();
    fs::write(&gzip, packed.stdout).unwrap();
    assert_eq!(names(&import(&node, &gzip, None).await.unwrap()), [IMAGE]);

    // An index of two platforms: only ours is needed, and used.
    let mut ours = Layout::busybox();
    let mut theirs = Layout::busybox().architecture("arm64");
    fs::write(theirs.root().join("theirs"), "x").unwrap();
    let (mut one, mut other) = (ours.manifest(), theirs.manifest());
    one["platform"] = json!({"architecture": "amd64", "os": "linux"});
    other["platform"] = json!({"architecture": "arm64", "os": "linux"});
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [other, one]});
    let name = json!({"org.opencontainers.image.ref.name": "test.local/multi:1"});
    let nested = ours.index(&index, &name);
    ours.pack(&[nested], &path("multi.tar"));
    assert_eq!(
        names(&import(&node, &path("multi.tar"), None).await.unwrap()),
        ["test.local/multi:1"]
    );

    let all = runtime.images().await.unwrap();
    assert_eq!(
        names(&all),
        [
            "docker.io/library/busybox:saved",
            IMAGE,
            "test.local/given:2",
            "test.local/multi:1",
            "test.local/tagged:7",
        ]
    );
    assert!(
        all.iter().all(|image| image.size_bytes > 1 << 20),
        "{all:?}"
    );
    // Nothing of the imports is kept beyond them.
    assert_eq!(node.ctr(&["leases", "ls", "-q"]).trim(), "");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_archives_are_refused_with_their_damage() {
    let node = Node::start("damaged").await;
    let path = |name: &str| node.dir.path().join(name);
    let whole = Layout::busybox().named(IMAGE).archive(&path("whole.tar"));
    let bytes = fs::read(&whole).unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(path(name), bytes).unwrap();
    write("empty.tar", b"");
    write("text.tar", b"this is no archive");
    write("zeros.tar", &[0; 10_240]);
    write("cut.tar", &bytes[..bytes.len() / 2]);
    // A tar without an image in it.
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("file"), "x").unwrap();
    let tar = std::process::Command::new("tar")
        .arg("-cf")
        .arg(path("other.tar"))
        .arg("-C")
        .arg(other.path())
        .arg(".")
        .status();
    assert!(tar.unwrap().success());
    // Blobs missing, or with other content than their names say.
    for (name, part) in [("manifest", 0), ("config", 1), ("layer", 2)] {
        for (how, damage) in [("missing", None), ("altered", Some(b"{}".as_slice()))] {
            // Content that no other archive has brought.
            let mut layout = Layout::busybox().named("test.local/damaged:1");
            fs::write(layout.root().join("unique"), format!("{how} {name}")).unwrap();
            let manifest = layout.manifest();
            let (config, layer) = layout.parts(&manifest);
            let blob = layout.blob_path([&manifest, &config, &layer][part]);
            match damage {
                None => fs::remove_file(blob).unwrap(),
                Some(content) => fs::write(blob, content).unwrap(),
            }
            layout.pack(&[manifest], &path(&format!("{how}-{name}.tar")));
        }
    }
    let foreign = Layout::busybox()
        .named("test.local/arm:1")
        .architecture("arm64");
    foreign.archive(&path("arm64.tar"));
    // Two nameless ones under one name.
    let mut layout = Layout::busybox();
    let one = layout.manifest();
    fs::write(layout.root().join("other"), "x").unwrap();
    let two = layout.manifest();
    layout.pack(&[one, two], &path("two.tar"));
    let refused = import(&node, &path("two.tar"), Some("test.local/two:1"))
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("several nameless images"), "{refused}");
    for (archive, words) in [
        ("none.tar", "No such file"),
        ("empty.tar", "is empty"),
        ("text.tar", "damaged or no image archive"),
        ("zeros.tar", "unrecognized image format"),
        ("cut.tar", "unexpected EOF"),
        ("other.tar", "unrecognized image format"),
        ("missing-manifest.tar", "not found"),
        ("altered-manifest.tar", "not found"),
        ("missing-config.tar", "not found"),
        ("altered-config.tar", "not found"),
        ("missing-layer.tar", "not found"),
        ("altered-layer.tar", "not found"),
        ("arm64.tar", "amd64"),
        ("two.tar", "does not name its image"),
    ] {
        let refused = import(&node, &path(archive), None).await;
        let Err(RuntimeError::Refused { detail, .. }) = &refused else {
            panic!("{archive}: {refused:?}");
        };
        println!("{archive}: {detail}");
        assert!(detail.contains(words), "{archive}: {detail}");
    }
    assert_eq!(node.runtime().images().await.unwrap(), []);
    assert_eq!(node.ctr(&["leases", "ls", "-q"]).trim(), "");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_resolved_in_the_image_even_a_hostile_one() {
    let mut node = Node::start("users").await;
    let runtime = node.runtime();
    for (user, args) in [
        ("app", "--user 1000:1001,10"),
        ("5:7", "--user 5:7"),
        ("root", ""),
    ] {
        let name = format!("test.local/user-{}:1", user.replace(':', "-"));
        node.import(Layout::busybox().named(&name).user(user)).await;
        let spec = node.spec(&name);
        runtime.create(&spec).await.unwrap();
        let mut guest = node.guest(spec.id);
        guest.send("args");
        assert_eq!(guest.until_exit().await.0, args, "{user}");
    }
    // A passwd that leads out of the image: read within it, where there is none.
    let outside = node.dir.path().join("passwd");
    fs::write(&outside, "thief:x:0:0::/:/bin/sh\n").unwrap();
    let layout = Layout::busybox()
        .named("test.local/hostile:1")
        .user("thief");
    fs::remove_file(layout.root().join("etc/passwd")).unwrap();
    symlink(&outside, layout.root().join("etc/passwd")).unwrap();
    let archive = layout.archive(&node.dir.path().join("hostile.tar"));
    let refused = import(&node, &archive, None).await.unwrap_err().to_string();
    assert!(
        refused.contains("\"thief\" is not in its /etc/passwd"),
        "{refused}"
    );
    let left = node.ctr(&["snapshots", "ls"]);
    assert!(!left.contains("hearth-view"), "{left}");
    assert_eq!(node.ctr(&["leases", "ls", "-q"]).trim(), "");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_generation_keeps_its_image_until_that_is_gone() {
    let mut node = Node::with_image("pinned").await;
    let runtime = node.runtime();
    let first = node.sandbox().await;
    let replaced = Layout::busybox().named(IMAGE);
    fs::write(replaced.root().join("new"), "new").unwrap();
    node.import(replaced).await;
    let has_new = async |node: &Node, id| node.guest(id).run("test -e /new").await.1 == 0;
    assert!(!has_new(&node, first).await);
    // The old content is still there: containerd keeps it for the first sandbox.
    let same = node.sandbox().await;
    assert!(
        !has_new(&node, same).await,
        "the same generation, the same image"
    );
    let mut spec = node.spec(IMAGE);
    spec.generation = 2;
    runtime.create(&spec).await.unwrap();
    assert!(
        has_new(&node, spec.id).await,
        "a new generation, the image as it is now"
    );

    // Once nothing uses the old content it is collected, and the old generation goes on with what there is.
    runtime.destroy(first).await.unwrap();
    runtime.destroy(same).await.unwrap();
    node.ctr(&["content", "prune", "references"]);
    let later = node.sandbox().await;
    assert!(has_new(&node, later).await);

    runtime.remove_image(IMAGE).await.unwrap();
    assert_eq!(runtime.images().await.unwrap(), []);
    let refused = runtime.create(&node.spec(IMAGE)).await;
    assert!(
        matches!(refused, Err(RuntimeError::ImageMissing(_))),
        "{refused:?}"
    );
    let refused = runtime.remove_image(IMAGE).await;
    assert!(
        matches!(refused, Err(RuntimeError::ImageMissing(_))),
        "{refused:?}"
    );
    node.guest(later).assert_answers("living").await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_is_not_unpacked_says_so() {
    let mut node = Node::start("packed").await;
    let archive = Layout::busybox()
        .named(IMAGE)
        .archive(&node.dir.path().join("image.tar"));
    node.ctr(&["images", "import", "--no-unpack", archive.to_str().unwrap()]);
    let refused = node
        .runtime()
        .create(&node.spec(IMAGE))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("not unpacked for snapshotter \"overlayfs\""),
        "{refused}"
    );
    // Importing it with hearth mends that.
    import(&node, &archive, None).await.unwrap();
    let id = node.sandbox().await;
    node.guest(id).assert_answers("up").await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn imports_in_parallel_do_not_disturb_each_other() {
    let node = Arc::new(Node::start("parallel").await);
    let imports = (0..6).map(|n| {
        let node = node.clone();
        tokio::spawn(async move {
            // Three pairs of the same image.
            let layout = Layout::busybox().named(&format!("test.local/p{}:1", n / 2));
            fs::write(layout.root().join("which"), (n / 2).to_string()).unwrap();
            let archive = layout.archive(&node.dir.path().join(format!("{n}.tar")));
            import(&node, &archive, None).await
        })
    });
    for done in futures::future::join_all(imports).await {
        done.unwrap().unwrap();
    }
    let all = node.runtime().images().await.unwrap();
    assert_eq!(
        names(&all),
        ["test.local/p0:1", "test.local/p1:1", "test.local/p2:1"]
    );
    let node = Arc::into_inner(node).unwrap();
    node.finish().await;
}

/// As much of a registry as a pull needs: manifests and blobs of one image, over plain HTTP on localhost.
async fn registry(listener: TcpListener, manifest: String, blobs: Vec<(String, Vec<u8>)>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (manifest, blobs) = (manifest.clone(), blobs.clone());
        tokio::spawn(async move {
            // TLS is tried first; an answer in plain HTTP tells containerd to do without.
            let mut first = [0];
            if stream
                .peek(&mut first)
                .await
                .is_ok_and(|_| first[0] == 0x16)
            {
                let _sent = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await;
                return;
            }
            let (read, mut write) = stream.split();
            let mut lines = BufReader::new(read.take(1 << 20)).lines();
            loop {
                let Ok(Some(request)) = lines.next_line().await else {
                    return;
                };
                while !lines
                    .next_line()
                    .await
                    .unwrap_or_default()
                    .unwrap_or_default()
                    .is_empty()
                {}
                let mut words = request.split(' ');
                let (method, path) = (words.next().unwrap(), words.next().unwrap_or_default());
                let wanted = path.split('?').next().unwrap().rsplit('/').next().unwrap();
                let wanted = if wanted == "good" {
                    manifest.as_str()
                } else {
                    wanted
                };
                let found = blobs.iter().find(|(digest, _)| digest == wanted);
                let (status, kind, digest, body) = match found {
                    Some((digest, body)) if path.contains("/manifests/") => {
                        ("200 OK", MANIFEST, digest.as_str(), body.as_slice())
                    }
                    Some((digest, body)) => (
                        "200 OK",
                        "application/octet-stream",
                        digest.as_str(),
                        body.as_slice(),
                    ),
                    None => ("404 Not Found", "text/plain", "", b"".as_slice()),
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nDocker-Content-Digest: {digest}\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                let body = if method == "HEAD" { b"" } else { body };
                if write.write_all(head.as_bytes()).await.is_err()
                    || write.write_all(body).await.is_err()
                {
                    return;
                }
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_pulled_from_a_registry() {
    let mut node = Node::start("pull").await;
    let runtime = node.runtime();
    let mut layout = Layout::busybox();
    let manifest = layout.manifest()["digest"].as_str().unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(registry(listener, manifest.clone(), layout.blobs()));
    let name = format!("{address}/test/busybox:good");
    let (progress, mut told) = mpsc::channel(256);
    let pulled = runtime.pull_image(&name, progress).await.unwrap();
    assert_eq!((&pulled.name, &pulled.digest), (&name, &manifest));
    let mut stages = Vec::new();
    while let Ok(report) = told.try_recv() {
        stages.push(report.stage);
    }
    println!("{stages:?}");
    assert!(stages.iter().any(|stage| stage == "saved"), "{stages:?}");
    let spec = node.spec(&name);
    runtime.create(&spec).await.unwrap();
    node.guest(spec.id).assert_answers("pulled").await;

    let (progress, _) = mpsc::channel(1);
    let missing = runtime
        .pull_image(&format!("{address}/test/busybox:bad"), progress)
        .await;
    assert!(
        matches!(&missing, Err(RuntimeError::Refused { detail, .. }) if detail.contains("not found")),
        "{missing:?}"
    );
    serving.abort();
    let _stopped = serving.await;
    let (progress, _) = mpsc::channel(1);
    let unreachable = runtime
        .pull_image(&format!("{address}/test/busybox:other"), progress)
        .await;
    assert!(
        matches!(&unreachable, Err(RuntimeError::Refused { detail, .. }) if detail.contains("refused")),
        "{unreachable:?}"
    );
    assert_eq!(node.ctr(&["leases", "ls", "-q"]).trim(), "");
    node.finish().await;
}

/// The image of `hack/image.sh`, as the demo uses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_image_serves_http() {
    let mut node = Node::start("python").await;
    let archive = tool::python_archive();
    let began = std::time::Instant::now();
    let images = import(&node, &archive, None).await.unwrap();
    println!("import: {:?}, {images:?}", began.elapsed());
    assert_eq!(names(&images), ["hearth.local/python:3"]);
    let spec = node.spec("hearth.local/python:3");
    node.runtime().create(&spec).await.unwrap();
    let mut guest = node.guest(spec.id);
    guest
        .run("echo 'import time, urllib.request as u' >/tmp/get.py")
        .await;
    for line in [
        "for n in range(100):",
        "    try: print(u.urlopen(\"http://127.0.0.1:8000/\").status); break",
        "    except OSError: time.sleep(0.1)",
    ] {
        guest.run(&format!("echo '{line}' >>/tmp/get.py")).await;
    }
    guest
        .run("python3 -m http.server --bind 127.0.0.1 8000 >/dev/null 2>&1 &")
        .await;
    assert_eq!(
        guest.run("python3 /tmp/get.py").await,
        ("200".to_owned(), 0)
    );
    let usage = node.runtime().usage(spec.id).await.unwrap();
    println!("python serving: {usage:?}");
    node.finish().await;
}
