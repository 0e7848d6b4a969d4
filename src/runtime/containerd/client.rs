//! Calls to containerd: one channel over its Unix socket, the namespace on every request, a deadline and a measurement
//! for every call, and its answers as [`CallError`].

use std::{
    error::Error,
    future::Future,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use containerd_client::services::v1::{
    containers_client::ContainersClient, content_client::ContentClient,
    events_client::EventsClient, images_client::ImagesClient,
    introspection_client::IntrospectionClient, leases_client::LeasesClient,
    namespaces_client::NamespacesClient, snapshots::snapshots_client::SnapshotsClient,
    streaming_client::StreamingClient, tasks_client::TasksClient, transfer_client::TransferClient,
    version_client::VersionClient,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};
use tonic::{
    Code, Request, Response, Status,
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::link::Link;
use crate::runtime::{NAMESPACE, RuntimeError, RuntimeMetrics};

/// The largest answer that is decoded. The task list of 4,096 sandboxes is about 2 MB; tonic's own bound is 4 MiB.
const ANSWER_BYTES: usize = 64 << 20;
/// Bytes of containerd's words that are kept.
const DETAIL_BYTES: usize = 512;
/// How long connecting to the socket may take; a socket that nobody accepts on is a hung containerd.
const CONNECT: Duration = Duration::from_secs(2);

/// A kind of call: its name in metrics and errors, and how long it may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) name: &'static str,
    pub(super) deadline: Duration,
}

impl Call {
    pub(super) const fn seconds(name: &'static str, seconds: u64) -> Self {
        Self {
            name,
            deadline: Duration::from_secs(seconds),
        }
    }
}

/// Why a call failed.
#[derive(Debug, Clone)]
pub(super) struct CallError {
    call: Call,
    pub(super) reason: Reason,
    detail: String,
}

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The connection failed, before or during the call.
    Unreachable,
    /// Our deadline passed.
    Deadline,
    /// containerd: there is no such thing.
    NotFound,
    /// containerd: it is there already.
    Exists,
    /// containerd: not in this state.
    Precondition,
    /// containerd: anything else.
    Refused,
}

impl Reason {
    fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Deadline => "deadline",
            Self::NotFound => "not_found",
            Self::Exists => "exists",
            Self::Precondition => "precondition",
            Self::Refused => "refused",
        }
    }
}

impl CallError {
    fn overdue(call: Call) -> Self {
        Self {
            call,
            reason: Reason::Deadline,
            detail: String::new(),
        }
    }

    fn answered(call: Call, status: &Status) -> Self {
        // A status that containerd sent has no source. Its own UNAVAILABLE means a shim that is gone, not containerd.
        let reason = match (status.source().is_some(), status.code()) {
            (true, _) => Reason::Unreachable,
            (false, Code::NotFound) => Reason::NotFound,
            (false, Code::AlreadyExists) => Reason::Exists,
            (false, Code::FailedPrecondition) => Reason::Precondition,
            (false, Code::DeadlineExceeded) => Reason::Deadline,
            (false, _) => Reason::Refused,
        };
        let detail = match status.source() {
            Some(source) => chain(source),
            None => status.message().to_owned(),
        };
        Self {
            call,
            reason,
            detail: clip(&detail),
        }
    }

    /// containerd's words, bounded.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }
}

/// An error with its sources, without repeating words.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

/// Bounds a text and replaces what could break a line.
pub(super) fn clip(text: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let mut clipped: String = text.chars().map(printable).collect();
    if clipped.len() > DETAIL_BYTES {
        let mut end = DETAIL_BYTES;
        while !clipped.is_char_boundary(end) {
            end -= 1;
        }
        clipped.truncate(end);
        clipped.push('…');
    }
    clipped
}

impl From<CallError> for RuntimeError {
    fn from(error: CallError) -> Self {
        let what = error.call.name;
        match error.reason {
            Reason::Unreachable => Self::Unavailable(error.detail),
            Reason::Deadline => Self::DeadlineExceeded {
                what,
                seconds: error.call.deadline.as_secs(),
            },
            Reason::NotFound | Reason::Exists | Reason::Precondition | Reason::Refused => {
                Self::Refused {
                    what,
                    detail: error.detail,
                }
            }
        }
    }
}

/// For deletions: not there is as good as deleted.
pub(super) fn gone_is_fine<T>(result: Result<T, CallError>) -> Result<(), CallError> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.reason == Reason::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Adds the namespace to every request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Namespaced;

impl Interceptor for Namespaced {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let name = MetadataValue::from_static(NAMESPACE);
        request.metadata_mut().insert("containerd-namespace", name);
        Ok(request)
    }
}

/// A request under a lease: what it makes lives as long as the lease does.
pub(super) fn leased<T>(message: T, lease: &str) -> Request<T> {
    let mut request = Request::new(message);
    // Lease ids are made here, of letters, digits and hyphens.
    if let Ok(lease) = lease.parse() {
        request.metadata_mut().insert("containerd-lease", lease);
    }
    request
}

/// A connection to containerd's socket, made when it is first used, and again whenever it was lost.
pub(in crate::runtime) fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The address is a form that must be filled in; the connector goes to the socket.
    Endpoint::from_static("http://containerd.invalid")
        .connect_timeout(CONNECT)
        .connect_with_connector_lazy(connect)
}

type Door = InterceptedService<Channel, Namespaced>;

/// containerd's services. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Client {
    door: Door,
    link: Arc<Link>,
    metrics: RuntimeMetrics,
}

impl Client {
    /// Connects when first used, and again whenever the connection was lost.
    pub(super) fn new(socket: &Path, link: Arc<Link>, metrics: RuntimeMetrics) -> Self {
        Self {
            door: InterceptedService::new(channel(socket), Namespaced),
            link,
            metrics,
        }
    }

    pub(super) fn containers(&self) -> ContainersClient<Door> {
        ContainersClient::new(self.door.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    pub(super) fn content(&self) -> ContentClient<Door> {
        ContentClient::new(self.door.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    pub(super) fn events(&self) -> EventsClient<Door> {
        EventsClient::new(self.door.clone())
    }

    pub(super) fn images(&self) -> ImagesClient<Door> {
        ImagesClient::new(self.door.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    pub(super) fn introspection(&self) -> IntrospectionClient<Door> {
        IntrospectionClient::new(self.door.clone())
    }

    pub(super) fn leases(&self) -> LeasesClient<Door> {
        LeasesClient::new(self.door.clone())
    }

    pub(super) fn namespaces(&self) -> NamespacesClient<Door> {
        NamespacesClient::new(self.door.clone())
    }

    pub(super) fn snapshots(&self) -> SnapshotsClient<Door> {
        SnapshotsClient::new(self.door.clone())
    }

    pub(super) fn streaming(&self) -> StreamingClient<Door> {
        StreamingClient::new(self.door.clone())
    }

    pub(super) fn tasks(&self) -> TasksClient<Door> {
        TasksClient::new(self.door.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    pub(super) fn transfer(&self) -> TransferClient<Door> {
        TransferClient::new(self.door.clone())
    }

    pub(super) fn version(&self) -> VersionClient<Door> {
        VersionClient::new(self.door.clone())
    }

    /// Waits for one call, not beyond its deadline; a call given up is cancelled in containerd as well (the stream is
    /// reset). A broken connection is told to the link.
    ///
    /// # Errors
    /// [`CallError`].
    pub(super) async fn call<T>(
        &self,
        call: Call,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        // On the heap: tonic's futures hold the request and its codec, and callers' futures would hold several.
        let answer = Box::pin(answer);
        self.measure(call, async { answer.await.map(Response::into_inner) })
            .await
    }

    /// The same for anything made of several messages, such as a stream that is read to its end.
    ///
    /// # Errors
    /// [`CallError`].
    pub(super) async fn measure<T>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, CallError> {
        let began = Instant::now();
        let result = match timeout(call.deadline, work).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => Err(CallError::answered(call, &status)),
            Err(_) => Err(CallError::overdue(call)),
        };
        let histogram = self.metrics.calls.with_label_values(&[call.name]);
        histogram.observe(began.elapsed().as_secs_f64());
        if let Err(error) = &result {
            let labels = [call.name, error.reason.label()];
            self.metrics.call_failures.with_label_values(&labels).inc();
            if error.reason == Reason::Unreachable {
                self.link.suspect();
            }
        }
        result
    }
}
