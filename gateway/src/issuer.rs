// SPDX-License-Identifier: Apache-2.0
//! Tokens of another issuer, in a gateway that stands alone: keys, the deny list, and the sessions
//! that tokens vouch for.
//!
//! ```text
//!   key files, or the issuer's key set by URL ─▶ keys ─▶ verify ─▶ denied? ─▶ registry
//!                          ▲ every few minutes, and when a token names a key that is not known
//! ```
//! There is no orchestrator to end a session: it ends when its last token expires, or when the deny
//! list names it. Nothing binds it to a peer.

mod keys;

pub(crate) use keys::keep_keys;
pub use keys::{BadJwksUrl, JwksUrl, KeepKeysError};

use crate::registry::{Lookup, Registry};
use crate::reject::Reject;
use arc_swap::ArcSwap;
use jiff::Timestamp;
use keys::Fetching;
use postern_common::folder::DeniedFile;
use postern_common::id::{InvalidId, TemplateName};
use postern_common::session::{AcceptedToken, Isolation, Peer, Session};
use postern_common::token::Claims;
use postern_common::token::issuer::{IssuerKeys, IssuerRules, IssuerVerifier, NotIssued};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The template that policies see: there is none.
const TEMPLATE: &str = "none";

/// Where an issuer's keys come from.
#[derive(Debug)]
pub enum KeySource {
    /// They are these, until the process ends.
    Given(IssuerKeys),
    /// Its key set is at this URL.
    Set(JwksUrl),
}

/// The one issuer that a gateway believes.
#[derive(Debug)]
pub struct Issuer {
    verifier: IssuerVerifier,
    keys: ArcSwap<NumberedKeys>,
    fetching: Option<Fetching>,
    denied: ArcSwap<DeniedFile>,
    template: TemplateName,
}

/// Keys, and which they are of all that there were.
#[derive(Debug, Default)]
struct NumberedKeys {
    number: u64,
    keys: Option<IssuerKeys>,
}

impl Issuer {
    /// An issuer by these rules.
    ///
    /// # Errors
    /// None: the name that stands for no template is one.
    pub fn new(rules: IssuerRules, source: KeySource) -> Result<Self, InvalidId> {
        let (keys, fetching) = match source {
            KeySource::Given(keys) => (Some(keys), None),
            KeySource::Set(url) => (None, Some(Fetching::new(url))),
        };
        Ok(Self {
            verifier: IssuerVerifier::new(rules),
            keys: ArcSwap::from_pointee(NumberedKeys { number: 1, keys }),
            fetching,
            denied: ArcSwap::default(),
            template: TemplateName::parse(TEMPLATE)?,
        })
    }

    /// Which keys are in use, counted.
    pub(crate) fn keys_number(&self) -> u64 {
        self.keys.load().number
    }

    /// Whether there are any keys.
    pub(crate) fn has_keys(&self) -> bool {
        self.keys.load().keys.is_some()
    }

    pub(crate) fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, NotIssued> {
        match &self.keys.load().keys {
            Some(keys) => self.verifier.verify(keys, token, now),
            None => Err(NotIssued::UnknownKey),
        }
    }

    /// Puts other keys in use; `None` where they are too old to be believed.
    fn replace_keys(&self, keys: Option<IssuerKeys>) {
        let number = self.keys.load().number.wrapping_add(1);
        self.keys.store(Arc::new(NumberedKeys { number, keys }));
    }

    /// Whether looking once more brought keys that were not there.
    pub(crate) async fn has_newer_keys(&self) -> bool {
        let before = self.keys_number();
        if let Some(fetching) = &self.fetching {
            fetching.once_more().await;
        }
        self.keys_number() != before
    }

    /// Whom the deny list names from now on: what is in flight of theirs ends.
    pub(crate) fn deny(&self, denied: DeniedFile, registry: &Registry) {
        let denied = Arc::new(denied);
        self.denied.store(Arc::clone(&denied));
        registry.end_tokens(|jti, _until| denied.tokens.contains(jti));
        registry.cut(|session| denied.names(session.user_id.as_str(), session.conversation_id.as_str()));
    }

    /// Lets a believed token's session in, unless it is denied.
    ///
    /// # Errors
    /// [`Reject::SessionEnded`] if it is denied or has ended, [`Reject::SessionUnknown`] if there
    /// are too many.
    pub(crate) fn admit(&self, claims: &Claims, registry: &Registry, now: Timestamp) -> Result<(), Reject> {
        if self.is_denied(claims) {
            return Err(Reject::SessionEnded);
        }
        if let Lookup::Live(live) = registry.find(&claims.sandbox_id)
            && live.has_token(&claims.jti)
        {
            return Ok(());
        }
        match (registry.admit(self.session(claims), now), registry.find(&claims.sandbox_id)) {
            // Denied in between: whoever denied has not seen it.
            (Some(_), _) if self.is_denied(claims) => {
                registry.cut(|session| session.sandbox_id == claims.sandbox_id);
                Err(Reject::SessionEnded)
            }
            (Some(_), _) => Ok(()),
            (None, Lookup::Ended) => Err(Reject::SessionEnded),
            (None, _) => Err(Reject::SessionUnknown),
        }
    }

    fn is_denied(&self, claims: &Claims) -> bool {
        let denied = self.denied.load();
        denied.tokens.contains(&claims.jti)
            || denied.names(claims.user_id.as_str(), claims.conversation_id.as_str())
    }

    fn session(&self, claims: &Claims) -> Session {
        let until = claims.expires_at();
        Session {
            sandbox_id: claims.sandbox_id.clone(),
            tenant: claims.tenant.clone(),
            user_id: claims.user_id.clone(),
            conversation_id: claims.conversation_id.clone(),
            operations: claims.operations.clone(),
            tokens: vec![AcceptedToken { jti: claims.jti.clone(), until }],
            peer: Peer::Unbound,
            expires_at: until,
            template: self.template.clone(),
            // Nobody says what the caller runs in: the least that there is.
            isolation: Isolation::Namespaces,
            labels: BTreeMap::new(),
            claims: serde_json::Map::new(),
        }
    }
}
