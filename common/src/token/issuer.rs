// SPDX-License-Identifier: Apache-2.0
//! Tokens of another issuer, for a gateway that stands alone: reading them, and what they mean here.
//!
//! ```text
//!   token ─▶ key by `kid` ─▶ signature by the one algorithm ─▶ iss, aud, exp, nbf ─▶ our claims
//! ```
//! The algorithm is the operator's, never the token's; a key that does not fit it is no key. Nothing
//! here fetches or keeps anything.

use super::{AUDIENCE, BadToken, CLOCK_SKEW, Claims, ISSUER, MAX_TOKEN_BYTES, MIN_KEY_BYTES, VerifyingKey};
use crate::clock::unix_seconds;
use crate::id::{ConversationId, SandboxId, TenantId, UserId};
use crate::session::Grant;
use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};
use std::fmt;
use std::str::FromStr;

/// Keys of one set: more is no key set but an attempt.
const MAX_KEYS: usize = 64;

/// How tokens are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IssuerAlgorithm {
    /// HMAC with SHA-256 and a shared secret.
    Hs256,
    /// Ed25519.
    EdDsa,
    /// ECDSA with P-256 and SHA-256.
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256; keys of 2048 to 8192 bits.
    Rs256,
}

impl IssuerAlgorithm {
    const fn of_the_library(self) -> Algorithm {
        match self {
            Self::Hs256 => Algorithm::HS256,
            Self::EdDsa => Algorithm::EdDSA,
            Self::Es256 => Algorithm::ES256,
            Self::Rs256 => Algorithm::RS256,
        }
    }
}

impl fmt::Display for IssuerAlgorithm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Hs256 => "HS256",
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        })
    }
}

/// A name of no algorithm that is taken here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is none of HS256, EdDSA, ES256 and RS256")]
pub struct UnknownAlgorithm(String);

impl FromStr for IssuerAlgorithm {
    type Err = UnknownAlgorithm;

    fn from_str(text: &str) -> Result<Self, UnknownAlgorithm> {
        let all = [Self::Hs256, Self::EdDsa, Self::Es256, Self::Rs256];
        let found = all.into_iter().find(|algorithm| algorithm.to_string() == text);
        found.ok_or_else(|| UnknownAlgorithm(text.chars().take(20).flat_map(char::escape_default).collect()))
    }
}

/// Whose tokens are believed, and where they say what we need.
#[derive(Debug, Clone)]
pub struct IssuerRules {
    /// `iss`, exactly.
    pub issuer: String,
    /// One of `aud`, exactly.
    pub audience: String,
    /// The one algorithm.
    pub algorithm: IssuerAlgorithm,
    /// Whose sessions they are of.
    pub tenant: TenantId,
    /// The claim that names the user.
    pub user_claim: String,
    /// The claim that names the conversation.
    pub conversation_claim: String,
    /// The claim that lists operations: an array, or one text with spaces between them.
    pub operations_claim: String,
    /// The operations of a token that does not have the claim.
    pub operations: Vec<Grant>,
}

/// Keys that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadIssuerKeys {
    /// The shared secret is too short to be one.
    #[error("the secret has {0} bytes and needs at least 32")]
    ShortSecret(usize),
    /// A PEM text that holds no key of the algorithm.
    #[error("it holds no public key for {0} in PEM (`-----BEGIN PUBLIC KEY-----`)")]
    Pem(IssuerAlgorithm),
    /// No key set.
    #[error("it is no JSON Web Key Set")]
    NotASet,
    /// A set without a key that fits.
    #[error("it has no key for {0}")]
    NoneFits(IssuerAlgorithm),
    /// A set with more keys than any issuer has.
    #[error("it has more than 64 keys")]
    TooMany,
}

/// An issuer's keys, with the names that tokens call them by.
#[derive(Debug, Clone, Default)]
pub struct IssuerKeys(Vec<(Option<String>, VerifyingKey)>);

impl IssuerKeys {
    /// The shared secret of HS256.
    ///
    /// # Errors
    /// [`BadIssuerKeys::ShortSecret`].
    pub fn shared(secret: &[u8]) -> Result<Self, BadIssuerKeys> {
        if secret.len() < MIN_KEY_BYTES {
            return Err(BadIssuerKeys::ShortSecret(secret.len()));
        }
        Ok(Self(vec![(None, VerifyingKey(DecodingKey::from_secret(secret)))]))
    }

    /// Adds the public key of a PEM text.
    ///
    /// # Errors
    /// [`BadIssuerKeys::Pem`].
    pub fn add_pem(&mut self, algorithm: IssuerAlgorithm, text: &[u8]) -> Result<(), BadIssuerKeys> {
        let key = match algorithm {
            IssuerAlgorithm::Hs256 => return Err(BadIssuerKeys::Pem(algorithm)),
            IssuerAlgorithm::EdDsa => DecodingKey::from_ed_pem(text),
            IssuerAlgorithm::Es256 => DecodingKey::from_ec_pem(text),
            IssuerAlgorithm::Rs256 => DecodingKey::from_rsa_pem(text),
        };
        let key = key.map_err(|_unreadable| BadIssuerKeys::Pem(algorithm))?;
        self.0.push((None, VerifyingKey(key)));
        Ok(())
    }

    /// The keys of a JSON Web Key Set (RFC 7517) that are for the algorithm and for signatures;
    /// others are passed over, as a set may serve others too.
    ///
    /// # Errors
    /// [`BadIssuerKeys`].
    pub fn of_set(algorithm: IssuerAlgorithm, json: &[u8]) -> Result<Self, BadIssuerKeys> {
        let set: Value = serde_json::from_slice(json).map_err(|_malformed| BadIssuerKeys::NotASet)?;
        let keys = set.get("keys").and_then(Value::as_array).ok_or(BadIssuerKeys::NotASet)?;
        if keys.len() > MAX_KEYS {
            return Err(BadIssuerKeys::TooMany);
        }
        // One by one: a key of a kind that is not known here must not hide the others.
        let known = keys.iter().filter_map(|key| serde_json::from_value::<Jwk>(key.clone()).ok());
        let usable = known.filter(|key| fits(key, algorithm)).filter_map(|key| {
            let made = DecodingKey::from_jwk(&key).ok()?;
            Some((key.common.key_id, VerifyingKey(made)))
        });
        let keys: Vec<_> = usable.collect();
        if keys.is_empty() { Err(BadIssuerKeys::NoneFits(algorithm)) } else { Ok(Self(keys)) }
    }

    /// The keys that may have signed a token with this `kid`.
    fn of(&self, kid: Option<&str>) -> impl Iterator<Item = &VerifyingKey> {
        let fits = move |name: &Option<String>| match (name.as_deref(), kid) {
            // A key of a file has no name: it is tried for every token.
            (None, _) => true,
            (Some(name), Some(kid)) => name == kid,
            // A token that names none, of an issuer that has but one.
            (Some(_), None) => self.0.len() == 1,
        };
        self.0.iter().filter(move |(name, _)| fits(name)).map(|(_, key)| key)
    }
}

/// Whether a key is one of the algorithm's, and for signatures. A shared secret never is: a set is
/// public.
fn fits(key: &Jwk, algorithm: IssuerAlgorithm) -> bool {
    let is_for_signing = key.common.public_key_use.as_ref().is_none_or(|it| *it == PublicKeyUse::Signature);
    let is_so_named = key.common.key_algorithm.is_none_or(|it| it.to_string() == algorithm.to_string());
    let is_of_kind = match (&key.algorithm, algorithm) {
        (AlgorithmParameters::OctetKeyPair(pair), IssuerAlgorithm::EdDsa) => {
            pair.curve == EllipticCurve::Ed25519
        }
        (AlgorithmParameters::EllipticCurve(point), IssuerAlgorithm::Es256) => {
            point.curve == EllipticCurve::P256
        }
        (AlgorithmParameters::RSA(_), IssuerAlgorithm::Rs256) => true,
        _ => false,
    };
    is_for_signing && is_so_named && is_of_kind
}

/// Why a token of the issuer is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotIssued {
    /// As one of ours.
    #[error(transparent)]
    Bad(#[from] BadToken),
    /// None of the keys that are known has its name: a newer set may.
    #[error("no key of this name is known")]
    UnknownKey,
}

/// Reads tokens of one issuer.
#[derive(Debug, Clone)]
pub struct IssuerVerifier {
    rules: IssuerRules,
    validation: Validation,
}

impl IssuerVerifier {
    /// A verifier by these rules.
    #[must_use]
    pub fn new(rules: IssuerRules) -> Self {
        let mut validation = Validation::new(rules.algorithm.of_the_library());
        validation.set_issuer(&[&rules.issuer]);
        validation.set_audience(&[&rules.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        // Times are compared below, against the caller's clock.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        Self { rules, validation }
    }

    /// Its rules.
    #[must_use]
    pub const fn rules(&self) -> &IssuerRules {
        &self.rules
    }

    /// What a token claims, as one of ours would, if one of `keys` has signed it and it is valid at
    /// `now`. The session's id follows from issuer, tenant, user and conversation, so that all
    /// tokens of a conversation are of one session.
    ///
    /// # Errors
    /// [`NotIssued`] says which check failed.
    pub fn verify(&self, keys: &IssuerKeys, token: &str, now: Timestamp) -> Result<Claims, NotIssued> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(BadToken::Malformed.into());
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_unreadable| BadToken::Malformed)?;
        if header.alg != self.rules.algorithm.of_the_library() {
            return Err(BadToken::Forged.into());
        }
        let mut refusal = NotIssued::UnknownKey;
        for VerifyingKey(key) in keys.of(header.kid.as_deref()) {
            match jsonwebtoken::decode::<Map<String, Value>>(token, key, &self.validation) {
                Ok(read) => return Ok(self.claims(token, &read.claims, unix_seconds(now))?),
                Err(error) => refusal = super::bad_token(&error).into(),
            }
        }
        Err(refusal)
    }

    fn claims(&self, token: &str, read: &Map<String, Value>, now: u64) -> Result<Claims, BadToken> {
        let seconds = |name: &str| read.get(name).map(|value| seconds(value).ok_or(BadToken::Malformed));
        let exp = seconds("exp").ok_or(BadToken::Malformed)??;
        if exp <= now {
            return Err(BadToken::Expired);
        }
        let iat = seconds("iat").transpose()?;
        let nbf = seconds("nbf").transpose()?.or(iat).unwrap_or(now);
        if nbf > now.saturating_add(CLOCK_SKEW.as_secs()) {
            return Err(BadToken::NotYetValid);
        }
        let text = |name: &str| read.get(name).and_then(Value::as_str).ok_or(BadToken::Malformed);
        let user_id = UserId::parse(text(&self.rules.user_claim)?).map_err(|_no_id| BadToken::Malformed)?;
        let conversation_id = ConversationId::parse(text(&self.rules.conversation_claim)?)
            .map_err(|_no_id| BadToken::Malformed)?;
        let jti = match read.get("jti") {
            Some(id) => id.as_str().filter(|id| id.len() <= 256).ok_or(BadToken::Malformed)?.to_owned(),
            None => digest_of(&[token.as_bytes()]),
        };
        let sandbox_id = self.session_id(&user_id, &conversation_id);
        Ok(Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: sandbox_id.clone(),
            sandbox_id,
            tenant: self.rules.tenant.clone(),
            user_id,
            conversation_id,
            operations: self.operations(read)?,
            jti,
            iat: iat.unwrap_or(nbf),
            nbf,
            exp,
        })
    }

    fn operations(&self, read: &Map<String, Value>) -> Result<Vec<Grant>, BadToken> {
        let texts: Vec<&str> = match read.get(&self.rules.operations_claim) {
            None => return Ok(self.rules.operations.clone()),
            Some(Value::String(text)) => text.split(' ').filter(|text| !text.is_empty()).collect(),
            Some(Value::Array(all)) => {
                all.iter().map(|it| it.as_str().ok_or(BadToken::Malformed)).collect::<Result<_, _>>()?
            }
            Some(_) => return Err(BadToken::Malformed),
        };
        // The built-in route is for our own sandboxes only.
        let grants: Result<Vec<Grant>, _> = texts.into_iter().map(str::parse).collect();
        let grants = grants.map_err(|_no_grant| BadToken::Malformed)?;
        if grants.contains(&Grant::FilesSync) { Err(BadToken::Forged) } else { Ok(grants) }
    }

    fn session_id(&self, user: &UserId, conversation: &ConversationId) -> SandboxId {
        let rules = &self.rules;
        let parts = [&rules.issuer, rules.tenant.as_str(), user.as_str(), conversation.as_str()];
        let bytes = hashed(&parts.map(str::as_bytes));
        SandboxId::from_random(bytes.first_chunk().copied().unwrap_or_default())
    }
}

/// Seconds since 1970; issuers may write fractions (RFC 7519 §2, NumericDate).
fn seconds(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let number = value.as_f64().filter(|number| (0.0..1e15).contains(number))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range")]
        let whole = number as u64;
        Some(whole)
    })
}

fn digest_of(parts: &[&[u8]]) -> String {
    URL_SAFE_NO_PAD.encode(hashed(parts))
}

/// SHA-256 over parts, each with its length before it, so that none runs into the next.
fn hashed(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut bytes = [0; 32];
    bytes.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    bytes
}

#[cfg(test)]
mod tests;
