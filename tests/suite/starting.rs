// SPDX-License-Identifier: Apache-2.0
//! `postern up` on what is there already: ports that others hold, and a tenant that changes hands.

use crate::running::{Backend, Up, configured, postern};
use serde_json::json;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longer than another test runs with the usual ports.
const OTHER_TEST: Duration = Duration::from_secs(60);

#[test]
fn a_folder_gets_its_tenant_back_after_a_plain_up() {
    let backend = Backend::start();
    let _held = hold_the_usual_port();
    let folder = Up::start(&backend).stop();
    let refused = postern(folder.path()).args(["sandbox", "ls"]).output().expect("postern runs");
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(5), "{told}");
    assert!(told.contains("`postern up` does not run") && !told.contains("8080"), "{told}");

    let up = Up::plain_on(&backend, folder);
    let moved = format!("8080 is in use by another process: the API is at {}", up.written("url"));
    let log = crate::running::wait_for("the banner", || {
        let log = up.log();
        log.contains("Ctrl-C ends it").then_some(log)
    });
    assert!(log.contains(moved.trim_end_matches('/')), "{log}");
    let up = Up::on(up.stop());
    assert!(up.told_by("GET", "/backends")["backends"].as_array().is_some_and(|all| all.len() == 1));

    let up = Up::plain_on(&backend, up.stop());
    assert_eq!(up.call("PUT", "/templates/of-the-api", Some(&json!({}))).status, 201);
    let folder = up.stop();
    let start = |more: &[&str]| {
        let mut command = postern(folder.path());
        command.args(["up", "--config", "config"]).args(more);
        command
    };
    let refused = start(&[]).output().expect("postern runs");
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{told}");
    assert!(told.contains("through the API") && told.contains("--take-over"), "{told}");
    let up = Up::launch(Arc::clone(&folder), start(&["--take-over"]));
    assert_eq!(up.call("GET", "/templates/of-the-api", None).status, 404, "the folder does not have it");
}

/// Has port 8080 taken for as long as this is held: by us, or by whatever else runs on this machine. Another test
/// that has it gives it back.
fn hold_the_usual_port() -> Option<TcpListener> {
    let begun = Instant::now();
    crate::running::wait_for("port 8080 is held, or was for long", || {
        match TcpListener::bind("127.0.0.1:8080") {
            Ok(held) => Some(Some(held)),
            Err(_) => (begun.elapsed() > OTHER_TEST).then_some(None),
        }
    })
}

#[test]
fn taking_over_needs_a_folder() {
    let backend = Backend::start();
    let folder = configured(&backend);
    let refused = postern(folder.path()).args(["up", "--take-over"]).output().expect("postern runs");
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{told}");
    assert!(told.contains("--config DIR"), "{told}");
}

/// Secrets are hidden by name; what sandboxes are given must be theirs to read all the same.
#[test]
fn sandboxes_work_under_a_umask_that_shuts_everybody_out() {
    let backend = Backend::start();
    let folder = Arc::new(configured(&backend));
    let plain = {
        let mut command = postern(folder.path());
        command.args(["up", "--config", "config"]);
        command
    };
    let mut command = Command::new("sh");
    command.args(["-c", "umask 077; exec \"$0\" \"$@\""]).arg(plain.get_program()).args(plain.get_args());
    command.current_dir(folder.path()).stdin(Stdio::null());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let up = Up::launch(folder, command);
    let wish = json!({ "user_id": "alice", "conversation_id": "c1" });
    let made = up.call("POST", "/sandbox?wait=running", Some(&wish)).json();
    assert_eq!(made["status"], "running", "{made}\n{}", up.log());
    let id = made["sandbox_id"].as_str().expect("an id");
    let exec = json!({ "command": "echo kept >/data/user/a && cat /data/user/a", "collect": true });
    let ran = up.call("POST", &format!("/sandbox/{id}/exec"), Some(&exec)).json();
    assert_eq!((&ran["exit_code"], &ran["stdout"]), (&json!(0), &json!("kept\n")), "{ran}");
    up.stop();
}
