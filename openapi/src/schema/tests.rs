// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::ContentKind;
use crate::Document;
use serde_json::json;

/// The body schema of a one-operation document whose components are `components`.
fn read(version: &str, schema: &Value, components: &Value) -> Result<Schema, String> {
    let content = json!({ "application/json": { "schema": schema } });
    let operation = json!({ "operationId": "op", "requestBody": { "content": content } });
    let text = json!({ "openapi": version, "paths": { "/a": { "post": operation } }, "components": { "schemas": components } });
    let document = Document::parse(&text.to_string())
        .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let body = document.operations()[0].body.clone().expect("a body");
    assert_eq!(body.contents[0].kind, ContentKind::Json);
    Ok(body.contents[0].schema.clone().expect("a schema"))
}

fn v31(schema: &Value) -> Schema {
    read("3.1.0", schema, &json!({})).unwrap_or_else(|mistakes| panic!("{schema}: {mistakes}"))
}

fn v30(schema: &Value) -> Schema {
    read("3.0.3", schema, &json!({})).unwrap_or_else(|mistakes| panic!("{schema}: {mistakes}"))
}

fn refused(version: &str, schema: &Value, components: &Value, wanted: &str) {
    match read(version, schema, components) {
        Ok(_) => panic!("accepted: {schema}"),
        Err(found) => assert!(found.contains(wanted), "{schema}: wanted `{wanted}`, got {found}"),
    }
}

fn fits(schema: &Schema, value: &Value) -> bool {
    schema.validate(value, "/body").is_ok()
}

#[test]
fn openapi_3_0_schemas_mean_what_that_version_says() {
    let nullable = v30(&json!({ "type": "string", "nullable": true }));
    assert!(fits(&nullable, &json!(null)) && fits(&nullable, &json!("a")) && !fits(&nullable, &json!(1)));
    let listed = v30(&json!({ "type": "string", "nullable": true, "enum": ["a"] }));
    assert!(!fits(&listed, &json!(null)), "`enum` still decides");
    let bound = v30(
        &json!({ "type": "number", "minimum": 0, "exclusiveMinimum": true, "maximum": 5, "exclusiveMaximum": false }),
    );
    assert!(
        !fits(&bound, &json!(0))
            && fits(&bound, &json!(0.5))
            && fits(&bound, &json!(5))
            && !fits(&bound, &json!(6))
    );
    refused("3.0.3", &json!({ "const": 1 }), &json!({}), "needs `openapi: 3.1.0`");
    refused("3.0.3", &json!({ "type": ["string", "null"] }), &json!({}), "expected text");
    let sibling = read(
        "3.0.3",
        &json!({ "$ref": "#/components/schemas/A", "maxLength": 1 }),
        &json!({ "A": { "type": "string" } }),
    );
    assert!(fits(&sibling.expect("read"), &json!("long")), "3.0 ignores what stands beside `$ref`");
}

#[test]
fn openapi_3_1_schemas_mean_what_that_version_says() {
    let nullable = v31(&json!({ "type": ["string", "null"] }));
    assert!(fits(&nullable, &json!(null)) && !fits(&nullable, &json!(1)));
    let bound = v31(&json!({ "type": "number", "exclusiveMinimum": 0 }));
    assert!(!fits(&bound, &json!(0)) && fits(&bound, &json!(0.5)));
    refused("3.1.0", &json!({ "type": "string", "nullable": true }), &json!({}), "`nullable` is OpenAPI 3.0");
    refused(
        "3.1.0",
        &json!({ "type": "number", "minimum": 0, "exclusiveMinimum": true }),
        &json!({}),
        "cannot be used",
    );
    let sibling = read(
        "3.1.0",
        &json!({ "$ref": "#/components/schemas/A", "maxLength": 1 }),
        &json!({ "A": { "type": "string" } }),
    );
    assert!(!fits(&sibling.expect("read"), &json!("long")), "3.1 obeys what stands beside `$ref`");
    let conditional = v31(
        &json!({ "if": { "properties": { "k": { "const": 1 } }, "required": ["k"] }, "then": { "required": ["l"] } }),
    );
    assert!(
        !fits(&conditional, &json!({ "k": 1 }))
            && fits(&conditional, &json!({ "k": 2 }))
            && fits(&conditional, &json!({ "k": 1, "l": 1 }))
    );
}

#[test]
fn an_object_need_not_say_that_it_is_one() {
    let object = v31(&json!({ "required": ["a"], "properties": { "a": { "items": { "type": "string" } } } }));
    assert!(fits(&object, &json!({ "a": ["x"] })));
    for value in [json!("text"), json!([1]), json!(null), json!({ "a": "x" }), json!({ "a": [1] })] {
        assert!(!fits(&object, &value), "{value}");
    }
    let not = v31(&json!({ "not": { "required": ["a"] } }));
    assert!(
        !fits(&not, &json!({ "a": 1 })) && !fits(&not, &json!("text")),
        "no type is implied inside `not`"
    );
}

#[test]
fn common_formats_are_checked_and_unknown_ones_only_describe() {
    for (format, good, bad) in [
        ("date", "2024-02-29", "2023-02-29"),
        ("date-time", "2024-01-01T00:00:00Z", "yesterday"),
        ("email", "a@b.example", "a"),
        ("uuid", "01890a5d-ac96-774b-bcce-b302099a8057", "1"),
        ("ipv4", "127.0.0.1", "127.1"),
        ("uri", "https://a.example/b", "::"),
    ] {
        let schema = v31(&json!({ "type": "string", "format": format }));
        assert!(fits(&schema, &json!(good)) && !fits(&schema, &json!(bad)), "{format}");
    }
    assert!(fits(&v31(&json!({ "type": "string", "format": "colour" })), &json!("any")));
    let small = v31(&json!({ "type": "integer", "format": "int32" }));
    assert!(fits(&small, &json!(2_147_483_647)) && !fits(&small, &json!(2_147_483_648_i64)));
    let large = v31(&json!({ "type": "integer", "format": "int64" }));
    assert!(fits(&large, &json!(i64::MAX)) && !fits(&large, &json!(u64::MAX)));
}

#[test]
fn patterns_run_in_linear_time_or_not_at_all() {
    for pattern in ["(?=a)b", "(a)\\1", "(?<!x)y", "(((a{100}){100}){100}){100}", "["] {
        refused("3.1.0", &json!({ "type": "string", "pattern": pattern }), &json!({}), "pattern");
    }
    refused(
        "3.1.0",
        &json!({ "pattern": "a".repeat(limits::PATTERN_LENGTH + 1) }),
        &json!({}),
        "longer than",
    );
    let evil = v31(&json!({ "type": "string", "pattern": "^(a+)+$" }));
    assert!(
        !fits(&evil, &json!(format!("{}!", "a".repeat(200_000)))),
        "a backtracking engine would not come back"
    );
    let many: Value =
        (0..=limits::PATTERNS).map(|number| json!({ "pattern": format!("^{number}$") })).collect();
    refused("3.1.0", &json!({ "anyOf": many }), &json!({}), "more than 300 patterns");
}

#[test]
fn unknown_and_identity_changing_keywords_are_refused() {
    for keyword in
        ["typ", "$id", "$anchor", "$dynamicRef", "$schema", "definitions", "requird", "x-postern-secret"]
    {
        refused("3.1.0", &json!({ keyword: "x" }), &json!({}), "is not supported in schemas");
    }
    v31(
        &json!({ "type": "string", "title": "t", "description": "d", "example": 1, "x-vendor": {}, "deprecated": true, "default": "" }),
    );
}

#[test]
fn recursion_that_never_ends_or_multiplies_is_refused() {
    let node = json!({ "$ref": "#/components/schemas/A" });
    let endless = "never ends";
    refused("3.1.0", &node, &json!({ "A": { "$ref": "#/components/schemas/A" } }), endless);
    refused(
        "3.1.0",
        &node,
        &json!({ "A": { "allOf": [{ "$ref": "#/components/schemas/B" }] }, "B": { "not": { "$ref": "#/components/schemas/A" } } }),
        endless,
    );
    let forks = "exponential";
    refused(
        "3.1.0",
        &node,
        &json!({ "A": { "anyOf": [{ "properties": { "n": node } }, { "properties": { "n": node } }] } }),
        forks,
    );
    refused(
        "3.1.0",
        &node,
        &json!({ "A": { "properties": { "n": node }, "additionalProperties": true, "patternProperties": { "^n": node } } }),
        forks,
    );
    refused("3.1.0", &node, &json!({ "A": { "properties": { "n": { "allOf": [node, node] } } } }), forks);
    refused("3.1.0", &node, &json!({ "A": { "items": node, "contains": node } }), forks);
}

#[test]
fn plain_recursion_works_to_any_depth_that_a_body_can_have() {
    let node = json!({ "$ref": "#/components/schemas/Tree" });
    let tree = json!({ "properties": { "left": node, "right": node, "rest": { "type": "array", "items": node }, "size": { "type": "integer" } }, "additionalProperties": false });
    let schema = read("3.1.0", &node, &json!({ "Tree": tree })).expect("read");
    let nested =
        |leaf: Value| (0..90).fold(leaf, |inner, _| json!({ "left": inner, "rest": [{}], "size": 1 }));
    assert!(fits(&schema, &nested(json!({}))));
    let told = schema.validate(&nested(json!({ "size": "x" })), "/body").expect_err("refused");
    assert!(told[0].pointer.ends_with("/left/left/size"), "{}", told[0]);
}

#[test]
fn schemas_that_unfold_without_end_are_refused_quickly() {
    let level = |next: usize| json!({ "properties": { "a": { "$ref": format!("#/components/schemas/L{next}") }, "b": { "$ref": format!("#/components/schemas/L{next}") } } });
    let mut components: serde_json::Map<_, _> =
        (0..30).map(|number| (format!("L{number}"), level(number + 1))).collect();
    components.insert("L20".to_owned(), json!({}));
    refused(
        "3.1.0",
        &json!({ "$ref": "#/components/schemas/L0" }),
        &Value::Object(components),
        "unfolds to more than",
    );
    let chain: serde_json::Map<_, _> = (0..800)
        .map(|number| {
            (
                format!("C{number}"),
                json!({ "properties": { "a": { "$ref": format!("#/components/schemas/C{}", number + 1) } } }),
            )
        })
        .chain([("C800".to_owned(), json!({}))])
        .collect();
    refused(
        "3.1.0",
        &json!({ "$ref": "#/components/schemas/C0" }),
        &Value::Object(chain),
        "deep when references are followed",
    );
}

#[test]
fn the_deepest_schema_that_is_accepted_fits_the_stack() {
    let chain = |length: usize| -> Value {
        let link =
            |number: usize| json!({ "allOf": [{ "$ref": format!("#/components/schemas/C{}", number + 1) }] });
        (0..length)
            .map(|number| (format!("C{number}"), link(number)))
            .chain([(format!("C{length}"), json!({ "items": { "$ref": "#/components/schemas/C0" } }))])
            .collect()
    };
    let root = json!({ "$ref": "#/components/schemas/C0" });
    let deepest = (1..limits::SCHEMA_DEPTH)
        .rev()
        .find_map(|length| read("3.1.0", &root, &chain(length)).ok())
        .expect("one fits");
    let value = (0..30).fold(json!([]), |inner, _| json!([inner]));
    assert!(fits(&deepest, &value));
    assert!(!fits(&deepest, &(0..30).fold(json!(1), |inner, _| json!([inner]))));
}

#[test]
fn violations_are_bounded_in_number_and_length() {
    let schema = v31(&json!({ "type": "array", "items": { "enum": ["x".repeat(1000)] } }));
    let told = schema.validate(&json!(vec![1; 10_000]), "/body").expect_err("refused");
    assert_eq!(told.len(), limits::VIOLATIONS);
    assert!(told.iter().all(|it| it.message.chars().count() <= limits::VIOLATION_LENGTH));
}

fn shown(schema: &Value) -> SchemaType {
    v31(schema).schema_type().clone()
}

#[test]
fn types_are_seen_through_references_unions_and_enumerations() {
    let text = || SchemaType::String { values: None, format: None };
    assert_eq!(shown(&json!({ "type": "integer" })), SchemaType::Integer);
    assert_eq!(
        shown(&json!({ "type": ["number", "null"] })),
        SchemaType::Nullable(Box::new(SchemaType::Number))
    );
    assert_eq!(
        shown(&json!({ "enum": ["a", "b"] })),
        SchemaType::String { values: Some(vec!["a".into(), "b".into()]), format: None }
    );
    assert_eq!(shown(&json!({ "const": 3 })), SchemaType::Integer);
    assert_eq!(
        shown(&json!({ "anyOf": [{ "type": "null" }, { "type": "string" }] })),
        SchemaType::Nullable(Box::new(text()))
    );
    assert_eq!(shown(&json!({ "oneOf": [{ "type": "integer" }, { "type": "number" }] })), SchemaType::Number);
    assert_eq!(shown(&json!({ "oneOf": [{ "type": "integer" }, { "type": "string" }] })), SchemaType::Any);
    assert_eq!(shown(&json!({ "type": ["integer", "string"] })), SchemaType::Any);
    assert_eq!(shown(&json!({ "minLength": 1 })), SchemaType::Any, "not only texts pass");
    assert_eq!(
        shown(&json!({ "type": "array", "items": { "type": "string", "format": "date" } })),
        SchemaType::Array(Box::new(SchemaType::String { values: None, format: Some("date".into()) }))
    );
}

#[test]
fn an_object_type_tells_properties_requirement_sensitivity_and_openness() {
    let base = json!({ "required": ["id"], "properties": { "id": { "type": "integer" }, "self": { "$ref": "#/components/schemas/Base" } } });
    let secret = json!({ "type": "string", "x-postern-sensitive": true });
    let schema = json!({ "allOf": [{ "$ref": "#/components/schemas/Base" }, { "properties": { "pin": { "$ref": "#/components/schemas/Secret" } }, "required": ["pin"] }] });
    let schema = read("3.1.0", &schema, &json!({ "Base": base, "Secret": secret })).expect("read");
    let SchemaType::Object(object) = schema.schema_type() else { panic!("{:?}", schema.schema_type()) };
    let told: Vec<_> = object
        .properties
        .iter()
        .map(|(name, it)| (name.as_str(), it.schema_type.clone(), it.is_required, it.is_sensitive))
        .collect();
    let text = SchemaType::String { values: None, format: None };
    assert_eq!(
        told,
        [
            ("id", SchemaType::Integer, true, false),
            ("self", SchemaType::Any, false, false),
            ("pin", text, true, true)
        ]
    );
    assert_eq!(object.additional.as_deref(), Some(&SchemaType::Any));
    let closed = shown(&json!({ "type": "object", "additionalProperties": false }));
    assert_eq!(closed, SchemaType::Object(ObjectType::default()));
}
