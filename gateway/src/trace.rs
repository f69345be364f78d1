// SPDX-License-Identifier: Apache-2.0
//! Ties a request to its trace (W3C Trace Context): a sandbox's trace goes on, a request without
//! one begins one, and the backend sees us as its parent.
//!
//! Nothing else of what the sandbox sends is believed: a `traceparent` that is not exactly one of
//! version 00 begins a new trace, and takes its `tracestate` with it.

use crate::spans::Place;
use aws_lc_rs::rand;
use http::{HeaderMap, HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Writes our own `traceparent` and gives our place in the trace; `None` if the system has no
/// randomness, and then the request has no trace. A trace that begins here is sampled if spans are
/// exported.
pub(crate) fn go_on(headers: &mut HeaderMap, is_exported: bool) -> Option<Place> {
    let own =
        |(trace, span, flags): (&str, &str, &str)| (trace.to_owned(), span.to_owned(), flags.to_owned());
    let parent = parent(headers).map(own);
    headers.remove(TRACEPARENT);
    if parent.is_none() {
        headers.remove(TRACESTATE);
    }
    let (trace, parent, flags) = match parent {
        Some((trace, span, flags)) => (trace, Some(span), flags),
        None => {
            let flags = if is_exported { "01" } else { "00" };
            (format!("{:032x}", u128::from_be_bytes(random()?)), None, flags.to_owned())
        }
    };
    let span = format!("{:016x}", u64::from_be_bytes(random()?));
    headers.insert(TRACEPARENT, HeaderValue::try_from(format!("00-{trace}-{span}-{flags}")).ok()?);
    Some(Place { trace, span, parent })
}

/// Trace, span and flags of the one `traceparent` of a request, if it is right.
fn parent(headers: &HeaderMap) -> Option<(&str, &str, &str)> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let value = values.next()?.to_str().ok()?;
    let is_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |text: &str, length| is_hex(text, length) && text.bytes().any(|byte| byte != b'0');
    let mut parts = value.split('-');
    match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), values.next()) {
        (Some("00"), Some(trace), Some(span), Some(flags), None, None)
            if is_id(trace, 32) && is_id(span, 16) && is_hex(flags, 2) =>
        {
            Some((trace, span, flags))
        }
        _ => None,
    }
}

fn random<const BYTES: usize>() -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    rand::fill(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn with(parents: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for parent in parents {
            headers.append(TRACEPARENT, parent.parse().expect("a value"));
        }
        headers.insert(TRACESTATE, "vendor=1".parse().expect("a value"));
        headers
    }

    #[test]
    fn a_trace_goes_on_with_us_as_the_parent() {
        let sent = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let mut headers = with(&[&sent]);
        let place = go_on(&mut headers, false).expect("a place");
        assert_eq!((place.trace.as_str(), place.parent.as_deref()), (TRACE, Some("00f067aa0ba902b7")));
        let ours = headers[TRACEPARENT].to_str().expect("text");
        assert!(ours.starts_with(&format!("00-{TRACE}-")) && ours.ends_with("-01") && ours != sent, "{ours}");
        assert!(headers.contains_key(TRACESTATE));
    }

    #[test]
    fn what_is_no_trace_begins_a_new_one() {
        let good = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let zeros = "0".repeat(32);
        for parents in [
            vec![],
            vec![good.as_str(), good.as_str()],
            vec![&*format!("01-{TRACE}-00f067aa0ba902b7-01")],
            vec![&*format!("00-{zeros}-00f067aa0ba902b7-01")],
            vec![&*format!("00-{TRACE}-0000000000000000-01")],
            vec![&*format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase())],
            vec![&*format!("{good}-more")],
            vec!["; drop"],
        ] {
            let mut headers = with(&parents);
            let trace = go_on(&mut headers, true).expect("a trace").trace;
            assert!(trace.len() == 32 && trace != TRACE, "{parents:?}: {trace}");
            assert_eq!(headers.get_all(TRACEPARENT).iter().count(), 1, "{parents:?}");
            let ours = headers[TRACEPARENT].to_str().expect("text");
            assert!(ours.starts_with(&format!("00-{trace}-")) && ours.ends_with("-01"), "{ours}");
            assert!(!headers.contains_key(TRACESTATE), "{parents:?}");
        }
    }
}
