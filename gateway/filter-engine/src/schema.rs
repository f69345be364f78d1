// SPDX-License-Identifier: Apache-2.0
//! JSON Schemas of manifests: compiled once, under the bounds of `postern-openapi`; checked against
//! documents of bounded size, at a cost that is known before the check begins.

use postern_openapi::json;
use serde_json::Value;

/// Mistakes that one check reports; more help nobody.
const MAX_MISTAKES: usize = postern_openapi::limits::VIOLATIONS;
/// The longest document that is checked, and the number of values in it (those of API bodies;
/// reading it takes some 10 ms).
const DOCUMENT: json::Limits = json::Limits { bytes: 1 << 20, depth: 64, values: 100_000 };

/// Steps of a check: about 50 ns each at the worst.
pub(crate) type Work = u64;

/// A schema that stands for itself: it refers to nothing.
#[derive(Debug, Clone)]
pub(crate) struct Schema(postern_openapi::Schema);

/// A mistake that a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SchemaMistake {
    pub(crate) pointer: String,
    pub(crate) message: String,
}

/// Why something is not a schema that filters can use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SchemaError {
    #[error("`{0}` is not supported here: write out what it refers to")]
    Reference(&'static str),
    #[error("is not a JSON Schema that can be used: {0}")]
    Malformed(String),
}

/// Keywords that refer elsewhere.
const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];

/// A document that is longer than documents may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLong;

/// What reading a text as a document costs.
///
/// # Errors
/// [`TooLong`] before anything is read.
pub(crate) fn reading(text: &[u8]) -> Result<Work, TooLong> {
    if text.len() > DOCUMENT.bytes { Err(TooLong) } else { Ok(text.len() as Work / 4) }
}

/// Reads a text as a document.
///
/// # Errors
/// The mistake that makes it none.
pub(crate) fn read(text: &[u8]) -> Result<Value, SchemaMistake> {
    json::parse(text, DOCUMENT).map_err(|malformed| SchemaMistake {
        message: format!("is not JSON: {malformed}"),
        pointer: malformed.pointer,
    })
}

impl Schema {
    pub(crate) fn compile(schema: &Value) -> Result<Self, SchemaError> {
        if let Some(keyword) = reference(schema) {
            return Err(SchemaError::Reference(keyword));
        }
        postern_openapi::Schema::alone(schema).map(Self).map_err(|mistakes| {
            let words: Vec<_> = mistakes.iter().take(MAX_MISTAKES).map(ToString::to_string).collect();
            SchemaError::Malformed(words.join("; "))
        })
    }

    /// The most that checking a document can cost: each part of the schema at each of its values,
    /// longer texts counted more.
    pub(crate) fn work(&self, document: &Value) -> Work {
        let parts = u64::try_from(self.0.parts()).unwrap_or(u64::MAX);
        size(document).saturating_mul(parts)
    }

    pub(crate) fn mistakes(&self, document: &Value) -> Vec<SchemaMistake> {
        let found = self.0.validate(document, "").err().unwrap_or_default().into_iter();
        found
            .take(MAX_MISTAKES)
            .map(|violation| SchemaMistake { pointer: violation.pointer, message: violation.message })
            .collect()
    }
}

/// Values, and a value more for each 64 bytes of text.
fn size(value: &Value) -> Work {
    let text = |text: &str| text.len() as Work / 64;
    match value {
        Value::Object(map) => {
            map.iter().fold(1, |sum, (key, value)| sum.saturating_add(text(key)).saturating_add(size(value)))
        }
        Value::Array(list) => list.iter().fold(1, |sum, value| sum.saturating_add(size(value))),
        Value::String(string) => 1 + text(string),
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
    }
}

fn reference(schema: &Value) -> Option<&'static str> {
    match schema {
        Value::Object(map) => REFERENCES
            .into_iter()
            .find(|keyword| map.contains_key(*keyword))
            .or_else(|| map.values().find_map(reference)),
        Value::Array(list) => list.iter().find_map(reference),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_check_reports_where_and_what_and_not_too_much() {
        let schema =
            Schema::compile(&json!({"type": "array", "items": {"type": "string"}})).expect("compiles");
        let found = schema.mistakes(&json!(["a", 1]));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].pointer, "/1");
        assert_eq!(schema.mistakes(&json!(vec![0; 1000])).len(), MAX_MISTAKES);
        assert!(read(b"[").is_err());
    }

    #[test]
    fn a_message_never_quotes_the_value() {
        let schema = Schema::compile(&json!({"type": "integer"})).expect("compiles");
        let found = schema.mistakes(&json!("x".repeat(100_000)));
        assert!(found[0].message.len() <= postern_openapi::limits::VIOLATION_LENGTH, "{found:?}");
    }

    #[test]
    fn references_are_refused_wherever_they_stand() {
        for schema in [json!({"$ref": "#"}), json!({"allOf": [{"not": {"$dynamicRef": "#a"}}]})] {
            assert!(matches!(Schema::compile(&schema), Err(SchemaError::Reference(_))), "{schema}");
        }
        assert!(Schema::compile(&json!({"type": "nothing"})).is_err());
    }

    #[test]
    fn a_schema_that_costs_too_much_is_refused_when_it_is_compiled() {
        let many: Vec<_> =
            (0..10_000).map(|n| json!({"type": "object", "required": [format!("p{n}")]})).collect();
        assert!(Schema::compile(&json!({"anyOf": many})).is_err(), "parts");
        let patterns: serde_json::Map<_, _> = (0..400)
            .map(|n| (format!("p{n}"), json!({"type": "string", "pattern": format!("^{n}$")})))
            .collect();
        assert!(Schema::compile(&json!({"type": "object", "properties": patterns})).is_err(), "patterns");
        let huge = json!({"type": "string", "pattern": "(((a{100}){100}){100})"});
        assert!(Schema::compile(&huge).is_err(), "one pattern");
        let deep = (0..200).fold(json!({"type": "string"}), |inner, _| json!({"allOf": [inner]}));
        assert!(Schema::compile(&deep).is_err(), "depth");
    }

    #[test]
    fn the_cost_of_a_check_is_known_before() {
        let branches: Vec<_> = (0..100).map(|n| json!({"type": "string", "minLength": n})).collect();
        let schema = json!({"type": "array", "items": {"anyOf": branches}});
        let schema = Schema::compile(&schema).expect("compiles");
        assert!(schema.work(&json!(vec!["x"; 1000])) >= 100 * 1000);
        assert!(schema.work(&json!(["x".repeat(64_000)])) >= 100 * 1000);
        assert!(schema.work(&json!([])) < 1000);
        assert_eq!(reading(&vec![b' '; DOCUMENT.bytes + 1]), Err(TooLong));
    }
}
