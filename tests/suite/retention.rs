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
    up.told(&["retention", "release", "alice"]);
    assert_eq!(up.told(&["retention", "holds"])["holds"], json!([]));
    assert_eq!(up.call("DELETE", "/users/alice", None).json()["erased"]["files"], 1);

    // As the chart's CronJob does it, on the same database: nothing is left whose time could come.
    let data = up.data();
    let output = Command::new(programs().join("postern-orchestrator"))
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("DATABASE_URL", format!("sqlite://{}/postern.db", data.display()))
        .env("POSTERN_MASTER_KEY_FILE", data.join("keys/master-key"))
        .arg("--data-dir")
        .arg(folder.join("job"))
        .args(["retention", "--json", "--dry-run"])
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let last: Value = serde_json::from_str(said.lines().last().unwrap_or_default()).expect("is JSON");
    assert_eq!((&last["dry_run"], &last["failures"]), (&json!(true), &json!(0)));
}
