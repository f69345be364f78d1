// SPDX-License-Identifier: Apache-2.0
//! Two orchestrators on one Postgres and one cluster, of which one or the other is killed in the middle
//! of whatever it does: nothing is left that nobody knows, and no session outlives its sandbox.

use super::crashes::{on_their_way, rounds};
use super::lifecycle::{address, claims, id, pool_of};
use crate::cluster::{Cluster, until};
use crate::parts::{Part, must};
use crate::postern::{ORCHESTRATOR_ADDRESS, Postern, SECOND_ADDRESS, create_call};
use crate::running::{Answer, try_http, wait_for};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Sandboxes that each of both is making when one is killed.
const AT_ONCE: u32 = 3;
const NOBODY: &str = "65534";

/// A Postgres. Dropped, it is asked to end: killed, it would leave its processes and shared memory.
#[derive(Debug)]
struct Postgres(Option<Part>);

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(part) = self.0.take() {
            part.interrupt();
        }
    }
}

/// A Postgres on a socket, which ends with the case; and its URL.
fn postgres(home: &Path) -> (Postgres, String) {
    let folders = ["/usr/lib/postgresql/15/bin", "/usr/local/bin", "/usr/bin"].map(Path::new);
    let found =
        folders.into_iter().find(|bin| bin.join("initdb").is_file() && bin.join("postgres").is_file());
    let bin = found.expect("Postgres is installed (`apt-get install postgresql`)");
    fs::create_dir_all(home).expect("a folder");
    fs::set_permissions(home, fs::Permissions::from_mode(0o777)).expect("is ours");
    let as_nobody = ["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"];
    let (data, home) = (home.join("data").display().to_string(), home.display().to_string());
    let (init, server) =
        (bin.join("initdb").display().to_string(), bin.join("postgres").display().to_string());
    let wanted = [init.as_str(), "-A", "trust", "-U", "postgres", "--no-sync", "-D", &data];
    // From where nobody may be: it goes back to where it was started.
    must("env", &[&["--chdir=/", "setpriv"][..], &as_nobody[..], &wanted].concat());
    let mut command = Command::new("setpriv");
    command.args(as_nobody).arg(server).args([
        "-c",
        "listen_addresses=",
        "-c",
        "fsync=off",
        "-k",
        &home,
        "-D",
        &data,
    ]);
    command.current_dir("/");
    let mut part = Part::start("postgres", &command);
    wait_for("Postgres", || {
        part.must_run();
        part.log().contains("ready to accept connections").then_some(())
    });
    (
        Postgres(Some(part)),
        format!("postgres://postgres@localhost/postgres?host={}", home.replace('/', "%2F")),
    )
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

pub(crate) async fn either_of_two_orchestrators_may_be_killed_and_nothing_leaks(cluster: &Cluster) {
    // Sockets have short names.
    let home = tempfile::tempdir().expect("a folder");
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("is ours");
    let (_database, url) = postgres(&home.path().join("pg"));
    let mut postern = Postern::start_two(cluster, "replicas", url).await;
    for round in 0..rounds() {
        let victim = usize::try_from(round % 2).expect("fits");
        let calls: Vec<_> = (0..2 * AT_ONCE)
            .map(|number| {
                let at = if number % 2 == 0 { ORCHESTRATOR_ADDRESS } else { SECOND_ADDRESS };
                std::thread::spawn(create_call(postern.caller_at(at), &format!("r{round}-{number}")))
            })
            .collect();
        // Somewhere between the first claim and the last answer; another place in each round.
        tokio::time::sleep(Duration::from_millis(u64::from(40 + 110 * (round % 8)))).await;
        if victim == 0 {
            postern.crash_orchestrator()
        } else {
            postern.crash_second()
        }
        calls.into_iter().for_each(|call| call.join().expect("no panic"));
        // The other takes over what it was at; nobody starts it again meanwhile.
        let other = 1 - victim;
        until("every sandbox runs or is over", async || {
            (!on_their_way(&listed(&postern, other))).then_some(())
        })
        .await;
        let running: Vec<String> =
            listed(&postern, other).iter().filter(|it| it["status"] == "running").map(id).collect();
        until("there is a claim for each that runs", async || {
            (claims(&postern).await.len() == running.len()).then_some(())
        })
        .await;
        assert!(!running.is_empty(), "the other has made its own");
        let pods: Vec<_> =
            futures_util::future::join_all(running.iter().map(|it| address(&postern, it))).await;
        if victim == 0 {
            postern.start_orchestrator()
        } else {
            postern.start_second()
        }
        let tokens: Vec<String> = running.iter().map(|sandbox| fresh_token(&postern, sandbox)).collect();
        for (sandbox, (pod, token)) in running.iter().zip(pods.iter().zip(&tokens)) {
            until("its session is good", async || (postern.ask_gateway(*pod, token) == "200").then_some(()))
                .await;
            assert_eq!(postern.exec(sandbox, &["sh", "-c", "echo $SANDBOX_ID"]).trim(), sandbox.as_str());
        }
        for (number, sandbox) in running.iter().enumerate() {
            drop(call(&postern, number, "DELETE", &format!("/sandbox/{sandbox}")));
        }
        until("no claim is left", async || claims(&postern).await.is_empty().then_some(())).await;
        for token in &tokens {
            assert_eq!(postern.ask_gateway_from_own_place(token), "401 token-revoked", "a session is left");
        }
    }
    pool_of(&postern, 3).await;
}

fn fresh_token(postern: &Postern<'_>, sandbox: &str) -> String {
    let answer = call(postern, 0, "POST", &format!("/tokens/{sandbox}/refresh")).expect("is answered");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["token"].as_str().expect("is shown").to_owned()
}
