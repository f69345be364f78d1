// SPDX-License-Identifier: Apache-2.0
//! Tells gateways what the database says, whatever became of whoever changed it.
//!
//! ```text
//!   a commit ─▶ asked + 1 ─▶ the tenant's task: read the newest, publish ─▶ outcome, told = asked
//!                                ▲───────────── asked again meanwhile ◀──────────┘
//! ```
//!
//! Each tenant has one task while there is something to tell, and it always tells what is newest:
//! two changes cannot overtake each other, and a caller who leaves leaves nothing untold.

use super::{Configuration, ConfigurationError};
use crate::control::{Acknowledged, OtherEngines};
use crate::keys::random;
use crate::store::StoreError;
use postern_common::control::Change;
use postern_common::id::TenantId;
use postern_common::tasks::Stop;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// How long a change waits for gateways to put it in force before it is answered as pending.
const PUBLISH_TIME: Duration = Duration::from_secs(10);
/// The first pause after the database did not answer or nothing could be compiled; it doubles up
/// to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The tenants that are being told of.
#[derive(Debug, Default)]
pub(super) struct Lines(Mutex<BTreeMap<TenantId, watch::Sender<Line>>>);

/// What was asked to be told of one tenant, and what was.
#[derive(Debug, Default)]
struct Line {
    asked: u64,
    told: u64,
    outcome: Acknowledged,
}

/// Something that is being told. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Telling {
    line: watch::Receiver<Line>,
    number: u64,
    connected: usize,
}

impl Telling {
    /// Whether it was told, or will not be any more.
    pub(crate) fn is_over(&self) -> bool {
        self.line.has_changed().is_err() || self.line.borrow().told >= self.number
    }

    /// Waits until it was told, for a bounded time; the telling itself goes on.
    pub(crate) async fn outcome(mut self) -> Acknowledged {
        let pending = Acknowledged { pending: self.connected, ..Acknowledged::default() };
        let told = self.line.wait_for(|line| line.told >= self.number);
        match tokio::time::timeout(PUBLISH_TIME, told).await {
            Ok(Ok(line)) => line.outcome.clone(),
            // Late, or at shutdown.
            Ok(Err(_)) | Err(_) => pending,
        }
    }
}

/// The pauses between attempts: they grow, and no two orchestrators or tenants make the same ones.
#[derive(Debug, Default)]
struct Pauses(u32);

impl Pauses {
    /// The next one: between half of its length and all of it.
    fn next(&mut self) -> Duration {
        let longest = FIRST_PAUSE.saturating_mul(1 << self.0.min(16)).min(LONGEST_PAUSE);
        self.0 = self.0.saturating_add(1);
        // Without randomness all come at once, which is slow and not wrong.
        let random = random(1).ok().and_then(|random| random.reveal().first().copied()).unwrap_or_default();
        longest / 2 + longest.mul_f64(f64::from(random) / 512.0)
    }
}

impl Configuration {
    /// Makes a change in the database and, if `is_change` says that it was one, has it told, even
    /// if the caller leaves meanwhile.
    pub(super) async fn commit<Outcome: Send + 'static>(
        &self,
        tenant: &TenantId,
        is_change: fn(&Outcome) -> bool,
        change: impl Future<Output = Result<Outcome, StoreError>> + Send + 'static,
    ) -> Result<(Outcome, Acknowledged), ConfigurationError> {
        let (sender, done) = oneshot::channel();
        let (configuration, name) = (self.clone(), tenant.clone());
        self.0.tasks.spawn(async move |_finishes: Stop| {
            let changed = change.await;
            // A commit whose answer was lost may have happened: what there is, is told.
            let is_told = changed.as_ref().map_or(true, is_change);
            let telling = is_told.then(|| configuration.tell(&name));
            // Whoever asked may have left.
            let _ = sender.send((changed, telling)).is_ok();
        });
        // The task is dropped only when the whole process is.
        let (changed, telling) = done.await.map_err(|_ended| ConfigurationError::Busy(tenant.clone()))?;
        let outcome = changed?;
        let told = match telling {
            Some(telling) => telling.outcome().await,
            None => Acknowledged::default(),
        };
        Ok((outcome, told))
    }

    /// Has the gateways told what a tenant's configuration is by now.
    pub(crate) fn tell(&self, tenant: &TenantId) -> Telling {
        let connected = self.0.gateways.connected();
        let mut lines = self.0.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get(tenant) {
            line.send_modify(|line| line.asked += 1);
            return Telling { line: line.subscribe(), number: line.borrow().asked, connected };
        }
        let (line, receiver) = watch::channel(Line { asked: 1, ..Line::default() });
        lines.insert(tenant.clone(), line);
        drop(lines);
        let (configuration, name) = (self.clone(), tenant.clone());
        self.0.tasks.spawn(async move |stop: Stop| {
            if stop.run_until_cancelled(configuration.tell_until_told(&name)).await.is_none() {
                // Shutdown: who waits is answered now.
                configuration.forget_line(&name);
            }
        });
        Telling { line: receiver, number: 1, connected }
    }

    /// The tenants that gateways were told of, those that are no more among them.
    pub(crate) fn loaded_names(&self) -> BTreeSet<TenantId> {
        self.0.loaded.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    async fn tell_until_told(&self, tenant: &TenantId) {
        while let Some(number) = self.untold(tenant) {
            let outcome = self.tell_newest(tenant).await;
            let lines = self.0.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(line) = lines.get(tenant) {
                line.send_modify(|line| (line.told, line.outcome) = (number, outcome));
            }
        }
    }

    /// What is asked and not told yet; if nothing is, the line is closed, in one step, so that who
    /// asks next begins a new one.
    fn untold(&self, tenant: &TenantId) -> Option<u64> {
        let mut lines = self.0.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        let line = lines.get(tenant)?;
        let (asked, told) = (line.borrow().asked, line.borrow().told);
        if asked > told {
            return Some(asked);
        }
        lines.remove(tenant);
        None
    }

    fn forget_line(&self, tenant: &TenantId) {
        self.0.lines.0.lock().unwrap_or_else(PoisonError::into_inner).remove(tenant);
    }

    /// Reads what a tenant's configuration is and tells the gateways. What they refuse is logged
    /// here, for not everybody who changes something waits to hear it.
    async fn tell_newest(&self, tenant: &TenantId) -> Acknowledged {
        let mut pauses = Pauses::default();
        let (change, others) = loop {
            match self.newest(tenant).await {
                Ok(newest) => break newest,
                // Not the configuration's fault: it may go well later.
                Err(error @ (ConfigurationError::Store(_) | ConfigurationError::Compiler(_))) => {
                    let pause = pauses.next();
                    tracing::error!(
                        %tenant,
                        error = &error as &dyn std::error::Error,
                        again_in = ?pause,
                        "gateways are told later"
                    );
                    tokio::time::sleep(pause).await;
                }
                Err(error) => {
                    tracing::error!(
                        %tenant,
                        error = &error as &dyn std::error::Error,
                        mistakes = ?error.mistakes(),
                        "this tenant's configuration is not in force"
                    );
                    return Acknowledged { refused: vec![error.to_string()], ..Acknowledged::default() };
                }
            }
        };
        let told = self.0.gateways.publish_for_all(change, others, PUBLISH_TIME).await;
        if !told.refused.is_empty() {
            tracing::error!(%tenant, refused = ?told.refused, "a gateway keeps to the configuration before");
        }
        told
    }

    async fn newest(&self, tenant: &TenantId) -> Result<(Change, OtherEngines), ConfigurationError> {
        let Some(row) = self.0.store.tenant(tenant).await? else {
            self.0.loaded.write().unwrap_or_else(PoisonError::into_inner).remove(tenant);
            return Ok((Change::TenantRemoved(tenant.clone()), OtherEngines::new()));
        };
        let loaded = self.loaded(row).await?;
        let (config, others) = self.gateway_config(&loaded).await?;
        Ok((Change::Tenant(Arc::new(config)), others))
    }

    /// Has every tenant with filters told again whenever a gateway comes whose engine is of another
    /// release: until then nothing is compiled for it.
    pub(crate) async fn follow_engines(self, stop: Stop) {
        let mut engines = self.0.gateways.other_engines();
        let mut known = engines.borrow_and_update().clone();
        while let Some(Ok(())) = stop.run_until_cancelled(engines.changed()).await {
            let now = engines.borrow_and_update().clone();
            let has_new = self.0.artefacts.other_engines().map(|engine| engine.to_string());
            let has_new =
                has_new.filter(|engine| now.contains(engine)).any(|engine| !known.contains(&engine));
            known = now;
            if !has_new {
                continue;
            }
            match self.tenants().await {
                Ok(tenants) => {
                    for tenant in tenants.iter().filter(|tenant| !tenant.files.filters.is_empty()) {
                        drop(self.tell(&tenant.row.name));
                    }
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(
                        error,
                        "a gateway of another release gets its filters with the next change"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
