// SPDX-License-Identifier: Apache-2.0
//! Snapshots of sandboxes: the files of one (its home folder and `/data/scratch`) archived and sealed,
//! for another of the same tenant and user. The user's own files are not in it: they are kept anyway,
//! and are what they are now.
//!
//! ```text
//! snapshots/<id>.home  <id>.scratch         sealed (`sealed`)
//! snapshots/<id>.<generation>.…            its memory, if that is in it (`memory`)
//! ```
//!
//! What is archived is the agent's word; it goes back into a sandbox and nowhere else.

use crate::keys::InstallationKeys;
use crate::memory::{Memory, Owner};
use crate::runtime::agent::{Body, about_path, accepted, full};
use crate::runtime::{Agent, AgentError};
use crate::seal::SealError;
use crate::sealed::{HEAD_BYTES, Kind, Label, PIECE_BYTES, Pieces};
use crate::store::{SandboxRow, SnapshotRow, Store, StoreError};
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use postern_common::clock;
use postern_common::id::SnapshotId;
use postern_common::tasks::Stop;
use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The folders of a sandbox that are in its snapshot, each with the name of its file.
const FOLDERS: [(&str, &str); 2] = [("home", "~"), ("scratch", "/data/scratch")];
/// Beside its files an archive holds a header for each; a sandbox whose files say that they are more than
/// twice its disk (holes) has no snapshot.
const OVERHEAD_BYTES: u64 = 64 << 20;
/// How often is looked for files that nobody knows.
const EVERY: Duration = Duration::from_secs(600);
/// Of a snapshot that is being taken nobody knows yet: no file of one is older than this.
const TAKE_TIME: Duration = Duration::from_secs(3600);
/// Snapshots of one tenant.
const PER_TENANT: u32 = 200;

/// A snapshot could not be taken or put back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    /// The sandbox did not give or take its files.
    #[error("the sandbox did not hand its files over")]
    Agent(#[from] AgentError),
    /// Its memory could not be pictured.
    #[error("the sandbox's memory could not be kept: {0}; a snapshot of its files alone can be taken")]
    Picture(String),
    /// Its memory is not for this machine.
    #[error("the snapshot's memory cannot be gone on from: {0}; ask for `\"restore\": \"files\"`")]
    Unusable(&'static str),
    /// A file of ours.
    #[error("a snapshot's file could not be read or written")]
    File(#[from] io::Error),
    /// It does not open.
    #[error("a snapshot could not be sealed or opened")]
    Seal(#[from] SealError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its files are more than may be.
    #[error("the sandbox's files say that they are more than twice its disk; remove files with holes")]
    TooLarge,
    /// Its tenant has enough of them.
    #[error("the tenant has {PER_TENANT} snapshots; remove some that are not needed any more")]
    TooMany,
}

/// Where snapshots are kept.
#[derive(Debug)]
pub(crate) struct Snapshots {
    store: Store,
    keys: Arc<InstallationKeys>,
    folder: PathBuf,
}

impl Snapshots {
    /// Snapshots in this folder, which is made, for nobody else to read. Files that nobody knows are
    /// removed.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub(crate) async fn open(
        store: Store,
        keys: Arc<InstallationKeys>,
        folder: PathBuf,
    ) -> Result<Self, SnapshotError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).await?;
        let snapshots = Self { store, keys, folder };
        // Nobody takes one yet.
        snapshots.sweep(None).await?;
        Ok(snapshots)
    }

    /// Removes files that nobody knows, at intervals until `stop`: of users who were erased, tenants that
    /// were removed and snapshots that were deleted at another orchestrator.
    pub(crate) async fn watch(self: Arc<Self>, stop: Stop) {
        while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
            let now = UNIX_EPOCH + Duration::from_secs(clock::unix_seconds(clock::now()));
            if let Err(error) = self.sweep(now.checked_sub(TAKE_TIME)).await {
                let error = &error as &dyn std::error::Error;
                tracing::error!(
                    error,
                    "files of snapshots that are no more are still there; tried again later"
                );
            }
        }
    }

    /// Removes files that nobody knows and that were last written before `before`, if that is given.
    async fn sweep(&self, before: Option<SystemTime>) -> Result<(), SnapshotError> {
        let mut found = Vec::new();
        let mut files = fs::read_dir(&self.folder).await?;
        while let Some(file) = files.next_entry().await? {
            let written = match file.metadata().await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                about => about?.modified()?,
            };
            if before.is_none_or(|before| written < before) {
                found.push((file.file_name().to_string_lossy().into_owned(), file.path()));
            }
        }
        // INVARIANT: asked after the files were seen, so that none is newer than the answer.
        let known = self.store.snapshot_ids().await?;
        let known: HashSet<&str> = known.iter().map(SnapshotId::as_str).collect();
        for (name, path) in found {
            if known.contains(name.split('.').next().unwrap_or_default()) {
                continue;
            }
            match fs::remove_file(path).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn path(&self, id: &SnapshotId, part: &str) -> PathBuf {
        self.folder.join(format!("{id}.{part}"))
    }

    fn pieces(&self, snapshot: &SnapshotRow, part: &'static str) -> Pieces {
        let label = Label {
            kind: Kind::Snapshot,
            tenant: snapshot.tenant.clone(),
            user: snapshot.user_id.clone(),
            thing: snapshot.id.to_string(),
            part,
        };
        Pieces::of(&self.keys.data, label)
    }

    /// Where a snapshot's memory is kept.
    pub(crate) fn memory(&self, snapshot: &SnapshotRow) -> (Memory, Owner) {
        let memory = Memory::new(Arc::clone(&self.keys.data), self.folder.clone());
        let (tenant, user) = (snapshot.tenant.clone(), snapshot.user_id.clone());
        (memory, Owner { kind: Kind::Snapshot, tenant, user, thing: snapshot.id.to_string() })
    }

    /// Takes a snapshot of a running sandbox: of its files, and then of its memory if it is written by
    /// `picture`, as the place says that it is given.
    ///
    /// # Errors
    /// [`SnapshotError`]; then nothing is kept of it.
    pub(crate) async fn take(
        &self,
        row: &SandboxRow,
        agent: &Agent,
        picture: Option<BoxFuture<'_, Result<(PathBuf, String), SnapshotError>>>,
    ) -> Result<SnapshotRow, SnapshotError> {
        let mut snapshot = SnapshotRow {
            id: SnapshotId::generate(),
            tenant: row.new.tenant.clone(),
            user_id: row.new.user_id.clone(),
            sandbox_id: row.new.id.clone(),
            template: row.new.template.clone(),
            labels: row.new.labels.clone(),
            size_bytes: 0,
            memory: None,
            at: crate::store::whole_micros(clock::now()),
        };
        let most = row.new.asked.limits.disk_bytes.saturating_mul(2).saturating_add(OVERHEAD_BYTES);
        let taken = async {
            for (part, path) in FOLDERS {
                let size = self.archive(&snapshot, (part, path), agent, most).await?;
                snapshot.size_bytes += size;
            }
            if let Some(picture) = picture {
                let (from, fingerprint) = picture.await?;
                let (memory, owner) = self.memory(&snapshot);
                let kept = memory.keep(owner, from, fingerprint).await?;
                snapshot.size_bytes += kept.size_bytes;
                snapshot.memory = Some(kept);
            }
            if self.store.add_snapshot(&snapshot, PER_TENANT).await? {
                Ok(())
            } else {
                Err(SnapshotError::TooMany)
            }
        };
        let taken = taken.await;
        match taken {
            Ok(()) => Ok(snapshot),
            Err(error) => {
                self.forget(&snapshot.id).await;
                Err(error)
            }
        }
    }

    /// Archives and seals one folder; how many bytes that are.
    async fn archive(
        &self,
        snapshot: &SnapshotRow,
        (part, path): (&'static str, &'static str),
        agent: &Agent,
        most: u64,
    ) -> Result<u64, SnapshotError> {
        let request = about_path(Method::GET, "/tree", path, full(Bytes::new()))?;
        let mut archive = accepted(agent.send(request).await?).await?.into_body();
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path(&snapshot.id, part))
            .await?;
        let mut sealing = Sealing { pieces: self.pieces(snapshot, part), file };
        let (mut piece, mut size) = (BytesMut::new(), 0_u64);
        while let Some(frame) = archive.frame().await {
            let Ok(bytes) = frame.map_err(AgentError::Broken)?.into_data() else { continue };
            size = size.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            if size > most {
                return Err(SnapshotError::TooLarge);
            }
            piece.extend_from_slice(&bytes);
            while piece.len() > PIECE_BYTES {
                sealing.write(&piece.split_to(PIECE_BYTES), false).await?;
            }
        }
        sealing.write(&piece, true).await?;
        sealing.file.sync_all().await?;
        Ok(size)
    }

    /// Puts a snapshot's files into a sandbox.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub(crate) async fn put_back(&self, snapshot: &SnapshotRow, agent: &Agent) -> Result<(), SnapshotError> {
        for (part, path) in FOLDERS {
            let file = File::open(self.path(&snapshot.id, part)).await?;
            let opening = Opening { pieces: self.pieces(snapshot, part), file, is_over: false };
            let frames = futures_util::stream::unfold(Some(opening), async |opening| {
                let mut opening = opening?;
                match opening.next().await {
                    Ok(Some(bytes)) => Some((Ok(Frame::data(bytes)), Some(opening))),
                    Ok(None) => None,
                    Err(error) => Some((Err(io::Error::other(error)), None)),
                }
            });
            let body: Body = StreamBody::new(frames).boxed_unsync();
            let request = about_path(Method::POST, "/tree", path, body)?;
            drop(accepted(agent.send(request).await?).await?);
        }
        Ok(())
    }

    /// Whether its files are on this machine: those of another orchestrator's are not.
    pub(crate) async fn has(&self, id: &SnapshotId) -> bool {
        let [(first, _), _] = FOLDERS;
        fs::try_exists(self.path(id, first)).await.unwrap_or(false)
    }

    /// Removes a snapshot; whether there was one.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub(crate) async fn remove(&self, id: &SnapshotId) -> Result<bool, SnapshotError> {
        let was_there = self.store.remove_snapshot(id).await?;
        self.forget(id).await;
        Ok(was_there)
    }

    /// Removes its files. What cannot be removed now, or lies elsewhere, goes by and by.
    async fn forget(&self, id: &SnapshotId) {
        if let Err(error) = crate::memory::remove(&self.folder, id.as_str(), None) {
            tracing::warn!(snapshot = %id, error = &error as &dyn std::error::Error, "its memory stays");
        }
        for (part, _) in FOLDERS {
            match fs::remove_file(self.path(id, part)).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(snapshot = %id, error = &error as &dyn std::error::Error, "its file stays");
                }
                _ => {}
            }
        }
    }
}

/// Writes sealed pieces.
struct Sealing {
    pieces: Pieces,
    file: File,
}

impl Sealing {
    async fn write(&mut self, piece: &[u8], is_last: bool) -> Result<(), SnapshotError> {
        Ok(self.file.write_all(&self.pieces.seal(piece, is_last)?).await?)
    }
}

/// Reads sealed pieces.
struct Opening {
    pieces: Pieces,
    file: File,
    is_over: bool,
}

impl Opening {
    /// The next piece; `None` after the last.
    async fn next(&mut self) -> Result<Option<Bytes>, SnapshotError> {
        if self.is_over {
            return Ok(None);
        }
        let mut head = [0; HEAD_BYTES];
        self.file.read_exact(&mut head).await?;
        let (length, is_last) = Pieces::head(head)?;
        self.is_over = is_last;
        let mut sealed = vec![0; length];
        self.file.read_exact(&mut sealed).await?;
        Ok(Some(self.pieces.open(&sealed, is_last)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::GivenKeys;
    use crate::store::tests::{Database, make, sandbox};

    #[tokio::test]
    async fn files_of_snapshots_that_are_no_more_go_and_those_of_one_being_taken_stay() {
        let (database, folder) = (Database::sqlite().await, tempfile::tempdir().expect("a folder"));
        let store = database.store.clone();
        let keys = InstallationKeys::open(GivenKeys::default(), &folder.path().join("keys"), &store).await;
        let snapshots = folder.path().join("snapshots");
        let opened = Snapshots::open(store.clone(), Arc::new(keys.expect("keys")), snapshots.clone()).await;
        let opened = opened.expect("opens");
        make(&store, "acme").await;
        let of = sandbox(1, "c1");
        let kept = SnapshotRow {
            id: SnapshotId::generate(),
            tenant: of.tenant,
            user_id: of.user_id,
            sandbox_id: of.id,
            template: of.template,
            labels: of.labels,
            size_bytes: 1,
            memory: None,
            at: crate::store::whole_micros(clock::now()),
        };
        assert!(store.add_snapshot(&kept, 9).await.expect("writes"));
        let (gone, taken) = (SnapshotId::generate(), SnapshotId::generate());
        let now = UNIX_EPOCH + Duration::from_secs(clock::unix_seconds(clock::now()));
        for (id, age) in [(&kept.id, TAKE_TIME * 2), (&gone, TAKE_TIME * 2), (&taken, Duration::ZERO)] {
            let file = std::fs::File::create(opened.path(id, "home")).expect("makes");
            file.set_modified(now - age).expect("is set");
        }
        opened.sweep(now.checked_sub(TAKE_TIME)).await.expect("sweeps");
        let is_there = |id: &SnapshotId| opened.path(id, "home").exists();
        assert_eq!((is_there(&kept.id), is_there(&gone), is_there(&taken)), (true, false, true));
        opened.sweep(None).await.expect("sweeps");
        assert_eq!((is_there(&kept.id), is_there(&taken)), (true, false), "at the start none is being taken");
    }
}
