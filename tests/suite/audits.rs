// SPDX-License-Identifier: Apache-2.0
//! The audit logs as an auditor has them: what a line says of a file, exports that are checked by command,
//! and what is told when somebody changed an export, or the database itself.

use crate::running::{Backend, Up, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

/// SHA-256 of `hello` and the end of its line.
const HELLO: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

/// Has an agent write a file; its line in the log, which says who, from where, what and by which decision.
fn written(up: &Up) -> Value {
    let sandbox = up.sandbox("alice", "c1")["sandbox_id"].as_str().expect("an id").to_owned();
    let command = "echo hello > /data/scratch/f && mv /data/scratch/f /data/user/f";
    let exec = json!({ "command": command, "collect": true });
    let ran = up.call("POST", &format!("/sandbox/{sandbox}/exec"), Some(&exec)).json();
    assert_eq!(ran["exit_code"], 0, "{ran}");
    let line = wait_for("the file's line", || {
        let found = up.told_by("GET", "/audit?log=files&user_id=alice");
        found["lines"].as_array()?.iter().find(|line| line["path"] == "f").cloned()
    });
    for (field, wanted) in [
        ("action", json!("file.written")),
        ("actor", json!(format!("sandbox:{sandbox}"))),
        ("sandbox_id", json!(sandbox)),
        ("digest", json!(HELLO)),
        ("size_bytes", json!(6)),
    ] {
        assert_eq!(line[field], wanted, "{line}");
    }
    wait_for("the decision that its line names", || {
        let told = up.told_by("GET", "/decisions?limit=1000");
        let is_it = |decision: &Value| decision["id"] == line["decision_id"];
        told["decisions"].as_array()?.iter().any(is_it).then_some(())
    });
    line
}

/// Has what is over forgotten, which signs the ends of logs as well; the key that checks them.
fn signed(up: &Up) -> String {
    let made = up.call("POST", "/tenants", Some(&json!({ "name": "passing" })));
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(up.call("DELETE", "/tenants/passing", None).status, 204);
    let marks = wait_for("the end of the log to be signed", || {
        let told = up.told_by("GET", "/audit/marks?log=files");
        (!told["marks"].as_array()?.is_empty()).then_some(told)
    });
    marks["key"].as_str().expect("a key").to_owned()
}

#[test]
fn an_export_is_checked_by_command_and_what_was_changed_in_it_is_found() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let line = written(&up);
    let key = signed(&up);
    let export = up.done(&["audit", "export"]);
    let file = up.folder.path().join("audit.jsonl");
    let code = |text: &str, key: &str| {
        fs::write(&file, text).expect("writes");
        let file = file.to_str().expect("is text");
        up.postern(&["audit", "verify", "--file", file, "--key", key]).status.code()
    };
    assert_eq!(code(&export, &key), Some(0), "the control: it is whole");
    let its_line = export.lines().find(|line| line.contains("\"path\":\"f\"")).expect("is exported");
    for (what, bent) in [
        ("changed", export.replacen("\"path\":\"f\"", "\"path\":\"g\"", 1)),
        ("taken out", export.replacen(&format!("{its_line}\n"), "", 1)),
        ("put in twice", export.replacen(its_line, &format!("{its_line}\n{its_line}"), 1)),
        ("signed otherwise", export.replacen("\"signature\":\"", "\"signature\":\"00", 1)),
    ] {
        assert_ne!(bent, export, "{what}");
        assert_eq!(code(&bent, &key), Some(1), "{what}");
    }
    assert_eq!(code(&export, &"0".repeat(64)), Some(1), "another's signatures");

    let events = up.done(&["audit", "export", "--format", "ocsf", "--log", "files"]);
    let mut events = events.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let event = events.find(|event| event["file"]["path"] == "f").expect("is exported");
    assert_eq!((&event["class_uid"], &event["activity_id"]), (&json!(1001), &json!(3)), "{event}");
    assert_eq!(event["file"]["hashes"][0]["value"], HELLO);
    assert_eq!(event["device"]["uid"], line["sandbox_id"]);
    assert_eq!(event["metadata"]["correlation_uid"], line["decision_id"]);
    up.stop();
}

#[test]
fn what_the_owner_of_the_database_changed_is_found() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    written(&up);
    signed(&up);
    assert_eq!(up.told(&["audit", "verify"])["mistakes"], 0, "the control: it is whole");
    let script = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], timeout=30)\n\
        change = \"update file_audit_log set path = 'g' where path = 'f'\"\n\
        try: c.execute(change)\nexcept sqlite3.DatabaseError as error: print(error)\n\
        c.execute('drop trigger file_audit_log_unchanged')\nc.execute(change)\nc.commit()";
    let database = up.data().join("postern.db");
    let ran = Command::new("python3").args(["-c", script]).arg(database).output().expect("python3 runs");
    assert!(ran.status.success(), "{ran:?}");
    let told = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(told.contains("append-only"), "by the tables' own rules it cannot be: {told}");
    let verified = up.postern(&["audit", "verify"]);
    assert_eq!(verified.status.code(), Some(1), "{verified:?}");
    let told: Value = serde_json::from_slice(&verified.stdout).expect("JSON");
    assert_eq!(told["mistakes"], 1, "{told}");
    up.stop();
}
