// SPDX-License-Identifier: Apache-2.0
//! What is known of pictures of sandboxes' memory.

use super::{Store, StoreError, json_text};
use postern_common::id::SandboxId;
use serde::{Deserialize, Serialize};

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

pub(super) fn kept_memory(text: &str) -> Result<KeptMemory, StoreError> {
    serde_json::from_str(text).map_err(|_malformed| StoreError::Corrupt { what: "memory" })
}

impl Store {
    /// Notes what is kept of a stopped sandbox's memory, for whoever has claimed it; `false` if it is not
    /// stopped any more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn keep_memory(
        &self,
        id: &SandboxId,
        memory: Option<&KeptMemory>,
    ) -> Result<bool, StoreError> {
        let update = "UPDATE sandboxes SET memory = $2 WHERE id = $1 AND status IN ('stopped', 'waking')";
        let mut change = self.change().await?;
        change.still_ours(self, id).await?;
        let updated = sqlx::query(update)
            .bind(id.as_str().to_owned())
            .bind(memory.map(|memory| json_text(memory, "memory")).transpose()?)
            .execute(&mut *change.0)
            .await?;
        change.commit().await?;
        Ok(updated.rows_affected() == 1)
    }
}
