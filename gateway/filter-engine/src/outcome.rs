// SPDX-License-Identifier: Apache-2.0
//! What a call came to: a verdict, and the changes that it asks for.

use crate::failure::FilterFailure;
use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};

/// What a filter decided.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Go on as it is.
    Continue,
    /// Go on, changed: whoever applies this must judge the result again.
    Changed(Changes),
    /// Refuse.
    Reject(Rejection),
}

/// A rejection, within its bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    status: u16,
    code: String,
    message: String,
}

/// The longest code of a rejection.
const MAX_CODE_BYTES: usize = 64;
/// The longest message of a rejection.
const MAX_MESSAGE_BYTES: usize = 1024;

impl Rejection {
    pub(crate) fn new(status: u16, code: String, message: String) -> Result<Self, FilterFailure> {
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let wrong = |what| Err(FilterFailure::Verdict { what });
        if !(400..500).contains(&status) {
            return wrong("a status that is not 400 to 499");
        }
        if !(1..=MAX_CODE_BYTES).contains(&code.len()) || !code.bytes().all(is_name) {
            return wrong("a code that is not 1 to 64 of a-z, 0-9 and `-`");
        }
        if message.len() > MAX_MESSAGE_BYTES || message.chars().any(char::is_control) {
            return wrong("a message that is longer than 1,024 bytes or not one line");
        }
        Ok(Self { status, code, message })
    }

    /// The HTTP status, 400 to 499.
    #[must_use]
    pub const fn status(&self) -> u16 {
        self.status
    }

    /// The filter's own name for it: 1 to 64 of `a-z`, `0-9` and `-`.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }

    /// One line for people, without control characters.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// A change that a filter asks for. Names that filters may not touch do not occur.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Replace all headers of this name by one.
    SetHeader(HeaderName, HeaderValue),
    /// Remove all headers of this name.
    RemoveHeader(HeaderName),
    /// Replace all query parameters of this name by one; both decoded.
    SetQueryParameter(String, String),
    /// Remove all query parameters of this name; decoded.
    RemoveQueryParameter(String),
    /// Replace the path; encoded, and as little to be trusted as one that a sandbox sends.
    SetPath(String),
    /// Replace the body.
    SetBody(Bytes),
}

/// The longest of all changes together, the body apart. Header blocks of peers end at 64 KiB.
const MAX_CHANGES_BYTES: usize = 64 * 1024;

/// The changes of one call, in order; later ones win.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    list: Vec<Change>,
    size_bytes: usize,
    kept: usize,
}

impl Changes {
    pub(crate) fn push(&mut self, change: Change) -> Result<(), FilterFailure> {
        self.size_bytes = self.size_bytes.saturating_add(weight(&change));
        if self.size_bytes > MAX_CHANGES_BYTES {
            return Err(FilterFailure::Changes);
        }
        self.list.push(change);
        Ok(())
    }

    pub(crate) const fn keep(&mut self, length: usize) {
        self.kept = length;
    }

    /// Bytes at the end of this part of a response's body that are to come again before the next.
    #[must_use]
    pub const fn kept(&self) -> usize {
        self.kept
    }

    /// Whether nothing is to be changed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.list.is_empty() && self.kept == 0
    }

    /// The changes, in the order in which they are to be made.
    pub fn iter(&self) -> impl Iterator<Item = &Change> {
        self.list.iter()
    }

    /// Makes the changes of headers.
    pub fn apply_to_headers(&self, headers: &mut HeaderMap) {
        for change in &self.list {
            match change {
                Change::SetHeader(name, value) => {
                    headers.insert(name.clone(), value.clone());
                }
                Change::RemoveHeader(name) => {
                    headers.remove(name);
                }
                Change::SetQueryParameter(..)
                | Change::RemoveQueryParameter(_)
                | Change::SetPath(_)
                | Change::SetBody(_) => {}
            }
        }
    }

    /// Makes the changes of the query: (name, value) pairs, decoded.
    pub fn apply_to_query(&self, query: &mut Vec<(String, String)>) {
        for change in &self.list {
            match change {
                Change::SetQueryParameter(name, value) => {
                    query.retain(|(key, _)| key != name);
                    query.push((name.clone(), value.clone()));
                }
                Change::RemoveQueryParameter(name) => query.retain(|(key, _)| key != name),
                Change::SetHeader(..) | Change::RemoveHeader(_) | Change::SetPath(_) | Change::SetBody(_) => {
                }
            }
        }
    }

    /// The new path, if there is to be one.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.list.iter().rev().find_map(|change| match change {
            Change::SetPath(path) => Some(path.as_str()),
            _ => None,
        })
    }

    /// The new body, if there is to be one.
    #[must_use]
    pub fn body(&self) -> Option<&Bytes> {
        self.list.iter().rev().find_map(|change| match change {
            Change::SetBody(body) => Some(body),
            _ => None,
        })
    }
}

/// What a change weighs: its bytes and a little for its place. A body has a bound of its own.
fn weight(change: &Change) -> usize {
    const PLACE: usize = 32;
    let bytes = match change {
        Change::SetHeader(name, value) => name.as_str().len() + value.len(),
        Change::RemoveHeader(name) => name.as_str().len(),
        Change::SetQueryParameter(name, value) => name.len() + value.len(),
        Change::RemoveQueryParameter(name) => name.len(),
        Change::SetPath(path) => path.len(),
        Change::SetBody(_) => 0,
    };
    bytes.saturating_add(PLACE)
}

/// How much a line of a filter's log matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// For somebody who is looking for a fault.
    Debug,
    /// Worth knowing.
    Info,
    /// Needs somebody's attention.
    Warn,
}

/// A line that a filter logged. The tenant's own words: never to be trusted, nor mixed with the
/// operator's log unmarked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// How much it matters.
    pub level: LogLevel,
    /// One line: control characters have been replaced.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_outside_its_bounds_is_a_failure() {
        let new =
            |status, code: &str, message: &str| Rejection::new(status, code.to_owned(), message.to_owned());
        assert!(new(499, "a-1", "no").is_ok());
        for (status, code, message) in [
            (200, "ok", ""),
            (399, "x", ""),
            (500, "x", ""),
            (403, "", ""),
            (403, "A", ""),
            (403, "a\r\nb", ""),
            (403, "a", "two\nlines"),
        ] {
            assert!(new(status, code, message).is_err(), "{status} {code} {message}");
        }
        assert!(new(403, &"a".repeat(65), "").is_err());
        assert!(new(403, "a", &"m".repeat(1025)).is_err());
    }

    #[test]
    fn later_changes_win_and_the_rest_stays() {
        let mut changes = Changes::default();
        let set = |name: &'static str, value: &'static str| {
            Change::SetHeader(HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        for change in [
            set("a", "1"),
            set("a", "2"),
            Change::RemoveHeader(HeaderName::from_static("b")),
            Change::SetQueryParameter("q".into(), "new".into()),
            Change::RemoveQueryParameter("r".into()),
            Change::SetPath("/one".into()),
            Change::SetPath("/two".into()),
            Change::SetBody(Bytes::from_static(b"new")),
        ] {
            changes.push(change).expect("small");
        }
        let mut headers = HeaderMap::new();
        headers.append("a", HeaderValue::from_static("0"));
        headers.append("a", HeaderValue::from_static("00"));
        headers.insert("b", HeaderValue::from_static("0"));
        headers.insert("c", HeaderValue::from_static("0"));
        changes.apply_to_headers(&mut headers);
        assert_eq!(headers.get_all("a").iter().count(), 1);
        assert_eq!(headers.get("a"), Some(&HeaderValue::from_static("2")));
        assert!(headers.get("b").is_none() && headers.get("c").is_some());
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut query = vec![pair("q", "1"), pair("q", "2"), pair("r", "3"), pair("s", "4")];
        changes.apply_to_query(&mut query);
        assert_eq!(query, [pair("s", "4"), pair("q", "new")]);
        assert_eq!(changes.path(), Some("/two"));
        assert_eq!(changes.body(), Some(&Bytes::from_static(b"new")));
    }

    #[test]
    fn changes_are_bounded_also_when_each_is_empty() {
        let mut changes = Changes::default();
        let flood = (0..10_000).find_map(|_| changes.push(Change::RemoveQueryParameter(String::new())).err());
        assert_eq!(flood, Some(FilterFailure::Changes));
    }
}
