// SPDX-License-Identifier: Apache-2.0
//! Objects in a service: S3, Azure Blob, Google Cloud Storage, by the `object_store` crate.
//!
//! Small objects are put in one request with the service's own condition. For a large one, and for
//! a removal, no such request exists in the crate: there the condition is looked at right before,
//! under the lock that every writer of ours holds (`locks.rs`).
//!
//! INVARIANT: what a service says of a fault is told only by [`clean`]: no signature, token or key.

mod list;

pub(super) use list::RANGE;

use super::objects::{Fault, Notes, ObjectInfo, Opened, Outcome};
use super::path::{Key, STAGING};
use super::types::{Condition, Version};
use crate::keys::hex;
use crate::store::whole_micros;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use object_store::path::Path;
use object_store::signer::{Method, SignedUrlOptions, Signer};
use object_store::{
    Attribute, Attributes, Error, GetOptions, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, UpdateVersion,
};
use postern_common::secret::Secret;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use url::Url;

/// Requests to the service at the same time.
const REQUESTS: usize = 64;
/// Large objects that are written at the same time: each holds some parts in memory.
pub(super) const LARGE: usize = 8;
/// A part of a large object. S3 wants 5 MiB at least, and at most 10,000 of them.
pub(super) const PART_BYTES: usize = 8 << 20;
/// Parts of one large object that are under way.
const PARTS: usize = 4;
/// What is shown of a service's complaint.
const SHOWN: usize = 400;

/// Which service it is, where they differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    /// S3 and what speaks like it.
    S3,
    /// Azure Blob Storage.
    Azure,
    /// Google Cloud Storage, whose conditions take a generation, not an `ETag`.
    Gcs,
}

/// What a service is opened with.
pub(super) struct Connected {
    pub(super) service: Service,
    pub(super) store: Arc<dyn ObjectStore>,
    /// Signs URLs, where the credentials can.
    pub(super) signer: Option<Arc<dyn Signer>>,
    /// What must never be shown.
    pub(super) secrets: Vec<Secret<String>>,
}

/// A bucket. Clones are the same.
#[derive(Clone)]
pub(super) struct Cloud {
    connected: Arc<Connected>,
    requests: Arc<Semaphore>,
    pub(super) large: Arc<Semaphore>,
}

impl fmt::Debug for Cloud {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Cloud").field(&self.connected.service).finish()
    }
}

/// A large object that is being written.
pub(super) struct CloudDraft {
    cloud: Cloud,
    key: Key,
    upload: Box<dyn MultipartUpload>,
    waiting: BytesMut,
    parts: JoinSet<object_store::Result<()>>,
    _place: OwnedSemaphorePermit,
}

impl Cloud {
    /// A bucket that is connected to.
    pub(super) fn new(connected: Connected) -> Self {
        Self {
            connected: Arc::new(connected),
            requests: Arc::new(Semaphore::new(REQUESTS)),
            large: Arc::new(Semaphore::new(LARGE)),
        }
    }

    /// What is known of an object.
    pub(super) async fn find(&self, key: &Key) -> Result<Option<(ObjectInfo, Notes)>, Fault> {
        Ok(self.head(key).await?.map(|(meta, attributes)| (info(&meta), notes(&attributes))))
    }

    async fn head(&self, key: &Key) -> Result<Option<(ObjectMeta, Attributes)>, Fault> {
        let what = "look at a file";
        let _place = self.place(what).await?;
        let options = GetOptions::new().with_head(true);
        match self.connected.store.get_opts(&self.path(key, what)?, options).await {
            Ok(found) => Ok(Some((found.meta, found.attributes))),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.fault(what, &error)),
        }
    }

    /// An object's bytes, or those of a range, which is cut where the object ends.
    pub(super) async fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<Option<Opened>, Fault> {
        let what = "read a file";
        let mut options = GetOptions::new();
        if let Some(range) = range {
            let Some((meta, attributes)) = self.head(key).await? else { return Ok(None) };
            let range = range.start.min(meta.size)..range.end.min(meta.size);
            if range.is_empty() {
                let content = stream::empty().boxed();
                return Ok(Some(Opened { info: info(&meta), notes: notes(&attributes), range, content }));
            }
            options = options.with_range(Some(range)).with_if_match(meta.e_tag);
        }
        let _place = self.place(what).await?;
        let opened = match self.connected.store.get_opts(&self.path(key, what)?, options).await {
            Ok(opened) => opened,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.fault(what, &error)),
        };
        let (info, notes, range) = (info(&opened.meta), notes(&opened.attributes), opened.range.clone());
        let cloud = self.clone();
        let failed = move |error: Error| io::Error::other(cloud.clean(&error));
        Ok(Some(Opened { info, notes, range, content: opened.into_stream().map_err(failed).boxed() }))
    }

    /// Writes an object whose bytes are all there.
    pub(super) async fn put(
        &self,
        key: &Key,
        condition: &Condition,
        notes: &Notes,
        content: Bytes,
    ) -> Result<Outcome, Fault> {
        let what = "write a file";
        let mode = match self.mode(key, condition).await? {
            Ok(mode) => mode,
            Err(found) => return Ok(Outcome::Conflict(found)),
        };
        let (size, mark) = (content.len(), mark()?);
        let options = PutOptions { mode, attributes: attributes(notes, &mark), ..PutOptions::default() };
        let path = self.path(key, what)?;
        let place = self.place(what).await?;
        let put = self.connected.store.put_opts(&path, content.into(), options).await;
        drop(place);
        let size = u64::try_from(size).unwrap_or(u64::MAX);
        match put {
            Ok(put) => {
                let version = version(put.e_tag);
                let written = whole_micros(postern_common::clock::now());
                Ok(Outcome::Done(ObjectInfo { size, version, written }))
            }
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                // The answer to a first try may have been lost: then what is there is our own.
                let found = self.head(key).await?;
                Ok(match found {
                    Some((meta, attributes)) if marked(&attributes) == Some(&*mark) => {
                        Outcome::Done(info(&meta))
                    }
                    found => Outcome::Conflict(found.map(|(meta, _)| info(&meta).version)),
                })
            }
            Err(error) if is_obstructed(&error) => Err(Fault::Obstructed),
            Err(error) => Err(self.fault(what, &error)),
        }
    }

    /// How the service is told a condition; what is there if it cannot hold.
    async fn mode(
        &self,
        key: &Key,
        condition: &Condition,
    ) -> Result<Result<PutMode, Option<Version>>, Fault> {
        let wanted = match condition {
            Condition::Anything => return Ok(Ok(PutMode::Overwrite)),
            Condition::Nothing => return Ok(Ok(PutMode::Create)),
            Condition::Version(wanted) if self.connected.service != Service::Gcs => {
                let e_tag = Some(format!("\"{}\"", wanted.as_str()));
                return Ok(Ok(PutMode::Update(UpdateVersion { e_tag, version: None })));
            }
            Condition::Version(_) | Condition::Something => condition,
        };
        let found = self.head(key).await?.map(|(meta, _)| meta);
        let there = found.as_ref().map(|meta| info(meta).version);
        match found {
            Some(meta) if wanted.holds(there.as_ref()) => {
                Ok(Ok(PutMode::Update(UpdateVersion { e_tag: meta.e_tag, version: meta.version })))
            }
            _ => Ok(Err(there)),
        }
    }

    /// Begins a large object.
    pub(super) async fn begin(&self, key: &Key, notes: &Notes) -> Result<CloudDraft, Fault> {
        let what = "write a file";
        let _place = Arc::clone(&self.large).acquire_owned().await.map_err(|closed| shut(what, closed))?;
        let options = PutMultipartOptions { attributes: attributes(notes, &mark()?), ..Default::default() };
        let begun = self.connected.store.put_multipart_opts(&self.path(key, what)?, options).await;
        let upload = begun.map_err(|error| self.fault(what, &error))?;
        let (cloud, key, waiting) = (self.clone(), key.clone(), BytesMut::new());
        Ok(CloudDraft { cloud, key, upload, waiting, parts: JoinSet::new(), _place })
    }

    /// Removes an object; whether there was one.
    pub(super) async fn remove(&self, key: &Key, condition: &Condition) -> Result<Outcome<bool>, Fault> {
        let what = "remove a file";
        let found = self.head(key).await?.map(|(meta, _)| info(&meta).version);
        if !condition.holds(found.as_ref()) {
            return Ok(Outcome::Conflict(found));
        }
        if found.is_none() {
            return Ok(Outcome::Done(false));
        }
        self.delete(vec![self.path(key, what)?], what).await?;
        Ok(Outcome::Done(true))
    }

    /// Removes everything below a prefix of ours; returns how many objects that were.
    pub(super) async fn erase(&self, prefix: &str) -> Result<u64, Fault> {
        let what = "erase files";
        let paths: Vec<Path> =
            self.below(prefix, what).await?.into_iter().map(|meta| meta.location).collect();
        let count = u64::try_from(paths.len()).unwrap_or(u64::MAX);
        self.delete(paths, what).await?;
        Ok(count)
    }

    /// Removes parts of uploads that were written before `before`; returns how many.
    pub(super) async fn erase_staged(&self, before: Timestamp) -> Result<u64, Fault> {
        let what = "remove parts of uploads";
        let staged = self.below(STAGING, what).await?.into_iter();
        let old: Vec<Path> =
            staged.filter(|meta| info(meta).written < before).map(|meta| meta.location).collect();
        let count = u64::try_from(old.len()).unwrap_or(u64::MAX);
        self.delete(old, what).await?;
        Ok(count)
    }

    async fn delete(&self, paths: Vec<Path>, what: &'static str) -> Result<(), Fault> {
        let _place = self.place(what).await?;
        let mut deleted = self.connected.store.delete_stream(stream::iter(paths.into_iter().map(Ok)).boxed());
        while let Some(deleted) = deleted.next().await {
            match deleted {
                Ok(_) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(self.fault(what, &error)),
            }
        }
        Ok(())
    }

    /// A URL that lets whoever has it make this one request; `None` if the credentials cannot sign.
    pub(super) async fn signed(
        &self,
        method: Method,
        key: &Key,
        expires_in: Duration,
    ) -> Result<Option<Url>, Fault> {
        let what = "sign a URL";
        let Some(signer) = &self.connected.signer else { return Ok(None) };
        let path = self.path(key, what)?;
        let signed = signer.signed_url_opts(method, &path, expires_in, &SignedUrlOptions::default()).await;
        signed.map(Some).map_err(|error| self.fault(what, &error))
    }

    /// Headers that the service wants with a signed PUT.
    pub(super) fn put_headers(&self) -> &'static [(&'static str, &'static str)] {
        match self.connected.service {
            Service::Azure => &[("x-ms-blob-type", "BlockBlob")],
            Service::S3 | Service::Gcs => &[],
        }
    }

    fn path(&self, key: &Key, what: &'static str) -> Result<Path, Fault> {
        Path::parse(key.as_str()).map_err(|error| self.fault(what, &error.into()))
    }

    async fn place(&self, what: &'static str) -> Result<OwnedSemaphorePermit, Fault> {
        Arc::clone(&self.requests).acquire_owned().await.map_err(|closed| shut(what, closed))
    }

    fn fault(&self, what: &'static str, error: &Error) -> Fault {
        Fault::Store { what, source: self.clean(error).into() }
    }

    fn clean(&self, error: &Error) -> String {
        clean(&error.to_string(), &self.connected.secrets)
    }
}

impl CloudDraft {
    /// Writes what comes next; returns when there is room for more.
    pub(super) async fn write(&mut self, content: Bytes) -> Result<(), Fault> {
        self.waiting.extend_from_slice(&content);
        while self.waiting.len() >= PART_BYTES {
            let part = self.waiting.split_to(PART_BYTES).freeze();
            self.send(part).await?;
        }
        Ok(())
    }

    async fn send(&mut self, part: Bytes) -> Result<(), Fault> {
        while self.parts.len() >= PARTS {
            self.arrived().await?;
        }
        let sent = self.upload.put_part(part.into());
        self.parts.spawn(sent);
        Ok(())
    }

    /// Waits until another part has arrived; `false` if none is under way.
    async fn arrived(&mut self) -> Result<bool, Fault> {
        match self.parts.join_next().await {
            None => Ok(false),
            Some(Ok(Ok(()))) => Ok(true),
            Some(Ok(Err(error))) => Err(self.cloud.fault("write a file", &error)),
            Some(Err(error)) => Err(Fault::Store { what: "write a file", source: error.into() }),
        }
    }

    /// Gives it its name, if the condition holds.
    pub(super) async fn finish(mut self, condition: &Condition) -> Result<Outcome, Fault> {
        let finished = self.try_finish(condition).await;
        if !matches!(finished, Ok(Outcome::Done(_))) {
            self.abandon().await;
        }
        finished
    }

    async fn try_finish(&mut self, condition: &Condition) -> Result<Outcome, Fault> {
        let what = "write a file";
        let rest = self.waiting.split().freeze();
        if !rest.is_empty() {
            self.send(rest).await?;
        }
        while self.arrived().await? {}
        if *condition != Condition::Anything {
            let found = self.cloud.head(&self.key).await?.map(|(meta, _)| info(&meta).version);
            if !condition.holds(found.as_ref()) {
                return Ok(Outcome::Conflict(found));
            }
        }
        match self.upload.complete().await {
            Ok(_) => {}
            Err(error) if is_obstructed(&error) => return Err(Fault::Obstructed),
            Err(error) => return Err(self.cloud.fault(what, &error)),
        }
        // Some services tell another `ETag` here than they do later.
        let written = self.cloud.head(&self.key).await?;
        let lost = || Fault::Store { what, source: "it is not there right after it was written".into() };
        written.map(|(meta, _)| Outcome::Done(info(&meta))).ok_or_else(lost)
    }

    /// Has it never been. What a service keeps of it nevertheless goes by its own rules.
    pub(super) async fn abandon(mut self) {
        self.parts.shutdown().await;
        if let Err(error) = self.upload.abort().await {
            let cause = self.cloud.clean(&error);
            tracing::warn!(cause, "parts of a file that was not written could not be removed");
        }
    }
}

fn shut(what: &'static str, closed: tokio::sync::AcquireError) -> Fault {
    Fault::Store { what, source: closed.into() }
}

/// Whether the service has folders after all, and one of them is in the way (versitygw over POSIX,
/// Azure with a hierarchical namespace).
fn is_obstructed(error: &Error) -> bool {
    let text = error.to_string();
    [
        "ObjectParentIsFile",
        "ExistingObjectIsDirectory",
        "ResourceTypeMismatch",
        "PathConflict",
        "PathIsADirectory",
    ]
    .iter()
    .any(|code| text.contains(code))
}

fn info(meta: &ObjectMeta) -> ObjectInfo {
    let written = Timestamp::from_microsecond(meta.last_modified.timestamp_micros());
    ObjectInfo {
        size: meta.size,
        version: version(meta.e_tag.clone()),
        written: written.unwrap_or(Timestamp::UNIX_EPOCH),
    }
}

/// Lists and answers differ in quotes.
fn version(e_tag: Option<String>) -> Version {
    let text = e_tag.unwrap_or_default();
    Version::from(text.trim_start_matches("W/").trim_matches('"').to_owned())
}

/// Names of attributes: Azure takes those of C# only.
const DIGEST: &str = "posterndigest";
const MODIFIED: &str = "posternmodified";
const MARK: &str = "posternwrite";
const WRITER: &str = "posternwriter";

fn attributes(notes: &Notes, mark: &str) -> Attributes {
    let mut attributes = Attributes::new();
    let mut note = |name: &'static str, value: String| {
        attributes.insert(Attribute::Metadata(name.into()), value.into());
    };
    note(MARK, mark.to_owned());
    if let Some(digest) = notes.digest {
        note(DIGEST, digest.to_string());
    }
    if let Some(modified) = notes.modified {
        note(MODIFIED, modified.as_microsecond().to_string());
    }
    if let Some(writer) = &notes.writer {
        note(WRITER, writer.clone());
    }
    let kind = notes.content_type.clone().unwrap_or_else(|| "application/octet-stream".to_owned());
    attributes.insert(Attribute::ContentType, kind.into());
    attributes
}

fn notes(attributes: &Attributes) -> Notes {
    let note = |name: &'static str| attributes.get(&Attribute::Metadata(name.into())).map(AsRef::as_ref);
    let kind: Option<&str> = attributes.get(&Attribute::ContentType).map(AsRef::as_ref);
    Notes {
        digest: note(DIGEST).and_then(|text: &str| text.parse().ok()),
        modified: note(MODIFIED)
            .and_then(|text: &str| text.parse().ok())
            .and_then(|micros| Timestamp::from_microsecond(micros).ok()),
        content_type: kind.filter(|kind| *kind != "application/octet-stream").map(str::to_owned),
        writer: note(WRITER).map(str::to_owned),
    }
}

/// Tells this write from every other.
fn mark() -> Result<String, Fault> {
    const BYTES: usize = 12;
    let random = crate::keys::random(BYTES);
    let random = random.map_err(|source| Fault::Store { what: "write a file", source: source.into() })?;
    Ok(hex(random.reveal()))
}

fn marked(attributes: &Attributes) -> Option<&str> {
    attributes.get(&Attribute::Metadata(MARK.into())).map(AsRef::as_ref)
}

/// A service's complaint without what it repeats of a request: URLs lose their query, which may be
/// a signature; of XML only code and message stay, for the rest may hold the string that was
/// signed; and what we know to be secret is taken out wherever it stands.
pub(super) fn clean(text: &str, secrets: &[Secret<String>]) -> String {
    let mut cleaned = match text.split_once('<') {
        None => text.to_owned(),
        Some((before, xml)) => {
            let part = |tag: &str| {
                let (_, rest) = xml.split_once(&format!("{tag}>"))?;
                rest.split_once("</").map(|(part, _)| part.to_owned())
            };
            let parts: Vec<String> = ["Code", "Message"].into_iter().filter_map(part).collect();
            format!("{before}{}", parts.join(": "))
        }
    };
    for secret in secrets.iter().filter(|secret| !secret.reveal().is_empty()) {
        cleaned = cleaned.replace(secret.reveal().as_str(), "…");
    }
    let mut shown = String::new();
    let mut is_query = false;
    for c in cleaned.chars().take(SHOWN) {
        is_query = (is_query || c == '?') && !c.is_whitespace() && !matches!(c, '"' | '\'' | ')' | '`');
        match (is_query, c) {
            (true, '?') => shown.push_str("?…"),
            (true, _) => {}
            (false, c) => shown.push(if c.is_control() { ' ' } else { c }),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_told_without_what_it_repeats_of_credentials() {
        let secrets = [Secret::new("hunter2/+=".to_owned()), Secret::new(String::new())];
        for (text, shown) in [
            (
                "error sending request for url (https://a.blob/c/o?sv=1&sig=abc%2B) : connection refused",
                "error sending request for url (https://a.blob/c/o?…) : connection refused",
            ),
            (
                "Server returned non-2xx status code: 403 Forbidden: <?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>The key is wrong.</Message><StringToSign>AWS4 hunter2</StringToSign></Error>",
                "Server returned non-2xx status code: 403 Forbidden: SignatureDoesNotMatch: The key is wrong.",
            ),
            ("the key `hunter2/+=` is wrong", "the key `…` is wrong"),
        ] {
            assert_eq!(clean(text, &secrets), shown);
        }
    }

    #[test]
    fn versions_of_lists_and_answers_are_the_same() {
        for text in ["\"abc-1\"", "abc-1", "W/\"abc-1\""] {
            assert_eq!(version(Some(text.to_owned())).as_str(), "abc-1");
        }
    }

    #[test]
    fn notes_read_back_from_attributes() {
        let full = Notes {
            digest: Some(super::super::Digest::of(b"x")),
            modified: Some("2026-01-02T03:04:05.678901Z".parse().expect("a time")),
            content_type: Some("text/plain".to_owned()),
            writer: Some("sandbox-aaaaaaaaaaaa 0123456789abcdef".to_owned()),
        };
        for kept in [full, Notes::default()] {
            let attributes = attributes(&kept, "mark");
            assert_eq!(notes(&attributes), kept);
            assert_eq!(marked(&attributes), Some("mark"));
        }
    }
}
