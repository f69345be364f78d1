// SPDX-License-Identifier: Apache-2.0
//! A change to a user's files: locks first, then what is judged and done, then manifest, rows and
//! log in that order.
//!
//! If the process dies after an object was written and before its row was, nobody was told that it
//! was written, and the next list finds it (`list.rs`).

use super::locks::Held;
use super::manifest::{self, MANIFEST_BYTES, Manifest};
use super::objects::{Notes, Objects, Outcome};
use super::path::{FilePath, Key};
use super::types::{Condition, Edit, FILE_MODE, MODE_BITS, Quota, StorageError, Usage, Version, Writer};
use super::user::UserFiles;
use crate::store::{FileChange, FileRow, FileState, FilesHeld, Share};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use jiff::Timestamp;
use postern_common::clock;
use std::collections::{BTreeSet, HashSet};

/// How often the manifest is read again because another orchestrator was faster.
const TRIES: u32 = if cfg!(test) { 3 } else { 32 };
/// Files that one change concerns at most: the locks of more would keep everybody else from theirs. Changes of
/// one user go on side by side, so a quota may be overstepped by as much as they have under way together.
pub(super) const IN_A_CHANGE: usize = 128;

/// The bound of what objects cannot hold, as [`StorageError::TooMuch`] names it.
const NOTED: &str = "bytes of what is noted of a user's links, folders, modes and odd names";

/// A file that is to be written.
pub(super) struct Wanted {
    /// Where.
    pub(super) path: FilePath,
    /// Its bytes.
    pub(super) size: u64,
    /// Its mode, if somebody said.
    pub(super) mode: Option<u32>,
}

/// A change that is under way.
pub(super) struct Changing<'a> {
    files: &'a UserFiles,
    by: &'a Writer,
    /// What is used, with what this change has taken so far.
    usage: Usage,
    /// Nothing of this user is written down any more.
    is_being_erased: bool,
    /// What the manifest has room for; `None` until somebody needs some.
    room: Option<u64>,
    /// Files that this change made, as far as it knows.
    new: Vec<FilePath>,
    changes: Vec<FileChange>,
    edits: Vec<ManifestEdit>,
    held: FilesHeld,
    _locks: Held,
}

/// What becomes different in the manifest.
enum ManifestEdit {
    Written(FilePath, u32),
    Removed(FilePath),
    Asked(Edit),
}

impl UserFiles {
    /// Begins a change of these files.
    pub(super) async fn changing<'a>(
        &'a self,
        by: &'a Writer,
        paths: impl IntoIterator<Item = &FilePath>,
    ) -> Result<Changing<'a>, StorageError> {
        let keys: Vec<_> = paths.into_iter().map(|path| self.prefix.file(path)).collect();
        self.changing_keys(by, &keys, Share::Together).await
    }

    async fn changing_keys<'a>(
        &'a self,
        by: &'a Writer,
        keys: &[Key],
        share: Share,
    ) -> Result<Changing<'a>, StorageError> {
        let user = self.prefix.of_user();
        let _locks = self.storage.locks.hold((&user, share), keys).await;
        let names: Vec<&str> = keys.iter().map(|key| key.as_str()).collect();
        let held = self.storage.store.hold_files((user.as_str(), share), &names).await?;
        // INVARIANT: read under the lock, which who begins an erasure has alone.
        let FileState { usage, is_being_erased } = self.storage.store.file_state(&self.owner).await?;
        let (changes, edits, room, new) = (Vec::new(), Vec::new(), None, Vec::new());
        Ok(Changing { files: self, by, usage, is_being_erased, room, new, changes, edits, held, _locks })
    }

    /// Begins a change of the user's files beside which there is no other, nor a hold on the user.
    pub(super) async fn changing_user<'a>(
        &'a self,
        by: &'a Writer,
        paths: impl IntoIterator<Item = &FilePath>,
    ) -> Result<Changing<'a>, StorageError> {
        // An orchestrator of an earlier release, while they are replaced in turn, knows locks of files only.
        let keys: Vec<_> = paths.into_iter().map(|path| self.prefix.file(path)).collect();
        self.changing_keys(by, &keys, Share::Alone).await
    }

    /// The manifest, and which one it is.
    pub(super) async fn manifest(&self) -> Result<(Manifest, Option<Version>), StorageError> {
        let key = self.prefix.manifest();
        let Some(mut opened) = self.storage.objects.read(&key, None).await? else {
            return Ok((Manifest::default(), None));
        };
        let damaged = |source: Box<dyn std::error::Error + Send + Sync>| StorageError::Store {
            what: "read a user's manifest",
            source,
        };
        if opened.info.size > MANIFEST_BYTES {
            return Err(damaged("it is longer than one can be".into()));
        }
        let mut text = BytesMut::new();
        while let Some(bytes) = opened.content.next().await {
            text.extend_from_slice(&bytes.map_err(|error| damaged(error.into()))?);
        }
        let manifest = serde_json::from_slice(&text).map_err(|error| damaged(error.into()))?;
        Ok((manifest, Some(opened.info.version)))
    }
}

impl<'a> Changing<'a> {
    /// Begins a change of the manifest alone.
    pub(super) async fn shape(files: &'a UserFiles, by: &'a Writer) -> Result<Self, StorageError> {
        let changing = files.changing(by, []).await?;
        changing.may_change()?;
        Ok(changing)
    }

    /// Nothing of a user comes, or is given another form, while they are being erased.
    pub(super) fn may_change(&self) -> Result<(), StorageError> {
        if self.is_being_erased { Err(StorageError::BeingErased) } else { Ok(()) }
    }

    /// Which of these files may be written, and what was there of each.
    ///
    /// INVARIANT: before anything is put. An object that only the manifest could name must not be there
    /// when that turns out to be full.
    pub(super) async fn judge(
        &mut self,
        files: &[Wanted],
    ) -> Result<Vec<Result<Option<FileRow>, StorageError>>, StorageError> {
        self.may_change()?;
        let (store, owner) = (&self.files.storage.store, &self.files.owner);
        let paths: Vec<FilePath> = files.iter().map(|file| file.path.clone()).collect();
        let mut there = store.files_among(owner, &paths).await?;
        // A file system says itself what is in the way.
        let is_cloud = matches!(self.files.storage.objects, Objects::Cloud(_));
        let new: Vec<FilePath> =
            paths.iter().filter(|path| is_cloud && !there.contains_key(path)).cloned().collect();
        let above: BTreeSet<FilePath> = new
            .iter()
            .flat_map(FilePath::folders)
            .filter_map(|folder| FilePath::parse(folder).ok())
            .collect();
        let above: Vec<FilePath> = above.into_iter().collect();
        let files_above = store.files_among(owner, &above).await?;
        let folders = store.folders_among(owner, &new).await?;
        let mut usage = self.usage;
        let own: HashSet<&FilePath> = paths.iter().collect();
        let in_the_way = |path: &FilePath| {
            let above = path.folders().filter_map(|folder| FilePath::parse(folder).ok());
            let is_file = |folder: &FilePath| own.contains(folder) || files_above.contains_key(folder);
            above.into_iter().find(is_file).or_else(|| folders.get(path).cloned())
        };
        let mut judged = Vec::with_capacity(files.len());
        for file in files {
            let old = there.remove(&file.path);
            let noted = self.noted_of(file, old.as_ref());
            judged.push(match in_the_way(&file.path) {
                Some(by) => Err(StorageError::Obstructed { path: file.path.clone(), by }),
                None if noted > 0 && !self.takes_room(noted).await? => Err(full(self.files, &file.path)),
                None => self.admit(&mut usage, (&file.path, file.size), old),
            });
        }
        self.usage = usage;
        Ok(judged)
    }

    /// What the manifest needs for a file that is to be written.
    fn noted_of(&self, file: &Wanted, old: Option<&FileRow>) -> u64 {
        let is_odd = old.is_none() && self.files.prefix.is_odd(&file.path);
        let usual = old.map_or(FILE_MODE, |old| old.mode);
        let has_mode =
            file.mode.is_some_and(|mode| mode & MODE_BITS != usual && mode & MODE_BITS != FILE_MODE);
        let odd = if is_odd { manifest::length_of_odd(&file.path) } else { 0 };
        let mode = if has_mode { manifest::length_of_mode(&file.path) } else { 0 };
        odd.saturating_add(mode)
    }

    /// Takes so much of the manifest's room, if it has as much.
    async fn takes_room(&mut self, noted: u64) -> Result<bool, StorageError> {
        let room = match self.room {
            Some(room) => room,
            None => {
                let found = self.files.storage.objects.find(&self.files.prefix.manifest()).await?;
                let length = found.map_or(0, |(info, _)| info.size);
                self.files.storage.quota.manifest_bytes.saturating_sub(length)
            }
        };
        self.room = Some(room.saturating_sub(if noted <= room { noted } else { 0 }));
        Ok(noted <= room)
    }

    fn admit(
        &self,
        used: &mut Usage,
        (path, size): (&FilePath, u64),
        old: Option<FileRow>,
    ) -> Result<Option<FileRow>, StorageError> {
        let quota = self.files.storage.quota;
        let (old_bytes, old_files) = old.as_ref().map_or((0, 0), |old| (old.size, 1));
        let bytes = used.bytes.saturating_sub(old_bytes).saturating_add(size);
        let files = used.files.saturating_sub(old_files).saturating_add(1);
        let length = if old.is_none() { path.as_str().len() } else { 0 };
        let names = used.names.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        // Who writes less than before may, also over the quota.
        let is_more = (bytes > quota.bytes && size > old_bytes)
            || ((files > quota.files || names > quota.names) && old.is_none());
        let new = Usage { bytes, files, names };
        if is_more {
            return Err(too_much(quota, new, path));
        }
        *used = new;
        Ok(old)
    }

    /// Notes that a file was written.
    pub(super) fn written(&mut self, row: FileRow, old: Option<&FileRow>) {
        let is_told = old.map_or(row.mode == FILE_MODE, |old| old.mode == row.mode);
        if !is_told || (old.is_none() && self.files.prefix.is_odd(&row.path)) {
            self.edits.push(ManifestEdit::Written(row.path.clone(), row.mode));
        }
        if old.is_none() {
            self.new.push(row.path.clone());
        }
        self.changes.push(FileChange::Written(row));
    }

    /// Notes that files were removed.
    pub(super) async fn removed(&mut self, paths: Vec<FilePath>) -> Result<(), StorageError> {
        let there = self.files.storage.store.files_among(&self.files.owner, &paths).await?;
        for path in paths {
            let is_usual = there.get(&path).is_some_and(|old| old.mode == FILE_MODE);
            if !is_usual || self.files.prefix.is_odd(&path) {
                self.edits.push(ManifestEdit::Removed(path.clone()));
            }
            self.changes.push(FileChange::Removed(path));
        }
        Ok(())
    }

    /// Notes that files were taken away by retention.
    pub(super) async fn retired(&mut self, changes: Vec<FileChange>) -> Result<(), StorageError> {
        let paths: Vec<FilePath> = changes.iter().map(|change| change.path().clone()).collect();
        let begun = self.changes.len();
        self.removed(paths).await?;
        // The same of the manifest, another word in the log.
        self.changes.truncate(begun);
        self.changes.extend(changes);
        Ok(())
    }

    /// Notes what concerns no manifest.
    pub(super) fn noted(&mut self, changes: Vec<FileChange>) {
        self.changes.extend(changes);
    }

    /// Notes what is to be different in the manifest.
    pub(super) fn shaped(&mut self, edits: Vec<Edit>) {
        for edit in edits {
            self.changes.push(match &edit {
                Edit::Mode(path, mode) => FileChange::Mode(path.clone(), mode & MODE_BITS),
                Edit::Folder(path, _) | Edit::NoFolder(path) | Edit::Link(path, _) | Edit::NoLink(path) => {
                    FileChange::Shaped(path.clone())
                }
            });
            self.edits.push(ManifestEdit::Asked(edit));
        }
    }

    /// Notes what was found to have happened without us.
    pub(super) fn found(&mut self, changes: Vec<FileChange>, shadowed: Vec<FilePath>) {
        self.changes.extend(changes);
        self.edits.extend(shadowed.into_iter().map(|path| ManifestEdit::Asked(Edit::NoLink(path))));
    }

    /// Writes it all down.
    pub(super) async fn end(self) -> Result<(), StorageError> {
        self.end_at(clock::now()).await
    }

    /// Writes it all down, as of this time.
    pub(super) async fn end_at(self, now: Timestamp) -> Result<(), StorageError> {
        // What is seen of their files by now is on its way out.
        if self.is_being_erased {
            return Ok(());
        }
        if !self.edits.is_empty()
            && let Err(error) = edit(self.files, &self.edits).await
        {
            if matches!(error, StorageError::TooMuch { .. }) {
                take_back(self.files, &self.changes, &self.new).await?;
            }
            return Err(error);
        }
        let Self { files, by, changes, held, .. } = self;
        let store = &files.storage.store;
        Ok(store.end_files(held, &files.owner, by, now, &changes).await?)
    }
}

fn too_much(quota: Quota, wanted: Usage, path: &FilePath) -> StorageError {
    let (quota, bound) = if wanted.files > quota.files {
        ("number of files of a user", quota.files)
    } else if wanted.names > quota.names {
        ("bytes of the paths of a user's files", quota.names)
    } else {
        ("bytes of a user's files", quota.bytes)
    };
    StorageError::TooMuch { path: path.clone(), quota, bound }
}

impl ManifestEdit {
    /// Of which path it says more than was said before.
    const fn says_more_of(&self) -> Option<&FilePath> {
        match self {
            Self::Written(path, _) | Self::Asked(Edit::Folder(path, _) | Edit::Link(path, _)) => Some(path),
            Self::Asked(Edit::Mode(path, mode)) if *mode & MODE_BITS != FILE_MODE => Some(path),
            Self::Removed(_) | Self::Asked(_) => None,
        }
    }
}

/// Changes the manifest: again, if somebody else was faster.
async fn edit(files: &UserFiles, edits: &[ManifestEdit]) -> Result<(), StorageError> {
    let what = "write a user's manifest";
    let _turn = files.storage.locks.hold_one(&files.prefix.manifest()).await;
    for _ in 0..TRIES {
        let (mut manifest, version) = files.manifest().await?;
        let mut is_changed = false;
        for edit in edits {
            is_changed |= match edit {
                ManifestEdit::Written(path, mode) => manifest.written(&files.prefix, path, Some(*mode)),
                ManifestEdit::Removed(path) => manifest.removed(path),
                ManifestEdit::Asked(edit) => manifest.apply(edit),
            };
        }
        if !is_changed {
            return Ok(());
        }
        let text = serde_json::to_vec(&manifest)
            .map_err(|error| StorageError::Store { what, source: error.into() })?;
        let is_full = u64::try_from(text.len()).is_ok_and(|it| it > files.storage.quota.manifest_bytes);
        // What makes it shorter may always be.
        if is_full && let Some(path) = edits.iter().find_map(ManifestEdit::says_more_of) {
            return Err(full(files, path));
        }
        let condition = version.map_or(Condition::Nothing, Condition::Version);
        let notes = Notes { content_type: Some("application/json".to_owned()), ..Notes::default() };
        let (key, text) = (files.prefix.manifest(), Bytes::from(text));
        let put = files.storage.objects.put(&key, &condition, &notes, text).await;
        if matches!(put?, Outcome::Done(_)) {
            return Ok(());
        }
    }
    Err(StorageError::Store { what, source: "others change it all the time".into() })
}

/// Removes what this change has put where nothing was: somebody else has filled the manifest since it
/// was judged, and an object that nothing names would count for nobody.
async fn take_back(files: &UserFiles, changes: &[FileChange], new: &[FilePath]) -> Result<(), StorageError> {
    for change in changes {
        let FileChange::Written(row) = change else { continue };
        if new.contains(&row.path) {
            let own = Condition::Version(row.version.clone());
            files.storage.objects.remove(&files.prefix.file(&row.path), &own).await?;
        }
    }
    Ok(())
}

fn full(files: &UserFiles, path: &FilePath) -> StorageError {
    let bound = files.storage.quota.manifest_bytes;
    StorageError::TooMuch { path: path.clone(), quota: NOTED, bound }
}
