use super::*;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn everything_is_private() {
    let dir = temp_dir();
    // As Kubernetes makes a hostPath directory.
    chmod(dir.path(), 0o755);
    let rig = open(dir.path()).unwrap();
    assert_eq!(mode(dir.path()), 0o700);
    for name in [
        "lock",
        "node.key",
        "journal.redb",
        "journal.mark",
        "reserve",
    ] {
        assert_eq!(mode(&dir.path().join(name)), 0o600, "{name}");
    }
    drop(rig);
    // Opened up later by someone: ours by its lock file, so closed again.
    chmod(dir.path(), 0o777);
    drop(open(dir.path()).unwrap());
    assert_eq!(mode(dir.path()), 0o700);
}

#[test]
fn a_missing_directory_is_made() {
    let dir = temp_dir();
    let deep = dir.path().join("var/lib/hearth");
    drop(open(&deep).unwrap());
    assert_eq!(mode(&deep), 0o700);
}

#[test]
fn a_directory_of_others_is_left_alone() {
    let dir = temp_dir();
    fs::write(dir.path().join("dpkg"), "").unwrap();
    chmod(dir.path(), 0o755);
    let error = open(dir.path()).err().unwrap();
    insta::assert_snapshot!(text(&error, dir.path()), @"DIR is open to others (mode 0755) and holds other things: give hearth a directory of its own, or close it with chmod 0700");
    assert_eq!(mode(dir.path()), 0o755);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    // As it says: closed, it is taken.
    chmod(dir.path(), 0o700);
    drop(open(dir.path()).unwrap());
}

#[test]
fn one_hearthd_each() {
    let dir = temp_dir();
    let first = open(dir.path()).unwrap();
    match open(dir.path()).err().unwrap() {
        OpenError::InUse { pid, .. } => assert_eq!(pid, std::process::id()),
        other => panic!("{other}"),
    }
    // Someone removes the "stale" lock: the journal itself is locked, too.
    fs::remove_file(dir.path().join("lock")).unwrap();
    match open(dir.path()).err().unwrap() {
        OpenError::InUse { pid, .. } => assert_eq!(pid, 0),
        other => panic!("{other}"),
    }
    drop(first);
    drop(open(dir.path()).unwrap());
}

#[test]
fn the_lock_survives_neither_its_holder_nor_a_stale_pid() {
    let dir = temp_dir();
    drop(open(dir.path()).unwrap());
    fs::write(
        dir.path().join("lock"),
        "4294967294 and more that is no pid\n",
    )
    .unwrap();
    drop(open(dir.path()).unwrap());
    let text = fs::read_to_string(dir.path().join("lock")).unwrap();
    assert!(
        text.starts_with(&format!("{} ", std::process::id())),
        "{text:?}"
    );
}

#[test]
fn the_key_is_made_once_and_hides() {
    let dir = temp_dir();
    let key = open(dir.path()).unwrap().key;
    assert_eq!(format!("{key:?}"), "NodeKey(..)");
    assert_eq!(fs::read(dir.path().join("node.key")).unwrap(), key.expose());
    assert_ne!(key.expose(), &[0; 32]);
    assert_eq!(open(dir.path()).unwrap().key, key);

    let other = temp_dir();
    assert_ne!(open(other.path()).unwrap().key, key);
}

#[test]
fn an_interrupted_first_start_is_begun_anew() {
    let dir = temp_dir();
    chmod(dir.path(), 0o700);
    fs::write(dir.path().join("node.key.new"), "half").unwrap();
    fs::write(dir.path().join("journal.redb.new"), "half").unwrap();
    let key = open(dir.path()).unwrap().key;
    assert_eq!(fs::read(dir.path().join("node.key")).unwrap(), key.expose());
    assert!(!dir.path().join("journal.redb.new").exists());
}

#[test]
fn keys_that_must_not_be_trusted() {
    let dir = temp_dir();
    drop(open(dir.path()).unwrap());
    let path = dir.path().join("node.key");
    let key = fs::read(&path).unwrap();
    let refusal = || text(&open(dir.path()).err().unwrap(), dir.path());

    chmod(&path, 0o640);
    insta::assert_snapshot!(refusal(), @"DIR/node.key is open to others (mode 0640): treat it as known to them; if that is no matter, chmod 0600");
    chmod(&path, 0o600);

    fs::write(&path, &key[..31]).unwrap();
    insta::assert_snapshot!(refusal(), @"DIR/node.key has 31 bytes instead of 32");
    fs::write(&path, "").unwrap();
    insta::assert_snapshot!(refusal(), @"DIR/node.key has 0 bytes instead of 32");

    fs::remove_file(&path).unwrap();
    insta::assert_snapshot!(refusal(), @"DIR/node.key is missing although there is a journal: put it back, or move the journal away to start anew");
    assert!(!path.exists(), "no new key was made");

    fs::write(dir.path().join("elsewhere"), &key).unwrap();
    symlink("elsewhere", &path).unwrap();
    insta::assert_snapshot!(refusal(), @"DIR/node.key is a symbolic link: a key must be a file");
    fs::remove_file(&path).unwrap();

    fs::create_dir(&path).unwrap();
    chmod(&path, 0o700);
    insta::assert_snapshot!(refusal(), @"DIR/node.key is not a regular file");
    fs::remove_dir(&path).unwrap();

    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
    insta::assert_snapshot!(refusal(), @"DIR/node.key is not a regular file");
    fs::remove_file(&path).unwrap();

    fs::write(&path, &key).unwrap();
    chmod(&path, 0o600);
    assert_eq!(open(dir.path()).unwrap().key.expose().as_slice(), key);
}

#[test]
fn a_journal_moved_away_starts_anew_under_the_same_key() {
    let dir = temp_dir();
    let mut rig = open(dir.path()).unwrap();
    rig.commit(every_op());
    let (identity, key) = (rig.identity, rig.key.clone());
    drop(rig);
    fs::rename(journal_path(dir.path()), dir.path().join("journal.away")).unwrap();
    let rig = open(dir.path()).unwrap();
    assert_eq!(rig.records, Records::default());
    assert_ne!(
        rig.identity, identity,
        "sandboxes of the lost journal must show as orphans"
    );
    assert_eq!(rig.key, key);
}

#[test]
fn what_can_not_be_used_is_named() {
    let dir = temp_dir();
    let path = dir.path().join("file");
    fs::write(&path, "").unwrap();
    let error = open(&path.join("below")).err().unwrap();
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
    assert!(std::error::Error::source(&error).is_some());
    let shown = error.to_string();
    assert!(shown.contains("file/below"), "{shown}");
    // Something else where a file of ours should be.
    let dir = temp_dir();
    chmod(dir.path(), 0o700);
    fs::create_dir(dir.path().join("lock")).unwrap();
    let error = open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("/lock: "), "{error}");
}
