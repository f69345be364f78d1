// SPDX-License-Identifier: Apache-2.0
//! Session tokens: minting them and reading their signature (RFC 7519, HS256).
//!
//! A good signature is necessary, never sufficient: whether the session lives, and whether the
//! token claims no more than it, is for the gateway's registry to say. Nothing here keeps state.

pub mod assertion;
pub mod issuer;

use crate::clock::unix_seconds;
use crate::id::{ConversationId, SandboxId, TenantId, UserId};
use crate::secret::Secret;
use crate::session::Grant;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The `iss` of every session token.
pub const ISSUER: &str = "postern";
/// The `aud` of every session token.
pub const AUDIENCE: &str = "postern-gateway";
/// A token's longest life, and its life unless `TOKEN_TTL` says less.
pub const MAX_TTL: Duration = Duration::from_secs(3600);
/// HS256 wants a key at least as long as its hash (RFC 7518 §3.2).
pub const MIN_KEY_BYTES: usize = 32;
/// The longest token that is looked at. Ours are under 1 KiB; `operations` may make them longer.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// The original kit's sample key, which must never sign anything.
const SAMPLE_KEY: &str = "change-me-in-production";

/// What a session token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Always [`ISSUER`].
    pub iss: String,
    /// Always [`AUDIENCE`].
    pub aud: String,
    /// The sandbox again, for readers that know only registered claims.
    pub sub: SandboxId,
    /// The sandbox that the session belongs to.
    pub sandbox_id: SandboxId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its user.
    pub user_id: UserId,
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// What it may call, at most.
    pub operations: Vec<Grant>,
    /// This token's own id.
    pub jti: String,
    /// Minted at (seconds since 1970).
    pub iat: u64,
    /// Not valid before.
    pub nbf: u64,
    /// Not valid from here on.
    pub exp: u64,
}

impl Claims {
    /// When the token expires; the end of time for a number beyond it.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        let seconds = i64::try_from(self.exp).ok();
        seconds.and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or(Timestamp::MAX)
    }
}

/// A signing key that is too weak to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WeakKey {
    /// Fewer than [`MIN_KEY_BYTES`] bytes.
    #[error("the key has {0} bytes and needs at least 32: make one with `openssl rand -base64 48`")]
    TooShort(usize),
    /// The sample value of the documentation.
    #[error("the key is the sample value `change-me-in-production`: make one with `openssl rand -base64 48`")]
    Sample,
}

/// A key that signs and verifies session tokens: the bytes of the string as given.
#[derive(Debug, Clone)]
pub struct SigningKey {
    bytes: Secret<Vec<u8>>,
    kid: String,
}

impl SigningKey {
    /// Checks a key's strength and names it by its digest.
    ///
    /// # Errors
    /// [`WeakKey`] says what is wrong and how to make a better one.
    pub fn new(bytes: Vec<u8>) -> Result<Self, WeakKey> {
        if bytes == SAMPLE_KEY.as_bytes() {
            return Err(WeakKey::Sample);
        }
        if bytes.len() < MIN_KEY_BYTES {
            return Err(WeakKey::TooShort(bytes.len()));
        }
        // 96 bits of a digest of key and label: enough to tell keys apart, nothing to attack.
        let mut labelled = b"postern kid v1\0".to_vec();
        labelled.extend_from_slice(&bytes);
        let kid = digest(&SHA256, &labelled);
        let kid = URL_SAFE_NO_PAD.encode(kid.as_ref().first_chunk::<12>().map_or(&[][..], |start| start));
        labelled.fill(0);
        Ok(Self { bytes: Secret::new(bytes), kid })
    }

    /// The key's public name, as tokens carry it in `kid`.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Signs `claims`.
    ///
    /// # Errors
    /// [`MintError`] if the claims cannot be serialized, which no value of the type can cause.
    pub fn mint(&self, claims: &Claims) -> Result<Secret<String>, MintError> {
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::HS256) };
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(self.bytes.reveal()))
            .map(Secret::new)
            .map_err(MintError)
    }
}

/// A token could not be signed.
#[derive(Debug, thiserror::Error)]
#[error("could not sign a session token")]
pub struct MintError(#[source] jsonwebtoken::errors::Error);

/// Why a token was not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// Not a JWT with our claims.
    #[error("the token is not a session token")]
    Malformed,
    /// Wrong algorithm, unknown key, wrong signature, issuer or audience.
    #[error("the token was not signed by this installation")]
    Forged,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` lies ahead by more than the tolerated clock skew.
    #[error("the token is not valid yet")]
    NotYetValid,
}

/// The keys whose tokens are believed: the one that signs, and replaced ones that still verify.
#[derive(Debug, Clone)]
pub struct Verifier {
    keys: Vec<(String, VerifyingKey)>,
    validation: Validation,
}

#[derive(Clone)]
struct VerifyingKey(DecodingKey);

impl std::fmt::Debug for VerifyingKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("VerifyingKey(…)")
    }
}

/// Clocks of orchestrator and gateway may differ by this much; it widens `nbf` only.
pub const CLOCK_SKEW: Duration = Duration::from_secs(5);

impl Verifier {
    /// A verifier for these keys; the order does not matter.
    #[must_use]
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a SigningKey>) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        // Times are compared by `verify`, against the caller's clock.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let keys = keys
            .into_iter()
            .map(|key| (key.kid.clone(), VerifyingKey(DecodingKey::from_secret(key.bytes.reveal()))))
            .collect();
        Self { keys, validation }
    }

    /// Reads a token's claims if it was signed by one of the keys and is valid at `now`.
    ///
    /// The algorithm is the verifier's, never the token's choice; a token without a known `kid`
    /// is forged. Cost: one HMAC over the token, about 2 µs.
    ///
    /// # Errors
    /// [`BadToken`] says which check failed.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, BadToken> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(BadToken::Malformed);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_unreadable| BadToken::Malformed)?;
        let kid = header.kid.ok_or(BadToken::Forged)?;
        let (_, key) = self.keys.iter().find(|(known, _)| *known == kid).ok_or(BadToken::Forged)?;
        let claims = jsonwebtoken::decode::<Claims>(token, &key.0, &self.validation)
            .map_err(|error| bad_token(&error))?
            .claims;
        check_times(&claims, unix_seconds(now))?;
        if claims.sub == claims.sandbox_id { Ok(claims) } else { Err(BadToken::Forged) }
    }
}

fn check_times(claims: &Claims, now: u64) -> Result<(), BadToken> {
    if claims.exp <= now {
        return Err(BadToken::Expired);
    }
    if claims.nbf > now.saturating_add(CLOCK_SKEW.as_secs()) {
        return Err(BadToken::NotYetValid);
    }
    if claims.exp.saturating_sub(claims.iat) > MAX_TTL.as_secs() {
        return Err(BadToken::Forged);
    }
    Ok(())
}

fn bad_token(error: &jsonwebtoken::errors::Error) -> BadToken {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        ErrorKind::InvalidToken
        | ErrorKind::Base64(_)
        | ErrorKind::Json(_)
        | ErrorKind::Utf8(_)
        | ErrorKind::MissingRequiredClaim(_) => BadToken::Malformed,
        _ => BadToken::Forged,
    }
}

#[cfg(test)]
mod tests;
