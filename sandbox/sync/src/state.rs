// SPDX-License-Identifier: Apache-2.0
//! What store and sandbox last agreed on, so that a change on either side can be told from one on the
//! other, and so that a sync that was killed goes on where it was.
//!
//! It is a log beside the user's tree, out of the agent's sight: one line for each path that changed,
//! the last one counts. It is written after the store has answered. A line that is missing makes a
//! file be looked at again, never be lost; a torn last line is dropped.
//!
//! What is about to be brought in has a line too, before it is: what is found in the tree after a kill was
//! brought, though nobody noted that. Taken for the agent's own it would be put back as a conflict with
//! itself, or come to life again, if somebody else has changed or removed it in the store meanwhile.
//!
//! INVARIANT: such a line holds for the sync that wrote it and for the next one. What is made later, of the
//! same bytes, is the agent's: taken for brought it would not be carried, or be removed.

use crate::content::digest;
use crate::tree::{Kind, Stamp, Tree};
use postern_common::files::orders::FILLED;
use postern_common::files::{Entry, FilePath, Version, What};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

const NAME: &str = "state";
/// The longest list of what was filled in: as many files as a user may have.
const FILLED_BYTES: u64 = 256 << 20;
/// A log with so many more lines than paths is written anew.
const SLACK: usize = 10_000;
/// The longest line: a path and a target, escaped.
const LINE_BYTES: u64 = 64 << 10;

/// What both sides have at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Agreed {
    pub(crate) what: What,
    /// The store's name for it.
    pub(crate) version: Version,
    /// What it looks like here.
    pub(crate) stamp: Stamp,
}

#[derive(Serialize)]
struct Line<'a> {
    path: &'a FilePath,
    agreed: Option<&'a Agreed>,
}

/// What is about to be brought in.
#[derive(Serialize)]
struct ComingLine<'a> {
    coming: &'a Entry,
}

/// Nothing that was about to be brought in is any more.
#[derive(Serialize)]
struct OverLine {
    over: (),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ReadLine {
    Agreed { path: FilePath, agreed: Option<Agreed> },
    Coming { coming: Entry },
    Over { over: () },
}

/// The log and what it says.
#[derive(Debug)]
pub(crate) struct State {
    folder: PathBuf,
    /// `None` where it cannot be written: what is known then is known until this process ends.
    log: Option<File>,
    lines: usize,
    is_new: bool,
    agreed: BTreeMap<FilePath, Agreed>,
    /// What is being brought in, or was when a sync was killed.
    coming: BTreeMap<FilePath, Entry>,
    fresh: Vec<u8>,
}

impl State {
    /// Reads the log in `folder`, or begins one.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join(NAME);
        let mut state = Self {
            folder: folder.to_owned(),
            log: None,
            lines: 0,
            is_new: true,
            agreed: BTreeMap::new(),
            coming: BTreeMap::new(),
            fresh: Vec::new(),
        };
        match File::open(&path) {
            Ok(file) => state.read(file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        // A disk that is shown only to be read.
        state.log = OpenOptions::new().append(true).create(true).open(&path).ok();
        Ok(state)
    }

    fn read(&mut self, file: File) -> io::Result<()> {
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            io::Read::take(&mut reader, LINE_BYTES).read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                return Ok(());
            }
            // One that is torn in the middle had no answer of the store's behind it.
            let Ok(read) = serde_json::from_slice(&line) else { continue };
            self.lines += 1;
            let (path, agreed) = match read {
                ReadLine::Agreed { path, agreed } => (path, agreed),
                ReadLine::Coming { coming } => {
                    self.coming.insert(coming.path.clone(), coming);
                    continue;
                }
                ReadLine::Over { over: () } => {
                    self.coming.clear();
                    continue;
                }
            };
            self.is_new = false;
            self.coming.remove(&path);
            match agreed {
                Some(agreed) => drop(self.agreed.insert(path, agreed)),
                None => drop(self.agreed.remove(&path)),
            }
        }
    }

    /// Notes what is about to be written into the tree, before it is.
    pub(crate) fn expect(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            self.line(&ComingLine { coming: &entry });
            self.coming.insert(entry.path.clone(), entry);
        }
        self.save();
    }

    /// Nothing more comes: what was not agreed on was not written.
    pub(crate) fn expect_nothing(&mut self) {
        if !std::mem::take(&mut self.coming).is_empty() {
            self.line(&OverLine { over: () });
            self.save();
        }
    }

    /// Agrees on what was being brought in when a sync was killed, where it is there: the very bytes. What the
    /// agent has made of it since is a change, as it would be of any file that was brought.
    pub(crate) fn take_coming(&mut self, tree: &Tree) {
        let found: Vec<(Entry, Stamp)> = self
            .coming
            .iter()
            .filter_map(|(path, entry)| Some((entry.clone(), brought(tree, path, &entry.what)?)))
            .collect();
        found.into_iter().for_each(|(entry, stamp)| self.agree(entry, stamp));
        self.expect_nothing();
        self.save();
    }

    /// Agrees on files that were put into the tree before anything ran in the sandbox, as a list beside
    /// this log names them: a line of JSON for each. One that is missing from either costs a comparison.
    pub(crate) fn take_filled(&mut self, tree: &Tree) {
        let path = self.folder.join(FILLED);
        let Ok(file) = File::open(&path) else { return };
        for line in BufReader::new(io::Read::take(file, FILLED_BYTES)).split(b'\n').map_while(Result::ok) {
            let Ok(entry) = serde_json::from_slice::<Entry>(&line) else { continue };
            let What::File { size, mode, .. } = &entry.what else { continue };
            let seen = tree.look(&entry.path).ok().flatten();
            let seen = seen.filter(|it| it.kind == Kind::File && it.stamp.size == *size && it.mode == *mode);
            if let Some(seen) = seen.filter(|_| self.get(entry.path.as_str()).is_none()) {
                self.agree(entry, seen.stamp);
            }
        }
        self.save();
        // Read again it would say nothing new.
        let _ = fs::remove_file(&path).is_ok();
    }

    /// Believes nothing of it any more; returns what it said.
    pub(crate) fn take_all(&mut self) -> BTreeMap<FilePath, Agreed> {
        self.coming.clear();
        std::mem::take(&mut self.agreed)
    }

    /// Whether nothing was ever agreed on.
    pub(crate) const fn is_new(&self) -> bool {
        self.is_new
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Agreed> {
        self.agreed.get(path)
    }

    /// All, in the order of their paths.
    pub(crate) const fn all(&self) -> &BTreeMap<FilePath, Agreed> {
        &self.agreed
    }

    /// What lies in a folder, however deep; `None`: everything.
    pub(crate) fn below<'a>(
        &'a self,
        folder: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a FilePath, &'a Agreed)> {
        let first = folder.map(|folder| format!("{folder}/")).unwrap_or_default();
        let begins = first.clone();
        self.agreed
            .range::<str, _>((std::ops::Bound::Included(&*first), std::ops::Bound::Unbounded))
            .take_while(move |(path, _)| path.as_str().starts_with(&begins))
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// Notes that both sides have this; written by [`State::save`].
    pub(crate) fn agree(&mut self, entry: Entry, stamp: Stamp) {
        let Entry { path, what, version } = entry;
        let agreed = Agreed { what, version, stamp };
        self.coming.remove(&path);
        self.note(&path, Some(&agreed));
        self.agreed.insert(path, agreed);
    }

    /// Notes that it looks like this now, though it still is what was agreed on.
    pub(crate) fn restamp(&mut self, path: &FilePath, stamp: Stamp) {
        let Some(agreed) = self.agreed.get_mut(path) else { return };
        agreed.stamp = stamp;
        let agreed = agreed.clone();
        self.note(path, Some(&agreed));
    }

    /// Notes that neither side has it.
    pub(crate) fn forget(&mut self, path: &FilePath) {
        self.coming.remove(path);
        if self.agreed.remove(path).is_some() {
            self.note(path, None);
        }
    }

    fn note(&mut self, path: &FilePath, agreed: Option<&Agreed>) {
        self.is_new = false;
        self.line(&Line { path, agreed });
    }

    fn line(&mut self, line: &impl Serialize) {
        if serde_json::to_writer(&mut self.fresh, line).is_ok() {
            self.fresh.push(b'\n');
            self.lines += 1;
        }
    }

    /// Writes all that is agreed on, and so forgets the rest for whoever reads the log later too. Where that
    /// fails the log goes: then nothing was ever agreed on.
    pub(crate) fn save_anew(&mut self) {
        if self.log.is_some() && self.rewrite().is_err() {
            // A disk that is full has room for that.
            let _ = fs::remove_file(self.folder.join(NAME)).is_ok();
        }
        self.fresh.clear();
    }

    /// Writes what was noted. A disk that is full costs only what is known after a restart.
    pub(crate) fn save(&mut self) {
        let known = self.agreed.len() + self.coming.len();
        if self.lines > known.saturating_mul(2).saturating_add(SLACK) && self.rewrite().is_ok() {
            return;
        }
        let Some(log) = &mut self.log else { return self.fresh.clear() };
        if log.write_all(&self.fresh).is_err() {
            // What is half written is dropped by whoever reads it; the next line begins anew.
            let _ = log.write_all(b"\n").is_ok();
        }
        self.fresh.clear();
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let (path, draft) = (self.folder.join(NAME), self.folder.join("state.draft"));
        let mut text = Vec::new();
        for (path, agreed) in &self.agreed {
            serde_json::to_writer(&mut text, &Line { path, agreed: Some(agreed) })?;
            text.push(b'\n');
        }
        for coming in self.coming.values() {
            serde_json::to_writer(&mut text, &ComingLine { coming })?;
            text.push(b'\n');
        }
        fs::write(&draft, &text)?;
        fs::rename(&draft, &path)?;
        self.log = Some(OpenOptions::new().append(true).open(&path)?);
        self.lines = self.agreed.len() + self.coming.len();
        self.fresh.clear();
        Ok(())
    }
}

/// What a file or link looks like here, if it is just what the store had.
fn brought(tree: &Tree, path: &FilePath, what: &What) -> Option<Stamp> {
    let seen = tree.look(path).ok()??;
    let is_it = match what {
        What::File { size, digest: wanted, mode, modified } => {
            let (mut file, opened) = tree.file(path.as_str()).ok()?;
            // Whatever is brought gets the time that was listed; what the agent writes has its own.
            let looks_so = seen.kind == Kind::File
                && (seen.stamp.size, seen.mode, seen.modified_micros()) == (*size, *mode, *modified);
            looks_so && opened.stamp == seen.stamp && wanted.is_some() && digest(&mut file, *size) == *wanted
        }
        What::Link { target } => {
            seen.kind == Kind::Link && tree.target(path).ok()?.as_deref() == Some(target.as_str())
        }
        What::Folder { .. } => seen.kind == Kind::Folder,
    };
    is_it.then_some(seen.stamp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::tests::stamp;
    use postern_common::files::Digest;

    fn path(text: &str) -> FilePath {
        FilePath::parse(text).expect("a path")
    }

    fn entry(at: &str, size: u64) -> Entry {
        let what = What::File { size, digest: Some(Digest([7; 32])), mode: 0o644, modified: 5 };
        Entry { path: path(at), what, version: Version::new(format!("v{size}")).expect("short") }
    }

    #[test]
    fn what_was_agreed_on_is_known_after_a_restart_and_what_was_not_saved_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut state = State::open(folder.path()).expect("opens");
        assert!(state.is_new());
        state.agree(entry("a\n\"b", 1), stamp(1));
        state.agree(entry("gone", 2), stamp(2));
        state.forget(&path("gone"));
        state.agree(entry("a\n\"b", 3), stamp(3));
        state.restamp(&path("a\n\"b"), stamp(4));
        state.save();
        state.agree(entry("late", 1), stamp(1));
        drop(state);
        let state = State::open(folder.path()).expect("opens");
        assert!(!state.is_new());
        assert_eq!(state.all().len(), 1);
        let agreed = state.get("a\n\"b").expect("is there");
        assert_eq!((agreed.version.as_str(), agreed.stamp), ("v3", stamp(4)));
    }

    #[test]
    fn what_is_not_believed_any_more_is_not_read_again_either() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut state = State::open(folder.path()).expect("opens");
        state.agree(entry("lost", 1), stamp(1));
        state.agree(entry("there", 2), stamp(2));
        state.save();
        assert_eq!(state.take_all().len(), 2);
        state.agree(entry("there", 2), stamp(3));
        state.save_anew();
        let again = State::open(folder.path()).expect("opens");
        assert_eq!(again.all().keys().map(FilePath::as_str).collect::<Vec<_>>(), ["there"]);
        assert_eq!(again.get("there").map(|it| it.stamp), Some(stamp(3)));
    }

    #[test]
    fn what_was_filled_in_is_agreed_on_once_and_only_if_it_looks_so() {
        let (folder, top) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let place = top.path().to_str().expect("text");
        let tree = Tree::open(place, place).expect("opens");
        for (name, text) in [("same", "12"), ("longer", "123"), ("known", "12")] {
            fs::write(top.path().join(name), text).expect("writes");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            fs::set_permissions(top.path().join(name), mode).expect("sets");
        }
        let mut state = State::open(folder.path()).expect("opens");
        state.agree(entry("known", 7), stamp(1));
        let lines: Vec<String> = ["same", "longer", "known", "missing"]
            .map(|name| serde_json::to_string(&entry(name, 2)).expect("JSON"))
            .into();
        fs::write(folder.path().join(FILLED), format!("{}\n{{torn", lines.join("\n"))).expect("writes");
        state.take_filled(&tree);
        assert_eq!(state.all().keys().map(FilePath::as_str).collect::<Vec<_>>(), ["known", "same"]);
        let seen = tree.look(&path("same")).expect("looks").expect("is there");
        let agreed = state.get("same").expect("is agreed on");
        assert_eq!((agreed.version.as_str(), agreed.stamp), ("v2", seen.stamp));
        assert_eq!(state.get("known").map(|it| it.version.as_str()), Some("v7"), "what it knew counts");
        assert!(!folder.path().join(FILLED).exists());
        assert_eq!(State::open(folder.path()).expect("opens").all().len(), 2, "also after a restart");
    }

    /// Killed between the tree and the log, a sync leaves what nobody noted: the next knows it all the same.
    #[test]
    fn what_was_being_brought_in_is_agreed_on_if_it_is_there_and_nothing_else_is() {
        let (folder, top) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let place = top.path().to_str().expect("text");
        let tree = Tree::open(place, place).expect("opens");
        let write = |name: &str, text: &str| {
            fs::write(top.path().join(name), text).expect("writes");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            fs::set_permissions(top.path().join(name), mode).expect("sets");
            let listed = std::time::UNIX_EPOCH + std::time::Duration::from_micros(5);
            let file = File::options().write(true).open(top.path().join(name)).expect("opens");
            file.set_modified(listed).expect("sets");
        };
        let of = |name: &str, text: &str, version: &str| {
            let mut hash = crate::content::Hash::new();
            hash.add(text.as_bytes());
            let (size, digest) = (text.len() as u64, Some(hash.end()));
            let what = What::File { size, digest, mode: 0o644, modified: 5 };
            Entry { path: path(name), what, version: Version::new(version.to_owned()).expect("short") }
        };
        let link = |name: &str, target: &str| Entry {
            what: What::Link { target: target.to_owned() },
            ..of(name, "", "v2")
        };
        let mut state = State::open(folder.path()).expect("opens");
        state.agree(of("replaced", "old", "v1"), stamp(1));
        state.agree(of("removed", "old", "v1"), stamp(2));
        state.expect(
            ["replaced", "brought", "changed", "missing", "noted", "removed", "own"]
                .map(|it| of(it, "new", "v2")),
        );
        state.expect([link("link", "brought"), link("other", "brought")]);
        state.agree(of("noted", "new", "v2"), stamp(3));
        state.forget(&path("removed"));
        assert!(!state.is_new());
        state.save();
        drop(state);
        for (name, text) in [("replaced", "new"), ("brought", "new"), ("changed", "own"), ("removed", "new")]
        {
            write(name, text);
        }
        fs::write(top.path().join("own"), "new").expect("the agent writes it, at a time of its own");
        std::os::unix::fs::symlink("brought", top.path().join("link")).expect("links");
        std::os::unix::fs::symlink("elsewhere", top.path().join("other")).expect("links");
        let mut state = State::open(folder.path()).expect("opens");
        state.take_coming(&tree);
        let agreed = |state: &State| -> Vec<(String, String)> {
            let text =
                |(path, agreed): (&FilePath, &Agreed)| (path.to_string(), agreed.version.as_str().to_owned());
            state.all().iter().map(text).collect()
        };
        let wanted = ["brought", "link", "noted", "replaced"].map(|name| (name.to_owned(), "v2".to_owned()));
        assert_eq!(agreed(&state), wanted);
    }

    /// A line counts once: what is made later is the agent's, though it looks the same.
    #[test]
    fn what_did_not_come_is_not_waited_for_for_ever() {
        let (folder, top) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let place = top.path().to_str().expect("text");
        let tree = Tree::open(place, place).expect("opens");
        let link = Entry { what: What::Link { target: "a".to_owned() }, ..entry("link", 0) };
        let make = || std::os::unix::fs::symlink("a", top.path().join("link")).expect("links");
        let knows = || {
            let mut state = State::open(folder.path()).expect("opens");
            state.take_coming(&tree);
            state.get("link").is_some()
        };
        let mut state = State::open(folder.path()).expect("opens");
        state.expect([link.clone()]);
        assert!(!knows(), "it is not there");
        make();
        assert!(!knows(), "the sync after the one that was killed has looked");
        state.expect([link.clone()]);
        state.expect_nothing();
        assert!(!knows(), "it did not come");
        state.expect([link]);
        assert!(knows(), "the control");
    }

    #[test]
    fn what_only_was_to_come_was_never_agreed_on_and_outlives_a_log_that_is_written_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut state = State::open(folder.path()).expect("opens");
        state.expect([entry("a", 1)]);
        assert!(State::open(folder.path()).expect("opens").is_new());
        for number in 0..SLACK as u64 + 10 {
            state.agree(entry("b", number), stamp(number));
        }
        state.save();
        let text = fs::read_to_string(folder.path().join(NAME)).expect("reads");
        assert_eq!(text.lines().count(), 2, "{text}");
        assert_eq!(state.take_all().len(), 1);
    }

    #[test]
    fn a_torn_line_loses_itself_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut state = State::open(folder.path()).expect("opens");
        state.agree(entry("a", 1), stamp(1));
        state.agree(entry("b", 1), stamp(1));
        state.save();
        let text = fs::read(folder.path().join(NAME)).expect("reads");
        for cut in 0..text.len() {
            fs::write(folder.path().join(NAME), &text[..cut]).expect("writes");
            let mut state = State::open(folder.path()).expect("opens");
            let whole = text[..cut].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(state.all().len(), whole);
            state.agree(entry("c", 1), stamp(1));
            state.save();
            state.agree(entry("d", 1), stamp(1));
            state.save();
            let again = State::open(folder.path()).expect("opens");
            assert!(again.get("d").is_some(), "what comes after a torn line counts, cut at {cut}");
        }
    }

    #[test]
    fn a_long_log_is_written_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut state = State::open(folder.path()).expect("opens");
        for number in 0..SLACK as u64 + 10 {
            state.agree(entry("a", number), stamp(number));
        }
        state.save();
        let text = fs::read_to_string(folder.path().join(NAME)).expect("reads");
        assert_eq!(text.lines().count(), 1);
        state.agree(entry("b", 1), stamp(1));
        state.save();
        assert_eq!(State::open(folder.path()).expect("opens").all().len(), 2);
    }

    #[test]
    fn what_lies_below_a_folder_is_not_what_begins_like_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut state = State::open(folder.path()).expect("opens");
        for name in ["a", "a/b", "a/b/c", "a-b", "ab", "b"] {
            state.agree(entry(name, 1), stamp(1));
        }
        let below =
            |folder| state.below(folder).map(|(path, _)| path.as_str().to_owned()).collect::<Vec<_>>();
        assert_eq!(below(Some("a")), ["a/b", "a/b/c"]);
        assert_eq!(below(None).len(), 6);
    }
}
