// SPDX-License-Identifier: Apache-2.0
//! A sandbox that was stopped with its memory, before the real gateway: whom its processes are when they go
//! on, and whom they are not any more.

use crate::running::{Backend, Up, keeps_memory, leave_out, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

/// Asks for the orders over and over: through the door, and at the gateway's own socket with the token
/// that it was started with. Each answer is a line in a file.
const ASKING: &str = r#"
import json, os, socket, sys, time, urllib.error, urllib.request
token = sys.stdin.readline().strip()
def by_door():
    try:
        with urllib.request.urlopen(os.environ['GATEWAY_URL'] + '/support-desk/orders', timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 'broken'
def by_token():
    try:
        asking = socket.socket(socket.AF_UNIX)
        asking.connect('/run/postern/gateway.sock')
        asking.sendall(b'GET /support-desk/orders HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer ' + token.encode() + b'\r\n\r\n')
        head, _, body = b''.join(iter(lambda: asking.recv(65536), b'')).partition(b'\r\n\r\n')
        status = int(head.split()[1])
        return status if status == 200 else f"{status} {json.loads(body)['code']}"
    except (OSError, IndexError, ValueError):
        return 'broken'
while True:
    with open('/data/scratch/answers', 'a') as answers:
        answers.write(json.dumps([time.time(), by_door(), by_token()]) + '\n')
    time.sleep(0.01)
"#;

fn answers(up: &Up, sandbox: &str) -> Vec<Value> {
    let body = json!({ "command": "cat /data/scratch/answers", "collect": true });
    let ran = up.call("POST", &format!("/sandbox/{sandbox}/exec"), Some(&body)).json();
    let text = ran["stdout"].as_str().unwrap_or_else(|| panic!("{ran}")).to_owned();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn begin(up: &Up, made: &Value) -> String {
    let (sandbox, token) = (made["sandbox_id"].as_str().expect("an id"), made["token"].as_str());
    let script = format!(
        "cat > ~/ask.py <<'END'\n{ASKING}\nEND\n\
         echo {} | python3 -I -S ~/ask.py >/dev/null 2>&1 &",
        token.expect("a token")
    );
    let body = json!({ "command": script, "collect": true });
    let ran = up.call("POST", &format!("/sandbox/{sandbox}/exec"), Some(&body)).json();
    assert_eq!(ran["exit_code"], 0, "{ran}");
    wait_for("its first answers", || (answers(up, sandbox).len() > 3).then_some(()));
    for answer in answers(up, sandbox) {
        assert_eq!((&answer[1], &answer[2]), (&json!(200), &json!(200)), "the control: both are let through");
    }
    sandbox.to_owned()
}

/// What came after this moment: the door's answers and the old token's.
fn after(up: &Up, sandbox: &str, moment: f64) -> Vec<(Value, Value)> {
    let late = |answer: &Value| answer[0].as_f64().is_some_and(|at| at > moment);
    let answers = wait_for("answers after it woke", || {
        let late: Vec<Value> = answers(up, sandbox).into_iter().filter(late).collect();
        (late.len() > 5).then_some(late)
    });
    answers.into_iter().map(|answer| (answer[1].clone(), answer[2].clone())).collect()
}

/// The door always opens, and the old token never does. The request that it was in the middle of may have broken
/// off.
fn all_new(seen: &[(Value, Value)], refused: &str) {
    for (number, (door, token)) in seen.iter().enumerate() {
        let is_cut = number == 0 && (*door == json!(502) || *door == json!("broken"));
        assert!(is_cut || *door == json!(200), "the door: {seen:?}");
        let is_cut = number == 0 && *token == json!("broken");
        assert!(is_cut || *token == json!(refused), "the old token: {seen:?}");
    }
}

fn now() -> f64 {
    std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs_f64()
}

#[test]
fn what_wakes_has_its_new_token_before_anything_runs_and_the_old_one_is_refused() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let made = up.sandbox("alice", "asleep");
    if !keeps_memory(&made) {
        return;
    }
    let sandbox = begin(&up, &made);
    let stopped = up.call("POST", &format!("/sandbox/{sandbox}/stop"), Some(&json!({ "keep": "memory" })));
    assert_eq!(stopped.json()["kept"], "memory", "{}", stopped.text);
    let (stopped_at, reached) = (now(), backend.reached());
    up.call("POST", &format!("/sandbox/{sandbox}/resume"), None);
    let seen = after(&up, &sandbox, stopped_at);
    all_new(&seen, "401 token-expired");
    assert!(backend.reached() > reached, "its requests arrive");
}

#[test]
fn a_sandbox_from_a_snapshot_is_itself_and_not_the_one_before() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let made = up.sandbox("alice", "before");
    if !keeps_memory(&made) {
        return;
    }
    let sandbox = begin(&up, &made);
    let taken = up.call("POST", &format!("/sandbox/{sandbox}/snapshot"), Some(&json!({ "memory": true })));
    let taken = taken.json();
    assert_eq!(taken["kind"], "memory", "{taken}");
    assert_eq!(up.call("DELETE", &format!("/sandbox/{sandbox}"), None).json()["status"], "destroyed");
    let destroyed_at = now();
    let wish = json!({ "user_id": "alice", "conversation_id": "after", "snapshot": taken["snapshot_id"] });
    let again = up.call("POST", "/sandbox?wait=running", Some(&wish)).json();
    let again = again["sandbox_id"].as_str().unwrap_or_else(|| panic!("{again}")).to_owned();
    let seen = after(&up, &again, destroyed_at);
    all_new(&seen, "401 token-revoked");
    // Who asked is the new one.
    let decisions = up.told_by("GET", &format!("/decisions?sandbox_id={again}&limit=1"));
    assert!(decisions.to_string().contains("\"after\""), "{decisions}");
}

/// What the gateway says to a token at a sandbox's own socket, and at its door without one.
const BOTH: &str = r#"
import json, os, socket, sys, urllib.error, urllib.request
token = sys.stdin.readline().strip()
asking = socket.socket(socket.AF_UNIX)
asking.connect('/run/postern/gateway.sock')
asking.sendall(b'GET /support-desk/orders HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer ' + token.encode() + b'\r\n\r\n')
head, _, body = b''.join(iter(lambda: asking.recv(65536), b'')).partition(b'\r\n\r\n')
status = head.split()[1].decode()
with urllib.request.urlopen(os.environ['GATEWAY_URL'] + '/support-desk/orders', timeout=60) as answer:
    door = answer.status
print(status if status == '200' else f"{status} {json.loads(body)['code']}", door)
"#;

/// How a token fares in a sandbox, and its own at the door.
fn fares(up: &Up, sandbox: &str, token: &str) -> String {
    let body = json!({ "command": ["python3", "-I", "-S", "-c", BOTH], "stdin": token, "collect": true });
    let ran = up.call("POST", &format!("/sandbox/{sandbox}/exec"), Some(&body)).json();
    assert_eq!(ran["exit_code"], 0, "{ran}");
    ran["stdout"].as_str().expect("text").trim().to_owned()
}

#[test]
fn a_sandbox_from_a_snapshot_of_files_gets_nowhere_with_the_token_of_before() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let made = up.sandbox("alice", "files-before");
    let (sandbox, token) =
        (made["sandbox_id"].as_str().expect("an id"), made["token"].as_str().expect("one"));
    assert_eq!(fares(&up, sandbox, token), "200 200", "the control: it was good");
    // The agent carries it over in a file.
    shell(&up, sandbox, &format!("echo {token} > ~/token"));
    let taken = up.call("POST", &format!("/sandbox/{sandbox}/snapshot"), Some(&json!({}))).json();
    assert_eq!(taken["kind"], "files", "{taken}");
    let wish =
        json!({ "user_id": "alice", "conversation_id": "files-after", "snapshot": taken["snapshot_id"] });
    let again = up.call("POST", "/sandbox?wait=running", Some(&wish)).json();
    let again = again["sandbox_id"].as_str().unwrap_or_else(|| panic!("{again}"));
    let carried = shell(&up, again, "cat ~/token").trim().to_owned();
    assert_eq!(carried, token);
    assert_eq!(fares(&up, again, &carried), "403 token-wrong-peer 200", "while the other one lives");
    assert_eq!(up.call("DELETE", &format!("/sandbox/{sandbox}"), None).json()["status"], "destroyed");
    assert_eq!(fares(&up, again, &carried), "401 token-revoked 200", "and when it is no more");
}

fn shell(up: &Up, sandbox: &str, command: &str) -> String {
    let body = json!({ "command": command, "collect": true });
    let ran = up.call("POST", &format!("/sandbox/{sandbox}/exec"), Some(&body)).json();
    assert_eq!(ran["exit_code"], 0, "{ran}");
    ran["stdout"].as_str().expect("text").to_owned()
}

/// What the store has of alice's file.
fn stored(up: &Up, name: &str) -> Option<String> {
    let read = up.call("GET", &format!("/users/alice/files/{name}"), None);
    (read.status == 200).then_some(read.text)
}

#[test]
fn what_the_machine_lost_of_a_stopped_sandbox_comes_from_the_store_and_goes_from_it_no_more() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let made = up.sandbox("alice", "cut-off");
    let sandbox = made["sandbox_id"].as_str().expect("an id");
    let slot = up.data().join("slots").join(sandbox);
    let image = slot.join("disk.img");
    if !image.exists() {
        return leave_out("only root's sandboxes have disks of their own");
    }
    shell(&up, sandbox, "cd /data/user && for name in lost torn edited gone; do echo $name > $name; done");
    for name in ["lost", "torn", "edited", "gone"] {
        wait_for("the store has it", || stored(&up, name).filter(|text| *text == format!("{name}\n")));
    }
    let stopped = up.call("POST", &format!("/sandbox/{sandbox}/stop"), None).json();
    assert_eq!(stopped["status"], "stopped", "{stopped}");
    let is_held = || {
        let devices = fs::read_dir("/sys/block").expect("lists").flatten();
        let mut files =
            devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
        files.any(|file| file.contains(sandbox))
    };
    let kept = up.data().join("files/hydrated").join(format!("{sandbox}.kept"));
    wait_for("its files are kept", || (kept.exists() && !is_held()).then_some(()));
    // Its disk as a machine leaves it that stopped in the middle: one file is not there, another is empty.
    for order in ["rm data/user/lost", "set_inode_field data/user/torn size 0"] {
        let done = Command::new("debugfs").args(["-w", "-R", order]).arg(&image).output().expect("runs");
        assert!(done.status.success(), "{done:?}");
    }
    fs::write(slot.join("run"), "another run of the machine").expect("writes");
    assert_eq!(shell(&up, sandbox, "cd /data/user && cat lost torn"), "lost\ntorn\n");
    // What it does from then on counts, and nothing else did.
    shell(&up, sandbox, "cd /data/user && echo more >> edited && rm gone && echo new > new");
    wait_for("the store has what is new", || stored(&up, "new"));
    wait_for("what was edited is there", || stored(&up, "edited").filter(|text| text == "edited\nmore\n"));
    wait_for("what was deleted is not", || stored(&up, "gone").is_none().then_some(()));
    for name in ["lost", "torn"] {
        assert_eq!(stored(&up, name), Some(format!("{name}\n")));
    }
    let listed = up.told_by("GET", "/users/alice/files").to_string();
    assert!(!listed.contains("conflict"), "{listed}");
}
