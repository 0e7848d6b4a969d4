//! From here into a sandbox.

use super::{CHUNK, DEPTH, Tally, join, list};
use crate::failure::{Exit, Failure};
use crate::link::Link;
use crate::parse::Place;
use crate::progress;
use hearth::api::write_file_request::Request as Piece;
use hearth::api::{WriteFileRequest, WriteFileStart};
use indicatif::ProgressBar;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Messages on their way; then reading waits.
const QUEUE: usize = 8;

/// Copies a file, a directory or stdin into the sandbox.
pub async fn copy(
    link: &Link,
    from: Place,
    claim: &str,
    path: &str,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let Place::Local(from) = from else {
        let mut stdin = tokio::io::stdin();
        let start = start(claim, path, 0, false);
        let bar = progress::of_bytes(path, None);
        return write(link, start, &mut stdin, "stdin", &bar, tally).await;
    };
    let label = from.display().to_string();
    let found = tokio::fs::metadata(&from)
        .await
        .map_err(|error| Failure::local(&label, &error))?;
    // As cp: into a directory that is there already, or that the slash says.
    let target = match from.file_name().and_then(|name| name.to_str()) {
        Some(name) if path.ends_with('/') || list(link, claim, path).await?.is_some() => {
            join(path, name)
        }
        _ => path.to_owned(),
    };
    if found.is_dir() {
        return tree(link, from, claim, target, tally).await;
    }
    file(link, &from, claim, &target, path.ends_with('/'), tally).await
}

async fn tree(
    link: &Link,
    from: PathBuf,
    claim: &str,
    target: String,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let mut left = vec![(from, target, 0)];
    while let Some((here, inside, depth)) = left.pop() {
        let label = here.display().to_string();
        let broken = |error: std::io::Error| Failure::local(&label, &error);
        if depth > DEPTH {
            return Err(Failure::new(Exit::Refused, format!("{label} is too deep")));
        }
        let mut entries = tokio::fs::read_dir(&here).await.map_err(broken)?;
        let mut empty = true;
        while let Some(entry) = entries.next_entry().await.map_err(broken)? {
            empty = false;
            let path = entry.path();
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                tally.skip(&path.display().to_string(), "its name is not UTF-8");
                continue;
            };
            let kind = entry.file_type().await.map_err(broken)?;
            if kind.is_dir() {
                left.push((path, join(&inside, &name), depth + 1));
            } else if kind.is_file() {
                tally.check()?;
                file(link, &path, claim, &join(&inside, &name), true, tally).await?;
            } else {
                let why = if kind.is_symlink() {
                    "a symbolic link"
                } else {
                    "not a file"
                };
                tally.skip(&path.display().to_string(), why);
            }
        }
        if empty {
            tally.skip(&label, "an empty directory");
        }
    }
    Ok(())
}

async fn file(
    link: &Link,
    from: &Path,
    claim: &str,
    path: &str,
    parents: bool,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let label = from.display().to_string();
    let broken = |error: std::io::Error| Failure::local(&label, &error);
    let mut source = tokio::fs::File::open(from).await.map_err(broken)?;
    let found = source.metadata().await.map_err(broken)?;
    let start = start(claim, path, found.permissions().mode() & 0o777, parents);
    let bar = progress::of_bytes(&label, found.is_file().then_some(found.len()));
    write(link, start, &mut source, &label, &bar, tally).await
}

fn start(claim: &str, path: &str, mode: u32, parents: bool) -> WriteFileStart {
    WriteFileStart {
        claim_id: claim.to_owned(),
        path: path.to_owned(),
        mode,
        parents,
    }
}

/// One file. It appears inside once its `eof` is sent: a source that breaks leaves nothing there.
async fn write(
    link: &Link,
    start: WriteFileStart,
    source: &mut (impl AsyncRead + Unpin),
    label: &str,
    bar: &ProgressBar,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let (sender, queue) = mpsc::channel(QUEUE);
    let mut client = link.sandboxes();
    let mut call = Box::pin(client.write_file(link.stream(ReceiverStream::new(queue))));
    let sent = tokio::select! {
        answer = &mut call => return finish(answer, bar, tally),
        sent = send(&sender, start, source, bar) => sent,
    };
    drop(sender);
    let answer = call.await;
    if let Err(error) = sent {
        bar.finish_and_clear();
        return Err(Failure::local(label, &error));
    }
    finish(answer, bar, tally)
}

fn finish(
    answer: Result<tonic::Response<hearth::api::WriteFileResponse>, tonic::Status>,
    bar: &ProgressBar,
    tally: &mut Tally,
) -> Result<(), Failure> {
    bar.finish_and_clear();
    tally.bytes += answer?.into_inner().size_bytes;
    tally.files += 1;
    Ok(())
}

async fn send(
    sender: &mpsc::Sender<WriteFileRequest>,
    start: WriteFileStart,
    source: &mut (impl AsyncRead + Unpin),
    bar: &ProgressBar,
) -> std::io::Result<()> {
    let mut piece = Piece::Start(start);
    loop {
        let request = WriteFileRequest {
            request: Some(piece),
        };
        let last = matches!(request.request, Some(Piece::Eof(_)));
        // Closed: hearthd has answered; the answer tells why. Wait for it.
        if sender.send(request).await.is_err() || last {
            return Ok(());
        }
        let mut chunk = bytes::BytesMut::with_capacity(CHUNK);
        let more = source.read_buf(&mut chunk).await? > 0;
        bar.inc(chunk.len() as u64);
        piece = if more {
            Piece::Chunk(chunk.freeze())
        } else {
            Piece::Eof(true)
        };
    }
}
