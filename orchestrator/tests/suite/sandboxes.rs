// SPDX-License-Identifier: Apache-2.0
//! The life of a sandbox, over HTTP.

use crate::bench::{Bench, claims, id, until};
use http::{Method, StatusCode};
use postern_common::clock;
use postern_common::decision::{DecisionRecord, Verdict};
use postern_common::id::TenantId;
use postern_common::session::Peer;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_is_made_used_and_destroyed() {
    let bench = Bench::real().await;
    let body = json!({ "user_id": "alice", "conversation_id": "c1", "env": { "GREETING": "hello" }, "labels": { "team": "desk" } });
    let made = bench.post("/sandbox?wait=running", body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    let sandbox = made.field("sandbox_id");
    assert_eq!(
        (made.field("status"), made.field("isolation")),
        ("running".to_owned(), "namespaces".to_owned())
    );
    assert!(made.json().get("env").is_none(), "env is never returned");

    let session = bench.told().last_session(&sandbox);
    let token = claims(&bench.orchestrator, &made.field("token"));
    assert_eq!((token.sandbox_id.as_str(), token.user_id.as_str()), (sandbox.as_str(), "alice"));
    assert!(session.tokens.iter().any(|accepted| accepted.jti == token.jti), "gateways know the token");
    assert!(matches!(session.peer, Peer::Socket(_)));

    let shown = bench.get(&format!("/sandbox/{sandbox}")).await;
    assert!(shown.json().get("token").is_none(), "a token is shown by create and refresh only");
    assert_eq!(
        bench.shell(&sandbox, "echo $GREETING $SANDBOX_ID $CONVERSATION_ID; id -u").await,
        format!("hello {sandbox} c1\n1000\n")
    );

    let gone = bench.delete(&format!("/sandbox/{sandbox}")).await;
    assert_eq!((gone.status, gone.field("status")), (StatusCode::OK, "destroyed".to_owned()));
    assert!(bench.told().has_ended(&sandbox));
    let again = bench.delete(&format!("/sandbox/{sandbox}")).await;
    assert_eq!(again.status, StatusCode::OK, "destroying may be repeated");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_streams_what_it_writes_and_how_it_ended() {
    let bench = Bench::real().await;
    let sandbox = bench.sandbox("c1").await;
    let path = format!("/sandbox/{sandbox}/exec");
    let ran = bench.post(&path, json!({ "command": "echo out; echo err >&2; exit 7" })).await;
    assert_eq!(ran.headers["content-type"], "text/event-stream");
    let events = ran.events();
    let kinds: Vec<&str> = events.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!((kinds.first(), kinds.last()), (Some(&"start"), Some(&"exit")), "{}", ran.text);
    let data = |kind: &str| events.iter().find(|(of, _)| of == kind).map(|(_, data)| data["data"].clone());
    assert_eq!((data("stdout"), data("stderr")), (Some(json!("b3V0Cg==")), Some(json!("ZXJyCg=="))));
    assert_eq!(events.last().expect("an end").1, json!({ "code": 7 }));

    let fed = bench.post(&path, json!({ "command": ["cat"], "stdin": "fed in", "collect": true })).await;
    assert_eq!(fed.field("stdout"), "fed in");
    let killed = bench.post(&path, json!({ "command": "kill -9 $$", "collect": true })).await;
    assert_eq!(killed.json()["signal"], 9, "{}", killed.text);
    let late = bench.post(&path, json!({ "command": "sleep 60", "collect": true, "timeout": "100ms" })).await;
    assert_eq!(late.json()["timed_out"], true, "{}", late.text);
    let binary = bench.post(&path, json!({ "command": "printf '\\377\\000'", "collect": true })).await;
    assert_eq!(binary.field("stdout_base64"), "/wA=");
    let much = bench
        .post(&path, json!({ "command": "head -c 11000000 /dev/zero | tr '\\0' a", "collect": true }))
        .await;
    assert_eq!((much.json()["truncated"].clone(), much.field("stdout").len()), (json!(true), 10 << 20));
    let none = bench.post(&path, json!({ "command": ["/no/such/program"], "collect": true })).await;
    assert_eq!(none.code(), "invalid-input", "{}", none.text);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_files_are_there_in_the_next_conversation_and_not_for_others() {
    let bench = Bench::real().await;
    let first = bench.sandbox("c1").await;
    bench.shell(&first, "mkdir -p /data/user/notes && echo kept > /data/user/notes/a && echo gone > /data/user/b; ln -s /etc/passwd /data/user/link").await;
    bench.delete(&format!("/sandbox/{first}")).await;

    let second = bench.sandbox("c2").await;
    assert_eq!(
        bench.shell(&second, "cat /data/user/notes/a; ls /data/user; rm /data/user/b").await,
        "kept\nb\nnotes\n"
    );
    bench.delete(&format!("/sandbox/{second}")).await;
    let third = bench.sandbox("c3").await;
    assert_eq!(bench.shell(&third, "ls /data/user").await, "notes\n", "a deletion is kept too");

    let body = json!({ "user_id": "mallory", "conversation_id": "c4" });
    let other = bench.post("/sandbox?wait=running", body).await.field("sandbox_id");
    assert_eq!(bench.shell(&other, "ls -A /data/user").await, "");
    let events = bench.get(&format!("/events?sandbox_id={first}")).await;
    assert!(events.text.contains("files.kept") && events.text.contains("it is a link"), "{}", events.text);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refreshed_token_replaces_the_one_before_which_stays_good_for_a_minute() {
    let bench = Bench::real().await;
    let sandbox = bench.sandbox("c1").await;
    let before = bench.told().last_session(&sandbox).tokens;
    let fresh = bench.post(&format!("/tokens/{sandbox}/refresh"), json!({})).await;
    let token = claims(&bench.orchestrator, &fresh.field("token"));
    let after = bench.told().last_session(&sandbox).tokens;
    assert_eq!(after[0].jti, token.jti);
    assert_eq!(after[1].jti, before[0].jti);
    let left = after[1].until.duration_since(clock::now());
    assert!(left.as_secs() <= 60 && left.as_secs() > 50, "{left}");
    bench.delete(&format!("/sandbox/{sandbox}")).await;
    let late = bench.post(&format!("/tokens/{sandbox}/refresh"), json!({})).await;
    assert_eq!(late.code(), "state-conflict");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_ends_at_its_deadline_and_says_why() {
    let bench = Bench::real().await;
    let body = json!({ "user_id": "alice", "conversation_id": "c1", "ttl": "1s" });
    let sandbox = bench.post("/sandbox?wait=running", body).await.field("sandbox_id");
    let path = format!("/sandbox/{sandbox}");
    until("it is destroyed", async || bench.get(&path).await.field("status") == "destroyed").await;
    assert_eq!(bench.get(&path).await.field("reason"), "its time was over");
    let template = json!({ "idle": "1s", "on_idle": "destroy" });
    assert_eq!(bench.put("/templates/brief", template).await.status, StatusCode::CREATED);
    let body = json!({ "user_id": "alice", "conversation_id": "c2", "template": "brief" });
    let sandbox = bench.post("/sandbox?wait=running", body).await.field("sandbox_id");
    let path = format!("/sandbox/{sandbox}");
    until("it is destroyed", async || bench.get(&path).await.field("status") == "destroyed").await;
    assert_eq!(bench.get(&path).await.field("reason"), "it was unused for too long");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_come_in_pages_and_with_filters() {
    let bench = Bench::real().await;
    let (first, second) = (bench.sandbox("c1").await, bench.sandbox("c2").await);
    let page = bench.get("/sandbox?limit=1").await.json();
    assert_eq!(page["sandboxes"][0]["sandbox_id"], second, "newest first");
    let next = page["next"].as_str().expect("there is more");
    let page = bench.get(&format!("/sandbox?limit=1&after={next}")).await.json();
    assert_eq!(
        (page["sandboxes"][0]["sandbox_id"].clone(), page["next"].clone()),
        (json!(first), json!(null))
    );
    let found = bench.get("/sandbox?conversation_id=c1&user_id=alice&status=running").await.json();
    assert_eq!(found["sandboxes"].as_array().map(Vec::len), Some(1));
    assert_eq!(bench.get("/sandbox?user_id=nobody").await.json()["sandboxes"], json!([]));

    let labels = json!({ "user_id": "alice", "conversation_id": "c3", "labels": { "team": "desk=1" } });
    let labelled = bench.post("/sandbox", labels).await.field("sandbox_id");
    let found = bench.get("/sandbox?label=team%3Ddesk%3D1").await.json();
    assert_eq!(found["sandboxes"].as_array().map(Vec::len), Some(1), "{found}");
    assert_eq!(found["sandboxes"][0]["sandbox_id"], labelled);
    for other in ["team%3Dother", "desk%3D1", "team%3D"] {
        let found = bench.get(&format!("/sandbox?label={other}")).await.json();
        assert_eq!(found["sandboxes"], json!([]), "{other}");
    }
    for unclear in ["team", "%3Ddesk"] {
        assert_eq!(
            bench.get(&format!("/sandbox?label={unclear}")).await.code(),
            "invalid-input",
            "{unclear}"
        );
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_is_refused_with_the_number_that_was_exceeded() {
    let bench = Bench::real().await;
    let quotas = async |quotas: Value| {
        let applied = bench.post("/apply", json!({ "limits": { "quotas": quotas } })).await;
        assert!(applied.status.is_success(), "{}", applied.text);
    };
    let wish = |conversation: &str| json!({ "user_id": "alice", "conversation_id": conversation });
    let refused = async |conversation: &str, told: &str| {
        let answer = bench.post("/sandbox", wish(conversation)).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (429, "quota-exceeded"),
            "{}",
            answer.text
        );
        assert!(answer.field("detail").contains(told), "{}", answer.text);
    };
    quotas(json!({ "sandboxes": 1 })).await;
    let sandbox = bench.sandbox("c1").await;
    refused("c2", "the quota `sandboxes` of 1 would be exceeded: 1 are used, 1 more wanted").await;
    quotas(json!({ "memory": "1MiB" })).await;
    refused("c2", "the quota `memory` of 1048576 bytes would be exceeded").await;
    quotas(json!({ "sandboxes": 1 })).await;
    bench.delete(&format!("/sandbox/{sandbox}")).await;
    bench.sandbox("c2").await;
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_does_not_hold_is_said_so() {
    let bench = Bench::real().await;
    let sandbox = bench.sandbox("c1").await;
    let path = format!("/sandbox/{sandbox}");
    let before = bench.get(&path).await.json()["limits"].clone();
    // As a machine has it that cannot hold sandboxes to everything.
    let forget = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=30); \
        c.execute(\"update sandboxes set running = replace(running, '\\\"disk\\\":true', '\\\"disk\\\":false')\"); c.commit()";
    let changed = std::process::Command::new("/usr/bin/python3")
        .args(["-c", forget])
        .arg(bench.data().join("postern.db"))
        .status();
    assert!(changed.expect("python runs").success());
    let after = bench.get(&path).await.json()["limits"].clone();
    assert_eq!(after["disk"]["enforced"], false, "{after}");
    for limit in ["memory", "cpu", "pids"] {
        assert!(before[limit]["enforced"].is_boolean(), "{before}");
        assert_eq!(after[limit], before[limit], "each limit is told of by itself");
    }
    let listed = bench.get("/sandbox").await.json();
    assert_eq!(listed["sandboxes"][0]["limits"], after);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decisions_of_gateways_are_kept_and_shown() {
    let bench = Bench::without_sandboxes().await;
    let record = |tenant: &str, verdict| DecisionRecord {
        tenant: Some(TenantId::parse(tenant).expect("a name")),
        sandbox_id: Some(id("sandbox-aaaaaaaaaaaa")),
        verdict,
        ..DecisionRecord::begin(clock::now(), "GET")
    };
    bench.decisions.send(record("default", Verdict::Allow)).await.expect("is taken");
    bench.decisions.send(record("default", Verdict::Deny)).await.expect("is taken");
    bench.decisions.send(record("other", Verdict::Deny)).await.expect("is taken");
    let count = async |path: &str| bench.get(path).await.json()["decisions"].as_array().map_or(0, Vec::len);
    until("all are kept", async || count("/decisions").await == 3).await;
    assert_eq!(count("/decisions?verdict=deny&tenant=default").await, 1);
    let auditor = bench.key("auditor", "default").await;
    let seen = bench.call_as(&auditor, Method::GET, "/decisions", json!(null)).await.json();
    assert_eq!(seen["decisions"].as_array().map(Vec::len), Some(2), "a tenant sees its own only");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_is_extended_and_labelled() {
    let bench = Bench::real().await;
    let body =
        json!({ "user_id": "alice", "conversation_id": "c1", "ttl": "5m", "labels": { "team": "desk" } });
    let made = bench.post("/sandbox?wait=running", body).await;
    let (sandbox, first) = (made.field("sandbox_id"), claims(&bench.orchestrator, &made.field("token")));
    let path = format!("/sandbox/{sandbox}");
    let patch = async |body| bench.call(Method::PATCH, &path, body).await;

    let changed = patch(json!({ "ttl": "50m", "idle": "20m" })).await;
    assert_eq!(changed.status, StatusCode::OK, "{}", changed.text);
    let (before, after) = (made.json(), changed.json());
    let time = |json: &Value, name: &str| -> jiff::Timestamp {
        json[name].as_str().expect("a time").parse().expect("a time")
    };
    assert!(time(&after, "expires_at") > time(&before, "expires_at"), "{after}");
    assert!(time(&after, "idle_at") > time(&before, "idle_at"), "{after}");
    assert_eq!(after["labels"], json!({ "team": "desk" }), "what is left out stays");
    assert!(after.get("token").is_none());
    let session = bench.told().last_session(&sandbox);
    assert_eq!(session.expires_at, time(&after, "expires_at"), "gateways know");
    let longest = session.tokens.iter().map(|token| token.until.as_second()).max().expect("has one");
    assert!(longest > i64::try_from(first.exp).expect("fits") + 60 * 40, "its token lives as long");

    let labelled = patch(json!({ "labels": { "plan": "gold" } })).await;
    assert_eq!(labelled.json()["labels"], json!({ "plan": "gold" }));
    assert_eq!(bench.told().last_session(&sandbox).labels["plan"], "gold");
    assert_eq!(bench.shell(&sandbox, "echo alive").await, "alive\n");

    assert_eq!(patch(json!({})).await.code(), "invalid-input");
    assert_eq!(patch(json!({ "ttl": "25h", "user_id": "bob" })).await.code(), "invalid-input");
    bench.delete(&path).await;
    assert_eq!(patch(json!({ "ttl": "1h" })).await.code(), "state-conflict");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_its_disk_cannot_hold_are_told_before_it_is_made() {
    let bench = Bench::real().await;
    for (name, disk) in [("small", "32MiB"), ("large", "128MiB")] {
        let put = bench.put(&format!("/templates/{name}"), json!({ "disk": disk })).await;
        assert_eq!(put.status, StatusCode::CREATED, "{}", put.text);
    }
    let first = json!({ "user_id": "alice", "conversation_id": "c1", "template": "large" });
    let sandbox = bench.post("/sandbox?wait=running", first).await.field("sandbox_id");
    bench.shell(&sandbox, "head -c 40000000 /dev/urandom > /data/user/big").await;
    bench.delete(&format!("/sandbox/{sandbox}")).await;
    let wish = |template| json!({ "user_id": "alice", "conversation_id": "c2", "template": template });
    let refused = bench.post("/sandbox?wait=running", wish("small")).await;
    assert_eq!(refused.code(), "quota-exceeded");
    assert!(
        refused.field("detail").contains("the sandbox's disk has room for 29360128 bytes"),
        "{}",
        refused.text
    );
    assert!(refused.field("hint").contains("`disk`"), "{}", refused.text);
    let listed = bench.get("/sandbox?conversation_id=c2").await.json();
    assert_eq!(listed["sandboxes"], json!([]), "nothing was made");
    let made = bench.post("/sandbox?wait=running", wish("large")).await;
    assert_eq!(bench.shell(&made.field("sandbox_id"), "stat -c %s /data/user/big").await, "40000000\n");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orchestrator_that_ends_takes_no_new_work_and_leaves_no_sandbox() {
    let bench = Bench::real().await;
    let (sandbox, going) = (bench.sandbox("c1").await, bench.sandbox("c2").await);
    let body = |conversation: &str| json!({ "user_id": "alice", "conversation_id": conversation });
    // Asked for while it ends: made before and destroyed with the rest, or refused.
    let (left, asked) = tokio::join!(
        bench.orchestrator.destroy_all(crate::bench::PATIENCE),
        futures_util::future::join_all((0..8).map(|number| {
            let body = body(&format!("late-{number}"));
            let bench = &bench;
            async move { bench.post("/sandbox", body).await }
        }))
    );
    assert_eq!(left.expect("asks"), 0);
    for answer in asked {
        assert!(answer.status == StatusCode::CREATED || answer.code() == "shutting-down", "{}", answer.text);
    }
    for (method, path, body) in [
        (Method::POST, "/sandbox".to_owned(), body("c3")),
        (Method::POST, format!("/sandbox/{sandbox}/exec"), json!({ "command": "true" })),
        (Method::POST, format!("/tokens/{going}/refresh"), Value::Null),
        (Method::PUT, "/templates/small".to_owned(), json!({ "operations": [] })),
    ] {
        let refused = bench.call(method, &path, body).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (503, "shutting-down"), "{path}");
        assert!(refused.headers.contains_key("retry-after"));
    }
    let all = bench.get("/sandbox").await.json();
    let live = |sandbox: &&Value| sandbox["status"] != "destroyed" && sandbox["status"] != "failed";
    let live: Vec<&Value> = all["sandboxes"].as_array().expect("a list").iter().filter(live).collect();
    assert!(live.is_empty(), "{live:?}");
    assert_eq!(bench.delete(&format!("/sandbox/{sandbox}")).await.status, StatusCode::OK);
    bench.close().await;
}
