//! Checkpoints and restores: what is done in which order, and what is left where one fails.
#![allow(clippy::unwrap_used)]

use super::super::tier_fakes::*;
use super::*;
use tokio::time::sleep;

fn tier() -> (Arc<Noting>, Quiet, Arc<Residencies>) {
    let runtime = Arc::new(Noting::default());
    let guest = Quiet::new(&runtime.said);
    let residencies = residencies(&runtime, guest.clone(), true);
    (runtime, guest, residencies)
}

#[tokio::test(start_paused = true)]
async fn nobody_inside_is_stopped_before_there_is_staging_memory() {
    let (runtime, _, residencies) = tier();
    runtime.staging.send_replace(false);
    let checkpoint = tokio::spawn({
        let residencies = residencies.clone();
        async move { residencies.checkpoint(sandbox(1), true).await }
    });
    sleep(Duration::from_secs(600)).await;
    assert_eq!(runtime.said.all(), ["image wanted"]);
    runtime.staging.send_replace(true);
    assert_eq!(checkpoint.await.unwrap(), Ok(7));
    let order = ["image wanted", "thaw", "silence for an image", "image made"];
    assert_eq!(runtime.said.all(), order);
}

#[tokio::test(start_paused = true)]
async fn without_room_a_sleeping_one_is_not_woken() {
    let (runtime, _, residencies) = tier();
    for asleep in [true, false] {
        let full = CheckpointFailure::NoRoom("quota".into());
        *runtime.no_room.lock().unwrap() = Some(full.clone());
        let made = residencies.checkpoint(sandbox(1), asleep).await;
        assert_eq!(made, Err(full));
    }
    assert_eq!(runtime.said.all(), ["image wanted", "image wanted"]);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_sealed_is_as_it_was() {
    let failure = || Some(CheckpointFailure::Failed("no".into()));
    let (runtime, _, residencies) = tier();
    *runtime.no_image.lock().unwrap() = failure();
    assert!(residencies.checkpoint(sandbox(1), true).await.is_err());
    assert_eq!(runtime.said.all().last(), Some(&"freeze"));

    let (runtime, _, residencies) = tier();
    *runtime.no_image.lock().unwrap() = failure();
    assert!(residencies.checkpoint(sandbox(1), false).await.is_err());
    assert_eq!(runtime.said.all()[3..], ["thaw", "go on"]);

    // A guest that says nothing: it may have heard, so it is told to go on.
    let (runtime, guest, residencies) = tier();
    *guest.silent.lock().unwrap() = 1;
    assert!(residencies.checkpoint(sandbox(1), false).await.is_err());
    let told = ["image wanted", "silence for an image", "thaw", "go on"];
    assert_eq!(runtime.said.all(), told);
}

async fn restored(residencies: &Residencies) -> Result<(), RestoreFailure> {
    let none = NetworkPolicy::default();
    let pool = PoolName::parse("py").unwrap();
    residencies.restore(sandbox(1), &pool, (&none, &none)).await
}

#[tokio::test(start_paused = true)]
async fn a_restore_is_tried_twice_and_then_its_failure_is_told() {
    let lost = || RestoreFailure::Lost("runsc: no".into());
    let (runtime, _, residencies) = tier();
    runtime.restores.lock().unwrap().push_back(lost());
    assert_eq!(restored(&residencies).await, Ok(()));
    let twice = ["restore", "restore", "silence for an image"];
    assert_eq!(runtime.said.all(), twice);

    // Its guest does not answer: what came back goes, and it is tried again.
    let (runtime, guest, residencies) = tier();
    *guest.silent.lock().unwrap() = 1;
    assert_eq!(restored(&residencies).await, Ok(()));
    let anew = ["restore", "silence for an image", "shed"];
    assert_eq!(runtime.said.all()[..3], anew);
    assert_eq!(runtime.said.all()[3..], anew[..2]);

    let (runtime, _, residencies) = tier();
    runtime.restores.lock().unwrap().extend([lost(), lost()]);
    assert_eq!(restored(&residencies).await, Err(lost()));
    assert_eq!(runtime.said.all(), ["restore", "restore"]);

    // What was made with another runsc does not come back at a second try either.
    let (runtime, _, residencies) = tier();
    let mismatch = RestoreFailure::Mismatch("runsc".into());
    runtime.restores.lock().unwrap().push_back(mismatch.clone());
    assert_eq!(restored(&residencies).await, Err(mismatch));
    assert_eq!(runtime.said.all(), ["restore"]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_counted_by_its_reason_and_a_first_reply_is_measured() {
    let registry = prometheus::Registry::new();
    let runtime = Arc::new(Noting::default());
    let guest = Quiet::new(&runtime.said);
    let residencies = counting(&registry, &runtime, guest.clone(), true);
    residencies.wake(sandbox(1)).await.unwrap();
    *guest.silent.lock().unwrap() = 1;
    residencies.wake(sandbox(1)).await.unwrap();
    let full = CheckpointFailure::NoRoom("quota".into());
    *runtime.no_room.lock().unwrap() = Some(full);
    assert!(residencies.checkpoint(sandbox(1), true).await.is_err());
    let lost = RestoreFailure::Lost("no".into());
    runtime
        .restores
        .lock()
        .unwrap()
        .extend([lost.clone(), lost]);
    assert!(restored(&residencies).await.is_err());
    assert_eq!(restored(&residencies).await, Ok(()));

    let mut page = String::new();
    let encoder = prometheus::TextEncoder::new();
    encoder.encode_utf8(&registry.gather(), &mut page).unwrap();
    for wanted in [
        "failures_total{reason=\"silent\",stage=\"first_reply\"} 1",
        "failures_total{reason=\"no_room\",stage=\"checkpoint\"} 1",
        "failures_total{reason=\"lost\",stage=\"restore\"} 1",
        "duration_seconds_count{stage=\"first_reply\"} 2",
    ] {
        assert!(page.contains(wanted), "{wanted} is not in\n{page}");
    }
}
