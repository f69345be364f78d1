// SPDX-License-Identifier: Apache-2.0
//! Sessions that are bound to an address and belong to no sandbox. Each has one token and ends with
//! it, at most an hour later; whoever needs longer registers another.

use super::JTI_BYTES;
use crate::control::{ACKNOWLEDGE_TIME, Gateways};
use crate::keys::{InstallationKeys, hex, random};
use crate::seal::SealError;
use crate::store::{AuditEntry, PeerSessionRow, Store, StoreError};
use jiff::{SignedDuration, Timestamp};
use postern_common::clock::unix_seconds;
use postern_common::control::Change;
use postern_common::id::{ConversationId, SandboxId, TemplateName, TenantId, UserId};
use postern_common::secret::Secret;
use postern_common::session::{AcceptedToken, Grant, Isolation, Peer, Session};
use postern_common::token::{AUDIENCE, Claims, ISSUER, MintError};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// What policies read as the template of a session without a sandbox.
const TEMPLATE: &str = "peer";

/// What a session of an address is to be.
#[derive(Debug, Clone)]
pub(crate) struct WantedPeer {
    pub(crate) tenant: TenantId,
    pub(crate) user_id: UserId,
    pub(crate) conversation_id: ConversationId,
    pub(crate) operations: Vec<Grant>,
    pub(crate) address: IpAddr,
    pub(crate) ttl: Duration,
    pub(crate) created_by: String,
}

/// A session of an address could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerSessionError {
    /// Its token could not be signed.
    #[error(transparent)]
    Mint(#[from] MintError),
    /// No random numbers.
    #[error(transparent)]
    Random(#[from] SealError),
    /// Its user is being erased.
    #[error("the user is being erased, and gets no session until that is done")]
    BeingErased,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Sessions of addresses.
#[derive(Debug, Clone)]
pub(crate) struct PeerSessions {
    store: Store,
    keys: Arc<InstallationKeys>,
    gateways: Gateways,
}

impl PeerSessions {
    #[must_use]
    pub(crate) const fn new(store: Store, keys: Arc<InstallationKeys>, gateways: Gateways) -> Self {
        Self { store, keys, gateways }
    }

    /// Makes one, and returns its token once the gateways know it (waiting at most
    /// [`ACKNOWLEDGE_TIME`]).
    ///
    /// # Errors
    /// [`PeerSessionError`].
    pub(crate) async fn add(
        &self,
        wanted: WantedPeer,
        audit: &AuditEntry,
        now: Timestamp,
    ) -> Result<(PeerSessionRow, Secret<String>), PeerSessionError> {
        let id = random(12)?;
        let id = SandboxId::from_random(id.reveal().first_chunk().copied().unwrap_or_default());
        let jti = hex(random(JTI_BYTES)?.reveal());
        let iat = unix_seconds(now);
        let exp = iat + wanted.ttl.as_secs();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: id.clone(),
            sandbox_id: id.clone(),
            tenant: wanted.tenant.clone(),
            user_id: wanted.user_id.clone(),
            conversation_id: wanted.conversation_id.clone(),
            operations: wanted.operations.clone(),
            jti: jti.clone(),
            iat,
            nbf: iat,
            exp,
        };
        let token = self.keys.token.mint(&claims)?;
        let ttl = SignedDuration::try_from(wanted.ttl).unwrap_or_default();
        let row = PeerSessionRow {
            id,
            tenant: wanted.tenant,
            user_id: wanted.user_id,
            conversation_id: wanted.conversation_id,
            operations: wanted.operations,
            address: wanted.address,
            jti,
            created_by: wanted.created_by,
            created_at: now,
            expires_at: now.saturating_add(ttl).unwrap_or(now),
        };
        if !self.store.add_peer_session(&row, audit).await? {
            return Err(PeerSessionError::BeingErased);
        }
        let opened = Change::Session(Box::new(session(row.clone())));
        let told = self.gateways.publish(opened, ACKNOWLEDGE_TIME).await;
        if !told.refused.is_empty() {
            tracing::warn!(session = %row.id, refused = ?told.refused, "a gateway refused a session");
        }
        Ok((row, token))
    }

    /// Ends one for good: gateways refuse its token when this returns, or as soon as they answer
    /// again. `false` if there is none.
    ///
    /// # Errors
    /// [`StoreError`]; then it has not ended.
    pub(crate) async fn end(
        &self,
        id: &SandboxId,
        audit: &AuditEntry,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let Some(ended) = self.store.end_peer_session(id, now, audit).await? else { return Ok(false) };
        self.gateways.publish(Change::SessionEnded(ended), ACKNOWLEDGE_TIME).await;
        Ok(true)
    }
}

/// A session as gateways know it.
#[must_use]
pub(crate) fn session(row: PeerSessionRow) -> Session {
    Session {
        sandbox_id: row.id,
        tenant: row.tenant,
        user_id: row.user_id,
        conversation_id: row.conversation_id,
        operations: row.operations,
        tokens: vec![AcceptedToken { jti: row.jti, until: row.expires_at }],
        peer: Peer::Address(row.address),
        expires_at: row.expires_at,
        template: template(),
        // Nothing is known of it, so no more is said than the least.
        isolation: Isolation::Namespaces,
        labels: BTreeMap::new(),
        claims: serde_json::Map::new(),
    }
}

#[expect(clippy::expect_used, reason = "a constant that a test parses")]
fn template() -> TemplateName {
    TemplateName::parse(TEMPLATE).expect("has the form of a name")
}
