// SPDX-License-Identifier: Apache-2.0
//! One user's files: looked at, read, written, removed.

use super::change::{Changing, IN_A_CHANGE, Wanted};
use super::content::{Begun, Counted, begun};
use super::objects::{LargeObject, Notes, ObjectInfo, Opened, Outcome, Put};
use super::path::{FilePath, UserPrefix};
use super::types::{
    Condition, Content, Digest, Edit, FILE_MODE, FileEntry, Listing, MODE_BITS, NewFile, Reading, SmallFile,
    StorageError, Usage, Version, Writer,
};
use super::{Storage, list, own};
use crate::store::{FileOwner, FileRow};
use futures_util::{StreamExt, stream};
use postern_common::clock;
use std::ops::Range;
use std::sync::Arc;

/// Files of one call that are removed at the same time.
const AT_ONCE: usize = 32;

/// A user's files. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct UserFiles {
    pub(super) storage: Storage,
    pub(super) owner: Arc<FileOwner>,
    pub(super) prefix: UserPrefix,
}

/// A small file that may be written.
struct Prepared {
    path: FilePath,
    mode: u32,
    old: Option<FileRow>,
    put: Put,
}

/// A version of a file that is open.
pub(crate) struct Open {
    /// The bytes of all of it.
    pub(crate) size: u64,
    /// Their digest, if the store keeps it.
    pub(crate) digest: Option<Digest>,
    /// Its bytes, from where they were asked for.
    pub(crate) content: Content,
}

impl UserFiles {
    pub(super) const fn new(storage: Storage, owner: Arc<FileOwner>, prefix: UserPrefix) -> Self {
        Self { storage, owner, prefix }
    }

    /// Everything there is.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn list(&self) -> Result<Listing, StorageError> {
        list::listing(self).await
    }

    /// Files that the database knows, by path: those after `after` whose path begins with `prefix`.
    /// A list before it has the database follow the store.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn page(
        &self,
        prefix: &str,
        after: Option<&FilePath>,
        limit: u32,
    ) -> Result<Vec<FileEntry>, StorageError> {
        let rows = self.storage.store.files_page(&self.owner, prefix, after, limit).await?;
        Ok(rows.into_iter().map(list::row_entry).collect())
    }

    /// A file, if it is there.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn find(&self, path: &FilePath) -> Result<Option<FileEntry>, StorageError> {
        let key = self.prefix.file(path);
        let (found, row) =
            tokio::join!(self.storage.objects.find(&key), self.storage.store.file(&self.owner, path));
        let Some((info, notes)) = found? else { return Ok(None) };
        // Its object has no name of its own: one that died before the manifest had it is in no list.
        if self.prefix.is_odd(path)
            && !self.manifest().await?.0.odd.contains_key(&Digest::of(path.as_str().as_bytes()))
        {
            return Ok(None);
        }
        self.entry(path, info, notes, row?).await.map(Some)
    }

    /// Reads a file, or a range of it: the version `version`, if one is given.
    ///
    /// # Errors
    /// [`StorageError::NotFound`], [`StorageError::Conflict`] if it is another version by now,
    /// [`StorageError::Range`].
    pub(crate) async fn read(
        &self,
        path: &FilePath,
        range: Option<Range<u64>>,
        version: Option<&Version>,
    ) -> Result<Reading, StorageError> {
        let key = self.prefix.file(path);
        let (opened, row) = tokio::join!(
            self.storage.objects.read(&key, range.clone()),
            self.storage.store.file(&self.owner, path)
        );
        let Opened { info, notes, range: found, content } =
            opened?.ok_or_else(|| StorageError::NotFound(path.clone()))?;
        if version.is_some_and(|wanted| *wanted != info.version) {
            return Err(StorageError::Conflict { path: path.clone(), found: Some(info.version) });
        }
        if range.is_some_and(|asked| found.is_empty() && !(asked.is_empty() && asked.start <= info.size)) {
            return Err(StorageError::Range { size: info.size });
        }
        let about = self.entry(path, info, notes, row?).await?;
        self.storage.store.used_file(&self.owner, path, clock::now()).await?;
        Ok(Reading { about, range: found, content })
    }

    /// Opens one version of a file from a byte on, for whoever has it from a list: nothing is looked
    /// up besides. It comes out of the cache where it goes through one, and then is that version whatever
    /// the store has by now.
    ///
    /// # Errors
    /// [`StorageError::NotFound`], [`StorageError::Conflict`] if it is another version by now.
    pub(crate) async fn open(
        &self,
        path: &FilePath,
        from: u64,
        version: &Version,
    ) -> Result<Open, StorageError> {
        if from == 0
            && let Some(kept) = self.open_kept(path, version).await
        {
            return Ok(kept);
        }
        let range = (from > 0).then_some(from..u64::MAX);
        let opened = self.storage.objects.read(&self.prefix.file(path), range).await?;
        let Opened { info, notes, content, .. } =
            opened.ok_or_else(|| StorageError::NotFound(path.clone()))?;
        if *version != info.version {
            return Err(StorageError::Conflict { path: path.clone(), found: Some(info.version) });
        }
        let content = match notes.digest.filter(|_| from == 0) {
            Some(digest) => self.keeping(path, (digest, info.size), content),
            None => content,
        };
        Ok(Open { size: info.size, digest: notes.digest, content })
    }

    /// What is known of an object, from the database if that knows this version of it.
    async fn entry(
        &self,
        path: &FilePath,
        info: ObjectInfo,
        notes: Notes,
        row: Option<FileRow>,
    ) -> Result<FileEntry, StorageError> {
        if let Some(row) = row.filter(|row| row.version == info.version) {
            return Ok(list::from_row(row, &info));
        }
        let mode = self.manifest().await?.0.mode(path).unwrap_or(FILE_MODE);
        Ok(list::from_notes(path.clone(), info, notes, mode))
    }

    /// Writes a file of any size, whole or not at all.
    ///
    /// # Errors
    /// [`StorageError`] says what is in the way; nothing was written then, but for
    /// [`StorageError::Database`]: then the file is written and found by the next list.
    pub(crate) async fn write(
        &self,
        by: &Writer,
        path: &FilePath,
        condition: &Condition,
        about: NewFile,
        mut content: Content,
    ) -> Result<FileEntry, StorageError> {
        let mut counted = Counted::new(path, &about, self.storage.quota.file_bytes)?;
        let _turn = self.storage.turns.incoming.take(&self.owner.tenant).await;
        // Never closed: without a place it would only be one more.
        let _place = self.storage.incoming.acquire().await.ok();
        match begun(&mut content, &mut counted).await? {
            Begun::Whole(bytes) => {
                counted.end()?;
                let file =
                    SmallFile { path: path.clone(), condition: condition.clone(), about, content: bytes };
                self.write_many(by, vec![file])
                    .await
                    .pop()
                    .unwrap_or_else(|| Err(StorageError::NotFound(path.clone())))
            }
            Begun::More(bytes) => {
                let rest = stream::once(async { Ok(bytes) });
                self.write_large(by, (path, condition, about), counted, (rest.boxed(), content)).await
            }
        }
    }

    async fn write_large(
        &self,
        by: &Writer,
        (path, condition, about): (&FilePath, &Condition, NewFile),
        mut counted: Counted,
        (held, rest): (Content, Content),
    ) -> Result<FileEntry, StorageError> {
        let key = self.prefix.file(path);
        let notes = Notes {
            digest: about.digest,
            modified: about.modified,
            content_type: about.content_type.clone(),
            writer: own::note(by, &key),
        };
        let _turn = self.storage.large_turn(&self.owner.tenant).await;
        let mut object = self.storage.objects.begin(&key, &notes).await.map_err(|fault| fault.of(path))?;
        let poured = match pour(&mut object, path, held, None).await {
            Ok(()) => pour(&mut object, path, rest, Some(&mut counted)).await,
            broken => broken,
        };
        let (size, digest) = match poured.and_then(|()| counted.end()) {
            Ok(ended) => ended,
            Err(error) => {
                object.abandon().await;
                return Err(error);
            }
        };
        let notes = Notes { digest: Some(digest), ..notes };
        let mut changing = self.changing(by, [path]).await?;
        let judged = changing.judge(&[Wanted { path: path.clone(), size, mode: about.mode }]).await;
        let judged = match judged.and_then(|mut judged| judged.pop().unwrap_or(Ok(None))) {
            Ok(old) => old,
            Err(error) => {
                object.abandon().await;
                return Err(error);
            }
        };
        let outcome = object.finish(condition, &notes).await.map_err(|fault| fault.of(path))?;
        let info = done(path, outcome)?;
        let row = row_of(path, &info, &notes, mode_of(&about, judged.as_ref()));
        let entry = list::from_row(row.clone(), &info);
        changing.written(row, judged.as_ref());
        changing.end().await?;
        Ok(entry)
    }

    /// Writes small files, each whole or not at all, many at once: the answers are in their order.
    pub(crate) async fn write_many(
        &self,
        by: &Writer,
        files: Vec<SmallFile>,
    ) -> Vec<Result<FileEntry, StorageError>> {
        let (mut files, mut answers) = (files, Vec::new());
        while !files.is_empty() {
            let rest = files.split_off(files.len().min(IN_A_CHANGE));
            answers.extend(self.write_some(by, std::mem::replace(&mut files, rest)).await);
        }
        answers
    }

    async fn write_some(&self, by: &Writer, files: Vec<SmallFile>) -> Vec<Result<FileEntry, StorageError>> {
        let count = files.len();
        let mut changing = match self.changing(by, files.iter().map(|file| &file.path)).await {
            Ok(changing) => changing,
            Err(error) => return failed(error, count),
        };
        let wanted = |file: &SmallFile| {
            let size = u64::try_from(file.content.len()).unwrap_or(u64::MAX);
            Wanted { path: file.path.clone(), size, mode: file.about.mode }
        };
        let wanted: Vec<_> = files.iter().map(wanted).collect();
        let judged = match changing.judge(&wanted).await {
            Ok(judged) => judged,
            Err(error) => return failed(error, count),
        };
        let prepared: Vec<_> =
            files.into_iter().zip(judged).map(|(file, judged)| self.prepared(by, file, judged?)).collect();
        let puts = prepared.iter().filter_map(|one| one.as_ref().ok()).map(|one| one.put.clone()).collect();
        let mut outcomes = self.storage.objects.put_all(puts).await.into_iter();
        let mut answers = Vec::with_capacity(count);
        for one in prepared {
            let outcome = one.and_then(|one| match outcomes.next() {
                Some(Ok(outcome)) => done(&one.path, outcome).map(|info| (one, info)),
                Some(Err(fault)) => Err(fault.of(&one.path)),
                None => Err(StorageError::NotFound(one.path)),
            });
            answers.push(outcome.map(|(one, info)| {
                let row = row_of(&one.path, &info, &one.put.notes, one.mode);
                changing.written(row.clone(), one.old.as_ref());
                list::from_row(row, &info)
            }));
        }
        match changing.end().await {
            Ok(()) => answers,
            Err(error) => failed(error, count),
        }
    }

    /// A small file that may be written, if it is as announced.
    fn prepared(&self, by: &Writer, file: SmallFile, old: Option<FileRow>) -> Result<Prepared, StorageError> {
        let SmallFile { path, condition, about, content } = file;
        let mut counted = Counted::new(&path, &about, self.storage.quota.file_bytes)?;
        counted.take(&content)?;
        let (_, digest) = counted.end()?;
        let mode = mode_of(&about, old.as_ref());
        let key = self.prefix.file(&path);
        let notes = Notes {
            digest: Some(digest),
            modified: about.modified,
            content_type: about.content_type,
            writer: own::note(by, &key),
        };
        let put = Put { key, condition, notes, content };
        Ok(Prepared { path, mode, old, put })
    }

    /// Removes a file; whether there was one.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn remove(
        &self,
        by: &Writer,
        path: &FilePath,
        condition: &Condition,
    ) -> Result<bool, StorageError> {
        let one = vec![(path.clone(), condition.clone())];
        self.remove_many(by, one).await.pop().unwrap_or(Ok(false))
    }

    /// Removes files, many at once: the answers are in their order.
    pub(crate) async fn remove_many(
        &self,
        by: &Writer,
        files: Vec<(FilePath, Condition)>,
    ) -> Vec<Result<bool, StorageError>> {
        let (mut files, mut answers) = (files, Vec::new());
        while !files.is_empty() {
            let rest = files.split_off(files.len().min(IN_A_CHANGE));
            answers.extend(self.remove_some(by, std::mem::replace(&mut files, rest)).await);
        }
        answers
    }

    async fn remove_some(
        &self,
        by: &Writer,
        files: Vec<(FilePath, Condition)>,
    ) -> Vec<Result<bool, StorageError>> {
        let count = files.len();
        let mut changing = match self.changing(by, files.iter().map(|(path, _)| path)).await {
            Ok(changing) => changing,
            Err(error) => return failed(error, count),
        };
        if let Err(error) = changing.may_change() {
            return failed(error, count);
        }
        let remove = |(path, condition): (FilePath, Condition)| async move {
            let removed = self.storage.objects.remove(&self.prefix.file(&path), &condition).await;
            let removed = removed.map_err(|fault| fault.of(&path)).and_then(|outcome| done(&path, outcome));
            (path, removed)
        };
        let removed: Vec<_> = stream::iter(files.into_iter().map(remove)).buffered(AT_ONCE).collect().await;
        let gone = removed.iter().filter(|(_, removed)| matches!(removed, Ok(true)));
        let gone: Vec<FilePath> = gone.map(|(path, _)| path.clone()).collect();
        let noted = changing.removed(gone).await;
        let ended = match noted {
            Ok(()) => changing.end().await,
            failed => failed,
        };
        match ended {
            Ok(()) => removed.into_iter().map(|(_, removed)| removed).collect(),
            Err(error) => failed(error, count),
        }
    }

    /// Copies a file: the version that is given, or the newest.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn copy(
        &self,
        by: &Writer,
        (from, version): (&FilePath, Option<&Version>),
        to: &FilePath,
        condition: &Condition,
    ) -> Result<FileEntry, StorageError> {
        let Reading { about, content, .. } = self.read(from, None, version).await?;
        let new = NewFile {
            size: Some(about.size),
            digest: about.digest,
            mode: Some(about.mode),
            modified: Some(about.modified),
            content_type: about.content_type,
        };
        self.write(by, to, condition, new, content).await
    }

    /// Copies a file and removes it where it was, unless it was written there meanwhile.
    ///
    /// # Errors
    /// [`StorageError`]; with [`StorageError::Conflict`] of `from` both are there.
    pub(crate) async fn rename(
        &self,
        by: &Writer,
        (from, version): (&FilePath, Option<&Version>),
        to: &FilePath,
        condition: &Condition,
    ) -> Result<FileEntry, StorageError> {
        let there = self.find(from).await?.ok_or_else(|| StorageError::NotFound(from.clone()))?;
        let read = version.unwrap_or(&there.version).clone();
        if from == to {
            return Ok(there);
        }
        let copied = self.copy(by, (from, Some(&read)), to, condition).await?;
        self.remove(by, from, &Condition::Version(read)).await?;
        Ok(copied)
    }

    /// Changes modes, folders and links; of two edits of one path the last counts.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn reshape(&self, by: &Writer, edits: Vec<Edit>) -> Result<(), StorageError> {
        let mut changing = Changing::shape(self, by).await?;
        changing.shaped(edits);
        changing.end().await
    }

    /// What the files take.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn usage(&self) -> Result<Usage, StorageError> {
        Ok(self.storage.store.file_usage(&self.owner).await?)
    }
}

/// Writes content into an object; what was counted when it was held is not counted again.
pub(super) async fn pour(
    object: &mut LargeObject,
    path: &FilePath,
    mut content: Content,
    mut counted: Option<&mut Counted>,
) -> Result<(), StorageError> {
    while let Some(bytes) = content.next().await {
        let bytes = bytes.map_err(StorageError::Content)?;
        if let Some(counted) = counted.as_mut() {
            counted.take(&bytes)?;
        }
        object.write(bytes).await.map_err(|fault| fault.of(path))?;
    }
    Ok(())
}

fn mode_of(about: &NewFile, old: Option<&FileRow>) -> u32 {
    about.mode.map_or_else(|| old.map_or(FILE_MODE, |old| old.mode), |mode| mode & MODE_BITS)
}

fn row_of(path: &FilePath, info: &ObjectInfo, notes: &Notes, mode: u32) -> FileRow {
    FileRow {
        path: path.clone(),
        size: info.size,
        digest: notes.digest,
        mode,
        version: info.version.clone(),
        modified: notes.modified.unwrap_or(info.written),
        content_type: notes.content_type.clone(),
    }
}

fn done<Done>(path: &FilePath, outcome: Outcome<Done>) -> Result<Done, StorageError> {
    match outcome {
        Outcome::Done(done) => Ok(done),
        Outcome::Conflict(found) => Err(StorageError::Conflict { path: path.clone(), found }),
        Outcome::Obstructed => Err(StorageError::Obstructed { path: path.clone(), by: path.clone() }),
    }
}

/// One error for everything that was asked.
fn failed<Answer>(error: StorageError, count: usize) -> Vec<Result<Answer, StorageError>> {
    let text = error.to_string();
    // A bound stays one: it is no reason to try again.
    let bound = match &error {
        StorageError::TooMuch { path, quota, bound } => Some((path.clone(), *quota, *bound)),
        _ => None,
    };
    let again = |_| {
        Err(match bound.clone() {
            Some((path, quota, bound)) => StorageError::TooMuch { path, quota, bound },
            None => StorageError::Store { what: "change several files", source: text.clone().into() },
        })
    };
    let mut answers = vec![Err(error)];
    answers.extend((1..count).map(again));
    answers.truncate(count);
    answers
}
