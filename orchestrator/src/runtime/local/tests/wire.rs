// SPDX-License-Identifier: Apache-2.0
//! The wire as one table: each method of `process.Process` and `filesystem.Filesystem`, its errors
//! and its edges, on every level. Streams, terminals and `/files` have files of their own.

use super::bench::{Bench, PATIENCE, Sandbox, command};
use super::on_each_level;
use crate::runtime::agent::{AgentError, Event, Process};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

on_each_level!(
    every_unary_call_answers_as_the_table_says,
    every_streaming_call_answers_as_the_table_says,
    a_long_listing_is_refused_not_cut,
    a_folder_swapped_for_a_link_leads_nowhere_new,
);

/// What there is before the table is gone through.
const GROUND: &str = "
mkdir -p ~/tree/deep/deeper ~/full ~/locked && echo hello > ~/file && echo run > ~/tree/run && chmod 750 ~/tree/run
ln -s file ~/link; ln -s nowhere ~/broken; ln -s tree ~/folder-link; ln -s loop ~/loop; mkfifo ~/fifo
ln -s /proc/self/environ ~/environ; touch ~/full/x; chmod 000 ~/locked; echo odd > \"$(printf '/home/user/tree/o\\nd d')\"
";

/// A call, and what comes of it: members that the answer has, or a status and the Connect code.
type Row = (&'static str, &'static str, Value, Result<Value, (u16, &'static str)>);

fn of_path(path: &str) -> Value {
    json!({ "path": path })
}

#[expect(clippy::too_many_lines, reason = "it is one table")]
fn stat_rows() -> Vec<Row> {
    let entry = |value: Value| Ok(json!({ "entry": value }));
    vec![
        (
            "a file",
            "filesystem.Filesystem/Stat",
            of_path("file"),
            entry(json!({
            "name": "file", "path": "/home/user/file", "type": "FILE_TYPE_FILE", "size": "6", "mode": 0o644,
            // Its group is the host's matter where gVisor runs as an ordinary user.
            "permissions": "-rw-r--r--", "owner": "user" })),
        ),
        (
            "an absolute path",
            "filesystem.Filesystem/Stat",
            of_path("/home/user/tree/../file"),
            entry(json!({ "path": "/home/user/file" })),
        ),
        (
            "home itself",
            "filesystem.Filesystem/Stat",
            of_path(""),
            entry(json!({ "path": "/home/user", "type": "FILE_TYPE_DIRECTORY" })),
        ),
        (
            "by tilde",
            "filesystem.Filesystem/Stat",
            of_path("~/tree/run"),
            entry(json!({ "permissions": "-rwxr-x---" })),
        ),
        (
            "a link",
            "filesystem.Filesystem/Stat",
            of_path("link"),
            entry(json!({
            "name": "link", "type": "FILE_TYPE_FILE", "isSymlink": true, "symlinkTarget": "file", "size": "6" })),
        ),
        (
            "a link to a folder",
            "filesystem.Filesystem/Stat",
            of_path("folder-link"),
            entry(json!({ "type": "FILE_TYPE_DIRECTORY", "isSymlink": true })),
        ),
        (
            "a link to nowhere",
            "filesystem.Filesystem/Stat",
            of_path("broken"),
            entry(json!({ "type": "FILE_TYPE_SYMLINK" })),
        ),
        (
            "a link to itself",
            "filesystem.Filesystem/Stat",
            of_path("loop"),
            entry(json!({ "type": "FILE_TYPE_SYMLINK" })),
        ),
        (
            "neither file nor folder",
            "filesystem.Filesystem/Stat",
            of_path("fifo"),
            entry(json!({ "type": "FILE_TYPE_UNSPECIFIED" })),
        ),
        ("nothing", "filesystem.Filesystem/Stat", of_path("none"), Err((404, "not_found"))),
        ("below a file", "filesystem.Filesystem/Stat", of_path("file/x"), Err((400, "invalid_argument"))),
        ("a zero byte", "filesystem.Filesystem/Stat", of_path("a\0b"), Err((400, "invalid_argument"))),
        (
            "a path of no text",
            "filesystem.Filesystem/Stat",
            json!({ "path": 7 }),
            Err((400, "invalid_argument")),
        ),
        ("no such method", "filesystem.Filesystem/Nothing", json!({}), Err((501, "unimplemented"))),
        ("no such service", "other.Service/Stat", json!({}), Err((501, "unimplemented"))),
    ]
}

#[expect(clippy::too_many_lines, reason = "it is one table")]
fn change_rows() -> Vec<Row> {
    let moved = |from: &str, to: &str| json!({ "source": from, "destination": to });
    vec![
        (
            "a folder is made with those above it",
            "filesystem.Filesystem/MakeDir",
            of_path("new/a/b"),
            Ok(json!({ "entry": { "path": "/home/user/new/a/b" } })),
        ),
        ("it is there", "filesystem.Filesystem/MakeDir", of_path("new/a"), Err((409, "already_exists"))),
        (
            "a link to a folder is there too",
            "filesystem.Filesystem/MakeDir",
            of_path("folder-link"),
            Err((409, "already_exists")),
        ),
        (
            "a file is in its place",
            "filesystem.Filesystem/MakeDir",
            of_path("file"),
            Err((400, "invalid_argument")),
        ),
        (
            "a file is above it",
            "filesystem.Filesystem/MakeDir",
            of_path("file/x"),
            Err((400, "invalid_argument")),
        ),
        (
            "where the agent may not",
            "filesystem.Filesystem/MakeDir",
            of_path("/usr/x"),
            Err((403, "permission_denied")),
        ),
        (
            "a file moves",
            "filesystem.Filesystem/Move",
            moved("file", "moved/file"),
            Ok(json!({ "entry": { "path": "/home/user/moved/file" } })),
        ),
        ("and is gone", "filesystem.Filesystem/Stat", of_path("file"), Err((404, "not_found"))),
        (
            "to another mount",
            "filesystem.Filesystem/Move",
            moved("tree", "/data/scratch/tree"),
            Ok(json!({ "entry": { "type": "FILE_TYPE_DIRECTORY" } })),
        ),
        (
            "with its modes",
            "filesystem.Filesystem/Stat",
            of_path("/data/scratch/tree/run"),
            Ok(json!({ "entry": { "mode": 0o750 } })),
        ),
        ("nothing moves", "filesystem.Filesystem/Move", moved("none", "x"), Err((404, "not_found"))),
        (
            "onto a folder that holds something",
            "filesystem.Filesystem/Move",
            moved("new", "full"),
            Err((400, "invalid_argument")),
        ),
        (
            "into itself",
            "filesystem.Filesystem/Move",
            moved("new", "new/a/x"),
            Err((400, "invalid_argument")),
        ),
        (
            "where the agent may not",
            "filesystem.Filesystem/Move",
            moved("moved", "/usr/moved"),
            Err((403, "permission_denied")),
        ),
        ("a tree goes", "filesystem.Filesystem/Remove", of_path("/data/scratch/tree"), Ok(json!({}))),
        ("again", "filesystem.Filesystem/Remove", of_path("/data/scratch/tree"), Ok(json!({}))),
        ("a link goes, not what it leads to", "filesystem.Filesystem/Remove", of_path("link"), Ok(json!({}))),
        ("home stays", "filesystem.Filesystem/Remove", of_path("~"), Err((403, "permission_denied"))),
        ("the root stays", "filesystem.Filesystem/Remove", of_path("/"), Err((403, "permission_denied"))),
        (
            "what is not the agent's stays",
            "filesystem.Filesystem/Remove",
            of_path("/usr/bin/env"),
            Err((403, "permission_denied")),
        ),
        (
            "no such watcher",
            "filesystem.Filesystem/GetWatcherEvents",
            json!({ "watcherId": "x" }),
            Err((404, "not_found")),
        ),
        (
            "nor to remove",
            "filesystem.Filesystem/RemoveWatcher",
            json!({ "watcherId": "x" }),
            Err((404, "not_found")),
        ),
        (
            "a file is not watched",
            "filesystem.Filesystem/CreateWatcher",
            of_path("moved/file"),
            Err((400, "invalid_argument")),
        ),
        (
            "nor what is not there",
            "filesystem.Filesystem/CreateWatcher",
            of_path("none"),
            Err((404, "not_found")),
        ),
    ]
}

fn list_rows() -> Vec<Row> {
    let list = |path: &str, depth: u32| json!({ "path": path, "depth": depth });
    let names = |names: &[&str]| {
        Ok(json!({ "entries": names.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>() }))
    };
    vec![
        ("one deep", "filesystem.Filesystem/ListDir", list("tree", 1), names(&["deep", "o\nd d", "run"])),
        (
            "nought is one",
            "filesystem.Filesystem/ListDir",
            list("tree", 0),
            names(&["deep", "o\nd d", "run"]),
        ),
        (
            "two deep",
            "filesystem.Filesystem/ListDir",
            list("tree", 2),
            names(&["deep", "deeper", "o\nd d", "run"]),
        ),
        (
            "through a link",
            "filesystem.Filesystem/ListDir",
            list("folder-link", 1),
            names(&["deep", "o\nd d", "run"]),
        ),
        ("an empty one", "filesystem.Filesystem/ListDir", list("tree/deep/deeper", 1), names(&[])),
        ("a file", "filesystem.Filesystem/ListDir", list("file", 1), Err((400, "invalid_argument"))),
        ("nothing", "filesystem.Filesystem/ListDir", list("none", 1), Err((404, "not_found"))),
        (
            "nothing of process 1",
            "filesystem.Filesystem/ListDir",
            list("/proc/self/fd", 1),
            Err((403, "permission_denied")),
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "it is one table")]
fn process_rows(pid: i32) -> Vec<Row> {
    let select = |rest: Value| {
        let mut message = json!({ "process": { "pid": pid } });
        message.as_object_mut().expect("an object").extend(rest.as_object().expect("an object").clone());
        message
    };
    let nobody = json!({ "process": { "pid": 999_999 } });
    vec![
        (
            "what runs",
            "process.Process/List",
            json!({}),
            Ok(json!({ "processes": [{
            "pid": pid, "config": { "cmd": "/bin/sleep", "envs": { "A": "b" } } }] })),
        ),
        (
            "input",
            "process.Process/SendInput",
            select(json!({ "input": { "stdin": "aGk=" } })),
            Ok(json!({})),
        ),
        (
            "input that is no base64",
            "process.Process/SendInput",
            select(json!({ "input": { "stdin": "?" } })),
            Err((400, "invalid_argument")),
        ),
        (
            "typing where is no terminal",
            "process.Process/SendInput",
            select(json!({ "input": { "pty": "aGk=" } })),
            Err((400, "failed_precondition")),
        ),
        (
            "a size where is no terminal",
            "process.Process/Update",
            select(json!({ "pty": { "size": { "cols": 1, "rows": 1 } } })),
            Err((400, "failed_precondition")),
        ),
        (
            "an unknown signal",
            "process.Process/SendSignal",
            select(json!({ "signal": "SIGNAL_SIGBUS" })),
            Err((400, "invalid_argument")),
        ),
        (
            "input to nobody",
            "process.Process/SendInput",
            json!({ "process": { "pid": 999_999 }, "input": { "stdin": "" } }),
            Err((404, "not_found")),
        ),
        (
            "a signal to nobody",
            "process.Process/SendSignal",
            json!({ "process": { "pid": 999_999 }, "signal": "SIGNAL_SIGTERM" }),
            Err((404, "not_found")),
        ),
        (
            "a signal to process 1",
            "process.Process/SendSignal",
            json!({ "process": { "pid": 1 }, "signal": "SIGNAL_SIGKILL" }),
            Err((404, "not_found")),
        ),
        (
            "a signal to every process",
            "process.Process/SendSignal",
            json!({ "process": { "pid": -1 }, "signal": "SIGNAL_SIGKILL" }),
            Err((404, "not_found")),
        ),
        ("the end of nobody's input", "process.Process/CloseStdin", nobody, Err((404, "not_found"))),
        (
            "by tag",
            "process.Process/SendSignal",
            json!({ "process": { "tag": "none" }, "signal": "SIGNAL_SIGTERM" }),
            Err((404, "not_found")),
        ),
        ("the end of input", "process.Process/CloseStdin", select(json!({})), Ok(json!({}))),
        (
            "input after its end",
            "process.Process/SendInput",
            select(json!({ "input": { "stdin": "aGk=" } })),
            Err((400, "failed_precondition")),
        ),
    ]
}

async fn every_unary_call_answers_as_the_table_says(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    assert_eq!(sandbox.shell(GROUND).await.code, 0);
    for row in list_rows().into_iter().chain(stat_rows()).chain(change_rows()) {
        hold(&sandbox, row).await;
    }
    let env = [("A".to_owned(), "b".to_owned())].into();
    let process = Process { has_stdin: true, env, ..command(&["/bin/sleep", "1000"]) };
    let mut events = sandbox.agent.start(&process).await.expect("starts");
    let Ok(Some(Event::Started { pid })) = events.next().await else { panic!("no start") };
    for row in process_rows(pid) {
        hold(&sandbox, row).await;
    }
    for header in ["Basic cm9vdDo=", "Basic ?"] {
        let (status, answer) =
            post(&sandbox, "filesystem.Filesystem/Stat", &of_path("/"), Some(header)).await;
        assert_eq!((status, answer["code"].as_str()), (StatusCode::UNAUTHORIZED, Some("unauthenticated")));
    }
    let (status, _) =
        post(&sandbox, "filesystem.Filesystem/Stat", &of_path("/"), Some("Basic dXNlcjo=")).await;
    assert_eq!(status, StatusCode::OK);
}

/// Whether a row of the table holds.
async fn hold(sandbox: &Sandbox, (about, method, message, wanted): Row) {
    let (status, answer) = post(sandbox, method, &message, None).await;
    let what = format!("{method}, {about}: {status} {answer}");
    match wanted {
        Ok(members) => {
            assert_eq!(status, StatusCode::OK, "{what}");
            assert!(has(&answer, &members), "{what}, wanted {members}");
        }
        Err((wanted, code)) => {
            assert_eq!((status.as_u16(), answer["code"].as_str()), (wanted, Some(code)), "{what}");
            assert!(answer["message"].as_str().is_some_and(|text| !text.is_empty()), "{what}");
        }
    }
}

/// Whether all of `wanted` is in `answer`; lists have the same length.
fn has(answer: &Value, wanted: &Value) -> bool {
    match (answer, wanted) {
        (Value::Object(answer), Value::Object(wanted)) => {
            wanted.iter().all(|(name, wanted)| answer.get(name).is_some_and(|answer| has(answer, wanted)))
        }
        (Value::Array(answer), Value::Array(wanted)) => {
            answer.len() == wanted.len()
                && answer.iter().zip(wanted).all(|(answer, wanted)| has(answer, wanted))
        }
        (answer, wanted) => answer == wanted,
    }
}

pub(super) async fn post(
    sandbox: &Sandbox,
    method: &str,
    message: &Value,
    authorization: Option<&str>,
) -> (StatusCode, Value) {
    let headers: Vec<(&str, &str)> =
        authorization.map(|value| ("authorization", value)).into_iter().collect();
    let (status, bytes) =
        raw(sandbox, method, "application/json", &headers, message.to_string().into_bytes()).await;
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

async fn raw(
    sandbox: &Sandbox,
    method: &str,
    kind: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> (StatusCode, Bytes) {
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = format!("http://sandbox/{method}").parse().expect("a URI");
    request.headers_mut().insert("content-type", kind.parse().expect("a value"));
    for (name, value) in headers {
        let name: HeaderName = name.parse().expect("a name");
        request.headers_mut().insert(name, HeaderValue::from_str(value).expect("a value"));
    }
    let exchange = async {
        let response = sandbox.agent.send(request).await.expect("answers");
        (response.status(), response.into_body().collect().await.expect("whole").to_bytes())
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("in time")
}

fn enveloped(flags: u8, json: &str) -> Vec<u8> {
    let length = u32::try_from(json.len()).expect("fits").to_be_bytes();
    [&[flags][..], &length, json.as_bytes()].concat()
}

/// The JSON of each envelope of an answer; the last is the end.
fn messages(mut bytes: &[u8]) -> Vec<Value> {
    let mut messages = Vec::new();
    while let Some(([_flags, length @ ..], rest)) = bytes.split_first_chunk::<5>() {
        let (message, rest) = rest.split_at(usize::try_from(u32::from_be_bytes(*length)).expect("fits"));
        messages.push(serde_json::from_slice(message).expect("JSON"));
        bytes = rest;
    }
    messages
}

#[expect(clippy::too_many_lines, reason = "it is one table")]
async fn every_streaming_call_answers_as_the_table_says(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let stream = async |method: &str, headers: &[(&str, &str)], body: Vec<u8>| {
        let (status, bytes) = raw(&sandbox, method, "application/connect+json", headers, body).await;
        assert_eq!(status, StatusCode::OK, "{method}: a stream's status is always this");
        messages(&bytes)
    };
    let failed = async |method: &str, body: Vec<u8>| {
        let messages = stream(method, &[], body).await;
        messages.last().expect("an end")["error"]["code"].as_str().unwrap_or_default().to_owned()
    };
    let start = |process: Value| enveloped(0, &json!({ "process": process }).to_string());
    let told = stream(
        "process.Process/Start",
        &[],
        start(json!({ "cmd": "/bin/sh", "args": ["-c", "echo a; exit 3"] })),
    )
    .await;
    assert!(told[0]["event"]["start"]["pid"].is_number(), "{told:?}");
    assert_eq!(told[1]["event"]["data"]["stdout"], "YQo=", "{told:?}");
    let end = json!({ "exitCode": 3, "exited": true, "status": "exit status 3", "error": "exit status 3" });
    assert!(has(&told[2]["event"]["end"], &end), "{told:?}");
    assert_eq!((told.len(), &told[3]), (4, &json!({})));
    for (process, code) in [
        (json!({ "cmd": "none" }), "not_found"),
        (json!({ "cmd": "/etc" }), "invalid_argument"),
        (json!({ "cmd": "/bin/true", "cwd": "/none" }), "invalid_argument"),
        (json!({ "args": [] }), "invalid_argument"),
    ] {
        assert_eq!(failed("process.Process/Start", start(process.clone())).await, code, "{process}");
    }
    for body in [Vec::new(), b"{}".to_vec(), enveloped(1, "{}"), enveloped(0, "{}")[..6].to_vec()] {
        assert_eq!(failed("process.Process/Start", body).await, "invalid_argument");
    }
    let nobody = enveloped(0, r#"{"process":{"pid":999999}}"#);
    assert_eq!(failed("process.Process/Connect", nobody).await, "not_found");
    assert_eq!(
        failed("filesystem.Filesystem/WatchDir", enveloped(0, r#"{"path":"/none"}"#)).await,
        "not_found"
    );
    assert_eq!(
        failed("filesystem.Filesystem/WatchDir", enveloped(0, r#"{"path":"/etc/passwd"}"#)).await,
        "invalid_argument"
    );
    // A watch ends when its caller's time does; so does following, which leaves the process alone.
    let late = stream(
        "filesystem.Filesystem/WatchDir",
        &[("connect-timeout-ms", "200")],
        enveloped(0, r#"{"path":"/tmp"}"#),
    )
    .await;
    assert_eq!(late[0], json!({ "start": {} }));
    assert_eq!(late.last().expect("an end")["error"]["code"], "deadline_exceeded");
    input_in_a_stream(&sandbox, &failed).await;
    let alive = stream(
        "process.Process/Start",
        &[("keepalive-ping-interval", "1")],
        start(json!({ "cmd": "/bin/sleep", "args": ["1.5"] })),
    )
    .await;
    assert!(alive.contains(&json!({ "event": { "keepalive": {} } })), "{alive:?}");
}

async fn input_in_a_stream(sandbox: &Sandbox, failed: &impl AsyncFn(&str, Vec<u8>) -> String) {
    let process = Process { has_stdin: true, ..command(&["/usr/bin/head", "-c", "5"]) };
    let mut events = sandbox.agent.start(&process).await.expect("starts");
    let Ok(Some(Event::Started { pid })) = events.next().await else { panic!("no start") };
    let begin = enveloped(0, &json!({ "start": { "process": { "pid": pid } } }).to_string());
    let data = enveloped(0, r#"{"data":{"input":{"stdin":"aGVs"}}}"#);
    let pulse = enveloped(0, r#"{"keepalive":{}}"#);
    let rest = enveloped(0, r#"{"data":{"input":{"stdin":"bG8="}}}"#);
    assert_eq!(
        failed("process.Process/StreamInput", [begin.clone(), data.clone(), pulse, rest].concat()).await,
        ""
    );
    assert_eq!(super::bench::collect(events).await.stdout, "hello");
    assert_eq!(failed("process.Process/StreamInput", data).await, "invalid_argument");
    assert_eq!(failed("process.Process/StreamInput", begin).await, "not_found", "it has ended");
}

async fn a_long_listing_is_refused_not_cut(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    // In memory, where many files are cheap.
    let made = sandbox
        .python("import os\nos.mkdir('/tmp/many')\nfor n in range(20001): os.mknod(f'/tmp/many/{n}')")
        .await;
    assert_eq!(made.code, 0, "{made:?}");
    let listed: Result<Value, AgentError> =
        sandbox.agent.call_up_to(32 << 20, "/filesystem.Filesystem/ListDir", &of_path("/tmp/many")).await;
    let Err(AgentError::Refused { status, message }) = listed else { panic!("it was listed") };
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!(message.contains("20000"), "{message}");
}

async fn a_folder_swapped_for_a_link_leads_nowhere_new(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    // The agent swaps a folder for a link to another, as fast as it can, while a tree is removed.
    let script = "
mkdir -p /data/scratch/kept /data/scratch/tree && touch /data/scratch/kept/file
( cd /data/scratch/tree; while [ -e /data/scratch/tree ]; do mkdir -p a/b/c 2>/dev/null; touch a/b/c/file 2>/dev/null; mv a/b a/x 2>/dev/null; ln -s /data/scratch/kept a/b 2>/dev/null; rm -rf a/x; rm -f a/b 2>/dev/null; done ) &
";
    assert_eq!(sandbox.shell(script).await.code, 0);
    for _ in 0..200 {
        let removed: Result<Value, AgentError> =
            sandbox.agent.call("/filesystem.Filesystem/Remove", &of_path("/data/scratch/tree/a")).await;
        // It may fail, for the folder fills again meanwhile; it may not follow the link.
        drop(removed);
    }
    assert_eq!(sandbox.shell("ls /data/scratch/kept; rm -rf /data/scratch/tree").await.stdout, "file\n");
}
