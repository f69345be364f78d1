// SPDX-License-Identifier: Apache-2.0
//! What objects cannot hold: modes, links, folders, paths that are no object's name. One JSON
//! object for each user, changed only by conditional puts.

use super::path::{FilePath, UserPrefix};
use super::types::{Digest, Edit, FILE_MODE, FOLDER_MODE, MODE_BITS};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The longest manifest: every file of a full user with a mode of its own, its path 80 bytes long.
pub(super) const MANIFEST_BYTES: u64 = 32 << 20;

/// A user's manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// Modes of files that are not the usual one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) modes: BTreeMap<FilePath, u32>,
    /// Folders that are to be there without files, or with a mode of their own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) folders: BTreeMap<FilePath, u32>,
    /// Symbolic links, and what they say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) links: BTreeMap<FilePath, String>,
    /// Files whose object bears a digest instead of their path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) odd: BTreeMap<Digest, FilePath>,
}

/// What a file with a mode of its own takes in a manifest: `"": ,` and three digits beside its path.
pub(super) fn length_of_mode(path: &FilePath) -> u64 {
    length_of(path).saturating_add(8)
}

/// What an odd name takes in a manifest: `"": ,` and a digest's 64 digits beside it.
pub(super) fn length_of_odd(path: &FilePath) -> u64 {
    length_of(path).saturating_add(70)
}

fn length_of(path: &FilePath) -> u64 {
    serde_json::to_string(path).map_or(u64::MAX, |text| text.len() as u64)
}

impl Manifest {
    /// Makes a change; whether anything is different now.
    pub(super) fn apply(&mut self, edit: &Edit) -> bool {
        match edit {
            Edit::Folder(path, mode) => {
                let mode = mode & MODE_BITS;
                self.links.remove(path).is_some() | (self.folders.insert(path.clone(), mode) != Some(mode))
            }
            Edit::NoFolder(path) => self.folders.remove(path).is_some(),
            Edit::Link(path, target) => {
                self.folders.remove(path).is_some()
                    | (self.links.insert(path.clone(), target.clone()).as_ref() != Some(target))
            }
            Edit::NoLink(path) => self.links.remove(path).is_some(),
            Edit::Mode(path, mode) => match mode & MODE_BITS {
                FILE_MODE => self.modes.remove(path).is_some(),
                mode => self.modes.insert(path.clone(), mode) != Some(mode),
            },
        }
    }

    /// Notes that a file is there; whether anything is different now.
    pub(super) fn written(&mut self, prefix: &UserPrefix, path: &FilePath, mode: Option<u32>) -> bool {
        let was_other = self.links.remove(path).is_some() | self.folders.remove(path).is_some();
        let is_new_mode = mode.is_some_and(|mode| self.apply(&Edit::Mode(path.clone(), mode)));
        let is_new_name = prefix.is_odd(path)
            && self.odd.insert(Digest::of(path.as_str().as_bytes()), path.clone()).is_none();
        was_other | is_new_mode | is_new_name
    }

    /// Notes that a file is gone; whether anything is different now.
    pub(super) fn removed(&mut self, path: &FilePath) -> bool {
        let had_name = self.odd.remove(&Digest::of(path.as_str().as_bytes())).is_some();
        self.modes.remove(path).is_some() | had_name
    }

    /// The mode of a file.
    pub(super) fn mode(&self, path: &FilePath) -> Option<u32> {
        self.modes.get(path).copied()
    }

    /// Folders that files alone would not make so: of those that hold something only the ones with
    /// a mode of their own.
    pub(super) fn told_folders<'a>(
        &'a self,
        has_files: &'a std::collections::HashSet<&str>,
    ) -> impl Iterator<Item = (FilePath, u32)> + 'a {
        self.folders
            .iter()
            .filter(move |(path, mode)| **mode != FOLDER_MODE || !has_files.contains(path.as_str()))
            .map(|(path, mode)| (path.clone(), *mode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> FilePath {
        text.parse().expect("a path")
    }

    #[test]
    fn an_edit_says_whether_it_changed_anything_and_can_be_repeated() {
        let mut manifest = Manifest::default();
        for (edit, changes) in [
            (Edit::Folder(path("a"), 0o4700), true),
            (Edit::Folder(path("a"), 0o700), false),
            (Edit::Link(path("a"), "../b".to_owned()), true),
            (Edit::Link(path("a"), "../b".to_owned()), false),
            (Edit::NoFolder(path("a")), false),
            (Edit::NoLink(path("a")), true),
            (Edit::Mode(path("run"), 0o755), true),
            (Edit::Mode(path("run"), 0o6755), false),
            (Edit::Mode(path("run"), FILE_MODE), true),
            (Edit::Mode(path("run"), FILE_MODE), false),
        ] {
            assert_eq!(manifest.apply(&edit), changes, "{edit:?}");
        }
        assert_eq!(manifest, Manifest::default());
    }

    #[test]
    fn a_file_with_an_odd_name_is_found_by_its_digest_until_it_is_gone() {
        let prefix = UserPrefix::of(&"acme".parse().expect("a tenant"), &"u".parse().expect("a user"));
        let mut manifest = Manifest::default();
        assert!(!manifest.written(&prefix, &path("plain"), None));
        assert!(manifest.written(&prefix, &path("a\nb"), Some(FILE_MODE)));
        assert_eq!(manifest.odd.get(&Digest::of(b"a\nb")), Some(&path("a\nb")));
        let text = serde_json::to_vec(&manifest).expect("writes");
        assert_eq!(serde_json::from_slice::<Manifest>(&text).expect("reads"), manifest);
        assert!(manifest.removed(&path("a\nb")));
        assert_eq!(manifest, Manifest::default());
    }
}
