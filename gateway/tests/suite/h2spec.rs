// SPDX-License-Identifier: Apache-2.0
//! What `h2spec` finds of the gateway's HTTP/2: its whole list, with strict cases, over plain TCP
//! and over TLS. Cases that fail for a reason are in [`KNOWN`] and in `docs/gateway.md`; one that
//! passes may not be there.
//!
//! `scripts/h2spec.sh` builds it; `POSTERN_ALLOW_SKIP=1` leaves this out.

use crate::certificates::Authority;
use crate::world::World;
use postern_gateway::Tls;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// How long `h2spec` waits for what a case expects.
const CASE_SECONDS: &str = "2";
/// How often a case is tried again.
const RUNS: usize = 4;
/// All cases wait in vain together no longer.
const PATIENCE: Duration = Duration::from_secs(300);

/// Cases that fail over plain TCP, each with its reason in `docs/gateway.md`.
const KNOWN: &[&str] = &["3.5/2"];

fn program() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name);
    let home = || variable("HOME").map(|home| PathBuf::from(home).join(".cache/postern"));
    let cache = variable("POSTERN_CACHE").map(PathBuf::from).or_else(home).expect("HOME is set");
    let program = cache.join("h2spec/h2spec");
    if program.exists() {
        return Some(program);
    }
    let may_skip = variable("POSTERN_ALLOW_SKIP") == Some(OsString::from("1"));
    assert!(
        may_skip,
        "no h2spec at {}: run scripts/h2spec.sh, or set POSTERN_ALLOW_SKIP=1",
        program.display()
    );
    None
}

/// The cases that failed, as `h2spec` names them, and its last line.
async fn failures(program: &PathBuf, port: u16, more: &[&str]) -> (Vec<String>, String) {
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-o", CASE_SECONDS, "--strict"]).args(more);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("in time").expect("runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = text.lines().rev().find(|line| line.contains("tests,")).unwrap_or_default().to_owned();
    // A failed case is told twice; the second time, under `Failures:`, with its sections.
    let failed = text.split("Failures:").nth(1).unwrap_or_default();
    let mut section = String::new();
    let mut cases = Vec::new();
    for line in failed.lines().map(str::trim) {
        if let Some((number, _)) = line.split_once(". ").filter(|(number, _)| is_section(number)) {
            section = number.to_owned();
        } else if let Some(case) = line.strip_prefix("× ") {
            let number = case.split_once(": ").map_or(case, |(number, _)| number);
            cases.push(format!("{section}/{number}"));
        }
    }
    (cases, last)
}

/// The cases that failed each of a few times. Some send a second frame that races our answer to the
/// first, and then wait for an error of a stream that is closed already.
async fn failures_each_time(program: &PathBuf, port: u16, more: &[&str]) -> (Vec<String>, String) {
    let (mut failed, last) = failures(program, port, more).await;
    for _ in 0..RUNS {
        let (again, _) = failures(program, port, more).await;
        failed.retain(|case| again.contains(case));
    }
    (failed, last)
}

fn is_section(number: &str) -> bool {
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_speaks_http2_as_h2spec_wants_it() {
    let Some(program) = program() else { return };
    let authority = Authority::new();
    let pair = authority.sign("gateway");
    let folder = tempfile::tempdir().expect("a folder");
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    std::fs::write(&certificate, &pair.certificate_pem).expect("writes");
    std::fs::write(&key, &pair.key_pem).expect("writes");
    let plain = World::desk().await;
    let tls = Tls { certificate, key, clients: None, look_every: Duration::from_secs(60) };
    let secured = World::with(|settings| settings.tls = Some(tls)).await;
    let port = |world: &World| world.running.tcp.expect("listens").port();
    let (by_tcp, by_tls) = tokio::join!(
        failures_each_time(&program, port(&plain), &[]),
        failures_each_time(&program, port(&secured), &["--tls", "--insecure"]),
    );
    for (how, (failed, last), known) in [("plain", by_tcp, KNOWN), ("TLS", by_tls, &[])] {
        assert!(last.starts_with("146 tests"), "{how}: all of its cases ran: {last}");
        assert_eq!(failed, known, "{how}: {last}");
    }
}
