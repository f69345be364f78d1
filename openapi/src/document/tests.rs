// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::json;
use crate::media_type::MediaType;

const DESK: &str = include_str!("desk.yaml");

fn desk() -> Document {
    Document::parse(DESK).unwrap_or_else(|mistakes| panic!("{mistakes:#?}"))
}

fn operation(document: &Document, id: &str) -> Operation {
    document.operation(&OperationId::parse(id).expect(id)).expect(id).clone()
}

fn mistakes(text: &str) -> Vec<String> {
    match Document::parse(text) {
        Ok(document) => panic!("accepted: {document:?}"),
        Err(mistakes) => mistakes.iter().map(ToString::to_string).collect(),
    }
}

/// A document with these paths, components and OpenAPI version.
fn with(version: &str, paths: &str, components: &str) -> String {
    format!("openapi: {version}\npaths: {paths}\ncomponents: {components}\n")
}

fn refused(paths: &str, wanted: &str) {
    let found = mistakes(&with("3.1.0", paths, "{}"));
    assert!(
        found.iter().any(|mistake| mistake.contains(wanted)),
        "{paths}: wanted `{wanted}`, got {found:#?}"
    );
}

#[test]
fn the_support_desk_is_read_whole() {
    let document = desk();
    let told: Vec<_> = document
        .operations()
        .iter()
        .map(|it| {
            format!("{} {} {} [{}] {}", it.id, it.method, it.path, it.tags.join(","), it.group().as_str())
        })
        .collect();
    assert_eq!(
        told,
        [
            "getCustomer GET /customers/{customerId} [customers] read",
            "updateCustomer PATCH /customers/{customerId} [customers] write",
            "listOrders GET /customers/{customerId}/orders [customers,orders] read",
            "latestOrder GET /orders/latest [] read",
            "getOrder GET /orders/{orderId} [orders] read",
            "createRefund POST /refunds [refunds] write",
            "upload POST /attachments [] write",
        ]
    );
    assert_eq!(document.tags(), ["customers", "orders", "refunds"]);
    let names: Vec<_> =
        operation(&document, "listOrders").parameters.iter().map(|it| it.name.clone()).collect();
    assert_eq!(
        names,
        ["customerId", "limit", "status", "fields", "paid", "x-trace"],
        "optional cookies are left out"
    );
}

#[test]
fn json_documents_are_read_like_yaml() {
    let value: Value = serde_saphyr::from_str(DESK).expect("YAML");
    let text = serde_json::to_string(&value).expect("JSON");
    let document = Document::parse(&text).unwrap_or_else(|mistakes| panic!("{mistakes:#?}"));
    assert_eq!(document.operations().len(), desk().operations().len());
}

#[test]
fn a_body_is_found_by_its_media_type_the_most_exact_first() {
    let document = desk();
    let kind = |id: &str, media: &str| {
        let media = MediaType::parse(media).ok();
        let body = operation(&document, id).body?;
        body.content(media.as_ref().map(MediaType::essence)).map(|content| content.kind)
    };
    assert_eq!(kind("createRefund", "Application/JSON; charset=utf-8"), Some(ContentKind::Json));
    assert_eq!(kind("createRefund", "application/x-www-form-urlencoded"), Some(ContentKind::Form));
    assert_eq!(kind("createRefund", "text/plain"), None);
    assert_eq!(kind("createRefund", ""), None);
    assert_eq!(kind("updateCustomer", "application/merge-patch+json"), Some(ContentKind::Json));
    assert_eq!(kind("upload", "image/png"), Some(ContentKind::Other));
    assert_eq!(kind("upload", "multipart/form-data; boundary=x"), Some(ContentKind::Multipart));
    assert!(operation(&document, "getOrder").body.is_none());
}

fn with_body(content: &str) -> Result<Document, Vec<Mistake>> {
    Document::parse(&format!(
        "openapi: 3.1.0\npaths:\n  /x:\n    post:\n      operationId: send\n      requestBody:\n        content:\n          {content}\n"
    ))
}

#[test]
fn a_schema_on_a_range_is_compiled_and_one_that_says_binary_is_none() {
    let schema = |content: &str| {
        let document = with_body(content).unwrap_or_else(|mistakes| panic!("{mistakes:#?}"));
        let body = operation(&document, "send").body.expect("a body");
        body.content(Some("application/json")).expect("declared").schema.is_some()
    };
    assert!(schema("'*/*': { schema: { type: object, required: [a] } }"));
    assert!(schema("'application/*': { schema: { type: string } }"));
    assert!(!schema("'*/*': { schema: { type: string, format: binary } }"));
    assert!(!schema("'*/*': { schema: {} }"));
    assert!(with_body("'*/*': { schema: { type: [broken } }").is_err());
    let broken = with_body("'*/*': { schema: { type: object, pattern: 7 } }").expect_err("no schema");
    assert!(broken[0].pointer.contains("schema"), "{broken:?}");
}

#[test]
fn the_parts_of_a_multipart_body_have_the_types_that_encoding_names() {
    let encoding = "encoding: { a: { contentType: 'image/png, text/*' }, b: { headers: {} } }";
    let document = with_body(&format!("'multipart/form-data': {{ schema: {{ type: object }}, {encoding} }}"));
    let body = operation(&document.expect("a document"), "send").body.expect("a body");
    let content = body.content(Some("multipart/form-data")).expect("declared");
    assert!(content.takes_part("a", "image/png") && content.takes_part("a", "text/plain"));
    assert!(!content.takes_part("a", "image/jpeg") && content.takes_part("b", "image/jpeg"));
    assert!(with_body("'multipart/form-data': { encoding: { a: { contentType: png } } }").is_err());
}

#[test]
fn a_media_type_that_is_none_is_a_mistake() {
    for name in ["json", "application/json,x", "application/json; charset=utf-8; charset=utf-16"] {
        assert!(with_body(&format!("'{name}': {{}}")).is_err(), "{name}");
    }
}

#[test]
fn a_parameters_name_that_could_break_a_line_is_a_mistake() {
    let document = |name: &str| {
        Document::parse(&format!(
            r#"{{"openapi": "3.1.0", "paths": {{"/x/{{{name}}}": {{"get": {{"operationId": "a", "parameters": [
                {{"name": "{name}", "in": "path", "required": true, "schema": {{}}}}]}}}}}}}}"#
        ))
    };
    assert!(document("id").is_ok(), "the control");
    for name in [r"a\nentity Evil;", r"a\rb", r"a\u0085b", r"a\u0000b"] {
        let mistakes = document(name).map(|_| ()).expect_err(name);
        assert!(mistakes[0].message.contains("control character"), "{name}: {mistakes:?}");
    }
}

#[test]
fn a_refund_that_does_not_fit_is_told_field_by_field() {
    let document = desk();
    let body = operation(&document, "createRefund").body.expect("a body");
    let content = body.content(Some("application/json")).expect("JSON");
    let check = |text: &str| {
        let value = json::parse(text.as_bytes(), json::Limits::default()).expect("JSON");
        let told = content.validate(&value).err().unwrap_or_default();
        told.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(
        check(r#"{"order_id":7,"amount":12.5,"reason":"late"}"#).is_empty(),
        "readOnly `id` is not required"
    );
    assert_eq!(check(r#"{"order_id":7}"#), ["/body/amount: is required"]);
    assert_eq!(
        check(r#"{"order_id":7,"amount":1,"user_id":"eve"}"#),
        ["/body/user_id: is not declared by the schema"]
    );
    let several = check(r#"{"order_id":"seven","amount":501,"reason":"hunter2"}"#).join("\n");
    for pointer in ["/body/order_id: ", "/body/amount: ", "/body/reason: "] {
        assert!(several.contains(pointer), "{several}");
    }
    assert!(!several.contains("hunter2") && !several.contains("seven"), "values are not repeated: {several}");
}

#[test]
fn any_path_has_the_six_plain_operations() {
    let document = Document::any_path();
    let told: Vec<_> =
        document.operations().iter().map(|it| format!("{} {}", it.id, it.group().as_str())).collect();
    assert_eq!(told, ["get read", "head read", "post write", "put write", "patch write", "delete write"]);
    assert!(document.operations().iter().all(|it| !it.is_described));
}

#[test]
fn an_operation_without_a_name_of_its_own_is_refused_with_method_and_path() {
    refused("{/a: {get: {}}}", "GET /a has no operationId");
    refused(
        "{/a: {put: {operationId: write}}}",
        "PUT /a: the operationId `write` is also the name of a group",
    );
    refused("{/a: {get: {operationId: read}}}", "GET /a: the operationId `read`");
    refused(
        "{/a: {get: {operationId: x, tags: [y]}}, /b: {post: {operationId: y}}}",
        "POST /b: the operationId `y` is also",
    );
    refused(
        "{/a: {get: {operationId: x}}, /b: {post: {operationId: x}}}",
        "POST /b: the operationId `x` is taken by GET /a",
    );
    refused("{/a: {get: {operationId: a/b}}}", "GET /a: `a/b` is not a operation id");
    refused("{/a: {get: {operationId: '*'}}}", "is not a operation id");
    refused("{/a: {get: {operationId: x, tags: [write]}}}", "built-in group");
    refused("{/a: {get: {operationId: x, tags: [a/b]}}}", "a tag has");
}

#[test]
fn paths_that_collide_or_are_ambiguous_are_refused() {
    let id = "parameters: [{name: x, in: path, required: true, schema: {type: string}}]";
    let both = |one: &str, other: &str| format!("{{{one}: {{}}, {other}: {{}}}}");
    refused(&both("'/a/{x}'", "'/a/{y}'"), "this is the same path as `/a/{x}`");
    refused(&both("/a", "/%61"), "this is the same path as `/a`");
    refused(&both("'/a/{x}'", "'/{y}/b'"), "some paths fit both this and");
    refused("{/a/../b: {}}", "dot segment");
    refused("{'/a{x}': {}}", "mixes text and parameter");
    let fine = format!(
        "{{'/a/{{x}}': {{{id}, get: {{operationId: one}}}}, /a/b: {{get: {{operationId: two}}}}, /a/b/: {{get: {{operationId: three}}}}}}"
    );
    Document::parse(&with("3.1.0", &fine, "{}")).expect("literals win, a last slash tells paths apart");
}

#[test]
fn parameters_that_are_not_simple_are_refused_by_name() {
    let one = |parameter: &str| {
        format!(
            "{{'/a/{{x}}': {{get: {{operationId: op, parameters: [{{name: x, in: path, required: true, schema: {{type: string}}}}, {parameter}]}}}}}}"
        )
    };
    refused(
        &one("{name: f, in: query, style: deepObject, schema: {type: object}}"),
        "`style: deepObject` is not supported in query",
    );
    refused(&one("{name: f, in: query, schema: {type: object}}"), "is an object");
    refused(&one("{name: f, in: query, schema: {type: array, items: {type: array}}}"), "list of lists");
    refused(&one("{name: f, in: query, content: {application/json: {}}}"), "`content` is not supported");
    refused(&one("{name: f, in: query, allowReserved: true, schema: {type: string}}"), "allowReserved");
    refused(
        &one("{name: f, in: cookie, required: true, schema: {type: string}}"),
        "cookies are not forwarded",
    );
    refused(&one("{name: f, in: body, schema: {type: string}}"), "none of path, query, header");
    refused(&one("{name: f g, in: header, schema: {type: string}}"), "no header's name");
    refused(&one("{name: y, in: path, required: true, schema: {type: string}}"), "does not stand in");
    refused(&one("{name: x, in: path, required: true, schema: {type: string}}"), "declared twice");
    refused(&one("{in: query, schema: {type: string}}"), "`name` is missing");
    refused("{'/a/{x}': {get: {operationId: op}}}", "`{x}` of the path is no declared parameter");
    refused(
        "{'/a/{x}': {get: {operationId: op, parameters: [{name: x, in: path, schema: {type: string}}]}}}",
        "needs `required: true`",
    );
}

#[test]
fn references_never_leave_the_document() {
    for target in [
        "https://evil.example/x.json#/a",
        "file:///etc/passwd",
        "other.yaml",
        "//evil.example/x",
        "#",
        "#anchor",
        "",
    ] {
        let schema = format!(
            "{{/a: {{post: {{operationId: op, requestBody: {{content: {{application/json: {{schema: {{$ref: '{target}'}}}}}}}}}}}}}}"
        );
        refused(&schema, "is not fetched");
        refused(
            &format!("{{/a: {{post: {{operationId: op, parameters: [{{$ref: '{target}'}}]}}}}}}"),
            "is not fetched",
        );
    }
    refused("{/a: {$ref: '#/paths/~1b'}}", "names nothing");
    refused("{/a: {$ref: '#/paths/~1a'}}", "leads to nothing but further references");
}

#[test]
fn what_is_no_document_is_refused() {
    for (text, wanted) in [
        ("", "no OpenAPI"),
        ("[]", "no OpenAPI"),
        ("openapi: 3.1.0", "no `paths`"),
        ("openapi: 4.0.0\npaths: {}", "OpenAPI 4.0.0"),
        ("openapi: 3.1\npaths: {}", "quotes"),
        ("swagger: '2.0'\npaths: {}", "Swagger 2.0"),
        ("a: [", "not a readable document"),
        ("openapi: 3.1.0\nopenapi: 3.0.0", "not a readable document"),
        ("paths: {}", "no OpenAPI"),
        ("openapi: 3.1.0\npaths: {/a: {trace: {operationId: t}}}", "TRACE"),
        ("openapi: 3.1.0\npaths: {/a: {GET: {operationId: t}}}", "no method"),
        (
            "openapi: 3.1.0\npaths: {/a: {get: {operationId: t, requestBody: {content: {a/b: {}}}}}}",
            "GET has no body",
        ),
        ("openapi: 3.1.0\npaths: {/a: {get: {operationId: t, x-postern-cache: 1}}}", "misspelt"),
    ] {
        let found = mistakes(text);
        assert!(found.iter().any(|mistake| mistake.contains(wanted)), "{text}: {found:?}");
    }
}

#[test]
fn all_mistakes_come_at_once_with_their_lines() {
    let text = "openapi: 3.1.0\npaths:\n  /a:\n    get: {}\n  /b:\n    post:\n      operationId: b\n      requestBody:\n        content:\n          application/json:\n            schema:\n              typ: object\n";
    insta::assert_snapshot!(mistakes(text).join("\n"), @r"
    line 4: /paths/~1a/get: GET /a has no operationId; policies and tokens name it by that
    line 12: /paths/~1b/post/requestBody/content/application~1json/schema/typ: `typ` is not supported in schemas; remove it, or begin it with `x-` if it only describes
    ");
}

#[test]
fn the_number_of_mistakes_is_bounded() {
    let many: String =
        (0..limits::MISTAKES + 50).map(|number| format!("/p{number}: {{get: {{}}}}, ")).collect();
    let found = mistakes(&with("3.1.0", &format!("{{{many}}}"), "{}"));
    assert_eq!(found.len(), limits::MISTAKES + 1);
    assert!(found.last().is_some_and(|last| last.starts_with("50 more")), "{:?}", found.last());
}

#[test]
fn a_document_beyond_its_bounds_is_refused() {
    let long = format!("openapi: 3.1.0\npaths: {{}}\nx: {}", "y".repeat(limits::DOCUMENT_BYTES));
    let deep = format!("{{openapi: 3.1.0, paths: {{}}, x: {}{}}}", "[".repeat(2000), "]".repeat(2000));
    let deep_block: String = (0..200).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    let wide = format!("openapi: 3.1.0\npaths: {{}}\nx: [{}]", "1,".repeat(limits::DOCUMENT_NODES));
    let mut bomb = "openapi: 3.1.0\na0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..10 {
        let before = format!("*a{},", level - 1).repeat(9);
        bomb.push_str(&format!("a{level}: &a{level} [{before}]\n"));
    }
    for text in [
        long,
        deep,
        deep_block,
        wide,
        bomb,
        "a: &a [*a]".to_owned(),
        "{a: 1}\n---\n{b: 1}".to_owned(),
        "<<: {a: 1}".to_owned(),
    ] {
        let found = mistakes(&text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].len() < 400, "{}", found[0]);
    }
    let both = |number: usize| {
        format!("/p{number}: {{get: {{operationId: g{number}}}, put: {{operationId: p{number}}}}}, ")
    };
    let paths: String = (0..=limits::OPERATIONS / 2).map(both).collect();
    refused(&format!("{{{paths}}}"), "operations; split the document");
    let empty: String = (0..=limits::PATHS + 1).map(|number| format!("/p{number}: {{}}, ")).collect();
    refused(&format!("{{{empty}}}"), "paths; split the document");
}
