// SPDX-License-Identifier: Apache-2.0
//! Paths: read strictly from a request, matched to templates, written again canonically.
//!
//! A path that two servers could read differently is refused, never repaired. What is forwarded
//! is made from the decoded segments, so nothing that was refused can come out again.

use crate::limits;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::fmt;

/// All but RFC 3986's unreserved characters: how a parameter's value is written.
pub(crate) const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// All that may not stand plainly in a segment, and `;`: how a literal segment is written, so that
/// `/v1/messages:send` arrives as the backend's document spells it.
const LITERAL: &AsciiSet = &VALUE
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// Why a request's path is refused. Each is a way in which two servers read one path differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathRefusal {
    /// Not an absolute path.
    #[error("the path does not begin with `/`")]
    NotAbsolute,
    /// Over [`limits::PATH_BYTES`] or [`limits::PATH_SEGMENTS`].
    #[error("the path is too long")]
    TooLong,
    /// `//`.
    #[error("the path has an empty segment; send single slashes")]
    EmptySegment,
    /// `.` or `..`, plain or encoded.
    #[error("the path has a dot segment; send it resolved")]
    DotSegment,
    /// An encoded `/`, or a backslash in any form.
    #[error("a path segment holds a slash or backslash; they only separate")]
    HiddenSlash,
    /// `;` in any form.
    #[error("the path holds `;`; path parameters of that form are not supported")]
    Semicolon,
    /// NUL, line feeds and other control characters, encoded or not.
    #[error("the path holds a control character")]
    Control,
    /// `%` without two hex digits.
    #[error("the path has a `%` that two hex digits do not follow")]
    Escape,
    /// An escape that decodes to an escape.
    #[error("the path is percent-encoded twice; encode it once")]
    EncodedTwice,
    /// The decoded bytes are not UTF-8 (overlong forms and surrogates included).
    #[error("the path does not decode to UTF-8")]
    NotUtf8,
    /// A character that RFC 3986 wants encoded.
    #[error("the path holds a character that must be percent-encoded")]
    Unencoded,
}

/// A request's path, decoded segment by segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestPath {
    segments: Vec<String>,
    has_trailing_slash: bool,
}

impl RequestPath {
    /// Reads the path of a request target, without its query.
    ///
    /// # Errors
    /// [`PathRefusal`] names the first reason to refuse it.
    pub fn parse(path: &str) -> Result<Self, PathRefusal> {
        let inner = path.strip_prefix('/').ok_or(PathRefusal::NotAbsolute)?;
        if path.len() > limits::PATH_BYTES {
            return Err(PathRefusal::TooLong);
        }
        if inner.is_empty() {
            return Ok(Self { segments: Vec::new(), has_trailing_slash: false });
        }
        let (inner, has_trailing_slash) =
            inner.strip_suffix('/').map_or((inner, false), |short| (short, true));
        let segments = inner.split('/').map(segment).collect::<Result<Vec<_>, _>>()?;
        if segments.len() > limits::PATH_SEGMENTS {
            return Err(PathRefusal::TooLong);
        }
        Ok(Self { segments, has_trailing_slash })
    }

    /// The decoded segments; none for `/`.
    #[must_use]
    pub fn segments(&self) -> &[String] {
        &self.segments
    }

    /// Whether a slash stands after the last segment. `/a` and `/a/` are two paths.
    #[must_use]
    pub fn has_trailing_slash(&self) -> bool {
        self.has_trailing_slash
    }

    /// The path in canonical form, for a backend without a document.
    #[must_use]
    pub fn rebuild(&self) -> String {
        let segments = self.segments.iter().map(|segment| Segment::Literal(segment.clone()).written(segment));
        joined(segments, self.has_trailing_slash)
    }

    /// The path without its first segment, where that named the backend; `None` for `/`.
    #[must_use]
    pub fn split_first(&self) -> Option<(&str, Self)> {
        let (first, rest) = self.segments.split_first()?;
        let has_trailing_slash = self.has_trailing_slash && !rest.is_empty();
        Some((first, Self { segments: rest.to_vec(), has_trailing_slash }))
    }
}

fn joined(segments: impl Iterator<Item = String>, has_trailing_slash: bool) -> String {
    let mut path = String::new();
    for segment in segments {
        path.push('/');
        path.push_str(&segment);
    }
    if has_trailing_slash || path.is_empty() {
        path.push('/');
    }
    path
}

fn segment(text: &str) -> Result<String, PathRefusal> {
    if text.is_empty() {
        return Err(PathRefusal::EmptySegment);
    }
    let decoded = decode(text.as_bytes(), is_segment_byte)?;
    if decoded == "." || decoded == ".." {
        return Err(PathRefusal::DotSegment);
    }
    for character in decoded.chars() {
        match character {
            '/' | '\\' => return Err(PathRefusal::HiddenSlash),
            ';' => return Err(PathRefusal::Semicolon),
            character if character.is_control() => return Err(PathRefusal::Control),
            _ => {}
        }
    }
    if has_escape(&decoded) {
        return Err(PathRefusal::EncodedTwice);
    }
    Ok(decoded)
}

/// RFC 3986 `pchar`, without `;`.
fn is_segment_byte(byte: u8) -> Result<(), PathRefusal> {
    match byte {
        b';' => Err(PathRefusal::Semicolon),
        b'\\' => Err(PathRefusal::HiddenSlash),
        0..=0x1f | 0x7f => Err(PathRefusal::Control),
        b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'='
        | b':' | b'@' => Ok(()),
        byte if byte.is_ascii_alphanumeric() => Ok(()),
        _ => Err(PathRefusal::Unencoded),
    }
}

/// Percent-decodes; every byte that is not an escape must satisfy `check`.
pub(crate) fn decode(
    text: &[u8],
    check: impl Fn(u8) -> Result<(), PathRefusal>,
) -> Result<String, PathRefusal> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    loop {
        rest = match rest {
            [] => break,
            [b'%', high, low, after @ ..] => {
                decoded.push(
                    hex(*high)
                        .zip(hex(*low))
                        .map_or(Err(PathRefusal::Escape), |(high, low)| Ok(high * 16 + low))?,
                );
                after
            }
            [b'%', ..] => return Err(PathRefusal::Escape),
            [byte, after @ ..] => {
                check(*byte)?;
                decoded.push(*byte);
                after
            }
        };
    }
    String::from_utf8(decoded).map_err(|_utf8| PathRefusal::NotUtf8)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn has_escape(text: &str) -> bool {
    text.as_bytes()
        .windows(3)
        .any(|window| matches!(window, [b'%', high, low] if hex(*high).and(hex(*low)).is_some()))
}

/// One segment of a template.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Segment {
    /// Must be there as it is (decoded).
    Literal(String),
    /// Stands for one whole, non-empty segment.
    Parameter(String),
}

impl Segment {
    fn written(&self, value: &str) -> String {
        let set = if matches!(self, Self::Literal(_)) { LITERAL } else { VALUE };
        utf8_percent_encode(value, set).to_string()
    }
}

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A literal segment that no accepted request could have.
    #[error("a literal segment is refused: {0}")]
    Literal(#[from] PathRefusal),
    /// Braces that are not one whole segment.
    #[error("`{segment}` mixes text and parameter; a parameter is one whole segment, as in `/orders/{{id}}`")]
    Partial {
        /// The segment.
        segment: String,
    },
    /// A name twice, or none.
    #[error("the parameter `{name}` is empty or stands twice; give each its own name")]
    Name {
        /// The name.
        name: String,
    },
    /// A name with line feeds or the like, which could pass for more than a name wherever a
    /// template is written.
    #[error("the name of a parameter holds a control character; rename it")]
    ControlInName,
}

/// A path with parameters, such as `/customers/{customerId}/orders`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PathTemplate {
    segments: Vec<Segment>,
    has_trailing_slash: bool,
    is_any: bool,
}

impl PathTemplate {
    /// The template of a backend without a document, which fits every path. Shown as `/**`.
    #[must_use]
    pub fn any() -> Self {
        Self { segments: Vec::new(), has_trailing_slash: false, is_any: true }
    }

    /// Whether this is [`PathTemplate::any`].
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.is_any
    }

    /// Reads a template.
    ///
    /// # Errors
    /// [`TemplateError`] if a literal would be refused in a request, or a parameter is not one
    /// whole segment with a name of its own.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let inner = text.strip_prefix('/').ok_or(PathRefusal::NotAbsolute)?;
        if text.len() > limits::PATH_BYTES {
            return Err(PathRefusal::TooLong.into());
        }
        if inner.is_empty() {
            return Ok(Self { segments: Vec::new(), has_trailing_slash: false, is_any: false });
        }
        let (inner, has_trailing_slash) =
            inner.strip_suffix('/').map_or((inner, false), |short| (short, true));
        let mut segments: Vec<Segment> = Vec::new();
        for part in inner.split('/') {
            let next = template_segment(part)?;
            if matches!(&next, Segment::Parameter(_)) && segments.contains(&next) {
                return Err(TemplateError::Name { name: part.to_owned() });
            }
            segments.push(next);
        }
        if segments.len() > limits::PATH_SEGMENTS {
            return Err(PathRefusal::TooLong.into());
        }
        Ok(Self { segments, has_trailing_slash, is_any: false })
    }

    /// The segments; none for `/`.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether the template ends with a slash.
    #[must_use]
    pub fn has_trailing_slash(&self) -> bool {
        self.has_trailing_slash
    }

    /// Names of the parameters, in order.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Parameter(name) => Some(name.as_str()),
            Segment::Literal(_) => None,
        })
    }

    /// The path that this template gives with `values`, canonically encoded.
    ///
    /// # Errors
    /// [`PathRefusal`] if a value could not have come in by [`RequestPath::parse`] either, and
    /// [`PathRefusal::EmptySegment`] if one is missing.
    pub fn rebuild<'v>(&self, value_of: impl Fn(&str) -> Option<&'v str>) -> Result<String, PathRefusal> {
        let mut written = Vec::with_capacity(self.segments.len());
        for part in &self.segments {
            written.push(match part {
                Segment::Literal(text) => part.written(text),
                Segment::Parameter(name) => {
                    let encoded = part.written(value_of(name).ok_or(PathRefusal::EmptySegment)?);
                    segment(&encoded)?;
                    encoded
                }
            });
        }
        Ok(joined(written.into_iter(), self.has_trailing_slash))
    }
}

fn template_segment(part: &str) -> Result<Segment, TemplateError> {
    if let Some(name) = part.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        if name.is_empty() {
            return Err(TemplateError::Name { name: part.to_owned() });
        }
        if name.contains(char::is_control) {
            return Err(TemplateError::ControlInName);
        }
        if !name.contains(['{', '}']) {
            return Ok(Segment::Parameter(name.to_owned()));
        }
    }
    if part.contains(['{', '}']) {
        return Err(TemplateError::Partial { segment: part.to_owned() });
    }
    Ok(Segment::Literal(segment(part)?))
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_any {
            return formatter.write_str("/**");
        }
        let parts = self.segments.iter().map(|part| match part {
            Segment::Literal(text) => part.written(text),
            Segment::Parameter(name) => format!("{{{name}}}"),
        });
        formatter.write_str(&joined(parts, self.has_trailing_slash))
    }
}

impl fmt::Debug for PathTemplate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PathTemplate({self})")
    }
}

#[cfg(test)]
mod tests;
