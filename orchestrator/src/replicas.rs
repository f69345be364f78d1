// SPDX-License-Identifier: Apache-2.0
//! Several orchestrators on one Postgres: each tells its own gateways what the others have changed.
//!
//! ```text
//!   another orchestrator ─commit─▶ Postgres ─NOTIFY─▶ this ─read what is there now─▶ gateways
//! ```
//! A notice says what changed, never to what: that is read, so that a notice that comes late or
//! twice does no harm. What was missed while the connection was away is told anew. Before a gateway
//! that comes from another orchestrator is told anything, all that was committed by then was heard.
//!
//! Nothing is waited for while notices are read: a tenant whose filters are being compiled, or a gateway
//! that is slow to answer, holds up no revocation behind it.

use crate::configuration::{Configuration, Telling};
use crate::control::Gateways;
use crate::driver::Driver;
use crate::sessions;
use crate::store::{Notice, Store, StoreError};
use crate::stream::ControlStream;
use futures_util::future::join_all;
use postern_common::clock;
use postern_common::control::{Change, State};
use postern_common::id::SandboxId;
use postern_common::secret::Secret;
use postern_common::tasks::{Stop, Tasks};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// After the database did not answer.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a gateway waits for what others have changed to be heard.
const CATCH_UP_TIME: Duration = Duration::from_secs(3);

/// What was heard of other orchestrators. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    store: Store,
    asked: Arc<AtomicU64>,
    marks: watch::Sender<u64>,
    /// There are no others, and cannot be.
    is_alone: bool,
}

impl Heard {
    /// Nothing yet.
    pub(crate) fn new(store: Store) -> Self {
        let is_alone = !store.has_others();
        Self { store, asked: Arc::default(), marks: watch::channel(0).0, is_alone }
    }

    /// Waits until everything that was committed before this call was heard and told; `false` if
    /// that takes too long.
    pub(crate) async fn catch_up(&self) -> bool {
        if self.is_alone {
            return true;
        }
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let mut marks = self.marks.subscribe();
        let caught_up = async {
            self.store.mark(number).await.is_ok() && marks.wait_for(|mark| *mark >= number).await.is_ok()
        };
        tokio::time::timeout(CATCH_UP_TIME, caught_up).await.unwrap_or(false)
    }
}

/// Follows what other orchestrators change.
#[derive(Debug)]
pub(crate) struct Replicas {
    pub(crate) store: Store,
    pub(crate) url: Secret<String>,
    pub(crate) configuration: Configuration,
    pub(crate) gateways: Gateways,
    pub(crate) stream: Arc<ControlStream>,
    pub(crate) driver: Driver,
    pub(crate) heard: Heard,
    pub(crate) tasks: Tasks,
}

impl Replicas {
    /// Until `stop`; at once where there can be no others.
    pub(crate) async fn follow(self, stop: Stop) {
        loop {
            match stop.run_until_cancelled(self.follow_once()).await {
                None | Some(Ok(())) => return,
                Some(Err(error)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "other orchestrators are heard again in a moment");
                }
            }
            if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                return;
            }
        }
    }

    async fn follow_once(&self) -> Result<(), StoreError> {
        let Some(mut notices) = self.store.listen(&self.url).await? else { return Ok(()) };
        let mut untold = Vec::new();
        // What changed before anybody listened.
        self.tell_all(&mut untold).await?;
        loop {
            self.tell(notices.next().await?, &mut untold).await?;
        }
    }

    /// Tells of one notice; `untold` are the tenants that are being told of.
    async fn tell(&self, notice: Notice, untold: &mut Vec<Telling>) -> Result<(), StoreError> {
        untold.retain(|telling| !telling.is_over());
        match notice {
            Notice::Tenant(tenant) => untold.push(self.configuration.tell(&tenant)),
            Notice::Session(id) => {
                self.tell_session(&id).await?;
                self.driver.changed_elsewhere(&id).await?;
            }
            Notice::Gateway(name) => self.stream.cut_unless_there(&name).await?,
            Notice::Mark(number) => self.mark_when_told(number, untold.clone()),
            Notice::Missed => self.tell_all(untold).await?,
            Notice::Nothing => {}
        }
        Ok(())
    }

    /// Says that a mark was heard, once all that came before it was told too.
    fn mark_when_told(&self, number: u64, before: Vec<Telling>) {
        let marks = self.heard.marks.clone();
        self.tasks.spawn(async move |stop: Stop| {
            let told = join_all(before.into_iter().map(Telling::outcome));
            if stop.run_until_cancelled(told).await.is_none() {
                return;
            }
            // Nobody may be waiting any more.
            let _ = marks.send_if_modified(|mark| {
                let is_newer = *mark < number;
                *mark = number.max(*mark);
                is_newer
            });
        });
    }

    /// Has the gateways told of a session change: in its turn, and nobody waits for their answers.
    async fn publish(&self, change: Change) {
        self.gateways.publish(change, Duration::ZERO).await;
    }

    /// Tells what a session is now.
    async fn tell_session(&self, id: &SandboxId) -> Result<(), StoreError> {
        let now = clock::now();
        let State { sessions, ended, .. } = sessions::known(&self.store, now, Some(id)).await?;
        let changes = sessions.into_iter().map(|session| Change::Session(Box::new(session)));
        for change in changes.chain(ended.into_iter().map(Change::SessionEnded)) {
            self.publish(change).await;
        }
        Ok(())
    }

    /// All that there is now, what is to be refused first.
    async fn tell_all(&self, untold: &mut Vec<Telling>) -> Result<(), StoreError> {
        for gateway in self.stream.connected() {
            self.stream.cut_unless_there(&gateway.name).await?;
        }
        let State { sessions, ended, .. } = sessions::known(&self.store, clock::now(), None).await?;
        let changes = ended.into_iter().map(Change::SessionEnded);
        for change in changes.chain(sessions.into_iter().map(|session| Change::Session(Box::new(session)))) {
            self.publish(change).await;
        }
        // Those that are no more too.
        let mut names = self.configuration.loaded_names();
        names.extend(self.store.tenants().await?.into_iter().map(|row| row.name));
        untold.extend(names.iter().map(|name| self.configuration.tell(name)));
        Ok(())
    }
}
