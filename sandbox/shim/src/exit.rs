// SPDX-License-Identifier: Apache-2.0
//! How a sandbox ended, for whoever asks later.

use crate::folder::RunFolder;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It was asked to.
    Stopped,
    /// It never came to life.
    StartFailed,
    /// It used more memory than it may.
    OutOfMemory,
    /// Its first process or its runtime ended without being asked to.
    Died,
}

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Why.
    pub reason: Reason,
    /// What else is known: the runtime's last words, control characters escaped. Comes partly
    /// from inside the sandbox.
    pub detail: String,
    /// When.
    pub at: String,
}

impl Exit {
    /// An end at this moment.
    #[must_use]
    pub fn now(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), at: postern_common::clock::now().to_string() }
    }

    /// Writes it, all or nothing.
    ///
    /// # Errors
    /// If the run folder is gone or full.
    pub fn write(&self, folder: &RunFolder) -> io::Result<()> {
        let draft = folder.exit().with_extension("draft");
        fs::write(&draft, serde_json::to_vec(self)?)?;
        fs::rename(draft, folder.exit())
    }

    /// Reads it; `None` while the sandbox lives or if its shim was killed.
    #[must_use]
    pub fn read(folder: &RunFolder) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.exit()).ok()?).ok()
    }
}
