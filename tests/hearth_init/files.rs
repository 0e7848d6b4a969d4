//! Files as streams.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    time::Duration,
};

use hearth::guest::v1::{
    Entry, FailureKind, FileInfo, ListFiles, ReadFile, WriteFile, guest_message::Body as Answer,
    host_message::Body as Ask,
};
use nix::{sys::stat::Mode, unistd::mkfifo};

use crate::guest::{Guest, Host};

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn read(host: &mut Host, path: &Path, offset: u64, limit: u64) -> (FileInfo, Vec<u8>) {
    let path = text(path);
    let id = host.ask(Ask::ReadFile(ReadFile {
        path,
        offset,
        limit,
    }));
    let info = match host.next(id) {
        Answer::FileInfo(info) => info,
        other => panic!("{other:?}"),
    };
    let mut content = Vec::new();
    loop {
        match host.next(id) {
            Answer::Output(output) => {
                content.extend_from_slice(&output.data);
                if output.eof {
                    return (info, content);
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

fn write(host: &mut Host, path: &Path, mode: u32, content: &[u8]) -> Answer {
    let path = text(path);
    let id = host.ask(Ask::WriteFile(WriteFile {
        path,
        mode,
        parents: true,
    }));
    let mut credit = hearth::guest::wire::FIRST_CREDIT;
    let mut pieces = content.chunks(8 << 10).peekable();
    loop {
        while let Some(piece) = pieces.next_if(|piece| piece.len() <= credit) {
            credit -= piece.len();
            host.input(id, piece, false);
        }
        if pieces.peek().is_none() {
            host.input(id, b"", true);
        }
        match host.next(id) {
            Answer::Credit(more) => credit += usize::try_from(more.bytes).unwrap(),
            last => return last,
        }
        if pieces.peek().is_none() {
            loop {
                match host.next(id) {
                    Answer::Credit(_) => {}
                    last => return last,
                }
            }
        }
    }
}

#[test]
fn written_and_read_back() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let mut content = vec![0; 300_000];
    getrandom::fill(&mut content).unwrap();
    let path = guest.fifos.path("a/b/c");
    match write(&mut host, &path, 0o751, &content) {
        Answer::Written(written) => assert_eq!(written.size_bytes, 300_000),
        other => panic!("{other:?}"),
    }
    assert!(fs::read(&path).unwrap() == content);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o751
    );
    let (info, whole) = read(&mut host, &path, 0, 0);
    assert!(whole == content);
    assert_eq!((info.size_bytes, info.mode), (300_000, 0o751));
    let (info, part) = read(&mut host, &path, 299_000, 500);
    assert!(part == content[299_000..299_500] && info.size_bytes == 300_000);
    assert_eq!(read(&mut host, &path, 400_000, 0).1, b"");
    // Empty, and over an existing one, through a symlink that stays.
    let link = guest.fifos.path("link");
    symlink(&path, &link).unwrap();
    assert!(matches!(
        write(&mut host, &link, 0, b""),
        Answer::Written(_)
    ));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&path).unwrap(), b"");
    assert_eq!(
        fs::read_dir(path.parent().unwrap()).unwrap().count(),
        1,
        "nothing temporary"
    );
}

#[test]
fn a_file_appears_whole_or_not_at_all() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let path = guest.fifos.path("file");
    fs::write(&path, "before").unwrap();
    let ask = WriteFile {
        path: text(&path),
        mode: 0,
        parents: false,
    };
    let id = host.ask(Ask::WriteFile(ask));
    host.input(id, b"half", false);
    host.ping();
    assert_eq!(fs::read(&path).unwrap(), b"before");
    host.say(id, Ask::Cancel(hearth::guest::v1::Cancel {}));
    host.ping();
    assert_eq!(fs::read(&path).unwrap(), b"before");
    let left: Vec<_> = fs::read_dir(guest.fifos.dir.path()).unwrap().collect();
    assert_eq!(left.len(), 4, "{left:?}");
}

#[test]
fn what_is_no_file_is_refused_or_streamed_but_never_waited_for() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let fifo = guest.fifos.path("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let dir = guest.fifos.dir.path().to_owned();
    let loops = guest.fifos.path("loop");
    symlink(&loops, &loops).unwrap();
    use FailureKind::{Invalid, Limit, NotFound};
    for (path, kind) in [
        (text(&dir), Invalid),
        (text(&fifo), Invalid),
        ("/dev/null".into(), Invalid),
        ("relative".into(), Invalid),
        ("/nul\0".into(), Invalid),
        (text(&loops), Invalid),
        (format!("/{}", "x".repeat(5000)), Limit),
        ("/no/such/dir/file".into(), NotFound),
        ("/".into(), Invalid),
    ] {
        let failure = host.failure(Ask::WriteFile(WriteFile {
            path: path.clone(),
            mode: 0,
            parents: false,
        }));
        assert_eq!(failure.kind(), kind, "write {path:?}: {failure:?}");
    }
    for (path, kind) in [
        (text(&dir), Invalid),
        ("relative".into(), Invalid),
        ("/no/such".into(), NotFound),
        (text(&loops), Invalid),
    ] {
        let ask = ReadFile {
            path: path.clone(),
            offset: 0,
            limit: 0,
        };
        let failure = host.failure(Ask::ReadFile(ask));
        assert_eq!(failure.kind(), kind, "read {path:?}: {failure:?}");
    }
    // A FIFO whose writer is silent: the call waits, and nobody else does.
    let writer = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&fifo)
        .unwrap();
    let id = host.ask(Ask::ReadFile(ReadFile {
        path: text(&fifo),
        offset: 0,
        limit: 0,
    }));
    assert!(matches!(host.next(id), Answer::FileInfo(_)));
    host.ping();
    use std::io::Write;
    (&writer).write_all(b"now").unwrap();
    assert!(matches!(host.next(id), Answer::Output(output) if output.data == "now"));
    // One without an end is bounded by credit.
    host.generous = false;
    let ask = ReadFile {
        path: "/dev/zero".into(),
        offset: 0,
        limit: 0,
    };
    let endless = host.ask(Ask::ReadFile(ask));
    assert!(matches!(host.next(endless), Answer::FileInfo(_)));
    let mut bytes = 0;
    while let Some(Answer::Output(output)) = host.next_within(endless, Duration::from_millis(100)) {
        bytes += output.data.len();
    }
    assert_eq!(bytes, 64 << 10);
    host.say(endless, Ask::Cancel(hearth::guest::v1::Cancel {}));
    host.generous = true;
    // A limit ends it; size 0 says nothing about a file of /proc.
    assert_eq!(
        read(&mut host, Path::new("/dev/zero"), 0, 100_000).1,
        vec![0; 100_000]
    );
    assert!(
        !read(&mut host, Path::new("/proc/self/status"), 0, 0)
            .1
            .is_empty()
    );
}

fn list(host: &mut Host, path: &Path) -> Vec<Entry> {
    let id = host.ask(Ask::ListFiles(ListFiles { path: text(path) }));
    let mut entries = Vec::new();
    loop {
        match host.next(id) {
            Answer::Entries(page) => {
                let cost = |entry: &Entry| entry.name.len() + hearth::guest::wire::ENTRY_CREDIT;
                let bytes = page.entries.iter().map(cost).sum();
                entries.extend(page.entries);
                if page.done {
                    return entries;
                }
                host.grant(id, bytes);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn directories_are_listed() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let dir = guest.fifos.path("dir");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("file"), "12345").unwrap();
    symlink("nowhere", dir.join("link")).unwrap();
    mkfifo(&dir.join("fifo"), Mode::S_IRWXU).unwrap();
    let mut found = list(&mut host, &dir);
    found.sort_by(|one, other| one.name.cmp(&other.name));
    let seen: Vec<_> = found
        .iter()
        .map(|entry| (&entry.name[..], entry.kind))
        .collect();
    assert_eq!(
        seen,
        [(&b"fifo"[..], 4), (b"file", 1), (b"link", 3), (b"sub", 2)]
    );
    assert_eq!((found[1].size_bytes, found[1].mode), (5, 0o644));
    assert!(found[1].modified_unix_seconds > 1_700_000_000);
    assert_eq!(list(&mut host, &dir.join("sub")), []);
    for path in [dir.join("file"), dir.join("fifo")] {
        let failure = host.failure(Ask::ListFiles(ListFiles { path: text(&path) }));
        assert_eq!(failure.kind(), FailureKind::Invalid, "{failure:?}");
    }
    let failure = host.failure(Ask::ListFiles(ListFiles {
        path: "/no/such".into(),
    }));
    assert_eq!(failure.kind(), FailureKind::NotFound);
    // More than the credit at once.
    for at in 0..3000 {
        fs::write(dir.join("sub").join(format!("{at:0200}")), "").unwrap();
    }
    let mut names: Vec<_> = list(&mut host, &dir.join("sub"))
        .into_iter()
        .map(|e| e.name)
        .collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3000);
}

#[test]
fn files_belong_to_the_user() {
    use std::os::unix::fs::MetadataExt;
    let guest = Guest::plain(&["--user", "12345:54321"]);
    let mut host = guest.host();
    let path = guest.fifos.path("made/file");
    assert!(matches!(
        write(&mut host, &path, 0o600, b"x"),
        Answer::Written(_)
    ));
    for path in [&path, path.parent().unwrap()] {
        let info = fs::metadata(path).unwrap();
        assert_eq!(
            (info.uid(), info.gid()),
            (12345, 54321),
            "{}",
            path.display()
        );
    }
}
