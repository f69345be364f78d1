// SPDX-License-Identifier: Apache-2.0
//! `postern sandbox shell`, `exec` and `cp` as a person has them: at a terminal, which a test drives.

use crate::running::{Backend, Up, postern, project};
use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

/// Drives `postern ARGUMENTS` through a terminal, step by step.
fn at_terminal(up: &Up, arguments: &[&str], steps: &[Value]) -> (String, i64, bool) {
    let ours = postern(up.folder.path());
    let mut command = Command::new("python3");
    command.arg("-I").arg(project().join("tests/sdk/terminal.py")).arg(ours.get_program());
    command.args(ours.get_args()).args(arguments).env("TERM", "xterm-256color");
    for (name, value) in ours.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.current_dir(ours.get_current_dir().unwrap_or(up.folder.path()));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 starts");
    let mut input = child.stdin.take().expect("is piped");
    for step in steps {
        writeln!(input, "{step}").expect("takes it");
    }
    drop(input);
    let output = child.wait_with_output().expect("ends");
    let told: Value = serde_json::from_slice(&output.stdout).expect("is JSON");
    assert!(told["late"].is_null(), "waited in vain for {}; it showed {}", told["late"], told["shown"]);
    let shown = told["shown"].as_str().expect("text").to_owned();
    (shown, told["code"].as_i64().expect("a code"), told["is_as_before"] == true)
}

fn typed(text: &str) -> Value {
    json!({ "type": text })
}

fn until(text: &str) -> Value {
    json!({ "until": text })
}

fn run(up: &Up, arguments: &[&str]) -> Output {
    postern(up.folder.path()).args(arguments).output().expect("postern runs")
}

fn id(made: &Value) -> String {
    made["sandbox_id"].as_str().expect("an id").to_owned()
}

#[test]
fn a_shell_is_a_terminal_with_colours_sizes_interrupts_and_an_exit_code() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let sandbox = id(&up.sandbox("alice", "shell"));
    let steps = [
        typed("PS1='ready''> '\r"),
        until("ready> "),
        typed("stty size; echo $TERM; printf '\\033[31mr''ed\\033[0m\\n'\r"),
        until("\u{1b}[31mred\u{1b}[0m"),
        json!({ "size": [120, 50] }),
        // The size is on its way: asked for until it is there.
        typed("until stty size | grep '50 1''20'; do sleep 0.1; done\r"),
        until("50 120"),
        // Said by what is at the terminal then: bash loses a Ctrl-C between its fork and that.
        typed("sh -c \"echo be''gun; exec sleep 1000\"\r"),
        until("begun"),
        typed("\u{3}"),
        typed("echo interrupted $?\r"),
        until("interrupted 130"),
        typed("exit 42\r"),
    ];
    let (shown, code, is_as_before) = at_terminal(&up, &["sandbox", "shell", &sandbox], &steps);
    assert_eq!(code, 42, "{shown}");
    assert!(shown.contains("33 91") && shown.contains("xterm-256color"), "{shown}");
    assert!(is_as_before, "the terminal is as it was");
    let (shown, code, _) = at_terminal(
        &up,
        &["sandbox", "shell", &sandbox, "--cwd", "/data", "--", "sh", "-c", "pwd; exit 3"],
        &[],
    );
    assert_eq!((code, shown.contains("/data")), (3, true), "{shown}");
    let (shown, code, _) = at_terminal(&up, &["sandbox", "shell", "sandbox-aaaaaaaaaaaa"], &[]);
    assert_eq!(code, 125, "{shown}");
    let piped = run(&up, &["sandbox", "shell", &sandbox]);
    assert_eq!(piped.status.code(), Some(125), "{piped:?}");
}

#[test]
fn files_and_folders_are_copied_both_ways_and_nothing_comes_out_elsewhere() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let sandbox = id(&up.sandbox("alice", "cp"));
    let here = tempfile::tempdir().expect("a folder");
    let at = |name: &str| here.path().join(name).to_str().expect("text").to_owned();
    let copy = |from: &str, to: &str| run(&up, &["sandbox", "cp", from, to]);
    let inside = |script: &str| {
        let ran = run(&up, &["sandbox", "exec", &sandbox, "--", "sh", "-c", script]);
        assert!(ran.status.success(), "{ran:?}");
        String::from_utf8_lossy(&ran.stdout).into_owned()
    };
    fs::create_dir_all(at("tree/in")).expect("makes");
    fs::write(at("tree/in/run"), "#!").expect("writes");
    fs::set_permissions(at("tree/in/run"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("ours");
    std::os::unix::fs::symlink("in/run", at("tree/link")).expect("links");
    let content: Vec<u8> = (0..3_000_000).map(|place| u8::try_from(place % 251).expect("fits")).collect();
    fs::write(at("big.bin"), &content).expect("writes");
    for (from, to) in [
        (at("big.bin"), "/data/user/renamed.bin"),
        (at("big.bin"), "/data/user/"),
        (at("tree"), "/data/user"),
    ] {
        let copied = copy(&from, &format!("{sandbox}:{to}"));
        assert!(copied.status.success(), "{copied:?}");
    }
    assert_eq!(
        inside("cd /data/user; ls; cat tree/link; stat -c %a tree/in/run; cmp big.bin renamed.bin"),
        "big.bin\nrenamed.bin\ntree\n#!755\n"
    );
    for (from, to) in [
        ("/data/user/big.bin", at("back.bin")),
        ("/data/user/tree", at("back")),
        ("/data/user/tree", here.path().to_str().expect("text").to_owned()),
    ] {
        let copied = copy(&format!("{sandbox}:{from}"), &to);
        assert!(copied.status.success(), "{copied:?}");
    }
    assert!(fs::read(at("back.bin")).expect("reads") == content);
    assert_eq!(fs::read_to_string(at("back/link")).expect("reads"), "#!");
    let streamed = copy(&format!("{sandbox}:/data/user/tree/in/run"), "-");
    assert_eq!(streamed.stdout, b"#!");
    // The agent's links lead nowhere on this machine.
    drop(inside("cd /data/user; mkdir hostile; ln -s /etc hostile/out; ln -s ../../../../up hostile/up"));
    let refused = copy(&format!("{sandbox}:/data/user/hostile"), &at("hostile"));
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(fs::symlink_metadata(at("hostile/out")).is_err(), "no link out of the copy is made");
    // Nor is one that lies here already gone through.
    fs::create_dir(at("outside")).expect("makes");
    fs::create_dir(at("planted")).expect("makes");
    let tree = format!("{sandbox}:/data/user/tree");
    assert!(copy(&tree, &at("planted")).status.success(), "the control: without a link it works");
    fs::remove_dir_all(at("planted/tree/in")).expect("removes");
    std::os::unix::fs::symlink(at("outside"), at("planted/tree/in")).expect("links");
    let refused = copy(&tree, &at("planted"));
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let missing = copy(&format!("{sandbox}:/none"), &at("none"));
    assert!(!missing.status.success());
    assert_eq!(copy(&at("big.bin"), &at("x")).status.code(), Some(2), "both are here");
    assert_eq!(fs::read_dir(at("outside")).expect("lists").count(), 0);
}

#[test]
fn input_logs_usage_and_completion() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let sandbox = id(&up.sandbox("alice", "rest"));
    let mut child = postern(up.folder.path())
        .args(["sandbox", "exec", "-i", &sandbox, "--", "sh", "-c", "wc -c; exit 6"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    child.stdin.take().expect("is piped").write_all(&vec![b'x'; 1_000_000]).expect("takes it");
    let fed = child.wait_with_output().expect("ends");
    assert_eq!((String::from_utf8_lossy(&fed.stdout).trim(), fed.status.code()), ("1000000", Some(6)));
    // What a sandbox wrote is shown on a terminal with its control characters written out, unless asked.
    let colour = ["sandbox", "exec", &sandbox, "--", "printf", "\\033[31mred"];
    let (shown, ..) = at_terminal(&up, &colour, &[]);
    assert!(!shown.contains('\u{1b}') && shown.contains("\\u{1b}[31mred"), "{shown:?}");
    let (shown, ..) =
        at_terminal(&up, &["sandbox", "exec", "--raw", &sandbox, "--", "printf", "\\033[31mred"], &[]);
    assert!(shown.contains("\u{1b}[31mred"), "{shown:?}");
    let logs = run(&up, &["sandbox", "logs", &sandbox]);
    assert!(String::from_utf8_lossy(&logs.stdout).contains("creating -> running"), "{logs:?}");
    assert_eq!(run(&up, &["sandbox", "logs", "sandbox-aaaaaaaaaaaa"]).status.code(), Some(4));
    let top = up.told(&["sandbox", "top", "--once"]);
    assert_eq!(top["sandboxes"][0]["sandbox_id"], sandbox.as_str(), "{top}");
    for (shell, sign) in
        [("bash", "complete -F"), ("zsh", "#compdef postern"), ("fish", "complete -c postern")]
    {
        let printed = run(&up, &["completion", shell]);
        assert!(String::from_utf8_lossy(&printed.stdout).contains(sign), "{shell}");
    }
}
