//! What is mounted below some directories, as the calling thread sees it. For the adapters, and for `app` when it takes hearth
//! off a node from a thread that has gone to another mount namespace.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, umount2};

/// Mount points strictly below one of `dirs`, innermost first.
///
/// # Errors
/// The thread's `mountinfo` can't be read: then nothing is known, and nothing below may be removed.
pub fn below(dirs: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let points = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape);
    let ours = |point: &String| {
        let point = Path::new(point);
        let inside = |dir: &PathBuf| point.starts_with(dir) && point != dir;
        dirs.iter().any(inside)
    };
    let mut points: Vec<_> = points.filter(ours).map(PathBuf::from).collect();
    // Later mounts are on top of earlier ones.
    points.reverse();
    Ok(points)
}

/// Takes one down, lazily: what something still uses goes with its user.
pub(super) fn detach(point: &Path) -> io::Result<()> {
    let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    Ok(umount2(point, flags)?)
}

/// The kernel writes blanks and backslashes as octal numbers.
fn unescape(text: &str) -> String {
    let mut plain = text.to_owned();
    for (code, letter) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        plain = plain.replace(code, letter);
    }
    plain
}
