// SPDX-License-Identifier: Apache-2.0
//! Files that come by URLs which anybody may use: their parts lie aside until they are complete.
//!
//! A part that was presigned can be written again as long as its URL lives. So completing reads each
//! part once: the bytes that were counted and digested are the bytes that become the file.

use super::content::{LARGEST_FILE, whole_or_parts};
use super::objects::{Notes, ObjectInfo, Objects};
use super::path::Key;
use super::types::{Content, FileEntry, NewFile, StorageError, Writer};
use super::{FilePath, Storage};
use crate::store::{AuditEntry, FileOwner, UploadRow};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use object_store::signer::Method;
use postern_common::id::UploadId;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;
use url::Url;

/// The largest part of an upload: so that a part that broke off is not much lost.
pub(crate) const PART_BYTES: u64 = 64 << 20;
/// Expired uploads that are removed at a time.
const EXPIRED: u32 = 100;
/// How often parts that no upload has any more are looked for, in seconds: that lists all that is staged.
const STRAYS_SECONDS: i64 = 6 * 3600;
/// How old they are by then: no upload lives longer than a day, and clocks differ.
const STRAY_AGE: SignedDuration = SignedDuration::from_hours(26);

impl UploadRow {
    /// How many parts it has; an empty file has one.
    pub(crate) fn parts(&self) -> u32 {
        u32::try_from(self.size.div_ceil(self.part_bytes.max(1)).max(1)).unwrap_or(u32::MAX)
    }

    /// The bytes of a part.
    pub(crate) fn part_size(&self, part: u32) -> u64 {
        let begin = u64::from(part) * self.part_bytes;
        self.size.saturating_sub(begin).min(self.part_bytes)
    }
}

/// What the announced uploads of a user are together, as [`StorageError::TooMuch`] names it.
pub(crate) const UNDER_WAY: &str = "most that uploads under way may have together";

impl Storage {
    /// Begins an upload, if the file that it is to be, and all that is under way, fits.
    ///
    /// # Errors
    /// [`StorageError::TooMuch`], or the database's.
    pub(crate) async fn begin_upload(
        &self,
        upload: &UploadRow,
        audit: &AuditEntry,
    ) -> Result<(), StorageError> {
        let too_much = |quota, bound| StorageError::TooMuch { path: upload.path.clone(), quota, bound };
        if upload.size > self.quota.file_bytes {
            return Err(too_much(LARGEST_FILE, self.quota.file_bytes));
        }
        let is_begun = self.store.add_upload(upload, self.quota.bytes, audit).await?;
        if is_begun { Ok(()) } else { Err(too_much(UNDER_WAY, self.quota.bytes)) }
    }

    /// A URL of the store itself that lets whoever has it write one part; `None` where it has none.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn part_url(
        &self,
        upload: &UploadId,
        part: u32,
        expires_in: Duration,
    ) -> Result<Option<Url>, StorageError> {
        match &self.objects {
            Objects::Folder(_) => Ok(None),
            Objects::Cloud(cloud) => {
                Ok(cloud.signed(Method::PUT, &Key::staged(upload, part), expires_in).await?)
            }
        }
    }

    /// Whether the store asks for more headers with such a URL than its own.
    pub(crate) fn part_headers(&self) -> &'static [(&'static str, &'static str)] {
        match &self.objects {
            Objects::Cloud(cloud) => cloud.put_headers(),
            Objects::Folder(_) => &[],
        }
    }

    /// A URL of the store itself that lets whoever has it read one file; `None` where it has none.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn file_url(
        &self,
        owner: &FileOwner,
        path: &FilePath,
        expires_in: Duration,
    ) -> Result<Option<Url>, StorageError> {
        let files = self.of(&owner.tenant, &owner.user);
        match &self.objects {
            Objects::Folder(_) => Ok(None),
            Objects::Cloud(cloud) => {
                Ok(cloud.signed(Method::GET, &files.prefix.file(path), expires_in).await?)
            }
        }
    }

    /// Writes a part that came to us, of exactly so many bytes.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn put_part(
        &self,
        upload: &UploadRow,
        part: u32,
        content: Content,
    ) -> Result<(), StorageError> {
        let content_type = upload.content_type.clone();
        let about = NewFile { size: Some(upload.part_size(part)), content_type, ..NewFile::default() };
        let key = Key::staged(&upload.id, part);
        let (tenant, at) = (&upload.owner.tenant, (&key, &upload.path));
        whole_or_parts(self, tenant, at, (&about, PART_BYTES), content).await
    }

    /// The bytes of each part that has come; `None` of those that have not.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn arrived(&self, upload: &UploadRow) -> Result<Vec<Option<u64>>, StorageError> {
        let parts = self.staged(upload).await?;
        Ok(parts.into_iter().map(|part| part.map(|(info, _)| info.size)).collect())
    }

    /// What the store says of each part; `None` of those that have not come.
    async fn staged(&self, upload: &UploadRow) -> Result<Vec<Option<(ObjectInfo, Notes)>>, StorageError> {
        const AT_ONCE: usize = 16;
        let find = |part| async move {
            self.objects.find(&Key::staged(&upload.id, part)).await.map_err(StorageError::from)
        };
        stream::iter((0..upload.parts()).map(find)).buffered(AT_ONCE).try_collect().await
    }

    /// Whether a part was sent as the type that was announced. Where no store takes parts by itself, that
    /// was looked at when they came.
    fn is_of_its_type(&self, upload: &UploadRow, notes: &Notes) -> bool {
        // What has no type is told as this one.
        let announced = upload.content_type.as_deref().map(str::trim);
        let announced = announced.filter(|kind| *kind != "application/octet-stream");
        match (&self.objects, announced) {
            (Objects::Folder(_), _) | (_, None) => true,
            (Objects::Cloud(_), Some(announced)) => {
                notes.content_type.as_deref().is_some_and(|kind| kind.eq_ignore_ascii_case(announced))
            }
        }
    }

    /// Makes a file of an upload: checks size, type and digest, then writes it on the upload's condition.
    ///
    /// # Errors
    /// [`StorageError`]: [`StorageError::Differs`] also if a part is missing.
    pub(crate) async fn complete(&self, by: &Writer, upload: &UploadRow) -> Result<FileEntry, StorageError> {
        let about = NewFile {
            size: Some(upload.size),
            digest: upload.digest,
            mode: upload.mode,
            modified: None,
            content_type: upload.content_type.clone(),
        };
        let files = self.of(&upload.owner.tenant, &upload.owner.user);
        let differs = |what| StorageError::Differs { path: upload.path.clone(), what };
        let parts = self.staged(upload).await?;
        let is_whole = (0..)
            .zip(&parts)
            .all(|(part, there)| there.as_ref().is_some_and(|(info, _)| info.size == upload.part_size(part)));
        if !is_whole {
            return Err(differs("size"));
        }
        if !parts.iter().flatten().all(|(_, notes)| self.is_of_its_type(upload, notes)) {
            return Err(differs("type"));
        }
        let written = files.write(by, &upload.path, &upload.condition, about, self.parts(upload)).await?;
        self.store.upload_completed(&upload.id, &written.version).await?;
        self.drop_parts(&upload.id).await?;
        Ok(written)
    }

    /// All parts, one after the other.
    fn parts(&self, upload: &UploadRow) -> Content {
        let (objects, id) = (self.objects.clone(), upload.id.clone());
        let open = move |part| {
            let (objects, key) = (objects.clone(), Key::staged(&id, part));
            async move {
                let opened = objects.read(&key, None).await;
                let opened = opened.map_err(|fault| io::Error::other(StorageError::from(fault)))?;
                let gone = || io::Error::new(io::ErrorKind::NotFound, "a part went while it was read");
                opened.map(|opened| opened.content).ok_or_else(gone)
            }
        };
        stream::iter(0..upload.parts()).then(open).try_flatten().boxed()
    }

    /// Removes the parts of an upload.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn drop_parts(&self, upload: &UploadId) -> Result<(), StorageError> {
        self.objects.erase_upload(upload).await?;
        Ok(())
    }

    /// Removes uploads that nobody completed in time, and forgets those that somebody did.
    ///
    /// # Errors
    /// [`StorageError`]; the rest is for the next time.
    pub(crate) async fn expire_uploads(&self, now: Timestamp) -> Result<u64, StorageError> {
        let mut expired = 0;
        loop {
            let ids = self.store.expired_uploads(now, EXPIRED).await?;
            for id in &ids {
                self.drop_parts(id).await?;
                self.store.forget_upload(id).await?;
                expired += 1;
            }
            if ids.len() < usize::try_from(EXPIRED).unwrap_or(usize::MAX) {
                self.drop_strays(now).await?;
                return Ok(expired);
            }
        }
    }

    /// Removes parts that came by a URL when their upload was over: completed, abandoned, expired or
    /// erased with its user. Nobody can call a URL back, and no row leads to what comes by it then.
    async fn drop_strays(&self, now: Timestamp) -> Result<(), StorageError> {
        let last = self.strays_dropped.load(Ordering::Relaxed);
        if now.as_second().saturating_sub(last) < STRAYS_SECONDS {
            return Ok(());
        }
        let before = now.saturating_sub(STRAY_AGE).unwrap_or(Timestamp::MIN);
        let parts = self.objects.erase_staged(before).await?;
        self.strays_dropped.store(now.as_second(), Ordering::Relaxed);
        if parts > 0 {
            tracing::info!(parts, "parts of uploads that are over were removed");
        }
        Ok(())
    }
}
