// SPDX-License-Identifier: Apache-2.0
//! `postern-sandboxd`: process 1 inside a sandbox.
//!
//! It starts and reaps the agent's processes, and holds the door: the one way out. It runs with
//! no more rights than the agent, so it protects nothing but the session token in its memory (which a
//! template may have put into a file as well); whoever listens to it must treat its words as the agent's
//! own. Its control channel is its standard input and output, on which it is the HTTP/2 server; in a pod,
//! a port (`listen`).
//!
//! ```text
//! orchestrator ── shim ── stdin/stdout ─┬─ control ─┬─ identity  (Identify, Token)
//! orchestrator ── TCP 49983 ── listen ──┘           ├─ process   (Start, Connect, List, ...)
//!                                                   └─ files     (ListDir, WatchDir, ..., /files)
//! agent ── 127.0.0.1:49980 ── door ── /run/postern/gateway.sock, or TLS in a pod ── gateway
//! ```
//! In a pod the same program is process 1 of a second container too, out of the agent's reach, in which files
//! are carried (`beside`).

#[cfg(feature = "pod")]
mod beside;
mod channel;
mod confine;
mod connect;
mod control;
mod door;
mod files;
mod identity;
#[cfg(feature = "pod")]
mod listen;
mod options;
#[cfg(feature = "pod")]
mod probe;
mod process;
mod reaper;
mod still;
mod token_file;
mod user;

use options::Options;
use postern_common::tasks::Tasks;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Why `sandboxd` could not serve.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("wrong usage: {0}")]
    Usage(#[from] options::UsageError),
    #[error("could not close this process to the agent's own; the kernel refused")]
    Confine(#[from] confine::ConfineError),
    #[error("could not take standard input and output as control channel; start it with two pipes")]
    Channel(#[source] std::io::Error),
    #[error("could not start the event loop")]
    Runtime(#[source] std::io::Error),
    #[error("could not start the threads that read and write files")]
    Files(#[source] std::io::Error),
    #[error("could not listen for signals")]
    Reaper(#[source] std::io::Error),
    #[error("could not open the door on {address}; is the port taken, or loopback down?")]
    Door { address: std::net::SocketAddr, source: std::io::Error },
    #[error("the control channel failed")]
    Control(#[source] hyper::Error),
    #[error("nobody spoke on the control channel after a sleep")]
    Awake(#[source] std::io::Error),
    #[error("could not copy this program")]
    Install(#[source] std::io::Error),
    #[cfg(feature = "pod")]
    #[error(transparent)]
    Probe(#[from] probe::ProbeError),
    #[error("could not listen for signed requests; is the port taken, or the key none?")]
    Listen(#[source] std::io::Error),
}

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == process::terminal::ARGUMENT) {
        return process::terminal::become_command(words);
    }
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<(), StartError> {
    #[cfg(feature = "pod")]
    if std::env::args_os().nth(1).is_some_and(|word| word == "probe") {
        return probe_network();
    }
    let options = Options::parse(std::env::args_os().skip(1))?;
    if let Some(folder) = &options.install {
        return install(folder).map_err(StartError::Install);
    }
    confine::close_to_other_processes()?;
    if let Some(slot) = &options.beside {
        return carry_beside(slot, options.listen.clone());
    }
    confine::hide_clone3()?;
    if options.landlock {
        confine::restrict_files()?;
    }
    event_loop()?.block_on(run(options))
}

fn event_loop() -> Result<tokio::runtime::Runtime, StartError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Runtime)
}

/// Has files carried until SIGTERM.
#[cfg(feature = "pod")]
fn carry_beside(slot: &Path, listen: Option<options::Listen>) -> Result<(), StartError> {
    event_loop()?.block_on(beside::run(slot, listen)).map_err(StartError::Listen)
}

#[cfg(not(feature = "pod"))]
fn carry_beside(_slot: &Path, _listen: Option<options::Listen>) -> Result<(), StartError> {
    Err(StartError::Listen(std::io::Error::other(FOR_PODS)))
}

/// Tells what can be reached from here.
#[cfg(feature = "pod")]
#[expect(clippy::print_stdout, reason = "a pod's log is what people look at after a test of theirs")]
fn probe_network() -> Result<(), StartError> {
    let told = |wanted: &str| {
        let found = std::env::vars_os().find(|(name, _)| name == wanted);
        found.and_then(|(_, value)| value.into_string().ok())
    };
    let api = told("KUBERNETES_SERVICE_HOST").zip(told("KUBERNETES_SERVICE_PORT"));
    print!("{}", probe::run(std::env::args_os().skip(2), &api)?);
    Ok(())
}

/// Copies this program to where another container of the pod finds it.
fn install(folder: &Path) -> std::io::Result<()> {
    let to = folder.join("postern-sandboxd");
    std::fs::copy(std::env::current_exe()?, &to)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(to, mode)
}

/// Serves until the other end of the control channel closes it; a pod, until it is told to end.
async fn run(mut options: Options) -> Result<(), StartError> {
    let tasks = Tasks::new();
    let listen = options.listen.take();
    let channel = match &listen {
        None => Some(channel::take_standard_streams().map_err(StartError::Channel)?),
        Some(_) => None,
    };
    heed_signals().map_err(StartError::Reaper)?;
    let identity = Arc::new(identity::Identity::default());
    let exits = reaper::watch(&tasks).map_err(StartError::Reaper)?;
    let address = options.door;
    door::open(&options, Arc::clone(&identity), &tasks)
        .await
        .map_err(|source| StartError::Door { address, source })?;
    let files = files::Files::open(&options.home, tasks.clone()).map_err(StartError::Files)?;
    let pieces = (options.home, options.gathers.then_some(process::GATHER_TIME));
    let processes = process::Processes::new(exits, Arc::clone(&identity), pieces, tasks.clone());
    let services = control::Services::new(identity, processes, files);
    let served = match (channel, listen) {
        (Some(channel), _) => converse(&channel, &services, &tasks).await,
        (None, listen) => in_a_pod(listen, services, &tasks).await.map_err(StartError::Listen),
    };
    tasks.stop();
    served
}

/// Has what is started here begin with the usual answer to signals of terminals. Whoever started us may ignore
/// them, as shells do for what they run in the background and nohup(1) does; then Ctrl-C would end nothing.
/// What is handled here, unlike what is ignored, is as usual after an exec.
fn heed_signals() -> std::io::Result<()> {
    /// signal(7): SIGTSTP, SIGTTIN, SIGTTOU.
    const STOPPING: [i32; 3] = [20, 21, 22];
    let ending = [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit()];
    for kind in ending.into_iter().chain(STOPPING.map(SignalKind::from_raw)) {
        // It is handled from then on, heard or not.
        drop(signal(kind)?);
    }
    Ok(())
}

/// Serves until the other end closes the channel. Where all in here sleeps, a conversation that breaks
/// off is that of before a restore, and another follows it.
async fn converse(
    channel: &channel::Streams,
    services: &control::Services,
    tasks: &Tasks,
) -> Result<(), StartError> {
    loop {
        let opened = channel.open().map_err(StartError::Channel)?;
        let served = control::serve(opened, services.clone(), tasks).await;
        if !services.is_asleep() {
            return served.map_err(StartError::Control);
        }
        channel.begin_anew().await.map_err(StartError::Awake)?;
    }
}

/// Serves signed requests until SIGTERM, which process 1 has to ask for.
#[cfg(feature = "pod")]
async fn in_a_pod(
    listen: Option<options::Listen>,
    services: control::Services,
    tasks: &Tasks,
) -> std::io::Result<()> {
    let mut told = signal(SignalKind::terminate())?;
    // The volume is empty when the pod begins; where it cannot be written, nothing is kept.
    for folder in ["/data/user", "/data/scratch"] {
        let _ = std::fs::create_dir_all(folder).is_ok();
    }
    if let Some(listen) = listen {
        let _bound = listen::open(listen, services, tasks).await?;
    }
    told.recv().await;
    Ok(())
}

/// What the build for local sandboxes says to who wants it for a pod.
#[cfg(not(feature = "pod"))]
const FOR_PODS: &str = "this build is for local sandboxes; pods take one with the feature `pod`";

/// A local sandbox has no use for keys and certificates, and no such code in it.
#[cfg(not(feature = "pod"))]
async fn in_a_pod(
    _listen: Option<options::Listen>,
    _services: control::Services,
    _tasks: &Tasks,
) -> std::io::Result<()> {
    Err(std::io::Error::other(FOR_PODS))
}

/// The one place that prints: nobody listens on the control channel yet, or any more.
#[expect(clippy::print_stderr, reason = "the shim reads standard error to say why a start failed")]
fn report(error: &StartError) {
    eprint!("postern-sandboxd: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        eprint!(": {inner}");
        cause = inner.source();
    }
    eprintln!();
}
