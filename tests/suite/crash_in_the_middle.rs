// SPDX-License-Identifier: Apache-2.0
//! `kill -9` of an `up` that is in the middle of making, claiming, pausing, resuming, stopping, waking
//! and destroying sandboxes and of running commands in them, at many moments; and what the next start makes of each.
//!
//! `make prove-crash ROUNDS=` plays many rounds of the same at each isolation, and tells in how many each
//! transition was cut in the middle.

use crate::crash::bearing;
use crate::running::{Backend, Up, http, try_http, wait_for};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Callers that go on at the same time.
const CALLERS: usize = 3;
/// Rounds of the short form: each kills at another point.
const ROUNDS: usize = 3;
/// How many rounds `make prove-crash` wants.
const WANTED: &str = "POSTERN_PROVE_ROUNDS";
/// Which point it begins at, so that a proof can be played in parts.
const FROM: &str = "POSTERN_PROVE_FROM";
/// The isolation that it is played at; without it that which `up` chooses.
const LEVEL: &str = "POSTERN_PROVE_LEVEL";
/// Sandboxes that are kept ready meanwhile.
const WARM: &str = "warm_pool = 2\nmemory = \"128MiB\"\ndisk = \"64MiB\"\n";

/// What a caller was told of one sandbox.
#[derive(Debug, Clone, Default)]
struct Told {
    user: String,
    /// The first token of its session.
    token: String,
    /// A command in it has written this file, and the caller knows.
    wrote: bool,
    /// Somebody asked for its end.
    asked_to_go: bool,
    /// The caller knows that it is gone.
    gone: bool,
}

/// What all callers were told, by sandbox.
type Known = Arc<Mutex<BTreeMap<String, Told>>>;

/// What each caller is doing: the transition that its call makes.
type Doing = Arc<Mutex<BTreeMap<usize, &'static str>>>;

/// A caller: what it knows, and where it tells what it does.
struct Caller {
    number: usize,
    round: usize,
    to: (String, String),
    known: Known,
    doing: Doing,
}

impl Caller {
    /// One call; `None` if nobody answers any more.
    fn send(&self, doing: &'static str, method: &str, path: &str, body: Option<&Value>) -> Option<Value> {
        let (url, key) = &self.to;
        self.doing.lock().expect("no panic").insert(self.number, doing);
        let answer = try_http(url, method, path, &[("Authorization", key)], body).ok()?;
        self.doing.lock().expect("no panic").remove(&self.number);
        Some(serde_json::from_str::<Value>(&answer.text).unwrap_or_default())
    }

    fn note(&self, id: &str, change: impl Fn(&mut Told)) {
        change(self.known.lock().expect("no panic").entry(id.to_owned()).or_default());
    }

    /// Calls until nobody answers any more: makes a sandbox or claims one that is ready, writes a file
    /// in it, pauses and resumes, stops and wakes some, and destroys every second one.
    fn call_on(&self) -> Option<()> {
        let user = format!("user-{}", self.number);
        for turn in 0.. {
            let conversation = format!("c-{}-{}-{turn}", self.round, self.number);
            let (doing, template) =
                if turn % 3 == 0 { ("creating", "default") } else { ("claiming", "warm") };
            let wish = json!({ "user_id": user, "conversation_id": conversation, "template": template });
            let made = self.send(doing, "POST", "/sandbox?wait=running", Some(&wish))?;
            let Some(id) = made["sandbox_id"].as_str() else { continue };
            let token = made["token"].as_str().unwrap_or_default();
            self.note(id, |told| {
                told.user.clone_from(&user);
                token.clone_into(&mut told.token);
            });
            let command = format!("echo {id} > /data/user/{id}");
            let exec = json!({ "command": command, "collect": true });
            let ran = self.send("running a command", "POST", &format!("/sandbox/{id}/exec"), Some(&exec))?;
            self.note(id, |told| told.wrote = ran["exit_code"] == 0);
            if turn % 2 == 0 {
                self.send("pausing", "POST", &format!("/sandbox/{id}/pause"), None)?;
                self.send("resuming", "POST", &format!("/sandbox/{id}/resume"), None)?;
                self.send("stopping", "POST", &format!("/sandbox/{id}/stop"), None)?;
                self.send("waking", "POST", &format!("/sandbox/{id}/resume"), None)?;
            } else {
                self.note(id, |told| told.asked_to_go = true);
                let gone = self.send("destroying", "DELETE", &format!("/sandbox/{id}"), None)?;
                self.note(id, |told| told.gone = gone["status"] == "destroyed");
            }
        }
        None
    }
}

/// The points at which rounds kill: the first sight of something that comes and goes, or the middle
/// of a call. The last ones are of memory.
const POINTS: [(&str, Point); 18] = [
    ("a sandbox has a folder", Point::Run("")),
    ("a command has run", Point::Told(|told| told.wrote)),
    ("a sandbox has ended, and its files are still here", Point::Run("exit.json")),
    ("a sandbox is being claimed", Point::Doing("claiming")),
    ("a sandbox is being paused", Point::Doing("pausing")),
    ("a sandbox is being destroyed", Point::Doing("destroying")),
    ("a shim is told what to make", Point::Run("spec.json")),
    ("a sandbox is being resumed", Point::Doing("resuming")),
    ("an end was asked for", Point::Told(|told| told.asked_to_go)),
    ("files were brought in", Point::Files(".json")),
    ("a sandbox is being made", Point::Doing("creating")),
    ("a shim answers", Point::Run("control.sock")),
    ("a command runs", Point::Doing("running a command")),
    ("files were kept", Point::Files(".kept")),
    ("a sandbox is being stopped", Point::Doing("stopping")),
    ("a sandbox is waking", Point::Doing("waking")),
    ("the picture of a sandbox's memory is written or read", Point::Run("memory/pages.img")),
    ("memory was sealed", Point::Memory),
];

/// Points that there are only where memory is kept.
const OF_MEMORY: usize = 2;

/// The transitions that a round may cut.
const TRANSITIONS: [&str; 10] = [
    "creating",
    "claiming",
    "running a command",
    "pausing",
    "resuming",
    "stopping",
    "waking",
    "destroying",
    "making a warm one",
    "ending a warm one",
];

#[derive(Clone, Copy)]
enum Point {
    /// A file in the run folder of a sandbox that is not one of before.
    Run(&'static str),
    /// A file beside the users' files with this ending.
    Files(&'static str),
    /// The sealed picture of a sandbox's memory.
    Memory,
    /// What a caller was told.
    Told(fn(&Told) -> bool),
    /// What a caller is in the middle of.
    Doing(&'static str),
}

impl Point {
    fn count(self, run: &Path, data: &Path, (known, doing): (&Known, &Doing)) -> usize {
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
            Self::Memory => names(&data.join("memory")).len(),
            Self::Told(is_so) => known.lock().expect("no panic").values().filter(|told| is_so(told)).count(),
            Self::Doing(what) => doing.lock().expect("no panic").values().filter(|it| **it == what).count(),
        }
    }

    /// Waits for it, and in the middle of a call a little longer: another moment each round.
    fn come(self, what: &str, round: usize, mut count: impl FnMut() -> usize, before: usize) {
        if !matches!(self, Self::Doing(_)) {
            wait_for(what, || (count() > before).then_some(()));
            return;
        }
        let begun = Instant::now();
        while count() == 0 {
            assert!(begun.elapsed() < Duration::from_secs(90), "{what} did not come about in time");
            std::thread::park_timeout(Duration::from_micros(200));
        }
        let later = Duration::from_micros(u64::try_from(round * 7919 % 16 * 500).expect("is small"));
        let until = Instant::now() + later;
        while Instant::now() < until {
            std::thread::yield_now();
        }
    }
}

/// What the database answers, a line for each row.
fn query(data: &Path, select: &str) -> String {
    let script = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], timeout=30)\n\
        for row in c.execute(sys.argv[2]): print(*row)";
    let mut python = Command::new("/usr/bin/python3");
    let read = python.args(["-c", script]).arg(data.join("postern.db")).arg(select).output();
    let read = read.expect("python runs");
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    String::from_utf8(read.stdout).expect("is text")
}

/// The warm sandboxes that the database knows, by status.
fn warm(data: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let read = query(data, "select status, id from warm_sandboxes");
    let mut warm: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (status, id) in read.lines().filter_map(|line| line.split_once(' ')) {
        warm.entry(status.to_owned()).or_default().insert(id.to_owned());
    }
    warm
}

/// Sessions that live on although their sandbox is over: its own, and that of its sync.
fn sessions_of_the_over(data: &Path) -> String {
    query(
        data,
        "select 'session', sandbox_id from sessions join sandboxes on sandboxes.id = sandbox_id \
         where sessions.ended_at_micros is null and status in ('destroyed', 'failed') \
         union all select 'session of a sync', sandbox_id from sync_sessions join sandboxes \
         on sandboxes.id = sandbox_id where sync_sessions.ended_at_micros is null \
         and status in ('destroyed', 'failed')",
    )
}

/// The sandboxes that anything on this machine says it belongs to: folders and the sockets in them,
/// processes, mounts, loop devices, cgroups.
fn there(run: &Path, data: &Path) -> BTreeSet<String> {
    let installation = run.file_name().expect("is named after it").to_string_lossy().into_owned();
    let folders = [run.to_owned(), data.join("slots")];
    let folders = folders.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    let folders = folders.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let places = [run, data].map(|folder| bearing(&folder.to_string_lossy())).concat();
    let groups = bearing(&format!("postern-{installation}-"));
    folders.chain(places).chain(groups).flat_map(|text| ids_in(&text)).collect()
}

/// Every id of a sandbox in a text.
fn ids_in(text: &str) -> Vec<String> {
    const LENGTH: usize = 12;
    let id = |rest: &str| {
        let random = rest.get(..LENGTH)?;
        let is_one = random.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        is_one.then(|| format!("sandbox-{random}"))
    };
    text.split("sandbox-").skip(1).filter_map(id).collect()
}

/// What lies on this machine of a sandbox that is over.
fn left_of(id: &str, run: &Path, data: &Path) -> Vec<String> {
    let folders = [run.join(id), data.join("slots").join(id)];
    let folders =
        folders.iter().filter(|folder| folder.exists()).map(|it| format!("folder {}", it.display()));
    bearing(id).into_iter().chain(folders).collect()
}

/// All sandboxes that there are and were, page by page.
fn list(up: &Up) -> BTreeSet<String> {
    let (mut listed, mut after) = (BTreeSet::new(), String::new());
    loop {
        let page = up.call("GET", &format!("/sandbox?limit=1000{after}"), None).json();
        listed.extend(page["sandboxes"].as_array().expect("a list").iter().map(id_of));
        let Some(next) = page["next"].as_str() else { return listed };
        after = format!("&after={next}");
    }
}

/// Checks each sandbox after the start that followed a crash, and that there is nothing else; how long
/// it took until all that nobody wants was gone. Those that are `over` were checked before.
fn check(up: &Up, known: &Known, over: &mut BTreeSet<String>) -> Duration {
    let begun = Instant::now();
    let (run, data) = (PathBuf::from(up.written("run")), up.data());
    let listed = list(up);
    let known = known.lock().expect("no panic").clone();
    for id in known.keys() {
        assert!(listed.contains(id), "the caller was told of {id}, and nobody knows it");
    }
    for id in listed.difference(&over.clone()) {
        let mut settled = wait_for("the state of each sandbox", || {
            let found = up.call("GET", &format!("/sandbox/{id}"), None).json();
            (!matches!(found["status"].as_str(), Some("creating" | "destroying"))).then_some(found)
        });
        if settled["status"] == "paused" || settled["status"] == "stopped" {
            settled = up.call("POST", &format!("/sandbox/{id}/resume"), None).json();
        }
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
        if !told.token.is_empty() {
            assert_eq!(at_the_door(up, &told.token), 401, "the token of {id} is good after its end");
        }
        if told.wrote {
            let kept = data.join("files/tenants/default/users").join(&told.user).join("files").join(id);
            assert_eq!(fs::read_to_string(&kept).ok(), Some(format!("{id}\n")), "{}", kept.display());
        }
        over.insert(id.clone());
    }
    // What there is now is a sandbox that runs, or one that is kept ready.
    let mut cleaned = Duration::ZERO;
    wait_for("the end of what nobody knows", || {
        // Before the database is asked, so that one that is just being made is known.
        let there = there(&run, &data);
        let kept: BTreeSet<String> = warm(&data).into_values().flatten().collect();
        let is_known = |id: &String| kept.contains(id) || listed.contains(id) && !over.contains(id);
        cleaned = begun.elapsed();
        (there.iter().all(is_known) && sessions_of_the_over(&data).is_empty()).then_some(())
    });
    cleaned
}

/// What the gateway answers to a token; 403 to that of a session which lives, for it comes from elsewhere.
fn at_the_door(up: &Up, token: &str) -> u16 {
    let authorization = format!("Bearer {token}");
    let headers = [("Authorization", authorization.as_str())];
    http(&up.written("gateway"), "GET", "/support-desk/orders", &headers, None).status
}

/// The isolation that sandboxes here have, which is the one that was asked for.
fn isolation(up: &Up, wanted: Option<&str>) -> String {
    let made = up.sandbox("isolation", "isolation");
    let found = made["isolation"].as_str().expect("has one").to_owned();
    assert!(wanted.is_none_or(|wanted| wanted == found), "{wanted:?} was asked for, and it is {found}");
    assert_eq!(at_the_door(up, made["token"].as_str().expect("a token")), 403, "its session lives");
    let gone = up.call("DELETE", &format!("/sandbox/{}", id_of(&made)), None).json();
    assert_eq!(gone["status"], "destroyed", "{gone}");
    found
}

fn id_of(sandbox: &Value) -> String {
    sandbox["sandbox_id"].as_str().expect("an id").to_owned()
}

fn exec(up: &Up, id: &str, command: &str) -> String {
    let body = json!({ "command": command, "collect": true });
    let ran = up.call("POST", &format!("/sandbox/{id}/exec"), Some(&body)).json();
    ran["stdout"].as_str().unwrap_or_else(|| panic!("{ran}")).to_owned()
}

/// What was cut in the middle when nobody answered any more.
fn cut(doing: &Doing, data: &Path) -> BTreeSet<&'static str> {
    let mut cut: BTreeSet<&'static str> = doing.lock().expect("no panic").values().copied().collect();
    let warm = warm(data);
    cut.extend(warm.contains_key("making").then_some("making a warm one"));
    cut.extend(warm.contains_key("ending").then_some("ending a warm one"));
    cut
}

fn number(variable: &str) -> Option<usize> {
    std::env::var_os(variable).and_then(|value| value.to_str()?.parse().ok())
}

/// One round: callers go on, until the point has come; then nobody gets to clean up. What was cut.
fn round(up: Up, round: usize, (known, settings): (&Known, &[(&str, &str)])) -> (Up, BTreeSet<&'static str>) {
    let keeps_memory = !settings.contains(&("POSTERN_ISOLATION", "namespaces"));
    let points = if keeps_memory { POINTS.len() } else { POINTS.len() - OF_MEMORY };
    let (what, point) = POINTS[round % points];
    let (run, data, doing) = (PathBuf::from(up.written("run")), up.data(), Doing::default());
    let template = up.config().join("templates/warm.toml");
    // A template that changes has warm ones ended and others made.
    let size = 128 + 16 * (round % 2);
    fs::create_dir_all(template.parent().expect("has one")).expect("makes folders");
    fs::write(template, WARM.replace("128", &size.to_string())).expect("writes");
    let before = point.count(&run, &data, (known, &doing));
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let (known, doing) = (Arc::clone(known), Arc::clone(&doing));
            let caller = Caller { number, round, to: up.caller(), known, doing };
            std::thread::spawn(move || caller.call_on())
        })
        .collect();
    point.come(what, round, || point.count(&run, &data, (known, &doing)), before);
    let folder = up.crash();
    for caller in callers {
        caller.join().expect("no panic");
    }
    let cut = cut(&doing, &data);
    (Up::on_with(folder, settings), cut)
}

#[test]
fn a_crash_in_the_middle_of_everything_loses_nothing() {
    let (rounds, from) = (number(WANTED).unwrap_or(ROUNDS), number(FROM).unwrap_or(0));
    let level = std::env::var_os(LEVEL).map(|level| level.into_string().expect("is text"));
    let settings: Vec<(&str, &str)> =
        level.as_deref().map(|level| ("POSTERN_ISOLATION", level)).into_iter().collect();
    let backend = Backend::start();
    let mut up = Up::start_with(&backend, &settings);
    println!("isolation {}", isolation(&up, level.as_deref()));
    let (known, mut over) = (Known::default(), BTreeSet::new());
    let mut cuts: BTreeMap<&str, usize> = TRANSITIONS.iter().map(|transition| (*transition, 0)).collect();
    let mut longest = Duration::ZERO;
    for number in from..from + rounds {
        let (next, cut) = round(up, number, (&known, &settings));
        up = next;
        longest = longest.max(check(&up, &known, &mut over));
        for transition in &cut {
            *cuts.entry(transition).or_default() += 1;
        }
        // What runs on goes, so that every round begins alike and the machine stays small.
        let listed = up.call("GET", "/sandbox?status=running&limit=1000", None).json();
        for id in listed["sandboxes"].as_array().expect("a list").iter().map(id_of) {
            let gone = up.call("DELETE", &format!("/sandbox/{id}"), None).json();
            assert_eq!(gone["status"], "destroyed", "{gone}");
            if let Some(told) = known.lock().expect("no panic").get_mut(&id) {
                (told.asked_to_go, told.gone) = (true, true);
            }
        }
        println!(
            "round {} of {} passed: killed when {}; cut: {cut:?}",
            number + 1,
            from + rounds,
            POINTS[number % POINTS.len()].0
        );
    }
    for (transition, count) in &cuts {
        println!("transition {transition}: cut {count} times");
    }
    println!("what nobody wanted was gone after {:.1} s at most", longest.as_secs_f64());
    let (run, ids) = (up.written("run"), known.lock().expect("no panic").keys().cloned().collect::<Vec<_>>());
    let folder = up.stop();
    wait_for("the end of everything", || {
        let left = [run.as_str(), &folder.path().to_string_lossy()].map(bearing).concat();
        let left = left.into_iter().chain(ids.iter().flat_map(|id| bearing(id))).count();
        (left == 0).then_some(())
    });
}
