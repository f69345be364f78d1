// SPDX-License-Identifier: Apache-2.0
//! Whose sandbox this is: told once over the control channel, never by the agent.
//!
//! A warm sandbox has no identity until it is claimed. One that was given can not be changed;
//! only the session token is replaced when it is rotated.

use crate::connect::{Code, Failure};
use http::HeaderValue;
use postern_common::id::{ConversationId, SandboxId};
use postern_common::secret::Secret;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The agent's way out, as it finds it in its environment (contracts.md).
const GATEWAY_URL: &str = "http://127.0.0.1:49980";
/// What a shell of a fresh Debian user has, without the folders of the administrator.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The body of `postern.Control/Identify`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claim {
    sandbox_id: SandboxId,
    conversation_id: ConversationId,
    #[serde(deserialize_with = "secret")]
    token: Secret<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Where the gateway is, if not at this sandbox's own socket.
    #[serde(default)]
    gateway: Option<Gateway>,
}

/// A gateway that is reached over the network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Gateway {
    /// An address, for there are no names to be asked for in here.
    pub(crate) address: std::net::SocketAddr,
    /// What its certificate says; absent where it speaks plain HTTP.
    #[serde(default)]
    pub(crate) tls: Option<GatewayTls>,
}

/// How a gateway is known.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GatewayTls {
    /// The name in its certificate.
    pub(crate) name: String,
    /// Who signs that, in PEM.
    pub(crate) ca: String,
}

/// The body of `postern.Control/Token`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rotation {
    #[serde(deserialize_with = "secret")]
    token: Secret<String>,
}

/// The identity of this sandbox, once it has one.
#[derive(Debug, Default)]
pub(crate) struct Identity {
    env: OnceLock<BTreeMap<String, String>>,
    gateway: OnceLock<Gateway>,
    bearer: Mutex<Option<HeaderValue>>,
}

impl Identity {
    /// Takes the identity.
    ///
    /// # Errors
    /// `failed_precondition` if there is one already; `invalid_argument` for a malformed one,
    /// which leaves the sandbox without.
    pub(crate) fn claim(&self, claim: Claim) -> Result<(), Failure> {
        let bearer = bearer(&claim.token)?;
        if let Some(name) =
            claim.env.iter().find_map(|(name, value)| is_unusable(name, value).then_some(name))
        {
            let detail = format!("`{}` cannot be an environment variable", name.escape_default());
            return Err(Failure::new(Code::InvalidArgument, detail));
        }
        let mut env = claim.env;
        env.insert("SANDBOX_ID".into(), claim.sandbox_id.as_str().into());
        env.insert("CONVERSATION_ID".into(), claim.conversation_id.as_str().into());
        env.insert("GATEWAY_URL".into(), GATEWAY_URL.into());
        let again = |()| Failure::new(Code::FailedPrecondition, "this sandbox already has an identity");
        if self.env.get().is_some() {
            return Err(again(()));
        }
        if let Some(gateway) = claim.gateway {
            crate::door::is_usable(&gateway).map_err(|why| Failure::new(Code::InvalidArgument, why))?;
            self.gateway.set(gateway).map_err(|_set| again(()))?;
        }
        self.env.set(env).map_err(|_set| again(()))?;
        self.replace(bearer);
        Ok(())
    }

    /// Where the gateway is, if the identity said so.
    pub(crate) fn gateway(&self) -> Option<&Gateway> {
        self.gateway.get()
    }

    /// Takes the session's next token.
    ///
    /// # Errors
    /// `failed_precondition` before there is an identity; `invalid_argument` for a malformed one.
    pub(crate) fn rotate(&self, rotation: &Rotation) -> Result<(), Failure> {
        let bearer = bearer(&rotation.token)?;
        self.env()?;
        self.replace(bearer);
        Ok(())
    }

    /// The environment of every process that is started here, without what its own start adds.
    ///
    /// # Errors
    /// `failed_precondition` before there is an identity.
    pub(crate) fn environment(&self, home: &str) -> Result<BTreeMap<String, String>, Failure> {
        let mut env = BTreeMap::from([
            ("PATH".to_owned(), PATH.to_owned()),
            ("HOME".to_owned(), home.to_owned()),
            ("USER".to_owned(), "user".to_owned()),
        ]);
        env.extend(self.env()?.clone());
        Ok(env)
    }

    /// What the door writes into `Authorization`.
    pub(crate) fn bearer(&self) -> Option<HeaderValue> {
        self.bearer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn env(&self) -> Result<&BTreeMap<String, String>, Failure> {
        let missing = || Failure::new(Code::FailedPrecondition, "this sandbox has no identity yet");
        self.env.get().ok_or_else(missing)
    }

    fn replace(&self, bearer: HeaderValue) {
        *self.bearer.lock().unwrap_or_else(PoisonError::into_inner) = Some(bearer);
    }
}

fn secret<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Secret<String>, D::Error> {
    String::deserialize(from).map(Secret::new)
}

fn bearer(token: &Secret<String>) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.reveal()))
        .map_err(|_invalid| Failure::new(Code::InvalidArgument, "the token cannot be sent in a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The kernel cannot hold such a variable.
fn is_unusable(name: &str, value: &str) -> bool {
    name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
}
