//! Export of calls' spans to an OTLP collector, as the standard `OTEL_*` environment says; off unless it names an
//! endpoint. gRPC without TLS: a collector on the node, or beside hearthd.
//!
//! Never in the way of a call: a span that ends goes into a bounded queue (`OTEL_BSP_MAX_QUEUE_SIZE`) or is dropped, and
//! one thread sends what is queued. A collector that is away costs nothing but its spans.
//! <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>

use opentelemetry::trace::{SpanKind, TracerProvider};
use opentelemetry::{Context, Value};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, SdkTracerProvider, Span, SpanData, SpanProcessor,
};
use std::time::Duration;
use tracing::{Level, Metadata, Subscriber, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::registry::LookupSpan;

/// How long the end of hearthd waits for the last spans.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// An export that runs.
pub(super) struct Export(SdkTracerProvider);

impl Export {
    /// Begins it inside of a tokio runtime, which carries its connection; `None`: not asked for.
    ///
    /// # Errors
    /// What the environment says is wrong.
    pub(super) fn start() -> Result<Option<Self>, ExporterBuildError> {
        if !asked(|name| std::env::var(name).unwrap_or_default()) {
            return Ok(None);
        }
        let exporter = SpanExporter::builder().with_tonic().build()?;
        let resource = Resource::builder().build();
        // The default is a guess ("unknown_service:…"), which a name of ours beats and a given one does not.
        let named = resource
            .iter()
            .any(|(key, value)| key.as_str() == "service.name" && !guessed(value));
        let resource = match named {
            true => resource,
            false => Resource::builder().with_service_name("hearthd").build(),
        };
        let batches = BatchSpanProcessor::builder(exporter).build();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_span_processor(Calls(batches))
            .build();
        Ok(Some(Self(provider)))
    }

    /// What turns hearth's spans, and no events, into those of OpenTelemetry.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let ours = |metadata: &Metadata<'_>| {
            metadata.is_span()
                && *metadata.level() <= Level::DEBUG
                && metadata.target().starts_with("hearth::")
        };
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("hearth"))
            .with_context_activation(false)
            .with_level(false)
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(ours).with_max_level_hint(LevelFilter::DEBUG))
    }

    /// Sends what is queued, within a bound, and ends.
    pub(super) fn stop(self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST_SPANS) {
            warn!(%error, "the last spans were not exported");
        }
    }
}

/// Does the environment ask for an export?
fn asked(value: impl Fn(&str) -> String) -> bool {
    let says = |name, word| value(name).eq_ignore_ascii_case(word);
    let endpoints = [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    ];
    !says("OTEL_SDK_DISABLED", "true")
        && !says("OTEL_TRACES_EXPORTER", "none")
        && endpoints.iter().any(|name| !value(name).is_empty())
}

fn guessed(service: &Value) -> bool {
    service.as_str().starts_with("unknown_service")
}

/// The queue, and before it the names that collectors group by: a call's span is named by its method, not `rpc`.
#[derive(Debug)]
struct Calls(BatchSpanProcessor);

impl SpanProcessor for Calls {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.0.on_start(span, context);
    }

    fn on_end(&self, mut span: SpanData) {
        let method = span.attributes.iter().find(|a| a.key.as_str() == "method");
        if let Some(method) = method {
            span.name = method.value.as_str().into_owned().into();
            span.span_kind = SpanKind::Server;
        }
        self.0.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_off_unless_the_environment_names_an_endpoint() {
        let asked = |set: &[(&str, &str)]| {
            super::asked(|name| {
                let found = set.iter().find(|(key, _)| *key == name);
                found.map_or_else(String::new, |(_, value)| (*value).to_owned())
            })
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317");
        assert!(!asked(&[]));
        assert!(!asked(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]));
        assert!(asked(&[endpoint]));
        assert!(asked(&[(
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "http://c:1"
        )]));
        assert!(!asked(&[endpoint, ("OTEL_SDK_DISABLED", "True")]));
        assert!(!asked(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]));
    }
}
