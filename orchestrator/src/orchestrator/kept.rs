// SPDX-License-Identifier: Apache-2.0
//! Opens what is kept of sandboxes and users: their files, snapshots, pictures of memory.

use super::StartError;
use crate::check::MadeOn;
use crate::config::Config;
use crate::keys::InstallationKeys;
use crate::memory::Memory;
use crate::snapshots::Snapshots;
use crate::storage::{ConnectError, Quota, Storage, StorageSettings};
use crate::store::Store;
use postern_common::settings::StorageKind;
use postern_common::tasks::{Stop, Tasks};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

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
pub(super) fn storage(
    config: &Config,
    store: &Store,
    (has_syncs, made_on): (bool, MadeOn),
) -> Result<(Storage, PathBuf), ConnectError> {
    let settings = StorageSettings { chosen: config.storage.clone(), data_dir: config.data_dir.clone() };
    let storage =
        Storage::new(settings.connect()?, store.clone(), Quota::default()).with_cache(settings.cache()?);
    let storage = match made_on {
        MadeOn::Machine => storage,
        // Pods' files pass through here, and nobody here sees them else.
        MadeOn::Cluster => storage.read_through(),
    };
    let folder = settings.local_folder();
    if config.storage.kind != StorageKind::Local && !has_syncs {
        tracing::warn!(
            folder = %folder.display(),
            "sandboxes have no sync here, so what they keep goes to the local folder; set POSTERN_FILES_API"
        );
    }
    Ok((storage, folder))
}
