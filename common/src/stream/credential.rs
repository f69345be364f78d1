// SPDX-License-Identifier: Apache-2.0
//! What an operator hands to a gateway, once: one line that holds its name, its secret, and what
//! it recognises the orchestrator by. So nothing is trusted at first sight.

use super::SignerKey;
use crate::id::GatewayName;
use crate::secret::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

const PREFIX: &str = "postern-gateway_";
/// The longest that is looked at; ours have about 1,000 characters.
const MAX_CHARACTERS: usize = 16 * 1024;

/// A gateway's credential.
#[derive(Debug, Clone)]
pub struct Credential {
    /// Who it is for.
    pub name: GatewayName,
    /// What the gateway shows.
    pub secret: Secret<String>,
    /// The certificate authority of the orchestrator's certificates (DER). No other is believed.
    pub authority: Vec<u8>,
    /// Whose signatures count.
    pub signer: SignerKey,
}

/// Text that is no credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no gateway credential: `postern gateways add NAME` prints one, as one line")]
pub struct InvalidCredential;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts {
    name: GatewayName,
    secret: String,
    authority: String,
    signer: SignerKey,
}

impl Credential {
    /// The line.
    #[must_use]
    pub fn to_line(&self) -> Secret<String> {
        let mut parts = Parts {
            name: self.name.clone(),
            secret: self.secret.reveal().clone(),
            authority: STANDARD.encode(&self.authority),
            signer: self.signer,
        };
        // A struct of texts always has a JSON form.
        let json = Secret::new(serde_json::to_vec(&parts).unwrap_or_default());
        parts.secret.zeroize();
        Secret::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json.reveal())))
    }

    /// Reads a line. White space around it is ignored.
    ///
    /// # Errors
    /// [`InvalidCredential`].
    pub fn parse(line: &str) -> Result<Self, InvalidCredential> {
        let line = line.trim();
        if line.len() > MAX_CHARACTERS {
            return Err(InvalidCredential);
        }
        let encoded = line.strip_prefix(PREFIX).ok_or(InvalidCredential)?;
        let json = URL_SAFE_NO_PAD.decode(encoded).map_err(|_not_base64| InvalidCredential)?;
        let json = Secret::new(json);
        let parts: Parts = serde_json::from_slice(json.reveal()).map_err(|_malformed| InvalidCredential)?;
        let authority = STANDARD.decode(&parts.authority).map_err(|_not_base64| InvalidCredential)?;
        Ok(Self { name: parts.name, secret: Secret::new(parts.secret), authority, signer: parts.signer })
    }
}
