//! From a sandbox to here.

use super::{CHUNK, DEPTH, Tally, join, list, plain};
use crate::failure::{Exit, Failure};
use crate::link::Link;
use crate::parse::Place;
use crate::progress;
use hearth::api::{FileKind, ReadFileRequest, ReadFileResponse};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tonic::Streaming;

/// Copies a file or directory of the sandbox.
pub async fn copy(
    link: &Link,
    claim: &str,
    path: &str,
    to: Place,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let Place::Local(to) = to else {
        return to_stdout(link, claim, path).await;
    };
    let base = path
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    // As cp: into a directory that is there already.
    let target = match tokio::fs::metadata(&to).await {
        Ok(found) if found.is_dir() && plain(base) => to.join(base),
        _ => to.clone(),
    };
    match list(link, claim, path).await? {
        None => file(link, claim, path, &target, tally).await,
        Some(_) => tree(link, claim, path, target, tally).await,
    }
}

async fn to_stdout(link: &Link, claim: &str, path: &str) -> Result<(), Failure> {
    let (first, answers) = open(link, claim, path).await?;
    let mut out = tokio::io::stdout();
    pour(first, answers, &mut out, |_| {}).await?;
    Ok(())
}

/// Walks with a list of its own: no recursion as deep as a guest likes.
async fn tree(
    link: &Link,
    claim: &str,
    path: &str,
    target: PathBuf,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let mut left = vec![(path.to_owned(), target, 0)];
    while let Some((path, target, depth)) = left.pop() {
        if depth > DEPTH {
            return Err(Failure::new(Exit::Refused, format!("{path} is too deep")));
        }
        tokio::fs::create_dir_all(&target)
            .await
            .map_err(|error| Failure::local(target.display().to_string(), &error))?;
        for entry in list(link, claim, &path).await?.unwrap_or_default() {
            let inside = join(&path, &entry.name);
            if !plain(&entry.name) {
                tally.skip(&inside, "its name is not one that can be used here");
                continue;
            }
            let here = target.join(&entry.name);
            match entry.kind() {
                FileKind::Directory => left.push((inside, here, depth + 1)),
                FileKind::File => {
                    tally.check()?;
                    file(link, claim, &inside, &here, tally).await?;
                }
                FileKind::Symlink => tally.skip(&inside, "a symbolic link"),
                FileKind::Other | FileKind::Unspecified => tally.skip(&inside, "not a file"),
            }
        }
    }
    Ok(())
}

type Opened = (ReadFileResponse, Streaming<ReadFileResponse>);

async fn open(link: &Link, claim: &str, path: &str) -> Result<Opened, Failure> {
    let request = link.stream(ReadFileRequest {
        claim_id: claim.to_owned(),
        path: path.to_owned(),
        offset: 0,
        limit: 0,
    });
    let mut client = link.sandboxes();
    let opening = async {
        let mut answers = client.read_file(request).await?.into_inner();
        let first = answers.message().await?.unwrap_or_default();
        Ok::<_, tonic::Status>((first, answers))
    };
    match tokio::time::timeout(crate::link::CALL_DEADLINE, opening).await {
        Ok(opened) => Ok(opened?),
        Err(_) => Err(Failure::new(
            Exit::Retry,
            format!("reading {path} took too long"),
        )),
    }
}

/// Writes all pieces; how many bytes.
async fn pour(
    first: ReadFileResponse,
    mut answers: Streaming<ReadFileResponse>,
    out: &mut (impl AsyncWrite + Unpin),
    mut moved: impl FnMut(u64),
) -> Result<u64, Failure> {
    let mut bytes = 0;
    let mut next = Some(first);
    while let Some(answer) = next {
        out.write_all(&answer.chunk).await?;
        bytes += answer.chunk.len() as u64;
        moved(answer.chunk.len() as u64);
        next = answers.message().await?;
    }
    out.flush().await?;
    Ok(bytes)
}

/// One file: beside its place first, then renamed. What is there and no plain file (/dev/null) is written into.
async fn file(
    link: &Link,
    claim: &str,
    path: &str,
    target: &Path,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let (first, answers) = open(link, claim, path).await?;
    let label = target.display().to_string();
    let broken = |error: std::io::Error| Failure::local(&label, &error);
    let bar = progress::of_bytes(&label, (first.size_bytes > 0).then_some(first.size_bytes));
    let special = tokio::fs::metadata(target)
        .await
        .is_ok_and(|found| !found.is_file());
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let written_to = match special {
        true => target.to_owned(),
        false => target.with_file_name(format!(".{name}.{}.part", std::process::id())),
    };
    let mode = first.mode & 0o777;
    let mut options = tokio::fs::OpenOptions::new();
    options
        .write(true)
        .create(!special)
        .truncate(!special)
        .mode(0o600);
    let out = options.open(&written_to).await.map_err(broken)?;
    let mut out = tokio::io::BufWriter::with_capacity(CHUNK, out);
    let poured = pour(first, answers, &mut out, |bytes| bar.inc(bytes)).await;
    bar.finish_and_clear();
    if special {
        tally.bytes += poured?;
        tally.files += 1;
        return Ok(());
    }
    let finished = match poured {
        Ok(bytes) => settle(&written_to, target, mode)
            .await
            .map(|()| bytes)
            .map_err(broken),
        Err(failure) => Err(failure),
    };
    if finished.is_err() {
        // The part is of no use; that it may stay is told by its name.
        let _ = tokio::fs::remove_file(&written_to).await;
    }
    tally.bytes += finished?;
    tally.files += 1;
    Ok(())
}

async fn settle(part: &Path, target: &Path, mode: u32) -> std::io::Result<()> {
    let mode = if mode == 0 { 0o644 } else { mode };
    tokio::fs::set_permissions(part, std::fs::Permissions::from_mode(mode)).await?;
    tokio::fs::rename(part, target).await
}
