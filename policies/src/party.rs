// SPDX-License-Identifier: Apache-2.0
//! A principal, action or resource as the index sees it: its entity and the keys under which
//! policies that can apply to it are filed.
//!
//! A policy's scope is filed under exactly one key for each of the three; a party looks under all
//! keys that a matching scope could have. Keys are hashed once, when the party is built.

use crate::names;
use cedar_policy_core::ast::{EntityType, EntityUID};
use cedar_policy_core::entities::{Dereference, Entities};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Arc, LazyLock};

/// Hash keys of this process, so that nobody can choose ids that collide.
static HASH_KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// What a scope says of one of the three.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// Nothing.
    Any,
    /// `is TYPE`
    Is(Arc<EntityType>),
    /// `== ENTITY`
    Equal(Arc<EntityUID>),
    /// `in ENTITY`; the type of `is TYPE in ENTITY` is checked by the policy.
    In(Arc<EntityUID>),
}

/// A scope with its hash.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    hash: u64,
    scope: Scope,
}

impl From<Scope> for Key {
    fn from(scope: Scope) -> Self {
        Self { hash: HASH_KEYS.hash_one(&scope), scope }
    }
}

impl Key {
    /// Whether it names no entity.
    pub(crate) fn is_broad(&self) -> bool {
        matches!(self.scope, Scope::Any | Scope::Is(_))
    }
}

/// Which principals a key of theirs names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    /// Those of a whole tenant, or of a kind.
    All,
    /// Those of one user.
    User,
    /// Those in something else.
    Group,
    /// One.
    One,
}

impl Key {
    /// Which principals it names, as a principal's key.
    pub(crate) fn names(&self) -> Names {
        match &self.scope {
            Scope::Any | Scope::Is(_) => Names::All,
            Scope::In(entity) if *entity.entity_type() == *names::TENANT => Names::All,
            Scope::In(entity) if *entity.entity_type() == *names::USER => Names::User,
            Scope::In(_) => Names::Group,
            Scope::Equal(_) => Names::One,
        }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.scope == other.scope
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Takes the hash that a [`Key`] brings.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Prehashed(u64);

impl Hasher for Prehashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// One of the three of a request.
#[derive(Debug, Clone)]
pub(crate) struct Party {
    uid: Arc<EntityUID>,
    keys: Vec<Key>,
}

impl Party {
    /// The party `uid`, whose ancestors are those that `entities` gives it.
    pub(crate) fn new(uid: Arc<EntityUID>, entities: &Entities) -> Self {
        let ancestors: Vec<_> = match entities.entity(&uid) {
            Dereference::Data(entity) => entity.ancestors().cloned().map(Arc::new).collect(),
            Dereference::NoSuchEntity | Dereference::Residual(_) => Vec::new(),
        };
        let own_type = Arc::new(uid.entity_type().clone());
        let mut keys: Vec<Key> = vec![
            Scope::Any.into(),
            Scope::Is(own_type).into(),
            Scope::Equal(Arc::clone(&uid)).into(),
            Scope::In(Arc::clone(&uid)).into(),
        ];
        keys.extend(
            ancestors
                .into_iter()
                .filter(|ancestor| *ancestor != uid)
                .map(|ancestor| Scope::In(ancestor).into()),
        );
        Self { uid, keys }
    }

    pub(crate) fn uid(&self) -> &Arc<EntityUID> {
        &self.uid
    }

    pub(crate) fn keys(&self) -> &[Key] {
        &self.keys
    }
}
