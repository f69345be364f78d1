// SPDX-License-Identifier: Apache-2.0
//! Assertions: short-lived tokens by which a backend can tell that a request and its identity come
//! from this installation's gateways.
//!
//! The key is made when the gateway starts, and is in its memory only. Backends find the public
//! halves of all gateways at `/.well-known/jwks.json` of any gateway's admin listener.

use crate::registry::LiveSession;
use crate::reject::Reject;
use http::HeaderValue;
use jiff::Timestamp;
use postern_common::clock::unix_seconds;
use postern_common::control::assertions::AssertionKeys;
use postern_common::id::RequestId;
use postern_common::token::assertion::{AssertionSigner, ISSUER};
use serde::Serialize;

/// How long one is good: for the way to the backend.
const LIFE_SECONDS: u64 = 60;

/// Signs assertions.
#[derive(Debug)]
pub(crate) struct Asserter {
    signer: AssertionSigner,
    keys: AssertionKeys,
}

/// What an assertion says.
#[derive(Serialize)]
struct Asserted<'a> {
    iss: &'static str,
    aud: &'a str,
    sub: &'a str,
    tenant: &'a str,
    user_id: &'a str,
    conversation_id: &'a str,
    method: &'a str,
    path: &'a str,
    jti: &'a str,
    iat: u64,
    exp: u64,
}

/// A request as an assertion names it.
pub(crate) struct About<'a> {
    pub(crate) session: &'a LiveSession,
    /// Whom it is for.
    pub(crate) audience: &'a str,
    pub(crate) method: &'a str,
    /// Path and query, as they are sent.
    pub(crate) path: &'a str,
    pub(crate) request_id: &'a RequestId,
}

impl Asserter {
    /// Makes a key and tells `keys` its public half; `None` if this machine gives no random numbers.
    pub(crate) fn new(keys: AssertionKeys) -> Option<Self> {
        let (signer, own) = AssertionSigner::generate()?;
        keys.set_own(own);
        Some(Self { signer, keys })
    }

    /// The public keys of all gateways.
    pub(crate) const fn keys(&self) -> &AssertionKeys {
        &self.keys
    }

    /// Signs an assertion.
    pub(crate) fn assert(&self, about: &About<'_>, now: Timestamp) -> Result<HeaderValue, Reject> {
        let session = &about.session.session;
        let iat = unix_seconds(now);
        let claims = Asserted {
            iss: ISSUER,
            aud: about.audience,
            sub: session.sandbox_id.as_str(),
            tenant: session.tenant.as_str(),
            user_id: session.user_id.as_str(),
            conversation_id: session.conversation_id.as_str(),
            method: about.method,
            path: about.path,
            jti: about.request_id.as_str(),
            iat,
            exp: iat + LIFE_SECONDS,
        };
        let token = self.signer.sign(&claims);
        let token = token.map_err(|_unsigned| Reject::Internal("an assertion could not be signed"))?;
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.reveal()))
            .map_err(|_no_value| Reject::Internal("an assertion is no header"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}
