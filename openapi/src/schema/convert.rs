// SPDX-License-Identifier: Apache-2.0
//! From the schemas that OpenAPI 3.0 and 3.1 write to one plain JSON Schema 2020-12.
//!
//! Only keywords on the list below come through. What only describes (`title`, `example`, `x-…`)
//! is dropped; anything else is a mistake, because a keyword that is silently ignored is a check
//! that its author believes in. Differences from the letter of the standard, all stricter:
//!
//! - `properties`, `required` or `additionalProperties` without `type` mean an object, `items`
//!   an array (not inside `not` and `if`, where that would loosen);
//! - `format: int32` and `int64` bound the number;
//! - a `readOnly` property is not required, since everything here is read from requests.

use super::keyword::{FORMATS, Keyword, SINCE_V31, keyword};
use super::reference::{local_tokens, name_of, references, resolve, sole_reference};
use super::{Schema, cost};
use crate::limits;
use crate::mistake::Mistakes;
use crate::source::{At, Kind};
use indexmap::IndexMap;
use jsonschema::PatternCache;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Which rules a document's schemas follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// OpenAPI 3.0: a JSON Schema of its own.
    V30,
    /// OpenAPI 3.1: JSON Schema 2020-12.
    V31,
}

/// Whether failing a schema refuses the request: not inside `not` and `if`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Sense {
    Asserted,
    Asked,
}

/// Something that `$ref` names, converted once however often it is named.
struct Definition<'d> {
    at: At<'d>,
    sense: Sense,
    converted: Option<Value>,
    is_sound: bool,
}

/// Converts and compiles the schemas of one document.
pub(crate) struct SchemaReader<'d> {
    root: At<'d>,
    dialect: Dialect,
    definitions: IndexMap<(String, Sense), Definition<'d>>,
    compiled: HashMap<usize, Schema>,
    compiled_patterns: PatternCache,
    pending: Vec<usize>,
    nodes: usize,
    patterns: usize,
    expansion: usize,
}

impl<'d> SchemaReader<'d> {
    pub(crate) fn new(root: At<'d>, dialect: Dialect) -> Self {
        Self {
            root,
            dialect,
            definitions: IndexMap::new(),
            compiled: HashMap::new(),
            compiled_patterns: PatternCache::new(),
            pending: Vec::new(),
            nodes: 0,
            patterns: 0,
            expansion: 0,
        }
    }

    /// The compiled schema at `at`; `None` if it has a mistake, which was then reported.
    pub(crate) fn read(&mut self, at: &At<'d>, mistakes: &mut Mistakes) -> Option<Schema> {
        let before = mistakes.count();
        let json = self.convert(at, Sense::Asserted, mistakes);
        let is_sound = mistakes.count() == before;
        while let Some(index) = self.pending.pop() {
            self.convert_definition(index, mistakes);
        }
        let alone = sole_reference(&json);
        if let Some(known) = alone.and_then(|index| self.compiled.get(&index)) {
            return Some(known.clone());
        }
        if !is_sound || self.expansion > limits::TOTAL_EXPANSION {
            return None; // the second was reported when it happened
        }
        let whole = self.with_definitions(json)?;
        let schema = self.checked(whole).map_err(|message| mistakes.add(at, message)).ok()?;
        if let Some(index) = alone {
            self.compiled.insert(index, schema.clone());
        }
        Some(schema)
    }

    fn checked(&mut self, whole: Value) -> Result<Schema, String> {
        let cost = cost::check(&whole);
        self.expansion += *cost.as_ref().unwrap_or(&limits::SCHEMA_EXPANSION);
        let parts = cost?;
        if self.expansion > limits::TOTAL_EXPANSION {
            return Err(format!(
                "all schemas together unfold to more than {} parts; share less",
                limits::TOTAL_EXPANSION
            ));
        }
        Schema::compile(whole, parts, &self.compiled_patterns)
    }

    /// Adds the definitions that `json` needs; `None` if one of them has a mistake.
    fn with_definitions(&self, json: Value) -> Option<Value> {
        let mut needed: IndexMap<usize, &Value> = IndexMap::new();
        let mut open = Vec::new();
        references(&json, &mut open);
        while let Some(index) = open.pop() {
            if needed.contains_key(&index) {
                continue;
            }
            let (_, definition) = self.definitions.get_index(index)?;
            let value = definition.converted.as_ref().filter(|_| definition.is_sound)?;
            needed.insert(index, value);
            references(value, &mut open);
        }
        if needed.is_empty() {
            return Some(json);
        }
        let definitions: Map<_, _> =
            needed.into_iter().map(|(index, value)| (name_of(index), value.clone())).collect();
        match json {
            Value::Object(mut object) => {
                object.insert("$defs".to_owned(), Value::Object(definitions));
                Some(Value::Object(object))
            }
            other => Some(other),
        }
    }

    fn convert_definition(&mut self, index: usize, mistakes: &mut Mistakes) {
        let Some((at, sense)) = self.definitions.get_index(index).map(|(_, it)| (it.at.clone(), it.sense))
        else {
            return;
        };
        let before = mistakes.count();
        let converted = self.convert(&at, sense, mistakes);
        if let Some((_, definition)) = self.definitions.get_index_mut(index) {
            definition.converted = Some(converted);
            definition.is_sound = mistakes.count() == before;
        }
    }

    /// One schema object. A part with a mistake comes out as `false`: it accepts nothing.
    fn convert(&mut self, at: &At<'d>, sense: Sense, mistakes: &mut Mistakes) -> Value {
        self.nodes += 1;
        if self.nodes > limits::SCHEMA_NODES {
            if self.nodes == limits::SCHEMA_NODES + 1 {
                mistakes.add(
                    at,
                    format!("more than {} schemas are used; split the document", limits::SCHEMA_NODES),
                );
            }
            return Value::Bool(false);
        }
        match &at.node.kind {
            Kind::Bool(value) if self.dialect == Dialect::V31 => return Value::Bool(*value),
            Kind::Map(_) => {}
            _ => {
                mistakes.add(at, "expected a schema, which is a map");
                return Value::Bool(false);
            }
        }
        let mut out = Map::new();
        let is_only_reference = self.dialect == Dialect::V30 && at.get("$ref").is_some();
        for (name, value) in at.entries(mistakes) {
            if is_only_reference && !matches!(name, "$ref" | "x-postern-sensitive") {
                continue; // OpenAPI 3.0.3, Reference Object: siblings of `$ref` are ignored.
            }
            self.convert_keyword(name, &value, (at, sense), &mut out, mistakes);
        }
        imply_type(&mut out, sense);
        allow_null(at, self.dialect, &mut out);
        Value::Object(out)
    }

    fn convert_keyword(
        &mut self,
        name: &str,
        value: &At<'d>,
        (parent, sense): (&At<'d>, Sense),
        out: &mut Map<String, Value>,
        mistakes: &mut Mistakes,
    ) {
        if self.dialect == Dialect::V30 && SINCE_V31.contains(&name) {
            mistakes.add(value, format!("`{name}` needs `openapi: 3.1.0`; the document says 3.0"));
            return;
        }
        let sense = if matches!(name, "not" | "if") { Sense::Asked } else { sense };
        let converted = match keyword(name) {
            Keyword::Described => return,
            Keyword::Special => return self.special(name, value, (parent, sense), out, mistakes),
            Keyword::Plain => value.node.to_json(),
            Keyword::One => self.one(value, sense, mistakes),
            Keyword::Many => {
                value.items(mistakes).iter().map(|item| self.convert(item, sense, mistakes)).collect()
            }
            Keyword::Named => {
                let named = value.entries(mistakes).into_iter();
                Value::Object(
                    named.map(|(key, at)| (key.to_owned(), self.convert(&at, sense, mistakes))).collect(),
                )
            }
            Keyword::Unknown => {
                mistakes.add(value, format!("`{name}` is not supported in schemas; remove it, or begin it with `x-` if it only describes"));
                return;
            }
        };
        if name == "patternProperties" {
            for (pattern, at) in value.entries(mistakes) {
                self.count_pattern(pattern, &at, mistakes);
            }
        }
        out.insert(name.to_owned(), converted);
    }

    fn one(&mut self, value: &At<'d>, sense: Sense, mistakes: &mut Mistakes) -> Value {
        // Also OpenAPI 3.0 allows a boolean here (`additionalProperties`).
        if let Kind::Bool(flag) = value.node.kind {
            Value::Bool(flag)
        } else {
            self.convert(value, sense, mistakes)
        }
    }

    fn special(
        &mut self,
        name: &str,
        value: &At<'d>,
        (parent, sense): (&At<'d>, Sense),
        out: &mut Map<String, Value>,
        mistakes: &mut Mistakes,
    ) {
        match name {
            "$ref" => {
                if let Some(index) = self.refer(value, sense, mistakes) {
                    out.insert(name.to_owned(), format!("#/$defs/{}", name_of(index)).into());
                }
            }
            "nullable" if self.dialect == Dialect::V31 => {
                mistakes.add(value, "`nullable` is OpenAPI 3.0; write `type: [string, \"null\"]`");
            }
            "nullable" => drop(value.boolean(mistakes)),
            "x-postern-sensitive" => {
                if value.boolean(mistakes) == Some(true) {
                    out.insert(name.to_owned(), Value::Bool(true));
                }
            }
            "pattern" => {
                if let Some(pattern) = value.text(mistakes) {
                    self.count_pattern(pattern, value, mistakes);
                    out.insert(name.to_owned(), pattern.into());
                }
            }
            "format" => value.text(mistakes).into_iter().for_each(|format| insert_format(format, out)),
            "required" => {
                let required = self.required(value, parent, mistakes);
                out.insert(name.to_owned(), required);
            }
            "exclusiveMinimum" | "exclusiveMaximum" if self.dialect == Dialect::V30 => {
                let limit = if name == "exclusiveMinimum" { "minimum" } else { "maximum" };
                if value.boolean(mistakes) == Some(true)
                    && let Some(bound) = parent.get(limit)
                {
                    out.insert(name.to_owned(), bound.node.to_json());
                }
            }
            "type" if self.dialect == Dialect::V30 && value.text(mistakes).is_none() => {}
            _ => drop(out.insert(name.to_owned(), value.node.to_json())),
        }
    }

    fn count_pattern(&mut self, pattern: &str, at: &At<'d>, mistakes: &mut Mistakes) {
        self.patterns += 1;
        if pattern.len() > limits::PATTERN_LENGTH {
            mistakes
                .add(at, format!("the pattern is longer than {} bytes; shorten it", limits::PATTERN_LENGTH));
        }
        if self.patterns == limits::PATTERNS + 1 {
            mistakes.add(at, format!("more than {} patterns; share them by `$ref`", limits::PATTERNS));
        }
    }

    fn required(&self, value: &At<'d>, parent: &At<'d>, mistakes: &mut Mistakes) -> Value {
        let mut names = Vec::new();
        for item in value.items(mistakes) {
            let Some(name) = item.text(mistakes) else {
                continue;
            };
            let property = parent.get("properties").and_then(|properties| properties.get(name));
            if !property.is_some_and(|property| self.is_read_only(property)) {
                names.push(Value::from(name));
            }
        }
        Value::Array(names)
    }

    fn is_read_only(&self, property: At<'d>) -> bool {
        let mut here = property;
        for _ in 0..limits::REFERENCE_CHAIN {
            if matches!(here.get("readOnly").map(|at| &at.node.kind), Some(Kind::Bool(true))) {
                return true;
            }
            let Some(Kind::Text(target)) = here.get("$ref").map(|at| &at.node.kind) else {
                return false;
            };
            let Some(next) = local_tokens(target).and_then(|tokens| self.root.follow(&tokens)) else {
                return false;
            };
            here = next;
        }
        false
    }

    /// The number of the definition that a `$ref` names.
    fn refer(&mut self, value: &At<'d>, sense: Sense, mistakes: &mut Mistakes) -> Option<usize> {
        let target = resolve(&self.root, value, mistakes)?;
        let key = (target.pointer.clone(), sense);
        if let Some(index) = self.definitions.get_index_of(&key) {
            return Some(index);
        }
        let definition = Definition { at: target, sense, converted: None, is_sound: false };
        let (index, _) = self.definitions.insert_full(key, definition);
        self.pending.push(index);
        Some(index)
    }
}

fn insert_format(format: &str, out: &mut Map<String, Value>) {
    let (low, high) = match format {
        "int32" => (i64::from(i32::MIN), i64::from(i32::MAX)),
        "int64" => (i64::MIN, i64::MAX),
        known if FORMATS.contains(&known) => {
            out.insert("format".to_owned(), known.into());
            return;
        }
        _ => return,
    };
    let bounds = json!({ "minimum": low, "maximum": high });
    if let Value::Array(all) = out.entry("allOf").or_insert_with(|| Value::Array(Vec::new())) {
        all.push(bounds);
    }
}

fn imply_type(out: &mut Map<String, Value>, sense: Sense) {
    if sense == Sense::Asked || out.contains_key("type") {
        return;
    }
    if ["properties", "required", "additionalProperties"].iter().any(|&name| out.contains_key(name)) {
        out.insert("type".to_owned(), "object".into());
    } else if out.contains_key("items") {
        out.insert("type".to_owned(), "array".into());
    }
}

/// OpenAPI 3.0.3: `nullable` adds `null` to a `type` in the same schema; `enum` still decides.
fn allow_null(at: &At<'_>, dialect: Dialect, out: &mut Map<String, Value>) {
    let is_nullable = matches!(at.get("nullable").map(|flag| &flag.node.kind), Some(Kind::Bool(true)));
    if dialect == Dialect::V30
        && is_nullable
        && at.get("type").is_some()
        && let Some(single @ Value::String(_)) = out.get("type").cloned()
    {
        out.insert("type".to_owned(), json!([single, "null"]));
    }
}
