// SPDX-License-Identifier: Apache-2.0
//! Paths of users' files, and the names of the objects that hold them.
//!
//! ```text
//! tenants/{tenant}/users/{user}/files/{path}      a file, under its own name
//! tenants/{tenant}/users/{user}/odd/{digest}      a file whose path no store takes as it is
//! tenants/{tenant}/users/{user}/manifest.json     what objects cannot hold
//! tenants/{tenant}/users/{user}/archive/{path}    what retention took out of sight (archive-odd/ likewise)
//! tenants/{tenant}/users/{user}/archive-later/{content}/{path}    what it took when that was there already
//! staging/{upload}/{part}                         an upload that nobody reads before it is complete
//! ```
//!
//! INVARIANT: a [`Key`] is only made from a [`UserPrefix`] or an [`UploadId`], and nothing that a
//! caller says adds a `..`, an empty segment or a second `/` to it: no key of one user lies in
//! another user's prefix.

use super::Digest;
use super::archive::ArchivePlace;
use postern_common::id::{TenantId, UploadId, UserId, percent_encoded};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Where parts of uploads lie until they are complete.
pub(super) const STAGING: &str = "staging";
/// Files that have not got their name yet begin so; a user's never do.
pub(super) const DRAFT: &str = ".postern-draft-";
/// The longest name of a file or folder: what Linux's file systems have.
const NAME_BYTES: usize = 255;
/// The longest path, as `PATH_MAX` is.
const PATH_BYTES: usize = 4096;
/// Folders within folders.
const DEPTH: usize = 128;
/// The longest name of an object: S3, Azure and GCS all end at 1024.
const KEY_BYTES: usize = 1024;
/// A user's id that gets longer than this when it is encoded is stored under its digest.
const USER_BYTES: usize = 200;

/// A text that is no path of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{shown}` is no path of a file: {why}")]
pub(crate) struct BadPath {
    shown: String,
    why: &'static str,
}

/// The path of a file or folder of a user: names between single slashes, none of them `.` or `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub(crate) struct FilePath(Arc<str>);

impl FilePath {
    /// Reads a path.
    ///
    /// # Errors
    /// [`BadPath`] says what it has that no path has.
    pub(crate) fn parse(text: &str) -> Result<Self, BadPath> {
        match mistake(text) {
            None => Ok(Self(text.into())),
            Some(why) => {
                let shown = text.chars().take(64).flat_map(char::escape_debug).collect();
                Err(BadPath { shown, why })
            }
        }
    }

    /// The path as text.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The folders that it lies in, the outermost first.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').filter_map(|(end, _)| self.0.get(..end))
    }

    /// Whether a store takes it as the end of an object's name, byte for byte.
    fn is_plain(&self) -> bool {
        // Azure drops dots and slashes at the end of a name and takes a backslash for a slash;
        // object_store and XML take no control characters, XML no U+FFFE and U+FFFF.
        let is_plain_name = |name: &str| !name.ends_with('.');
        let is_bent = |c: char| c.is_control() || matches!(c, '\\' | '\u{fffe}' | '\u{ffff}');
        self.0.split('/').all(is_plain_name) && !self.0.chars().any(is_bent)
    }
}

fn mistake(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        return Some("it is empty");
    }
    if text.len() > PATH_BYTES {
        return Some("it is longer than 4096 bytes");
    }
    if text.contains('\0') {
        return Some("it has a NUL character");
    }
    let mut depth = 0;
    for name in text.split('/') {
        depth += 1;
        match name {
            "" => {
                return Some("a name in it is empty; there is no `/` at its begin or end, nor two in a row");
            }
            "." | ".." => return Some("`.` and `..` are no names"),
            _ if name.len() > NAME_BYTES => return Some("a name in it is longer than 255 bytes"),
            _ if name.starts_with(DRAFT) => return Some("names that begin so are ours"),
            _ => {}
        }
    }
    (depth > DEPTH).then_some("it lies deeper than 128 folders")
}

impl FromStr for FilePath {
    type Err = BadPath;
    fn from_str(text: &str) -> Result<Self, BadPath> {
        Self::parse(text)
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_debug().fmt(formatter)
    }
}

impl fmt::Debug for FilePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, formatter)
    }
}

impl<'de> Deserialize<'de> for FilePath {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <Cow<'de, str>>::deserialize(from)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Everything of one user in a store, and nothing else.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct UserPrefix(Arc<str>);

impl UserPrefix {
    /// The prefix of a tenant's user.
    pub(super) fn of(tenant: &TenantId, user: &UserId) -> Self {
        let encoded = percent_encoded(user.as_str());
        // `~` is never left by the encoding: no other user's id comes to this.
        let user = if encoded.len() > USER_BYTES {
            format!("~{}", Digest::of(user.as_str().as_bytes()))
        } else {
            encoded
        };
        Self(format!("{}/users/{user}", tenant_prefix(tenant)).into())
    }

    /// The prefix as text, without a slash at its end.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The object of a file.
    pub(super) fn file(&self, path: &FilePath) -> Key {
        let name = format!("{}/files/{}", self.0, path.as_str());
        if path.is_plain() && name.len() <= KEY_BYTES { Key(name.into()) } else { self.odd(path) }
    }

    /// The object of a file whose path no store takes.
    fn odd(&self, path: &FilePath) -> Key {
        Key(format!("{}/odd/{}", self.0, Digest::of(path.as_str().as_bytes())).into())
    }

    /// Whether a file's object does not bear its path.
    pub(super) fn is_odd(&self, path: &FilePath) -> bool {
        self.file(path) == self.odd(path)
    }

    /// The object of a file in the archive.
    ///
    /// INVARIANT: no two paths share one, nor two contents of a path beyond its first.
    pub(super) fn archived(&self, path: &FilePath, place: ArchivePlace) -> Key {
        let odd = Digest::of(path.as_str().as_bytes());
        let (name, other) = match place {
            ArchivePlace::First => {
                (Some(format!("{}/archive/{}", self.0, path.as_str())), format!("archive-odd/{odd}"))
            }
            ArchivePlace::Later(content) => (
                Some(format!("{}/archive-later/{content}/{}", self.0, path.as_str())),
                format!("archive-odd/{odd}.{content}"),
            ),
            ArchivePlace::Apart(content) => (None, format!("archive-odd/{odd}.{content}")),
        };
        let name = name.filter(|name| path.is_plain() && name.len() <= KEY_BYTES);
        Key(name.unwrap_or_else(|| format!("{}/{other}", self.0)).into())
    }

    /// No object: what stands for all of the user where they are locked.
    pub(super) fn of_user(&self) -> Key {
        Key(Arc::clone(&self.0))
    }

    /// The object of what objects cannot hold.
    pub(super) fn manifest(&self) -> Key {
        Self::manifest_in(&self.0)
    }

    /// The same, of the user whose prefix this text is.
    pub(super) fn manifest_in(prefix: &str) -> Key {
        Key(format!("{prefix}/manifest.json").into())
    }

    /// What an object below this prefix is; `None` for what is no file of the user.
    pub(super) fn named(&self, key: &str) -> Option<Named> {
        let rest = key.strip_prefix(&*self.0)?.strip_prefix('/')?;
        if let Some(path) = rest.strip_prefix("files/") {
            return FilePath::parse(path).ok().map(Named::Plain);
        }
        rest.strip_prefix("odd/")?.parse().ok().map(Named::Odd)
    }
}

impl fmt::Debug for UserPrefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What an object's name says of its file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// Its path.
    Plain(FilePath),
    /// Its path's digest.
    Odd(Digest),
}

/// Everything of one tenant, without a slash at its end.
pub(super) fn tenant_prefix(tenant: &TenantId) -> String {
    format!("tenants/{}", tenant.as_str())
}

/// The name of one object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key(Arc<str>);

impl Key {
    /// The object of a part of an upload.
    pub(super) fn staged(upload: &UploadId, part: u32) -> Self {
        Self(format!("{}/{part}", staging_prefix(upload)).into())
    }

    /// The name as text.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Everything of one upload, without a slash at its end.
pub(super) fn staging_prefix(upload: &UploadId) -> String {
    format!("{STAGING}/{}", upload.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(tenant: &str, user: &str) -> UserPrefix {
        UserPrefix::of(&tenant.parse().expect("a tenant"), &user.parse().expect("a user"))
    }

    #[test]
    fn what_is_no_path_is_refused_and_says_why() {
        for (text, why) in [
            ("", "empty"),
            ("/etc/passwd", "empty"),
            ("a//b", "empty"),
            ("a/", "empty"),
            ("..", "no names"),
            ("a/../b", "no names"),
            ("./a", "no names"),
            ("a\0b", "NUL"),
            (".postern-draft-1", "ours"),
            ("a/.postern-draft-1/b", "ours"),
        ] {
            let refused = FilePath::parse(text).expect_err(text).to_string();
            assert!(refused.contains(why), "{text:?}: {refused}");
        }
        assert!(FilePath::parse(&"n".repeat(256)).is_err());
        assert!(FilePath::parse(&"n".repeat(255)).is_ok());
        assert!(FilePath::parse(&vec!["d"; 129].join("/")).is_err());
    }

    #[test]
    fn a_path_that_a_store_would_bend_is_kept_under_its_digest() {
        let user = prefix("acme", "u1");
        for odd in ["a\nb", "a\\..\\b", "ends.", "dir./file", "bell\u{7}", "c1\u{85}"] {
            assert!(user.is_odd(&FilePath::parse(odd).expect("a path")), "{odd:?}");
        }
        assert!(user.is_odd(&FilePath::parse(&vec!["n".repeat(200); 6].join("/")).expect("a path")));
        for plain in ["a b/ü/%2e%2e/#?&+.txt", "\"quoted\"", ".hidden", "...a", "~"] {
            let path = FilePath::parse(plain).expect("a path");
            assert!(!user.is_odd(&path), "{plain:?}");
            assert_eq!(user.named(user.file(&path).as_str()), Some(Named::Plain(path)));
        }
    }

    #[test]
    fn users_that_look_alike_have_prefixes_of_their_own() {
        let long = "ü".repeat(64);
        let ids = ["a", "A", "a/b", "a%2Fb", "..", ".", "é", "e\u{301}", "a.", "a ", "~a", &long];
        let mut prefixes: Vec<String> = ids.map(|id| prefix("acme", id).as_str().to_owned()).to_vec();
        for one in &prefixes {
            assert_eq!(one.split('/').count(), 4, "{one}");
            assert!(
                one.split('/').all(|name| !matches!(name, "." | ".." | "") && name.len() <= 255),
                "{one}"
            );
        }
        prefixes.sort();
        prefixes.dedup();
        assert_eq!(prefixes.len(), ids.len());
    }

    proptest! {
        #[test]
        fn no_path_leaves_its_users_prefix(text in "(\\PC|[./\\\\\\x00-\\x1f%]){0,40}") {
            let Ok(path) = FilePath::parse(&text) else { return Ok(()) };
            let (user, other) = (prefix("acme", "u1"), prefix("acme", "u"));
            let key = user.file(&path);
            prop_assert!(key.as_str().starts_with("tenants/acme/users/u1/"));
            prop_assert!(key.as_str().split('/').all(|name| !matches!(name, "" | "." | "..")));
            prop_assert_eq!(other.named(key.as_str()), None);
            prop_assert!(key.as_str().len() <= KEY_BYTES);
        }

        #[test]
        fn two_paths_never_share_an_object(one in "[a-c./\\\\\n]{1,6}", two in "[a-c./\\\\\n]{1,6}") {
            let (Ok(one), Ok(two)) = (FilePath::parse(&one), FilePath::parse(&two)) else { return Ok(()) };
            let user = prefix("acme", "u1");
            prop_assert_eq!(one == two, user.file(&one) == user.file(&two));
            let (x, y) = (Digest::of(b"x"), Digest::of(b"y"));
            let places =
                |content| [ArchivePlace::First, ArchivePlace::Later(content), ArchivePlace::Apart(content)];
            for (of_one, of_two) in places(x).into_iter().flat_map(|a| places(x).map(|b| (a, b))) {
                let is_shared = user.archived(&one, of_one) == user.archived(&two, of_two);
                prop_assert!(!is_shared || one == two, "{:?} {:?}", of_one, of_two);
                prop_assert!(one != two || of_one != of_two || is_shared);
            }
            for (of_one, of_two) in places(x).into_iter().flat_map(|a| places(y).map(|b| (a, b))) {
                let is_shared = user.archived(&one, of_one) == user.archived(&two, of_two);
                prop_assert_eq!(is_shared, one == two && of_one == of_two, "{:?} {:?}", of_one, of_two);
            }
        }
    }
}
