// SPDX-License-Identifier: Apache-2.0
//! Bounds what checking a value against a schema can cost, before any value is checked.
//!
//! A schema is a graph: edges to schemas for the *same* value (`allOf`, `$ref`, `if` …) and edges
//! to schemas for a value *below* it (`properties`, `items` …). Refused are: more parts than the
//! limit when the graph is unfolded (each cycle once); a path that is too deep; a cycle of *same*
//! edges, which never ends; and recursion that forks, where a schema leads back to itself more
//! than once for the same value below, so that each level of nesting would multiply the work.

use crate::limits;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Where below a value the next schema applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place<'s> {
    Property(&'s str),
    AnyProperty,
    Item,
}

#[derive(Debug, Default)]
struct Part<'s> {
    same: Vec<usize>,
    below: Vec<(Place<'s>, usize)>,
    /// Set by `measure`.
    weight: Option<usize>,
    depth: usize,
    order: usize,
    lowest: usize,
    component: Option<usize>,
}

#[derive(Debug, Default)]
struct Graph<'s> {
    parts: Vec<Part<'s>>,
    definitions: HashMap<&'s str, usize>,
    stack: Vec<usize>,
    /// Parts on the way to the present one: bounds the recursion of `measure`.
    open: usize,
    visited: usize,
    components: usize,
}

/// The number of parts that `schema` unfolds to.
///
/// # Errors
/// A message for the author if the schema is refused.
pub(super) fn check(schema: &Value) -> Result<usize, String> {
    let mut graph = Graph::default();
    let empty = serde_json::Map::new();
    let definitions = schema.get("$defs").and_then(Value::as_object).unwrap_or(&empty);
    for name in definitions.keys() {
        let place = graph.part();
        graph.definitions.insert(name, place);
    }
    for (name, definition) in definitions {
        if let Some(&place) = graph.definitions.get(name.as_str()) {
            graph.fill(place, definition);
        }
    }
    let root = graph.part();
    graph.fill(root, schema);
    if graph.parts.len() > limits::SCHEMA_EXPANSION {
        return Err(too_large());
    }
    graph.measure(root)?;
    let weight = graph.parts.get(root).and_then(|part| part.weight).unwrap_or(usize::MAX);
    if weight > limits::SCHEMA_EXPANSION {
        return Err(too_large());
    }
    graph.refuse_endless()?;
    graph.refuse_forks()?;
    Ok(weight)
}

impl<'s> Graph<'s> {
    fn part(&mut self) -> usize {
        self.parts.push(Part::default());
        self.parts.len() - 1
    }

    fn child(&mut self, schema: &'s Value) -> usize {
        let place = self.part();
        self.fill(place, schema);
        place
    }

    /// Reads one schema object into the part that was made for it.
    fn fill(&mut self, place: usize, schema: &'s Value) {
        let Value::Object(entries) = schema else {
            return;
        };
        let (mut same, mut below) = (Vec::new(), Vec::new());
        for (keyword, value) in entries {
            match keyword.as_str() {
                "$ref" => {
                    let name = value.as_str().and_then(|target| target.strip_prefix("#/$defs/"));
                    same.extend(name.and_then(|name| self.definitions.get(name)));
                }
                "allOf" | "anyOf" | "oneOf" => same.extend(self.children(value)),
                "not" | "if" | "then" | "else" => same.push(self.child(value)),
                "dependentSchemas" => {
                    same.extend(self.named(value).into_iter().map(|(_, part)| part));
                }
                "properties" => {
                    let named = self.named(value);
                    below.extend(named.into_iter().map(|(name, part)| (Place::Property(name), part)));
                }
                "patternProperties" => {
                    let named = self.named(value);
                    below.extend(named.into_iter().map(|(_, part)| (Place::AnyProperty, part)));
                }
                "additionalProperties" | "unevaluatedProperties" | "propertyNames" => {
                    below.push((Place::AnyProperty, self.child(value)));
                }
                "items" | "contains" | "unevaluatedItems" => {
                    below.push((Place::Item, self.child(value)));
                }
                "prefixItems" => {
                    below.extend(self.children(value).into_iter().map(|part| (Place::Item, part)));
                }
                _ => {}
            }
        }
        if let Some(part) = self.parts.get_mut(place) {
            part.same = same;
            part.below = below;
        }
    }

    fn children(&mut self, list: &'s Value) -> Vec<usize> {
        list.as_array().into_iter().flatten().map(|item| self.child(item)).collect()
    }

    fn named(&mut self, map: &'s Value) -> Vec<(&'s str, usize)> {
        map.as_object().into_iter().flatten().map(|(name, item)| (name.as_str(), self.child(item))).collect()
    }

    fn edges(&self, place: usize) -> Vec<usize> {
        let part = self.parts.get(place);
        let below = part.into_iter().flat_map(|part| part.below.iter().map(|&(_, to)| to));
        part.into_iter().flat_map(|part| part.same.iter().copied()).chain(below).collect()
    }

    /// Weight and depth of `place` and all that it reaches, and the cycles (Tarjan's algorithm).
    fn measure(&mut self, place: usize) -> Result<(), String> {
        if self.open > limits::SCHEMA_DEPTH {
            return Err(too_deep());
        }
        self.open += 1;
        let order = self.visited + 1;
        self.visited = order;
        self.stack.push(place);
        let (mut weight, mut depth, mut lowest) = (1_usize, 0, order);
        if let Some(part) = self.parts.get_mut(place) {
            (part.order, part.lowest) = (order, order);
        }
        for next in self.edges(place) {
            if self.parts.get(next).is_some_and(|part| part.order == 0) {
                self.measure(next)?;
            }
            let Some(part) = self.parts.get(next) else {
                continue;
            };
            if part.component.is_none() {
                lowest = lowest.min(part.lowest);
            }
            weight = weight.saturating_add(part.weight.unwrap_or(1));
            depth = depth.max(part.depth);
        }
        if depth >= limits::SCHEMA_DEPTH {
            return Err(too_deep());
        }
        if let Some(part) = self.parts.get_mut(place) {
            (part.weight, part.depth, part.lowest) = (Some(weight), depth + 1, lowest);
        }
        self.open -= 1;
        if lowest == order {
            self.close_component(place);
        }
        Ok(())
    }

    fn close_component(&mut self, first: usize) {
        self.components += 1;
        while let Some(member) = self.stack.pop() {
            if let Some(part) = self.parts.get_mut(member) {
                part.component = Some(self.components);
            }
            if member == first {
                break;
            }
        }
    }

    fn component(&self, place: usize) -> Option<usize> {
        self.parts.get(place).and_then(|part| part.component)
    }

    /// Refuses cycles of *same* edges: takes away parts without incoming ones until none is left.
    fn refuse_endless(&self) -> Result<(), String> {
        let mut incoming = vec![0_usize; self.parts.len()];
        for &to in self.parts.iter().flat_map(|part| &part.same) {
            incoming.iter_mut().skip(to).take(1).for_each(|count| *count += 1);
        }
        let mut free: Vec<usize> =
            incoming.iter().enumerate().filter(|&(_, &count)| count == 0).map(|(at, _)| at).collect();
        let mut taken = 0;
        while let Some(place) = free.pop() {
            taken += 1;
            for &to in self.parts.get(place).into_iter().flat_map(|part| &part.same) {
                let Some(count) = incoming.get_mut(to) else {
                    continue;
                };
                *count -= 1;
                if *count == 0 {
                    free.push(to);
                }
            }
        }
        if taken == self.parts.len() {
            return Ok(());
        }
        Err("the schema refers back to itself without going into a property or item, which never ends"
            .to_owned())
    }

    fn refuse_forks(&self) -> Result<(), String> {
        let recursive = self.recursive_components();
        let entered: BTreeSet<usize> = self
            .parts
            .iter()
            .flat_map(|part| part.below.iter().map(move |&(_, to)| (part.component, to)))
            .filter(|&(from, to)| from.is_some() && from == self.component(to))
            .map(|(_, to)| to)
            .collect();
        for start in entered {
            self.refuse_fork(start, &recursive)?;
        }
        Ok(())
    }

    /// Components that hold a cycle or lead to one.
    fn recursive_components(&self) -> HashSet<usize> {
        let mut found = HashSet::new();
        let mut sizes: HashMap<usize, usize> = HashMap::new();
        for component in self.parts.iter().filter_map(|part| part.component) {
            *sizes.entry(component).or_default() += 1;
        }
        // Tarjan closes components in reverse topological order: what is reached has a lower number.
        let mut by_component: Vec<(usize, usize)> = (0..self.parts.len())
            .filter_map(|place| self.component(place).map(|number| (number, place)))
            .collect();
        by_component.sort_unstable();
        for (number, place) in by_component {
            let leads = self
                .edges(place)
                .into_iter()
                .any(|to| self.component(to).is_some_and(|to| found.contains(&to)));
            let is_own_cycle = self.edges(place).contains(&place);
            if leads || is_own_cycle || sizes.get(&number).is_some_and(|&size| size > 1) {
                found.insert(number);
            }
        }
        found
    }

    fn refuse_fork(&self, start: usize, recursive: &HashSet<usize>) -> Result<(), String> {
        let home = self.component(start);
        let (mut open, mut steps) = (vec![start], 0);
        let mut entries: Vec<(Place<'_>, bool)> = Vec::new();
        while let Some(place) = open.pop() {
            steps += 1;
            if steps > limits::SCHEMA_EXPANSION {
                return Err(forks());
            }
            let Some(part) = self.parts.get(place) else {
                continue;
            };
            open.extend(&part.same);
            let leads_on = part
                .below
                .iter()
                .filter(|&&(_, to)| self.component(to).is_some_and(|to| recursive.contains(&to)));
            entries.extend(leads_on.map(|&(at, to)| (at, self.component(to) == home)));
        }
        for (index, &(place, is_home)) in entries.iter().enumerate() {
            let others = entries.iter().skip(index + 1);
            if others.into_iter().any(|&(other, other_home)| (is_home || other_home) && overlap(place, other))
            {
                return Err(forks());
            }
        }
        Ok(())
    }
}

fn overlap(one: Place<'_>, other: Place<'_>) -> bool {
    match (one, other) {
        (Place::Property(one), Place::Property(other)) => one == other,
        (Place::Item, Place::Item) => true,
        (Place::Item, _) | (_, Place::Item) => false,
        (Place::AnyProperty, _) | (_, Place::AnyProperty) => true,
    }
}

fn too_large() -> String {
    format!("the schema unfolds to more than {} parts; reuse less, or simplify it", limits::SCHEMA_EXPANSION)
}

fn too_deep() -> String {
    format!(
        "the schema is more than {} schemas deep when references are followed; flatten it",
        limits::SCHEMA_DEPTH
    )
}

fn forks() -> String {
    "the schema leads back to itself more than once for the same property or item, so that checking could take \
     exponential time; let one branch hold the recursion"
        .to_owned()
}
