//! ReadFile, WriteFile, ListFiles: streams of files, at the pace of their readers.

use super::answers::{Answers, answers};
use super::bounds;
use super::check::piece;
use super::guest;
use super::incoming;
use super::sandboxes::Entered;
use crate::api::write_file_request::Request as Piece;
use crate::api::{FileEntry, FileKind, ListFilesResponse, ReadFileResponse, WriteFileRequest};
use crate::driver::{GuestError, GuestStream, StreamInput, StreamItem, guest_v1};
use crate::machine::ids::SandboxId;
use crate::machine::refusal::Refusal;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Streaming;

/// Permission bits that are told.
const MODE_MASK: u32 = 0o7777;

type Items = mpsc::Receiver<Result<StreamItem, GuestError>>;

/// The guest's next item; its silence is bounded.
async fn next(sandbox: SandboxId, items: &mut Items) -> Result<StreamItem, Refusal> {
    match timeout(bounds::FILE_PAUSE, items.recv()).await {
        Ok(Some(item)) => item.map_err(|error| guest::refusal(sandbox, error)),
        Ok(None) | Err(_) => Err(guest::unavailable(sandbox)),
    }
}

/// ReadFile: what the file is, then its content.
pub fn read(entered: Entered, stream: GuestStream) -> Answers<ReadFileResponse> {
    answers(|out| async move {
        let Entered {
            sandbox,
            place: _place,
            ..
        } = entered;
        // Its end would be the end of the call in some guests: kept.
        let GuestStream {
            input: _input,
            mut output,
        } = stream;
        let StreamItem::FileInfo { size_bytes, mode } = next(sandbox, &mut output).await? else {
            return Err(guest::unavailable(sandbox));
        };
        let info = ReadFileResponse {
            size_bytes,
            mode: mode & MODE_MASK,
            ..Default::default()
        };
        out.send(info).await;
        loop {
            match next(sandbox, &mut output).await? {
                StreamItem::Data { data, .. } => {
                    out.send(ReadFileResponse {
                        chunk: data,
                        ..Default::default()
                    })
                    .await;
                }
                StreamItem::Eof { .. } => {}
                StreamItem::Done => return Ok(()),
                StreamItem::Started { .. }
                | StreamItem::FileInfo { .. }
                | StreamItem::Connected
                | StreamItem::Exited { .. }
                | StreamItem::Written { .. }
                | StreamItem::Entries(_)
                | StreamItem::Run(_) => return Err(guest::unavailable(sandbox)),
            }
        }
    })
}

/// ListFiles.
pub fn list(entered: Entered, stream: GuestStream) -> Answers<ListFilesResponse> {
    answers(|out| async move {
        let Entered {
            sandbox,
            place: _place,
            ..
        } = entered;
        let GuestStream {
            input: _input,
            mut output,
        } = stream;
        loop {
            match next(sandbox, &mut output).await? {
                StreamItem::Entries(entries) => {
                    let entries = entries.into_iter().map(entry).collect();
                    out.send(ListFilesResponse { entries }).await;
                }
                StreamItem::Done => return Ok(()),
                StreamItem::Started { .. }
                | StreamItem::FileInfo { .. }
                | StreamItem::Connected
                | StreamItem::Data { .. }
                | StreamItem::Eof { .. }
                | StreamItem::Exited { .. }
                | StreamItem::Run(_)
                | StreamItem::Written { .. } => return Err(guest::unavailable(sandbox)),
            }
        }
    })
}

fn entry(found: guest_v1::Entry) -> FileEntry {
    let kind = match found.kind {
        1 => FileKind::File,
        2 => FileKind::Directory,
        3 => FileKind::Symlink,
        _ => FileKind::Other,
    };
    FileEntry {
        name: String::from_utf8_lossy(&found.name).into_owned(),
        kind: kind.into(),
        size_bytes: found.size_bytes,
        mode: found.mode & MODE_MASK,
        modified_unix_seconds: found.modified_unix_seconds,
    }
}

/// WriteFile; how many bytes. The client's `eof` makes the file appear; without it the call in the guest is cancelled, and
/// nothing appears.
pub async fn write(
    entered: &Entered,
    stream: GuestStream,
    mut requests: Streaming<WriteFileRequest>,
) -> Result<u64, Refusal> {
    let GuestStream { input, mut output } = stream;
    let feed = async {
        while let Some(request) = incoming::next(
            &mut requests,
            bounds::UPLOAD_PAUSE,
            "the bound for a pause of the upload",
        )
        .await?
        {
            let data = match request.request {
                Some(Piece::Chunk(data)) => piece("chunk", data)?,
                Some(Piece::Start(_)) => return Err(incoming::not_started("another followed")),
                Some(Piece::Eof(_)) => {
                    return send(entered.sandbox, &input, StreamInput::Eof).await;
                }
                None => continue,
            };
            send(entered.sandbox, &input, StreamInput::Data(data)).await?;
        }
        // tonic tells a reset by a dying caller as the end of its stream: only the caller's own word makes a file whole.
        Err(Refusal::InvalidArgument(vec![(
            "eof".into(),
            "the stream ended without it; nothing was written".into(),
        )]))
    };
    // A guest that fails on the way is heard at once, not after the last piece.
    tokio::select! {
        biased;
        item = output.recv() => return written(entered.sandbox, item),
        fed = feed => match fed {
            Ok(()) => {}
            // A guest that has closed its ear has said why.
            Err(refusal @ Refusal::GuestUnavailable { .. }) => return match output.try_recv() {
                Ok(item) => written(entered.sandbox, Some(item)),
                Err(_) => Err(refusal),
            },
            Err(refusal) => return Err(refusal),
        },
    }
    let item = next(entered.sandbox, &mut output).await?;
    written(entered.sandbox, Some(Ok(item)))
}

async fn send(
    sandbox: SandboxId,
    input: &mpsc::Sender<StreamInput>,
    message: StreamInput,
) -> Result<(), Refusal> {
    match timeout(bounds::FILE_PAUSE, input.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(guest::unavailable(sandbox)),
    }
}

fn written(
    sandbox: SandboxId,
    item: Option<Result<StreamItem, GuestError>>,
) -> Result<u64, Refusal> {
    match item {
        Some(Ok(StreamItem::Written { size_bytes })) => Ok(size_bytes),
        Some(Err(error)) => Err(guest::refusal(sandbox, error)),
        Some(Ok(_)) | None => Err(guest::unavailable(sandbox)),
    }
}
