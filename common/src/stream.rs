// SPDX-License-Identifier: Apache-2.0
//! The control stream over a network: what orchestrator and gateway say to each other, and what
//! makes each believe it (docs/decisions: control stream).
//!
//! ```text
//!  gateway                                        orchestrator
//!   Hello {name, secret, nonce, wrapping key} ───▶
//!       ◀─── Welcome, signed: covers name, nonce, wrapping key; or Refusal
//!       ◀─── Message, signed and chained: snapshot first, then each change
//!   Applied {sequence} ─────────────────────────▶
//!   Ping {echo, demand} ────────────────────────▶
//!       ◀─── Heartbeat, signed: echo, the chain's head, the orchestrator's time, shares
//!   Decisions {batch, records} ─────────────────▶
//!       ◀─── Kept {batch}
//!   Lines {what filters logged} ────────────────▶
//! ```
//!
//! TLS carries it, and proves the orchestrator once more than the signatures do; nothing here
//! depends on it but the secrecy of the gateway's own credential. What a gateway enforces it takes
//! from [`chain`] alone, so that a message counts only with the right signature, name, nonce and
//! place. The types say nothing of sockets, clocks or files.

pub mod chain;
pub mod credential;
pub mod frame;
mod head;
pub mod secrets;
mod signature;

pub use credential::{Credential, InvalidCredential};
pub use signature::{InvalidSeed, Signer, SignerKey};

use crate::control::assertions::AssertionKey;
use crate::control::budgets::Demand;
use crate::decision::{DecisionRecord, FilterLine};
use crate::id::GatewayName;
use crate::secret::Secret;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What both ends must speak. One that speaks another version is refused by name.
pub const PROTOCOL: u32 = 1;
/// The name in the orchestrator's certificate, whatever address it is reached at.
pub const SERVER_NAME: &str = "postern-orchestrator";
/// How often a gateway asks for a heartbeat.
pub const PING_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

/// The bytes that a gateway draws for each connection, so that nothing recorded fits another.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nonce(#[serde(with = "as_hex")] [u8; 32]);

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(#[serde(with = "as_hex")] [u8; 32]);

/// This machine gives no random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this machine gives no random numbers")]
pub struct NoRandomness;

impl Nonce {
    /// A fresh one.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut bytes = [0; 32];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_unspecified| NoRandomness)?;
        Ok(Self(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut digest = [0; 32];
        let made = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
        digest.iter_mut().zip(made.as_ref()).for_each(|(to, from)| *to = *from);
        Self(digest)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Digest({self})")
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Nonce({})", Digest(self.0))
    }
}

/// The first frame of a gateway. Fields that are not known are ignored, so that later gateways can
/// say more.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// Who it is.
    pub name: GatewayName,
    /// What proves it.
    #[serde(with = "as_secret")]
    pub secret: Secret<String>,
    /// Drawn for this connection.
    pub nonce: Nonce,
    /// The public half of its wrapping key.
    pub wrapping: secrets::WrappingKey,
    /// The filter engine that it runs: filters compiled for another are of no use to it.
    pub engine: String,
    /// Epoch and version of the last message that it put in force, if any.
    #[serde(default)]
    pub last: Option<(u64, u64)>,
    /// Its key for assertions.
    #[serde(default)]
    pub assertions: Option<AssertionKey>,
    /// Whether sandboxes of its own machine reach it by unix sockets.
    #[serde(default)]
    pub serves_sockets: bool,
}

/// Why a gateway was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// No such gateway, or not its secret; which of the two is not said.
    #[error("the credential is not valid: `postern gateways add NAME` makes a new one")]
    Credential,
    /// It speaks another version.
    #[error("the orchestrator speaks another version of the control stream: install the same release")]
    Protocol,
    /// It was let in, and an operator took the credential back.
    #[error("an operator has revoked the credential: `postern gateways add NAME` makes a new one")]
    Revoked,
    /// It stopped to read or to ask.
    #[error("the gateway did not answer in time")]
    Silent,
}

/// A gateway's answer to a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppliedFrame {
    /// The message's place in the connection.
    pub sequence: u64,
    /// Why it is not in force; empty if it is.
    #[serde(default)]
    pub refused: Vec<String>,
}

/// Asks for a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ping {
    /// Comes back in the heartbeat: what was asked at a time is never younger than the answer.
    pub echo: u64,
    /// What tenants' sessions asked for since the ping before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub demand: Demand,
}

/// Decisions on their way home.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decisions {
    /// Comes back once they are kept.
    pub batch: u64,
    /// The records.
    pub records: Vec<DecisionRecord>,
}

/// What filters logged, for their authors. Nobody answers: lines that are lost are only counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lines {
    /// In the order in which they were written.
    pub lines: Vec<FilterLine>,
}

/// Decisions are kept: the gateway may forget them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The batch.
    pub batch: u64,
}

mod as_hex {
    use serde::{Deserialize as _, Deserializer, Serializer};
    use std::fmt::Write as _;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(64);
        for byte in bytes {
            write!(text, "{byte:02x}").map_err(serde::ser::Error::custom)?;
        }
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        let wrong = || serde::de::Error::custom("expected 64 hex digits");
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong());
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_not_text| wrong())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_not_hex| wrong())?;
        }
        Ok(bytes)
    }
}

mod as_secret {
    use crate::secret::Secret;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(secret: &Secret<String>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(secret.reveal())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Secret<String>, D::Error> {
        String::deserialize(from).map(Secret::new)
    }
}

#[cfg(test)]
mod tests;
