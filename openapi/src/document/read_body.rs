// SPDX-License-Identifier: Apache-2.0
//! Reads the request body of an operation.

use super::read::Reader;
use super::read_parameter::is_writable;
use super::{Body, Content, ContentKind, Method, essence};
use crate::limits;
use crate::schema::{Schema, SchemaType};
use crate::source::At;

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
        let mut contents: Vec<Content> = Vec::new();
        for (name, entry) in entries {
            let Some(content) = self.content(name, &entry) else {
                continue;
            };
            if contents.iter().any(|earlier| earlier.media_type == content.media_type) {
                self.mistakes.add(&entry, "this media type stands here twice but for its parameters");
            }
            contents.push(content);
        }
        Some(Body { is_required, contents })
    }

    fn content(&mut self, name: &str, at: &At<'d>) -> Option<Content> {
        let media_type = essence(name);
        let Some((kind, subtype)) = media_type.split_once('/') else {
            self.mistakes.add(at, "this is no media type, as `application/json` is");
            return None;
        };
        let kind = match (kind, subtype) {
            ("application", "json") => ContentKind::Json,
            (_, subtype) if subtype.ends_with("+json") => ContentKind::Json,
            ("application", "x-www-form-urlencoded") => ContentKind::Form,
            ("multipart", "form-data") => ContentKind::Multipart,
            _ => ContentKind::Other,
        };
        let schema_at = at.get("schema").filter(|_| kind != ContentKind::Other);
        let schema = match &schema_at {
            Some(schema_at) => Some(self.schemas.read(schema_at, &mut self.mistakes)?),
            None => None,
        };
        if kind == ContentKind::Form && !schema.as_ref().is_none_or(is_form) {
            self.mistakes.add(at, "a form is an object whose properties are scalars or lists of scalars");
        }
        Some(Content { media_type, kind, schema })
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
