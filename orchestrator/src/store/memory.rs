// SPDX-License-Identifier: Apache-2.0
//! What is kept of stopped sandboxes, and what is known of pictures of memory.

use super::{Store, StoreError, json_text};
use postern_common::id::SandboxId;
use serde::{Deserialize, Serialize};

/// What is kept of a stopped sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kept {
    /// What is on its disk.
    Files,
    /// Its memory too.
    Memory(KeptMemory),
}

impl Kept {
    /// As callers know it.
    pub(crate) const fn as_str(&self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Memory(_) => "memory",
        }
    }

    /// The picture of its memory, if that is kept.
    pub(crate) const fn memory(&self) -> Option<&KeptMemory> {
        match self {
            Self::Files => None,
            Self::Memory(memory) => Some(memory),
        }
    }
}

/// What is known of a picture of a sandbox's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptMemory {
    /// Which one: an older one in its place does not open.
    pub(crate) generation: String,
    /// What it depends on: where that is another, it cannot be gone on from.
    pub(crate) fingerprint: String,
    /// How much it is, unsealed.
    pub(crate) size_bytes: u64,
}

pub(super) fn kept(text: &str) -> Result<Kept, StoreError> {
    serde_json::from_str(text).map_err(|_malformed| StoreError::Corrupt { what: "kept" })
}

pub(super) fn kept_memory(text: &str) -> Result<KeptMemory, StoreError> {
    serde_json::from_str(text).map_err(|_malformed| StoreError::Corrupt { what: "memory" })
}

impl Store {
    /// Notes what is kept of a stopped sandbox, for whoever has claimed it; `false` if it is not stopped
    /// any more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn note_kept(&self, id: &SandboxId, kept: &Kept) -> Result<bool, StoreError> {
        let update = "UPDATE sandboxes SET kept = $2 WHERE id = $1 AND status IN ('stopped', 'waking')";
        let mut change = self.change().await?;
        change.still_ours(self, id).await?;
        let updated = sqlx::query(update)
            .bind(id.as_str().to_owned())
            .bind(json_text(kept, "kept")?)
            .execute(&mut *change.0)
            .await?;
        change.commit().await?;
        Ok(updated.rows_affected() == 1)
    }
}
