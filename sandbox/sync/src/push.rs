// SPDX-License-Identifier: Apache-2.0
//! From the sandbox into the store: what changed since both sides agreed, several packs at a time.
//!
//! Order matters: what must make room goes first (a folder where a file was), then folders and links,
//! then files, and deletions last. A file that was renamed is in the store under its new name before
//! the old one goes.
//!
//! INVARIANT: nothing is put where the store has, as far as is known here, another kind of thing, nor
//! below a file or link of it, nor a file or link above what it has. The agent may swap them between
//! two phases as often as it likes: what was to make room is back then, and the store would keep beside
//! it what is put, as if somebody else had been faster.

use crate::client::{CallError, Client};
use crate::content::{NobodyReads, Outgoing, digest};
use crate::pull::{LANES, PACK_BYTES, PACK_FILES, SMALL_BYTES};
use crate::state::{Agreed, State};
use crate::tree::{Kind, Seen, Stamp, Tree};
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use postern_common::files::pack::put_head;
use postern_common::files::{
    Became, Digest, Entry, FilePath, MOST_IN_PACK, Outcome, Put, Report, Version, What,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Parts that wait between the disk and the connection.
const PARTS: usize = 8;
/// A file that never holds still is put as it was read after so many tries.
const TRIES: u32 = 3;

/// Something that is to be put.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) path: FilePath,
    /// What both sides agreed on.
    pub(crate) before: Option<Agreed>,
    /// What is there now; `None`: nothing.
    pub(crate) now: Option<Seen>,
    /// How often it was read and had changed meanwhile.
    pub(crate) tries: u32,
    /// Whether nobody knows what it replaces ([`Put::is_doubtful`]).
    pub(crate) is_doubtful: bool,
}

impl Change {
    /// Something that is not there any more.
    pub(crate) const fn gone(path: FilePath, before: Option<Agreed>) -> Self {
        Self { path, before, now: None, tries: 0, is_doubtful: false }
    }
}

/// What pushing came to.
#[derive(Debug, Default)]
pub(crate) struct Pushed {
    pub(crate) report: Report,
    /// Kept under another name, which is to be theirs here too.
    pub(crate) lost: Vec<(FilePath, Entry)>,
    /// To be tried again: they changed while they were read, or were not told whole.
    pub(crate) again: BTreeMap<FilePath, u32>,
    /// What the store does not take, as it looks now.
    pub(crate) refused: Vec<(FilePath, Option<Stamp>)>,
    /// What the store has acknowledged.
    pub(crate) synced: Vec<(FilePath, Option<Digest>)>,
    /// The store has what is not here: another's that won, or what nobody was told of.
    pub(crate) is_doubtful: bool,
}

/// One change as it went out.
struct Sent {
    path: FilePath,
    stamp: Option<Stamp>,
    tries: u32,
}

/// What became of a change before it went out.
enum Read {
    Sent(Sent),
    /// It is what was agreed on, though it looks otherwise.
    Same(FilePath, Stamp),
    /// It is gone, or something else by now.
    Again(FilePath, u32),
    Left(FilePath, &'static str, Option<Stamp>),
}

/// Puts all changes; what the store acknowledged is agreed on, also if it fails in the middle.
pub(crate) async fn push(
    client: &Client,
    tree: &Arc<Tree>,
    state: &mut State,
    changes: Vec<Change>,
    progress: crate::pull::Progress<'_>,
) -> (Pushed, Result<(), CallError>) {
    let mut pushed = Pushed::default();
    let of_files = changes.len() as u64;
    let of_bytes = changes.iter().filter_map(|it| it.now).map(|it| it.stamp.size).sum();
    for packs in phases(changes) {
        let mut packs = pushed.with_room(state, packs);
        let (mut under_way, mut failed) = (FuturesUnordered::new(), None);
        loop {
            while failed.is_none() && under_way.len() < LANES {
                let Some(pack) = packs.pop_front() else { break };
                under_way.push(send(client, Arc::clone(tree), pack));
            }
            let Some(sent) = under_way.next().await else { break };
            match sent {
                Ok((read, outcomes)) => pushed.settle(state, read, outcomes),
                Err(error) => failed = Some(error),
            }
            state.save();
            progress(pushed.report.files, of_files, pushed.report.bytes, of_bytes);
        }
        if let Some(error) = failed {
            pushed.is_doubtful = true;
            return (pushed, Err(error));
        }
    }
    (pushed, Ok(()))
}

/// Packs by phase; within one they may overtake each other.
fn phases(changes: Vec<Change>) -> [VecDeque<Vec<Change>>; 4] {
    let kind_before = |change: &Change| change.before.as_ref().map(|it| Kind::of(&it.what));
    let (mut rooms, mut shapes, mut files, mut gone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let becomes_folder: BTreeSet<FilePath> = changes
        .iter()
        .filter(|change| change.now.is_some_and(|now| now.kind != Kind::Folder))
        .map(|change| change.path.clone())
        .collect();
    for change in changes {
        let makes_room = change.path.folders().any(|folder| becomes_folder.contains(folder));
        let was = kind_before(&change);
        match change.now {
            None if makes_room => rooms.push(change),
            None => gone.push(change),
            Some(now) => {
                if was.is_some_and(|was| was != now.kind) && !change.is_doubtful {
                    rooms.push(Change { now: None, ..change.clone() });
                }
                let change = Change { before: change.before.filter(|_| was == Some(now.kind)), ..change };
                if now.kind == Kind::File { files.push(change) } else { shapes.push(change) }
            }
        }
    }
    // What lies deepest goes first.
    for changes in [&mut rooms, &mut gone] {
        changes.sort_by(|one, other| other.path.cmp(&one.path));
    }
    let by_number = |changes: Vec<Change>| -> VecDeque<Vec<Change>> {
        changes.chunks(MOST_IN_PACK).map(<[Change]>::to_vec).collect()
    };
    [by_number(rooms), by_number(shapes), by_size(files), by_number(gone)]
}

fn by_size(files: Vec<Change>) -> VecDeque<Vec<Change>> {
    let size = |change: &Change| change.now.map_or(0, |now| now.stamp.size);
    let (mut packs, mut small) = (VecDeque::new(), VecDeque::new());
    let (mut pack, mut bytes) = (Vec::new(), 0);
    for file in files {
        if size(&file) > SMALL_BYTES {
            packs.push_back(vec![file]);
            continue;
        }
        bytes += size(&file);
        pack.push(file);
        if bytes >= PACK_BYTES || pack.len() >= PACK_FILES {
            small.push_back(std::mem::take(&mut pack));
            bytes = 0;
        }
    }
    if !pack.is_empty() {
        small.push_back(pack);
    }
    packs.extend(small);
    packs
}

/// Reads a pack's files and puts them.
async fn send(
    client: &Client,
    tree: Arc<Tree>,
    pack: Vec<Change>,
) -> Result<(Vec<Read>, Vec<Outcome>), CallError> {
    let (to, mut from) = mpsc::channel(PARTS);
    let reading = tokio::task::spawn_blocking(move || read_all(&tree, pack, to));
    // Nothing is asked for if there turns out to be nothing to put.
    let Some(first) = from.recv().await else {
        let read = reading.await.map_err(|_panicked| CallError::Unreadable)?;
        return Ok((read.unwrap_or_default(), Vec::new()));
    };
    let called = client.put(first, from).await;
    let read = reading.await.map_err(|_panicked| CallError::Unreadable)?;
    match (called, read) {
        (Err(error), _) => Err(error),
        (Ok(_), Err(NobodyReads)) => Err(CallError::Unreadable),
        (Ok(outcomes), Ok(read)) => Ok((read, outcomes)),
    }
}

fn read_all(tree: &Tree, pack: Vec<Change>, to: mpsc::Sender<Bytes>) -> Result<Vec<Read>, NobodyReads> {
    let mut out = Outgoing::new(to);
    let mut read = Vec::with_capacity(pack.len());
    for change in pack {
        read.push(read_one(tree, change, &mut out)?);
        out.flush(false)?;
    }
    out.flush(true)?;
    Ok(read)
}

fn read_one(tree: &Tree, change: Change, out: &mut Outgoing) -> Result<Read, NobodyReads> {
    let Change { path, before, now, tries, is_doubtful } = change;
    let base: Option<Version> = before.as_ref().map(|before| before.version.clone());
    let Some(now) = now else {
        return Ok(if is_gone(tree, &path, before.as_ref()) {
            head(out, Put { path, base, to: Became::Gone, is_doubtful }, None, tries)
        } else {
            Read::Again(path, tries)
        });
    };
    match now.kind {
        Kind::Folder => {
            let to = Became::Folder { mode: now.mode };
            Ok(head(out, Put { path, base, to, is_doubtful }, Some(now.stamp), tries))
        }
        Kind::Link => Ok(match tree.target(&path) {
            Ok(Some(target)) => {
                if before.is_some_and(|it| it.what == What::Link { target: target.clone() }) {
                    return Ok(Read::Same(path, now.stamp));
                }
                let to = Became::Link { target };
                head(out, Put { path, base, to, is_doubtful }, Some(now.stamp), tries)
            }
            Ok(None) => {
                Read::Left(path, "where it points to is no text of at most 4096 bytes", Some(now.stamp))
            }
            Err(_gone) => Read::Again(path, tries),
        }),
        Kind::File => {
            let to = Became::File { size: 0, mode: now.mode, modified: now.modified_micros() };
            file(tree, (Put { path, base, to, is_doubtful }, tries), before.as_ref(), out)
        }
        Kind::Other => Ok(Read::Left(path, "it is a FIFO, a socket or a device", Some(now.stamp))),
    }
}

/// Whether what was agreed on is not there: nothing is, or another kind of thing that takes its place. If
/// it is back, that is another change. What cannot be carried counts for nothing that is gone.
fn is_gone(tree: &Tree, path: &FilePath, before: Option<&Agreed>) -> bool {
    match tree.look(path) {
        Ok(None) => true,
        Ok(Some(seen)) => {
            seen.kind != Kind::Other && before.is_some_and(|it| Kind::of(&it.what) != seen.kind)
        }
        Err(_unknown) => false,
    }
}

/// Whether the store has, as far as is known here, something where this cannot be beside it.
fn is_obstructed(state: &State, change: &Change) -> bool {
    // What nobody knows the base of goes beside whatever is there.
    let Some(now) = change.now.filter(|_| !change.is_doubtful) else { return false };
    let kind = |path: &str| state.get(path).map(|it| Kind::of(&it.what));
    let path = change.path.as_str();
    kind(path).is_some_and(|kind| kind != now.kind)
        || change.path.folders().any(|above| kind(above).is_some_and(|kind| kind != Kind::Folder))
        || (now.kind != Kind::Folder && state.below(Some(path)).next().is_some())
}

fn head(out: &mut Outgoing, put: Put, stamp: Option<Stamp>, tries: u32) -> Read {
    let has_content = matches!(put.to, Became::File { .. });
    match put_head(&mut out.parts, &put, has_content) {
        Ok(()) => Read::Sent(Sent { path: put.path, stamp, tries }),
        // Paths and targets are text, which always has a JSON form.
        Err(_never) => Read::Left(put.path, "its name cannot be told", stamp),
    }
}

fn file(
    tree: &Tree,
    (put, tries): (Put, u32),
    before: Option<&Agreed>,
    out: &mut Outgoing,
) -> Result<Read, NobodyReads> {
    use rustix::io::Errno;
    let path = put.path.clone();
    let (mut file, seen) = match tree.file(path.as_str()) {
        Ok((file, seen)) if seen.kind == Kind::File => (file, seen),
        Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Read::Again(path, tries)),
        Err(Errno::ACCESS | Errno::PERM) => return Ok(Read::Left(path, "it is not readable", None)),
        Err(_) => return Ok(Read::Left(path, "it could not be read", None)),
    };
    let size = seen.stamp.size;
    if let Some(What::File { size: agreed_size, digest: Some(agreed), mode, .. }) = before.map(|it| &it.what)
        && (*agreed_size, *mode) == (size, seen.mode)
        && digest(&mut file, size).as_ref() == Some(agreed)
    {
        return Ok(match Seen::again(&file) {
            Some(again) if again.stamp == seen.stamp => Read::Same(path, seen.stamp),
            _ => Read::Again(path, tries),
        });
    }
    let to = Became::File { size, mode: seen.mode, modified: seen.modified_micros() };
    let begun = head(out, Put { to, ..put }, Some(seen.stamp), tries);
    let is_sparse = seen.allocated.saturating_add(crate::content::CHUNK as u64) < size;
    let is_whole = out.content(&mut file, size, is_sparse)?.is_some();
    let is_still = Seen::again(&file).is_some_and(|again| again.stamp == seen.stamp);
    if is_whole && !is_still && tries < TRIES {
        out.take_back_end();
    }
    Ok(begun)
}

impl Pushed {
    /// What of a phase there is room for, after those before it; the rest is to be looked at again.
    fn with_room(&mut self, state: &State, mut packs: VecDeque<Vec<Change>>) -> VecDeque<Vec<Change>> {
        for pack in &mut packs {
            pack.retain(|change| {
                let has_room = !is_obstructed(state, change);
                if !has_room {
                    self.again.insert(change.path.clone(), change.tries);
                }
                has_room
            });
        }
        packs.retain(|pack| !pack.is_empty());
        packs
    }

    fn settle(&mut self, state: &mut State, read: Vec<Read>, outcomes: Vec<Outcome>) {
        let mut outcomes = outcomes.into_iter();
        for one in read {
            match one {
                Read::Same(path, stamp) => state.restamp(&path, stamp),
                Read::Again(path, tries) => drop(self.again.insert(path, tries)),
                Read::Left(path, why, stamp) => {
                    self.report.leave(path.as_str(), why);
                    self.refused.push((path, stamp));
                }
                Read::Sent(sent) => match outcomes.next() {
                    Some(outcome) => self.outcome(state, sent, outcome),
                    None => drop(self.again.insert(sent.path, sent.tries)),
                },
            }
        }
    }

    fn outcome(&mut self, state: &mut State, sent: Sent, outcome: Outcome) {
        let Sent { path, stamp, tries } = sent;
        match (outcome, stamp) {
            (Outcome::Stored { entry: Some(entry) }, Some(stamp)) => {
                let digest = match &entry.what {
                    What::File { digest, size, .. } => {
                        self.report.bytes += size;
                        *digest
                    }
                    What::Folder { .. } | What::Link { .. } => None,
                };
                self.report.files += 1;
                self.synced.push((path, digest));
                state.agree(entry, stamp);
            }
            (Outcome::Stored { .. }, _) => {
                self.report.deleted += 1;
                self.synced.push((path.clone(), None));
                state.forget(&path);
            }
            (Outcome::Lost { kept_as: Some(entry) }, _) => {
                self.report.conflict(path.as_str(), entry.path.as_str());
                self.lost.push((path, entry));
                self.is_doubtful = true;
            }
            // Somebody else changed what was deleted here: it comes back.
            (Outcome::Lost { kept_as: None }, _) => {
                state.forget(&path);
                self.is_doubtful = true;
            }
            (Outcome::Refused { why }, stamp) => {
                self.report.leave(path.as_str(), why);
                self.refused.push((path, stamp));
            }
            (Outcome::Broken, _) => drop(self.again.insert(path, tries + 1)),
        }
    }
}

impl Pushed {
    /// Adds what came of another round.
    pub(crate) fn add(&mut self, more: Self) {
        let Report { files, bytes, deleted, left, left_count, conflicts, conflict_count } = more.report;
        self.report.files += files;
        self.report.bytes += bytes;
        self.report.deleted += deleted;
        // What was refused in a round is not tried in the next, which then says nothing of it.
        let told: BTreeSet<String> = self.report.left.iter().map(|left| left.path.clone()).collect();
        let (again, new): (Vec<_>, Vec<_>) = left.into_iter().partition(|left| told.contains(&left.path));
        self.report.left_count += left_count.saturating_sub(again.len() as u64);
        self.report.left.extend(new);
        self.report.left.truncate(100);
        self.report.conflicts.extend(conflicts);
        self.report.conflicts.truncate(100);
        self.report.conflict_count += conflict_count;
        self.lost.extend(more.lost);
        self.again = more.again;
        self.refused.extend(more.refused);
        self.synced.extend(more.synced);
        self.is_doubtful |= more.is_doubtful;
    }
}

#[cfg(test)]
mod tests;
