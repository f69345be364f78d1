// SPDX-License-Identifier: Apache-2.0
//! OpenAPI 3.0 and 3.1 documents as bounded data.
//!
//! A document is read once, checked whole, and is immutable from then on: [`Document`] holds its
//! operations with their path templates, typed parameters and compiled schemas. [`RouteTable`]
//! finds the operation of a request, [`RequestPath`], [`Query`] and [`json`] read what a stranger
//! sent and write it again in one canonical form, so that only what was understood is forwarded.
//!
//! Nothing here does I/O: no reference is fetched, no file opened. Responses, callbacks, links,
//! security schemes and servers of a document are not read.

pub mod document;
pub mod json;
pub mod limits;
pub mod media_type;
pub mod mistake;
pub mod parameters;
pub mod path;
pub mod query;
pub mod route;
pub mod schema;

mod source;

pub use document::{Body, Content, Document, Group, Method, Operation, Parameter, ParameterLocation};
pub use media_type::{ContentKind, MediaType, MediaTypeRefusal};
pub use mistake::{Mistake, Violation};
pub use parameters::TypedParameters;
pub use path::{PathRefusal, PathTemplate, RequestPath};
pub use query::{Query, QueryRefusal};
pub use route::{Lookup, RouteTable};
pub use schema::{ObjectType, Property, Schema, SchemaType};
