// SPDX-License-Identifier: Apache-2.0
//! References: into the document as it was written, and between definitions as they were converted.
//!
//! Nothing is ever fetched: a `$ref` that is not `#/…` is a mistake.

use crate::mistake::Mistakes;
use crate::source::At;
use serde_json::Value;

/// The place that a `$ref` value names, within this document only.
pub(crate) fn resolve<'d>(root: &At<'d>, value: &At<'d>, mistakes: &mut Mistakes) -> Option<At<'d>> {
    let target = value.text(mistakes)?;
    let Some(tokens) = local_tokens(target) else {
        mistakes.add(
            value,
            format!(
                "`$ref: {target}` is not fetched; only `#/…` within this document works, so bundle it first"
            ),
        );
        return None;
    };
    let found = root.follow(&tokens);
    if found.is_none() {
        mistakes.add(value, format!("`$ref: {target}` names nothing in this document"));
    }
    found
}

/// The decoded tokens of `#/a/b`; `None` for anything else.
pub(super) fn local_tokens(target: &str) -> Option<Vec<String>> {
    let pointer = target.strip_prefix("#/")?;
    let token = |text: &str| {
        let decoded = percent_encoding::percent_decode_str(text).decode_utf8().ok()?;
        Some(decoded.replace("~1", "/").replace("~0", "~"))
    };
    pointer.split('/').map(token).collect()
}

/// The name of a definition in a converted schema's `$defs`.
pub(super) fn name_of(index: usize) -> String {
    format!("d{index}")
}

/// Numbers of the definitions that `json` names itself.
pub(super) fn references(json: &Value, found: &mut Vec<usize>) {
    match json {
        Value::Object(entries) => {
            for (key, value) in entries {
                match value {
                    Value::String(target) if key == "$ref" => found.extend(number_of(target)),
                    _ if matches!(key.as_str(), "enum" | "const") => {}
                    other => references(other, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

fn number_of(target: &str) -> Option<usize> {
    target.strip_prefix("#/$defs/d").and_then(|digits| digits.parse().ok())
}

/// The definition, if `json` is nothing but a reference to it.
pub(super) fn sole_reference(json: &Value) -> Option<usize> {
    let object = json.as_object().filter(|object| object.len() == 1)?;
    number_of(object.get("$ref")?.as_str()?)
}
