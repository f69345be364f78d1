// SPDX-License-Identifier: Apache-2.0
//! Opens what is kept of sandboxes and users: their files, snapshots, pictures of memory.

use super::StartError;
use crate::check::MadeOn;
use crate::config::Config;
use crate::keys::InstallationKeys;
use crate::memory::Memory;
use crate::snapshots::Snapshots;
use crate::storage::{Cache, ConnectError, Quota, Storage, StorageSettings};
use crate::store::Store;
use postern_common::settings::StorageKind;
use postern_common::tasks::{Stop, Tasks};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A mount that answers later is away.
const OPEN_TIME: Duration = Duration::from_secs(10);

/// Snapshots in this folder, which are looked after until the tasks are stopped.
pub(super) async fn snapshots(
    store: &Store,
    keys: &Arc<InstallationKeys>,
    folder: PathBuf,
    tasks: &Tasks,
) -> Result<Arc<Snapshots>, StartError> {
    let opened = Snapshots::open(store.clone(), Arc::clone(keys), folder.clone()).await;
    let failed = |error| StartError::Folder { path: folder, source: io::Error::other(error) };
    let opened = Arc::new(opened.map_err(failed)?);
    let watched = Arc::clone(&opened);
    tasks.spawn(async move |stop: Stop| watched.watch(stop).await);
    Ok(opened)
}

/// Pictures of memory in this folder: those that nobody knows are removed, unless they are to be spared.
pub(super) async fn memory(
    store: &Store,
    keys: &InstallationKeys,
    folder: PathBuf,
    spares_unknown: bool,
) -> Result<Memory, StartError> {
    let opened = Memory::of_live(store, &keys.data, folder.clone(), spares_unknown).await;
    opened.map_err(|source| StartError::Folder { path: folder, source })
}

/// The store of users' files, and the folder that sandboxes' own are carried by.
pub(super) async fn storage(
    config: &Config,
    store: &Store,
    (has_syncs, made_on): (bool, MadeOn),
) -> Result<(Storage, PathBuf), ConnectError> {
    let settings = of(config);
    let storage = Storage::new(settings.connect()?, store.clone(), Quota::default());
    let folder = settings.local_folder();
    let storage = match made_on {
        MadeOn::Machine => storage.with_cache(settings.cache()?),
        // Pods' files pass through here, and nobody here sees them else.
        MadeOn::Cluster => storage.with_cache(mounted(settings).await).read_through(),
    };
    if config.storage.kind != StorageKind::Local && !has_syncs {
        tracing::warn!(
            folder = %folder.display(),
            "sandboxes have no sync here, so what they keep goes to the local folder; set POSTERN_FILES_API"
        );
    }
    Ok((storage, folder))
}

/// The store of users' files alone, for who only removes from it.
pub(super) fn files_alone(config: &Config, store: &Store) -> Result<Storage, ConnectError> {
    Ok(Storage::new(of(config).connect()?, store.clone(), Quota::default()))
}

fn of(config: &Config) -> StorageSettings {
    StorageSettings { chosen: config.storage.clone(), data_dir: config.data_dir.clone() }
}

/// The cache, whose folder may be a mount: without it everything comes from the store, and everybody is served.
async fn mounted(settings: StorageSettings) -> Option<Cache> {
    let opening = tokio::task::spawn_blocking(move || settings.cache());
    let why: Box<dyn std::error::Error> = match tokio::time::timeout(OPEN_TIME, opening).await {
        Ok(Ok(Ok(opened))) => return opened,
        Ok(Ok(Err(error))) => error.into(),
        Ok(Err(ended)) => ended.into(),
        Err(late) => late.into(),
    };
    tracing::error!(error = &*why, "there is no cache of users' files until the next start");
    None
}
