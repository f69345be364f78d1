// SPDX-License-Identifier: Apache-2.0
//! What is wrong: with a document ([`Mistake`]), or with a request ([`Violation`]).
//!
//! A mistake is for the author of the document and says what to do; a violation goes to the
//! caller, names a place in the request and never repeats the value that stood there.

use crate::limits;
use crate::source::At;
use std::fmt;

/// One thing that must change before a document is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// JSON pointer into the document; empty for the document as a whole.
    pub pointer: String,
    /// Line of the document, from 1, where it is known.
    pub line: Option<u64>,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(formatter, "line {line}: ")?;
        }
        if !self.pointer.is_empty() {
            write!(formatter, "{}: ", self.pointer)?;
        }
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Mistake {}

/// Collects mistakes up to [`limits::MISTAKES`]; what follows is only counted.
#[derive(Debug, Default)]
pub(crate) struct Mistakes {
    found: Vec<Mistake>,
    unreported: usize,
    repeated: usize,
}

impl Mistakes {
    pub(crate) fn add(&mut self, at: &At<'_>, message: impl Into<String>) {
        self.add_plain(Mistake { pointer: at.pointer.clone(), line: at.line(), message: message.into() });
    }

    pub(crate) fn add_plain(&mut self, mistake: Mistake) {
        if self.found.contains(&mistake) {
            self.repeated += 1; // reached again by another reference
        } else if self.found.len() >= limits::MISTAKES {
            self.unreported += 1;
        } else {
            self.found.push(mistake);
        }
    }

    /// How many there are, reported or not.
    pub(crate) fn count(&self) -> usize {
        self.found.len() + self.unreported + self.repeated
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// All that were found, in the order of the document's lines.
    pub(crate) fn into_vec(mut self) -> Vec<Mistake> {
        self.found.sort_by_key(|mistake| mistake.line);
        if self.unreported > 0 {
            let message = format!("{} more mistakes are not shown; mend these first", self.unreported);
            self.found.push(Mistake { pointer: String::new(), line: None, message });
        }
        self.found
    }
}

/// One place of a request that does not fit its operation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Violation {
    /// Where: `/path/…`, `/query/…`, `/header/…` or `/body/…`, as a JSON pointer.
    pub pointer: String,
    /// What was expected there. Never holds the value that was sent.
    pub message: String,
}

impl Violation {
    /// A violation at `pointer`; the message is cut at [`limits::VIOLATION_LENGTH`] characters.
    #[must_use]
    pub fn new(pointer: impl Into<String>, message: &str) -> Self {
        Self { pointer: pointer.into(), message: message.chars().take(limits::VIOLATION_LENGTH).collect() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.pointer, self.message)
    }
}

/// Appends one reference token to a JSON pointer (RFC 6901 §3).
pub(crate) fn push_token(pointer: &mut String, token: &str) {
    pointer.push('/');
    for character in token.chars() {
        match character {
            '~' => pointer.push_str("~0"),
            '/' => pointer.push_str("~1"),
            other => pointer.push(other),
        }
    }
}

/// `pointer` with one more token.
pub(crate) fn child(pointer: &str, token: &str) -> String {
    let mut longer = pointer.to_owned();
    push_token(&mut longer, token);
    longer
}
