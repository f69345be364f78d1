// SPDX-License-Identifier: Apache-2.0
//! What syncs ask for: a listing, files' content, and whether others changed something.

use super::{Caller, FilesApi, unavailable};
use crate::storage::{self, FileEntry, StorageError, UserFiles};
use crate::store::FileOwner;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt as _};
use http::{Response, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use postern_common::clock;
use postern_common::files::pack::{put_data, put_end, put_head};
use postern_common::files::{
    Changed, Changes, Digest, Entry, FilePath, Found, Get, LONGEST_WAIT_MILLIS, Listing, MODE_BITS,
    MOST_IN_PACK, Version, Wanted, What,
};
use postern_common::problem::{Code, Problem};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// The longest body that is JSON: a thousand paths, escaped.
const JSON_BYTES: usize = 16 << 20;
/// Files up to this long are read whole, several at a time, so that a pack of them waits for none.
const WHOLE_BYTES: u64 = 1 << 20;
/// Files of a pack that are opened ahead.
const AHEAD: usize = 16;
/// Parts of a pack that wait for the connection.
const PARTS: usize = 8;
/// What a part has at least, as long as there is more.
const PART_BYTES: usize = 128 << 10;
/// How often is looked for changes: they are to be seen within 2 s.
const LOOK_EVERY: Duration = Duration::from_millis(300);

impl FilesApi {
    pub(super) fn files(&self, caller: &Caller) -> UserFiles {
        self.storage.of(&caller.session.tenant, &caller.session.user_id)
    }

    /// Whose files they are.
    pub(super) fn owner(caller: &Caller) -> FileOwner {
        FileOwner { tenant: caller.session.tenant.clone(), user: caller.session.user_id.clone() }
    }

    async fn revision(&self, caller: &Caller, after: i64) -> Result<(i64, bool), Problem> {
        let session = &caller.session;
        let owner = (&session.tenant, &session.user_id);
        let found = self.store.files_revision(owner, &session.sandbox, after).await;
        found.map_err(|error| unavailable(&error))
    }

    /// Everything that the user has.
    pub(super) async fn list(&self, caller: &Caller) -> Result<Response<Body>, Problem> {
        let owner = Self::owner(caller);
        let _turn = self.lists.turn(&owner).await;
        // Before the listing: what is written meanwhile is a change after it.
        let newest = self.store.newest_revision((&owner.tenant, &owner.user)).await;
        let revision = newest.map_err(|error| unavailable(&error))?;
        // Whoever brings them in uses them all.
        let noted = self.store.used_files(&owner, clock::now()).await;
        noted.map_err(|error| unavailable(&error))?;
        let listed = self.files(caller).list().await.map_err(|error| unavailable(&error))?;
        json(&Listing { revision, entries: entries(listed) })
    }

    /// Waits until others than this sandbox changed something, or the time is over.
    pub(super) async fn changes(&self, caller: &Caller, body: Incoming) -> Result<Response<Body>, Problem> {
        let Changes { mut after, wait_millis } = read(body).await?;
        let until = Instant::now() + Duration::from_millis(wait_millis.min(LONGEST_WAIT_MILLIS));
        loop {
            let (revision, by_others) = self.revision(caller, after).await?;
            if by_others || Instant::now() >= until || self.stop.is_cancelled() {
                return json(&Changed { revision, by_others });
            }
            after = revision;
            let _ = self.stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await;
        }
    }

    /// Files' content, in the order in which they were asked for.
    pub(super) async fn get(&self, caller: &Caller, body: Incoming) -> Result<Response<Body>, Problem> {
        let Get { files } = read(body).await?;
        if files.len() > MOST_IN_PACK {
            return Err(Problem::new(Code::InvalidInput, "too many files are asked for at once"));
        }
        let (to, from) = mpsc::channel(PARTS);
        let user = self.files(caller);
        // Ends with the answer: nobody reads a pack of a connection that is gone.
        let sending = send(user, files, to);
        let parts = stream::unfold((from, Some(Box::pin(sending))), |(mut from, mut sending)| async move {
            loop {
                let Some(running) = &mut sending else {
                    return from.recv().await.map(|part| (part, (from, None)));
                };
                tokio::select! {
                    biased;
                    part = from.recv() => return part.map(|part| (part, (from, sending))),
                    () = running => sending = None,
                }
            }
        });
        Ok(Response::new(Body::from_stream(parts)))
    }
}

/// A file that is open, or why not.
enum Opened {
    Whole(Bytes, Option<storage::Digest>),
    Streamed(storage::Content, Option<storage::Digest>),
    Changed,
}

type Part = Result<Bytes, StorageError>;

async fn send(user: UserFiles, files: Vec<Wanted>, to: mpsc::Sender<Part>) {
    let opening = files.into_iter().map(move |wanted| open(user.clone(), wanted));
    let mut opening = stream::iter(opening).buffered(AHEAD);
    let mut parts = BytesMut::with_capacity(2 * PART_BYTES);
    while let Some(opened) = opening.next().await {
        let sent = match opened {
            Ok(opened) => one(&mut parts, opened, &to).await,
            Err(error) => to.send(Err(error)).await.map_err(|_gone| NobodyReads),
        };
        if sent.is_err() {
            return;
        }
    }
    let _ = to.send(Ok(parts.freeze())).await.is_ok();
}

struct NobodyReads;

async fn flush(parts: &mut BytesMut, to: &mpsc::Sender<Part>) -> Result<(), NobodyReads> {
    if parts.len() < PART_BYTES {
        return Ok(());
    }
    let full = std::mem::replace(parts, BytesMut::with_capacity(2 * PART_BYTES)).freeze();
    to.send(Ok(full)).await.map_err(|_gone| NobodyReads)
}

async fn one(parts: &mut BytesMut, opened: Opened, to: &mpsc::Sender<Part>) -> Result<(), NobodyReads> {
    let found = if matches!(opened, Opened::Changed) { Found::Changed } else { Found::Here };
    if put_head(parts, &found, found == Found::Here).is_err() {
        return Err(NobodyReads);
    }
    // What the store does not know is told as zeros: the listing says so too, and nobody compares.
    let known = |digest: Option<storage::Digest>| Digest(digest.map_or([0; 32], |it| *it.as_bytes()));
    match opened {
        Opened::Changed => {}
        Opened::Whole(bytes, digest) => {
            put_data(parts, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            parts.extend_from_slice(&bytes);
            put_end(parts, Some(&known(digest)));
        }
        Opened::Streamed(mut content, digest) => {
            while let Some(bytes) = content.next().await {
                match bytes {
                    Ok(bytes) if bytes.is_empty() => {}
                    Ok(bytes) => {
                        put_data(parts, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
                        // Not copied behind the head: a large part goes as it is.
                        let head = std::mem::take(parts).freeze();
                        to.send(Ok(head)).await.map_err(|_gone| NobodyReads)?;
                        to.send(Ok(bytes)).await.map_err(|_gone| NobodyReads)?;
                    }
                    Err(_broken) => {
                        put_end(parts, None);
                        return flush(parts, to).await;
                    }
                }
            }
            put_end(parts, Some(&known(digest)));
        }
    }
    flush(parts, to).await
}

async fn open(user: UserFiles, wanted: Wanted) -> Result<Opened, StorageError> {
    let (Ok(path), Some(version)) =
        (storage::FilePath::parse(wanted.path.as_str()), file_version(&wanted.version))
    else {
        return Ok(Opened::Changed);
    };
    let opened = match user.open(&path, wanted.offset, &version).await {
        Ok(opened) => opened,
        Err(StorageError::NotFound(_) | StorageError::Conflict { .. } | StorageError::Range { .. }) => {
            return Ok(Opened::Changed);
        }
        Err(error) => return Err(error),
    };
    let storage::Open { size, digest, mut content } = opened;
    if size.saturating_sub(wanted.offset) > WHOLE_BYTES {
        return Ok(Opened::Streamed(content, digest));
    }
    let mut whole = Vec::new();
    while let Some(bytes) = content.next().await {
        let Ok(bytes) = bytes else { return Ok(Opened::Changed) };
        if whole.is_empty() && bytes.len() as u64 == size.saturating_sub(wanted.offset) {
            return Ok(Opened::Whole(bytes, digest));
        }
        whole.extend_from_slice(&bytes);
    }
    Ok(Opened::Whole(whole.into(), digest))
}

/// Reads a JSON body.
async fn read<Call: serde::de::DeserializeOwned>(body: Incoming) -> Result<Call, Problem> {
    let whole = Limited::new(body, JSON_BYTES).collect().await;
    let whole =
        whole.map_err(|_cut| Problem::new(Code::BodyTooLarge, "the call is too long, or broke off"))?;
    serde_json::from_slice(&whole.to_bytes())
        .map_err(|_malformed| Problem::new(Code::InvalidInput, "the call cannot be read"))
}

pub(super) fn json(value: &impl serde::Serialize) -> Result<Response<Body>, Problem> {
    let text = serde_json::to_vec(value).map_err(|error| unavailable(&error))?;
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Everything in one order, so that a folder comes before what it holds. What this version of the wire
/// has no words for is not there.
pub(super) fn entries(listed: storage::Listing) -> Vec<Entry> {
    let storage::Listing { files, folders, links } = listed;
    let mut entries = Vec::with_capacity(files.len() + folders.len() + links.len());
    entries.extend(files.iter().filter_map(entry_of_file));
    entries.extend(folders.into_iter().filter_map(|(path, mode)| entry_of_folder(path.as_str(), mode)));
    entries.extend(links.into_iter().filter_map(|(path, target)| entry_of_link(path.as_str(), target)));
    entries.sort_unstable_by(|one, other| one.path.cmp(&other.path));
    entries
}

pub(super) fn entry_of_file(file: &FileEntry) -> Option<Entry> {
    Some(Entry {
        path: FilePath::parse(file.path.as_str()).ok()?,
        what: What::File {
            size: file.size,
            digest: file.digest.map(|it| Digest(*it.as_bytes())),
            mode: mode(file.mode),
            modified: file.modified.as_microsecond(),
        },
        version: version_of_file(&file.version)?,
    })
}

pub(super) fn entry_of_folder(path: &str, of_mode: u32) -> Option<Entry> {
    let mode = mode(of_mode);
    let version = Version::new(format!("folder:{mode:o}"))?;
    Some(Entry { path: FilePath::parse(path).ok()?, what: What::Folder { mode }, version })
}

pub(super) fn entry_of_link(path: &str, target: String) -> Option<Entry> {
    let version = Version::new(format!("link:{}", storage::Digest::of(target.as_bytes())))?;
    Some(Entry { path: FilePath::parse(path).ok()?, what: What::Link { target }, version })
}

/// Versions of files, folders and links never look alike.
pub(super) fn version_of_file(version: &storage::Version) -> Option<Version> {
    Version::new(format!("file:{}", version.as_str()))
}

/// The store's own name for a version of a file; `None` if it is a folder's or a link's.
pub(super) fn file_version(version: &Version) -> Option<storage::Version> {
    version.as_str().strip_prefix("file:").map(|text| storage::Version::from(text.to_owned()))
}

#[expect(clippy::cast_possible_truncation, reason = "masked to nine bits")]
fn mode(mode: u32) -> u16 {
    (mode & u32::from(MODE_BITS)) as u16
}
