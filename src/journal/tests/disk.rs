//! Full and failing disks, on real small file systems: needs root and a loop device.

use super::*;
use std::fs::{self, File};
use std::io::Write;
use std::process::Command;

/// A mounted file system of its own; unmounted at the end.
struct SmallDisk {
    dir: tempfile::TempDir,
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?} (needs root): {text}"
    );
}

impl SmallDisk {
    fn tmpfs(mebibytes: u64) -> Self {
        let dir = temp_dir();
        let size = format!("size={mebibytes}m,mode=0755");
        let at = dir.path().to_str().unwrap();
        run("mount", &["-t", "tmpfs", "-o", &size, "hearth-test", at]);
        Self { dir }
    }

    /// ext4 in a sparse file `image`, without a journal if `bare`.
    fn ext4(image: &Path, mebibytes: u64, bare: bool) -> Self {
        File::create(image)
            .unwrap()
            .set_len(mebibytes << 20)
            .unwrap();
        let features = if bare { "^has_journal" } else { "has_journal" };
        let image = image.to_str().unwrap();
        let options = ["-q", "-F", "-m", "0", "-b", "4096", "-O", features];
        run("mkfs.ext4", &[&options[..], &[image]].concat());
        let disk = Self { dir: temp_dir() };
        disk.mount_image(image);
        disk
    }

    fn mount_image(&self, image: &str) {
        run(
            "mount",
            &["-o", "loop", image, self.path().to_str().unwrap()],
        );
        self.bound_requests();
    }

    /// One page a request, so that each succeeds or fails as a whole. The loop driver takes a short write for a whole one
    /// (lo_complete_rq in drivers/block/loop.c): of a request that begins where the image has blocks and ends in a hole
    /// that can't be filled it writes the first part and reports success. An fsync then says that all is on the disk
    /// while half a page and those after it are not, and both of redb's roots may be damaged. That is a fault of this
    /// disk, not of fsync's promise: a real disk does not say that it wrote what it did not.
    fn bound_requests(&self) {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mount = self.path().to_str().unwrap();
        let mut mounts = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>());
        let device = mounts.find(|words| words[1] == mount).unwrap()[0].to_owned();
        let device = device.strip_prefix("/dev/").unwrap();
        fs::write(format!("/sys/block/{device}/queue/max_sectors_kb"), "4").unwrap();
    }

    fn remount(&self, image: &Path) {
        run("umount", &[self.path().to_str().unwrap()]);
        self.mount_image(image.to_str().unwrap());
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// Uses up all free space.
    fn fill(&self) {
        let mut file = File::create(self.path().join("filler")).unwrap();
        for piece in [1 << 20, 1 << 16, 1 << 12, 1] {
            while file
                .write_all(&vec![7; piece])
                .and_then(|()| file.sync_all())
                .is_ok()
            {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a test that failed may still have files open.
        let _ = nix::mount::umount2(self.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

fn reserve_len(disk: &SmallDisk) -> u64 {
    fs::metadata(disk.data().join("reserve")).unwrap().len()
}

fn journal_len(disk: &SmallDisk) -> u64 {
    fs::metadata(journal_path(&disk.data())).unwrap().len()
}

/// Waits for the given news of the reserve.
fn reserve_event(rig: &mut Rig, reached: bool) {
    loop {
        match rig.event() {
            Some(JournalEvent::Reserve { reached: found }) if found == reached => return,
            Some(_) => {}
            None => panic!("the journal died: {:?}", rig.failures()),
        }
    }
}

fn claims(numbers: std::ops::Range<u64>) -> Vec<Op> {
    numbers
        .map(|number| Op::PutClaim(claim(number, number)))
        .collect()
}

/// Everything that a full disk must not stop, in the order of a bad day.
fn a_full_disk(disk: &SmallDisk) {
    let mut rig = open(&disk.data()).unwrap();
    rig.commit(claims(0..200));
    assert_eq!(reserve_len(disk), RESERVE);
    let before = journal_len(disk);
    assert_eq!(rig.metric("hearth_journal_reserve_reached"), 0.0);
    assert!(rig.metric("hearth_journal_disk_free_bytes") > 1e6);

    disk.fill();
    reserve_event(&mut rig, true);
    assert_eq!(rig.metric("hearth_journal_reserve_reached"), 1.0);
    assert!(rig.metric("hearth_journal_disk_free_bytes") < 1e6);
    // Releases: claims go, tombstones come.
    for number in 0..100 {
        rig.commit(vec![
            Op::PutSandbox(sandbox(number, Owner::Releasing)),
            Op::DeleteClaim(claim_id(number)),
            Op::PutTombstone(claim_id(number), Now(number)),
        ]);
    }
    // And a growth of the file, which takes the reserve.
    rig.commit(claims(200..600));
    assert!(
        journal_len(disk) > before,
        "the file did not grow: nothing was tested"
    );
    assert_eq!(reserve_len(disk), 0, "the reserve was not given back");
    assert!(rig.failures().is_empty());
    let identity = rig.identity;
    drop(rig);

    // A restart on the full disk, and more releases.
    disk.fill();
    let mut rig = open(&disk.data()).unwrap();
    assert_eq!(
        (rig.records.claims.len(), rig.records.tombstones.len()),
        (500, 100)
    );
    reserve_event(&mut rig, true);
    for number in 100..150 {
        rig.commit(vec![Op::DeleteClaim(claim_id(number))]);
    }
    disk.free();
    reserve_event(&mut rig, false);
    assert_eq!(reserve_len(disk), RESERVE);
    assert_eq!(rig.metric("hearth_journal_reserve_reached"), 0.0);
    assert!(rig.failures().is_empty());
    drop(rig);
    let rig = open(&disk.data()).unwrap();
    assert_eq!(rig.identity, identity);
    assert_eq!(rig.records.claims.len(), 450);
}

#[test]
fn a_full_tmpfs() {
    a_full_disk(&SmallDisk::tmpfs(8));
}

#[test]
fn a_full_ext4() {
    let images = temp_dir();
    a_full_disk(&SmallDisk::ext4(&images.path().join("ext4"), 16, false));
}

/// More than the reserve can give: the end, and nothing durable is lost by it.
#[test]
fn a_disk_fuller_than_the_reserve() {
    let disk = SmallDisk::tmpfs(8);
    let mut rig = open(&disk.data()).unwrap();
    rig.commit(claims(0..100));
    disk.fill();
    rig.append(claims(1000..9000));
    while let Some(event) = rig.event() {
        assert!(!matches!(event, JournalEvent::Durable(_)), "{event:?}");
    }
    let failures = rig.failures();
    assert!(
        failures[0].contains("No space left on device"),
        "{failures:?}"
    );
    drop(rig);
    // Still full: it starts, or says why not. Nothing is lost by trying.
    match open(&disk.data()) {
        Ok(rig) => assert_eq!(rig.records, model(&claims(0..100))),
        Err(OpenError::Io { source, .. }) => {
            assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
        }
        Err(other) => panic!("{other}"),
    }
    disk.free();
    let mut rig = open(&disk.data()).unwrap();
    assert_eq!(rig.records, model(&claims(0..100)));
    rig.commit(claims(100..101));
}

#[test]
fn a_disk_too_small_for_the_reserve_says_so_and_serves() {
    let disk = SmallDisk::tmpfs(2);
    let mut rig = open(&disk.data()).unwrap();
    reserve_event(&mut rig, true);
    rig.commit(claims(0..10));
    assert_eq!(reserve_len(&disk), 0);
}

/// A real failure of fsync: a file system whose own disk has no block left for some of its pages. The page cache shows
/// what was to be written, as clean; the next start must not believe it.
#[test]
fn a_failed_fsync_on_a_real_disk() {
    let beneath = SmallDisk::tmpfs(12);
    let image = beneath.path().join("ext4");
    let disk = SmallDisk::ext4(&image, 64, true);
    let mut rig = open(&disk.data()).unwrap();
    rig.commit(claims(0..100));
    let before = journal_len(&disk);
    // Pages of zeros lose their blocks beneath, among them those that the journal has filled and not used yet.
    run("sync", &["-f", disk.path().to_str().unwrap()]);
    run("fallocate", &["--dig-holes", image.to_str().unwrap()]);
    beneath.fill();
    let mut durable = MemoryRecords::default();
    claims(0..100).iter().for_each(|op| durable.apply(op));
    for number in 0.. {
        let ops = vec![Op::PutClaim(claim(number, 7)), Op::PutSequence(number)];
        let ticket = rig.append(ops.clone());
        let event = loop {
            match rig.event() {
                Some(JournalEvent::Reserve { .. }) => {}
                other => break other,
            }
        };
        if event.is_none() {
            println!("{number} commits, then {:?}", rig.failures());
            break;
        }
        assert_eq!(event, Some(JournalEvent::Durable(ticket)));
        ops.iter().for_each(|op| durable.apply(op));
        assert!(number < 1000, "the disk does not fail");
    }
    // ext4 itself has room and the file did not grow: no write can fail, only the fsync.
    assert_eq!(journal_len(&disk), before);
    let failures = rig.failures();
    let errors = ["No space left on device", "Input/output error"];
    assert!(
        errors.iter().any(|error| failures[0].contains(error)),
        "{failures:?}"
    );
    drop(rig);

    beneath.free();
    let found = open(&disk.data()).unwrap().records;
    // What was read is really on the disk.
    disk.remount(&image);
    assert_eq!(open(&disk.data()).unwrap().records, found);
    assert_eq!(found, durable.read());
}
