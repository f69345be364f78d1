// SPDX-License-Identifier: Apache-2.0
//! What a user has: the store's list, with what the database knows of each version in it.
//!
//! Where the two differ somebody wrote right into the store, or we died between a write and its row:
//! then the database follows, and the log says so.

use super::change::IN_A_CHANGE;
use super::cloud;
use super::manifest::Manifest;
use super::objects::{Found, Notes, ObjectInfo, Objects};
use super::path::{FilePath, Key, Named};
use super::types::{FILE_MODE, FOLDER_MODE, FileEntry, Listing, StorageError, Writer};
use super::user::UserFiles;
use crate::store::{Actor, FileChange, FileRow};
use futures_util::{StreamExt, stream};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Files that somebody else wrote and that one list looks at: as many as a user may have, so that
/// none is missing on the pages after it, which come from the database.
const LOOKED_AT: usize = 200_000;
/// How many of them at the same time.
const AT_ONCE: usize = 32;

/// A file as the database knows it.
pub(super) fn from_row(row: FileRow, info: &ObjectInfo) -> FileEntry {
    FileEntry { size: info.size, ..row_entry(row) }
}

/// A file as the database knows it, whatever the store has by now.
pub(super) fn row_entry(row: FileRow) -> FileEntry {
    FileEntry {
        path: row.path,
        size: row.size,
        digest: row.digest,
        mode: row.mode,
        modified: row.modified,
        version: row.version,
        content_type: row.content_type,
    }
}

/// A file as the store knows it.
pub(super) fn from_notes(path: FilePath, info: ObjectInfo, notes: Notes, mode: u32) -> FileEntry {
    FileEntry {
        path,
        size: info.size,
        digest: notes.digest,
        mode,
        modified: notes.modified.unwrap_or(info.written),
        version: info.version,
        content_type: notes.content_type,
    }
}

/// An object of a file, with the mode that the store told.
struct Listed {
    path: FilePath,
    info: ObjectInfo,
    is_program: bool,
}

/// Everything that a user has.
pub(super) async fn listing(files: &UserFiles) -> Result<Listing, StorageError> {
    let storage = &files.storage;
    let ends = ends(files).await?;
    let (found, manifest, rows) = tokio::join!(
        storage.objects.list(&files.prefix, &ends),
        files.manifest(),
        storage.store.files(&files.owner),
    );
    let (manifest, _) = manifest?;
    let mut rows: HashMap<FilePath, FileRow> = rows?.into_iter().map(|row| (row.path.clone(), row)).collect();
    let (mut objects, mut empty) = sorted(files, &manifest, found?);
    if !ends.is_empty() && lacks_any(&objects, rows.keys()) {
        // Somebody removed it; or the service lists in an order of its own, and the ranges lack more.
        let found = storage.objects.list(&files.prefix, &[]).await?;
        (objects, empty) = sorted(files, &manifest, found);
    }
    let (mut entries, mut unknown) = (Vec::with_capacity(objects.len()), Vec::new());
    for object in objects {
        match rows.remove(&object.path) {
            Some(row) if row.version == object.info.version => entries.push(from_row(row, &object.info)),
            Some(row) => unknown.push((object, Some(row))),
            None => unknown.push((object, None)),
        }
    }
    let shadowed: Vec<FilePath> = {
        let known: HashSet<&FilePath> =
            entries.iter().map(|entry| &entry.path).chain(unknown.iter().map(|(it, _)| &it.path)).collect();
        manifest.links.keys().filter(|link| known.contains(link)).cloned().collect()
    };
    if !unknown.is_empty() || !rows.is_empty() || !shadowed.is_empty() {
        let missing = rows.into_values().collect();
        entries.extend(follow(files, &manifest, unknown, missing, shadowed).await?);
    }
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(assembled(entries, &manifest, empty))
}

fn lacks_any<'a>(objects: &[Listed], mut known: impl Iterator<Item = &'a FilePath>) -> bool {
    let listed: HashSet<&FilePath> = objects.iter().map(|object| &object.path).collect();
    known.any(|path| !listed.contains(path))
}

/// Where a service's list of them may be divided.
async fn ends(files: &UserFiles) -> Result<Vec<Key>, StorageError> {
    let storage = &files.storage;
    if !matches!(storage.objects, Objects::Cloud(_)) {
        return Ok(Vec::new());
    }
    let paths = storage.store.nth_files(&files.owner, cloud::RANGE).await?;
    // Those with an odd name are no part of what is divided.
    Ok(paths.iter().filter(|path| !files.prefix.is_odd(path)).map(|path| files.prefix.file(path)).collect())
}

/// The objects that are files, and the folders that the store itself has.
fn sorted(files: &UserFiles, manifest: &Manifest, found: Vec<Found>) -> (Vec<Listed>, Vec<FilePath>) {
    let (mut objects, mut empty) = (Vec::with_capacity(found.len()), Vec::new());
    for one in found {
        match one {
            Found::Object { key, info, is_program } => {
                let path = match files.prefix.named(&key) {
                    Some(Named::Plain(path)) => Some(path),
                    Some(Named::Odd(digest)) => manifest.odd.get(&digest).cloned(),
                    None => None,
                };
                objects.extend(path.map(|path| Listed { path, info, is_program }));
            }
            Found::Folder { key } => {
                if let Some(Named::Plain(path)) = files.prefix.named(&key) {
                    empty.push(path);
                }
            }
        }
    }
    (objects, empty)
}

fn assembled(files: Vec<FileEntry>, manifest: &Manifest, empty: Vec<FilePath>) -> Listing {
    let (mut folders, links) = {
        let names: HashSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
        let mut has_files: HashSet<&str> = HashSet::new();
        for file in &files {
            has_files.extend(file.path.folders());
        }
        let mut folders: BTreeMap<FilePath, u32> =
            empty.into_iter().map(|folder| (folder, FOLDER_MODE)).collect();
        folders.extend(manifest.told_folders(&has_files));
        folders.retain(|folder, _| !names.contains(folder.as_str()));
        let is_free = |path: &FilePath| !names.contains(path.as_str()) && !has_files.contains(path.as_str());
        let links: Vec<_> = manifest
            .links
            .iter()
            .filter(|(path, _)| is_free(path))
            .map(|(path, target)| (path.clone(), target.clone()))
            .collect();
        (folders, links)
    };
    folders.retain(|folder, _| links.binary_search_by(|(link, _)| link.cmp(folder)).is_err());
    Listing { files, folders: folders.into_iter().collect(), links }
}

/// Where the database and the store differ.
enum Differs {
    /// The store has what the database does not know so.
    Unknown(Listed, Option<FileRow>),
    /// The database knows what the store has no more.
    Missing(FileRow),
}

impl Differs {
    const fn path(&self) -> &FilePath {
        match self {
            Self::Unknown(object, _) => &object.path,
            Self::Missing(row) => &row.path,
        }
    }
}

/// Has the database follow the store, some files at a time: what was written down of those before stays
/// if it breaks off.
async fn follow(
    files: &UserFiles,
    manifest: &Manifest,
    mut unknown: Vec<(Listed, Option<FileRow>)>,
    missing: Vec<FileRow>,
    shadowed: Vec<FilePath>,
) -> Result<Vec<FileEntry>, StorageError> {
    let later = if unknown.len() > LOOKED_AT { unknown.split_off(LOOKED_AT) } else { Vec::new() };
    let by = Writer::new(Actor::Orchestrator);
    let unknown = unknown.into_iter().map(|(object, row)| Differs::Unknown(object, row));
    let mut differing = unknown.chain(missing.into_iter().map(Differs::Missing)).peekable();
    let mut entries = Vec::new();
    while differing.peek().is_some() {
        let some: Vec<Differs> = differing.by_ref().take(IN_A_CHANGE).collect();
        follow_some(files, manifest, &by, some, &mut entries).await?;
    }
    if !shadowed.is_empty() {
        let mut changing = files.changing(&by, []).await?;
        changing.found(Vec::new(), shadowed);
        changing.end().await?;
    }
    entries.extend(later.into_iter().map(|(object, row)| {
        let mode = mode(manifest, &object, row.as_ref());
        from_notes(object.path, object.info, Notes::default(), mode)
    }));
    Ok(entries)
}

/// Under the locks nobody of ours changes them any more: what is there now is the truth.
async fn follow_some(
    files: &UserFiles,
    manifest: &Manifest,
    by: &Writer,
    some: Vec<Differs>,
    entries: &mut Vec<FileEntry>,
) -> Result<(), StorageError> {
    let paths: Vec<FilePath> = some.iter().map(|one| one.path().clone()).collect();
    let mut changing = files.changing(by, &paths).await?;
    let look = |one| look_at(files, manifest, one);
    let looked: Vec<_> = stream::iter(some.into_iter().map(look)).buffered(AT_ONCE).collect().await;
    let mut changes = Vec::new();
    for one in looked {
        let (entry, change) = one?;
        entries.extend(entry);
        changes.extend(change);
    }
    changing.found(changes, Vec::new());
    changing.end().await
}

/// What is there of a file, and what the database is told of it.
async fn look_at(
    files: &UserFiles,
    manifest: &Manifest,
    one: Differs,
) -> Result<(Option<FileEntry>, Option<FileChange>), StorageError> {
    let row = match one {
        Differs::Unknown(object, row) => return look_at_unknown(files, manifest, object, row).await,
        Differs::Missing(row) => row,
    };
    Ok(match files.storage.objects.find(&files.prefix.file(&row.path)).await? {
        None => (None, Some(FileChange::Missing(row.path, row.version))),
        Some((info, _)) if info.version == row.version => (Some(from_row(row, &info)), None),
        // Written since the list: the next one has it.
        Some(_) => (None, None),
    })
}

fn mode(manifest: &Manifest, object: &Listed, row: Option<&FileRow>) -> u32 {
    let usual = if object.is_program { 0o755 } else { FILE_MODE };
    manifest.mode(&object.path).or(row.map(|row| row.mode)).unwrap_or(usual)
}

/// What an object is that the database does not know, and what the database is told of it.
async fn look_at_unknown(
    files: &UserFiles,
    manifest: &Manifest,
    object: Listed,
    row: Option<FileRow>,
) -> Result<(Option<FileEntry>, Option<FileChange>), StorageError> {
    let found = files.storage.objects.find(&files.prefix.file(&object.path)).await?;
    let newest = files.storage.store.file(&files.owner, &object.path).await?;
    let Some((info, notes)) = found else {
        return Ok((None, newest.map(|row| FileChange::Missing(row.path, row.version))));
    };
    if let Some(newest) = newest.filter(|newest| newest.version == info.version) {
        return Ok((Some(from_row(newest, &info)), None));
    }
    let mode = mode(manifest, &object, row.as_ref());
    let entry = from_notes(object.path, info, notes, mode);
    let row = FileRow {
        path: entry.path.clone(),
        size: entry.size,
        digest: entry.digest,
        mode,
        version: entry.version.clone(),
        modified: entry.modified,
        content_type: entry.content_type.clone(),
    };
    Ok((Some(entry), Some(FileChange::Found(row))))
}
