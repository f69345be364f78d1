// SPDX-License-Identifier: Apache-2.0
//! Sandboxes whose users' files lie in a service: what is near them of it, and what their machine has at
//! hand.

use crate::running::{Backend, Up, http, wait_for};
use crate::sync::{processes, syncs_of};
use serde_json::{Value, json};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const SECRET: &str = "a-secret-of-this-test";

/// versitygw on a folder, at one port however often it is started.
pub(crate) struct Store {
    program: PathBuf,
    port: u16,
    folder: tempfile::TempDir,
    child: Child,
}

impl Store {
    /// `None` if it is left out on purpose.
    pub(crate) fn start() -> Option<Self> {
        let variable = |name: &str| std::env::var_os(name);
        let home = || variable("HOME").map(|home| PathBuf::from(home).join(".cache/postern"));
        let cache = variable("POSTERN_CACHE").map(PathBuf::from).or_else(home).expect("HOME is set");
        let program = cache.join("versitygw/versitygw");
        let may_skip = variable("POSTERN_ALLOW_SKIP").is_some_and(|value| value == "1");
        assert!(
            program.exists() || may_skip,
            "no versitygw: run scripts/stores.sh, or set POSTERN_ALLOW_SKIP=1"
        );
        if !program.exists() {
            println!("left out: no {}", program.display());
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("has one").port();
        let folder = tempfile::Builder::new().prefix("postern-loss-").tempdir().expect("a folder");
        fs::create_dir(folder.path().join("bucket")).expect("makes");
        let child = Self::run(&program, port, folder.path());
        Some(Self { program, port, folder, child })
    }

    fn run(program: &Path, port: u16, folder: &Path) -> Child {
        let mut command = Command::new(program);
        command.args(["--port", &format!("127.0.0.1:{port}"), "--access", "tester", "--secret", SECRET]);
        command.args(["--quiet", "posix"]).arg(folder);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("starts");
        wait_for("the store", || TcpStream::connect(("127.0.0.1", port)).ok());
        child
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("is killed");
        self.child.wait().expect("has ended");
    }

    pub(crate) fn again(&mut self) {
        self.child = Self::run(&self.program, self.port, self.folder.path());
    }

    /// The settings of whoever uses it.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        [
            ("STORAGE_BACKEND", "s3".to_owned()),
            ("STORAGE_BUCKET", "bucket".to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port)),
            ("AWS_ACCESS_KEY_ID", "tester".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// Where a user's files are.
    pub(crate) fn files(&self, user: &str) -> PathBuf {
        self.folder.path().join("bucket/tenants/default/users").join(user).join("files")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.child.kill().is_ok() && self.child.wait().is_ok();
    }
}

/// Settings as whoever starts a program takes them.
pub(crate) fn borrowed(settings: &[(String, String)]) -> Vec<(&str, &str)> {
    settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// `postern up` on a store, and a command in a sandbox.
struct Stage {
    up: Up,
    store: Store,
    _backend: Backend,
}

impl Stage {
    fn start(more: &[(&str, &str)]) -> Option<Self> {
        let (store, backend) = (Store::start()?, Backend::start());
        let settings = store.settings();
        let up = Up::start_with(&backend, &[&borrowed(&settings), more].concat());
        Some(Self { up, store, _backend: backend })
    }

    fn sandbox(&self, conversation: &str) -> String {
        let made = self.up.sandbox("alice", conversation);
        made["sandbox_id"].as_str().expect("an id").to_owned()
    }

    fn run(&self, sandbox: &str, command: &[&str]) -> String {
        let exec = json!({ "command": command, "collect": true });
        let ran = self.up.call("POST", &format!("/sandbox/{sandbox}/exec"), Some(&exec)).json();
        assert_eq!(ran["exit_code"], 0, "{command:?}: {ran}\n{}", self.up.log());
        ran["stdout"].as_str().unwrap_or_default().to_owned()
    }

    fn destroy(&self, sandbox: &str) {
        let gone = self.up.call("DELETE", &format!("/sandbox/{sandbox}"), None);
        assert_eq!(gone.status, 200, "{gone:?}\n{}", self.up.log());
    }
}

/// The next sandbox on this machine gets from the store only what differs.
#[test]
fn what_a_sandbox_left_on_this_machine_does_not_come_from_the_store_again() {
    let Some(stage) = Stage::start(&[]) else { return };
    let first = stage.sandbox("c1");
    let write = "cd /data/user && mkdir -p d && echo same > d/same && echo old > other && chmod 750 d/same";
    stage.run(&first, &["sh", "-c", write]);
    stage.destroy(&first);
    let put = stage.up.call("PUT", "/users/alice/files/other", Some(&json!("new")));
    assert!(put.status == 200 || put.status == 201, "{put:?}");
    // Past the store: what comes from there is not what it was, and would be refused.
    let kept = stage.store.files("alice").join("d/same");
    assert_eq!(fs::read_to_string(&kept).expect("is there"), "same\n");
    fs::write(&kept, "SAME\n").expect("writes");
    let second = stage.sandbox("c2");
    let shown = stage.run(&second, &["sh", "-c", "cd /data/user && cat d/same other && stat -c %a d/same"]);
    assert_eq!(shown, "same\n\"new\"750\n");
    // What was filled in is known to be the store's: changed, it replaces that and makes no conflict.
    stage.run(&second, &["sh", "-c", "echo changed > /data/user/d/same"]);
    stage.destroy(&second);
    assert_eq!(fs::read_to_string(&kept).expect("is there"), "changed\n");
    let names = fs::read_dir(kept.parent().expect("has one")).expect("reads").flatten();
    assert_eq!(names.count(), 1, "a conflict with what was filled in");
    let erased = stage.up.call("DELETE", "/users/alice", None);
    assert_eq!(erased.status, 200, "{erased:?}");
    let kept = erased.json()["kept"].clone();
    let versions = "older versions of objects, if the bucket keeps any";
    assert!(kept.as_array().expect("a list").iter().any(|kept| kept["what"] == versions), "{kept}");
    let left = Command::new("find").arg(stage.up.data().join("cache")).args(["-type", "f"]).output();
    assert_eq!(String::from_utf8_lossy(&left.expect("runs").stdout), "", "the cache is erased too");
    stage.up.stop();
}

/// Without a cache it does, and is compared.
#[test]
fn without_a_cache_everything_comes_from_the_store() {
    let Some(stage) = Stage::start(&[("POSTERN_FILES_CACHE_SIZE", "0")]) else { return };
    let first = stage.sandbox("c1");
    stage.run(&first, &["sh", "-c", "echo same > /data/user/same"]);
    stage.destroy(&first);
    assert!(!stage.up.data().join("cache").exists());
    let second = stage.sandbox("c2");
    assert_eq!(stage.run(&second, &["cat", "/data/user/same"]), "same\n");
    stage.up.stop();
}

/// Past the orchestrator, by the store's own URL: judged in the end, and then every sandbox's of its user.
#[test]
fn an_upload_by_the_stores_own_url_is_judged_and_seen_by_a_sandbox_that_runs() {
    let Some(stage) = Stage::start(&[]) else { return };
    let sandbox = stage.sandbox("c1");
    let begin = |kind: &str| {
        let wish = json!({ "path": "in/note", "size": 7, "content_type": kind });
        let begun = stage.up.call("POST", "/users/alice/uploads", Some(&wish));
        assert_eq!(begun.status, 201, "{begun:?}");
        begun.json()
    };
    let ask = |method: &str, url: &Value, body: Option<&Value>| {
        let url = url.as_str().expect("a URL");
        let (store, path) = url.split_at(url.find("/bucket/").expect("the store's own"));
        http(store, method, path, &[], body)
    };
    // JSON, as which it is sent too.
    let hello = json!("hello");
    let completed = |upload: &Value| {
        let put = ask("PUT", &upload["parts"][0]["url"], Some(&hello));
        assert_eq!(put.status, 200, "{put:?}");
        let id = upload["upload_id"].as_str().expect("an id");
        stage.up.call("POST", &format!("/users/alice/uploads/{id}/complete"), Some(&json!({})))
    };
    let image = begin("image/png");
    assert_eq!(image["parts"][0]["headers"]["Content-Type"], "image/png");
    let refused = completed(&image);
    assert_eq!((refused.status, refused.code().as_str()), (422, "invalid-input"), "{refused:?}");
    assert!(refused.text.contains("the upload's type"), "{refused:?}");
    let done = completed(&begin("application/json"));
    assert_eq!(done.status, 200, "{done:?}");
    let shown = || stage.run(&sandbox, &["sh", "-c", "cat /data/user/in/note 2>/dev/null; true"]);
    wait_for("the upload in the sandbox", || (shown() == "\"hello\"").then_some(()));
    // The way back is a URL of the store's too, for that file and to read it.
    let signed = stage.up.call("POST", "/users/alice/downloads", Some(&json!({ "path": "in/note" }))).json();
    let read = ask("GET", &signed["url"], None);
    assert_eq!((read.status, read.text.as_str()), (200, "\"hello\""), "{read:?}");
    let other = json!(signed["url"].as_str().expect("a URL").replace("in/note", "in/other"));
    assert_eq!(ask("GET", &other, None).status, 403);
    assert!(ask("PUT", &signed["url"], Some(&hello)).status >= 400);
    stage.up.stop();
}

/// With a store that wants a credential: who carries files has none, and cannot get to the store.
#[test]
fn no_credential_and_no_store_is_near_a_sandbox_or_its_sync() {
    let Some(stage) = Stage::start(&[]) else { return };
    let (sandbox, port, pid) = (stage.sandbox("c1"), stage.store.port, stage.up.pid());
    let told = |pid: u32| {
        let read = |name| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        String::from_utf8_lossy(&[read("environ"), read("cmdline")].concat()).into_owned()
    };
    assert!(told(pid).contains(SECRET), "the control: the orchestrator has it");
    let run = stage.up.written("run");
    let syncs = wait_for("the sync", || Some(syncs_of(&run, &sandbox)).filter(|syncs| syncs.len() > 1));
    for pid in syncs {
        assert!(!told(pid).contains(SECRET), "{}", told(pid));
        // Of another network there is nothing but its own loopback, where nobody listens.
        let connections = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
        let outer = fs::read_to_string("/proc/net/tcp").expect("reads");
        let listens = format!(":{port:04X} ");
        assert!(outer.contains(&listens), "the control: {outer}");
        let is_apart = !connections.contains(&listens);
        // The outer process of bubblewrap waits for the one within and speaks to nobody.
        assert!(is_apart || processes()[&pid].contains("--unshare-all"), "{connections}");
    }
    let inside = format!(
        "import os, socket\nprint({SECRET:?} in str(os.environ))\nfor host in ('127.0.0.1', '169.254.169.254'):\n  \
         try: socket.create_connection((host, {port} if host[0] == '1' and host[1] == '2' else 80), 3); print('reached', host)\n  \
         except OSError: print('no way')"
    );
    assert_eq!(stage.run(&sandbox, &["python3", "-I", "-c", &inside]), "False\nno way\nno way\n");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok(), "the control: from outside it is reached");
    stage.up.stop();
}
