// SPDX-License-Identifier: Apache-2.0
//! Sessions of sandboxes' syncs. Each has an id, a socket and tokens of its own and the one grant
//! `files:sync`; it begins when files are to be brought in and ends when the last of them is in the
//! store, after its sandbox's own session.

use super::{ACCEPTED_TOKENS, JTI_BYTES, SessionError, accepted, rotation};
use crate::control::{ACKNOWLEDGE_TIME, Gateways};
use crate::keys::{InstallationKeys, hex, random};
use crate::lifecycle::State;
use crate::store::{SandboxRow, Store, StoreError, SyncSessionRow};
use jiff::{SignedDuration, Timestamp};
use postern_common::clock::unix_seconds;
use postern_common::control::{Change, EndedSession};
use postern_common::id::SandboxId;
use postern_common::secret::Secret;
use postern_common::session::{AcceptedToken, Grant, Isolation, Peer, Session};
use postern_common::token::{AUDIENCE, Claims, ISSUER, MAX_TTL};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Sessions of syncs. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct SyncSessions {
    store: Store,
    keys: Arc<InstallationKeys>,
    gateways: Gateways,
    ttl: Duration,
}

impl SyncSessions {
    /// Sessions whose tokens live for `ttl`, at most [`MAX_TTL`].
    #[must_use]
    pub(crate) fn new(store: Store, keys: Arc<InstallationKeys>, gateways: Gateways, ttl: Duration) -> Self {
        Self { store, keys, gateways, ttl: ttl.min(MAX_TTL) }
    }

    /// Opens one, in place of any that the sandbox's sync had before, and returns its first token once
    /// the gateways know it.
    ///
    /// # Errors
    /// [`SessionError`].
    pub(crate) async fn open(
        &self,
        sandbox: &SandboxRow,
        peer: Peer,
        now: Timestamp,
    ) -> Result<(SyncSessionRow, Secret<String>), SessionError> {
        self.end(&sandbox.new.id, now).await?;
        let random = random(12)?;
        let mut row = SyncSessionRow {
            id: SandboxId::from_random(random.reveal().first_chunk().copied().unwrap_or_default()),
            sandbox: sandbox.new.id.clone(),
            tenant: sandbox.new.tenant.clone(),
            user_id: sandbox.new.user_id.clone(),
            conversation_id: sandbox.new.conversation_id.clone(),
            template: sandbox.new.template.clone(),
            peer,
            tokens: Vec::new(),
            rotate_at: now,
        };
        let token = self.mint(&mut row, now)?;
        self.store.add_sync_session(&row).await?;
        self.publish(row.clone()).await;
        Ok((row, token))
    }

    /// Replaces the token of one; the one before stays good for a minute.
    ///
    /// # Errors
    /// [`SessionError::Ended`] if it has ended.
    pub(crate) async fn refresh(
        &self,
        id: &SandboxId,
        now: Timestamp,
    ) -> Result<(SyncSessionRow, Secret<String>), SessionError> {
        let ended = || SessionError::Ended(id.clone());
        let mut row = self.store.sync_session(id).await?.ok_or_else(ended)?;
        let token = self.mint(&mut row, now)?;
        if !self.store.change_sync_session(&row).await? {
            return Err(ended());
        }
        self.publish(row.clone()).await;
        Ok((row, token))
    }

    /// The same for whichever a sandbox's sync has; `None` if it has none.
    ///
    /// # Errors
    /// [`SessionError`].
    pub(crate) async fn refresh_of(
        &self,
        sandbox: &SandboxId,
        now: Timestamp,
    ) -> Result<Option<Secret<String>>, SessionError> {
        let mut rows = self.store.sync_sessions(Some(sandbox)).await?;
        let Some(row) = rows.pop() else { return Ok(None) };
        // Two orchestrators that opened one at once: left alone, the other would be due for ever.
        for other in rows {
            self.end_one(other, now).await?;
        }
        self.refresh(&row.id, now).await.map(|(_, token)| Some(token))
    }

    /// Whether a sandbox lives, or is being made, whose sync has no session.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn is_without(&self, sandbox: &SandboxId) -> Result<bool, StoreError> {
        let row = self.store.sandbox(sandbox).await?;
        let lives = row.is_some_and(|row| matches!(row.state, State::Creating | State::Running));
        Ok(lives && self.store.sync_sessions(Some(sandbox)).await?.is_empty())
    }

    /// Ends those of a sandbox: gateways refuse their tokens when this returns.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn end(&self, sandbox: &SandboxId, now: Timestamp) -> Result<(), StoreError> {
        for row in self.store.sync_sessions(Some(sandbox)).await? {
            self.end_one(row, now).await?;
        }
        Ok(())
    }

    /// Ends one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn end_one(&self, row: SyncSessionRow, now: Timestamp) -> Result<(), StoreError> {
        self.store.end_sync_session(&row.id, now).await?;
        let ended = EndedSession { until: row.last_token_until(), sandbox_id: row.id };
        self.gateways.publish(Change::SessionEnded(ended), ACKNOWLEDGE_TIME).await;
        Ok(())
    }

    async fn publish(&self, row: SyncSessionRow) {
        let id = row.sandbox.clone();
        let told = self.gateways.publish(Change::Session(Box::new(session(row))), ACKNOWLEDGE_TIME).await;
        if !told.refused.is_empty() {
            tracing::warn!(sandbox = %id, refused = ?told.refused, "a gateway refused a sync's session");
        }
    }

    /// A token for the row, which then accepts it.
    fn mint(&self, row: &mut SyncSessionRow, now: Timestamp) -> Result<Secret<String>, SessionError> {
        let iat = unix_seconds(now);
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: row.id.clone(),
            sandbox_id: row.id.clone(),
            tenant: row.tenant.clone(),
            user_id: row.user_id.clone(),
            conversation_id: row.conversation_id.clone(),
            operations: vec![Grant::FilesSync],
            jti: hex(random(JTI_BYTES)?.reveal()),
            iat,
            nbf: iat,
            exp: iat + self.ttl.as_secs(),
        };
        let token = self.keys.token.mint(&claims)?;
        let new = AcceptedToken { until: claims.expires_at(), jti: claims.jti };
        let until = new.until;
        row.tokens = accepted(new, std::mem::take(&mut row.tokens), now);
        row.tokens.truncate(ACCEPTED_TOKENS);
        // It has no end of its own but its sandbox's, so that its token is always replaced.
        let far = until.saturating_add(SignedDuration::from_hours(1)).unwrap_or(until);
        row.rotate_at = rotation(now, until, far);
        Ok(token)
    }
}

/// A session as gateways know it. It lives for as long as its newest token at least; each new one
/// moves its end.
#[must_use]
pub(crate) fn session(row: SyncSessionRow) -> Session {
    Session {
        expires_at: row.last_token_until(),
        sandbox_id: row.id,
        tenant: row.tenant,
        user_id: row.user_id,
        conversation_id: row.conversation_id,
        operations: vec![Grant::FilesSync],
        tokens: row.tokens,
        peer: row.peer,
        template: row.template,
        // No policy asks it anything.
        isolation: Isolation::Namespaces,
        labels: BTreeMap::new(),
        claims: serde_json::Map::new(),
    }
}
