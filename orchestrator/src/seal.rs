// SPDX-License-Identifier: Apache-2.0
//! Sealing what the database must not show: AES-256-GCM under the data key.
//!
//! What is sealed says what it is for (its *place*: tenant and name), so a value that is moved to
//! another row does not open there. Form: version byte, key id, nonce, ciphertext with tag.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use aws_lc_rs::rand;
use postern_common::secret::Secret;
use std::fmt;

/// Bytes of the data key.
pub(crate) const KEY_BYTES: usize = 32;
const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 8;
/// Where in what is sealed its text begins.
pub(crate) const TEXT_AT: usize = 1 + KEY_ID_BYTES + NONCE_LEN;
/// What follows the text.
pub(crate) const TAG_BYTES: usize = 16;

/// Something could not be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Another data key sealed it.
    #[error("it was sealed with another data key: start with the `POSTERN_MASTER_KEY` that was used before")]
    OtherKey,
    /// It is damaged, or belongs elsewhere.
    #[error("it does not open here: it is damaged or was moved from elsewhere")]
    Damaged,
    /// The machine has no randomness.
    #[error("this machine gives no random numbers")]
    NoRandomness,
}

/// What is sealed, and where it belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// A secret of a tenant.
    Secret {
        /// The tenant.
        tenant: &'a str,
        /// The secret's name.
        name: &'a str,
    },
    /// The environment that a template gives.
    Template {
        /// The tenant.
        tenant: &'a str,
        /// The template's name.
        name: &'a str,
    },
    /// The environment of a sandbox.
    Environment {
        /// The tenant.
        tenant: &'a str,
        /// The sandbox.
        sandbox: &'a str,
    },
    /// A piece of a sandbox's snapshot.
    Snapshot {
        /// The tenant.
        tenant: &'a str,
        /// Whose it is, which, and which piece of it: nothing of it can be changed places.
        piece: &'a str,
    },
    /// A piece of the picture of a sandbox's memory.
    Memory {
        /// The tenant.
        tenant: &'a str,
        /// Whose it is, of which sandbox, which picture and which piece of it.
        piece: &'a str,
    },
    /// The root secret.
    Root,
    /// The control stream's certificate authority.
    Authority,
    /// The seed of the key that signs compiled filters and the control stream.
    ArtefactSeed,
}

impl Place<'_> {
    /// Bytes that no two places share: the parts hold no zero byte.
    fn bytes(self) -> Vec<u8> {
        let parts = match self {
            Self::Secret { tenant, name } => ["secret", tenant, name],
            Self::Template { tenant, name } => ["template", tenant, name],
            Self::Environment { tenant, sandbox } => ["environment", tenant, sandbox],
            Self::Snapshot { tenant, piece } => ["snapshot", tenant, piece],
            Self::Memory { tenant, piece } => ["memory", tenant, piece],
            Self::Root => ["root", "", ""],
            Self::Authority => ["authority", "", ""],
            Self::ArtefactSeed => ["artefact-seed", "", ""],
        };
        parts.join("\0").into_bytes()
    }
}

/// The data key.
pub(crate) struct DataKey {
    key: LessSafeKey,
    id: [u8; KEY_ID_BYTES],
    /// What keys of large things are derived from.
    root: Prk,
}

impl fmt::Debug for DataKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("DataKey(…)")
    }
}

impl DataKey {
    /// The key with these bytes; `None` unless there are [`KEY_BYTES`].
    #[must_use]
    pub(crate) fn new(bytes: &Secret<Vec<u8>>) -> Option<Self> {
        let unbound = UnboundKey::new(&AES_256_GCM, bytes.reveal()).ok()?;
        let mut labelled = b"postern data key id v1\0".to_vec();
        labelled.extend_from_slice(bytes.reveal());
        let id = *digest(&SHA256, &labelled).as_ref().first_chunk()?;
        labelled.fill(0);
        let root = Salt::new(HKDF_SHA256, b"postern derived data keys v1").extract(bytes.reveal());
        Some(Self { key: LessSafeKey::new(unbound), id, root })
    }

    /// The key of one thing of many pieces, by a name that no other has: its pieces use up none of the values
    /// that may be sealed under this one.
    ///
    /// # Errors
    /// [`SealError::NoRandomness`], which does not happen: the length is right.
    pub(crate) fn derived(&self, name: &str) -> Result<Self, SealError> {
        let mut bytes = vec![0; KEY_BYTES];
        let info = [name.as_bytes()];
        let derived = self.root.expand(&info, HKDF_SHA256).and_then(|key| key.fill(&mut bytes));
        derived.map_err(|_unspecified| SealError::NoRandomness)?;
        Self::new(&Secret::new(bytes)).ok_or(SealError::NoRandomness)
    }

    /// Seals `value` for its place.
    ///
    /// # Errors
    /// [`SealError::NoRandomness`].
    pub(crate) fn seal(&self, place: Place<'_>, value: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut sealed = Vec::with_capacity(TEXT_AT + value.len() + TAG_BYTES);
        sealed.resize(TEXT_AT, 0);
        sealed.extend_from_slice(value);
        sealed.resize(TEXT_AT + value.len() + TAG_BYTES, 0);
        self.seal_in_place(place, &mut sealed)?;
        Ok(sealed)
    }

    /// [`DataKey::seal`] where the value lies: [`TEXT_AT`] bytes into `sealed`, and [`TAG_BYTES`] before its end.
    ///
    /// # Errors
    /// [`SealError::NoRandomness`]; [`SealError::Damaged`] if it is too short for that.
    pub(crate) fn seal_in_place(&self, place: Place<'_>, sealed: &mut [u8]) -> Result<(), SealError> {
        let (head, rest) = sealed.split_first_chunk_mut::<TEXT_AT>().ok_or(SealError::Damaged)?;
        let (text, tag) = rest.split_last_chunk_mut::<TAG_BYTES>().ok_or(SealError::Damaged)?;
        // Random nonces of 96 bits: 2^32 values under one key stay far from a likely collision.
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_unspecified| SealError::NoRandomness)?;
        let parts = [VERSION].into_iter().chain(self.id).chain(nonce);
        head.iter_mut().zip(parts).for_each(|(to, byte)| *to = byte);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let made = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(place.bytes()), text)
            .map_err(|_unspecified| SealError::NoRandomness)?;
        *tag = *made.as_ref().first_chunk().ok_or(SealError::Damaged)?;
        Ok(())
    }

    /// Opens what was sealed for this place.
    ///
    /// # Errors
    /// [`SealError::OtherKey`] or [`SealError::Damaged`].
    pub(crate) fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<Secret<Vec<u8>>, SealError> {
        let mut sealed = sealed.to_vec();
        let length = self.open_in_place(place, &mut sealed)?.len();
        sealed.drain(..TEXT_AT);
        sealed.truncate(length);
        Ok(Secret::new(sealed))
    }

    /// [`DataKey::open`] where it lies.
    ///
    /// # Errors
    /// [`SealError::OtherKey`] or [`SealError::Damaged`]; then nothing in `sealed` is of use.
    pub(crate) fn open_in_place<'text>(
        &self,
        place: Place<'_>,
        sealed: &'text mut [u8],
    ) -> Result<&'text [u8], SealError> {
        let (head, text) = sealed.split_first_chunk_mut::<TEXT_AT>().ok_or(SealError::Damaged)?;
        let (version, rest) = head.split_first().ok_or(SealError::Damaged)?;
        let (id, rest) = rest.split_first_chunk::<KEY_ID_BYTES>().ok_or(SealError::Damaged)?;
        let nonce = *rest.first_chunk::<NONCE_LEN>().ok_or(SealError::Damaged)?;
        if *version != VERSION {
            return Err(SealError::Damaged);
        }
        if *id != self.id {
            return Err(SealError::OtherKey);
        }
        let nonce = Nonce::assume_unique_for_key(nonce);
        let opened = self.key.open_in_place(nonce, Aad::from(place.bytes()), text);
        opened.map(|text| &*text).map_err(|_unspecified| SealError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> DataKey {
        DataKey::new(&Secret::new(vec![byte; KEY_BYTES])).expect("a key")
    }

    const DESK: Place<'_> = Place::Secret { tenant: "acme", name: "desk" };

    #[test]
    fn what_was_sealed_opens_in_its_place() {
        let sealed = key(1).seal(DESK, b"hunter2").expect("seals");
        assert_eq!(key(1).open(DESK, &sealed).expect("opens").reveal(), b"hunter2");
        assert!(!sealed.windows(7).any(|window| window == b"hunter2"));
    }

    #[test]
    fn a_value_does_not_open_in_another_place() {
        let sealed = key(1).seal(DESK, b"hunter2").expect("seals");
        for place in [
            Place::Secret { tenant: "evil", name: "desk" },
            Place::Secret { tenant: "acme", name: "other" },
            Place::Environment { tenant: "acme", sandbox: "desk" },
            Place::Template { tenant: "acme", name: "desk" },
            Place::Root,
            Place::Authority,
        ] {
            assert_eq!(key(1).open(place, &sealed).expect_err("refused"), SealError::Damaged, "{place:?}");
        }
    }

    #[test]
    fn another_key_is_told_apart_from_damage() {
        let mut sealed = key(1).seal(DESK, b"hunter2").expect("seals");
        assert_eq!(key(2).open(DESK, &sealed).expect_err("refused"), SealError::OtherKey);
        for length in 0..sealed.len() {
            assert!(key(1).open(DESK, &sealed[..length]).is_err(), "cut to {length}");
        }
        *sealed.last_mut().expect("not empty") ^= 1;
        assert_eq!(key(1).open(DESK, &sealed).expect_err("refused"), SealError::Damaged);
    }

    #[test]
    fn sealing_twice_gives_two_texts() {
        assert_ne!(key(1).seal(DESK, b"x").expect("seals"), key(1).seal(DESK, b"x").expect("seals"));
        assert!(DataKey::new(&Secret::new(vec![0; 31])).is_none());
    }
}
