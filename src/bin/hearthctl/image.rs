//! `image`: list, import, pull, remove, with progress.
//!
//! Owns one transfer at a time. A file that cannot be read to its end is never sent as if it were whole.

use crate::App;
use crate::cli::ImageCommand;
use crate::failure::{Exit, Failure};
use crate::link::Link;
use crate::output::{self, Field, Format, Mood};
use crate::progress;
use hearth::api::{
    Image, ImportImageRequest, ImportImageResponse, ListImagesRequest, PullImageRequest,
    RemoveImageRequest,
};
use indicatif::ProgressBar;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Bytes of an archive in one message; hearth takes 1 MiB.
const CHUNK: usize = 512 << 10;
/// Messages on their way; then reading waits.
const QUEUE: usize = 4;

#[derive(Serialize)]
struct ImageRow {
    name: String,
    digest: String,
    size_bytes: u64,
    pools: Vec<String>,
}

impl From<&Image> for ImageRow {
    fn from(image: &Image) -> Self {
        ImageRow {
            name: image.name.clone(),
            digest: image.digest.clone(),
            size_bytes: image.size_bytes,
            pools: image.pools.clone(),
        }
    }
}

/// `image …`
pub async fn run(app: &App, command: ImageCommand) -> Result<(), Failure> {
    let link = app.link().await?;
    match command {
        ImageCommand::List => {
            let request = link.call(ListImagesRequest {});
            let images = link.node().list_images(request).await?.into_inner().images;
            show(app, &images)
        }
        ImageCommand::Import { file, name } => {
            let images = import(&link, &file, name).await?;
            show(app, &images)
        }
        ImageCommand::Pull { reference } => {
            let images = pull(&link, reference).await?;
            show(app, &images)
        }
        ImageCommand::Rm { references } => remove(app, &link, references).await,
    }
}

fn show(app: &App, images: &[Image]) -> Result<(), Failure> {
    let rows: Vec<_> = images.iter().map(ImageRow::from).collect();
    output::print(&match app.format() {
        Format::Table if rows.is_empty() => {
            "no images; `hearthctl image import FILE` or `image pull REF` brings one\n".into()
        }
        Format::Table => {
            let rows = rows.into_iter().map(|row| {
                let size = match row.size_bytes {
                    0 => String::new(),
                    bytes => output::bytes(bytes),
                };
                vec![
                    row.name.into(),
                    // As long as people can tell two apart.
                    Field::new(row.digest.chars().take(19).collect::<String>(), Mood::Dim),
                    size.into(),
                    row.pools.join(", ").into(),
                ]
            });
            output::table(
                app.style,
                &["IMAGE", "DIGEST", ">SIZE", "POOLS"],
                rows.collect(),
            )
        }
        Format::Name => rows.iter().map(|row| format!("{}\n", row.name)).collect(),
        format => output::document(format, &rows)?,
    })
}

async fn import(link: &Link, file: &Path, name: String) -> Result<Vec<Image>, Failure> {
    let label = file.display().to_string();
    let broken = |error: std::io::Error| Failure::local(&label, &error);
    let (mut source, size): (Box<dyn AsyncRead + Send + Unpin>, _) = if label == "-" {
        (Box::new(tokio::io::stdin()), None)
    } else {
        let file = tokio::fs::File::open(file).await.map_err(broken)?;
        let size = file.metadata().await.map_err(broken)?.len();
        (Box::new(file), Some(size))
    };
    let bar = progress::of_bytes("importing", size);
    let (sender, queue) = mpsc::channel(QUEUE);
    let request = link.stream(ReceiverStream::new(queue));
    let mut client = link.node();
    let mut call = Box::pin(async {
        let answers = client.import_image(request).await?.into_inner();
        import_progress(answers, &bar).await
    });
    let sent = tokio::select! {
        done = &mut call => { bar.finish_and_clear(); return done; }
        sent = send_archive(&mut source, &sender, name, &bar) => sent,
    };
    drop(sender);
    let done = call.await;
    bar.finish_and_clear();
    // Without its eof hearthd imports nothing; what is worth telling is why there was none.
    sent.map_err(broken)?;
    done
}

async fn send_archive(
    source: &mut (dyn AsyncRead + Send + Unpin),
    sender: &mpsc::Sender<ImportImageRequest>,
    name: String,
    bar: &ProgressBar,
) -> std::io::Result<()> {
    let mut name = name;
    loop {
        let mut chunk = bytes::BytesMut::with_capacity(CHUNK);
        let eof = source.read_buf(&mut chunk).await? == 0;
        bar.inc(chunk.len() as u64);
        let request = ImportImageRequest {
            name: std::mem::take(&mut name),
            chunk: chunk.freeze(),
            eof,
        };
        // Closed: the daemon has answered already; the answer tells why.
        if sender.send(request).await.is_err() || eof {
            return Ok(());
        }
    }
}

async fn import_progress(
    mut answers: Streaming<ImportImageResponse>,
    bar: &ProgressBar,
) -> Result<Vec<Image>, Failure> {
    while let Some(answer) = answers.message().await? {
        match answer.stage.as_str() {
            "done" => return Ok(answer.images),
            stage => bar.set_message(crate::failure::clean(stage)),
        }
    }
    Err(Failure::new(
        Exit::Unreachable,
        "hearthd ended the import before it was done",
    ))
}

async fn pull(link: &Link, reference: String) -> Result<Vec<Image>, Failure> {
    let request = link.stream(PullImageRequest { name: reference });
    let mut answers = link.node().pull_image(request).await?.into_inner();
    let bar = progress::of_bytes("pulling", None);
    // (bytes so far, in all) of each part.
    let mut parts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    while let Some(answer) = answers.message().await? {
        if answer.stage == "done" {
            bar.finish_and_clear();
            return Ok(answer.image.into_iter().collect());
        }
        if !answer.item.is_empty() && parts.len() < 1024 {
            parts.insert(answer.item, (answer.bytes, answer.total_bytes));
        }
        let total: u64 = parts.values().map(|(_, total)| *total).sum();
        if total > 0 {
            bar.set_length(total);
        }
        bar.set_position(parts.values().map(|(bytes, _)| *bytes).sum());
        bar.set_message(crate::failure::clean(&answer.stage));
    }
    Err(Failure::new(
        Exit::Unreachable,
        "hearthd ended the pull before it was done",
    ))
}

async fn remove(app: &App, link: &Link, references: Vec<String>) -> Result<(), Failure> {
    for name in references {
        let request = link.call(RemoveImageRequest { name: name.clone() });
        link.node().remove_image(request).await?;
        output::print(&match app.format() {
            Format::Table => format!("removed {name}\n"),
            Format::Name => format!("{name}\n"),
            format => output::record(format, &serde_json::json!({ "removed": name }))?,
        })?;
    }
    Ok(())
}
