// SPDX-License-Identifier: Apache-2.0
//! `/files` on the wire: up and down, several at once, packed, with metadata, and watched.

use super::bench::{Bench, PATIENCE, Sandbox, until};
use super::on_each_level;
use super::wire::post;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

on_each_level!(
    a_file_goes_in_and_comes_out_as_it_was,
    several_files_come_in_one_body,
    metadata_stays_with_its_file,
    what_is_no_file_of_the_agents_is_neither_read_nor_written,
    a_full_disk_is_told,
    what_happens_in_a_folder_is_told_to_who_asks,
);

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

async fn files(
    sandbox: &Sandbox,
    method: Method,
    query: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Answer {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = format!("http://sandbox/files{query}").parse().expect("a URI");
    for (name, value) in headers {
        let name: HeaderName = name.parse().expect("a name");
        request.headers_mut().insert(name, HeaderValue::from_str(value).expect("a value"));
    }
    let exchange = async {
        let response = sandbox.agent.send(request).await.expect("answers");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("whole").to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("in time")
}

const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");

fn at(path: &str) -> String {
    format!("?path={}", utf8_percent_encode(path, NON_ALPHANUMERIC))
}

async fn a_file_goes_in_and_comes_out_as_it_was(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    // Lengths around a piece, and one of many.
    for length in [0, 1, 65_535, 65_536, 65_537, 3_000_000] {
        let content: Vec<u8> = (0..length).map(|place| u8::try_from(place % 251).expect("fits")).collect();
        let written =
            files(&sandbox, Method::POST, &at("made/on the/way.bin"), &[OCTETS], content.clone()).await;
        assert_eq!(written.status, StatusCode::OK, "{:?}", written.body);
        let told: Value = serde_json::from_slice(&written.body).expect("JSON");
        assert_eq!(
            told,
            json!([{ "name": "way.bin", "type": "file", "path": "/home/user/made/on the/way.bin" }])
        );
        let read = files(&sandbox, Method::GET, &at("/home/user/made/on the/way.bin"), &[], "").await;
        assert_eq!((read.status, read.body.len()), (StatusCode::OK, length));
        assert_eq!(read.headers["content-length"], length.to_string());
        assert!(read.body == content, "{length} bytes came back differently");
        let packed =
            files(&sandbox, Method::GET, &at("~/made/on the/way.bin"), &[("accept-encoding", "gzip")], "")
                .await;
        assert_eq!(packed.headers["content-encoding"], "gzip");
        let again =
            files(&sandbox, Method::POST, &at("again"), &[OCTETS, ("content-encoding", "gzip")], packed.body)
                .await;
        assert_eq!(again.status, StatusCode::OK, "{:?}", again.body);
        assert!(files(&sandbox, Method::GET, &at("again"), &[], "").await.body == content);
    }
    assert_eq!(sandbox.shell("stat -c '%a %U' ~/again").await.stdout, "644 user\n");
    let broken =
        files(&sandbox, Method::POST, &at("x"), &[OCTETS, ("content-encoding", "gzip")], "no gzip").await;
    assert_eq!(broken.status, StatusCode::BAD_REQUEST);
    let other = files(&sandbox, Method::POST, &at("x"), &[OCTETS, ("content-encoding", "br")], "").await;
    assert_eq!(other.status, StatusCode::BAD_REQUEST);
    assert_eq!(files(&sandbox, Method::POST, "", &[OCTETS], "").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        files(&sandbox, Method::DELETE, &at("x"), &[], "").await.status,
        StatusCode::METHOD_NOT_ALLOWED
    );
    let root = files(&sandbox, Method::GET, &format!("{}&username=root", at("again")), &[], "").await;
    assert_eq!(root.status, StatusCode::UNAUTHORIZED);
}

async fn several_files_come_in_one_body(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let part = |filename: &str, content: &str| {
        format!(
            "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{filename}\"\r\n\r\n{content}\r\n"
        )
    };
    let kind = ("content-type", "multipart/form-data; boundary=b");
    let body =
        format!("{}{}--b--\r\n", part("one.txt", "first"), part("/data/scratch/two.txt", "second\r\n"));
    let written = files(&sandbox, Method::POST, "", &[kind], body).await;
    assert_eq!(written.status, StatusCode::OK, "{:?}", written.body);
    let told: Value = serde_json::from_slice(&written.body).expect("JSON");
    assert_eq!(told[1]["path"], "/data/scratch/two.txt");
    assert_eq!(sandbox.shell("cat ~/one.txt /data/scratch/two.txt").await.stdout, "firstsecond\r\n");
    let named =
        files(&sandbox, Method::POST, &at("three.txt"), &[kind], format!("{}--b--", part("x", "third")))
            .await;
    assert_eq!(named.status, StatusCode::OK);
    assert_eq!(sandbox.shell("cat ~/three.txt").await.stdout, "third");
    let body = format!("{}{}--b--", part("x", ""), part("y", ""));
    for (query, body) in [(at("x").as_str(), body.as_str()), ("", "--b--"), ("", "--b\r\n"), ("", "")] {
        assert_eq!(
            files(&sandbox, Method::POST, query, &[kind], body.to_owned()).await.status,
            StatusCode::BAD_REQUEST
        );
    }
}

async fn metadata_stays_with_its_file(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let headers = [OCTETS, ("x-metadata-author", "alice"), ("x-metadata-run", "7")];
    let written = files(&sandbox, Method::POST, &at("noted"), &headers, "text").await;
    assert_eq!(written.status, StatusCode::OK, "{:?}", written.body);
    let (_, told) = post(&sandbox, "filesystem.Filesystem/Stat", &json!({ "path": "noted" }), None).await;
    assert_eq!(told["entry"]["metadata"], json!({ "author": "alice", "run": "7" }));
    let long = "x".repeat(2000);
    let refused = files(&sandbox, Method::POST, &at("noted"), &[OCTETS, ("x-metadata-a", &long)], "").await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
}

async fn what_is_no_file_of_the_agents_is_neither_read_nor_written(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let ground = "cd ~; mkfifo fifo; mkdir folder; ln -s /proc/self/environ environ; ln -s /proc/self/mem mem; ln -s /proc/self/fd/0 zero; ln -s /usr/bin/env program; ln -s loop loop; echo inside > real; ln -s real link";
    assert_eq!(sandbox.shell(ground).await.code, 0);
    for (path, wanted) in [
        ("none", StatusCode::NOT_FOUND),
        ("folder", StatusCode::BAD_REQUEST),
        ("fifo", StatusCode::BAD_REQUEST),
        ("loop", StatusCode::BAD_REQUEST),
        ("/dev/zero", StatusCode::BAD_REQUEST),
        ("environ", StatusCode::FORBIDDEN),
        ("mem", StatusCode::FORBIDDEN),
        ("/proc/self/environ", StatusCode::FORBIDDEN),
        ("/proc/1/maps", StatusCode::FORBIDDEN),
    ] {
        let read = files(&sandbox, Method::GET, &at(path), &[], "").await;
        assert_eq!(read.status, wanted, "{path}: {:?}", read.body);
        let refusal: Value = serde_json::from_slice(&read.body).expect("JSON");
        assert_eq!(refusal["code"], wanted.as_u16(), "{path}");
        assert!(refusal["message"].is_string(), "{path}");
    }
    // A magic link is refused, whatever it leads to.
    assert!(!files(&sandbox, Method::GET, &at("zero"), &[], "").await.status.is_success());
    for path in [
        "folder",
        "fifo",
        "environ",
        "mem",
        "zero",
        "program",
        "/usr/x",
        "/proc/self/mem",
        "/dev/null",
        "loop",
    ] {
        let written = files(&sandbox, Method::POST, &at(path), &[OCTETS], "poison").await;
        assert!(written.status.is_client_error(), "{path}: {} {:?}", written.status, written.body);
    }
    // The control: an ordinary link is followed both ways, as the SDKs expect.
    assert_eq!(files(&sandbox, Method::GET, &at("link"), &[], "").await.body, "inside\n");
    assert_eq!(files(&sandbox, Method::POST, &at("link"), &[OCTETS], "new").await.status, StatusCode::OK);
    assert_eq!(sandbox.shell("cat ~/real; test -L ~/link && echo link").await.stdout, "newlink\n");
}

async fn a_full_disk_is_told(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    if !sandbox.running.enforced.disk {
        return;
    }
    let much = vec![1; 48 << 20];
    let written = files(&sandbox, Method::POST, &at("/data/scratch/much"), &[OCTETS], much).await;
    assert_eq!(written.status, StatusCode::INSUFFICIENT_STORAGE, "{:?}", written.body);
    assert_eq!(sandbox.shell("rm /data/scratch/much; echo alive").await.stdout, "alive\n");
}

async fn what_happens_in_a_folder_is_told_to_who_asks(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    assert_eq!(sandbox.shell("mkdir -p ~/watched/inner").await.code, 0);
    let wish = json!({ "path": "watched", "recursive": true, "includeEntry": true });
    let (status, made) = post(&sandbox, "filesystem.Filesystem/CreateWatcher", &wish, None).await;
    assert_eq!(status, StatusCode::OK, "{made}");
    let watcher = json!({ "watcherId": made["watcherId"] });
    assert_eq!(
        sandbox
            .shell("echo text > ~/watched/inner/file; mkdir ~/watched/new; touch ~/watched/new/x")
            .await
            .code,
        0
    );
    let mut seen: Vec<(String, String)> = Vec::new();
    let mut size = None;
    until("all is told", async || {
        let (_, told) = post(&sandbox, "filesystem.Filesystem/GetWatcherEvents", &watcher, None).await;
        for event in told["events"].as_array().into_iter().flatten() {
            let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
            seen.push((text("type"), text("name")));
            if text("name") == "inner/file" {
                size = event["entry"]["size"].as_str().map(str::to_owned);
            }
        }
        let has = |kind: &str, name: &str| seen.contains(&(format!("EVENT_TYPE_{kind}"), name.to_owned()));
        has("CREATE", "inner/file")
            && has("WRITE", "inner/file")
            && has("CREATE", "new")
            && has("CREATE", "new/x")
    })
    .await;
    assert_eq!(size.as_deref(), Some("5"));
    assert_eq!(post(&sandbox, "filesystem.Filesystem/RemoveWatcher", &watcher, None).await.0, StatusCode::OK);
    let (gone, _) = post(&sandbox, "filesystem.Filesystem/GetWatcherEvents", &watcher, None).await;
    assert_eq!(gone, StatusCode::NOT_FOUND);
}
