//! The span of a call: which method, in which trace, by whom. Never a token, a name inside or a value of a request.

use tonic::codegen::http::HeaderMap;

/// W3C trace context, <https://www.w3.org/TR/trace-context/#traceparent-header>.
const HEADER: &str = "traceparent";

/// The trace id of a request: the caller's if its `traceparent` is valid, else a fresh random one. 32 lower-case
/// hexadecimal digits, not all zero.
#[must_use]
pub fn trace_id(headers: &HeaderMap) -> String {
    let mut told = headers.get_all(HEADER).iter();
    let only = told.next().filter(|_| told.next().is_none());
    only.and_then(|value| value.to_str().ok())
        .and_then(parse)
        .map_or_else(|| uuid::Uuid::new_v4().simple().to_string(), str::to_owned)
}

/// `version "-" trace-id "-" parent-id "-" trace-flags`. A later version may add to the end, after another "-".
fn parse(value: &str) -> Option<&str> {
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
    (known && fits && set(trace) && set(parent)).then_some(trace)
}

fn hexadecimal(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn id(values: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, value.parse().unwrap());
        }
        trace_id(&headers)
    }

    #[test]
    fn a_valid_traceparent_is_followed() {
        assert_eq!(id(&[GOOD]), TRACE);
        assert_eq!(id(&[&GOOD.replacen("00-", "42-", 1)]), TRACE);
        assert_eq!(
            id(&[&format!("{}-more", GOOD.replacen("00-", "42-", 1))]),
            TRACE
        );
    }

    #[test]
    fn anything_else_gives_a_fresh_id() {
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
            let fresh = id(wrong);
            assert!(
                hexadecimal(&fresh, 32) && fresh != TRACE && fresh != zero,
                "{wrong:?}"
            );
            assert_ne!(fresh, id(wrong));
        }
    }
}
