// SPDX-License-Identifier: Apache-2.0
//! Public keys by which backends tell our assertions from anybody's: each gateway's own, collected
//! by the orchestrator, so that every gateway can show all of them.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::{Arc, PoisonError, RwLock};

/// One gateway's public key (Ed25519).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssertionKey {
    /// Its name: a digest of itself.
    pub kid: String,
    /// The key in base64url.
    pub x: String,
}

impl AssertionKey {
    /// The key with these bytes.
    #[must_use]
    pub fn new(public: &[u8]) -> Option<Self> {
        let public: &[u8; 32] = public.try_into().ok()?;
        let name = digest(&SHA256, public);
        let kid = URL_SAFE_NO_PAD.encode(name.as_ref().first_chunk::<12>()?);
        Some(Self { kid, x: URL_SAFE_NO_PAD.encode(public) })
    }

    /// Whether it is a key under its own name, and not under another's.
    #[must_use]
    pub fn is_true(&self) -> bool {
        let public = URL_SAFE_NO_PAD.decode(&self.x).ok();
        public.and_then(|public| Self::new(&public)).is_some_and(|own| own == *self)
    }
}

/// One gateway's own key, and those of all, seen from both of its ends. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct AssertionKeys(Arc<RwLock<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    own: Option<AssertionKey>,
    all: Vec<AssertionKey>,
}

impl AssertionKeys {
    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn read<Read>(&self, look: impl FnOnce(&Inner) -> Read) -> Read {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The gateway's own, made when it starts.
    pub fn set_own(&self, key: AssertionKey) {
        self.change(|inner| inner.own = Some(key));
    }

    /// The gateway's own, if it is there yet.
    #[must_use]
    pub fn own(&self) -> Option<AssertionKey> {
        self.read(|inner| inner.own.clone())
    }

    /// Those of all gateways, as the orchestrator tells them.
    pub fn set_all(&self, all: Vec<AssertionKey>) {
        self.change(|inner| inner.all = all);
    }

    /// Those of all gateways; its own is always among them.
    #[must_use]
    pub fn all(&self) -> Vec<AssertionKey> {
        self.read(|inner| {
            let own = inner.own.iter().filter(|own| !inner.all.contains(own));
            inner.all.iter().chain(own).cloned().collect()
        })
    }

    /// All of them as a JSON Web Key Set (RFC 7517, RFC 8037).
    #[must_use]
    pub fn to_set(&self) -> Value {
        let key = |AssertionKey { kid, x }: &AssertionKey| json!({ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": x });
        json!({ "keys": self.all().iter().map(key).collect::<Vec<_>>() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kid: &str) -> AssertionKey {
        AssertionKey { kid: kid.to_owned(), x: "x".to_owned() }
    }

    #[test]
    fn a_key_has_its_own_name_and_no_other() {
        let (own, other) =
            (AssertionKey::new(&[1; 32]).expect("a key"), AssertionKey::new(&[2; 32]).expect("a key"));
        assert!(own.is_true() && other.is_true());
        let planted = AssertionKey { kid: own.kid, x: other.x };
        assert!(!planted.is_true() && !key("a").is_true() && AssertionKey::new(&[1; 31]).is_none());
    }

    #[test]
    fn a_gateway_shows_its_own_key_and_all_others() {
        let keys = AssertionKeys::default();
        assert_eq!(keys.all(), []);
        keys.set_own(key("a"));
        assert_eq!(keys.all(), [key("a")], "before the orchestrator has told anything");
        keys.set_all(vec![key("a"), key("b")]);
        assert_eq!(keys.all(), [key("a"), key("b")], "its own once");
        keys.set_all(vec![key("b")]);
        assert_eq!(keys.to_set()["keys"].as_array().map(Vec::len), Some(2));
    }
}
