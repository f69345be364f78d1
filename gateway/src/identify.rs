// SPDX-License-Identifier: Apache-2.0
//! Who is calling: from the `Authorization` header to a session that lives and is bound here.
//!
//! Signatures are verified once: what was verified is kept under a digest of the whole token and
//! its times are compared at every use. A peer that sends bad tokens is soon not listened to.

use crate::config::UNKNOWN_SESSION_WAIT;
use crate::issuer::Issuer;
use crate::limits::{BAD_TOKENS, Bucket, Short};
use crate::registry::{LiveSession, Lookup, Registry, Source};
use crate::reject::{Audience, Limited, Reject, Scope};
use aws_lc_rs::digest::{SHA256, digest};
use http::HeaderValue;
use jiff::Timestamp;
use moka::sync::Cache;
use postern_common::clock::unix_seconds;
use postern_common::token::issuer::NotIssued;
use postern_common::token::{BadToken, CLOCK_SKEW, Claims, Verifier};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Verified tokens that are kept: those of 20,000 sandboxes with one replaced token each, about
/// 40 MiB.
const VERIFIED_TOKENS: u64 = 40_000;
/// Peers whose bad tokens are counted; beyond it the least active are forgotten.
const SUSPECTS: u64 = 100_000;
/// A peer's count is full again after 20 s; kept longer it would say nothing.
const SUSPECT_IDLE: Duration = Duration::from_secs(60);

/// Whose tokens are believed.
#[derive(Debug, Clone)]
pub(crate) enum Trust {
    /// This installation's: the session must be one that the orchestrator has told of.
    Installation(Box<Verifier>),
    /// Another issuer's, of a gateway that stands alone: a token vouches for its own session.
    Issuer(Arc<Issuer>),
}

/// A token that was believed, and by which keys.
#[derive(Debug, Clone)]
struct Verified {
    claims: Arc<Claims>,
    /// Keys are replaced; what older ones have signed is verified again.
    keys: u64,
}

/// Verified tokens, and peers that sent bad ones.
#[derive(Debug)]
pub(crate) struct Identities {
    trust: Trust,
    verified: Cache<[u8; 32], Verified>,
    suspects: Cache<Source, Arc<Bucket>>,
}

/// A caller who is who it says.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) session: Arc<LiveSession>,
    /// What the token says; never more than the session.
    pub(crate) claims: Arc<Claims>,
    /// Cancelled when the session ends, or its token where that vouches for itself; everything in
    /// flight listens to it.
    pub(crate) ended: CancellationToken,
    /// Where it came from.
    pub(crate) source: Source,
}

impl Identities {
    pub(crate) fn new(trust: Trust) -> Self {
        Self {
            trust,
            verified: Cache::new(VERIFIED_TOKENS),
            suspects: Cache::builder().max_capacity(SUSPECTS).time_to_idle(SUSPECT_IDLE).build(),
        }
    }

    /// Whom its callers can ask about their tokens.
    pub(crate) const fn audience(&self) -> Audience {
        match self.trust {
            Trust::Installation(_) => Audience::Installation,
            Trust::Issuer(_) => Audience::Issuer,
        }
    }

    /// Whose tokens are believed.
    pub(crate) const fn trust(&self) -> &Trust {
        &self.trust
    }

    fn verify(&self, token: &str, now: Timestamp) -> Result<Arc<Claims>, NotIssued> {
        let key = digest(&SHA256, token.as_bytes());
        let key: [u8; 32] = key.as_ref().try_into().map_err(|_not_32_bytes| BadToken::Malformed)?;
        let keys = match &self.trust {
            Trust::Installation(_) => 0,
            Trust::Issuer(issuer) => issuer.keys_number(),
        };
        if let Some(Verified { claims, .. }) = self.verified.get(&key).filter(|kept| kept.keys == keys) {
            let seconds = unix_seconds(now);
            if claims.exp <= seconds {
                self.verified.invalidate(&key);
                return Err(BadToken::Expired.into());
            }
            if claims.nbf > seconds.saturating_add(CLOCK_SKEW.as_secs()) {
                return Err(BadToken::NotYetValid.into());
            }
            return Ok(claims);
        }
        let claims = Arc::new(match &self.trust {
            Trust::Installation(verifier) => verifier.verify(token, now)?,
            Trust::Issuer(issuer) => issuer.verify(token, now)?,
        });
        self.verified.insert(key, Verified { claims: Arc::clone(&claims), keys });
        Ok(claims)
    }

    /// What a token claims, if it is believed. One that names a key which is not known may be of a
    /// newer set of its issuer's: that is looked for, now and then and for a bounded time.
    async fn believe(&self, token: &str, now: Timestamp) -> Result<Arc<Claims>, Reject> {
        let refusal = match self.verify(token, now) {
            Ok(claims) => return Ok(claims),
            Err(NotIssued::Bad(bad)) => return Err(Reject::Token(bad)),
            Err(NotIssued::UnknownKey) => Reject::Token(BadToken::Forged),
        };
        match &self.trust {
            Trust::Issuer(issuer) if issuer.has_newer_keys().await => {
                self.verify(token, now).map_err(|_still_unknown| refusal)
            }
            Trust::Issuer(issuer) if !issuer.has_keys() => Err(Reject::StateStale),
            Trust::Issuer(_) | Trust::Installation(_) => Err(refusal),
        }
    }

    /// Refuses a peer that has sent too many bad tokens lately, before its token is looked at.
    fn listen_to(&self, source: &Source, now: Instant) -> Result<(), Reject> {
        match self.suspects.get(source) {
            Some(bucket) if bucket.level(now) == 0 => Err(Reject::RateLimited(Limited {
                scope: Scope::BadTokens,
                wait: Some(Duration::from_secs(1)),
                quota: BAD_TOKENS.burst.unwrap_or_default(),
                left: 0,
            })),
            _ => Ok(()),
        }
    }

    fn suspect(&self, source: &Source, now: Instant) {
        let bucket = self.suspects.get_with_by_ref(source, || Arc::new(Bucket::of(&BAD_TOKENS, now)));
        match bucket.take(1, now) {
            Ok(()) | Err(Short::Wait(_) | Short::Never) => {}
        }
    }
}

/// Finds the caller of a request.
///
/// Waits, bounded, only for a token that we signed and whose session has not been heard of.
///
/// # Errors
/// Each way of not being let in has its own [`Reject`].
pub(crate) async fn caller(
    identities: &Identities,
    registry: &Registry,
    source: &Source,
    authorization: &[HeaderValue],
    now: Timestamp,
) -> Result<Caller, Reject> {
    match identities.trust() {
        Trust::Installation(_) => {
            identities.listen_to(source, Instant::now())?;
            let found = find(identities, registry, source, authorization, now).await;
            if found.as_ref().is_err_and(is_suspicious) {
                identities.suspect(source, Instant::now());
            }
            found
        }
        // Nothing binds tokens to peers here: behind one address may be everybody, and the bad
        // tokens of one must not close it to the others. A good one is always listened to.
        Trust::Issuer(_) => {
            let found = find(identities, registry, source, authorization, now).await;
            if found
                .as_ref()
                .is_err_and(|reject| is_suspicious(reject) && !matches!(reject, Reject::SessionEnded))
            {
                let is_flood = identities.listen_to(source, Instant::now());
                identities.suspect(source, Instant::now());
                is_flood?;
            }
            found
        }
    }
}

async fn find(
    identities: &Identities,
    registry: &Registry,
    source: &Source,
    authorization: &[HeaderValue],
    now: Timestamp,
) -> Result<Caller, Reject> {
    let claims = identities.believe(bearer(authorization)?, now).await?;
    if let Trust::Issuer(issuer) = identities.trust() {
        issuer.admit(&claims, registry, now)?;
    }
    let found = registry.find_with_token(&claims.sandbox_id, &claims.jti, UNKNOWN_SESSION_WAIT).await;
    let session = match found {
        Lookup::Live(session) => session,
        Lookup::Ended => return Err(Reject::SessionEnded),
        Lookup::Unknown => return Err(Reject::SessionUnknown),
    };
    session.accepts(&claims, now)?;
    if session.is_bound_to(source) {
        let ended = match identities.trust() {
            Trust::Installation(_) => session.ended.clone(),
            Trust::Issuer(_) => session.end_of_token(&claims.jti, claims.expires_at()),
        };
        Ok(Caller { session, claims, ended, source: source.clone() })
    } else {
        Err(Reject::WrongPeer)
    }
}

/// The one bearer token of a request.
fn bearer(authorization: &[HeaderValue]) -> Result<&str, Reject> {
    let value = match authorization {
        [] => return Err(Reject::TokenMissing),
        [value] => value,
        _ => return Err(Reject::TokenUnreadable("the request has more than one `Authorization` header")),
    };
    let text = value.to_str().map_err(|_not_ascii| Reject::TokenUnreadable("the token is not plain text"))?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim_matches(' ')),
        _ => Err(Reject::TokenUnreadable("the `Authorization` header is not `Bearer` and a token")),
    }
}

/// Refusals that an honest sandbox hardly ever sees.
fn is_suspicious(reject: &Reject) -> bool {
    matches!(
        reject,
        Reject::TokenUnreadable(_)
            | Reject::Token(_)
            | Reject::TokenClaimsMore(_)
            | Reject::TokenReplaced
            | Reject::SessionEnded
            | Reject::WrongPeer
    )
}
