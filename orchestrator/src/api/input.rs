// SPDX-License-Identifier: Apache-2.0
//! Reading what callers send: every mistake at once, each with its place; what is not known is
//! refused.

use postern_common::problem::{Code, FieldError, Problem};
use postern_openapi::json;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

/// A JSON object that is taken apart field by field.
#[derive(Debug)]
pub(crate) struct Fields {
    rest: Map<String, Value>,
    mistakes: Vec<FieldError>,
}

/// Longest text of a field that is shown or stored as it is.
const MAX_LABELS: usize = 64;
const LABEL_BYTES: usize = 256;

impl Fields {
    /// Reads an object; no body at all is an empty one.
    pub(crate) fn read(body: &[u8]) -> Result<Self, Problem> {
        Self::read_up_to(body, super::body::JSON_BYTES)
    }

    /// As [`Fields::read`], for bodies that may be longer than most.
    pub(crate) fn read_up_to(body: &[u8], bytes: usize) -> Result<Self, Problem> {
        if body.is_empty() {
            return Ok(Self { rest: Map::new(), mistakes: Vec::new() });
        }
        match parse(body, bytes)? {
            Value::Object(rest) => Ok(Self { rest, mistakes: Vec::new() }),
            _ => Err(invalid(vec![FieldError {
                pointer: String::new(),
                message: "expected an object".to_owned(),
            }])),
        }
    }

    /// Notes a mistake.
    pub(crate) fn mistake(&mut self, pointer: impl Into<String>, message: impl Into<String>) {
        self.mistakes.push(FieldError { pointer: pointer.into(), message: message.into() });
    }

    /// Takes a field that may be absent; `null` counts as absent.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.rest.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a text and parses it.
    pub(crate) fn parsed<T: FromStr<Err: Display>>(&mut self, name: &str) -> Option<T> {
        let text = self.text(name)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.mistake(format!("/{name}"), error.to_string());
                None
            }
        }
    }

    /// Takes a text that must be there and parses it.
    pub(crate) fn required<T: FromStr<Err: Display>>(&mut self, name: &str) -> Option<T> {
        if self.rest.get(name).is_none_or(Value::is_null) {
            self.rest.remove(name);
            self.mistake(format!("/{name}"), "is required");
            return None;
        }
        self.parsed(name)
    }

    /// Takes a text.
    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text),
            _ => {
                self.mistake(format!("/{name}"), "expected a string");
                None
            }
        }
    }

    /// Takes `true` or `false`.
    pub(crate) fn flag(&mut self, name: &str) -> Option<bool> {
        match self.take(name)? {
            Value::Bool(flag) => Some(flag),
            _ => {
                self.mistake(format!("/{name}"), "expected true or false");
                None
            }
        }
    }

    /// Takes a duration such as `30s` or `1h`, above zero.
    pub(crate) fn duration(&mut self, name: &str) -> Option<Duration> {
        let text = self.text(name)?;
        let parsed = jiff::fmt::friendly::SpanParser::new().parse_unsigned_duration(&text).ok();
        let parsed = parsed.filter(|duration| !duration.is_zero());
        if parsed.is_none() {
            self.mistake(format!("/{name}"), "expected a duration above zero, such as `30s` or `1h`");
        }
        parsed
    }

    /// Takes a list of texts and parses each.
    pub(crate) fn list<T: FromStr<Err: Display>>(&mut self, name: &str) -> Option<Vec<T>> {
        let Value::Array(items) = self.take(name)? else {
            self.mistake(format!("/{name}"), "expected a list of strings");
            return None;
        };
        let mut list = Vec::with_capacity(items.len());
        for (place, item) in items.iter().enumerate() {
            match item.as_str().map(str::parse) {
                Some(Ok(value)) => list.push(value),
                Some(Err(error)) => self.mistake(format!("/{name}/{place}"), T::Err::to_string(&error)),
                None => self.mistake(format!("/{name}/{place}"), "expected a string"),
            }
        }
        Some(list)
    }

    /// Takes an object of texts.
    pub(crate) fn texts(&mut self, name: &str) -> Option<BTreeMap<String, String>> {
        let Value::Object(members) = self.take(name)? else {
            self.mistake(format!("/{name}"), "expected an object of strings");
            return None;
        };
        let mut texts = BTreeMap::new();
        for (key, value) in members {
            if let Value::String(text) = value {
                texts.insert(key, text);
            } else {
                self.mistake(format!("/{name}/{}", escaped(&key)), "expected a string");
            }
        }
        Some(texts)
    }

    /// Takes labels: few, short, without control characters.
    pub(crate) fn labels(&mut self, name: &str) -> Option<BTreeMap<String, String>> {
        let labels = self.texts(name)?;
        if labels.len() > MAX_LABELS {
            self.mistake(format!("/{name}"), format!("there are {}; {MAX_LABELS} are allowed", labels.len()));
        }
        for (key, value) in &labels {
            let is_plain = |text: &str| text.len() <= LABEL_BYTES && !text.chars().any(char::is_control);
            if key.is_empty() || !is_plain(key) || !is_plain(value) {
                let message =
                    "a label has at most 256 bytes, no control characters, and its key is not empty";
                self.mistake(format!("/{name}/{}", escaped(key)), message);
            }
        }
        Some(labels)
    }

    /// Takes an object as it is.
    pub(crate) fn object(&mut self, name: &str) -> Option<Map<String, Value>> {
        match self.take(name)? {
            Value::Object(members) => Some(members),
            _ => {
                self.mistake(format!("/{name}"), "expected an object");
                None
            }
        }
    }

    /// Whether all that was read is right, and nothing is left over.
    pub(crate) fn is_right(&self) -> bool {
        self.mistakes.is_empty() && self.rest.is_empty()
    }

    /// Ends the reading: what is left over is not known.
    pub(crate) fn finish(mut self) -> Result<(), Problem> {
        let unknown: Vec<String> = self.rest.keys().cloned().collect();
        for key in unknown {
            self.mistake(format!("/{}", escaped(&key)), "there is no such field");
        }
        if self.mistakes.is_empty() { Ok(()) } else { Err(invalid(self.mistakes)) }
    }
}

/// Reads JSON strictly: a key that stands twice is refused, for which one counts would be a guess.
pub(crate) fn parse(body: &[u8], bytes: usize) -> Result<Value, Problem> {
    let limits = json::Limits { bytes, ..json::Limits::default() };
    json::parse(body, limits).map_err(|refusal| {
        let place =
            if refusal.pointer.is_empty() { String::new() } else { format!(" at `{}`", refusal.pointer) };
        Problem::new(Code::RequestMalformed, format!("the body cannot be read as JSON: {refusal}{place}"))
            .hint("send one JSON object in UTF-8, each key once")
    })
}

/// A key as part of a JSON pointer (RFC 6901 §3).
pub(crate) fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// The problem of input with these mistakes.
pub(crate) fn invalid(mistakes: Vec<FieldError>) -> Problem {
    let count = mistakes.len();
    let detail = format!("the input has {count} mistake{}", if count == 1 { "" } else { "s" });
    Problem::new(Code::InvalidInput, detail).errors(mistakes).hint("mend each place that `errors` names")
}

/// The problem of input with one mistake.
pub(crate) fn mistaken(pointer: &str, message: impl Into<String>) -> Problem {
    invalid(vec![FieldError { pointer: pointer.to_owned(), message: message.into() }])
}

/// The pairs of a query, all of them known.
#[derive(Debug, Default)]
pub(crate) struct QueryPairs(BTreeMap<String, String>);

impl QueryPairs {
    /// Reads a query; a name that is not in `known`, or stands twice, is refused.
    pub(crate) fn read(query: &str, known: &[(&'static str, &'static str)]) -> Result<Self, Problem> {
        let mut pairs = BTreeMap::new();
        let mut mistakes = Vec::new();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let pointer = format!("/query/{}", escaped(&name));
            if !known.iter().any(|(known, _)| *known == name) {
                mistakes.push(FieldError { pointer, message: "there is no such parameter".to_owned() });
            } else if pairs.insert(name.into_owned(), value.into_owned()).is_some() {
                mistakes.push(FieldError { pointer, message: "stands twice".to_owned() });
            }
        }
        if mistakes.is_empty() { Ok(Self(pairs)) } else { Err(invalid(mistakes)) }
    }

    /// The text of a parameter.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A parameter, parsed.
    pub(crate) fn parsed<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>, Problem> {
        let parse = |text: &str| {
            text.parse().map_err(|error: T::Err| mistaken(&format!("/query/{name}"), error.to_string()))
        };
        self.text(name).map(parse).transpose()
    }

    /// Whether a flag is set: `?dry_run` and `?dry_run=true` set it.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.text(name) {
            None | Some("false") => Ok(false),
            Some("" | "true") => Ok(true),
            Some(_) => Err(mistaken(&format!("/query/{name}"), "expected `true` or `false`")),
        }
    }
}
