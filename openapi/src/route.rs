// SPDX-License-Identifier: Apache-2.0
//! From a method and a path to the operation that it means.
//!
//! A tree of segments: a literal wins over a parameter at every segment, and a dead end falls
//! back to the parameter. Templates that could both claim one path without either being the more
//! exact are refused when the document is read ([`conflict`]), so the answer never depends on
//! order. Cost: each node of the tree is visited at most once.

use crate::document::Method;
use crate::path::{PathRefusal, PathTemplate, RequestPath, Segment};
use std::collections::HashMap;

/// Decoded values of a path's parameters, in the order of the template.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathParameters(Vec<(String, String)>);

impl PathParameters {
    /// The value of a parameter.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Replaces the value of a parameter that is there; `false` if it is not.
    pub fn replace(&mut self, name: &str, value: &str) -> bool {
        let found = self.0.iter_mut().find(|(key, _)| key == name);
        found.is_some_and(|(_, old)| {
            value.clone_into(old);
            true
        })
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// A route that was found.
#[derive(Debug, Clone)]
pub struct Found<'t> {
    /// Index into the operations that the table was compiled from.
    pub operation: usize,
    /// The template that matched.
    pub template: &'t PathTemplate,
    /// What its parameters stand for.
    pub parameters: PathParameters,
}

impl Found<'_> {
    /// The path to forward: made from the template and the parameters as they are now.
    ///
    /// # Errors
    /// [`PathRefusal`] if a parameter was replaced by a value that no request could have sent.
    pub fn forwarded_path(&self, request: &RequestPath) -> Result<String, PathRefusal> {
        if self.template.is_any() {
            return Ok(request.rebuild());
        }
        self.template.rebuild(|name| self.parameters.get(name))
    }
}

/// What a table says about a request.
#[derive(Debug, Clone)]
pub enum Lookup<'t> {
    /// This operation.
    Found(Found<'t>),
    /// The path is known, the method is not; `allow` is for the answer's `Allow` header.
    MethodNotAllowed {
        /// Methods of the path, sorted.
        allow: Vec<Method>,
    },
    /// No template matches.
    Unknown,
}

#[derive(Debug, Default)]
struct Level {
    literals: HashMap<String, Self>,
    parameter: Option<Box<Self>>,
    plain: Option<Leaf>,
    slashed: Option<Leaf>,
}

#[derive(Debug)]
struct Leaf {
    template: PathTemplate,
    methods: Vec<(Method, usize)>,
}

/// The routes of one backend.
#[derive(Debug, Default)]
pub struct RouteTable {
    root: Level,
    any: Option<Leaf>,
}

impl RouteTable {
    /// A table of templates that do not conflict; each route's index is its place in `routes`.
    pub(crate) fn compile<'r>(routes: impl Iterator<Item = (Method, &'r PathTemplate)>) -> Self {
        let mut table = Self::default();
        for (index, (method, template)) in routes.enumerate() {
            let mut level = &mut table.root;
            for segment in template.segments() {
                level = match segment {
                    Segment::Literal(text) => level.literals.entry(text.clone()).or_default(),
                    Segment::Parameter(_) => level.parameter.get_or_insert_default(),
                };
            }
            let leaf = if template.has_trailing_slash() { &mut level.slashed } else { &mut level.plain };
            let leaf = leaf.get_or_insert_with(|| Leaf { template: template.clone(), methods: Vec::new() });
            leaf.methods.push((method, index));
        }
        table
    }

    /// A table that knows every path, with the operations of `methods`, in order.
    pub(crate) fn any_path(methods: impl Iterator<Item = Method>) -> Self {
        let methods = methods.enumerate().map(|(index, method)| (method, index)).collect();
        Self { root: Level::default(), any: Some(Leaf { template: PathTemplate::any(), methods }) }
    }

    /// Finds the operation of a request. `method` is `None` for one that no operation can have.
    #[must_use]
    pub fn lookup(&self, method: Option<Method>, path: &RequestPath) -> Lookup<'_> {
        let leaf = self.root.find(path.segments(), path.has_trailing_slash()).or(self.any.as_ref());
        let Some(leaf) = leaf else {
            return Lookup::Unknown;
        };
        let Some(&(_, operation)) = leaf.methods.iter().find(|(known, _)| Some(*known) == method) else {
            let mut allow: Vec<_> = leaf.methods.iter().map(|&(method, _)| method).collect();
            allow.sort_unstable();
            return Lookup::MethodNotAllowed { allow };
        };
        let pairs = leaf.template.segments().iter().zip(path.segments());
        let parameters = pairs.filter_map(|(segment, value)| match segment {
            Segment::Parameter(name) => Some((name.clone(), value.clone())),
            Segment::Literal(_) => None,
        });
        Lookup::Found(Found {
            operation,
            template: &leaf.template,
            parameters: PathParameters(parameters.collect()),
        })
    }
}

impl Level {
    fn find(&self, segments: &[String], has_trailing_slash: bool) -> Option<&Leaf> {
        let Some((first, rest)) = segments.split_first() else {
            return if has_trailing_slash { self.slashed.as_ref() } else { self.plain.as_ref() };
        };
        let literal = self.literals.get(first).and_then(|level| level.find(rest, has_trailing_slash));
        literal.or_else(|| self.parameter.as_ref().and_then(|level| level.find(rest, has_trailing_slash)))
    }
}

/// Why two templates cannot stand in one document: words that go before the other's name.
pub(crate) fn conflict(one: &PathTemplate, other: &PathTemplate) -> Option<&'static str> {
    if one.segments().len() != other.segments().len()
        || one.has_trailing_slash() != other.has_trailing_slash()
    {
        return None;
    }
    let (mut one_is_exact, mut other_is_exact) = (false, false);
    for pair in one.segments().iter().zip(other.segments()) {
        match pair {
            (Segment::Literal(left), Segment::Literal(right)) if left != right => return None,
            (Segment::Literal(_), Segment::Parameter(_)) => one_is_exact = true,
            (Segment::Parameter(_), Segment::Literal(_)) => other_is_exact = true,
            (Segment::Literal(_), Segment::Literal(_)) | (Segment::Parameter(_), Segment::Parameter(_)) => {}
        }
    }
    match (one_is_exact, other_is_exact) {
        (false, false) => Some("this is the same path as"),
        (true, true) => Some("some paths fit both this and"),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
