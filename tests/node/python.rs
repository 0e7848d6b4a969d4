//! The Python example, as people copy it: made from the protos, run against a real node. Its requirements come from PyPI
//! once and stay in the cache.

use crate::hearthd::{Hearth, pool};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// Installing the requirements takes its time, once.
pub const PATIENCE: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread")]
async fn the_python_example_claims_works_and_releases() {
    let hearth = Hearth::start().await;
    let mut python = pool("python", 1, 4);
    python.template.as_mut().unwrap().interpreter = "python".into();
    hearth.set_pools(vec![python]).await;
    hearth.warm("python", 1).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python/run.sh");
    let mut command = tokio::process::Command::new(script);
    command
        .arg("--socket")
        .arg(hearth.path("s"))
        .args(["--pool", "python"]);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let ran = tokio::time::timeout(PATIENCE, command.output())
        .await
        .unwrap()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr),
    );
    assert!(ran.status.success(), "{}\n{out}\n{err}", ran.status);
    for line in [
        "hello from example with a warm welcome",
        "332833500",
        "the answer is 42",
        "read READ ME BACK",
        "released",
    ] {
        assert!(out.contains(line), "{line:?} is missing in\n{out}\n{err}");
    }
    hearth.finish().await;
}
