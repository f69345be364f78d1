// SPDX-License-Identifier: Apache-2.0
//! Commands and files in a sandbox that is a pod.

use super::lifecycle::{address, id};
use crate::cluster::{Cluster, until};
use crate::following::{COUNT, Follower};
use crate::postern::Postern;
use crate::running::Answer;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Kills of the orchestrator while a command runs.
const KILLS: usize = 3;

fn collected(postern: &Postern<'_>, sandbox: &str, body: &Value) -> Answer {
    postern.call("POST", &format!("/sandbox/{sandbox}/exec?collect=true"), Some(body))
}

/// A command's exit code and outputs.
fn run(postern: &Postern<'_>, sandbox: &str, script: &str) -> Value {
    let answer = collected(postern, sandbox, &json!({ "command": ["sh", "-c", script] }));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

pub(crate) async fn a_command_is_followed_through_kills_of_the_orchestrator(cluster: &Cluster) {
    let mut postern = Postern::start(cluster, "follow").await;
    let sandbox = id(&postern.sandbox("alice", "c1"));
    let mut follower = Follower::default();
    let mut stream = follower.open(&postern.caller(), &sandbox, COUNT);
    for round in 0..KILLS {
        // Each time so many lines further, so that the kill comes at another moment.
        let until = follower.stdout.len() + 20 + round * 57;
        follower.read(&mut stream, |follower| follower.stdout.len() > until);
        assert!(follower.stdout.len() > until, "round {round}: the stream ended by itself");
        postern.crash_orchestrator();
        // What was under way when it was killed still counts.
        follower.read(&mut stream, |_| false);
        postern.start_orchestrator();
        stream = follower.open(&postern.caller(), &sandbox, COUNT);
    }
    assert_eq!(run(&postern, &sandbox, "touch /data/scratch/stop")["exit_code"], 0);
    follower.read(&mut stream, |follower| follower.code.is_some());
    assert_eq!(follower.code, Some(7), "{}", postern.log());
    follower.has_all();
    // What is gone, or never was, is told.
    let unknown = postern.call("GET", &format!("/sandbox/{sandbox}/exec/nobody"), None);
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "not-found"));
}

pub(crate) async fn a_pod_s_commands_keep_to_what_a_local_sandbox_s_do(cluster: &Cluster) {
    let postern = Postern::start(cluster, "inside").await;
    let sandbox = id(&postern.sandbox("alice", "c1"));
    let both = run(&postern, &sandbox, "echo out; echo err >&2; exit 7");
    assert_eq!(
        both,
        json!({ "exit_code": 7, "timed_out": false, "truncated": false, "stdout": "out\n", "stderr": "err\n" })
    );
    let large = run(&postern, &sandbox, "head -c 3000000 /dev/zero | tr '\\0' y");
    assert_eq!(large["stdout"].as_str().map(str::len), Some(3_000_000), "many times the buffers on the way");
    let told = collected(&postern, &sandbox, &json!({ "command": ["cat"], "stdin": "hello" }));
    assert_eq!(told.json()["stdout"], "hello", "{told:?}");
    let late =
        collected(&postern, &sandbox, &json!({ "command": "sleep 1000 & sleep 1000", "timeout": "300ms" }));
    assert_eq!(late.json()["timed_out"], true, "{late:?}");
    let sleeps = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 100[0]'";
    until("its children are gone", async || {
        (run(&postern, &sandbox, sleeps)["stdout"] == "0\n").then_some(())
    })
    .await;
    let missing = collected(&postern, &sandbox, &json!({ "command": ["no-such-program"] }));
    assert!(missing.status >= 400 && missing.text.contains("no-such-program"), "{missing:?}");

    // Only a pod's own environment, and nothing of its cluster.
    let env = collected(&postern, &sandbox, &json!({ "command": ["env"] })).json();
    let lines = env["stdout"].as_str().expect("text").lines();
    let names: BTreeSet<_> = lines.filter_map(|line| line.split_once('=')).map(|it| it.0).collect();
    let expected = ["CONVERSATION_ID", "DESK_LANGUAGE", "GATEWAY_URL", "HOME", "PATH", "SANDBOX_ID", "USER"];
    assert_eq!(names, BTreeSet::from(expected));
    let orphans = "for i in 1 2 3; do (sh -c '(sleep 0.1; echo x >> /data/scratch/ended) &'); done";
    assert_eq!(run(&postern, &sandbox, orphans)["exit_code"], 0);
    until("the orphans have ended", async || {
        (run(&postern, &sandbox, "cat /data/scratch/ended")["stdout"] == "x\nx\nx\n").then_some(())
    })
    .await;
    let zombies = "grep -l 'State:.Z' /proc/[0-9]*/status | wc -l";
    until("and are reaped", async || (run(&postern, &sandbox, zombies)["stdout"] == "0\n").then_some(()))
        .await;
}

pub(crate) async fn files_of_a_pod_are_written_read_and_not_reached_through_links(cluster: &Cluster) {
    let postern = Postern::start(cluster, "files").await;
    let sandbox = id(&postern.sandbox("alice", "c1"));
    let path = |name: &str| format!("/sandbox/{sandbox}/files/data/user/{name}");
    let content = json!({ "some": "content" });
    let put = postern.call("PUT", &path("notes/a.json"), Some(&content));
    assert!(put.status < 300, "{put:?}");
    assert_eq!(postern.call("GET", &path("notes/a.json"), None).json(), content);
    assert_eq!(run(&postern, &sandbox, "cat /data/user/notes/a.json")["stdout"], content.to_string());
    run(&postern, &sandbox, "ln -s /proc/self/environ /data/user/leak; echo inside > /data/user/made");
    assert_eq!(postern.call("GET", &path("made"), None).text, "inside\n");
    assert_ne!(postern.call("GET", &path("leak"), None).status, 200, "nothing of `/proc` is served");
    assert!(postern.call("DELETE", &path("made"), None).status < 300);
    assert_eq!(postern.call("GET", &path("made"), None).status, 404);
    // Another's sandbox has its own.
    let other = id(&postern.sandbox("bob", "c2"));
    assert_ne!(address(&postern, &sandbox).await, address(&postern, &other).await);
    let theirs = postern.call("GET", &format!("/sandbox/{other}/files/data/user/notes/a.json"), None);
    assert_eq!(theirs.status, 404, "{theirs:?}");
}
