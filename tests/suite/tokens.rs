// SPDX-License-Identifier: Apache-2.0
//! Tokens that must not open the door, each with its own code, and a backend that hears nothing.

use crate::running::{Backend, Up, http, wait_for};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_common::clock;
use serde_json::Value;
use std::process::Command;

const ORDERS: &str = "/support-desk/orders";

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_else(|| panic!("no `{field}` in {value}")).to_owned()
}

fn asked(up: &Up, authorization: &[(&str, &str)]) -> (u16, String) {
    let answer = http(&up.written("gateway"), "GET", ORDERS, authorization, None);
    (answer.status, answer.code())
}

fn with(up: &Up, token: &str) -> (u16, String) {
    asked(up, &[("Authorization", &format!("Bearer {token}"))])
}

/// The token with the last character of one of its three parts changed.
fn changed(token: &str, part: usize) -> String {
    let mut parts: Vec<String> = token.split('.').map(ToOwned::to_owned).collect();
    let flipped = if parts[part].starts_with('A') { "B" } else { "A" };
    parts[part].replace_range(0..1, flipped);
    parts.join(".")
}

/// The token's claims with some replaced, signed anew with the installation's own key: by Python, so
/// that none of our own code vouches for itself.
fn signed_anew(up: &Up, token: &str, claims: &str) -> String {
    const SCRIPT: &str = r#"
import base64, hashlib, hmac, json, pathlib, sys
key, token, claims = base64.b64decode(pathlib.Path(sys.argv[1]).read_bytes()), sys.argv[2].split("."), json.loads(sys.argv[3])
payload = json.loads(base64.urlsafe_b64decode(token[1] + "=" * (-len(token[1]) % 4))) | claims
encode = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=").decode()
signed = token[0] + "." + encode(json.dumps(payload).encode())
print(signed + "." + encode(hmac.new(key, signed.encode(), hashlib.sha256).digest()), end="")
"#;
    let key = up.data().join("keys/token-signing-key");
    let output = Command::new("python3").args(["-I", "-c", SCRIPT]).arg(key).args([token, claims]).output();
    let output = output.expect("python3 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("a token")
}

#[test]
fn no_bad_token_opens_the_door_and_the_backend_hears_nothing() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let alice = up.sandbox("alice", "c1");
    let (token, id) = (text(&alice, "token"), text(&alice, "sandbox_id"));

    let inside = up.agent(&id, &["GET", "/orders"]);
    assert_eq!(inside["status"], 200, "the control: from inside it is open: {inside}");
    let before = backend.reached();

    assert_eq!(asked(&up, &[]), (401, "token-missing".into()));
    assert_eq!(with(&up, "not.a.token"), (401, "token-malformed".into()));
    assert_eq!(with(&up, &changed(&token, 2)), (401, "token-forged".into()));
    assert_eq!(with(&up, &changed(&token, 1)).0, 401);
    let expired = signed_anew(&up, &token, r#"{"iat": 1700000000, "nbf": 1700000000, "exp": 1700003600}"#);
    assert_eq!(with(&up, &expired), (401, "token-expired".into()));
    let same = signed_anew(&up, &token, "{}");
    assert_eq!(with(&up, &same).1, "token-wrong-peer", "the control: what Python signed is believed");
    let of_bob = signed_anew(&up, &token, r#"{"user_id": "bob"}"#);
    assert_eq!(with(&up, &of_bob).0, 401, "a stolen signing key alone forges nothing");
    assert_eq!(
        with(&up, &token),
        (403, "token-wrong-peer".into()),
        "a local token is good at its own socket only"
    );

    up.told(&["sandbox", "rm", &id]);
    assert_eq!(with(&up, &token), (401, "token-revoked".into()));
    assert_eq!(backend.reached(), before, "nothing reached the backend");
}

#[test]
fn an_agent_cannot_choose_whose_token_it_sends() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let bob = up.sandbox("bob", "c-bob");
    let alice = up.sandbox("alice", "c-alice");
    let stolen = text(&bob, "token");
    let script = format!(
        "import json, os, urllib.request as r\n\
         q = r.Request(os.environ['GATEWAY_URL'] + '/support-desk/orders', headers={{'Authorization': 'Bearer {stolen}'}})\n\
         print(json.dumps([o['customer_id'] for o in json.load(r.urlopen(q))]))"
    );
    let told =
        up.told(&["sandbox", "exec", &text(&alice, "sandbox_id"), "--", "python3", "-I", "-c", &script]);
    let owners: Vec<_> = told.as_array().expect("a list").iter().map(|owner| owner.as_str()).collect();
    assert!(!owners.is_empty() && owners.iter().all(|owner| *owner == Some("alice")), "{told}");
}

/// When a token expires, unverified, as seconds since 1970.
fn end(token: &str) -> u64 {
    let claims = token.split('.').nth(1).and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok());
    let claims: Value = serde_json::from_slice(&claims.expect("base64")).expect("JSON");
    claims["exp"].as_u64().expect("a time")
}

#[test]
fn a_token_is_replaced_by_itself_and_the_door_stays_open() {
    let backend = Backend::start();
    // As short as it may be: it is replaced after 40 s.
    let up = Up::start_with(&backend, &[("TOKEN_TTL", "1m")]);
    let made = up.sandbox("alice", "c1");
    let (id, end) = (text(&made, "sandbox_id"), end(&text(&made, "token")));
    assert_eq!(up.agent(&id, &["GET", "/orders"])["status"], 200);
    wait_for("another token", || {
        let events = up.call("GET", &format!("/events?sandbox_id={id}"), None).text;
        events.contains("token.refreshed").then_some(())
    });
    let by = up.call("GET", &format!("/events?sandbox_id={id}"), None).json();
    let of = |event: &&Value| event["action"] == "token.refreshed";
    let refreshed = by["events"].as_array().expect("a list").iter().find(of).expect("is there");
    assert_eq!(refreshed["actor"], "orchestrator", "nobody asked for it");
    assert_eq!(up.agent(&id, &["GET", "/orders"])["status"], 200, "while both are good");
    wait_for("the end of the first token", || (clock::unix_seconds(clock::now()) > end).then_some(()));
    assert_eq!(up.agent(&id, &["GET", "/orders"])["status"], 200, "by the second alone");
    up.stop();
}
