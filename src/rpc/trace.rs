//! The span of a call: which method, in which trace, by whom. Never a token, a name inside or a value of a request.

use tonic::Code;
use tonic::codegen::http::HeaderMap;
use tracing::Span;

/// W3C trace context, <https://www.w3.org/TR/trace-context/#traceparent-header>.
const HEADER: &str = "traceparent";

/// The field of a span that [`join`] fills.
const TRACE_ID: &str = "trace_id";

/// Puts a fresh span into the caller's trace if its `traceparent` is valid, else into one of its own, and tells the id in
/// the span and to the caller of this: 32 lower-case hexadecimal digits, not all zero. Where spans are exported it is the
/// exported one.
pub fn join(span: &Span, headers: &HeaderMap) -> String {
    let told = parent(headers);
    let exported = exported::join(span, told.as_ref());
    let id = exported.or_else(|| told.map(|parent| parent.trace.to_owned()));
    let id = id.unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string());
    span.record(TRACE_ID, &id);
    id
}

/// The call has ended: what an exported span says of it. Logs say it by themselves.
pub fn ended(span: &Span, code: Code) {
    exported::ended(span, code);
}

/// What a `traceparent` says, in hexadecimal digits as they came.
struct Parent<'a> {
    trace: &'a str,
    #[cfg_attr(not(feature = "otlp"), allow(dead_code))]
    span: &'a str,
    #[cfg_attr(not(feature = "otlp"), allow(dead_code))]
    flags: &'a str,
}

fn parent(headers: &HeaderMap) -> Option<Parent<'_>> {
    let mut told = headers.get_all(HEADER).iter();
    let only = told.next().filter(|_| told.next().is_none());
    only.and_then(|value| value.to_str().ok()).and_then(parse)
}

/// Without the feature `otlp` no span is exported.
#[cfg(not(feature = "otlp"))]
mod exported {
    use super::{Code, Parent, Span};

    pub(super) fn join(_: &Span, _: Option<&Parent<'_>>) -> Option<String> {
        None
    }

    pub(super) fn ended(_: &Span, _: Code) {}
}

/// The span as OpenTelemetry knows it, where `app` exports spans; else these do nothing.
#[cfg(feature = "otlp")]
mod exported {
    use super::{Code, Parent, Span};
    use opentelemetry::Context;
    use opentelemetry::trace::{
        SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    };
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    pub(super) fn join(span: &Span, parent: Option<&Parent<'_>>) -> Option<String> {
        if let Some(remote) = parent.and_then(remote) {
            // Fails where nothing is exported, and only there: the span is fresh.
            let _nothing_exported =
                span.set_parent(Context::new().with_remote_span_context(remote));
        }
        let context = span.context();
        let context = context.span().span_context().clone();
        context.is_valid().then(|| context.trace_id().to_string())
    }

    fn remote(parent: &Parent<'_>) -> Option<SpanContext> {
        let trace = TraceId::from_hex(parent.trace).ok()?;
        let span = SpanId::from_hex(parent.span).ok()?;
        let flags = TraceFlags::new(u8::from_str_radix(parent.flags, 16).ok()?);
        Some(SpanContext::new(trace, span, flags, true, TraceState::NONE))
    }

    /// <https://opentelemetry.io/docs/specs/semconv/rpc/grpc/>: which codes are a server's errors.
    pub(super) fn ended(span: &Span, code: Code) {
        span.set_attribute("rpc.grpc.status_code", i64::from(i32::from(code)));
        let at_fault = matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        );
        if at_fault {
            span.set_status(Status::error(crate::rpc::metrics::code_name(code)));
        }
    }
}

/// `version "-" trace-id "-" parent-id "-" trace-flags`. A later version may add to the end, after another "-".
fn parse(value: &str) -> Option<Parent<'_>> {
    let mut parts = value.splitn(5, '-');
    let (version, trace, parent, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let more = parts.next().is_some();
    let known = version != "ff" && !(version == "00" && more);
    let fits = hexadecimal(version, 2)
        && hexadecimal(trace, 32)
        && hexadecimal(parent, 16)
        && hexadecimal(flags, 2);
    let set = |id: &str| id.bytes().any(|b| b != b'0');
    (known && fits && set(trace) && set(parent)).then_some(Parent {
        trace,
        span: parent,
        flags,
    })
}

fn hexadecimal(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn id(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, value.parse().unwrap());
        }
        let parent = parent(&headers)?;
        assert!(hexadecimal(parent.span, 16) && hexadecimal(parent.flags, 2));
        Some(parent.trace.to_owned())
    }

    #[test]
    fn a_valid_traceparent_is_followed() {
        let later = GOOD.replacen("00-", "42-", 1);
        for good in [GOOD, &later, &format!("{later}-more")] {
            assert_eq!(id(&[good]).as_deref(), Some(TRACE), "{good}");
        }
    }

    #[test]
    fn anything_else_is_no_parent() {
        let zero = "0".repeat(32);
        for wrong in [
            &[][..],
            &[""],
            &["00"],
            &[GOOD, GOOD],
            &[&GOOD.to_uppercase()],
            &[&GOOD.replacen("00-", "ff-", 1)],
            &[&format!("{GOOD}-more")],
            &[&GOOD[1..]],
            &[&GOOD.replace(TRACE, &zero)],
            &[&GOOD.replace("00f067aa0ba902b7", &zero[..16])],
            &[&GOOD.replace("f3", "g3")],
        ] {
            assert_eq!(id(wrong), None, "{wrong:?}");
        }
    }
}
