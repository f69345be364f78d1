// SPDX-License-Identifier: Apache-2.0
//! The suite again as an ordinary user, and what that user is told where this machine forbids it.
//!
//! As root these tests start this very program again under a user id that nobody has. For an
//! ordinary user the suite itself is the first proof; the others then have nothing to start.

use super::bench::{Bench, PROGRAMS, RUNSC, SANDBOXD, SHIM, is_left_out, programs, runsc};
use crate::runtime::local::BEST_FIRST;
use crate::runtime::{Enforced, Isolation, Runtime};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

const SOMEBODY: u32 = 61_234;
/// Set for the program that is started again, to what it is to check.
const ROLE: &str = "POSTERN_TEST_ROLE";
/// Started as in the background of a shell: Ctrl-C is ignored by all that does not see to it.
const BECOME: &str =
    "trap '' INT QUIT HUP TSTP; exec setpriv --reuid 61234 --regid 61234 --clear-groups \"$@\"";

/// A copy of all programs that every user can reach.
struct Somebody {
    folder: TempDir,
    program: PathBuf,
}

impl Somebody {
    /// `None` if we are an ordinary user ourselves.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let folder = tempfile::Builder::new().prefix("postern-user-").tempdir().expect("a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        let program = folder.path().join("suite");
        share(&std::env::current_exe().expect("this program"), &program);
        share(&programs().join(SHIM), &folder.path().join(SHIM));
        share(&programs().join(SANDBOXD), &folder.path().join(SANDBOXD));
        if runsc().is_file() {
            share(&runsc(), &folder.path().join(RUNSC));
        }
        Some(Self { folder, program })
    }

    /// Runs tests of this program by a shell script whose arguments are the program and its.
    fn run(&self, role: &str, script: &str, arguments: &[&str]) {
        let output = Command::new("/bin/sh")
            .args(["-c", script, "sh"])
            .arg(&self.program)
            .args(arguments)
            .env(PROGRAMS, self.folder.path())
            .env(ROLE, role)
            .current_dir("/")
            .output()
            .expect("a shell");
        check(&output);
    }
}

fn check(output: &Output) {
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(!said.contains(" 0 passed"), "nothing was run: {said}");
}

fn share(from: &Path, to: &Path) {
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop)).expect("copies a program");
}

fn role() -> Option<String> {
    std::env::var_os(ROLE).map(|role| role.into_string().expect("text"))
}

/// The name of a test of this suite, as the test program knows it.
fn named(rest: &str) -> String {
    let (_program, module) = module_path!().split_once("::").expect("a module");
    format!("{}::{rest}", module.strip_suffix("::ordinary").expect("this module"))
}

#[test]
fn the_whole_suite_holds_for_an_ordinary_user() {
    let Some(somebody) = Somebody::new() else { return };
    somebody.run("suite", BECOME, &[&named(""), "--skip", "ordinary", "--test-threads=2"]);
}

fn levels() -> impl Iterator<Item = Isolation> {
    BEST_FIRST.into_iter().filter(|level| !is_left_out(*level))
}

#[tokio::test]
async fn limits_of_an_ordinary_user_are_reported_as_not_enforced() {
    const ROLE: &str = "limits";
    if role().as_deref() == Some(ROLE) {
        for level in levels() {
            let bench = Bench::open(level).expect("opens");
            let enforced = bench.sandbox().await.running.enforced;
            // gVisor counts processes itself.
            assert_eq!(enforced, Enforced { pids: level == Isolation::Gvisor, ..Enforced::default() });
            bench.close().await;
        }
    } else if let Some(somebody) = Somebody::new() {
        let name = named("ordinary::limits_of_an_ordinary_user_are_reported_as_not_enforced");
        somebody.run(ROLE, BECOME, &["--exact", &name]);
    }
}

#[tokio::test]
async fn limits_hold_for_an_ordinary_user_in_a_delegated_group() {
    const ROLE: &str = "delegated";
    if role().as_deref() == Some(ROLE) {
        for level in levels() {
            let bench = Bench::open(level).expect("opens");
            let enforced = bench.sandbox().await.running.enforced;
            assert_eq!(enforced, Enforced { memory: true, cpu: true, pids: true, disk: false });
            bench.close().await;
        }
    } else if let Some(somebody) = Somebody::new() {
        let delegated = Delegated::new();
        let name = named("ordinary::limits_hold_for_an_ordinary_user_in_a_delegated_group");
        somebody.run(ROLE, &delegated.script(), &["--exact", &name]);
        // The limits are run into, and a sandbox is paused, by the tests that do so as root.
        let (limits, pause) = (named("limits::"), "pause_stops_it_and_resume_goes_on");
        somebody.run("suite", &delegated.script(), &[&limits, pause, "--test-threads=2"]);
    }
}

/// Groups that were given to the ordinary user, as systemd does with `Delegate=yes`.
struct Delegated(Vec<PathBuf>);

impl Delegated {
    fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let ours = |options: &str| {
            options.split(',').any(|option| matches!(option, "memory" | "cpu" | "pids" | "freezer"))
        };
        let tops =
            fields.filter(|fields| fields[2] == "cgroup2" || (fields[2] == "cgroup" && ours(fields[3])));
        let groups: Vec<PathBuf> = tops
            .map(|fields| {
                for controller in ["+memory", "+cpu", "+pids"] {
                    // Only version 2 has it, and not every controller is there.
                    drop(fs::write(Path::new(fields[1]).join("cgroup.subtree_control"), controller));
                }
                let group = Path::new(fields[1]).join(format!("test-{}", super::bench::random()));
                fs::create_dir(&group).expect("a group");
                for name in [".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "tasks"] {
                    drop(chown(group.join(name), Some(SOMEBODY), Some(SOMEBODY)));
                }
                group
            })
            .collect();
        Self(groups)
    }

    fn script(&self) -> String {
        let enter = |group: &PathBuf| format!("echo $$ > {}/cgroup.procs || exit 99; ", group.display());
        self.0.iter().map(enter).chain([BECOME.to_owned()]).collect()
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        let deadline = std::time::Instant::now() + super::bench::PATIENCE;
        for group in &self.0 {
            while group.is_dir() && std::time::Instant::now() < deadline {
                for entry in fs::read_dir(group).into_iter().flatten().flatten() {
                    drop(fs::remove_dir(entry.path()));
                }
                drop(fs::remove_dir(group));
            }
        }
    }
}

#[tokio::test]
async fn where_user_namespaces_are_forbidden_the_setting_is_named() {
    const ROLE: &str = "forbidden";
    // In a user namespace of its own the limit is that namespace's alone.
    const FORBID: &str = "exec setpriv --reuid 61234 --regid 61234 --clear-groups \
         unshare --user --map-user=1000 --map-group=1000 --keep-caps sh -c '
             echo 0 > /proc/sys/user/max_user_namespaces || exit 99
             exec setpriv --ambient-caps -all --inh-caps -all \"$@\"' sh \"$@\"";
    if role().as_deref() == Some(ROLE) {
        for level in levels() {
            let why = why_not(level, &Bench::open(level).expect("opens")).await;
            assert!(why.contains("sysctl -w user.max_user_namespaces=65536"), "{level}: {why}");
        }
    } else if let Some(somebody) = Somebody::new() {
        let name = named("ordinary::where_user_namespaces_are_forbidden_the_setting_is_named");
        somebody.run(ROLE, FORBID, &["--exact", &name]);
    }
}

async fn why_not(level: Isolation, bench: &Bench) -> String {
    let probed = bench.runtime.probe().await;
    let ours = probed.into_iter().find(|probed| probed.level == level).expect("was probed");
    ours.outcome.expect_err("does not work here")
}

#[tokio::test]
async fn without_bubblewrap_its_package_is_named() {
    let bench =
        Bench::open_with(Isolation::Namespaces, |settings| settings.search_path.clear()).expect("opens");
    let why = why_not(Isolation::Namespaces, &bench).await;
    assert!(why.contains("apt install bubblewrap"), "{why}");
}

/// No machine of ours has the `AppArmor` restriction, so bubblewrap's part is played.
#[tokio::test]
async fn where_apparmor_forbids_them_its_setting_is_named() {
    let programs = tempfile::tempdir().expect("a folder");
    let bwrap = programs.path().join("bwrap");
    fs::write(&bwrap, "#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
        .expect("ours");
    fs::set_permissions(&bwrap, fs::Permissions::from_mode(0o755)).expect("ours");
    fs::set_permissions(programs.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let search_path = vec![programs.path().to_owned()];
    let bench = Bench::open_with(Isolation::Namespaces, |settings| settings.search_path = search_path)
        .expect("opens");
    let why = why_not(Isolation::Namespaces, &bench).await;
    assert!(why.contains("setting up uid map: Permission denied"), "{why}");
    assert!(why.contains("kernel.apparmor_restrict_unprivileged_userns"), "{why}");
}
