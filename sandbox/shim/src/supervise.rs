// SPDX-License-Identifier: Apache-2.0
//! The life of one sandbox, read top to bottom: make, start, serve, and, however it ends, end all
//! of it.

use crate::cgroup::{Bounds, CgroupError, Cgroups, Parents};
use crate::channel::{self, Channel, ChannelError};
use crate::control::{self, Served, Status};
use crate::disk::{self, Disk, DiskError};
use crate::exit::{Exit, Reason};
use crate::folder::RunFolder;
use crate::launch::{self, Launch};
use crate::spec::{Enforced, IsolatedBy, Spec};
use crate::{bubblewrap, gvisor, image, mounts, processes, restrictions};
use postern_common::execs::Execs;
use postern_common::tasks::{Stop, Tasks};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::PoisonError;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// The runtime's last words that are kept.
const LAST_WORDS_BYTES: usize = 4096;
/// What may be on its way from `sandboxd` to us: a message and what is framed of the next, written at once. What is
/// not used of it takes no memory.
const CHANNEL_PIPE_BYTES: usize = 256 << 10;
const END_TIME: Duration = Duration::from_secs(2);

/// A sandbox could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The spec is not there or not readable.
    #[error("could not read the spec `{}`", path.display())]
    Spec {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A folder, a socket or a process of its own.
    #[error("could not prepare the sandbox's {0}")]
    Prepare(&'static str, #[source] io::Error),
    /// A limit that works on this machine could not be set.
    #[error(
        "the kernel refused the limit `{0}`, which works on this machine; its cgroups may be full or gone"
    )]
    Limit(&'static str),
    /// The runtime ended before the sandbox was ready.
    #[error("the runtime ended at once: {last_words}{}", restrictions::advice(last_words))]
    Ended {
        /// What it said, control characters escaped.
        last_words: String,
    },
    /// It does not answer.
    #[error("the sandbox was not ready within {0:?}")]
    Late(Duration),
    /// It answers wrongly.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

/// Makes the sandbox that the folder's spec describes, tells `ready` of it once it serves, and returns
/// how it ended. By then nothing of it runs, and only its files are left.
///
/// # Errors
/// [`StartError`], after which nothing runs either.
pub async fn run(folder: &RunFolder, ready: impl FnOnce(&Status)) -> Result<Exit, StartError> {
    let spec = read_spec(folder)?;
    let tasks = Tasks::new();
    let name = spec.installation.name_of(&spec.sandbox);
    let bounds = Bounds {
        memory_bytes: spec.memory_with_runtime(),
        cpu_millis: spec.limits.cpu_millis,
        tasks: spec.tasks_with_runtime(),
    };
    let (cgroups, enforced) = Cgroups::make(&Parents::find(), &name, &bounds);
    // Orphans of the runtime come to us, so that their end can be forced.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let lived = live(&spec, folder, (&cgroups, enforced), ready, &tasks).await;
    let is_out_of_memory = cgroups.ran_out_of_memory();
    let exit = match &lived {
        Ok(_) if is_out_of_memory => Exit::now(Reason::OutOfMemory, "the memory limit was reached"),
        Ok((exit, _)) => exit.clone(),
        Err(error) => Exit::now(Reason::StartFailed, error.to_string()),
    };
    // The order matters: who sees `exit.json` may rely on the rest being gone, and until it is
    // there we answer, so that nobody takes a sandbox that is just ending for one that was killed.
    end(&cgroups).await;
    // gVisor pins a network namespace in its folder. The disk stays for saving the user's files.
    // Whoever sends a signal instead of asking may be the last to care: then it goes too, and the
    // files are found in its image.
    let keeps_disk = !matches!(&lived, Ok((_, Asked::BySignal)));
    drop(mounts::unmount_below(folder.path(), keeps_disk.then(|| folder.disk()).as_deref()));
    let _ = exit.write(folder).is_ok();
    drop(fs::remove_file(folder.control_socket()));
    let _ = tasks.shut_down(END_TIME).await.is_ok();
    lived.map(|_| exit)
}

fn read_spec(folder: &RunFolder) -> Result<Spec, StartError> {
    let path = folder.spec();
    let parsed = fs::read(&path).and_then(|json| Ok(serde_json::from_slice(&json)?));
    parsed.map_err(|source| StartError::Spec { path, source })
}

/// From the first process to the last.
async fn live(
    spec: &Spec,
    folder: &RunFolder,
    (cgroups, enforced): (&Cgroups, Enforced),
    ready: impl FnOnce(&Status),
    tasks: &Tasks,
) -> Result<(Exit, Asked), StartError> {
    // It waits for our word, and uses the time that the disk takes.
    let (mut child, last_words) = launch(spec, folder, cgroups)?;
    let is_sized = prepare(spec, folder)?;
    let enforced = Enforced { disk: is_sized, pids: pids_enforced(spec, enforced), ..enforced };
    if let Some(lost) = spec.must_hold.first_lost(enforced) {
        return Err(StartError::Limit(lost));
    }
    let opened = tokio::select! {
        opened = tokio::time::timeout(spec.start_time(), open(spec, &mut child, tasks)) => opened.map_err(|_late| StartError::Late(spec.start_time()))?,
        () = last_words.read_all() => return Err(StartError::Ended { last_words: last_words.text() }),
    };
    let (channel, closed) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            // If it ended, its own words say more than our broken pipe.
            let _ = tokio::time::timeout(END_TIME, last_words.read_all()).await.is_ok();
            let words = last_words.text();
            return Err(if words.is_empty() {
                error.into()
            } else {
                StartError::Ended { last_words: words }
            });
        }
    };
    let ending = Stop::new();
    let status = Status {
        sandbox: spec.sandbox.clone(),
        spec: spec.clone(),
        pid: std::process::id(),
        enforced,
        is_frozen: false,
    };
    let execs = Execs::new(tasks.clone());
    let served = Served {
        status: status.clone(),
        cgroups: cgroups.clone(),
        channel,
        execs,
        folder: folder.clone(),
        ending: ending.clone(),
    };
    control::serve(&folder.control_socket(), served, tasks)
        .map_err(|error| StartError::Prepare("control socket", error))?;
    // Whoever knows of it may end it from then on.
    let signals = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    ready(&status);
    Ok(wait(&mut child, closed, (&ending, signals), &last_words).await)
}

/// gVisor counts the agent's processes itself, cgroup or not.
fn pids_enforced(spec: &Spec, enforced: Enforced) -> bool {
    enforced.pids || matches!(spec.isolation, IsolatedBy::Gvisor { .. })
}

/// Makes all that the runtime shows to the sandbox; tells whether its disk's size is bounded.
fn prepare(spec: &Spec, folder: &RunFolder) -> Result<bool, StartError> {
    let gateway = folder.gateway();
    let failed = |error| StartError::Prepare("run folder", error);
    fs::create_dir_all(&gateway).map_err(failed)?;
    if let Some(guest) = spec.guest {
        disk::open_to(folder.path(), guest).map_err(failed)?;
        disk::open_below(&gateway).map_err(failed)?;
    }
    image::show(spec, folder).map_err(|error| StartError::Prepare("image", error))?;
    if matches!(spec.isolation, IsolatedBy::Gvisor { .. }) {
        let written = gvisor::write_bundle(spec, folder, &Disk::of(folder));
        written.map_err(|error| StartError::Prepare("bundle", error))?;
    }
    Ok(disk::prepare(spec, folder)?)
}

/// Starts the process that becomes the runtime once it hears [`launch::WORD`].
fn launch(spec: &Spec, folder: &RunFolder, cgroups: &Cgroups) -> Result<(Child, LastWords), StartError> {
    let failed = |error| StartError::Prepare("runtime process", error);
    let cgroups = cgroups.folders().into_iter().collect();
    let launch = match &spec.isolation {
        IsolatedBy::Gvisor { runsc } => {
            let arguments = gvisor::arguments(spec, folder);
            // Only root mounts disks.
            let apart = spec.guest.map(|_| folder.path().to_owned());
            Launch { cgroups, apart, program: runsc.clone(), arguments, ..Launch::default() }
        }
        IsolatedBy::Namespaces { bwrap } => {
            let arguments = bubblewrap::arguments(spec, folder, &Disk::of(folder));
            let (user, program) = (spec.guest, bwrap.clone());
            Launch { cgroups, user, has_seccomp: true, program, arguments, ..Launch::default() }
        }
    };
    let mut child = Command::new("/proc/self/exe")
        .arg("launch")
        .args(launch.to_arguments())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stderr = child.stderr.take();
    Ok((child, LastWords::of(stderr)))
}

async fn open(
    spec: &Spec,
    child: &mut Child,
    tasks: &Tasks,
) -> Result<(Channel, oneshot::Receiver<()>), ChannelError> {
    let mut streams = match (child.stdout.take(), child.stdin.take()) {
        (Some(output), Some(mut input)) => {
            // Where it may not be larger, it takes more writes.
            let _ = rustix::pipe::fcntl_setpipe_size(&output, CHANNEL_PIPE_BYTES).is_ok();
            // If it has ended, so has the channel.
            drop(input.write_all(launch::WORD).await);
            tokio::io::join(output, input)
        }
        // Both were asked for above and are taken only here.
        _ => return std::future::pending().await,
    };
    if spec.is_restored {
        channel::begin_anew(&mut streams).await?;
    }
    let (channel, closed) = Channel::open(streams, tasks).await?;
    channel.check_health().await?;
    Ok((channel, closed))
}

/// Waits for whatever ends the sandbox first.
async fn wait(
    child: &mut Child,
    closed: oneshot::Receiver<()>,
    (ending, signals): (&Stop, [io::Result<Signal>; 2]),
    last_words: &LastWords,
) -> (Exit, Asked) {
    let asked = tokio::select! {
        () = ending.cancelled() => Asked::ByCall,
        () = told_to_end(signals) => Asked::BySignal,
        _ = child.wait() => Asked::No,
        _ = closed => Asked::No,
        // It is read all the time, so that a sandbox which writes there is not stopped by it.
        () = last_words.read_all() => Asked::No,
    };
    let (reason, detail) = match asked {
        Asked::ByCall | Asked::BySignal => (Reason::Stopped, "asked to end"),
        Asked::No => (Reason::Died, "process 1 or the runtime ended"),
    };
    let words = last_words.text();
    let detail = if words.is_empty() { detail.to_owned() } else { format!("{detail}: {words}") };
    (Exit::now(reason, detail), asked)
}

/// Who wanted a sandbox to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Nobody.
    No,
    /// The orchestrator, which saves the files and removes the rest.
    ByCall,
    /// Somebody with a signal: nobody may come after us.
    BySignal,
}

async fn told_to_end(signals: [io::Result<Signal>; 2]) {
    match signals {
        [Ok(mut terminate), Ok(mut interrupt)] => {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        }
        // Without handlers the signal itself ends us, and all with us.
        _ => std::future::pending().await,
    }
}

/// Kills all that is left and removes the groups. What resists is left to the sweep.
async fn end(cgroups: &Cgroups) {
    let groups = cgroups.clone();
    let ended = tokio::task::spawn_blocking(move || -> Result<(), CgroupError> {
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let deadline = std::time::Instant::now() + END_TIME;
        loop {
            groups.kill()?;
            let left: Vec<i32> =
                processes::below(own).into_iter().filter(|pid| processes::is_running(*pid)).collect();
            if left.is_empty() || std::time::Instant::now() > deadline {
                return groups.remove();
            }
            processes::kill(left);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    drop(ended.await);
}

/// What the runtime and `sandboxd` print, of which only the beginning is kept.
#[derive(Default)]
struct LastWords {
    stream: tokio::sync::Mutex<Option<ChildStderr>>,
    kept: std::sync::Mutex<Vec<u8>>,
}

impl LastWords {
    fn of(stream: Option<ChildStderr>) -> Self {
        Self { stream: tokio::sync::Mutex::new(stream), ..Self::default() }
    }

    /// Reads until the runtime has closed it, that is, ended. Cancelling loses nothing.
    async fn read_all(&self) {
        let mut stream = self.stream.lock().await;
        let mut buffer = [0; 512];
        while let Some(Ok(length @ 1..)) = async { Some(stream.as_mut()?.read(&mut buffer).await) }.await {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let room = LAST_WORDS_BYTES.saturating_sub(kept.len()).min(length);
            kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
        }
    }

    /// What was read, on one line.
    fn text(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).trim().chars().flat_map(char::escape_default).collect()
    }
}
