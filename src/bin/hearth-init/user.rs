//! Who the processes inside run as: the image's USER, resolved to numbers by hearthd. hearth-init itself stays root.

use nix::unistd::{Gid, Uid, chown};
use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use crate::limits::TABLE_BYTES;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: Uid,
    pub gid: Gid,
    /// Supplementary groups.
    pub groups: Vec<Gid>,
}

impl User {
    /// From `UID:GID[,GID...]`.
    pub fn parse(text: &str) -> Option<Self> {
        // The largest number means "unchanged" to chown and setuid.
        let number = |text: &str| text.parse().ok().filter(|number: &u32| *number < u32::MAX);
        let (uid, gids) = text.split_once(':')?;
        let gids = gids.split(',').map(|gid| number(gid).map(Gid::from_raw));
        let mut gids = gids.collect::<Option<Vec<_>>>()?.into_iter();
        Some(Self {
            uid: Uid::from_raw(number(uid)?),
            gid: gids.next()?,
            groups: gids.collect(),
        })
    }

    /// Gives a path to this user.
    pub fn own(&self, path: &Path) -> io::Result<()> {
        Ok(chown(path, Some(self.uid), Some(self.gid))?)
    }
}

/// The home directory that `/etc/passwd` tells for a user.
pub fn home(uid: Uid) -> Option<OsString> {
    let table = Path::new("/etc/passwd");
    let info = fs::metadata(table).ok()?;
    if !info.is_file() || info.len() > TABLE_BYTES {
        return None;
    }
    home_in(&fs::read(table).ok()?, uid)
}

/// name:password:uid:gid:comment:home:shell
fn home_in(table: &[u8], uid: Uid) -> Option<OsString> {
    let uid = uid.to_string();
    let mut lines = table.split(|byte| *byte == b'\n');
    lines.find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let found = fields.nth(2)? == uid.as_bytes();
        let home = fields.nth(2).filter(|home| home.starts_with(b"/"))?;
        found.then(|| OsString::from_vec(home.to_vec()))
    })
}

/// HOME as the runtime set it for root (hearth-init) is wrong for another user; one that the image or the template set
/// stays.
pub fn home_for(user: &User, inherited: Option<&OsString>) -> Option<OsString> {
    let root = || home(Uid::from_raw(0)).unwrap_or_else(|| "/root".into());
    let keep = inherited.is_some_and(|home| !home.as_bytes().is_empty() && *home != root());
    if user.uid.is_root() || keep {
        return None;
    }
    Some(home(user.uid).unwrap_or_else(|| "/".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_numbers() {
        let user = User::parse("1000:100,27,28").expect("a user");
        assert_eq!((user.uid.as_raw(), user.gid.as_raw()), (1000, 100));
        assert_eq!(user.groups, [Gid::from_raw(27), Gid::from_raw(28)]);
        assert_eq!(User::parse("0:0").map(|user| user.groups), Some(Vec::new()));
        for wrong in [
            "",
            "1000",
            "1000:",
            "a:1",
            "1:a",
            "-1:1",
            "4294967295:1",
            "1:1,",
            "1:1,x",
        ] {
            assert_eq!(User::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_home_is_the_sixth_field() {
        let table = b"root:x:0:0:root:/root:/bin/sh\nbad\nnode:x:1000:1000::/home/node:/bin/sh\nx:x:7:7::rel:\n";
        let of = |uid| home_in(table, Uid::from_raw(uid));
        assert_eq!(of(1000), Some("/home/node".into()));
        assert_eq!(of(0), Some("/root".into()));
        assert_eq!(of(7), None);
        assert_eq!(of(8), None);
    }
}
