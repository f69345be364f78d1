// SPDX-License-Identifier: Apache-2.0
//! From the store into the sandbox: what differs and nothing else, several packs at a time, each file
//! whole and checked before it gets its place.
//!
//! INVARIANT: what the agent changed is not touched. A path is written or removed only if it still is
//! what both sides agreed on, or if nothing was there; the rest is for `push`, which keeps both.

use crate::client::{CallError, Client};
use crate::content::{Hash, Incoming, digest};
use crate::scan::Rules;
use crate::state::{Agreed, State};
use crate::tree::{Draft, Kind, Placed, Stamp, Tree};
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use postern_common::files::pack::{Part, Unpacker};
use postern_common::files::{Digest, Entry, FilePath, Found, Get, Listing, Report, Wanted, What};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Files up to this long go by the pack.
pub(crate) const SMALL_BYTES: u64 = 512 << 10;
/// What a pack of small files holds.
pub(crate) const PACK_BYTES: u64 = 4 << 20;
/// Files of one pack.
pub(crate) const PACK_FILES: usize = 256;
/// Packs at a time.
pub(crate) const LANES: usize = 4;
/// Parts that wait between the connection and the disk.
const PARTS: usize = 16;

/// Bringing in failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    #[error(transparent)]
    Call(#[from] CallError),
    /// The sandbox's disk.
    #[error("the sandbox's disk failed; is it full?")]
    Disk(#[from] io::Error),
    /// What came is not what the listing said.
    #[error("`{0}` did not arrive as it was listed")]
    Differs(FilePath),
}

/// A file to bring.
#[derive(Debug, Clone)]
struct Missing {
    entry: Entry,
    size: u64,
    digest: Option<Digest>,
    mode: u16,
    modified: i64,
    before: Option<Stamp>,
}

/// A file that is here now.
struct Brought {
    entry: Entry,
    stamp: Stamp,
}

/// What a blocking part found out.
#[derive(Default)]
struct Plan {
    missing: Vec<Missing>,
    agreed: Vec<Brought>,
    forgotten: Vec<FilePath>,
    restamped: Vec<(FilePath, Stamp)>,
    modes: Vec<(String, u16)>,
    report: Report,
}

/// Told how far it is: files and bytes, done and in all.
pub(crate) type Progress<'a> = &'a mut (dyn FnMut(u64, u64, u64, u64) + Send);

/// Makes the tree what the listing says, where the agent changed nothing.
pub(crate) async fn pull(
    client: &Client,
    tree: &Arc<Tree>,
    state: &mut State,
    listing: Listing,
    rules: &Rules,
    progress: Progress<'_>,
) -> Result<Report, PullError> {
    // Links are made while this is planned.
    let is_coming = |entry: &&Entry| {
        matches!(entry.what, What::Link { .. })
            && state.get(entry.path.as_str()).is_none_or(|it| it.version != entry.version)
            && !rules.ignored.covers(entry.path.as_str(), false)
    };
    let links: Vec<Entry> = listing.entries.iter().filter(is_coming).cloned().collect();
    state.expect(links);
    let (planning, before, rules) = (Arc::clone(tree), state.all().clone(), rules.clone());
    let planned = tokio::task::spawn_blocking(move || plan(&planning, &before, listing, &rules)).await;
    let mut plan = planned.map_err(io::Error::other)??;
    let mut report = std::mem::take(&mut plan.report);
    for brought in plan.agreed.drain(..) {
        state.agree(brought.entry, brought.stamp);
    }
    plan.forgotten.iter().for_each(|path| state.forget(path));
    plan.restamped.iter().for_each(|(path, stamp)| state.restamp(path, *stamp));
    let (of_files, of_bytes) = (plan.missing.len() as u64, plan.missing.iter().map(|it| it.size).sum());
    let mut packs = packs(plan.missing);
    let mut under_way = FuturesUnordered::new();
    let mut failed = None;
    progress(0, of_files, 0, of_bytes);
    loop {
        while failed.is_none() && under_way.len() < LANES {
            let Some(pack) = packs.pop_front() else { break };
            state.expect(pack.iter().map(|file| file.entry.clone()));
            under_way.push(bring(client, Arc::clone(tree), pack));
        }
        let Some((brought, ended)) = under_way.next().await else { break };
        agree(state, brought, &mut report);
        state.save();
        progress(report.files.min(of_files), of_files, report.bytes, of_bytes);
        failed = ended.err().or(failed);
    }
    // Last, so that a folder that nobody may write to could be filled.
    for (path, mode) in plan.modes.iter().rev() {
        // Gone, or another, by now.
        let _ = tree.set_folder_mode(path, *mode).is_ok();
    }
    state.save();
    if failed.is_none() {
        state.expect_nothing();
    }
    failed.map_or(Ok(report), Err)
}

/// Brings one file of a listing before all else, if it is to be brought; what came. What is not named here
/// is not taken for removed.
pub(crate) async fn pull_one(
    client: &Client,
    tree: &Arc<Tree>,
    state: &mut State,
    entry: &Entry,
) -> Result<Report, PullError> {
    let before = state.get(entry.path.as_str()).cloned();
    if before.as_ref().is_some_and(|before| before.version == entry.version) {
        return Ok(Report::default());
    }
    let (planning, entry) = (Arc::clone(tree), entry.clone());
    if matches!(entry.what, What::Link { .. }) {
        state.expect([entry.clone()]);
    }
    let planned = tokio::task::spawn_blocking(move || {
        let agreed: BTreeMap<FilePath, Agreed> =
            before.into_iter().map(|before| (entry.path.clone(), before)).collect();
        let mut planner = Planner { tree: &planning, agreed: &agreed, plan: Plan::default() };
        planner.entry(entry)?;
        Ok::<_, PullError>(planner.plan)
    });
    let plan = planned.await.map_err(io::Error::other)??;
    let mut report = Report::default();
    for Brought { entry, stamp } in plan.agreed {
        state.agree(entry, stamp);
    }
    if !plan.missing.is_empty() {
        state.expect(plan.missing.iter().map(|file| file.entry.clone()));
        let (brought, ended) = bring(client, Arc::clone(tree), plan.missing).await;
        agree(state, brought, &mut report);
        state.save();
        ended?;
    }
    state.save();
    Ok(report)
}

fn agree(state: &mut State, brought: Vec<Brought>, report: &mut Report) {
    for Brought { entry, stamp } in brought {
        report.files += 1;
        report.bytes += stamp.size;
        state.agree(entry, stamp);
    }
}

fn packs(missing: Vec<Missing>) -> VecDeque<Vec<Missing>> {
    let (mut packs, mut large) = (VecDeque::new(), VecDeque::new());
    let (mut pack, mut bytes) = (Vec::new(), 0);
    for file in missing {
        if file.size > SMALL_BYTES {
            large.push_back(vec![file]);
            continue;
        }
        bytes += file.size;
        pack.push(file);
        if bytes >= PACK_BYTES || pack.len() >= PACK_FILES {
            packs.push_back(std::mem::take(&mut pack));
            bytes = 0;
        }
    }
    if !pack.is_empty() {
        packs.push_back(pack);
    }
    // Large ones first: the last of them would be waited for alone.
    large.extend(packs);
    large
}

/// Compares, removes what is gone, makes folders and links. Blocking.
fn plan(
    tree: &Tree,
    agreed: &BTreeMap<FilePath, Agreed>,
    listing: Listing,
    rules: &Rules,
) -> Result<Plan, PullError> {
    let mut planner = Planner { tree, agreed, plan: Plan::default() };
    let named: BTreeSet<&str> = listing.entries.iter().map(|entry| entry.path.as_str()).collect();
    // What lies deepest first, so that folders are empty by then.
    for (path, before) in agreed.iter().rev() {
        let is_folder = matches!(before.what, What::Folder { .. });
        if !named.contains(path.as_str()) && !rules.ignored.covers(path.as_str(), is_folder) {
            planner.removed(path, &before.stamp)?;
        }
    }
    drop(named);
    for entry in listing.entries {
        let is_folder = matches!(entry.what, What::Folder { .. });
        if rules.ignored.covers(entry.path.as_str(), is_folder) {
            continue;
        }
        let path = entry.path.clone();
        match planner.entry(entry) {
            Ok(()) => {}
            // One name that this disk cannot hold is no reason to bring in nothing.
            Err(PullError::Disk(error)) if error.kind() != io::ErrorKind::StorageFull => {
                planner.plan.report.leave(path.as_str(), error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(planner.plan)
}

struct Planner<'a> {
    tree: &'a Tree,
    agreed: &'a BTreeMap<FilePath, Agreed>,
    plan: Plan,
}

impl Planner<'_> {
    /// The store has it no more.
    fn removed(&mut self, path: &FilePath, before: &Stamp) -> Result<(), PullError> {
        let was_there = self.tree.look(path).map_err(io::Error::from)?.is_some();
        if self.tree.remove(path, before)? {
            self.plan.report.deleted += u64::from(was_there);
        }
        // Changed here meanwhile: it is new again, and goes back to the store as such.
        self.plan.forgotten.push(path.clone());
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<(), PullError> {
        let before = self.agreed.get(&entry.path);
        if before.is_some_and(|before| before.version == entry.version) {
            return Ok(());
        }
        match entry.what.clone() {
            What::Folder { mode } => self.make_folder(entry, mode),
            What::Link { target } => self.make_link(entry, &target),
            What::File { size, digest, mode, modified } => {
                let before = before.map(|before| before.stamp);
                self.file(Missing { entry, size, digest, mode, modified, before })
            }
        }
    }

    fn make_folder(&mut self, entry: Entry, mode: u16) -> Result<(), PullError> {
        let was_agreed = self.agreed.contains_key(&entry.path);
        let seen = self.tree.look(&entry.path).map_err(io::Error::from)?;
        if was_agreed && seen.is_none() {
            // Deleted here.
            return Ok(());
        }
        let made = self.tree.make_folder(entry.path.as_str()).map_err(io::Error::from)?;
        let Some(seen) = self.tree.look(&entry.path).map_err(io::Error::from)?.filter(|_| made.is_some())
        else {
            return Ok(());
        };
        if seen.mode != mode {
            self.plan.modes.push((entry.path.as_str().to_owned(), mode));
        }
        self.plan.report.files += 1;
        self.plan.agreed.push(Brought { entry, stamp: seen.stamp });
        Ok(())
    }

    fn make_link(&mut self, entry: Entry, target: &str) -> Result<(), PullError> {
        let seen = self.tree.look(&entry.path).map_err(io::Error::from)?;
        let before = self.agreed.get(&entry.path).map(|before| before.stamp);
        if let Some(seen) = seen {
            let is_same = seen.kind == Kind::Link
                && self.tree.target(&entry.path).map_err(io::Error::from)?.as_deref() == Some(target);
            if is_same {
                self.plan.agreed.push(Brought { entry, stamp: seen.stamp });
                return Ok(());
            }
            if before != Some(seen.stamp) {
                return Ok(());
            }
        }
        if let Placed::Here(seen) =
            self.tree.link(&entry.path, target, before.filter(|_| seen.is_some()).as_ref())?
        {
            self.plan.report.files += 1;
            self.plan.agreed.push(Brought { entry, stamp: seen.stamp });
        }
        Ok(())
    }

    fn file(&mut self, mut missing: Missing) -> Result<(), PullError> {
        let path = missing.entry.path.clone();
        match self.tree.look(&path).map_err(io::Error::from)? {
            None => missing.before = None,
            Some(seen) if missing.before == Some(seen.stamp) && seen.kind != Kind::Folder => {}
            Some(seen) if seen.kind == Kind::File && seen.stamp.size == missing.size => {
                // Brought in by a sync that was killed before it could note that, or the same by chance.
                let Ok((mut file, opened)) = self.tree.file(path.as_str()) else { return Ok(()) };
                let is_same = opened.stamp == seen.stamp
                    && missing.digest.is_some()
                    && digest(&mut file, seen.stamp.size) == missing.digest
                    && seen.mode == missing.mode;
                if is_same {
                    self.plan.agreed.push(Brought { entry: missing.entry, stamp: seen.stamp });
                }
                return Ok(());
            }
            Some(_changed) => return Ok(()),
        }
        self.plan.missing.push(missing);
        Ok(())
    }
}

/// Asks for a pack and writes what comes; what came, also if the rest did not.
///
/// INVARIANT: what was placed is told. Taken for the agent's own, it would be a conflict with itself as soon
/// as the store has something newer.
async fn bring(
    client: &Client,
    tree: Arc<Tree>,
    pack: Vec<Missing>,
) -> (Vec<Brought>, Result<(), PullError>) {
    let (to, from) = mpsc::channel(PARTS);
    // A large one that was begun goes on where it was.
    let offset = match &*pack {
        [alone] if alone.size > SMALL_BYTES => match begun(&tree, alone) {
            Ok(offset) => offset,
            Err(error) => return (Vec::new(), Err(error.into())),
        },
        _ => 0,
    };
    let wanted = |file: &Missing| Wanted {
        path: file.entry.path.clone(),
        version: file.entry.version.clone(),
        offset,
    };
    let get = Get { files: pack.iter().map(wanted).collect() };
    let writing = tokio::task::spawn_blocking(move || {
        let mut brought = Vec::with_capacity(pack.len());
        let written = Writing { tree: &tree, from, offset }.all(pack, &mut brought);
        (brought, written)
    });
    let called = client.get(&get, to).await;
    let (brought, written) = match writing.await {
        Ok(both) => both,
        Err(panicked) => (Vec::new(), Err(io::Error::other(panicked).into())),
    };
    // What the disk said comes first: it made the call break off.
    let ended = match (written, called) {
        (Err(error @ PullError::Disk(_)), _) => Err(error),
        (_, Err(error)) => Err(error.into()),
        (written, Ok(())) => written,
    };
    (brought, ended)
}

/// The same for another try of the same, and for nothing else.
fn draft_name(file: &Missing) -> String {
    let mut hash = Hash::new();
    hash.add(file.entry.path.as_str().as_bytes());
    hash.add(file.digest.as_ref().map_or(&[], |digest| &digest.0));
    format!("get-{}", hash.end())
}

/// How much of a large file is here from a try before.
fn begun(tree: &Tree, file: &Missing) -> io::Result<u64> {
    if file.digest.is_none() {
        return Ok(0);
    }
    let (draft, length) = tree.draft(draft_name(file), true)?;
    draft.keep();
    Ok(length.min(file.size))
}

struct Writing<'a> {
    tree: &'a Tree,
    from: mpsc::Receiver<Bytes>,
    offset: u64,
}

impl Writing<'_> {
    fn all(mut self, pack: Vec<Missing>, brought: &mut Vec<Brought>) -> Result<(), PullError> {
        let mut unpacker = Unpacker::default();
        for file in pack {
            let path = file.entry.path.clone();
            let Some(Part::Head { json, has_content }) = self.next(&mut unpacker)? else {
                return Err(PullError::Differs(path));
            };
            let found: Found = serde_json::from_slice(&json).map_err(|_malformed| CallError::Unreadable)?;
            if found == Found::Changed || !has_content {
                // It is listed again, and brought then.
                continue;
            }
            brought.extend(self.one(&mut unpacker, file)?);
        }
        Ok(())
    }

    fn next(&mut self, unpacker: &mut Unpacker) -> Result<Option<Part>, PullError> {
        loop {
            if let Some(part) = unpacker.part().map_err(|_broken| CallError::Unreadable)? {
                return Ok(Some(part));
            }
            match self.from.blocking_recv() {
                Some(bytes) => unpacker.feed(bytes),
                None => return Ok(None),
            }
        }
    }

    fn one(&mut self, unpacker: &mut Unpacker, file: Missing) -> Result<Option<Brought>, PullError> {
        let (draft, _) = self.tree.draft(draft_name(&file), self.offset > 0)?;
        let mut hash = Hash::new();
        if self.offset > 0 && !resume(&draft, self.offset, &mut hash) {
            return Err(PullError::Differs(file.entry.path));
        }
        let is_large = file.size > SMALL_BYTES;
        match self.content(unpacker, &draft, hash) {
            Ok(Some((size, digest))) => {
                if size != file.size || file.digest.is_some_and(|wanted| wanted != digest) {
                    return Err(PullError::Differs(file.entry.path));
                }
            }
            // What is here of it is good, and gone on with.
            Ok(None) | Err(PullError::Call(_)) if is_large => {
                draft.keep();
                return Err(PullError::Call(CallError::Unreadable));
            }
            Ok(None) => return Err(PullError::Differs(file.entry.path)),
            Err(error) => return Err(error),
        }
        let placed = draft.place(&file.entry.path, (file.mode, file.modified), file.before.as_ref())?;
        Ok(match placed {
            Placed::Here(seen) => Some(Brought { entry: file.entry, stamp: seen.stamp }),
            Placed::Changed => None,
        })
    }

    fn content(
        &mut self,
        unpacker: &mut Unpacker,
        draft: &Draft<'_>,
        hash: Hash,
    ) -> Result<Option<(u64, Digest)>, PullError> {
        let mut incoming = Incoming::new(&draft.file, self.offset, hash);
        loop {
            match self.next(unpacker)? {
                Some(Part::Data(bytes)) => incoming.data(&bytes)?,
                Some(Part::Hole(length)) => incoming.hole(length),
                Some(Part::End(Some(_))) => return Ok(Some(incoming.end()?)),
                Some(Part::End(None) | Part::Head { .. }) | None => return Ok(None),
            }
        }
    }
}

/// Reads what is here of a draft, for its digest.
fn resume(draft: &Draft<'_>, offset: u64, hash: &mut Hash) -> bool {
    use std::os::unix::fs::FileExt as _;
    let (mut at, mut buffer) = (0, vec![0; crate::content::CHUNK]);
    while at < offset {
        let part = usize::try_from(offset - at).unwrap_or(usize::MAX).min(buffer.len());
        let Some(room) = buffer.get_mut(..part) else { return false };
        if draft.file.read_exact_at(room, at).is_err() {
            return false;
        }
        hash.add(room);
        at += part as u64;
    }
    true
}

#[cfg(test)]
mod tests;
