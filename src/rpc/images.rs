//! Images: import, pull, and which pools name them.

use super::answers::{Answers, Out, answers};
use super::archive::Archive;
use super::bounds;
use super::check;
use super::core::Core;
use super::incoming;
use super::places::{Kind, Open};
use crate::api::{Image, ImportImageRequest, ImportImageResponse, PoolView, PullImageResponse};
use crate::driver::{ImageInfo, ImageProgress};
use crate::identity::Trail;
use crate::machine::refusal::Refusal;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use tonic::Streaming;

/// Progress that waits for the client to read; then the transfer waits.
const PROGRESS: usize = 16;
/// "received" is told each time so many bytes have come.
const TELL_EVERY_BYTES: u64 = 4 << 20;

/// Pools whose template names the image.
fn pools_with(pools: &[PoolView], image: &str) -> Vec<String> {
    let declared = pools.iter().filter_map(|view| view.pool.as_ref());
    let naming = declared.filter(|pool| {
        pool.template
            .as_ref()
            .is_some_and(|template| template.image == image)
    });
    naming.map(|pool| pool.name.clone()).collect()
}

/// Images with the pools that name them.
pub async fn named(core: &Core, found: Vec<ImageInfo>) -> Result<Vec<Image>, Refusal> {
    let (_, pools) = super::pools::read(core, false).await?;
    let image = |info: ImageInfo| Image {
        pools: pools_with(&pools, &info.name),
        name: info.name,
        digest: info.digest,
        size_bytes: info.size_bytes,
    };
    Ok(found.into_iter().map(image).collect())
}

/// Room for one transfer.
fn place(core: &Core, kind: Kind) -> Result<(OwnedSemaphorePermit, Open), Refusal> {
    let permit = Arc::clone(&core.transfers).try_acquire_owned();
    let full = Refusal::QueueFull {
        queue: "imports",
        retry_ms: bounds::STREAM_RETRY_MS,
    };
    let permit = permit.map_err(|_| full)?;
    Ok((permit, Open::count(&core.metrics, kind)))
}

/// Runs `work`, telling its progress as `response` shows it.
async fn told<T, R>(
    work: impl Future<Output = Result<T, Refusal>>,
    mut progress: mpsc::Receiver<ImageProgress>,
    out: &Out<R>,
    response: fn(ImageProgress) -> R,
) -> Result<T, Refusal> {
    let mut work = std::pin::pin!(timeout(bounds::IMAGE_BOUND, work));
    loop {
        tokio::select! {
            biased;
            Some(step) = progress.recv() => out.send(response(step)).await,
            done = &mut work => {
                return done.unwrap_or(Err(Refusal::DeadlineExceeded { what: "hearth's bound for an image" }));
            }
        }
    }
}

/// PullImage.
pub fn pull(core: Arc<Core>, name: String) -> Result<Answers<PullImageResponse>, Refusal> {
    let place = place(&core, Kind::PullImage)?;
    Ok(answers(|out| async move {
        let _place = place;
        let (sender, progress) = mpsc::channel(PROGRESS);
        let pulled = told(
            core.door.pull_image(&name, sender),
            progress,
            &out,
            |step| PullImageResponse {
                stage: step.stage,
                item: step.item,
                bytes: step.bytes,
                total_bytes: step.total_bytes,
                image: None,
            },
        );
        let image = named(&core, vec![pulled.await?]).await?.pop();
        out.send(PullImageResponse {
            stage: "done".to_owned(),
            image,
            ..Default::default()
        })
        .await;
        Ok(())
    }))
}

/// ImportImage. Its first message names the image, so it is read before the answer begins.
pub async fn import(
    core: Arc<Core>,
    mut pieces: Streaming<ImportImageRequest>,
    trail: Trail,
) -> Result<Answers<ImportImageResponse>, Refusal> {
    let place = place(&core, Kind::ImportImage)?;
    let first = next(&mut pieces).await?;
    let Some(first) = first else {
        return Err(Refusal::InvalidArgument(vec![(
            "chunk".to_owned(),
            "the archive is empty".to_owned(),
        )]));
    };
    let name = check::archive_name(&first.name)?;
    if let Some(name) = &name {
        trail.about(format!("image {name}"));
    }
    Ok(answers(|out| async move {
        let _place = place;
        let archive = receive(&core, first, pieces, &out).await?;
        let received = archive.bytes();
        // Removed when this function ends or is dropped.
        let archive = archive.finish().await?;
        let (sender, progress) = mpsc::channel(PROGRESS);
        let work = core
            .door
            .import_image(archive.path(), name.as_deref(), sender);
        let imported = told(work, progress, &out, |step| step_of(step.stage, step.bytes));
        let images = named(&core, imported.await?).await?;
        out.send(ImportImageResponse {
            stage: "done".to_owned(),
            bytes: received,
            images,
        })
        .await;
        Ok(())
    }))
}

fn step_of(stage: String, bytes: u64) -> ImportImageResponse {
    ImportImageResponse {
        stage,
        bytes,
        images: Vec::new(),
    }
}

/// Writes all pieces down, up to the one that says it was the last. tonic tells a reset by a dying caller as the end of its
/// stream: only the caller's own word makes an archive whole.
async fn receive(
    core: &Core,
    first: ImportImageRequest,
    mut pieces: Streaming<ImportImageRequest>,
    out: &Out<ImportImageResponse>,
) -> Result<Archive, Refusal> {
    let mut archive = Archive::create(&core.config.limits).await?;
    let (mut piece, mut told) = (Some(first), 0);
    while let Some(request) = piece {
        if request.chunk.len() > bounds::ARCHIVE_CHUNK_BYTES {
            let what = format!(
                "must be at most {} bytes in one message",
                bounds::ARCHIVE_CHUNK_BYTES
            );
            return Err(Refusal::InvalidArgument(vec![("chunk".to_owned(), what)]));
        }
        archive.add(&request.chunk).await?;
        if request.eof {
            return Ok(archive);
        }
        if archive.bytes() - told >= TELL_EVERY_BYTES {
            told = archive.bytes();
            out.send(step_of("received".to_owned(), told)).await;
        }
        piece = next(&mut pieces).await?;
    }
    Err(Refusal::InvalidArgument(vec![(
        "eof".to_owned(),
        "the stream ended without it; nothing was imported".to_owned(),
    )]))
}

async fn next(
    pieces: &mut Streaming<ImportImageRequest>,
) -> Result<Option<ImportImageRequest>, Refusal> {
    incoming::next(
        pieces,
        bounds::UPLOAD_PAUSE,
        "the bound for a pause of the upload",
    )
    .await
}
