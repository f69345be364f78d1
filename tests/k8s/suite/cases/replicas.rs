// SPDX-License-Identifier: Apache-2.0
//! Two orchestrators on one Postgres and one cluster, of which one or the other is killed while both make
//! sandboxes, and while both destroy them: no claim is left that nobody knows, an answered destroy comes to
//! its end, and no session outlives its sandbox, nor is one given for a sandbox that was never finished.

use super::crashes::{on_their_way, rounds};
use super::lifecycle::{address, claims, id, pool_of};
use crate::cluster::{Cluster, until};
use crate::parts::{Part, must};
use crate::postern::{ORCHESTRATOR_ADDRESS, Postern, SECOND_ADDRESS, create_call, destroy_call};
use crate::running::{Answer, postgres_programs, try_http, wait_for};
use serde_json::Value;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Sandboxes that each of both is making, or destroying, when one is killed.
const AT_ONCE: usize = 3;
const NOBODY: &str = "65534";

/// A Postgres. Dropped, it is asked to end: killed, it would leave its processes and shared memory.
#[derive(Debug)]
pub(crate) struct Postgres(Option<Part>);

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(part) = self.0.take() {
            part.interrupt();
        }
    }
}

/// A Postgres on a socket, which ends with the case, and its URL; with an address, for pods too.
pub(crate) fn postgres(home: &Path, address: Option<&str>) -> (Postgres, String) {
    let bin = postgres_programs().expect("Postgres is installed (`scripts/setup.sh test` does so)");
    fs::create_dir_all(home).expect("a folder");
    fs::set_permissions(home, fs::Permissions::from_mode(0o777)).expect("is ours");
    let as_nobody = ["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"];
    let (data, home) = (home.join("data").display().to_string(), home.display().to_string());
    let (init, server) =
        (bin.join("initdb").display().to_string(), bin.join("postgres").display().to_string());
    let wanted = [init.as_str(), "-A", "trust", "-U", "postgres", "--no-sync", "-D", &data];
    // From where nobody may be: it goes back to where it was started.
    must("env", &[&["--chdir=/", "setpriv"][..], &as_nobody[..], &wanted].concat());
    let access = fs::OpenOptions::new().append(true).open(format!("{data}/pg_hba.conf"));
    writeln!(access.expect("was made"), "host all all 10.77.0.0/16 trust").expect("writes");
    let listen = format!("listen_addresses={}", address.unwrap_or_default());
    let mut command = Command::new("setpriv");
    command.args(as_nobody).arg(server).args(["-c", &listen, "-c", "fsync=off", "-k", &home, "-D", &data]);
    command.current_dir("/");
    // What it says is waited for, and another case's has said it.
    let mut part = Part::start(address.map_or("postgres", |_| "postgres-for-pods"), &command);
    wait_for("Postgres", || {
        part.must_run();
        part.log().contains("ready to accept connections").then_some(())
    });
    let url = match address {
        Some(address) => format!("postgres://postgres@{address}:5432/postgres"),
        None => format!("postgres://postgres@localhost/postgres?host={}", home.replace('/', "%2F")),
    };
    (Postgres(Some(part)), url)
}

/// A call of whichever answers; who is asked first changes.
fn call(postern: &Postern<'_>, first: usize, method: &str, path: &str) -> Option<Answer> {
    let mut addresses = [ORCHESTRATOR_ADDRESS, SECOND_ADDRESS];
    addresses.rotate_left(first % 2);
    addresses.into_iter().find_map(|address| {
        let (url, authorization) = postern.caller_at(address);
        try_http(&url, method, path, &[("Authorization", authorization.as_str())], None).ok()
    })
}

fn listed(postern: &Postern<'_>, first: usize) -> Vec<Value> {
    let answer = call(postern, first, "GET", "/sandbox").expect("one of both answers");
    answer.json()["sandboxes"].as_array().expect("a list").clone()
}

/// Kills one of both somewhere in the middle of what they do; another place in each round.
async fn kill(postern: &mut Postern<'_>, victim: usize, round: u32, step: u32) {
    tokio::time::sleep(Duration::from_millis(u64::from(step / 3 + step * (round % 8)))).await;
    if victim == 0 { postern.crash_orchestrator() } else { postern.crash_second() }
}

fn start_again(postern: &mut Postern<'_>, victim: usize) {
    if victim == 0 { postern.start_orchestrator() } else { postern.start_second() }
}

/// Who of both is asked.
fn place(number: usize) -> &'static str {
    if number.is_multiple_of(2) { ORCHESTRATOR_ADDRESS } else { SECOND_ADDRESS }
}

/// Both make sandboxes until one is killed, and the other takes over what it was at; nobody starts it again
/// meanwhile. Those that run, and the tokens that their callers were given.
async fn make_until_killed(
    postern: &mut Postern<'_>,
    victim: usize,
    round: u32,
) -> (Vec<String>, Vec<String>) {
    let other = 1 - victim;
    let calls: Vec<_> = (0..2 * AT_ONCE)
        .map(|number| {
            let conversation = format!("r{round}-{number}");
            std::thread::spawn(create_call(postern.caller_at(place(number)), &conversation))
        })
        .collect();
    kill(postern, victim, round, 110).await;
    let answers = calls.into_iter().filter_map(|call| call.join().expect("no panic"));
    let told: Vec<Value> = answers.filter(|it| matches!(it.status, 200 | 201)).map(|it| it.json()).collect();
    until("every sandbox runs or is over", async || (!on_their_way(&listed(postern, other))).then_some(()))
        .await;
    let (running, over): (Vec<_>, Vec<_>) =
        listed(postern, other).into_iter().partition(|it| it["status"] == "running");
    until("there is a claim for each that runs", async || {
        (claims(postern).await.len() == running.len()).then_some(())
    })
    .await;
    assert!(!running.is_empty(), "the other has made its own");
    for sandbox in over.iter().map(id) {
        let asked = call(postern, other, "POST", &format!("/tokens/{sandbox}/refresh"));
        let asked = asked.expect("is answered");
        assert!(matches!(asked.status, 404 | 409), "a session of what came to nothing: {asked:?}");
    }
    let tokens = told.iter().filter(|it| it["status"] == "running").filter_map(|it| it["token"].as_str());
    (running.iter().map(id).collect(), tokens.map(str::to_owned).collect())
}

/// Both destroy sandboxes until one is killed. What was answered needs no second word; who got no
/// answer, or a refusal, asks again.
async fn destroy_until_killed(postern: &mut Postern<'_>, sandboxes: &[String], victim: usize, round: u32) {
    let calls: Vec<_> = sandboxes
        .iter()
        .enumerate()
        .map(|(number, sandbox)| std::thread::spawn(destroy_call(postern.caller_at(place(number)), sandbox)))
        .collect();
    kill(postern, victim, round, 30).await;
    for (call_of, sandbox) in calls.into_iter().zip(sandboxes) {
        let answer = call_of.join().expect("no panic");
        if answer.is_none_or(|it| it.status >= 300) {
            let again = call(postern, 1 - victim, "DELETE", &format!("/sandbox/{sandbox}"));
            let again = again.expect("is answered");
            assert!(matches!(again.status, 200 | 202), "{again:?}");
        }
    }
    until("no claim is left", async || claims(postern).await.is_empty().then_some(())).await;
}

pub(crate) async fn either_of_two_orchestrators_may_be_killed_and_nothing_leaks(cluster: &Cluster) {
    // Sockets have short names.
    let home = tempfile::tempdir().expect("a folder");
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("is ours");
    let (_database, url) = postgres(&home.path().join("pg"), None);
    let mut postern = Postern::start_two(cluster, "replicas", url).await;
    for round in 0..rounds() {
        let victim = usize::try_from(round % 2).expect("fits");
        let (running, mut tokens) = make_until_killed(&mut postern, victim, round).await;
        let pods: Vec<_> =
            futures_util::future::join_all(running.iter().map(|it| address(&postern, it))).await;
        start_again(&mut postern, victim);
        for (sandbox, pod) in running.iter().zip(&pods) {
            let token = fresh_token(&postern, sandbox);
            until("its session is good", async || (postern.ask_gateway(*pod, &token) == "200").then_some(()))
                .await;
            assert_eq!(postern.exec(sandbox, &["sh", "-c", "echo $SANDBOX_ID"]).trim(), sandbox.as_str());
            tokens.push(token);
        }
        destroy_until_killed(&mut postern, &running, victim, round).await;
        start_again(&mut postern, victim);
        for token in &tokens {
            // The gateway may have lost who told it.
            until("no session is left", async || {
                (postern.ask_gateway_from_own_place(token) == "401 token-revoked").then_some(())
            })
            .await;
        }
    }
    pool_of(&postern, 3).await;
}

fn fresh_token(postern: &Postern<'_>, sandbox: &str) -> String {
    let answer = call(postern, 0, "POST", &format!("/tokens/{sandbox}/refresh")).expect("is answered");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["token"].as_str().expect("is shown").to_owned()
}
