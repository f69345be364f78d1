// SPDX-License-Identifier: Apache-2.0
//! Every spelling of another's identity: the backend sees the session's or nothing. Each is sent
//! once more to a backend that declares no identity names, and must reach it then, else the
//! attempt would prove nothing.

use crate::world::{Answer, Sandbox, World};
use postern_common::control::Applied;
use serde_json::{Value, json};

/// One attempt of `alice` to be `mallory`.
struct Attempt {
    method: &'static str,
    target: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: &'static str,
}

const fn header(name: &'static [(&'static str, &'static str)]) -> Attempt {
    Attempt { method: "GET", target: "/orders", headers: name, body: "" }
}

const fn query(target: &'static str) -> Attempt {
    Attempt { method: "GET", target, headers: &[], body: "" }
}

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];
const FORM: &[(&str, &str)] = &[("content-type", "application/x-www-form-urlencoded")];

const fn json_body(body: &'static str) -> Attempt {
    Attempt { method: "POST", target: "/refunds", headers: JSON, body }
}

const fn form(body: &'static str) -> Attempt {
    Attempt { method: "POST", target: "/forms", headers: FORM, body }
}

const fn parts(body: &'static str) -> Attempt {
    let headers = &[("content-type", "multipart/form-data; boundary=b")];
    Attempt { method: "POST", target: "/files/x", headers, body }
}

/// A body without a type, to the backend without a document.
const fn untyped(body: &'static str) -> Attempt {
    Attempt { method: "POST", target: "/files/x", headers: &[], body }
}

const ATTEMPTS: &[Attempt] = &[
    header(&[("X-User-Id", "mallory")]),
    header(&[("x-user-id", "mallory")]),
    header(&[("X-USER-ID", "mallory")]),
    header(&[("X_User_Id", "mallory")]),
    header(&[("x-user_id", "mallory")]),
    header(&[("X-User-Id", "mallory"), ("X-User-Id", "mallory")]),
    header(&[("user-id", "mallory")]),
    header(&[("User_ID", "mallory")]),
    header(&[("userid", "mallory")]),
    header(&[("X.User.Id", "mallory")]),
    query("/orders?user_id=mallory"),
    query("/files/x?user_id=alice&user_id=mallory"),
    query("/orders?user%5Fid=mallory"),
    query("/files/x?USER_ID=mallory"),
    query("/files/x?userId=mallory"),
    query("/files/x?user-id=mallory"),
    query("/files/x?user_id[]=mallory"),
    query("/files/x?user.id=mallory"),
    query("/files/x?u%C5%BFer_id=mallory"),
    query("/files/x?user%20id=mallory"),
    query("/users/mallory/profile"),
    query("/users/%6Dallory/profile"),
    query("/desk/users/mallory/profile"),
    query("/users/mallory%20/profile"),
    query("/users/alice%2Cmallory/profile"),
    query("/users/mallory@x/profile?"),
    json_body(r#"{"order":"1","amount":1,"user_id":"mallory"}"#),
    json_body(r#"{"order":"1","amount":1,"\u0075ser_id":"mallory"}"#),
    json_body(r#"{"order":"1","amount":1,"user_id":"x","extra":{"user_id":"alice","USER_ID":"mallory"}}"#),
    Attempt {
        method: "POST",
        target: "/refunds",
        headers: &[("content-type", "application/json; charset=UTF-8")],
        body: "{\"order\":\"1\",\"amount\":1,\"user_id\":\"x\",\"extra\":{\"\u{ff55}ser_id\":\"mallory\"}}",
    },
    Attempt {
        method: "POST",
        target: "/files/x",
        headers: JSON,
        body: r#"{"order":"1","userId":"mallory"}"#,
    },
    Attempt {
        method: "POST",
        target: "/files/x",
        headers: JSON,
        body: r#"{"order":"1","USER-ID":"mallory"}"#,
    },
    json_body(r#"{"order":"1","amount":1,"user_id":"x","extra":{"user_id":"mallory"}}"#),
    json_body(r#"{"order":"1","amount":1,"user_id":"x","extra":{"a":[{"b":{"user_id":"mallory"}}]}}"#),
    json_body(r#"{"order":"1","amount":1,"user_id":"x","lines":[{"sku":"1","user_id":"mallory"}]}"#),
    form("user_id=mallory"),
    form("text=1&user%5fid=mallory"),
    Attempt { method: "POST", target: "/files/x", headers: FORM, body: "text=1&User-Id=mallory" },
    Attempt { method: "POST", target: "/files/x", headers: JSON, body: r#"{"user_id":"mallory"}"# },
    Attempt {
        method: "POST",
        target: "/files/x",
        headers: &[("content-type", "text/plain")],
        body: r#"{"user_id":"mallory"}"#,
    },
    Attempt { method: "POST", target: "/files/x", headers: &[], body: r#"  {"a":[{"user_id":"mallory"}]}"# },
    Attempt {
        method: "POST",
        target: "/files/x",
        headers: &[("content-type", "application/vnd.x+json; charset=utf-8")],
        body: r#"[{"userid":"mallory"}]"#,
    },
    Attempt { method: "PUT", target: "/files/x", headers: FORM, body: "user_id=mallory" },
    query("/files/x?order[user_id]=mallory"),
    query("/files/x?order.user_id=mallory"),
    form("text=1&order[user_id]=mallory"),
    json_body(r#"{"order":"1","amount":1,"user_id":"x","extra":{"profile.user_id":"mallory"}}"#),
    parts("--b\r\ncontent-disposition: form-data; name=\"user_id\"\r\n\r\nmallory\r\n--b--\r\n"),
    parts("--b\r\ncontent-disposition: form-data; name=User.Id; filename=a\r\n\r\nmallory\r\n--b--\r\n"),
    parts(
        "--b\r\ncontent-disposition: form-data; name=a\r\ncontent-type: text/json\r\n\r\n{\"a\":[{\"userId\":\"mallory\"}]}\r\n--b--",
    ),
    untyped("user_id=mallory"),
    untyped("a=1;user_id=mallory"),
    untyped("a b=1&user%5Fid=mallory"),
    untyped("note&order[user_id]=mallory&%zz"),
    Attempt {
        method: "POST",
        target: "/files/x",
        headers: &[("content-type", "text/x-www-form-urlencoded")],
        body: "a b=1&user_id=mallory",
    },
    Attempt {
        method: "POST",
        target: "/files/x",
        headers: &[("content-type", "text/plain")],
        body: "user_id=mallory",
    },
    Attempt {
        method: "POST",
        target: "/files/x",
        headers: &[("content-type", "image/png")],
        body: r#"{"user_id":"mallory"}"#,
    },
];

async fn send(sandbox: &Sandbox, attempt: &Attempt) -> Answer {
    sandbox.call(attempt.method, attempt.target, attempt.headers, attempt.body.as_bytes()).await
}

/// Without `mallory` anywhere in what the backend saw, or refused.
fn is_held(answer: &Answer) -> bool {
    match answer.status {
        200 => !answer.body.to_string().contains("mallory"),
        _ => matches!(
            answer.code(),
            "identity-mismatch" | "request-malformed" | "schema-violation" | "content-type-refused"
        ),
    }
}

async fn world(identity: Value) -> World {
    let world = World::empty().await;
    let (mut desk, mut files) = (world.described(), world.plain());
    for file in [&mut desk, &mut files] {
        file["identity"] = identity.clone();
        file["additional_query"] = json!("pass");
    }
    let mut config = world.config("acme", &[("desk", desk), ("files", files)], None);
    config.default_backend = Some("desk".parse().expect("a name"));
    assert_eq!(world.put(config).await, Applied::InForce);
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_another_identity_reaches_the_backend() {
    let guarded = world(json!({})).await;
    let open = world(json!({ "user": [] })).await;
    let (alice, control) = (guarded.sandbox("alice", &["*"]).await, open.sandbox("alice", &["*"]).await);
    let mut leaks = Vec::new();
    for (index, attempt) in ATTEMPTS.iter().enumerate() {
        let shown =
            format!("{index}: {} {} {:?} {}", attempt.method, attempt.target, attempt.headers, attempt.body);
        let held = send(&alice, attempt).await;
        if !is_held(&held) {
            leaks.push(format!("reached the backend: {shown}: {:?}", held.body));
        }
        let control = send(&control, attempt).await;
        let reached = control.body.to_string().contains("mallory");
        if !(control.status == 200 && reached) {
            leaks.push(format!("does not count, its control failed: {shown}: {:?}", control.body));
        }
    }
    assert!(leaks.is_empty(), "{}", leaks.join("\n"));
    assert!(!guarded.recorded.text().contains("mallory"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sessions_identity_is_written_where_the_operation_declares_it() {
    let world = world(json!({})).await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let lines = json!([{ "sku": "1" }, { "sku": "2", "user_id": "mallory" }]);
    let answer = sandbox.post("/refunds", &json!({ "order": "1", "amount": 1, "lines": lines })).await;
    let seen = answer.seen_body();
    assert_eq!(seen["user_id"], "alice", "the schema requires what the gateway writes");
    assert_eq!(
        seen["lines"],
        json!([{ "sku": "1", "user_id": "alice" }, { "sku": "2", "user_id": "alice" }])
    );
    let answer = sandbox.call("POST", "/forms", FORM, b"text=hello+world").await;
    assert_eq!(answer.body["body"], "text=hello%20world&user_id=alice");
    assert_eq!(sandbox.get("/users/alice/profile").await.target(), "/api/users/alice/profile");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_names_another_is_refused_or_rewritten_as_the_backend_says() {
    let refusing = world(json!({})).await;
    let sandbox = refusing.sandbox("alice", &["*"]).await;
    let answer = sandbox.get("/users/bob/profile").await;
    assert_eq!((answer.status, answer.code()), (403, "identity-mismatch"));
    assert_eq!(answer.body["errors"][0]["pointer"], "/path/user_id");
    refusing.recorded.assert_untouched("another's path");
    let rewriting = world(json!({ "path": "rewrite" })).await;
    let sandbox = rewriting.sandbox("alice", &["*"]).await;
    assert_eq!(sandbox.get("/users/bob/profile").await.target(), "/api/users/alice/profile");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_no_header_can_hold_is_encoded() {
    let world = world(json!({})).await;
    let sandbox = world.sandbox("ünï\u{a0}code, x", &["*"]).await;
    let answer = sandbox.get("/orders").await;
    assert_eq!(answer.seen_header("x-user-id"), ["%C3%BCn%C3%AF%C2%A0code%2C%20x"]);
    assert_eq!(answer.target(), "/api/orders?user_id=%C3%BCn%C3%AF%C2%A0code%2C%20x");
}

#[tokio::test(flavor = "multi_thread")]
async fn conversation_sandbox_and_tenant_are_written_too_where_declared() {
    let identity = json!({
        "user": ["X-User-Id"], "conversation": ["X-Conversation-Id"], "sandbox": ["X-Sandbox-Id"], "tenant": ["X-Tenant"],
    });
    let world = world(identity).await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let answer = sandbox.call("GET", "/orders", &[("x-tenant", "evil"), ("x-sandbox-id", "evil")], b"").await;
    assert_eq!(answer.seen_header("x-tenant"), ["acme"]);
    assert_eq!(answer.seen_header("x-conversation-id"), ["talk-1"]);
    assert_eq!(answer.seen_header("x-sandbox-id"), [sandbox.session.sandbox_id.as_str()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_becomes_a_number_only_if_it_is_written_as_that_number() {
    let world = world(json!({})).await;
    let mut config = world.config("acme", &[("desk", world.described())], None);
    let document = crate::world::DOCUMENT.replace(
        "user_id: { type: string }\n                note",
        "user_id: { type: integer }\n                note",
    );
    let desk = config.backends.values_mut().next().expect("the desk");
    desk.document = Some(document.into());
    assert_eq!(world.put(config).await, Applied::InForce);
    let refund = json!({ "order": "1", "amount": 1 });
    for user in ["007", "+7", "7.0", "alice", "9223372036854775808"] {
        let sandbox = world.sandbox(user, &["*"]).await;
        let answer = sandbox.post("/refunds", &refund).await;
        assert_eq!((answer.status, answer.code()), (403, "identity-mismatch"), "{user}: {:?}", answer.body);
    }
    world.recorded.assert_untouched("a user that is no such number");
    let sandbox = world.sandbox("7", &["*"]).await;
    assert_eq!(sandbox.post("/refunds", &refund).await.seen_body()["user_id"], 7, "the control");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_frame_or_are_ours_are_nobodys_identity_and_no_credential() {
    let world = World::empty().await;
    for name in ["Transfer-Encoding", "Connection", "Content-Length", "Upgrade", "Host", "TE", "Trailer"] {
        for change in [
            json!({ "identity": { "user": [name] } }),
            json!({ "credential": { "secret": "desk-key", "header": name } }),
        ] {
            let mut file = world.described();
            file.as_object_mut().expect("a map").extend(change.as_object().expect("a map").clone());
            let Applied::Refused(told) = world.put(world.config("acme", &[("desk", file)], None)).await
            else {
                panic!("{change} was taken")
            };
            assert!(told[0].contains("the gateway writes itself"), "{told:?}");
        }
    }
}
