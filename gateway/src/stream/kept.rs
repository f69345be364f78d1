// SPDX-License-Identifier: Apache-2.0
//! What is in force, on disk, for a warm restart: the orchestrator's own signed messages, without
//! secrets. Nothing in it is believed but by signature, and no longer than by the signed time.
//!
//! ```text
//! state: length (u32) welcome   length message   length message …      (snapshot first)
//! pulse: the last heartbeat
//! ```
//! A message that was half written when the process died ends the file; a whole one that does not
//! follow is a forgery, and then nothing of the file is used.

use jiff::Timestamp;
use postern_common::control::budgets::Shares;
use postern_common::control::{Change, Message};
use postern_common::id::GatewayName;
use postern_common::stream::SignerKey;
use postern_common::stream::chain::{Following, Refused, without_secrets};
use postern_common::tasks::Tasks;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

const STATE: &str = "state";
const PULSE: &str = "pulse";
/// Writes that may wait for the disk.
const WRITES: usize = 64;
/// The file may grow to so many times its snapshot, and this much more.
const GROWTH: u64 = 4;
const GROWTH_BYTES: u64 = 16 * 1024 * 1024;

/// What was read back.
#[derive(Debug)]
pub(super) struct Kept {
    /// In order, the snapshot first.
    pub(super) messages: Vec<Message>,
    /// When it was known to be all that there was.
    pub(super) at: Timestamp,
    /// Epoch and version of the last message.
    pub(super) last: Option<(u64, u64)>,
    /// This gateway's parts of budgets, as it last heard of them.
    pub(super) shares: Shares,
}

/// Why there is nothing to begin with.
#[derive(Debug, thiserror::Error)]
pub(super) enum NothingKept {
    #[error("nothing was kept")]
    Absent,
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    #[error("it was tampered with, or belongs to another gateway or installation: {0}")]
    Refused(#[from] Refused),
}

/// Reads what was kept, believing only what `key` has signed for `gateway`. Blocking.
///
/// # Errors
/// [`NothingKept`].
pub(super) fn load(folder: &Path, key: SignerKey, gateway: &GatewayName) -> Result<Kept, NothingKept> {
    let bytes = match std::fs::read(folder.join(STATE)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(NothingKept::Absent),
        Err(error) => return Err(NothingKept::Read(error)),
    };
    let (welcome, mut rest) = record(&bytes).ok_or(NothingKept::Absent)?;
    let (mut following, welcome) = Following::resume(key, gateway, welcome)?;
    let (mut messages, mut at) = (Vec::new(), welcome.at);
    while let Some((message, after)) = record(rest) {
        let accepted = following.message(message, None)?;
        at = accepted.at;
        // What was only tried out changed nothing.
        if !matches!(accepted.message.change, Change::Try(_)) {
            messages.push(accepted.message);
        }
        rest = after;
    }
    if messages.is_empty() {
        return Err(NothingKept::Absent);
    }
    let mut shares = Shares::default();
    // A pulse of another state says nothing of this one.
    if let Ok(pulse) = std::fs::read(folder.join(PULSE))
        && let Ok(heartbeat) = following.heartbeat(&pulse)
    {
        at = at.max(heartbeat.at);
        shares = heartbeat.shares;
    }
    Ok(Kept { messages, at, last: following.last(), shares })
}

fn record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

enum Keep {
    Begin { welcome: Vec<u8>, snapshot: Vec<u8> },
    Message(Vec<u8>),
    Pulse(Vec<u8>),
}

/// Keeps what comes, off the task that receives it.
#[derive(Debug, Clone)]
pub(super) struct Keeper(mpsc::Sender<Keep>);

impl std::fmt::Debug for Keep {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Begin { .. } => "Begin",
            Self::Message(_) => "Message",
            Self::Pulse(_) => "Pulse",
        })
    }
}

impl Keeper {
    /// Keeps in `folder` until `tasks` are stopped.
    pub(super) fn start(folder: PathBuf, tasks: &Tasks) -> Self {
        let (sender, mut writes) = mpsc::channel(WRITES);
        tasks.spawn(move |stop| async move {
            let mut files = Files { folder, state: None };
            while let Some(Some(keep)) = stop.run_until_cancelled(writes.recv()).await {
                let kept = tokio::task::spawn_blocking(move || {
                    files.keep(keep);
                    files
                });
                match kept.await {
                    Ok(kept) => files = kept,
                    Err(_panicked) => return,
                }
            }
        });
        Self(sender)
    }

    /// A connection's welcome and its snapshot: what was kept before is forgotten.
    pub(super) async fn begin(&self, welcome: Vec<u8>, snapshot: &[u8]) {
        if let Some(snapshot) = without_secrets(snapshot) {
            self.send(Keep::Begin { welcome, snapshot }).await;
        }
    }

    /// The next message.
    pub(super) async fn message(&self, message: &[u8]) {
        if let Some(message) = without_secrets(message) {
            self.send(Keep::Message(message)).await;
        }
    }

    /// A heartbeat that followed the last message.
    pub(super) async fn pulse(&self, heartbeat: Vec<u8>) {
        self.send(Keep::Pulse(heartbeat)).await;
    }

    async fn send(&self, keep: Keep) {
        // Nobody writes any more at the end, and then there is nothing to keep.
        let _ = self.0.send(keep).await.is_ok();
    }
}

/// The file that is being written, with its length.
struct Files {
    folder: PathBuf,
    state: Option<File>,
}

impl Files {
    fn keep(&mut self, keep: Keep) {
        let kept = match keep {
            Keep::Begin { welcome, snapshot } => self.begin(&welcome, &snapshot),
            Keep::Message(message) => self.append(&message),
            Keep::Pulse(pulse) => self.replace(PULSE, &[&pulse], false).map(drop),
        };
        if let Err(error) = kept {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, folder = %self.folder.display(), "state is not kept: a restart will be cold");
            // With a gap it would be taken for a forgery.
            self.state = None;
            drop(std::fs::remove_file(self.folder.join(STATE)));
        }
    }

    fn begin(&mut self, welcome: &[u8], snapshot: &[u8]) -> io::Result<()> {
        self.state = None;
        let (first, second) = (length(welcome)?, length(snapshot)?);
        self.state = Some(self.replace(STATE, &[&first, welcome, &second, snapshot], true)?);
        Ok(())
    }

    fn append(&mut self, message: &[u8]) -> io::Result<()> {
        let Some(state) = &mut self.state else { return Ok(()) };
        // One write, so that a crash leaves no more than one message half written.
        state.write_all(&[&length(message)?[..], message].concat())
    }

    /// Writes a file (0600) whole or not at all, and leaves it open at its end.
    fn replace(&self, name: &str, parts: &[&[u8]], is_durable: bool) -> io::Result<File> {
        let draft = self.folder.join(format!("{name}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        parts.iter().try_for_each(|part| file.write_all(part))?;
        if is_durable {
            file.sync_all()?;
        }
        std::fs::rename(draft, self.folder.join(name))?;
        Ok(file)
    }
}

fn length(bytes: &[u8]) -> io::Result<[u8; 4]> {
    let length = u32::try_from(bytes.len()).map_err(|_too_long| io::ErrorKind::FileTooLarge)?;
    Ok(length.to_be_bytes())
}

/// Whether so many bytes of messages after a snapshot are too many: a fresh snapshot is then taken.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Growth {
    snapshot: u64,
    since: u64,
}

impl Growth {
    pub(super) const fn of_snapshot(bytes: u64) -> Self {
        Self { snapshot: bytes, since: 0 }
    }

    /// Counts a message; `true` if the file is due to be begun anew.
    pub(super) const fn is_due(&mut self, bytes: u64) -> bool {
        self.since = self.since.saturating_add(bytes);
        self.since > self.snapshot.saturating_mul(GROWTH).saturating_add(GROWTH_BYTES)
    }
}

#[cfg(test)]
mod tests;
