//! Reading small files of an image that may be hostile.
//!
//! The image's layers are mounted, read-only, in a mount namespace that belongs to one short-lived thread: no other
//! process sees the mount, and it is gone with the thread, however hearthd ends. Paths are resolved inside the image
//! (`openat2` with RESOLVE_IN_ROOT), so that a link can't lead out; what is no regular file is not read.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use containerd_client::types::Mount;
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::stat::Mode,
    unistd::chdir,
};

/// The largest file that is read.
const FILE_BYTES: u64 = 1 << 20;

/// Reads `files` (relative paths) of what `mounts` describe; one that does not exist is empty. `place` is an empty
/// directory to mount on. Blocks for the time of a mount: not for an async thread.
///
/// # Errors
/// Those of the system; `InvalidData` for a file that is none, or too large.
pub(super) fn read_files(
    mounts: Vec<Mount>,
    place: PathBuf,
    files: &'static [&'static str],
) -> io::Result<Vec<String>> {
    let work = move || {
        // A thread's own mount namespace (and working directory), private, so that nothing reaches the others.
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )?;
        let [only] = mounts.as_slice() else {
            let text = format!("{} mounts where one was expected", mounts.len());
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        };
        mount_one(only, &place)?;
        let root = open(
            &place,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        files.iter().map(|path| read_inside(&root, path)).collect()
    };
    let thread = std::thread::Builder::new()
        .name("image-view".to_owned())
        .spawn(work)?;
    let died = |_| io::Error::other("the thread that reads the image died");
    thread.join().map_err(died)?
}

const SAFE: MsFlags = MsFlags::MS_RDONLY
    .union(MsFlags::MS_NOSUID)
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// A mount as the snapshotter describes it.
fn mount_one(what: &Mount, place: &Path) -> io::Result<()> {
    if what
        .options
        .iter()
        .any(|option| option == "bind" || option == "rbind")
    {
        let source = Some(what.source.as_str());
        mount(source, place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        let flags = SAFE | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        mount(None::<&str>, place, None::<&str>, flags, None::<&str>)?;
        return Ok(());
    }
    let data = what
        .options
        .iter()
        .filter(|option| *option != "ro" && *option != "rw");
    let data = data
        .map(|option| shorten(option))
        .collect::<io::Result<Vec<_>>>()?
        .join(",");
    mount(
        Some(what.source.as_str()),
        place,
        Some(what.r#type.as_str()),
        SAFE,
        Some(data.as_str()),
    )?;
    Ok(())
}

/// The kernel takes one page of options, which an image of some sixty layers exceeds: the layers' common directory
/// becomes the thread's working directory, and their paths relative (containerd's own mount does the same).
fn shorten(option: &str) -> io::Result<String> {
    let Some(list) = option.strip_prefix("lowerdir=") else {
        return Ok(option.to_owned());
    };
    let paths: Vec<_> = list.split(':').collect();
    let first = paths.first().copied().unwrap_or_default();
    let shared = first.match_indices('/').map(|(at, _)| &first[..=at]);
    let mut shared = shared.filter(|prefix| paths.iter().all(|path| path.starts_with(prefix)));
    let Some(shared) = shared.next_back().filter(|shared| shared.len() > 1) else {
        return Ok(option.to_owned());
    };
    chdir(shared)?;
    let relative: Vec<_> = paths.iter().map(|path| &path[shared.len()..]).collect();
    Ok(format!("lowerdir={}", relative.join(":")))
}

fn read_inside(root: impl AsFd, path: &str) -> io::Result<String> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = match openat2(root, path, how) {
        Ok(file) => File::from(file),
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(String::new()),
        Err(error) => return Err(io::Error::other(format!("/{path} in the image: {error}"))),
    };
    let wrong = |text: &str| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("/{path} in the image {text}"),
        )
    };
    if !file.metadata()?.is_file() {
        return Err(wrong("is no regular file"));
    }
    let mut text = Vec::new();
    file.take(FILE_BYTES + 1).read_to_end(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|length| length > FILE_BYTES) {
        return Err(wrong("is larger than 1 MiB"));
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::symlink;

    /// The image's directory, bind-mounted as a one-layer snapshot is.
    fn read(image: &Path) -> io::Result<Vec<String>> {
        let place = tempfile::tempdir().unwrap();
        let mounts = vec![Mount {
            r#type: "bind".to_owned(),
            source: image.display().to_string(),
            target: String::new(),
            options: vec!["ro".to_owned(), "rbind".to_owned()],
        }];
        let read = read_files(
            mounts,
            place.path().to_owned(),
            &["etc/passwd", "etc/group"],
        );
        let seen = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(
            !seen.contains(place.path().to_str().unwrap()),
            "the mount is visible outside"
        );
        read
    }

    #[test]
    fn links_stay_inside_and_only_regular_files_of_bounded_size_are_read() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        let image = tempfile::tempdir().unwrap();
        let etc = image.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        let passwd = etc.join("passwd");
        assert_eq!(read(image.path()).unwrap(), ["", ""], "none there");

        std::fs::write(etc.join("real"), "app").unwrap();
        symlink("/etc/real", &passwd).unwrap();
        assert_eq!(
            read(image.path()).unwrap(),
            ["app", ""],
            "an absolute link, inside"
        );
        for target in [
            outside.path().join("secret"),
            "../../../../../../etc/hostname".into(),
            "/proc/self/environ".into(),
        ] {
            std::fs::remove_file(&passwd).unwrap();
            symlink(&target, &passwd).unwrap();
            assert_eq!(read(image.path()).unwrap(), ["", ""], "{target:?}");
        }
        std::fs::remove_file(&passwd).unwrap();
        nix::unistd::mkfifo(&passwd, Mode::S_IRWXU).unwrap();
        assert!(
            read(image.path())
                .unwrap_err()
                .to_string()
                .contains("no regular file")
        );
        std::fs::remove_file(&passwd).unwrap();
        std::fs::write(&passwd, vec![b'x'; (1 << 20) + 1]).unwrap();
        assert!(
            read(image.path())
                .unwrap_err()
                .to_string()
                .contains("larger")
        );
    }

    #[test]
    fn an_overlay_of_many_layers_is_read_through_its_top() {
        let dir = tempfile::tempdir().unwrap();
        let mut layers = Vec::new();
        for n in 0..200 {
            let layer = dir
                .path()
                .join(format!("a-rather-long-name-of-a-layer-{n:03}/fs"));
            std::fs::create_dir_all(layer.join("etc")).unwrap();
            std::fs::write(layer.join("etc/passwd"), n.to_string()).unwrap();
            layers.push(layer.display().to_string());
        }
        // About 60 paths of 70 bytes fill a page; relative ones leave room for a little more.
        layers.truncate(90);
        let mounts = vec![Mount {
            r#type: "overlay".to_owned(),
            source: "overlay".to_owned(),
            target: String::new(),
            options: vec!["ro".to_owned(), format!("lowerdir={}", layers.join(":"))],
        }];
        assert!(mounts[0].options[1].len() > 4096);
        let place = tempfile::tempdir().unwrap();
        let read = read_files(mounts, place.path().to_owned(), &["etc/passwd"]).unwrap();
        assert_eq!(read, ["0"]);
    }
}
