//! Images: archives in pieces, progress, and what pools name.

use super::*;
use std::os::unix::fs::PermissionsExt;
use tokio_stream::StreamExt;

fn piece(name: &str, bytes: usize) -> ImportImageRequest {
    ImportImageRequest {
        name: name.into(),
        chunk: vec![7; bytes].into(),
        eof: false,
    }
}

fn archives(bench: &Bench) -> Vec<PathBuf> {
    // The server makes the directory when it starts.
    let found = std::fs::read_dir(bench.dir.path().join("import"));
    found.map_or_else(
        |_| Vec::new(),
        |found| found.map(|entry| entry.unwrap().path()).collect(),
    )
}

async fn import(
    bench: &Bench,
    mut pieces: Vec<ImportImageRequest>,
) -> Result<Vec<ImportImageResponse>, Status> {
    pieces.last_mut().unwrap().eof = true;
    send(bench, pieces).await
}

async fn send(
    bench: &Bench,
    pieces: Vec<ImportImageRequest>,
) -> Result<Vec<ImportImageResponse>, Status> {
    let mut answers = bench
        .node()
        .await
        .import_image(tokio_stream::iter(pieces))
        .await?
        .into_inner();
    let mut told = Vec::new();
    while let Some(answer) = answers.message().await? {
        told.push(answer);
    }
    Ok(told)
}

#[tokio::test]
async fn an_archive_arrives_whole_and_its_file_is_removed() {
    let bench = Bench::start().await;
    let told = import(&bench, vec![piece("python:3", 300_000), piece("", 300_000)])
        .await
        .unwrap();
    let last = told.last().unwrap();
    assert_eq!((last.stage.as_str(), last.bytes), ("done", 600_000));
    assert_eq!(
        (last.images[0].size_bytes, last.images[0].pools.as_slice()),
        (600_000, &[POOL.to_owned()][..])
    );
    assert!(told.iter().any(|answer| answer.stage == "unpacking"));
    eventually("the archive is removed", || archives(&bench).is_empty()).await;
    let images = bench
        .node()
        .await
        .list_images(ListImagesRequest {})
        .await
        .unwrap()
        .into_inner()
        .images;
    assert_eq!(images.len(), 1);
    let remove = |name: &str| RemoveImageRequest { name: name.into() };
    let status = refused(
        bench.node().await.remove_image(remove("python:3")).await,
        Code::FailedPrecondition,
        "IMAGE_IN_USE",
    );
    assert_eq!(
        status.get_error_details().error_info().unwrap().metadata["pool"],
        POOL
    );
    import(&bench, vec![piece("unused:1", 1)]).await.unwrap();
    bench
        .node()
        .await
        .remove_image(remove("unused:1"))
        .await
        .unwrap();
    refused(
        bench.node().await.remove_image(remove("unused:1")).await,
        Code::NotFound,
        "IMAGE_UNKNOWN",
    );
}

#[tokio::test]
async fn a_client_that_dies_has_imported_nothing() {
    let bench = Bench::start().await;
    let (client, endpoint) = (Mortal::born(), bench.endpoint());
    client.spawn(async move {
        let pieces = tokio_stream::iter([piece("a:1", 1000)]).chain(tokio_stream::pending());
        let mut client = NodeClient::new(endpoint.connect().await.unwrap());
        let mut answers = client.import_image(pieces).await.unwrap().into_inner();
        answers.message().await.unwrap();
    });
    eventually("the archive is there", || archives(&bench).len() == 1).await;
    let mode = std::fs::metadata(&archives(&bench)[0])
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    bench
        .counted(r#"hearth_streams_open{kind="import_image"} 1"#)
        .await;
    drop(client);
    eventually("the archive is removed", || archives(&bench).is_empty()).await;
    bench
        .counted(r#"hearth_streams_open{kind="import_image"} 0"#)
        .await;
    // Nor has one whose stream just ends.
    refused(
        send(&bench, vec![piece("a:1", 1000)]).await,
        Code::InvalidArgument,
        "INVALID_ARGUMENT",
    );
    let listed = bench.node().await.list_images(ListImagesRequest {}).await;
    assert!(listed.unwrap().into_inner().images.is_empty());
}

#[tokio::test]
async fn archives_and_their_number_are_bounded() {
    let bench = Bench::start().await;
    let pieces = vec![piece("", 1 << 20), piece("", 1)];
    refused(
        import(&bench, pieces).await,
        Code::InvalidArgument,
        "INVALID_ARGUMENT",
    );
    refused(
        import(&bench, vec![piece("", (1 << 20) + 1)]).await,
        Code::InvalidArgument,
        "INVALID_ARGUMENT",
    );
    eventually("the archives are removed", || archives(&bench).is_empty()).await;
    bench.driver.answering.send_replace(false);
    let pull = || PullImageRequest { name: "a:1".into() };
    let mut pulls = Vec::new();
    for _ in 0..crate::rpc::bounds::IMAGE_TRANSFERS {
        pulls.push(
            bench
                .node()
                .await
                .pull_image(pull())
                .await
                .unwrap()
                .into_inner(),
        );
    }
    let full = bench.node().await.pull_image(pull()).await.map(drop);
    let status = refused(full, Code::ResourceExhausted, "QUEUE_FULL");
    assert_eq!(
        status.get_error_details().error_info().unwrap().metadata["queue"],
        "imports"
    );
    bench.driver.answering.send_replace(true);
    let mut answers = pulls.pop().unwrap();
    let mut last = PullImageResponse::default();
    while let Some(answer) = answers.message().await.unwrap() {
        last = answer;
    }
    assert_eq!(
        (last.stage.as_str(), last.image.unwrap().name.as_str()),
        ("done", "a:1")
    );
}
