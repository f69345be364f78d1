// SPDX-License-Identifier: Apache-2.0
//! Vouches for the audit logs: signs where their chains end, each hour that they have grown, and
//! where they begin when old lines go.
//!
//! What was signed is logged too, so that it is also where nobody who owns the database can take it
//! back.

use crate::keys::InstallationKeys;
use crate::store::{Store, StoreError};
use jiff::{SignedDuration, Timestamp};
use postern_common::audit::{Log, Mark, MarkKey, MarkSigner};
use std::sync::Arc;

/// The time between two checkpoints of a chain that grows.
const BETWEEN: SignedDuration = SignedDuration::from_hours(1);

/// Signs places of audit logs. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Audit {
    store: Store,
    signer: Arc<MarkSigner>,
    installation: Arc<str>,
}

impl Audit {
    /// Signs for this installation.
    pub(crate) fn new(store: Store, installation: &str, keys: &InstallationKeys) -> Self {
        Self { store, signer: Arc::clone(keys.marks()), installation: Arc::from(installation) }
    }

    /// What marks are checked with.
    pub(crate) fn key(&self) -> MarkKey {
        self.signer.key()
    }

    /// Whose marks they are.
    pub(crate) fn installation(&self) -> &str {
        &self.installation
    }

    fn sign(&self, mark: &mut Mark) {
        self.installation.as_ref().clone_into(&mut mark.installation);
        self.signer.sign(mark);
    }

    /// Signs the end of each chain that has grown and was not signed for an hour.
    ///
    /// # Errors
    /// [`StoreError`]; what was signed by then stays so.
    pub(crate) async fn sign_heads(&self, now: Timestamp) -> Result<(), StoreError> {
        let since = now.saturating_sub(BETWEEN).unwrap_or(Timestamp::MIN);
        for mark in self.store.sign_audit_heads((since, now), &|mark| self.sign(mark)).await? {
            let Mark { log, tenant, length, sequence, hash, signature, .. } = &mark;
            tracing::info!(%log, tenant, length, sequence, hash, signature, "the end of an audit log is signed");
        }
        Ok(())
    }

    /// Forgets lines from before `before`, in batches of at most `most` of a tenant.
    ///
    /// # Errors
    /// [`StoreError`]; the rest is for the next time.
    pub(crate) async fn forget(&self, before: Timestamp, most: u32) -> Result<(), StoreError> {
        for log in Log::ALL {
            while self.store.forget_lines(log, before, most, &|mark| self.sign(mark)).await? > 0 {}
        }
        Ok(())
    }
}
