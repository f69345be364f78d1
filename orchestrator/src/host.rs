// SPDX-License-Identifier: Apache-2.0
//! What the orchestrator needs of a runtime besides making and ending sandboxes: where a sandbox's
//! requests come from, and where its user's files lie.

use crate::runtime::local::LocalRuntime;
use crate::runtime::{Runtime, RuntimeError};
use futures_util::future::BoxFuture;
use postern_common::id::SandboxId;
use postern_common::session::Peer;
use std::path::PathBuf;

/// Where a sandbox's user files lie on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserFolder {
    /// The folder that is `/data/user` inside. Its content is the agent's: nothing in it is opened
    /// by path.
    pub path: PathBuf,
    /// The user and group that must own what is put there; `None`: our own.
    pub owner: Option<u32>,
}

/// A runtime with its surroundings.
pub trait Host: Runtime {
    /// Prepares the door of a sandbox that is to be made, and tells where its requests come from.
    ///
    /// # Errors
    /// [`RuntimeError::Machine`].
    fn door(&self, sandbox: &SandboxId) -> Result<Peer, RuntimeError>;

    /// Where its user's files lie; `None` if there is nothing of them. After a restart of the
    /// machine they are found in the slot, and can only be read.
    fn user_folder<'a>(
        &'a self,
        sandbox: &'a SandboxId,
    ) -> BoxFuture<'a, Result<Option<UserFolder>, RuntimeError>>;

    /// Puts the files of an ended sandbox where nothing removes them, because they could not be
    /// kept, and tells where; `None` if there is nothing of them.
    fn set_aside<'a>(
        &'a self,
        sandbox: &'a SandboxId,
    ) -> BoxFuture<'a, Result<Option<PathBuf>, RuntimeError>>;

    /// `local` or `kubernetes`.
    fn name(&self) -> &'static str;
}

impl Host for LocalRuntime {
    fn door(&self, sandbox: &SandboxId) -> Result<Peer, RuntimeError> {
        self.prepare(sandbox).map(Peer::Socket)
    }

    fn user_folder<'a>(
        &'a self,
        sandbox: &'a SandboxId,
    ) -> BoxFuture<'a, Result<Option<UserFolder>, RuntimeError>> {
        Box::pin(async {
            let found = self.find_user_files(sandbox).await?;
            Ok(found.map(|(path, owner)| UserFolder { path, owner }))
        })
    }

    fn set_aside<'a>(
        &'a self,
        sandbox: &'a SandboxId,
    ) -> BoxFuture<'a, Result<Option<PathBuf>, RuntimeError>> {
        Box::pin(self.set_slot_aside(sandbox))
    }

    fn name(&self) -> &'static str {
        "local"
    }
}
