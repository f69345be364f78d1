// SPDX-License-Identifier: Apache-2.0
//! Reads the request body of an operation.

use super::read::Reader;
use super::read_parameter::is_writable;
use super::{Body, Content, Method};
use crate::limits;
use crate::media_type::{ContentKind, MediaType};
use crate::schema::{Schema, SchemaType};
use crate::source::{At, Kind};
use std::collections::BTreeMap;
use std::sync::Arc;

impl<'d> Reader<'d> {
    pub(super) fn body(&mut self, method: Method, at: &At<'d>) -> Option<Body> {
        let at = self.dereferenced(at)?;
        if matches!(method, Method::Get | Method::Head) {
            self.mistakes
                .add(&at, format!("a {method} has no body that servers agree on; use POST, or parameters"));
            return None;
        }
        let is_required = at.flag("required", false, &mut self.mistakes);
        let Some(content) = at.get("content") else {
            self.mistakes.add(&at, "the body has no `content`; name its media types there");
            return None;
        };
        let entries = content.entries(&mut self.mistakes);
        if entries.is_empty() || entries.len() > limits::CONTENT_TYPES {
            self.mistakes.add(&content, format!("a body has 1 to {} media types", limits::CONTENT_TYPES));
            return None;
        }
        let mut contents: Vec<Arc<Content>> = Vec::new();
        for (name, entry) in entries {
            let Some(content) = self.content(name, &entry) else {
                continue;
            };
            if contents.iter().any(|earlier| earlier.media_type == content.media_type) {
                self.mistakes.add(&entry, "this media type stands here twice but for its parameters");
            }
            contents.push(Arc::new(content));
        }
        Some(Body { is_required, contents })
    }

    fn content(&mut self, name: &str, at: &At<'d>) -> Option<Content> {
        let media_type = match MediaType::parse(name) {
            Ok(media_type) => media_type,
            Err(refusal) => {
                self.mistakes.add(at, refusal.to_string());
                return None;
            }
        };
        let kind = ContentKind::of(media_type.essence());
        let is_range = media_type.is_range();
        let schema_at = at.get("schema").filter(|_| is_range || kind != ContentKind::Other);
        let schema_at = match schema_at {
            Some(schema_at) if is_range && self.is_binary(&schema_at) => None,
            other => other,
        };
        let schema = match &schema_at {
            Some(schema_at) => Some(self.schemas.read(schema_at, &mut self.mistakes)?),
            None => None,
        };
        if kind == ContentKind::Form && !schema.as_ref().is_none_or(is_form) {
            self.mistakes.add(at, "a form is an object whose properties are scalars or lists of scalars");
        }
        let encodings = if kind == ContentKind::Multipart { self.encodings(at) } else { BTreeMap::new() };
        Some(Content { media_type: media_type.essence().to_owned(), kind, schema, encodings })
    }

    /// `encoding: { NAME: { contentType: image/png, image/jpeg } }`.
    fn encodings(&mut self, at: &At<'d>) -> BTreeMap<String, Vec<String>> {
        let mut found = BTreeMap::new();
        let entries = at.get("encoding").map(|at| at.entries(&mut self.mistakes)).unwrap_or_default();
        for (name, entry) in entries {
            let Some(types) = entry.get("contentType") else { continue };
            let Some(text) = types.text(&mut self.mistakes) else { continue };
            match text.split(',').map(MediaType::parse).collect::<Result<Vec<_>, _>>() {
                Ok(list) => {
                    let list = list.iter().map(|media| media.essence().to_owned()).collect();
                    found.insert(name.to_owned(), list);
                }
                Err(refusal) => self.mistakes.add(&types, refusal.to_string()),
            }
        }
        found
    }

    /// Whether a schema says no more than that bytes come: `{}`, or text of `format: binary`, as
    /// OpenAPI 3.0 describes a file.
    fn is_binary(&mut self, at: &At<'d>) -> bool {
        let Some(at) = self.dereferenced(at) else {
            return false;
        };
        let is = |key: &str, wanted: &str| {
            at.get(key).is_some_and(|value| matches!(&value.node.kind, Kind::Text(text) if text == wanted))
        };
        let is_empty = at.is_map() && at.entries(&mut self.mistakes).is_empty();
        is_empty || (is("type", "string") && is("format", "binary"))
    }
}

fn is_form(schema: &Schema) -> bool {
    match schema.schema_type() {
        SchemaType::Object(object) => {
            object.properties.values().all(|property| is_writable(&property.schema_type))
        }
        _ => false,
    }
}
