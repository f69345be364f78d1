// SPDX-License-Identifier: Apache-2.0
//! Reads a document into operations and reports everything that is wrong with it at once.

use super::{Method, Operation};
use crate::limits;
use crate::mistake::{Mistake, Mistakes};
use crate::path::PathTemplate;
use crate::route::{RouteTable, conflict};
use crate::schema::{Dialect, SchemaReader, resolve};
use crate::source::{self, At, Kind};
use postern_common::id::OperationId;
use std::collections::{BTreeSet, HashMap};

/// Names of groups that every backend has.
const METHOD_GROUPS: [&str; 2] = ["read", "write"];

/// What is needed while one document is read.
pub(super) struct Reader<'d> {
    pub(super) root: At<'d>,
    pub(super) schemas: SchemaReader<'d>,
    pub(super) mistakes: Mistakes,
    tags: BTreeSet<String>,
    paths: Vec<PathTemplate>,
    operations: Vec<(Operation, At<'d>)>,
}

type Outcome = (Vec<Operation>, Vec<String>, RouteTable);

pub(super) fn document(text: &str) -> Result<Outcome, Vec<Mistake>> {
    let tree = source::read(text).map_err(|mistake| vec![mistake])?;
    let root = At::root(&tree);
    let mut mistakes = Mistakes::default();
    let dialect = dialect(&root, &mut mistakes);
    let Some(dialect) = dialect else {
        return Err(mistakes.into_vec());
    };
    let schemas = SchemaReader::new(root.clone(), dialect);
    let mut reader =
        Reader { root, schemas, mistakes, tags: BTreeSet::new(), paths: Vec::new(), operations: Vec::new() };
    reader.paths();
    reader.check_ids();
    if !reader.mistakes.is_empty() {
        return Err(reader.mistakes.into_vec());
    }
    let operations: Vec<_> = reader.operations.into_iter().map(|(operation, _)| operation).collect();
    let routes = RouteTable::compile(operations.iter().map(|operation| (operation.method, &operation.path)));
    Ok((operations, reader.tags.into_iter().collect(), routes))
}

fn dialect(root: &At<'_>, mistakes: &mut Mistakes) -> Option<Dialect> {
    const WANTED: &str = "this is no OpenAPI 3.0 or 3.1 document; it begins with `openapi: 3.1.0`";
    if !root.is_map() {
        mistakes.add(root, WANTED);
        return None;
    }
    if let Some(at) = root.get("swagger") {
        mistakes.add(&at, "Swagger 2.0 is not read; convert the document to OpenAPI 3.0 or 3.1");
        return None;
    }
    let Some(at) = root.get("openapi") else {
        mistakes.add(root, WANTED);
        return None;
    };
    let version = at.text(mistakes)?;
    let mut numbers = version.split('.');
    match (numbers.next(), numbers.next()) {
        (Some("3"), Some("0")) => Some(Dialect::V30),
        (Some("3"), Some("1")) => Some(Dialect::V31),
        _ => {
            mistakes.add(&at, format!("OpenAPI {version} is not read; use 3.0 or 3.1"));
            None
        }
    }
}

impl<'d> Reader<'d> {
    fn paths(&mut self) {
        let Some(paths) = self.root.get("paths") else {
            let root = self.root.clone();
            self.mistakes.add(&root, "the document has no `paths`, so there is nothing to call");
            return;
        };
        for (text, at) in paths.entries(&mut self.mistakes) {
            if text.starts_with("x-") {
                continue;
            }
            let template = match PathTemplate::parse(text) {
                Ok(template) => template,
                Err(error) => {
                    self.mistakes.add(&at, error.to_string());
                    continue;
                }
            };
            if self.operations.len() >= limits::OPERATIONS {
                self.mistakes
                    .add(&at, format!("more than {} operations; split the document", limits::OPERATIONS));
                return;
            }
            if self.paths.len() >= limits::PATHS {
                self.mistakes.add(&at, format!("more than {} paths; split the document", limits::PATHS));
                return;
            }
            self.check_path(&template, &at);
            self.path_item(&template, &at);
        }
    }

    fn check_path(&mut self, template: &PathTemplate, at: &At<'d>) {
        for earlier in &self.paths {
            if let Some(reason) = conflict(earlier, template) {
                self.mistakes.add(at, format!("{reason} `{earlier}`; change or remove one of them"));
            }
        }
        self.paths.push(template.clone());
    }

    fn path_item(&mut self, template: &PathTemplate, at: &At<'d>) {
        let Some(at) = self.dereferenced(at) else {
            return;
        };
        let shared = at.get("parameters");
        for (key, value) in at.entries(&mut self.mistakes) {
            match key {
                "summary" | "description" | "parameters" | "servers" => {}
                "trace" => self.mistakes.add(&value, "TRACE is never forwarded; remove the operation"),
                key if key.starts_with("x-") && !key.starts_with("x-postern-") => {}
                key => match Method::parse(&key.to_ascii_uppercase())
                    .filter(|method| method.as_lower() == key)
                {
                    Some(method) => self.operation(method, template, &value, shared.as_ref()),
                    None => self.mistakes.add(&value, format!("`{key}` is no method and no part of a path")),
                },
            }
        }
    }

    fn operation(&mut self, method: Method, path: &PathTemplate, at: &At<'d>, shared: Option<&At<'d>>) {
        if !at.is_map() {
            self.mistakes.add(at, format!("{method} {path}: expected an operation, which is a map"));
            return;
        }
        for (key, value) in at.entries(&mut self.mistakes) {
            if key.starts_with("x-postern-") {
                self.mistakes.add(&value, format!("`{key}` means nothing on an operation; is it misspelt?"));
            }
        }
        let id = self.operation_id(method, path, at);
        let tags = self.operation_tags(at);
        let parameters = self.parameters(path, at, shared);
        let body = at.get("requestBody").and_then(|body| self.body(method, &body));
        let Some(id) = id else { return };
        let operation =
            Operation { id, method, path: path.clone(), tags, parameters, body, is_described: true };
        self.operations.push((operation, at.clone()));
    }

    fn operation_id(&mut self, method: Method, path: &PathTemplate, at: &At<'d>) -> Option<OperationId> {
        let Some(id) = at.get("operationId") else {
            self.mistakes
                .add(at, format!("{method} {path} has no operationId; policies and tokens name it by that"));
            return None;
        };
        let text = id.text(&mut self.mistakes)?;
        OperationId::parse(text)
            .map_err(|error| self.mistakes.add(&id, format!("{method} {path}: {error}")))
            .ok()
    }

    fn operation_tags(&mut self, at: &At<'d>) -> Vec<String> {
        let mut found = BTreeSet::new();
        let Some(tags) = at.get("tags") else {
            return Vec::new();
        };
        for item in tags.items(&mut self.mistakes) {
            let Some(tag) = item.text(&mut self.mistakes) else {
                continue;
            };
            if METHOD_GROUPS.contains(&tag) {
                self.mistakes
                    .add(&item, format!("the tag `{tag}` is the name of a built-in group; rename it"));
            } else if tag.is_empty()
                || tag.len() > 128
                || tag == "*"
                || tag.contains(|it: char| it.is_control() || it == '/')
            {
                self.mistakes
                    .add(&item, "a tag has 1 to 128 bytes, no `/`, no control characters, and is not `*`");
            } else {
                found.insert(tag.to_owned());
            }
        }
        if found.len() > limits::TAGS {
            self.mistakes.add(&tags, format!("more than {} tags on one operation", limits::TAGS));
        }
        self.tags.extend(found.iter().cloned());
        found.into_iter().collect()
    }

    /// An id names one operation and no group: a token's `BACKEND/NAME` must mean one thing.
    fn check_ids(&mut self) {
        let mut seen: HashMap<&str, &Operation> = HashMap::new();
        for (operation, at) in &self.operations {
            let (id, method, path) = (operation.id.as_str(), operation.method, &operation.path);
            if METHOD_GROUPS.contains(&id) || self.tags.contains(id) {
                let message =
                    format!("{method} {path}: the operationId `{id}` is also the name of a group; rename it");
                self.mistakes.add(at, message);
            }
            if let Some(earlier) = seen.insert(id, operation) {
                let message = format!(
                    "{method} {path}: the operationId `{id}` is taken by {} {}; give each its own",
                    earlier.method, earlier.path
                );
                self.mistakes.add(at, message);
            }
        }
    }

    /// What stands at `at`, through at most a few local references.
    pub(super) fn dereferenced(&mut self, at: &At<'d>) -> Option<At<'d>> {
        let mut here = at.clone();
        for _ in 0..limits::REFERENCE_CHAIN {
            let Some(reference) = here.get("$ref") else {
                return Some(here);
            };
            if !matches!(reference.node.kind, Kind::Text(_)) {
                reference.text(&mut self.mistakes)?;
            }
            here = resolve(&self.root, &reference, &mut self.mistakes)?;
        }
        self.mistakes.add(at, "the `$ref` leads to nothing but further references");
        None
    }
}
