// SPDX-License-Identifier: Apache-2.0
//! The files API: what sandboxes' syncs call, carried here by gateways.
//!
//! A call is believed by its gateway's assertion, never by its path or its body: that names the sync's
//! session, the session its sandbox, tenant and user, and nothing in a call can name another. What it
//! may do is in `calls`; who runs a sync on this machine is in `processes`.

#![expect(
    clippy::result_large_err,
    reason = "a problem ends a call: it is made at most once for each, and moved a few times"
)]

mod calls;
mod incoming;
pub(crate) mod processes;
mod put;
mod server;
mod shape;

pub use server::FilesListener;
pub(crate) use server::serve;

use crate::control::Gateways;
use crate::storage::{Share, Shares, Storage};
use crate::store::{FileOwner, Store, SyncSessionRow};
use http::{HeaderMap, Uri, header};
use postern_common::clock;
use postern_common::id::DecisionId;
use postern_common::problem::{Code, Problem};
use postern_common::tasks::Stop;
use postern_common::token::assertion::{FILES_AUDIENCE, verify};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Says which decision let a call pass.
const DECISION: http::HeaderName = http::HeaderName::from_static("x-postern-decision");

/// What answers calls. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct FilesApi {
    store: Store,
    storage: Storage,
    gateways: Gateways,
    lists: Lists,
    /// Ends what waits for changes.
    stop: Stop,
}

/// Who makes a list now: each holds everything that its user has, several times over.
#[derive(Debug, Clone)]
struct Lists {
    /// The conversations of one user wait for each other.
    of_user: Shares<FileOwner>,
    all: Arc<Semaphore>,
}

impl Lists {
    /// Waits for a turn, which lasts until what is returned is dropped.
    async fn turn(&self, owner: &FileOwner) -> (Share, Option<OwnedSemaphorePermit>) {
        let own = self.of_user.take(owner).await;
        // It is never closed.
        (own, Arc::clone(&self.all).acquire_owned().await.ok())
    }
}

/// Lists that are made at the same time.
const LISTS: usize = 2;

/// Who calls.
#[derive(Debug, Clone)]
struct Caller {
    session: SyncSessionRow,
    decision: Option<DecisionId>,
}

impl FilesApi {
    /// An API over these files.
    #[must_use]
    pub(crate) fn new(store: Store, storage: Storage, gateways: Gateways, stop: Stop) -> Self {
        let lists = Lists { of_user: Shares::new(1), all: Arc::new(Semaphore::new(LISTS)) };
        Self { store, storage, gateways, lists, stop }
    }

    /// The live session that a gateway asserts.
    async fn caller(&self, headers: &HeaderMap, uri: &Uri) -> Result<Caller, Problem> {
        let bad = |detail: &'static str| Problem::new(Code::TokenForged, detail);
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = value.and_then(|value| value.strip_prefix("Bearer "));
        let token =
            token.ok_or_else(|| Problem::new(Code::TokenMissing, "the call bears no gateway's assertion"))?;
        let asserted = verify(token, &self.gateways.assertion_keys(), FILES_AUDIENCE, clock::now());
        let asserted = asserted.map_err(|_bad| bad("the assertion is no connected gateway's"))?;
        if asserted.method != "POST" || asserted.path != uri.path() {
            return Err(bad("the assertion was made for another call"));
        }
        let session = self.store.sync_session(&asserted.sub).await.map_err(|error| unavailable(&error))?;
        let session =
            session.ok_or_else(|| Problem::new(Code::TokenRevoked, "the sync's session has ended"))?;
        if session.tenant != asserted.tenant || session.user_id != asserted.user_id {
            return Err(bad("the assertion names another user"));
        }
        let decision = headers.get(DECISION).and_then(|value| value.to_str().ok());
        let decision = decision.and_then(|text| text.parse().ok());
        Ok(Caller { session, decision })
    }
}

/// A failure of ours: what it was is in the log, once.
fn unavailable(error: &(dyn std::error::Error + 'static)) -> Problem {
    tracing::error!(error, cause = error.source(), "a sync's call was not answered");
    Problem::new(Code::StateStale, "the files cannot be reached now").hint("try again in a moment")
}
