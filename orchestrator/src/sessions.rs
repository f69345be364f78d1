// SPDX-License-Identifier: Apache-2.0
//! Sessions: minting their tokens, replacing them in time, ending them.
//!
//! A token is in our hands only between minting and handing on: to the caller of create and
//! refresh, and into the sandbox. What is kept is its `jti`. Whoever calls holds the sandbox's
//! lane (see `driver`), so a session's changes never overtake each other.

pub(crate) mod peers;
pub(crate) mod sync;

use crate::control::{ACKNOWLEDGE_TIME, Gateways};
use crate::keys::InstallationKeys;
use crate::lifecycle::State as Status;
use crate::seal::SealError;
use crate::store::{SandboxRow, SessionRow, Store, StoreError};
use jiff::{SignedDuration, Timestamp};
use postern_common::clock::{self, unix_seconds};
use postern_common::control::{Change, State};
use postern_common::id::SandboxId;
use postern_common::secret::Secret;
use postern_common::session::{AcceptedToken, Isolation, Peer, Session};
use postern_common::token::{AUDIENCE, Claims, ISSUER, MAX_TTL, MintError};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
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

/// A token, not yet put.
struct Minted {
    accepted: AcceptedToken,
    token: Secret<String>,
    rotate_at: Timestamp,
}

/// A token that replaced another.
#[derive(Debug)]
pub(crate) struct Replaced {
    /// The token.
    pub(crate) token: Secret<String>,
    /// When it is to be replaced in turn.
    pub(crate) rotate_at: Timestamp,
}

/// Everything that sessions need.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    store: Store,
    keys: Arc<InstallationKeys>,
    gateways: Gateways,
    ttl: Duration,
    minted: Counter,
    revoked: Counter,
}

impl Sessions {
    /// Sessions whose tokens live for `ttl`, at most [`MAX_TTL`].
    #[must_use]
    pub(crate) fn new(store: Store, keys: Arc<InstallationKeys>, gateways: Gateways, ttl: Duration) -> Self {
        let (minted, revoked) = (Counter::default(), Counter::default());
        Self { store, keys, gateways, ttl: ttl.min(MAX_TTL), minted, revoked }
    }

    /// Tells a registry of all that is counted here.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "Session tokens of sandboxes that were minted";
        registry.register("tokens_minted", help, self.minted.clone());
        let help = "Session tokens of sandboxes that were good when their session ended or was silenced";
        registry.register("tokens_revoked", help, self.revoked.clone());
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
        level: Isolation,
        now: Timestamp,
    ) -> Result<Secret<String>, SessionError> {
        let (row, token) = self.first(sandbox, peer, now)?;
        self.put(sandbox, row, level).await?;
        self.minted.inc();
        Ok(token)
    }

    /// The session that [`Sessions::open`] would open, and its first token, for who writes it down with its
    /// sandbox and calls [`Sessions::begin`] then.
    ///
    /// # Errors
    /// [`SessionError::Mint`], [`SessionError::Random`].
    pub(crate) fn first(
        &self,
        sandbox: &SandboxRow,
        peer: Peer,
        now: Timestamp,
    ) -> Result<(SessionRow, Secret<String>), SessionError> {
        let Minted { accepted, token, rotate_at } = self.mint(sandbox, now)?;
        let (sandbox_id, expires_at) = (sandbox.new.id.clone(), sandbox.new.expires_at);
        Ok((SessionRow { sandbox_id, peer, tokens: vec![accepted], expires_at, rotate_at }, token))
    }

    /// Tells the gateways of a session that was written down with its sandbox (waiting at most
    /// [`ACKNOWLEDGE_TIME`]). One whose requests come from nowhere yet is told and not waited for: no gateway
    /// takes a request of it before [`Sessions::bind`], which waits, and comes to each gateway after this.
    pub(crate) async fn begin(&self, sandbox: &SandboxRow, row: SessionRow, level: Isolation) {
        self.minted.inc();
        let is_nowhere = matches!(&row.peer, Peer::Pod { addresses, .. } if addresses.is_empty());
        let patience = if is_nowhere { Duration::ZERO } else { ACKNOWLEDGE_TIME };
        self.tell(sandbox, row, level, patience).await;
    }

    /// Replaces the token of a live session, which is due to be replaced again at `again`: the
    /// caller moves that to when it really is, once the new one has arrived. The one before stays
    /// good for [`OVERLAP`].
    ///
    /// # Errors
    /// [`SessionError`].
    pub(crate) async fn refresh(
        &self,
        sandbox: &SandboxRow,
        level: Isolation,
        now: Timestamp,
        again: Timestamp,
    ) -> Result<Replaced, SessionError> {
        let id = &sandbox.new.id;
        let before = self.store.session(id).await?.ok_or_else(|| SessionError::Ended(id.clone()))?;
        let Minted { accepted: new, token, rotate_at } = self.mint(sandbox, now)?;
        let tokens = accepted(new, before.tokens, now);
        let expires_at = sandbox.new.expires_at;
        self.put(sandbox, SessionRow { tokens, expires_at, rotate_at: again, ..before }, level).await?;
        self.minted.inc();
        Ok(Replaced { token, rotate_at })
    }

    /// Has gateways refuse every token of a session that is to come back, until [`Sessions::open`].
    ///
    /// # Errors
    /// [`SessionError`].
    pub(crate) async fn silence(&self, sandbox: &SandboxRow, level: Isolation) -> Result<(), SessionError> {
        let id = &sandbox.new.id;
        let before = self.store.session(id).await?.ok_or_else(|| SessionError::Ended(id.clone()))?;
        if before.tokens.is_empty() {
            return Ok(());
        }
        let (rotate_at, good) = (before.expires_at, good(&before, clock::now()));
        self.put(sandbox, SessionRow { tokens: Vec::new(), rotate_at, ..before }, level).await?;
        self.revoked.inc_by(good);
        Ok(())
    }

    /// Says where a live session's requests come from, once that is known, and again when it has
    /// changed: what came from before is refused from then on.
    ///
    /// # Errors
    /// [`SessionError`].
    pub(crate) async fn bind(
        &self,
        sandbox: &SandboxRow,
        peer: Peer,
        level: Isolation,
    ) -> Result<(), SessionError> {
        let id = &sandbox.new.id;
        let before = self.store.session(id).await?.ok_or_else(|| SessionError::Ended(id.clone()))?;
        if before.peer == peer {
            return Ok(());
        }
        self.put(sandbox, SessionRow { peer, ..before }, level).await
    }

    async fn put(&self, sandbox: &SandboxRow, row: SessionRow, level: Isolation) -> Result<(), SessionError> {
        if !self.store.put_session(&row).await? {
            return Err(SessionError::Ended(row.sandbox_id));
        }
        self.publish(sandbox, row, level).await;
        Ok(())
    }

    /// Tells the gateways of a session.
    pub(crate) async fn publish(&self, sandbox: &SandboxRow, row: SessionRow, level: Isolation) {
        self.tell(sandbox, row, level, ACKNOWLEDGE_TIME).await;
    }

    async fn tell(&self, sandbox: &SandboxRow, row: SessionRow, level: Isolation, patience: Duration) {
        let session = session(sandbox, row, level);
        let told = self.gateways.publish(Change::Session(Box::new(session)), patience).await;
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
        // It is counted if it can be read; whether it ends does not hang on that.
        let before = self.store.session(sandbox).await.ok().flatten();
        if let Some(ended) = self.store.end_session(sandbox, now).await? {
            self.revoked.inc_by(before.map_or(0, |before| good(&before, now)));
            self.gateways.publish(Change::SessionEnded(ended), ACKNOWLEDGE_TIME).await;
        }
        Ok(())
    }

    fn mint(&self, sandbox: &SandboxRow, now: Timestamp) -> Result<Minted, SessionError> {
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
        let until = Timestamp::from_second(i64::try_from(exp).unwrap_or(i64::MAX)).unwrap_or(now);
        let rotate_at = rotation(now, until, new.expires_at);
        Ok(Minted { accepted: AcceptedToken { jti: claims.jti, until }, token, rotate_at })
    }
}

/// How many tokens of a session are accepted now.
fn good(session: &SessionRow, now: Timestamp) -> u64 {
    session.tokens.iter().map(|token| u64::from(token.until > now)).sum()
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

/// When a token that is good from `now` to `until` is to be replaced: at two thirds, and never,
/// that is at the session's `end`, if no token could be good for longer.
fn rotation(now: Timestamp, until: Timestamp, end: Timestamp) -> Timestamp {
    if unix_seconds(until) >= unix_seconds(end) {
        return end;
    }
    let life = until.duration_since(now);
    now.saturating_add(life * 2 / 3).unwrap_or(until)
}

/// The sessions that gateways must know: all, or this one.
///
/// # Errors
/// [`StoreError`].
pub(crate) async fn known(
    store: &Store,
    now: Timestamp,
    only: Option<&SandboxId>,
) -> Result<State, StoreError> {
    let is_meant = |id: &SandboxId| only.is_none_or(|only| only == id);
    let mut state = State { ended: store.ended_sessions(now, only).await?, ..State::default() };
    state.ended.extend(store.ended_peer_sessions(now, only).await?);
    state.ended.extend(store.ended_sync_sessions(now, only).await?);
    state.sessions.extend(store.peer_sessions(now, only).await?.into_iter().map(peers::session));
    let syncs = store.sync_sessions(None).await?.into_iter().filter(|row| row.last_token_until() > now);
    state.sessions.extend(syncs.map(sync::session).filter(|session| is_meant(&session.sandbox_id)));
    let live = match only {
        Some(id) => store.sandbox(id).await?.into_iter().collect(),
        None => store.live_sandboxes().await?,
    };
    for row in live {
        // One that is being made is told of by whoever makes it; of one that is over nobody is.
        let is_known = match row.state {
            Status::Running | Status::Paused | Status::Stopped => true,
            Status::Creating | Status::Waking => only.is_some(),
            _ => false,
        };
        if !is_known {
            continue;
        }
        if let Some(kept) = store.session(&row.new.id).await? {
            let level = row.running.as_ref().map_or(Isolation::Namespaces, |running| running.isolation);
            state.sessions.push(session(&row, kept, level));
        }
    }
    Ok(state)
}

/// A session as gateways know it.
#[must_use]
pub(crate) fn session(sandbox: &SandboxRow, row: SessionRow, level: Isolation) -> Session {
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
        isolation: level,
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
        assert_eq!(rotation(at(0), at(3600), at(7200)), at(2400));
        assert_eq!(rotation(at(0), at(0), at(3600)), at(0));
    }

    #[test]
    fn the_last_token_of_a_session_is_not_replaced() {
        let end = at(3600).saturating_add(SignedDuration::from_millis(700)).expect("in range");
        assert_eq!(rotation(at(3000), at(3600), end), end, "tokens end on whole seconds");
        assert_eq!(rotation(at(3000), at(3600), at(3600)), at(3600));
        assert!(rotation(at(0), at(3600), at(3601)) < at(3600));
    }
}
