// SPDX-License-Identifier: Apache-2.0
//! Parameters and form fields: from text to typed values, checked against their schemas.
//!
//! Text is converted only where one value can be meant: `7` for an integer, never `07`, `+7` or
//! `7.0`; `true` and `false` in lower case. Undeclared query parameters and a name that stands
//! twice without being a list are violations: the backend might read what was not judged.

use crate::document::{Content, Operation, Parameter, ParameterLocation};
use crate::json::faithful_float;
use crate::limits;
use crate::mistake::{Violation, child};
use crate::query::Query;
use crate::route::PathParameters;
use crate::schema::{Schema, SchemaType};
use serde_json::{Map, Value};

/// The declared parameters of one request, typed; absent optional ones are left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TypedParameters {
    /// By name.
    pub path: Map<String, Value>,
    /// By name.
    pub query: Map<String, Value>,
    /// By name in lower case. Headers that are not declared are not here.
    pub header: Map<String, Value>,
}

impl Operation {
    /// Types and checks the parameters of a request. Pointers begin with `/path`, `/query` or
    /// `/header`. For an operation that is not described everything passes and nothing is typed.
    ///
    /// `headers` are all of the request's, names in any case.
    ///
    /// # Errors
    /// Up to [`limits::VIOLATIONS`] places that do not fit.
    pub fn typed_parameters(
        &self,
        path: &PathParameters,
        query: &Query,
        headers: &[(&str, &str)],
    ) -> Result<TypedParameters, Vec<Violation>> {
        let mut typed = TypedParameters::default();
        if !self.is_described {
            return Ok(typed);
        }
        let mut found = Vec::new();
        for parameter in &self.parameters {
            let name = parameter.name.as_str();
            let (texts, target): (Vec<&str>, _) = match parameter.location {
                ParameterLocation::Path => (path.get(name).into_iter().collect(), &mut typed.path),
                ParameterLocation::Query => (query.values(name).collect(), &mut typed.query),
                ParameterLocation::Header => {
                    let same = headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
                    (same.map(|(_, value)| *value).collect(), &mut typed.header)
                }
            };
            match parameter.typed(&texts) {
                Ok(Some(value)) => drop(target.insert(parameter.name.clone(), value)),
                Ok(None) => {}
                Err(violations) => found.extend(violations),
            }
        }
        found.extend(self.undeclared(query));
        found.truncate(limits::VIOLATIONS);
        if found.is_empty() { Ok(typed) } else { Err(found) }
    }

    /// The query without what the operation does not declare, for a backend that wants such
    /// parameters dropped, or passed unjudged; [`Self::typed_parameters`] refuses them.
    #[must_use]
    pub fn declared_query(&self, query: &Query) -> Query {
        let is_declared = |name: &str| !self.is_described || self.declares_query(name);
        Query::from_pairs(query.pairs().iter().filter(|(name, _)| is_declared(name)).cloned().collect())
    }

    fn declares_query(&self, name: &str) -> bool {
        self.parameters_in(ParameterLocation::Query).any(|known| known.name == name)
    }

    fn undeclared(&self, query: &Query) -> Vec<Violation> {
        let names = query.pairs().iter().map(|(name, _)| name).filter(|name| !self.declares_query(name));
        names.map(|name| Violation::new(child("/query", name), "is not declared by the operation")).collect()
    }
}

impl Parameter {
    fn typed(&self, texts: &[&str]) -> Result<Option<Value>, Vec<Violation>> {
        let pointer = child(&format!("/{}", self.location.as_str()), &self.name);
        if texts.is_empty() {
            let missing = || vec![Violation::new(pointer.as_str(), "is required")];
            return if self.is_required { Err(missing()) } else { Ok(None) };
        }
        let repeats = self.is_exploded && self.location == ParameterLocation::Query;
        let value = typed(texts, repeats, self.schema.schema_type())
            .map_err(|message| vec![Violation::new(pointer.as_str(), message)])?;
        self.schema.validate(&value, &pointer)?;
        Ok(Some(value))
    }
}

/// A field of a form, or a part of a multipart body.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Field<'f> {
    /// Text, to be typed as its property wants it.
    Text(&'f str),
    /// A value that was sent as JSON.
    Json(&'f Value),
    /// Bytes that are not looked into.
    File {
        /// How many.
        bytes: usize,
    },
}

impl Content {
    /// Types and checks the fields of a form. A list is written as repeated fields. Pointers begin
    /// with `/body`.
    ///
    /// # Errors
    /// Up to [`limits::VIOLATIONS`] places that do not fit.
    pub fn typed_form(&self, fields: &Query) -> Result<Value, Vec<Violation>> {
        let fields: Vec<_> =
            fields.pairs().iter().map(|(name, text)| (name.as_str(), Field::Text(text))).collect();
        self.typed_fields(&fields)
    }

    /// The same for the parts of a multipart body. A file counts as text of as many characters as it
    /// has bytes, so that `maxLength` bounds it; it is not in the value that is given back.
    ///
    /// # Errors
    /// Up to [`limits::VIOLATIONS`] places that do not fit.
    pub fn typed_fields(&self, fields: &[(&str, Field<'_>)]) -> Result<Value, Vec<Violation>> {
        let declared = match self.schema.as_ref().map(Schema::schema_type) {
            Some(SchemaType::Object(object)) => Some(object),
            _ => None,
        };
        let mut object = Map::new();
        let mut files = Vec::new();
        let mut found = Vec::new();
        for (name, _) in fields {
            if object.contains_key(*name) {
                continue;
            }
            let property = declared.and_then(|declared| declared.properties.get(*name));
            let schema_type = property.map_or(&SchemaType::Any, |property| &property.schema_type);
            let same: Vec<Field<'_>> =
                fields.iter().filter(|(other, _)| other == name).map(|(_, field)| *field).collect();
            if same.iter().any(|field| matches!(field, Field::File { .. })) || schema_type.is_file() {
                files.push((*name).to_owned());
            }
            match typed_parts(&same, schema_type) {
                Ok(value) => drop(object.insert((*name).to_owned(), value)),
                Err(message) => found.push(Violation::new(child("/body", name), message)),
            }
        }
        found.dedup();
        if !found.is_empty() {
            found.truncate(limits::VIOLATIONS);
            return Err(found);
        }
        let value = Value::Object(object);
        self.validate(&value)?;
        Ok(match value {
            Value::Object(mut object) => {
                object.retain(|name, _| !files.contains(name));
                Value::Object(object)
            }
            other => other,
        })
    }
}

/// The value of all fields of one name.
fn typed_parts(fields: &[Field<'_>], schema_type: &SchemaType) -> Result<Value, &'static str> {
    let texts: Option<Vec<&str>> =
        fields.iter().map(|field| if let Field::Text(text) = field { Some(*text) } else { None }).collect();
    if let Some(texts) = texts.filter(|_| !schema_type.is_file()) {
        return typed(&texts, true, schema_type);
    }
    let takes_files = schema_type.is_file() || *schema_type == SchemaType::Any;
    let mut values = Vec::new();
    for field in fields.iter().take(limits::PARAMETER_ITEMS) {
        values.push(match field {
            Field::Text(text) if schema_type.is_file() => stand_in(text.len()),
            Field::File { bytes } if takes_files => stand_in(*bytes),
            Field::File { .. } => return Err("is no file; send text"),
            Field::Text(text) => Value::from(*text),
            Field::Json(value) => (*value).clone(),
        });
    }
    let is_list = matches!(schema_type, SchemaType::Array(_));
    match <[Value; 1]>::try_from(values) {
        Ok([value]) if !is_list || value.is_array() => Ok(value),
        Ok([value]) => Ok(Value::Array(vec![value])),
        Err(values) if is_list || *schema_type == SchemaType::Any => Ok(Value::Array(values)),
        Err(_several) => Err("stands more than once; send it once"),
    }
}

/// What a file is to a schema: only its length counts.
fn stand_in(bytes: usize) -> Value {
    Value::String("x".repeat(bytes))
}

/// The value that `texts` write: one text for a scalar; for a list, one text with commas or,
/// where it `repeats`, one text for each item.
fn typed(texts: &[&str], repeats: bool, schema_type: &SchemaType) -> Result<Value, &'static str> {
    match schema_type {
        SchemaType::Nullable(inner) => typed(texts, repeats, inner),
        SchemaType::Array(item) if repeats => list(texts.iter().copied(), item),
        _ => match (texts, schema_type) {
            ([text], SchemaType::Array(item)) => list(text.split(','), item),
            ([text], _) => scalar(text, schema_type),
            _ => Err("stands more than once; send it once"),
        },
    }
}

fn list<'t>(texts: impl Iterator<Item = &'t str>, item: &SchemaType) -> Result<Value, &'static str> {
    let mut items = Vec::new();
    for text in texts {
        if items.len() >= limits::PARAMETER_ITEMS {
            return Err("has too many items");
        }
        items.push(scalar(text, item)?);
    }
    Ok(Value::Array(items))
}

fn scalar(text: &str, schema_type: &SchemaType) -> Result<Value, &'static str> {
    match schema_type {
        SchemaType::Boolean => match text {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err("must be `true` or `false`"),
        },
        SchemaType::Integer => integer(text).ok_or("must be an integer of at most 64 bits, in plain digits"),
        SchemaType::Number => number(text),
        SchemaType::Nullable(inner) => scalar(text, inner),
        SchemaType::String { .. } | SchemaType::Any => Ok(Value::from(text)),
        SchemaType::Array(_) | SchemaType::Object(_) => Err("cannot be written as text"),
    }
}

/// An integer as JSON spells it.
fn integer(text: &str) -> Option<Value> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_plain || (digits.starts_with('0') && text != "0") {
        return None;
    }
    text.parse::<i64>().map(Value::from).or_else(|_| text.parse::<u64>().map(Value::from)).ok()
}

/// A number as JSON spells it.
fn number(text: &str) -> Result<Value, &'static str> {
    const EXPECTED: &str = "must be a number, spelt as in JSON";
    if let Some(value) = integer(text) {
        return Ok(value);
    }
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let are_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let has_lead = whole.starts_with('0') && whole != "0";
    let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if has_lead || ![whole, fraction, exponent].into_iter().all(are_digits) {
        return Err(EXPECTED);
    }
    faithful_float(text).map(Value::Number)
}

#[cfg(test)]
mod tests;
