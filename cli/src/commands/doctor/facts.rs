// SPDX-License-Identifier: Apache-2.0
//! What there is to know of this machine, read and tried, not judged.

use crate::connection::Written;
use crate::up::{Programs, Surroundings};
use postern_common::settings::{Setting, Settings, name};
use postern_common::tasks::Tasks;
use postern_orchestrator::runtime::local::{Installation, LocalRuntime, LocalSettings, has_landlock};
use postern_orchestrator::runtime::{Probed, Runtime as _};
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long what was tried may take to end.
const END_TIME: Duration = Duration::from_secs(10);
/// The name under which sandboxes are tried: no installation's own.
const NAME: &str = "doctordoct";

/// Everything that was found out.
#[derive(Debug)]
pub(super) struct Facts {
    /// What is wrong with the settings; the rest is then as if nobody had set anything.
    pub(super) settings: Vec<String>,
    /// How many somebody has set.
    pub(super) given: usize,
    /// Whose tokens a gateway that stands alone would believe, if that is set.
    pub(super) issuer: Option<String>,
    /// Where the companion programs are, or why not.
    pub(super) programs: Result<PathBuf, String>,
    /// Each isolation as it turned out, or why none could be tried.
    pub(super) isolation: Result<Vec<Probed>, String>,
    /// Whether sandboxes can be paused; `None` if none could be tried.
    pub(super) can_pause: Option<bool>,
    /// The isolation that was asked for; `None`: any.
    pub(super) wanted: Option<String>,
    /// Whether we are root.
    pub(super) is_root: bool,
    /// The kernel's interfaces of cgroups that are mounted.
    pub(super) cgroups: CgroupMounts,
    /// The kernel's settings of user namespaces.
    pub(super) namespaces: Namespaces,
    /// What else the kernel has.
    pub(super) kernel: Kernel,
    /// Each listener of `up`.
    pub(super) ports: Vec<Port>,
    /// Whether plain HTTP off loopback is allowed.
    pub(super) is_insecure_allowed: bool,
    /// The data folder.
    pub(super) data: DataFacts,
    /// The clock now, as seconds since 1970.
    pub(super) now: u64,
}

/// Which interfaces of cgroups are mounted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CgroupMounts {
    pub(super) one: bool,
    pub(super) two: bool,
}

/// What a kernel may have been built without.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    /// Whether there is `/dev/loop-control`.
    pub(super) has_loop: bool,
    pub(super) has_landlock: bool,
}

/// The kernel's words on user namespaces; `None` where it has no such setting.
#[derive(Debug, Clone, Default)]
pub(super) struct Namespaces {
    /// `user.max_user_namespaces`.
    pub(super) most: Option<u64>,
    /// Debian's `kernel.unprivileged_userns_clone`.
    pub(super) clone: Option<u64>,
    /// Ubuntu's `kernel.apparmor_restrict_unprivileged_userns`.
    pub(super) apparmor: Option<u64>,
}

/// A listener.
#[derive(Debug, Clone)]
pub(super) struct Port {
    pub(super) setting: &'static Setting,
    /// Whether somebody asked for this address.
    pub(super) is_given: bool,
    /// Where; `None`: off.
    pub(super) address: Option<SocketAddr>,
    /// Why it cannot be had.
    pub(super) taken: Option<String>,
}

/// The data folder.
#[derive(Debug, Clone, Default)]
pub(super) struct DataFacts {
    pub(super) path: PathBuf,
    /// Its mode and owner; `None` if it is not there.
    pub(super) mode: Option<(u32, u32)>,
    /// Who we are.
    pub(super) user: u32,
    /// Files in it that others may read.
    pub(super) open_files: Vec<String>,
    /// Bytes free on its disk, or its parent's.
    pub(super) free: Option<u64>,
    /// The process that said that it serves it, and whether that lives.
    pub(super) up: Option<(u32, bool)>,
    /// Where that process listens.
    pub(super) listens: Vec<SocketAddr>,
    /// Sandboxes of it that there is a folder of.
    pub(super) sandboxes: usize,
    /// The latest time at which something of it was written, in seconds since 1970.
    pub(super) written: Option<u64>,
}

/// Finds everything out. Takes some seconds: sandboxes are really started.
pub(super) async fn gather(settings: &Settings, around: &Surroundings) -> Facts {
    let data = settings.path(name::DATA_DIR).unwrap_or_default();
    let trial = tempfile::Builder::new().prefix("postern-").tempdir();
    let (programs, isolation) = match &trial {
        Ok(trial) => tried(settings, around, trial.path()).await,
        Err(error) => {
            let why = format!("no folder can be made for a trial: {error}");
            (Err(why.clone()), Err(why))
        }
    };
    let can_pause = isolation.as_ref().ok().map(|(_, can_pause)| *can_pause);
    let mistakes = around.mistakes.iter().flat_map(|all| &all.0);
    let is_given = |origin: &String| origin != "default";
    let given = settings.explain().iter().filter(|it| it.origin.as_ref().is_some_and(is_given)).count();
    let wanted = settings.text(name::ISOLATION).filter(|wanted| *wanted != "auto").map(ToOwned::to_owned);
    Facts {
        settings: mistakes.map(|it| format!("{}: {}", it.place, it.message)).collect(),
        given,
        issuer: settings.text(name::TOKENS_ISSUER).map(ToOwned::to_owned),
        programs,
        isolation: isolation.map(|(probed, _)| probed),
        can_pause,
        wanted,
        is_root: rustix::process::geteuid().is_root(),
        cgroups: cgroup_mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()),
        namespaces: Namespaces {
            most: kernel("user/max_user_namespaces"),
            clone: kernel("kernel/unprivileged_userns_clone"),
            apparmor: kernel("kernel/apparmor_restrict_unprivileged_userns"),
        },
        kernel: Kernel { has_loop: Path::new("/dev/loop-control").exists(), has_landlock: has_landlock() },
        ports: ports(settings),
        is_insecure_allowed: settings.is_insecure_listen_allowed(),
        data: data_facts(&data),
        now: u64::try_from(postern_common::clock::now().as_second()).unwrap_or_default(),
    }
}

/// Each isolation as it turned out, and whether sandboxes can be paused; or why none could be tried.
type Tried = Result<(Vec<Probed>, bool), String>;

/// The companion programs, and each isolation really tried with them.
async fn tried(settings: &Settings, around: &Surroundings, trial: &Path) -> (Result<PathBuf, String>, Tried) {
    let programs = match Programs::find(trial) {
        Ok(programs) => programs,
        Err(error) => {
            let missing = "the companion programs are missing".to_owned();
            return (Err(error.to_string()), Err(missing));
        }
    };
    let folder = programs.shim.parent().unwrap_or(trial).to_owned();
    let folder = if folder.starts_with(trial) { PathBuf::from("embedded") } else { folder };
    (Ok(folder), probed(settings, around, trial, programs).await)
}

async fn probed(settings: &Settings, around: &Surroundings, trial: &Path, programs: Programs) -> Tried {
    // A sandbox's own user passes through here, but may not look.
    fs::set_permissions(trial, fs::Permissions::from_mode(0o711)).map_err(|error| error.to_string())?;
    let local = LocalSettings {
        installation: Installation::parse(NAME).map_err(|error| error.to_string())?,
        run_root: trial.join("run"),
        slot_root: trial.join("slots"),
        images: trial.join("images"),
        unpacked: trial.join("unpacked"),
        shim: programs.shim,
        sandboxd: programs.sandboxd,
        sync: None,
        runsc: settings.path(name::RUNSC),
        search_path: around.search_path(),
    };
    let tasks = Tasks::new();
    let runtime = LocalRuntime::open(local, tasks.clone()).map_err(|error| error.to_string())?;
    let probed = (runtime.probe().await, runtime.can_pause());
    drop(runtime);
    // What it left is in the trial's folder and goes with it.
    tasks.shut_down(END_TIME).await.map_err(|late| late.to_string())?;
    Ok(probed)
}

fn kernel(setting: &str) -> Option<u64> {
    fs::read_to_string(Path::new("/proc/sys").join(setting)).ok()?.trim().parse().ok()
}

/// Which interfaces these lines of `/proc/self/mountinfo` hold (proc(5)).
pub(super) fn cgroup_mounts(mounts: &str) -> CgroupMounts {
    let mut found = CgroupMounts::default();
    for kind in mounts.lines().filter_map(|line| line.split_once(" - ")?.1.split(' ').next()) {
        found.one |= kind == "cgroup";
        found.two |= kind == "cgroup2";
    }
    found
}

fn ports(settings: &Settings) -> Vec<Port> {
    let all = [
        name::API_LISTEN,
        name::GATEWAY_LISTEN,
        name::CONTROL_LISTEN,
        name::API_ADMIN_LISTEN,
        name::GATEWAY_ADMIN_LISTEN,
    ];
    let port = |setting: &'static Setting| {
        let address = settings.address(setting).ok().flatten();
        let taken = address.and_then(|address| match TcpListener::bind(address) {
            Ok(_free) => None,
            Err(error) if error.kind() == ErrorKind::AddrInUse => Some("another process has it".to_owned()),
            Err(error) => Some(error.to_string()),
        });
        Port { setting, is_given: settings.is_given(setting), address, taken }
    };
    all.into_iter().map(port).collect()
}

fn data_facts(path: &Path) -> DataFacts {
    let there = fs::metadata(path).ok();
    let files = || fs::read_dir(path).into_iter().flatten().flatten();
    let open = |entry: &fs::DirEntry| entry.metadata().is_ok_and(|it| it.is_file() && it.mode() & 0o077 != 0);
    let written = files().filter_map(|entry| entry.metadata().ok()?.modified().ok()).max();
    let up = crate::connection::read(path).ok().flatten();
    let sandboxes = up.iter().flat_map(|up| fs::read_dir(&up.run).into_iter().flatten().flatten());
    let sandboxes = sandboxes.filter(|entry| entry.file_name().to_string_lossy().starts_with("sandbox-"));
    DataFacts {
        path: path.to_owned(),
        mode: there.map(|there| (there.mode() & 0o777, there.uid())),
        user: rustix::process::geteuid().as_raw(),
        open_files: files()
            .filter(open)
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect(),
        free: path.ancestors().chain([Path::new(".")]).find_map(free),
        sandboxes: sandboxes.count(),
        up: up.as_ref().map(|up| (up.pid, Path::new("/proc").join(up.pid.to_string()).exists())),
        listens: up.as_ref().map(Written::listens).unwrap_or_default(),
        written: written.map(seconds),
    }
}

fn free(path: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(path).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
