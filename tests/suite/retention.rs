// SPDX-License-Identifier: Apache-2.0
//! `postern retention` and the orchestrator's own run: what they say and what becomes of held users.

use crate::running::{Backend, Up, postern, programs};
use serde_json::{Value, json};
use std::process::Command;

#[test]
fn retention_is_run_by_command_and_by_the_job_and_holds_are_listed() {
    let backend = Backend::start();
    let up = Up::unwatched(&backend);
    let limits = json!({ "limits": { "retention": { "unused": "30d", "archived": "10d" } } });
    assert_eq!(up.call("POST", "/apply", Some(&limits)).status, 200);
    let folder = up.folder.path();
    std::fs::write(folder.join("report"), "of the year").expect("writes");
    up.told(&["files", "put", "alice", folder.join("report").to_str().expect("is text"), "report"]);

    let shown = postern(folder).args(["retention", "run", "--dry-run"]).output().expect("runs");
    assert_eq!(String::from_utf8_lossy(&shown.stdout).trim(), "no file's time has come");
    let told = up.told(&["retention", "run"]);
    assert_eq!(
        (&told["dry_run"], &told["tenants"], &told["failures"]),
        (&json!(false), &json!({}), &json!(0))
    );

    assert_eq!(up.told(&["retention", "hold", "alice", "--reason", "case 7"])["reason"], "case 7");
    let holds = up.told(&["retention", "holds"]);
    assert_eq!(
        (&holds["holds"][0]["user_id"], &holds["holds"][0]["reason"]),
        (&json!("alice"), &json!("case 7"))
    );
    let erased = up.call("DELETE", "/users/alice", None);
    assert_eq!(erased.json()["kept"][0]["count"], 1, "{erased:?}");
    up.done(&["retention", "release", "alice"]);
    assert_eq!(up.told(&["retention", "holds"])["holds"], json!([]));
    assert_eq!(up.call("DELETE", "/users/alice", None).json()["erased"]["files"], 1);

    the_job_takes_away_what_is_old(&up);
}

/// As the chart's `CronJob` does it, with the same database and store: what comes back and is old goes.
fn the_job_takes_away_what_is_old(up: &Up) {
    let folder = up.folder.path();
    up.told(&["files", "put", "alice", folder.join("report").to_str().expect("is text"), "report"]);
    let data = up.data();
    let script = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], timeout=30)\n\
        c.execute('update file_metadata set written_at_micros = 7, used_at_micros = 7')\nc.commit()";
    let aged = Command::new("python3").args(["-c", script]).arg(data.join("postern.db")).status();
    assert!(aged.expect("python3 runs").success());
    let run = |arguments: &[&str]| -> Value {
        let output = Command::new(programs().join("postern-orchestrator"))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("DATABASE_URL", format!("sqlite://{}/postern.db", data.display()))
            .env("POSTERN_MASTER_KEY_FILE", data.join("keys/master-key"))
            .env("STORAGE_BACKEND", "local")
            .env("STORAGE_BUCKET", data.join("files"))
            .arg("--data-dir")
            .arg(folder.join("job"))
            .args(["retention", "--json"])
            .args(arguments)
            .output()
            .expect("runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(said.lines().last().unwrap_or_default()).expect("is JSON")
    };
    let file = data.join("files/tenants/default/users/alice/files/report");
    let archived = json!({ "default": { "archived": { "files": 1, "bytes": 11 } } });
    let told = run(&["--dry-run"]);
    assert_eq!((&told["dry_run"], &told["tenants"]), (&json!(true), &archived), "{told}");
    assert!(file.exists(), "it was only told");
    let did = run(&[]);
    assert_eq!((&did["tenants"], &did["failures"]), (&archived, &json!(0)), "{did}");
    assert!(!file.exists());
    let kept = std::fs::read_to_string(data.join("files/tenants/default/users/alice/archive/report"));
    assert_eq!(kept.expect("lies in the archive"), "of the year");
    let lines = up.told_by("GET", "/audit?log=files&user_id=alice");
    let lines = lines["lines"].as_array().expect("a list").iter();
    let actions: Vec<_> = lines.map(|line| line["action"].as_str().expect("text")).collect();
    assert_eq!(actions.last(), Some(&"file.archived"), "{actions:?}");
    assert_eq!(run(&[])["tenants"], json!({}), "again changes nothing");
}
