// SPDX-License-Identifier: Apache-2.0
//! Reads the parameters of an operation: simple styles only, others are refused by name.

use super::read::Reader;
use super::{Parameter, ParameterLocation};
use crate::limits;
use crate::media_type::is_token;
use crate::path::PathTemplate;
use crate::schema::SchemaType;
use crate::source::At;

/// OpenAPI 3.1, Parameter Object: declarations of these header parameters are ignored.
const IGNORED_HEADERS: [&str; 3] = ["accept", "content-type", "authorization"];

impl<'d> Reader<'d> {
    /// The parameters of an operation: its own, then the path item's that it does not replace.
    pub(super) fn parameters(
        &mut self,
        path: &PathTemplate,
        operation: &At<'d>,
        shared: Option<&At<'d>>,
    ) -> Vec<Parameter> {
        let mut found: Vec<Parameter> = Vec::new();
        for (list, is_shared) in [(operation.get("parameters"), false), (shared.cloned(), true)] {
            let own = found.len();
            for item in list.map(|list| list.items(&mut self.mistakes)).unwrap_or_default() {
                if found.len() >= limits::PARAMETERS {
                    self.mistakes.add(&item, format!("more than {} parameters", limits::PARAMETERS));
                    break;
                }
                let Some(parameter) = self.parameter(&item) else {
                    continue;
                };
                let is_same =
                    |other: &Parameter| other.name == parameter.name && other.location == parameter.location;
                let level = if is_shared { own } else { 0 };
                if found.iter().skip(level).any(is_same) {
                    self.mistakes.add(&item, format!("the parameter `{}` is declared twice", parameter.name));
                } else if !found.iter().any(is_same) {
                    found.push(parameter);
                }
            }
        }
        self.check_path_parameters(path, operation, &found);
        found
    }

    fn check_path_parameters(&mut self, path: &PathTemplate, operation: &At<'d>, found: &[Parameter]) {
        let declared = || found.iter().filter(|parameter| parameter.location == ParameterLocation::Path);
        for name in path.parameters() {
            if !declared().any(|parameter| parameter.name == name) {
                self.mistakes.add(
                    operation,
                    format!("`{{{name}}}` of the path is no declared parameter; add it with `in: path`"),
                );
            }
        }
        for parameter in declared() {
            if !path.parameters().any(|name| name == parameter.name) {
                let message = format!("the path parameter `{}` does not stand in `{path}`", parameter.name);
                self.mistakes.add(operation, message);
            }
        }
    }

    fn parameter(&mut self, at: &At<'d>) -> Option<Parameter> {
        let at = self.dereferenced(at)?;
        let name = self.text_of(&at, "name")?;
        let place = self.text_of(&at, "in")?;
        let is_required = at.flag("required", false, &mut self.mistakes);
        let location = match place {
            "path" => ParameterLocation::Path,
            "query" => ParameterLocation::Query,
            "header" => ParameterLocation::Header,
            "cookie" if !is_required => return None,
            "cookie" => {
                self.mistakes.add(&at, "cookies are not forwarded; make the parameter optional, or a header");
                return None;
            }
            other => {
                self.mistakes.add(&at, format!("`in: {other}` is none of path, query, header and cookie"));
                return None;
            }
        };
        if location == ParameterLocation::Path && !is_required {
            self.mistakes.add(&at, format!("the path parameter `{name}` needs `required: true`"));
        }
        let name = self.parameter_name(&at, name, location)?;
        let is_exploded = self.is_exploded(&at, location);
        let Some(schema_at) = at.get("schema") else {
            self.mistakes.add(
                &at,
                format!("the parameter `{name}` has no `schema`; `content` is not supported in parameters"),
            );
            return None;
        };
        let schema = self.schemas.read(&schema_at, &mut self.mistakes)?;
        if !is_writable(schema.schema_type()) {
            self.mistakes.add(&schema_at, format!("the parameter `{name}` is an object or a list of lists; only scalars and lists of scalars are supported"));
        }
        Some(Parameter { name, location, is_required, is_exploded, schema })
    }

    /// The name as it is compared; `None` for one that is ignored or refused.
    fn parameter_name(&mut self, at: &At<'d>, name: &str, location: ParameterLocation) -> Option<String> {
        if name.contains(char::is_control) {
            self.mistakes.add(at, "a parameter's name holds a control character; rename it");
            return None;
        }
        if location != ParameterLocation::Header {
            return Some(name.to_owned());
        }
        let lower = name.to_ascii_lowercase();
        if !is_token(&lower) {
            self.mistakes.add(at, "this is no header's name");
            return None;
        }
        (!IGNORED_HEADERS.contains(&lower.as_str())).then_some(lower)
    }

    fn is_exploded(&mut self, at: &At<'d>, location: ParameterLocation) -> bool {
        let usual = if location == ParameterLocation::Query { "form" } else { "simple" };
        let style = at.get("style").and_then(|style| style.text(&mut self.mistakes)).unwrap_or(usual);
        if style != usual {
            let place = location.as_str();
            self.mistakes
                .add(at, format!("`style: {style}` is not supported in {place}; use `{usual}`, the default"));
        }
        if at.flag("allowReserved", false, &mut self.mistakes) {
            self.mistakes.add(at, "`allowReserved` is not supported; values are always percent-encoded");
        }
        at.flag("explode", location == ParameterLocation::Query, &mut self.mistakes)
    }

    /// The text under `key`, which must be there.
    fn text_of(&mut self, at: &At<'d>, key: &str) -> Option<&'d str> {
        let Some(value) = at.get(key) else {
            self.mistakes.add(at, format!("`{key}` is missing here"));
            return None;
        };
        value.text(&mut self.mistakes)
    }
}

/// Whether values of the type can be written as one text, or as a list of texts.
pub(super) fn is_writable(schema_type: &SchemaType) -> bool {
    match schema_type {
        SchemaType::Array(item) => is_scalar(item),
        SchemaType::Nullable(inner) => is_writable(inner),
        other => is_scalar(other),
    }
}

fn is_scalar(schema_type: &SchemaType) -> bool {
    match schema_type {
        SchemaType::Any
        | SchemaType::Boolean
        | SchemaType::Integer
        | SchemaType::Number
        | SchemaType::String { .. } => true,
        SchemaType::Nullable(inner) => is_scalar(inner),
        SchemaType::Array(_) | SchemaType::Object(_) => false,
    }
}
