// SPDX-License-Identifier: Apache-2.0
//! Users' files through the API: conditions, ranges, uploads and downloads by signed URLs, erasure,
//! and what must not reach another user's files.

use crate::bench::{Answer, Bench};
use http::{Method, StatusCode};
use serde_json::{Value, json};

const DIGEST_OF_HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

/// Sends content with the bench's key and these headers.
async fn send(bench: &Bench, method: Method, path: &str, headers: &[(&str, &str)], content: &str) -> Answer {
    let bearer = format!("Bearer {}", bench.key);
    let mut all = vec![("authorization", &*bearer)];
    if !headers.iter().any(|(name, _)| *name == "content-type") && !content.is_empty() {
        all.push(("content-type", "text/plain"));
    }
    all.extend(headers);
    bench.send(method, path, &all, content).await
}

async fn put(bench: &Bench, path: &str, headers: &[(&str, &str)], content: &str) -> Answer {
    send(bench, Method::PUT, path, headers, content).await
}

async fn get(bench: &Bench, path: &str, headers: &[(&str, &str)]) -> Answer {
    send(bench, Method::GET, path, headers, "").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_written_read_listed_and_removed_on_conditions() {
    let bench = Bench::without_sandboxes().await;
    let file = "/users/alice/files/notes/a%20b.txt";
    let made = put(&bench, file, &[("if-none-match", "*")], "hello").await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    assert_eq!(made.json()["path"], "notes/a b.txt");
    assert_eq!(made.json()["digest"], DIGEST_OF_HELLO);
    let tag = made.etag();
    assert_eq!(put(&bench, file, &[("if-none-match", "*")], "x").await.code(), "precondition-failed");
    let read = get(&bench, file, &[]).await;
    assert_eq!((read.status, read.text.as_str(), read.etag()), (StatusCode::OK, "hello", tag.clone()));
    assert_eq!(read.headers["content-type"], "text/plain");
    assert_eq!(read.headers["content-disposition"], "attachment");
    assert_eq!(read.headers["repr-digest"], "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:");
    let known = get(&bench, file, &[("if-none-match", &tag)]).await;
    assert_eq!((known.status, known.text.as_str()), (StatusCode::NOT_MODIFIED, ""));
    let head = send(&bench, Method::HEAD, file, &[], "").await;
    assert_eq!(
        (head.status, &head.headers["content-length"]),
        (StatusCode::OK, &"5".parse().expect("a value"))
    );
    let changed = put(&bench, file, &[("if-match", &tag)], "hello again").await;
    assert_eq!(changed.status, StatusCode::OK, "{}", changed.text);
    assert_eq!(put(&bench, file, &[("if-match", &tag)], "x").await.code(), "precondition-failed");
    assert_eq!(get(&bench, file, &[("if-match", &tag)]).await.code(), "precondition-failed");
    let both = format!("{tag}, {}", changed.etag());
    assert_eq!(put(&bench, file, &[("if-match", &both)], "third").await.status, StatusCode::OK);
    let listed = bench.get("/users/alice/files?prefix=notes/").await.json();
    assert_eq!(listed["files"][0]["path"], "notes/a b.txt");
    assert_eq!(listed["files"][0]["size"], 5);
    assert_eq!(listed["next"], Value::Null);
    assert_eq!(
        send(&bench, Method::DELETE, file, &[("if-match", &tag)], "").await.code(),
        "precondition-failed"
    );
    assert_eq!(send(&bench, Method::DELETE, file, &[], "").await.status, StatusCode::NO_CONTENT);
    assert_eq!(get(&bench, file, &[]).await.code(), "not-found");
    assert_eq!(send(&bench, Method::DELETE, file, &[], "").await.code(), "not-found");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_and_digests_are_as_the_rfcs_say() {
    let bench = Bench::without_sandboxes().await;
    let file = "/users/alice/files/f";
    let tag = put(&bench, file, &[], "0123456789").await.etag();
    for (range, status, text, shown) in [
        ("bytes=0-2", 206, "012", "bytes 0-2/10"),
        ("bytes=7-", 206, "789", "bytes 7-9/10"),
        ("bytes=-3", 206, "789", "bytes 7-9/10"),
        ("bytes=8-99", 206, "89", "bytes 8-9/10"),
        ("bytes=2-1", 200, "0123456789", ""),
        ("bytes=0-1,4-5", 200, "0123456789", ""),
        ("lines=0-1", 200, "0123456789", ""),
    ] {
        let read = get(&bench, file, &[("range", range)]).await;
        assert_eq!((read.status.as_u16(), read.text.as_str()), (status, text), "{range}");
        let told = read.headers.get("content-range").map_or("", |value| value.to_str().expect("text"));
        assert_eq!(told, shown, "{range}");
    }
    assert_eq!(get(&bench, file, &[("range", "bytes=10-")]).await.code(), "range-not-satisfiable");
    let other = get(&bench, file, &[("range", "bytes=0-2"), ("if-range", "\"other\"")]).await;
    assert_eq!(other.text, "0123456789");
    let same = get(&bench, file, &[("range", "bytes=0-2"), ("if-range", &tag)]).await;
    assert_eq!(same.text, "012");
    let wrong = [("repr-digest", "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:")];
    assert_eq!(put(&bench, file, &wrong, "hello").await.code(), "invalid-input");
    let right = [("content-digest", "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:")];
    assert_eq!(put(&bench, file, &right, "hello").await.status, StatusCode::OK);
    assert_eq!(put(&bench, file, &[("content-encoding", "gzip")], "x").await.code(), "content-type-refused");
    assert_eq!(put(&bench, &format!("{file}?mode=999"), &[], "x").await.code(), "invalid-input");
    assert_eq!(put(&bench, &format!("{file}?mode=755"), &[], "x").await.json()["mode"], 0o755);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_copied_moved_and_paged() {
    let bench = Bench::without_sandboxes().await;
    for name in ["a", "b", "c", "d/e"] {
        put(&bench, &format!("/users/alice/files/{name}"), &[], name).await;
    }
    let copied = bench.post("/users/alice/copies", json!({ "from": "a", "to": "z/a" })).await;
    assert_eq!(copied.status, StatusCode::OK, "{}", copied.text);
    let moved = bench.post("/users/alice/copies", json!({ "from": "b", "to": "y", "move": true })).await;
    assert_eq!(moved.status, StatusCode::OK, "{}", moved.text);
    let below = bench.post("/users/alice/copies", json!({ "from": "a", "to": "c/x" })).await;
    assert_eq!(below.code(), "state-conflict");
    let gone = bench.post("/users/alice/copies", json!({ "from": "b", "to": "x" })).await;
    assert_eq!(gone.code(), "not-found");
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let page = bench.get(&format!("/users/alice/files?limit=2{after}")).await.json();
        let files = page["files"].as_array().expect("a list").clone();
        assert!(files.len() <= 2);
        found.extend(files.iter().map(|file| file["path"].as_str().expect("a path").to_owned()));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={}", next.replace('/', "%2F")),
            None => break,
        }
    }
    assert_eq!(found, ["a", "c", "d/e", "y", "z/a"]);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modes_folders_and_links_are_changed_all_at_once() {
    let bench = Bench::without_sandboxes().await;
    put(&bench, "/users/alice/files/run", &[], "#!").await;
    let edits = json!({ "edits": [
        { "path": "run", "mode": "755" }, { "path": "empty", "folder": "700" }, { "path": "to", "link": "../run" },
    ] });
    let shaped = bench.post("/users/alice/shape", edits).await;
    assert_eq!(shaped.status, StatusCode::NO_CONTENT, "{}", shaped.text);
    let listed = bench.get("/users/alice/files").await.json();
    assert_eq!(listed["files"][0]["mode"], 0o755);
    assert_eq!(listed["folders"], json!([{ "path": "empty", "mode": 0o700 }]));
    assert_eq!(listed["links"], json!([{ "path": "to", "target": "../run" }]));
    let away =
        json!({ "edits": [{ "path": "empty", "no_folder": true }, { "path": "to", "no_link": true }] });
    bench.post("/users/alice/shape", away).await;
    let listed = bench.get("/users/alice/files").await.json();
    assert_eq!((&listed["folders"], &listed["links"]), (&json!([]), &json!([])));
    for wrong in [
        json!({ "path": "a" }),
        json!({ "path": "../a", "folder": "755" }),
        json!({ "path": "a", "folder": "1755" }),
        json!({ "path": "a", "folder": "755", "mode": "644" }),
        json!({ "path": "a", "link": "x\u{0}y" }),
        json!("a"),
    ] {
        let refused = bench.post("/users/alice/shape", json!({ "edits": [wrong] })).await;
        assert_eq!(refused.code(), "invalid-input", "{wrong}");
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_refused_when_it_is_announced_as_more_than_a_user_may_have() {
    let bench = Bench::without_sandboxes().await;
    let announce = |size: u64| json!({ "path": "f", "size": size, "part_size": 5 << 20 });
    for size in [u64::MAX, 5 << 40, (5 << 30) + 1] {
        assert_eq!(
            bench.post("/users/alice/uploads", announce(size)).await.code(),
            "body-too-large",
            "{size}"
        );
    }
    let largest = begin(&bench, announce(5 << 30)).await;
    assert_eq!(largest["parts"].as_array().map(Vec::len), Some(1024));
    for _ in 0..2 {
        begin(&bench, announce(5 << 30)).await;
    }
    let refused = bench.post("/users/alice/uploads", announce(5 << 30)).await;
    assert_eq!(refused.code(), "quota-exceeded", "all together would be more than 16 GiB");
    let gone = largest["upload_id"].as_str().expect("an id");
    bench.delete(&format!("/users/alice/uploads/{gone}")).await;
    begin(&bench, announce(5 << 30)).await;
    begin(&bench, json!({ "path": "f", "size": 1 })).await;
    for _ in 4..100 {
        begin(&bench, json!({ "path": "f", "size": 0 })).await;
    }
    let refused = bench.post("/users/alice/uploads", json!({ "path": "f", "size": 0 })).await;
    assert_eq!(refused.code(), "quota-exceeded", "{}", refused.text);
    assert!(refused.text.contains("DELETE"), "{}", refused.text);
    let other = bench.post("/users/bob/uploads", json!({ "path": "f", "size": 0 })).await;
    assert_eq!(other.status, StatusCode::CREATED, "bob has his own: {}", other.text);
    bench.close().await;
}

async fn begin(bench: &Bench, body: Value) -> Value {
    let begun = bench.post("/users/alice/uploads", body).await;
    assert_eq!(begun.status, StatusCode::CREATED, "{}", begun.text);
    begun.json()
}

/// Sends a part as its URL and headers say, without a key.
async fn part(bench: &Bench, url: &str, kind: &str, content: &str) -> Answer {
    bench.send(Method::PUT, url, &[("content-type", kind)], content).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_by_a_signed_url_is_judged_before_anybody_sees_it() {
    let bench = Bench::without_sandboxes().await;
    let wanted = json!({ "path": "in/f.txt", "size": 5, "digest": DIGEST_OF_HELLO, "content_type": "text/plain",
        "if_none_match": true });
    let upload = begin(&bench, wanted.clone()).await;
    let (id, url) =
        (upload["upload_id"].as_str().expect("an id"), upload["parts"][0]["url"].as_str().expect("a URL"));
    let complete = format!("/users/alice/uploads/{id}/complete");
    assert_eq!(bench.post(&complete, json!({})).await.code(), "invalid-input", "nothing has come");
    assert_eq!(part(&bench, url, "text/plain", "HELLO").await.status, StatusCode::NO_CONTENT);
    assert_eq!(bench.get("/users/alice/files").await.json()["files"], json!([]));
    assert_eq!(bench.post(&complete, json!({})).await.code(), "invalid-input", "it is something else");
    assert_eq!(part(&bench, url, "text/plain", "hello").await.status, StatusCode::NO_CONTENT);
    let shown = bench.get(&format!("/users/alice/uploads/{id}")).await.json();
    assert_eq!(shown["parts"][0]["arrived"], true);
    assert_eq!(bench.get(&format!("/users/bob/uploads/{id}")).await.code(), "not-found", "it is not bob's");
    let done = bench.post(&complete, json!({})).await;
    assert_eq!(done.status, StatusCode::OK, "{}", done.text);
    assert_eq!(bench.post(&complete, json!({})).await.etag(), done.etag(), "a repeat answers the same");
    assert_eq!(part(&bench, url, "text/plain", "hello").await.code(), "forbidden", "it is over");
    assert_eq!(get(&bench, "/users/alice/files/in/f.txt", &[]).await.text, "hello");
    // The condition is judged at the end.
    let late = begin(&bench, wanted).await;
    let url = late["parts"][0]["url"].as_str().expect("a URL");
    part(&bench, url, "text/plain", "hello").await;
    let id = late["upload_id"].as_str().expect("an id");
    let refused = bench.post(&format!("/users/alice/uploads/{id}/complete"), json!({})).await;
    assert_eq!(refused.code(), "precondition-failed");
    let gone = bench.delete(&format!("/users/alice/uploads/{id}")).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT, "{}", gone.text);
    assert_eq!(bench.get(&format!("/users/alice/uploads/{id}")).await.code(), "not-found");
    let events = bench.get("/events").await.json();
    let begun = |event: &Value| event["action"] == "upload.begun";
    assert_eq!(events["events"].as_array().expect("a list").iter().filter(|event| begun(event)).count(), 2);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_url_allows_what_it_says_and_nothing_else() {
    let bench = Bench::without_sandboxes().await;
    let upload = begin(&bench, json!({ "path": "f", "size": 5, "content_type": "text/plain" })).await;
    let other = begin(&bench, json!({ "path": "g", "size": 5, "content_type": "text/plain" })).await;
    let (url, id) =
        (upload["parts"][0]["url"].as_str().expect("a URL"), upload["upload_id"].as_str().expect("an id"));
    let other = other["upload_id"].as_str().expect("an id");
    let expires = url.split("expires=").nth(1).and_then(|rest| rest.split('&').next()).expect("a time");
    let later = (expires.parse::<u64>().expect("a number") + 3600).to_string();
    for (what, bent) in [
        ("another upload", url.replace(id, other)),
        ("another part", url.replace("/0?", "/1?")),
        ("later", url.replace(expires, &later)),
        ("no signature", url.split("&signature").next().expect("a URL").to_owned()),
        ("an empty signature", format!("{}&signature=", url.split("&signature").next().expect("a URL"))),
        ("no upload", url.replace(id, "upl_00000000000000000000000000000000")),
        ("no id", url.replace(id, "..%2F..%2Ftenants")),
    ] {
        assert_eq!(part(&bench, &bent, "text/plain", "hello").await.code(), "forbidden", "{what}: {bent}");
    }
    for (what, kind, content) in [
        ("another length", "text/plain", "hello!"),
        ("another length", "text/plain", "hell"),
        ("another type", "text/html", "hello"),
    ] {
        assert_eq!(part(&bench, url, kind, content).await.code(), "forbidden", "{what}");
    }
    let method = bench.send(Method::GET, url, &[], "").await;
    assert_eq!(method.code(), "method-not-allowed");
    let control = part(&bench, url, "text/plain", "hello").await;
    assert_eq!(control.status, StatusCode::NO_CONTENT, "the control: what it was made for");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_by_a_signed_url_needs_no_key() {
    let bench = Bench::without_sandboxes().await;
    put(&bench, "/users/al%2Fice/files/d/f%3F.txt", &[], "0123456789").await;
    put(&bench, "/users/bob/files/d/f%3F.txt", &[], "bob's").await;
    let signed =
        bench.post("/users/al%2Fice/downloads", json!({ "path": "d/f?.txt", "expires_in": "1h" })).await;
    assert_eq!(signed.status, StatusCode::OK, "{}", signed.text);
    let url = signed.field("url");
    let read = bench.send(Method::GET, &url, &[], "").await;
    assert_eq!((read.status, read.text.as_str()), (StatusCode::OK, "0123456789"), "the control");
    assert_eq!(bench.send(Method::GET, &url, &[("range", "bytes=-2")], "").await.text, "89");
    for (what, bent) in [
        ("another user", url.replace("al%2Fice", "bob")),
        ("another file", url.replace("f%3F.txt", "g")),
        ("another tenant", url.replace("/default/", "/acme/")),
        ("up", url.replace("d/f%3F.txt", "..%2F..%2Fbob%2Ffiles%2Fd%2Ff%3F.txt")),
        ("case", url.replace("al%2Fice", "Al%2Fice")),
        ("unicode", url.replace("al%2Fice", "al%E2%88%95ice")),
    ] {
        let refused = bench.send(Method::GET, &bent, &[], "").await;
        assert_eq!(refused.code(), "forbidden", "{what}: {bent}");
    }
    let missing = bench.post("/users/bob/downloads", json!({ "path": "nothing" })).await;
    assert_eq!(missing.code(), "not-found");
    let long = bench.post("/users/bob/downloads", json!({ "path": "d/f?.txt", "expires_in": "25h" })).await;
    assert_eq!(long.code(), "invalid-input");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_signs_a_download_uses_the_file() {
    let bench = Bench::without_sandboxes().await;
    for name in ["read", "unread"] {
        put(&bench, &format!("/users/alice/files/{name}"), &[], "1").await;
    }
    let script = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1])\n\
        c.execute('update file_metadata set used_at_micros = 7')\nc.commit()";
    let database = bench.data().join("postern.db");
    let aged = std::process::Command::new("python3").args(["-c", script]).arg(database).status();
    assert!(aged.expect("python3 runs").success());
    assert_eq!(bench.post("/users/alice/downloads", json!({ "path": "read" })).await.status, StatusCode::OK);
    let unused = json!({ "limits": { "retention": { "unused": "30d", "then": "delete" } } });
    assert_eq!(bench.post("/apply", unused).await.status, StatusCode::OK);
    let step = bench.post("/retention", json!({ "dry_run": true })).await.json();
    let due = step["files"].as_array().expect("a list").iter().map(|file| file["path"].clone());
    assert_eq!(due.collect::<Vec<_>>(), [json!("unread")], "the other was used, whoever has its URL");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_path_key_or_header_reaches_another_users_files() {
    let bench = Bench::without_sandboxes().await;
    bench.post("/tenants", json!({ "name": "acme" })).await;
    let acme = bench.key("developer", "acme").await;
    let auditor = bench.key("auditor", "default").await;
    put(&bench, "/users/bob/files/secret", &[], "bob's").await;
    for path in [
        "/users/alice/files/../../bob/files/secret",
        "/users/alice/files/..%2F..%2Fbob%2Ffiles%2Fsecret",
        "/users/alice/files/%2e%2e/%2e%2e/bob/files/secret",
        "/users/alice/files//etc/passwd",
        "/users/alice/files/a%00b",
        "/users/alice/files/.postern-draft-1",
        "/users/alice/files/./secret",
    ] {
        for answer in [get(&bench, path, &[]).await, put(&bench, path, &[], "x").await] {
            assert_eq!(answer.code(), "request-malformed", "{path}: {}", answer.text);
        }
    }
    for path in [
        "/users/Bob/files/secret",
        "/users/bob%20/files/secret",
        "/users/bob%2F/files/secret",
        "/users/b%D0%BEb/files/secret",
        "/users/bob/files/secret%20",
        "/users/bob/files/Secret",
        "/users/alice/files/%2e%2e%5c..%5cbob%5cfiles%5csecret",
    ] {
        let answer =
            get(&bench, path, &[("x-user-id", "bob"), ("x-original-url", "/users/bob/files/secret")]).await;
        assert_eq!(answer.code(), "not-found", "{path}");
    }
    let as_key = async |key: &str, path: &str| bench.call_as(key, Method::GET, path, Value::Null).await;
    assert_eq!(
        as_key(&acme, "/users/bob/files/secret").await.code(),
        "not-found",
        "a user of the key's tenant"
    );
    assert_eq!(as_key(&acme, "/users/bob/files/secret?tenant=default").await.code(), "forbidden");
    assert_eq!(
        as_key(&auditor, "/users/bob/files/secret").await.code(),
        "forbidden",
        "files are not for auditors"
    );
    assert_eq!(as_key("", "/users/bob/files/secret").await.code(), "key-missing");
    let labelled = bench
        .post("/keys", json!({ "role": "developer", "tenant": "default", "labels": { "team": "a" } }))
        .await;
    assert_eq!(as_key(&labelled.field("key"), "/users/bob/files").await.code(), "forbidden");
    assert_eq!(get(&bench, "/users/bob/files/secret", &[]).await.text, "bob's", "the control");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_is_erased_with_all_that_is_kept() {
    let bench = Bench::without_sandboxes().await;
    put(&bench, "/users/alice/files/a", &[], "1").await;
    put(&bench, "/users/alice/files/run?mode=755", &[], "2").await;
    put(&bench, "/users/alice2/files/a", &[], "3").await;
    begin(&bench, json!({ "path": "f", "size": 5 })).await;
    let session =
        json!({ "user_id": "alice", "conversation_id": "c", "operations": [], "peer": "127.0.0.1" });
    let session = bench.post("/sessions", session).await;
    assert_eq!(session.status, StatusCode::CREATED, "{}", session.text);
    let erased = bench.delete("/users/alice").await;
    assert_eq!(erased.status, StatusCode::OK, "{}", erased.text);
    assert_eq!(erased.json()["erased"]["files"], 2);
    assert_eq!(erased.json()["kept"][0]["what"], "audit log");
    assert_eq!((&erased.json()["erased"]["sessions"], &erased.json()["kept"][1]), (&json!(1), &Value::Null));
    assert!(bench.told.lock().expect("no panic").has_ended(&session.field("session_id")), "gateways know");
    assert_eq!(bench.get("/sessions").await.json()["sessions"], json!([]));
    assert_eq!(bench.get("/users/alice/files").await.json()["files"], json!([]));
    assert_eq!(bench.delete("/users/alice").await.json()["erased"]["objects"], 0, "may be repeated");
    assert_eq!(get(&bench, "/users/alice2/files/a", &[]).await.text, "3", "and nobody else");
    let left = bench.data().join("files/tenants/default/users/alice");
    assert!(!left.exists(), "{}", left.display());
    bench.close().await;
}

/// Of a sandbox that is forgotten but for the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_set_aside_of_a_user_is_erased_too() {
    let bench = Bench::without_sandboxes().await;
    let script = "import sqlite3, sys, time\nc = sqlite3.connect(sys.argv[1], timeout=30)\n\
        for user in ('alice', 'bob'):\n \
        c.execute('insert into sandbox_audit_log (id, at_micros, tenant, action, actor, sandbox_id, user_id) \
        values (?, ?, ?, ?, ?, ?, ?)', ('evt_' + user, int(time.time() * 1e6), 'default', 'files.set-aside', \
        'orchestrator', 'sandbox-' + user[0] * 12, user))\nc.commit()";
    let database = bench.data().join("postern.db");
    let told = std::process::Command::new("python3").args(["-c", script]).arg(database).status();
    assert!(told.expect("python3 runs").success());
    let aside = ["sandbox-aaaaaaaaaaaa", "sandbox-bbbbbbbbbbbb"]
        .map(|sandbox| bench.folder.path().join("slots/set-aside").join(sandbox));
    for slot in &aside {
        std::fs::create_dir_all(slot.join("files/data/user")).expect("makes");
        std::fs::write(slot.join("files/data/user/f"), "theirs").expect("writes");
    }
    let erased = bench.delete("/users/alice").await;
    assert_eq!(erased.status, StatusCode::OK, "{}", erased.text);
    assert_eq!(erased.json()["erased"]["set_aside"], 1);
    assert_eq!(aside.map(|slot| slot.exists()), [false, true], "and nobody else's");
    assert_eq!(bench.delete("/users/alice").await.json()["erased"]["set_aside"], 0, "may be repeated");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_comes_of_a_user_whose_erasure_is_not_done() {
    let bench = Bench::without_sandboxes().await;
    put(&bench, "/users/alice/files/a", &[], "1").await;
    // Deeper than any file may lie, so deeper than the store goes: it cannot remove that.
    let deep = bench.data().join("files/tenants/default/users/alice/files/deep");
    std::fs::create_dir_all(deep.join(vec!["d"; 150].join("/"))).expect("makes folders");
    assert_eq!(bench.delete("/users/alice").await.code(), "storage-unavailable");
    for refused in [
        put(&bench, "/users/alice/files/b", &[], "2").await,
        bench.put("/users/alice/hold", json!({ "reason": "case 7" })).await,
    ] {
        assert_eq!(refused.code(), "state-conflict", "{}", refused.text);
        assert!(refused.field("hint").contains("DELETE /users/{user_id}"), "{}", refused.text);
    }
    assert_eq!(put(&bench, "/users/bob/files/b", &[], "2").await.status, StatusCode::OK, "the control");

    std::fs::remove_dir_all(&deep).expect("is mended");
    assert_eq!(bench.delete("/users/alice").await.status, StatusCode::OK);
    assert_eq!(put(&bench, "/users/alice/files/b", &[], "2").await.status, StatusCode::OK);
    assert_eq!(bench.put("/users/alice/hold", json!({ "reason": "case 7" })).await.status, StatusCode::OK);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_off_leaves_what_was_there() {
    use tokio::io::AsyncWriteExt;
    let bench = Bench::without_sandboxes().await;
    put(&bench, "/users/alice/files/f", &[], "before").await;
    let mut stream = tokio::net::TcpStream::connect(bench.address()).await.expect("connects");
    let head = format!(
        "PUT /users/alice/files/f HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-length: 100\r\n\r\nhalf",
        bench.address(),
        bench.key
    );
    stream.write_all(head.as_bytes()).await.expect("sends");
    stream.shutdown().await.expect("breaks off");
    let mut answer = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await.expect("ends");
    assert_eq!(get(&bench, "/users/alice/files/f", &[]).await.text, "before");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_user_keeps_everything_until_they_are_released() {
    let bench = Bench::without_sandboxes().await;
    put(&bench, "/users/alice/files/a", &[], "1").await;
    let reasons = [json!({}), json!({ "reason": " " }), json!({ "reason": "x".repeat(1025) })];
    for wrong in reasons {
        assert_eq!(bench.put("/users/alice/hold", wrong).await.code(), "invalid-input");
    }
    assert_eq!(bench.get("/users/alice/hold").await.status, StatusCode::NOT_FOUND);
    let held = bench.put("/users/alice/hold", json!({ "reason": "case 7" })).await;
    assert_eq!((held.status, held.field("reason").as_str()), (StatusCode::OK, "case 7"), "{}", held.text);
    bench.put("/users/bob/hold", json!({ "reason": "case 8" })).await;
    assert_eq!(bench.get("/users/alice/hold").await.field("user_id"), "alice");
    let page = bench.get("/holds?limit=1").await.json();
    assert_eq!((&page["holds"][0]["user_id"], &page["next"]), (&json!("alice"), &json!("default/alice")));
    let rest = bench.get("/holds?after=default/alice").await.json();
    assert_eq!((&rest["holds"][0]["user_id"], &rest["next"]), (&json!("bob"), &Value::Null));

    let kept = bench.delete("/users/alice").await;
    assert_eq!(kept.status, StatusCode::OK, "{}", kept.text);
    let kept = kept.json();
    assert_eq!((&kept["erased"]["files"], &kept["hold"]["reason"]), (&json!(0), &json!("case 7")));
    assert_eq!((&kept["kept"][0]["what"], &kept["kept"][0]["count"]), (&json!("files"), &json!(1)));
    assert_eq!(get(&bench, "/users/alice/files/a", &[]).await.text, "1");
    let developer = bench.key("developer", "default").await;
    let released = bench.call_as(&developer, Method::DELETE, "/users/alice/hold", Value::Null).await;
    assert_eq!(released.code(), "forbidden");

    assert_eq!(bench.delete("/users/alice/hold").await.status, StatusCode::NO_CONTENT);
    assert_eq!(bench.delete("/users/alice/hold").await.code(), "not-found");
    assert_eq!(bench.delete("/users/alice").await.json()["erased"]["files"], 1);
    let events = bench.get("/events").await.json();
    let of_holds = events["events"].as_array().expect("a list").iter();
    let of_holds: Vec<_> = of_holds
        .filter(|event| event["action"].as_str().is_some_and(|action| action.starts_with("hold.")))
        .map(|event| (event["action"].clone(), event["subject"].clone(), event["reason"].clone()))
        .collect();
    let line =
        |action: &str, user: &str, reason: Value| (json!(action), json!(format!("user/{user}")), reason);
    assert_eq!(
        of_holds,
        [
            line("hold.set", "alice", json!("case 7")),
            line("hold.set", "bob", json!("case 8")),
            line("hold.released", "alice", Value::Null)
        ]
    );
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_of_retention_is_asked_for_by_who_may_change_and_does_what_limits_say() {
    let bench = Bench::without_sandboxes().await;
    put(&bench, "/users/alice/files/a", &[], "1").await;
    let nothing = json!({ "files": [], "held": [], "in_use": 0, "failed": [], "next": null });
    assert_eq!(bench.post("/retention", json!({})).await.json(), nothing, "nobody says that files go");
    let short = json!({ "limits": { "retention": { "age": "59m" } } });
    assert_eq!(bench.post("/apply", short).await.code(), "invalid-input", "a slip of the unit");
    let applied =
        bench.post("/apply", json!({ "limits": { "retention": { "age": "30d", "then": "delete" } } })).await;
    assert_eq!(applied.status, StatusCode::OK, "{}", applied.text);
    assert_eq!(bench.post("/retention", json!({ "dry_run": true })).await.json(), nothing, "not yet");
    assert_eq!(bench.post("/retention", json!({ "after": "!" })).await.code(), "invalid-input");
    let developer = bench.key("developer", "default").await;
    let refused = bench.call_as(&developer, Method::POST, "/retention", json!({})).await;
    assert_eq!(refused.code(), "forbidden");
    assert_eq!(get(&bench, "/users/alice/files/a", &[]).await.text, "1");
    bench.close().await;
}
