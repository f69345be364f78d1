// SPDX-License-Identifier: Apache-2.0
//! Notices that something in the tree changes: which folders to look at again.
//!
//! gVisor keeps files open, so that a write is seen when it happens and its end is not: whoever listens
//! waits until it has been quiet for a moment. What is written through a mapping is not seen at all,
//! and events may be lost: a scan finds both.

use crate::tree::Tree;
use postern_common::files::FilePath;
use rustix::fd::{AsRawFd as _, OwnedFd};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Room for the events of one read.
const BUFFER: usize = 64 << 10;
/// Reads that wait to be looked at.
const READS: usize = 64;

/// What changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Dirty {
    /// In these folders something changed; `""` is the top.
    pub(crate) folders: BTreeSet<String>,
    /// Anything may have.
    pub(crate) all: bool,
}

impl Dirty {
    pub(crate) fn is_empty(&self) -> bool {
        self.folders.is_empty() && !self.all
    }

    pub(crate) fn add(&mut self, more: Self) {
        self.all |= more.all;
        self.folders.extend(more.folders);
    }
}

/// Events of one read.
type Events = Vec<(i32, ReadFlags)>;

/// Watches on folders.
pub(crate) struct Watch {
    notify: Arc<OwnedFd>,
    events: mpsc::Receiver<Events>,
    folders: BTreeMap<i32, String>,
    /// Watches that were there before.
    known: BTreeSet<i32>,
    /// The kernel allows no more: scans have to do.
    is_full: bool,
}

impl Watch {
    pub(crate) fn new() -> io::Result<Self> {
        let notify = Arc::new(inotify::init(CreateFlags::CLOEXEC)?);
        let (to, events) = mpsc::channel(READS);
        let reading = Arc::clone(&notify);
        // Ends with this process: there is one watch in its life.
        drop(tokio::task::spawn_blocking(move || read(&reading, &to)));
        Ok(Self { notify, events, folders: BTreeMap::new(), known: BTreeSet::new(), is_full: false })
    }

    /// Whether there are folders that are not watched.
    pub(crate) const fn is_full(&self) -> bool {
        self.is_full
    }

    /// Forgets names, which may have moved: each folder is to be added again.
    pub(crate) fn begin_anew(&mut self) {
        self.folders.clear();
        self.is_full = false;
    }

    /// Watches a folder, if it is not watched already; whether it was not, so that what happened in it
    /// before is to be looked for. The kernel follows it by what was opened, never by its name.
    pub(crate) fn add(&mut self, tree: &Tree, path: Option<&FilePath>) -> bool {
        let Ok(folder) = tree.folder(path.map(FilePath::as_str)) else { return false };
        let flags = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ONLYDIR
            | WatchFlags::EXCL_UNLINK;
        let opened = format!("/proc/self/fd/{}", folder.as_raw_fd());
        match inotify::add_watch(&*self.notify, &*opened, flags) {
            Ok(watch) => {
                self.folders.insert(watch, path.map_or("", FilePath::as_str).to_owned());
                return self.known.insert(watch);
            }
            Err(Errno::NOSPC | Errno::NOMEM) => self.is_full = true,
            // Gone meanwhile.
            Err(_) => {}
        }
        false
    }

    /// Waits for changes.
    ///
    /// # Errors
    /// If the kernel tells none any more.
    pub(crate) async fn changed(&mut self) -> io::Result<Dirty> {
        loop {
            let mut dirty = Dirty::default();
            let events = self.events.recv().await;
            let events = events.ok_or_else(|| io::Error::other("the kernel tells of no change any more"))?;
            let more = std::iter::from_fn(|| self.events.try_recv().ok());
            for (watch, flags) in std::iter::once(events).chain(more).flatten() {
                if flags.contains(ReadFlags::IGNORED) {
                    // Its folder is gone, and its number may be another's.
                    self.known.remove(&watch);
                }
                note(&mut dirty, &self.folders, watch, flags);
            }
            if !dirty.is_empty() {
                return Ok(dirty);
            }
        }
    }
}

/// Reads events for as long as somebody takes them. Where nobody is quick enough the kernel's own
/// queue overflows, which is an event too.
fn read(notify: &OwnedFd, to: &mpsc::Sender<Events>) {
    let mut buffer = Box::new_uninit_slice(BUFFER);
    loop {
        let mut reader = Reader::new(notify, &mut buffer);
        let mut events = Events::new();
        loop {
            match reader.next() {
                Ok(event) => events.push((event.wd(), event.events())),
                Err(Errno::INTR) => {}
                Err(_broken) => return,
            }
            if reader.is_buffer_empty() {
                break;
            }
        }
        // A file that is written to all the time makes one event of many.
        events.dedup();
        if to.blocking_send(events).is_err() {
            return;
        }
    }
}

fn note(dirty: &mut Dirty, folders: &BTreeMap<i32, String>, watch: i32, events: ReadFlags) {
    if events.contains(ReadFlags::IGNORED) {
        return;
    }
    // Names below a folder that moved are others now.
    let moved =
        events.contains(ReadFlags::ISDIR) && events.intersects(ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO);
    match folders.get(&watch) {
        Some(folder) if !moved && !events.contains(ReadFlags::QUEUE_OVERFLOW) => {
            dirty.folders.insert(folder.clone());
        }
        _ => dirty.all = true,
    }
}

#[cfg(test)]
mod tests;
