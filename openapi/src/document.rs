// SPDX-License-Identifier: Apache-2.0
//! A parsed document: what its operations are called, where they are and what they accept.
//!
//! Reading happens in `read`, `read_parameter` and `read_body`; this file holds the result, which
//! cannot be wrong: every id is unique and no group's name, no two paths are ambiguous, every
//! schema is compiled.

use crate::limits;
use crate::media_type::ContentKind;
use crate::mistake::{Mistake, Violation};
use crate::path::PathTemplate;
use crate::route::RouteTable;
use crate::schema::Schema;
use postern_common::id::OperationId;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::thread;

mod read;
mod read_body;
mod read_parameter;

/// The methods that a backend without a document has, each an operation of the same name in lower
/// case (contracts: Settings, `BACKEND_URL`).
const PLAIN_METHODS: [Method; 6] =
    [Method::Get, Method::Head, Method::Post, Method::Put, Method::Patch, Method::Delete];

/// The range of all media types.
const ANY_TYPE: &str = "*/*";

/// A checked OpenAPI document. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Document(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    operations: Vec<Operation>,
    tags: Vec<String>,
    routes: RouteTable,
}

impl Document {
    /// Reads and checks a document, YAML or JSON.
    ///
    /// Cost: bounded by [`crate::limits`]; all schemas and patterns are compiled here, so call it
    /// where a second of work does no harm. It works on a thread of its own and waits for it: the
    /// nesting that is allowed needs more stack than a caller's may have, and a fault in a parser
    /// ends there, as a mistake of the document.
    ///
    /// # Errors
    /// All mistakes that were found, in the order of the document's lines.
    pub fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        let (operations, tags, routes) = on_large_stack(|| read::document(text))?;
        Ok(Self(Arc::new(Parts { operations, tags, routes })))
    }

    /// The stand-in for a backend without a document: any path, and the operations `get`, `head`,
    /// `post`, `put`, `patch` and `delete`, with nothing declared and nothing checked.
    #[must_use]
    pub fn any_path() -> Self {
        let operations: Vec<Operation> = PLAIN_METHODS.into_iter().filter_map(Operation::any_path).collect();
        let routes = RouteTable::any_path(operations.iter().map(|operation| operation.method));
        Self(Arc::new(Parts { operations, tags: Vec::new(), routes }))
    }

    /// The operations; [`RouteTable`] finds them by index in this list.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.0.operations
    }

    /// The operation with this id.
    #[must_use]
    pub fn operation(&self, id: &OperationId) -> Option<&Operation> {
        self.0.operations.iter().find(|operation| operation.id == *id)
    }

    /// All tags that an operation has, sorted. With `read` and `write` they are the groups.
    #[must_use]
    pub fn tags(&self) -> &[String] {
        &self.0.tags
    }

    /// Finds the operation of a request.
    #[must_use]
    pub fn routes(&self) -> &RouteTable {
        &self.0.routes
    }
}

fn on_large_stack<T: Send>(read: impl FnOnce() -> Result<T, Vec<Mistake>> + Send) -> Result<T, Vec<Mistake>> {
    let failed = |message: String| {
        vec![Mistake {
            pointer: String::new(),
            line: None,
            message: format!("the document could not be read: {message}"),
        }]
    };
    let builder = thread::Builder::new().name("read-openapi".to_owned()).stack_size(limits::READING_STACK);
    thread::scope(|scope| match builder.spawn_scoped(scope, read) {
        Ok(reading) => reading
            .join()
            .unwrap_or_else(|_panic| Err(failed("a parser gave up on it; simplify it".to_owned()))),
        Err(error) => Err(failed(format!("no thread for it ({error}); try again"))),
    })
}

/// A request method that an operation can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// GET
    Get,
    /// HEAD
    Head,
    /// OPTIONS
    Options,
    /// POST
    Post,
    /// PUT
    Put,
    /// PATCH
    Patch,
    /// DELETE
    Delete,
}

impl Method {
    const ALL: [Self; 7] =
        [Self::Get, Self::Head, Self::Options, Self::Post, Self::Put, Self::Patch, Self::Delete];

    /// The method as a request line spells it: upper case, nothing else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.as_str() == text)
    }

    /// The method in upper case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }

    /// The method as a document spells it.
    #[must_use]
    pub fn as_lower(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Head => "head",
            Self::Options => "options",
            Self::Post => "post",
            Self::Put => "put",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }

    /// Whether operations with this method read or write.
    #[must_use]
    pub fn group(self) -> Group {
        match self {
            Self::Get | Self::Head | Self::Options => Group::Read,
            Self::Post | Self::Put | Self::Patch | Self::Delete => Group::Write,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The group that an operation is in by its method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// GET, HEAD and OPTIONS.
    Read,
    /// Everything else.
    Write,
}

impl Group {
    /// `read` or `write`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// One operation.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Operation {
    /// Its operationId, as written.
    pub id: OperationId,
    /// Its method.
    pub method: Method,
    /// Where it is.
    pub path: PathTemplate,
    /// Its tags, sorted, each once. Each is a group.
    pub tags: Vec<String>,
    /// Declared parameters, those of the path item included. Header names are in lower case.
    pub parameters: Vec<Parameter>,
    /// The request body, if it may have one.
    pub body: Option<Body>,
    /// `false` for the operations of [`Document::any_path`]: nothing is declared, anything goes.
    pub is_described: bool,
}

impl Operation {
    fn any_path(method: Method) -> Option<Self> {
        let id = OperationId::parse(method.as_lower()).ok()?;
        let content = Arc::new(Content {
            media_type: ANY_TYPE.to_owned(),
            kind: ContentKind::Other,
            schema: None,
            encodings: BTreeMap::new(),
        });
        let body = match method.group() {
            Group::Read => None,
            Group::Write => Some(Body { is_required: false, contents: vec![content] }),
        };
        let path = PathTemplate::any();
        Some(Self { id, method, path, tags: Vec::new(), parameters: Vec::new(), body, is_described: false })
    }

    /// `read` or `write`, by the method.
    #[must_use]
    pub fn group(&self) -> Group {
        self.method.group()
    }

    /// The declared parameters in one place of the request.
    pub fn parameters_in(&self, location: ParameterLocation) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter().filter(move |parameter| parameter.location == location)
    }
}

/// Where a parameter stands. Cookies are not forwarded, so they cannot be declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParameterLocation {
    /// A segment of the path.
    Path,
    /// A pair of the query.
    Query,
    /// A header.
    Header,
}

impl ParameterLocation {
    /// `path`, `query` or `header`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Query => "query",
            Self::Header => "header",
        }
    }
}

/// A declared parameter.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Parameter {
    /// Its name; in lower case for headers.
    pub name: String,
    /// Where it stands.
    pub location: ParameterLocation,
    /// Whether a request must have it.
    pub is_required: bool,
    /// Whether an array is written as repeated pairs (`a=1&a=2`) instead of `a=1,2`.
    pub is_exploded: bool,
    /// What its value must be.
    pub schema: Schema,
}

/// A declared request body.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Body {
    /// Whether a request must have it.
    pub is_required: bool,
    /// What it may consist of.
    pub contents: Vec<Arc<Content>>,
}

impl Body {
    /// The declaration for a request of this type, or of none; the most exact one that matches.
    /// `essence` is as [`crate::MediaType::essence`] gives it.
    #[must_use]
    pub fn content(&self, essence: Option<&str>) -> Option<&Arc<Content>> {
        let by_name = |name: &str| self.contents.iter().find(|content| content.media_type == name);
        let range = essence.and_then(|given| given.split_once('/')).map(|(first, _)| format!("{first}/*"));
        let exact = essence.and_then(by_name);
        exact.or_else(|| range.and_then(|range| by_name(&range))).or_else(|| by_name(ANY_TYPE))
    }
}

/// One media type of a body.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Content {
    /// In lower case, without parameters; may be a range such as `image/*`.
    pub media_type: String,
    /// How it is read; [`ContentKind::Other`] for a range, under which each request's own type
    /// decides.
    pub kind: ContentKind,
    /// What it must be; `None` if the document says nothing, or nothing but that it is binary, or
    /// names one type that is not looked into.
    pub schema: Option<Schema>,
    /// The types that parts of a multipart body may have, by name (`encoding`), as essences.
    pub encodings: BTreeMap<String, Vec<String>>,
}

impl Content {
    /// Whether the part `name` of a multipart body may have this type.
    #[must_use]
    pub fn takes_part(&self, name: &str, essence: &str) -> bool {
        let fits = |range: &String| {
            range == essence
                || range == ANY_TYPE
                || range.strip_suffix('*').is_some_and(|kind| essence.starts_with(kind))
        };
        self.encodings.get(name).is_none_or(|ranges| ranges.iter().any(fits))
    }

    /// Whether it is declared as a range of types.
    #[must_use]
    pub fn is_range(&self) -> bool {
        self.media_type.contains('*')
    }

    /// Checks a body that was read as this content. Pointers begin with `/body`.
    ///
    /// # Errors
    /// The places that do not fit.
    pub fn validate(&self, body: &Value) -> Result<(), Vec<Violation>> {
        self.schema.as_ref().map_or(Ok(()), |schema| schema.validate(body, "/body"))
    }
}

#[cfg(test)]
mod tests;
