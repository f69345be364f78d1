// SPDX-License-Identifier: Apache-2.0
//! The chain of one connection: what the orchestrator signs, and what a gateway accepts.
//!
//! ```text
//! signed:   length of the text (u32, big-endian)   JSON   signature[64]
//! message:  signed head   length of the wrapped secrets (u32)   wrapped secrets   code of filters…
//! ```
//! Each message names its place: gateway, nonce of the connection, sequence, epoch and version, and
//! the digest of the one before, back to the welcome. So what is missing, comes twice, comes out of
//! order, was recorded, or was meant for somebody else is refused; the connection then ends, and a
//! fresh snapshot is taken. What has no signature (secrets, code) is covered by digests in the head.

use super::head::{BlobHead, Blobs, Head, SignedChange};
use super::secrets::{Recipient, Unopened, UnwrappingKey, WrappingKey};
use super::signature::{Purpose, SIGNATURE_BYTES};
use super::{Digest, Nonce, PROTOCOL, Signer, SignerKey};
use crate::control::Message;
use crate::control::assertions::AssertionKey;
use crate::control::budgets::Shares;
use crate::id::GatewayName;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The orchestrator's answer to a hello that it believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Welcome {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// Whom it answers.
    pub gateway: GatewayName,
    /// The nonce of the hello.
    pub nonce: Nonce,
    /// The wrapping key of the hello: nobody in between has put another in its place.
    pub wrapping: WrappingKey,
    /// The orchestrator's time.
    pub at: Timestamp,
}

/// Says that the orchestrator is there, and where the chain ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// Whom it answers.
    pub gateway: GatewayName,
    /// The connection.
    pub nonce: Nonce,
    /// The ping's.
    pub echo: u64,
    /// The digest of the last message.
    pub head: Digest,
    /// The orchestrator's time.
    pub at: Timestamp,
    /// The gateway's parts of tenants' budgets.
    pub shares: Shares,
    /// Every gateway's key for assertions.
    pub assertions: Vec<AssertionKey>,
}

/// What a heartbeat carries to a gateway besides itself.
#[derive(Debug, Clone, Default)]
pub struct Carried {
    /// Its parts of tenants' budgets.
    pub shares: Shares,
    /// Every gateway's key for assertions.
    pub assertions: Vec<AssertionKey>,
}

/// A message that was accepted.
#[derive(Debug)]
pub struct Accepted {
    /// Its place in the connection, which the answer names.
    pub sequence: u64,
    /// The message.
    pub message: Message,
    /// When the orchestrator signed it.
    pub at: Timestamp,
}

/// Why something of the stream is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It has not the form that it should have.
    #[error("it cannot be read; are orchestrator and gateway of one release?")]
    Malformed,
    /// The orchestrator has not signed it.
    #[error("it is not signed by this installation's orchestrator")]
    Signature,
    /// It is for another gateway.
    #[error("it is for gateway `{0}`")]
    OtherGateway(GatewayName),
    /// It is of another connection.
    #[error("it belongs to another connection")]
    OtherConnection,
    /// One is missing, came twice or too early.
    #[error("it is message {found} of the connection, and {expected} was due")]
    Order {
        /// The one that was due.
        expected: u64,
        /// The one that came.
        found: u64,
    },
    /// It does not follow what came before.
    #[error("it does not follow the message before it")]
    Chain,
    /// It goes back.
    #[error("it is {epoch}.{version}, and {last_epoch}.{last_version} is known")]
    Older {
        /// Its epoch.
        epoch: u64,
        /// Its version.
        version: u64,
        /// The epoch of the last one.
        last_epoch: u64,
        /// The version of the last one.
        last_version: u64,
    },
    /// Secrets or code are not those that were signed.
    #[error("its secrets or filters are not those that were signed")]
    Contents,
    /// Secrets were wrapped to another key.
    #[error(transparent)]
    Secrets(#[from] Unopened),
}

/// A message could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Its parts are longer than a frame can say.
    #[error("the message is too long to be sent")]
    TooLong,
    /// Its secrets could not be wrapped.
    #[error("the message's secrets could not be wrapped for the gateway")]
    Secrets,
}

/// The orchestrator's end of the chain.
#[derive(Debug)]
pub struct Sending {
    signer: Arc<Signer>,
    recipient: Recipient,
    wrapping: WrappingKey,
    sequence: u64,
    head: Digest,
}

impl Sending {
    /// Begins with the welcome, which comes with it.
    ///
    /// # Errors
    /// [`SealError::TooLong`], which no name is.
    pub fn begin(
        signer: Arc<Signer>,
        (gateway, nonce): (GatewayName, Nonce),
        wrapping: WrappingKey,
        at: Timestamp,
    ) -> Result<(Self, Vec<u8>), SealError> {
        let welcome = Welcome { protocol: PROTOCOL, gateway: gateway.clone(), nonce, wrapping, at };
        let (bytes, head) = sign(&signer, Purpose::Welcome, &welcome)?;
        let recipient = Recipient { gateway, nonce };
        Ok((Self { signer, recipient, wrapping, sequence: 0, head }, bytes))
    }

    /// The next message, and its place in the connection.
    ///
    /// # Errors
    /// [`SealError`]; the chain is then as before.
    pub fn message(&mut self, message: &Message, at: Timestamp) -> Result<(u64, Vec<u8>), SealError> {
        let secrets =
            self.recipient.wrap(&message.change, &self.wrapping).map_err(|Unopened| SealError::Secrets)?;
        let mut blobs = Blobs::new();
        let change = SignedChange::new(&message.change, &mut blobs);
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_too_long| SealError::TooLong);
        let heads = blobs.iter().map(|(digest, code)| Ok(BlobHead { digest: *digest, bytes: length(code)? }));
        let sequence = self.sequence + 1;
        let head = Head {
            gateway: self.recipient.gateway.clone(),
            nonce: self.recipient.nonce,
            sequence,
            epoch: message.epoch,
            version: message.version,
            previous: self.head,
            at,
            change,
            blobs: heads.collect::<Result<_, _>>()?,
            secrets: Digest::of(&secrets),
        };
        let (mut bytes, digest) = sign(&self.signer, Purpose::Message, &head)?;
        bytes.extend_from_slice(&length(&secrets)?.to_be_bytes());
        bytes.extend_from_slice(&secrets);
        blobs.values().for_each(|code| bytes.extend_from_slice(code));
        (self.sequence, self.head) = (sequence, digest);
        Ok((sequence, bytes))
    }

    /// The answer to a ping.
    ///
    /// # Errors
    /// [`SealError::TooLong`], which no heartbeat is.
    pub fn heartbeat(&self, echo: u64, carried: Carried, at: Timestamp) -> Result<Vec<u8>, SealError> {
        let Recipient { gateway, nonce } = self.recipient.clone();
        let Carried { shares, assertions } = carried;
        let heartbeat = Heartbeat { gateway, nonce, echo, head: self.head, at, shares, assertions };
        sign(&self.signer, Purpose::Heartbeat, &heartbeat).map(|(bytes, _)| bytes)
    }
}

/// The gateway's end of the chain.
#[derive(Debug)]
pub struct Following {
    key: SignerKey,
    recipient: Recipient,
    sequence: u64,
    head: Digest,
    last: Option<(u64, u64)>,
}

impl Following {
    /// Begins with the welcome to this gateway's own hello. `last` are epoch and version of the
    /// last message that was put in force before, in whatever connection.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn begin(
        key: SignerKey,
        (gateway, nonce): (&GatewayName, Nonce),
        wrapping: WrappingKey,
        last: Option<(u64, u64)>,
        welcome: &[u8],
    ) -> Result<(Self, Welcome), Refused> {
        let (mut following, welcome) = Self::resume(key, gateway, welcome)?;
        if welcome.nonce != nonce || welcome.wrapping != wrapping {
            return Err(Refused::OtherConnection);
        }
        following.last = last;
        Ok((following, welcome))
    }

    /// Begins with a welcome of before, as it was kept: what follows it is judged as it was then.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn resume(key: SignerKey, gateway: &GatewayName, welcome: &[u8]) -> Result<(Self, Welcome), Refused> {
        let (signed, rest) = Signed::split(welcome).ok_or(Refused::Malformed)?;
        let welcome: Welcome = signed.open(&key, Purpose::Welcome)?;
        if !rest.is_empty() || welcome.protocol != PROTOCOL {
            return Err(Refused::Malformed);
        }
        if welcome.gateway != *gateway {
            return Err(Refused::OtherGateway(welcome.gateway));
        }
        let recipient = Recipient { gateway: gateway.clone(), nonce: welcome.nonce };
        let head = Digest::of(signed.text);
        Ok((Self { key, recipient, sequence: 0, head, last: None }, welcome))
    }

    /// Epoch and version of the last message.
    #[must_use]
    pub const fn last(&self) -> Option<(u64, u64)> {
        self.last
    }

    /// Accepts the next message, unwrapping its secrets; without a key it has none, as it was kept.
    ///
    /// # Errors
    /// [`Refused`]; the chain is then as before, and nothing of the message may be used.
    pub fn message(&mut self, bytes: &[u8], own: Option<&UnwrappingKey>) -> Result<Accepted, Refused> {
        let (signed, rest) = Signed::split(bytes).ok_or(Refused::Malformed)?;
        let head: Head = signed.open(&self.key, Purpose::Message)?;
        self.is_next(&head)?;
        let (secrets, rest) = sized(rest).ok_or(Refused::Malformed)?;
        let secrets = match own {
            Some(_) if Digest::of(secrets) != head.secrets => return Err(Refused::Contents),
            Some(own) => self.recipient.unwrap(secrets, own)?,
            None if secrets.is_empty() => super::head::Secrets::new(),
            None => return Err(Refused::Contents),
        };
        let blobs = blobs(&head.blobs, rest).ok_or(Refused::Contents)?;
        let change = head.change.into_change(&blobs, secrets).map_err(|_missing| Refused::Contents)?;
        (self.sequence, self.head) = (head.sequence, Digest::of(signed.text));
        self.last = Some((head.epoch, head.version));
        let message = Message { epoch: head.epoch, version: head.version, change };
        Ok(Accepted { sequence: head.sequence, message, at: head.at })
    }

    fn is_next(&self, head: &Head) -> Result<(), Refused> {
        self.is_for_us(&head.gateway, head.nonce)?;
        let expected = self.sequence + 1;
        if head.sequence != expected {
            return Err(Refused::Order { expected, found: head.sequence });
        }
        if head.previous != self.head {
            return Err(Refused::Chain);
        }
        match self.last {
            Some(last) if (head.epoch, head.version) <= last => Err(Refused::Older {
                epoch: head.epoch,
                version: head.version,
                last_epoch: last.0,
                last_version: last.1,
            }),
            _ => Ok(()),
        }
    }

    fn is_for_us(&self, gateway: &GatewayName, nonce: Nonce) -> Result<(), Refused> {
        if *gateway != self.recipient.gateway {
            return Err(Refused::OtherGateway(gateway.clone()));
        }
        if nonce != self.recipient.nonce { Err(Refused::OtherConnection) } else { Ok(()) }
    }

    /// Accepts a heartbeat: the orchestrator was there, and all that it had said has come.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn heartbeat(&self, bytes: &[u8]) -> Result<Heartbeat, Refused> {
        let (signed, rest) = Signed::split(bytes).ok_or(Refused::Malformed)?;
        let heartbeat: Heartbeat = signed.open(&self.key, Purpose::Heartbeat)?;
        self.is_for_us(&heartbeat.gateway, heartbeat.nonce)?;
        if !rest.is_empty() {
            return Err(Refused::Malformed);
        }
        if heartbeat.head == self.head { Ok(heartbeat) } else { Err(Refused::Chain) }
    }
}

/// A message as it may be kept: without its wrapped secrets.
#[must_use]
pub fn without_secrets(message: &[u8]) -> Option<Vec<u8>> {
    let (_, rest) = Signed::split(message)?;
    let (secrets, code) = sized(rest)?;
    let signed = message.len().checked_sub(rest.len())?;
    let mut kept = Vec::with_capacity(message.len() - secrets.len());
    kept.extend_from_slice(message.get(..signed)?);
    kept.extend_from_slice(&0_u32.to_be_bytes());
    kept.extend_from_slice(code);
    Some(kept)
}

/// A text with its signature.
struct Signed<'a> {
    text: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Signed<'a> {
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (text, rest) = sized(bytes)?;
        let (signature, rest) = rest.split_at_checked(SIGNATURE_BYTES)?;
        Some((Self { text, signature }, rest))
    }

    /// The signature is looked at before the text is.
    fn open<T: serde::de::DeserializeOwned>(&self, key: &SignerKey, purpose: Purpose) -> Result<T, Refused> {
        if !key.has_signed(purpose, self.text, self.signature) {
            return Err(Refused::Signature);
        }
        serde_json::from_slice(self.text).map_err(|_mismatch| Refused::Malformed)
    }
}

fn sign(signer: &Signer, purpose: Purpose, value: &impl Serialize) -> Result<(Vec<u8>, Digest), SealError> {
    let text = serde_json::to_vec(value).map_err(|_no_form| SealError::TooLong)?;
    let length = u32::try_from(text.len()).map_err(|_too_long| SealError::TooLong)?;
    let digest = Digest::of(&text);
    let mut bytes = Vec::with_capacity(text.len() + SIGNATURE_BYTES + 8);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&text);
    bytes.extend_from_slice(&signer.sign(purpose, &text));
    Ok((bytes, digest))
}

/// A length and so many bytes; then what follows.
fn sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

/// The parts that `heads` announce, if they are these bytes and no more.
fn blobs(heads: &[BlobHead], mut bytes: &[u8]) -> Option<Blobs> {
    let mut blobs = Blobs::new();
    for head in heads {
        let (code, rest) = bytes.split_at_checked(usize::try_from(head.bytes).ok()?)?;
        if Digest::of(code) != head.digest {
            return None;
        }
        blobs.insert(head.digest, Arc::from(code));
        bytes = rest;
    }
    bytes.is_empty().then_some(blobs)
}
