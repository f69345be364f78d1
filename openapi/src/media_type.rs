// SPDX-License-Identifier: Apache-2.0
//! Media types (RFC 9110 §8.3.1), read strictly and written again in one form.
//!
//! Of `mime` and its like none refuses a parameter that stands twice, and what a server makes of
//! `application/json,x` or of two `charset`s is its own affair: such types are refused here, and
//! what is forwarded is what was read.

use std::fmt;

/// A media type with its parameters, such as a `Content-Type` names. May be a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaType {
    essence: String,
    parameters: Vec<(String, String)>,
}

/// Why a text is no media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MediaTypeRefusal {
    /// Not `type/subtype` of token characters, with parameters after `;`.
    #[error("it is no media type such as `application/json` or `text/plain; charset=utf-8`")]
    Form,
    /// The same parameter twice.
    #[error("a parameter of the media type stands twice")]
    Repeated,
}

impl MediaType {
    /// Reads a media type. Type, subtype and names of parameters come out in lower case.
    ///
    /// # Errors
    /// [`MediaTypeRefusal`] for what two servers could read differently.
    pub fn parse(text: &str) -> Result<Self, MediaTypeRefusal> {
        let (essence, mut rest) = text.split_once(';').map_or((text, ""), |(first, rest)| (first, rest));
        let essence = trimmed(essence);
        let (kind, subtype) = essence.split_once('/').ok_or(MediaTypeRefusal::Form)?;
        if !is_token(kind) || !is_token(subtype) {
            return Err(MediaTypeRefusal::Form);
        }
        let mut parameters: Vec<(String, String)> = Vec::new();
        while !rest.is_empty() {
            rest = rest.trim_start_matches([' ', '\t', ';']);
            let Some((name, after)) = rest.split_once('=') else {
                break;
            };
            let (value, after) = value(after)?;
            let name = name.to_ascii_lowercase();
            if !is_token(&name) {
                return Err(MediaTypeRefusal::Form);
            }
            if parameters.iter().any(|(earlier, _)| *earlier == name) {
                return Err(MediaTypeRefusal::Repeated);
            }
            parameters.push((name, value));
            rest = after.trim_start_matches([' ', '\t']);
            if !rest.is_empty() && !rest.starts_with(';') {
                return Err(MediaTypeRefusal::Form);
            }
        }
        if !rest.is_empty() {
            return Err(MediaTypeRefusal::Form);
        }
        Ok(Self { essence: essence.to_ascii_lowercase(), parameters })
    }

    /// Type and subtype in lower case, without parameters.
    #[must_use]
    pub fn essence(&self) -> &str {
        &self.essence
    }

    /// The value of a parameter, unquoted.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether it stands for several types, as `image/*` does.
    #[must_use]
    pub fn is_range(&self) -> bool {
        self.essence.contains('*')
    }

    /// The same type with no parameters but these.
    #[must_use]
    pub fn with_only(self, names: &[&str]) -> Self {
        let kept = self.parameters.into_iter().filter(|(name, _)| names.contains(&name.as_str()));
        Self { parameters: kept.collect(), ..self }
    }
}

/// A parameter's value, and what follows it.
fn value(text: &str) -> Result<(String, &str), MediaTypeRefusal> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ' ', '\t']).unwrap_or(text.len());
        let (token, rest) = text.split_at(end);
        return if is_token(token) { Ok((token.to_owned(), rest)) } else { Err(MediaTypeRefusal::Form) };
    };
    let mut value = String::new();
    let mut characters = quoted.chars();
    loop {
        let next = match characters.next().ok_or(MediaTypeRefusal::Form)? {
            '"' => return Ok((value, characters.as_str())),
            '\\' => characters.next().ok_or(MediaTypeRefusal::Form)?,
            plain => plain,
        };
        if next.is_control() || !next.is_ascii() {
            return Err(MediaTypeRefusal::Form);
        }
        value.push(next);
    }
}

fn trimmed(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// RFC 9110 §5.6.2.
pub(crate) fn is_token(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_part)
}

impl fmt::Display for MediaType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.essence)?;
        for (name, value) in &self.parameters {
            if is_token(value) {
                write!(formatter, "; {name}={value}")?;
            } else {
                let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
                write!(formatter, "; {name}=\"{escaped}\"")?;
            }
        }
        Ok(())
    }
}

/// How a body is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContentKind {
    /// `application/json`, `text/json` and `+json`: [`crate::json::parse`].
    Json,
    /// `application/x-www-form-urlencoded`: [`crate::Query::parse_form`].
    Form,
    /// `multipart/*`. The fields of `multipart/form-data` have the schema's properties; taking it
    /// apart is the caller's. Others are of this kind too, because servers (Rack) find fields in
    /// them.
    Multipart,
    /// Anything else, and every range: not looked into by its type alone.
    Other,
}

impl ContentKind {
    /// How a body of this type is read: the one place that decides it. `essence` is as
    /// [`MediaType::essence`] gives it.
    #[must_use]
    pub fn of(essence: &str) -> Self {
        match essence.split_once('/') {
            Some((_, subtype)) if is_json(subtype) => Self::Json,
            Some(("application", "x-www-form-urlencoded")) => Self::Form,
            Some(("multipart", _)) => Self::Multipart,
            _ => Self::Other,
        }
    }
}

fn is_json(subtype: &str) -> bool {
    matches!(subtype, "json" | "x-json") || subtype.ends_with("+json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> Result<String, MediaTypeRefusal> {
        MediaType::parse(text).map(|media| media.to_string())
    }

    #[test]
    fn types_come_out_in_one_form() {
        assert_eq!(shown("Application/JSON").as_deref(), Ok("application/json"));
        assert_eq!(shown(" text/plain ;\tCharset=UTF-8 ").as_deref(), Ok("text/plain; charset=UTF-8"));
        assert_eq!(shown("text/plain;charset=\"utf-8\";").as_deref(), Ok("text/plain; charset=utf-8"));
        let odd = r#"multipart/form-data; boundary="a \"b\;c""#;
        assert_eq!(MediaType::parse(odd).expect("read").parameter("boundary"), Some("a \"b;c"));
        assert_eq!(shown(odd).as_deref(), Ok(r#"multipart/form-data; boundary="a \"b;c""#));
        assert!(MediaType::parse("image/*").expect("read").is_range());
    }

    #[test]
    fn what_servers_could_read_differently_is_refused() {
        for text in [
            "",
            "json",
            "/json",
            "application/",
            "application/json,x",
            "application/x-www-form-urlencoded,x",
            "application/json x",
            "application /json",
            "application/json; charset",
            "application/json; charset=",
            "application/json; charset=\"utf-8",
            "application/json; charset=\"utf-8\" x",
            "application/json; a b=c",
            "application/json; charset=a,b",
            "text/plain/html",
            "\u{ff41}pplication/json",
        ] {
            assert_eq!(shown(text), Err(MediaTypeRefusal::Form), "{text}");
        }
        let twice = "application/json; charset=utf-8; Charset=utf-16";
        assert_eq!(shown(twice), Err(MediaTypeRefusal::Repeated));
    }

    #[test]
    fn a_kind_follows_from_the_type_alone() {
        for (essence, kind) in [
            ("application/json", ContentKind::Json),
            ("text/json", ContentKind::Json),
            ("application/x-json", ContentKind::Json),
            ("application/vnd.api+json", ContentKind::Json),
            ("image/x+json", ContentKind::Json),
            ("application/x-www-form-urlencoded", ContentKind::Form),
            ("multipart/form-data", ContentKind::Multipart),
            ("multipart/mixed", ContentKind::Multipart),
            ("application/octet-stream", ContentKind::Other),
            ("text/plain", ContentKind::Other),
            ("*/*", ContentKind::Other),
            ("application/*", ContentKind::Other),
            ("", ContentKind::Other),
        ] {
            assert_eq!(ContentKind::of(essence), kind, "{essence}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same(text in r#"[a-z*]{1,4}/[a-zA-Z+]{1,4}(; ?[a-c]=("([ -~&&[^"\\]]|\\[ -~])*"|[a-z!]+)){0,2}"#) {
            if let Ok(media) = MediaType::parse(&text) {
                prop_assert_eq!(MediaType::parse(&media.to_string()), Ok(media));
            }
        }

        #[test]
        fn nothing_panics(text in ".{0,40}") {
            drop(MediaType::parse(&text));
        }
    }
}
