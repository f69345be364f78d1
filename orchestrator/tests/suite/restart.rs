// SPDX-License-Identifier: Apache-2.0
//! An orchestrator ends, and the next one goes on: nothing is lost, nothing is left over.

use crate::bench::{Bench, id, until};
use postern_orchestrator::runtime::Isolation;
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_sandbox_is_adopted_with_its_session() {
    let bench = Bench::real().await;
    let sandbox = bench.sandbox("c1").await;
    bench.shell(&sandbox, "echo still > /data/scratch/here").await;
    let (session, key) = (bench.told().last_session(&sandbox), bench.key.clone());
    let epoch = bench.told().versions.last().expect("was told").0;
    let folder = bench.stop().await;

    let bench = Bench::open(folder, true, |config| config.isolation = Some(Isolation::Namespaces)).await;
    assert_eq!(bench.orchestrator.reconciled().adopted, [id(&sandbox)]);
    assert_eq!(bench.key, key, "the first admin key is still good");
    let told = bench.told().last_session(&sandbox);
    assert_eq!(told, session, "gateways are told of the same session");
    assert!(bench.told().versions.iter().all(|(now, _)| *now > epoch), "a new epoch");
    assert_eq!(bench.shell(&sandbox, "cat /data/scratch/here").await, "still\n");
    let repeat = bench.post("/sandbox", json!({ "user_id": "alice", "conversation_id": "c1" })).await;
    assert_eq!(repeat.field("sandbox_id"), sandbox);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_whose_shim_stands_still_is_adopted_and_goes_on() {
    use rustix::process::{Pid, Signal, kill_process};
    let bench = Bench::real().await;
    let sandbox = bench.sandbox("c1").await;
    let run = bench.folder.path().join("run").join(&sandbox);
    let shim = postern_shim::processes::shim_of(&run).and_then(Pid::from_raw).expect("has one");
    kill_process(shim, Signal::STOP).expect("stands still");
    let folder = bench.stop().await;

    let bench = Bench::open(folder, true, |config| config.isolation = Some(Isolation::Namespaces)).await;
    let adopted = bench.orchestrator.reconciled().adopted.clone();
    kill_process(shim, Signal::CONT).expect("goes on");
    assert_eq!(adopted, [id(&sandbox)], "that it does not answer does not say that it has ended");
    assert_eq!(bench.shell(&sandbox, "echo still here").await, "still here\n");
    assert_eq!(bench.get(&format!("/sandbox/{sandbox}")).await.field("status"), "running");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_that_was_killed_meanwhile_is_reported_with_its_end() {
    let bench = Bench::real().await;
    let sandbox = bench.sandbox("c1").await;
    bench.shell(&sandbox, "echo kept > /data/user/note").await;
    let folder = bench.stop().await;
    let pids = postern_shim::processes::that_name(&folder.path().join("run").join(&sandbox));
    assert!(!pids.is_empty(), "the shim names its folder");
    for pid in pids {
        let pid = rustix::process::Pid::from_raw(pid).expect("an id");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("ours");
    }

    let bench = Bench::open(folder, true, |_| {}).await;
    assert_eq!(bench.orchestrator.reconciled().ended, [id(&sandbox)]);
    let path = format!("/sandbox/{sandbox}");
    until("it is destroyed", async || bench.get(&path).await.field("status") == "destroyed").await;
    assert!(!bench.get(&path).await.field("reason").is_empty());
    assert!(bench.told().snapshots[0].sessions.is_empty() || bench.told().has_ended(&sandbox));
    let next = bench.sandbox("c1").await;
    assert_eq!(bench.shell(&next, "cat /data/user/note").await, "kept\n", "its files were kept");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_knows_is_removed_at_the_start() {
    let bench = Bench::real().await;
    let sandbox = bench.sandbox("c1").await;
    let folder = bench.stop().await;
    // A database that never heard of it, over the same installation: the id stays, the rows go.
    let database = folder.path().join("data/postern.db");
    let forget = std::process::Command::new("/usr/bin/python3")
        .args(["-c", "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('delete from sessions'); c.execute('delete from sandboxes'); c.commit()"])
        .arg(&database)
        .status()
        .expect("python runs");
    assert!(forget.success());

    let bench = Bench::open(folder, true, |_| {}).await;
    assert!(bench.orchestrator.reconciled().orphans > 0);
    assert!(!bench.folder.path().join("run").join(&sandbox).exists());
    assert!(!bench.folder.path().join("slots").join(&sandbox).exists());
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restored_backup_the_first_sweep_only_reports() {
    let bench = Bench::real().await;
    let folder = bench.stop().await;
    let data = folder.path().join("data");
    let copy = |from: &str, to: &str| {
        for end in ["", "-wal", "-shm"] {
            drop(std::fs::remove_file(data.join(format!("{to}{end}"))));
            drop(std::fs::copy(data.join(format!("{from}{end}")), data.join(format!("{to}{end}"))));
        }
    };
    copy("postern.db", "backup.db");
    let bench = Bench::open(folder, true, |_| {}).await;
    let sandbox = bench.sandbox("c1").await;
    bench.shell(&sandbox, "echo unsaved > /data/user/note").await;
    let folder = bench.stop().await;
    let (run, slot) = (folder.path().join("run").join(&sandbox), folder.path().join("slots").join(&sandbox));
    copy("backup.db", "postern.db");

    let bench = Bench::open(folder, true, |_| {}).await;
    assert_eq!(bench.orchestrator.reconciled().spared, [id(&sandbox)], "it is told of");
    assert_eq!(bench.orchestrator.reconciled().orphans, 0);
    assert!(run.exists() && slot.exists(), "and left alone");
    assert!(!postern_shim::processes::that_name(&run).is_empty(), "it runs on");
    let folder = bench.stop().await;

    let bench = Bench::open(folder, true, |_| {}).await;
    assert!(bench.orchestrator.reconciled().spared.is_empty() && bench.orchestrator.reconciled().orphans > 0);
    assert!(!run.exists() && !slot.exists(), "the next start removes what nobody knows");
    bench.close().await;
}
