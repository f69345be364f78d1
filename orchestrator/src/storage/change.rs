// SPDX-License-Identifier: Apache-2.0
//! A change to a user's files: locks first, then what is judged and done, then manifest, rows and
//! log in that order.
//!
//! If the process dies after an object was written and before its row was, nobody was told that it
//! was written, and the next list finds it (`list.rs`).

use super::locks::Held;
use super::manifest::{MANIFEST_BYTES, Manifest};
use super::objects::{Notes, Objects, Outcome};
use super::path::{FilePath, Key};
use super::types::{Condition, Edit, FILE_MODE, StorageError, Usage, Version, Writer};
use super::user::UserFiles;
use crate::store::{FileChange, FileRow, FileState, FilesHeld, Share};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use jiff::Timestamp;
use postern_common::clock;
use std::collections::{BTreeSet, HashSet};

/// How often the manifest is read again because somebody else was faster.
const TRIES: u32 = 32;

/// A change that is under way.
pub(super) struct Changing<'a> {
    files: &'a UserFiles,
    by: &'a Writer,
    /// What this change has taken of the quota so far, on top of what is used.
    usage: Usage,
    /// Nothing of this user is written down any more.
    is_being_erased: bool,
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
        let locks = self.storage.locks.hold((&user, share), keys).await;
        let names: Vec<&str> = keys.iter().map(|key| key.as_str()).collect();
        let held = self.storage.store.hold_files((user.as_str(), share), &names).await?;
        // INVARIANT: read under the lock, which who begins an erasure has alone.
        let FileState { usage, is_being_erased } = self.storage.store.file_state(&self.owner).await?;
        let (changes, edits) = (Vec::new(), Vec::new());
        Ok(Changing { files: self, by, usage, is_being_erased, changes, edits, held, _locks: locks })
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

    /// Which of these files, of these sizes, may be written, and what was there of each.
    pub(super) async fn judge(
        &mut self,
        files: &[(FilePath, u64)],
    ) -> Result<Vec<Result<Option<FileRow>, StorageError>>, StorageError> {
        self.may_change()?;
        let (store, owner) = (&self.files.storage.store, &self.files.owner);
        let paths: Vec<FilePath> = files.iter().map(|(path, _)| path.clone()).collect();
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
        let own: HashSet<&FilePath> = paths.iter().collect();
        let in_the_way = |path: &FilePath| {
            let above = path.folders().filter_map(|folder| FilePath::parse(folder).ok());
            let is_file = |folder: &FilePath| own.contains(folder) || files_above.contains_key(folder);
            above.into_iter().find(is_file).or_else(|| folders.get(path).cloned())
        };
        let mut judged = Vec::with_capacity(files.len());
        for (path, size) in files {
            judged.push(match in_the_way(path) {
                Some(by) => Err(StorageError::Obstructed { path: path.clone(), by }),
                None => self.admit(path, *size, there.remove(path)),
            });
        }
        Ok(judged)
    }

    fn admit(
        &mut self,
        path: &FilePath,
        size: u64,
        old: Option<FileRow>,
    ) -> Result<Option<FileRow>, StorageError> {
        let (quota, used) = (self.files.storage.quota, self.usage);
        let (old_bytes, old_files) = old.as_ref().map_or((0, 0), |old| (old.size, 1));
        let bytes = used.bytes.saturating_sub(old_bytes).saturating_add(size);
        let files = used.files.saturating_sub(old_files).saturating_add(1);
        // Who writes less than before may, also over the quota.
        if (bytes > quota.bytes && size > old_bytes) || (files > quota.files && old.is_none()) {
            return Err(self.too_much(path));
        }
        self.usage = Usage { bytes, files };
        Ok(old)
    }

    fn too_much(&self, path: &FilePath) -> StorageError {
        let quota = self.files.storage.quota;
        let (quota, bound) = if self.usage.files >= quota.files {
            ("number of files of a user", quota.files)
        } else {
            ("bytes of a user's files", quota.bytes)
        };
        StorageError::TooMuch { path: path.clone(), quota, bound }
    }

    /// Notes that a file was written.
    pub(super) fn written(&mut self, row: FileRow, old: Option<&FileRow>) {
        let is_told = old.map_or(row.mode == FILE_MODE, |old| old.mode == row.mode);
        if !is_told || (old.is_none() && self.files.prefix.is_odd(&row.path)) {
            self.edits.push(ManifestEdit::Written(row.path.clone(), row.mode));
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
                Edit::Mode(path, mode) => FileChange::Mode(path.clone(), mode & super::types::MODE_BITS),
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
        if !self.edits.is_empty() {
            edit(self.files, &self.edits).await?;
        }
        let Self { files, by, changes, held, .. } = self;
        let store = &files.storage.store;
        Ok(store.end_files(held, &files.owner, by, now, &changes).await?)
    }
}

/// Changes the manifest: again, if somebody else was faster.
async fn edit(files: &UserFiles, edits: &[ManifestEdit]) -> Result<(), StorageError> {
    let what = "write a user's manifest";
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
        if u64::try_from(text.len()).unwrap_or(u64::MAX) > MANIFEST_BYTES {
            return Err(StorageError::Store { what, source: "it would be longer than one can be".into() });
        }
        let condition = version.map_or(Condition::Nothing, Condition::Version);
        let notes = Notes { content_type: Some("application/json".to_owned()), ..Notes::default() };
        let put =
            files.storage.objects.put(&files.prefix.manifest(), &condition, &notes, Bytes::from(text)).await;
        if matches!(put?, Outcome::Done(_)) {
            return Ok(());
        }
    }
    Err(StorageError::Store { what, source: "others change it all the time".into() })
}
