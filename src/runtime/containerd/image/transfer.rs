//! Import and pull through containerd's Transfer service, which unpacks as it goes and asks the operator's image
//! verifier about pulls.
//!
//! ```text
//! archive file ── Data within the granted window ──▶ stream "import-…" ─┐
//!                                                                        ├─ Transfer(ImageImportStream → ImageStore)
//! ImageProgress ◀── "saved" names, pull's events ── stream "progress-…" ─┘
//! ```
//! Everything runs under one lease with an expiry: garbage collection spares what is not referred to yet, and what a
//! dead hearthd leaves behind goes by itself.

use std::{collections::BTreeMap, path::Path, pin::pin, time::Duration};

use containerd_client::{
    services::v1::{Image, StreamInit, TransferOptions, TransferRequest},
    types::{
        Platform,
        transfer::{
            Data, ImageImportStream, ImageReference, ImageStore, OciRegistry, Progress,
            UnpackConfiguration, WindowUpdate,
        },
    },
};
use prost_types::Any;
use tokio::{fs::File, io::AsyncReadExt, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    super::{
        client::{Call, CallError, Client, Reason, clip, leased},
        proto::{any, from_any},
    },
    naming,
    resolve::{lease, nonce, unlease},
};
use crate::runtime::{ImageProgress, RuntimeConfig, RuntimeError};

const STREAM: Call = Call::seconds("streaming.stream", 10);
/// The largest archive (8 GiB) at a tenth of the speed measured through the stream, and its unpacking.
const IMPORT: Call = Call::seconds("transfer.import", 3600);
/// A large image over a slow line.
const PULL: Call = Call::seconds("transfer.pull", 3600);
/// Longer than the transfer: the lease must not end under it.
const LEASE: Duration = Duration::from_secs(2 * 3600);
/// The rest of the progress, once the transfer has ended.
const DRAIN: Duration = Duration::from_secs(10);
/// One piece; containerd's own sender uses the same (`maxRead` in core/transfer/streaming).
const PIECE: usize = 32 << 10;
/// Between two reports of an import.
const REPORT_BYTES: u64 = 1 << 20;
/// Messages on their way into a stream.
const STREAM_QUEUE: usize = 4;
/// Images of one archive.
const IMAGES: usize = 256;

const WHAT_IMPORT: &str = "import";

pub(super) fn refused(detail: &str) -> RuntimeError {
    RuntimeError::Refused {
        what: WHAT_IMPORT,
        detail: clip(detail),
    }
}

fn platform() -> Platform {
    Platform {
        os: "linux".to_owned(),
        architecture: "amd64".to_owned(),
        ..Platform::default()
    }
}

/// Where images go: only our platform's content, unpacked.
fn store(config: &RuntimeConfig, name: &str, extra: Vec<ImageReference>) -> ImageStore {
    ImageStore {
        name: name.to_owned(),
        platforms: vec![platform()],
        extra_references: extra,
        unpacks: vec![UnpackConfiguration {
            platform: Some(platform()),
            snapshotter: config.snapshotter.clone(),
        }],
        ..ImageStore::default()
    }
}

/// One side stream of a transfer.
struct Side {
    id: String,
    into: mpsc::Sender<Any>,
    out: Streaming<Any>,
}

/// Opens and registers one.
async fn side(client: &Client, lease: &str, id: String) -> Result<Side, RuntimeError> {
    let (into, queue) = mpsc::channel(STREAM_QUEUE);
    let init = any(&StreamInit { id: id.clone() });
    // The queue has room for it.
    let _sent = into.try_send(init);
    let mut streaming = client.streaming();
    let opened = client.measure(STREAM, async {
        let queue = leased(ReceiverStream::new(queue), lease);
        let mut out = streaming.stream(queue).await?.into_inner();
        // The answer that says: registered.
        out.message().await?;
        Ok(out)
    });
    let out = opened.await?;
    Ok(Side { id, into, out })
}

/// An archive to be imported.
struct Archive {
    file: File,
    name: String,
    bytes: u64,
}

impl Archive {
    async fn open(path: &Path) -> Result<Self, RuntimeError> {
        let name = path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned();
        let wrong = |text: &str| refused(&format!("archive {name:?}: {text}"));
        let file = File::open(path)
            .await
            .map_err(|error| wrong(&error.to_string()))?;
        let about = file
            .metadata()
            .await
            .map_err(|error| wrong(&error.to_string()))?;
        if !about.is_file() {
            return Err(wrong("is no regular file"));
        }
        if about.len() == 0 {
            return Err(wrong("is empty"));
        }
        let bytes = about.len();
        Ok(Self { file, name, bytes })
    }
}

/// Imports an archive; the images it brought, as containerd has them now.
///
/// # Errors
/// `Refused`, naming what is wrong with the archive; those of calls.
pub(super) async fn import(
    client: &Client,
    config: &RuntimeConfig,
    archive: &Path,
    name: Option<&str>,
    progress: &mpsc::Sender<ImageProgress>,
) -> Result<Vec<Image>, RuntimeError> {
    if let Some(name) = name {
        naming::check(name)?;
    }
    let archive = Archive::open(archive).await?;
    let nonce = nonce();
    let lease_id = format!("hearth-import-{nonce}");
    let prefix = format!("import.hearth.local/{nonce}");
    lease(client, &lease_id, LEASE).await?;
    let file_name = archive.name.clone();
    let work = async {
        let saved = import_leased(client, config, archive, &lease_id, &prefix, progress).await?;
        naming::settle(client, saved, &prefix, name, &file_name).await
    };
    let images = work.await;
    unlease(client, &lease_id).await;
    images
}

/// The transfer itself; the names it saved.
async fn import_leased(
    client: &Client,
    config: &RuntimeConfig,
    archive: Archive,
    lease_id: &str,
    prefix: &str,
    progress: &mpsc::Sender<ImageProgress>,
) -> Result<Vec<String>, RuntimeError> {
    let data = side(client, lease_id, format!("import-{prefix}")).await?;
    let events = side(client, lease_id, format!("progress-{prefix}")).await?;
    // Names as `ctr images import` makes them: full ones stay; a bare tag and a nameless image get the prefix.
    let names = ImageReference {
        name: prefix.to_owned(),
        is_prefix: true,
        allow_overwrite: true,
        add_digest: true,
        skip_named_digest: true,
    };
    let source = ImageImportStream {
        stream: data.id.clone(),
        ..ImageImportStream::default()
    };
    let request = TransferRequest {
        source: Some(any(&source)),
        destination: Some(any(&store(config, "", vec![names]))),
        options: Some(TransferOptions {
            progress_stream: events.id.clone(),
        }),
    };
    let file_name = archive.name.clone();
    let feed = feed(archive, data, progress);
    let ended = run(
        client,
        IMPORT,
        leased(request, lease_id),
        events,
        feed,
        |_| {},
    )
    .await;
    ended.map_err(|error| match error.reason {
        Reason::Unreachable | Reason::Deadline => error.into(),
        Reason::NotFound | Reason::Exists | Reason::Precondition | Reason::Refused => {
            let said = error.detail();
            refused(&format!(
                "archive {file_name:?} is damaged or no image archive: {said}"
            ))
        }
    })
}

/// Pulls an image.
///
/// # Errors
/// `Refused` in containerd's words; those of calls.
pub(super) async fn pull(
    client: &Client,
    config: &RuntimeConfig,
    name: &str,
    progress: &mpsc::Sender<ImageProgress>,
) -> Result<(), RuntimeError> {
    naming::check(name)?;
    let nonce = nonce();
    let lease_id = format!("hearth-pull-{nonce}");
    lease(client, &lease_id, LEASE).await?;
    let work = async {
        let events = side(client, &lease_id, format!("progress-{nonce}")).await?;
        let source = OciRegistry {
            reference: name.to_owned(),
            resolver: None,
        };
        let request = TransferRequest {
            source: Some(any(&source)),
            destination: Some(any(&store(config, name, Vec::new()))),
            options: Some(TransferOptions {
                progress_stream: events.id.clone(),
            }),
        };
        let tell = |event: &Progress| report_pull(progress, event);
        let request = leased(request, &lease_id);
        run(client, PULL, request, events, std::future::pending(), tell).await?;
        Ok(())
    };
    let pulled = work.await;
    unlease(client, &lease_id).await;
    pulled
}

/// Runs one transfer with what belongs to it; the names it saved.
async fn run(
    client: &Client,
    call: Call,
    request: tonic::Request<TransferRequest>,
    events: Side,
    feed: impl Future<Output = ()>,
    tell: impl Fn(&Progress),
) -> Result<Vec<String>, CallError> {
    let mut door = client.transfer();
    let mut transfer = pin!(client.call(call, door.transfer(request)));
    let mut feed = pin!(feed);
    let mut drain = pin!(drain(events, tell));
    let (mut fed, mut saved) = (false, None);
    let ended = loop {
        tokio::select! {
            ended = &mut transfer => break ended,
            () = &mut feed, if !fed => fed = true,
            names = &mut drain, if saved.is_none() => saved = Some(names),
        }
    };
    ended?;
    match saved {
        Some(names) => Ok(names),
        // containerd closes the progress stream when the transfer has ended.
        None => Ok(timeout(DRAIN, drain).await.unwrap_or_default()),
    }
}

/// Sends the archive as containerd's windows allow.
async fn feed(archive: Archive, side: Side, progress: &mpsc::Sender<ImageProgress>) {
    let Side { into, mut out, .. } = side;
    send(archive, into, &mut out, progress).await;
    // Dropping the sender was the end of the archive; dropping this half too early would cancel what is still on its
    // way.
    while let Ok(Some(_)) = out.message().await {}
}

/// Returns at the archive's end, or when containerd wants no more of it: then the transfer tells why.
async fn send(
    mut archive: Archive,
    into: mpsc::Sender<Any>,
    out: &mut Streaming<Any>,
    progress: &mpsc::Sender<ImageProgress>,
) {
    let mut piece = vec![0; PIECE];
    let (mut window, mut sent, mut told) = (0usize, 0u64, 0u64);
    loop {
        while window == 0 {
            let Ok(Some(message)) = out.message().await else {
                return;
            };
            let update = from_any::<WindowUpdate>(&message).map(|update| update.update);
            window = update
                .and_then(|more| usize::try_from(more).ok())
                .unwrap_or(0);
        }
        let room = window.min(PIECE);
        let read = match archive.file.read(&mut piece[..room]).await {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(archive = archive.name, %error, "an archive cannot be read on");
                return;
            }
        };
        let stage = if read == 0 { "unpacking" } else { "importing" };
        sent = sent.saturating_add(read as u64);
        if read == 0 || sent - told >= REPORT_BYTES {
            told = sent;
            report(progress, stage, &archive.name, sent, archive.bytes);
        }
        if read == 0 {
            return;
        }
        window -= read;
        let data = Data {
            data: piece[..read].to_vec(),
        };
        if into.send(any(&data)).await.is_err() {
            return;
        }
    }
}

/// Reads the progress to its end; the names of images that were saved.
async fn drain(mut events: Side, tell: impl Fn(&Progress)) -> Vec<String> {
    let mut saved = BTreeMap::new();
    while let Ok(Some(message)) = events.out.message().await {
        let Some(event) = from_any::<Progress>(&message) else {
            continue;
        };
        tell(&event);
        if event.event == "saved" && saved.len() < IMAGES {
            saved.insert(event.name, ());
        }
    }
    saved.into_keys().collect()
}

/// A receiver that does not keep up misses a report, not the image.
fn report(
    progress: &mpsc::Sender<ImageProgress>,
    stage: &str,
    item: &str,
    bytes: u64,
    total_bytes: u64,
) {
    let _full_or_gone = progress.try_send(ImageProgress {
        stage: clip(stage),
        item: clip(item),
        bytes,
        total_bytes,
    });
}

fn report_pull(progress: &mpsc::Sender<ImageProgress>, event: &Progress) {
    let positive = |number: i64| u64::try_from(number).unwrap_or(0);
    let (bytes, total) = (positive(event.progress), positive(event.total));
    report(progress, &event.event, &event.name, bytes, total);
}
