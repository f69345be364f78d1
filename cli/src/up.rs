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
pub(crate) use lock::DataFolder;
use parts::{Groups, Parts};
use postern_common::folder::TenantFiles;
use postern_common::folder::watched::WatchedFolder;
use postern_common::id::TenantId;
use postern_common::process::Ending;
use postern_common::settings::{SettingMistakes, Settings, name};
use postern_common::telemetry;
use postern_orchestrator::configuration::ConfigurationError;
use postern_orchestrator::{Claim, Owner};
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
pub(crate) async fn run(
    settings: &Settings,
    around: &Surroundings,
    claim: Claim,
    output: Output,
) -> Result<(), Failure> {
    if claim == Claim::TakeOver && settings.path(name::CONFIG).is_none() {
        return Err(Failure::Usage(
            "--take-over needs a folder: `postern up --config DIR --take-over`".into(),
        ));
    }
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
        begun = begin(&mut parts, &tenant, (watched.as_ref(), claim), &data, output) => begun.map(|()| true),
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
    (watched, claim): (Option<&WatchedFolder>, Claim),
    data: &DataFolder,
    output: Output,
) -> Result<(), Failure> {
    match watched {
        Some(watched) => {
            let put = put_in_force(parts, tenant, (watched.path(), watched.files()), claim).await;
            put.map_err(|refused| refused.at_the_start(tenant, watched.path()))?;
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
        Ok(files) => {
            let put = put_in_force(parts, tenant, (&path, files), Claim::Own).await;
            put.map_err(|refused| refused.to_string())
        }
        Err(mistakes) => Err(mistakes.to_string()),
    };
    match told {
        Ok(what) => output.line(&format!("configuration: {what}")),
        Err(why) => {
            output.line(&format!("configuration refused, the last good one stays in force:\n{why}"));
        }
    }
}

/// Why a folder was not put in force.
#[derive(Debug, thiserror::Error)]
enum Refused {
    /// The tenant is somebody else's.
    #[error("  it is owned by {0}")]
    Owned(Owner),
    /// All that is wrong, a line each.
    #[error("{0}")]
    Wrong(String),
}

impl Refused {
    /// What it means for an `up` that was to begin with this folder.
    fn at_the_start(self, tenant: &TenantId, folder: &Path) -> Failure {
        let folder = folder.display();
        match self {
            Self::Owned(owner) => {
                let why = match owner {
                    Owner::Api => "was changed through the API since a folder had it last".to_owned(),
                    Owner::Folder(_) => format!("is owned by {owner}"),
                };
                Failure::Usage(format!(
                    "the configuration of tenant `{tenant}` {why}; nothing was changed\n  hint: `postern up` \
                     keeps it as it is; `postern up --config {folder} --take-over` puts this folder in its place"
                ))
            }
            Self::Wrong(why) => anyhow!("the configuration in `{folder}` is refused:\n{why}").into(),
        }
    }
}

impl From<String> for Refused {
    fn from(why: String) -> Self {
        Self::Wrong(why)
    }
}

/// Puts the files in force, all or nothing; says what changed, or everything that is wrong.
///
/// The gateway may reach the new backends before they are named, and the old ones no more only
/// once they are not, so that no request falls in between.
async fn put_in_force(
    parts: &Parts,
    tenant: &TenantId,
    (folder, files): (&Path, &TenantFiles),
    claim: Claim,
) -> Result<String, Refused> {
    let urls = || files.backends.values().map(|backend| &backend.backend.url);
    parts.upstreams.also(urls())?;
    let told = match parts.orchestrator.apply_folder(tenant, folder, files.clone(), claim).await {
        Ok(edited) if edited.refused_by_gateways.is_empty() => {
            parts.upstreams.settle(urls())?;
            let changes =
                edited.changes.iter().map(|it| format!("{} {}", it.kind, it.name)).collect::<Vec<_>>();
            let changes = if changes.is_empty() { "nothing differs".to_owned() } else { changes.join(", ") };
            Ok(format!("version {} is in force ({changes})", edited.version))
        }
        Ok(edited) => {
            Err(Refused::Wrong(format!("  the gateway: {}", edited.refused_by_gateways.join("\n  "))))
        }
        Err(ConfigurationError::Mistakes(mistakes)) => {
            let lines = mistakes.iter().map(|it| format!("  {}: {}", it.pointer, it.message));
            Err(Refused::Wrong(lines.collect::<Vec<_>>().join("\n")))
        }
        Err(ConfigurationError::OwnedElsewhere { owner, .. }) => Err(Refused::Owned(owner)),
        Err(error) => Err(Refused::Wrong(format!("  {:#}", anyhow::Error::new(error)))),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_owns_the_tenant_the_way_out_is_told() {
        let tenant = TenantId::parse("default").expect("a name");
        let told = |refused: Refused| refused.at_the_start(&tenant, Path::new("/w/config"));
        for owner in [Owner::Api, Owner::Folder("/elsewhere".to_owned())] {
            let failure = told(Refused::Owned(owner));
            assert_eq!(failure.exit_code(), 2);
            assert!(failure.to_string().contains("`postern up --config /w/config --take-over`"), "{failure}");
        }
        insta::assert_snapshot!(told(Refused::Wrong("  /policies/desk: no".to_owned())), @r"
        the configuration in `/w/config` is refused:
          /policies/desk: no
        ");
    }
}
