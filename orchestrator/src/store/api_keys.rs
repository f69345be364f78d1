// SPDX-License-Identifier: Apache-2.0
//! API keys: what is known of each, and the keyed hash that stands for its secret.

use super::{Action, AuditEntry, Columns, Select, Store, StoreError, json_text, micros};
use jiff::Timestamp;
use postern_common::id::{ApiKeyId, TenantId};
use postern_common::session::Grant;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a key may do. From the auditor on, each may do more than the one before; the two before it are
/// single rights.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Keeps new versions of filters, and sees what became of them. Nothing else.
    #[serde(rename = "filters:push")]
    PushFilters,
    /// Puts in force what was pushed, or was in force before. Nothing else.
    #[serde(rename = "filters:activate")]
    ActivateFilters,
    /// Reads sandboxes, configuration, events and decisions.
    Auditor,
    /// Also makes, uses and destroys sandboxes, and pushes filters.
    Developer,
    /// Also changes what the tenant owns, and who may; puts filters in force.
    Admin,
}

impl Role {
    /// All of them.
    pub(crate) const ALL: [Self; 5] =
        [Self::PushFilters, Self::ActivateFilters, Self::Auditor, Self::Developer, Self::Admin];

    /// Whether it may do all that the other may.
    #[must_use]
    pub(crate) const fn includes(self, other: Self) -> bool {
        match other {
            Self::PushFilters => matches!(self, Self::PushFilters | Self::Developer | Self::Admin),
            Self::ActivateFilters => matches!(self, Self::ActivateFilters | Self::Admin),
            Self::Auditor => matches!(self, Self::Auditor | Self::Developer | Self::Admin),
            Self::Developer => matches!(self, Self::Developer | Self::Admin),
            Self::Admin => matches!(self, Self::Admin),
        }
    }

    /// The name in the API.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::PushFilters => "filters:push",
            Self::ActivateFilters => "filters:activate",
            Self::Auditor => "auditor",
            Self::Developer => "developer",
            Self::Admin => "admin",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(())
    }
}

/// What a key is for, beside its role and its operations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KeyScope {
    /// The templates that it may use and put; `None`: every one.
    pub(crate) templates: Option<Vec<String>>,
    /// The labels that every sandbox which it touches must have; `None`: none.
    pub(crate) labels: Option<BTreeMap<String, String>>,
}

/// A key, without its secret.
#[derive(Debug, Clone)]
pub(crate) struct ApiKeyRow {
    /// Its public part.
    pub(crate) id: ApiKeyId,
    /// The tenant that it belongs to; `None`: every tenant.
    pub(crate) tenant: Option<TenantId>,
    /// What it may do.
    pub(crate) role: Role,
    /// What people call it.
    pub(crate) label: String,
    /// The operations that sandboxes which it makes may have at most; `None`: any that a template
    /// names, but not `*`.
    pub(crate) operations: Option<Vec<Grant>>,
    /// What it is for besides.
    pub(crate) scope: KeyScope,
    /// Who made it.
    pub(crate) created_by: String,
    /// When.
    pub(crate) created_at: Timestamp,
    /// The keyed hash of its secret.
    pub(crate) hash: Vec<u8>,
}

fn row(row: &impl Columns) -> Result<ApiKeyRow, StoreError> {
    let operations = maybe_json(row, "operations")?;
    let scope = KeyScope { templates: maybe_json(row, "templates")?, labels: maybe_json(row, "labels")? };
    Ok(ApiKeyRow {
        id: row.parsed("id")?,
        tenant: row.maybe_parsed("tenant")?,
        role: row.parsed("role")?,
        label: row.text("label")?,
        operations,
        scope,
        created_by: row.text("created_by")?,
        created_at: row.time("created_at_micros")?,
        hash: row.bytes("hash")?,
    })
}

fn maybe_json<T: DeserializeOwned>(row: &impl Columns, name: &'static str) -> Result<Option<T>, StoreError> {
    let value = row.maybe_text(name)?.map(|text| serde_json::from_str(&text)).transpose();
    value.map_err(|_malformed| StoreError::Corrupt { what: name })
}

impl Store {
    /// Adds a key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn add_key(&self, key: &ApiKeyRow, audit: &AuditEntry) -> Result<(), StoreError> {
        let mut change = self.change().await?;
        let insert = "INSERT INTO api_keys (id, tenant, role, label, operations, hash, created_by, created_at_micros, templates, labels) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
        let operations = key.operations.as_ref().map(|list| json_text(list, "operations")).transpose()?;
        sqlx::query(insert)
            .bind(key.id.as_str().to_owned())
            .bind(key.tenant.as_ref().map(|tenant| tenant.as_str().to_owned()))
            .bind(key.role.as_str())
            .bind(key.label.clone())
            .bind(operations)
            .bind(key.hash.clone())
            .bind(key.created_by.clone())
            .bind(micros(key.created_at))
            .bind(key.scope.templates.as_ref().map(|list| json_text(list, "templates")).transpose()?)
            .bind(key.scope.labels.as_ref().map(|labels| json_text(labels, "labels")).transpose()?)
            .execute(&mut *change.0)
            .await?;
        change.record(audit).await?;
        change.commit().await
    }

    /// The key with this id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn key(&self, id: &ApiKeyId) -> Result<Option<ApiKeyRow>, StoreError> {
        let select = "SELECT * FROM api_keys WHERE id = $1";
        let found = sqlx::query(select).bind(id.as_str().to_owned()).fetch_optional(&self.pool).await?;
        found.as_ref().map(row).transpose()
    }

    /// A tenant's keys, or everyone's.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn keys(&self, tenant: Option<&TenantId>) -> Result<Vec<ApiKeyRow>, StoreError> {
        const MOST: u32 = 1000;
        let rows = Select::of("SELECT * FROM api_keys")
            .and("tenant = ?", tenant.map(TenantId::as_str))
            .page("created_at_micros, id", MOST, &self.pool)
            .await?;
        rows.iter().map(row).collect()
    }

    /// Removes a key; `false` if there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn remove_key(&self, id: &ApiKeyId, audit: &AuditEntry) -> Result<bool, StoreError> {
        debug_assert!(matches!(audit.action, Action::KeyRemoved));
        let mut change = self.change().await?;
        let delete = sqlx::query("DELETE FROM api_keys WHERE id = $1").bind(id.as_str().to_owned());
        if delete.execute(&mut *change.0).await?.rows_affected() == 0 {
            return Ok(false);
        }
        change.record(audit).await?;
        change.commit().await?;
        Ok(true)
    }
}
