// SPDX-License-Identifier: Apache-2.0
//! The schema keywords that are known, and what becomes of each. A table; `convert` acts on it.

/// What to do with a keyword.
pub(super) enum Keyword {
    /// Describes only.
    Described,
    /// Copied as it is.
    Plain,
    /// Holds one schema (or a boolean).
    One,
    /// Holds a list of schemas.
    Many,
    /// Holds schemas by name.
    Named,
    /// Has a rule of its own in `special`.
    Special,
    /// Refused.
    Unknown,
}

/// The formats that are checked, and `binary`, which tells a file; others only describe.
pub(super) const FORMATS: [&str; 11] =
    ["date-time", "date", "time", "duration", "email", "uuid", "uri", "ipv4", "ipv6", "hostname", "binary"];

/// Keywords that OpenAPI 3.0 does not have.
pub(super) const SINCE_V31: [&str; 17] = [
    "const",
    "if",
    "then",
    "else",
    "prefixItems",
    "contains",
    "minContains",
    "maxContains",
    "propertyNames",
    "patternProperties",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "examples",
    "$comment",
    "$defs",
];

/// The class of a keyword.
pub(super) fn keyword(name: &str) -> Keyword {
    match name {
        "title" | "description" | "default" | "example" | "examples" | "deprecated" | "readOnly"
        | "writeOnly" | "xml" | "externalDocs" | "discriminator" | "$comment" | "$defs"
        | "contentMediaType" | "contentEncoding" => Keyword::Described,
        "const" | "multipleOf" | "maximum" | "minimum" | "maxLength" | "minLength" | "maxItems"
        | "minItems" | "uniqueItems" | "maxContains" | "minContains" | "maxProperties" | "minProperties"
        | "dependentRequired" | "enum" => Keyword::Plain,
        "items"
        | "additionalProperties"
        | "not"
        | "if"
        | "then"
        | "else"
        | "contains"
        | "propertyNames"
        | "unevaluatedItems"
        | "unevaluatedProperties" => Keyword::One,
        "allOf" | "anyOf" | "oneOf" | "prefixItems" => Keyword::Many,
        "properties" | "patternProperties" | "dependentSchemas" => Keyword::Named,
        "$ref"
        | "type"
        | "nullable"
        | "exclusiveMinimum"
        | "exclusiveMaximum"
        | "format"
        | "pattern"
        | "required"
        | "x-postern-sensitive" => Keyword::Special,
        name if name.starts_with("x-") && !name.starts_with("x-postern-") => Keyword::Described,
        _ => Keyword::Unknown,
    }
}
