// SPDX-License-Identifier: Apache-2.0
//! The text of a document as a tree that knows its lines.
//!
//! YAML and JSON are read by one parser (JSON is YAML here), with every bound set: size, depth,
//! number of values, aliases and what they expand to. Merge keys and duplicate keys are refused.
//! This module knows nothing of OpenAPI.
//!
//! The parser is `serde-saphyr`: no unsafe code, fuzzed, budgets for each way a YAML text can
//! explode, and positions for values, which `serde_yaml_ng` has not.

use crate::limits;
use crate::mistake::{Mistake, Mistakes, child};
use indexmap::IndexMap;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};
use serde_saphyr::{DuplicateKeyPolicy, MergeKeyPolicy, Spanned};
use std::fmt;

/// A value of the document and the line where it begins.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) line: u64,
    pub(crate) kind: Kind,
}

/// What a value is.
#[derive(Debug)]
pub(crate) enum Kind {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(IndexMap<String, Node>),
}

/// Reads a document; a text that is no YAML within bounds is one mistake.
pub(crate) fn read(text: &str) -> Result<Node, Mistake> {
    if text.len() > limits::DOCUMENT_BYTES {
        let message =
            format!("the document has {} bytes; the limit is {}", text.len(), limits::DOCUMENT_BYTES);
        return Err(Mistake { pointer: String::new(), line: None, message });
    }
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| {
        let line = error.location().map(|location| location.line()).filter(|&line| line > 0);
        let full = error.without_snippet().to_string();
        let first = full.lines().next().unwrap_or_default();
        Mistake { pointer: String::new(), line, message: format!("not a readable document: {first}") }
    })
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: limits::DOCUMENT_NODES * 2,
            max_nodes: limits::DOCUMENT_NODES,
            max_depth: limits::DOCUMENT_DEPTH,
            flow_nesting_limit: limits::DOCUMENT_DEPTH,
            max_aliases: limits::DOCUMENT_ALIASES,
            max_anchors: limits::DOCUMENT_ALIASES,
            max_documents: 1,
            max_recorded_anchor_events: limits::DOCUMENT_ALIASED_NODES,
            max_recorded_anchor_bytes: limits::DOCUMENT_BYTES,
            max_total_scalar_bytes: limits::DOCUMENT_BYTES,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: limits::DOCUMENT_ALIASED_NODES,
            max_replay_stack_depth: 8,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        with_snippet: false,
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Kind>::deserialize(from)?;
        Ok(Self { line: spanned.referenced.line(), kind: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(KindVisitor)
    }
}

struct KindVisitor;

impl<'de> Visitor<'de> for KindVisitor {
    type Value = Kind;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value that JSON could hold")
    }

    fn visit_unit<E>(self) -> Result<Kind, E> {
        Ok(Kind::Null)
    }

    fn visit_none<E>(self) -> Result<Kind, E> {
        Ok(Kind::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Kind, E> {
        Ok(Kind::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Kind, E> {
        Ok(Kind::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Kind, E> {
        Ok(Kind::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Kind, E> {
        Number::from_f64(value).map(Kind::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Kind, E> {
        Ok(Kind::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Kind, E> {
        Ok(Kind::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Kind, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Kind::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Kind, A::Error> {
        let mut map = IndexMap::new();
        while let Some((key, value)) = entries.next_entry::<String, Node>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key `{key}` stands here twice")));
            }
            map.insert(key, value);
        }
        Ok(Kind::Map(map))
    }
}

impl Node {
    /// The value as JSON, lines forgotten.
    pub(crate) fn to_json(&self) -> Value {
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(value) => Value::Bool(*value),
            Kind::Number(value) => Value::Number(value.clone()),
            Kind::Text(value) => Value::String(value.clone()),
            Kind::List(items) => items.iter().map(Self::to_json).collect(),
            Kind::Map(entries) => entries.iter().map(|(key, value)| (key.clone(), value.to_json())).collect(),
        }
    }
}

/// A value with its place, so that whoever reads it can report a mistake there.
#[derive(Debug, Clone)]
pub(crate) struct At<'d> {
    pub(crate) node: &'d Node,
    pub(crate) pointer: String,
}

impl<'d> At<'d> {
    pub(crate) fn root(node: &'d Node) -> Self {
        Self { node, pointer: String::new() }
    }

    pub(crate) fn line(&self) -> Option<u64> {
        Some(self.node.line).filter(|&line| line > 0)
    }

    /// The value under `key`, if this is a map that has it.
    pub(crate) fn get(&self, key: &str) -> Option<Self> {
        match &self.node.kind {
            Kind::Map(entries) => {
                entries.get(key).map(|node| Self { node, pointer: child(&self.pointer, key) })
            }
            _ => None,
        }
    }

    /// The value at a JSON pointer's decoded tokens.
    pub(crate) fn follow(&self, tokens: &[String]) -> Option<Self> {
        let mut here = self.clone();
        for token in tokens {
            here = match &here.node.kind {
                Kind::List(items) => {
                    let node = token.parse::<usize>().ok().and_then(|index| items.get(index))?;
                    Self { node, pointer: child(&here.pointer, token) }
                }
                _ => here.get(token)?,
            };
        }
        Some(here)
    }

    /// The entries of a map; anything else is a mistake and no entries.
    pub(crate) fn entries(&self, mistakes: &mut Mistakes) -> Vec<(&'d str, Self)> {
        let Kind::Map(entries) = &self.node.kind else {
            mistakes.add(self, "expected a map here");
            return Vec::new();
        };
        let at = |(key, node): (&'d String, &'d Node)| {
            (key.as_str(), Self { node, pointer: child(&self.pointer, key) })
        };
        entries.iter().map(at).collect()
    }

    /// The items of a list; anything else is a mistake and no items.
    pub(crate) fn items(&self, mistakes: &mut Mistakes) -> Vec<Self> {
        let Kind::List(items) = &self.node.kind else {
            mistakes.add(self, "expected a list here");
            return Vec::new();
        };
        let at = |(index, node): (usize, &'d Node)| Self {
            node,
            pointer: child(&self.pointer, &index.to_string()),
        };
        items.iter().enumerate().map(at).collect()
    }

    /// The text here; anything else is a mistake.
    pub(crate) fn text(&self, mistakes: &mut Mistakes) -> Option<&'d str> {
        if let Kind::Text(text) = &self.node.kind {
            return Some(text);
        }
        mistakes.add(self, "expected text here; put quotes around it if it looks like a number or `true`");
        None
    }

    /// The boolean here; anything else is a mistake.
    pub(crate) fn boolean(&self, mistakes: &mut Mistakes) -> Option<bool> {
        if let Kind::Bool(value) = self.node.kind {
            return Some(value);
        }
        mistakes.add(self, "expected `true` or `false` here");
        None
    }

    /// The boolean under `key`; absent is `default`.
    pub(crate) fn flag(&self, key: &str, default: bool, mistakes: &mut Mistakes) -> bool {
        self.get(key).and_then(|at| at.boolean(mistakes)).unwrap_or(default)
    }

    pub(crate) fn is_map(&self) -> bool {
        matches!(self.node.kind, Kind::Map(_))
    }
}

#[cfg(test)]
mod tests;
