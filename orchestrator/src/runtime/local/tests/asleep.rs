// SPDX-License-Identifier: Apache-2.0
//! The orchestrator's own calls of the wire, `postern.Control`, and what is kept of a sandbox: on every
//! level where there is something to keep.

use super::bench::{Bench, LIMITS, Sandbox, TOKEN, identity, random, until};
use super::on_each_level;
use super::wire::post;
use crate::runtime::{Agent, Create, Found, Isolation, Runtime};
use postern_common::secret::Secret;
use serde_json::{Value, json};
use std::fs;

on_each_level!(
    every_order_answers_as_the_table_says,
    what_sleeps_stands_still_and_what_was_stopped_before_stays_so,
    a_picture_is_gone_on_from_and_nothing_runs_before_it_is_told_who_it_is,
    a_picture_is_gone_on_from_as_another_sandbox_with_its_files,
);

async fn every_order_answers_as_the_table_says(bench: &Bench) {
    let sandbox = bench.nameless().await;
    let claim = |id: &str, token: &str| json!({ "sandbox_id": id, "conversation_id": "c1", "token": token });
    let (own, other) = (sandbox.id.as_str().to_owned(), random().as_str().to_owned());
    let rows = [
        (
            "a token before there is an identity",
            "Token",
            json!({ "token": TOKEN }),
            400,
            "failed_precondition",
        ),
        ("an id that is none", "Identify", claim("x", TOKEN), 400, "invalid_argument"),
        ("a token that is no header", "Identify", claim(&own, "a\nb"), 400, "invalid_argument"),
        ("a field too much", "Sleep", json!({ "for": 1 }), 400, "invalid_argument"),
        ("an identity", "Identify", claim(&own, TOKEN), 200, ""),
        ("another", "Identify", claim(&other, TOKEN), 400, "failed_precondition"),
        ("the same again", "Identify", claim(&own, TOKEN), 400, "failed_precondition"),
        ("a token", "Token", json!({ "token": "next" }), 200, ""),
        ("one that is no header", "Token", json!({ "token": "a\nb" }), 400, "invalid_argument"),
        ("sleep", "Sleep", json!({}), 200, ""),
        ("again", "Sleep", json!({}), 200, ""),
        ("a wrong token does not wake it", "Token", json!({ "token": "a\nb" }), 400, "invalid_argument"),
        ("another identity does", "Identify", claim(&other, TOKEN), 200, ""),
        ("which it has then", "Identify", claim(&own, TOKEN), 400, "failed_precondition"),
        ("no such order", "Explode", json!({}), 501, "unimplemented"),
    ];
    for (about, method, message, status, code) in rows {
        let (got, answer) = post(&sandbox, &format!("postern.Control/{method}"), &message, None).await;
        let told = answer["code"].as_str().unwrap_or_default();
        assert_eq!((got.as_u16(), told), (status, code), "{method}, {about}: {answer}");
    }
    assert_eq!(sandbox.shell("echo $SANDBOX_ID").await.stdout, format!("{other}\n"));
}

/// Counts in a file, from what only its memory holds.
const COUNTER: &str = "cat > ~/count.py <<'END'\n\
import os, time\n\
kept, count = open(os.path.expanduser('~/kept'), 'w'), 0\n\
while True:\n    count += 1\n    open('/tmp/c', 'w').write(f'{count} {os.getpid()}')\n    \
os.rename('/tmp/c', '/tmp/count')\n    kept.write('.'), kept.flush()\n    time.sleep(0.005)\n\
END\n\
python3 -I -S ~/count.py >/dev/null 2>&1 &\n\
until [ -s /tmp/count ]; do sleep 0.02; done";

/// What it has come to and its process, read by process 1 itself, which never sleeps.
async fn count(agent: &Agent) -> (u64, String) {
    use http_body_util::BodyExt;
    let request = http::Request::get("http://sandbox/files?path=/tmp/count");
    let body = crate::runtime::agent::full(bytes::Bytes::new());
    let answer = agent.send(request.body(body).expect("a request")).await.expect("answers");
    let bytes = answer.into_body().collect().await.expect("whole").to_bytes();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (count, pid) = text.split_once(' ').unwrap_or_else(|| panic!("two numbers: {text}"));
    (count.parse().expect("a number"), pid.to_owned())
}

async fn stands_still(agent: &Agent) -> (u64, String) {
    let before = count(agent).await;
    // Many times as long as it takes to count on.
    for _ in 0..20 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        assert_eq!(count(agent).await, before, "it counts on in its sleep");
    }
    before
}

async fn counts_on(agent: &Agent, before: &(u64, String)) {
    until("it counts on", async || count(agent).await.0 > before.0).await;
    assert_eq!(count(agent).await.1, before.1, "it is the same process");
}

async fn what_sleeps_stands_still_and_what_was_stopped_before_stays_so(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    assert_eq!(sandbox.shell(COUNTER).await.code, 0);
    // A shell whose command is stopped and let go on with it does not take it for one that was stopped; and
    // who stopped a process of its own finds it so. It stays, for with it the kernel would end what it stopped.
    let script = "set -m; sleep 1000 & kill -STOP $!; echo $! > /tmp/stopped; (sh -c 'read line; echo went on') > /tmp/told < /tmp/pipe; sleep 1000";
    let begun = format!(
        "mkfifo /tmp/pipe; (bash -c '{}' &) >/dev/null 2>&1; until [ -s /tmp/stopped ]; do sleep 0.02; done",
        script.replace('\'', "'\\''")
    );
    assert_eq!(sandbox.shell(&begun).await.code, 0);
    sandbox.agent.sleep().await.expect("sleeps");
    sandbox.agent.sleep().await.expect("sleeps already");
    let before = stands_still(&sandbox.agent).await;
    let message = json!({ "process": { "cmd": "/bin/true" } });
    let started = sandbox.agent.start(&super::bench::command(&["/bin/true"])).await;
    let refused = match started {
        Ok(mut events) => format!("{:?}", events.next().await),
        Err(error) => format!("{error:?}"),
    };
    assert!(refused.contains("unavailable"), "{message}: {refused}");
    sandbox.agent.rotate(&Secret::new("next".to_owned())).await.expect("wakes");
    counts_on(&sandbox.agent, &before).await;
    let told = sandbox.shell("echo line > /tmp/pipe; until [ -s /tmp/told ]; do sleep 0.02; done; cat /tmp/told; cut -d' ' -f3 /proc/$(cat /tmp/stopped)/stat").await;
    assert_eq!(told.stdout, "went on\nT\n", "{told:?}");
}

fn create(bench: &Bench, id: &postern_common::id::SandboxId) -> Create {
    let (sandbox, isolation) = (id.clone(), bench.wanted());
    Create { sandbox, isolation, limits: LIMITS, kubernetes: None, image: None }
}

/// Puts it to sleep and keeps the picture of its memory; `None` where there is none to be had.
async fn pictured(bench: &Bench, sandbox: &Sandbox) -> Option<tempfile::TempDir> {
    let runtime = &bench.runtime;
    let is_kept = runtime.keeps_memory(bench.level());
    assert_eq!(is_kept, bench.level() == Isolation::Gvisor && rustix::process::geteuid().is_root());
    sandbox.agent.sleep().await.expect("sleeps");
    let pictured = runtime.picture(&sandbox.id).await;
    if !is_kept {
        assert!(pictured.is_err(), "it is said that there is none");
        return None;
    }
    let (from, kept) = (pictured.expect("is pictured"), tempfile::tempdir().expect("a folder"));
    for file in postern_shim::memory::PARTS {
        fs::copy(from.join(file), kept.path().join(file)).expect("copies");
    }
    runtime.forget_picture(&sandbox.id).await.expect("is forgotten");
    assert!(!from.exists(), "nothing of it is left");
    Some(kept)
}

async fn restored(bench: &Bench, id: &postern_common::id::SandboxId, from: &tempfile::TempDir) -> Agent {
    let runtime = &bench.runtime;
    let place = runtime.place_for_picture(id, LIMITS.memory_bytes).await.expect("a place");
    for file in postern_shim::memory::PARTS {
        fs::copy(from.path().join(file), place.join(file)).expect("copies");
    }
    let running = runtime.restore(create(bench, id)).await.expect("is restored");
    assert_eq!((&running.sandbox, running.isolation), (id, bench.level()));
    runtime.forget_picture(id).await.expect("is forgotten");
    runtime.connect(id).await.expect("connects")
}

async fn a_picture_is_gone_on_from_and_nothing_runs_before_it_is_told_who_it_is(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    assert_eq!(sandbox.shell(COUNTER).await.code, 0);
    // Calls that are under way break off; they do no harm.
    let mut followed =
        sandbox.agent.start(&super::bench::command(&["/bin/sleep", "1000"])).await.expect("starts");
    drop(followed.next().await);
    let Some(picture) = pictured(bench, &sandbox).await else { return };
    // Taking it did no harm: the sandbox would go on.
    let before = stands_still(&sandbox.agent).await;
    sandbox.agent.rotate(&Secret::new("next".to_owned())).await.expect("wakes");
    counts_on(&sandbox.agent, &before).await;
    bench.runtime.end(&sandbox.id).await.expect("ends");
    assert!(matches!(bench.runtime.status(&sandbox.id).await, Some(Found::Ended { .. })));
    for _ in 0..2 {
        let agent = restored(bench, &sandbox.id, &picture).await;
        assert_eq!(stands_still(&agent).await.1, before.1);
        agent.identify(&identity(&sandbox.id)).await.expect("is told who it is");
        counts_on(&agent, &before).await;
        let listed: Value = agent.call("/process.Process/List", &json!({})).await.expect("lists");
        assert!(listed.to_string().contains("/bin/sleep"), "what was started is known still: {listed}");
        bench.runtime.end(&sandbox.id).await.expect("ends");
    }
}

async fn a_picture_is_gone_on_from_as_another_sandbox_with_its_files(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    assert_eq!(sandbox.shell(COUNTER).await.code, 0);
    let Some(picture) = pictured(bench, &sandbox).await else { return };
    let before = stands_still(&sandbox.agent).await;
    // Its home folder, as a snapshot puts it there: written inside, by the other's own user.
    let other = bench.sandbox().await;
    assert_eq!(other.shell("echo > ~/count.py; printf . > ~/kept").await.code, 0);
    bench.runtime.end(&other.id).await.expect("ends");
    let agent = restored(bench, &other.id, &picture).await;
    agent.identify(&identity(&other.id)).await.expect("is told who it is");
    counts_on(&agent, &before).await;
    let ran = super::bench::run(
        &agent,
        &super::bench::command(&["/bin/sh", "-c", "echo $SANDBOX_ID; wc -c < ~/kept"]),
    )
    .await;
    let (id, length) = ran.stdout.split_once('\n').expect("two lines");
    assert_eq!(id, other.id.as_str());
    assert!(
        length.trim().parse::<u64>().expect("a number") > 1,
        "it writes to the file that it had open: {ran:?}"
    );
}
