// SPDX-License-Identifier: Apache-2.0
//! `postern-orchestrator`: the orchestrator as a process of its own, for gateways that follow its
//! control stream.
//!
//! Reads the command line, the environment and `postern.toml` here and nowhere else. SIGTERM or
//! Ctrl-C leaves its sandboxes running: the next one adopts them.

#[path = "main/chores.rs"]
mod chores;
#[path = "main/cluster.rs"]
mod cluster;

use anyhow::{Context as _, anyhow, bail};
use chores::Chore;
use clap::Parser;
use postern_common::process::{Ending, settings_file};
use postern_common::settings::{FilesAt, RuntimeKind, Setting, Settings, Sources, name};
use postern_common::tasks::Tasks;
use postern_common::telemetry;
use postern_orchestrator::runtime::local::{LocalRuntime, LocalSettings};
use postern_orchestrator::runtime::{Probed, Runtime as _};
use postern_orchestrator::{Config, FilesListener, Host, Orchestrator, Prepared};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long what is in flight gets to end.
const STOP_TIME: Duration = Duration::from_secs(10);
/// How long the process outlives its work, for threads that still hold something.
const END_TIME: Duration = Duration::from_secs(5);
/// Where an admin's key and the addresses are written, for commands on this machine.
const KEY_FILE: &str = "api-key";
const CONNECTION_FILE: &str = "connection.json";

/// Makes and destroys sandboxes, as a process of its own.
#[derive(Debug, Parser)]
#[command(name = "postern-orchestrator", version)]
struct Arguments {
    /// Settings file instead of ./postern.toml.
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Folder where everything is kept [./.postern].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Address of the REST API [127.0.0.1:8080].
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Address of the control stream [127.0.0.1:8082].
    #[arg(long, value_name = "ADDRESS")]
    control_listen: Option<String>,
    /// Address for health and metrics [127.0.0.1:9090].
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<String>,
    /// Print the public half of the key that signs what is said to pods, and end.
    #[arg(long)]
    print_control_key: bool,
    /// What is logged, such as `info,postern_orchestrator=debug`.
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Instead of serving.
    #[command(subcommand)]
    chore: Option<Chore>,
}

/// What of the environment is no setting of ours.
#[derive(Debug)]
struct Surroundings {
    search_path: Vec<PathBuf>,
}

fn main() -> ExitCode {
    match start(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may not have begun: what is wrong with the settings is told like this.
            drop(writeln!(std::io::stderr(), "postern-orchestrator: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> anyhow::Result<()> {
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let path = environment.get("PATH").cloned().unwrap_or_default();
    let search_path = std::env::split_paths(&path).filter(|path| path.is_absolute()).collect();
    let settings = Settings::resolve(&sources(arguments, environment)?)?;
    if arguments.print_control_key {
        writeln!(std::io::stdout(), "{}", cluster::public_key(&settings)?)?;
        return Ok(());
    }
    telemetry::start_logging(settings.log_format(), settings.text(name::LOG).unwrap_or("info"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = match &arguments.chore {
        Some(chore) => runtime.block_on(chores::run(chore, &settings)),
        None => runtime.block_on(run(&settings, Surroundings { search_path })),
    };
    // A thread that a mount holds does not hold the process.
    runtime.shutdown_timeout(END_TIME);
    ended
}

fn sources(arguments: &Arguments, environment: BTreeMap<String, String>) -> anyhow::Result<Sources> {
    let mut flags = BTreeMap::new();
    for (setting, value) in [
        (name::DATA_DIR, &arguments.data_dir),
        (name::API_LISTEN, &arguments.listen),
        (name::CONTROL_LISTEN, &arguments.control_listen),
        (name::API_ADMIN_LISTEN, &arguments.admin_listen),
        (name::LOG, &arguments.log),
    ] {
        flags.extend(value.clone().map(|value| (setting.key, value)));
    }
    let file = settings_file(arguments.settings.as_deref())?;
    Ok(Sources { flags, environment, file })
}

async fn run(settings: &Settings, around: Surroundings) -> anyhow::Result<()> {
    let mut ending = Ending::listen()?;
    let data = settings.path(name::DATA_DIR).context("a setting with a default")?;
    let (_lock, data) = own(&data)?;
    let programs = Programs::beside()?;
    let prepared = Prepared::open(config(settings, data.clone(), &programs)?).await?;
    let tasks = Tasks::new();
    let run_root = run_root(prepared.installation().as_str(), &data);
    let runtime: Arc<dyn Host> = match settings.runtime() {
        RuntimeKind::Local => {
            let local = LocalSettings {
                installation: prepared.installation().clone(),
                run_root: run_root.clone(),
                slot_root: data.join("slots"),
                images: settings.path(name::IMAGES).unwrap_or_else(|| data.join("images")),
                unpacked: data.join("unpacked"),
                shim: programs.find("postern-shim")?,
                sandboxd: programs.find("postern-sandboxd")?,
                // Without the way on which a gateway brings it, it could carry nothing.
                sync: settings.path(name::FILES_API).map(|_| programs.find("postern-sync")).transpose()?,
                runsc: settings.path(name::RUNSC),
                search_path: around.search_path,
            };
            let runtime = LocalRuntime::open(local, tasks.clone())?;
            is_isolated(settings, &runtime.probe().await)?;
            Arc::new(runtime)
        }
        RuntimeKind::Kubernetes => Arc::new(cluster::open(settings, &prepared, &tasks).await?),
    };
    let api = listen(settings, name::API_LISTEN).await?;
    let control = listen(settings, name::CONTROL_LISTEN).await?;
    let admin = listen(settings, name::API_ADMIN_LISTEN).await?;
    let files = files_listener(settings).await.context("POSTERN_FILES_API: could not listen there")?;
    let orchestrator = prepared.start(runtime, &tasks).await?;
    files.into_iter().for_each(|listener| orchestrator.serve_files(listener));
    let adopted = orchestrator.reconciled().adopted.len();
    let shown = open(&orchestrator, [api, control, admin], &data, &run_root).await?;
    let [listen, control, admin] = shown;
    tracing::info!(listen, control, admin, adopted, "postern-orchestrator is up");
    ending.come().await;
    tracing::info!("ending: sandboxes run on, the next orchestrator adopts them");
    drop(std::fs::remove_file(data.join(CONNECTION_FILE)));
    let stopped = tasks.shut_down(STOP_TIME).await;
    orchestrator.close().await;
    Ok(stopped?)
}

/// Listens for gateways that bring syncs' calls.
async fn files_listener(settings: &Settings) -> std::io::Result<Option<FilesListener>> {
    Ok(match settings.files_api() {
        None => None,
        Some(FilesAt::Socket(path)) => Some(FilesListener::bind(&path)?),
        Some(FilesAt::Hosts(hosts)) => Some(FilesListener::Tcp(TcpListener::bind(hosts.join(",")).await?)),
    })
}

/// Opens the listeners and writes down where they are.
async fn open(
    orchestrator: &Orchestrator,
    [api, control, admin]: [Option<TcpListener>; 3],
    data: &Path,
    run_root: &Path,
) -> anyhow::Result<[String; 3]> {
    let key_file = data.join(KEY_FILE);
    orchestrator.admin_key(&key_file).await?;
    let address = |listener: Option<&TcpListener>| listener.map(TcpListener::local_addr).transpose();
    let at = [address(api.as_ref())?, address(control.as_ref())?, address(admin.as_ref())?];
    let api_at = at[0].context("the API cannot be switched off; remove `off` from POSTERN_API_LISTEN")?;
    let written = serde_json::json!({
        "url": format!("http://{api_at}"),
        "gateway": null,
        "control": at[1],
        "key_file": key_file,
        "run": run_root,
        "pid": std::process::id(),
    });
    api.into_iter().for_each(|listener| orchestrator.serve(listener));
    control.into_iter().for_each(|listener| orchestrator.serve_control(listener));
    admin.into_iter().for_each(|listener| orchestrator.serve_admin(listener));
    let draft = data.join(".connection.json.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(&serde_json::to_vec_pretty(&written)?)?;
    std::fs::rename(&draft, data.join(CONNECTION_FILE))?;
    Ok(at.map(|address| address.map_or_else(|| "off".to_owned(), |address| address.to_string())))
}

fn config(settings: &Settings, data: PathBuf, programs: &Programs) -> anyhow::Result<Config> {
    Ok(Config {
        on_cluster: matches!(settings.runtime(), RuntimeKind::Kubernetes),
        compiler: Some(programs.find("postern-compile")?),
        ..Config::of(settings, data)
    })
}

/// Makes sure that some isolation that would do works here; else says what each one lacks.
fn is_isolated(settings: &Settings, probed: &[Probed]) -> anyhow::Result<()> {
    let wanted = Config::isolation_of(settings.isolation());
    let would_do = |it: &&Probed| wanted.is_none_or(|wanted| wanted == it.level);
    if probed.iter().filter(would_do).any(|it| it.outcome.is_ok()) {
        return Ok(());
    }
    let lines: Vec<_> = probed
        .iter()
        .filter(would_do)
        .filter_map(|it| Some(format!("{}: {}", it.level, it.outcome.as_ref().err()?)))
        .collect();
    bail!("sandboxes cannot be isolated on this machine:\n  {}", lines.join("\n  "))
}

async fn listen(settings: &Settings, setting: &Setting) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = settings.address(setting).map_err(|mistake| anyhow!(mistake))? else {
        return Ok(None);
    };
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| {
        format!("could not listen on {address}; free it or choose another with {}", setting.variable)
    })?;
    Ok(Some(listener))
}

/// Where sandboxes' sockets are: short, and as root where every sandbox's own user may pass.
fn run_root(installation: &str, data: &Path) -> PathBuf {
    if rustix::process::geteuid().is_root() {
        Path::new("/run/postern").join(installation)
    } else {
        data.join("run")
    }
}

/// The folder of this program, where those are that it needs.
#[derive(Debug)]
struct Programs(PathBuf);

impl Programs {
    fn beside() -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("this program does not know where it is")?;
        Ok(Self(own.parent().context("this program is nowhere")?.to_owned()))
    }

    fn find(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.0.join(name);
        if path.is_file() {
            return Ok(path);
        }
        Err(anyhow!("`{name}` is not in `{}`; `make build` puts it there", self.0.display()))
    }
}

/// The data folder, ours alone while the file lives: the same lock as that of `postern up`.
fn own(path: &Path) -> anyhow::Result<(File, PathBuf)> {
    let shown = path.display();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("`{shown}` cannot be made; choose another folder with --data-dir"))?;
    let path = path.canonicalize().with_context(|| format!("`{shown}` cannot be found"))?;
    let opened =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path.join("lock"));
    let mut lock = opened.with_context(|| format!("`{shown}/lock` cannot be opened"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            bail!("another orchestrator uses `{shown}`; stop it, or choose another folder with --data-dir")
        }
        Err(TryLockError::Error(error)) => bail!("`{shown}` cannot be locked: {error}"),
    }
    lock.set_len(0)?;
    lock.write_all(std::process::id().to_string().as_bytes())?;
    Ok((lock, path))
}
