// SPDX-License-Identifier: Apache-2.0
//! What every test of the suite begins with: a runtime of its own, sandboxes, and commands in them.

use crate::runtime::agent::{Event, Events, Identity, Process};
use crate::runtime::local::{LocalRuntime, LocalSettings};
use crate::runtime::{Agent, Create, Isolation, Limits, Running, Runtime, Wanted};
use postern_common::id::{ConversationId, SandboxId};
use postern_common::secret::Secret;
use postern_common::tasks::Tasks;
use postern_shim::cgroup::{Cgroups, Parents};
use postern_shim::spec::Installation;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(super) const LIMITS: Limits =
    Limits { memory_bytes: 256 << 20, cpu_millis: 2000, pids: 64, disk_bytes: 32 << 20 };
pub(super) const TOKEN: &str = "header.claims.signature";
/// No test waits longer for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How often [`until`] looks.
const POLL: Duration = Duration::from_millis(5);
/// Where the programs are, if they need not be built: for the run as another user.
pub(super) const PROGRAMS: &str = "POSTERN_TEST_PROGRAMS";
/// Where `make gvisor` puts what it builds, if not in the home folder.
const CACHE: &str = "POSTERN_CACHE";
/// `1` leaves out what this machine cannot show, instead of failing.
const ALLOW_SKIP: &str = "POSTERN_ALLOW_SKIP";
pub(super) const SHIM: &str = "postern-shim";
pub(super) const SANDBOXD: &str = "postern-sandboxd";
pub(super) const RUNSC: &str = "runsc";

/// A runtime with an installation id and folders of its own.
pub(super) struct Bench {
    pub(super) runtime: LocalRuntime,
    pub(super) settings: LocalSettings,
    level: Isolation,
    folder: TempDir,
}

/// What a command inside printed, and its exit code.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Output {
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) code: i32,
}

impl Bench {
    pub(super) fn open(level: Isolation) -> Option<Self> {
        Self::open_with(level, |_settings| {})
    }

    /// One whose settings a test changed.
    pub(super) fn open_with(level: Isolation, change: impl FnOnce(&mut LocalSettings)) -> Option<Self> {
        if is_left_out(level) {
            return None;
        }
        let folder = tempfile::Builder::new().prefix("postern-").tempdir().expect("a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).expect("ours");
        let programs = programs();
        let mut settings = LocalSettings {
            installation: Installation::parse(random().as_str().trim_start_matches("sandbox-"))
                .expect("valid"),
            run_root: folder.path().join("run"),
            slot_root: folder.path().join("slots"),
            images: folder.path().join("images"),
            unpacked: folder.path().join("unpacked"),
            shim: programs.join(SHIM),
            sandboxd: programs.join(SANDBOXD),
            sync: None,
            runsc: Some(runsc()),
            search_path: vec!["/usr/bin".into()],
        };
        change(&mut settings);
        let runtime = LocalRuntime::open(settings.clone(), Tasks::new()).expect("opens");
        Some(Self { runtime, settings, level, folder })
    }

    /// Another orchestrator over the same installation, as after a restart.
    pub(super) fn reopened(&self) -> LocalRuntime {
        LocalRuntime::open(self.settings.clone(), Tasks::new()).expect("opens")
    }

    pub(super) async fn sandbox(&self) -> Sandbox {
        self.sandbox_with(LIMITS).await
    }

    pub(super) async fn sandbox_with(&self, limits: Limits) -> Sandbox {
        let id = random();
        let sandbox = Sandbox::make(&self.runtime, id, self.level, limits).await;
        sandbox.agent.identify(&identity(&sandbox.id)).await.expect("takes its identity");
        sandbox
    }

    /// One without identity, as in a warm pool.
    pub(super) async fn nameless(&self) -> Sandbox {
        Sandbox::make(&self.runtime, random(), self.level, LIMITS).await
    }

    pub(super) fn wanted(&self) -> Wanted {
        Wanted::Exactly(self.level)
    }

    /// The agent's user id inside: an ordinary user can give gVisor's agent no other than 0.
    pub(super) fn agent_uid(&self) -> u32 {
        let is_root = rustix::process::geteuid().is_root();
        if self.level == Isolation::Gvisor && !is_root { 0 } else { 1000 }
    }

    pub(super) fn level(&self) -> Isolation {
        self.level
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Removes all, and checks that nothing bears the installation's id any more.
    pub(super) async fn close(&self) {
        self.runtime.sweep(&[]).await;
        self.nothing_is_left().await;
    }

    /// Waits until nothing bears the installation's id: the kernel lets go of a loop device some
    /// time after its unmount has returned.
    pub(super) async fn nothing_is_left(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = traces(self.folder.path(), &self.settings.installation);
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left: {left:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// The sandbox's control groups.
    pub(super) fn groups(&self, sandbox: &Sandbox) -> Cgroups {
        Cgroups::existing(&Parents::find(), &self.settings.installation.name_of(&sandbox.id))
    }
}

/// A test that fails must not leave sandboxes on the machine.
impl Drop for Bench {
    fn drop(&mut self) {
        let settings = self.settings.clone();
        let sweep = move || {
            let one = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            one.block_on(async {
                LocalRuntime::open(settings, Tasks::new()).expect("opens").sweep(&[]).await
            });
        };
        drop(std::thread::spawn(sweep).join());
    }
}

/// A running sandbox.
pub(super) struct Sandbox {
    pub(super) id: SandboxId,
    pub(super) agent: Agent,
    pub(super) running: Running,
}

impl Sandbox {
    async fn make(runtime: &LocalRuntime, id: SandboxId, level: Isolation, limits: Limits) -> Self {
        let create =
            Create { sandbox: id, isolation: Wanted::Exactly(level), limits, kubernetes: None, image: None };
        Self::made(runtime, create).await
    }

    /// One whose root is this image, or this machine's `/usr`.
    pub(super) async fn of_image(bench: &Bench, image: Option<&str>) -> Self {
        let image = image.map(ToOwned::to_owned);
        let create =
            Create { sandbox: random(), isolation: bench.wanted(), limits: LIMITS, kubernetes: None, image };
        let sandbox = Self::made(&bench.runtime, create).await;
        sandbox.agent.identify(&identity(&sandbox.id)).await.expect("takes its identity");
        sandbox
    }

    async fn made(runtime: &LocalRuntime, create: Create) -> Self {
        let id = create.sandbox.clone();
        let running = runtime.create(create).await.expect("starts");
        let agent = runtime.connect(&id).await.expect("connects");
        Self { id, agent, running }
    }

    pub(super) async fn shell(&self, script: &str) -> Output {
        run(&self.agent, &command(&["/bin/sh", "-c", script])).await
    }

    /// Runs Python; its first line is the verdict in most tests.
    pub(super) async fn python(&self, script: &str) -> Output {
        run(&self.agent, &command(&["/usr/bin/python3", "-I", "-c", script])).await
    }
}

pub(super) fn command(words: &[&str]) -> Process {
    let mut words = words.iter().map(|word| (*word).to_owned());
    Process {
        command: words.next().expect("a command"),
        arguments: words.collect(),
        timeout: Some(PATIENCE),
        ..Process::default()
    }
}

pub(super) async fn run(agent: &Agent, process: &Process) -> Output {
    collect(agent.start(process).await.expect("starts")).await
}

/// Follows to the end, within [`PATIENCE`].
pub(super) async fn collect(mut events: Events) -> Output {
    let (mut stdout, mut stderr, mut code) = (Vec::new(), Vec::new(), None);
    let read = async {
        while let Some(event) = events.next().await.expect("a good stream") {
            match event {
                Event::Started { .. } => {}
                Event::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                Event::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                Event::Ended { exit_code, .. } => code = Some(exit_code),
                Event::Failed { code, message } => panic!("{code}: {message}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("ends in time");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Output { stdout: text(stdout), stderr: text(stderr), code: code.expect("an end") }
}

/// Waits until `is_so`, within [`PATIENCE`].
pub(super) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(POLL).await;
    }
}

pub(super) fn identity(sandbox: &SandboxId) -> Identity {
    Identity {
        sandbox_id: sandbox.clone(),
        conversation_id: ConversationId::parse("a conversation").expect("valid"),
        token: Secret::new(TOKEN.to_owned()),
        env: BTreeMap::from([("FROM_TEMPLATE".to_owned(), "yes".to_owned())]),
    }
}

pub(super) fn random() -> SandboxId {
    let mut random = [0; 12];
    aws_lc_rs::rand::fill(&mut random).expect("randomness");
    SandboxId::from_random(random)
}

/// Everything on this machine that names the folder or the installation: processes, cgroups,
/// mounts, loop devices, and what is left in the folder.
pub(super) fn traces(folder: &Path, installation: &Installation) -> Vec<String> {
    let path = folder.to_str().expect("text");
    let mut found: Vec<String> = postern_shim::processes::that_name(folder)
        .into_iter()
        .filter(|pid| postern_shim::processes::is_running(*pid))
        .map(|pid| format!("process {pid}"))
        .collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    found.extend(mounts.lines().filter(|line| line.contains(path)).map(|line| format!("mount {line}")));
    for entry in fs::read_dir("/sys/block").expect("sysfs").flatten() {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        found.extend(backing.contains(path).then(|| format!("loop device {backing}")));
    }
    let prefix = format!("postern-{installation}-");
    let groups = Parents::find().names();
    found.extend(
        groups.into_iter().filter(|name| name.starts_with(&prefix)).map(|name| format!("cgroup {name}")),
    );
    for root in ["run", "slots"] {
        let entries = fs::read_dir(folder.join(root)).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        found.extend(
            names.filter(|name| name.starts_with("sandbox-")).map(|name| format!("folder {root}/{name}")),
        );
    }
    found
}

/// gVisor, of `make gvisor`.
pub(super) fn runsc() -> PathBuf {
    let folder = std::env::var_os(PROGRAMS).map(PathBuf::from);
    let cache = || std::env::var_os(CACHE).map(PathBuf::from);
    let usual = || std::env::home_dir().map(|home| home.join(".cache/postern"));
    let built = || cache().or_else(usual).map(|cache| cache.join("gvisor"));
    folder.or_else(built).expect("a home folder").join(RUNSC)
}

/// Whether tests of this level are left out, which the machine's owner must have allowed: a suite
/// that passes has shown what it says.
pub(super) fn is_left_out(level: Isolation) -> bool {
    let runsc = runsc();
    if level != Isolation::Gvisor || runsc.is_file() {
        return false;
    }
    let missing = format!("there is no {}; `make gvisor` builds it", runsc.display());
    let is_allowed = std::env::var_os(ALLOW_SKIP).is_some_and(|value| value == "1");
    assert!(is_allowed, "{missing}; {ALLOW_SKIP}=1 leaves the tests of gVisor out");
    // Not by a macro, whose output only failing tests show.
    writeln!(std::io::stderr(), "LEFT OUT, a test of gVisor: {missing}").expect("standard error takes it");
    true
}

/// Builds the real programs once and returns their folder.
pub(super) fn programs() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(folder) = std::env::var_os(PROGRAMS) {
            return folder.into();
        }
        let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
        let built = std::process::Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "--message-format=json",
                "-p",
                "postern-shim",
                "-p",
                "postern-sandboxd",
            ])
            // As scripts/build.sh does: what only pods need has parts in C, which want a compiler for musl.
            .args(["--no-default-features", "--target", &target])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let messages = String::from_utf8_lossy(&built.stdout).into_owned();
        let executable = messages.lines().find_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            message.get("executable")?.as_str().map(PathBuf::from)
        });
        executable.expect("an executable").parent().expect("a folder").to_owned()
    })
}
