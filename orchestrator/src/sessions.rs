// SPDX-License-Identifier: Apache-2.0
//! Sessions: minting their tokens, replacing them in time, ending them.
//!
//! A token is in our hands only between minting and handing on: to the caller of create and
//! refresh, and into the sandbox. What is kept is its `jti`. Whoever calls holds the sandbox's
//! lane (see `driver`), so a session's changes never overtake each other.

use crate::control::{ACKNOWLEDGE_TIME, Gateways};
use crate::keys::InstallationKeys;
use crate::runtime::Level;
use crate::seal::SealError;
use crate::store::{SandboxRow, SessionRow, Store, StoreError};
use jiff::{SignedDuration, Timestamp};
use postern_common::clock::unix_seconds;
use postern_common::control::Change;
use postern_common::id::SandboxId;
use postern_common::secret::Secret;
use postern_common::session::{AcceptedToken, Isolation, Peer, Session};
use postern_common::token::{AUDIENCE, Claims, ISSUER, MAX_TTL, MintError};
use std::sync::Arc;
use std::time::Duration;

/// How long a replaced token stays good: requests under way, and the sandbox's own hand-over.
pub(crate) const OVERLAP: Duration = Duration::from_secs(60);
/// Bytes of a token's id: 128 bits, so that it cannot be guessed.
const JTI_BYTES: usize = 16;
/// Tokens of one session that are accepted at the same time: a caller that refreshes in a loop
/// pushes out the oldest.
const ACCEPTED_TOKENS: usize = 4;

/// A session could not be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// It has ended, or there never was one.
    #[error("the session of sandbox `{0}` has ended; create a new sandbox for the conversation")]
    Ended(SandboxId),
    /// The token could not be signed.
    #[error(transparent)]
    Mint(#[from] MintError),
    /// There are no random numbers for its id.
    #[error(transparent)]
    Random(#[from] SealError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Everything that sessions need.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    store: Store,
    keys: Arc<InstallationKeys>,
    gateways: Gateways,
    ttl: Duration,
}

impl Sessions {
    /// Sessions whose tokens live for `ttl`, at most [`MAX_TTL`].
    #[must_use]
    pub(crate) fn new(store: Store, keys: Arc<InstallationKeys>, gateways: Gateways, ttl: Duration) -> Self {
        Self { store, keys, gateways, ttl: ttl.min(MAX_TTL) }
    }

    /// Opens the session of a sandbox that is being made and returns its first token, once the
    /// gateways know it (waiting at most [`ACKNOWLEDGE_TIME`]).
    ///
    /// # Errors
    /// [`SessionError`].
    pub(crate) async fn open(
        &self,
        sandbox: &SandboxRow,
        peer: Peer,
        level: Level,
        now: Timestamp,
    ) -> Result<Secret<String>, SessionError> {
        self.replace(sandbox, peer, Vec::new(), level, now).await
    }

    /// Replaces the token of a live session. The one before stays good for [`OVERLAP`].
    ///
    /// # Errors
    /// [`SessionError`].
    pub(crate) async fn refresh(
        &self,
        sandbox: &SandboxRow,
        level: Level,
        now: Timestamp,
    ) -> Result<Secret<String>, SessionError> {
        let id = &sandbox.new.id;
        let before = self.store.session(id).await?.ok_or_else(|| SessionError::Ended(id.clone()))?;
        self.replace(sandbox, before.peer, before.tokens, level, now).await
    }

    async fn replace(
        &self,
        sandbox: &SandboxRow,
        peer: Peer,
        before: Vec<AcceptedToken>,
        level: Level,
        now: Timestamp,
    ) -> Result<Secret<String>, SessionError> {
        let (claims, token) = self.mint(sandbox, now)?;
        let until = Timestamp::from_second(i64::try_from(claims.exp).unwrap_or(i64::MAX)).unwrap_or(now);
        let row = SessionRow {
            sandbox_id: sandbox.new.id.clone(),
            peer,
            tokens: accepted(AcceptedToken { jti: claims.jti, until }, before, now),
            expires_at: sandbox.new.expires_at,
            rotate_at: rotation(now, until),
        };
        if !self.store.put_session(&row).await? {
            return Err(SessionError::Ended(row.sandbox_id));
        }
        self.publish(sandbox, row, level).await;
        Ok(token)
    }

    /// Tells the gateways of a session.
    pub(crate) async fn publish(&self, sandbox: &SandboxRow, row: SessionRow, level: Level) {
        let session = session(sandbox, row, level);
        let told = self.gateways.publish(Change::Session(Box::new(session)), ACKNOWLEDGE_TIME).await;
        if !told.refused.is_empty() {
            tracing::warn!(sandbox = %sandbox.new.id, refused = ?told.refused, "a gateway refused a session");
        }
    }

    /// Ends a session for good: gateways refuse its tokens when this returns, or as soon as they
    /// answer again.
    ///
    /// # Errors
    /// [`StoreError`]; then it has not ended.
    pub(crate) async fn end(&self, sandbox: &SandboxId, now: Timestamp) -> Result<(), StoreError> {
        if let Some(ended) = self.store.end_session(sandbox, now).await? {
            self.gateways.publish(Change::SessionEnded(ended), ACKNOWLEDGE_TIME).await;
        }
        Ok(())
    }

    fn mint(&self, sandbox: &SandboxRow, now: Timestamp) -> Result<(Claims, Secret<String>), SessionError> {
        let new = &sandbox.new;
        let iat = unix_seconds(now);
        // Never after the sandbox's own end; a token of a sandbox whose end has come is good for
        // no time at all.
        let exp = (iat + self.ttl.as_secs()).min(unix_seconds(new.expires_at));
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: new.id.clone(),
            sandbox_id: new.id.clone(),
            tenant: new.tenant.clone(),
            user_id: new.user_id.clone(),
            conversation_id: new.conversation_id.clone(),
            operations: new.operations.clone(),
            jti: crate::keys::hex(crate::keys::random(JTI_BYTES)?.reveal()),
            iat,
            nbf: iat,
            exp,
        };
        let token = self.keys.token.mint(&claims)?;
        Ok((claims, token))
    }
}

/// The tokens to accept when `new` replaces what was accepted `before`.
fn accepted(new: AcceptedToken, before: Vec<AcceptedToken>, now: Timestamp) -> Vec<AcceptedToken> {
    let overlap = now.saturating_add(SignedDuration::try_from(OVERLAP).unwrap_or_default()).unwrap_or(now);
    let shortened =
        before.into_iter().map(|token| AcceptedToken { until: token.until.min(overlap), ..token });
    let mut tokens: Vec<_> =
        std::iter::once(new).chain(shortened.filter(|token| token.until > now)).collect();
    tokens.truncate(ACCEPTED_TOKENS);
    tokens
}

/// When a token that is good from `now` to `until` is to be replaced: at two thirds.
fn rotation(now: Timestamp, until: Timestamp) -> Timestamp {
    let life = until.duration_since(now);
    now.saturating_add(life * 2 / 3).unwrap_or(until)
}

/// A session as gateways know it.
#[must_use]
pub(crate) fn session(sandbox: &SandboxRow, row: SessionRow, level: Level) -> Session {
    let new = &sandbox.new;
    Session {
        sandbox_id: new.id.clone(),
        tenant: new.tenant.clone(),
        user_id: new.user_id.clone(),
        conversation_id: new.conversation_id.clone(),
        operations: new.operations.clone(),
        tokens: row.tokens,
        peer: row.peer,
        expires_at: row.expires_at,
        template: new.template.clone(),
        isolation: match level {
            Level::Namespaces => Isolation::Namespaces,
            Level::Gvisor => Isolation::Gvisor,
        },
        labels: new.labels.clone(),
        claims: new.claims.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn token(jti: &str, until: i64) -> AcceptedToken {
        AcceptedToken { jti: jti.to_owned(), until: at(until) }
    }

    #[test]
    fn a_replaced_token_is_good_for_a_minute_and_never_longer_than_it_was() {
        let tokens = accepted(token("new", 5000), vec![token("old", 4000), token("short", 1030)], at(1000));
        assert_eq!(tokens, [token("new", 5000), token("old", 1060), token("short", 1030)]);
    }

    #[test]
    fn expired_tokens_are_dropped_and_their_number_is_bounded() {
        let before =
            vec![token("a", 2000), token("gone", 1000), token("b", 2000), token("c", 2000), token("d", 2000)];
        let tokens = accepted(token("new", 5000), before, at(1000));
        let names: Vec<_> = tokens.iter().map(|token| token.jti.as_str()).collect();
        assert_eq!(names, ["new", "a", "b", "c"]);
    }

    #[test]
    fn a_token_is_replaced_at_two_thirds_of_its_life() {
        assert_eq!(rotation(at(0), at(3600)), at(2400));
        assert_eq!(rotation(at(0), at(0)), at(0));
    }
}
