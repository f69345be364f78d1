// SPDX-License-Identifier: Apache-2.0
//! What a filter can see of a request and of a response.
//!
//! A view owns what it shows, because an instance may outlive the borrow of a request when its
//! call is cancelled; the gateway moves its parts in and takes them back out. Credentials and
//! cookies stay in the map, and no way leads a filter to them.

use crate::names::is_visible;
use bytes::Bytes;
use http::header::{HeaderMap, HeaderName};
use http::{Method, StatusCode};
use postern_common::id::{BackendName, OperationId};
use std::sync::Arc;

/// A request, parsed and routed, as filters see it.
#[derive(Debug, Clone)]
pub struct RequestView {
    /// The method.
    pub method: Method,
    /// The backend that it goes to.
    pub backend: BackendName,
    /// The operation that it is.
    pub operation: OperationId,
    /// The rebuilt path within the backend, encoded.
    pub path: String,
    /// The template that the path matched.
    pub path_template: Arc<str>,
    /// Path parameters, decoded.
    pub path_parameters: Vec<(String, String)>,
    /// Query parameters in order, decoded.
    pub query: Vec<(String, String)>,
    /// All headers. A filter reaches them only through [`RequestView::header`].
    pub headers: Arc<HeaderMap>,
    /// The whole body, if it was admitted whole.
    pub body: Option<Bytes>,
}

/// A backend's response, as filters see it.
#[derive(Debug, Clone)]
pub struct ResponseView {
    /// The status.
    pub status: StatusCode,
    /// All headers. A filter reaches them only through [`ResponseView::header`].
    pub headers: HeaderMap,
    /// The whole body if it was taken whole, or the part that a call is about.
    pub body: Option<Bytes>,
    /// Which part that is, if the body comes in parts.
    pub part: Option<Part>,
}

/// A part of a response's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Counts the parts of a response, from 0.
    pub index: u64,
    /// Whether nothing follows.
    pub is_last: bool,
}

impl RequestView {
    /// The values of a header that a filter may see, joined by `, `.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<String> {
        visible_header(&self.headers, name)
    }

    /// The names of the headers that a filter may see.
    pub fn header_names(&self) -> impl Iterator<Item = &HeaderName> {
        self.headers.keys().filter(|name| is_visible(name))
    }

    /// A path parameter.
    #[must_use]
    pub fn path_parameter(&self, name: &str) -> Option<&str> {
        first(&self.path_parameters, name)
    }

    /// The first query parameter of a name.
    #[must_use]
    pub fn query_parameter(&self, name: &str) -> Option<&str> {
        first(&self.query, name)
    }
}

impl ResponseView {
    /// The values of a header that a filter may see, joined by `, `.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<String> {
        visible_header(&self.headers, name)
    }

    /// The names of the headers that a filter may see.
    pub fn header_names(&self) -> impl Iterator<Item = &HeaderName> {
        self.headers.keys().filter(|name| is_visible(name))
    }
}

fn first<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let mut pairs = pairs.iter();
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// `None` also if a value is not UTF-8: a filter never sees half of a header.
fn visible_header(headers: &HeaderMap, name: &str) -> Option<String> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    if !is_visible(&name) {
        return None;
    }
    let mut values = headers.get_all(&name).iter();
    let mut joined = std::str::from_utf8(values.next()?.as_bytes()).ok()?.to_owned();
    for value in values {
        joined.push_str(", ");
        joined.push_str(std::str::from_utf8(value.as_bytes()).ok()?);
    }
    Some(joined)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn response(headers: &[(&'static str, &'static [u8])]) -> ResponseView {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value).expect("a value"));
        }
        ResponseView { status: StatusCode::OK, headers: map, body: None, part: None }
    }

    #[test]
    fn credentials_and_cookies_cannot_be_read_or_listed() {
        let view = response(&[("set-cookie", b"a=b"), ("authorization", b"Bearer x"), ("etag", b"1")]);
        assert_eq!(view.header("Set-Cookie"), None);
        assert_eq!(view.header("AUTHORIZATION"), None);
        assert_eq!(view.header_names().map(HeaderName::as_str).collect::<Vec<_>>(), ["etag"]);
    }

    #[test]
    fn headers_of_one_name_are_joined_unless_one_is_not_text() {
        let view = response(&[("vary", b"a"), ("vary", b"b"), ("x", b"good"), ("x", b"\xff")]);
        assert_eq!(view.header("Vary").as_deref(), Some("a, b"));
        assert_eq!(view.header("x"), None);
        assert_eq!(view.header("not a name"), None);
    }
}
