// SPDX-License-Identifier: Apache-2.0
//! Conditional requests (RFC 9110 §13) over the digests of resources, which are strong validators.

use super::input::mistaken;
use crate::configuration::Expected;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use postern_common::problem::{Code, Problem};

/// A digest as an `ETag`.
pub(crate) fn of(digest: &str) -> HeaderValue {
    // A digest is hex: always a header value.
    HeaderValue::try_from(format!("\"{digest}\"")).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// What a change expects to be there.
pub(crate) fn expected(headers: &HeaderMap) -> Result<Expected, Problem> {
    let (wanted, unwanted) = (tags(headers, &header::IF_MATCH)?, tags(headers, &header::IF_NONE_MATCH)?);
    match (wanted, unwanted) {
        (None, None) => Ok(Expected::Anything),
        (Some(Tags::Any), None) => Ok(Expected::Something),
        (Some(Tags::Listed(tags)), None) => Ok(Expected::OneOf(tags)),
        (None, Some(Tags::Any)) => Ok(Expected::Nothing),
        _ => Err(mistaken(
            "/header/if-none-match",
            "a change takes `If-Match: \"ETAG\"` or `If-None-Match: *`",
        )),
    }
}

/// Whether a reader has this digest already (`If-None-Match`).
pub(crate) fn is_known(headers: &HeaderMap, digest: &str) -> Result<bool, Problem> {
    Ok(match tags(headers, &header::IF_NONE_MATCH)? {
        None => false,
        Some(Tags::Any) => true,
        Some(Tags::Listed(tags)) => tags.iter().any(|tag| tag == digest),
    })
}

/// Whether a reader wants this version (`If-Match`), as all do who do not say.
pub(crate) fn is_wanted(headers: &HeaderMap, digest: &str) -> Result<bool, Problem> {
    Ok(match tags(headers, &header::IF_MATCH)? {
        None | Some(Tags::Any) => true,
        Some(Tags::Listed(tags)) => tags.iter().any(|tag| tag == digest),
    })
}

enum Tags {
    Any,
    Listed(Vec<String>),
}

fn tags(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tags>, Problem> {
    let malformed = || Problem::new(Code::RequestMalformed, format!("`{name}` is not a list of ETags"));
    let mut listed = Vec::new();
    for value in headers.get_all(name) {
        let text = value.to_str().map_err(|_not_ascii| malformed())?.trim();
        if text == "*" {
            return Ok(Some(Tags::Any));
        }
        for tag in text.split(',') {
            let tag = tag.trim();
            // A weak tag says less than a digest: for changes it never matches (RFC 9110 §13.1.1).
            let tag = tag.strip_prefix("W/").map_or(tag, |_weak| "\"weak\"");
            let inner = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).ok_or_else(malformed)?;
            listed.push(inner.to_owned());
        }
    }
    Ok((!listed.is_empty()).then_some(Tags::Listed(listed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn conditions_are_read() {
        assert_eq!(expected(&headers(&[])).expect("reads"), Expected::Anything);
        assert_eq!(expected(&headers(&[("if-none-match", "*")])).expect("reads"), Expected::Nothing);
        assert_eq!(expected(&headers(&[("if-match", "*")])).expect("reads"), Expected::Something);
        assert_eq!(
            expected(&headers(&[("if-match", "\"a\", \"b\"")])).expect("reads"),
            Expected::OneOf(vec!["a".to_owned(), "b".to_owned()])
        );
    }

    #[test]
    fn a_weak_tag_never_allows_a_change() {
        let expected = expected(&headers(&[("if-match", "W/\"a\"")])).expect("reads");
        assert_eq!(expected, Expected::OneOf(vec!["weak".to_owned()]));
    }

    #[test]
    fn what_is_no_condition_is_refused() {
        for wrong in [
            &[("if-match", "a")][..],
            &[("if-match", "\"a")],
            &[("if-none-match", "\"a\"")],
            &[("if-match", "\"a\""), ("if-none-match", "*")],
        ] {
            assert!(expected(&headers(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_reader_that_knows_the_digest_is_told_so() {
        assert!(is_known(&headers(&[("if-none-match", "\"a\", \"b\"")]), "b").expect("reads"));
        assert!(!is_known(&headers(&[("if-none-match", "\"a\"")]), "b").expect("reads"));
        assert!(!is_known(&headers(&[]), "b").expect("reads"));
    }
}
