// SPDX-License-Identifier: Apache-2.0
//! `postern-gateway`: the gateway as a process of its own, following an orchestrator over the
//! control stream.
//!
//! Reads the command line, the environment and `postern.toml` here and nowhere else. SIGTERM or
//! Ctrl-C drains: listeners close, requests in flight finish, their decisions are written, then it
//! ends.

#[path = "main/tokens.rs"]
mod tokens;

use anyhow::{Context as _, anyhow, bail};
use clap::Parser;
use postern_common::control::{distant_link, link};
use postern_common::process::{Ending, settings_file};
use postern_common::settings::{FilesAt, Settings, Sources, name};
use postern_common::tasks::Tasks;
use postern_common::telemetry;
use postern_gateway::alone::{self, Alone};
use postern_gateway::{Config, FilesApi, Gateway, Settings as GatewaySettings, Tls, UpstreamRules, stream};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is left after the drain time, to break off and to write decisions.
const STOP_TIME: Duration = Duration::from_secs(5);

/// The one door out of a sandbox, as a process of its own.
#[derive(Debug, Parser)]
#[command(name = "postern-gateway", version)]
struct Arguments {
    /// Settings file instead of ./postern.toml.
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Folder where state and decisions are kept [./.postern].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Stands alone: serves this tenant's folder, without an orchestrator.
    #[arg(long, value_name = "DIR", conflicts_with = "orchestrator")]
    config: Option<String>,
    /// The tenant of that folder [default].
    #[arg(long, value_name = "NAME", requires = "config")]
    tenant: Option<String>,
    /// The control stream to follow, such as orchestrator:8082.
    #[arg(long, value_name = "HOST:PORT")]
    orchestrator: Option<String>,
    /// Address for sandboxes [127.0.0.1:8081].
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Address for health and metrics [127.0.0.1:9091].
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<String>,
    /// What is logged, such as `info,postern_gateway=debug`.
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

fn main() -> ExitCode {
    match start(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may not have begun: what is wrong with the settings is told like this.
            drop(writeln!(std::io::stderr(), "postern-gateway: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> anyhow::Result<()> {
    let settings = Settings::resolve(&sources(arguments)?)?;
    telemetry::start_logging(settings.log_format(), settings.text(name::LOG).unwrap_or("info"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(&settings))
}

fn sources(arguments: &Arguments) -> anyhow::Result<Sources> {
    let mut flags = BTreeMap::new();
    for (setting, value) in [
        (name::CONFIG, &arguments.config),
        (name::TENANT, &arguments.tenant),
        (name::DATA_DIR, &arguments.data_dir),
        (name::GATEWAY_ORCHESTRATOR, &arguments.orchestrator),
        (name::GATEWAY_LISTEN, &arguments.listen),
        (name::GATEWAY_ADMIN_LISTEN, &arguments.admin_listen),
        (name::LOG, &arguments.log),
    ] {
        flags.extend(value.clone().map(|value| (setting.key, value)));
    }
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let file = settings_file(arguments.settings.as_deref())?;
    Ok(Sources { flags, environment, file })
}

async fn run(settings: &Settings) -> anyhow::Result<()> {
    let ending = Ending::listen()?;
    match (settings.path(name::CONFIG), settings.text(name::GATEWAY_ORCHESTRATOR)) {
        (Some(_), Some(_)) => bail!(
            "POSTERN_CONFIG and POSTERN_ORCHESTRATOR are both set: a gateway follows an orchestrator or stands alone"
        ),
        (Some(folder), None) => stand_alone(settings, folder, ending).await,
        (None, _) => follow(settings, ending).await,
    }
}

/// Serves a folder until it is asked to end.
async fn stand_alone(settings: &Settings, folder: PathBuf, mut ending: Ending) -> anyhow::Result<()> {
    let upstreams = UpstreamRules::default();
    let program = std::env::current_exe().context("this program does not know where it is")?;
    let alone = Alone::open(alone::Settings {
        folder,
        tenant: settings.tenant().map_err(|mistake| anyhow!(mistake))?,
        secrets: settings.path(name::GATEWAY_SECRETS_DIR),
        compiler: program.with_file_name("postern-compile"),
        allowed: settings.list(name::UPSTREAMS_ALLOW),
        upstreams: upstreams.clone(),
    });
    let alone = alone.await?;
    let mut config = gateway_settings(settings, upstreams)?;
    config.token_keys.clear();
    // Nobody keeps decisions here, so that none can be lost.
    config.fails_closed = false;
    config.issuer = Some(tokens::issuer(settings)?);
    config.artefact_key = Some(alone.artefact_key());
    let (gateway_tasks, alone_tasks) = (Tasks::new(), Tasks::new());
    let (publisher, follower) = link();
    let running = Gateway::start(check(config)?, follower, &gateway_tasks).await?;
    let (listen, admin) = (shown(running.tcp), shown(running.admin));
    alone.serve(publisher, running, &alone_tasks).await?;
    tracing::info!(listen, admin, binding = "none", "postern-gateway is up and stands alone");
    ending.come().await;
    tracing::info!("draining: once more to leave at once");
    tokio::select! {
        ended = end(&gateway_tasks, &alone_tasks) => ended,
        () = ending.come() => bail!("left at once"),
    }
}

fn check(settings: GatewaySettings) -> anyhow::Result<Config> {
    Config::check(settings)
        .map_err(|mistakes| anyhow!(mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
}

fn shown(address: Option<std::net::SocketAddr>) -> String {
    address.map_or_else(|| "off".to_owned(), |address| address.to_string())
}

/// Follows an orchestrator until it is asked to end.
async fn follow(settings: &Settings, mut ending: Ending) -> anyhow::Result<()> {
    let follow = follow_settings(settings)?;
    let config = check(gateway_settings(settings, follow.upstreams.clone())?)?;
    let _lock = lock(&follow.folder)?;
    let (gateway_tasks, stream_tasks) = (Tasks::new(), Tasks::new());
    let (publisher, follower, heard) = distant_link();
    let running = Gateway::start(config, follower, &gateway_tasks).await?;
    let (name, orchestrator) = (follow.credential.name.clone(), follow.orchestrator.clone());
    stream::follow(follow, publisher, heard, running.audit.clone(), &stream_tasks)?;
    let (listen, admin) = (shown(running.tcp), shown(running.admin));
    tracing::info!(gateway = %name, orchestrator, listen, admin, "postern-gateway is up");
    ending.come().await;
    tracing::info!("draining: once more to leave at once");
    tokio::select! {
        ended = end(&gateway_tasks, &stream_tasks) => ended,
        () = ending.come() => bail!("left at once; decisions that were not written are lost"),
    }
}

/// First what makes decisions, then what writes them down.
async fn end(gateway: &Tasks, stream: &Tasks) -> anyhow::Result<()> {
    let drained = gateway.shut_down(postern_gateway::DRAIN + STOP_TIME).await;
    stream.shut_down(STOP_TIME).await?;
    Ok(drained?)
}

fn gateway_settings(settings: &Settings, upstreams: UpstreamRules) -> anyhow::Result<GatewaySettings> {
    let token = settings.token();
    let keys = token.signing_key.into_iter().chain(token.old_keys).collect();
    let mut gateway = GatewaySettings::new(keys, upstreams);
    let address = |setting| settings.address(setting).map_err(|mistake| anyhow!(mistake));
    gateway.tcp = address(name::GATEWAY_LISTEN)?;
    gateway.tls = Tls::of(settings);
    gateway.admin = address(name::GATEWAY_ADMIN_LISTEN)?;
    gateway.staleness = settings.staleness();
    gateway.fails_closed = settings.flag(name::GATEWAY_FAIL_CLOSED);
    gateway.files = files_api(settings)?;
    gateway.observed_as(settings).map_err(|mistake| anyhow!(mistake))?;
    gateway.artefact_key = settings.gateway_credential().map(|credential| *credential.signer.as_bytes());
    Ok(gateway)
}

/// Where the files API is; on another machine it is known as the control stream is.
fn files_api(settings: &Settings) -> anyhow::Result<Option<FilesApi>> {
    let hosts = match settings.files_api() {
        None => return Ok(None),
        Some(FilesAt::Socket(path)) => return Ok(Some(FilesApi::Socket(path))),
        Some(FilesAt::Hosts(hosts)) => hosts,
    };
    let credential = settings.gateway_credential().context(
        "POSTERN_FILES_API names hosts, which are known by the credential of a gateway: set POSTERN_GATEWAY_CREDENTIAL_FILE",
    )?;
    Ok(Some(FilesApi::Hosts { hosts, authority: credential.authority }))
}

fn follow_settings(settings: &Settings) -> anyhow::Result<stream::Settings> {
    let orchestrator = settings.text(name::GATEWAY_ORCHESTRATOR).context(
        "no orchestrator to follow: set POSTERN_ORCHESTRATOR to the address of its control stream, such as orchestrator:8082",
    )?;
    let credential = settings.gateway_credential().context(
        "no credential: set POSTERN_GATEWAY_CREDENTIAL_FILE to a file with what `postern gateways add NAME` printed",
    )?;
    let mut allowed = settings.list(name::UPSTREAMS_ALLOW);
    let backend = settings.backend_url();
    allowed.extend(
        backend.and_then(|url| Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?))),
    );
    let upstreams = UpstreamRules::new(&allowed, &[]).map_err(|mistakes| {
        anyhow!(mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    })?;
    Ok(stream::Settings {
        orchestrator: orchestrator.to_owned(),
        credential,
        folder: settings.path(name::DATA_DIR).context("a setting with a default")?.join("gateway"),
        staleness: settings.staleness(),
        spool_bytes: settings.bytes(name::GATEWAY_SPOOL).unwrap_or(stream::SPOOL_BYTES),
        serves_sockets: settings.flag(name::GATEWAY_SOCKETS),
        upstreams,
    })
}

/// One gateway for one folder; the kernel drops the lock with the process.
fn lock(folder: &Path) -> anyhow::Result<File> {
    let shown = folder.display();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("`{shown}` cannot be made; choose another folder with --data-dir"))?;
    let opened =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(folder.join("lock"));
    let file = opened.with_context(|| format!("`{shown}/lock` cannot be opened"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("another gateway uses `{shown}`; stop it, or choose another folder with --data-dir")
        }
        Err(TryLockError::Error(error)) => bail!("`{shown}` cannot be locked: {error}"),
    }
}
