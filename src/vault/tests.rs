//! Images sealed, opened, damaged, refused; on a real tmpfs of the test's own.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::machine::ids::NodeTag;
use std::os::unix::fs::PermissionsExt;

const CANARY: &[u8] = b"canary-4711-secret";

fn id(n: u64) -> SandboxId {
    SandboxId::new(NodeTag(7), n).unwrap()
}

fn here() -> Fingerprint {
    Fingerprint {
        runsc: "1".into(),
        flags: "--a".into(),
        chain: "sha256:1".into(),
        spec: "abc".into(),
        cpu: cpu_features("flags : fpu avx\nflags : no"),
    }
}

struct Place {
    dir: tempfile::TempDir,
}

impl Drop for Place {
    fn drop(&mut self) {
        Vault::take_down(&self.dir.path().join("staging")).unwrap();
    }
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn config(&self) -> VaultConfig {
        VaultConfig {
            dir: self.dir.path().join("hibernated"),
            staging: self.dir.path().join("staging"),
            may_mount: true,
            staging_bytes: 16 << 20,
            quota_bytes: 20 << 20,
            disk_reserve_bytes: 1 << 20,
            key: [3; 32],
        }
    }

    fn open(&self) -> Vault {
        Vault::open(self.config()).unwrap()
    }

    fn image(&self, n: u64) -> PathBuf {
        self.dir.path().join("hibernated").join(id(n).to_string())
    }
}

/// What runsc would write: sizes around the edges of pieces.
fn contents() -> Vec<(&'static str, Vec<u8>)> {
    let mut pages = vec![7; (2 << 20) + 5];
    pages[1_500_000..1_500_000 + CANARY.len()].copy_from_slice(CANARY);
    vec![
        ("checkpoint.img", CANARY.to_vec()),
        ("empty.img", Vec::new()),
        ("pages.img", pages),
        ("pages_meta.img", vec![1; 1 << 20]),
    ]
}

fn stage(vault: &Vault, n: u64) {
    let dir = vault.staged(id(n));
    fs::create_dir(&dir).unwrap();
    for (name, content) in contents() {
        fs::write(dir.join(name), content).unwrap();
    }
}

fn sealed(vault: &Vault, n: u64) -> u64 {
    vault.reserve(id(n), 4 << 20).unwrap();
    stage(vault, n);
    vault.seal(id(n), &here(), || false).unwrap()
}

fn all_bytes(dir: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(all_bytes(&path)),
            false => all.extend(fs::read(path).unwrap()),
        }
    }
    all
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[test]
fn what_was_sealed_comes_back_and_only_ciphertext_is_on_the_disk() {
    let place = Place::new();
    let vault = place.open();
    let size = sealed(&vault, 1);
    assert_eq!(vault.used_bytes(), size);
    assert!(!vault.staged(id(1)).exists(), "the plain image is gone");
    let mode = fs::metadata(place.image(1)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let disk = all_bytes(&place.dir.path().join("hibernated"));
    assert!(disk.len() as u64 > size);
    assert!(!contains(&disk, CANARY), "a secret is on the disk");
    // hearthd starts anew.
    drop(vault);
    let vault = place.open();
    assert!(vault.used_bytes() >= size);
    assert_eq!(vault.plain_bytes(id(1)), (3 << 20) + 5 + 18);
    vault.unseal(id(1), &here()).unwrap();
    for (name, content) in contents() {
        assert!(fs::read(vault.staged(id(1)).join(name)).unwrap() == content);
    }
    vault.remove(id(1)).unwrap();
    assert!(!place.image(1).exists() && !vault.staged(id(1)).exists());
    assert_eq!(vault.used_bytes(), 0);
}

#[test]
fn a_changed_bit_anywhere_is_damage() {
    let place = Place::new();
    let vault = place.open();
    sealed(&vault, 1);
    let mut tried = 0;
    for entry in fs::read_dir(place.image(1)).unwrap() {
        let path = entry.unwrap().path();
        let good = fs::read(&path).unwrap();
        let length = good.len();
        for at in [
            0,
            length / 3,
            length / 2,
            length.saturating_sub(17),
            length - 1,
        ] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, bad).unwrap();
            let error = vault.unseal(id(1), &here()).unwrap_err();
            assert!(matches!(error, VaultError::Damaged(_)), "{path:?}: {error}");
            assert!(!vault.staged(id(1)).exists(), "nothing is left staged");
            tried += 1;
        }
        for bad in [&good[..length - 1], &[good.as_slice(), b"x"].concat(), b""] {
            fs::write(&path, bad).unwrap();
            let error = vault.unseal(id(1), &here()).unwrap_err();
            assert!(matches!(error, VaultError::Damaged(_)), "{path:?}: {error}");
        }
        fs::remove_file(&path).unwrap();
        let error = vault.unseal(id(1), &here()).unwrap_err();
        assert!(matches!(error, VaultError::Damaged(_)), "{path:?}: {error}");
        fs::write(&path, good).unwrap();
    }
    assert_eq!(tried, 25);
    vault.unseal(id(1), &here()).unwrap();
}

#[test]
fn an_image_is_its_own_sandboxes_under_its_own_key() {
    let place = Place::new();
    let vault = place.open();
    sealed(&vault, 1);
    fs::rename(place.image(1), place.image(2)).unwrap();
    let error = vault.unseal(id(2), &here()).unwrap_err();
    assert!(matches!(error, VaultError::Damaged(_)), "{error}");
    fs::rename(place.image(2), place.image(1)).unwrap();
    let other = Vault::open(VaultConfig {
        key: [4; 32],
        ..place.config()
    });
    let error = other.unwrap().unseal(id(1), &here()).unwrap_err();
    assert!(error.to_string().contains("key"), "{error}");
}

#[test]
fn it_is_restored_only_where_all_is_as_it_was() {
    let place = Place::new();
    let vault = place.open();
    sealed(&vault, 1);
    type Change<'a> = &'a dyn Fn(&mut Fingerprint);
    let with = |change: Change<'_>| {
        let mut changed = here();
        change(&mut changed);
        vault.unseal(id(1), &changed)
    };
    let refused: [(&str, Change<'_>); 5] = [
        ("runsc", &|it| it.runsc = "2".into()),
        ("flags", &|it| it.flags = "--b".into()),
        ("root file system", &|it| it.chain = "sha256:2".into()),
        ("spec", &|it| it.spec = "abd".into()),
        ("avx", &|it| it.cpu.retain(|it| it != "avx")),
    ];
    for (word, change) in refused {
        let error = with(change).unwrap_err();
        assert!(matches!(error, VaultError::Mismatch(_)), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    with(&|it| it.cpu.extend(["avx512".into()])).unwrap();
}

#[test]
fn room_is_asked_for_before_and_refused_clearly() {
    let place = Place::new();
    let vault = place.open();
    let refused = |bytes: u64| match vault.reserve(id(9), bytes) {
        Err(VaultError::NoRoom(what)) => what,
        other => panic!("{other:?}"),
    };
    assert!(refused(17 << 20).contains("staging_bytes"));
    vault.reserve(id(1), 12 << 20).unwrap();
    assert!(refused(9 << 20).contains("quota_bytes"));
    // It turns out to be more than was guessed.
    vault.reserve(id(2), 6 << 20).unwrap();
    let dir = vault.staged(id(2));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("pages.img"), vec![1; 10 << 20]).unwrap();
    let error = vault.seal(id(2), &here(), || false).unwrap_err();
    assert!(error.to_string().contains("quota_bytes"), "{error}");
    vault.remove(id(1)).unwrap();
    vault.reserve(id(9), 9 << 20).unwrap();
    let full = VaultConfig {
        disk_reserve_bytes: u64::MAX / 2,
        ..place.config()
    };
    let error = Vault::open(full).unwrap().reserve(id(2), 1).unwrap_err();
    assert!(error.to_string().contains("reserve"), "{error}");
}

#[test]
fn what_has_no_manifest_is_garbage_and_so_is_what_nobody_keeps() {
    let place = Place::new();
    let vault = place.open();
    for n in 1..=3 {
        sealed(&vault, n);
    }
    fs::remove_file(Manifest::path(&place.image(1))).unwrap();
    drop(vault);
    let vault = place.open();
    assert!(!place.image(1).exists());
    // An image that is made anew before the sweep is not swept.
    sealed(&vault, 3);
    assert_eq!(vault.sweep(&BTreeSet::new()).unwrap(), [id(1), id(2)]);
    assert!(!place.image(2).exists() && place.image(3).exists());
    drop(vault);
    let vault = place.open();
    assert_eq!(vault.sweep(&BTreeSet::from([id(3)])).unwrap(), []);
    vault.unseal(id(3), &here()).unwrap();
    // One that had just begun is told as well.
    vault.reserve(id(4), 1).unwrap();
    drop(vault);
    let vault = place.open();
    assert_eq!(vault.sweep(&BTreeSet::from([id(3)])).unwrap(), [id(4)]);
}

#[test]
fn a_seal_that_is_given_up_or_fails_leaves_nothing() {
    let place = Place::new();
    let vault = place.open();
    vault.reserve(id(1), 4 << 20).unwrap();
    stage(&vault, 1);
    let error = vault.seal(id(1), &here(), || true).unwrap_err();
    assert!(matches!(error, VaultError::Stopped));
    assert!(!place.image(1).exists() && !vault.staged(id(1)).exists());
    assert_eq!(vault.used_bytes(), 0);
    // runsc made nothing, or something else.
    vault.reserve(id(1), 1).unwrap();
    fs::create_dir(vault.staged(id(1))).unwrap();
    assert!(vault.seal(id(1), &here(), || false).is_err());
    fs::create_dir_all(vault.staged(id(1)).join("dir")).unwrap();
    assert!(vault.seal(id(1), &here(), || false).is_err());
    assert!(!place.image(1).exists());
}

#[test]
fn the_staging_memory_is_bounded_and_emptied_at_every_start() {
    let place = Place::new();
    let vault = place.open();
    stage(&vault, 1);
    let full = fs::write(vault.staged(id(1)).join("big"), vec![1; 17 << 20]);
    assert!(full.is_err(), "more than its bound");
    let vault = place.open();
    assert!(!vault.staged(id(1)).exists());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let ours: Vec<_> = mounts
        .lines()
        .filter(|line| line.contains(place.dir.path().to_str().unwrap()))
        .collect();
    assert_eq!(ours.len(), 1, "{ours:?}");
    assert!(ours[0].contains("tmpfs"), "{ours:?}");
}
