// SPDX-License-Identifier: Apache-2.0
//! Folders and links that syncs put, judged by what the store has: pure, so that every race is a test.

use super::calls::{entry_of_folder, entry_of_link};
use super::put::{NAMES, beside};
use crate::storage::{Edit, FilePath};
use postern_common::files::{Became, Entry, Outcome, Put, What};
use std::collections::BTreeMap;

/// What is there, as it becomes with each judgement.
pub(super) struct Shaping<'a> {
    now: BTreeMap<String, Entry>,
    suffix: &'a str,
    edits: Vec<Edit>,
}

impl<'a> Shaping<'a> {
    pub(super) fn new(entries: Vec<Entry>, suffix: &'a str) -> Self {
        let now = entries.into_iter().map(|entry| (entry.path.as_str().to_owned(), entry)).collect();
        Self { now, suffix, edits: Vec::new() }
    }

    /// What is to be done to the store.
    pub(super) fn into_edits(self) -> Vec<Edit> {
        self.edits
    }

    /// What a put comes to.
    pub(super) fn judge(&mut self, put: &Put) -> Outcome {
        let Ok(path) = FilePath::parse(put.path.as_str()) else {
            return Outcome::Refused { why: "its path is none".to_owned() };
        };
        if put.to == Became::Gone {
            return self.gone(put, &path);
        }
        let outcome = self.place(put, &path).and_then(|name| {
            let (entry, edit) = wanted(&put.to, &name)?;
            self.edits.push(edit);
            self.now.insert(name.as_str().to_owned(), entry.clone());
            let entry = Some(entry);
            let is_own = name == path;
            Some(if is_own { Outcome::Stored { entry } } else { Outcome::Lost { kept_as: entry } })
        });
        let why = "there is no name for it beside what is there";
        outcome.unwrap_or_else(|| Outcome::Refused { why: why.to_owned() })
    }

    fn gone(&mut self, put: &Put, path: &FilePath) -> Outcome {
        let there = self.now.get(path.as_str());
        let is_known = there.is_none_or(|entry| put.base.as_ref() == Some(&entry.version));
        let edit = match there.map(|entry| &entry.what) {
            None | Some(What::Folder { .. }) => Edit::NoFolder(path.clone()),
            Some(What::Link { .. }) if is_known => Edit::NoLink(path.clone()),
            // Somebody put something else there: that stays.
            Some(What::Link { .. } | What::File { .. }) => return Outcome::Lost { kept_as: None },
        };
        self.now.remove(path.as_str());
        self.edits.push(edit);
        Outcome::Stored { entry: None }
    }

    /// The first name that is free for it, its own before all others.
    fn place(&self, put: &Put, path: &FilePath) -> Option<FilePath> {
        let is_free = |name: &FilePath| {
            let Some(there) = self.now.get(name.as_str()) else { return true };
            let is_same = wanted(&put.to, name).is_some_and(|(entry, _)| entry.what == there.what);
            is_same
                || match (&there.what, &put.to) {
                    (What::Folder { .. }, Became::Folder { .. }) => true,
                    (What::Link { .. }, Became::Link { .. }) => put.base.as_ref() == Some(&there.version),
                    _ => false,
                }
        };
        if is_free(path) {
            return Some(path.clone());
        }
        (1..=NAMES).find_map(|number| beside(path, None, self.suffix, number).filter(is_free))
    }
}

fn wanted(to: &Became, name: &FilePath) -> Option<(Entry, Edit)> {
    match to {
        Became::Link { target } => {
            Some((entry_of_link(name.as_str(), target.clone())?, Edit::Link(name.clone(), target.clone())))
        }
        Became::Folder { mode } => {
            let mode = u32::from(*mode);
            Some((entry_of_folder(name.as_str(), mode)?, Edit::Folder(name.clone(), mode)))
        }
        Became::File { .. } | Became::Gone => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_common::files::{FilePath as Path, Version};

    const SUFFIX: &str = ".conflict-sandbox-aaaaaaaaaaaa";

    fn link(at: &str, target: &str) -> Entry {
        entry_of_link(at, target.to_owned()).expect("an entry")
    }

    fn put(at: &str, base: Option<&Entry>, to: Became) -> Put {
        let base = base.map(|it| it.version.clone());
        Put { path: Path::parse(at).expect("a path"), base, to, is_doubtful: false }
    }

    fn to_link(target: &str) -> Became {
        Became::Link { target: target.to_owned() }
    }

    fn file(at: &str) -> Entry {
        let what = What::File { size: 1, digest: None, mode: 0o644, modified: 0 };
        let version = Version::new("file:1".to_owned()).expect("short");
        Entry { path: Path::parse(at).expect("a path"), what, version }
    }

    #[test]
    fn a_link_that_lost_is_kept_beside_the_other() {
        let there = link("l", "theirs");
        let mut shaping = Shaping::new(vec![there], SUFFIX);
        let before = link("l", "before");
        let Outcome::Lost { kept_as: Some(kept) } = shaping.judge(&put("l", Some(&before), to_link("ours")))
        else {
            panic!("is not told as lost");
        };
        assert_eq!(kept.path.as_str(), format!("l{SUFFIX}"));
        let again = shaping.judge(&put("l", Some(&before), to_link("ours")));
        assert_eq!(again, Outcome::Lost { kept_as: Some(kept) }, "once, however often it is asked for");
        let third = shaping.judge(&put("l", Some(&before), to_link("third")));
        assert!(
            matches!(third, Outcome::Lost { kept_as: Some(entry) } if entry.path.as_str().ends_with("-2"))
        );
    }

    #[test]
    fn a_link_that_is_what_was_agreed_on_is_replaced_and_removed() {
        let there = link("l", "old");
        let mut shaping = Shaping::new(vec![there.clone()], SUFFIX);
        let stored = shaping.judge(&put("l", Some(&there), to_link("new")));
        assert!(matches!(stored, Outcome::Stored { entry: Some(_) }));
        let late = shaping.judge(&put("l", Some(&there), Became::Gone));
        assert_eq!(late, Outcome::Lost { kept_as: None }, "a deletion that comes too late");
        let now = link("l", "new");
        assert_eq!(shaping.judge(&put("l", Some(&now), Became::Gone)), Outcome::Stored { entry: None });
        assert_eq!(shaping.into_edits().len(), 2);
    }

    #[test]
    fn a_folder_meets_a_folder_and_never_takes_a_files_place() {
        let mut shaping = Shaping::new(vec![file("f")], SUFFIX);
        let folder = Became::Folder { mode: 0o700 };
        let first = shaping.judge(&put("d", None, folder.clone()));
        assert!(matches!(first, Outcome::Stored { .. }));
        let second = shaping.judge(&put("d", None, Became::Folder { mode: 0o755 }));
        assert!(matches!(second, Outcome::Stored { .. }), "the last mode counts");
        let beside = shaping.judge(&put("f", None, folder));
        assert!(
            matches!(beside, Outcome::Lost { kept_as: Some(entry) } if entry.path.as_str() == format!("f{SUFFIX}"))
        );
        assert_eq!(shaping.judge(&put("f", None, Became::Gone)), Outcome::Lost { kept_as: None });
        assert_eq!(shaping.judge(&put("never", None, Became::Gone)), Outcome::Stored { entry: None });
    }
}
