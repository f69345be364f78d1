// SPDX-License-Identifier: Apache-2.0
//! Which sandbox wrote an object, as the object itself says: the database knows it too, unless we died
//! between the write and its row. Then the sandbox has had no answer, and what it brings next was made
//! on top of what is there: taken for somebody else's, it would be a conflict with itself.
//!
//! A note is believed only for what it was written with. It names the object, so that a copy under
//! another name is nobody's; and the bytes must still be those of its digest, for a file in a folder
//! keeps its attributes when somebody else writes into it. A service has none left then.

use super::objects::{Objects, Opened};
use super::path::{FilePath, Key};
use super::types::{Digest, StorageError, Version, Writer};
use super::user::UserFiles;
use crate::keys::hex;
use aws_lc_rs::digest::{Context, SHA256};
use futures_util::StreamExt;
use postern_common::id::SandboxId;

/// What of an object's name is in the note: whoever makes another name that looks like it could as
/// well write the note.
const NAME_BYTES: usize = 16;

/// What is noted with an object that `by` writes; nothing, if it is not a sandbox.
pub(super) fn note(by: &Writer, key: &Key) -> Option<String> {
    by.sandbox.as_ref().map(|sandbox| note_of(sandbox, key))
}

fn note_of(sandbox: &SandboxId, key: &Key) -> String {
    let name = Digest::of(key.as_str().as_bytes());
    let name = name.as_bytes().get(..NAME_BYTES).map(hex).unwrap_or_default();
    format!("{sandbox} {name}")
}

impl UserFiles {
    /// The version of a file that is there, if this sandbox wrote it: `known` is the last that the
    /// database knows to be its own.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn own_version(
        &self,
        path: &FilePath,
        sandbox: &SandboxId,
        known: Option<Version>,
    ) -> Result<Option<Version>, StorageError> {
        let key = self.prefix.file(path);
        let objects = &self.storage.objects;
        let Some((info, notes)) = objects.find(&key).await.map_err(|fault| fault.of(path))? else {
            return Ok(None);
        };
        if known.as_ref() == Some(&info.version) {
            return Ok(known);
        }
        if notes.writer != Some(note_of(sandbox, &key)) {
            return Ok(None);
        }
        let is_own = match notes.digest {
            Some(digest) => self.digest_of(path, &key, &info.version).await? == Some(digest),
            // A large one in a service, whose notes are as old as its bytes.
            None => matches!(objects, Objects::Cloud(_)),
        };
        Ok(is_own.then_some(info.version))
    }

    /// The digest of the bytes that a version has; `None` if it is another by now, or broke off.
    async fn digest_of(
        &self,
        path: &FilePath,
        key: &Key,
        version: &Version,
    ) -> Result<Option<Digest>, StorageError> {
        let opened = self.storage.objects.read(key, None).await.map_err(|fault| fault.of(path))?;
        let Some(Opened { info, mut content, .. }) = opened.filter(|it| it.info.version == *version) else {
            return Ok(None);
        };
        let (mut context, mut size) = (Context::new(&SHA256), 0);
        while let Some(bytes) = content.next().await {
            let Ok(bytes) = bytes else { return Ok(None) };
            context.update(&bytes);
            size += bytes.len() as u64;
        }
        Ok((size == info.size).then(|| Digest::finished(&context.finish())))
    }
}
