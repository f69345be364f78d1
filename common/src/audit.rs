// SPDX-License-Identifier: Apache-2.0
//! The chain of an audit log: what makes it noticed that a line was changed, taken out or put in.
//!
//! ```text
//!   GENESIS ◀── line 1 ◀── line 2 ◀── … ◀── line n        each tenant has a chain of each log
//!                              ▲                ▲
//!                        cut: lines up to 2     checkpoint: line n was the last at this hour
//!                        are gone, by age       both are signed, with a key that no database holds
//! ```
//! A line's hash is SHA-256 over the hash before it, a line feed, and the line as JSON with its keys
//! in order and without `sequence`, `previous_hash` and `hash`. So whoever has an export can check
//! it with nothing but that, in any language; [`verify`] is how we do it.

pub mod verify;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What the first line of a chain follows.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// What of a line its hash is not over: its place, which it has got by then, and the chain's own.
const OUTSIDE: [&str; 3] = ["sequence", "previous_hash", "hash"];
/// Keeps a signature over a mark from meaning anything elsewhere.
const SIGNED_PREFIX: &[u8] = b"postern audit mark 1\0";

/// An audit log.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Log {
    /// What happened to sandboxes and to what a tenant owns.
    Sandboxes,
    /// What happened to users' files.
    Files,
}

impl Log {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Sandboxes, Self::Files];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sandboxes => "sandboxes",
            Self::Files => "files",
        }
    }
}

impl fmt::Display for Log {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A word that names no log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is neither `sandboxes` nor `files`")]
pub struct UnknownLog;

impl FromStr for Log {
    type Err = UnknownLog;
    fn from_str(text: &str) -> Result<Self, UnknownLog> {
        Self::ALL.into_iter().find(|log| log.as_str() == text).ok_or(UnknownLog)
    }
}

/// The hash of a line that follows the one with the hash `previous`.
#[must_use]
pub fn link(previous: &str, line: &Map<String, Value>) -> String {
    let kept: BTreeMap<&String, &Value> =
        line.iter().filter(|(name, _)| !OUTSIDE.contains(&name.as_str())).collect();
    // Strings and numbers always have a JSON form.
    let text = serde_json::to_string(&kept).unwrap_or_default();
    hex(digest(&SHA256, format!("{previous}\n{text}").as_bytes()).as_ref())
}

/// Why a place of a chain was signed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum MarkKind {
    /// It was the last line.
    Checkpoint,
    /// All lines up to it were old, and are gone.
    Cut,
}

impl MarkKind {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::Cut => "cut",
        }
    }
}

impl FromStr for MarkKind {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Checkpoint, Self::Cut].into_iter().find(|kind| kind.as_str() == text).ok_or(())
    }
}

/// A place in a chain that the orchestrator vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Mark {
    /// Why it was signed.
    pub mark: MarkKind,
    /// The installation.
    pub installation: String,
    /// The log.
    pub log: Log,
    /// The tenant; empty for what concerns the whole installation.
    pub tenant: String,
    /// Lines of the chain up to this one, those that are gone included.
    pub length: u64,
    /// The place of this line in the log.
    pub sequence: i64,
    /// Its hash.
    pub hash: String,
    /// When it was signed.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// Ed25519, in hex.
    #[serde(default)]
    pub signature: String,
}

impl Mark {
    fn signed_bytes(&self) -> Vec<u8> {
        let unsigned = Self { signature: String::new(), ..self.clone() };
        // A struct of strings and numbers always has a JSON form.
        [SIGNED_PREFIX, &serde_json::to_vec(&unsigned).unwrap_or_default()].concat()
    }

    /// Whether the holder of this key vouched for it.
    #[must_use]
    pub fn is_signed_by(&self, key: &MarkKey) -> bool {
        let Some(signature) = bytes(&self.signature) else { return false };
        UnparsedPublicKey::new(&ED25519, key.0).verify(&self.signed_bytes(), &signature).is_ok()
    }
}

/// Signs marks.
pub struct MarkSigner(Ed25519KeyPair);

/// A seed that no key can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no Ed25519 key could be made of the seed")]
pub struct InvalidMarkSeed;

impl fmt::Debug for MarkSigner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("MarkSigner(…)")
    }
}

impl MarkSigner {
    /// The key of a seed of 32 secret bytes.
    ///
    /// # Errors
    /// [`InvalidMarkSeed`].
    pub fn from_seed(seed: &[u8]) -> Result<Self, InvalidMarkSeed> {
        Ed25519KeyPair::from_seed_unchecked(seed).map(Self).map_err(|_rejected| InvalidMarkSeed)
    }

    /// Vouches for a mark.
    pub fn sign(&self, mark: &mut Mark) {
        mark.signature = hex(self.0.sign(&mark.signed_bytes()).as_ref());
    }

    /// The public half.
    #[must_use]
    pub fn key(&self) -> MarkKey {
        let mut key = [0; 32];
        key.iter_mut().zip(self.0.public_key().as_ref()).for_each(|(to, from)| *to = *from);
        MarkKey(key)
    }
}

/// What marks are checked with. Its text form is 64 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkKey([u8; 32]);

impl fmt::Display for MarkKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex(&self.0))
    }
}

/// Text that is no key for marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no key: expected 64 hex digits")]
pub struct InvalidMarkKey;

impl FromStr for MarkKey {
    type Err = InvalidMarkKey;
    fn from_str(text: &str) -> Result<Self, InvalidMarkKey> {
        let bytes = bytes(text).ok_or(InvalidMarkKey)?;
        Ok(Self(bytes.try_into().map_err(|_other_length| InvalidMarkKey)?))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|it| char::from_digit(it.into(), 16))
        .collect()
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = hex.as_bytes().chunks(2);
    pairs
        .map(|pair| {
            <[u8; 2]>::try_from(pair).ok().and_then(|[high, low]| Some(digit(high)? << 4 | digit(low)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(value: &Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn a_lines_hash_is_what_another_program_computes() {
        let before =
            line(&json!({ "tenant": "acme", "action": "sandbox.created", "at": "2026-01-02T03:04:05Z" }));
        // printf '%s\n%s' 000…0 '{"action":"sandbox.created","at":"2026-01-02T03:04:05Z","tenant":"acme"}' | sha256sum
        let computed = "9f0ee7c33182077dcc42cca1928c8a4aff6cfd3fbb880bf990090bef48c0f459";
        assert_eq!(link(GENESIS, &before), computed);
        let placed = line(&json!({
            "sequence": 7, "hash": "x", "previous_hash": "y",
            "at": "2026-01-02T03:04:05Z", "tenant": "acme", "action": "sandbox.created",
        }));
        assert_eq!(link(GENESIS, &before), link(GENESIS, &placed), "place and order of fields do not count");
        assert_ne!(link(GENESIS, &before), link(&link(GENESIS, &before), &before));
    }

    #[test]
    fn a_mark_is_good_as_it_was_signed_and_no_other() {
        let signer = MarkSigner::from_seed(&[7; 32]).expect("a key");
        let mut mark = Mark {
            mark: MarkKind::Checkpoint,
            installation: "abcdefghij".to_owned(),
            log: Log::Files,
            tenant: "acme".to_owned(),
            length: 3,
            sequence: 9,
            hash: GENESIS.to_owned(),
            at: Timestamp::UNIX_EPOCH,
            signature: String::new(),
        };
        assert!(!mark.is_signed_by(&signer.key()));
        signer.sign(&mut mark);
        let read: Mark = serde_json::from_str(&serde_json::to_string(&mark).expect("a form")).expect("reads");
        assert!(read.is_signed_by(&signer.key()));
        let key: MarkKey = signer.key().to_string().parse().expect("its own text");
        assert_eq!(key, signer.key());
        let changes: [fn(&mut Mark); 6] = [
            |mark| mark.mark = MarkKind::Cut,
            |mark| mark.installation.push('x'),
            |mark| mark.log = Log::Sandboxes,
            |mark| mark.length += 1,
            |mark| mark.sequence += 1,
            |mark| mark.hash.replace_range(0..1, "1"),
        ];
        for change in changes {
            let mut changed = mark.clone();
            change(&mut changed);
            assert!(!changed.is_signed_by(&signer.key()), "{changed:?}");
        }
        assert!(!mark.is_signed_by(&MarkSigner::from_seed(&[8; 32]).expect("a key").key()));
        for text in ["", "zz", "abc", &"0".repeat(62), &"0".repeat(66), "é"] {
            assert!(text.parse::<MarkKey>().is_err(), "{text}");
        }
    }
}
