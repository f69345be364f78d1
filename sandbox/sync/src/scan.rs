// SPDX-License-Identifier: Apache-2.0
//! Walks the tree and tells what is there, by names and without opening a file.
//!
//! What cannot be carried (odd names, FIFOs, sockets, devices, what is over a bound) is named in the
//! report and left. Nothing that an agent does to its files is an error.

use crate::ignore::{self, Ignored};
use crate::tree::{Kind, Seen, Tree, look_in};
use postern_common::files::{Bounds, FilePath, Report};
use rustix::fd::OwnedFd;
use rustix::fs::Dir;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;

/// How deep a walk goes from where it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// All the way down.
    Whole,
    /// The folder, and all of those in it that are not known yet.
    Folder,
}

/// What a walk found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Everything that can be carried, by path.
    pub(crate) seen: BTreeMap<FilePath, Seen>,
    /// Folders that hold nothing that was seen.
    pub(crate) empty: BTreeSet<FilePath>,
    /// What cannot.
    pub(crate) report: Report,
    /// Paths of which nothing is known, nor of what lies below them.
    pub(crate) unknown: BTreeSet<String>,
    /// Folders of which is known that they are there, and nothing of what they hold.
    pub(crate) closed: BTreeSet<String>,
    /// It was broken off, since there is too much.
    pub(crate) is_cut: bool,
}

impl Scan {
    /// Whether it is known that nothing lies at this path that could be carried.
    pub(crate) fn lacks(&self, path: &FilePath) -> bool {
        let is_no_folder = |above: &str| self.seen.get(above).is_some_and(|it| it.kind != Kind::Folder);
        let is_hidden = |folder: &str| self.unknown.contains(folder) || self.closed.contains(folder);
        // Also where the rest of the tree was not seen: else what took a folder's place would wait for ever
        // for room in the store (`push`).
        path.folders().any(is_no_folder)
            || (!self.is_cut
                && !self.seen.contains_key(path)
                && !self.unknown.contains("")
                && !self.unknown.contains(path.as_str())
                && !path.folders().any(is_hidden))
    }
}

/// What bounds a walk, and what it leaves out.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) bounds: Bounds,
    pub(crate) ignored: Ignored,
}

impl Rules {
    /// With the patterns that the tree has now.
    pub(crate) fn of(tree: &Tree, bounds: Bounds) -> Self {
        let mut text = String::new();
        let ignored = match tree.file(ignore::NAME) {
            Ok((file, seen)) if seen.kind == Kind::File => {
                let read = file.take(ignore::BYTES).read_to_string(&mut text);
                read.map_or_else(|_no_text| Ignored::default(), |_| Ignored::parse(&text))
            }
            _ => Ignored::default(),
        };
        Self { bounds, ignored }
    }
}

struct Walk<'a> {
    rules: &'a Rules,
    depth: Depth,
    is_known: &'a dyn Fn(&str) -> bool,
    scan: Scan,
    entries: u64,
    bytes: u64,
}

/// Walks from a folder (`None`: the top). `is_known` tells [`Depth::Folder`] where not to go on.
pub(crate) fn scan(
    tree: &Tree,
    from: Option<&FilePath>,
    rules: &Rules,
    depth: Depth,
    is_known: &dyn Fn(&str) -> bool,
) -> Scan {
    let mut walk = Walk { rules, depth, is_known, scan: Scan::default(), entries: 0, bytes: 0 };
    let place = from.map_or("", FilePath::as_str);
    match tree.folder(from.map(FilePath::as_str)) {
        Ok(folder) => drop(walk.folder(&folder, place, from.map_or(0, |it| it.folders().count() + 1))),
        // Gone, or something else by now: whoever looks at the folder above sees that.
        Err(_gone) => drop(walk.scan.unknown.insert(place.to_owned())),
    }
    walk.scan
}

impl Walk<'_> {
    /// Returns whether something was seen in it.
    fn folder(&mut self, folder: &OwnedFd, path: &str, depth: usize) -> bool {
        let entries = match Dir::read_from(folder) {
            Ok(entries) => entries,
            Err(_unreadable) => return self.unreadable(path),
        };
        let mut holds = false;
        for entry in entries {
            let Ok(entry) = entry else { return self.unreadable(path) };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            holds = true;
            self.entries += 1;
            if self.entries > self.rules.bounds.entries {
                return self.cut(path);
            }
            match name.to_str() {
                Ok(name) => self.entry(folder, path, name, depth),
                Err(_no_text) => {
                    self.scan.report.leave(&joined(path, &name.to_string_lossy()), "its name is not UTF-8");
                }
            }
        }
        holds
    }

    fn entry(&mut self, folder: &OwnedFd, above: &str, name: &str, depth: usize) {
        let text = joined(above, name);
        let path = match FilePath::parse(&text) {
            Ok(path) => path,
            Err(_too_long) => return self.leave(above, name, "its path is too long"),
        };
        let seen = match look_in(folder, name) {
            Ok(Some(seen)) => seen,
            Ok(None) => return,
            Err(_unreadable) => return self.leave(above, name, "it could not be looked at"),
        };
        if self.rules.ignored.matches(&text, seen.kind == Kind::Folder) {
            self.scan.unknown.insert(text);
            return;
        }
        match seen.kind {
            Kind::Folder => self.subfolder(folder, path, name, seen, depth),
            Kind::File => self.file(path, seen),
            Kind::Link => drop(self.scan.seen.insert(path, seen)),
            Kind::Other => self.leave(above, name, "it is a FIFO, a socket or a device"),
        }
    }

    fn file(&mut self, path: FilePath, seen: Seen) {
        let bounds = &self.rules.bounds;
        if seen.stamp.size > bounds.file_bytes {
            let why = format!("it is longer than the {} bytes that a file may have", bounds.file_bytes);
            self.scan.report.leave(path.as_str(), why);
            self.scan.unknown.insert(path.as_str().to_owned());
            return;
        }
        let taken = seen.allocated.min(seen.stamp.size);
        if self.bytes.saturating_add(taken) > bounds.bytes {
            self.scan.report.leave(path.as_str(), "there are too many bytes");
            self.scan.unknown.insert(path.as_str().to_owned());
            return;
        }
        self.bytes += taken;
        self.scan.seen.insert(path, seen);
    }

    fn subfolder(&mut self, above: &OwnedFd, path: FilePath, name: &str, seen: Seen, depth: usize) {
        if depth >= self.rules.bounds.depth {
            let place = path.split().0.unwrap_or("").to_owned();
            return self.leave(&place, name, "it lies too deep");
        }
        let is_known = self.depth == Depth::Folder && (self.is_known)(path.as_str());
        if is_known {
            self.scan.closed.insert(path.as_str().to_owned());
            self.scan.seen.insert(path, seen);
            return;
        }
        // By its name in the folder that is open: a link in its place is refused.
        let flags = rustix::fs::OFlags::RDONLY
            | rustix::fs::OFlags::DIRECTORY
            | rustix::fs::OFlags::NOFOLLOW
            | rustix::fs::OFlags::CLOEXEC;
        let resolve = rustix::fs::ResolveFlags::BENEATH
            | rustix::fs::ResolveFlags::NO_MAGICLINKS
            | rustix::fs::ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(above, name, flags, rustix::fs::Mode::empty(), resolve) {
            Ok(folder) => {
                if !self.folder(&folder, path.as_str(), depth + 1) {
                    self.scan.empty.insert(path.clone());
                }
                self.scan.seen.insert(path, seen);
            }
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {}
            Err(_unreadable) => {
                self.unreadable(path.as_str());
                self.scan.seen.insert(path, seen);
            }
        }
    }

    /// Nothing is told of each of a million: what is left is what comes after here.
    fn cut(&mut self, path: &str) -> bool {
        if !self.scan.is_cut {
            let shown = if path.is_empty() { "." } else { path };
            let why = format!(
                "there are more than {} files and folders: from here on they are left",
                self.rules.bounds.entries
            );
            self.scan.report.leave(shown, why);
        }
        self.scan.is_cut = true;
        true
    }

    fn unreadable(&mut self, path: &str) -> bool {
        let shown = if path.is_empty() { "." } else { path };
        self.scan.report.leave(shown, "it is not readable");
        self.scan.unknown.insert(path.to_owned());
        true
    }

    fn leave(&mut self, above: &str, name: &str, why: &'static str) {
        let path = joined(above, name);
        self.scan.report.leave(&path, why);
        self.scan.unknown.insert(path);
    }
}

fn joined(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

#[cfg(test)]
mod tests;
