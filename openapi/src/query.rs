// SPDX-License-Identifier: Apache-2.0
//! Queries and form bodies (`application/x-www-form-urlencoded`): read strictly, written again.
//!
//! `+` is a space, as browsers and form libraries write it; it comes out as `%20`. A name without
//! `=` comes out with one. Raw `;`, non-ASCII and control characters, empty names, `&&`, invalid
//! escapes, NUL and what is not UTF-8 are refused. Whether a name may repeat is the caller's to
//! say: see [`Query::duplicates`].

use crate::limits;
use crate::path::{PathRefusal, VALUE, decode};
use percent_encoding::utf8_percent_encode;

/// Why a query is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueryRefusal {
    /// Over the byte limit or [`limits::QUERY_PAIRS`].
    #[error("the query is too long")]
    TooLong,
    /// `&&`, a leading or trailing `&`, or a name of no length.
    #[error("the query has an empty pair")]
    EmptyPair,
    /// `;`, which some servers take for `&`.
    #[error("the query holds `;`; encode it as `%3B`")]
    Semicolon,
    /// NUL.
    #[error("the query holds a NUL")]
    Nul,
    /// `%` without two hex digits.
    #[error("the query has a `%` that two hex digits do not follow")]
    Escape,
    /// The decoded bytes are not UTF-8.
    #[error("the query does not decode to UTF-8")]
    NotUtf8,
    /// A character that must be encoded.
    #[error("the query holds a character that must be percent-encoded")]
    Unencoded,
}

/// The pairs of a query or form, decoded, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Reads the query of a request target, without its `?`. An empty text is no pairs.
    ///
    /// # Errors
    /// [`QueryRefusal`] names the first reason to refuse it.
    pub fn parse(text: &str) -> Result<Self, QueryRefusal> {
        Self::parse_form(text.as_bytes(), limits::QUERY_BYTES)
    }

    /// Reads a form body of at most `bytes` bytes.
    ///
    /// # Errors
    /// [`QueryRefusal`] names the first reason to refuse it.
    pub fn parse_form(text: &[u8], bytes: usize) -> Result<Self, QueryRefusal> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        if text.len() > bytes {
            return Err(QueryRefusal::TooLong);
        }
        let mut pairs = Vec::new();
        for pair in text.split(|&byte| byte == b'&') {
            if pairs.len() >= limits::QUERY_PAIRS {
                return Err(QueryRefusal::TooLong);
            }
            let mut halves = pair.splitn(2, |&byte| byte == b'=');
            let name = part(halves.next().unwrap_or_default())?;
            let value = part(halves.next().unwrap_or_default())?;
            if name.is_empty() {
                return Err(QueryRefusal::EmptyPair);
            }
            pairs.push((name, value));
        }
        Ok(Self { pairs })
    }

    /// Pairs that were made here, not read.
    #[must_use]
    pub fn from_pairs(pairs: Vec<(String, String)>) -> Self {
        Self { pairs }
    }

    /// The pairs, in order.
    #[must_use]
    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// All values of `name`, in order.
    pub fn values<'q>(&'q self, name: &'q str) -> impl Iterator<Item = &'q str> {
        self.pairs.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Names that stand more than once, each once, in order.
    #[must_use]
    pub fn duplicates(&self) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        for (index, (name, _)) in self.pairs.iter().enumerate() {
            let is_repeat = self.pairs.iter().take(index).any(|(earlier, _)| earlier == name);
            if is_repeat && !found.contains(&name.as_str()) {
                found.push(name);
            }
        }
        found
    }

    /// The query in canonical form, without `?`; empty if there are no pairs.
    #[must_use]
    pub fn rebuild(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.pairs {
            if !text.is_empty() {
                text.push('&');
            }
            text.extend(utf8_percent_encode(name, VALUE));
            text.push('=');
            text.extend(utf8_percent_encode(value, VALUE));
        }
        text
    }
}

fn part(text: &[u8]) -> Result<String, QueryRefusal> {
    if text.contains(&b';') {
        return Err(QueryRefusal::Semicolon);
    }
    let spaced: Vec<u8> =
        text.iter().flat_map(|&byte| if byte == b'+' { b"%20".to_vec() } else { vec![byte] }).collect();
    let decoded = decode(&spaced, is_query_byte).map_err(|refusal| match refusal {
        PathRefusal::Escape => QueryRefusal::Escape,
        PathRefusal::NotUtf8 => QueryRefusal::NotUtf8,
        _ => QueryRefusal::Unencoded,
    })?;
    if decoded.contains('\0') { Err(QueryRefusal::Nul) } else { Ok(decoded) }
}

/// RFC 3986 `query`, and the brackets that people leave unencoded in names such as `filter[x]`.
fn is_query_byte(byte: u8) -> Result<(), PathRefusal> {
    let is_plain = byte.is_ascii_alphanumeric() || b"-._~!$'()*,=:@/?[]".contains(&byte);
    if is_plain { Ok(()) } else { Err(PathRefusal::Unencoded) }
}

#[cfg(test)]
mod tests;
