// SPDX-License-Identifier: Apache-2.0
//! JSON Schemas of manifests: compiled once, checked within bounds.

use serde_json::Value;
use std::sync::Arc;

/// Mistakes that one check reports; more help nobody.
const MAX_MISTAKES: usize = 20;
/// The longest message of one mistake: the crate quotes the value that it refuses.
const MAX_MESSAGE_CHARS: usize = 300;

/// A schema that stands for itself: it refers to nothing.
#[derive(Debug, Clone)]
pub(crate) struct Schema(Arc<jsonschema::Validator>);

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
    #[error("is not a JSON Schema: {0}")]
    Malformed(String),
}

/// Keywords that refer elsewhere. A schema that refers to itself checks without end, on the
/// host's stack; these come from tenants.
const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];

impl Schema {
    pub(crate) fn compile(schema: &Value) -> Result<Self, SchemaError> {
        if let Some(keyword) = reference(schema) {
            return Err(SchemaError::Reference(keyword));
        }
        jsonschema::options()
            .with_pattern_options(jsonschema::PatternOptions::regex())
            .build(schema)
            .map(|validator| Self(Arc::new(validator)))
            .map_err(|error| SchemaError::Malformed(bounded(&error.to_string())))
    }

    pub(crate) fn mistakes(&self, document: &Value) -> Vec<SchemaMistake> {
        self.0
            .iter_errors(document)
            .take(MAX_MISTAKES)
            .map(|error| SchemaMistake {
                pointer: error.instance_path().to_string(),
                message: bounded(&error.to_string()),
            })
            .collect()
    }

    pub(crate) fn mistakes_of_text(&self, document: &[u8]) -> Vec<SchemaMistake> {
        match serde_json::from_slice(document) {
            Ok(document) => self.mistakes(&document),
            Err(error) => {
                vec![SchemaMistake { pointer: String::new(), message: format!("is not JSON: {error}") }]
            }
        }
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

fn bounded(message: &str) -> String {
    message.chars().take(MAX_MESSAGE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_check_reports_where_and_what_and_not_more_than_twenty() {
        let schema = Schema::compile(&json!({"items": {"type": "string"}})).expect("compiles");
        let found = schema.mistakes(&json!(["a", 1]));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].pointer, "/1");
        assert_eq!(schema.mistakes(&json!(vec![0; 1000])).len(), MAX_MISTAKES);
        assert_eq!(schema.mistakes_of_text(b"[").len(), 1);
    }

    #[test]
    fn a_message_that_quotes_a_huge_value_is_cut() {
        let schema = Schema::compile(&json!({"type": "integer"})).expect("compiles");
        let found = schema.mistakes(&json!("x".repeat(100_000)));
        assert!(found[0].message.chars().count() <= MAX_MESSAGE_CHARS);
    }

    #[test]
    fn references_are_refused_wherever_they_stand() {
        for schema in [json!({"$ref": "#"}), json!({"allOf": [{"not": {"$dynamicRef": "#a"}}]})] {
            assert!(matches!(Schema::compile(&schema), Err(SchemaError::Reference(_))), "{schema}");
        }
        assert!(Schema::compile(&json!({"type": "nothing"})).is_err());
    }
}
