// SPDX-License-Identifier: Apache-2.0
//! What the orchestrator needs of a runtime besides making and ending sandboxes: where a sandbox's
//! requests come from, and where its user's files lie.

use crate::runtime::kubernetes::KubernetesRuntime;
use crate::runtime::local::LocalRuntime;
use crate::runtime::{Agent, Offer, Runtime, RuntimeError};
use futures_util::future::BoxFuture;
use postern_common::id::SandboxId;
use postern_common::session::Peer;
use std::path::PathBuf;
use std::process::Command;

/// Where a sandbox's user files lie on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserFolder {
    /// The folder that is `/data/user` inside. Its content is the agent's: nothing in it is opened
    /// by path.
    pub path: PathBuf,
    /// The user and group that must own what is put there; `None`: our own.
    pub owner: Option<u32>,
    /// Whether it may lack what was written to it, because the machine stopped meanwhile.
    pub is_torn: bool,
}

/// How a sandbox's sync is run.
#[derive(Debug)]
pub struct PreparedSync {
    /// Where its requests come from.
    pub peer: Peer,
    /// What it remembers lies here, where no sandbox sees it.
    pub state: PathBuf,
    /// The process, confined: it reaches the sandbox's slot and that socket, and nothing else.
    pub command: Command,
    /// Whether the slot may lack what was written to it, because the machine stopped meanwhile.
    pub is_torn: bool,
}

/// A runtime with its surroundings.
pub trait Host: Runtime {
    /// Prepares the door of a sandbox that is to be made, and tells where its requests come from.
    ///
    /// # Errors
    /// [`RuntimeError::Machine`].
    fn door(&self, sandbox: &SandboxId) -> Result<Peer, RuntimeError>;

    /// Where that door will be, before there is anything of it.
    fn place_of_door(&self, sandbox: &SandboxId) -> Peer;

    /// Where its user's files lie; `None` if there is nothing of them. After a restart of the
    /// machine they are found in the slot, and can only be read.
    fn user_folder<'a>(
        &'a self,
        sandbox: &'a SandboxId,
    ) -> BoxFuture<'a, Result<Option<UserFolder>, RuntimeError>>;

    /// Brings all files of an ended sandbox to this machine's disk, where they are whatever it does next.
    ///
    /// # Errors
    /// [`RuntimeError::Machine`] if not all of them are there.
    fn settle<'a>(&'a self, _sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Whether the files of a sandbox may lack what was written to them, because the machine stopped meanwhile.
    ///
    /// # Errors
    /// [`RuntimeError::Machine`].
    fn is_torn<'a>(&'a self, _sandbox: &'a SandboxId) -> BoxFuture<'a, Result<bool, RuntimeError>> {
        Box::pin(std::future::ready(Ok(false)))
    }

    /// Notes that they were compared with the store: from then on what is missing was deleted.
    ///
    /// # Errors
    /// [`RuntimeError::Machine`].
    fn believe<'a>(&'a self, _sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Puts the files of an ended sandbox where nothing removes them, because they could not be
    /// kept, and tells where; `None` if there is nothing of them.
    fn set_aside<'a>(
        &'a self,
        sandbox: &'a SandboxId,
    ) -> BoxFuture<'a, Result<Option<PathBuf>, RuntimeError>>;

    /// Removes what was set aside of a sandbox on this machine; whether there was anything.
    ///
    /// # Errors
    /// [`RuntimeError::Machine`].
    fn forget_aside<'a>(&'a self, _sandbox: &'a SandboxId) -> BoxFuture<'a, Result<bool, RuntimeError>> {
        Box::pin(std::future::ready(Ok(false)))
    }

    /// Prepares the sync of a sandbox whose slot is there; `None` where files are carried by other
    /// means, or where nothing of them is left.
    fn sync<'a>(
        &'a self,
        sandbox: &'a SandboxId,
    ) -> BoxFuture<'a, Result<Option<PreparedSync>, RuntimeError>> {
        let _ = sandbox;
        Box::pin(async { Ok(None) })
    }

    /// Whether sandboxes have syncs here.
    fn has_syncs(&self) -> bool {
        false
    }

    /// Whether a sandbox's sync is in its pod, beside it, and goes on by itself.
    fn is_sync_beside(&self, _sandbox: &SandboxId) -> bool {
        false
    }

    /// Waits while the sync of a pod that is being deleted may still carry files by itself; for no longer
    /// than a pod has to end.
    fn until_sync_left<'a>(&'a self, _sandbox: &'a SandboxId) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    /// A connection to that sync, and where its requests come from; `None` if there is none.
    ///
    /// # Errors
    /// [`RuntimeError::Cluster`] if it does not answer.
    fn sync_beside<'a>(
        &'a self,
        _sandbox: &'a SandboxId,
    ) -> BoxFuture<'a, Result<Option<(Agent, Peer)>, RuntimeError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// `local` or `kubernetes`.
    fn name(&self) -> &'static str;

    /// What a template of the cluster makes, where sandboxes are made from such; `None`: they are
    /// made of whatever is asked for.
    ///
    /// # Errors
    /// [`RuntimeError::Template`] if no sandbox may be made from it.
    fn offer(&self, _template: Option<&str>) -> Result<Option<Offer>, RuntimeError> {
        Ok(None)
    }

    /// Where the requests of a sandbox that was made, or has come back, come from, where that is
    /// known no sooner.
    fn peer(&self, _sandbox: &SandboxId) -> Option<Peer> {
        None
    }

    /// Whether orchestrators on other machines reach its sandboxes too.
    fn is_shared(&self) -> bool {
        false
    }

    /// Whether sandboxes are kept ready by us; else somebody else does.
    fn has_own_pool(&self) -> bool {
        true
    }
}

impl Host for LocalRuntime {
    fn door(&self, sandbox: &SandboxId) -> Result<Peer, RuntimeError> {
        self.prepare(sandbox).map(Peer::Socket)
    }

    fn place_of_door(&self, sandbox: &SandboxId) -> Peer {
        Peer::Socket(self.gateway_socket(sandbox))
    }

    fn user_folder<'a>(
        &'a self,
        sandbox: &'a SandboxId,
    ) -> BoxFuture<'a, Result<Option<UserFolder>, RuntimeError>> {
        Box::pin(async {
            let Some((path, owner)) = self.find_user_files(sandbox).await? else { return Ok(None) };
            Ok(Some(UserFolder { path, owner, is_torn: self.is_disk_torn(sandbox).await? }))
        })
    }

    fn settle<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.settle_disk(sandbox))
    }

    fn is_torn<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<bool, RuntimeError>> {
        Box::pin(self.is_disk_torn(sandbox))
    }

    fn believe<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.believe_disk(sandbox))
    }

    fn set_aside<'a>(
        &'a self,
        sandbox: &'a SandboxId,
    ) -> BoxFuture<'a, Result<Option<PathBuf>, RuntimeError>> {
        Box::pin(self.set_slot_aside(sandbox))
    }

    fn forget_aside<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<bool, RuntimeError>> {
        Box::pin(self.forget_slot_aside(sandbox))
    }

    fn sync<'a>(
        &'a self,
        sandbox: &'a SandboxId,
    ) -> BoxFuture<'a, Result<Option<PreparedSync>, RuntimeError>> {
        Box::pin(async {
            let Some((socket, state, command)) = self.prepare_sync(sandbox).await? else { return Ok(None) };
            let is_torn = self.is_disk_torn(sandbox).await?;
            Ok(Some(PreparedSync { peer: Peer::Socket(socket), state, command, is_torn }))
        })
    }

    fn has_syncs(&self) -> bool {
        self.has_sync_program()
    }

    fn name(&self) -> &'static str {
        "local"
    }
}

impl Host for KubernetesRuntime {
    /// Nowhere yet: its pod is known once the claim is bound.
    fn door(&self, sandbox: &SandboxId) -> Result<Peer, RuntimeError> {
        Ok(self.place_of_door(sandbox))
    }

    fn place_of_door(&self, _sandbox: &SandboxId) -> Peer {
        Peer::Pod { uid: String::new(), addresses: Vec::new() }
    }

    /// They lie in a pod, where only sync can reach them.
    fn user_folder<'a>(
        &'a self,
        _sandbox: &'a SandboxId,
    ) -> BoxFuture<'a, Result<Option<UserFolder>, RuntimeError>> {
        Box::pin(async { Ok(None) })
    }

    fn set_aside<'a>(
        &'a self,
        _sandbox: &'a SandboxId,
    ) -> BoxFuture<'a, Result<Option<PathBuf>, RuntimeError>> {
        Box::pin(async { Ok(None) })
    }

    fn has_syncs(&self) -> bool {
        self.brings_syncs()
    }

    fn is_sync_beside(&self, sandbox: &SandboxId) -> bool {
        self.has_sync(sandbox)
    }

    fn until_sync_left<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, ()> {
        Box::pin(self.wait_for_leaving_sync(sandbox))
    }

    fn sync_beside<'a>(
        &'a self,
        sandbox: &'a SandboxId,
    ) -> BoxFuture<'a, Result<Option<(Agent, Peer)>, RuntimeError>> {
        Box::pin(self.reach_sync(sandbox))
    }

    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn offer(&self, template: Option<&str>) -> Result<Option<Offer>, RuntimeError> {
        self.offer_of(template).map(Some)
    }

    fn peer(&self, sandbox: &SandboxId) -> Option<Peer> {
        self.peer_of(sandbox)
    }

    fn has_own_pool(&self) -> bool {
        false
    }

    fn is_shared(&self) -> bool {
        true
    }
}
