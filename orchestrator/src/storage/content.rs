// SPDX-License-Identifier: Apache-2.0
//! Bytes on their way into a store: counted, digested, bounded.

use super::objects::Notes;
use super::path::Key;
use super::types::{Condition, Content, Digest, NewFile, StorageError};
use super::{FilePath, Storage, cloud};
use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use postern_common::id::TenantId;

/// What is held whole and put in one request; what is longer goes in parts.
pub(super) const SMALL_BYTES: usize = cloud::PART_BYTES;
/// The bound of one file, as [`StorageError::TooMuch`] names it.
pub(crate) const LARGEST_FILE: &str = "largest size of a file";

/// What came so far.
pub(super) struct Counted {
    path: FilePath,
    about: NewFile,
    bound: u64,
    size: u64,
    context: Context,
}

impl Counted {
    /// Nothing yet of a file that may have `bound` bytes.
    pub(super) fn new(path: &FilePath, about: &NewFile, bound: u64) -> Result<Self, StorageError> {
        let counted =
            Self { path: path.clone(), about: about.clone(), bound, size: 0, context: Context::new(&SHA256) };
        if about.size.is_some_and(|size| size > bound) {
            return Err(counted.too_much());
        }
        Ok(counted)
    }

    fn too_much(&self) -> StorageError {
        StorageError::TooMuch { path: self.path.clone(), quota: LARGEST_FILE, bound: self.bound }
    }

    /// Counts what comes next.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.size = self.size.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if self.about.size.is_some_and(|size| self.size > size) {
            return Err(StorageError::Differs { path: self.path.clone(), what: "size" });
        }
        if self.size > self.bound {
            return Err(self.too_much());
        }
        self.context.update(bytes);
        Ok(())
    }

    /// Size and digest of all that came, if they are what was announced.
    pub(super) fn end(self) -> Result<(u64, Digest), StorageError> {
        let digest = Digest::finished(&self.context.finish());
        let differs = |what| StorageError::Differs { path: self.path.clone(), what };
        if self.about.size.is_some_and(|size| size != self.size) {
            return Err(differs("size"));
        }
        if self.about.digest.is_some_and(|said| said != digest) {
            return Err(differs("digest"));
        }
        Ok((self.size, digest))
    }
}

/// The begin of a content: all of it, or as much as is held whole.
pub(super) enum Begun {
    /// All of it.
    Whole(Bytes),
    /// There is more.
    More(Bytes),
}

/// Reads until the end, or until there is more than is held whole.
pub(super) async fn begun(content: &mut Content, counted: &mut Counted) -> Result<Begun, StorageError> {
    let mut held = BytesMut::new();
    while let Some(bytes) = content.next().await {
        let bytes = bytes.map_err(StorageError::Content)?;
        counted.take(&bytes)?;
        held.extend_from_slice(&bytes);
        if held.len() > SMALL_BYTES {
            return Ok(Begun::More(held.freeze()));
        }
    }
    Ok(Begun::Whole(held.freeze()))
}

/// Writes an object that nobody else writes, in one request or in parts.
pub(super) async fn whole_or_parts(
    storage: &Storage,
    tenant: &TenantId,
    (key, path): (&Key, &FilePath),
    (about, bound): (&NewFile, u64),
    mut content: Content,
) -> Result<(), StorageError> {
    let objects = &storage.objects;
    let mut counted = Counted::new(path, about, bound)?;
    let notes = Notes { content_type: about.content_type.clone(), ..Notes::default() };
    match begun(&mut content, &mut counted).await? {
        Begun::Whole(bytes) => {
            counted.end()?;
            objects.put(key, &Condition::Anything, &notes, bytes).await?;
        }
        Begun::More(bytes) => {
            let _turn = storage.large_turn(tenant).await;
            let mut object = objects.begin(key, &notes).await?;
            let mut written = object.write(bytes).await.map_err(StorageError::from);
            while written.is_ok()
                && let Some(bytes) = content.next().await
            {
                written = match bytes.map_err(StorageError::Content) {
                    Ok(bytes) => match counted.take(&bytes) {
                        Ok(()) => object.write(bytes).await.map_err(StorageError::from),
                        Err(error) => Err(error),
                    },
                    Err(error) => Err(error),
                };
            }
            if let Err(error) = written.and_then(|()| counted.end().map(drop)) {
                object.abandon().await;
                return Err(error);
            }
            object.finish(&Condition::Anything, &notes).await?;
        }
    }
    Ok(())
}
