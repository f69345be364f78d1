// SPDX-License-Identifier: Apache-2.0
//! What is wrong with a policy set, told to its author with the place in the file.
//!
//! A mistake keeps its parts (editors and the API want them) and prints as a compiler would. It
//! does not decide what is wrong: `source`, `compile` and `policies` do.

use std::fmt;
use std::ops::Range;

/// One thing to mend in a policy set.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Mistake {
    /// The file, as it was named to `load`.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it, where something can be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The line of the file and a second one that points at the place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snippet: Option<String>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
        if let Some(snippet) = &self.snippet {
            let gutter = self.line.to_string();
            for (index, line) in snippet.lines().enumerate() {
                let margin = if index == 0 { gutter.as_str() } else { "" };
                write!(formatter, "\n  {margin:>width$} | {line}", width = gutter.len())?;
            }
        }
        if let Some(help) = &self.help {
            write!(formatter, "\n  help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistake {}

/// A place in a file that `Mistake`s can be made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) file: &'a str,
    /// The whole file.
    pub(crate) text: &'a str,
}

/// Characters of a line that a snippet shows.
const SNIPPET_WIDTH: usize = 160;

impl Place<'_> {
    /// A mistake about the bytes `range` of the file; what lies outside is brought inside.
    pub(crate) fn mistake(&self, range: Range<usize>, message: String, help: Option<String>) -> Mistake {
        let start = floor(self.text, range.start);
        let before = self.text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line_text = self.text.get(line_start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
        let column = self.text.get(line_start..start).unwrap_or_default().chars().count() + 1;
        let end = floor(self.text, range.end.max(start));
        let marked = self.text.get(start..end).unwrap_or_default();
        let length = marked.lines().next().unwrap_or_default().chars().count();
        Mistake {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column,
            message,
            help,
            snippet: snippet(line_text, column, length),
        }
    }
}

/// The line and, under it, carets; `None` where there is nothing to show.
fn snippet(line: &str, column: usize, length: usize) -> Option<String> {
    if line.trim().is_empty() || column > SNIPPET_WIDTH {
        return None;
    }
    let shown: String = line.chars().take(SNIPPET_WIDTH).collect();
    let room = SNIPPET_WIDTH + 1 - column;
    let carets = "^".repeat(length.clamp(1, room));
    Some(format!("{shown}\n{}{carets}", " ".repeat(column - 1)))
}

/// The nearest character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    text.floor_char_boundary(at.min(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, range: Range<usize>) -> Mistake {
        Place { file: "a.cedar", text }.mistake(range, "wrong".to_owned(), Some("mend it".to_owned()))
    }

    #[test]
    fn a_mistake_prints_its_line_with_a_pointer_and_what_to_do() {
        assert_eq!(
            at("one\ntwo three\n", 8..13).to_string(),
            "a.cedar:2:5: wrong\n  2 | two three\n    |     ^^^^^\n  help: mend it"
        );
    }

    #[test]
    fn columns_count_characters_and_offsets_inside_one_are_brought_to_its_start() {
        let mistake = at("ä日x", 3..6);
        assert_eq!((mistake.line, mistake.column), (1, 2));
    }

    #[test]
    fn a_place_beyond_the_file_is_its_end() {
        let mistake = at("x\n", 50..60);
        assert_eq!((mistake.line, mistake.column, mistake.snippet), (2, 1, None));
    }
}
