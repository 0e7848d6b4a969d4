//! Export of spans from a real hearthd to an OTLP collector: the test is the collector.

use super::hearthd::{Hearth, claim_request, eventually, fresh_id, patience, pool};
use hearth::api::GetPoolsRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tonic::{Request, Response, Status};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Keeps what it is sent; answers no more once it is stuck.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    resources: Arc<Mutex<BTreeMap<String, String>>>,
    stuck: Arc<AtomicBool>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if self.stuck.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        for resource in request.into_inner().resource_spans {
            let told = resource.resource.unwrap().attributes;
            let told = told.into_iter().map(|one| (one.key, text(one.value)));
            self.resources.lock().unwrap().extend(told);
            let scopes = resource.scope_spans.into_iter();
            let spans = scopes.flat_map(|scope| scope.spans);
            self.spans.lock().unwrap().extend(spans);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(value: Option<opentelemetry_proto::tonic::common::v1::AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Collector {
    async fn serve(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = TraceServiceServer::new(self.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
        address
    }

    fn of_trace(&self, trace: &str) -> Vec<Span> {
        let spans = self.spans.lock().unwrap();
        let fits = spans.iter().filter(|span| hex(&span.trace_id) == trace);
        fits.cloned().collect()
    }

    fn named(&self, trace: &str, name: &str) -> Option<Span> {
        let spans = self.of_trace(trace);
        spans.into_iter().find(|span| span.name == name)
    }
}

fn attribute(span: &Span, name: &str) -> String {
    let found = span.attributes.iter().find(|one| one.key == name);
    text(found.and_then(|one| one.value.clone()))
}

/// Claims as a caller whose trace this is; flags 01: sampled.
async fn claim_in(hearth: &Hearth, trace: &str, flags: &str) {
    let mut request = Request::new(claim_request(&fresh_id(), "python"));
    let parent = format!("00-{trace}-{PARENT}-{flags}").parse().unwrap();
    request.metadata_mut().insert("traceparent", parent);
    hearth.claims().await.claim(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claims_spans_reach_a_collector_and_never_hold_it_up() {
    let collector = Collector::default();
    let endpoint = format!("http://{}", collector.serve().await);
    let hearth = Hearth::start_with(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_RESOURCE_ATTRIBUTES", "k8s.node.name=n1"),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "64"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8"),
    ])
    .await;
    hearth.set_pools(vec![pool("python", 3, 8)]).await;
    hearth.warm("python", 3).await;

    let unsampled = TRACE.replace('4', "5");
    claim_in(&hearth, &unsampled, "00").await;
    claim_in(&hearth, TRACE, "01").await;
    eventually("the claim's four spans", || async {
        collector.of_trace(TRACE).len() >= 4
    })
    .await;
    let call = collector.named(TRACE, "Claims/Claim").unwrap();
    assert_eq!(hex(&call.parent_span_id), PARENT);
    assert_eq!(call.kind, i32::from(SpanKind::Server));
    assert_eq!(attribute(&call, "rpc.grpc.status_code"), "0");
    for stage in ["queue", "commit", "guest"] {
        let span = collector.named(TRACE, stage).unwrap();
        assert_eq!(span.parent_span_id, call.span_id, "{stage}");
        let within = call.start_time_unix_nano <= span.start_time_unix_nano
            && span.start_time_unix_nano <= span.end_time_unix_nano
            && span.end_time_unix_nano <= call.end_time_unix_nano;
        assert!(within, "{stage} is no part of the call: {span:?} {call:?}");
    }
    assert_eq!(collector.of_trace(TRACE).len(), 4, "four and no more");
    assert!(collector.of_trace(&unsampled).is_empty(), "not sampled");
    let resources = collector.resources.lock().unwrap().clone();
    assert_eq!(resources["service.name"], "hearthd");
    assert_eq!(resources["k8s.node.name"], "n1");

    // A call without a trace gets one, the same in the log and at the collector.
    let mut pools = hearth.pools().await;
    pools.get_pools(GetPoolsRequest::default()).await.unwrap();
    eventually("a call's own trace", || async {
        let spans = collector.spans.lock().unwrap().clone();
        let log = hearth.log_text();
        let mut roots = spans.iter().filter(|span| span.name == "Pools/GetPools");
        roots.any(|span| span.parent_span_id.is_empty() && log.contains(&hex(&span.trace_id)))
    })
    .await;

    // A collector that takes and never answers: the queue fills, and calls go on.
    collector.stuck.store(true, Ordering::SeqCst);
    let calls = async {
        for _ in 0..200 {
            pools.get_pools(GetPoolsRequest::default()).await.unwrap();
        }
        hearth.warm("python", 1).await;
        claim_in(&hearth, TRACE, "01").await;
    };
    tokio::time::timeout(patience(), calls).await.unwrap();
    hearth.finish().await;
}
