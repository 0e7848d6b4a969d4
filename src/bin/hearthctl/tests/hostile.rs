//! A fake of the Sandboxes service that lies, for what no honest guest produces.

use crate::failure::Exit;
use crate::link::Link;
use crate::parse::Place;
use hearth::api::sandboxes_server::{Sandboxes, SandboxesServer};
use hearth::api::*;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How the stream of a written file ended, and what it held.
#[derive(Debug, PartialEq)]
enum Written {
    Whole(Vec<u8>),
    Broken,
}

/// Lists the names it is given, reads `content` from every path, remembers what is written.
#[derive(Clone, Default)]
struct LyingSandbox {
    names: Vec<(&'static str, FileKind)>,
    mode: u32,
    written: Arc<Mutex<Vec<Written>>>,
}

fn pour<T: Send + 'static>(items: Vec<Result<T, Status>>) -> Response<Answers<T>> {
    Response::new(Box::pin(tokio_stream::iter(items)))
}

#[tonic::async_trait]
impl Sandboxes for LyingSandbox {
    type ExecStream = Answers<ExecResponse>;
    type RunCodeStream = Answers<RunCodeResponse>;
    type ReadFileStream = Answers<ReadFileResponse>;
    type ListFilesStream = Answers<ListFilesResponse>;
    type ConnectStream = Answers<ConnectResponse>;

    async fn exec(
        &self,
        _: Request<Streaming<ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        Err(Status::unimplemented("fake"))
    }

    async fn run_code(
        &self,
        _: Request<RunCodeRequest>,
    ) -> Result<Response<Self::RunCodeStream>, Status> {
        Err(Status::unimplemented("fake"))
    }

    async fn interrupt_code(
        &self,
        _: Request<InterruptCodeRequest>,
    ) -> Result<Response<InterruptCodeResponse>, Status> {
        Err(Status::unimplemented("fake"))
    }

    async fn read_file(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        let first = ReadFileResponse {
            size_bytes: 14,
            mode: self.mode,
            chunk: "content".into(),
        };
        let second = match request.into_inner().path.as_str() {
            "/breaks" => Err(Status::data_loss("broken in the middle")),
            _ => Ok(ReadFileResponse {
                chunk: "content".into(),
                ..Default::default()
            }),
        };
        Ok(pour(vec![Ok(first), second]))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<WriteFileRequest>>,
    ) -> Result<Response<WriteFileResponse>, Status> {
        let mut stream = request.into_inner();
        let mut content = Vec::new();
        let end = loop {
            match stream.next().await {
                None | Some(Err(_)) => break Written::Broken,
                Some(Ok(piece)) => match piece.request {
                    Some(write_file_request::Request::Chunk(chunk)) => content.extend(chunk),
                    Some(write_file_request::Request::Eof(_)) => {
                        break Written::Whole(content.clone());
                    }
                    Some(write_file_request::Request::Start(_)) | None => {}
                },
            }
        };
        self.written.lock().unwrap().push(end);
        Ok(Response::new(WriteFileResponse {
            size_bytes: content.len() as u64,
        }))
    }

    async fn list_files(
        &self,
        request: Request<ListFilesRequest>,
    ) -> Result<Response<Self::ListFilesStream>, Status> {
        if request.into_inner().path != "/lies" {
            let mut details = tonic_types::ErrorDetails::new();
            details.set_error_info(
                "INSIDE_NOT_FOUND",
                "hearth",
                [("x".to_owned(), "y".to_owned())],
            );
            return Err(<Status as tonic_types::StatusExt>::with_error_details(
                tonic::Code::NotFound,
                "no directory",
                details,
            ));
        }
        let entries = self.names.iter().map(|(name, kind)| FileEntry {
            name: (*name).into(),
            kind: (*kind).into(),
            ..Default::default()
        });
        Ok(pour(vec![Ok(ListFilesResponse {
            entries: entries.collect(),
        })]))
    }

    async fn connect(
        &self,
        _: Request<Streaming<ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        Err(Status::unimplemented("fake"))
    }

    async fn stats(&self, _: Request<StatsRequest>) -> Result<Response<StatsResponse>, Status> {
        Err(Status::unimplemented("fake"))
    }

    async fn get_network(
        &self,
        _: Request<GetNetworkRequest>,
    ) -> Result<Response<GetNetworkResponse>, Status> {
        Err(Status::unimplemented("fake"))
    }
}

/// Serves the fake; the directory lives as long as the test wants.
async fn serve(fake: LyingSandbox) -> (tempfile::TempDir, Link) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let service = SandboxesServer::new(fake);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    let link = Link::open(socket.to_str().unwrap(), None, None)
        .await
        .unwrap();
    (directory, link)
}

fn files(directory: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                found.push(path.strip_prefix(directory).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn names_from_inside_never_lead_outside() {
    let fake = LyingSandbox {
        names: vec![
            ("good", FileKind::File),
            ("../evil", FileKind::File),
            ("/etc/evil", FileKind::File),
            ("..", FileKind::Directory),
            ("a/b", FileKind::File),
            ("link", FileKind::Symlink),
            ("", FileKind::File),
        ],
        mode: 0o6777,
        ..Default::default()
    };
    let (directory, link) = serve(fake).await;
    let target = directory.path().join("deep/target");
    let mut tally = crate::copy::Tally::default();
    let to = Place::Local(target.clone());
    crate::copy::outward::copy(&link, "c", "/lies", to, &mut tally)
        .await
        .unwrap();
    assert_eq!(
        files(&directory.path().join("deep")),
        [PathBuf::from("target/good")]
    );
    assert_eq!((tally.files, tally.skipped), (1, 6));
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(target.join("good"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(
        mode & 0o7777,
        0o777,
        "set-id bits must not come out of a sandbox"
    );
}

#[tokio::test]
async fn a_file_that_breaks_on_its_way_out_leaves_nothing() {
    let (directory, link) = serve(LyingSandbox::default()).await;
    let target = directory.path().join("out");
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("breaks"), "before").unwrap();
    let mut tally = crate::copy::Tally::default();
    let to = Place::Local(target.clone());
    let failure = crate::copy::outward::copy(&link, "c", "/breaks", to, &mut tally)
        .await
        .unwrap_err();
    assert_eq!(failure.exit, Exit::Refused);
    assert_eq!(files(&target), [PathBuf::from("breaks")]);
    assert_eq!(
        std::fs::read_to_string(target.join("breaks")).unwrap(),
        "before"
    );
}

#[tokio::test]
async fn a_source_that_breaks_is_not_sent_as_if_it_were_whole() {
    let fake = LyingSandbox::default();
    let written = Arc::clone(&fake.written);
    let (_directory, link) = serve(fake).await;
    let mut tally = crate::copy::Tally::default();
    // Opens like a file; its first byte cannot be read.
    let from = Place::Local("/proc/self/mem".into());
    let failure = crate::copy::inward::copy(&link, from, "c", "/x", &mut tally)
        .await
        .unwrap_err();
    assert!(
        failure.message.contains("/proc/self/mem"),
        "{}",
        failure.message
    );
    for _ in 0..100 {
        if !written.lock().unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(
        !written
            .lock()
            .unwrap()
            .iter()
            .any(|end| matches!(end, Written::Whole(_))),
        "{:?}",
        written.lock().unwrap()
    );
}

#[tokio::test]
async fn a_whole_file_arrives_whole() {
    let fake = LyingSandbox::default();
    let written = Arc::clone(&fake.written);
    let (directory, link) = serve(fake).await;
    let content: Vec<u8> = (0..=255).cycle().take(1_000_003).collect();
    let source = directory.path().join("source");
    std::fs::write(&source, &content).unwrap();
    let mut tally = crate::copy::Tally::default();
    crate::copy::inward::copy(&link, Place::Local(source), "c", "/x", &mut tally)
        .await
        .unwrap();
    assert_eq!(tally.bytes, 1_000_003);
    assert!(*written.lock().unwrap() == [Written::Whole(content)]);
}

#[tokio::test]
async fn a_missing_socket_is_unreachable_and_says_so() {
    let failure = Link::open("/nowhere/h.sock", None, None)
        .await
        .err()
        .unwrap();
    assert_eq!(failure.exit, Exit::Unreachable);
    assert!(
        failure.message.contains("no such socket"),
        "{}",
        failure.message
    );
}
