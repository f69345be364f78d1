// SPDX-License-Identifier: Apache-2.0
//! The key that signs artefacts and what gateways are told (design: Keys), and its public half.
//!
//! What is signed begins with what it is for, so that a signature over one thing is never one over
//! another.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes of a signature.
pub(super) const SIGNATURE_BYTES: usize = 64;

/// What a signature is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Welcome,
    Message,
    Heartbeat,
}

impl Purpose {
    const fn prefix(self) -> &'static [u8] {
        match self {
            Self::Welcome => b"postern control welcome 1\0",
            Self::Message => b"postern control message 1\0",
            Self::Heartbeat => b"postern control heartbeat 1\0",
        }
    }

    fn of(self, bytes: &[u8]) -> Vec<u8> {
        [self.prefix(), bytes].concat()
    }
}

/// Signs what gateways are told.
pub struct Signer(Ed25519KeyPair);

/// A seed that no key can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no Ed25519 key could be made of the seed")]
pub struct InvalidSeed;

impl fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Signer(…)")
    }
}

impl Signer {
    /// The key of a seed of 32 random bytes.
    ///
    /// # Errors
    /// [`InvalidSeed`].
    pub fn from_seed(seed: &[u8]) -> Result<Self, InvalidSeed> {
        Ed25519KeyPair::from_seed_unchecked(seed).map(Self).map_err(|_rejected| InvalidSeed)
    }

    /// The public half.
    #[must_use]
    pub fn key(&self) -> SignerKey {
        let mut key = [0; 32];
        key.iter_mut().zip(self.0.public_key().as_ref()).for_each(|(to, from)| *to = *from);
        SignerKey(key)
    }

    pub(super) fn sign(&self, purpose: Purpose, bytes: &[u8]) -> Vec<u8> {
        self.0.sign(&purpose.of(bytes)).as_ref().to_vec()
    }
}

/// The public half, which a gateway gets with its credential.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SignerKey([u8; 32]);

impl fmt::Debug for SignerKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SignerKey({})", STANDARD.encode(self.0))
    }
}

impl SignerKey {
    /// A public key as it was delivered.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn has_signed(&self, purpose: Purpose, bytes: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(&purpose.of(bytes), signature).is_ok()
    }
}

impl Serialize for SignerKey {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for SignerKey {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        let bytes = STANDARD.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| serde::de::Error::custom("expected 32 bytes in base64"))
    }
}
