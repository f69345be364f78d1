// SPDX-License-Identifier: Apache-2.0
//! Files and processes through the API, at each isolation.

use crate::bench::{Answer, Bench, new_folder, on_each_level, until};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use postern_orchestrator::runtime::Isolation;
use serde_json::{Value, json};

on_each_level!(
    files_are_written_read_listed_moved_and_removed,
    a_path_is_read_in_one_way_or_refused,
    processes_are_listed_fed_followed_and_signalled,
    a_call_waits_for_a_sandbox_that_is_being_made,
    trees_go_in_and_come_out_plain,
    a_watched_folder_tells_what_happens,
    another_tenants_key_reaches_nothing_inside,
    what_is_used_is_told,
);

async fn open(level: Isolation) -> Bench {
    Bench::open(new_folder(), true, |config| config.isolation = Some(level)).await
}

async fn put(bench: &Bench, path: &str, content: &str) -> Answer {
    let bearer = format!("Bearer {}", bench.key);
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/octet-stream")];
    bench.send(Method::PUT, path, &headers, content).await
}

async fn files_are_written_read_listed_moved_and_removed(level: Isolation) {
    let bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    let at = |what: &str, path: &str| format!("/sandbox/{sandbox}/{what}/{path}");
    let written = put(&bench, &at("files", "data/user/made/on%20the/way.txt"), "hello").await;
    assert_eq!(written.status, StatusCode::NO_CONTENT, "{}", written.text);
    let read = bench.get(&at("files", "data/user/made/on%20the/way.txt")).await;
    assert_eq!((read.status, read.text.as_str()), (StatusCode::OK, "hello"));
    assert_eq!(read.headers["content-length"], "5");
    assert_eq!(read.headers["content-type"], "application/octet-stream");
    assert_eq!(read.headers["content-disposition"], "attachment");
    let entry = bench.get(&at("entries", "data/user/made/on%20the/way.txt")).await.json();
    assert_eq!((&entry["kind"], &entry["size"], &entry["mode"]), (&json!("file"), &json!(5), &json!("0644")));
    assert_eq!(put(&bench, &at("files", "~/home.txt"), "at home").await.status, StatusCode::NO_CONTENT);
    assert_eq!(bench.shell(&sandbox, "cat ~/home.txt").await, "at home");
    let made = bench.put(&at("folders", "data/user/empty"), Value::Null).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    assert_eq!(bench.put(&at("folders", "data/user/empty"), Value::Null).await.status, StatusCode::OK);
    let listed = bench.get(&format!("{}?depth=5", at("folders", "data/user"))).await.json();
    let names: Vec<&str> = listed["entries"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|entry| entry["name"].as_str())
        .collect();
    assert_eq!(names, ["empty", "made", "on the", "way.txt"]);
    let moved = bench
        .post(&format!("/sandbox/{sandbox}/move"), json!({ "from": "/data/user/made", "to": "~/kept/made" }))
        .await;
    assert_eq!(
        (moved.status, moved.field("path").as_str()),
        (StatusCode::OK, "/home/user/kept/made"),
        "{}",
        moved.text
    );
    assert_eq!(bench.delete(&at("files", "~/kept")).await.status, StatusCode::NO_CONTENT);
    assert_eq!(bench.delete(&at("files", "~/kept")).await.status, StatusCode::NO_CONTENT, "again");
    for (path, status, code) in [
        (at("files", "none"), StatusCode::NOT_FOUND, "not-found"),
        (at("files", "data/user"), StatusCode::UNPROCESSABLE_ENTITY, "invalid-input"),
        (at("entries", "none"), StatusCode::NOT_FOUND, "not-found"),
        (at("folders", "~/home.txt"), StatusCode::UNPROCESSABLE_ENTITY, "invalid-input"),
        (at("files", "proc/self/environ"), StatusCode::FORBIDDEN, "forbidden"),
        (at("watch", "none"), StatusCode::NOT_FOUND, "not-found"),
    ] {
        let refused = bench.get(&path).await;
        assert_eq!((refused.status, refused.code().as_str()), (status, code), "{path}: {}", refused.text);
    }
    let denied = put(&bench, &at("files", "usr/bin/mine"), "").await;
    assert_eq!((denied.status, denied.code().as_str()), (StatusCode::FORBIDDEN, "forbidden"));
    bench.close().await;
}

async fn a_path_is_read_in_one_way_or_refused(level: Isolation) {
    let bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    for path in [
        "data/../etc/passwd",
        "data/%2e%2e/etc/passwd",
        "data//x",
        "data/./x",
        "..",
        "a%00b",
        "data/user/%2e%2e%2f%2e%2e%2fetc",
    ] {
        for what in ["files", "folders", "entries", "trees", "watch"] {
            let refused = bench.get(&format!("/sandbox/{sandbox}/{what}/{path}")).await;
            assert_eq!(
                (refused.status, refused.code().as_str()),
                (StatusCode::BAD_REQUEST, "request-malformed"),
                "{what} {path}"
            );
        }
    }
    let body = json!({ "from": "/data/user/x", "to": "../x" });
    let refused = bench.post(&format!("/sandbox/{sandbox}/move"), body).await;
    assert_eq!(refused.code(), "request-malformed");
    bench.close().await;
}

async fn processes_are_listed_fed_followed_and_signalled(level: Isolation) {
    let bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    let bearer = format!("Bearer {}", bench.key);
    let auth = [("authorization", bearer.as_str())];
    let body = json!({ "command": ["/bin/cat"], "stdin": true, "env": { "SECRET": "s3cret" } }).to_string();
    let mut started =
        bench.open_stream(Method::POST, &format!("/sandbox/{sandbox}/exec"), &auth, &body).await;
    drop(started.body_mut().frame().await.expect("starts").expect("good"));
    let listed = bench.get(&format!("/sandbox/{sandbox}/processes")).await;
    assert!(!listed.text.contains("s3cret"), "{}", listed.text);
    let listed = listed.json();
    let process = &listed["processes"][0];
    assert_eq!(process["command"], json!(["/bin/cat"]), "{listed}");
    let pid = process["pid"].as_i64().expect("a number");
    let exec = process["exec_id"].as_str().expect("its name").to_owned();
    let at = |what: &str| format!("/sandbox/{sandbox}/processes/{pid}{what}");
    let mut attached = bench.open_stream(Method::GET, &at(""), &auth, "").await;
    drop(attached.body_mut().frame().await.expect("begins").expect("good"));
    let headers = [auth[0], ("content-type", "application/octet-stream")];
    let fed = bench.send(Method::POST, &at("/stdin"), &headers, "hello\n").await;
    assert_eq!(fed.status, StatusCode::NO_CONTENT, "{}", fed.text);
    let mut seen = String::new();
    while !seen.contains("aGVsbG8K") {
        let frame = attached.body_mut().frame().await.expect("goes on").expect("good");
        seen.push_str(&String::from_utf8_lossy(frame.data_ref().expect("bytes")));
    }
    let ended = bench.post(&at("/signal"), json!({ "signal": "SIGTERM" })).await;
    assert_eq!(ended.status, StatusCode::NO_CONTENT, "{}", ended.text);
    let followed = bench.send(Method::GET, &format!("/sandbox/{sandbox}/exec/{exec}"), &auth, "").await;
    assert!(followed.events().contains(&("exit".to_owned(), json!({ "signal": 15 }))), "{}", followed.text);
    until("it is listed no more", async || {
        bench.get(&format!("/sandbox/{sandbox}/processes")).await.json()["processes"] == json!([])
    })
    .await;
    let gone = bench.post(&at("/signal"), json!({})).await;
    assert_eq!((gone.status, gone.code().as_str()), (StatusCode::NOT_FOUND, "not-found"));
    let unknown = bench.post(&at("/signal"), json!({ "signal": "SEGV" })).await;
    assert_eq!(unknown.code(), "invalid-input");
    assert_eq!(bench.get(&at("")).await.code(), "not-found");
    drop((started, attached));
    bench.close().await;
}

async fn a_call_waits_for_a_sandbox_that_is_being_made(level: Isolation) {
    let bench = open(level).await;
    let body = json!({ "user_id": "alice", "conversation_id": "c1" });
    let made = bench.post("/sandbox", body).await;
    assert_eq!(
        (made.status, made.field("status").as_str()),
        (StatusCode::CREATED, "creating"),
        "{}",
        made.text
    );
    let sandbox = made.field("sandbox_id");
    assert_eq!(bench.shell(&sandbox, "echo waited").await, "waited\n");
    let second = bench
        .post("/sandbox", json!({ "user_id": "alice", "conversation_id": "c2" }))
        .await
        .field("sandbox_id");
    assert_eq!(
        put(&bench, &format!("/sandbox/{second}/files/data/user/x"), "y").await.status,
        StatusCode::NO_CONTENT
    );
    // A deadline of its own is kept: a millisecond is too short for any start.
    let third = bench
        .post("/sandbox", json!({ "user_id": "alice", "conversation_id": "c3" }))
        .await
        .field("sandbox_id");
    let late =
        bench.post(&format!("/sandbox/{third}/exec"), json!({ "command": "true", "timeout": "1ms" })).await;
    assert_eq!(
        (late.status, late.code().as_str()),
        (StatusCode::CONFLICT, "state-conflict"),
        "{}",
        late.text
    );
    bench.close().await;
}

/// A tar archive of one entry, as its header says.
fn archive(name: &str, kind: u8, link: &str, content: &str) -> String {
    let mut header = vec![0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000755\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    header[148..156].copy_from_slice(b"        ");
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header[257..263].copy_from_slice(b"ustar\0");
    header[263..265].copy_from_slice(b"00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.extend_from_slice(content.as_bytes());
    header.resize(header.len().next_multiple_of(512), 0);
    String::from_utf8(header).expect("is text")
}

async fn trees_go_in_and_come_out_plain(level: Isolation) {
    let bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    let tree = format!("/sandbox/{sandbox}/trees/data/user/tree");
    let end = "\0".repeat(1024);
    let good = [
        archive("run", b'0', "", "#!"),
        archive("in", b'5', "", ""),
        archive("in/link", b'2', "../run", ""),
        end.clone(),
    ]
    .concat();
    let unpacked = put(&bench, &tree, &good).await;
    assert_eq!(
        (unpacked.status, unpacked.json()),
        (StatusCode::OK, json!({ "entries": 3, "bytes": 2 })),
        "{}",
        unpacked.text
    );
    assert_eq!(bench.shell(&sandbox, "cd /data/user/tree && cat in/link && stat -c %a run").await, "#!755\n");
    let read = bench.get(&tree).await;
    assert_eq!(read.headers["content-type"], "application/x-tar");
    let names: Vec<&str> = read
        .text
        .as_bytes()
        .chunks(512)
        .filter(|block| &block[257..262] == b"ustar")
        .map(|block| {
            let end = block.iter().position(|byte| *byte == 0).expect("ends");
            std::str::from_utf8(&block[..end]).expect("is text")
        })
        .collect();
    assert_eq!(names, ["in", "in/link", "run"]);
    for (about, wrong) in [
        ("up", archive("../../up", b'0', "", "x")),
        ("absolute", archive("/data/user/up", b'0', "", "x")),
        ("through a link", [archive("l", b'2', "/data/user", ""), archive("l/up", b'0', "", "x")].concat()),
        ("a device", archive("d", b'3', "", "")),
        ("cut off", archive("f", b'0', "", "x").chars().take(512).collect()),
        ("none at all", "x".repeat(600)),
    ] {
        let refused =
            put(&bench, &tree, &format!("{wrong}{}", if about == "cut off" { "" } else { &end })).await;
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (StatusCode::UNPROCESSABLE_ENTITY, "invalid-input"),
            "{about}: {}",
            refused.text
        );
    }
    assert_eq!(bench.shell(&sandbox, "ls /data/user").await, "tree\n", "nothing led out");
    // A link that is there already is not gone through either.
    drop(bench.shell(&sandbox, "ln -s /data/user /data/user/tree/planted").await);
    let planted = put(&bench, &tree, &[archive("planted/up", b'0', "", "x"), end].concat()).await;
    assert_eq!(planted.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", planted.text);
    assert_eq!(bench.shell(&sandbox, "ls /data/user").await, "tree\n");
    assert_eq!(bench.get(&format!("/sandbox/{sandbox}/trees/none")).await.code(), "not-found");
    bench.close().await;
}

async fn a_watched_folder_tells_what_happens(level: Isolation) {
    let bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    let bearer = format!("Bearer {}", bench.key);
    let auth = [("authorization", bearer.as_str())];
    let path = format!("/sandbox/{sandbox}/watch/data/user?recursive");
    let mut watched = bench.open_stream(Method::GET, &path, &auth, "").await;
    assert_eq!(watched.status(), StatusCode::OK);
    drop(
        bench
            .shell(&sandbox, "mkdir /data/user/new; echo x > /data/user/new/file; rm /data/user/new/file")
            .await,
    );
    let mut text = String::new();
    while !text.contains("event: removed") {
        let frame = watched.body_mut().frame().await.expect("goes on").expect("good");
        text.push_str(&String::from_utf8_lossy(frame.data_ref().expect("bytes")));
    }
    assert!(text.contains("event: created\ndata: {\"name\":\"new\"}"), "{text}");
    assert!(text.contains("{\"name\":\"new/file\"}"), "{text}");
    drop(watched);
    // It ends, and says why, when the folder does.
    drop(bench.shell(&sandbox, "mkdir /data/scratch/w").await);
    let path = format!("/sandbox/{sandbox}/watch/data/scratch/w");
    let mut watched = bench.open_stream(Method::GET, &path, &auth, "").await;
    drop(bench.shell(&sandbox, "rmdir /data/scratch/w").await);
    let rest = watched.body_mut().collect().await.expect("ends").to_bytes();
    assert!(String::from_utf8_lossy(&rest).contains("\"code\":\"not-found\""), "{rest:?}");
    bench.close().await;
}

async fn another_tenants_key_reaches_nothing_inside(level: Isolation) {
    let bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    assert_eq!(bench.post("/tenants", json!({ "name": "other" })).await.status, StatusCode::CREATED);
    let (neighbour, reader) = (bench.key("admin", "other").await, bench.key("auditor", "default").await);
    for (method, what) in [
        (Method::GET, "files/data/user/x"),
        (Method::PUT, "files/data/user/x"),
        (Method::DELETE, "files/data/user/x"),
        (Method::GET, "entries/data"),
        (Method::GET, "folders/data"),
        (Method::PUT, "folders/data/user/y"),
        (Method::POST, "move"),
        (Method::GET, "trees/data"),
        (Method::PUT, "trees/data/user/y"),
        (Method::GET, "watch/data"),
        (Method::GET, "processes"),
        (Method::GET, "processes/7"),
        (Method::POST, "processes/7/signal"),
        (Method::POST, "processes/7/stdin"),
        (Method::POST, "tickets"),
        (Method::POST, "ports"),
        (Method::DELETE, "ports"),
    ] {
        let path = format!("/sandbox/{sandbox}/{what}");
        let body = if what == "move" { json!({ "from": "/a", "to": "/b" }) } else { Value::Null };
        let theirs = bench.call_as(&neighbour, method.clone(), &path, body.clone()).await;
        assert_eq!(
            (theirs.status, theirs.code().as_str()),
            (StatusCode::NOT_FOUND, "not-found"),
            "{method} {what}"
        );
        let readers = bench.call_as(&reader, method.clone(), &path, body).await;
        assert_eq!(
            (readers.status, readers.code().as_str()),
            (StatusCode::FORBIDDEN, "forbidden"),
            "{method} {what}"
        );
    }
    bench.close().await;
}

async fn what_is_used_is_told(level: Isolation) {
    let bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    drop(bench.shell(&sandbox, "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done").await);
    let usage = bench.get(&format!("/sandbox/{sandbox}/usage")).await.json();
    assert!(usage["cpu_microseconds"].as_u64().expect("is counted") > 0, "{usage}");
    if let Some(memory) = usage["memory_bytes"].as_u64() {
        assert!(memory > 0, "{usage}");
    }
    bench.close().await;
}
