// SPDX-License-Identifier: Apache-2.0
//! The head of a request, read strictly: what hyper lets through and a second server could read
//! differently is refused here.
//!
//! hyper itself refuses folded header lines, bare carriage returns, malformed names and lengths,
//! and conflicting `Content-Length`s. Of `Content-Length` beside `Transfer-Encoding` it obeys
//! the latter, drops the former and closes the connection afterwards (RFC 9112 §6.3); since we
//! frame what we forward anew, neither can smuggle a request.

use crate::headers;
use crate::reject::Reject;
use crate::websocket::{self, Asked};
use http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Version};
use hyper::body::Incoming;
use postern_openapi::{Method as KnownMethod, Query, RequestPath};

/// A request whose head can be read in one way.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// `None` for a method that no operation can have.
    pub(crate) method: Option<KnownMethod>,
    pub(crate) path: RequestPath,
    pub(crate) query: Query,
    /// What the values of `Authorization` are: for `identify` alone, no later stage sees them.
    pub(crate) authorization: Vec<HeaderValue>,
    /// Cleaned: what ends at the gateway is gone.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Incoming,
    pub(crate) trailers: Trailers,
    /// The WebSocket that it asks for.
    pub(crate) websocket: Option<Asked>,
}

/// What a request says of trailers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trailers {
    /// It takes those of an answer.
    pub(crate) are_taken: bool,
    /// Names of its own.
    pub(crate) announced: Vec<HeaderName>,
}

/// Headers of which a request has at most one. A second `Authorization` has a code of its own,
/// which `identify` gives.
const SINGLE: [HeaderName; 6] =
    [HOST, CONTENT_TYPE, CONTENT_LENGTH, CONTENT_ENCODING, TRANSFER_ENCODING, EXPECT];

/// Reads the head of a request; its body is not touched.
///
/// # Errors
/// [`Reject::Malformed`] says what can be read in two ways; [`Reject::Upgrade`] for CONNECT and
/// for every upgrade but to a WebSocket.
pub(crate) fn parse(mut request: Request<Incoming>) -> Result<Parsed, Reject> {
    let websocket = websocket::asked(&mut request)?;
    let (mut head, body) = request.into_parts();
    check_target(&head)?;
    check_headers(&head.headers)?;
    let malformed = |refusal: &dyn std::fmt::Display| Reject::Malformed(refusal.to_string());
    let path = RequestPath::parse(head.uri.path()).map_err(|refusal| malformed(&refusal))?;
    let query = Query::parse(head.uri.query().unwrap_or_default()).map_err(|refusal| malformed(&refusal))?;
    let authorization = head.headers.get_all(AUTHORIZATION).iter().cloned().collect();
    let trailers = Trailers {
        are_taken: headers::takes_trailers(&head.headers),
        announced: headers::announced(&head.headers),
    };
    // Once, before any stage reads a header: what is judged is what goes on.
    headers::clean_request(&mut head.headers);
    let method = KnownMethod::parse(head.method.as_str());
    Ok(Parsed { method, path, query, authorization, headers: head.headers, body, trailers, websocket })
}

/// HTTP/1.1 in origin form with one `Host`, or HTTP/2 with an authority.
fn check_target(head: &http::request::Parts) -> Result<(), Reject> {
    let refuse = |what: &str| Err(Reject::Malformed(what.to_owned()));
    match head.version {
        Version::HTTP_11 => {
            if head.uri.scheme().is_some() || head.uri.authority().is_some() {
                return refuse("the request target is not a path");
            }
            if !head.headers.contains_key(HOST) {
                return refuse("the request has no `Host`");
            }
        }
        Version::HTTP_2 => {
            let authority = head.uri.authority().map(http::uri::Authority::as_str);
            let host = head.headers.get(HOST).map(HeaderValue::as_bytes);
            if let (Some(authority), Some(host)) = (authority, host)
                && authority.as_bytes() != host
            {
                return refuse("`:authority` and `host` differ");
            }
        }
        _ => return refuse("only HTTP/1.1 and HTTP/2 are served"),
    }
    Ok(())
}

fn check_headers(fields: &HeaderMap) -> Result<(), Reject> {
    for name in &SINGLE {
        if fields.get_all(name).iter().nth(1).is_some() {
            return Err(Reject::Malformed(format!("the request has more than one `{name}` header")));
        }
    }
    if fields.contains_key(CONTENT_LENGTH) && fields.contains_key(TRANSFER_ENCODING) {
        return Err(Reject::Malformed(
            "the request has both `content-length` and `transfer-encoding`".into(),
        ));
    }
    let encoding = fields.get(TRANSFER_ENCODING).map(HeaderValue::as_bytes);
    if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case(b"chunked")) {
        return Err(Reject::Malformed("`transfer-encoding` is not `chunked` alone".into()));
    }
    if let Some(name) = headers::mislisted(fields) {
        return Err(Reject::Malformed(format!(
            "`connection` lists `{name}`, which is no header of one connection"
        )));
    }
    for (name, value) in fields {
        if value.to_str().is_err() {
            return Err(Reject::Malformed(format!("the header `{name}` is not plain ASCII text")));
        }
    }
    Ok(())
}
