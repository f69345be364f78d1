// SPDX-License-Identifier: Apache-2.0
//! Pausing and resuming at each isolation: by request, for want of use, over a restart.

use crate::bench::{Bench, new_folder, on_each_level, until};
use http::StatusCode;
use postern_orchestrator::runtime::Isolation;
use serde_json::{Value, json};

on_each_level!(
    a_paused_sandbox_stands_still_and_goes_on,
    a_repeat_resumes_and_a_destroy_needs_no_resume,
    an_unused_sandbox_is_paused_and_then_destroyed_with_its_files_kept,
    what_stands_still_or_runs_over_a_restart_is_as_was_written,
);

async fn open(level: Isolation) -> Bench {
    Bench::open(new_folder(), true, |config| config.isolation = Some(level)).await
}

async fn status(bench: &Bench, sandbox: &str) -> Value {
    bench.get(&format!("/sandbox/{sandbox}")).await.json()
}

/// What a counter inside has come to.
async fn count(bench: &Bench, sandbox: &str) -> u64 {
    bench.shell(sandbox, "cat /data/scratch/count").await.trim().parse().expect("a number")
}

const COUNTER: &str = "(i=0; while :; do i=$((i+1)); echo $i > /data/scratch/c; mv /data/scratch/c /data/scratch/count; sleep 0.01; done) >/dev/null 2>&1 & sleep 0.1";

async fn a_paused_sandbox_stands_still_and_goes_on(level: Isolation) {
    let bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    bench.shell(&sandbox, COUNTER).await;
    until("it counts", async || count(&bench, &sandbox).await > 0).await;
    let session = bench.told().last_session(&sandbox);
    for _ in 0..2 {
        let paused = bench.post(&format!("/sandbox/{sandbox}/pause"), Value::Null).await;
        assert_eq!(
            (paused.status, paused.field("status").as_str()),
            (StatusCode::OK, "paused"),
            "{}",
            paused.text
        );
    }
    for refused in [
        bench.post(&format!("/sandbox/{sandbox}/exec"), json!({ "command": "true" })).await,
        bench.post(&format!("/tokens/{sandbox}/refresh"), Value::Null).await,
    ] {
        assert_eq!((refused.status, refused.code().as_str()), (StatusCode::CONFLICT, "state-conflict"));
        assert!(refused.field("hint").contains("/resume"), "{}", refused.text);
    }
    let patched =
        bench.call(http::Method::PATCH, &format!("/sandbox/{sandbox}"), json!({ "ttl": "2h" })).await;
    assert_eq!(patched.status, StatusCode::OK, "a paused one can be extended: {}", patched.text);
    for _ in 0..2 {
        let resumed = bench.post(&format!("/sandbox/{sandbox}/resume"), Value::Null).await;
        assert_eq!(
            (resumed.status, resumed.field("status").as_str()),
            (StatusCode::OK, "running"),
            "{}",
            resumed.text
        );
    }
    let now = count(&bench, &sandbox).await;
    until("it goes on counting", async || count(&bench, &sandbox).await > now).await;
    let after = bench.told().last_session(&sandbox);
    assert!(after.expires_at > session.expires_at, "the session lives as long as the sandbox may now");
    bench.close().await;
}

async fn a_repeat_resumes_and_a_destroy_needs_no_resume(level: Isolation) {
    let bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    bench.shell(&sandbox, "echo kept > /data/user/note").await;
    let pause = format!("/sandbox/{sandbox}/pause");
    assert_eq!(bench.post(&pause, Value::Null).await.field("status"), "paused");
    let again = bench.post("/sandbox", json!({ "user_id": "alice", "conversation_id": "c1" })).await;
    assert_eq!((again.status, again.field("status").as_str()), (StatusCode::OK, "running"), "{}", again.text);
    assert_eq!(bench.shell(&sandbox, "cat /data/user/note").await, "kept\n");
    assert_eq!(bench.post(&pause, Value::Null).await.field("status"), "paused");
    let gone = bench.delete(&format!("/sandbox/{sandbox}")).await;
    assert_eq!((gone.status, gone.field("status").as_str()), (StatusCode::OK, "destroyed"));
    let late = bench.post(&format!("/sandbox/{sandbox}/resume"), Value::Null).await;
    assert_eq!((late.status, late.code().as_str()), (StatusCode::CONFLICT, "state-conflict"));
    let next = bench.sandbox("c1").await;
    assert_eq!(bench.shell(&next, "cat /data/user/note").await, "kept\n", "its files were kept");
    bench.close().await;
}

async fn an_unused_sandbox_is_paused_and_then_destroyed_with_its_files_kept(level: Isolation) {
    let bench = open(level).await;
    let template = json!({ "idle": "1s", "on_idle": "pause", "paused": "1s" });
    assert_eq!(bench.put("/templates/idle", template).await.status, StatusCode::CREATED);
    let body = json!({ "user_id": "alice", "conversation_id": "c1", "template": "idle" });
    let made = bench.post("/sandbox?wait=running", body).await.field("sandbox_id");
    bench.shell(&made, "echo kept > /data/user/note").await;
    until("it is destroyed", async || status(&bench, &made).await["status"] == "destroyed").await;
    assert_eq!(status(&bench, &made).await["reason"], "it was paused for too long");
    let events = bench.get(&format!("/events?sandbox_id={made}")).await.json();
    let changes: Vec<String> =
        events["events"].as_array().expect("a list").iter().map(Value::to_string).collect();
    assert!(changes.iter().any(|change| change.contains("\"paused\"")), "{changes:?}");
    let next = bench.sandbox("c2").await;
    assert_eq!(bench.shell(&next, "cat /data/user/note").await, "kept\n");
    bench.close().await;
}

async fn what_stands_still_or_runs_over_a_restart_is_as_was_written(level: Isolation) {
    let bench = open(level).await;
    let (still, moved, runs) =
        (bench.sandbox("c1").await, bench.sandbox("c2").await, bench.sandbox("c3").await);
    assert_eq!(bench.post(&format!("/sandbox/{still}/pause"), Value::Null).await.field("status"), "paused");
    // Written down as what it is not, as after an end between the two.
    let folder = bench.stop().await;
    let database = folder.path().join("data/postern.db");
    let script = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1])\n\
        c.execute(\"update sandboxes set status = 'paused' where id = ?\", sys.argv[2:3])\nc.commit()";
    let wrote = std::process::Command::new("/usr/bin/python3")
        .args(["-c", script])
        .arg(&database)
        .arg(&moved)
        .status();
    assert!(wrote.expect("python runs").success());

    let bench = Bench::open(folder, true, |config| config.isolation = Some(level)).await;
    assert_eq!(bench.orchestrator.reconciled().adopted.len(), 3);
    assert_eq!(bench.shell(&runs, "echo on").await, "on\n");
    for sandbox in [&still, &moved] {
        assert_eq!(status(&bench, sandbox).await["status"], "paused");
        let group = format!("*{sandbox}*");
        until("all of it stands still", async || {
            let found = std::process::Command::new("find").args(["/sys/fs/cgroup", "-name", &group]).output();
            let found = String::from_utf8(found.expect("find runs").stdout).expect("text");
            let frozen = |folder: &str| {
                let read =
                    |file: &str| std::fs::read_to_string(format!("{folder}/{file}")).unwrap_or_default();
                read("freezer.state").trim() == "FROZEN" || read("cgroup.events").contains("frozen 1")
            };
            found.lines().any(frozen)
        })
        .await;
        let resumed = bench.post(&format!("/sandbox/{sandbox}/resume"), Value::Null).await;
        assert_eq!(resumed.field("status"), "running", "{}", resumed.text);
        assert_eq!(bench.shell(sandbox, "echo on").await, "on\n");
    }
    bench.close().await;
}
