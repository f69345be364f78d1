// SPDX-License-Identifier: Apache-2.0
//! What is said of users' files, and what is asked of them.

use super::path::FilePath;
use crate::keys::hex;
use crate::store::{Actor, StoreError};
use aws_lc_rs::digest;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use postern_common::id::{DecisionId, SandboxId};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// The mode of a file of which nobody said another.
pub(crate) const FILE_MODE: u32 = 0o644;
/// The mode of a folder of which nobody said another.
pub(crate) const FOLDER_MODE: u32 = 0o755;
/// What is kept of a mode: set-user-id bits and the like are nobody's to bring into a sandbox.
pub(crate) const MODE_BITS: u32 = 0o777;

/// A file's bytes, as they come.
pub(crate) type Content = BoxStream<'static, std::io::Result<Bytes>>;

/// The SHA-256 of a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes.
    #[must_use]
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::finished(&digest::digest(&digest::SHA256, bytes))
    }

    /// A digest that was made step by step.
    pub(super) fn finished(digest: &digest::Digest) -> Self {
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// Text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a SHA-256 in 64 lower-case hexadecimal digits")]
pub(crate) struct NoDigest;

impl FromStr for Digest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, NoDigest> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 64 || !text.bytes().all(is_hex) {
            return Err(NoDigest);
        }
        let mut bytes = [0; 32];
        for (place, byte) in bytes.iter_mut().enumerate() {
            let pair = text.get(place * 2..place * 2 + 2).ok_or(NoDigest)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_not_hex| NoDigest)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        <Cow<'de, str>>::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Which write of a file this is: two are equal only if nothing was written in between.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Version(String);

impl Version {
    /// The version as text; it is a part of an `ETag`.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Version {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What must be there for a change to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Whatever there is.
    Anything,
    /// No file.
    Nothing,
    /// A file.
    Something,
    /// This version of the file.
    Version(Version),
}

impl Condition {
    /// Whether it holds of what was found.
    #[must_use]
    pub(crate) fn holds(&self, found: Option<&Version>) -> bool {
        match self {
            Self::Anything => true,
            Self::Nothing => found.is_none(),
            Self::Something => found.is_some(),
            Self::Version(wanted) => found == Some(wanted),
        }
    }
}

/// A file in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct FileEntry {
    /// Where it is.
    pub(crate) path: FilePath,
    /// Its bytes.
    pub(crate) size: u64,
    /// Their SHA-256; `None` of what somebody else wrote into the store and nobody has read yet.
    pub(crate) digest: Option<Digest>,
    /// Its mode: permission bits and nothing else.
    pub(crate) mode: u32,
    /// When it was changed, as whoever wrote it said; else when it was written.
    pub(crate) modified: Timestamp,
    /// Which write it is.
    pub(crate) version: Version,
    /// Its media type, if somebody said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content_type: Option<String>,
}

/// All that a user has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    /// Files, by path.
    pub(crate) files: Vec<FileEntry>,
    /// Folders that are empty or have a mode of their own, by path.
    pub(crate) folders: Vec<(FilePath, u32)>,
    /// Symbolic links with what they say, which is never followed here, by path.
    pub(crate) links: Vec<(FilePath, String)>,
}

/// What is said of a file that is to be written; what is `None` is found out or usual.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NewFile {
    /// Its bytes: others are refused.
    pub(crate) size: Option<u64>,
    /// Their SHA-256: others are refused.
    pub(crate) digest: Option<Digest>,
    /// Its mode.
    pub(crate) mode: Option<u32>,
    /// When it was changed.
    pub(crate) modified: Option<Timestamp>,
    /// Its media type.
    pub(crate) content_type: Option<String>,
}

/// A file that is small enough to be held whole.
#[derive(Debug, Clone)]
pub(crate) struct SmallFile {
    /// Where it is to be.
    pub(crate) path: FilePath,
    /// What must be there.
    pub(crate) condition: Condition,
    /// What is said of it.
    pub(crate) about: NewFile,
    /// Its bytes.
    pub(crate) content: Bytes,
}

/// Who changes files, for the log.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    /// Who.
    pub(crate) actor: Actor,
    /// In which sandbox.
    pub(crate) sandbox: Option<SandboxId>,
    /// By which decision of a gateway.
    pub(crate) decision: Option<DecisionId>,
}

impl Writer {
    /// Somebody of whom no more is known.
    #[must_use]
    pub(crate) const fn new(actor: Actor) -> Self {
        Self { actor, sandbox: None, decision: None }
    }
}

/// A change to what objects cannot hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Edit {
    /// There is a folder, with this mode.
    Folder(FilePath, u32),
    /// A folder is no more than what files make it.
    NoFolder(FilePath),
    /// There is a symbolic link that says this.
    Link(FilePath, String),
    /// There is no link.
    NoLink(FilePath),
    /// A file has this mode.
    Mode(FilePath, u32),
}

/// A file that is being read.
pub(crate) struct Reading {
    /// What is known of it.
    pub(crate) about: FileEntry,
    /// Which bytes come.
    pub(crate) range: Range<u64>,
    /// They.
    pub(crate) content: Content,
}

impl fmt::Debug for Reading {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Reading").field("about", &self.about).finish_non_exhaustive()
    }
}

/// What a user's files take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Bytes of all files.
    pub(crate) bytes: u64,
    /// Files.
    pub(crate) files: u64,
    /// Bytes of all their paths.
    pub(crate) names: u64,
}

/// What one user may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota {
    /// Bytes of all files.
    pub(crate) bytes: u64,
    /// Files.
    pub(crate) files: u64,
    /// Bytes of one file.
    pub(crate) file_bytes: u64,
    /// Bytes of all paths: each list has them all.
    pub(crate) names: u64,
    /// Bytes of the manifest, which has modes, links, folders and odd names.
    pub(crate) manifest_bytes: u64,
}

impl Default for Quota {
    fn default() -> Self {
        // As much as the largest sandbox holds, a checked-out project with its dependencies four
        // times over, the largest object that S3 takes in one piece, and paths of 160 bytes for each file.
        let manifest_bytes = super::manifest::MANIFEST_BYTES;
        Self { bytes: 16 << 30, files: 200_000, file_bytes: 5 << 30, names: 32 << 20, manifest_bytes }
    }
}

/// Something with files did not go well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StorageError {
    /// There is no such file.
    #[error("there is no file `{0}`")]
    NotFound(FilePath),
    /// What is there is not what was expected.
    #[error("file `{path}` is not what was expected: {}", found_text(found.as_ref()))]
    Conflict {
        /// The file.
        path: FilePath,
        /// What is there, if that is known.
        found: Option<Version>,
    },
    /// A folder and a file want the same name.
    #[error("`{path}` cannot be: `{by}` is in its way")]
    Obstructed {
        /// What cannot be.
        path: FilePath,
        /// A file where a folder had to be, or the other way round.
        by: FilePath,
    },
    /// What came is not what was announced; nothing was written.
    #[error("the {what} of `{path}` is not what was announced; nothing was written")]
    Differs {
        /// The file.
        path: FilePath,
        /// Size, type or digest.
        what: &'static str,
    },
    /// A user's quota, or the bound of one file.
    #[error("`{path}` would exceed the {quota} of {bound}")]
    TooMuch {
        /// The file.
        path: FilePath,
        /// What is bounded.
        quota: &'static str,
        /// The bound.
        bound: u64,
    },
    /// Somebody erases the user, and is not done.
    #[error("the user is being erased, and nothing of them is changed until that is done")]
    BeingErased,
    /// What was to be written broke off; nothing was written.
    #[error("the content broke off; nothing was written")]
    Content(#[source] std::io::Error),
    /// A range that the file has not.
    #[error("the file has {size} bytes, none of them in the range")]
    Range {
        /// Its bytes.
        size: u64,
    },
    /// The store did not do it; worth another try later.
    #[error("the store of files could not {what}")]
    Store {
        /// What it was to do.
        what: &'static str,
        /// What it said, without any credential.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database.
    #[error(transparent)]
    Database(#[from] StoreError),
}

fn found_text(found: Option<&Version>) -> String {
    found.map_or_else(
        || "it is not there, or was written meanwhile".to_owned(),
        |it| format!("it is `{}` now", it.0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_reads_back_and_nothing_else_is_one() {
        let digest = Digest::of(b"abc");
        let text = digest.to_string();
        assert_eq!(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(text.parse(), Ok(digest));
        for wrong in ["", "ab", &text.to_uppercase(), &format!("{text}0"), &"ü".repeat(32)] {
            assert_eq!(wrong.parse::<Digest>(), Err(NoDigest), "{wrong}");
        }
    }

    #[test]
    fn conditions_hold_of_what_they_say() {
        let (one, two) = (Version("1".to_owned()), Version("2".to_owned()));
        for (condition, nothing, first) in [
            (Condition::Anything, true, true),
            (Condition::Nothing, true, false),
            (Condition::Something, false, true),
            (Condition::Version(one.clone()), false, true),
            (Condition::Version(two), false, false),
        ] {
            assert_eq!(condition.holds(None), nothing, "{condition:?}");
            assert_eq!(condition.holds(Some(&one)), first, "{condition:?}");
        }
    }
}
