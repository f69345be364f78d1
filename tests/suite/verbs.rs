// SPDX-License-Identifier: Apache-2.0
//! Each verb of a sandbox's life as a person and a script have it, by the command line: what it does, what
//! it says, and that `--json` is the server's own answer.

use crate::running::{Backend, Up, keeps_memory, leave_out, postern};
use serde_json::{Value, json};

/// Runs `postern` for a person; what it says on standard output, and beside it.
fn said(up: &Up, arguments: &[&str]) -> (String, String) {
    let output = postern(up.folder.path()).args(arguments).output().expect("postern runs");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("is text");
    (text(output.stdout), text(output.stderr))
}

/// Whether pausing works here: only where a group can freeze.
fn pauses(up: &Up, sandbox: &str) -> bool {
    let answer = up.call("POST", &format!("/sandbox/{sandbox}/pause"), None);
    if answer.status == 200 {
        assert_eq!(up.call("POST", &format!("/sandbox/{sandbox}/resume"), None).status, 200);
        return true;
    }
    leave_out(&format!("nothing can be paused here: {}", answer.text));
    false
}

#[test]
fn a_sandbox_is_paused_stopped_resumed_and_removed_by_the_command_line() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let made = up.sandbox("alice", "verbs");
    let sandbox = made["sandbox_id"].as_str().expect("an id").to_owned();
    let status = || up.told(&["sandbox", "show", &sandbox])["status"].clone();
    let is = |told: &Value, wanted: &str| {
        assert_eq!((&told["sandbox_id"], &told["status"]), (&Value::from(sandbox.as_str()), &wanted.into()));
        assert_eq!(status(), wanted, "and so it is");
    };
    if pauses(&up, &sandbox) {
        is(&up.told(&["sandbox", "pause", &sandbox]), "paused");
        is(&up.told(&["sandbox", "resume", &sandbox]), "running");
        let (out, beside) = said(&up, &["sandbox", "pause", &sandbox]);
        assert_eq!((out.as_str(), beside), ("", format!("{sandbox} is paused\n")));
        said(&up, &["sandbox", "resume", &sandbox]);
    }
    let stopped = up.told(&["sandbox", "stop", &sandbox]);
    is(&stopped, "stopped");
    let kept = stopped["kept"].as_str().expect("says what").to_owned();
    assert!(["memory", "files"].contains(&kept.as_str()), "{stopped}");
    is(&up.told(&["sandbox", "resume", &sandbox]), "running");
    let (_, beside) = said(&up, &["sandbox", "stop", "--keep", "files", &sandbox]);
    assert_eq!(beside, format!("{sandbox} is stopped; kept is its files\n"));
    is(&up.told(&["sandbox", "resume", &sandbox]), "running");
    // Of several, each is a line.
    let other = up.sandbox("alice", "other")["sandbox_id"].as_str().expect("an id").to_owned();
    let removed = up.done(&["sandbox", "rm", &sandbox, &other]);
    let removed: Vec<Value> =
        removed.lines().map(|line| serde_json::from_str(line).expect("is JSON")).collect();
    let ids: Vec<&Value> = removed.iter().map(|one| &one["sandbox_id"]).collect();
    assert_eq!(ids, [sandbox.as_str(), other.as_str()]);
    assert!(removed.iter().all(|one| one["status"] == "destroyed"), "{removed:?}");
}

#[test]
fn snapshots_and_copies_say_what_was_done() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let made = up.sandbox("alice", "kept");
    let sandbox = made["sandbox_id"].as_str().expect("an id").to_owned();
    let file = up.folder.path().join("hello");
    std::fs::write(&file, "hello").expect("writes");
    let file = file.to_str().expect("is text");
    let inside = format!("{sandbox}:~/hello");
    let copied = up.told(&["sandbox", "cp", file, &inside]);
    assert_eq!((&copied["bytes"], &copied["to"]), (&5.into(), &inside.as_str().into()), "{copied}");
    assert_eq!(up.done(&["sandbox", "cp", &inside, "-"]), "hello", "the copy's own, and nothing else");
    let (out, beside) = said(&up, &["sandbox", "cp", file, &inside]);
    assert_eq!((out.as_str(), beside.as_str()), ("", "copied 5 B\n"));

    let taken = up.told(&["sandbox", "snapshot", &sandbox]);
    assert_eq!(taken["kind"], "files", "{taken}");
    let snapshot = taken["snapshot_id"].as_str().expect("an id").to_owned();
    let (printed, _) = said(&up, &["sandbox", "snapshot", &sandbox]);
    let second = printed.trim();
    let listed = up.told(&["sandbox", "snapshots", "--user", "alice"]);
    let mut ids: Vec<&str> = listed["snapshots"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["snapshot_id"].as_str())
        .collect();
    ids.sort_unstable();
    let mut wanted = [snapshot.as_str(), second];
    wanted.sort_unstable();
    assert_eq!(ids, wanted);
    let again = ["sandbox", "create", "--user", "alice", "--conversation", "again", "--snapshot", &snapshot];
    let again = up.told(&again);
    let again = again["sandbox_id"].as_str().expect("an id");
    assert_eq!(up.done(&["sandbox", "exec", again, "--", "cat", "hello"]), "hello");
    if keeps_memory(&made) {
        assert_eq!(up.told(&["sandbox", "snapshot", "--memory", &sandbox])["kind"], "memory");
    }
    let removed = up.told(&["sandbox", "snapshots", "--rm", &snapshot]);
    assert_eq!((&removed["snapshot_id"], &removed["removed"]), (&snapshot.as_str().into(), &true.into()));
    let (_, beside) = said(&up, &["sandbox", "snapshots", "--rm", second]);
    assert_eq!(beside, format!("{second} is removed\n"));
    let left = up.told(&["sandbox", "snapshots"]);
    let is_left = |id: &str| left.to_string().contains(id);
    assert!(!is_left(&snapshot) && !is_left(second), "{left}");
}

/// Makes two of a kind, removes one for a script and the other for a person, and compares what is said.
fn removes(
    up: &Up,
    words: &[&str],
    both: [&str; 2],
    told: impl Fn(&str) -> Value,
    says: impl Fn(&str) -> String,
) {
    let command = |name| [words, &[name]].concat();
    assert_eq!(up.told(&command(both[0])), told(both[0]));
    assert_eq!(said(up, &command(both[1])), (String::new(), says(both[1])));
    let again = up.postern(&command(both[0]));
    assert_eq!(again.status.code(), Some(4), "it is gone: {again:?}");
}

#[test]
fn whatever_is_removed_is_told_to_scripts_too() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let file = up.folder.path().join("file");
    std::fs::write(&file, "hello").expect("writes");
    for name in ["one", "other"] {
        up.told(&["files", "put", "alice", file.to_str().expect("is text"), name]);
        up.told(&["gateways", "add", name]);
        up.told(&["retention", "hold", name, "--reason", "a test"]);
        let secret = up.call("PUT", &format!("/secrets/{name}"), Some(&json!({ "value": "hidden" })));
        assert!(secret.status < 300, "{secret:?}");
    }
    let both = ["one", "other"];
    let named = |name: &str| json!({ "name": name, "removed": true });
    let gateway = |name: &str| format!("gateway {name} is revoked and cut off\n");
    removes(&up, &["gateways", "rm"], both, named, gateway);
    removes(&up, &["secret", "rm"], both, named, |name| format!("secret {name} is removed\n"));
    let released = |user: &str| json!({ "user_id": user, "released": true });
    let may_go = |user: &str| format!("files of {user} may go again\n");
    removes(&up, &["retention", "release"], both, released, may_go);
    let file = |path: &str| json!({ "user_id": "alice", "path": path, "removed": true });
    removes(&up, &["files", "rm", "alice"], both, file, |path| format!("{path} is removed\n"));

    let made = [(); 2].map(|()| up.told(&["key", "create", "--role", "developer"]));
    let ids = made.each_ref().map(|key| key["key_id"].as_str().expect("an id"));
    let key = |id: &str| json!({ "key_id": id, "removed": true });
    removes(&up, &["key", "rm"], ids, key, |id| format!("key {id} is revoked\n"));
    let whose = ["--user", "alice", "--conversation", "c1", "--operation", "support-desk/read"];
    let session = [&["sessions", "add", "--peer", "127.0.0.1"][..], &whose].concat();
    let made = [(); 2].map(|()| up.told(&session));
    let ids = made.each_ref().map(|session| session["session_id"].as_str().expect("an id"));
    let session = |id: &str| json!({ "session_id": id, "removed": true });
    removes(&up, &["sessions", "rm"], ids, session, |id| format!("session {id} has ended\n"));
}
