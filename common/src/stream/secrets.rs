// SPDX-License-Identifier: Apache-2.0
//! Secrets on their way to one gateway: wrapped to a key that lives in its memory only.
//!
//! A fresh X25519 key for each message, HKDF-SHA256 over the agreement with both public keys, the
//! gateway's name and the connection's nonce, then AES-256-GCM for each secret with gateway, tenant
//! and name as associated data. So a wrapped secret opens for one gateway, one connection and one
//! place; and the digest of all of them stands in the signed part of the message.

use super::{NoRandomness, Nonce};
use crate::control::{Change, TenantConfig};
use crate::id::{GatewayName, SecretName, TenantId};
use crate::secret::Secret;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce as SealNonce, UnboundKey};
use aws_lc_rs::agreement::{
    EphemeralPrivateKey, PrivateKey, UnparsedPublicKey, X25519, agree, agree_ephemeral,
};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use zeroize::Zeroize as _;

/// The public half of a gateway's wrapping key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WrappingKey(#[serde(with = "super::as_hex")] [u8; 32]);

impl WrappingKey {
    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The private half: made at start, in memory, never written.
pub struct UnwrappingKey {
    private: PrivateKey,
    public: WrappingKey,
}

impl fmt::Debug for UnwrappingKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("UnwrappingKey").field("public", &self.public).finish_non_exhaustive()
    }
}

impl UnwrappingKey {
    /// A fresh one.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn generate() -> Result<Self, NoRandomness> {
        let private = PrivateKey::generate(&X25519).map_err(|_unspecified| NoRandomness)?;
        let public = private.compute_public_key().map_err(|_unspecified| NoRandomness)?;
        let public = <[u8; 32]>::try_from(public.as_ref()).map_err(|_other_length| NoRandomness)?;
        Ok(Self { private, public: WrappingKey(public) })
    }

    /// What the orchestrator gets.
    #[must_use]
    pub const fn public(&self) -> WrappingKey {
        self.public
    }
}

/// Whom secrets are wrapped to: a gateway in one connection.
#[derive(Debug, Clone)]
pub(super) struct Recipient {
    pub(super) gateway: GatewayName,
    pub(super) nonce: Nonce,
}

/// Secrets that cannot be unwrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("wrapped secrets do not open: they are damaged or were wrapped for another gateway")]
pub struct Unopened;

/// A secret's place.
type Place = (TenantId, SecretName);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped {
    #[serde(with = "super::as_hex")]
    ephemeral: [u8; 32],
    secrets: Vec<WrappedSecret>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrappedSecret {
    tenant: TenantId,
    name: SecretName,
    /// Nonce and ciphertext, in base64.
    sealed: String,
}

impl Recipient {
    /// Derives the key of one message; the agreement's bytes are gone afterwards.
    fn key(
        &self,
        shared: &[u8],
        ephemeral: &[u8; 32],
        public: &WrappingKey,
    ) -> Result<LessSafeKey, Unopened> {
        let salt = Salt::new(HKDF_SHA256, b"postern control secrets v1");
        let name = self.gateway.as_str().as_bytes();
        let about: [&[u8]; 4] = [ephemeral, &public.0, &self.nonce.0, name];
        let mut bytes = [0; 32];
        salt.extract(shared)
            .expand(&about, HKDF_SHA256)
            .and_then(|key| key.fill(&mut bytes))
            .map_err(|_unspecified| Unopened)?;
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_unspecified| Unopened);
        bytes.zeroize();
        key.map(LessSafeKey::new)
    }

    /// Names hold no zero byte, so no two places have the same.
    fn place(&self, tenant: &TenantId, name: &SecretName) -> Vec<u8> {
        [self.gateway.as_str(), tenant.as_str(), name.as_str()].join("\0").into_bytes()
    }

    /// Wraps all secrets of a change; nothing if it has none.
    pub(super) fn wrap(&self, change: &Change, public: &WrappingKey) -> Result<Vec<u8>, Unopened> {
        let secrets: Vec<_> = tenants(change)
            .flat_map(|config| config.secrets.iter().map(move |(name, value)| (&config.tenant, name, value)))
            .collect();
        if secrets.is_empty() {
            return Ok(Vec::new());
        }
        let random = rand::SystemRandom::new();
        let private = EphemeralPrivateKey::generate(&X25519, &random).map_err(|_unspecified| Unopened)?;
        let ephemeral = private.compute_public_key().map_err(|_unspecified| Unopened)?;
        let ephemeral = <[u8; 32]>::try_from(ephemeral.as_ref()).map_err(|_other_length| Unopened)?;
        let peer = UnparsedPublicKey::new(&X25519, public.0);
        let key = agree_ephemeral(private, peer, Unopened, |shared| self.key(shared, &ephemeral, public))?;
        let mut wrapped = Wrapped { ephemeral, secrets: Vec::with_capacity(secrets.len()) };
        for (tenant, name, value) in secrets {
            let mut nonce = [0; NONCE_LEN];
            rand::fill(&mut nonce).map_err(|_unspecified| Unopened)?;
            let mut text = value.reveal().as_bytes().to_vec();
            let about = Aad::from(self.place(tenant, name));
            key.seal_in_place_append_tag(SealNonce::assume_unique_for_key(nonce), about, &mut text)
                .map_err(|_unspecified| Unopened)?;
            let sealed = STANDARD.encode([&nonce[..], &text].concat());
            wrapped.secrets.push(WrappedSecret { tenant: tenant.clone(), name: name.clone(), sealed });
        }
        serde_json::to_vec(&wrapped).map_err(|_no_form| Unopened)
    }

    /// Unwraps what [`Recipient::wrap`] made.
    pub(super) fn unwrap(
        &self,
        bytes: &[u8],
        own: &UnwrappingKey,
    ) -> Result<BTreeMap<Place, Secret<String>>, Unopened> {
        if bytes.is_empty() {
            return Ok(BTreeMap::new());
        }
        let wrapped: Wrapped = serde_json::from_slice(bytes).map_err(|_malformed| Unopened)?;
        let peer = UnparsedPublicKey::new(&X25519, wrapped.ephemeral);
        let key =
            agree(&own.private, peer, Unopened, |shared| self.key(shared, &wrapped.ephemeral, &own.public))?;
        let mut secrets = BTreeMap::new();
        for WrappedSecret { tenant, name, sealed } in wrapped.secrets {
            let sealed = STANDARD.decode(sealed).map_err(|_malformed| Unopened)?;
            let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(Unopened)?;
            let mut text = text.to_vec();
            let about = Aad::from(self.place(&tenant, &name));
            let opened = key
                .open_in_place(SealNonce::assume_unique_for_key(*nonce), about, &mut text)
                .map_err(|_unspecified| Unopened)?;
            let value = std::str::from_utf8(opened).map(|text| Secret::new(text.to_owned()));
            text.zeroize();
            secrets.insert((tenant, name), value.map_err(|_not_text| Unopened)?);
        }
        Ok(secrets)
    }
}

fn tenants(change: &Change) -> impl Iterator<Item = &TenantConfig> {
    let (one, many) = match change {
        Change::Tenant(config) | Change::Try(config) => (Some(&**config), &[][..]),
        Change::Snapshot(state) => (None, state.tenants.as_slice()),
        Change::Session(_) | Change::SessionEnded(_) | Change::TenantRemoved(_) => (None, &[][..]),
    };
    one.into_iter().chain(many.iter().map(|config| &**config))
}
