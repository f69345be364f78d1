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
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The folders of a sandbox that are in its snapshot, each with the name of its file.
const FOLDERS: [(&str, &str); 2] = [("home", "~"), ("scratch", "/data/scratch")];
/// Beside its files an archive holds a header for each; a sandbox whose files say that they are more than
/// twice its disk (holes) has no snapshot.
const OVERHEAD_BYTES: u64 = 64 << 20;
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
        snapshots.sweep().await?;
        Ok(snapshots)
    }

    async fn sweep(&self) -> Result<(), SnapshotError> {
        let known = self.store.snapshot_ids().await?;
        let mut files = fs::read_dir(&self.folder).await?;
        while let Some(file) = files.next_entry().await? {
            let name = file.file_name().to_string_lossy().into_owned();
            let id = name.split('.').next().unwrap_or_default();
            if !known.iter().any(|known| known.as_str() == id) {
                fs::remove_file(file.path()).await?;
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

    /// Removes a snapshot; whether there was one.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub(crate) async fn remove(&self, id: &SnapshotId) -> Result<bool, SnapshotError> {
        let was_there = self.store.remove_snapshot(id).await?;
        self.forget(id).await;
        Ok(was_there)
    }

    /// Removes its files. What cannot be removed now goes at the next start.
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
