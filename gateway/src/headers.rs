// SPDX-License-Identifier: Apache-2.0
//! Which headers cross the gateway, in either direction. Identity is not decided here.
//!
//! A request loses what belongs to one connection, what claims to come from a proxy, what could
//! change its meaning behind us (method overrides, rewritten URLs) and what authenticates it to
//! us. Cookies are dropped both ways: a backend knows the caller by what we write.

use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE, TRAILER,
};

/// Names without case, `-`, `_` and other punctuation, and with look-alike letters as what they
/// look like: many backends fold names in such ways, so `X_User-Id` must be `x-user-id` to us.
pub(crate) fn folded(name: &str) -> String {
    let fold = |character: char| match character {
        '\u{17f}' => 's',
        '\u{131}' => 'i',
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(character) - 0xfee0).unwrap_or(character),
        other => other,
    };
    name.chars()
        .map(fold)
        .flat_map(char::to_lowercase)
        .filter(|character| character.is_alphanumeric())
        .collect()
}

/// Headers that belong to one connection or frame a message (RFC 9110 §7.6.1, RFC 9112 §6), folded:
/// nobody's but ours to write.
const FRAMING: [&str; 14] = [
    "connection",
    "keepalive",
    "proxyconnection",
    "te",
    "trailer",
    "transferencoding",
    "upgrade",
    "http2settings",
    "contentlength",
    "expect",
    "host",
    "secwebsocketkey",
    "secwebsocketversion",
    "secwebsocketaccept",
];

/// Other headers that end at the gateway, folded.
const DROPPED: [&str; 15] = [
    // authenticates to us
    "authorization",
    "cookie",
    "cookie2",
    // changes what the request means behind us
    "xhost",
    "xhttphost",
    "xhttpdestinationurl",
    "xwapprofile",
    // claims to know where it came from
    "forwarded",
    "via",
    "xrealip",
    "trueclientip",
    "xclientip",
    "xclusterclientip",
    "cfconnectingip",
    "xrequestid",
];

/// Headers that end at the gateway by how their folded name begins.
const DROPPED_PREFIXES: [&str; 11] = [
    "xforwarded",
    "xpostern",
    "xenvoy",
    "xamzn",
    "proxy",
    "xhttpmethod",
    "xmethodoverride",
    "xoriginal",
    "xrewrite",
    "xsendfile",
    "xaccel",
];

/// Headers that we read or write ourselves, folded: a `Connection` that lists one would have it
/// read here and not behind us, or the other way round.
const READ_HERE: [&str; 6] =
    ["contenttype", "contentencoding", "contentlength", "transferencoding", "host", "authorization"];

/// Headers of which a server behind us may fold another spelling into the one that we judge by.
const SPELT_ONE_WAY: [HeaderName; 2] = [CONTENT_TYPE, CONTENT_ENCODING];

/// Headers with which HTTP and WebSockets negotiate and compare, and those of W3C's trace context, folded:
/// no operation needs to declare them. The type of a body is among them, as it is declared elsewhere.
const ORDINARY: [&str; 24] = [
    "accept",
    "acceptcharset",
    "acceptencoding",
    "acceptlanguage",
    "baggage",
    "cachecontrol",
    "contentdisposition",
    "contentencoding",
    "contentlanguage",
    "contenttype",
    "date",
    "ifmatch",
    "ifmodifiedsince",
    "ifnonematch",
    "ifrange",
    "ifunmodifiedsince",
    "pragma",
    "prefer",
    "range",
    "secwebsocketextensions",
    "secwebsocketprotocol",
    "traceparent",
    "tracestate",
    "useragent",
];

/// Headers of a response that end at the gateway, folded.
const DROPPED_FROM_RESPONSES: [&str; 17] = [
    "connection",
    "keepalive",
    "proxyconnection",
    "te",
    "trailer",
    "transferencoding",
    "upgrade",
    "proxyauthenticate",
    "proxyauthenticationinfo",
    "setcookie",
    "setcookie2",
    "altsvc",
    "via",
    "xrequestid",
    "secwebsocketkey",
    "secwebsocketversion",
    "secwebsocketaccept",
];

fn is_dropped(folded: &str) -> bool {
    FRAMING.contains(&folded)
        || DROPPED.contains(&folded)
        || DROPPED_PREFIXES.iter().any(|prefix| folded.starts_with(prefix))
}

/// Whether a tenant may have us write this header with its credential or an identity: not those
/// that frame a message, that we judge bodies by, or that tell where a request came from.
pub(crate) fn is_tenants(name: &str) -> bool {
    const OURS: [&str; 8] = [
        "contenttype",
        "contentencoding",
        "xrequestid",
        "forwarded",
        "xforwardedfor",
        "xforwardedhost",
        "xforwardedproto",
        "via",
    ];
    let folded = folded(name);
    !FRAMING.contains(&folded.as_str()) && !OURS.contains(&folded.as_str())
}

/// Whether a header of this folded name is HTTP's own, so that no operation declares it.
pub(crate) fn is_ordinary(folded: &str) -> bool {
    ORDINARY.contains(&folded)
}

/// Names that `Connection` lists.
fn listed(headers: &HeaderMap) -> Vec<String> {
    let lines = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(folded).collect()
}

/// The first header that `Connection` lists and that we read ourselves.
///
/// A client would have it dropped here and so change what the rest of the request means.
pub(crate) fn mislisted(headers: &HeaderMap) -> Option<&'static str> {
    let listed = listed(headers);
    READ_HERE.into_iter().find(|name| listed.iter().any(|gone| gone == name))
}

fn retain(headers: &mut HeaderMap, keeps: impl Fn(&HeaderName, &str) -> bool) {
    let gone: Vec<HeaderName> =
        headers.keys().filter(|name| !keeps(name, &folded(name.as_str()))).cloned().collect();
    for name in gone {
        headers.remove(name);
    }
}

/// Removes what does not go on to a backend or a filter. Done before anything is read from the
/// headers, and again after a filter changed them.
pub(crate) fn clean_request(headers: &mut HeaderMap) {
    let listed = listed(headers);
    let is_misspelt = |name: &HeaderName, key: &str| {
        SPELT_ONE_WAY.iter().any(|own| own != name && folded(own.as_str()) == key)
    };
    retain(headers, |name, key| {
        !is_dropped(key) && !is_misspelt(name, key) && !listed.iter().any(|gone| gone == key)
    });
}

/// Removes what does not go back to a sandbox; `is_identity` knows the names that carry identity.
pub(crate) fn clean_response(headers: &mut HeaderMap, is_identity: impl Fn(&str) -> bool) {
    let listed = listed(headers);
    retain(headers, |_, name| {
        !DROPPED_FROM_RESPONSES.contains(&name)
            && !name.starts_with("xpostern")
            && !is_identity(name)
            && !listed.iter().any(|gone| gone == name)
    });
}

/// Headers that mean nothing, or something else, at the end of a message (RFC 9110 §6.5.1), folded,
/// besides those that frame it or are HTTP's own.
const NEVER_TRAILERS: [&str; 8] = [
    "age",
    "contentlocation",
    "contentrange",
    "expires",
    "location",
    "retryafter",
    "vary",
    "wwwauthenticate",
];

fn is_trailer(folded: &str) -> bool {
    !is_ordinary(folded) && !FRAMING.contains(&folded) && !NEVER_TRAILERS.contains(&folded)
}

/// Removes what may not follow a request's body; `is_refused` knows the names that no header may
/// have there either.
pub(crate) fn clean_request_trailers(trailers: &mut HeaderMap, is_refused: impl Fn(&str) -> bool) {
    retain(trailers, |_, name| is_trailer(name) && !is_dropped(name) && !is_refused(name));
}

/// Removes what may not follow an answer's body; `is_identity` knows the names that carry identity.
pub(crate) fn clean_response_trailers(trailers: &mut HeaderMap, is_identity: impl Fn(&str) -> bool) {
    clean_response(trailers, is_identity);
    retain(trailers, |_, name| is_trailer(name));
}

/// The names that `Trailer` announces.
pub(crate) fn announced(headers: &HeaderMap) -> Vec<HeaderName> {
    let lines = headers.get_all(TRAILER).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).filter_map(|name| name.trim().parse().ok()).collect()
}

/// Announces trailers, of those that pass.
pub(crate) fn announce(headers: &mut HeaderMap, names: &[HeaderName], passes: impl Fn(&mut HeaderMap)) {
    if names.is_empty() {
        return;
    }
    let empty = HeaderValue::from_static("");
    let mut trailers: HeaderMap = names.iter().map(|name| (name.clone(), empty.clone())).collect();
    passes(&mut trailers);
    let names: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
    if let Ok(value) = HeaderValue::from_str(&names.join(", "))
        && !names.is_empty()
    {
        headers.insert(TRAILER, value);
    }
}

/// Whether the client takes trailers (RFC 9110 §10.1.4).
pub(crate) fn takes_trailers(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(TE).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(names: &[&'static str]) -> HeaderMap {
        names.iter().map(|name| (HeaderName::from_static(name), HeaderValue::from_static("1"))).collect()
    }

    #[test]
    fn spellings_that_backends_take_for_one_name_fold_to_one() {
        let spellings = [
            "user_id",
            "User-Id",
            "USERID",
            "user.id",
            "user id",
            "user[id]",
            "u\u{17f}er_id",
            "\u{ff55}ser_id",
            "user\u{200b}_id",
        ];
        for spelling in spellings {
            assert_eq!(folded(spelling), "userid", "{spelling}");
        }
        assert_ne!(folded("user_ids"), "userid");
    }

    #[test]
    fn nothing_that_changes_or_relays_a_request_is_forwarded() {
        let names = [
            "x-http-method-override",
            "x-method-override",
            "x-http-method",
            "x-original-url",
            "x-rewrite-url",
            "x-rewrite-anything",
            "x_http_method_override",
            "x-original-host",
            "x-sendfile-type",
            "x-accel-redirect",
            "content_type",
            "content.encoding",
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-host",
            "x_forwarded_for",
            "authorization",
            "cookie",
            "proxy-authorization",
            "proxy-connection",
            "te",
            "trailer",
            "upgrade",
            "keep-alive",
            "expect",
            "via",
            "x-real-ip",
        ];
        let mut all = headers(&names);
        clean_request(&mut all);
        assert!(all.is_empty(), "{all:?}");
    }

    #[test]
    fn headers_that_connection_lists_are_dropped_and_others_stay() {
        let mut all = headers(&["x-secret-hop", "accept", "content-type", "range", "x-custom"]);
        all.append(CONNECTION, HeaderValue::from_static("keep-alive, X-Secret-Hop"));
        all.append(CONNECTION, HeaderValue::from_static("X_Custom"));
        clean_request(&mut all);
        let mut left: Vec<_> = all.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-type", "range"]);
    }

    #[test]
    fn a_connection_that_lists_what_we_read_is_told() {
        for line in
            ["content-type", "close, Content_Type", "CONTENT-ENCODING", "host", "x, transfer-encoding"]
        {
            let mut all = headers(&["content-type"]);
            all.append(CONNECTION, HeaderValue::from_static(line));
            assert!(mislisted(&all).is_some(), "{line}");
        }
        let mut all = headers(&["content-type"]);
        all.append(CONNECTION, HeaderValue::from_static("keep-alive, close, upgrade, x-hop"));
        assert_eq!(mislisted(&all), None);
    }

    #[test]
    fn a_tenant_names_no_header_that_frames_or_is_ours() {
        for name in ["Transfer-Encoding", "connection", "TE", "Trailer", "Upgrade", "Content-Length", "Host"]
        {
            assert!(!is_tenants(name), "{name}");
        }
        for name in
            ["Expect", "Content_Type", "X-Request-Id", "x.forwarded.for", "Keep-Alive", "HTTP2-Settings"]
        {
            assert!(!is_tenants(name), "{name}");
        }
        for name in ["Authorization", "X-Api-Key", "X-User-Id", "X-Forwarded-User", "Cookie"] {
            assert!(is_tenants(name), "{name}");
        }
    }

    #[test]
    fn responses_lose_cookies_hops_and_identity() {
        let mut all = headers(&["set-cookie", "x-user-id", "alt-svc", "connection", "content-type", "etag"]);
        clean_response(&mut all, |name| name == "xuserid");
        assert_eq!(all.len(), 2);
    }
}
