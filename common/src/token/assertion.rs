// SPDX-License-Identifier: Apache-2.0
//! Signs assertions: tokens by which backends, and the orchestrator's own files API, tell our gateways
//! from anybody else.

use super::{BadToken, CLOCK_SKEW, MintError, bad_token};
use crate::clock::unix_seconds;
use crate::control::assertions::AssertionKey;
use crate::id::{SandboxId, TenantId, UserId};
use crate::secret::Secret;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

/// The `iss` of assertions.
pub const ISSUER: &str = "postern-gateway";
/// What an assertion is for that goes to the orchestrator's files API. No backend's assertion is for
/// this: theirs begin with their tenant's name and a `/`.
pub const FILES_AUDIENCE: &str = "files:sync";

/// What an assertion says, as far as the orchestrator reads it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Asserted {
    /// The session.
    pub sub: SandboxId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its user.
    pub user_id: UserId,
    /// The method that it was made for.
    pub method: String,
    /// The path that it was made for.
    pub path: String,
    /// The request.
    pub jti: String,
    iat: u64,
    exp: u64,
}

/// Reads an assertion that was made for `audience` by one of these gateways.
///
/// # Errors
/// [`BadToken`] says which check failed.
pub fn verify(
    token: &str,
    keys: &[AssertionKey],
    audience: &str,
    now: Timestamp,
) -> Result<Asserted, BadToken> {
    if token.len() > super::MAX_TOKEN_BYTES {
        return Err(BadToken::Malformed);
    }
    let header = jsonwebtoken::decode_header(token).map_err(|_unreadable| BadToken::Malformed)?;
    let kid = header.kid.ok_or(BadToken::Forged)?;
    let key = keys.iter().find(|key| key.kid == kid && key.is_true()).ok_or(BadToken::Forged)?;
    let key = DecodingKey::from_ed_components(&key.x).map_err(|_no_key| BadToken::Forged)?;
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_issuer(&[ISSUER]);
    validation.set_audience(&[audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    // Compared below, against the caller's clock.
    validation.validate_exp = false;
    validation.validate_nbf = false;
    let asserted = jsonwebtoken::decode::<Asserted>(token, &key, &validation);
    let asserted = asserted.map_err(|error| bad_token(&error))?.claims;
    let now = unix_seconds(now);
    if asserted.exp <= now {
        return Err(BadToken::Expired);
    }
    if asserted.iat > now.saturating_add(CLOCK_SKEW.as_secs()) {
        return Err(BadToken::NotYetValid);
    }
    Ok(asserted)
}

/// An Ed25519 key of this process, never written.
pub struct AssertionSigner {
    key: EncodingKey,
    header: Header,
}

impl std::fmt::Debug for AssertionSigner {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AssertionSigner").field("kid", &self.header.kid).finish_non_exhaustive()
    }
}

impl AssertionSigner {
    /// A fresh key and its public half; `None` if this machine gives no random numbers.
    #[must_use]
    pub fn generate() -> Option<(Self, AssertionKey)> {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).ok()?;
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).ok()?;
        let public = pair.public_key().as_ref();
        let public = AssertionKey::new(public)?;
        let header = Header { kid: Some(public.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        Some((Self { key: EncodingKey::from_ed_der(pkcs8.as_ref()), header }, public))
    }

    /// Signs claims: some 20 µs.
    ///
    /// # Errors
    /// [`MintError`] if they have no JSON form.
    pub fn sign(&self, claims: &impl Serialize) -> Result<Secret<String>, MintError> {
        jsonwebtoken::encode(&self.header, claims, &self.key).map(Secret::new).map_err(MintError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claims(audience: &str, issuer: &str, iat: u64) -> serde_json::Value {
        json!({
            "iss": issuer, "aud": audience, "sub": "sandbox-aaaaaaaaaaaa", "tenant": "acme", "user_id": "alice",
            "conversation_id": "c", "method": "POST", "path": "/files:sync/list", "jti": "req_1", "iat": iat,
            "exp": iat + 60,
        })
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    #[test]
    fn an_assertion_is_believed_from_a_known_gateway_for_its_audience_and_its_minute_only() {
        let (signer, key) = AssertionSigner::generate().expect("random numbers");
        let (stranger, other) = AssertionSigner::generate().expect("random numbers");
        let keys = [other.clone(), key.clone()];
        let sign = |signer: &AssertionSigner, claims| signer.sign(&claims).expect("signs").reveal().clone();
        let good = sign(&signer, claims(FILES_AUDIENCE, ISSUER, 1000));
        let asserted = verify(&good, &keys, FILES_AUDIENCE, at(1001)).expect("is believed");
        assert_eq!((asserted.tenant.as_str(), asserted.path.as_str()), ("acme", "/files:sync/list"));
        let is = |token: &str, keys: &[AssertionKey], now| verify(token, keys, FILES_AUDIENCE, at(now));
        assert_eq!(is(&good, &keys, 1060), Err(BadToken::Expired));
        assert_eq!(is(&good, &keys, 990), Err(BadToken::NotYetValid));
        assert_eq!(
            is(&good, std::slice::from_ref(&other), 1001),
            Err(BadToken::Forged),
            "its gateway is gone"
        );
        let planted = AssertionKey { kid: key.kid, x: other.x };
        assert_eq!(
            is(&sign(&stranger, claims(FILES_AUDIENCE, ISSUER, 1000)), &[planted], 1001),
            Err(BadToken::Forged)
        );
        for (audience, issuer) in [("acme/files:sync", ISSUER), (FILES_AUDIENCE, "postern")] {
            let other = sign(&signer, claims(audience, issuer, 1000));
            assert_eq!(is(&other, &keys, 1001), Err(BadToken::Forged), "{audience} {issuer}");
        }
        assert_eq!(is("a.b.c", &keys, 1001), Err(BadToken::Malformed));
    }
}
