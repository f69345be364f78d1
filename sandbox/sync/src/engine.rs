// SPDX-License-Identifier: Apache-2.0
//! What a sync does from its beginning to its end.
//!
//! ```text
//! begin ─▶ list, pull ─▶ hydrated ─▶ watch: events, scans ─▶ push ┐
//!                                      ▲ the store changed ─▶ push, list, pull
//!                                      └──────────────────────────┘
//! flush ─▶ scan, push until nothing is left ─▶ flushed
//! ```

use crate::client::{CallError, Client};
use crate::ignore;
use crate::pull::{PullError, pull, pull_one};
use crate::push::{Change, Pushed, push};
use crate::scan::{Depth, Rules, Scan, scan};
use crate::state::{Agreed, State};
use crate::tree::{Kind, Seen, Stamp, Tree};
use crate::watch::{Dirty, Watch};
use postern_common::files::orders::{Begin, Told};
use postern_common::files::{Bounds, Entry, FilePath, Report, Version, What};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};
use watching::LONGEST_QUIET;

/// The first wait after a call failed; doubles up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Tries of bringing in: the longest that a create call could wait for is bounded by its caller.
const HYDRATE_TRIES: u32 = 8;
/// A file that takes long to put is put again only after so many times that.
const COOLING: u32 = 5;
/// Rounds of a flush: what changes in one is carried in the next.
const FLUSH_ROUNDS: u32 = 20;
/// Calls of a flush that may fail: together they take some ten seconds.
const FLUSH_TRIES: u32 = 6;
/// What is told of a disk that was cut off.
const TORN: &str = "the machine stopped while it was written: what differs from the store, or is new, is kept \
     beside what the store has, and what is missing counts as lost, not as deleted; compare the two";
/// The version of a torn copy, which no store gives.
const TORN_VERSION: &str = "torn";
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

mod watching;

/// Why a sync ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    #[error(transparent)]
    Pull(#[from] PullError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the sandbox's disk cannot be read")]
    Disk(#[from] io::Error),
    #[error("not everything was in the store when the time was over")]
    Late,
}

/// Tells the orchestrator.
pub(crate) type Teller = mpsc::Sender<Told>;

/// One sandbox's sync.
pub(crate) struct Engine {
    client: Client,
    tree: Arc<Tree>,
    state: State,
    bounds: Bounds,
    told: Teller,
    tells_each: bool,
    /// The machine stopped while the tree and what is remembered of it were written.
    is_torn: bool,
    /// Folders that the last whole scan saw: one that goes takes its name along in the store too.
    folders: BTreeSet<FilePath>,
    /// What the store does not take, until it looks otherwise.
    refused: BTreeMap<FilePath, Option<Stamp>>,
    /// What changed while it was read, with the number of tries.
    again: BTreeMap<FilePath, u32>,
    /// Folders that are watched since they were scanned: what came in between is to be looked for.
    fresh: BTreeSet<String>,
    /// When a file may be put again.
    cooling: BTreeMap<FilePath, Instant>,
    revision: i64,
    /// What the last list took.
    listing: Duration,
    /// The store is to be listed, for it has what is not here.
    is_doubtful: bool,
}

/// What may come from outside while it watches.
pub(crate) enum Order {
    /// Everything is to be in the store by then.
    Flush(Instant),
}

impl Engine {
    pub(crate) fn new(client: Client, tree: Tree, state: State, begin: &Begin, told: Teller) -> Self {
        Self {
            client,
            tree: Arc::new(tree),
            state,
            bounds: begin.bounds,
            told,
            tells_each: begin.tells_each,
            is_torn: begin.is_torn,
            folders: BTreeSet::new(),
            refused: BTreeMap::new(),
            again: BTreeMap::new(),
            fresh: BTreeSet::new(),
            cooling: BTreeMap::new(),
            revision: 0,
            listing: Duration::ZERO,
            is_doubtful: false,
        }
    }

    async fn tell(&self, told: Told) {
        // Nobody listens any more: then the end of the input ends us.
        let _ = self.told.send(told).await.is_ok();
    }

    fn rules(&self) -> Rules {
        Rules::of(&self.tree, self.bounds)
    }

    /// Brings everything in and tells; tried again while that may help.
    pub(crate) async fn hydrate(&mut self) -> Result<(), SyncError> {
        // What was being brought when it was killed is gone on with; what nobody can go on with goes.
        self.tree.tidy(|draft| draft.starts_with("get-"))?;
        let mut wait = FIRST_WAIT;
        let mut report = Report::default();
        for round in 1.. {
            match self.pull().await {
                Ok(more) => {
                    report.files += more.files;
                    report.bytes += more.bytes;
                    report.deleted += more.deleted;
                    report.left = more.left;
                    report.left_count = more.left_count;
                    break;
                }
                Err(error) if round >= HYDRATE_TRIES || !is_passing(&error) => return Err(error.into()),
                Err(_passing) => sleep(wait).await,
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        self.tree.tidy(|_| false)?;
        self.tell(Told::Hydrated(report)).await;
        Ok(())
    }

    async fn pull(&mut self) -> Result<Report, PullError> {
        let begun = Instant::now();
        let listed = self.client.list().await;
        self.listing = begun.elapsed();
        let listing = listed?;
        let revision = listing.revision;
        // What is to be left out is read before anything else comes.
        let is_rules =
            |entry: &&Entry| entry.path.as_str() == ignore::NAME && matches!(entry.what, What::File { .. });
        let first = match listing.entries.iter().find(is_rules) {
            Some(entry) => pull_one(&self.client, &self.tree, &mut self.state, entry).await?,
            None => Report::default(),
        };
        let rules = self.rules();
        let (told, mut last) = (self.told.clone(), Instant::now());
        let mut progress = move |files, of_files, bytes, of_bytes| {
            if last.elapsed() >= PROGRESS_EVERY {
                last = Instant::now();
                // A line that finds no room is not missed.
                let _ = told.try_send(Told::Progress { files, of_files, bytes, of_bytes }).is_ok();
            }
        };
        let mut report =
            pull(&self.client, &self.tree, &mut self.state, listing, &rules, &mut progress).await?;
        report.files += first.files;
        report.bytes += first.bytes;
        self.revision = revision;
        Ok(report)
    }

    /// Scans what may have changed and pushes what did.
    async fn carry_changes(
        &mut self,
        watch: &mut Watch,
        dirty: Dirty,
        first: Instant,
    ) -> Result<(), SyncError> {
        let scans = self.scan(&dirty).await?;
        if dirty.all {
            watch.begin_anew();
            if watch.add(&self.tree, None) {
                self.fresh.insert(String::new());
            }
        }
        for (_, scanned) in &scans {
            for (path, _) in scanned.seen.iter().filter(|(_, seen)| seen.kind == Kind::Folder) {
                if watch.add(&self.tree, Some(path)) {
                    self.fresh.insert(path.as_str().to_owned());
                }
            }
        }
        let mut changes = Vec::new();
        for (folder, scanned) in &scans {
            self.changes(folder.as_ref(), scanned, &mut changes);
        }
        let now = Instant::now();
        self.cooling.retain(|_, until| *until > now);
        changes.retain(|change| !self.cooling.contains_key(&change.path));
        if changes.is_empty() {
            return Ok(());
        }
        let report = self.push(changes).await?;
        let lag_millis = u64::try_from(first.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.tell(Told::Carried { report, lag_millis }).await;
        Ok(())
    }

    /// Pushes, and gives the names to what lost that it has in the store.
    async fn push(&mut self, changes: Vec<Change>) -> Result<Report, CallError> {
        let begun = Instant::now();
        let alone = match &*changes {
            [change] => Some(change.path.clone()),
            _ => None,
        };
        let (pushed, done) =
            push(&self.client, &self.tree, &mut self.state, changes, &mut |_, _, _, _| {}).await;
        let Pushed { report, lost, again, refused, synced, is_doubtful } = pushed;
        self.is_doubtful |= is_doubtful;
        for path in again.keys().chain(synced.iter().map(|(path, _)| path)) {
            self.again.remove(path);
        }
        self.again.extend(again);
        self.refused.extend(refused);
        for (path, entry) in lost {
            self.move_beside(&path, &entry.path);
        }
        if self.tells_each {
            for (path, digest) in synced {
                self.tell(Told::Synced { path: path.as_str().to_owned(), digest }).await;
            }
        }
        if let Some(path) = alone.filter(|_| begun.elapsed() > LONGEST_QUIET) {
            self.cooling
                .insert(path, Instant::now() + begun.elapsed().saturating_mul(COOLING).min(LONGEST_WAIT));
        }
        self.state.save();
        done.map(|()| report)
    }

    /// Gives what is kept beside another's the name here that it has there; what the other wrote is
    /// pulled into its place.
    fn move_beside(&mut self, path: &FilePath, kept_as: &FilePath) {
        let (mut from, mut to) = (path.as_str(), kept_as.as_str());
        // The first name that differs: a whole folder may have had to move.
        for (here, there) in
            path.folders().chain([path.as_str()]).zip(kept_as.folders().chain([kept_as.as_str()]))
        {
            if here != there {
                (from, to) = (here, there);
                break;
            }
        }
        if self.tree.rename(from, to).is_ok_and(|is_renamed| is_renamed) {
            let below: Vec<FilePath> = self.state.below(Some(from)).map(|(path, _)| path.clone()).collect();
            below.iter().for_each(|path| self.state.forget(path));
            if let Ok(path) = FilePath::parse(from) {
                self.state.forget(&path);
            }
        }
    }

    async fn scan(&self, dirty: &Dirty) -> Result<Vec<(Option<FilePath>, Scan)>, SyncError> {
        let (tree, rules, known, bounds) =
            (Arc::clone(&self.tree), self.rules(), self.folders.clone(), dirty.folders.clone());
        let whole = dirty.all;
        let scanned = tokio::task::spawn_blocking(move || {
            if whole {
                return vec![(None, scan(&tree, None, &rules, Depth::Whole, &|_| false))];
            }
            let one = |folder: &String| {
                let from = if folder.is_empty() { None } else { Some(FilePath::parse(folder).ok()?) };
                let is_ignored = from.as_ref().is_some_and(|it| rules.ignored.covers(it.as_str(), true));
                let is_known = |path: &str| known.contains(path);
                let scanned = scan(&tree, from.as_ref(), &rules, Depth::Folder, &is_known);
                (!is_ignored).then_some((from, scanned))
            };
            bounds.iter().filter_map(one).collect()
        });
        Ok(scanned.await.map_err(io::Error::other)?)
    }

    /// What of a scan differs from what both sides agreed on.
    fn changes(&mut self, folder: Option<&FilePath>, scanned: &Scan, changes: &mut Vec<Change>) {
        for (path, seen) in &scanned.seen {
            let before = self.state.get(path.as_str());
            if seen.kind == Kind::Folder {
                self.folders.insert(path.clone());
            }
            let has_its_own = seen.mode != 0o755 || scanned.empty.contains(path);
            if seen.kind == Kind::Folder && before.is_none() && !has_its_own {
                continue;
            }
            if is_agreed(before.map(|it| (&it.what, &it.stamp)), seen)
                || self.refused.get(path) == Some(&Some(seen.stamp))
            {
                continue;
            }
            self.refused.remove(path);
            let tries = self.again.get(path).copied().unwrap_or(0);
            let (before, is_doubtful) = (before.cloned(), self.is_torn);
            changes.push(Change { path: path.clone(), before, now: Some(*seen), tries, is_doubtful });
        }
        if self.is_torn {
            return;
        }
        let mut gone: BTreeMap<FilePath, Change> = BTreeMap::new();
        let place = folder.map(FilePath::as_str);
        for (path, before) in self.state.below(place).filter(|(path, _)| scanned.lacks(path)) {
            gone.insert(path.clone(), Change::gone(path.clone(), Some(before.clone())));
        }
        let is_below = |path: &FilePath| place.is_none_or(|place| path.is_below(place));
        let folders: Vec<FilePath> =
            self.folders.iter().filter(|path| is_below(path) && scanned.lacks(path)).cloned().collect();
        for path in folders {
            self.folders.remove(&path);
            gone.entry(path.clone()).or_insert(Change::gone(path, None));
        }
        changes.extend(gone.into_values().filter(|it| self.refused.get(&it.path) != Some(&None)));
    }

    /// Brings everything that changed to the store, at the latest by then; tells what it came to.
    pub(crate) async fn flush(&mut self, by: Instant) -> Result<(), SyncError> {
        let mut all = Pushed::default();
        let flushed = timeout_at(by, self.flush_all(&mut all)).await;
        self.state.save();
        match flushed {
            Ok(Ok(())) => {
                self.tell(Told::Flushed(all.report)).await;
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(_late) => Err(SyncError::Late),
        }
    }

    async fn flush_all(&mut self, all: &mut Pushed) -> Result<(), SyncError> {
        if self.is_torn || self.state.is_new() {
            // What was agreed on is lost, or never was, or is not to be believed: what is the same on both
            // sides is found, and nothing counts as deleted.
            self.adopt().await?;
        }
        self.refused.clear();
        self.cooling.clear();
        let (mut wait, mut failures) = (FIRST_WAIT, 0);
        for _ in 0..FLUSH_ROUNDS {
            let scans = self.scan(&Dirty { all: true, ..Dirty::default() }).await?;
            let mut changes = Vec::new();
            let mut left = Report::default();
            for (folder, scanned) in &scans {
                self.changes(folder.as_ref(), scanned, &mut changes);
                left = scanned.report.clone();
            }
            if self.is_torn {
                left.leave(".", TORN);
            }
            if changes.is_empty() {
                merge_left(&mut all.report, left);
                return Ok(());
            }
            match self.push(changes).await {
                Ok(report) => {
                    let nothing_more = self.again.is_empty();
                    all.add(Pushed { report, ..Pushed::default() });
                    if nothing_more {
                        merge_left(&mut all.report, left);
                        return Ok(());
                    }
                }
                // Whoever ordered it tries again, and tells when it was too often.
                Err(error) if !is_passing_call(&error) || failures >= FLUSH_TRIES => return Err(error.into()),
                Err(_passing) => {
                    failures += 1;
                    sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
        Err(SyncError::Late)
    }

    /// Agrees on what is the same on both sides, and changes nothing.
    async fn adopt(&mut self) -> Result<(), SyncError> {
        let listing = self.client.list().await?;
        let (tree, before) = (Arc::clone(&self.tree), self.state.take_all());
        let same = tokio::task::spawn_blocking(move || {
            let mut same = Vec::new();
            for mut entry in listing.entries {
                let Ok(Some(seen)) = tree.look(&entry.path) else { continue };
                if !is_same(&tree, &entry, &seen) {
                    if !was_agreed(before.get(&entry.path), &entry, &seen) {
                        continue;
                    }
                    // Nobody's change, and not what the store has: whoever pulls next brings that.
                    let Some(torn) = Version::new(TORN_VERSION.to_owned()) else { continue };
                    entry.version = torn;
                }
                same.push((entry, seen.stamp));
            }
            same
        });
        for (entry, stamp) in same.await.map_err(io::Error::other)? {
            self.state.agree(entry, stamp);
        }
        // INVARIANT: whoever reads it next does not take what is missing here for agreed on.
        self.state.save_anew();
        Ok(())
    }
}

/// Whether the store has what was agreed on, and nobody changed it here since: whatever it looks like now
/// is a torn copy of that.
fn was_agreed(before: Option<&Agreed>, entry: &Entry, seen: &Seen) -> bool {
    let is_its_kind = match entry.what {
        What::File { .. } => seen.kind == Kind::File,
        What::Link { .. } => seen.kind == Kind::Link,
        What::Folder { .. } => false,
    };
    before.is_some_and(|it| is_its_kind && it.version == entry.version && !seen.stamp.is_after(&it.stamp))
}

/// Whether the tree has just what the store has.
fn is_same(tree: &Tree, entry: &Entry, seen: &Seen) -> bool {
    match &entry.what {
        What::Folder { mode } => seen.kind == Kind::Folder && seen.mode == *mode,
        What::Link { target } => tree.target(&entry.path).ok().flatten().as_deref() == Some(target.as_str()),
        What::File { size, digest: Some(digest), mode, .. } => {
            let opened = tree.file(entry.path.as_str()).ok().filter(|(_, it)| it.kind == Kind::File);
            seen.kind == Kind::File
                && (seen.stamp.size, seen.mode) == (*size, *mode)
                && opened.and_then(|(mut file, _)| crate::content::digest(&mut file, *size)) == Some(*digest)
        }
        What::File { .. } => false,
    }
}

fn is_agreed(before: Option<(&What, &Stamp)>, seen: &Seen) -> bool {
    match before {
        None => false,
        Some((What::Folder { mode }, _)) => {
            seen.kind == Kind::Folder && (*mode | 0o700) == (seen.mode | 0o700)
        }
        Some((What::File { .. }, stamp)) => seen.kind == Kind::File && *stamp == seen.stamp,
        Some((What::Link { .. }, stamp)) => seen.kind == Kind::Link && *stamp == seen.stamp,
    }
}

fn merge_left(report: &mut Report, scanned: Report) {
    report.left_count += scanned.left_count;
    report.left.extend(scanned.left);
    report.left.truncate(100);
}

fn is_passing(error: &PullError) -> bool {
    match error {
        PullError::Call(error) => is_passing_call(error),
        PullError::Disk(_) => false,
        PullError::Differs(_) => true,
    }
}

/// Whether another try may be answered otherwise.
fn is_passing_call(error: &CallError) -> bool {
    match error {
        CallError::Refused { status, .. } => {
            status.is_server_error() || matches!(status.as_u16(), 401 | 408 | 429)
        }
        CallError::Connect(_) | CallError::Broken(_) | CallError::Late | CallError::Unreadable => true,
        CallError::TooLong(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::tests::{path, stamp};

    #[test]
    fn what_nobody_changed_since_it_was_agreed_on_is_a_torn_copy_of_it_and_nothing_else_is() {
        let at = |changed| {
            let mut stamp = stamp(4);
            stamp.changed = changed;
            stamp
        };
        let version = |name: &str| Version::new(name.to_owned()).expect("short");
        let what = What::File { size: 4, digest: None, mode: 0o644, modified: 0 };
        let entry = Entry { path: path("a"), what: what.clone(), version: version("one") };
        let before = Agreed { what, version: version("one"), stamp: at(5) };
        let seen = |kind, changed| Seen { kind, mode: 0o600, stamp: at(changed), allocated: 0 };
        assert!(was_agreed(Some(&before), &entry, &seen(Kind::File, 5)));
        assert!(was_agreed(Some(&before), &entry, &seen(Kind::File, 0)), "an older state of its inode");
        assert!(!was_agreed(Some(&before), &entry, &seen(Kind::File, 6)), "it was changed since");
        assert!(!was_agreed(Some(&before), &entry, &seen(Kind::Folder, 0)), "something else is there");
        assert!(!was_agreed(None, &entry, &seen(Kind::File, 0)), "it is new");
        let other = Entry { version: version("two"), ..entry };
        assert!(!was_agreed(Some(&before), &other, &seen(Kind::File, 0)), "the store has another");
    }
}
