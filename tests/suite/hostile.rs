// SPDX-License-Identifier: Apache-2.0
//! A process 1 that is the agent's accomplice, and callers who ask it through the API: what it answers never
//! ends, or lies about its length. Every call comes to an end, a neighbour notices nothing, and `up` takes no
//! more memory than its bounds say. (That its shim stands it: orchestrator, `local::tests::hostile`.)

use crate::running::{Backend, Up};
use serde_json::json;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

const PROGRAM: &str = concat!(
    include_str!("../../orchestrator/src/runtime/local/tests/hostile/frames.py"),
    include_str!("hostile/process_1.py"),
);
/// What is read of an answer without an end before its reader stops.
const READ_BYTES: usize = 32 << 20;
/// What `up` may take more at its worst: a list of 32 MiB, read and parsed, 10 MiB of each output of a
/// collected command, and each stream's windows. What pours out of four sandboxes meanwhile is many times that.
const MORE_KIBIBYTES: u64 = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(90);

/// The sandbox of this conversation, whose process 1 behaves like this once it has its identity.
fn accomplice(up: &Up, conversation: &str, behaviour: &str) -> String {
    becomes(up, &PROGRAM.replace("@BEHAVIOUR@", behaviour));
    let made = up.sandbox("mallory", conversation);
    made["sandbox_id"].as_str().expect("an id").to_owned()
}

/// Puts a program where sandboxes have their process 1 from; those that run keep theirs.
fn becomes(up: &Up, program: &str) {
    let place = PathBuf::from(up.written("run")).join("shared/sandboxd");
    let draft = place.with_extension("hostile");
    fs::write(&draft, program).expect("writes");
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).expect("ours");
    fs::rename(draft, place).expect("takes its place");
}

/// The most memory that `up` has had at one time.
fn peak(up: &Up) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", up.pid())).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("is told");
    peak.trim().trim_end_matches(" kB").parse().expect("kB")
}

/// A call whose answer is read for a while and then no more; it lasts until the connection is dropped.
fn read_some(up: &Up, request: &str, headers: &str, body: &str) -> TcpStream {
    let (url, key) = up.caller();
    let authority = url.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = TcpStream::connect(authority).expect("listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("sets");
    let length = body.len();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: {authority}\r\nAuthorization: {key}\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(head.as_bytes()).expect("writes");
    let (mut read, mut buffer) = (0, vec![0; 64 << 10]);
    while read < READ_BYTES {
        let more = stream.read(&mut buffer).expect("goes on");
        assert!(more > 0, "{request} ended after {read} bytes: {}", String::from_utf8_lossy(&buffer[..1000]));
        read += more;
    }
    stream
}

const JSON: &str = "Content-Type: application/json\r\n";
const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[test]
fn answers_without_an_end_and_lies_are_bounded_and_harm_nobody_else() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let neighbour = up.sandbox("alice", "neighbour");
    let neighbour = neighbour["sandbox_id"].as_str().expect("an id");
    let exec = |id: &str, command: serde_json::Value| {
        up.call("POST", &format!("/sandbox/{id}/exec"), Some(&command))
    };
    let is_alive = || {
        let ran = exec(neighbour, json!({ "command": "echo alive", "collect": true }));
        assert_eq!(ran.json()["stdout"], "alive\n", "{ran:?}");
    };
    let before = peak(&up);

    // Those that are read a little pour on for as long as somebody lets them, through all that follows.
    let streamed = accomplice(&up, "streamed", "output");
    let file = accomplice(&up, "file", "file");
    let terminal = accomplice(&up, "terminal", "terminal");
    let command = json!({ "command": "true" }).to_string();
    let held = [
        read_some(&up, &format!("POST /sandbox/{streamed}/exec"), JSON, &command),
        read_some(&up, &format!("GET /sandbox/{file}/files/x"), "", ""),
        read_some(&up, &format!("GET /sandbox/{terminal}/terminal"), WEBSOCKET, ""),
    ];
    is_alive();

    let collected = accomplice(&up, "collected", "output");
    let answer = exec(&collected, json!({ "command": "true", "collect": true, "timeout": "1s" }));
    assert!(answer.status >= 500, "it never ended: {}", answer.status);
    is_alive();
    let list = accomplice(&up, "list", "list");
    let answer = up.call("GET", &format!("/sandbox/{list}/folders/x"), None);
    assert!(answer.status >= 500, "{answer:?}");
    let lie = accomplice(&up, "lie", "lie");
    let answer = exec(&lie, json!({ "command": "true", "collect": true }));
    assert!(answer.status >= 500, "{answer:?}");
    let answer = exec(&lie, json!({ "command": "true" }));
    assert!(answer.text.contains("event: error"), "{answer:?}");
    is_alive();

    // One that is told who it is and does not stop to answer is none.
    becomes(&up, &PROGRAM.replace("@BEHAVIOUR@", "identity"));
    let wish = json!({ "user_id": "mallory", "conversation_id": "identity" });
    let made = up.call("POST", "/sandbox?wait=running", Some(&wish));
    assert!(made.status >= 500, "{made:?}");
    is_alive();

    let more = peak(&up).saturating_sub(before);
    assert!(more < MORE_KIBIBYTES, "`up` took {more} KiB more");
    drop(held);
    // It ends all of them, and well.
    up.stop();
}
