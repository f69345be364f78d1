// SPDX-License-Identifier: Apache-2.0
//! A process 1 that is the agent's accomplice. It really runs inside, in the place of `sandboxd`,
//! answers one health check so that its sandbox is made, and then breaks the protocol in one way.
//!
//! Whatever it does: nobody takes what it says for an answer, its shim's memory stays bounded,
//! its own sandbox can be looked at and destroyed, and a neighbour notices nothing.

use super::bench::{Bench, PATIENCE, Sandbox, command, until};
use super::lifecycle::shim_of;
use super::on_each_level;
use crate::runtime::agent::AgentError;
use crate::runtime::{Create, Found, Runtime, RuntimeError};
use rustix::process::Pid;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

on_each_level!(
    endless_headers_end_its_sandbox_only,
    a_frame_that_lies_about_its_length_is_not_waited_for,
    data_beyond_its_window_is_not_kept,
    streams_that_nobody_opened_end_it,
    endless_pings_do_not_fill_the_shim,
    a_message_that_lies_about_its_length_is_refused,
    endless_output_waits_until_it_is_read,
    silence_stops_nobody_else,
    one_that_never_serves_is_given_up,
    an_identity_that_it_claims_changes_nothing,
);

const PROGRAM: &str = concat!(include_str!("hostile/frames.py"), include_str!("hostile/process_1.py"));
/// What a shim may have used at its worst: its program, and each bounded buffer once.
const SHIM_KIBIBYTES: u64 = 32 << 10;
/// How long a sandbox is given to answer what it never answers.
const GLANCE: Duration = Duration::from_secs(1);

/// A runtime whose sandboxes behave like this once they were made.
fn accomplice(bench: &Bench, behaviour: &str) -> Bench {
    let program = bench.folder().join(behaviour);
    fs::write(&program, PROGRAM.replace("@BEHAVIOUR@", behaviour)).expect("ours");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("ours");
    Bench::open_with(bench.level(), |settings| settings.sandboxd = program).expect("opens")
}

/// What holds after each attack.
async fn nobody_was_harmed(hostile: &Bench, sandbox: &Sandbox, neighbour: &Sandbox) {
    assert_eq!(neighbour.shell("echo alive").await.stdout, "alive\n");
    until("its shim is there or has told the end", async || {
        let found = tokio::time::timeout(PATIENCE, hostile.runtime.status(&sandbox.id)).await;
        match found.expect("in time").expect("there is something of it") {
            Found::Running(running) | Found::Paused(running) => {
                assert_eq!(running.sandbox, sandbox.id);
                // It may have ended since it answered: then ask again.
                shim_of(hostile, sandbox).is_some_and(shim_is_small)
            }
            Found::Silent { .. } => false,
            Found::Ended { exit, .. } => {
                assert!(exit.is_some(), "the shim told the end, and was not killed");
                true
            }
        }
    })
    .await;
    tokio::time::timeout(PATIENCE, hostile.runtime.destroy(&sandbox.id))
        .await
        .expect("in time")
        .expect("goes");
    hostile.nothing_is_left().await;
}

/// Checks what a shim has used at its worst; `false` if it is gone.
fn shim_is_small(shim: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", shim.as_raw_pid())).unwrap_or_default();
    let Some(peak) = status.lines().find_map(|line| line.strip_prefix("VmHWM:")) else { return false };
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("kB");
    assert!(peak < SHIM_KIBIBYTES, "the shim took {peak} KiB");
    true
}

/// Asks for the list of processes and expects anything but a list.
async fn refuses_to_be_fooled(bench: &Bench, behaviour: &str) {
    let neighbour = bench.sandbox().await;
    let hostile = accomplice(bench, behaviour);
    let sandbox = hostile.nameless().await;
    let nothing = serde_json::json!({});
    let list = sandbox.agent.call::<serde_json::Value>("/process.Process/List", &nothing);
    let answer = tokio::time::timeout(GLANCE, list).await;
    assert!(!matches!(answer, Ok(Ok(_))), "{answer:?}");
    nobody_was_harmed(&hostile, &sandbox, &neighbour).await;
}

async fn endless_headers_end_its_sandbox_only(bench: &Bench) {
    refuses_to_be_fooled(bench, "headers").await;
}

async fn a_frame_that_lies_about_its_length_is_not_waited_for(bench: &Bench) {
    refuses_to_be_fooled(bench, "frame").await;
}

async fn data_beyond_its_window_is_not_kept(bench: &Bench) {
    refuses_to_be_fooled(bench, "window").await;
}

async fn streams_that_nobody_opened_end_it(bench: &Bench) {
    refuses_to_be_fooled(bench, "stream").await;
}

async fn endless_pings_do_not_fill_the_shim(bench: &Bench) {
    refuses_to_be_fooled(bench, "pings").await;
}

async fn silence_stops_nobody_else(bench: &Bench) {
    refuses_to_be_fooled(bench, "silence").await;
}

async fn a_message_that_lies_about_its_length_is_refused(bench: &Bench) {
    let neighbour = bench.sandbox().await;
    let hostile = accomplice(bench, "message");
    let sandbox = hostile.nameless().await;
    let mut events = sandbox.agent.start(&command(&["/bin/true"])).await.expect("a stream");
    let event = tokio::time::timeout(PATIENCE, events.next()).await.expect("in time");
    assert!(matches!(event, Err(AgentError::Malformed)), "{event:?}");
    nobody_was_harmed(&hostile, &sandbox, &neighbour).await;
}

async fn endless_output_waits_until_it_is_read(bench: &Bench) {
    let neighbour = bench.sandbox().await;
    let hostile = accomplice(bench, "output");
    let sandbox = hostile.nameless().await;
    let mut events = sandbox.agent.start(&command(&["/bin/true"])).await.expect("a stream");
    for _ in 0..2000 {
        let event = tokio::time::timeout(PATIENCE, events.next()).await.expect("in time");
        assert!(matches!(event, Ok(Some(_))), "{event:?}");
    }
    // 20 MB were read; now nobody reads, and it goes on writing as far as it can.
    nobody_was_harmed(&hostile, &sandbox, &neighbour).await;
    drop(events);
}

async fn one_that_never_serves_is_given_up(bench: &Bench) {
    let neighbour = bench.sandbox().await;
    let hostile = accomplice(bench, "never");
    let id = super::bench::random();
    let create = Create {
        sandbox: id.clone(),
        isolation: hostile.wanted(),
        limits: super::bench::LIMITS,
        kubernetes: None,
        image: None,
    };
    let error = tokio::time::timeout(2 * PATIENCE, hostile.runtime.create(create)).await.expect("in time");
    let error = error.expect_err("it never served");
    assert!(matches!(error, RuntimeError::IsolationUnavailable { .. }), "the probe found out: {error}");
    assert_eq!(neighbour.shell("echo alive").await.stdout, "alive\n");
    hostile.nothing_is_left().await;
}

async fn an_identity_that_it_claims_changes_nothing(bench: &Bench) {
    let neighbour = bench.sandbox().await;
    let hostile = accomplice(bench, "identity");
    let sandbox = hostile.nameless().await;
    // It answers every call with the status of a shim, in the name of another sandbox.
    drop(sandbox.agent.call::<serde_json::Value>("/process.Process/List", &serde_json::json!({})).await);
    let found = hostile.runtime.status(&sandbox.id).await.expect("is there");
    assert_eq!(found, Found::Running(sandbox.running.clone()));
    assert_eq!(hostile.runtime.list().await, vec![found]);
    nobody_was_harmed(&hostile, &sandbox, &neighbour).await;
}
