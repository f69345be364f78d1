// SPDX-License-Identifier: Apache-2.0
//! Snapshots of a sandbox's files, at each isolation.

use crate::bench::{Bench, new_folder, on_each_level};
use http::{Method, StatusCode};
use postern_orchestrator::runtime::Isolation;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;

on_each_level!(
    what_was_there_is_there_again_and_the_old_token_is_not_good_any_more,
    a_snapshot_is_its_users_alone_and_sealed,
);

async fn open(level: Isolation) -> Bench {
    Bench::open(new_folder(), true, |config| config.isolation = Some(level)).await
}

async fn take(bench: &Bench, sandbox: &str) -> String {
    let taken = bench.post(&format!("/sandbox/{sandbox}/snapshot"), Value::Null).await;
    assert_eq!(taken.status, StatusCode::CREATED, "{}", taken.text);
    assert_eq!(taken.field("kind"), "files", "the API says what is in it");
    taken.field("snapshot_id")
}

async fn what_was_there_is_there_again_and_the_old_token_is_not_good_any_more(level: Isolation) {
    let bench = open(level).await;
    let body = |conversation: &str, snapshot: Option<&str>| json!({ "user_id": "alice", "conversation_id": conversation, "snapshot": snapshot });
    let first = bench.post("/sandbox?wait=running", body("c1", None)).await;
    let (sandbox, token) = (first.field("sandbox_id"), first.field("token"));
    let script = "cd ~; mkdir -p work/deep; echo '#!' > work/run; chmod 750 work/run; ln -s run work/link; head -c 3000000 /dev/urandom > work/deep/big; \
        cd /data/scratch; echo scratch > s; cksum < ~/work/deep/big";
    let sum = bench.shell(&sandbox, script).await;
    let snapshot = take(&bench, &sandbox).await;
    drop(bench.shell(&sandbox, "rm -rf ~/work /data/scratch/s").await);
    let old = crate::bench::claims(&bench.orchestrator, &token);
    assert_eq!(bench.delete(&format!("/sandbox/{sandbox}")).await.status, StatusCode::OK);
    assert!(bench.told().has_ended(&sandbox), "its session is dead, and every gateway knows");
    let second = bench.post("/sandbox?wait=running", body("c2", Some(&snapshot))).await;
    assert_eq!(second.status, StatusCode::CREATED, "{}", second.text);
    let again = second.field("sandbox_id");
    let new = crate::bench::claims(&bench.orchestrator, &second.field("token"));
    assert_ne!((old.sandbox_id, old.jti), (new.sandbox_id, new.jti), "a new identity");
    let seen = bench.shell(&again, "cksum < ~/work/deep/big; cat /data/scratch/s ~/work/link; stat -c '%a %U' ~/work/run; echo $SANDBOX_ID").await;
    assert_eq!(seen, format!("{sum}scratch\n#!\n750 user\n{again}\n"));
    // It is there for the next one too, until it is removed.
    let listed = bench.get("/snapshots?user_id=alice").await.json();
    assert_eq!(listed["snapshots"][0]["snapshot_id"], snapshot.as_str());
    assert_eq!(bench.delete(&format!("/snapshots/{snapshot}")).await.status, StatusCode::NO_CONTENT);
    assert_eq!(bench.get(&format!("/snapshots/{snapshot}")).await.code(), "not-found");
    assert_eq!(
        fs::read_dir(bench.data().join("snapshots")).expect("lists").count(),
        0,
        "nothing of it is left"
    );
    let gone = bench.post("/sandbox?wait=running", body("c3", Some(&snapshot))).await;
    assert_eq!((gone.status, gone.code().as_str()), (StatusCode::NOT_FOUND, "not-found"));
    bench.close().await;
}

async fn a_snapshot_is_its_users_alone_and_sealed(level: Isolation) {
    let bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    drop(
        bench.shell(&sandbox, "for i in 1 2 3 4 5 6 7 8; do echo plainly-to-be-found; done > ~/secret").await,
    );
    let snapshot = take(&bench, &sandbox).await;
    for entry in fs::read_dir(bench.data().join("snapshots")).expect("lists") {
        let path = entry.expect("an entry").path();
        let bytes = fs::read(&path).expect("reads");
        assert!(!bytes.windows(19).any(|window| window == b"plainly-to-be-found"), "{}", path.display());
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }
    let another_user = json!({ "user_id": "bob", "conversation_id": "c2", "snapshot": snapshot });
    assert_eq!(bench.post("/sandbox", another_user).await.code(), "not-found");
    assert_eq!(bench.post("/tenants", json!({ "name": "other" })).await.status, StatusCode::CREATED);
    let neighbour = bench.key("admin", "other").await;
    let theirs = json!({ "user_id": "alice", "conversation_id": "c2", "snapshot": snapshot });
    assert_eq!(bench.call_as(&neighbour, Method::POST, "/sandbox", theirs).await.code(), "not-found");
    for method in [Method::GET, Method::DELETE] {
        let refused = bench.call_as(&neighbour, method, &format!("/snapshots/{snapshot}"), Value::Null).await;
        assert_eq!(refused.code(), "not-found");
    }
    // What was changed, cut, or put in another's place does not open: the sandbox is not made.
    let file = bench.data().join(format!("snapshots/{snapshot}.home"));
    let (whole, other) =
        (fs::read(&file).expect("reads"), fs::read(file.with_extension("scratch")).expect("reads"));
    let mut changed = whole.clone();
    let place = changed.len() / 2;
    changed[place] ^= 1;
    for (number, wrong) in
        [changed, whole[..whole.len() - 1].to_vec(), other, Vec::new()].into_iter().enumerate()
    {
        fs::write(&file, wrong).expect("writes");
        let body =
            json!({ "user_id": "alice", "conversation_id": format!("wrong-{number}"), "snapshot": snapshot });
        let made = bench.post("/sandbox?wait=running", body).await;
        assert_eq!(made.status, StatusCode::SERVICE_UNAVAILABLE, "{number}: {}", made.text);
    }
    fs::write(&file, whole).expect("writes");
    let body = json!({ "user_id": "alice", "conversation_id": "right", "snapshot": snapshot });
    assert_eq!(bench.post("/sandbox?wait=running", body).await.status, StatusCode::CREATED, "the control");
    // Files that no snapshot knows go at the next start.
    let folder = bench.stop().await;
    fs::write(folder.path().join("data/snapshots/snap_00000000000000000000000000000000.home"), "x")
        .expect("writes");
    let bench = Bench::open(folder, true, |config| config.isolation = Some(level)).await;
    assert_eq!(fs::read_dir(bench.data().join("snapshots")).expect("lists").count(), 2);
    bench.close().await;
}
