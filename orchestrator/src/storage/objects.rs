// SPDX-License-Identifier: Apache-2.0
//! What every store of objects does for us, whichever it is: a folder of this machine, or one that
//! the `object_store` crate speaks to.
//!
//! Objects appear whole or not at all. A condition and the write that it guards are one step: the
//! store's own conditional put where it has one, else under the lock of `locks.rs`.

use super::cloud::{Cloud, CloudDraft};
use super::folder::{self, Draft, Folder};
use super::path::{Key, UserPrefix};
use super::types::{Condition, Content, Digest, StorageError, Version};
use super::{FilePath, path};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use postern_common::id::{TenantId, UploadId};
use serde::{Deserialize, Serialize};
use std::io;
use std::ops::Range;

/// Objects of one call that are written at the same time.
const AT_ONCE: usize = 32;

/// What a store says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ObjectInfo {
    /// Its bytes.
    pub(super) size: u64,
    /// Which write it is.
    pub(super) version: Version,
    /// When that was.
    pub(super) written: Timestamp,
}

/// What we have a store keep with an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Notes {
    /// The digest of its bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<Digest>,
    /// When it was changed, as who wrote it said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) modified: Option<Timestamp>,
    /// Its media type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content_type: Option<String>,
    /// Which sandbox wrote it (`own.rs`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) writer: Option<String>,
}

/// Something in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// An object.
    Object {
        /// Its name.
        key: String,
        /// What is said of it.
        info: ObjectInfo,
        /// Whether it may be executed, where the store knows such a thing.
        is_program: bool,
    },
    /// A folder that holds nothing, where the store knows such a thing.
    Folder {
        /// Its name.
        key: String,
    },
}

/// An object that is read.
pub(super) struct Opened {
    pub(super) info: ObjectInfo,
    pub(super) notes: Notes,
    pub(super) range: Range<u64>,
    pub(super) content: Content,
}

/// A small object that is to be written.
#[derive(Debug, Clone)]
pub(super) struct Put {
    /// Its name.
    pub(super) key: Key,
    /// What must be there.
    pub(super) condition: Condition,
    /// What is kept with it.
    pub(super) notes: Notes,
    /// Its bytes.
    pub(super) content: Bytes,
}

/// What became of a change.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome<Done = ObjectInfo> {
    /// It was made.
    Done(Done),
    /// Its condition does not hold: this is there.
    Conflict(Option<Version>),
    /// A folder is in its place.
    Obstructed,
}

/// A store did not do what it was asked.
#[derive(Debug)]
pub(super) enum Fault {
    /// Something stands where a folder would have to be.
    Obstructed,
    /// Any other reason.
    Store {
        /// What it was asked.
        what: &'static str,
        /// Why not, without any credential.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Fault {
    /// The fault as it concerns a file.
    pub(super) fn of(self, path: &FilePath) -> StorageError {
        match self {
            Self::Obstructed => StorageError::Obstructed { path: path.clone(), by: above(path) },
            Self::Store { what, source } => StorageError::Store { what, source },
        }
    }
}

impl From<Fault> for StorageError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Obstructed => {
                Self::Store { what: "use a folder", source: "a file stands in its place".into() }
            }
            Fault::Store { what, source } => Self::Store { what, source },
        }
    }
}

/// The folder that a file lies in, or itself at the top.
fn above(path: &FilePath) -> FilePath {
    let above = path.folders().last().and_then(|folder| FilePath::parse(folder).ok());
    above.unwrap_or_else(|| path.clone())
}

/// A store of objects. Clones are the same.
#[derive(Debug, Clone)]
pub(super) enum Objects {
    /// A folder of this machine.
    Folder(Folder),
    /// A service.
    Cloud(Cloud),
}

/// An object of any size that is being written; dropped, it never was.
pub(super) enum LargeObject {
    Folder(Option<Draft>, Folder),
    Cloud(CloudDraft),
}

impl Objects {
    /// Every object of a user's files. A service's list may be divided at `ends`, which are in order.
    pub(super) async fn list(&self, prefix: &UserPrefix, ends: &[Key]) -> Result<Vec<Found>, Fault> {
        match self {
            Self::Cloud(cloud) => cloud.list(prefix, ends).await,
            Self::Folder(folder) => {
                let prefix = prefix.clone();
                blocking("list files", folder, move |folder| folder.list(&prefix)).await
            }
        }
    }

    /// What is known of an object.
    pub(super) async fn find(&self, key: &Key) -> Result<Option<(ObjectInfo, Notes)>, Fault> {
        match self {
            Self::Cloud(cloud) => cloud.find(key).await,
            Self::Folder(folder) => {
                let key = key.clone();
                blocking("look at a file", folder, move |folder| folder.find(&key)).await
            }
        }
    }

    /// An object's bytes, or those of a range, which is cut where the object ends.
    pub(super) async fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<Option<Opened>, Fault> {
        match self {
            Self::Cloud(cloud) => cloud.read(key, range).await,
            Self::Folder(folder) => {
                let key = key.clone();
                blocking("read a file", folder, move |folder| folder.read(&key, range)).await
            }
        }
    }

    /// Writes an object whose bytes are all there.
    pub(super) async fn put(
        &self,
        key: &Key,
        condition: &Condition,
        notes: &Notes,
        content: Bytes,
    ) -> Result<Outcome, Fault> {
        match self {
            Self::Cloud(cloud) => cloud.put(key, condition, notes, content).await,
            Self::Folder(folder) => {
                let (key, condition, notes) = (key.clone(), condition.clone(), notes.clone());
                let put = move |folder: Folder| folder.put(&key, &condition, &notes, &content);
                blocking("write a file", folder, put).await
            }
        }
    }

    /// Writes objects whose bytes are all there; the answers are in their order.
    pub(super) async fn put_all(&self, puts: Vec<Put>) -> Vec<Result<Outcome, Fault>> {
        match self {
            Self::Cloud(cloud) => {
                let put = |put: Put| async move {
                    cloud.put(&put.key, &put.condition, &put.notes, put.content).await
                };
                stream::iter(puts.into_iter().map(put)).buffered(AT_ONCE).collect().await
            }
            Self::Folder(_) if puts.len() == 1 => {
                let mut outcomes = Vec::new();
                for put in puts {
                    outcomes.push(self.put(&put.key, &put.condition, &put.notes, put.content).await);
                }
                outcomes
            }
            Self::Folder(folder) => {
                let what = "write files";
                let count = puts.len();
                let put = move |folder: Folder| Ok(folder.put_all(&puts));
                match blocking(what, folder, put).await {
                    Ok(outcomes) => outcomes
                        .into_iter()
                        .map(|outcome| outcome.map_err(|error| folder::fault(what, error)))
                        .collect(),
                    Err(_lost) => (0..count).map(|_| Err(over())).collect(),
                }
            }
        }
    }

    /// Begins an object of any size.
    pub(super) async fn begin(&self, key: &Key, notes: &Notes) -> Result<LargeObject, Fault> {
        match self {
            Self::Cloud(cloud) => cloud.begin(key, notes).await.map(LargeObject::Cloud),
            Self::Folder(folder) => {
                let key = key.clone();
                let draft = blocking("write a file", folder, move |folder| folder.begin(&key)).await?;
                Ok(LargeObject::Folder(Some(draft), folder.clone()))
            }
        }
    }

    /// Removes an object; whether there was one.
    pub(super) async fn remove(&self, key: &Key, condition: &Condition) -> Result<Outcome<bool>, Fault> {
        match self {
            Self::Cloud(cloud) => cloud.remove(key, condition).await,
            Self::Folder(folder) => {
                let (key, condition) = (key.clone(), condition.clone());
                blocking("remove a file", folder, move |folder| folder.remove(&key, &condition)).await
            }
        }
    }

    /// Removes everything of a user; returns how many objects that were.
    pub(super) async fn erase_user(&self, prefix: &UserPrefix) -> Result<u64, Fault> {
        self.erase(prefix.as_str().to_owned()).await
    }

    /// Removes everything of a tenant.
    pub(super) async fn erase_tenant(&self, tenant: &TenantId) -> Result<u64, Fault> {
        self.erase(path::tenant_prefix(tenant)).await
    }

    /// Removes everything of an upload.
    pub(super) async fn erase_upload(&self, upload: &UploadId) -> Result<u64, Fault> {
        self.erase(path::staging_prefix(upload)).await
    }

    /// Removes parts of uploads that were written before `before`; returns how many.
    pub(super) async fn erase_staged(&self, before: Timestamp) -> Result<u64, Fault> {
        match self {
            Self::Cloud(cloud) => cloud.erase_staged(before).await,
            Self::Folder(folder) => {
                blocking("remove parts of uploads", folder, move |folder| folder.erase_staged(before)).await
            }
        }
    }

    /// Removes what those that died left of objects half written, where the store itself does not.
    pub(super) async fn tidy(&self, now: Timestamp) -> Result<(), Fault> {
        match self {
            Self::Cloud(_) => Ok(()),
            Self::Folder(folder) => {
                blocking("remove what is half written", folder, move |folder| folder.tidy(now)).await
            }
        }
    }

    async fn erase(&self, prefix: String) -> Result<u64, Fault> {
        match self {
            Self::Cloud(cloud) => cloud.erase(&prefix).await,
            Self::Folder(folder) => {
                blocking("erase files", folder, move |folder| folder.erase(&prefix)).await
            }
        }
    }
}

impl LargeObject {
    /// Writes what comes next; returns before it has arrived.
    pub(super) async fn write(&mut self, content: Bytes) -> Result<(), Fault> {
        match self {
            Self::Cloud(draft) => draft.write(content).await,
            Self::Folder(draft, _folder) => {
                let Some(mut open) = draft.take() else { return Err(over()) };
                let written = tokio::task::spawn_blocking(move || open.write(&content).map(|()| open)).await;
                let written = written.map_err(io::Error::other).and_then(|written| written);
                *draft = Some(written.map_err(|source| folder::fault("write a file", source))?);
                Ok(())
            }
        }
    }

    /// Gives it its name, if the condition holds.
    pub(super) async fn finish(self, condition: &Condition, notes: &Notes) -> Result<Outcome, Fault> {
        match self {
            Self::Cloud(draft) => draft.finish(condition).await,
            Self::Folder(draft, folder) => {
                let Some(draft) = draft else { return Err(over()) };
                let (condition, notes) = (condition.clone(), notes.clone());
                let give = move |folder: Folder| folder.give(&draft, &condition, &notes);
                blocking("write a file", &folder, give).await
            }
        }
    }

    /// Has it never been.
    pub(super) async fn abandon(self) {
        match self {
            Self::Cloud(draft) => draft.abandon().await,
            Self::Folder(draft, _folder) => drop(draft),
        }
    }
}

fn over() -> Fault {
    Fault::Store { what: "write a file", source: "it had failed before".into() }
}

async fn blocking<Answer: Send + 'static>(
    what: &'static str,
    folder: &Folder,
    work: impl FnOnce(Folder) -> io::Result<Answer> + Send + 'static,
) -> Result<Answer, Fault> {
    let folder = folder.clone();
    let worked = tokio::task::spawn_blocking(move || work(folder)).await;
    worked.map_err(io::Error::other).and_then(|worked| worked).map_err(|source| folder::fault(what, source))
}
