// SPDX-License-Identifier: Apache-2.0
//! A user's files in a sandbox that is a pod: brought in before it runs, kept in step by the sync beside it,
//! and in the store when it is gone, however it went.

use super::lifecycle::{address, id};
use crate::cluster::{Cluster, until};
use crate::postern::Postern;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// What the shortest life of a token is, and some.
const FIRST_TOKEN: Duration = Duration::from_secs(65);

/// What the store has of alice's at a path; `None`: nothing.
fn stored(postern: &Postern<'_>, path: &str) -> Option<String> {
    let answer = postern.call("GET", &format!("/users/alice/files/{path}"), None);
    (answer.status == 200).then_some(answer.text)
}

fn store(postern: &Postern<'_>, path: &str, content: &Value) {
    let put = postern.call("PUT", &format!("/users/alice/files/{path}"), Some(content));
    assert!(put.status < 300, "{put:?}");
}

async fn is_stored(postern: &Postern<'_>, path: &str, content: &str) {
    until(&format!("`{path}` is in the store"), async || {
        (stored(postern, path).as_deref() == Some(content)).then_some(())
    })
    .await;
}

fn inside(postern: &Postern<'_>, sandbox: &str, script: &str) -> String {
    postern.exec(sandbox, &["sh", "-c", script])
}

fn status(postern: &Postern<'_>, sandbox: &str) -> Value {
    postern.call("GET", &format!("/sandbox/{sandbox}"), None).json()["status"].clone()
}

pub(crate) async fn files_are_in_a_pod_before_it_runs_kept_in_step_and_flushed_at_its_end(cluster: &Cluster) {
    let postern = Postern::start(cluster, "sync").await;
    let brought = json!({ "brought": "in" });
    store(&postern, "notes/a.json", &brought);
    let sandbox = id(&postern.sandbox("alice", "c1"));
    assert_eq!(inside(&postern, &sandbox, "cat /data/user/notes/a.json"), brought.to_string());
    let seen = inside(&postern, &sandbox, "ls -A /data; test -e /slot || echo nothing more");
    assert_eq!(seen, "scratch\nuser\nnothing more\n", "nor what the sync remembers");
    inside(&postern, &sandbox, "mkdir /data/user/new; echo made > /data/user/new/made");
    is_stored(&postern, "new/made", "made\n").await;
    // What others write is seen by a sandbox that runs.
    let later = json!({ "written": "later" });
    store(&postern, "notes/later.json", &later);
    let later = later.to_string();
    let look = "cat /data/user/notes/later.json 2>/dev/null || true";
    until("an upload is seen inside", async || (inside(&postern, &sandbox, look) == later).then_some(()))
        .await;
    // Written last, and its end at once.
    inside(&postern, &sandbox, "echo last > /data/user/last; rm /data/user/notes/a.json");
    postern.told(&["sandbox", "rm", &sandbox]);
    assert_eq!(stored(&postern, "last").as_deref(), Some("last\n"), "{}", postern.log());
    assert_eq!(stored(&postern, "notes/a.json"), None, "a deletion is a change too");
    let next = id(&postern.sandbox("alice", "c2"));
    let all = inside(&postern, &next, "cd /data/user; cat new/made last notes/later.json");
    assert_eq!(all, format!("made\nlast\n{later}"));
    let theirs = id(&postern.sandbox("bob", "c3"));
    assert_eq!(inside(&postern, &theirs, "ls -A /data/user"), "", "another user has none of it");
}

pub(crate) async fn a_pod_whose_sandbox_has_ended_is_still_flushed(cluster: &Cluster) {
    let postern = Postern::start(cluster, "ended").await;
    let sandbox = id(&postern.sandbox("alice", "c1"));
    let pod = address(&postern, &sandbox).await;
    inside(&postern, &sandbox, "echo first > /data/user/first");
    is_stored(&postern, "first", "first\n").await;
    inside(&postern, &sandbox, "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo $i > /data/user/n$i; done");
    cluster.node.kill_container(pod, "sandbox");
    until("the sandbox is over", async || (status(&postern, &sandbox) == "destroyed").then_some(())).await;
    for number in [1, 100, 200] {
        let written = stored(&postern, &format!("n{number}"));
        assert_eq!(written, Some(format!("{number}\n")), "{}", postern.log());
    }
}

pub(crate) async fn a_pause_takes_files_to_the_store_and_a_resume_brings_them_back(cluster: &Cluster) {
    let postern = Postern::start(cluster, "rest").await;
    let sandbox = id(&postern.sandbox("alice", "c1"));
    inside(&postern, &sandbox, "echo before > /data/user/before");
    for (what, then) in [("pause", "paused"), ("resume", "running")] {
        let answer = postern.call("POST", &format!("/sandbox/{sandbox}/{what}"), None);
        assert_eq!((answer.status, &answer.json()["status"]), (200, &json!(then)), "{}", postern.log());
        assert_eq!(stored(&postern, "before").as_deref(), Some("before\n"), "{what}");
    }
    assert_eq!(inside(&postern, &sandbox, "cat /data/user/before"), "before\n", "in another pod");
    inside(&postern, &sandbox, "echo after > /data/user/after");
    is_stored(&postern, "after", "after\n").await;
}

pub(crate) async fn a_sync_outlives_its_first_token_and_the_orchestrator_that_began_it(cluster: &Cluster) {
    let mut postern = Postern::start_with(cluster, "tokens", vec![("TOKEN_TTL", "60s")]).await;
    store(&postern, "there", &json!(1));
    let begun = Instant::now();
    let sandbox = id(&postern.sandbox("alice", "c1"));
    postern.crash_orchestrator();
    postern.start_orchestrator();
    inside(&postern, &sandbox, "echo soon > /data/user/soon");
    is_stored(&postern, "soon", "soon\n").await;
    until("its first token is over", async || (begun.elapsed() > FIRST_TOKEN).then_some(())).await;
    inside(&postern, &sandbox, "echo late > /data/user/late");
    is_stored(&postern, "late", "late\n").await;
    store(&postern, "later", &json!(2));
    let look = "cat /data/user/later 2>/dev/null || true";
    until("an upload is seen inside", async || (inside(&postern, &sandbox, look) == "2").then_some(())).await;
}
