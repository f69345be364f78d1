// SPDX-License-Identifier: Apache-2.0
//! The archive of a user: where a file lies in it, and how it gets there.
//!
//! What lies there is never written over: a version that comes when another is there gets a place of
//! its own. A copy counts only once the database knows it; one that was made for nothing is taken back,
//! and one that a run left when it was cut off is found by the next, which has the same content.

use super::FilePath;
use super::content::Counted;
use super::objects::{Fault, Notes, Opened, Outcome};
use super::path::Key;
use super::types::{Condition, Digest, NewFile, NoDigest, StorageError, Version};
use super::user::{UserFiles, pour};
use crate::store::DueFile;
use futures_util::StreamExt;
use std::fmt;
use std::str::FromStr;

/// Where a file lies in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ArchivePlace {
    /// Under its path.
    First,
    /// Under its path and its content, for there was another under its path.
    Later(Digest),
    /// Under no path: a file of the archive is where it needs a folder, or the other way round.
    Apart(Digest),
}

impl fmt::Display for ArchivePlace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => Ok(()),
            Self::Later(content) => write!(formatter, "later:{content}"),
            Self::Apart(content) => write!(formatter, "apart:{content}"),
        }
    }
}

impl FromStr for ArchivePlace {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, NoDigest> {
        match text.split_once(':') {
            None if text.is_empty() => Ok(Self::First),
            Some(("later", content)) => content.parse().map(Self::Later),
            Some(("apart", content)) => content.parse().map(Self::Apart),
            _ => Err(NoDigest),
        }
    }
}

/// A copy that lies in the archive.
#[derive(Debug, Clone)]
pub(super) struct Copied {
    pub(super) place: ArchivePlace,
    pub(super) version: Version,
    /// Whether it was not there before.
    is_new: bool,
}

/// What became of a try to copy.
enum Tried {
    Copied(Copied),
    /// Something is there, or in the way.
    Taken,
    /// The file is another version by now, or gone.
    OtherVersion,
}

impl UserFiles {
    /// Copies this version of a file into the archive, or finds that it lies there; `None` if the file
    /// is another version by now.
    pub(super) async fn copy_to_archive(&self, file: &DueFile) -> Result<Option<Copied>, StorageError> {
        let (path, source) = (&file.path, self.prefix.file(&file.path));
        let digest = match file.digest {
            Some(digest) => digest,
            None => match self.content_at(path, &source).await? {
                Some((digest, version)) if version == file.version => digest,
                _ => return Ok(None),
            },
        };
        let mut failed = StorageError::Obstructed { path: path.clone(), by: path.clone() };
        for place in [ArchivePlace::First, ArchivePlace::Later(digest), ArchivePlace::Apart(digest)] {
            match self.copy_to(file, digest, place).await {
                Ok(Tried::Copied(copied)) => return Ok(Some(copied)),
                Ok(Tried::OtherVersion) => return Ok(None),
                Ok(Tried::Taken) => {}
                // A store that is a file system within says it of a file in the way of a folder.
                Err(error @ (StorageError::Obstructed { .. } | StorageError::Store { .. })) => failed = error,
                Err(error) => return Err(error),
            }
        }
        Err(failed)
    }

    async fn copy_to(
        &self,
        file: &DueFile,
        digest: Digest,
        place: ArchivePlace,
    ) -> Result<Tried, StorageError> {
        let key = self.prefix.archived(&file.path, place);
        let mut found = self.content_at(&file.path, &key).await?;
        if found.is_none() {
            match self.try_copy(file, digest, (place, &key)).await? {
                Tried::Taken => found = self.content_at(&file.path, &key).await?,
                tried => return Ok(tried),
            }
        }
        // Of a run that was cut off, or of one that is under way.
        Ok(match found {
            Some((found, version)) if found == digest => {
                Tried::Copied(Copied { place, version, is_new: false })
            }
            _ => Tried::Taken,
        })
    }

    async fn try_copy(
        &self,
        file: &DueFile,
        digest: Digest,
        (place, key): (ArchivePlace, &Key),
    ) -> Result<Tried, StorageError> {
        let path = &file.path;
        let opened = self.storage.objects.read(&self.prefix.file(path), None).await;
        let Some(Opened { info, notes, content, .. }) = opened.map_err(|fault| fault.of(path))? else {
            return Ok(Tried::OtherVersion);
        };
        if info.version != file.version {
            return Ok(Tried::OtherVersion);
        }
        let notes = Notes { digest: Some(digest), ..notes };
        let mut object = match self.storage.objects.begin(key, &notes).await {
            Err(Fault::Obstructed) => return Ok(Tried::Taken),
            begun => begun.map_err(|fault| fault.of(path))?,
        };
        let about = NewFile { size: Some(file.size), digest: Some(digest), ..NewFile::default() };
        // What is there already may be larger than what may be written now.
        let mut counted = Counted::new(path, &about, u64::MAX)?;
        let poured = pour(&mut object, path, content, Some(&mut counted)).await;
        if let Err(error) = poured.and_then(|()| counted.end()) {
            object.abandon().await;
            return Err(error);
        }
        match object.finish(&Condition::Nothing, &notes).await.map_err(|fault| fault.of(path))? {
            Outcome::Done(info) => Ok(Tried::Copied(Copied { place, version: info.version, is_new: true })),
            Outcome::Conflict(_) | Outcome::Obstructed => Ok(Tried::Taken),
        }
    }

    /// The digest of what an object holds, and which write of it that is; `None` if there is none.
    async fn content_at(
        &self,
        path: &FilePath,
        key: &Key,
    ) -> Result<Option<(Digest, Version)>, StorageError> {
        let found = self.storage.objects.find(key).await.map_err(|fault| fault.of(path))?;
        let Some((info, notes)) = found else { return Ok(None) };
        if let Some(digest) = notes.digest {
            return Ok(Some((digest, info.version)));
        }
        let opened = self.storage.objects.read(key, None).await.map_err(|fault| fault.of(path))?;
        let Some(Opened { info, mut content, .. }) = opened else { return Ok(None) };
        let mut counted = Counted::new(path, &NewFile::default(), u64::MAX)?;
        while let Some(bytes) = content.next().await {
            counted.take(&bytes.map_err(StorageError::Content)?)?;
        }
        Ok(Some((counted.end()?.1, info.version)))
    }

    /// Takes back copies that were made for files that did not go. The user is locked: what the
    /// database knows by then is somebody's, whoever made it.
    pub(super) async fn take_back(&self, copies: Vec<(FilePath, Copied)>) {
        let new: Vec<_> = copies.into_iter().filter(|(_, copied)| copied.is_new).collect();
        let paths: Vec<FilePath> = new.iter().map(|(path, _)| path.clone()).collect();
        if paths.is_empty() {
            return;
        }
        let known = match self.storage.store.archived_among(&self.owner, &paths).await {
            Ok(known) => known,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                return tracing::warn!(error, "copies that were made for nothing stay in the archive");
            }
        };
        for (path, copied) in
            new.into_iter().filter(|(path, it)| !known.contains_key(&(path.clone(), it.place)))
        {
            let key = self.prefix.archived(&path, copied.place);
            let removed = self.storage.objects.remove(&key, &Condition::Version(copied.version)).await;
            if let Err(error) = removed.map_err(|fault| fault.of(&path)) {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(%path, error, "a copy that was made for nothing stays in the archive");
            }
        }
    }
}
