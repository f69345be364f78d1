// SPDX-License-Identifier: Apache-2.0
//! Every bound of this crate, in one place. It only names numbers; the modules enforce them.
//!
//! The sizes leave several times the room of the largest public documents that people put in
//! front of agents (a few hundred operations, under 2 MiB), and keep the worst that a hostile
//! document can cost to a few seconds of one core and, with the most and largest patterns, about 150 MiB.

/// Bytes of a document.
pub const DOCUMENT_BYTES: usize = 4 * 1024 * 1024;
/// Values (scalars, lists, maps) in a document, after aliases.
pub const DOCUMENT_NODES: usize = 200_000;
/// Nesting of a document.
pub const DOCUMENT_DEPTH: usize = 64;
/// Stack of the thread that reads a document. The YAML parser takes about 40 KiB for each level of
/// nesting in an unoptimised build (measured), so 64 levels need 3 MiB; the rest is margin.
pub const READING_STACK: usize = 16 * 1024 * 1024;
/// YAML aliases in a document.
pub const DOCUMENT_ALIASES: usize = 1_000;
/// Values that all aliases together may stand for.
pub const DOCUMENT_ALIASED_NODES: usize = 20_000;
/// Operations of a document, or routes of a table.
pub const OPERATIONS: usize = 2_000;
/// Paths of a document, with or without operations.
pub const PATHS: usize = 2_000;
/// Parameters of one operation.
pub const PARAMETERS: usize = 64;
/// Content types of one body.
pub const CONTENT_TYPES: usize = 16;
/// Tags of one operation.
pub const TAGS: usize = 32;
/// Schema objects read in one document, each use of a shared parameter counted again.
pub const SCHEMA_NODES: usize = 50_000;
/// Schema objects that one schema unfolds to when its references are followed.
pub const SCHEMA_EXPANSION: usize = 5_000;
/// The same, over all schemas of a document.
pub const TOTAL_EXPANSION: usize = 100_000;
/// Schema objects inside or behind each other, references followed. Compiling and validating
/// recurse this deep; a thread of 2 MiB must hold it in an unoptimised build.
pub const SCHEMA_DEPTH: usize = 48;
/// References followed one after the other before anything else is found.
pub const REFERENCE_CHAIN: usize = 16;
/// Depth to which a schema is shown as a type ([`crate::SchemaType`]); deeper is `Any`.
pub const TYPE_DEPTH: usize = 12;
/// Characters of one `pattern`.
pub const PATTERN_LENGTH: usize = 1_024;
/// Patterns in one document.
pub const PATTERNS: usize = 300;
/// Bytes of one compiled pattern and of its cache of states.
pub const PATTERN_BYTES: usize = 512 * 1024;
/// Mistakes reported for one document.
pub const MISTAKES: usize = 100;
/// Violations reported for one request.
pub const VIOLATIONS: usize = 16;
/// Characters of one violation's message.
pub const VIOLATION_LENGTH: usize = 300;
/// Bytes of a request's path. Common servers and proxies stop at 8 KiB for the whole line.
pub const PATH_BYTES: usize = 4 * 1024;
/// Segments of a path.
pub const PATH_SEGMENTS: usize = 64;
/// Bytes of a request's query.
pub const QUERY_BYTES: usize = 8 * 1024;
/// Pairs of a query, and fields of a form.
pub const QUERY_PAIRS: usize = 256;
/// Items of an array written in one parameter.
pub const PARAMETER_ITEMS: usize = 256;
