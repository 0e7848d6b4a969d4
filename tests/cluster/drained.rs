//! A node that the cluster empties: cordoned, and drained by its annotation.

use super::node::{events, node};
use super::*;

const STATE: &str = "hearth.dev/drain-state";
/// A thread of the interpreter's that goes on between runs.
const COUNTER: &str = "import threading, time
n = 0
def count():
    global n
    while True:
        n += 1
        time.sleep(0.02)
threading.Thread(target=count, daemon=True).start()";

fn annotate(cluster: &Cluster, annotations: &[&str]) {
    cluster.kubectl(&[&["annotate", "--overwrite", "node", "node"], annotations].concat());
}

fn drain_of_node(cluster: &Cluster) -> Value {
    let told = cluster.hearthctl(&["node", "-o", "json"]);
    let mut told: Value = serde_json::from_str(&told).unwrap();
    told["drain"].take()
}

/// What refuses to answer: its words.
fn refused(cluster: &Cluster, args: &[&str]) -> String {
    let output = cluster.try_hearthctl(args);
    assert!(!output.status.success(), "{args:?}: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// With one claim on a node that is cordoned already. Its sandbox is made of other processes afterwards.
pub fn and_undone(cluster: &Cluster, held: &mut Held) {
    step("drained by its annotation: what can't be read is an Event and changes nothing");
    let counted = |cluster: &Cluster| -> u64 {
        let told = cluster.hearthctl(&["run", &held.claim, "n"]);
        told.trim().parse().unwrap()
    };
    cluster.hearthctl(&["run", &held.claim, COUNTER]);
    annotate(cluster, &["hearth.dev/drain=soon"]);
    eventually("operators are told", || {
        let told = events(cluster, "DrainAnnotationInvalid");
        told.iter().any(|(note, _)| note.contains("\"soon\""))
    });
    assert_eq!(drain_of_node(cluster), Value::Null);

    step("hibernate: every claim sleeps on the disk, as kubectl wait sees it");
    let before = counted(cluster);
    annotate(cluster, &["hearth.dev/drain=hibernate"]);
    let drained = r"--for=jsonpath={.metadata.annotations.hearth\.dev/drain-state}=drained";
    cluster.kubectl(&["wait", drained, "node/node", "--timeout=120s"]);
    let drain = drain_of_node(cluster);
    let shown = |key: &str| drain[key].clone();
    assert_eq!(
        [shown("claims"), shown("hibernated"), shown("on_disk")],
        [json!(0), json!(1), json!(1)],
        "{drain}"
    );
    assert_eq!(shown("by_cluster"), true, "{drain}");
    assert!(!events(cluster, "HearthDraining").is_empty());
    assert_eq!(cluster.processes(&held.sandbox), BTreeMap::new());
    let told = refused(cluster, &["claim", POOL]);
    assert!(told.contains("NODE_DRAINING"), "{told}");
    let told = refused(cluster, &["run", &held.claim, "n"]);
    assert!(told.contains("NODE_DRAINING"), "{told}");
    let told = refused(cluster, &["undrain"]);
    assert!(told.contains("the cluster drains this node"), "{told}");

    step("and so it stays when hearthd's pod is deleted");
    cluster.kubectl(&["delete", "pod", &cluster.pod_name()]);
    cluster.pod();
    assert_eq!(drain_of_node(cluster)["since"], drain["since"]);

    step("taken back: what slept goes on where it was");
    annotate(cluster, &["hearth.dev/drain-"]);
    eventually("the drain is over", || {
        node(cluster)["metadata"]["annotations"][STATE].is_null()
    });
    assert_eq!(drain_of_node(cluster), Value::Null);
    let after = counted(cluster);
    assert!(after >= before, "{after} after {before}");
    eventually("it counts on", || counted(cluster) > after);
    held.processes = cluster.processes(&held.sandbox);
    held.is_untouched(cluster, 41);
    // The cordon is another matter.
    let told = refused(cluster, &["claim", POOL]);
    assert!(told.contains("NODE_CORDONED"), "{told}");
}
