// SPDX-License-Identifier: Apache-2.0
//! Takes policies out of shadow in their own text, and leaves every other character as it is.

use crate::compile::{identity, syntax};
use crate::source::pieces;
use std::collections::BTreeSet;
use std::ops::Range;

/// The text with `@mode("shadow")` taken from the policies with these ids, and the ids of those
/// from which it was taken. A policy that cannot be parsed stays as it is.
#[must_use]
pub fn enforced(text: &str, ids: &BTreeSet<String>) -> (String, BTreeSet<String>) {
    let (mut changed, mut found) = (String::with_capacity(text.len()), BTreeSet::new());
    let mut end = 0;
    for piece in pieces(text) {
        let Some((id, range)) = shadowed(piece.text).filter(|(id, _)| ids.contains(id)) else { continue };
        let range = piece.offset + range.start..piece.offset + range.end;
        changed.push_str(text.get(end..range.start).unwrap_or_default());
        end = range.end;
        found.insert(id);
    }
    changed.push_str(text.get(end..).unwrap_or_default());
    (changed, found)
}

/// The ids of the policies in shadow.
#[must_use]
pub fn in_shadow(text: &str) -> BTreeSet<String> {
    pieces(text).filter_map(|piece| shadowed(piece.text)).map(|(id, _)| id).collect()
}

/// The id of a policy in shadow, and where its `@mode("shadow")` stands with the space after it.
fn shadowed(text: &str) -> Option<(String, Range<usize>)> {
    let policy = syntax(text).ok()?;
    let mode = policy.annotations().find(|(name, _)| name.as_ref() == "mode")?;
    if mode.1.as_ref() != "shadow" {
        return None;
    }
    let id = identity(policy.annotations())?.to_owned();
    Some((id, annotation(text, "mode")?))
}

/// Where an annotation stands, up to what follows it.
fn annotation(text: &str, wanted: &str) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'/' if bytes.get(at + 1) == Some(&b'/') => at = line_end(bytes, at),
            b'"' => at = string_end(bytes, at),
            b'@' => {
                let name = text.get(at + 1..)?.trim_start();
                let rest = name.strip_prefix(wanted);
                let is_it = rest.is_some_and(|rest| {
                    !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_')
                });
                if is_it {
                    let value = at + text.get(at..)?.find('"')?;
                    let close = string_end(bytes, value);
                    let end = close + text.get(close..)?.find(')')? + 1;
                    let space = text.get(end..)?.len() - text.get(end..)?.trim_start().len();
                    return Some(at..end + space);
                }
                at += 1;
            }
            _ => at += 1,
        }
    }
    None
}

fn line_end(bytes: &[u8], from: usize) -> usize {
    bytes.iter().skip(from).position(|byte| *byte == b'\n').map_or(bytes.len(), |found| from + found)
}

/// Past the string that begins at `from`.
fn string_end(bytes: &[u8], from: usize) -> usize {
    let mut at = from + 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"// @mode("shadow") in a comment
@id("one") @mode("shadow")
permit (principal, action, resource); // one
@reason("@mode(\"shadow\") in a string; and so on")
@mode ( "shadow" ) // watching
@id("two")
forbid (principal, action, resource);
@id("three") @mode("enforce") forbid (principal, action, resource);
"#;

    fn ids(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|&id| id.to_owned()).collect()
    }

    #[test]
    fn only_the_named_policies_lose_only_their_mode() {
        assert_eq!(in_shadow(TEXT), ids(&["one", "two"]));
        let (changed, found) = enforced(TEXT, &ids(&["two", "three", "four"]));
        assert_eq!(found, ids(&["two"]));
        assert_eq!(in_shadow(&changed), ids(&["one"]));
        assert_eq!(changed, TEXT.replace("@mode ( \"shadow\" ) ", ""));
        let (both, _) = enforced(TEXT, &ids(&["one", "two"]));
        assert_eq!(in_shadow(&both), ids(&[]));
        assert!(both.starts_with("// @mode(\"shadow\") in a comment\n@id(\"one\") permit"), "{both}");
    }

    #[test]
    fn what_cannot_be_parsed_stays() {
        let wrong = "@id(\"one\") @mode(\"shadow\") permit (principal);";
        assert_eq!(enforced(wrong, &ids(&["one"])), (wrong.to_owned(), ids(&[])));
    }
}
