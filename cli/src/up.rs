// SPDX-License-Identifier: Apache-2.0
//! `postern up`: orchestrator, gateway and database in one process, on loopback, until Ctrl-C.
//!
//! ```text
//!   lock ─▶ keys, database ─▶ isolation tried ─▶ gateway ─▶ orchestrator ─▶ folder in force ─▶ API
//!   Ctrl-C ─▶ no new work ─▶ sandboxes destroyed, files kept ─▶ orchestrator ─▶ gateway ─▶ lock
//! ```

mod banner;
mod lock;
mod parts;
mod ports;
mod programs;
mod upstreams;

pub(crate) use programs::Programs;

use crate::failure::Failure;
use crate::output::Output;
use anyhow::{Context as _, anyhow};
use lock::DataFolder;
use parts::{Groups, Parts};
use postern_common::folder::TenantFiles;
use postern_common::folder::watched::WatchedFolder;
use postern_common::id::TenantId;
use postern_common::process::Ending;
use postern_common::settings::{SettingMistakes, Settings, name};
use postern_common::telemetry;
use postern_orchestrator::configuration::ConfigurationError;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long sandboxes get to end and their files to be saved.
const DESTROY_TIME: Duration = Duration::from_secs(25);
/// How long everything else gets after that.
const STOP_TIME: Duration = Duration::from_secs(12);

/// What `main` knows of the machine's user.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    /// What is wrong with the settings, which are then as if nobody had said anything. Only
    /// `doctor` goes on with that.
    pub mistakes: Option<SettingMistakes>,
    /// Where programs are looked for.
    pub path: OsString,
    /// Where `make` keeps what it builds once: a `gvisor/runsc` there is found without a setting.
    pub cache: Option<PathBuf>,
}

impl Surroundings {
    /// Where programs are looked for.
    pub(crate) fn search_path(&self) -> Vec<PathBuf> {
        let built = self.cache.iter().map(|cache| cache.join("gvisor"));
        std::env::split_paths(&self.path).chain(built).filter(|path| path.is_absolute()).collect()
    }
}

/// Runs until Ctrl-C or SIGTERM.
pub(crate) async fn run(settings: &Settings, around: &Surroundings, output: Output) -> Result<(), Failure> {
    telemetry::start_logging(settings.log_format(), settings.text(name::LOG).unwrap_or("info"));
    let mut ending = Ending::listen()?;
    let path = settings.path(name::DATA_DIR).context("a setting with a default")?;
    let data = DataFolder::open(&path)?;
    data.remove(crate::connection::CONNECTION_FILE)?;
    let tenant = settings.tenant().map_err(Failure::Usage)?;
    let groups = Groups::default();
    let mut starting = std::pin::pin!(start(settings, around, &data, &groups));
    let started = tokio::select! {
        started = starting.as_mut() => started,
        () = ending.come() => {
            output.note("ending before it was up");
            return call_off(starting, &groups, &data).await;
        }
    };
    let (mut watched, mut parts) = started?;
    let begun = tokio::select! {
        begun = begin(&mut parts, &tenant, watched.as_ref(), &data, output) => begun.map(|()| true),
        () = ending.come() => Ok(false),
    };
    if begun.is_ok() {
        while let Ok(true) = begun {
            tokio::select! {
                () = ending.come() => break,
                () = follow(&parts, &tenant, watched.as_mut(), output) => {}
            }
        }
        output.note("ending: sandboxes are destroyed, users' files kept; once more to leave at once");
    }
    tokio::select! {
        ended = end(parts, &data) => begun.and(ended),
        () = ending.come() => Err(anyhow!("left at once; the next `postern up` on this folder cleans up").into()),
    }
}

/// Ends a start half-way. It is not dropped: what it was trying out would stay behind.
async fn call_off(
    starting: impl Future<Output = Result<(Option<WatchedFolder>, Parts), Failure>>,
    groups: &Groups,
    data: &DataFolder,
) -> Result<(), Failure> {
    groups.stop();
    match tokio::time::timeout(DESTROY_TIME, starting).await {
        Ok(Ok((_, parts))) => end(parts, data).await,
        // That it did not come to its end is what was wanted.
        Ok(Err(_)) => groups.shut_down(STOP_TIME).await,
        Err(_late) => Err(anyhow!("the start did not end in time; the next `postern up` cleans up").into()),
    }
}

/// Reads the folder and starts everything but the API.
async fn start(
    settings: &Settings,
    around: &Surroundings,
    data: &DataFolder,
    groups: &Groups,
) -> Result<(Option<WatchedFolder>, Parts), Failure> {
    ports::are_private(settings)?;
    let watched = match settings.path(name::CONFIG) {
        Some(path) => Some(WatchedFolder::open(&path).await.map_err(anyhow::Error::new)?),
        None => None,
    };
    let parts = Parts::start(settings, around, data, watched.as_ref(), groups).await?;
    Ok((watched, parts))
}

/// Puts the folder in force, opens the API and says where everything is.
async fn begin(
    parts: &mut Parts,
    tenant: &TenantId,
    watched: Option<&WatchedFolder>,
    data: &DataFolder,
    output: Output,
) -> Result<(), Failure> {
    match watched {
        Some(watched) => {
            put_in_force(parts, tenant, watched.path(), watched.files()).await.map_err(|why| anyhow!(why))?;
        }
        None => parts.orchestrator.release_folder(tenant).await.map_err(anyhow::Error::new)?,
    }
    let banner = parts.open(tenant, watched.map(WatchedFolder::path), data).await?;
    output.line(&banner.to_string());
    Ok(())
}

/// Takes one change of the watched folder; without a folder there is none to wait for.
async fn follow(parts: &Parts, tenant: &TenantId, watched: Option<&mut WatchedFolder>, output: Output) {
    let Some(watched) = watched else { return std::future::pending().await };
    let path = watched.path().to_owned();
    let told = match watched.changed().await {
        Ok(files) => put_in_force(parts, tenant, &path, files).await,
        Err(mistakes) => Err(mistakes.to_string()),
    };
    match told {
        Ok(what) => output.line(&format!("configuration: {what}")),
        Err(why) => {
            output.line(&format!("configuration refused, the last good one stays in force:\n{why}"));
        }
    }
}

/// Puts the files in force, all or nothing; says what changed, or everything that is wrong.
///
/// The gateway may reach the new backends before they are named, and the old ones no more only
/// once they are not, so that no request falls in between.
async fn put_in_force(
    parts: &Parts,
    tenant: &TenantId,
    folder: &Path,
    files: &TenantFiles,
) -> Result<String, String> {
    let urls = || files.backends.values().map(|backend| &backend.backend.url);
    parts.upstreams.also(urls())?;
    let told = match parts.orchestrator.apply_folder(tenant, folder, files.clone()).await {
        Ok(edited) if edited.refused_by_gateways.is_empty() => {
            parts.upstreams.settle(urls())?;
            let changes =
                edited.changes.iter().map(|it| format!("{} {}", it.kind, it.name)).collect::<Vec<_>>();
            let changes = if changes.is_empty() { "nothing differs".to_owned() } else { changes.join(", ") };
            Ok(format!("version {} is in force ({changes})", edited.version))
        }
        Ok(edited) => Err(format!("  the gateway: {}", edited.refused_by_gateways.join("\n  "))),
        Err(ConfigurationError::Mistakes(mistakes)) => {
            let lines = mistakes.iter().map(|it| format!("  {}: {}", it.pointer, it.message));
            Err(lines.collect::<Vec<_>>().join("\n"))
        }
        Err(error) => Err(format!("  {:#}", anyhow::Error::new(error))),
    };
    if told.is_err() {
        parts.upstreams.back()?;
    }
    told
}

/// Destroys the sandboxes, stops what runs, and takes away what told others where it was.
async fn end(parts: Parts, data: &DataFolder) -> Result<(), Failure> {
    data.remove(crate::connection::CONNECTION_FILE)?;
    let left = parts.orchestrator.destroy_all(DESTROY_TIME).await.map_err(anyhow::Error::new)?;
    parts.stop(STOP_TIME).await?;
    match left {
        0 => Ok(()),
        left => {
            Err(anyhow!("{left} sandboxes were not gone in time; the next `postern up` ends them").into())
        }
    }
}
