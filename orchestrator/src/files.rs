// SPDX-License-Identifier: Apache-2.0
//! A user's files: carried from the store into a sandbox's slot when it is made, and back when it
//! ends.
//!
//! The store is a local folder here, `tenants/{tenant}/users/{user}/files/`. Only regular files and
//! folders are carried; what else there is (links, devices, odd names, what is over the bounds) is
//! named in the [`Report`] and left. Each file appears whole or not at all.
//!
//! Two conversations of one user have two slots: a file that a sandbox did not touch is not written
//! back, and one that it deleted goes from the store only if the store still has what it was given.

mod carry;

pub(crate) use carry::{Bounds, Report};

use crate::host::UserFolder;
use carry::{Carried, Manifest};
use postern_common::id::{SandboxId, TenantId, UserId, percent_encoded};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Files could not be carried.
#[derive(Debug, thiserror::Error)]
#[error("could not {what} the files of sandbox `{sandbox}`")]
pub(crate) struct FilesError {
    what: &'static str,
    sandbox: SandboxId,
    source: io::Error,
}

/// Where users' files are kept.
#[derive(Debug, Clone)]
pub(crate) struct UserFiles {
    root: PathBuf,
    bounds: Bounds,
}

impl UserFiles {
    /// Files under `root`, which is made when it is needed.
    #[must_use]
    pub(crate) const fn new(root: PathBuf, bounds: Bounds) -> Self {
        Self { root, bounds }
    }

    /// The store's folder of one user.
    fn folder(&self, tenant: &TenantId, user: &UserId) -> PathBuf {
        let user = percent_encoded(user.as_str());
        self.root.join("tenants").join(tenant.as_str()).join("users").join(user).join("files")
    }

    /// What was carried into a sandbox, for the way back.
    fn manifest(&self, sandbox: &SandboxId) -> PathBuf {
        self.root.join("hydrated").join(format!("{sandbox}.json"))
    }

    /// Carries a user's files into the slot of a sandbox that nothing runs in yet.
    ///
    /// # Errors
    /// [`FilesError`]; the slot may then hold a part of them.
    pub(crate) async fn hydrate(
        &self,
        sandbox: &SandboxId,
        tenant: &TenantId,
        user: &UserId,
        slot: UserFolder,
    ) -> Result<Report, FilesError> {
        let (from, manifest, bounds) = (self.folder(tenant, user), self.manifest(sandbox), self.bounds);
        let carry = move || {
            private_folder(&from)?;
            let mut carried = Carried::new(bounds, slot.owner);
            carried.fill_slot(&open_folder(&from)?, &open_folder(&slot.path)?)?;
            let (report, given) = carried.finish();
            given.write(&manifest)?;
            Ok(report)
        };
        blocking(sandbox, "bring in", carry).await
    }

    /// Carries the files of a sandbox whose processes have ended back to the store. May be
    /// repeated.
    ///
    /// # Errors
    /// [`FilesError`]; what was carried until then is in the store, whole.
    pub(crate) async fn keep(
        &self,
        sandbox: &SandboxId,
        tenant: &TenantId,
        user: &UserId,
        slot: UserFolder,
    ) -> Result<Report, FilesError> {
        let (to, manifest, bounds) = (self.folder(tenant, user), self.manifest(sandbox), self.bounds);
        let carry = move || {
            private_folder(&to)?;
            // Without a manifest nothing had been brought in, so there is nothing to compare with.
            let given = Manifest::read(&manifest)?;
            let slot = match open_folder(&slot.path) {
                // It ended before it had a slot, or was torn down before.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Report::default()),
                opened => opened?,
            };
            let mut carried = Carried::new(bounds, None);
            carried.fill_store(&slot, &open_folder(&to)?, &given)?;
            Ok(carried.finish().0)
        };
        blocking(sandbox, "keep", carry).await
    }

    /// Forgets what had been carried into a sandbox that is gone.
    pub(crate) async fn forget(&self, sandbox: &SandboxId) {
        // Nothing there is what is wanted.
        let _ = tokio::fs::remove_file(self.manifest(sandbox)).await.is_ok();
    }
}

async fn blocking(
    sandbox: &SandboxId,
    what: &'static str,
    carry: impl FnOnce() -> io::Result<Report> + Send + 'static,
) -> Result<Report, FilesError> {
    let carried =
        tokio::task::spawn_blocking(carry).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    carried.map_err(|source| FilesError { what, sandbox: sandbox.clone(), source })
}

fn private_folder(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Opens a folder of ours; its last component must be no link.
fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests;
