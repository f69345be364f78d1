// SPDX-License-Identifier: Apache-2.0
//! Stopping to disk and waking, at each isolation: gVisor keeps memory, namespaces keep files.

use crate::bench::{Answer, Bench, new_folder, on_each_level, until};
use http::StatusCode;
use postern_orchestrator::runtime::Isolation;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

on_each_level!(
    what_is_stopped_wakes_with_the_next_call_under_a_new_token,
    an_unused_sandbox_is_stopped_and_destroyed_in_its_time,
    what_is_paused_can_be_stopped_and_what_is_stopped_destroyed,
    what_is_stopped_wakes_after_a_restart,
    an_end_in_the_middle_of_a_stop_or_a_wake_leaves_a_sandbox_that_wakes,
    a_picture_that_is_not_its_own_is_not_gone_on_from,
    what_the_machine_lost_of_a_stopped_sandbox_comes_back,
    a_snapshot_with_memory_goes_on_as_another_sandbox,
);

async fn open(level: Isolation) -> Bench {
    Bench::open(new_folder(), true, |config| config.isolation = Some(level)).await
}

/// A process that counts, and remembers what no file holds.
const COUNTER: &str = "cat > ~/count.py <<'END'\n\
import os, time\n\
secret = ''.join(['plainly', '-to-be', '-found']) * 20000\n\
count = 0\n\
while True:\n    count += 1\n    open('/data/scratch/c', 'w').write(f'{count} {os.getpid()}')\n    \
os.rename('/data/scratch/c', '/data/scratch/count')\n    time.sleep(0.01)\n\
END\n\
python3 -I -S ~/count.py >/dev/null 2>&1 & \n\
until [ -s /data/scratch/count ]; do sleep 0.05; done; echo kept > /data/user/note";

/// What the counter has come to, and its process.
async fn count(bench: &Bench, sandbox: &str) -> (u64, u64) {
    let text = bench.shell(sandbox, "cat /data/scratch/count").await;
    let (count, pid) = text.trim().split_once(' ').expect("two numbers");
    (count.parse().expect("a number"), pid.parse().expect("a number"))
}

async fn counts_on(bench: &Bench, sandbox: &str, before: (u64, u64)) {
    until("it counts on", async || count(bench, sandbox).await.0 > before.0 + 3).await;
    assert_eq!(count(bench, sandbox).await.1, before.1, "it is the same process");
}

async fn stop(bench: &Bench, sandbox: &str, level: Isolation) -> Answer {
    let stopped = bench.post(&format!("/sandbox/{sandbox}/stop"), Value::Null).await;
    assert_eq!(stopped.status, StatusCode::OK, "{}", stopped.text);
    assert_eq!((stopped.field("status").as_str(), stopped.field("kept").as_str()), ("stopped", kept(level)));
    stopped
}

const fn kept(level: Isolation) -> &'static str {
    if matches!(level, Isolation::Gvisor) { "memory" } else { "files" }
}

async fn status(bench: &Bench, sandbox: &str) -> Value {
    bench.get(&format!("/sandbox/{sandbox}")).await.json()
}

/// Every file below, with what it holds.
fn files(below: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(below).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(kind) if kind.is_file() => {
                found.push((entry.path().display().to_string(), fs::read(entry.path()).unwrap_or_default()));
            }
            _ => {}
        }
    }
    found
}

async fn what_is_stopped_wakes_with_the_next_call_under_a_new_token(level: Isolation) {
    let bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    bench.shell(&sandbox, COUNTER).await;
    let (before, old) = (count(&bench, &sandbox).await, bench.told().last_session(&sandbox));
    stop(&bench, &sandbox, level).await;
    assert!(!bench.told().accepts(&sandbox), "no token is accepted while it is stopped");
    let refused = bench.post(&format!("/tokens/{sandbox}/refresh"), Value::Null).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::CONFLICT, "state-conflict"));
    for (path, bytes) in files(bench.folder.path()) {
        let found = bytes.windows(19).any(|window| window == b"plainly-to-be-found");
        assert!(!found, "its memory lies open in {path}");
    }
    stop(&bench, &sandbox, level).await;
    let ran = bench.shell(&sandbox, "cat /data/user/note; date +%s").await;
    let (note, clock) = ran.split_once('\n').expect("two lines");
    assert_eq!(note, "kept");
    let now = jiff::Timestamp::now().as_second();
    assert!((now - clock.trim().parse::<i64>().expect("a number")).abs() < 5, "its clock is right: {clock}");
    assert_eq!(status(&bench, &sandbox).await["status"], "running");
    let new = bench.told().last_session(&sandbox);
    assert_eq!(new.tokens.len(), 1);
    assert!(old.tokens.iter().all(|old| new.tokens[0].jti != old.jti), "it has a new token, and only that");
    if level == Isolation::Gvisor {
        counts_on(&bench, &sandbox, before).await;
        let pictures = || fs::read_dir(bench.data().join("memory")).expect("lists").count();
        until("the picture is gone", async || pictures() == 0).await;
    }
    // A call about files wakes it as well, and so does being asked for.
    stop(&bench, &sandbox, level).await;
    let read = bench.get(&format!("/sandbox/{sandbox}/files/data/user/note")).await;
    assert_eq!((read.status, read.text.as_str()), (StatusCode::OK, "kept\n"));
    stop(&bench, &sandbox, level).await;
    let body = json!({ "user_id": "alice", "conversation_id": "c1" });
    let found = bench.post("/sandbox", body).await;
    assert_eq!(
        (found.status, found.field("sandbox_id")),
        (StatusCode::OK, sandbox.clone()),
        "{}",
        found.text
    );
    assert_eq!(found.field("status"), "running");
    stop(&bench, &sandbox, level).await;
    let resumed = bench.post(&format!("/sandbox/{sandbox}/resume"), Value::Null).await;
    assert_eq!(resumed.field("status"), "running", "{}", resumed.text);
    bench.close().await;
}

async fn an_unused_sandbox_is_stopped_and_destroyed_in_its_time(level: Isolation) {
    let bench = open(level).await;
    // That it is stopped is what happens unless its template says otherwise.
    let body = json!({ "user_id": "alice", "conversation_id": "c1", "idle": "1s" });
    let made = bench.post("/sandbox?wait=running", body).await.field("sandbox_id");
    bench.shell(&made, "echo kept > /data/user/note").await;
    let is_stopped = async || status(&bench, &made).await["kept"].is_string();
    until("it is stopped", is_stopped).await;
    let shown = status(&bench, &made).await;
    assert_eq!((&shown["status"], &shown["kept"]), (&json!("stopped"), &json!(kept(level))));
    assert_eq!(shown["idle_at"], shown["expires_at"], "it is kept until its end");
    assert_eq!(bench.shell(&made, "cat /data/user/note").await, "kept\n");
    until("it is stopped again", is_stopped).await;
    let patched = bench.call(http::Method::PATCH, &format!("/sandbox/{made}"), json!({ "ttl": "1s" })).await;
    assert_eq!(patched.status, StatusCode::OK, "{}", patched.text);
    until("it is destroyed", async || status(&bench, &made).await["status"] == "destroyed").await;
    assert_eq!(status(&bench, &made).await["reason"], "its time was over");
    assert_eq!(fs::read_dir(bench.data().join("memory")).expect("lists").count(), 0);
    let next = bench.sandbox("c2").await;
    assert_eq!(bench.shell(&next, "cat /data/user/note").await, "kept\n", "its files are kept");
    bench.close().await;
}

async fn what_is_paused_can_be_stopped_and_what_is_stopped_destroyed(level: Isolation) {
    let bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    bench.shell(&sandbox, COUNTER).await;
    let before = count(&bench, &sandbox).await;
    // What cannot be kept is said before anything is done.
    let only = bench.post(&format!("/sandbox/{sandbox}/stop"), json!({ "keep": "memory" })).await;
    if level == Isolation::Gvisor {
        assert_eq!(only.field("kept"), "memory", "{}", only.text);
    } else {
        assert_eq!((only.status, only.code().as_str()), (StatusCode::CONFLICT, "state-conflict"));
        counts_on(&bench, &sandbox, before).await;
    }
    let wrong = bench.post(&format!("/sandbox/{sandbox}/stop"), json!({ "keep": "all" })).await;
    assert_eq!(wrong.code(), "invalid-input");
    bench.shell(&sandbox, "true").await;
    assert_eq!(bench.post(&format!("/sandbox/{sandbox}/pause"), Value::Null).await.field("status"), "paused");
    stop(&bench, &sandbox, level).await;
    if level == Isolation::Gvisor {
        counts_on(&bench, &sandbox, before).await;
    }
    let files_only = bench.post(&format!("/sandbox/{sandbox}/stop"), json!({ "keep": "files" })).await;
    assert_eq!(files_only.field("kept"), "files");
    assert_eq!(
        bench.shell(&sandbox, "cat /data/user/note; pgrep -f '[c]ount.py' | wc -l").await,
        "kept\n0\n"
    );
    stop(&bench, &sandbox, level).await;
    assert_eq!(bench.delete(&format!("/sandbox/{sandbox}")).await.field("status"), "destroyed");
    assert!(bench.told().has_ended(&sandbox));
    assert_eq!(fs::read_dir(bench.data().join("memory")).expect("lists").count(), 0);
    let next = bench.sandbox("c1").await;
    assert_eq!(bench.shell(&next, "cat /data/user/note").await, "kept\n");
    bench.close().await;
}

async fn what_is_stopped_wakes_after_a_restart(level: Isolation) {
    let bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    bench.shell(&sandbox, COUNTER).await;
    let before = count(&bench, &sandbox).await;
    stop(&bench, &sandbox, level).await;
    let folder = bench.stop().await;
    let bench = Bench::open(folder, true, |config| config.isolation = Some(level)).await;
    assert_eq!(bench.orchestrator.reconciled().adopted.len(), 1);
    assert_eq!(status(&bench, &sandbox).await["kept"], kept(level));
    assert_eq!(bench.shell(&sandbox, "cat /data/user/note").await, "kept\n");
    if level == Isolation::Gvisor {
        counts_on(&bench, &sandbox, before).await;
    }
    bench.close().await;
}

/// Writes a status down as an end in the middle leaves it.
fn write_status(folder: &Path, sandbox: &str, status: &str) {
    let script = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1])\n\
        c.execute('update sandboxes set status = ? where id = ?', (sys.argv[3], sys.argv[2]))\nc.commit()";
    let wrote = std::process::Command::new("/usr/bin/python3")
        .args(["-c", script])
        .arg(folder.join("data/postern.db"))
        .args([sandbox, status])
        .status();
    assert!(wrote.expect("python runs").success());
}

async fn an_end_in_the_middle_of_a_stop_or_a_wake_leaves_a_sandbox_that_wakes(level: Isolation) {
    let bench = open(level).await;
    let (begun, waking, woken) =
        (bench.sandbox("c1").await, bench.sandbox("c2").await, bench.sandbox("c3").await);
    let mut before = Vec::new();
    for sandbox in [&begun, &waking, &woken] {
        bench.shell(sandbox, COUNTER).await;
        before.push(count(&bench, sandbox).await);
    }
    stop(&bench, &waking, level).await;
    let folder = bench.stop().await;
    // Nothing of the stop was done; nothing of the wake was done; all of the wake but its last step was.
    write_status(folder.path(), &begun, "stopped");
    write_status(folder.path(), &waking, "waking");
    write_status(folder.path(), &woken, "waking");
    let bench = Bench::open(folder, true, |config| config.isolation = Some(level)).await;
    for (sandbox, before) in [&begun, &waking, &woken].into_iter().zip(before) {
        until("it is stopped", async || {
            let shown = status(&bench, sandbox).await;
            shown["status"] == "stopped" && shown["kept"] == kept(level)
        })
        .await;
        assert!(!bench.told().accepts(sandbox), "no token is accepted while it is stopped");
        assert_eq!(bench.shell(sandbox, "cat /data/user/note").await, "kept\n");
        if level == Isolation::Gvisor {
            counts_on(&bench, sandbox, before).await;
        }
    }
    bench.close().await;
}

async fn a_picture_that_is_not_its_own_is_not_gone_on_from(level: Isolation) {
    if level != Isolation::Gvisor {
        return;
    }
    let bench = open(level).await;
    let (own, other) = (bench.sandbox("c1").await, bench.sandbox("c2").await);
    for sandbox in [&own, &other] {
        bench.shell(sandbox, COUNTER).await;
        stop(&bench, sandbox, level).await;
    }
    let folder = bench.data().join("memory");
    let file = |sandbox: &str, part: &str| {
        let files = fs::read_dir(&folder).expect("lists").map(|entry| entry.expect("an entry").path());
        let is_it = |path: &std::path::PathBuf| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            name.starts_with(sandbox) && name.ends_with(part)
        };
        files.into_iter().find(is_it).expect("is there")
    };
    for part in ["state", "map", "pages"] {
        fs::copy(file(&other, part), file(&own, part)).expect("copies");
    }
    // Its files are its own, and what became of the rest is told.
    assert_eq!(bench.shell(&own, "cat /data/user/note; pgrep -f '[c]ount.py' | wc -l").await, "kept\n0\n");
    let events = bench.get(&format!("/events?sandbox_id={own}")).await.text;
    assert!(events.contains("it woke with its files only"), "{events}");
    assert!(bench.shell(&other, "pgrep -f '[c]ount.py' | wc -l").await.trim() != "0", "the control");
    bench.close().await;
}

/// The disk of a stopped sandbox as a machine leaves it that stopped in the middle: without one of its files.
fn cut_off(bench: &Bench, sandbox: &str, lost: &str) {
    let slot = bench.folder.path().join("slots").join(sandbox);
    let image = slot.join("disk.img");
    if image.exists() {
        let order = format!("rm data/user/{lost}");
        let removed = std::process::Command::new("debugfs").args(["-w", "-R", &order]).arg(&image).output();
        assert!(removed.expect("runs").status.success());
    } else {
        fs::remove_file(slot.join("files/data/user").join(lost)).expect("is there");
    }
    fs::write(slot.join("run"), "another run of the machine").expect("writes");
}

async fn what_the_machine_lost_of_a_stopped_sandbox_comes_back(level: Isolation) {
    let bench = open(level).await;
    let first = bench.sandbox("c1").await;
    bench.shell(&first, "cd /data/user && for name in lost edited gone; do echo $name > $name; done").await;
    assert_eq!(bench.delete(&format!("/sandbox/{first}")).await.field("status"), "destroyed");
    let sandbox = bench.sandbox("c2").await;
    bench.shell(&sandbox, COUNTER).await;
    stop(&bench, &sandbox, level).await;
    // What is stopped is on the disk: neither mounted nor held, and noted to be so.
    let slot = bench.folder.path().join("slots").join(&sandbox);
    assert_eq!(fs::read(slot.join("run")).expect("reads"), b"settled\n");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("reads");
    assert!(!mounts.contains(&sandbox), "{mounts}");
    cut_off(&bench, &sandbox, "lost");
    assert_eq!(
        bench.shell(&sandbox, "cat /data/user/lost; pgrep -f '[c]ount.py' | wc -l").await,
        "lost\n0\n"
    );
    if level == Isolation::Gvisor {
        let events = bench.get(&format!("/events?sandbox_id={sandbox}")).await.text;
        assert!(events.contains("it woke with its files only"), "{events}");
    }
    // From then on what it does counts as before.
    bench.shell(&sandbox, "cd /data/user && echo more >> edited && rm gone").await;
    stop(&bench, &sandbox, level).await;
    assert_eq!(bench.delete(&format!("/sandbox/{sandbox}")).await.field("status"), "destroyed");
    let last = bench.sandbox("c3").await;
    assert_eq!(
        bench.shell(&last, "cd /data/user && ls && cat edited").await,
        "edited\nlost\nnote\nedited\nmore\n"
    );
    bench.close().await;
}

async fn a_snapshot_with_memory_goes_on_as_another_sandbox(level: Isolation) {
    let bench = open(level).await;
    let body = |conversation: &str, snapshot: Option<&str>, restore: Option<&str>| json!({ "user_id": "alice", "conversation_id": conversation, "snapshot": snapshot, "restore": restore });
    let first = bench.post("/sandbox?wait=running", body("c1", None, None)).await;
    let (sandbox, token) = (first.field("sandbox_id"), first.field("token"));
    bench.shell(&sandbox, COUNTER).await;
    let taken = bench.post(&format!("/sandbox/{sandbox}/snapshot"), json!({ "memory": true })).await;
    if level != Isolation::Gvisor {
        assert_eq!((taken.status, taken.code().as_str()), (StatusCode::CONFLICT, "state-conflict"));
        let files =
            bench.post(&format!("/sandbox/{sandbox}/snapshot"), Value::Null).await.field("snapshot_id");
        let wrong = bench.post("/sandbox?wait=running", body("c2", Some(&files), Some("memory"))).await;
        assert_eq!((wrong.status, wrong.code().as_str()), (StatusCode::CONFLICT, "state-conflict"));
        return bench.close().await;
    }
    assert_eq!(
        (taken.status, taken.field("kind").as_str()),
        (StatusCode::CREATED, "memory"),
        "{}",
        taken.text
    );
    let snapshot = taken.field("snapshot_id");
    for (path, bytes) in files(&bench.data()) {
        assert!(!bytes.windows(19).any(|window| window == b"plainly-to-be-found"), "it lies open in {path}");
    }
    let at_snapshot = count(&bench, &sandbox).await;
    counts_on(&bench, &sandbox, at_snapshot).await;
    let old = crate::bench::claims(&bench.orchestrator, &token);
    assert_eq!(bench.delete(&format!("/sandbox/{sandbox}")).await.status, StatusCode::OK);
    assert!(bench.told().has_ended(&sandbox), "its session is dead, and every gateway knows");
    let second = bench.post("/sandbox?wait=running", body("c2", Some(&snapshot), None)).await;
    assert_eq!(second.status, StatusCode::CREATED, "{}", second.text);
    let again = second.field("sandbox_id");
    let new = crate::bench::claims(&bench.orchestrator, &second.field("token"));
    assert_ne!((old.sandbox_id, old.jti), (new.sandbox_id, new.jti), "a new identity");
    counts_on(&bench, &again, at_snapshot).await;
    assert_eq!(bench.shell(&again, "echo $SANDBOX_ID $CONVERSATION_ID").await, format!("{again} c2\n"));
    // A second one from the same snapshot, with its files alone.
    let third = bench.post("/sandbox?wait=running", body("c3", Some(&snapshot), Some("files"))).await;
    let third = third.field("sandbox_id");
    assert_eq!(bench.shell(&third, "ls ~; pgrep -f '[c]ount.py' | wc -l").await, "count.py\n0\n");
    let theirs = json!({ "user_id": "bob", "conversation_id": "c4", "snapshot": snapshot });
    assert_eq!(bench.post("/sandbox", theirs).await.code(), "not-found", "another user's");
    assert_eq!(bench.delete(&format!("/snapshots/{snapshot}")).await.status, StatusCode::NO_CONTENT);
    assert_eq!(fs::read_dir(bench.data().join("snapshots")).expect("lists").count(), 0);
    bench.close().await;
}
