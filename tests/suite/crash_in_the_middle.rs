// SPDX-License-Identifier: Apache-2.0
//! `kill -9` of an `up` that is in the middle of making sandboxes, running commands in them and
//! destroying them, at several points; and what the next start makes of each sandbox.
//!
//! `make prove-crash ROUNDS=` plays many rounds of the same.

use crate::crash::bearing;
use crate::running::{Backend, Up, try_http, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Callers that go on at the same time.
const CALLERS: usize = 3;
/// Rounds of the short form: each kills at another point.
const ROUNDS: usize = 3;
/// How many rounds `make prove-crash` wants.
const WANTED: &str = "POSTERN_PROVE_ROUNDS";

/// What a caller was told of one sandbox.
#[derive(Debug, Clone, Default)]
struct Told {
    user: String,
    /// A command in it has written this file, and the caller knows.
    wrote: bool,
    /// Somebody asked for its end.
    asked_to_go: bool,
    /// The caller knows that it is gone.
    gone: bool,
}

/// What all callers were told, by sandbox.
type Known = Arc<Mutex<BTreeMap<String, Told>>>;

/// Calls until nobody answers any more: makes a sandbox, writes a file in it, and destroys every
/// second one.
fn call_on(round: usize, caller: usize, (url, key): (String, String), known: &Known) {
    let send = |method: &str, path: &str, body: Option<Value>| {
        let answer = try_http(&url, method, path, &[("Authorization", &key)], body.as_ref()).ok()?;
        Some(serde_json::from_str::<Value>(&answer.text).unwrap_or_default())
    };
    let note = |id: &str, change: &dyn Fn(&mut Told)| {
        change(known.lock().expect("no panic").entry(id.to_owned()).or_default());
    };
    for number in 0.. {
        let user = format!("user-{caller}");
        let conversation = format!("c-{round}-{caller}-{number}");
        let wish = json!({ "user_id": user, "conversation_id": conversation });
        let Some(made) = send("POST", "/sandbox?wait=running", Some(wish)) else { return };
        let Some(id) = made["sandbox_id"].as_str() else { continue };
        note(id, &|told| told.user.clone_from(&user));
        let command = format!("echo {id} > /data/user/{id}");
        let exec = json!({ "command": command, "collect": true });
        let Some(ran) = send("POST", &format!("/sandbox/{id}/exec"), Some(exec)) else { return };
        note(id, &|told| told.wrote = ran["exit_code"] == 0);
        if number % 2 == 1 {
            note(id, &|told| told.asked_to_go = true);
            let Some(gone) = send("DELETE", &format!("/sandbox/{id}"), None) else { return };
            note(id, &|told| told.gone = gone["status"] == "destroyed");
        }
    }
}

/// The points at which rounds kill, each the first sight of something that comes and goes.
const POINTS: [(&str, Point); 8] = [
    ("a sandbox has a folder", Point::Run("")),
    ("a command has run", Point::Told(|told| told.wrote)),
    ("a sandbox has ended, and its files are still here", Point::Run("exit.json")),
    ("a shim is told what to make", Point::Run("spec.json")),
    ("an end was asked for", Point::Told(|told| told.asked_to_go)),
    ("files were brought in", Point::Files(".json")),
    ("a shim answers", Point::Run("control.sock")),
    ("files were kept", Point::Files(".kept")),
];

#[derive(Clone, Copy)]
enum Point {
    /// A file in the run folder of a sandbox that is not one of before.
    Run(&'static str),
    /// A file beside the users' files with this ending.
    Files(&'static str),
    /// What a caller was told.
    Told(fn(&Told) -> bool),
}

impl Point {
    fn count(self, run: &Path, data: &Path, known: &Known) -> usize {
        let names = |folder: &Path| -> Vec<PathBuf> {
            fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
        };
        match self {
            Self::Run(file) => {
                let is_one = |path: &Path| path.to_string_lossy().contains("sandbox-");
                names(run).iter().filter(|path| is_one(path) && path.join(file).exists()).count()
            }
            Self::Files(ending) => {
                let files = names(&data.join("files/hydrated"));
                files.iter().filter(|path| path.to_string_lossy().ends_with(ending)).count()
            }
            Self::Told(is_so) => known.lock().expect("no panic").values().filter(|told| is_so(told)).count(),
        }
    }
}

/// What lies on this machine of a sandbox that is over.
fn left_of(id: &str, run: &Path, data: &Path) -> Vec<String> {
    let folders = [run.join(id), data.join("slots").join(id)];
    let folders =
        folders.iter().filter(|folder| folder.exists()).map(|it| format!("folder {}", it.display()));
    bearing(id).into_iter().chain(folders).collect()
}

/// Checks each sandbox after the start that followed a crash.
fn check(up: &Up, known: &Known) {
    let (run, data) = (PathBuf::from(up.written("run")), up.data());
    let listed = up.call("GET", "/sandbox?limit=1000", None).json();
    let listed: Vec<String> = listed["sandboxes"].as_array().expect("a list").iter().map(id_of).collect();
    let known = known.lock().expect("no panic").clone();
    for id in known.keys() {
        assert!(listed.contains(id), "the caller was told of {id}, and nobody knows it");
    }
    for id in &listed {
        let settled = wait_for("the state of each sandbox", || {
            let found = up.call("GET", &format!("/sandbox/{id}"), None).json();
            (!matches!(found["status"].as_str(), Some("creating" | "destroying"))).then_some(found)
        });
        let told = known.get(id).cloned().unwrap_or_default();
        let status = settled["status"].as_str().expect("has one");
        if status == "running" {
            assert!(!told.gone, "the caller was told that {id} is gone");
            let shown = exec(up, id, &format!("cat /data/user/{id} 2>/dev/null; true"));
            assert!(!told.wrote || shown == format!("{id}\n"), "{id} lost what was written in it: {shown:?}");
            continue;
        }
        assert!(settled["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{settled}");
        assert!(told.user.is_empty() || told.asked_to_go, "{id} ran, and nobody wanted its end: {settled}");
        wait_for("the end of all that there was of a sandbox", || {
            left_of(id, &run, &data).is_empty().then_some(())
        });
        if told.wrote {
            let kept = data.join("files/tenants/default/users").join(&told.user).join("files").join(id);
            assert_eq!(fs::read_to_string(&kept).ok(), Some(format!("{id}\n")), "{}", kept.display());
        }
    }
}

fn id_of(sandbox: &Value) -> String {
    sandbox["sandbox_id"].as_str().expect("an id").to_owned()
}

fn exec(up: &Up, id: &str, command: &str) -> String {
    let body = json!({ "command": command, "collect": true });
    let ran = up.call("POST", &format!("/sandbox/{id}/exec"), Some(&body)).json();
    ran["stdout"].as_str().unwrap_or_else(|| panic!("{ran}")).to_owned()
}

#[test]
fn a_crash_in_the_middle_of_everything_loses_nothing() {
    let rounds = std::env::var_os(WANTED).and_then(|rounds| rounds.to_str()?.parse().ok()).unwrap_or(ROUNDS);
    let backend = Backend::start();
    let mut up = Up::start(&backend);
    let known = Known::default();
    for round in 0..rounds {
        let (what, point) = POINTS[round % POINTS.len()];
        let (run, data) = (PathBuf::from(up.written("run")), up.data());
        let before = point.count(&run, &data, &known);
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (known, to) = (Arc::clone(&known), up.caller());
                std::thread::spawn(move || call_on(round, caller, to, &known))
            })
            .collect();
        wait_for(what, || (point.count(&run, &data, &known) > before).then_some(()));
        let folder = up.crash();
        for caller in callers {
            caller.join().expect("no panic");
        }
        up = Up::on(folder);
        check(&up, &known);
        // What runs on goes, so that every round begins alike and the machine stays small.
        let listed = up.call("GET", "/sandbox?status=running&limit=1000", None).json();
        for id in listed["sandboxes"].as_array().expect("a list").iter().map(id_of) {
            let gone = up.call("DELETE", &format!("/sandbox/{id}"), None).json();
            assert_eq!(gone["status"], "destroyed", "{gone}");
            if let Some(told) = known.lock().expect("no panic").get_mut(&id) {
                (told.asked_to_go, told.gone) = (true, true);
            }
        }
        println!("round {} of {rounds} passed: killed when {what}", round + 1);
    }
    let (run, ids) = (up.written("run"), known.lock().expect("no panic").keys().cloned().collect::<Vec<_>>());
    let folder = up.stop();
    wait_for("the end of everything", || {
        let left = [run.as_str(), &folder.path().to_string_lossy()].map(bearing).concat();
        let left = left.into_iter().chain(ids.iter().flat_map(|id| bearing(id))).count();
        (left == 0).then_some(())
    });
}
