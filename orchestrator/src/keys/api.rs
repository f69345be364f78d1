// SPDX-License-Identifier: Apache-2.0
//! API keys: `postern_<key id>_<secret>`. Shown once, stored as a keyed hash.

use super::{InstallationKeys, random};
use crate::seal::SealError;
use crate::store::{ApiKeyRow, KeyScope, Role, Store, StoreError};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, header};
use postern_common::id::{ApiKeyId, TenantId};
use postern_common::secret::Secret;
use postern_common::session::Grant;

const PREFIX: &str = "postern_";
/// Bytes of a key's secret part: 256 bits, so that it cannot be tried out.
const SECRET_BYTES: usize = 32;
/// The longest key that is looked at; ours have 68 characters.
const KEY_LENGTH: usize = 256;

/// Who calls, proven by a key.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The key.
    pub(crate) key: ApiKeyId,
    /// Its tenant; `None`: every tenant.
    pub(crate) tenant: Option<TenantId>,
    /// What it may do.
    pub(crate) role: Role,
    /// What sandboxes that it makes may call at most; see [`ApiKeyRow::operations`].
    pub(crate) operations: Option<Vec<Grant>>,
    /// What it is for besides.
    pub(crate) scope: KeyScope,
}

/// Why a caller was not believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unauthenticated {
    /// No key was sent.
    #[error("no API key was sent")]
    Missing,
    /// It is none of ours. Whether its id exists is not said.
    #[error("the API key is not valid")]
    Invalid,
    /// It could not be looked up.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A key that was just made: its row, and the only copy of the key itself.
#[derive(Debug)]
pub(crate) struct MintedKey {
    /// What the database keeps.
    pub(crate) row: ApiKeyRow,
    /// What the caller gets.
    pub(crate) key: Secret<String>,
}

/// What a new key is to be.
#[derive(Debug, Clone)]
pub(crate) struct WantedKey {
    /// Its tenant; `None`: every tenant.
    pub(crate) tenant: Option<TenantId>,
    /// What it may do.
    pub(crate) role: Role,
    /// What people call it.
    pub(crate) label: String,
    /// See [`ApiKeyRow::operations`].
    pub(crate) operations: Option<Vec<Grant>>,
    /// What it is for besides.
    pub(crate) scope: KeyScope,
    /// Who makes it.
    pub(crate) created_by: String,
}

/// Makes a key.
///
/// # Errors
/// [`SealError::NoRandomness`].
pub(crate) fn mint(
    keys: &InstallationKeys,
    wanted: WantedKey,
    now: jiff::Timestamp,
) -> Result<MintedKey, SealError> {
    let mut id = [0; 16];
    aws_lc_rs::rand::fill(&mut id).map_err(|_unspecified| SealError::NoRandomness)?;
    let id = ApiKeyId::from_random(id);
    let secret = URL_SAFE_NO_PAD.encode(random(SECRET_BYTES)?.reveal());
    let key = Secret::new(format!("{PREFIX}{id}_{secret}"));
    let row = ApiKeyRow {
        hash: keys.key_hash(key.reveal().as_bytes()),
        id,
        tenant: wanted.tenant,
        role: wanted.role,
        label: wanted.label,
        operations: wanted.operations,
        scope: wanted.scope,
        created_by: wanted.created_by,
        created_at: now,
    };
    Ok(MintedKey { row, key })
}

/// Finds out who calls, from `Authorization: Bearer` or `X-API-Key`.
///
/// # Errors
/// [`Unauthenticated`].
pub(crate) async fn authenticate(
    keys: &InstallationKeys,
    store: &Store,
    headers: &HeaderMap,
) -> Result<Caller, Unauthenticated> {
    let key = presented(headers)?;
    verify(keys, store, &key).await
}

/// The one key that the headers present. Two are refused: which of them counts would be a guess.
fn presented(headers: &HeaderMap) -> Result<Secret<String>, Unauthenticated> {
    let bearer = headers.get_all(header::AUTHORIZATION).iter().map(|value| {
        let text = value.to_str().ok()?;
        let (scheme, key) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim().to_owned())
    });
    let plain = headers.get_all("x-api-key").iter().map(|value| value.to_str().ok().map(str::to_owned));
    let mut found: Vec<Option<String>> = bearer.chain(plain).collect();
    match (found.pop(), found.pop()) {
        (None, _) => Err(Unauthenticated::Missing),
        (Some(Some(key)), None) => Ok(Secret::new(key)),
        _ => Err(Unauthenticated::Invalid),
    }
}

/// Finds out whose key this is.
///
/// # Errors
/// [`Unauthenticated`].
pub(crate) async fn verify(
    keys: &InstallationKeys,
    store: &Store,
    key: &Secret<String>,
) -> Result<Caller, Unauthenticated> {
    let text = key.reveal().as_str();
    let id =
        text.strip_prefix(PREFIX).filter(|_| text.len() <= KEY_LENGTH).and_then(|rest| rest.split_once('_'));
    let id = id.and_then(|(id, _secret)| ApiKeyId::parse(id).ok()).ok_or(Unauthenticated::Invalid)?;
    let row = store.key(&id).await?.ok_or(Unauthenticated::Invalid)?;
    if !keys.is_key_hash(text.as_bytes(), &row.hash) {
        return Err(Unauthenticated::Invalid);
    }
    Ok(Caller {
        key: row.id,
        tenant: row.tenant,
        role: row.role,
        operations: row.operations,
        scope: row.scope,
    })
}
