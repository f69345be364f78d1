// SPDX-License-Identifier: Apache-2.0
//! What a sandbox's sync and the orchestrator say to each other about a user's files.
//!
//! Five calls, all `POST`, that the gateway carries below [`ROUTE`]: one listing, small files by the
//! pack both ways, large ones streamed from any byte on, and a wait for changes. Each put and each
//! deletion names the version that it replaces; whoever loses a race keeps its file beside the other
//! (`NAME.conflict-SANDBOX`).
//!
//! | call | asks with | is answered with |
//! |---|---|---|
//! | `list` | nothing | a [`Listing`] (JSON) |
//! | `get` | [`Get`] (JSON) | a pack ([`pack`]): a [`Found`] for each, with content |
//! | `put` | a pack: a [`Put`] for each, with content | [`Outcome`]s in the same order (JSON) |
//! | `changes` | [`Changes`] (JSON) | [`Changed`] (JSON), as soon as there is a change |

pub mod orders;
pub mod pack;

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where the gateway takes these calls, and no tenant's: backends' names hold no colon.
pub const ROUTE: &str = "files:sync";
/// The longest path, as `PATH_MAX` has it.
const PATH_BYTES: usize = 4096;
/// The longest name (`NAME_MAX`).
pub const NAME_BYTES: usize = 255;
/// A version's longest form.
const VERSION_BYTES: usize = 128;
/// Bits of a mode that are kept: who may read, write and execute. Never set-user-id and its kin.
pub const MODE_BITS: u16 = 0o777;
/// The longest wait of `changes`.
pub const LONGEST_WAIT_MILLIS: u64 = 30_000;
/// Files of one `get`, and records of one `put`, at most.
pub const MOST_IN_PACK: usize = 1024;

/// Where a file lies among its user's: names joined by `/`, none of them empty, `.` or `..`, and no
/// byte 0.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct FilePath(String);

/// Text that is no path of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` cannot be a file's path: {why}")]
pub struct InvalidPath {
    given: String,
    why: &'static str,
}

impl FilePath {
    /// Takes a path of the right form.
    ///
    /// # Errors
    /// [`InvalidPath`] says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, InvalidPath> {
        const SHOWN: usize = 200;
        match refusal(text) {
            None => Ok(Self(text.to_owned())),
            Some(why) => {
                let given = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
                Err(InvalidPath { given, why })
            }
        }
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The folder that it lies in (`None`: the top) and its name there.
    #[must_use]
    pub fn split(&self) -> (Option<&str>, &str) {
        match self.0.rsplit_once('/') {
            Some((folder, name)) => (Some(folder), name),
            None => (None, &self.0),
        }
    }

    /// The path of `name` in this folder.
    ///
    /// # Errors
    /// [`InvalidPath`].
    pub fn join(&self, name: &str) -> Result<Self, InvalidPath> {
        Self::parse(&format!("{}/{name}", self.0))
    }

    /// Every folder that it lies in, from the top down.
    pub fn folders(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').filter_map(|(at, _)| self.0.get(..at))
    }

    /// Whether it lies in `folder`, however deep.
    #[must_use]
    pub fn is_below(&self, folder: &str) -> bool {
        self.0.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
    }
}

fn refusal(text: &str) -> Option<&'static str> {
    if text.len() > PATH_BYTES {
        return Some("it is longer than 4096 bytes");
    }
    for name in text.split('/') {
        match name {
            "" => return Some("a name in it is empty"),
            "." | ".." => return Some("`.` and `..` are no names"),
            name if name.len() > NAME_BYTES => return Some("a name in it is longer than 255 bytes"),
            name if name.contains('\0') => return Some("it holds a byte 0"),
            _ => {}
        }
    }
    None
}

impl fmt::Display for FilePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_debug().fmt(formatter)
    }
}

impl std::borrow::Borrow<str> for FilePath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for FilePath {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        match refusal(&text) {
            None => Ok(Self(text)),
            Some(why) => Err(serde::de::Error::custom(why)),
        }
    }
}

/// SHA-256 of a file's bytes, holes counting as zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    fn parse(text: &str) -> Option<Self> {
        let nibble = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 32];
        let pairs = text.as_bytes().as_chunks::<2>();
        if pairs.0.len() != bytes.len() || !pairs.1.is_empty() {
            return None;
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs.0) {
            *byte = nibble(*high)? << 4 | nibble(*low)?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Digest({self})")
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 64];
        for (pair, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
            let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or(b'0');
            *pair = [digit(byte >> 4), digit(byte & 15)];
        }
        to.serialize_str(std::str::from_utf8(&text).map_err(serde::ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("no digest: expected 64 of 0-9a-f"))
    }
}

/// What the store calls one state of a file. Only the store knows what it means.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Version(String);

impl Version {
    /// A version with this name; `None` if it is too long for one.
    #[must_use]
    pub fn new(name: String) -> Option<Self> {
        (name.len() <= VERSION_BYTES).then_some(Self(name))
    }

    /// Its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(from)?).ok_or_else(|| serde::de::Error::custom("too long a version"))
    }
}

/// What lies at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A regular file.
    File {
        /// Its length.
        size: u64,
        /// Of its content; `None` for one that was put into the store by others and not read yet.
        digest: Option<Digest>,
        /// Who may do what ([`MODE_BITS`]).
        mode: u16,
        /// When it was written, in microseconds since 1970.
        modified: i64,
    },
    /// A folder.
    Folder {
        /// Who may do what ([`MODE_BITS`]).
        mode: u16,
    },
    /// A symbolic link, which nobody on the way ever follows.
    Link {
        /// Its text.
        target: String,
    },
}

/// One path in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where.
    pub path: FilePath,
    /// What.
    pub what: What,
    /// In which state.
    pub version: Version,
}

/// All that a user has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The state of the whole, for [`Changes`].
    pub revision: i64,
    /// In the order of their paths, so that a folder comes before what it holds.
    pub entries: Vec<Entry>,
}

/// Asks for files' content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Get {
    /// Which, at most [`MOST_IN_PACK`].
    pub files: Vec<Wanted>,
}

/// One file that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Where it is.
    pub path: FilePath,
    /// In which state it is wanted.
    pub version: Version,
    /// From which byte on.
    #[serde(default)]
    pub offset: u64,
}

/// What there is of a file that was asked for; its content follows if it is [`Found::Here`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Found {
    /// Content follows.
    Here,
    /// It is in another state by now, or gone: list again.
    Changed,
}

/// One change that a sandbox made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Put {
    /// Where.
    pub path: FilePath,
    /// The state that it replaces; `None`: there was nothing.
    pub base: Option<Version>,
    /// What it became.
    pub to: Became,
    /// Whether nobody knows what it replaces: it goes where nothing is, or beside what is there, also if
    /// the same sandbox wrote that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_doubtful: bool,
}

/// What a path became in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Became {
    /// A file, whose content follows.
    File {
        /// Its length when it was looked at.
        size: u64,
        /// Who may do what.
        mode: u16,
        /// When it was written, in microseconds since 1970.
        modified: i64,
    },
    /// A folder.
    Folder {
        /// Who may do what.
        mode: u16,
    },
    /// A symbolic link.
    Link {
        /// Its text.
        target: String,
    },
    /// Nothing any more.
    Gone,
}

/// What became of a [`Put`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is in the store, for good.
    Stored {
        /// As this; `None` if it is gone.
        entry: Option<Entry>,
    },
    /// Somebody was faster. What was put is kept under another name, which is told; a deletion is
    /// not carried out.
    Lost {
        /// Where it is kept, if there was something to keep.
        kept_as: Option<Entry>,
    },
    /// It is not in the store, and what was there before still is.
    Refused {
        /// Why, for people.
        why: String,
    },
    /// Its content did not arrive whole; nothing changed.
    Broken,
}

/// Waits for a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changes {
    /// The revision that is known.
    pub after: i64,
    /// How long at most, up to [`LONGEST_WAIT_MILLIS`].
    pub wait_millis: u64,
}

/// What there is to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The revision now.
    pub revision: i64,
    /// Whether others than the sandbox that asks changed something since the one that was known.
    pub by_others: bool,
}

/// How much is carried at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bounds {
    /// Files, folders and links.
    pub entries: u64,
    /// The length of one file.
    pub file_bytes: u64,
    /// The blocks of all files together.
    pub bytes: u64,
    /// Folders within folders.
    pub depth: usize,
}

impl Default for Bounds {
    /// A checked-out project with its dependencies has some 50,000 files; a sandbox's disk bounds the
    /// bytes before these do.
    fn default() -> Self {
        Self { entries: 200_000, file_bytes: 16 << 30, bytes: 16 << 30, depth: 64 }
    }
}

/// Something that was not carried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Its path, escaped.
    pub path: String,
    /// Why.
    pub why: String,
}

/// A file of which there are two now, because another conversation had changed it meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// Its path, escaped.
    pub path: String,
    /// The name beside it that it was kept under.
    pub kept_as: String,
}

/// What was carried and what not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Files, folders and links that were written.
    pub files: u64,
    /// The bytes of their content.
    pub bytes: u64,
    /// What went because it was deleted on the other side.
    pub deleted: u64,
    /// What was left, the first hundred by name.
    pub left: Vec<Left>,
    /// How much was left.
    pub left_count: u64,
    /// What was kept beside another conversation's, the first hundred by name.
    pub conflicts: Vec<Conflict>,
    /// How much was.
    pub conflict_count: u64,
}

impl Report {
    /// Names in a report; beyond, they are only counted.
    const NAMED: usize = 100;

    /// Notes that something was left, which ends nothing.
    pub fn leave(&mut self, path: &str, why: impl Into<String>) {
        self.left_count += 1;
        if self.left.len() < Self::NAMED {
            self.left.push(Left { path: path.escape_debug().to_string(), why: why.into() });
        }
    }

    /// Notes a file that there are two of now.
    pub fn conflict(&mut self, path: &str, kept_as: &str) {
        self.conflict_count += 1;
        if self.conflicts.len() < Self::NAMED {
            let [path, kept_as] = [path, kept_as].map(|it| it.escape_debug().to_string());
            self.conflicts.push(Conflict { path, kept_as });
        }
    }
}

#[cfg(test)]
mod tests;
