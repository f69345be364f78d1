// SPDX-License-Identifier: Apache-2.0
//! What syncs put: a pack of changes, each on the condition that the store still has what it replaces.
//!
//! INVARIANT: whatever loses a race is kept. A file whose base is gone from the store is put beside what
//! is there now, under a name that nothing has; a deletion that comes too late is not carried out. A
//! put that was stored before, and whose answer was lost, is found to be there.

use super::calls::{entries, entry_of_file, file_version, json};
use super::incoming::{Pack, pass, skip};
use super::shape::Shaping;
use super::{Caller, FilesApi, Lists, unavailable};
use crate::storage::{
    self, Condition, Content, FileEntry, FilePath, NewFile, SmallFile, StorageError, UserFiles, Writer,
};
use crate::store::{Actor, FileOwner, Store, SyncSessionRow};
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt as _};
use http::Response;
use hyper::body::Incoming;
use jiff::Timestamp;
use postern_common::files::pack::Part;
use postern_common::files::{Became, Digest, Entry, MOST_IN_PACK, Outcome, Put};
use postern_common::problem::{Code, Problem};
use std::collections::BTreeMap;
use std::io;
use tokio::sync::mpsc;

/// Files up to this long are held whole, as many as a pack of small ones has.
const WHOLE_BYTES: u64 = 1 << 20;
/// What small files of one pack take at most.
const HELD_BYTES: u64 = 64 << 20;
/// Parts of a large file that wait for the store.
const PARTS: usize = 16;
/// How often a sandbox's own version is looked for that another of its own overtook.
const OWN_TRIES: u32 = 4;
/// Names beside another that are tried.
pub(super) const NAMES: u32 = 1000;

impl FilesApi {
    /// Carries out a pack of changes.
    pub(super) async fn put(&self, caller: &Caller, body: Incoming) -> Result<Response<Body>, Problem> {
        let writer = Writer {
            sandbox: Some(caller.session.sandbox.clone()),
            decision: caller.decision.clone(),
            ..Writer::new(Actor::Sandbox(caller.session.sandbox.clone()))
        };
        let suffix = format!(".conflict-{}", caller.session.sandbox);
        let mut putting = Putting {
            user: self.files(caller),
            store: self.store.clone(),
            lists: self.lists.clone(),
            owner: Self::owner(caller),
            session: caller.session.clone(),
            writer,
            suffix,
            records: Vec::new(),
            outcomes: BTreeMap::new(),
        };
        let mut pack = Pack::new(body);
        putting.take(&mut pack).await?;
        json(&putting.finish().await.map_err(|error| unavailable(&error))?)
    }
}

/// What is held of a record until the pack is here.
enum Held {
    /// A small file with its content.
    Small { file: SmallFile, is_doubtful: bool },
    /// A file that goes.
    Gone(FilePath, storage::Version),
    /// A folder or link, or what becomes of one.
    Shape(Put),
    /// Its outcome is known.
    Settled,
}

struct Putting {
    user: UserFiles,
    store: Store,
    lists: Lists,
    owner: FileOwner,
    session: SyncSessionRow,
    writer: Writer,
    suffix: String,
    records: Vec<Held>,
    outcomes: BTreeMap<usize, Outcome>,
}

impl Putting {
    /// Takes a pack: large files go to the store as they come.
    async fn take(&mut self, pack: &mut Pack) -> Result<(), Problem> {
        let mut held_bytes = 0;
        while let Some(part) = pack.next().await? {
            let Part::Head { json, has_content } = part else {
                return Err(Problem::new(Code::RequestMalformed, "content without a head"));
            };
            let put: Put = serde_json::from_slice(&json)
                .map_err(|_malformed| Problem::new(Code::InvalidInput, "a record's head cannot be read"))?;
            if self.records.len() >= MOST_IN_PACK || has_content != matches!(put.to, Became::File { .. }) {
                return Err(Problem::new(
                    Code::InvalidInput,
                    "the pack holds too much, or a file without content",
                ));
            }
            let place = self.records.len();
            let held = match FilePath::parse(put.path.as_str()) {
                Ok(path) => self.record(pack, path, put, (place, &mut held_bytes)).await?,
                Err(bad) => {
                    if has_content {
                        skip(pack).await?;
                    }
                    self.settle(place, Outcome::Refused { why: bad.to_string() })
                }
            };
            self.records.push(held);
        }
        Ok(())
    }

    async fn record(
        &mut self,
        pack: &mut Pack,
        path: FilePath,
        put: Put,
        (place, held_bytes): (usize, &mut u64),
    ) -> Result<Held, Problem> {
        Ok(match put.to {
            Became::File { size, .. } if size > WHOLE_BYTES => {
                let outcome = self.large(pack, path, &put).await?;
                self.settle(place, outcome)
            }
            Became::File { .. } => match small(pack, path, &put, held_bytes).await? {
                Some(held) => held,
                None => self.settle(place, Outcome::Broken),
            },
            Became::Gone => match put.base.as_ref().and_then(file_version) {
                Some(version) => Held::Gone(path, version),
                None => Held::Shape(put),
            },
            Became::Folder { .. } | Became::Link { .. } => Held::Shape(put),
        })
    }

    fn settle(&mut self, place: usize, outcome: Outcome) -> Held {
        self.outcomes.insert(place, outcome);
        Held::Settled
    }

    /// Carries out what was held; the outcomes are in the records' order.
    async fn finish(mut self) -> Result<Vec<Outcome>, StorageError> {
        let (mut small, mut gone, mut shapes) = (Vec::new(), Vec::new(), Vec::new());
        for (place, held) in std::mem::take(&mut self.records).into_iter().enumerate() {
            match held {
                Held::Settled => {}
                Held::Small { file, is_doubtful } => small.push((place, file, is_doubtful)),
                Held::Gone(path, version) => gone.push((place, path, version)),
                Held::Shape(put) => shapes.push((place, put)),
            }
        }
        if !small.is_empty() {
            let files = small.iter().map(|(_, file, _)| file.clone()).collect();
            let written = self.user.write_many(&self.writer, files).await;
            for ((place, file, is_doubtful), written) in small.into_iter().zip(written) {
                let outcome = self.outcome(written, file, is_doubtful).await?;
                self.outcomes.insert(place, outcome);
            }
        }
        if !gone.is_empty() {
            let files =
                gone.iter().map(|(_, path, version)| (path.clone(), Condition::Version(version.clone())));
            let removed = self.user.remove_many(&self.writer, files.collect()).await;
            for ((place, path, _), removed) in gone.into_iter().zip(removed) {
                let outcome = self.removed(&path, removed).await?;
                self.outcomes.insert(place, outcome);
            }
        }
        if !shapes.is_empty() {
            self.shape(shapes).await?;
        }
        Ok(self.outcomes.into_values().collect())
    }

    /// What became of a small file; one that lost is put beside.
    async fn outcome(
        &self,
        written: Result<FileEntry, StorageError>,
        file: SmallFile,
        is_doubtful: bool,
    ) -> Result<Outcome, StorageError> {
        let SmallFile { path, condition, about, content } = file;
        let lost = match judged(written)? {
            Judged::Done(outcome) => return Ok(outcome),
            Judged::Lost(lost) => lost,
        };
        if let Some(outcome) = self.is_there(&path, about.digest, about.mode).await? {
            return Ok(outcome);
        }
        let again = |path: &FilePath| {
            let bytes = content.clone();
            let content: Content = stream::once(async move { Ok(bytes) }).boxed();
            (path.clone(), about.clone(), content)
        };
        // What of its own was under way when it last had no answer may still come to the store meanwhile.
        for _ in 0..OWN_TRIES {
            let may_be_own = lost.by.is_none() && !is_doubtful;
            let own = if may_be_own { self.own_version(&path).await? } else { None };
            let Some(own) = own else { break };
            let (to, about, content) = again(&path);
            let (digest, mode) = (about.digest, about.mode);
            let written = self.user.write(&self.writer, &to, &Condition::Version(own), about, content).await;
            if let Judged::Done(outcome) = judged(written)? {
                return Ok(outcome);
            }
            if let Some(outcome) = self.is_there(&path, digest, mode).await? {
                return Ok(outcome);
            }
        }
        if matches!(lost, Lost { by: None })
            && condition != Condition::Nothing
            && self.user.find(&path).await?.is_none()
        {
            // It was deleted there and changed here: the change counts.
            let (to, about, content) = again(&path);
            let written = self.user.write(&self.writer, &to, &Condition::Nothing, about, content).await;
            if let Judged::Done(outcome) = judged(written)? {
                return Ok(outcome);
            }
        }
        self.beside(&path, &lost, about.digest, about.mode, |path| Some(again(path))).await
    }

    /// Puts what lost under a name that nothing has.
    async fn beside(
        &self,
        path: &FilePath,
        lost: &Lost,
        digest: Option<storage::Digest>,
        mode: Option<u32>,
        again: impl Fn(&FilePath) -> Option<(FilePath, NewFile, Content)>,
    ) -> Result<Outcome, StorageError> {
        for number in 1..=NAMES {
            let Some(name) = beside(path, lost.by.as_ref(), &self.suffix, number) else {
                let why = "another conversation changed it, and its name is too long for two";
                return Ok(Outcome::Refused { why: why.to_owned() });
            };
            if let Some(Outcome::Stored { entry }) = self.is_there(&name, digest, mode).await? {
                return Ok(Outcome::Lost { kept_as: entry });
            }
            let Some((to, about, content)) = again(&name) else { return Ok(Outcome::Broken) };
            let written = self.user.write(&self.writer, &to, &Condition::Nothing, about, content).await;
            match judged(written)? {
                Judged::Done(Outcome::Stored { entry }) => return Ok(Outcome::Lost { kept_as: entry }),
                Judged::Done(other) => return Ok(other),
                Judged::Lost(_) => {}
            }
        }
        Ok(Outcome::Refused { why: "too many versions of it are kept beside each other already".to_owned() })
    }

    /// The version that is there, if this very sandbox wrote it: the answer to that was lost, and what
    /// comes now is its next state. Nobody else's is in between.
    async fn own_version(&self, path: &FilePath) -> Result<Option<storage::Version>, StorageError> {
        let owner = (&self.session.tenant, &self.session.user_id);
        let written = self.store.file_writer(owner, path.as_str()).await?;
        let by = self.writer.actor.to_string();
        let known = written.filter(|(_, who)| *who == by).map(|(version, _)| storage::Version::from(version));
        self.user.own_version(path, &self.session.sandbox, known).await
    }

    /// What became of a deletion.
    async fn removed(
        &self,
        path: &FilePath,
        removed: Result<bool, StorageError>,
    ) -> Result<Outcome, StorageError> {
        if matches!(removed, Err(StorageError::Conflict { found: Some(_), .. }))
            && let Some(own) = self.own_version(path).await?
        {
            let again = self.user.remove(&self.writer, path, &Condition::Version(own)).await;
            return removed_as(again);
        }
        removed_as(removed)
    }

    /// Whether just this is there already: it was put before, and the answer was lost.
    async fn is_there(
        &self,
        path: &FilePath,
        digest: Option<storage::Digest>,
        mode: Option<u32>,
    ) -> Result<Option<Outcome>, StorageError> {
        let found = match self.user.find(path).await {
            Ok(found) => found,
            Err(StorageError::NotFound(_) | StorageError::Obstructed { .. }) => None,
            Err(error) => return Err(error),
        };
        let same = found.filter(|it| digest.is_some() && it.digest == digest && Some(it.mode) == mode);
        Ok(same.as_ref().and_then(entry_of_file).map(|entry| Outcome::Stored { entry: Some(entry) }))
    }

    /// Passes a large file on to the store while it comes: to its own name, or beside what won already.
    /// A race that is lost in the meantime makes its sync put it again.
    async fn large(&self, pack: &mut Pack, path: FilePath, put: &Put) -> Result<Outcome, Problem> {
        let place = self.place_of_large(&path, put).await.map_err(|error| unavailable(&error))?;
        let Some((to, condition)) = place else {
            skip(pack).await?;
            let why = "there is no name for it beside what another conversation wrote";
            return Ok(Outcome::Refused { why: why.to_owned() });
        };
        let about = about(put, None);
        let mode = about.mode;
        let (sender, from) = mpsc::channel::<io::Result<Bytes>>(PARTS);
        let content: Content =
            stream::unfold(from, |mut from| async move { Some((from.recv().await?, from)) }).boxed();
        let writing = self.user.write(&self.writer, &to, &condition, about, content);
        let (passed, written) = tokio::join!(pass(pack, sender), writing);
        let Some(digest) = passed? else { return Ok(Outcome::Broken) };
        let judged = judged(written).map_err(|error| unavailable(&error))?;
        let Judged::Done(Outcome::Stored { entry: Some(entry) }) = judged else {
            return Ok(match judged {
                Judged::Done(outcome) => outcome,
                Judged::Lost(_) => Outcome::Broken,
            });
        };
        if to == path {
            return Ok(Outcome::Stored { entry: Some(entry) });
        }
        let settled = self.lost_large(&path, &to, (Some(digest), mode), entry).await;
        settled.map_err(|error| unavailable(&error))
    }

    /// It was put beside: unless what won turns out to be just the same.
    async fn lost_large(
        &self,
        path: &FilePath,
        beside: &FilePath,
        (digest, mode): (Option<storage::Digest>, Option<u32>),
        entry: Entry,
    ) -> Result<Outcome, StorageError> {
        let Some(outcome) = self.is_there(path, digest, mode).await? else {
            return Ok(Outcome::Lost { kept_as: Some(entry) });
        };
        let own = file_version(&entry.version).map_or(Condition::Nothing, Condition::Version);
        self.user.remove(&self.writer, beside, &own).await?;
        Ok(outcome)
    }

    /// Where a large file goes, and on which condition.
    async fn place_of_large(
        &self,
        path: &FilePath,
        put: &Put,
    ) -> Result<Option<(FilePath, Condition)>, StorageError> {
        let mut by = None;
        for folder in path.folders().filter_map(|folder| FilePath::parse(folder).ok()) {
            if self.find(&folder).await?.is_some() {
                by = Some(folder);
                break;
            }
        }
        let found = if by.is_some() { None } else { self.find(path).await?.map(|it| it.version) };
        let own = if put.is_doubtful || by.is_some() { None } else { self.own_version(path).await? };
        match (&by, found) {
            // Deleted there and changed here: the change counts. What is in no list may be there.
            (None, None) => {
                return Ok(Some((path.clone(), own.map_or(Condition::Nothing, Condition::Version))));
            }
            (None, Some(found)) => {
                if base_of(put).as_ref() == Some(&found) || own.as_ref() == Some(&found) {
                    return Ok(Some((path.clone(), Condition::Version(found))));
                }
            }
            (Some(_), _) => {}
        }
        for number in 1..=NAMES {
            let Some(name) = beside(path, by.as_ref(), &self.suffix, number) else { return Ok(None) };
            if self.find(&name).await?.is_none() {
                return Ok(Some((name, Condition::Nothing)));
            }
        }
        Ok(None)
    }

    async fn find(&self, path: &FilePath) -> Result<Option<FileEntry>, StorageError> {
        match self.user.find(path).await {
            Err(StorageError::NotFound(_) | StorageError::Obstructed { .. }) => Ok(None),
            found => found,
        }
    }

    /// Folders and links, which the store has in one place together: judged by what is listed now.
    async fn shape(&mut self, shapes: Vec<(usize, Put)>) -> Result<(), StorageError> {
        let listed = {
            let _turn = self.lists.turn(&self.owner).await;
            entries(self.user.list().await?)
        };
        let mut shaping = Shaping::new(listed, &self.suffix);
        let judged: Vec<(usize, Outcome)> =
            shapes.into_iter().map(|(place, put)| (place, shaping.judge(&put))).collect();
        let edits = shaping.into_edits();
        let reshaped = if edits.is_empty() { Ok(()) } else { self.user.reshape(&self.writer, edits).await };
        let refused = match reshaped {
            // Another try would come to the same, and files wait behind it.
            Err(error @ StorageError::TooMuch { .. }) => Some(error.to_string()),
            reshaped => {
                reshaped?;
                None
            }
        };
        self.outcomes.extend(judged.into_iter().map(|(place, outcome)| match &refused {
            Some(why) => (place, Outcome::Refused { why: why.clone() }),
            None => (place, outcome),
        }));
        Ok(())
    }
}

/// A put that lost.
struct Lost {
    /// What stands in its way, if that is not another version of itself.
    by: Option<FilePath>,
}

enum Judged {
    Done(Outcome),
    Lost(Lost),
}

fn judged(written: Result<FileEntry, StorageError>) -> Result<Judged, StorageError> {
    Ok(match written {
        Ok(entry) => Judged::Done(match entry_of_file(&entry) {
            Some(entry) => Outcome::Stored { entry: Some(entry) },
            None => Outcome::Broken,
        }),
        Err(StorageError::Conflict { .. }) => Judged::Lost(Lost { by: None }),
        Err(StorageError::Obstructed { by, .. }) => Judged::Lost(Lost { by: Some(by) }),
        Err(StorageError::Content(_) | StorageError::Differs { .. }) => Judged::Done(Outcome::Broken),
        Err(error @ StorageError::TooMuch { .. }) => {
            Judged::Done(Outcome::Refused { why: error.to_string() })
        }
        Err(error) => return Err(error),
    })
}

fn removed_as(removed: Result<bool, StorageError>) -> Result<Outcome, StorageError> {
    match removed {
        Ok(_) => Ok(Outcome::Stored { entry: None }),
        Err(
            StorageError::NotFound(_)
            | StorageError::Obstructed { .. }
            | StorageError::Conflict { found: None, .. },
        ) => Ok(Outcome::Stored { entry: None }),
        Err(StorageError::Conflict { .. }) => Ok(Outcome::Lost { kept_as: None }),
        Err(error) => Err(error),
    }
}

/// The name for what lost: that of the path, or of the folder of it in whose place something else is.
pub(super) fn beside(path: &FilePath, by: Option<&FilePath>, suffix: &str, number: u32) -> Option<FilePath> {
    let text = path.as_str();
    let stem = match by {
        // A file where a folder of the path would be.
        Some(by) if text.strip_prefix(by.as_str()).is_some_and(|rest| rest.starts_with('/')) => by.as_str(),
        _ => text,
    };
    let rest = text.get(stem.len()..).unwrap_or_default();
    let again = if number == 1 { String::new() } else { format!("-{number}") };
    FilePath::parse(&format!("{stem}{suffix}{again}{rest}")).ok()
}

/// The version that a put replaces, if it knows one.
fn base_of(put: &Put) -> Option<storage::Version> {
    put.base.as_ref().and_then(file_version).filter(|_| !put.is_doubtful)
}

fn about(put: &Put, digest: Option<storage::Digest>) -> NewFile {
    let Became::File { size, mode, modified } = put.to else { return NewFile::default() };
    NewFile {
        size: Some(size),
        digest,
        mode: Some(u32::from(mode)),
        modified: Timestamp::from_microsecond(modified).ok(),
        content_type: None,
    }
}

/// Takes a small file's content; `None` if its sync broke it off.
async fn small(
    pack: &mut Pack,
    path: FilePath,
    put: &Put,
    held_bytes: &mut u64,
) -> Result<Option<Held>, Problem> {
    let too_much = || Problem::new(Code::BodyTooLarge, "the pack holds more than its heads say");
    let mut content = BytesMut::new();
    loop {
        match pack.next().await? {
            Some(Part::Data(bytes)) => content.extend_from_slice(&bytes),
            Some(Part::Hole(length)) => {
                let length = usize::try_from(length).map_err(|_too_long| too_much())?;
                if length as u64 > WHOLE_BYTES {
                    return Err(too_much());
                }
                content.resize(content.len() + length, 0);
            }
            Some(Part::End(Some(Digest(digest)))) => {
                let content = content.freeze();
                *held_bytes += content.len() as u64;
                if *held_bytes > HELD_BYTES {
                    return Err(too_much());
                }
                let about = about(put, Some(storage::Digest::from(digest)));
                let condition = base_of(put).map_or(Condition::Nothing, Condition::Version);
                let file = SmallFile { path, condition, about, content };
                return Ok(Some(Held::Small { file, is_doubtful: put.is_doubtful }));
            }
            Some(Part::End(None)) => return Ok(None),
            Some(Part::Head { .. }) | None => {
                return Err(Problem::new(Code::RequestMalformed, "content has no end"));
            }
        }
        if content.len() as u64 > WHOLE_BYTES {
            return Err(too_much());
        }
    }
}
