//! The disk of hearth's record is full, slow, fails, and the record is damaged: a small file system of its own beneath the
//! data directory (containerd's part of it stays elsewhere).

use super::{answers, is_gone};
use crate::crash::assert_no_leak;
use crate::hearthd::{Hearth, claim_request, eventually, fresh_id, patient_request, pool};
use crate::hostile::reason;
use hearth::api::{ClaimState, ReleaseRequest};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn run(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// ext4 on a loop device.
struct Disk {
    device: String,
    data: PathBuf,
    elsewhere: PathBuf,
}

impl Disk {
    fn new(root: &Path) -> Self {
        let image = root.join("disk");
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(96 << 20).unwrap();
        let image = image.to_str().unwrap();
        run(&["mkfs.ext4", "-q", "-F", "-m", "0", image]);
        let disk = Self {
            device: run(&["losetup", "-f", "--show", image]),
            data: root.join("data"),
            elsewhere: root.join("elsewhere"),
        };
        std::fs::create_dir(&disk.data).unwrap();
        std::fs::create_dir(&disk.elsewhere).unwrap();
        disk.mount();
        // containerd has it open, which would keep the file system in use.
        let log = disk.elsewhere.join("log");
        std::os::unix::fs::symlink(log, disk.data.join("containerd.log")).unwrap();
        disk
    }

    fn data(&self) -> &str {
        self.data.to_str().unwrap()
    }

    fn mount(&self) {
        run(&["mount", &self.device, self.data()]);
        run(&["chmod", "0700", self.data()]);
        let inner = self.data.join("containerd");
        std::fs::create_dir_all(&inner).unwrap();
        let inner = inner.to_str().unwrap();
        run(&["mount", "--bind", self.elsewhere.to_str().unwrap(), inner]);
    }

    /// containerd has its part open: it goes on with it.
    fn unmount(&self) {
        let _gone = Command::new("umount")
            .arg("-l")
            .arg(self.data.join("containerd"))
            .output();
        let _gone = Command::new("umount").arg("-l").arg(&self.data).output();
    }

    /// What an administrator does after the disk has failed.
    async fn mend(&self) {
        self.unmount();
        let name = self.device.strip_prefix("/dev/").unwrap();
        let used = Path::new("/proc/fs/ext4").join(name);
        eventually("the file system is gone", || async { !used.exists() }).await;
        self.mount();
    }

    /// Puts all of it where it would be without a disk of its own. hearthd must not run.
    fn give_back(self) {
        let (data, elsewhere) = (self.data.clone(), self.elsewhere.clone());
        let kept = data.with_extension("kept");
        std::fs::create_dir(&kept).unwrap();
        let all = data.join(".");
        run(&["cp", "-ax", all.to_str().unwrap(), kept.to_str().unwrap()]);
        drop(self);
        std::fs::remove_dir(&data).unwrap();
        std::fs::rename(kept, &data).unwrap();
        std::fs::remove_file(data.join("containerd.log")).unwrap();
        std::fs::remove_dir(data.join("containerd")).unwrap();
        std::fs::rename(elsewhere, data.join("containerd")).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.data.join("filler")
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.filler()).unwrap();
        for piece in [1 << 20, 1 << 12] {
            while file.write_all(&vec![7; piece]).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
        let _gone = Command::new("losetup").args(["-d", &self.device]).output();
    }
}

/// Writes to the file system wait as long as this lives.
struct Slow(String);

impl Slow {
    fn new(disk: &Disk) -> Self {
        run(&["fsfreeze", "-f", disk.data()]);
        Self(disk.data().to_owned())
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        run(&["fsfreeze", "-u", &self.0]);
    }
}

async fn release(hearth: &Hearth, claim: String) -> Result<(), tonic::Status> {
    let request = ReleaseRequest {
        claim_id: claim,
        epoch: 1,
    };
    hearth.claims().await.release(request).await.map(drop)
}

async fn a_full_one(hearth: &Hearth, disk: &Disk, spent: String) {
    disk.fill();
    eventually("claims are refused", || async {
        let id = fresh_id();
        let request = claim_request(&id, "python");
        match hearth.claims().await.claim(request).await {
            Ok(_) => {
                hearth.release(&id).await;
                false
            }
            Err(refused) => {
                // Those before it have emptied the pool, maybe.
                assert!(["DISK_RESERVE", "POOL_EMPTY"].contains(&reason(&refused).as_str()));
                reason(&refused) == "DISK_RESERVE"
            }
        }
    })
    .await;
    release(hearth, spent).await.unwrap();
    disk.free();
    eventually("claims are granted", || async {
        let id = fresh_id();
        let request = patient_request(&id, "python", 60);
        let granted = hearth.claims().await.claim(request).await.is_ok();
        if granted {
            hearth.release(&id).await;
        }
        granted
    })
    .await;
}

async fn a_slow_one(hearth: &Hearth, disk: &Disk, kept: &str, spent: String) {
    hearth.warm("python", 1).await;
    let slow = Slow::new(disk);
    // What needs no commit does not wait.
    answers(hearth, kept).await;
    assert_eq!(hearth.get(kept).await.state(), ClaimState::Claimed);
    // What needs one waits as long as its caller does.
    let id = fresh_id();
    let asked = patient_request(&id, "python", 60);
    let mut request = tonic::Request::new(asked.clone());
    request.set_timeout(Duration::from_secs(1));
    let late = hearth.claims().await.claim(request).await.unwrap_err();
    let codes = [tonic::Code::DeadlineExceeded, tonic::Code::Cancelled];
    assert!(codes.contains(&late.code()), "{late:?}");
    let releasing = release(hearth, spent);
    tokio::pin!(releasing);
    let waits = tokio::time::timeout(Duration::from_millis(300), &mut releasing).await;
    assert!(waits.is_err(), "answered before it was durable");
    drop(slow);
    releasing.await.unwrap();
    // The same claim goes on where it was.
    hearth.claims().await.claim(asked).await.unwrap();
    answers(hearth, &id).await;
    hearth.release(&id).await;

    // Every commit takes a second and more: claims are granted and released all the same.
    let (stop, path) = (AtomicBool::new(false), disk.data());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let slow = Slow(path.to_owned());
                run(&["fsfreeze", "-f", path]);
                std::thread::sleep(Duration::from_millis(1_500));
                drop(slow);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let served = std::panic::AssertUnwindSafe(|| {
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(hearth.serve_one("python"));
            });
        });
        let served = std::panic::catch_unwind(served);
        stop.store(true, Ordering::Relaxed);
        served.unwrap();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_slow_or_fails_loses_nothing_that_was_told() {
    let mut made = None;
    let settings = [("limits.disk_reserve_bytes", "4194304")];
    let mut hearth = Hearth::start_in(|root| made = Some(Disk::new(root)), &settings).await;
    let disk = made.unwrap();
    hearth.set_pools(vec![pool("python", 2, 10)]).await;
    let mut claims = Vec::new();
    for _ in 0..3 {
        hearth.warm("python", 1).await;
        claims.push(hearth.claim("python").await);
    }
    let [(kept, told), (first, _), (second, _)] = &claims[..] else {
        unreachable!()
    };
    a_full_one(&hearth, &disk, first.clone()).await;
    answers(&hearth, kept).await;
    a_slow_one(&hearth, &disk, kept, second.clone()).await;
    hearth.warm("python", 2).await;

    // The kernel gives the file system up: no fsync succeeds any more. Nothing is answered that is not durable.
    run(&["mount", "-o", "remount,abort", disk.data()]);
    let lost = fresh_id();
    let request = claim_request(&lost, "python");
    let refused = hearth.claims().await.claim(request).await;
    assert!(refused.is_err(), "{refused:?}");
    let ended = hearth.end().await;
    assert_eq!(ended.signal(), Some(6), "{ended}");
    let log = hearth.log_text();
    assert!(log.contains("the journal has failed"), "{log}");
    // And it does not start on such a disk.
    let refused = hearth.command(false).output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    let named = ["Read-only file system", "Input/output error"];
    let named = named.iter().any(|words| text.contains(words));
    assert!(named && text.contains(disk.data()), "{text}");

    // Mended, but the record is damaged: it says so, and touches nothing.
    disk.mend().await;
    let journal = disk.data.join("journal.redb");
    let whole = std::fs::read(&journal).unwrap();
    std::fs::write(&journal, &whole[..whole.len() / 2]).unwrap();
    let refused = hearth.command(false).output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(text.contains("journal.redb is damaged"), "{text}");
    std::fs::write(&journal, whole).unwrap();

    hearth.restart().await;
    let got = hearth.get(kept).await;
    assert_eq!(got.state(), ClaimState::Claimed);
    assert_eq!(got.sandbox_id, told.sandbox_id);
    answers(&hearth, kept).await;
    hearth.serve_one("python").await;
    // It may or may not have reached the disk; nobody was told.
    hearth.release(&lost).await;
    hearth.release(kept).await;
    is_gone(&hearth, &told.sandbox_id).await;
    hearth.warm("python", 2).await;
    assert_no_leak(&hearth).await;
    hearth.kill();
    disk.give_back();
    hearth.finish().await;
}
