// SPDX-License-Identifier: Apache-2.0
//! Multipart bodies: taken apart, judged part by part, and put together again.

use crate::world::{Answer, Sandbox, World};
use postern_common::control::Applied;
use serde_json::json;

const DOCUMENT: &str = r#"{"openapi": "3.0.3", "paths": {"/pictures": {"post": {"operationId": "addPicture",
    "requestBody": {"content": {"multipart/form-data": {
        "schema": {"type": "object", "required": ["picture", "user_id"], "additionalProperties": false, "properties": {
            "picture": {"type": "string", "format": "binary", "maxLength": 1000},
            "more": {"type": "array", "items": {"type": "string", "format": "binary"}},
            "user_id": {"type": "string"}, "width": {"type": "integer", "maximum": 5}, "title": {"type": "string"},
            "about": {"type": "object", "properties": {"user_id": {"type": "string"}, "note": {"type": "string"}}}}},
        "encoding": {"picture": {"contentType": "image/png, image/jpeg"}}}}}}}}}"#;

const PICTURE: &str = "; name=\"picture\"; filename=\"a.png\"\r\ncontent-type: image/png\r\n\r\n\u{1}PNG";

fn body(parts: &[&str]) -> String {
    let parts: String =
        parts.iter().map(|part| format!("--x-x\r\ncontent-disposition: form-data{part}\r\n")).collect();
    parts + "--x-x--\r\n"
}

async fn world(policies: Option<&str>) -> (World, Sandbox) {
    let world = World::empty().await;
    let mut config =
        world.config("acme", &[("pictures", world.described()), ("files", world.plain())], policies);
    let pictures = config.backends.values_mut().find(|backend| backend.document.is_some());
    pictures.expect("pictures").document = Some(DOCUMENT.into());
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    (world, sandbox)
}

async fn send(sandbox: &Sandbox, target: &str, body: &str) -> Answer {
    let media = ("content-type", "multipart/form-data; charset=utf-8; boundary=x-x");
    sandbox.call("POST", target, &[media], body.as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_judged_and_written_anew_with_the_sessions_identity() {
    let (_world, sandbox) = world(None).await;
    let about = "; name=\"about\"\r\nContent-Type: application/json\r\n\r\n{ \"note\": \"x\", \"user_id\": \"mallory\" }";
    let sent = body(&[
        "; name=user_id\r\n\r\nmallory",
        "; name=\"picture\"; filename=\"a.png\"\r\nContent-Type: IMAGE/png\r\nX-Odd: 1\r\n\r\n\u{1}PNG",
        "; name=\"width\"\r\n\r\n5",
        about,
    ]);
    let answer = send(&sandbox, "/pictures/pictures", &sent).await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    assert_eq!(answer.seen_header("content-type"), ["multipart/form-data; boundary=x-x"]);
    let about =
        "; name=\"about\"\r\ncontent-type: application/json\r\n\r\n{\"note\":\"x\",\"user_id\":\"alice\"}";
    let expected = body(&[PICTURE, "; name=\"width\"\r\n\r\n5", about, "; name=\"user_id\"\r\n\r\nalice"]);
    assert_eq!(answer.body["body"], expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_do_not_fit_their_declaration_are_refused() {
    let (world, sandbox) = world(None).await;
    let big =
        format!("; name=\"picture\"; filename=\"a\"\r\ncontent-type: image/png\r\n\r\n{}", "a".repeat(1001));
    for (parts, code) in [
        (&["; name=\"width\"\r\n\r\n5"][..], "schema-violation"),
        (&[PICTURE, "; name=\"width\"\r\n\r\n6"], "schema-violation"),
        (&[PICTURE, "; name=\"width\"\r\n\r\n05"], "schema-violation"),
        (&[PICTURE, PICTURE], "schema-violation"),
        (&[PICTURE, "; name=\"other\"\r\n\r\n1"], "schema-violation"),
        (&[PICTURE, "; name=\"title\"; filename=\"a\"\r\n\r\n1"], "schema-violation"),
        (&[big.as_str()], "schema-violation"),
        (&["; name=\"picture\"; filename=\"a\"\r\ncontent-type: text/html\r\n\r\n1"], "content-type-refused"),
        (&[PICTURE, "; name=\"_method\"\r\n\r\nDELETE"], "request-malformed"),
        (&[PICTURE, "; name=\"title\"; name=\"user_id\"\r\n\r\n1"], "request-malformed"),
    ] {
        let answer = send(&sandbox, "/pictures/pictures", &body(parts)).await;
        assert_eq!(answer.code(), code, "{parts:?}: {:?}", answer.body);
    }
    let answer = send(&sandbox, "/pictures/pictures", "hello").await;
    assert_eq!(answer.code(), "request-malformed");
    world.recorded.assert_untouched("a bad part");
    let more = "; name=\"more\"; filename=\"b\"\r\n\r\n1";
    let answer = send(&sandbox, "/pictures/pictures", &body(&[PICTURE, more, more])).await;
    assert_eq!(answer.status, 200, "the control: {:?}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_document_parts_hide_no_identity() {
    let (world, sandbox) = world(None).await;
    for part in [
        "; name=\"user_id\"\r\n\r\nmallory",
        "; name=User-Id; filename=\"a\"\r\n\r\nmallory",
        "; name=\"order[user_id]\"\r\n\r\nmallory",
        "; name=\"a\"; filename=\"blob\"\r\ncontent-type: application/json\r\n\r\n{\"user_id\":\"mallory\"}",
    ] {
        let answer = send(&sandbox, "/files/x", &body(&[part])).await;
        assert_eq!((answer.status, answer.code()), (403, "identity-mismatch"), "{part}: {:?}", answer.body);
    }
    let mixed = [("content-type", "multipart/mixed; boundary=x-x")];
    let answer = sandbox.call("POST", "/files/x", &mixed, body(&[PICTURE]).as_bytes()).await;
    assert_eq!(answer.code(), "content-type-refused");
    world.recorded.assert_untouched("identity in a part");
    let plain = body(&["; name=\"a\"\r\n\r\nuser_id=mallory", PICTURE]);
    assert_eq!(send(&sandbox, "/files/x", &plain).await.body["body"], plain, "the control");
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_see_fields_and_no_files() {
    let policies = r#"
        @id("all") permit (principal, action, resource);
        @id("narrow") forbid (principal, action == pictures::Action::"addPicture", resource)
        when { context has body && context.body has width && context.body.width > 3 };
    "#;
    let (world, sandbox) = world(Some(policies)).await;
    let width = |width: u8| body(&[PICTURE, &format!("; name=\"width\"\r\n\r\n{width}")]);
    assert_eq!(send(&sandbox, "/pictures/pictures", &width(4)).await.code(), "policy-denied");
    world.recorded.assert_untouched("a wide picture");
    let answer = send(&sandbox, "/pictures/pictures", &width(3)).await;
    assert_eq!(answer.status, 200, "{}", json!(answer.body));
}
