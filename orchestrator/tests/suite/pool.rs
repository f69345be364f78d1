// SPDX-License-Identifier: Apache-2.0
//! Sandboxes that are kept ready, at each isolation: claimed, replaced, never used twice.

use crate::bench::{Bench, new_folder, on_each_level, until};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use postern_orchestrator::runtime::Isolation;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

on_each_level!(
    a_warm_sandbox_becomes_its_users_without_a_restart,
    what_was_claimed_never_comes_back,
    an_empty_pool_makes_them_as_ever,
    a_changed_template_replaces_what_was_ready_and_a_removed_one_ends_it,
    the_next_orchestrator_goes_on_with_what_is_ready,
    a_dead_one_is_passed_over_and_replaced,
    start_commands_run_before_a_sandbox_counts_as_running,
);

struct Pool {
    bench: Bench,
    admin: SocketAddr,
}

impl Pool {
    async fn open(level: Isolation) -> Self {
        Self::on(new_folder(), level).await
    }

    async fn on(folder: Arc<TempDir>, level: Isolation) -> Self {
        let bench = Bench::open(folder, true, |config| config.isolation = Some(level)).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let admin = listener.local_addr().expect("bound");
        bench.orchestrator.serve_admin(listener);
        Self { bench, admin }
    }

    /// Has this many kept ready of the template `warm`, and waits until they are.
    async fn fill(&self, count: u64) -> BTreeSet<String> {
        self.put(json!({ "warm_pool": count, "memory": "128MiB", "env": { "OF": "template" } })).await;
        self.full(count).await
    }

    async fn put(&self, template: Value) {
        let put = self.bench.put("/templates/warm", template).await;
        assert!(put.status.is_success(), "{}", put.text);
    }

    async fn full(&self, count: u64) -> BTreeSet<String> {
        until("the shelf is full", async || {
            self.metric("warm_pool_available{template=\"warm\"}").await == count
        })
        .await;
        folders(self.bench.folder.path())
    }

    async fn metric(&self, name: &str) -> u64 {
        let stream = TcpStream::connect(self.admin).await.expect("connects");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("speaks HTTP");
        let request =
            http::Request::get("/metrics").header("host", "localhost").body(Empty::<bytes::Bytes>::new());
        let answer = async {
            let answer = sender.send_request(request.expect("a request")).await.expect("is answered");
            answer.into_body().collect().await.expect("is whole").to_bytes()
        };
        let bytes = tokio::select! { bytes = answer => bytes, _ = connection => panic!("broke") };
        let text = String::from_utf8(bytes.to_vec()).expect("is text");
        let line = text.lines().find_map(|line| line.strip_prefix("postern_")?.strip_prefix(name));
        line.map_or(0, |value| value.trim().parse().expect("a number"))
    }

    /// A sandbox for this conversation, without waiting for more than the answer.
    async fn create(&self, conversation: &str, env: Value) -> Value {
        let body =
            json!({ "user_id": "alice", "conversation_id": conversation, "template": "warm", "env": env });
        let made = self.bench.post("/sandbox", body).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
        made.json()
    }
}

/// The sandboxes that there is something of.
fn folders(at: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(at.join("run")).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("sandbox-")).collect()
}

fn processes(folder: &Path, sandbox: &str) -> BTreeSet<i32> {
    postern_shim::processes::that_name(&folder.join("run").join(sandbox)).into_iter().collect()
}

fn id(sandbox: &Value) -> String {
    sandbox["sandbox_id"].as_str().expect("an id").to_owned()
}

async fn a_warm_sandbox_becomes_its_users_without_a_restart(level: Isolation) {
    let pool = Pool::open(level).await;
    // The user has a file from an earlier conversation.
    pool.put(json!({ "memory": "128MiB" })).await;
    let before = id(&pool.create("c0", json!({})).await);
    until("it runs", async || {
        pool.bench.get(&format!("/sandbox/{before}")).await.field("status") == "running"
    })
    .await;
    pool.bench.shell(&before, "echo mine > /data/user/note").await;
    pool.bench.delete(&format!("/sandbox/{before}")).await;

    let ready = pool.fill(2).await;
    assert_eq!(ready.len(), 2);
    let folder = pool.bench.folder.path();
    let lists: Vec<_> = ready.iter().map(|name| (name.clone(), processes(folder, name))).collect();
    assert!(lists.iter().all(|(_, running)| !running.is_empty()));
    let made = pool.create("c1", json!({ "OF_CALL": "yes" })).await;
    assert_eq!(made["status"], "running", "a warm one needs no waiting: {made}");
    assert_eq!(made["isolation"], level.as_str());
    assert!(ready.contains(&id(&made)), "{made} is none of {ready:?}");
    let claimed = lists.iter().find(|(name, _)| *name == id(&made)).expect("is one of them");
    assert_eq!(processes(folder, &id(&made)), claimed.1, "the very processes go on");
    let said = "echo $SANDBOX_ID $CONVERSATION_ID $OF $OF_CALL; cat /data/user/note";
    let said = pool.bench.shell(&id(&made), said).await;
    assert_eq!(said, format!("{} c1 template yes\nmine\n", id(&made)));
    assert!(!pool.bench.told().last_session(&id(&made)).tokens.is_empty());
    assert_eq!(pool.metric("warm_pool_claims_total{template=\"warm\",result=\"hit\"}").await, 1);
    for start in ["warm", "cold"] {
        let name = format!("sandbox_startup_seconds_count{{runtime=\"local\",start=\"{start}\"}}");
        assert_eq!(pool.metric(&name).await, 1, "{start}");
    }
    pool.bench.close().await;
}

async fn what_was_claimed_never_comes_back(level: Isolation) {
    let pool = Pool::open(level).await;
    let mut used = BTreeSet::new();
    for round in 0..3 {
        let ready = pool.fill(1).await;
        assert!(ready.is_disjoint(&used), "round {round}: {ready:?} were used before: {used:?}");
        let made = id(&pool.create(&format!("c{round}"), json!({})).await);
        assert!(ready.contains(&made));
        pool.bench.shell(&made, "echo a trace > /data/scratch/trace; echo one > ~/two").await;
        assert_eq!(pool.bench.delete(&format!("/sandbox/{made}")).await.status, StatusCode::OK);
        used.insert(made);
    }
    pool.full(1).await;
    let fresh = id(&pool.create("c9", json!({})).await);
    assert!(!used.contains(&fresh));
    assert_eq!(pool.bench.shell(&fresh, "ls -A /data/scratch ~").await.matches("trace").count(), 0);
    pool.bench.close().await;
}

async fn an_empty_pool_makes_them_as_ever(level: Isolation) {
    let pool = Pool::open(level).await;
    pool.fill(1).await;
    let create = |number: usize| pool.create_waiting(number);
    let made = futures_util::future::join_all((0..4).map(create)).await;
    let ids: BTreeSet<String> = made.iter().map(id).collect();
    assert_eq!(ids.len(), 4);
    for sandbox in &made {
        assert_eq!(sandbox["status"], "running", "{sandbox}");
        let told = pool.bench.shell(&id(sandbox), "echo $CONVERSATION_ID").await;
        assert_eq!(told.trim(), sandbox["conversation_id"].as_str().expect("text"));
    }
    let count = async |result: &str| {
        pool.metric(&format!("warm_pool_claims_total{{template=\"warm\",result=\"{result}\"}}")).await
    };
    let (hits, misses) = (count("hit").await, count("miss").await);
    assert!(hits >= 1 && misses >= 1 && hits + misses == 4, "{hits} hits, {misses} misses");
    pool.bench.close().await;
}

impl Pool {
    async fn create_waiting(&self, number: usize) -> Value {
        let body = json!({ "user_id": "alice", "conversation_id": format!("c{number}"), "template": "warm" });
        let made = self.bench.post("/sandbox?wait=running", body).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
        made.json()
    }
}

async fn a_changed_template_replaces_what_was_ready_and_a_removed_one_ends_it(level: Isolation) {
    let pool = Pool::open(level).await;
    let old = pool.fill(2).await;
    // What is told at claim time changes nothing of what is ready.
    pool.put(json!({ "warm_pool": 2, "memory": "128MiB", "env": { "OF": "another" } })).await;
    let made = pool.create("c1", json!({})).await;
    assert!(old.contains(&id(&made)));
    assert_eq!(pool.bench.shell(&id(&made), "echo $OF").await, "another\n");
    // Another shape does.
    pool.put(json!({ "warm_pool": 1, "memory": "160MiB" })).await;
    until("the old ones are gone", async || {
        let there = folders(pool.bench.folder.path());
        old.iter().all(|name| *name == id(&made) || !there.contains(name))
    })
    .await;
    pool.full(1).await;
    let larger = pool.create("c2", json!({})).await;
    assert_eq!(larger["limits"]["memory"]["value"], 160 << 20, "{larger}");
    assert_eq!(larger["status"], "running");
    assert_eq!(pool.bench.delete("/templates/warm").await.status, StatusCode::NO_CONTENT);
    let theirs = BTreeSet::from([id(&made), id(&larger)]);
    until("only claimed ones are left", async || folders(pool.bench.folder.path()) == theirs).await;
    pool.bench.close().await;
}

async fn the_next_orchestrator_goes_on_with_what_is_ready(level: Isolation) {
    let pool = Pool::open(level).await;
    let ready = pool.fill(2).await;
    let made = id(&pool.create("c1", json!({})).await);
    pool.full(2).await;
    let there = folders(pool.bench.folder.path());
    let folder = pool.bench.stop().await;

    let pool = Pool::on(folder, level).await;
    assert_eq!(pool.bench.orchestrator.reconciled().orphans, 0);
    assert_eq!(pool.bench.orchestrator.reconciled().adopted.len(), 1);
    pool.full(2).await;
    assert_eq!(folders(pool.bench.folder.path()), there, "nothing was made anew");
    let next = id(&pool.create("c2", json!({})).await);
    assert!(there.contains(&next) && next != made, "{next} of {there:?}, {ready:?}");
    assert_eq!(pool.bench.shell(&next, "echo $CONVERSATION_ID").await, "c2\n");
    pool.bench.close().await;
}

async fn a_dead_one_is_passed_over_and_replaced(level: Isolation) {
    let pool = Pool::open(level).await;
    let ready = pool.fill(2).await;
    for name in &ready {
        for pid in processes(pool.bench.folder.path(), name) {
            let pid = Pid::from_raw(pid).expect("an id");
            // The runtime's may have gone with its shim.
            let _ = kill_process(pid, Signal::KILL).is_ok();
        }
    }
    let made = pool.create_waiting(1).await;
    assert_eq!(made["status"], "running");
    assert!(!ready.contains(&id(&made)));
    until("the dead are gone", async || folders(pool.bench.folder.path()).is_disjoint(&ready)).await;
    pool.full(2).await;
    pool.bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_is_within_what_the_operator_allows() {
    let bench = Bench::open(new_folder(), true, |config| config.caps.warm_pool = 2).await;
    let refused = bench.put("/templates/warm", json!({ "warm_pool": 3 })).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (StatusCode::UNPROCESSABLE_ENTITY, "invalid-input")
    );
    assert_eq!(refused.json()["errors"][0]["pointer"], "/templates/warm/warm_pool", "{}", refused.text);
    // Two templates together have no more than one may have.
    for name in ["one", "two"] {
        let put =
            bench.put(&format!("/templates/{name}"), json!({ "warm_pool": 2, "memory": "64MiB" })).await;
        assert_eq!(put.status, StatusCode::CREATED, "{}", put.text);
    }
    let ready = || folders(bench.folder.path()).len();
    until("two are ready", async || ready() == 2).await;
    let body = json!({ "user_id": "alice", "conversation_id": "c1", "template": "two" });
    let made = bench.call(Method::POST, "/sandbox?wait=running", body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    until("and one that was made", async || ready() == 3).await;
    bench.close().await;
}

async fn start_commands_run_before_a_sandbox_counts_as_running(level: Isolation) {
    let pool = Pool::open(level).await;
    let start = ["echo $CONVERSATION_ID > /data/scratch/first", "cat /data/scratch/first > ~/second"];
    for (count, conversation) in [(0, "c1"), (1, "c2")] {
        pool.put(json!({ "warm_pool": count, "memory": "128MiB", "start": start })).await;
        pool.full(count).await;
        let body = json!({ "user_id": "alice", "conversation_id": conversation, "template": "warm" });
        let made = pool.bench.post("/sandbox?wait=running", body).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
        let said = pool.bench.shell(&made.field("sandbox_id"), "cat ~/second").await;
        assert_eq!(said, format!("{conversation}\n"), "also of one that was kept ready");
    }
    pool.put(json!({ "memory": "128MiB", "start": ["true", "echo no such thing >&2; exit 3"] })).await;
    let body = json!({ "user_id": "alice", "conversation_id": "c3", "template": "warm" });
    let failed = pool.bench.post("/sandbox?wait=running", body).await;
    assert_eq!(
        (failed.status, failed.code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "runtime-unavailable")
    );
    let detail = failed.field("detail");
    assert!(detail.contains("start command 2 failed: exit status 3: no such thing"), "{detail}");
    let refused = pool.bench.put("/templates/warm", json!({ "start": ["true", ""] })).await;
    assert_eq!(refused.json()["errors"][0]["pointer"], "/templates/warm/start/1", "{}", refused.text);
    pool.bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_tokens_orphans_and_queries_are_counted() {
    let pool = Pool::open(Isolation::Namespaces).await;
    let applied = pool.bench.post("/apply", json!({ "limits": { "quotas": { "sandboxes": 1 } } })).await;
    assert!(applied.status.is_success(), "{}", applied.text);
    let sandbox = pool.bench.sandbox("c1").await;
    let wish = json!({ "user_id": "bob", "conversation_id": "c2" });
    assert_eq!(pool.bench.post("/sandbox", wish).await.code(), "quota-exceeded");
    assert_eq!(pool.metric("quota_refusals_total{quota=\"sandboxes\"}").await, 1);
    assert_eq!((pool.metric("tokens_minted_total").await, pool.metric("tokens_revoked_total").await), (1, 0));
    pool.bench.delete(&format!("/sandbox/{sandbox}")).await;
    assert_eq!((pool.metric("tokens_minted_total").await, pool.metric("tokens_revoked_total").await), (1, 1));
    assert!(pool.metric("store_seconds_count{query=\"add_sandbox\"}").await >= 2);

    let stray = pool.bench.folder.path().join("run/sandbox-aaaaaaaaaaaa");
    std::fs::create_dir(&stray).expect("makes what nobody knows");
    until("it is counted", async || pool.metric("reconcile_orphans_total{kind=\"sandbox\"}").await == 1)
        .await;
    assert!(!stray.exists(), "it was removed");
    pool.bench.close().await;
}
