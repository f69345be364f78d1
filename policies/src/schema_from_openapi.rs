// SPDX-License-Identifier: Apache-2.0
//! A backend's Cedar namespace, made from its OpenAPI document.
//!
//! Each operation is an action in the groups `read` or `write` and its tags. Its context has the
//! declared parameters and the body, as far as Cedar has types for them: integers are `Long`,
//! other numbers `decimal`, lists `Set`. What Cedar cannot type (unions, free-form maps, lists of
//! what may be null, files) is not part of the context, so that no policy can be written that silently
//! misses it.

use crate::names::{namespace, quoted};
use crate::schema::{BackendSchema, DeclaredOperation};
use postern_common::id::BackendName;
use postern_openapi::{
    Body, Document, ObjectType, Operation, Parameter, ParameterLocation, Schema, SchemaType,
};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// The Cedar schema of `backend`, whose API `document` describes.
#[must_use]
pub fn schema_from_openapi(backend: &BackendName, document: &Document) -> BackendSchema {
    let mut text = format!("// What backend `{backend}` offers.\nnamespace {} {{\n", namespace(backend));
    let groups: BTreeSet<&str> =
        ["read", "write"].into_iter().chain(document.tags().iter().map(String::as_str)).collect();
    for group in groups {
        // INVARIANT: writing to a string cannot fail; the same below.
        let _ = writeln!(text, "  action {};", quoted(group));
    }
    let mut operations = Vec::new();
    for operation in document.operations() {
        let mut writer = ContextWriter::default();
        let context = writer.context(operation);
        let groups: Vec<String> = std::iter::once(operation.group().as_str().to_owned())
            .chain(operation.tags.iter().cloned())
            .collect();
        let members = groups.iter().map(|group| quoted(group)).collect::<Vec<_>>().join(", ");
        let _ = writeln!(
            text,
            "\n  // {} {}\n  action {} in [{members}] appliesTo {{\n    principal: Postern::Sandbox,\n    resource: Postern::Backend,\n    context: {context}\n  }};",
            operation.method,
            // A comment ends with its line, so nothing in it may begin one.
            operation.path.to_string().escape_debug(),
            quoted(operation.id.as_str()),
        );
        operations.push(DeclaredOperation {
            id: operation.id.clone(),
            groups,
            nullable: writer.nullable,
            sensitive: writer.sensitive,
        });
    }
    text.push_str("}\n");
    BackendSchema { name: backend.clone(), text, operations }
}

/// Writes one operation's context and remembers what may be null in it, and what is sensitive.
#[derive(Debug, Default)]
struct ContextWriter {
    at: Vec<String>,
    nullable: Vec<Vec<String>>,
    sensitive: Vec<Vec<String>>,
}

/// A field of a record that is written.
#[derive(Debug, Clone, Copy)]
struct Written<'a> {
    name: &'a str,
    is_required: bool,
    is_sensitive: bool,
    schema_type: &'a SchemaType,
}

/// Spaces in front of the context's own fields.
const INDENT: usize = 6;

impl ContextWriter {
    fn context(&mut self, operation: &Operation) -> String {
        let mut text = "{\n".to_owned();
        for location in [ParameterLocation::Path, ParameterLocation::Query, ParameterLocation::Header] {
            let parameters: Vec<&Parameter> = operation.parameters_in(location).collect();
            self.at = vec![location.as_str().to_owned()];
            let fields: Vec<_> = parameters
                .iter()
                .map(|parameter| Written {
                    name: &parameter.name,
                    is_required: parameter.is_required,
                    is_sensitive: parameter.schema.is_sensitive(),
                    schema_type: parameter.schema.schema_type(),
                })
                .collect();
            let record = self.record(&fields, INDENT + 2);
            let _ = writeln!(text, "{:INDENT$}\"{}\": {record},", "", location.as_str());
        }
        self.at.clear();
        let body = operation.body.as_ref().and_then(readable).and_then(|(is_required, schema)| {
            let is_sensitive = schema.is_sensitive();
            let schema_type = schema.schema_type();
            self.field(Written { name: "body", is_required, is_sensitive, schema_type }, INDENT)
        });
        text.push_str(&body.unwrap_or_default());
        let _ = write!(
            text,
            "{:INDENT$}\"claims\": Postern::Claims,\n{:INDENT$}\"peer\": Postern::Peer,\n{:INDENT$}\"now\": datetime,\n    }}",
            "", "", ""
        );
        text
    }

    fn record(&mut self, fields: &[Written<'_>], indent: usize) -> String {
        let mut text = "{\n".to_owned();
        for field in fields {
            if let Some(field) = self.field(*field, indent) {
                text.push_str(&field);
            }
        }
        let outer = indent.saturating_sub(2);
        if text.len() == "{\n".len() { "{}".to_owned() } else { format!("{text}{:outer$}}}", "") }
    }

    /// One line of a record; `None` where Cedar has no type for it.
    fn field(&mut self, field: Written<'_>, indent: usize) -> Option<String> {
        let Written { name, is_required, is_sensitive, schema_type } = field;
        let (schema_type, is_nullable) = match schema_type {
            SchemaType::Nullable(inner) => (inner.as_ref(), true),
            other => (other, false),
        };
        self.at.push(name.to_owned());
        if is_nullable {
            self.nullable.push(self.at.clone());
        }
        if is_sensitive {
            self.sensitive.push(self.at.clone());
        }
        let cedar = self.cedar_type(schema_type, indent + 2);
        self.at.pop();
        let mark = if is_required && !is_nullable { "" } else { "?" };
        Some(format!("{:indent$}{}{mark}: {},\n", "", quoted(name), cedar?))
    }

    fn cedar_type(&mut self, schema_type: &SchemaType, indent: usize) -> Option<String> {
        match schema_type {
            SchemaType::Boolean => Some("Bool".to_owned()),
            SchemaType::Integer => Some("Long".to_owned()),
            SchemaType::Number => Some("decimal".to_owned()),
            // A file is not looked into, so there is nothing to compare it with.
            file if file.is_file() => None,
            SchemaType::String { .. } => Some("String".to_owned()),
            SchemaType::Array(items) => {
                self.at.push("*".to_owned());
                let element = self.cedar_type(items, indent);
                self.at.pop();
                element.map(|element| format!("Set<{element}>"))
            }
            SchemaType::Object(object) if is_map(object) => None,
            SchemaType::Object(object) => {
                let fields: Vec<_> = object
                    .properties
                    .iter()
                    .map(|(name, property)| Written {
                        name,
                        is_required: property.is_required,
                        is_sensitive: property.is_sensitive,
                        schema_type: &property.schema_type,
                    })
                    .collect();
                Some(self.record(&fields, indent))
            }
            SchemaType::Any | SchemaType::Nullable(_) => None,
        }
    }
}

/// An object of which nothing is known but what its values are.
fn is_map(object: &ObjectType) -> bool {
    object.properties.is_empty() && object.additional.is_some()
}

/// The schema of a body that policies can look into, if each of its contents has the same.
fn readable(body: &Body) -> Option<(bool, &Schema)> {
    let mut schemas = body.contents.iter().map(|content| content.schema.as_ref());
    let first = schemas.next()??;
    let is_one = schemas.all(|other| other.is_some_and(|other| other.schema_type() == first.schema_type()));
    is_one.then_some((body.is_required, first))
}
