// SPDX-License-Identifier: Apache-2.0
//! Policies in the one way they are written: Cedar's own formatter, with mistakes told as
//! everywhere else.

use crate::compile::syntax;
use crate::mistake::{Mistake, Place};
use crate::source::{PolicySource, pieces};
use cedar_policy_formatter::{Config, policies_str_to_pretty};

/// Cedar's own widths.
const LAYOUT: Config = Config { line_width: 80, indent_width: 2 };

/// The file as it should be written. Comments stay, and what the policies mean.
///
/// # Errors
/// Every policy that cannot be parsed; or that the file cannot be laid out anew.
pub fn format(source: &PolicySource) -> Result<String, Vec<Mistake>> {
    let place = Place { file: &source.name, text: &source.text };
    let mut mistakes = Vec::new();
    for piece in pieces(&source.text) {
        for finding in syntax(piece.text).err().into_iter().flatten() {
            let range = piece.offset + finding.range.start..piece.offset + finding.range.end;
            mistakes.push(place.mistake(range, finding.message, finding.help));
        }
    }
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let refuse = |at, error: String| {
        let help = "write it by hand; what the file means was not changed".to_owned();
        vec![place.mistake(at..at, format!("this cannot be laid out: {error}"), Some(help))]
    };
    let mut tidy = String::new();
    let mut end = 0;
    for piece in pieces(&source.text) {
        between(&mut tidy, source.text.get(end..piece.offset).unwrap_or_default());
        let laid_out = policies_str_to_pretty(piece.text, &LAYOUT)
            .map_err(|error| refuse(piece.offset, error.to_string()))?;
        tidy.push_str(laid_out.trim_end());
        end = piece.offset + piece.text.len();
    }
    between(&mut tidy, source.text.get(end..).unwrap_or_default());
    tidy.truncate(tidy.trim_end().len());
    tidy.push('\n');
    Ok(tidy)
}

/// Writes the comments between two policies: one beside the policy before stays there, blocks stay
/// apart, and each policy is set off by an empty line.
fn between(tidy: &mut String, gap: &str) {
    let mut lines = gap.lines();
    if !tidy.is_empty() {
        let beside = lines.next().unwrap_or_default().trim();
        if !beside.is_empty() {
            tidy.push(' ');
            tidy.push_str(beside);
        }
        tidy.push_str("\n\n");
    }
    for line in lines.map(str::trim) {
        match line {
            "" if tidy.is_empty() || tidy.ends_with("\n\n") => {}
            "" => tidy.push('\n'),
            comment => {
                tidy.push_str(comment);
                tidy.push('\n');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{source, told};

    const UNTIDY: &str = r#"
// Of the desk.


// Who may write.
@id("writes") @reason("a; reason") permit(principal,action in support_desk::Action::"write", resource) // all
when{context.body.count>5&&context.body has urgent}; // beside
@id("reads") permit(principal, action, resource);


// the end
"#;

    #[test]
    fn a_file_is_laid_out_and_keeps_its_comments() {
        let tidy = format(&source(UNTIDY)).unwrap_or_else(|mistakes| panic!("{}", told(&mistakes)));
        insta::assert_snapshot!(tidy);
        assert_eq!(format(&source(&tidy)).ok().as_deref(), Some(tidy.as_str()), "once is enough");
    }

    #[test]
    fn what_cannot_be_parsed_is_told_with_its_place_and_nothing_is_written() {
        let wrong = format!(
            "{UNTIDY}permit(principal, action);\npermit(principal, action, resource) when {{ 1 + }};"
        );
        insta::assert_snapshot!(told(&format(&source(&wrong)).expect_err("is wrong")));
    }
}
