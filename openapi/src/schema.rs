// SPDX-License-Identifier: Apache-2.0
//! A schema of the document: compiled for validation, and shown as a type.
//!
//! `convert` turns what OpenAPI 3.0 or 3.1 wrote into plain JSON Schema 2020-12, `cost` refuses
//! what could take exponential time or endless recursion, `shape` derives the type view. No
//! other module sees `jsonschema`.

use crate::limits;
use crate::mistake::{Mistake, Mistakes, Violation, push_token};
use crate::source::At;
use indexmap::IndexMap;
use jsonschema::error::ValidationErrorKind;
use jsonschema::{Draft, PatternCache, PatternOptions, ValidationError, Validator};
use serde_json::Value;
use std::fmt;
use std::sync::Arc;

mod convert;
mod cost;
mod keyword;
mod reference;
mod shape;

pub(crate) use convert::{Dialect, SchemaReader};
pub(crate) use reference::resolve;

/// A schema as a type, for whoever derives types from the document (Cedar contexts).
///
/// Sound for every value that the schema accepts: where the schema says less than a type here
/// could hold, it is [`SchemaType::Any`].
#[derive(Debug, Clone, PartialEq)]
pub enum SchemaType {
    /// Anything, or something that no type here describes: unions, recursion, too deep.
    Any,
    /// `true` or `false`.
    Boolean,
    /// A number without fraction. `5.0` is one too (JSON Schema 2020-12).
    Integer,
    /// Any number.
    Number,
    /// Text.
    String {
        /// The only values, if they are listed.
        values: Option<Vec<String>>,
        /// The `format`, if it is one that is checked, or `binary`.
        format: Option<String>,
    },
    /// A list.
    Array(Box<Self>),
    /// An object.
    Object(ObjectType),
    /// The inner type, or `null`.
    Nullable(Box<Self>),
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ObjectType {
    /// Declared properties, in the document's order.
    pub properties: IndexMap<String, Property>,
    /// The type of all other properties; `None` if there may be none.
    pub additional: Option<Box<SchemaType>>,
}

/// A declared property.
#[derive(Debug, Clone, PartialEq)]
pub struct Property {
    /// Its type.
    pub schema_type: SchemaType,
    /// Whether it must be there.
    pub is_required: bool,
    /// `x-postern-sensitive: true`: decision records hold a digest in its place.
    pub is_sensitive: bool,
}

/// A compiled schema. Cheap to clone.
#[derive(Clone)]
pub struct Schema(Arc<Compiled>);

struct Compiled {
    json: Value,
    /// What it unfolds to, references followed.
    parts: usize,
    schema_type: SchemaType,
    is_sensitive: bool,
    validator: Validator,
}

impl Schema {
    /// Compiles a schema that stands alone, such as a filter's manifest holds, under every bound
    /// of a document's: keywords, patterns, recursion, cost. Nothing that it names is fetched.
    ///
    /// # Errors
    /// Every mistake, each with its pointer.
    pub fn alone(json: &Value) -> Result<Self, Vec<Mistake>> {
        let node = crate::source::read(&json.to_string()).map_err(|mistake| vec![mistake])?;
        let root = At::root(&node);
        let mut mistakes = Mistakes::default();
        let schema = SchemaReader::new(root.clone(), Dialect::V31).read(&root, &mut mistakes);
        match schema {
            Some(schema) if mistakes.is_empty() => Ok(schema),
            _ => Err(mistakes.into_vec()),
        }
    }

    /// The number of schemas that it unfolds to: checking a value costs at most this much for
    /// each value inside it.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.0.parts
    }

    /// Compiles plain JSON Schema 2020-12 that `convert` made, which unfolds to so many parts; the
    /// error is for the author.
    fn compile(json: Value, parts: usize, patterns: &PatternCache) -> Result<Self, String> {
        let engine =
            PatternOptions::regex().size_limit(limits::PATTERN_BYTES).dfa_size_limit(limits::PATTERN_BYTES);
        let validator = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .should_validate_formats(true)
            .with_pattern_options(engine)
            .with_pattern_cache(patterns.clone())
            .offline()
            .build(&json)
            .map_err(|error| unusable(&error))?;
        let schema_type = shape::of(&json);
        let is_sensitive = shape::is_sensitive(&json);
        Ok(Self(Arc::new(Compiled { json, parts, schema_type, is_sensitive, validator })))
    }

    /// The schema as a type.
    #[must_use]
    pub fn schema_type(&self) -> &SchemaType {
        &self.0.schema_type
    }

    /// `x-postern-sensitive: true` on the schema itself.
    #[must_use]
    pub fn is_sensitive(&self) -> bool {
        self.0.is_sensitive
    }

    /// The schema as self-contained JSON Schema 2020-12 (references point into its own `$defs`).
    #[must_use]
    pub fn json(&self) -> &Value {
        &self.0.json
    }

    /// Checks `value`, which stands at `pointer` of the request.
    ///
    /// # Errors
    /// Up to [`limits::VIOLATIONS`] places that do not fit; a missing or unexpected property is
    /// named by its own pointer.
    pub fn validate(&self, value: &Value, pointer: &str) -> Result<(), Vec<Violation>> {
        if self.0.validator.is_valid(value) {
            return Ok(());
        }
        let errors = self.0.validator.iter_errors(value);
        let mut found: Vec<_> =
            errors.flat_map(|error| violations(&error, pointer)).take(limits::VIOLATIONS).collect();
        if found.is_empty() {
            // Both answers come from one validator; if they ever differ, the stricter one holds.
            found.push(Violation::new(pointer, "does not fit the schema"));
        }
        Err(found)
    }
}

impl SchemaType {
    /// Whether values are files: bytes that are not looked into.
    #[must_use]
    pub fn is_file(&self) -> bool {
        match self {
            Self::String { format, .. } => format.as_deref() == Some("binary"),
            Self::Array(inner) | Self::Nullable(inner) => inner.is_file(),
            _ => false,
        }
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Schema").field(&self.0.json).finish()
    }
}

fn unusable(error: &ValidationError<'_>) -> String {
    let place = error.instance_path().as_str();
    let hint = if matches!(error.kind(), ValidationErrorKind::Format { format } if format == "regex") {
        "; patterns are linear-time: no look-around, no back-references, no huge repetitions"
    } else {
        ""
    };
    format!("the schema cannot be used: at `{place}`: {error}{hint}")
}

fn violations(error: &ValidationError<'_>, pointer: &str) -> Vec<Violation> {
    let here = format!("{pointer}{}", error.instance_path());
    let at = |name: &str, message: &str| {
        let mut longer = here.clone();
        push_token(&mut longer, name);
        Violation::new(longer, message)
    };
    match error.kind() {
        ValidationErrorKind::Required { property } => {
            vec![at(property.as_str().unwrap_or_default(), "is required")]
        }
        ValidationErrorKind::AdditionalProperties { unexpected }
        | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
            unexpected.iter().map(|name| at(name, "is not declared by the schema")).collect()
        }
        _ => vec![Violation::new(here, &error.masked_with("the value").to_string())],
    }
}

#[cfg(test)]
mod tests;
