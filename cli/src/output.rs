// SPDX-License-Identifier: Apache-2.0
//! The one place that prints.
//!
//! Names, reasons and output of sandboxes come from others: control and direction characters are
//! written out, so that nobody's text moves the cursor, recolours a line or reorders it. Only what
//! a command inside a sandbox wrote is passed on as it is, and only to a pipe or file.
#![expect(clippy::print_stderr, reason = "this module is the program's mouth")]

use crate::failure::Failure;
use serde::Serialize;
use std::io::{IsTerminal as _, Write as _};

/// How to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// `json` turns tables and sentences into JSON.
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// A line for people, which may hold line breaks of our own.
    pub(crate) fn line(self, text: &str) {
        // A closed pipe (`| head`) is the reader's choice, not a failure.
        drop(writeln!(std::io::stdout().lock(), "{}", escaped(text)));
    }

    /// A line about what is going on, beside the answer.
    pub(crate) fn note(self, text: &str) {
        drop(writeln!(std::io::stderr().lock(), "{}", escaped(text)));
    }

    /// A value: pretty JSON in either mode.
    pub(crate) fn value(self, value: &impl Serialize) {
        let text = serde_json::to_string_pretty(value).unwrap_or_default();
        drop(writeln!(std::io::stdout().lock(), "{}", escaped_json(&text)));
    }

    /// A value on a line of its own.
    pub(crate) fn record(self, value: &impl Serialize) {
        let text = serde_json::to_string(value).unwrap_or_default();
        drop(writeln!(std::io::stdout().lock(), "{}", escaped_json(&text)));
    }

    /// Text that was made here for another program, as it is.
    pub(crate) fn generated(self, text: &[u8]) {
        drop(std::io::stdout().lock().write_all(text));
    }

    /// The answer as JSON if that is wanted, else as `text` says.
    pub(crate) fn answer(self, value: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json { self.value(value) } else { self.line(&text()) }
    }

    /// Text for people alone: nothing where JSON is wanted, whose answer comes after.
    pub(crate) fn text(self, text: impl FnOnce() -> String) {
        if !self.json {
            self.line(&text());
        }
    }

    /// One of many answers: JSON on a line of its own if that is wanted, else as `text` says.
    pub(crate) fn each(self, value: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json { self.record(value) } else { self.line(&text()) }
    }

    /// What was done to one of many: JSON on a line of its own if that is wanted, else a note beside the answer.
    pub(crate) fn done(self, value: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json { self.record(value) } else { self.note(&text()) }
    }

    /// Why the command failed.
    pub(crate) fn failure(self, failure: &Failure) {
        match failure {
            Failure::Command(_) => {}
            Failure::Refused(problem) if self.json => {
                let text = serde_json::to_string(problem).unwrap_or_default();
                eprintln!("{}", escaped_json(&text));
            }
            other => eprintln!("error: {}", escaped(&other.to_string())),
        }
    }

    /// Bytes that a command inside a sandbox wrote.
    pub(crate) fn guest(self, stream: Stream, bytes: &[u8]) {
        let write = |mut to: Box<dyn std::io::Write>, is_terminal: bool| {
            let text;
            let shown = if is_terminal {
                text = escaped(&String::from_utf8_lossy(bytes));
                text.as_bytes()
            } else {
                bytes
            };
            drop(to.write_all(shown).and_then(|()| to.flush()));
        };
        match stream {
            Stream::Out => write(Box::new(std::io::stdout().lock()), std::io::stdout().is_terminal()),
            Stream::Error => write(Box::new(std::io::stderr().lock()), std::io::stderr().is_terminal()),
        }
    }
}

/// Which of its two streams a command wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Error,
}

/// `text` with every character that a terminal acts on written out, but line breaks and tabs.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if is_acted_on(character) { safe.extend(character.escape_unicode()) } else { safe.push(character) }
    }
    safe
}

/// JSON with those characters in its own notation, so that it means the same. The ASCII ones it
/// has escaped already.
fn escaped_json(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if is_acted_on(character) {
            safe.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            safe.push(character);
        }
    }
    safe
}

fn is_acted_on(character: char) -> bool {
    (character.is_control() && !matches!(character, '\n' | '\t')) || is_direction(character)
}

/// Characters that reorder the text around them (Unicode's bidirectional controls).
const fn is_direction(character: char) -> bool {
    matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Rows under headings, each column as wide as its widest cell.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headings.iter().map(|heading| heading.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(escaped(cell).chars().count());
        }
    }
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{:<width$}", escaped(cell)));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let headings: Vec<String> = headings.iter().map(|heading| (*heading).to_owned()).collect();
    let lines: Vec<String> =
        std::iter::once(line(&headings)).chain(rows.iter().map(|row| line(row))).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_terminal_acts_on_is_written_out() {
        assert_eq!(escaped("a\u{1b}[2J\u{7}\r\n\tb"), "a\\u{1b}[2J\\u{7}\\u{d}\n\tb");
        assert_eq!(escaped("\u{202e}gpj.exe\u{9b}"), "\\u{202e}gpj.exe\\u{9b}");
        assert_eq!(escaped("Grüße, 世界"), "Grüße, 世界");
    }

    #[test]
    fn escaped_json_means_the_same() {
        let value = serde_json::json!({"a": "\u{202e}\u{9b}\u{1b}\n"});
        let shown = escaped_json(&value.to_string());
        assert_eq!(shown, r#"{"a":"\u202e\u009b\u001b\n"}"#);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).expect("is JSON"), value);
    }

    #[test]
    fn tables_line_up_and_no_cell_breaks_out() {
        let rows = vec![
            vec!["sandbox-a".to_owned(), "running".to_owned()],
            vec!["b\u{1b}[1m".to_owned(), "x".to_owned()],
        ];
        insta::assert_snapshot!(table(&["SANDBOX", "STATUS"], &rows), @r"
        SANDBOX     STATUS
        sandbox-a   running
        b\u{1b}[1m  x
        ");
    }

    proptest! {
        #[test]
        fn escaped_text_holds_no_control_character(text in "\\PC{0,20}[\\x00-\\x1f\\x7f-\\u{9f}]{0,8}\\PC{0,20}") {
            prop_assert!(escaped(&text).chars().all(|it| !it.is_control() || matches!(it, '\n' | '\t')));
        }
    }
}
