// SPDX-License-Identifier: Apache-2.0
//! Signs assertions: tokens by which backends tell our gateways from anybody else.

use super::MintError;
use crate::control::assertions::AssertionKey;
use crate::secret::Secret;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

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
