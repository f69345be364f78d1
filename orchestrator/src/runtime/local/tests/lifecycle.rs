// SPDX-License-Identifier: Apache-2.0
//! Sandboxes come and go, and leave nothing.

use super::bench::{Bench, LIMITS, Sandbox, random, traces, until};
use super::on_each_level;
use crate::runtime::{Create, Found, Kind, Reason, Runtime, RuntimeError, Swept};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::time::Duration;

on_each_level!(
    the_probe_says_that_this_level_works,
    destroy_leaves_nothing_and_may_be_repeated,
    a_restarted_orchestrator_finds_its_sandboxes_and_goes_on,
    a_killed_shim_takes_its_sandbox_along_and_a_sweep_the_rest,
    a_shim_that_does_not_answer_for_a_while_is_not_taken_for_dead,
    a_sweep_removes_what_is_not_known_and_nothing_else,
    two_installations_do_not_see_each_other,
    an_ended_sandbox_keeps_its_files_until_it_is_destroyed,
    a_sandbox_that_dies_says_so,
    pause_stops_it_and_resume_goes_on,
    a_failed_start_says_why_and_leaves_nothing,
    ten_at_once_all_live_and_go,
    nothing_that_we_have_open_is_open_inside,
);

/// How long a paused sandbox is listened to.
const GLANCE: Duration = Duration::from_millis(100);

/// The sandbox's shim; `None` if it has ended.
pub(super) fn shim_of(bench: &Bench, sandbox: &Sandbox) -> Option<Pid> {
    let marker = bench.settings.run_root.join(sandbox.id.as_str());
    let pids = postern_shim::processes::that_name(&marker);
    let is_shim = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("\0run\0"))
            && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "postern-shim")
    };
    pids.into_iter().find(is_shim).and_then(Pid::from_raw)
}

async fn the_probe_says_that_this_level_works(bench: &Bench) {
    let probed = bench.runtime.probe().await;
    let ours = probed.iter().find(|probed| probed.level == bench.level()).expect("was probed");
    assert!(ours.outcome.is_ok(), "{ours:?}");
    // What it ran for that is gone.
    bench.nothing_is_left().await;
}

async fn destroy_leaves_nothing_and_may_be_repeated(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    sandbox.shell("setsid sleep 1000 & echo x > /data/user/file").await;
    assert!(!traces(bench.folder(), &bench.settings.installation).is_empty(), "the control: it can be seen");
    bench.runtime.destroy(&sandbox.id).await.expect("goes");
    bench.nothing_is_left().await;
    bench.runtime.destroy(&sandbox.id).await.expect("goes again");
    assert_eq!(bench.runtime.status(&sandbox.id).await, None);
    let gone = bench.runtime.connect(&sandbox.id).await;
    assert!(matches!(gone, Err(RuntimeError::NotRunning { .. })));
}

async fn a_restarted_orchestrator_finds_its_sandboxes_and_goes_on(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    sandbox.shell("echo kept > /data/user/file").await;
    let runtime = bench.reopened();
    let listed = runtime.list().await;
    assert_eq!(listed, vec![Found::Running(sandbox.running.clone())]);
    assert_eq!(runtime.sweep(std::slice::from_ref(&sandbox.id)).await, Vec::new());
    let agent = runtime.connect(&sandbox.id).await.expect("connects");
    let output = super::bench::run(&agent, &super::bench::command(&["/bin/cat", "/data/user/file"])).await;
    assert_eq!(output.stdout, "kept\n");
}

async fn a_killed_shim_takes_its_sandbox_along_and_a_sweep_the_rest(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    kill_process(shim_of(bench, &sandbox).expect("a shim"), Signal::KILL).expect("killed");
    let marker = bench.settings.run_root.join(sandbox.id.as_str());
    until("the runtime dies with its shim", async || {
        let named = postern_shim::processes::that_name(&marker);
        !named.into_iter().any(postern_shim::processes::is_running)
    })
    .await;
    let found = bench.runtime.status(&sandbox.id).await;
    assert_eq!(found, Some(Found::Ended { sandbox: sandbox.id.clone(), exit: None }));
    let swept = bench.runtime.sweep(&[]).await;
    assert!(swept.contains(&Swept { sandbox: sandbox.id.clone(), kind: Kind::Folder }), "{swept:?}");
    bench.nothing_is_left().await;
}

async fn a_shim_that_does_not_answer_for_a_while_is_not_taken_for_dead(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let shim = shim_of(bench, &sandbox).expect("a shim");
    kill_process(shim, Signal::STOP).expect("stands still");
    let (found, listed) = (bench.runtime.status(&sandbox.id).await, bench.runtime.list().await);
    kill_process(shim, Signal::CONT).expect("goes on");
    let silent = Found::Silent { sandbox: sandbox.id.clone() };
    assert_eq!((found.as_ref(), &listed[..]), (Some(&silent), std::slice::from_ref(&silent)));
    assert_eq!(
        bench.runtime.status(&sandbox.id).await,
        Some(Found::Running(sandbox.running.clone())),
        "nothing came of it"
    );
    assert_eq!(sandbox.shell("echo alive").await.stdout, "alive\n");
}

async fn a_sweep_removes_what_is_not_known_and_nothing_else(bench: &Bench) {
    let (known, unknown) = (bench.sandbox().await, bench.sandbox().await);
    let swept = bench.runtime.sweep(std::slice::from_ref(&known.id)).await;
    assert!(swept.iter().all(|swept| swept.sandbox == unknown.id), "{swept:?}");
    assert!(swept.contains(&Swept { sandbox: unknown.id.clone(), kind: Kind::Folder }), "{swept:?}");
    assert_eq!(bench.runtime.status(&unknown.id).await, None);
    assert_eq!(known.shell("echo alive").await.stdout, "alive\n");
    assert_eq!(bench.runtime.sweep(std::slice::from_ref(&known.id)).await, Vec::new());
}

async fn two_installations_do_not_see_each_other(bench: &Bench) {
    let other = Bench::open(bench.level()).expect("opens");
    let (ours, theirs) = (bench.sandbox().await, other.sandbox().await);
    assert_eq!(bench.runtime.list().await.len(), 1);
    bench.runtime.sweep(&[]).await;
    assert_eq!(bench.runtime.status(&ours.id).await, None);
    assert_eq!(theirs.shell("echo alive").await.stdout, "alive\n");
    other.close().await;
}

async fn an_ended_sandbox_keeps_its_files_until_it_is_destroyed(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    sandbox.shell("echo kept > /data/user/file").await;
    bench.runtime.end(&sandbox.id).await.expect("ends");
    let found = bench.runtime.status(&sandbox.id).await;
    let Some(Found::Ended { exit: Some(exit), .. }) = found else { panic!("{found:?}") };
    assert_eq!(exit.reason, Reason::Stopped);
    let (files, _owner) = bench.runtime.user_files(&sandbox.id);
    assert_eq!(fs::read_to_string(files.join("file")).expect("still there"), "kept\n");
    bench.runtime.destroy(&sandbox.id).await.expect("goes");
    assert!(!files.exists());
}

async fn a_sandbox_that_dies_says_so(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let marker = bench.settings.run_root.join(sandbox.id.as_str());
    let shim = shim_of(bench, &sandbox).expect("a shim").as_raw_pid();
    let runtime_processes =
        postern_shim::processes::that_name(&marker).into_iter().filter(|pid| *pid != shim);
    postern_shim::processes::kill(runtime_processes);
    until("its end is recorded", async || {
        let found = bench.runtime.status(&sandbox.id).await;
        matches!(found, Some(Found::Ended { exit: Some(exit), .. }) if exit.reason == Reason::Died)
    })
    .await;
}

async fn pause_stops_it_and_resume_goes_on(bench: &Bench) {
    let sandbox = bench.sandbox().await;
    let paused = bench.runtime.pause(&sandbox.id).await;
    if paused.is_err() {
        assert!(!rustix::process::geteuid().is_root(), "{paused:?}");
        return;
    }
    assert!(bench.groups(&sandbox).is_frozen(), "the kernel says that all of it stands still");
    let mut answer = std::pin::pin!(sandbox.shell("echo late"));
    // However long this is, only a sandbox that runs can answer.
    assert!(tokio::time::timeout(GLANCE, &mut answer).await.is_err(), "it answered while it was paused");
    assert!(
        matches!(bench.runtime.status(&sandbox.id).await, Some(Found::Paused(_))),
        "the shim still answers"
    );
    bench.runtime.resume(&sandbox.id).await.expect("resumes");
    assert!(matches!(bench.runtime.status(&sandbox.id).await, Some(Found::Running(_))));
    assert_eq!(answer.await.stdout, "late\n");
    assert_eq!(sandbox.shell("echo again").await.stdout, "again\n");
    // A paused one can be destroyed.
    bench.runtime.pause(&sandbox.id).await.expect("pauses");
    bench.runtime.destroy(&sandbox.id).await.expect("goes");
}

async fn a_failed_start_says_why_and_leaves_nothing(bench: &Bench) {
    // The probe comes first and would say so itself.
    bench.runtime.probe().await;
    let sandbox = random();
    let shared = bench.settings.run_root.join("shared/sandboxd");
    fs::remove_file(&shared).expect("ours");
    fs::write(&shared, "no program").expect("ours");
    let create = Create {
        sandbox: sandbox.clone(),
        isolation: bench.wanted(),
        limits: LIMITS,
        kubernetes: None,
        image: None,
    };
    let error = bench.runtime.create(create).await.expect_err("cannot start");
    let RuntimeError::Start { why, .. } = &error else { panic!("{error}") };
    assert!(why.contains("sandboxd"), "{why}");
    bench.runtime.destroy(&sandbox).await.expect("goes");
    bench.nothing_is_left().await;
}

async fn ten_at_once_all_live_and_go(bench: &Bench) {
    let made = futures_util::future::join_all((0..10).map(|_| bench.sandbox())).await;
    let said =
        futures_util::future::join_all(made.iter().map(|sandbox| sandbox.shell("echo $SANDBOX_ID"))).await;
    for (sandbox, output) in made.iter().zip(said) {
        assert_eq!(output.stdout, format!("{}\n", sandbox.id));
    }
    assert_eq!(bench.runtime.list().await.len(), 10);
    futures_util::future::join_all(made.iter().map(|sandbox| bench.runtime.destroy(&sandbox.id))).await;
    assert_eq!(bench.runtime.list().await, Vec::new());
}

async fn nothing_that_we_have_open_is_open_inside(bench: &Bench) {
    // As a shell leaves descriptors to what it starts: not closed on exec.
    let path = bench.folder().join("open");
    fs::write(&path, "ours").expect("ours");
    let flags = rustix::fs::OFlags::RDWR;
    let open = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).expect("opens");
    let sandbox = bench.sandbox().await;
    let shim = shim_of(bench, &sandbox).expect("a shim").as_raw_pid();
    let name = path.to_str().expect("text");
    for pid in postern_shim::processes::below(shim).into_iter().chain([shim]) {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            assert_ne!(target, path, "process {pid} has it as {:?}", entry.file_name());
        }
    }
    // The last is the list's own.
    let inside = sandbox.shell("ls /proc/self/fd").await.stdout;
    assert_eq!(inside.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"], "{name}");
    drop(open);
}
