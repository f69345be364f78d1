// SPDX-License-Identifier: Apache-2.0
//! Opens the folders of what is kept of sandboxes.

use super::StartError;
use crate::keys::InstallationKeys;
use crate::memory::Memory;
use crate::snapshots::Snapshots;
use crate::store::Store;
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
