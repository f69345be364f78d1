// SPDX-License-Identifier: Apache-2.0
//! The type view of a converted schema.
//!
//! Sound, not complete: every value that the schema accepts has the type; where that cannot be
//! said simply, the type is `Any`.

use super::{ObjectType, Property, SchemaType};
use crate::limits;
use indexmap::IndexMap;
use serde_json::{Map, Value};

/// The type of `schema`, whose references point into its own `$defs`.
pub(super) fn of(schema: &Value) -> SchemaType {
    let definitions = schema.get("$defs").and_then(Value::as_object);
    View { definitions, open: Vec::new() }.shape(schema)
}

/// `x-postern-sensitive: true` on the schema or on what it refers to.
pub(super) fn is_sensitive(schema: &Value) -> bool {
    let definitions = schema.get("$defs").and_then(Value::as_object);
    View { definitions, open: Vec::new() }.is_sensitive(schema)
}

struct View<'s> {
    definitions: Option<&'s Map<String, Value>>,
    /// Schemas on the way to the present one, to cut recursion and depth.
    open: Vec<&'s Value>,
}

impl<'s> View<'s> {
    fn target(&self, schema: &'s Value) -> Option<&'s Value> {
        let name = schema.get("$ref")?.as_str()?.strip_prefix("#/$defs/")?;
        self.definitions?.get(name)
    }

    fn is_sensitive(&self, schema: &'s Value) -> bool {
        let mut here = Some(schema);
        for _ in 0..limits::REFERENCE_CHAIN {
            let Some(schema) = here else { return false };
            if schema.get("x-postern-sensitive") == Some(&Value::Bool(true)) {
                return true;
            }
            here = self.target(schema);
        }
        true // too long a chain to tell: treat it as sensitive
    }

    fn shape(&mut self, schema: &'s Value) -> SchemaType {
        let is_open = self.open.iter().any(|&open| std::ptr::eq(open, schema));
        if is_open || self.open.len() >= limits::TYPE_DEPTH * 2 {
            return SchemaType::Any;
        }
        self.open.push(schema);
        let found = self.parts(schema).into_iter().fold(SchemaType::Any, both);
        self.open.pop();
        found
    }

    /// Types that hold all at once: the schema's own, its reference's, those of `allOf`, a union's.
    fn parts(&mut self, schema: &'s Value) -> Vec<SchemaType> {
        let mut parts = vec![self.own(schema)];
        if let Some(target) = self.target(schema) {
            parts.push(self.shape(target));
        }
        for part in branches(schema, "allOf") {
            parts.push(self.shape(part));
        }
        for keyword in ["anyOf", "oneOf"] {
            let shapes: Vec<_> = branches(schema, keyword).filter(|branch| !is_null(branch)).collect();
            let union = shapes.into_iter().map(|branch| self.shape(branch)).reduce(either);
            let has_null = branches(schema, keyword).any(is_null);
            parts.extend(union.map(|union| if has_null { nullable(union) } else { union }));
        }
        parts
    }

    /// What `type`, `enum`, `const`, `properties` and `items` of this very schema say.
    fn own(&mut self, schema: &'s Value) -> SchemaType {
        let (types, is_nullable) = types(schema);
        let single = match types.as_slice() {
            ["boolean"] => SchemaType::Boolean,
            ["integer"] => SchemaType::Integer,
            ["number"] | ["integer", "number"] | ["number", "integer"] => SchemaType::Number,
            ["string"] => string(schema),
            ["array"] => {
                let has_prefix = schema.get("prefixItems").is_some();
                let item = schema.get("items").filter(|_| !has_prefix);
                SchemaType::Array(Box::new(item.map_or(SchemaType::Any, |item| self.shape(item))))
            }
            ["object"] => SchemaType::Object(self.object(schema)),
            _ => return SchemaType::Any,
        };
        if is_nullable { nullable(single) } else { single }
    }

    fn object(&mut self, schema: &'s Value) -> ObjectType {
        let required = |name: &str| branches(schema, "required").any(|item| item.as_str() == Some(name));
        let mut properties = IndexMap::new();
        for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let schema_type = self.shape(property);
            let is_sensitive = self.is_sensitive(property);
            properties
                .insert(name.clone(), Property { schema_type, is_required: required(name), is_sensitive });
        }
        let has_patterns = schema.get("patternProperties").is_some();
        let additional = match schema.get("additionalProperties") {
            Some(Value::Bool(false)) if !has_patterns => None,
            Some(other @ Value::Object(_)) if !has_patterns => Some(Box::new(self.shape(other))),
            _ => Some(Box::new(SchemaType::Any)),
        };
        ObjectType { properties, additional }
    }
}

fn branches<'s>(schema: &'s Value, keyword: &str) -> impl Iterator<Item = &'s Value> {
    schema.get(keyword).and_then(Value::as_array).into_iter().flatten()
}

fn is_null(schema: &Value) -> bool {
    schema.get("type").and_then(Value::as_str) == Some("null")
}

/// The names in `type` but `null`, and whether `null` was among them. Without `type`, a single
/// kind of `enum` or `const` values decides.
fn types(schema: &Value) -> (Vec<&str>, bool) {
    let mut names: Vec<&str> = match schema.get("type") {
        Some(Value::String(name)) => vec![name.as_str()],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => {
            let mut names: Vec<_> =
                branches(schema, "enum").chain(schema.get("const")).map(kind_of).collect();
            names.sort_unstable();
            names.dedup();
            names
        }
    };
    let before = names.len();
    names.retain(|&name| name != "null");
    let is_nullable = names.len() < before;
    (names, is_nullable)
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn string(schema: &Value) -> SchemaType {
    let listed: Vec<_> = branches(schema, "enum")
        .chain(schema.get("const"))
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let format = schema.get("format").and_then(Value::as_str).map(str::to_owned);
    SchemaType::String { values: (!listed.is_empty()).then_some(listed), format }
}

/// A type for values that have both types. Any one of them is sound; the more telling is taken.
fn both(one: SchemaType, other: SchemaType) -> SchemaType {
    match (one, other) {
        (SchemaType::Any, kept) | (kept, SchemaType::Any) => kept,
        (SchemaType::Object(one), SchemaType::Object(other)) => SchemaType::Object(merged(one, other)),
        (SchemaType::Nullable(one), SchemaType::Nullable(other)) => {
            SchemaType::Nullable(Box::new(both(*one, *other)))
        }
        (SchemaType::Nullable(inner), strict) | (strict, SchemaType::Nullable(inner)) => both(strict, *inner),
        (SchemaType::Number, SchemaType::Integer) => SchemaType::Integer,
        (SchemaType::Array(one), SchemaType::Array(other)) => SchemaType::Array(Box::new(both(*one, *other))),
        (SchemaType::String { values: None, format: None }, other @ SchemaType::String { .. }) => other,
        (kept, _) => kept,
    }
}

fn merged(one: ObjectType, other: ObjectType) -> ObjectType {
    let mut properties = one.properties;
    for (name, property) in other.properties {
        let joined = match properties.shift_remove(&name) {
            Some(earlier) => Property {
                schema_type: both(earlier.schema_type, property.schema_type),
                is_required: earlier.is_required || property.is_required,
                is_sensitive: earlier.is_sensitive || property.is_sensitive,
            },
            None => property,
        };
        properties.insert(name, joined);
    }
    let additional = match (one.additional, other.additional) {
        (Some(one), Some(other)) => Some(Box::new(both(*one, *other))),
        (Some(open), None) | (None, Some(open)) => Some(open),
        (None, None) => None,
    };
    ObjectType { properties, additional }
}

fn nullable(inner: SchemaType) -> SchemaType {
    match inner {
        SchemaType::Any | SchemaType::Nullable(_) => inner,
        inner => SchemaType::Nullable(Box::new(inner)),
    }
}

/// A type for values that have either type.
fn either(one: SchemaType, other: SchemaType) -> SchemaType {
    match (one, other) {
        (one, other) if one == other => one,
        (SchemaType::Integer | SchemaType::Number, SchemaType::Integer | SchemaType::Number) => {
            SchemaType::Number
        }
        (SchemaType::String { .. }, SchemaType::String { .. }) => {
            SchemaType::String { values: None, format: None }
        }
        _ => SchemaType::Any,
    }
}
