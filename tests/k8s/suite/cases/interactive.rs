// SPDX-License-Identifier: Apache-2.0
//! Terminals, watched folders, trees and processes of a sandbox that is a pod: as on one machine
//! (`orchestrator/tests/suite/`), over orders that are signed. And what a cluster has not: open ports.

use super::lifecycle::id;
use crate::cluster::{Cluster, until};
use crate::postern::Postern;
use crate::screen::{Socket, begun, say, shown, type_in};
use postern_common::id::percent_encoded;
use serde_json::json;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal, and its process.
async fn terminal(postern: &Postern<'_>, sandbox: &str, query: &str) -> (Socket, i64) {
    let (url, authorization) = postern.caller();
    let authority = url.trim_start_matches("http://").to_owned();
    let address = format!("ws://{authority}/sandbox/{sandbox}/terminal?{query}");
    let mut request = address.into_client_request().expect("a request");
    request.headers_mut().insert("authorization", authorization.parse().expect("a header"));
    let stream = TcpStream::connect(&authority).await.expect("connects");
    let opened = timeout(PATIENCE, client_async(request, stream)).await.expect("in time");
    let mut socket = opened.unwrap_or_else(|error| panic!("{error}\n{}", postern.log())).0;
    let pid = begun(&mut socket).await;
    (socket, pid)
}

fn command(script: &str) -> String {
    format!("command={}", percent_encoded(script))
}

pub(crate) async fn a_terminal_of_a_pod_takes_input_sizes_and_signals_and_outlives_an_orchestrator(
    cluster: &Cluster,
) {
    let mut postern = Postern::start(cluster, "terminal").await;
    let sandbox = id(&postern.sandbox("alice", "c1"));
    let script = "stty size; read line; echo \"got $line\"; stty size; exec cat";
    let query = format!("{}&cols=100&rows=30", command(script));
    let (mut socket, _) = terminal(&postern, &sandbox, &query).await;
    shown(&mut socket, "30 100").await;
    say(&mut socket, &json!({ "resize": { "cols": 120, "rows": 50 } })).await;
    type_in(&mut socket, "hello\r").await;
    let seen = shown(&mut socket, "50 120").await;
    assert!(seen.contains("got hello"), "{seen:?}");
    say(&mut socket, &json!({ "signal": "SIGTERM" })).await;
    shown(&mut socket, "{\"exit\":{\"signal\":15}}").await;

    let script = "echo begun; read line; echo \"got $line\"; read code; exit $code";
    let (mut kept, pid) = terminal(&postern, &sandbox, &format!("{}&keep", command(script))).await;
    shown(&mut kept, "begun").await;
    postern.crash_orchestrator();
    drop(kept);
    postern.start_orchestrator();
    let (mut again, same) = terminal(&postern, &sandbox, &format!("pid={pid}")).await;
    assert_eq!(same, pid);
    type_in(&mut again, "once more\r").await;
    shown(&mut again, "got once more").await;
    type_in(&mut again, "7\r").await;
    shown(&mut again, "{\"exit\":{\"code\":7}}").await;
}

/// Follows what happens in a folder.
fn watch(postern: &Postern<'_>, sandbox: &str, folder: &str) -> BufReader<std::net::TcpStream> {
    let (url, key) = postern.caller();
    let authority = url.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(authority).expect("listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("sets");
    let head = format!("Host: {authority}\r\nAuthorization: {key}\r\nConnection: close\r\n");
    let request = format!("GET /sandbox/{sandbox}/watch/{folder}?recursive HTTP/1.1\r\n{head}\r\n");
    stream.write_all(request.as_bytes()).expect("writes");
    let mut reader = BufReader::new(stream);
    let answer = until_line(&mut reader, "\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    reader
}

/// Reads lines up to the one that begins so; all of them.
fn until_line(stream: &mut BufReader<std::net::TcpStream>, beginning: &str) -> String {
    let mut text = String::new();
    loop {
        let mut line = String::new();
        let read = stream.read_line(&mut line).unwrap_or_else(|error| panic!("{error} after {text}"));
        assert!(read > 0, "it ended before {beginning:?}: {text}");
        text.push_str(&line);
        if line.starts_with(beginning) {
            return text;
        }
    }
}

pub(crate) async fn a_pod_s_folders_are_watched_and_its_processes_listed_and_signalled(cluster: &Cluster) {
    let postern = Postern::start(cluster, "watch").await;
    let sandbox = id(&postern.sandbox("alice", "c1"));
    let mut watched = watch(&postern, &sandbox, "data/user");
    let script = "mkdir /data/user/new; echo x > /data/user/new/file; rm /data/user/new/file";
    postern.exec(&sandbox, &["sh", "-c", script]);
    let told = until_line(&mut watched, "event: removed");
    assert!(told.contains("event: created\ndata: {\"name\":\"new\"}"), "{told}");
    assert!(told.contains("{\"name\":\"new/file\"}"), "{told}");

    let (_socket, pid) = terminal(&postern, &sandbox, &command("exec sleep 1000")).await;
    let processes = format!("/sandbox/{sandbox}/processes");
    let listed = postern.call("GET", &processes, None).json();
    assert_eq!(listed["processes"][0]["pid"], pid, "{listed}");
    let signal = json!({ "signal": "SIGTERM" });
    let ended = postern.call("POST", &format!("{processes}/{pid}/signal"), Some(&signal));
    assert_eq!(ended.status, 204, "{ended:?}");
    until("it is listed no more", async || {
        (postern.call("GET", &processes, None).json()["processes"] == json!([])).then_some(())
    })
    .await;
    // A port would be on the loopback of a pod that is nobody's machine.
    let refused = postern.call("POST", &format!("/sandbox/{sandbox}/ports"), Some(&json!({})));
    assert_eq!((refused.status, refused.code().as_str()), (409, "state-conflict"), "{refused:?}");
}

pub(crate) async fn trees_go_into_a_pod_and_come_out_of_it_as_they_were(cluster: &Cluster) {
    let postern = Postern::start(cluster, "trees").await;
    let sandbox = id(&postern.sandbox("alice", "c1"));
    let here = tempfile::tempdir().expect("a folder");
    let at = |name: &str| here.path().join(name).to_str().expect("text").to_owned();
    fs::create_dir_all(at("tree/in")).expect("makes");
    fs::write(at("tree/in/run"), "#!").expect("writes");
    fs::set_permissions(at("tree/in/run"), fs::Permissions::from_mode(0o755)).expect("is ours");
    std::os::unix::fs::symlink("in/run", at("tree/link")).expect("links");
    let content: Vec<u8> = (0..3_000_000).map(|place| u8::try_from(place % 251).expect("fits")).collect();
    fs::write(at("tree/big.bin"), &content).expect("writes");
    let copy = |from: &str, to: &str| postern.postern(&["sandbox", "cp", from, to]);
    let up = copy(&at("tree"), &format!("{sandbox}:/data/user"));
    assert!(up.status.success(), "{up:?}\n{}", postern.log());
    let looked = "cd /data/user/tree; cat link; stat -c %a in/run; wc -c < big.bin";
    assert_eq!(postern.exec(&sandbox, &["sh", "-c", looked]), "#!755\n3000000\n");
    let down = copy(&format!("{sandbox}:/data/user/tree"), &at("back"));
    assert!(down.status.success(), "{down:?}\n{}", postern.log());
    assert!(fs::read(at("back/big.bin")).expect("reads") == content);
    assert_eq!(fs::read_to_string(at("back/link")).expect("reads"), "#!");
    // What leads out of it is not made here.
    let hostile = "mkdir /data/user/hostile; ln -s /etc /data/user/hostile/out";
    postern.exec(&sandbox, &["sh", "-c", hostile]);
    let refused = copy(&format!("{sandbox}:/data/user/hostile"), &at("hostile"));
    assert!(!refused.status.success() && fs::symlink_metadata(at("hostile/out")).is_err(), "{refused:?}");
}
