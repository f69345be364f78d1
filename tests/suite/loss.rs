// SPDX-License-Identifier: Apache-2.0
//! `kill -9` of syncs, sandboxes, the store and the orchestrator at random moments while agents write:
//! what a sync was told is in the store is there, bit for bit; nothing half written is ever seen in it;
//! of what two sandboxes wrote into one file at once, both is kept.
//!
//! The store is versitygw over a folder: it keeps what it acknowledged when it is killed, and what is
//! in it can be seen from beside. `make prove-loss ROUNDS=` plays many rounds.

mod written;

use crate::running::{Backend, Up, project, wait_for};
use crate::s3::{Store, borrowed};
use crate::sync::{kill, processes, syncs_of};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use written::{Acknowledged, acknowledged, is_shared, lines, lost, number, tree};

/// Rounds of the short form: two of each kind.
const ROUNDS: u64 = 8;
/// How many `make prove-loss` wants.
const WANTED: &str = "POSTERN_PROVE_ROUNDS";
/// Which one it begins with, so that a proof can be played in parts.
const FROM: &str = "POSTERN_PROVE_FROM";
/// Until store and sandboxes have the same, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// A writer removes a file so many numbers after it wrote it.
const REMOVED_AFTER: u64 = 15;
/// Until a sync has noted what it was answered.
const NOTED: Duration = Duration::from_secs(10);

/// Who writes: a user, a conversation, and the writer's name. The first two share a file.
const WRITERS: [(&str, &str, &str); 3] = [("alice", "c1", "a"), ("alice", "c2", "b"), ("bob", "c3", "c")];

/// What a round kills.
const KINDS: [Kind; 4] = [Kind::Sync, Kind::Orchestrator, Kind::Store, Kind::Sandbox];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sync,
    Orchestrator,
    Store,
    Sandbox,
}

/// Numbers that differ from round to round, and are the same again for the same round.
struct Dice(u64);

impl Dice {
    /// A number below `bound` (Knuth's constants of MMIX).
    fn roll(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// What is seen from beside while a round goes on.
#[derive(Debug, Default)]
struct Seen {
    /// What was wrong with what was seen in the store.
    damage: BTreeSet<String>,
    /// Lines that were in the store at any time.
    lines: BTreeSet<String>,
    /// What each sandbox's sync has noted.
    logs: BTreeMap<String, Acknowledged>,
}

/// Looks at the store and at the syncs' logs until it is told to stop.
struct Observer {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: std::thread::JoinHandle<()>,
}

impl Observer {
    fn start(round: u64, users: Vec<PathBuf>, run: Arc<Mutex<PathBuf>>) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let (ended, noted) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            let top = format!("r{round}");
            while !ended.load(Ordering::Relaxed) {
                let logs = logs(&run.lock().expect("no panic"), &top);
                noted.lock().expect("no panic").logs.extend(logs);
                for (path, bytes) in users.iter().flat_map(|files| tree(&files.join(&top), &top)) {
                    noted.lock().expect("no panic").look(&path, &bytes);
                }
                std::thread::park_timeout(Duration::from_millis(15));
            }
        });
        Self { stop, seen, thread }
    }

    fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic");
        std::mem::take(&mut self.seen.lock().expect("no panic"))
    }
}

impl Seen {
    fn look(&mut self, path: &str, bytes: &[u8]) {
        if is_shared(path) {
            match lines(path, bytes) {
                Ok(lines) => self.lines.extend(lines),
                Err(damage) => drop(self.damage.insert(damage)),
            }
        } else if let Err(damage) = number(path, bytes) {
            self.damage.insert(damage);
        }
    }
}

/// What the syncs of all sandboxes of this machine have noted of a round.
fn logs(run: &Path, top: &str) -> BTreeMap<String, Acknowledged> {
    let sandboxes = fs::read_dir(run).into_iter().flatten().flatten();
    let log = |path: PathBuf| {
        let text = fs::read_to_string(path.join("disk/sync/state")).ok()?;
        let found = acknowledged(&text, top);
        Some((path.file_name()?.to_string_lossy().into_owned(), found)).filter(|(_, found)| !found.is_empty())
    };
    sandboxes.filter_map(|entry| log(entry.path())).collect()
}

/// `postern up` on the store, and the sandbox of each writer.
struct Stage {
    up: Option<Up>,
    store: Store,
    sandboxes: Vec<String>,
    run: Arc<Mutex<PathBuf>>,
    _backend: Backend,
}

impl Stage {
    fn new(store: Store) -> Self {
        let backend = Backend::start();
        let settings = store.settings();
        let up = Up::start_with(&backend, &borrowed(&settings));
        let run = Arc::new(Mutex::new(PathBuf::from(up.written("run"))));
        let mut stage = Self { up: Some(up), store, sandboxes: Vec::new(), run, _backend: backend };
        stage.sandboxes = (0..WRITERS.len()).map(|writer| stage.made(writer)).collect();
        stage
    }

    fn up(&self) -> &Up {
        self.up.as_ref().expect("runs")
    }

    fn made(&self, writer: usize) -> String {
        let (user, conversation, _) = WRITERS[writer];
        let wish = json!({ "user_id": user, "conversation_id": conversation });
        wait_for("a sandbox for each writer", || {
            let made = self.up().call("POST", "/sandbox?wait=running", Some(&wish)).json();
            (made["status"] == "running").then(|| made["sandbox_id"].as_str().expect("an id").to_owned())
        })
    }

    /// Runs a command in a sandbox, which must succeed.
    fn exec(&self, sandbox: &str, command: &Value) -> String {
        let exec = json!({ "command": command, "collect": true });
        let ran = self.up().call("POST", &format!("/sandbox/{sandbox}/exec"), Some(&exec)).json();
        assert_eq!(ran["exit_code"], 0, "{command}: {ran}\n{}", self.up().log());
        ran["stdout"].as_str().unwrap_or_default().to_owned()
    }

    fn write(&self, round: u64) {
        let script = fs::read_to_string(project().join("tests/suite/loss/writer.py")).expect("reads");
        for ((_, _, name), sandbox) in WRITERS.iter().zip(&self.sandboxes) {
            // It lives on when nobody follows it any more.
            let start = "nohup setsid python3 -I -c \"$0\" \"$1\" \"$2\" >/data/scratch/log 2>&1 &";
            let round = round.to_string();
            self.exec(sandbox, &json!(["sh", "-c", start, script, name, round]));
        }
    }

    /// Kills, and starts again what nobody else does.
    fn strike(&mut self, kind: Kind, dice: &mut Dice) {
        match kind {
            Kind::Sync => {
                let run = self.run.lock().expect("no panic").clone();
                let run = run.to_string_lossy();
                for sandbox in &self.sandboxes {
                    syncs_of(&run, sandbox).into_iter().for_each(kill);
                }
            }
            Kind::Store => {
                self.store.kill();
                pause(dice.roll(700));
                self.store.again();
            }
            Kind::Orchestrator => {
                let folder = self.up.take().expect("runs").crash();
                pause(dice.roll(500));
                let settings = self.store.settings();
                self.up = Some(Up::on_with(folder, &borrowed(&settings)));
                *self.run.lock().expect("no panic") = PathBuf::from(self.up().written("run"));
            }
            Kind::Sandbox => {
                let which = usize::try_from(dice.roll(WRITERS.len() as u64)).expect("is small");
                let sandbox = &self.sandboxes[which];
                let is_its = |line: &str| line.contains(sandbox) && !line.contains("--hostname\0sync");
                let mut all: Vec<u32> =
                    processes().into_iter().filter(|(_, line)| is_its(line)).map(|(pid, _)| pid).collect();
                assert!(!all.is_empty(), "no process of {sandbox}");
                if dice.roll(2) == 0 {
                    all.reverse();
                }
                for pid in all {
                    // Killed with another, it is gone already.
                    let pid = Pid::from_raw(pid.cast_signed()).expect("is one");
                    let _ = kill_process(pid, Signal::KILL).is_ok();
                }
                self.gone(&sandbox.clone());
                self.sandboxes[which] = self.made(which);
            }
        }
    }

    /// Waits until a sandbox that was killed has ended, and its files were kept.
    fn gone(&self, sandbox: &str) {
        wait_for("the end of a sandbox that was killed", || {
            let found = self.up().call("GET", &format!("/sandbox/{sandbox}"), None).json();
            matches!(found["status"].as_str(), Some("destroyed" | "failed")).then_some(())
        });
        let slot = self.run.lock().expect("no panic").join(sandbox);
        wait_for("the end of its folder", || (!slot.exists()).then_some(()));
    }

    /// Ends the writers that still run, and returns the lines that each saw in the shared file.
    fn hush(&self, round: u64, killed: &BTreeSet<String>) -> BTreeSet<String> {
        let mut lines = BTreeSet::new();
        for ((_, _, name), sandbox) in WRITERS.iter().zip(&self.sandboxes) {
            if killed.contains(*name) {
                continue;
            }
            let aside = format!("/data/scratch/{name}-{round}");
            let command = format!(
                "touch /data/scratch/stop-{round}; i=0; until [ -e {aside}.done ]; do i=$((i+1)); \
                 [ $i -lt 3000 ] || exit 9; sleep 0.01; done; cat {aside}.seen 2>/dev/null; true"
            );
            let seen = self.exec(sandbox, &json!(command));
            lines.extend(seen.lines().map(str::to_owned));
        }
        lines
    }

    /// Waits until every sandbox has of a round what the store has, and returns that, by user.
    fn settled(&self, round: u64) -> BTreeMap<&'static str, BTreeMap<String, Vec<u8>>> {
        let top = format!("r{round}");
        let run = self.run.lock().expect("no panic").clone();
        let begun = Instant::now();
        loop {
            let kept: BTreeMap<&str, _> = WRITERS
                .iter()
                .map(|(user, _, _)| (*user, tree(&self.store.files(user).join(&top), &top)))
                .collect();
            let here = |sandbox: &String| tree(&run.join(sandbox).join("disk/data/user").join(&top), &top);
            let differs = WRITERS.iter().zip(&self.sandboxes).find_map(|((user, _, name), sandbox)| {
                let (here, kept) = (here(sandbox), &kept[user]);
                let all: BTreeSet<&String> = here.keys().chain(kept.keys()).collect();
                let other = all.into_iter().find(|path| here.get(*path) != kept.get(*path))?;
                let length = |it: Option<&Vec<u8>>| it.map(Vec::len);
                Some(format!(
                    "{other}: {:?} bytes in {name}'s {sandbox}, {:?} in the store",
                    length(here.get(other)),
                    length(kept.get(other))
                ))
            });
            let Some(differs) = differs else { return kept };
            assert!(begun.elapsed() < PATIENCE, "round {round}: {differs}\n{}", self.up().log());
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }
}

fn pause(millis: u64) {
    let until = Instant::now() + Duration::from_millis(millis);
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

/// One round: agents write, something is killed some times, and all is compared. What it looked at.
fn round(stage: &mut Stage, round: u64) -> String {
    let (kind, mut dice) = (KINDS[usize::try_from(round % 4).expect("is small")], Dice(round));
    let users = BTreeSet::from(WRITERS.map(|(user, _, _)| user));
    let users = users.into_iter().map(|user| stage.store.files(user)).collect();
    let before = stage.sandboxes.clone();
    let observer = Observer::start(round, users, Arc::clone(&stage.run));
    stage.write(round);
    let strikes = if matches!(kind, Kind::Sync | Kind::Store) { 3 } else { 1 };
    for _ in 0..strikes {
        pause(100 + dice.roll(1200));
        stage.strike(kind, &mut dice);
    }
    pause(200);
    let is_other = |at: usize| before[at] != stage.sandboxes[at];
    let killed: BTreeSet<String> =
        (0..WRITERS.len()).filter(|at| is_other(*at)).map(|at| WRITERS[at].2.to_owned()).collect();
    let verified = stage.hush(round, &killed);
    let kept = stage.settled(round);
    let mut seen = observer.end();
    assert_eq!(seen.damage, BTreeSet::new(), "round {round}: seen in the store\n{}", stage.up().log());
    let begun = Instant::now();
    let told = loop {
        // A sync notes an answer a moment after it came.
        seen.logs.extend(logs(&stage.run.lock().expect("no panic"), &format!("r{round}")));
        match check(&kept, &seen, &verified, &stage.sandboxes) {
            Ok(told) => break told,
            Err(wrong) => assert!(begun.elapsed() < NOTED, "round {round}, {kind:?}: {wrong}"),
        }
        std::thread::park_timeout(Duration::from_millis(50));
    };
    // So that every round begins alike.
    for ((_, _, name), sandbox) in WRITERS.iter().zip(&stage.sandboxes) {
        if *name != "b" {
            stage.exec(sandbox, &json!(format!("rm -rf /data/user/r{round}")));
        }
    }
    format!("{kind:?} killed {strikes} times; {told}")
}

/// Compares what the store has in the end with all that was told and seen; what was wrong.
fn check(
    kept: &BTreeMap<&str, BTreeMap<String, Vec<u8>>>,
    seen: &Seen,
    verified: &BTreeSet<String>,
    sandboxes: &[String],
) -> Result<String, String> {
    let all = kept.values().flatten();
    let (shared, own): (Vec<_>, Vec<_>) = all.partition(|(path, _)| is_shared(path));
    if let Some((path, _)) = own.iter().find(|(path, _)| path.contains(".conflict-")) {
        return Err(format!("{path} is a conflict of one with itself"));
    }
    let mut union = BTreeSet::new();
    for (path, bytes) in &shared {
        union.extend(lines(path, bytes)?);
    }
    let missing: Vec<&String> = seen.lines.union(verified).filter(|line| !union.contains(*line)).collect();
    if !missing.is_empty() {
        return Err(format!("lines that were there are not kept: {missing:?}"));
    }
    let own: BTreeMap<&str, &[u8]> =
        own.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    let mut count = 0;
    for (sandbox, log) in &seen.logs {
        let is_over = !sandboxes.contains(sandbox);
        for (path, acknowledged) in log.iter().filter(|(path, _)| !is_shared(path)) {
            count += acknowledged.len();
            let kept = own.get(path.as_str()).copied();
            // The last that was noted of a sandbox that is over may not have been seen.
            if is_over && kept.is_none() && is_removed(path, &own) {
                continue;
            }
            if let Some(wrong) = lost(path, acknowledged, kept) {
                return Err(format!("{sandbox} was told {acknowledged:?}: {wrong}"));
            }
        }
    }
    if count == 0 || union.is_empty() {
        return Err("nothing was looked at".to_owned());
    }
    Ok(format!("{count} acknowledged, {} lines in {} files", union.len(), shared.len()))
}

/// Whether its writer has come so far that it has removed it.
fn is_removed(path: &str, own: &BTreeMap<&str, &[u8]>) -> bool {
    let Some((folder, name)) = path.split_once("/once-") else { return false };
    let its = own.iter().filter(|(other, _)| other.starts_with(folder));
    let newest = its.filter_map(|(path, bytes)| number(path, bytes).ok()).max().unwrap_or(0);
    name.parse::<u64>().is_ok_and(|name| name + REMOVED_AFTER <= newest + 1)
}

fn setting(variable: &str) -> Option<u64> {
    std::env::var_os(variable).and_then(|value| value.to_str()?.parse().ok())
}

#[test]
fn nothing_that_was_acknowledged_is_lost_whatever_is_killed() {
    let Some(store) = Store::start() else { return };
    let (rounds, from) = (setting(WANTED).unwrap_or(ROUNDS), setting(FROM).unwrap_or(0));
    let mut stage = Stage::new(store);
    for number in from..from + rounds {
        let told = round(&mut stage, number);
        println!("round {} of {} passed: {told}", number + 1, from + rounds);
    }
    let Stage { up, .. } = &mut stage;
    up.take().expect("runs").stop();
}
