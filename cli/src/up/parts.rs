// SPDX-License-Identifier: Apache-2.0
//! The parts of `up`, put together in one process over the same types that a cluster uses.

use super::banner::Banner;
use super::lock::DataFolder;
use super::programs::Programs;
use super::upstreams::Upstreams;
use super::{Surroundings, ports};
use crate::connection::{CONNECTION_FILE, Written};
use crate::failure::Failure;
use anyhow::{Context as _, anyhow};
use postern_common::control;
use postern_common::folder::watched::WatchedFolder;
use postern_common::id::TenantId;
use postern_common::settings::{Setting, Settings, name};
use postern_common::tasks::Tasks;
use postern_gateway::{Ceilings, Config as GatewayConfig, FilesApi, Gateway, Settings as GatewaySettings};
use postern_orchestrator::runtime::local::{LocalRuntime, LocalSettings};
use postern_orchestrator::runtime::{Enforced, Isolation, Probed, Runtime as _};
use postern_orchestrator::{Config, FilesListener, Orchestrator, Prepared};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// The name of the file that holds the admin key.
const KEY_FILE: &str = "api-key";
/// A unix socket's path has 108 bytes; a sandbox's folder and socket need the rest.
const MAX_RUN_ROOT_BYTES: usize = 64;

/// The tasks of the orchestrator's side, and the gateway's.
#[derive(Debug, Clone, Default)]
pub(super) struct Groups {
    own: Tasks,
    gateway: Tasks,
}

impl Groups {
    /// Asks what makes requests possible to end, without waiting.
    pub(super) fn stop(&self) {
        self.own.stop();
    }

    /// Stops what runs: first what makes requests possible, then what carries them.
    pub(super) async fn shut_down(&self, grace: Duration) -> Result<(), Failure> {
        let own = self.own.shut_down(grace).await;
        let gateway = self.gateway.shut_down(grace).await;
        own.and(gateway).map_err(|late| Failure::Failed(anyhow::Error::new(late)))
    }
}

/// Everything that runs.
#[derive(Debug)]
pub(super) struct Parts {
    /// Sandboxes, sessions, configuration.
    pub orchestrator: Orchestrator,
    /// Where requests may go.
    pub upstreams: Upstreams,
    api: Option<TcpListener>,
    api_admin: Option<TcpListener>,
    control: Option<TcpListener>,
    gateway: postern_gateway::Running,
    probed: Vec<Probed>,
    moved: Vec<String>,
    run_root: PathBuf,
    groups: Groups,
}

impl Parts {
    /// Starts everything but the API, which opens once the configuration is in force.
    pub(super) async fn start(
        settings: &Settings,
        around: &Surroundings,
        data: &DataFolder,
        watched: Option<&WatchedFolder>,
        groups: &Groups,
    ) -> Result<Self, Failure> {
        let programs = Programs::find(data.path())?;
        let prepared = Prepared::open(config(settings, data, &programs)).await.map_err(anyhow::Error::new)?;
        let Groups { own: own_tasks, gateway: gateway_tasks } = groups.clone();
        let run_root = run_root(prepared.installation().as_str(), data.path())?;
        let local = LocalSettings {
            installation: prepared.installation().clone(),
            run_root: run_root.clone(),
            slot_root: data.path().join("slots"),
            images: settings.path(name::IMAGES).unwrap_or_else(|| data.path().join("images")),
            unpacked: data.path().join("unpacked"),
            shim: programs.shim,
            sandboxd: programs.sandboxd,
            sync: Some(programs.sync),
            runsc: settings.path(name::RUNSC),
            search_path: around.search_path(),
        };
        let runtime = Arc::new(LocalRuntime::open(local, own_tasks.clone()).map_err(anyhow::Error::new)?);
        let probed = runtime.probe().await;
        is_isolated(settings, &probed)?;
        let api = listen(ports::choose(settings, name::API_LISTEN)?).await?;
        let api = api.context("the API cannot be switched off; remove `off` from POSTERN_API_LISTEN")?;
        let api_admin = listen(ports::choose(settings, name::API_ADMIN_LISTEN)?).await?;
        let control = listen(ports::choose(settings, name::CONTROL_LISTEN)?).await?;
        let own = [Some(&api), api_admin.as_ref(), control.as_ref()]
            .into_iter()
            .flatten()
            .map(TcpListener::local_addr);
        let own: Vec<SocketAddr> = own.collect::<Result<_, _>>()?;
        let at = |listener: Option<&TcpListener>| listener.and_then(|it| it.local_addr().ok());
        let mut at = [at(Some(&api)), at(control.as_ref()), at(api_admin.as_ref())].to_vec();
        let named = watched.map(WatchedFolder::urls).unwrap_or_default();
        let upstreams = Upstreams::new(settings, &own, named)?;
        let (publisher, follower) = control::link();
        let (files, files_at) = files_listener(&run_root)?;
        let gateway = gateway_config(settings, &prepared, &upstreams, files_at)?;
        let gateway = Gateway::start(gateway, follower, &gateway_tasks).await.map_err(anyhow::Error::new)?;
        let orchestrator = prepared.start(runtime, &own_tasks).await.map_err(anyhow::Error::new)?;
        orchestrator.connect(publisher).await;
        orchestrator.serve_files(files);
        at.extend([gateway.tcp, gateway.admin]);
        Ok(Self {
            orchestrator,
            upstreams,
            api: Some(api),
            api_admin,
            control,
            gateway,
            probed,
            moved: moved(settings, &at),
            run_root,
            groups: groups.clone(),
        })
    }

    /// Opens the API and writes down where everything is.
    pub(super) async fn open(
        &mut self,
        tenant: &TenantId,
        folder: Option<&Path>,
        data: &DataFolder,
    ) -> Result<Banner, Failure> {
        let key_file = data.path().join(KEY_FILE);
        self.orchestrator.admin_key(&key_file).await.map_err(anyhow::Error::new)?;
        let api = self.api.take().context("the API is open already")?;
        let url = |address: SocketAddr| format!("http://{address}");
        let at = url(api.local_addr()?);
        self.orchestrator.serve(api);
        let admin = self.api_admin.take();
        let admin_at = admin.as_ref().map(TcpListener::local_addr).transpose()?;
        admin.into_iter().for_each(|listener| self.orchestrator.serve_admin(listener));
        let control = self.control.take();
        let control_at = control.as_ref().map(TcpListener::local_addr).transpose()?;
        control.into_iter().for_each(|listener| self.orchestrator.serve_control(listener));
        let written = Written {
            url: at.parse().context("an address of ours")?,
            gateway: self
                .gateway
                .tcp
                .map(|tcp| url(tcp).parse())
                .transpose()
                .context("an address of ours")?,
            control: control_at,
            admin: [admin_at, self.gateway.admin],
            key_file: key_file.clone(),
            run: self.run_root.clone(),
            pid: std::process::id(),
        };
        data.write(CONNECTION_FILE, &serde_json::to_string_pretty(&written).context("a file of ours")?)?;
        let found = self.orchestrator.reconciled();
        Ok(Banner {
            api: at,
            moved: self.moved.clone(),
            key_file,
            gateway: self.gateway.tcp.map(url),
            sockets: self.run_root.clone(),
            control: control_at.map(|address| address.to_string()),
            admin: [admin_at.map(url), self.gateway.admin.map(url)],
            isolation: self.probed.iter().map(told).collect(),
            config: folder.map(|folder| (tenant.to_string(), folder.to_owned())),
            data: data.path().to_owned(),
            before: (found.adopted.len(), found.ended.len(), found.orphans),
        })
    }

    /// Stops what runs.
    pub(super) async fn stop(self, grace: Duration) -> Result<(), Failure> {
        let stopped = self.groups.shut_down(grace).await;
        self.orchestrator.close().await;
        // What sandboxes shared; a folder of a sandbox that is still there keeps its own.
        drop(std::fs::remove_dir_all(self.run_root.join("shared")));
        drop(std::fs::remove_file(self.run_root.join("files.sock")));
        drop(std::fs::remove_dir(&self.run_root));
        stopped
    }
}

/// What is to be said of listeners that are not where they usually are; `at` has them in this order.
fn moved(settings: &Settings, at: &[Option<SocketAddr>]) -> Vec<String> {
    let usual = [
        (name::API_LISTEN, "the API", "http://"),
        (name::CONTROL_LISTEN, "the control stream", ""),
        (name::API_ADMIN_LISTEN, "the orchestrator's health", "http://"),
        (name::GATEWAY_LISTEN, "the gateway", "http://"),
        (name::GATEWAY_ADMIN_LISTEN, "the gateway's health", "http://"),
    ];
    let told = |((setting, what, scheme), at): ((&Setting, &str, &str), &Option<SocketAddr>)| {
        ports::moved(settings, setting, &format!("{what} is at {scheme}"), (*at)?)
    };
    usual.into_iter().zip(at).filter_map(told).collect()
}

async fn listen(address: Option<SocketAddr>) -> Result<Option<TcpListener>, Failure> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address).await;
    Ok(Some(listener.with_context(|| format!("could not listen on {address}; free it or choose another"))?))
}

fn config(settings: &Settings, data: &DataFolder, programs: &Programs) -> Config {
    Config { compiler: Some(programs.compile.clone()), ..Config::of(settings, data.path().to_owned()) }
}

fn gateway_config(
    settings: &Settings,
    prepared: &Prepared,
    upstreams: &Upstreams,
    files: PathBuf,
) -> Result<GatewayConfig, Failure> {
    let keys = prepared.keys();
    let mut gateway = GatewaySettings::new(keys.token_keys().cloned().collect(), upstreams.rules());
    gateway.tcp = ports::choose(settings, name::GATEWAY_LISTEN)?;
    gateway.admin = ports::choose(settings, name::GATEWAY_ADMIN_LISTEN)?;
    gateway.files = Some(FilesApi::Socket(files));
    let ceilings = gateway.ceilings;
    gateway.ceilings = Ceilings {
        timeout: settings.timeout_ceiling().unwrap_or(ceilings.timeout),
        concurrent: settings.request_ceiling().unwrap_or(ceilings.concurrent),
    };
    gateway.observed_as(settings).map_err(Failure::Usage)?;
    gateway.artefact_key = <[u8; 32]>::try_from(keys.artefact_public_key()).ok();
    GatewayConfig::check(gateway).map_err(|mistakes| Failure::Usage(joined(&mistakes)))
}

/// The socket by which the gateway brings sandboxes' syncs, which nobody but us can reach.
fn files_listener(run_root: &Path) -> Result<(FilesListener, PathBuf), Failure> {
    let path = run_root.join("files.sock");
    let listener = FilesListener::bind(&path);
    Ok((listener.with_context(|| format!("could not listen on `{}`", path.display()))?, path))
}

/// Makes sure that some isolation that would do works here; else says what each one lacks.
fn is_isolated(settings: &Settings, probed: &[Probed]) -> Result<(), Failure> {
    let wanted = Config::isolation_of(settings.isolation());
    let would_do = |level: Isolation| wanted.is_none_or(|wanted| wanted == level);
    if probed.iter().any(|it| would_do(it.level) && it.outcome.is_ok()) {
        return Ok(());
    }
    let lines: Vec<_> = probed.iter().filter(|it| would_do(it.level)).map(told).collect();
    Err(anyhow!("sandboxes cannot be isolated on this machine:\n  {}", lines.join("\n  ")).into())
}

/// One isolation as it turned out.
pub(super) fn told(probed: &Probed) -> String {
    match &probed.outcome {
        Ok(enforced) => format!("{}: works{}", probed.level, unenforced(*enforced)),
        Err(reason) => format!("{}: does not work here: {reason}", probed.level),
    }
}

fn unenforced(enforced: Enforced) -> String {
    let limits = [
        ("memory", enforced.memory),
        ("cpu", enforced.cpu),
        ("pids", enforced.pids),
        ("disk", enforced.disk),
    ];
    let missing: Vec<_> = limits.iter().filter(|(_, holds)| !holds).map(|(name, _)| *name).collect();
    if missing.is_empty() { String::new() } else { format!("; unenforced: {}", missing.join(", ")) }
}

/// Where sandboxes' sockets are: short, and as root where every sandbox's own user may pass.
fn run_root(installation: &str, data: &Path) -> Result<PathBuf, Failure> {
    let path = if rustix::process::geteuid().is_root() {
        Path::new("/run/postern").join(installation)
    } else {
        data.join("run")
    };
    if path.as_os_str().len() > MAX_RUN_ROOT_BYTES {
        let shown = path.display();
        return Err(Failure::Usage(format!(
            "`{shown}` is too long for sockets to lie in; choose a shorter --data-dir"
        )));
    }
    Ok(path)
}

fn joined<Mistake: ToString>(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_common::settings::Sources;

    const ALL: Enforced = Enforced { memory: true, cpu: true, pids: true, disk: true };

    fn wanting(isolation: &str) -> Settings {
        let environment = [("POSTERN_ISOLATION".to_owned(), isolation.to_owned())];
        Settings::resolve(&Sources { environment: environment.into(), ..Sources::default() })
            .expect("resolves")
    }

    fn probed() -> Vec<Probed> {
        vec![
            Probed { level: Isolation::Gvisor, outcome: Err("there is no `runsc`".into()) },
            Probed { level: Isolation::Namespaces, outcome: Ok(Enforced { disk: false, ..ALL }) },
        ]
    }

    #[test]
    fn an_isolation_that_was_asked_for_is_never_replaced_by_a_weaker_one() {
        assert!(is_isolated(&wanting("auto"), &probed()).is_ok());
        assert!(is_isolated(&wanting("namespaces"), &probed()).is_ok());
        let refused = is_isolated(&wanting("gvisor"), &probed()).expect_err("does not work").to_string();
        assert!(refused.contains("there is no `runsc`") && !refused.contains("namespaces"), "{refused}");
        assert!(is_isolated(&wanting("auto"), &probed()[..1]).is_err());
    }

    #[test]
    fn what_is_not_enforced_is_told() {
        let lines: Vec<_> = probed().iter().map(told).collect();
        assert_eq!(
            lines,
            ["gvisor: does not work here: there is no `runsc`", "namespaces: works; unenforced: disk"]
        );
    }

    #[test]
    fn a_data_folder_too_deep_for_sockets_is_refused_early() {
        let deep = format!("/{}", "d".repeat(80));
        let found = run_root("abcdefghij", Path::new(&deep));
        assert_eq!(found.is_ok(), rustix::process::geteuid().is_root());
    }
}
