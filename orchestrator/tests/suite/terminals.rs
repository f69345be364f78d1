// SPDX-License-Identifier: Apache-2.0
//! Terminals over a WebSocket, at each isolation: input, sizes, signals, coming back to one; and the tickets
//! with which a page in a browser opens one.

use crate::bench::{Bench, PATIENCE, new_folder, on_each_level, until};
use crate::screen::{Socket, begun, say, shown, type_in};
use http::StatusCode;
use postern_orchestrator::runtime::Isolation;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

on_each_level!(
    a_terminal_takes_input_sizes_and_signals,
    a_terminal_that_is_kept_is_come_back_to_and_another_is_hung_up,
    a_ticket_opens_one_terminal_of_its_sandbox_once,
);

async fn open(level: Isolation) -> Bench {
    Bench::open(new_folder(), true, |config| config.isolation = Some(level)).await
}

/// Where a terminal with this command is opened; `more` goes behind.
fn address(sandbox: &str, command: &str, more: &str) -> String {
    let command: String = url::form_urlencoded::byte_serialize(command.as_bytes()).collect();
    format!("/sandbox/{sandbox}/terminal?command={command}{more}")
}

/// Opens a WebSocket, or says how that was refused.
async fn open_socket(bench: &Bench, path: &str, key: Option<&str>) -> Result<Socket, (StatusCode, String)> {
    let address = bench.address();
    let mut request = format!("ws://{address}{path}").into_client_request().expect("a request");
    if let Some(key) = key {
        let bearer = format!("Bearer {key}").parse().expect("a header");
        request.headers_mut().insert("authorization", bearer);
    }
    let stream = TcpStream::connect(address).await.expect("connects");
    match timeout(PATIENCE, client_async(request, stream)).await.expect("in time") {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(refused)) => {
            let body = refused.body().as_deref().unwrap_or_default();
            let problem: Value = serde_json::from_slice(body).expect("a problem");
            Err((refused.status(), problem["code"].as_str().expect("a code").to_owned()))
        }
        Err(error) => panic!("{error}"),
    }
}

/// A terminal of the admin's, and its process.
async fn terminal(bench: &Bench, path: &str) -> (Socket, i64) {
    let mut socket = open_socket(bench, path, Some(&bench.key)).await.expect("opens");
    let pid = begun(&mut socket).await;
    (socket, pid)
}

/// Whether a process of a sandbox is listed.
async fn is_there(bench: &Bench, sandbox: &str, pid: i64) -> bool {
    let listed = bench.get(&format!("/sandbox/{sandbox}/processes")).await.json();
    listed["processes"].as_array().expect("a list").iter().any(|process| process["pid"] == pid)
}

async fn a_terminal_takes_input_sizes_and_signals(level: Isolation) {
    let bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    let script = "stty size; read line; echo \"got $line\"; stty size; exec cat";
    let (mut socket, _) = terminal(&bench, &address(&sandbox, script, "&cols=100&rows=30")).await;
    shown(&mut socket, "30 100").await;
    say(&mut socket, &json!({ "resize": { "cols": 120, "rows": 50 } })).await;
    type_in(&mut socket, "hello\r").await;
    let seen = shown(&mut socket, "50 120").await;
    assert!(seen.contains("got hello"), "{seen:?}");
    say(&mut socket, &json!({ "signal": "SIGTERM" })).await;
    shown(&mut socket, "{\"exit\":{\"signal\":15}}").await;
    // What is no process of it, or no size, is a problem and no socket.
    for (more, code) in [("?pid=99999", "not-found"), ("?cols=none", "invalid-input")] {
        let path = format!("/sandbox/{sandbox}/terminal{more}");
        let refused = open_socket(&bench, &path, Some(&bench.key)).await.expect_err("is refused");
        assert_eq!(refused.1, code, "{more}");
    }
    bench.close().await;
}

async fn a_terminal_that_is_kept_is_come_back_to_and_another_is_hung_up(level: Isolation) {
    let bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    let script = "echo begun; read line; echo \"got $line\"; read code; exit $code";
    let (mut kept, pid) = terminal(&bench, &address(&sandbox, script, "&keep")).await;
    let (mut other, others) = terminal(&bench, &address(&sandbox, script, "")).await;
    for socket in [&mut kept, &mut other] {
        shown(socket, "begun").await;
        socket.close(None).await.expect("closes");
    }
    drop((kept, other));
    until("who was not kept is hung up", async || !is_there(&bench, &sandbox, others).await).await;
    assert!(is_there(&bench, &sandbox, pid).await, "and who was is not");
    let back = format!("/sandbox/{sandbox}/terminal?pid={pid}");
    for (typed, answer) in [("once more\r", "got once more"), ("7\r", "{\"exit\":{\"code\":7}}")] {
        let (mut again, same) = terminal(&bench, &back).await;
        assert_eq!(same, pid);
        type_in(&mut again, typed).await;
        shown(&mut again, answer).await;
    }
    let gone = open_socket(&bench, &back, Some(&bench.key)).await.expect_err("is refused");
    assert_eq!(gone.1, "not-found", "it has ended");
    bench.close().await;
}

async fn ticket(bench: &Bench, sandbox: &str, key: &str) -> String {
    let made =
        bench.call_as(key, http::Method::POST, &format!("/sandbox/{sandbox}/tickets"), json!({})).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    assert_eq!(made.json()["good_for_seconds"], 30);
    made.field("ticket")
}

/// A ticket of the installation's own that is good for so many seconds from now on.
fn made_anew(bench: &Bench, ticket: &str, nonce: &str, seconds: i64) -> String {
    let mut parts = ticket.split('.');
    let (key, sandbox) = (parts.next().expect("a key"), parts.next().expect("a sandbox"));
    let until = postern_common::clock::now().as_second() + seconds;
    let said = format!("{key}.{sandbox}.{until}.{nonce}");
    let signature = bench.orchestrator.keys().digest(format!("ticket {said}").as_bytes());
    format!("{said}.{signature}")
}

async fn a_ticket_opens_one_terminal_of_its_sandbox_once(level: Isolation) {
    let bench = open(level).await;
    let (sandbox, other) = (bench.sandbox("c1").await, bench.sandbox("c2").await);
    let with = |sandbox: &str, ticket: &str| address(sandbox, "echo here", &format!("&ticket={ticket}"));
    let refused = async |path: String, why: &str| {
        let refused = open_socket(&bench, &path, None).await.expect_err(why);
        assert_eq!(refused, (StatusCode::UNAUTHORIZED, "key-invalid".to_owned()), "{why}");
    };
    let opens = async |path: String| {
        let mut socket = open_socket(&bench, &path, None).await.expect("opens");
        shown(&mut socket, "{\"exit\":{\"code\":0}}").await;
    };
    let first = ticket(&bench, &sandbox, &bench.key).await;
    refused(with(&other, &first), "is another sandbox's").await;
    opens(with(&sandbox, &first)).await;
    refused(with(&sandbox, &first), "was used").await;

    let second = ticket(&bench, &sandbox, &bench.key).await;
    let forged = second.replace(&sandbox, &other);
    assert_ne!(forged, second);
    refused(with(&other, &forged), "is signed for another").await;
    refused(with(&sandbox, second.rsplit_once('.').expect("a signature").0), "is not signed").await;
    refused(with(&sandbox, ""), "is none").await;
    refused(with(&sandbox, &made_anew(&bench, &second, "aa", -1)), "is late").await;
    opens(with(&sandbox, &made_anew(&bench, &second, "bb", 30))).await;
    // A ticket is for a socket, and good for no other call.
    let show = format!("/sandbox/{sandbox}?ticket={second}");
    let plain = bench.call_as("", http::Method::GET, &show, Value::Null).await;
    assert_eq!(plain.status, StatusCode::UNAUTHORIZED, "{}", plain.text);
    opens(with(&sandbox, &second)).await;

    // It is worth no more than the key that asked for it.
    let key = bench.key("admin", "default").await;
    let theirs = ticket(&bench, &sandbox, &key).await;
    let id = key.split('_').nth(1).expect("its id");
    assert_eq!(bench.delete(&format!("/keys/{id}")).await.status, StatusCode::NO_CONTENT);
    refused(with(&sandbox, &theirs), "is a removed key's").await;
    bench.close().await;
}
