// SPDX-License-Identifier: Apache-2.0
//! What is over is forgotten in the end: sandboxes and lines of the log by their age, decisions
//! by their number, uploads when they expire, compiled filters when nothing uses them, files of
//! removed tenants as soon as possible.
//!
//! Users' own files go as their tenants say (`files`), when somebody asks: `postern retention run`.
//!
//! What is to be erased is written down before (`removed_tenants`), so that an end at any moment
//! leaves nothing behind: the next start goes on.

mod files;

pub(crate) use files::{FileRetention, StepError, Wanted};

use crate::artefacts::{Artefacts, Used};
use crate::audit::Audit;
use crate::storage::Storage;
use crate::store::{Store, StoreError};
use jiff::Timestamp;
use postern_common::clock;
use postern_common::settings::KeptTimes;
use postern_common::tasks::Stop;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;

/// How often is looked.
const EVERY: Duration = Duration::from_secs(600);
/// Long enough for whoever has it to come back.
const LEASE_SECONDS: u32 = 900;
/// Rows that one statement deletes: it holds others up for milliseconds.
const BATCH: u32 = 1000;

/// Forgets what is over. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Retention {
    store: Store,
    storage: Storage,
    artefacts: Artefacts,
    audit: Audit,
    kept: KeptTimes,
    begin: Arc<Notify>,
}

impl Retention {
    /// Nothing happens before [`Retention::watch`].
    #[must_use]
    pub(crate) fn new(
        store: Store,
        storage: Storage,
        artefacts: Artefacts,
        audit: Audit,
        kept: KeptTimes,
    ) -> Self {
        Self { store, storage, artefacts, audit, kept, begin: Arc::new(Notify::new()) }
    }

    /// What retires users' files, as their tenants want it.
    pub(crate) fn files(&self) -> FileRetention {
        FileRetention::new(self.store.clone(), self.storage.clone())
    }

    /// Looks now rather than at the next interval.
    pub(crate) fn begin(&self) {
        self.begin.notify_one();
    }

    /// Looks at intervals until `stop`. Stopping in between loses nothing.
    pub(crate) async fn watch(self, stop: Stop) {
        loop {
            let swept = async {
                // One orchestrator does it for all.
                if self.store.lease("retention", LEASE_SECONDS).await? {
                    self.sweep(clock::now()).await
                } else {
                    Ok(())
                }
            };
            let Some(swept) = stop.run_until_cancelled(swept).await else { return };
            // Each has its own, or a part in one that all share.
            let tidied = stop.run_until_cancelled(self.storage.tidy_cache(clock::now())).await;
            if let Some(Err(error)) = tidied {
                let error = &error as &dyn std::error::Error;
                tracing::error!(
                    error,
                    "the cache of users' files holds more than it may; tidied again later"
                );
            }
            if let Err(error) = swept {
                tracing::error!(error = &error as &dyn std::error::Error, "what is over is forgotten later");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.begin.notified() => {}
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    /// Forgets all that is over at `now`.
    ///
    /// # Errors
    /// [`StoreError`]; the rest is for the next time.
    pub(crate) async fn sweep(&self, now: Timestamp) -> Result<(), StoreError> {
        self.erase().await?;
        self.store.trim_decisions(now).await?;
        self.store.forget_answers(now).await?;
        if let Err(error) = self.storage.expire_uploads(now).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "uploads that nobody completed are still there; tried again later");
        }
        if let Err(error) = self.storage.tidy(now).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "what was half written is still in the store; tidied again later");
        }
        let before =
            |kept: Duration| now.saturating_sub(crate::driver::signed(kept)).unwrap_or(Timestamp::MIN);
        let (sandboxes, events) = (before(self.kept.sandboxes), before(self.kept.events));
        while self.store.forget_sandboxes(sandboxes, BATCH).await? == u64::from(BATCH) {}
        self.audit.forget(events, BATCH).await?;
        self.audit.sign_heads(now).await?;
        self.trim_artefacts(now).await
    }

    /// Drops compiled filters that nobody needs. They are a cache: a failure is told and no more.
    async fn trim_artefacts(&self, now: Timestamp) -> Result<(), StoreError> {
        let mut used = Used::default();
        for (component, is_in_force) in self.store.filter_components().await? {
            if is_in_force {
                used.in_force.insert(component.clone());
            }
            used.kept.insert(component);
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(clock::unix_seconds(now));
        match self.artefacts.trim(used, now).await {
            Ok(trimmed) if trimmed.dropped > 0 => {
                tracing::info!(?trimmed, "compiled filters that nobody needs were dropped");
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "compiled filters were not trimmed");
            }
        }
        Ok(())
    }

    /// Erases the files of tenants that are no more.
    async fn erase(&self) -> Result<(), StoreError> {
        for tenant in self.store.tenants_to_erase().await? {
            match self.storage.erase_tenant(&tenant).await {
                Ok(_objects) => self.store.tenant_erased(&tenant, clock::now()).await?,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(%tenant, error, "a removed tenant's files are still there; tried again later");
                }
            }
        }
        Ok(())
    }
}
