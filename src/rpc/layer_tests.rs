//! The layer alone, around services that do what they are told: what a client's own timers would blur.

use super::*;
use crate::identity::{Policy, Roles};
use crate::rpc::answers::answers;
use bytes::Bytes;
use http_body_util_free::collect;
use std::time::Duration;
use tonic_types::StatusExt;
use tower::service_fn;

const GET: &str = "/hearth.v1.Claims/Get";
const EXEC: &str = "/hearth.v1.Sandboxes/Exec";
const WATCH: &str = "/hearth.v1.Claims/Watch";

/// Reads a body to its end without another crate.
mod http_body_util_free {
    use http_body::Body;
    use std::future::poll_fn;
    use std::pin::pin;
    use tonic::codegen::http::HeaderMap;

    /// Bytes of data and the trailers.
    pub async fn collect(
        body: impl Body<Data = bytes::Bytes, Error = tonic::Status>,
    ) -> (usize, HeaderMap) {
        let (mut body, mut bytes, mut trailers) = (pin!(body), 0, HeaderMap::new());
        while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            match frame.unwrap().into_data() {
                Ok(data) => bytes += data.len(),
                Err(frame) => trailers.extend(frame.into_trailers().unwrap()),
            }
        }
        (bytes, trailers)
    }
}

fn rules(registry: &prometheus::Registry) -> Arc<Rules> {
    Arc::new(Rules {
        guard: crate::rpc::tests::guard(registry, "uid:7", std::path::Path::new("/dev/null")),
        lanes: Lanes::default(),
        metrics: Metrics::register(registry).unwrap(),
        shutdown: Shutdown::default(),
    })
}

fn request(path: &str, timeout: Option<&str>) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = path.parse().unwrap();
    let lists = ["uid:7".to_owned()];
    let policy = Policy::new([(Roles::ADMIN, lists.as_slice())]).unwrap();
    request.extensions_mut().insert(policy.user(Some(7)));
    if let Some(timeout) = timeout {
        request
            .headers_mut()
            .insert("grpc-timeout", timeout.parse().unwrap());
    }
    request
}

/// The answer of the layer around `inner`, to its end: bytes of data and the status.
async fn ask<F>(
    rules: &Arc<Rules>,
    request: Request<Body>,
    inner: impl Fn() -> F + Clone + Send + 'static,
) -> (usize, Status)
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |_: Request<Body>| {
        let answer = inner();
        async move { Ok(answer.await) }
    });
    let answer = CallLayer(Arc::clone(rules))
        .layer(service)
        .call(request)
        .await
        .unwrap();
    let (head, body) = answer.into_parts();
    let (bytes, mut trailers) = tokio::time::timeout(Duration::from_secs(20), collect(body))
        .await
        .unwrap();
    trailers.extend(head.headers);
    (
        bytes,
        Status::from_header_map(&trailers).unwrap_or_else(|| Status::ok("")),
    )
}

fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    details
        .error_info()
        .map(|info| info.reason.clone())
        .unwrap_or_default()
}

async fn never() -> Response<Body> {
    std::future::pending().await
}

/// Data for ever, as fast as it is read.
async fn flood() -> Response<Body> {
    struct Flood;
    impl http_body::Body for Flood {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
            // As tokio's own sources do: give way now and then.
            let coop = std::task::ready!(tokio::task::coop::poll_proceed(cx));
            coop.made_progress();
            Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(b"x")))))
        }
    }
    Response::new(Body::new(Flood))
}

#[tokio::test]
async fn a_caller_is_answered_just_before_its_deadline() {
    let registry = prometheus::Registry::new();
    let rules = rules(&registry);
    for path in [GET, EXEC] {
        let began = std::time::Instant::now();
        let (_, status) = ask(&rules, request(path, Some("200m")), never).await;
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::DeadlineExceeded, "DEADLINE_EXCEEDED")
        );
        assert!(began.elapsed() >= Duration::from_millis(180));
    }
    let text = prometheus::TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap();
    assert!(
        text.contains(
            r#"hearth_rpc_requests_total{code="DEADLINE_EXCEEDED",method="Claims/Get"} 1"#
        ),
        "{text}"
    );
}

#[tokio::test]
async fn a_deadline_ends_a_flood() {
    let rules = rules(&prometheus::Registry::new());
    let (bytes, status) = ask(&rules, request(EXEC, Some("100m")), flood).await;
    assert!(bytes > 0);
    assert_eq!(reason(&status), "DEADLINE_EXCEEDED");
}

#[tokio::test]
async fn a_shutdown_ends_floods_at_its_deadline_and_watches_at_once() {
    let rules = rules(&prometheus::Registry::new());
    rules.shutdown.begun.cancel();
    // A watch may say its last words; one that has none is ended.
    let (bytes, status) = ask(&rules, request(WATCH, None), never).await;
    assert_eq!((bytes, reason(&status).as_str()), (0, "SHUTTING_DOWN"));
    let exec = tokio::spawn({
        let rules = Arc::clone(&rules);
        async move { ask(&rules, request(EXEC, None), flood).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(
        !exec.is_finished(),
        "an exec goes on until the shutdown's deadline"
    );
    rules.shutdown.ended.cancel();
    let (bytes, status) = exec.await.unwrap();
    assert!(bytes > 0);
    assert_eq!(reason(&status), "SHUTTING_DOWN");
}

#[tokio::test]
async fn a_bug_of_one_call_is_its_own() {
    let rules = rules(&prometheus::Registry::new());
    let (_, status) = ask(&rules, request(GET, None), || async { panic!("hunter2") }).await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Internal, "INTERNAL")
    );
    assert!(
        !status.message().contains("hunter2"),
        "{}",
        status.message()
    );
}

#[tokio::test]
async fn places_come_back_whatever_the_end() {
    let rules = rules(&prometheus::Registry::new());
    for _ in 0..2 * crate::rpc::bounds::WATCHES_OPEN {
        let answer = || async {
            let empty = answers::<(), _>(|_| async { Ok(()) });
            drop(empty);
            Response::new(Body::empty())
        };
        let (_, status) = ask(&rules, request(WATCH, None), answer).await;
        assert_eq!(status.code(), Code::Ok);
        let (_, status) = ask(&rules, request(WATCH, Some("1m")), never).await;
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }
}

#[tokio::test]
async fn a_peer_that_the_kernel_does_not_name_is_nobody() {
    let rules = rules(&prometheus::Registry::new());
    let mut nameless = request(GET, None);
    nameless.extensions_mut().remove::<Identity>();
    let (_, status) = ask(&rules, nameless, never).await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unauthenticated, "UNAUTHENTICATED")
    );
}

/// What a subscriber is told.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn each_call_leaves_one_line_with_its_trace_and_no_token() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone());
    let _guard = tracing::subscriber::set_default(subscriber.finish());
    let rules = rules(&prometheus::Registry::new());
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mut traced = request(EXEC, None);
    let headers = traced.headers_mut();
    headers.insert(
        "traceparent",
        format!("00-{trace}-00f067aa0ba902b7-01").parse().unwrap(),
    );
    headers.insert("authorization", "Bearer hearth_hunter2".parse().unwrap());
    let inside = || async {
        tracing::debug!("inside");
        Response::new(Body::empty())
    };
    ask(&rules, traced, inside).await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(!text.contains("hunter2"), "{text}");
    assert_eq!(lines.len(), 2, "{text}");
    let uid = "uid:7";
    for line in &lines {
        let span = &line["span"];
        let told = (
            span["method"].as_str(),
            span["trace_id"].as_str(),
            span["caller"].as_str(),
        );
        assert_eq!(
            told,
            (Some("Sandboxes/Exec"), Some(trace), Some(uid)),
            "{text}"
        );
    }
    assert_eq!(lines[1]["fields"]["code"], "OK");
    assert!(lines[1]["fields"]["seconds"].is_f64());

    // Without a trace of its own a call gets one, and every line of it the same.
    let fresh = |text: &str| -> Vec<String> {
        let lines = text.lines().skip(lines.len());
        let lines = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines
            .map(|line| line["span"]["trace_id"].as_str().unwrap().to_owned())
            .collect()
    };
    let mut untraced = request(EXEC, None);
    let token = "Bearer hearth_hunter2".parse().unwrap();
    untraced.headers_mut().insert("authorization", token);
    ask(&rules, untraced, inside).await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let ids = fresh(&text);
    assert!(ids.len() == 2 && ids[0] == ids[1], "{text}");
    let digits = ids[0].bytes().all(|b| b.is_ascii_hexdigit());
    assert!(digits && ids[0].len() == 32 && ids[0] != trace, "{text}");
}
